/** What a run looked like over time: one sample a second, percentiles of that second and of each phase. */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'
import { cpuMsOf, rssBytesOf } from './process-use.ts'
import type { Phase } from './scenario.ts'
import type { FleetTally } from './tally.ts'

/** Of one second, or a little more when the generator was late; null: nothing to tell. */
export interface Sample {
  /** Its end, from the start of the run. */
  readonly atS: number
  readonly phase: number
  readonly connected: number
  readonly offeredPerS: number
  readonly achievedPerS: number
  readonly replyMsP50: number | null
  readonly replyMsP99: number | null
  readonly replyMsMax: number | null
  readonly settlementMsP99: number | null
  readonly latenessMsP99: number | null
  readonly settlementsSent: number
  readonly settlementsAcked: number
  readonly errors: number
  /** Of one core; the database and all other processes that the gateway started included, where its pid is known. */
  readonly gatewayCpuPercent: number | null
  readonly gatewayRssMib: number | null
  readonly rowsPending: number | null
  readonly gatewayDelayMs: number | null
}

export interface PhaseSummary {
  readonly name: string
  readonly fromS: number
  readonly toS: number
  readonly offeredPerS: number
  readonly achievedPerS: number
  readonly replyMsP50: number | null
  readonly replyMsP99: number | null
  readonly settlementMsP99: number | null
  readonly settlementsAcked: number
  readonly connectedMin: number
  readonly errors: number
}

/** Where the gateway may be watched; both may be left out. */
export interface Watched {
  /** On this machine: CPU and memory from /proc. */
  readonly pid?: number
  /** Prometheus text: rows that wait, lateness of its threads, and CPU and memory where there is no pid. */
  readonly metricsUrl?: string
}

/** Histograms that are emptied with every sample, filled by the tally. */
export class Interval {
  readonly replyUs = createHistogram()
  readonly settlementUs = createHistogram()
  readonly latenessUs = createHistogram()
}

interface Totals {
  atMs: number
  sent: number
  served: number
  acked: number
  errors: number
  cpuMs: number
}

interface OpenPhase {
  readonly reply: RecordableHistogram
  readonly settlement: RecordableHistogram
  readonly begin: Totals
  connectedMin: number
}

const SCRAPE_MS_MAX = 900

export class Timeline {
  readonly samples: Sample[] = []
  readonly phases: PhaseSummary[] = []
  readonly #plan: readonly Phase[]
  readonly #watched: Watched
  readonly #startMs: number
  #last: Totals
  #phase = 0
  #open: OpenPhase
  /** Of the last answer of the metrics page. */
  #page: Record<string, number> = {}
  #isScraping = false

  constructor(plan: readonly Phase[], watched: Watched, tally: FleetTally, startMs: number) {
    this.#plan = plan
    this.#watched = watched
    this.#startMs = startMs
    this.#last = this.#totals(tally, startMs)
    this.#open = openPhase(this.#last)
  }

  /** @param phase place in the plan; a sample belongs to the phase in which it ends */
  take(tally: FleetTally, connected: number, phase: number, nowMs: number): void {
    const { interval } = tally
    const last = this.#last
    const next = this.#totals(tally, nowMs)
    const seconds = Math.max(0.001, (next.atMs - last.atMs) / 1_000)
    this.#open.reply.add(interval.replyUs)
    this.#open.settlement.add(interval.settlementUs)
    this.#open.connectedMin = Math.min(this.#open.connectedMin, connected)
    const page = this.#page
    const hasPid = this.#watched.pid !== undefined
    const rssBytes = hasPid ? rssBytesOf(this.#watched.pid as number) : page['process_resident_memory_bytes']
    this.samples.push({
      atS: round((nowMs - this.#startMs) / 1_000, 2),
      phase: this.#phase,
      connected,
      offeredPerS: round((next.sent - last.sent) / seconds, 1),
      achievedPerS: round((next.served - last.served) / seconds, 1),
      replyMsP50: percentileMs(interval.replyUs, 50),
      replyMsP99: percentileMs(interval.replyUs, 99),
      replyMsMax: percentileMs(interval.replyUs, 100),
      settlementMsP99: percentileMs(interval.settlementUs, 99),
      latenessMsP99: percentileMs(interval.latenessUs, 99),
      settlementsSent: tally.settlementsSent,
      settlementsAcked: tally.settlementsAcked,
      errors: next.errors,
      gatewayCpuPercent:
        hasPid || page['process_cpu_seconds_total'] !== undefined
          ? round(Math.max(0, next.cpuMs - last.cpuMs) / seconds / 10, 1)
          : null,
      gatewayRssMib: rssBytes === undefined ? null : round(rssBytes / 2 ** 20, 1),
      rowsPending: page['pilegate_rows_pending'] ?? null,
      gatewayDelayMs:
        page['pilegate_event_loop_delay_seconds'] === undefined
          ? null
          : round(page['pilegate_event_loop_delay_seconds'] * 1_000, 1),
    })
    interval.replyUs.reset()
    interval.settlementUs.reset()
    interval.latenessUs.reset()
    this.#last = next
    if (phase !== this.#phase) this.#close(phase)
    void this.#scrape()
  }

  /** Behind the last `take`. */
  end(): void {
    this.#close(this.#phase)
  }

  #close(next: number): void {
    const { reply, settlement, begin, connectedMin } = this.#open
    const end = this.#last
    const seconds = (end.atMs - begin.atMs) / 1_000
    const at = (ms: number) => round((ms - this.#startMs) / 1_000, 2)
    if (seconds > 0)
      this.phases.push({
        name: this.#plan[this.#phase]?.name ?? '',
        fromS: at(begin.atMs),
        toS: at(end.atMs),
        offeredPerS: round((end.sent - begin.sent) / seconds, 1),
        achievedPerS: round((end.served - begin.served) / seconds, 1),
        replyMsP50: percentileMs(reply, 50),
        replyMsP99: percentileMs(reply, 99),
        settlementMsP99: percentileMs(settlement, 99),
        settlementsAcked: end.acked - begin.acked,
        connectedMin,
        errors: end.errors - begin.errors,
      })
    this.#phase = next
    this.#open = openPhase(end)
  }

  #totals(tally: FleetTally, atMs: number): Totals {
    const { pid } = this.#watched
    return {
      atMs,
      sent: tally.uplinksSent,
      served: tally.uplinksWithoutAnswer + tally.repliesReceived + tally.repliesIgnored,
      acked: tally.settlementsAcked,
      errors: tally.failures + tally.repliesMissed,
      cpuMs: pid === undefined ? (this.#page['process_cpu_seconds_total'] ?? 0) * 1_000 : cpuMsOf(pid),
    }
  }

  /** For the next sample; a page that does not come leaves the last one out. */
  async #scrape(): Promise<void> {
    const { metricsUrl } = this.#watched
    if (metricsUrl === undefined || this.#isScraping) return
    this.#isScraping = true
    try {
      const answer = await fetch(metricsUrl, { signal: AbortSignal.timeout(SCRAPE_MS_MAX) })
      this.#page = readPage(await answer.text())
    } catch {
      this.#page = {}
    } finally {
      this.#isScraping = false
    }
  }
}

/** Of each series the sum over its labels; of the lateness of threads the worst. */
function readPage(text: string): Record<string, number> {
  const page: Record<string, number> = {}
  for (const [, name = '', value] of text.matchAll(/^([a-z_]+)(?:\{[^}]*\})? (\S+)$/gm)) {
    const number = Number(value)
    if (!Number.isFinite(number)) continue
    const before = page[name] ?? 0
    page[name] = name === 'pilegate_event_loop_delay_seconds' ? Math.max(before, number) : before + number
  }
  return page
}

const openPhase = (begin: Totals): OpenPhase => ({
  reply: createHistogram(),
  settlement: createHistogram(),
  begin,
  connectedMin: Number.POSITIVE_INFINITY,
})

function percentileMs(histogram: RecordableHistogram, percent: number): number | null {
  return histogram.count === 0 ? null : round(histogram.percentile(percent) / 1_000, 3)
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits
}
