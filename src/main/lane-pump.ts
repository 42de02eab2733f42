/**
 * The way of rows from a shard's outbox into the database, seen from main: spans out to the writer pool, `durable`
 * forward in order, space back to the session thread. Nothing here looks into a row.
 *
 * Ledger lane: a span that cannot be written stays and is tried again; its acks wait. History lane: when the database
 * is away, spans go to the spool in order, and from there into the database once it is back (spool.ts). Thread: main.
 */

import type { Lane } from '../rows/row.ts'
import type { OutboxConsumer, Span } from '../shared/outbox.ts'

/** What a pump needs to know of the database: src/main/database/health.ts, or the simulation's. */
export interface Health {
  readonly isHere: boolean
  readonly awayMs: number
  lost(): void
  onBack(listener: () => void): void
}

export type SpanOutcome =
  /** `rejected`: endless positions just past rows that were put aside and must not be acknowledged. */
  | { readonly kind: 'stored'; readonly rejected: readonly number[] }
  /** Not written; try again when the database is back. */
  | { readonly kind: 'away' }

export interface LanePumpOptions {
  readonly lane: Lane
  readonly consumer: OutboxConsumer
  readonly health: Health
  /** setTimeout, or the simulation's. */
  readonly after: (ms: number, act: () => void) => void
  readonly insert: (span: Span) => Promise<SpanOutcome>
  /** Every row before the position is stored or put aside. */
  readonly onDurable: (position: number, rejected: readonly number[]) => void
  readonly spansInFlightMax: number
  readonly batchRowsMax: number
  readonly batchBytesMax: number
  /**
   * Rows that nobody waits for gather this long before they are taken, unless there are enough for a full span: at
   * little load a transaction per row would cost more than everything else. The first rows after a rest do not wait: a
   * device that just came can be asked about as soon as it was answered. Default 0.
   */
  readonly gatherMs?: number
  /** History only: takes a span while the database is away; resolves when it is kept, or dropped by its rule. */
  readonly spill?: (span: Span) => Promise<void>
  /** History only: true while rows of this lane wait in the spool, so that later ones must queue behind them. */
  readonly isSpooling?: () => boolean
}

interface Flight {
  readonly span: Span
  state: 'waiting' | 'flying' | 'done'
  rejected: readonly number[]
}

/** The database must be away this long before rows leave the ring for the spool, unless the ring is half full. */
const SPILL_AFTER_MS = 1_000
/** No rows were taken for this long: the lane rests. What a device says first are several rows, within this first gather. */
const REST_MS = 500
const FIRST_GATHER_MS = 4

export class LanePump {
  readonly #options: LanePumpOptions
  /** Spans taken and not released, in order. */
  readonly #flights: Flight[] = []
  #inFlight = 0
  #isSpilling = false
  #isStopped = false
  #isGatherTimed = false
  #isRipe = false
  /** False: the lane rests. */
  #isWarm = false
  /** The gateway stops: nothing gathers any more. */
  #isHurried = false
  #idleWaiters: (() => void)[] = []
  readonly #ringBytes: number

  constructor(options: LanePumpOptions) {
    this.#options = options
    this.#ringBytes = options.consumer.memory.byteLength
    options.health.onBack(() => this.pump())
  }

  get rowsPending(): number {
    return this.#options.consumer.rowsPending
  }

  /** Nothing is written that is not also stored or spooled. */
  get isIdle(): boolean {
    return this.#flights.length === 0 && this.#options.consumer.written === this.#options.consumer.taken
  }

  /** Resolves when idle, or after `withinMs`. */
  async idle(withinMs: number): Promise<boolean> {
    this.#isHurried = true
    this.pump()
    const until = performance.now() + withinMs
    while (!this.isIdle && performance.now() < until) {
      await new Promise<void>((resolve) => {
        this.#idleWaiters.push(resolve)
        setTimeout(resolve, 50)
      })
      this.pump()
    }
    return this.isIdle
  }

  stop(): void {
    this.#isStopped = true
  }

  /**
   * The gateway stops and the database does not take the rest: everything that is not stored goes to the spool, spans
   * on their way included; written twice they change nothing. Call it after `stop`.
   */
  async spillRest(): Promise<void> {
    const { spill } = this.#options
    if (spill === undefined) return
    while (this.#take() !== undefined);
    // a copy: spans on their way may still end meanwhile and leave the list
    for (const flight of [...this.#flights]) {
      if (flight.state === 'done') continue
      await spill(flight.span)
      flight.state = 'done'
    }
    this.#settle()
  }

  /** Starts whatever can be started. Called on every wake-up, completion and return of the database. */
  pump(): void {
    if (this.#isStopped) return
    const { consumer, health } = this.#options
    for (;;) {
      if (this.#mustSpill()) {
        void this.#spillNext()
        return
      }
      if (!health.isHere || this.#options.isSpooling?.() === true || this.#isSpilling) {
        // an empty history ring asks to be told of its next row also now: unspilled, rows would rest until the database
        // is back, fill the ring and be lost beside an empty spool (simulation, seed 5)
        const isEmpty = this.#flights.length === 0 && consumer.written === consumer.taken
        if (this.#options.spill !== undefined && isEmpty && !consumer.sleep()) continue
        return
      }
      if (this.#inFlight >= this.#options.spansInFlightMax) return
      const waiting = this.#flights.find((flight) => flight.state === 'waiting')
      if (waiting === undefined && this.#isGathering()) return
      const flight = waiting ?? this.#take()
      if (flight === undefined) {
        if (consumer.sleep()) return
        continue
      }
      void this.#fly(flight)
    }
  }

  /** @returns true: rows are there, and more of them are waited for; `pump` is called when the wait is over */
  #isGathering(): boolean {
    const { consumer, gatherMs = 0, batchRowsMax, after } = this.#options
    if (gatherMs === 0 || this.#isHurried || this.#isRipe || consumer.written === consumer.taken) return false
    if (consumer.rowsPending >= batchRowsMax) return false
    if (!this.#isGatherTimed) {
      this.#isGatherTimed = true
      after(this.#isWarm ? gatherMs : Math.min(gatherMs, FIRST_GATHER_MS), () => {
        this.#isGatherTimed = false
        this.#warm()
        this.#isRipe = true
        this.pump()
      })
    }
    return true
  }

  #warm(): void {
    if (this.#isWarm) return
    this.#isWarm = true
    this.#options.after(REST_MS, () => {
      this.#isWarm = false
    })
  }

  #take(): Flight | undefined {
    this.#isRipe = false
    const span = this.#options.consumer.take(this.#options.batchBytesMax, this.#options.batchRowsMax)
    if (span === undefined) return undefined
    const flight: Flight = { span, state: 'waiting', rejected: [] }
    this.#flights.push(flight)
    return flight
  }

  async #fly(flight: Flight): Promise<void> {
    flight.state = 'flying'
    this.#inFlight++
    const outcome = await this.#options.insert(flight.span)
    this.#inFlight--
    if (outcome.kind === 'stored') {
      flight.state = 'done'
      flight.rejected = outcome.rejected
      this.#settle()
    } else {
      flight.state = 'waiting'
      this.#options.health.lost()
      // the database may be back already, or the failure was the writer's own: do not spin on it
      this.#options.after(100, () => this.pump())
    }
    this.pump()
  }

  /** Moves `durable` over everything done at the head, in order. */
  #settle(): void {
    let position: number | undefined
    let rejected: readonly number[] = []
    while (this.#flights[0]?.state === 'done') {
      const { span, rejected: put } = this.#flights.shift()!
      this.#options.consumer.release(span.toPosition, span.rows)
      position = span.toPosition
      if (put.length > 0) rejected = [...rejected, ...put]
    }
    if (position === undefined) return
    this.#options.onDurable(position, rejected)
    if (this.isIdle) for (const wake of this.#idleWaiters.splice(0)) wake()
  }

  // ---- history lane, database away ------------------------------------------------------------------------------

  #mustSpill(): boolean {
    const { spill, isSpooling, health, consumer } = this.#options
    if (spill === undefined || this.#isSpilling || this.#inFlight > 0) return false
    if (this.#flights.length === 0 && consumer.written === consumer.taken) return false
    if (isSpooling?.() === true) return true
    if (health.isHere) return false
    if (health.awayMs >= SPILL_AFTER_MS || consumer.bytesPending > this.#ringBytes / 2) return true
    this.#options.after(SPILL_AFTER_MS / 4, () => this.pump())
    return false
  }

  async #spillNext(): Promise<void> {
    this.#isSpilling = true
    const flight = this.#flights.find((candidate) => candidate.state === 'waiting') ?? this.#take()
    if (flight !== undefined) {
      await this.#options.spill!(flight.span)
      flight.state = 'done'
      this.#settle()
    }
    this.#isSpilling = false
    this.pump()
  }
}
