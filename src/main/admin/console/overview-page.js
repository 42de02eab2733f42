/** The fleet at a glance: figures, throughput, what happens now, alarms. */
import { get, me } from './api.js'
import { fill, h, throttled } from './dom.js'
import { latest, samples } from './figures.js'
import { clockText, numberText, t } from './i18n.js'
import { card, eventItem, section } from './pieces.js'
import uPlot from './uplot.js'

const FEED_MAX = 100
const CHART_PX = 240
const CHART_S_MIN = 60
const ALARMS_COUNTED_MAX = 10_000
/** A busy fleet tells more than anybody reads: the feed is drawn this often. */
const FEED_MS = 250

export function overviewPage() {
  const values = {}
  const notes = {}
  const tile = (id, title, href) => {
    values[id] = h('b', { id: `tile-${id}` }, '–')
    notes[id] = h('small', {})
    const content = [h('span.soft', {}, title), values[id], notes[id]]
    return href === undefined ? h('div.tile', {}, ...content) : h('a.tile', { href }, ...content)
  }
  const tiles = h(
    'div.tiles',
    {},
    tile('online', t('online'), '#/devices?online=true'),
    tile('charging', t('charging_now'), '#/orders?state=charging'),
    tile('alarms', t('alarms_day')),
    tile('frames', t('frames_per_s')),
    tile('settled', t('settled')),
    tile('rows', t('rows_pending')),
  )
  const chartBox = h('div.chart', { role: 'img', 'aria-label': t('throughput') })
  const feed = h('ul.feed.scrolls', { id: 'feed', tabindex: '0', 'aria-label': t('recent') })
  const nothing = h('p.empty', {}, t('no_events'))
  let chart
  /** What the feed shows, the newest first. */
  let events = []
  const heard = new Set()

  const drawFeed = throttled(() => {
    nothing.hidden = events.length > 0
    // only what is new is made: a full feed of a busy fleet would be a hundred elements four times a second
    const known = new Map([...feed.children].map((item) => [item.dataset.id, item]))
    fill(
      feed,
      ...events.map((event) => {
        const item = known.get(event.event_id) ?? eventItem(event)
        item.dataset.id = event.event_id
        return item
      }),
    )
  }, FEED_MS)

  const remember = (more, isNew) => {
    const fresh = more.filter(({ event_id: id }) => !heard.has(id))
    for (const { event_id: id } of fresh) heard.add(id)
    events = (isNew ? [...fresh, ...events] : [...events, ...fresh]).slice(0, FEED_MAX)
    if (heard.size > 10 * FEED_MAX) {
      heard.clear()
      for (const { event_id: id } of events) heard.add(id)
    }
    if (fresh.length > 0) drawFeed()
  }

  const alarms = section(async () => {
    const one = await get('/api/v1/overview')
    fill(values.charging, numberText(one.orders.charging))
    const starting = one.orders.starting + one.orders.stopping
    fill(notes.charging, starting === 0 ? '' : t('starting_n', { n: numberText(starting) }))
    fill(notes.online, t('of_devices', { n: numberText(one.devices) }))
    fill(values.alarms, numberText(one.alarms_24h) + (one.alarms_24h < ALARMS_COUNTED_MAX ? '' : '+'))
    values.alarms.parentElement.classList.toggle('alert', one.alarms_24h > 0)
    remember(one.recent_events, false)
    return one.recent_alarms.length === 0
      ? h('p.empty', {}, t('no_alarms'))
      : h('ul.feed', {}, ...one.recent_alarms.map((event) => eventItem(event)))
  })
  const refresh = throttled(() => void alarms.refresh(), 1_500)

  function showFigures() {
    if (latest === undefined) return
    fill(values.online, numberText(latest.devices_online))
    fill(values.frames, numberText(latest.frames_per_s, 1))
    fill(values.settled, numberText(latest.settlements_total))
    fill(values.rows, numberText(latest.rows_pending))
    fill(notes.frames, t('connections_n', { n: numberText(latest.connections) }))
    fill(notes.settled, t('since_start'))
    fill(notes.rows, t('commands_waiting_n', { n: numberText(latest.commands_pending) }))
    chart?.setData([samples.at, samples.frames, samples.online])
  }

  function draw() {
    chart?.destroy()
    const style = getComputedStyle(document.documentElement)
    const color = (name) => style.getPropertyValue(name).trim()
    const axis = {
      stroke: color('--soft'),
      grid: { stroke: color('--line'), width: 1 },
      ticks: { stroke: color('--line') },
      font: '12px system-ui, sans-serif',
    }
    const isWide = chartBox.clientWidth > 500
    const scale = { range: (_, __, max) => [0, Math.max(5, (max ?? 0) * 1.1)] }
    chart = new uPlot(
      {
        width: Math.max(240, chartBox.clientWidth),
        height: CHART_PX,
        series: [
          { label: t('at'), value: (_, atS) => (atS === null ? '–' : clockText(atS)) },
          {
            label: t('frames_per_s'),
            points: { show: false },
            stroke: color('--chart'),
            fill: `${color('--chart')}22`,
            width: 2,
            scale: 'frames',
            value: (_, value) => (value === null ? '–' : numberText(value, 1)),
          },
          {
            label: t('devices_online'),
            points: { show: false },
            stroke: color('--chart2'),
            width: 2,
            dash: [6, 4],
            scale: 'online',
            value: (_, value) => (value === null ? '–' : numberText(value)),
          },
        ],
        scales: {
          // a minute at least, so that the first samples do not fill the width
          x: { range: (_, from, to) => [Math.min(from ?? 0, (to ?? 0) - CHART_S_MIN), to ?? 0] },
          frames: scale,
          online: scale,
        },
        axes: [
          { ...axis, space: 80, size: 32, values: (_, splits) => splits.map(clockText) },
          { ...axis, scale: 'frames', size: isWide ? 52 : 40 },
          { ...axis, scale: 'online', side: 1, size: isWide ? 52 : 40, grid: { show: false } },
        ],
        cursor: { y: false },
      },
      [samples.at, samples.frames, samples.online],
      chartBox,
    )
  }
  const resized = new ResizeObserver(() =>
    chart?.setSize({ width: Math.max(240, chartBox.clientWidth), height: CHART_PX }),
  )

  return {
    title: t('overview'),
    topics: ['metrics', 'device/*'],
    element: [
      h('h1.hidden', {}, t('overview')),
      tiles,
      card(
        t('throughput'),
        chartBox,
        // figures are of the process, a tenant's own are in its lists
        me.tenant === 'default' ? null : h('p.soft', {}, t('whole_gateway')),
      ),
      h('div.split', {}, card(t('recent'), nothing, feed), card(t('alarms'), alarms.element)),
    ],
    start() {
      draw()
      resized.observe(chartBox)
      showFigures()
      void alarms.refresh()
    },
    refresh,
    onFigures: showFigures,
    onEvent(_, event) {
      remember([event], true)
      if (/^(charging\.(started|ended)|order\.|device\.(alarm|registered))/.test(event.event_type)) refresh()
    },
    onTheme: draw,
    dispose() {
      resized.disconnect()
      chart?.destroy()
      refresh.cancel()
      drawFeed.cancel()
    },
  }
}
