/** Counts what a fleet did and how long answers took. One per run, shared by all devices. */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'
import type { DeviceObserver, FailureKind } from './device.ts'
import { Interval } from './timeline.ts'

/** The one object that `--json` prints: contract section 8. */
export interface FleetSummary {
  readonly devices: number
  /** Connections open when the run ended. */
  readonly connected: number
  /** Frames; not counted are ICCID and link, which are no frames. */
  readonly uplinks_sent: number
  readonly replies_received: number
  /** Frames the fleet wanted to be served, per second of the run. */
  readonly offered_per_s: number
  /** Of those: answered, or sent where no answer is due. */
  readonly achieved_per_s: number
  /** From the time a frame should have gone out; null when nothing was answered. */
  readonly reply_ms_p50: number | null
  readonly reply_ms_p99: number | null
  /** Records, not sendings: a repeat of the same record is counted in the notes. */
  readonly settlements_sent: number
  readonly settlements_acked: number
  readonly commands_received: number
  readonly errors: number
}

/** What the summary has no field for; printed for people. */
export interface FleetNotes {
  readonly durationS: number
  readonly ordersStarted: number
  readonly ordersWithoutPort: number
  readonly settlementRepeats: number
  readonly settlementMsP50: number | null
  readonly settlementMsP99: number | null
  readonly repliesIgnored: number
  readonly repliesMissed: number
  readonly unacked: number
  /** How late the generator itself was, part of every reply time. */
  readonly latenessMsP99: number | null
  readonly failures: Readonly<Record<string, number>>
  readonly firstFailures: readonly string[]
}

const FIRST_FAILURES_MAX = 10
const SETTLEMENTS = new Set(['03', '0015/02', '0015/18', '0015/0c', '1000/1004'])

export class FleetTally implements DeviceObserver {
  uplinksSent = 0
  uplinksWithoutAnswer = 0
  repliesReceived = 0
  repliesIgnored = 0
  repliesMissed = 0
  commandsReceived = 0
  ordersStarted = 0
  ordersWithoutPort = 0
  settlementsSent = 0
  settlementRepeats = 0
  settlementsAcked = 0
  failures = 0
  /** Uplinks at the end of the run, before the grace: what the rates are made of. */
  #uplinksOfRun: number | undefined
  readonly #failuresByKind = new Map<FailureKind, number>()
  readonly #firstFailures: string[] = []
  /** Since the last sample of the timeline; empty again after each. */
  readonly interval = new Interval()
  readonly #replyUs = createHistogram()
  readonly #settlementUs = createHistogram()
  readonly #latenessUs = createHistogram()

  uplinkSent(_name: string, isAnswerDue: boolean): void {
    this.uplinksSent++
    if (!isAnswerDue) this.uplinksWithoutAnswer++
  }

  replyReceived(name: string, latencyMs: number): void {
    this.repliesReceived++
    record(this.#replyUs, latencyMs)
    record(this.interval.replyUs, latencyMs)
    if (!SETTLEMENTS.has(name)) return
    record(this.#settlementUs, latencyMs)
    record(this.interval.settlementUs, latencyMs)
  }

  replyIgnored(_name: string): void {
    this.repliesIgnored++
  }

  replyMissed(name: string): void {
    this.repliesMissed++
    this.#note(`reply.missed ${name}`)
  }

  commandReceived(_name: string): void {
    this.commandsReceived++
  }

  orderStarted(): void {
    this.ordersStarted++
  }

  settlementSent(_deviceId: string, _port: number, _order: string, isRepeat: boolean): void {
    if (isRepeat) this.settlementRepeats++
    else this.settlementsSent++
  }

  settlementAcked(): void {
    this.settlementsAcked++
  }

  failed(kind: FailureKind, detail: string): void {
    this.failures++
    this.#failuresByKind.set(kind, (this.#failuresByKind.get(kind) ?? 0) + 1)
    this.#note(`${kind} ${detail.slice(0, 200)}`)
  }

  runEnded(): void {
    this.#uplinksOfRun = this.uplinksSent
  }

  late(latenessMs: number): void {
    record(this.#latenessUs, latenessMs)
    record(this.interval.latenessUs, latenessMs)
  }

  /**
   * @param unacked records that were sent and never acked
   * @param isUnackedAnError false when replies were lost on purpose
   */
  summary(
    devices: number,
    connected: number,
    durationS: number,
    unacked: number,
    isUnackedAnError: boolean,
  ): FleetSummary {
    const offered = this.#uplinksOfRun ?? this.uplinksSent
    const served = this.uplinksWithoutAnswer + this.repliesReceived + this.repliesIgnored
    return {
      devices,
      connected,
      uplinks_sent: this.uplinksSent,
      replies_received: this.repliesReceived,
      offered_per_s: round(offered / durationS, 1),
      achieved_per_s: round(Math.min(served, offered) / durationS, 1),
      reply_ms_p50: percentile(this.#replyUs, 50),
      reply_ms_p99: percentile(this.#replyUs, 99),
      settlements_sent: this.settlementsSent,
      settlements_acked: this.settlementsAcked,
      commands_received: this.commandsReceived,
      errors: this.failures + this.repliesMissed + (isUnackedAnError ? unacked : 0),
    }
  }

  notes(durationS: number, unacked: number): FleetNotes {
    return {
      durationS: round(durationS, 1),
      ordersStarted: this.ordersStarted,
      ordersWithoutPort: this.ordersWithoutPort,
      settlementRepeats: this.settlementRepeats,
      settlementMsP50: percentile(this.#settlementUs, 50),
      settlementMsP99: percentile(this.#settlementUs, 99),
      repliesIgnored: this.repliesIgnored,
      repliesMissed: this.repliesMissed,
      unacked,
      latenessMsP99: percentile(this.#latenessUs, 99),
      failures: Object.fromEntries(this.#failuresByKind),
      firstFailures: this.#firstFailures,
    }
  }

  #note(text: string): void {
    if (this.#firstFailures.length < FIRST_FAILURES_MAX) this.#firstFailures.push(text)
  }
}

function record(histogram: RecordableHistogram, ms: number): void {
  histogram.record(Math.max(1, Math.round(ms * 1_000)))
}

function percentile(histogram: RecordableHistogram, percent: number): number | null {
  return histogram.count === 0 ? null : round(histogram.percentile(percent) / 1_000, 3)
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits
}
