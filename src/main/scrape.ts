/**
 * The text of `GET /metrics`: shared counters of all threads, gauges that main is asked for, HTTP timings, and the
 * process itself. Thread: main. A scrape costs 1-3 ms.
 */
import { collectDefaultMetrics, Histogram, type Metric, Registry } from 'prom-client'
import type { ThreadCounter, ThreadGauge, ThreadHistogram } from '../metrics/catalogue.ts'
import { type MainGauge, METRIC_PREFIX, METRICS, THREAD_METRICS } from '../metrics/catalogue.ts'
import { type CounterSample, CountersReader, type HistogramSample } from '../shared/counters.ts'

export interface ScrapeOptions {
  /** From `allocateCounters`. */
  readonly counters: SharedArrayBuffer
  /** Asked at each scrape; a gauge that throws is left out of the text, the others stand. */
  readonly gauges: Readonly<Record<MainGauge, () => readonly CounterSample[]>>
  readonly version: string
}

export interface Scrape {
  /** Prometheus text format 0.0.4. */
  render(): Promise<string>
  /** @param route pattern, never a path: `/api/v1/devices/{device_id}` */
  observeRequest(route: string, status: number, seconds: number): void
}

interface TextValue {
  readonly metricName?: string
  readonly labels: Readonly<Record<string, string | number>>
  readonly value: number
}

export function createScrape({ counters, gauges, version }: ScrapeOptions): Scrape {
  const registry = new Registry()
  const reader = new CountersReader(counters)

  /** prom-client asks a registered object for name, type, help and values when it renders. */
  const register = (name: string, type: string, help: string, values: () => TextValue[]) => {
    const fullName = METRIC_PREFIX + name
    const metric = {
      name: fullName,
      get: async () => ({ name: fullName, help, type, values: values(), aggregator: 'sum' }),
      reset: () => {},
    }
    registry.registerMetric(metric as unknown as Metric)
  }

  for (const [name, { type, help, isSparse }] of THREAD_METRICS)
    register(name, type, help, () =>
      type === 'histogram'
        ? reader
            .histograms(name as ThreadHistogram)
            .filter((sample) => isSparse !== true || sample.cumulated.at(-1)! > 0)
            .flatMap((sample) => histogramValues(METRIC_PREFIX + name, sample))
        : reader
            .samples(name as ThreadCounter | ThreadGauge)
            .filter((sample) => isSparse !== true || sample.value > 0)
            .map(({ labels, value }) => ({ labels, value })),
    )
  for (const [name, ask] of Object.entries(gauges))
    register(name, 'gauge', METRICS[name as MainGauge].help, () => {
      try {
        return ask().map(({ labels, value }) => ({ labels, value }))
      } catch {
        return []
      }
    })
  register('build_info', 'gauge', METRICS.build_info.help, () => [
    { labels: { version, node: process.versions.node }, value: 1 },
  ])
  const { help, labels, boundsS } = METRICS.http_request_seconds
  const requests = new Histogram({
    name: `${METRIC_PREFIX}http_request_seconds`,
    help,
    labelNames: [...labels],
    buckets: [...boundsS],
    registers: [registry],
  })
  collectDefaultMetrics({ register: registry })

  return {
    render: () => registry.metrics(),
    observeRequest: (route, status, seconds) => requests.observe({ route, status: String(status) }, seconds),
  }
}

function histogramValues(name: string, { labels, boundsS, cumulated, sumS }: HistogramSample): TextValue[] {
  const count = cumulated.at(-1)!
  return [
    ...boundsS.map((bound, index) => ({
      metricName: `${name}_bucket`,
      labels: { ...labels, le: bound },
      value: cumulated[index]!,
    })),
    { metricName: `${name}_bucket`, labels: { ...labels, le: '+Inf' }, value: count },
    { metricName: `${name}_sum`, labels, value: sumS },
    { metricName: `${name}_count`, labels, value: count },
  ]
}
