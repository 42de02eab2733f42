/** The pages. Each asks the API once and then listens; what changed is asked for again when an event says so. */
import { commandCatalogue, get, offers, post } from './api.js'
import { ask, field, fill, h, table, throttled, toast } from './dom.js'
import { anyWord, clockText, durationText, moneyText, numberText, t, timeText, unitText, word } from './i18n.js'
import uPlot from './uplot.js'

const REFRESH_MS = 400
const CHART_POINTS = 300
const FEED_MAX = 100
const CHART_S_MIN = 60
/** What an overview begins with, if it is not too much. */
const FEED_PAST_MS = 900_000

/** Survives a change of page: the chart of the last minutes. */
const samples = { at: [], frames: [], online: [] }

function addSample(atS, frames, online) {
  samples.at.push(atS)
  samples.frames.push(frames)
  samples.online.push(online)
  if (samples.at.length > CHART_POINTS) for (const series of Object.values(samples)) series.shift()
}

export function pageFor(path) {
  const [, section = '', id] = path.split('/').map(decodeURIComponent)
  if (section === '') return overviewPage()
  if (section === 'devices') return id === undefined ? devicesPage() : devicePage(id)
  if (section === 'orders') return id === undefined ? ordersPage() : orderPage(id)
  if (section === 'webhooks') return id === undefined ? webhooksPage() : webhookPage(id)
  return { title: t('not_found'), topics: ['metrics'], element: h('p.empty', {}, t('not_found')) }
}

// ---- pieces --------------------------------------------------------------------------------------------------------

const TONES = {
  charging: 'good',
  online: 'good',
  settled: 'good',
  acked: 'good',
  delivered: 'good',
  active: 'good',
  fault: 'bad',
  failed: 'bad',
  dead: 'bad',
  refused: 'bad',
  stopped: 'bad',
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
}
const badge = (group, value) =>
  h(`span.badge${TONES[value] === undefined ? '' : `.${TONES[value]}`}`, {}, word(group, value))
const deviceLink = (id) => h('a.mono', { href: `#/devices/${encodeURIComponent(id)}` }, id)
const orderLink = (no) =>
  no === null || no === undefined ? '–' : h('a.mono', { href: `#/orders/${encodeURIComponent(no)}` }, no)
const presenceBadge = ({ online }) => h(online ? 'span.badge.good' : 'span.badge', {}, t(online ? 'online' : 'offline'))
/** `undefined` leaves a fact out. */
const facts = (pairs) =>
  h(
    'dl.facts',
    {},
    ...pairs
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value ?? '–'))),
  )
const card = (title, ...children) => h('section.card', {}, title === null ? null : h('h2', {}, title), ...children)
const portName = (port, socket) =>
  socket > 0 ? `${socket}-${port === 1 ? 'A' : port === 2 ? 'B' : port}` : String(port)

/** What an event says, in one line. */
function eventDetails(data = {}) {
  const parts = []
  if (data.socket > 0) parts.push(`${t('socket')} ${data.socket}`)
  if (data.port !== undefined) parts.push(`${t('port')} ${data.port}`)
  if (data.state !== undefined) parts.push(anyWord(['state', 'fate', 'order'], data.state))
  if (data.name !== undefined) parts.push(data.name)
  if (data.outcome !== undefined) parts.push(word('fate', data.outcome))
  if (data.energy_wh !== undefined && data.energy_wh !== null) parts.push(unitText(data.energy_wh, 'Wh'))
  if (data.end_reason !== undefined && data.end_reason !== null) parts.push(data.end_reason)
  if (data.alarm !== undefined) parts.push(String(data.alarm))
  if (data.reason !== undefined && data.reason !== null) parts.push(String(data.reason))
  return parts.join(' · ')
}

function feedItem(at, what, details, device, order) {
  return h(
    'li',
    {},
    h('time', { datetime: new Date(at).toISOString() }, timeText(at)),
    h(
      'div.text',
      {},
      ...[what].flat(),
      device === undefined ? null : ' ',
      device === undefined ? null : deviceLink(device),
      order === undefined || order === null ? null : ' ',
      order === undefined || order === null ? null : orderLink(order),
      details === '' ? null : h('small', {}, details),
    ),
  )
}
const eventItem = (event, hasDevice = true) =>
  feedItem(
    event.timestamp * 1_000,
    word('event', event.event_type),
    eventDetails(event.data),
    hasDevice ? event.device_phy_id : undefined,
    event.data?.order_no,
  )

/** Shows what `load` brings, or why it brought nothing. Later calls win over earlier ones. */
function section(load) {
  const element = h('div', { 'aria-busy': 'true' }, h('p.empty', {}, t('loading')))
  let turn = 0
  const refresh = async () => {
    const mine = ++turn
    try {
      const content = await load()
      if (mine === turn) fill(element, content)
    } catch (error) {
      if (mine === turn)
        fill(element, h('p.problem', { role: 'alert' }, error.status === 403 ? t('needs_admin') : error.message))
    }
    if (mine === turn) element.removeAttribute('aria-busy')
  }
  return { element, refresh }
}

/** `next_cursor` both ways: the cursors of the pages before are remembered. */
function pager(onTurn) {
  const cursors = [undefined]
  let next = null
  const back = h('button', { type: 'button', onclick: () => turn(-1) }, t('previous'))
  const forth = h('button', { type: 'button', onclick: () => turn(1) }, t('next'))
  const turn = (way) => {
    if (way > 0) cursors.push(next)
    else cursors.pop()
    onTurn()
  }
  return {
    element: h('div.actions.pagers', { role: 'group', 'aria-label': t('pages') }, back, forth),
    get cursor() {
      return cursors.at(-1)
    },
    reset() {
      cursors.length = 1
    },
    arrived(nextCursor) {
      next = nextCursor
      back.disabled = cursors.length === 1
      forth.disabled = nextCursor === null
    },
  }
}

// ---- overview ------------------------------------------------------------------------------------------------------

function overviewPage() {
  const values = {}
  const tile = (id, title) => {
    values[id] = h('b', { id: `tile-${id}` }, '–')
    return h('div.tile', {}, h('span.soft', {}, title), values[id])
  }
  const tiles = h(
    'div.tiles',
    {},
    tile('online', t('online')),
    tile('charging', t('charging_now')),
    tile('alarms', t('alarms_day')),
    tile('connections', t('connections')),
    tile('settled', t('settled')),
    tile('rows', t('rows_pending')),
  )
  const chartBox = h('div.chart', { role: 'img', 'aria-label': t('throughput') })
  const feed = h('ul.feed', { id: 'feed' })
  const nothing = h('p.empty', {}, t('no_events'))
  let chart
  let alarmCount = 0
  /** Told before the past arrived. */
  const shown = new Set()

  const showAlarms = () => {
    fill(values.alarms, numberText(alarmCount))
    values.alarms.parentElement.classList.toggle('alert', alarmCount > 0)
  }
  const alarms = section(async () => {
    if (!(await offers('GET', '/api/v1/events'))) return h('p.empty', {}, t('no_alarms'))
    const { items, next_cursor: next } = await get('/api/v1/events', {
      type: 'device.alarm',
      from: new Date(Date.now() - 86_400_000).toISOString(),
      limit: 500,
    })
    alarmCount = items.length
    showAlarms()
    if (next !== null) fill(values.alarms, `${numberText(items.length)}+`)
    return items.length === 0
      ? h('p.empty', {}, t('no_alarms'))
      : h(
          'ul.feed',
          {},
          ...items
            .slice(-20)
            .reverse()
            .map((event) => eventItem(event)),
        )
  })
  const charging = async () => {
    const { items, next_cursor: next } = await get('/api/v1/orders', { state: 'charging', limit: 500 })
    fill(values.charging, numberText(items.length) + (next === null ? '' : '+'))
  }
  const past = async () => {
    if (!(await offers('GET', '/api/v1/events'))) return
    const from = new Date(Date.now() - FEED_PAST_MS).toISOString()
    const { items, next_cursor: next } = await get('/api/v1/events', { from, limit: 500 })
    // the page is the oldest part of it: of no use when there is more
    if (next !== null || items.length === 0) return
    nothing.remove()
    for (const event of items.slice(-FEED_MAX).reverse()) if (!shown.has(event.event_id)) feed.append(eventItem(event))
  }
  const refreshCharging = throttled(() => void charging().catch(() => {}), 1_000)
  const refreshAlarms = throttled(() => void alarms.refresh(), 1_000)

  function draw() {
    chart?.destroy()
    const style = getComputedStyle(document.documentElement)
    const color = (name) => style.getPropertyValue(name).trim()
    const axis = {
      stroke: color('--soft'),
      grid: { stroke: color('--line'), width: 1 },
      ticks: { stroke: color('--line') },
    }
    chart = new uPlot(
      {
        width: Math.max(240, chartBox.clientWidth),
        height: 240,
        series: [
          { label: t('at'), value: (_, atS) => (atS === null ? '–' : clockText(atS)) },
          {
            label: t('frames_per_s'),
            points: { show: false },
            stroke: color('--chart'),
            fill: `${color('--chart')}22`,
            width: 2,
            scale: 'frames',
          },
          { label: t('devices_online'), points: { show: false }, stroke: color('--chart2'), width: 2, scale: 'online' },
        ],
        scales: {
          // a minute at least, so that the first samples do not fill the width
          x: { range: (_, from, to) => [Math.min(from ?? 0, (to ?? 0) - CHART_S_MIN), to ?? 0] },
          frames: { range: (_, __, max) => [0, Math.max(5, (max ?? 0) * 1.1)] },
          online: { range: (_, __, max) => [0, Math.max(5, (max ?? 0) * 1.1)] },
        },
        axes: [
          { ...axis, space: 80, values: (_, splits) => splits.map(clockText) },
          { ...axis, scale: 'frames', size: 48 },
          { ...axis, scale: 'online', side: 1, size: 48, grid: { show: false } },
        ],
        cursor: { y: false },
      },
      [samples.at, samples.frames, samples.online],
      chartBox,
    )
  }
  const resized = new ResizeObserver(() => chart?.setSize({ width: Math.max(240, chartBox.clientWidth), height: 240 }))

  function onMetrics({ timestamp, data }) {
    fill(values.online, numberText(data.devices_online))
    fill(values.connections, numberText(data.connections))
    fill(values.settled, numberText(data.settlements_total))
    fill(values.rows, numberText(data.rows_pending))
    const lastS = samples.at.at(-1)
    if (lastS === timestamp) return
    // nobody listened in between: a gap, not a line
    if (lastS !== undefined && timestamp - lastS > 3) addSample(lastS + 1, null, null)
    addSample(timestamp, data.frames_per_s, data.devices_online)
    chart?.setData([samples.at, samples.frames, samples.online])
  }

  return {
    title: t('overview'),
    topics: ['metrics', 'device/*'],
    element: [
      h('h1.hidden', {}, t('overview')),
      tiles,
      card(t('throughput'), chartBox),
      h('div.split', {}, card(t('recent'), nothing, feed), card(t('alarms'), alarms.element)),
    ],
    start() {
      draw()
      resized.observe(chartBox)
      this.refresh()
      void past().catch(() => {})
    },
    refresh() {
      refreshCharging()
      refreshAlarms()
    },
    onEvent(topic, event) {
      if (topic === 'metrics') {
        onMetrics(event)
        return
      }
      nothing.remove()
      if (shown.size < FEED_MAX) shown.add(event.event_id)
      feed.prepend(eventItem(event))
      while (feed.children.length > FEED_MAX) feed.lastChild.remove()
      if (/^(charging|order)\./.test(event.event_type)) refreshCharging()
      if (event.event_type === 'device.alarm') refreshAlarms()
    },
    onTheme: draw,
    dispose() {
      resized.disconnect()
      chart?.destroy()
      refreshCharging.cancel()
      refreshAlarms.cancel()
    },
  }
}

// ---- devices -------------------------------------------------------------------------------------------------------

function devicesPage() {
  const query = h('input', { type: 'search', name: 'q', placeholder: t('search_hint'), oninput: () => changed() })
  const online = h(
    'select',
    { name: 'online', onchange: () => changed() },
    h('option', { value: '' }, t('all')),
    h('option', { value: 'true' }, t('only_online')),
    h('option', { value: 'false' }, t('only_offline')),
  )
  const protocol = h(
    'select',
    { name: 'protocol', onchange: () => changed() },
    h('option', { value: '' }, t('all')),
    h('option', { value: 'ap3000' }, 'AP3000'),
    h('option', { value: 'bkv' }, 'BKV'),
  )
  const pages = pager(() => void list.refresh())
  const list = section(async () => {
    const { items, next_cursor: next } = await get('/api/v1/devices', {
      q: query.value.trim(),
      online: online.value,
      protocol: protocol.value,
      cursor: pages.cursor,
      limit: 25,
    })
    pages.arrived(next)
    const heads = [t('device'), t('presence'), t('name'), t('protocol'), t('ports'), t('firmware'), t('last_seen')]
    const rows = items.map((device) => {
      const charging = device.ports.filter(({ state }) => state === 'charging').length
      return [
        deviceLink(device.device_id),
        presenceBadge(device.presence),
        [device.name, device.site].filter((one) => one !== null).join(' · ') || '–',
        device.protocol ?? '–',
        charging > 0 ? `${charging}/${device.ports.length} ${word('state', 'charging')}` : String(device.ports.length),
        device.firmware ?? '–',
        timeText(device.last_seen_at),
      ]
    })
    return table(t('devices'), heads, rows, t('no_devices'))
  })
  const refresh = throttled(() => void list.refresh(), REFRESH_MS)
  const changed = () => {
    pages.reset()
    refresh()
  }
  return {
    title: t('devices'),
    topics: ['metrics', 'device/*'],
    element: [
      h('h1', {}, t('devices')),
      card(
        null,
        h(
          'div.filters',
          { role: 'search' },
          field(t('search'), query),
          field(t('presence'), online),
          field(t('protocol'), protocol),
        ),
      ),
      card(null, list.element, pages.element),
    ],
    start: () => void list.refresh(),
    refresh,
    onEvent: (topic) => topic !== 'metrics' && refresh(),
    dispose: () => refresh.cancel(),
  }
}

// ---- one device ----------------------------------------------------------------------------------------------------

function devicePage(id) {
  const path = `/api/v1/devices/${encodeURIComponent(id)}`
  const presence = h('span', { id: 'presence' })
  let protocol = null

  const device = section(async () => {
    const one = await get(path)
    protocol = one.protocol
    fill(presence, presenceBadge(one.presence))
    const canCharge = await offers('POST', '/api/v1/devices/{device_id}/charge')
    const ports =
      one.ports.length === 0
        ? h('p.empty', {}, t('no_ports'))
        : h('div.port-grid', { id: 'ports' }, ...one.ports.map((port) => portBox(port, canCharge)))
    return [
      card(t('ports'), ports),
      card(
        t('session'),
        facts([
          [t('protocol'), one.protocol ?? '–'],
          [t('name'), [one.name, one.site].filter((part) => part !== null).join(' · ') || '–'],
          [t('firmware'), one.firmware],
          [t('model'), one.device_type],
          [t('iccid'), one.iccid],
          [t('signal'), one.signal === null ? '–' : String(one.signal)],
          [t('clock'), one.clock_offset_ms === null ? '–' : `${numberText(one.clock_offset_ms / 1_000, 1)} s`],
          [t('opened'), timeText(one.session?.opened_at)],
          [t('address'), one.session?.remote_address],
          [t('epoch'), one.session === null ? '–' : String(one.session.epoch)],
          [t('last_seen'), timeText(one.last_seen_at)],
        ]),
      ),
    ]
  })
  const orders = section(async () => {
    const { items } = await get('/api/v1/orders', { device_id: id, limit: 10 })
    return orderTable(items, false)
  })
  const commands = section(async () => {
    if (!(await offers('GET', '/api/v1/commands'))) return h('p.empty', {}, t('no_commands'))
    const { items } = await get('/api/v1/commands', { device_id: id, limit: 10 })
    const heads = [t('command'), t('fate'), t('attempts'), t('created'), t('reason')]
    return table(
      t('commands'),
      heads,
      items.map((one) => [
        h('span.mono', {}, one.name),
        badge('fate', one.state),
        String(one.attempts),
        timeText(one.created_at),
        one.reason ?? '–',
      ]),
      t('no_commands'),
    )
  })
  const timeline = section(async () => {
    let items
    if (await offers('GET', '/api/v1/devices/{device_id}/timeline'))
      ({ items } = await get(`${path}/timeline`, { limit: 100 }))
    else if (await offers('GET', '/api/v1/events')) {
      const from = new Date(Date.now() - 86_400_000).toISOString()
      const events = (await get('/api/v1/events', { device_id: id, from, limit: 500 })).items.slice(-100)
      items = events.map((one) => ({
        at: one.timestamp * 1_000,
        kind: 'event',
        what: one.event_type,
        details: one.data,
      }))
    } else items = []
    if (items.length === 0) return h('p.empty', {}, t('no_events'))
    return h('ul.feed', {}, ...items.toReversed().map(timelineItem))
  })

  const accepted = (what) => toast(t('sent_ok', { what }))

  function portBox(port, canCharge) {
    const name = portName(port.port, port.socket)
    const isCharging = port.state === 'charging' || port.order_no !== null
    return h(
      `div.port${port.state === 'charging' ? '.charging' : port.state === 'fault' ? '.fault' : ''}`,
      { 'data-port': name },
      h('div.top', {}, h('strong', {}, `${t('port')} ${name}`), badge('state', port.state)),
      h(
        'div.readings',
        {},
        ...[
          [port.power_w, 'W', 1],
          [port.energy_wh, 'Wh', 0],
          [port.voltage_v, 'V', 1],
          [port.current_a, 'A', 2],
          [port.temperature_c, '°C', 1],
        ]
          .filter(([value]) => value !== null)
          .map(([value, unit, digits]) => h('span', {}, unitText(value, unit, digits))),
      ),
      port.fault === null ? null : h('span.problem', {}, port.fault),
      port.order_no === null ? null : h('span', {}, `${t('order')} `, orderLink(port.order_no)),
      canCharge
        ? h(
            'div.actions',
            {},
            isCharging
              ? h(
                  'button',
                  {
                    type: 'button',
                    'aria-label': `${t('stop_charge')}, ${t('port')} ${name}`,
                    onclick: () => askStop(port),
                  },
                  t('stop'),
                )
              : h(
                  'button.primary',
                  {
                    type: 'button',
                    'aria-label': `${t('start_charge')}, ${t('port')} ${name}`,
                    onclick: () => askStart(port),
                  },
                  t('start'),
                ),
          )
        : null,
    )
  }

  const place = ({ port, socket }) => ({ port, ...(socket > 0 ? { socket } : {}) })

  function askStart(port) {
    const mode = h(
      'select',
      { name: 'mode', onchange: () => showQuantity() },
      ...['full', 'time', 'energy'].map((one) => h('option', { value: one }, word('mode', one))),
    )
    const minutes = field(t('duration_min'), h('input', { type: 'number', min: '1', max: '1000', value: '60' }))
    const energy = field(
      t('energy_input'),
      h('input', { type: 'number', min: '10', max: '100000', step: '10', value: '1000' }),
    )
    const showQuantity = () => {
      minutes.hidden = mode.value !== 'time'
      energy.hidden = mode.value !== 'energy'
    }
    showQuantity()
    return ask({
      title: t('start_charge'),
      body: [
        h('p.soft', {}, t('start_question', { port: portName(port.port, port.socket), device: id })),
        field(t('mode'), mode),
        minutes,
        energy,
      ],
      confirm: t('confirm'),
      cancel: t('cancel'),
      onConfirm: async () => {
        const { order_no: orderNo } = await post(`${path}/charge`, {
          ...place(port),
          mode: mode.value,
          ...(mode.value === 'time' ? { duration_s: Number(minutes.input.value) * 60 } : {}),
          ...(mode.value === 'energy' ? { energy_wh: Number(energy.input.value) } : {}),
        })
        accepted(orderNo)
        changed()
      },
    })
  }

  function askStop(port) {
    return ask({
      title: t('stop_charge'),
      body: [h('p', {}, t('stop_question', { port: portName(port.port, port.socket), device: id }))],
      confirm: t('confirm'),
      cancel: t('cancel'),
      isDangerous: true,
      onConfirm: async () => {
        const { command_id: commandId } = await post(`${path}/stop`, place(port))
        accepted(commandId)
        changed()
      },
    })
  }

  async function askCommand() {
    const catalogue = await commandCatalogue(protocol)
    const hint = h('small', {})
    const params = h('textarea', { name: 'params', rows: '5', spellcheck: 'false' })
    const name = h(
      'select',
      { name: 'name', onchange: () => show() },
      ...catalogue.map((one) => h('option', { value: one.name }, one.name)),
    )
    const show = () => {
      const chosen = catalogue.find((one) => one.name === name.value)
      fill(hint, chosen?.text ?? '')
      const properties = Object.entries(chosen?.params?.properties ?? {})
      const example = ({ type, minimum }) => (type === 'integer' ? (minimum ?? 0) : type === 'array' ? [] : '')
      params.value = JSON.stringify(
        Object.fromEntries(properties.map(([key, schema]) => [key, example(schema)])),
        null,
        2,
      )
    }
    show()
    await ask({
      title: t('send_command'),
      body: [
        h('p.soft', {}, t('command_question', { device: id })),
        field(t('command'), name),
        hint,
        field(t('params'), params),
      ],
      confirm: t('confirm'),
      cancel: t('cancel'),
      onConfirm: async () => {
        let given
        try {
          given = JSON.parse(params.value || '{}')
        } catch {
          throw new Error(t('bad_json'))
        }
        const { command_id: commandId } = await post(`${path}/commands`, { name: name.value, params: given })
        accepted(commandId)
        changed()
      },
    })
  }

  const commandButton = h(
    'button',
    { type: 'button', hidden: true, onclick: () => void askCommand() },
    t('send_command'),
  )
  const parts = [device, orders, commands, timeline]
  const changed = throttled(() => {
    for (const part of parts) void part.refresh()
  }, REFRESH_MS)

  return {
    title: id,
    topics: ['metrics', `device/${id}`],
    element: [
      h('div.head', {}, h('h1.mono', {}, id), presence, h('div.actions', {}, commandButton)),
      h(
        'div.split',
        {},
        h('div.stack', {}, device.element, card(t('orders'), orders.element), card(t('commands'), commands.element)),
        card(t('timeline'), timeline.element),
      ),
    ],
    async start() {
      changed()
      commandButton.hidden = !(await offers('POST', '/api/v1/devices/{device_id}/commands'))
    },
    refresh: changed,
    onEvent: (topic) => topic !== 'metrics' && changed(),
    dispose: () => changed.cancel(),
  }
}

/** By the status of outbound_queue. */
const FATES = ['queued', 'sent', 'acked', 'dead', 'refused', 'expired', 'cancelled']

function timelineItem({ at, kind, what, details }) {
  if (kind === 'event') return feedItem(at, word('event', what), eventDetails(details), undefined, details.order_no)
  if (kind === 'order')
    return feedItem(at, `${t('order')}: ${word('order', what)}`, eventDetails(details), undefined, details.order_no)
  const shown = Object.entries(details).filter(([, value]) => value !== null && typeof value !== 'object')
  if (kind === 'frame') return feedItem(at, `${details.direction === 'uplink' ? '↑' : '↓'} ${what}`, details.note ?? '')
  if (kind === 'command') {
    const fate = FATES[details.status] ?? String(details.status)
    return feedItem(
      at,
      [`${t('command')}: ${what} `, badge('fate', fate)],
      details.result?.reason ?? '',
      undefined,
      details.order_no,
    )
  }
  return feedItem(at, `${t('session')}: ${what}`, shown.map(([name, value]) => `${name} ${value}`).join(' · '))
}

// ---- orders --------------------------------------------------------------------------------------------------------

function orderTable(items, hasDevice = true) {
  const heads = [
    t('order'),
    t('state'),
    ...(hasDevice ? [t('device')] : []),
    t('port'),
    t('energy'),
    t('duration'),
    t('started'),
  ]
  const rows = items.map((order) => [
    orderLink(order.order_no),
    badge('order', order.state),
    ...(hasDevice ? [deviceLink(order.device_id)] : []),
    portName(order.port, order.socket),
    unitText(order.energy_wh, 'Wh'),
    durationText(order.duration_s),
    timeText(order.started_at),
  ])
  return table(t('orders'), heads, rows, t('no_orders'))
}

function ordersPage() {
  const state = h(
    'select',
    { name: 'state', onchange: () => changed() },
    h('option', { value: '' }, t('all')),
    ...['pending', 'starting', 'charging', 'stopping', 'settled', 'failed', 'cancelled'].map((one) =>
      h('option', { value: one }, word('order', one)),
    ),
  )
  const device = h('input', { type: 'search', name: 'device', oninput: () => changed() })
  const pages = pager(() => void list.refresh())
  const list = section(async () => {
    const { items, next_cursor: next } = await get('/api/v1/orders', {
      state: state.value,
      device_id: device.value.trim(),
      cursor: pages.cursor,
      limit: 25,
    })
    pages.arrived(next)
    return orderTable(items)
  })
  const refresh = throttled(() => void list.refresh(), REFRESH_MS)
  const changed = () => {
    pages.reset()
    refresh()
  }
  return {
    title: t('orders'),
    topics: ['metrics', 'order/*'],
    element: [
      h('h1', {}, t('orders')),
      card(null, h('div.filters', { role: 'search' }, field(t('device'), device), field(t('state'), state))),
      card(null, list.element, pages.element),
    ],
    start: () => void list.refresh(),
    refresh,
    onEvent: (topic) => topic !== 'metrics' && refresh(),
    dispose: () => refresh.cancel(),
  }
}

function orderPage(no) {
  const feed = h('ul.feed')
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
    if (!(await offers('GET', '/api/v1/events')) || startedAt === null) return
    const from = new Date(Date.parse(startedAt) - 300_000).toISOString()
    const to = settledAt === null ? undefined : new Date(Date.parse(settledAt) + 300_000).toISOString()
    const { items } = await get('/api/v1/events', { device_id: deviceId, from, to, limit: 500 })
    for (const event of items.reverse()) add(event, false)
  }
  const order = section(async () => {
    const one = await get(`/api/v1/orders/${encodeURIComponent(no)}`)
    if (!hasPast) void past(one).catch(() => {})
    hasPast = true
    return card(
      null,
      facts([
        [t('order_state'), badge('order', one.state)],
        [t('device'), deviceLink(one.device_id)],
        [t('port'), portName(one.port, one.socket)],
        [t('mode'), one.mode === null ? '–' : word('mode', one.mode)],
        [t('origin'), one.origin],
        [t('started'), timeText(one.started_at)],
        [t('ended'), timeText(one.ended_at)],
        [t('duration'), durationText(one.duration_s)],
        [t('energy'), unitText(one.energy_wh, 'Wh')],
        [t('max_power'), unitText(one.max_power_w, 'W', 1)],
        [t('amount'), moneyText(one.amount_fen)],
        [
          t('end_reason'),
          one.end_reason === null
            ? '–'
            : `${one.end_reason}${one.end_reason_raw === null ? '' : ` (${one.end_reason_raw})`}`,
        ],
        [t('business_no'), one.business_no === null ? '–' : String(one.business_no)],
        [t('settled_at'), timeText(one.settled_at)],
        [t('estimated'), t(one.estimated ? 'yes' : 'no')],
        [t('version'), String(one.version)],
      ]),
    )
  })
  const refresh = throttled(() => void order.refresh(), REFRESH_MS)
  return {
    title: no,
    topics: ['metrics', 'order/*'],
    element: [h('div.head', {}, h('h1.mono', {}, no)), order.element, card(t('timeline'), nothing, feed)],
    start: () => void order.refresh(),
    refresh,
    onEvent(topic, event) {
      if (topic === 'metrics' || event.data?.order_no !== no) return
      add(event, true)
      refresh()
    },
    dispose: () => refresh.cancel(),
  }
}

// ---- webhooks ------------------------------------------------------------------------------------------------------

function webhooksPage() {
  const list = section(async () => {
    const { items } = await get('/api/v1/webhooks', { limit: 500 })
    const heads = [t('url'), t('status'), t('events'), t('reason')]
    const rows = items.map((one) => [
      h('a', { href: `#/webhooks/${encodeURIComponent(one.id)}` }, one.url),
      badge('hook', one.status),
      one.event_types.length === 0 ? t('every') : one.event_types.join(', '),
      one.stop_reason ?? one.last_error ?? '–',
    ])
    return table(t('webhooks'), heads, rows, t('no_webhooks'))
  })
  return {
    title: t('webhooks'),
    topics: ['metrics'],
    element: [h('h1', {}, t('webhooks')), card(null, list.element)],
    start: () => void list.refresh(),
    refresh: () => void list.refresh(),
  }
}

function webhookPage(id) {
  const path = `/api/v1/webhooks/${encodeURIComponent(id)}`
  const endpoint = section(async () => {
    const one = await get(path)
    return card(
      null,
      facts([
        [t('url'), one.url],
        [t('status'), badge('hook', one.status)],
        [t('events'), one.event_types.length === 0 ? t('every') : one.event_types.join(', ')],
        [t('reason'), one.stop_reason ?? one.last_error ?? '–'],
        [t('made'), timeText(one.created_at)],
      ]),
    )
  })
  const pages = pager(() => void deliveries.refresh())
  const deliveries = section(async () => {
    const { items, next_cursor: next } = await get(`${path}/deliveries`, { limit: 25, cursor: pages.cursor })
    pages.arrived(next)
    const heads = [t('at'), t('events'), t('status'), t('attempts'), t('last_status'), t('answer'), '']
    const rows = items.map((one) => {
      const last = one.attempt_log.at(-1)
      return [
        timeText(one.created_at),
        word('event', one.event_type),
        badge('delivery', one.status),
        String(one.attempts),
        one.last_status === null ? '–' : String(one.last_status),
        one.last_error ?? last?.answer ?? '–',
        h('button', { type: 'button', onclick: () => void again(one) }, t('redeliver')),
      ]
    })
    return table(t('deliveries'), heads, rows, t('no_deliveries'))
  })
  const refresh = throttled(() => {
    void endpoint.refresh()
    void deliveries.refresh()
  }, 1_000)
  const again = (one) =>
    ask({
      title: t('redeliver'),
      body: [h('p', {}, t('redeliver_question', { event: word('event', one.event_type) }))],
      confirm: t('confirm'),
      cancel: t('cancel'),
      onConfirm: async () => {
        await post(`${path}/redeliver`, { delivery_id: one.delivery_id })
        toast(t('sent_ok', { what: one.event_id }))
        setTimeout(refresh, 500)
      },
    })
  const test = async () => {
    try {
      await post(`${path}/test`)
      toast(t('sent_ok', { what: t('test') }))
      setTimeout(refresh, 500)
    } catch (error) {
      toast(error.message, true)
    }
  }
  return {
    title: t('webhooks'),
    // deliveries follow events: look again when something happened
    topics: ['metrics', 'device/*'],
    element: [
      h(
        'div.head',
        {},
        h('h1', {}, t('webhooks')),
        h('div.actions', {}, h('button', { type: 'button', onclick: () => void test() }, t('test'))),
      ),
      endpoint.element,
      card(t('deliveries'), deliveries.element, pages.element),
    ],
    start: refresh,
    refresh,
    onEvent: (topic) => topic !== 'metrics' && refresh(),
    dispose: () => refresh.cancel(),
  }
}
