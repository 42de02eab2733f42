/** For admins: who may connect, what was put aside, who did what. */
import { get, me, put, remove } from './api.js'
import { field, h, select, table, throttled, toast } from './dom.js'
import { t, word } from './i18n.js'
import {
  ask,
  button,
  card,
  details,
  deviceLink,
  head,
  json,
  PAGE_ITEMS,
  pagedCard,
  rememberFilters,
  timeNode,
} from './pieces.js'

export function allowlistPage() {
  const kind = select({ name: 'kind', onchange: () => list.restart() }, [
    ['', t('all')],
    ['device', t('device')],
    ['network', t('network')],
  ])
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/allowlist', { kind: kind.value, cursor, limit: PAGE_ITEMS })
    const heads = [t('kind'), t('who'), t('note'), t('by'), t('made'), '']
    const rows = items.map((one) => [
      t(one.kind),
      one.kind === 'device' ? deviceLink(one.pattern) : h('span.mono', {}, one.pattern),
      one.note,
      one.created_by,
      timeNode(one.created_at),
      h(
        'div.actions',
        {},
        button(t('edit'), () => void askEntry(one), { 'aria-label': `${t('edit')} ${one.pattern}` }),
        button(t('remove'), () => void askRemove(one), { 'aria-label': `${t('remove')} ${one.pattern}` }),
      ),
    ])
    return [table(t('allowlist'), heads, rows, t('no_allowlist')), next]
  })
  const pathOf = (entryKind, pattern) => `/api/v1/allowlist/${entryKind}/${encodeURIComponent(pattern)}`
  const askEntry = (one) => {
    const entryKind = select(
      { name: 'kind', disabled: one !== undefined, onchange: () => showHint() },
      [
        ['device', t('device')],
        ['network', t('network')],
      ],
      one?.kind,
    )
    const pattern = h('input', {
      name: 'pattern',
      class: 'mono',
      required: true,
      maxlength: '64',
      readonly: one !== undefined,
      value: one?.pattern ?? '',
    })
    const note = h('input', { name: 'note', maxlength: '200', value: one?.note ?? '' })
    const patternField = field(t('who'), pattern, t('device_id_hint'))
    const showHint = () => {
      patternField.querySelector('small').textContent = t(
        entryKind.value === 'device' ? 'device_id_hint' : 'network_hint',
      )
    }
    showHint()
    return ask({
      title: t(one === undefined ? 'add_allowlist' : 'edit'),
      body: [field(t('kind'), entryKind), patternField, field(t('optional', { what: t('note') }), note)],
      confirm: t('save'),
      onConfirm: async () => {
        await put(pathOf(entryKind.value, pattern.value.trim()), {
          note: note.value.trim() === '' ? null : note.value.trim(),
        })
        toast(t('saved'))
        await list.refresh()
      },
    })
  }
  const askRemove = (one) =>
    ask({
      title: t('remove'),
      body: [
        h('p', {}, t(me.gateway.allowlist === 'on' ? 'remove_allowlist_on' : 'remove_allowlist', { who: one.pattern })),
      ],
      confirm: t('remove'),
      isDangerous: true,
      onConfirm: async () => {
        await remove(pathOf(one.kind, one.pattern))
        await list.refresh()
      },
    })
  return {
    title: t('allowlist'),
    topics: ['metrics'],
    element: [
      head(
        t('allowlist'),
        null,
        button(t('add_allowlist'), () => void askEntry(), { tone: 'primary' }),
      ),
      h('p.note', { role: 'note' }, t(me.gateway.allowlist === 'on' ? 'allowlist_on' : 'allowlist_off')),
      card(null, h('div.filters.narrow', {}, field(t('kind'), kind))),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh: () => void list.refresh(),
  }
}

export function quarantinePage() {
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/quarantine', { cursor, limit: PAGE_ITEMS })
    const heads = [t('at'), t('reason'), t('device'), t('address'), t('note'), t('raw_bytes')]
    const rows = items.map((one) => [
      timeNode(one.at),
      word('quarantine', one.reason),
      one.device_id === null ? null : deviceLink(one.device_id),
      one.remote_address,
      one.note,
      one.bytes_hex === ''
        ? null
        : one.bytes_hex.length <= 32
          ? h('code', {}, spaced(one.bytes_hex))
          : details(
              String(one.id),
              h('code', {}, `${spaced(one.bytes_hex.slice(0, 24))} … ${t('bytes_n', { n: one.bytes_hex.length / 2 })}`),
              h('code.block', {}, spaced(one.bytes_hex)),
            ),
    ])
    return [table(t('quarantine'), heads, rows, t('no_quarantine')), next]
  })
  return {
    title: t('quarantine'),
    topics: ['metrics'],
    element: [
      head(
        t('quarantine'),
        null,
        button(t('refresh'), () => void list.refresh()),
      ),
      h('p.soft', {}, t('quarantine_hint')),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh: () => void list.refresh(),
  }
}

const spaced = (hex) => hex.replace(/../g, '$& ').trim()

export function auditPage(filters) {
  const target = h('input', {
    type: 'search',
    name: 'target',
    maxlength: '200',
    placeholder: t('target_hint'),
    value: filters.target ?? '',
    oninput: () => typed(),
  })
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/audit', {
      cursor,
      limit: PAGE_ITEMS,
      target: target.value.trim(),
    })
    const heads = [t('at'), t('who'), t('action'), t('target'), t('address'), t('details')]
    const rows = items.map((one) => [
      timeNode(one.at),
      h('span', {}, one.actor, h('small', {}, ` ${word('role', one.role)}`)),
      h('span', { title: one.action }, word('deed', one.action)),
      h('span.mono', {}, one.target ?? '–'),
      one.remote_address,
      details(
        one.request_id ?? `${one.at}${one.action}`,
        t('show'),
        h('small', {}, `X-Request-ID ${one.request_id ?? '–'}`),
        json(one.details),
      ),
    ])
    return [table(t('audit'), heads, rows, t(target.value.trim() === '' ? 'no_audit' : 'no_match')), next]
  })
  const typed = throttled(() => {
    rememberFilters('/audit', { target: target.value.trim() })
    list.restart()
  }, 250)
  return {
    title: t('audit'),
    topics: ['metrics'],
    element: [
      head(
        t('audit'),
        null,
        button(t('refresh'), () => void list.refresh()),
      ),
      card(null, h('div.filters.narrow', { role: 'search' }, field(t('target'), target))),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh: () => void list.refresh(),
    dispose: () => typed.cancel(),
  }
}
