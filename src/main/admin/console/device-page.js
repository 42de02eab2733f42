/** One device: its ports live, its session, and what happened to it. */
import { commandCatalogue, get, may, me, put, remove, repeatablePost } from './api.js'
import { field, fill, h, refill, select, table, throttled, toast } from './dom.js'
import { numberText, t, unitText, word } from './i18n.js'
import { orderTable } from './orders-page.js'
import { paramsForm } from './params-form.js'
import {
  ask,
  badge,
  button,
  card,
  details,
  eventDetails,
  facts,
  feedItem,
  json,
  orderLink,
  PAGE_ITEMS,
  pagedCard,
  portName,
  presenceBadge,
  REFRESH_MS,
  section,
  timeNode,
} from './pieces.js'

const TABS = ['state', 'orders', 'commands', 'timeline', 'frames']
const RECENT_ITEMS = 5
const TIMELINE_ITEMS = 100
const FRAMES_MAX = 200
/** From so many ports on they can be filtered. */
const PORTS_FILTERED = 13

export function devicePage(id, tab = 'state') {
  const path = `/api/v1/devices/${encodeURIComponent(id)}`
  const address = `#/devices/${encodeURIComponent(id)}`
  const beside = h('span.row', { id: 'presence' })
  const chosen = TABS.includes(tab) ? tab : 'state'
  let device

  const load = async () => {
    device = await get(path)
    refill(
      beside,
      presenceBadge(device.presence),
      device.protocol === null ? null : h('span.badge', {}, device.protocol.toUpperCase()),
      [device.name, device.site].filter((one) => one !== null).join(' · '),
    )
    return device
  }
  const parts = []
  const changed = throttled(() => {
    for (const part of parts) void part.refresh()
  }, REFRESH_MS)
  const accepted = (what) => {
    toast(t('sent_ok', { what }))
    changed()
  }
  /** `portState`: which ports of a large device are shown; '' for all. */
  const actions = { id, path, accepted, device: () => device, portState: '' }

  const tabs = {
    state() {
      const main = section(async () => {
        const one = await load()
        return [portsCard(one, actions), sessionCard(one, actions)]
      })
      const orders = section(async () => {
        const { items } = await get('/api/v1/orders', { device_id: id, limit: RECENT_ITEMS })
        return [orderTable(items, false), items.length < RECENT_ITEMS ? null : more(`${address}/orders`)]
      })
      const commands = section(async () => {
        const { items } = await get('/api/v1/commands', { device_id: id, limit: RECENT_ITEMS })
        return [commandTable(items, changed), items.length < RECENT_ITEMS ? null : more(`${address}/commands`)]
      })
      const timeline = section(async () => {
        const { items } = await get(`${path}/timeline`, { limit: 50 })
        return items.length === 0
          ? h('p.empty', {}, t('no_events'))
          : [
              h(
                'ul.feed.scrolls',
                { tabindex: '0', 'aria-label': t('timeline') },
                ...items.toReversed().map(timelineItem),
              ),
              more(`${address}/timeline`),
            ]
      })
      parts.push(main, orders, commands, timeline)
      return h(
        'div.split',
        {},
        h('div.stack', {}, main.element, card(t('orders'), orders.element), card(t('commands'), commands.element)),
        card(t('timeline'), timeline.element),
      )
    },
    orders() {
      const list = pagedCard(t('orders'), async (cursor) => {
        const { items, next_cursor: next } = await get('/api/v1/orders', { device_id: id, limit: PAGE_ITEMS, cursor })
        return [orderTable(items, false), next]
      })
      parts.push(list, { refresh: () => load().catch(() => {}) })
      return list.element
    },
    commands() {
      const list = pagedCard(t('commands'), async (cursor) => {
        const { items, next_cursor: next } = await get('/api/v1/commands', { device_id: id, limit: PAGE_ITEMS, cursor })
        return [commandTable(items, changed), next]
      })
      parts.push(list, { refresh: () => load().catch(() => {}) })
      return list.element
    },
    timeline() {
      const list = timelineCard(path)
      parts.push(list, { refresh: () => load().catch(() => {}) })
      return list.element
    },
    frames() {
      const list = framesCard(path)
      parts.push(list, { refresh: () => load().catch(() => {}) })
      return list.element
    },
  }

  const nav = h(
    'nav.tabs.scrolls',
    { 'aria-label': id },
    ...TABS.map((one) =>
      h(
        'a',
        { href: one === 'state' ? address : `${address}/${one}`, 'aria-current': one === chosen ? 'page' : null },
        t(one === 'state' ? 'state' : one),
      ),
    ),
  )
  return {
    title: id,
    topics: ['metrics', `device/${id}`],
    element: [
      h(
        'div.head',
        {},
        h('h1.mono', {}, id),
        beside,
        h(
          'div.actions',
          {},
          may('admin') && button(t('edit'), () => void askEdit(actions, changed)),
          may('operator') && button(t('send_command'), () => void askCommand(actions)),
        ),
      ),
      nav,
      tabs[chosen](),
    ],
    start() {
      changed()
      nav.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    },
    refresh: changed,
    onEvent: changed,
    dispose: () => changed.cancel(),
  }
}

const more = (href) => h('p.more', {}, h('a', { href }, t('show_all')))

// ---- ports and session ---------------------------------------------------------------------------------------------

function portsCard(device, actions) {
  const { ports } = device
  if (ports.length === 0) return card(t('ports'), h('p.empty', {}, t('no_ports')))
  const states = ['', ...new Set(ports.map(({ state }) => state))]
  // what was chosen may be gone since
  if (!states.includes(actions.portState)) actions.portState = ''
  const fitting = (state) => ports.filter((port) => state === '' || port.state === state)
  const grid = h('div.port-grid', { id: 'ports' })
  const chips = states.map((state) =>
    h(
      'button.chip',
      {
        type: 'button',
        onclick: () => {
          actions.portState = state
          show()
        },
      },
      `${state === '' ? t('all') : word('state', state)} ${fitting(state).length}`,
    ),
  )
  const show = () => {
    for (const [index, chip] of chips.entries())
      chip.setAttribute('aria-pressed', String(states[index] === actions.portState))
    fill(grid, ...fitting(actions.portState).map((port) => portBox(port, actions)))
  }
  show()
  const isLarge = ports.length >= PORTS_FILTERED
  return card(t('ports'), isLarge ? h('div.chips', { role: 'group', 'aria-label': t('filter') }, ...chips) : null, grid)
}

function portBox(port, actions) {
  const name = portName(port.port, port.socket)
  const isCharging = port.state === 'charging' || port.order_no !== null
  const tone = port.state === 'charging' ? '.charging' : port.state === 'fault' ? '.fault' : ''
  const readings = [
    [port.power_w, 'W', 1],
    [port.energy_wh, 'Wh', 0],
    [port.voltage_v, 'V', 1],
    [port.current_a, 'A', 2],
    [port.temperature_c, '°C', 1],
  ].filter(([value]) => value !== null)
  return h(
    `div.port${tone}`,
    { 'data-port': name },
    h('div.top', {}, h('strong', {}, `${t('port')} ${name}`), badge('state', port.state)),
    readings.length === 0
      ? null
      : h('div.readings', {}, ...readings.map(([value, unit, digits]) => h('span', {}, unitText(value, unit, digits)))),
    port.fault === null ? null : h('span.problem', {}, word('fault', port.fault)),
    port.order_no === null ? null : h('span.order', {}, `${t('order')} `, orderLink(port.order_no)),
    may('operator')
      ? h(
          'div.actions',
          {},
          isCharging
            ? button(t('stop'), () => void askStop(port, actions), {
                'aria-label': `${t('stop_charge')}, ${t('port')} ${name}`,
              })
            : button(t('start'), () => void askStart(port, actions), {
                tone: 'primary',
                'aria-label': `${t('start_charge')}, ${t('port')} ${name}`,
              }),
        )
      : null,
  )
}

function sessionCard(one) {
  const reasons = one.presence.reasons.map((reason) => word('presence', reason)).join(', ')
  return card(
    t('session'),
    facts([
      [t('presence'), `${numberText(one.presence.score)} % · ${reasons}`],
      [t('last_seen'), timeNode(one.last_seen_at)],
      [t('opened'), one.session === null ? t('no_session') : timeNode(one.session.opened_at)],
      [t('address'), one.session?.remote_address],
      [
        t('epoch'),
        one.session === null ? '–' : h('span', {}, `${one.session.epoch} · ${t('shard')} ${one.session.shard}`),
      ],
      [t('clock'), one.clock_offset_ms === null ? '–' : `${numberText(one.clock_offset_ms / 1_000, 1)} s`],
      [t('firmware'), one.firmware],
      [t('model'), one.device_type],
      [t('model_profile'), one.model_profile ?? t('by_model')],
      [t('iccid'), one.iccid],
      [t('signal'), one.signal === null ? '–' : String(one.signal)],
      [t('voltage'), one.voltage_v === null ? undefined : unitText(one.voltage_v, 'V', 1)],
      [t('temperature'), one.temperature_c === null ? undefined : unitText(one.temperature_c, '°C', 1)],
      [t('tariff'), one.tariff === null ? t('none') : details('tariff', t('show'), json(one.tariff))],
      [t('registered'), timeNode(one.registered_at)],
      [t('tenant'), me.tenant === 'default' ? undefined : one.tenant],
    ]),
  )
}

// ---- what is sent --------------------------------------------------------------------------------------------------

const place = ({ port, socket }) => ({ port, ...(socket > 0 ? { socket } : {}) })
/** It waits for the device and may expire. */
const awayNote = (device) =>
  device()?.presence.online === false ? h('p.note', { role: 'note' }, t('device_is_away')) : null

function askStart(port, { id, path, accepted, device }) {
  const post = repeatablePost()
  const hasTariff = device()?.tariff !== null && device()?.tariff !== undefined
  const mode = select(
    { name: 'mode', onchange: () => showQuantity() },
    ['full', 'time', 'energy', ...(hasTariff ? ['budget', 'power'] : [])].map((one) => [one, word('mode', one)]),
  )
  const minutes = field(t('duration_min'), h('input', { type: 'number', min: '1', max: '1000', value: '60' }))
  const energy = field(
    t('energy_input'),
    h('input', { type: 'number', min: '10', max: '100000', step: '10', value: '1000' }),
  )
  const amount = field(
    t('amount_input'),
    h('input', { type: 'number', min: '0.01', max: '10000', step: '0.01', value: '2.00' }),
  )
  const quantities = { time: minutes, energy, budget: amount, power: amount }
  const showQuantity = () => {
    for (const one of [minutes, energy, amount]) {
      one.hidden = quantities[mode.value] !== one
      // what is not shown must not keep the form from being sent
      one.input.disabled = one.hidden
    }
  }
  showQuantity()
  return ask({
    title: t('start_charge'),
    body: [
      h('p.soft', {}, t('start_question', { port: portName(port.port, port.socket), device: id })),
      awayNote(device),
      field(t('mode'), mode, hasTariff ? undefined : t('needs_tariff')),
      minutes,
      energy,
      amount,
    ],
    onConfirm: async () => {
      await post(`${path}/charge`, {
        ...place(port),
        mode: mode.value,
        ...(mode.value === 'time' ? { duration_s: Number(minutes.input.value) * 60 } : {}),
        ...(mode.value === 'energy' ? { energy_wh: Number(energy.input.value) } : {}),
        ...(quantities[mode.value] === amount ? { amount_fen: Math.round(Number(amount.input.value) * 100) } : {}),
      })
      accepted(t('start_charge'))
    },
  })
}

function askStop(port, { id, path, accepted, device }) {
  const post = repeatablePost()
  return ask({
    title: t('stop_charge'),
    body: [h('p', {}, t('stop_question', { port: portName(port.port, port.socket), device: id })), awayNote(device)],
    confirm: t('stop'),
    isDangerous: true,
    onConfirm: async () => {
      await post(`${path}/stop`, place(port))
      accepted(t('stop_charge'))
    },
  })
}

async function askCommand({ id, path, accepted, device }) {
  const post = repeatablePost()
  let catalogue
  try {
    const all = await commandCatalogue(device()?.protocol)
    // useful ones first: firmware goes by jobs, and bytes without a meaning are for who knows them
    const isRare = ({ name }) => /^(unpublished|placeholder|firmware)/.test(name)
    catalogue = [...all.filter((one) => !isRare(one)), ...all.filter(isRare)]
  } catch (error) {
    toast(error.message, true)
    return
  }
  const hint = h('small', {})
  const fields = h('div', {})
  let form
  const name = select(
    { name: 'name', onchange: () => show() },
    catalogue.map((one) => [one.name, one.name]),
  )
  const show = () => {
    const one = catalogue.find((entry) => entry.name === name.value)
    fill(hint, one?.text ?? '')
    form = paramsForm(one?.params)
    fill(fields, form.element)
  }
  show()
  await ask({
    title: t('send_command'),
    body: [
      h('p.soft', {}, t('command_question', { device: id })),
      awayNote(device),
      field(t('command'), name),
      hint,
      fields,
    ],
    confirm: t('send'),
    onConfirm: async () => {
      await post(`${path}/commands`, { name: name.value, params: form.value() })
      accepted(name.value)
    },
  })
}

async function askEdit({ id, path, device }, changed) {
  const one = device()
  if (one === undefined) return
  const profiles = await get('/api/v1/model-profiles').catch(() => ({ items: [] }))
  const name = h('input', { name: 'name', maxlength: '200', value: one.name ?? '' })
  const site = h('input', { name: 'site', maxlength: '200', value: one.site ?? '' })
  const profile = select(
    { name: 'model_profile' },
    [
      ['', t('by_model')],
      ...profiles.items
        .filter(({ protocol }) => one.protocol === null || protocol === one.protocol)
        .map((entry) => [entry.name, entry.name]),
    ],
    one.model_profile ?? '',
  )
  const orNull = (input) => (input.value.trim() === '' ? null : input.value.trim())
  await ask({
    title: t('edit_device', { device: id }),
    body: [field(t('name'), name), field(t('site'), site), field(t('model_profile'), profile)],
    confirm: t('save'),
    onConfirm: async () => {
      await put(path, { name: orNull(name), site: orNull(site), model_profile: orNull(profile) })
      toast(t('saved'))
      changed()
    },
  })
}

/** Starts and stops are one command of the protocol: a start has a mode. */
const isCharge = ({ name }) => name === 'startCharge' || name === 'control'
function commandName(one) {
  const { port, socket = 0, mode } = one.params
  const at = port > 0 ? ` · ${t('port')} ${portName(port, socket)}` : ''
  if (!isCharge(one)) return h('span', {}, h('span.mono', {}, one.name), at)
  return h('span', { title: one.name }, t(mode === undefined ? 'stop_charge' : 'start_charge'), at)
}

function commandTable(items, changed) {
  const heads = [
    t('command'),
    t('fate'),
    `#${t('attempts')}`,
    t('created'),
    t('finished'),
    t('reason'),
    ...(may('operator') ? [''] : []),
  ]
  return table(
    t('commands'),
    heads,
    items.map((one) => [
      details(
        one.command_id,
        commandName(one),
        facts([
          [t('command_id'), h('span.mono', {}, one.command_id)],
          [t('order'), one.order_no === null ? undefined : orderLink(one.order_no)],
          [t('expires'), timeNode(one.expires_at)],
          [t('sent_at'), timeNode(one.sent_at)],
        ]),
        Object.keys(one.params).length === 0 ? null : [h('small', {}, t('params')), json(one.params)],
        one.result === null ? null : [h('small', {}, t('answer')), json(one.result)],
      ),
      badge('fate', one.state),
      String(one.attempts),
      timeNode(one.created_at),
      timeNode(one.finished_at),
      one.reason === null ? '–' : word('reason', one.reason),
      ...(may('operator') ? [one.state === 'queued' ? cancelButton(one, changed) : ''] : []),
    ]),
    t('no_commands'),
  )
}

const cancelButton = (one, changed) =>
  button(
    t('cancel'),
    () =>
      void ask({
        title: t('cancel_command'),
        body: [h('p', {}, t('cancel_question', { command: one.name }))],
        isDangerous: true,
        onConfirm: async () => {
          await remove(`/api/v1/commands/${encodeURIComponent(one.command_id)}`)
          changed()
        },
      }),
    { 'aria-label': `${t('cancel_command')}: ${one.name}` },
  )

// ---- timeline ------------------------------------------------------------------------------------------------------

const KINDS = ['session', 'command', 'order', 'event', 'frame']

function timelineCard(path) {
  /** Ends of the pages that were turned to; none: now. */
  const ends = []
  const kind = select({ name: 'kind', onchange: () => void list.refresh() }, [
    ['', t('all')],
    ...KINDS.map((one) => [one, word('kind', one)]),
  ])
  const later = button(t('later'), () => {
    ends.pop()
    void list.refresh()
  })
  const earlier = button(t('earlier'), () => {
    ends.push(oldest)
    void list.refresh()
  })
  let oldest
  const list = section(async () => {
    const to = ends.at(-1)
    const from = new Date(Date.parse(to ?? new Date().toISOString()) - 7 * 86_400_000).toISOString()
    const { items } = await get(`${path}/timeline`, { limit: TIMELINE_ITEMS, to, from })
    oldest = items[0]?.at
    later.disabled = ends.length === 0
    earlier.disabled = items.length < TIMELINE_ITEMS
    const shown = items.filter((one) => kind.value === '' || one.kind === kind.value).toReversed()
    return shown.length === 0
      ? h('p.empty', {}, t(items.length === 0 ? 'no_events' : 'no_match'))
      : h('ul.feed.long', {}, ...shown.map(timelineItem))
  })
  return {
    element: card(
      t('timeline'),
      h('div.filters.narrow', {}, field(t('kind'), kind)),
      list.element,
      h('div.actions.pagers', { role: 'group', 'aria-label': t('pages') }, later, earlier),
    ),
    refresh: list.refresh,
  }
}

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
/** By the status of outbound_queue. */
const FATES = ['queued', 'sent', 'acked', 'dead', 'refused', 'expired', 'cancelled']

function timelineItem({ at, kind, what, details: told }) {
  if (kind === 'event') return feedItem(at, word('event', what), eventDetails(told), undefined, told.order_no)
  if (kind === 'order')
    return feedItem(at, [`${t('order')} `, badge('order', what)], eventDetails(told), undefined, told.order_no)
  if (kind === 'frame')
    return feedItem(
      at,
      h('span.soft', {}, told.direction === 'uplink' ? '↑ ' : '↓ ', h('span.mono', {}, what)),
      // the id of its command says nothing to a reader
      told.note === null || UUID.test(told.note) ? '' : told.note,
    )
  if (kind === 'command') {
    const fate = FATES[told.status] ?? String(told.status)
    const reason = told.result?.reason
    return feedItem(
      at,
      [`${t('command')} `, h('span.mono', {}, what), ' ', badge('fate', fate)],
      typeof reason === 'string' ? word('reason', reason) : '',
      undefined,
      told.order_no,
    )
  }
  const parts = [
    told.remote_address,
    told.reason === null || told.reason === undefined ? undefined : word('close', told.reason),
  ]
  return feedItem(
    at,
    t(what === 'opened' ? 'session_opened' : 'session_closed'),
    parts.filter((part) => part !== undefined && part !== null).join(' · '),
  )
}

// ---- frames --------------------------------------------------------------------------------------------------------

const WINDOWS_S = [60, 600, 3_600, 86_400]

function framesCard(path) {
  const record = me.gateway.record
  const windowS = select(
    { name: 'window', onchange: () => void list.refresh() },
    WINDOWS_S.map((seconds) => [String(seconds), t(`window_${seconds}`)]),
    '600',
  )
  const until = h('input', { type: 'datetime-local', name: 'until', step: '1', onchange: () => void list.refresh() })
  const note = {
    all: null,
    errors: h('p.note', { role: 'note' }, t('record_errors')),
    off: h('p.note', { role: 'note' }, t('record_off')),
  }[record]
  const list = section(async () => {
    const toMs = until.value === '' ? Date.now() : new Date(until.value).getTime()
    const { items } = await get(`${path}/frames`, {
      from: new Date(toMs - Number(windowS.value) * 1_000).toISOString(),
      to: new Date(toMs).toISOString(),
      limit: FRAMES_MAX,
    })
    if (items.length === 0) return h('p.empty', {}, t('no_frames'))
    return [
      h(
        'p.soft',
        {},
        t('frames_n', { n: numberText(items.length) }),
        items.length < FRAMES_MAX ? '' : ` ${t('frames_cut')}`,
        items.some(({ source }) => source === 'cmd_log') ? ` ${t('from_cmd_log')}` : '',
        may('admin') ? '' : ` ${t('identity_masked')}`,
      ),
      h('ul.frames', {}, ...items.toReversed().map(frameItem)),
    ]
  })
  return {
    element: card(
      t('frames'),
      note,
      h(
        'div.filters.frames-filter',
        {},
        field(t('window'), windowS),
        field(t('until'), until, t('until_hint')),
        button(t('refresh'), () => void list.refresh()),
      ),
      list.element,
    ),
    refresh: list.refresh,
  }
}

function frameItem({ at, direction, command, message_id: messageId, hex, fields }) {
  const isUplink = direction === 'uplink'
  const told = Object.entries(fields)
  return h(
    'li',
    {},
    h(
      'div.top',
      {},
      h(
        isUplink ? 'span.way.up' : 'span.way.down',
        { title: t(isUplink ? 'uplink' : 'downlink') },
        isUplink ? '↑' : '↓',
      ),
      h('strong.mono', {}, command),
      messageId === null ? null : h('small', {}, `#${messageId}`),
      timeNode(at),
    ),
    h('code', {}, hex.replace(/../g, '$& ').trim()),
    told.length === 0
      ? null
      : details(
          `${at}${direction}${messageId}`,
          told
            .slice(0, 4)
            .map(([name, value]) => `${name} ${typeof value === 'object' ? '…' : value}`)
            .join(' · ') + (told.length > 4 ? ' …' : ''),
          json(fields),
        ),
  )
}
