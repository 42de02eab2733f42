/** What several pages are made of: badges, links, facts, times, sections that load, lists with pages, dialogs. */
import { ApiError } from './api.js'
import { field, fill, h, refill } from './dom.js'
import { anyWord, errorText, moneyText, numberText, t, timeText, unitText, utcText, word } from './i18n.js'

/** Waits for what else happens, so that a burst of events asks once. */
export const REFRESH_MS = 400
/** The same for lists over many devices. */
export const LIST_REFRESH_MS = 1_000
export const PAGE_ITEMS = 25

const TONES = {
  charging: 'good',
  online: 'good',
  settled: 'good',
  acked: 'good',
  delivered: 'good',
  active: 'good',
  ok: 'good',
  running: 'good',
  fault: 'bad',
  failed: 'bad',
  dead: 'bad',
  refused: 'bad',
  stopped: 'bad',
  mismatch: 'bad',
  blocked: 'bad',
  lost: 'bad',
  starting: 'warn',
  stopping: 'warn',
  expired: 'warn',
  queued: 'warn',
  pending: 'warn',
  paused: 'warn',
  sent: 'info',
  plugged: 'info',
  full: 'info',
  float: 'info',
  finished: 'info',
}
export const badge = (group, value) =>
  h(`span.badge${TONES[value] === undefined ? '' : `.${TONES[value]}`}`, {}, word(group, value))
export const presenceBadge = ({ online }) =>
  h(online ? 'span.badge.good' : 'span.badge', {}, t(online ? 'online' : 'offline'))

/** Local time; the exact time in UTC on hover. */
export const timeNode = (at) =>
  at === null || at === undefined
    ? '–'
    : h('time', { datetime: new Date(at).toISOString(), title: utcText(at) }, timeText(at))

export const deviceLink = (id) => h('a.mono.device', { href: `#/devices/${encodeURIComponent(id)}` }, id)
export const orderLink = (no) =>
  no === null || no === undefined ? '–' : h('a.mono', { href: `#/orders/${encodeURIComponent(no)}` }, no)
/** BKV: socket and letter, as on the sticker. */
export const portName = (port, socket) =>
  socket > 0 ? `${socket}-${port === 1 ? 'A' : port === 2 ? 'B' : port}` : String(port)

/** `undefined` leaves a fact out. */
export const facts = (pairs) =>
  h(
    'dl.facts',
    {},
    ...pairs
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value ?? '–'))),
  )
export const card = (title, ...children) =>
  h('section.card', {}, title === null ? null : h('h2', {}, title), ...children)
export const button = (label, act, attributes = {}) =>
  h(
    `button${attributes.tone === undefined ? '' : `.${attributes.tone}`}`,
    { type: 'button', onclick: act, ...attributes, tone: null },
    label,
  )
/** Title, what belongs beside it, and what can be done. */
export const head = (title, beside = null, ...actions) =>
  h('div.head', {}, h('h1', {}, title), beside, actions.some((one) => one) ? h('div.actions', {}, ...actions) : null)
/** Rarely wanted text behind a word; `key` keeps it open over a refresh. */
export const details = (key, summary, ...children) =>
  h('details', { 'data-key': key }, h('summary', {}, summary), ...children)
export const json = (value) => h('pre', {}, JSON.stringify(value, null, 2))

// ---- events --------------------------------------------------------------------------------------------------------

/** What an event says, in one line. */
export function eventDetails(data = {}) {
  const parts = []
  if (data.port > 0) parts.push(`${t('port')} ${portName(data.port, data.socket)}`)
  else if (data.socket > 0) parts.push(`${t('socket')} ${data.socket}`)
  if (data.kind !== undefined) parts.push(word('alarm', data.kind))
  if (data.fault !== undefined && data.fault !== null) parts.push(word('fault', data.fault))
  if (data.previous_state !== undefined && data.previous_state !== null)
    parts.push(`${word('state', data.previous_state)} → ${word('state', data.state)}`)
  // progress of a charge says in its name that it charges
  else if (data.state !== undefined && data.port_state === undefined)
    parts.push(anyWord(['state', 'fate', 'order'], data.state))
  if (data.name !== undefined) parts.push(data.name)
  if (data.outcome !== undefined) parts.push(anyWord(['fate', 'outcome'], data.outcome))
  if (data.power_w !== undefined && data.power_w !== null) parts.push(unitText(data.power_w, 'W', 1))
  if (data.energy_wh !== undefined && data.energy_wh !== null) parts.push(unitText(data.energy_wh, 'Wh'))
  if (data.amount_fen !== undefined && data.amount_fen !== null) parts.push(moneyText(data.amount_fen))
  if (data.end_reason !== undefined && data.end_reason !== null) parts.push(word('end', data.end_reason))
  if (data.card_id !== undefined && data.card_id !== null) parts.push(`${t('card')} ${data.card_id}`)
  if (data.firmware !== undefined && data.firmware !== null) parts.push(`${t('firmware')} ${data.firmware}`)
  if (data.protocol !== undefined) parts.push(String(data.protocol).toUpperCase())
  if (Array.isArray(data.nodes)) parts.push(t('sockets_n', { n: data.nodes.length }))
  if (data.percent !== undefined && data.percent !== null) parts.push(`${numberText(data.percent)} %`)
  if (data.reason !== undefined && data.reason !== null) parts.push(word('reason', data.reason))
  return parts.join(' · ')
}

export function feedItem(at, what, about, device, order) {
  return h(
    'li',
    {},
    timeNode(at),
    h(
      'div.text',
      {},
      ...[what].flat(),
      device === undefined || device === '' ? null : [' ', deviceLink(device)],
      order === undefined || order === null ? null : [' ', orderLink(order)],
      about === '' ? null : h('small', {}, about),
    ),
  )
}
/** @param isFleet among others: says which device and order */
export const eventItem = (event, isFleet = true) =>
  feedItem(
    event.timestamp * 1_000,
    word('event', event.event_type),
    eventDetails(event.data),
    isFleet ? event.device_phy_id : undefined,
    isFleet ? event.data?.order_no : undefined,
  )

// ---- what loads ----------------------------------------------------------------------------------------------------

const SKELETON = () => h('p.empty', {}, t('loading'))

/**
 * Shows what `load` brings, or why it brought nothing. Later calls win over earlier ones. What was shown stays while the
 * gateway or its database is away: the banner says so.
 */
export function section(load) {
  const element = h('div.section', { 'aria-busy': 'true' }, SKELETON())
  let turn = 0
  let hasContent = false
  const refresh = async () => {
    const mine = ++turn
    try {
      const content = await load()
      if (mine !== turn) return
      refill(element, content)
      hasContent = true
      element.classList.remove('stale')
    } catch (error) {
      if (mine !== turn) return
      if (hasContent && error.isPassing) element.classList.add('stale')
      else {
        hasContent = false
        fill(element, h('p.problem', { role: 'alert' }, errorText(error)))
        if (!(error instanceof ApiError)) console.error(error)
      }
    }
    element.removeAttribute('aria-busy')
  }
  return { element, refresh }
}

/** `next_cursor` both ways: the cursors of the pages before are remembered. Not shown while one page is all. */
export function pager(onTurn) {
  const cursors = [undefined]
  let next = null
  const turn = (way) => {
    if (way > 0) cursors.push(next)
    else cursors.pop()
    onTurn()
  }
  const back = button(t('previous'), () => turn(-1))
  const forth = button(t('next'), () => turn(1))
  const at = h('span.soft', { 'aria-live': 'polite' })
  const element = h('div.actions.pagers', { role: 'group', 'aria-label': t('pages'), hidden: true }, at, back, forth)
  return {
    element,
    get cursor() {
      return cursors.at(-1)
    },
    get isFirst() {
      return cursors.length === 1
    },
    reset() {
      cursors.length = 1
    },
    arrived(nextCursor) {
      next = nextCursor
      back.disabled = cursors.length === 1
      forth.disabled = nextCursor === null
      element.hidden = back.disabled && forth.disabled
      fill(at, t('page_n', { n: cursors.length }))
    },
  }
}

/** A section and its pager in a card. `load(cursor)` gives `[content, next_cursor]`. */
export function pagedCard(title, load, ...above) {
  const pages = pager(() => void list.refresh())
  const list = section(async () => {
    const [content, next] = await load(pages.cursor)
    pages.arrived(next)
    return content
  })
  return {
    element: card(title, ...above, list.element, pages.element),
    refresh: list.refresh,
    restart() {
      pages.reset()
      void list.refresh()
    },
    get isFirst() {
      return pages.isFirst
    },
  }
}

/** Names and values of filters in the address, so that they survive going back and can be sent to somebody. */
export function rememberFilters(path, filters) {
  const given = Object.entries(filters).filter(([, value]) => value !== '' && value !== undefined)
  const text = new URLSearchParams(given).toString()
  history.replaceState(null, '', text === '' ? `#${path}` : `#${path}?${text}`)
}

/** A date of an input as the beginning of that day here, or of the day behind it. */
export function dayStart(text, daysLater = 0) {
  if (text === '') return undefined
  const [year, month, day] = text.split('-').map(Number)
  return new Date(year, month - 1, day + daysLater).toISOString()
}

// ---- dialogs -------------------------------------------------------------------------------------------------------

/** Opens a dialog and resolves with true when it was confirmed. `onConfirm` may throw: the dialog stays and says why. */
export function ask({
  title,
  body,
  confirm = t('confirm'),
  onConfirm,
  isDangerous = false,
  isWide = false,
  hasCancel = true,
}) {
  const opener = document.activeElement
  return new Promise((resolve) => {
    const problem = h('p.problem', { role: 'alert' })
    const go = h(isDangerous ? 'button.danger' : 'button.primary', { type: 'submit' }, confirm)
    const form = h(
      'form',
      {
        method: 'dialog',
        onsubmit: async (event) => {
          event.preventDefault()
          go.disabled = true
          fill(problem)
          try {
            await onConfirm?.()
            done(true)
          } catch (error) {
            fill(problem, errorText(error))
            problem.scrollIntoView({ block: 'nearest' })
            go.disabled = false
          }
        },
      },
      h('h2', { id: 'dialog-title' }, title),
      ...[body].flat(),
      problem,
      h('div.actions', {}, hasCancel ? button(t('cancel'), () => done(false)) : null, go),
    )
    const dialog = h(
      isWide ? 'dialog.wide' : 'dialog',
      { 'aria-labelledby': 'dialog-title', oncancel: () => done(false) },
      form,
    )
    const done = (isConfirmed) => {
      if (!dialog.isConnected) return
      dialog.close()
      dialog.remove()
      // what opened it may have been shown anew meanwhile
      if (opener?.isConnected) opener.focus()
      resolve(isConfirmed)
    }
    document.body.append(dialog)
    dialog.showModal()
  })
}

/** Something that is shown once, with a button that copies it. */
export function showSecret(title, hint, secret) {
  const value = h('input', {
    type: 'text',
    readonly: true,
    class: 'mono',
    value: secret,
    onfocus: () => value.select(),
  })
  const copy = button(t('copy'), async () => {
    try {
      // only there over HTTPS
      await navigator.clipboard.writeText(secret)
      fill(copy, t('copied'))
    } catch {
      value.select()
    }
  })
  return ask({
    title,
    body: [h('p', {}, hint), field(t('secret'), value), h('div', {}, copy)],
    confirm: t('done'),
    hasCancel: false,
  })
}
