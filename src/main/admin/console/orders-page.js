/** Orders, and one of them with its events. */
import { get } from './api.js'
import { field, fill, h, select, table, throttled } from './dom.js'
import { durationText, moneyText, t, unitText, word } from './i18n.js'
import {
  badge,
  card,
  dayStart,
  deviceLink,
  eventItem,
  facts,
  head,
  LIST_REFRESH_MS,
  orderLink,
  PAGE_ITEMS,
  pagedCard,
  portName,
  REFRESH_MS,
  rememberFilters,
  section,
  timeNode,
} from './pieces.js'

const STATES = ['pending', 'starting', 'charging', 'stopping', 'settled', 'failed', 'cancelled']

export function orderTable(items, hasDevice = true, emptyText = t('no_orders')) {
  const heads = [
    t('order'),
    t('state'),
    ...(hasDevice ? [t('device')] : []),
    t('port'),
    `#${t('energy')}`,
    `#${t('duration')}`,
    `#${t('amount')}`,
    t('started'),
  ]
  const rows = items.map((order) => [
    orderLink(order.order_no),
    badge('order', order.state),
    ...(hasDevice ? [deviceLink(order.device_id)] : []),
    portName(order.port, order.socket),
    unitText(order.energy_wh, 'Wh'),
    durationText(order.duration_s),
    moneyText(order.amount_fen),
    timeNode(order.started_at),
  ])
  return table(t('orders'), heads, rows, emptyText)
}

export function ordersPage(filters) {
  const state = select(
    { name: 'state', onchange: () => changed() },
    [['', t('all')], ...STATES.map((one) => [one, word('order', one)])],
    filters.state,
  )
  const device = h('input', {
    type: 'search',
    name: 'device',
    class: 'mono',
    maxlength: '32',
    placeholder: '04ab373b',
    value: filters.device ?? '',
    oninput: () => typed(),
  })
  const from = h('input', { type: 'date', name: 'from', value: filters.from ?? '', onchange: () => changed() })
  const to = h('input', { type: 'date', name: 'to', value: filters.to ?? '', onchange: () => changed() })
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/orders', {
      state: state.value,
      device_id: device.value.trim().toLowerCase(),
      from: dayStart(from.value),
      to: dayStart(to.value, 1),
      cursor,
      limit: PAGE_ITEMS,
    })
    const isFiltered = [state, device, from, to].some((input) => input.value.trim() !== '')
    return [orderTable(items, true, t(isFiltered ? 'no_match' : 'no_orders')), next]
  })
  const refresh = throttled(() => void list.refresh(), LIST_REFRESH_MS)
  const changed = () => {
    rememberFilters('/orders', { state: state.value, device: device.value.trim(), from: from.value, to: to.value })
    list.restart()
  }
  const typed = throttled(changed, 250)
  return {
    title: t('orders'),
    topics: ['metrics', 'order/*'],
    element: [
      head(t('orders')),
      card(
        null,
        h(
          'div.filters.four',
          { role: 'search' },
          field(t('device'), device),
          field(t('state'), state),
          field(t('from'), from),
          field(t('to'), to),
        ),
      ),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh,
    onEvent: refresh,
    dispose() {
      refresh.cancel()
      typed.cancel()
    },
  }
}

export function orderPage(no, listen) {
  const beside = h('span.row', {})
  const feed = h('ul.feed.long', {})
  const nothing = h('p.empty', {}, t('no_events'))
  const shown = new Set()
  let hasPast = false
  const add = (event, isNew) => {
    if (event.data?.order_no !== no || shown.has(event.event_id)) return
    shown.add(event.event_id)
    nothing.remove()
    feed[isNew ? 'prepend' : 'append'](eventItem(event, false))
  }
  /** Its events lie between its start and its settlement. */
  const past = async ({ device_id: deviceId, started_at: startedAt, settled_at: settledAt }) => {
    const from = startedAt === null ? undefined : new Date(Date.parse(startedAt) - 300_000).toISOString()
    const to = settledAt === null ? undefined : new Date(Date.parse(settledAt) + 300_000).toISOString()
    const { items } = await get('/api/v1/events', { device_id: deviceId, from, to, limit: 500 })
    for (const event of items.toReversed()) add(event, false)
  }
  const order = section(async () => {
    const one = await get(`/api/v1/orders/${encodeURIComponent(no)}`)
    if (!hasPast) {
      hasPast = true
      // a device's own commands are told under its topic, not the orders'
      listen(['metrics', `device/${one.device_id}`])
      past(one).catch(() => {
        hasPast = false
      })
    }
    fill(beside, badge('order', one.state), one.estimated ? h('span.badge.warn', {}, t('estimated')) : null)
    const reason =
      one.end_reason === null
        ? '–'
        : `${word('end', one.end_reason)}${one.end_reason_raw === null ? '' : ` (${one.end_reason_raw})`}`
    return [
      h(
        'div.tiles',
        {},
        ...[
          [t('energy'), unitText(one.energy_wh, 'Wh')],
          [t('duration'), durationText(one.duration_s)],
          [t('amount'), moneyText(one.amount_fen)],
          [t('max_power'), unitText(one.max_power_w, 'W', 1)],
        ].map(([name, value]) => h('div.tile', {}, h('span.soft', {}, name), h('b', {}, value))),
      ),
      card(
        null,
        facts([
          [t('order_state'), badge('order', one.state)],
          [t('device'), deviceLink(one.device_id)],
          [t('port'), portName(one.port, one.socket)],
          [t('mode'), one.mode === null ? '–' : word('mode', one.mode)],
          [t('origin'), word('origin', one.origin)],
          [t('started'), timeNode(one.started_at)],
          [t('ended'), timeNode(one.ended_at)],
          [t('settled_at'), timeNode(one.settled_at)],
          [t('end_reason'), reason],
          [t('business_no'), one.business_no === null ? '–' : String(one.business_no)],
          [t('estimated'), t(one.estimated ? 'yes' : 'no')],
          [t('version'), String(one.version)],
        ]),
      ),
    ]
  })
  const refresh = throttled(() => void order.refresh(), REFRESH_MS)
  return {
    title: no,
    topics: ['metrics', 'order/*'],
    element: [h('div.head', {}, h('h1.mono', {}, no), beside), order.element, card(t('timeline'), nothing, feed)],
    start: () => void order.refresh(),
    refresh,
    onEvent(_, event) {
      if (event.data?.order_no !== no) return
      add(event, true)
      refresh()
    },
    dispose: () => refresh.cancel(),
  }
}
