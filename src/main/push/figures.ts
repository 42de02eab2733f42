/**
 * What the topic `metrics` tells every second: few figures of the whole gateway, enough for a chart. Levels as they are,
 * counts as rates per second since the last time. Thread: main.
 */
import type { ThreadCounter, ThreadGauge } from '../../metrics/catalogue.ts'
import { CountersReader } from '../../shared/counters.ts'

export interface FiguresOptions {
  /** From `allocateCounters`. */
  readonly counters: SharedArrayBuffer
  readonly rowsPending: () => number
  /** ms, monotonic */
  readonly monoNow: () => number
}

export type Figures = Readonly<
  Record<
    | 'connections'
    | 'devices_online'
    | 'frames_per_s'
    | 'rows_pending'
    | 'commands_pending'
    | 'settlements_total'
    | 'settlements_per_s'
    | 'ws_subscribers',
    number
  >
>

export function createFigures({ counters, rowsPending, monoNow }: FiguresOptions): () => Figures {
  const reader = new CountersReader(counters)
  const sum = (
    name: ThreadCounter | ThreadGauge,
    isCounted: (labels: Readonly<Record<string, string>>) => boolean = () => true,
  ) => reader.samples(name).reduce((total, { labels, value }) => total + (isCounted(labels) ? value : 0), 0)
  let lastMonoMs = Number.NEGATIVE_INFINITY
  let lastFrames = 0
  let lastSettlements = 0
  return () => {
    const nowMs = monoNow()
    const frames = sum('frames_total')
    const settlements = sum('settlements_total', ({ result }) => result === 'stored')
    // the first of a listener has nothing to compare with, unless somebody listened a moment ago
    const elapsedS = (nowMs - lastMonoMs) / 1_000
    const rate = (count: number, before: number) =>
      elapsedS > 10 || elapsedS <= 0 ? 0 : Math.round(((count - before) / elapsedS) * 10) / 10
    const figures = {
      connections: sum('connections'),
      devices_online: sum('devices_online'),
      frames_per_s: rate(frames, lastFrames),
      rows_pending: rowsPending(),
      commands_pending: sum('commands_pending'),
      settlements_total: settlements,
      settlements_per_s: rate(settlements, lastSettlements),
      ws_subscribers: sum('ws_subscribers'),
    }
    lastMonoMs = nowMs
    lastFrames = frames
    lastSettlements = settlements
    return figures
  }
}
