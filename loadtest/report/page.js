// The page of a fleet report: draws what report.ts put into #run. Inlined, with uPlot before it as a global.
/* global uPlot */
const run = JSON.parse(document.getElementById('run').textContent)
const { samples, phases } = run
const times = samples.map((sample) => sample.atS)
const column = (name) => samples.map((sample) => sample[name])
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()

const plain = (value) => (value === null || value === undefined ? '–' : value.toLocaleString('en'))
const ms = (value) =>
  value === null || value === undefined ? '–' : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`

const CHARTS = {
  rate: {
    unit: '/s',
    series: [
      ['offered', 'offeredPerS', 'second'],
      ['achieved', 'achievedPerS', 'first'],
    ],
  },
  reply: {
    unit: 'ms',
    isLog: true,
    series: [
      ['p50', 'replyMsP50', 'first'],
      ['p99', 'replyMsP99', 'second'],
      ['max', 'replyMsMax', 'third'],
    ],
  },
  settlement: {
    unit: 'ms',
    isLog: true,
    series: [
      ['settlement to ack, p99', 'settlementMsP99', 'second'],
      ['generator late, p99', 'latenessMsP99', 'third'],
    ],
  },
  connections: { unit: '', series: [['connected', 'connected', 'first']] },
  settlements: {
    unit: '',
    series: [
      ['sent', 'settlementsSent', 'second'],
      ['acked', 'settlementsAcked', 'first'],
      ['errors', 'errors', 'third'],
    ],
  },
  cpu: { unit: '%', series: [['CPU, % of one core', 'gatewayCpuPercent', 'first']] },
  memory: { unit: 'MiB', series: [['RSS', 'gatewayRssMib', 'first']] },
  gateway: {
    unit: '',
    series: [
      ['rows that wait', 'rowsPending', 'second'],
      ['timers late, ms', 'gatewayDelayMs', 'third'],
    ],
  },
}

/** Calls `use` with each phase and where it lies in the plot, device pixels. */
function eachPhase({ ctx, bbox, valToPos }, use) {
  if (phases.length < 2) return
  ctx.save()
  for (const [index, phase] of phases.entries()) {
    const from = Math.max(bbox.left, valToPos(phase.fromS, 'x', true))
    const to = Math.min(bbox.left + bbox.width, valToPos(phase.toS, 'x', true))
    if (to > from) use(phase, index, from, to)
  }
  ctx.restore()
}

/** Every other phase has a ground of its own. */
function drawBands(chart) {
  const { ctx, bbox } = chart
  eachPhase(chart, (_, index, from, to) => {
    if (index % 2 === 0) return
    ctx.fillStyle = colour('band')
    ctx.fillRect(from, bbox.top, to - from, bbox.height)
  })
}

/** Names at the beginnings, where there is room, above the grid. */
function drawNames(chart) {
  const { ctx, bbox } = chart
  const pad = 3 * devicePixelRatio
  const height = 14 * devicePixelRatio
  eachPhase(chart, ({ name }, _, from, to) => {
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`
    ctx.textBaseline = 'middle'
    ctx.textAlign = 'left'
    const width = ctx.measureText(name).width + 2 * pad
    if (width > to - from) return
    ctx.fillStyle = colour('surface')
    ctx.fillRect(from, bbox.top, width, height)
    ctx.fillStyle = colour('soft')
    ctx.fillText(name, from + pad, bbox.top + height / 2)
  })
}

const showEnd = (chart) => chart.setLegend({ idx: samples.length - 1 })

const charts = []
function draw() {
  for (const chart of charts.splice(0)) chart.destroy()
  const axis = (more) => ({
    stroke: colour('soft'),
    grid: { stroke: colour('line'), width: 1 },
    ticks: { stroke: colour('line'), width: 1 },
    font: '12px system-ui, sans-serif',
    ...more,
  })
  for (const [name, { unit, series, isLog }] of Object.entries(CHARTS)) {
    const place = document.getElementById(`chart-${name}`)
    const known = series.filter(([, field]) => samples.some((sample) => sample[field] !== null))
    place.closest('.card').classList.toggle('none', known.length === 0)
    if (known.length === 0) continue
    const format = unit === 'ms' ? ms : plain
    // a logarithm has no 0
    const value = (one) => (isLog && one !== null ? Math.max(one, 0.01) : one)
    charts.push(
      new uPlot(
        {
          width: place.clientWidth,
          height: 240,
          cursor: { sync: { key: 'run' }, points: { size: 6 } },
          scales: {
            x: { time: false, range: [0, times.at(-1) ?? 1] },
            y: isLog
              ? {
                  distr: 3,
                  range: (_, low, high) => [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high * 1.3))],
                }
              : { range: (_, low, high) => [Math.min(0, low), Math.max(1, high * 1.15)] },
          },
          axes: [
            axis({ values: (_, ticks) => ticks.map((tick) => `${tick} s`) }),
            axis({
              size: 76,
              values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : `${plain(tick)}${unit && ` ${unit}`}`)),
            }),
          ],
          series: [
            { label: 'time', value: (_, one) => (one === null || one === undefined ? '–' : `${one.toFixed(0)} s`) },
            ...known.map(([label, , name]) => ({
              label,
              stroke: colour(name),
              width: 1.75,
              points: { show: samples.length < 3 },
              value: (_, one) => format(one),
            })),
          ],
          hooks: {
            drawClear: [drawBands],
            drawAxes: [drawNames],
            // without a pointer the legend tells how it ended
            setCursor: [(chart) => chart.cursor.idx === null && showEnd(chart)],
            ready: [showEnd],
          },
        },
        [times, ...known.map(([, field]) => column(field).map(value))],
        place,
      ),
    )
  }
}

draw()
let pending
addEventListener('resize', () => {
  clearTimeout(pending)
  pending = setTimeout(draw, 150)
})
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
