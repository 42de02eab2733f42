/**
 * Events out of the stream and over to Kafka, one batch after the other. Thread: kafka.
 *
 * At least once: a batch is read behind the position, acknowledged by the brokers, and only then the position is moved;
 * who dies in between sends it again, and consumers know an event by its event_id. A batch goes out only when the one
 * before it is acknowledged, so that the first appearances of a key's events stand in the order of the stream.
 *
 * Memory: one page of PAGE_EVENTS_MAX events, however long the brokers are away.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../src/main/database/connect.ts'
import type { Log } from '../../src/main/log.ts'
import type { KAFKA_FAILURES, KAFKA_RESULTS } from '../../src/metrics/catalogue.ts'
import { type Envelope, envelopeOf } from './envelope.ts'
import { KafkaFault } from './fault.ts'
import {
  type EventRow,
  type Hold,
  type Holder,
  type Lag,
  measureLag,
  movePosition,
  readAfter,
  releasePosition,
  takePosition,
} from './store.ts'

export type SinkOptions = Omit<Holder, 'leaseMs'> & {
  /** When nobody wakes it: how often it looks. */
  readonly pollMs: number
}

/** The brokers, as the sink sees them. */
export interface EventProducer {
  /** Resolves when the topic is there. @throws KafkaFault */
  connect(): Promise<void>
  /** Resolves when all in-sync replicas have all of them. @throws KafkaFault nothing is known about any of them */
  send(batch: readonly Envelope[]): Promise<void>
  /** At once; what is under way is cut off. */
  close(): void
}

export interface SinkParts {
  readonly sql: Sql
  readonly log: Log
  /** A new one after each failure: nothing of a broken connection is kept. */
  readonly createProducer: () => EventProducer
  readonly onEvents: (result: (typeof KAFKA_RESULTS)[number], count: number) => void
  readonly onFailure: (reason: (typeof KAFKA_FAILURES)[number]) => void
  /** Retention dropped events before they were produced. */
  readonly onGap: () => void
  readonly onLag: (lag: Lag) => void
  /** 0..1, for the jitter of waiting. */
  readonly random?: () => number
  readonly backoffMs?: { readonly min: number; readonly max: number }
  readonly leaseMs?: number
}

export const PAGE_EVENTS_MAX = 500
/** Values of one batch; brokers refuse more than 1 MB per partition unless they are told otherwise. */
export const BATCH_BYTES_MAX = 262_144
/** A gateway that died or cannot reach the brokers is replaced by another one on the same database after this long. */
const LEASE_MS = 60_000
const LAG_EVERY_MS = 2_000
const BACKOFF_MS = { min: 250, max: 30_000 }
const DATABASE_WAIT_MS = 500
const RELEASE_MS_MAX = 500

export class KafkaSink {
  readonly #options: SinkOptions
  readonly #parts: SinkParts
  readonly #holder: Holder
  #hold: Hold | undefined
  #renewAtMonoMs = 0
  #producer: EventProducer | undefined
  #isStopped = false
  #isAwake = false
  #wake: () => void = () => {}
  #interrupt: () => void = () => {}
  #loop: Promise<void> = Promise.resolve()
  #lagTimer: NodeJS.Timeout | undefined
  #isMeasuring = false
  /** Failures since the brokers last took something. */
  #failures = 0
  /** What was said of the brokers; undefined: nothing is wrong. */
  #fault: KafkaFault['reason'] | undefined
  #isPaused = false
  #isStandby = false
  /** Retention up to here was told of. */
  #toldDropped = 0

  constructor(options: SinkOptions, parts: SinkParts) {
    this.#options = options
    this.#parts = parts
    this.#holder = { ...options, leaseMs: parts.leaseMs ?? LEASE_MS }
  }

  start(): void {
    this.#loop = this.#run()
    this.#lagTimer = setInterval(() => void this.#measure(), LAG_EVERY_MS)
  }

  /** Events were stored. */
  wake(): void {
    this.#isAwake = true
    this.#wake()
  }

  /** The batch under way has `withinMs`. Never rejects; within a second more. */
  async stop(withinMs: number): Promise<void> {
    this.#isStopped = true
    clearInterval(this.#lagTimer)
    this.#interrupt()
    await Promise.race([this.#loop, sleep(withinMs, undefined, { ref: false })])
    this.#producer?.close()
    const hold = this.#hold
    if (hold === undefined) return
    const released = releasePosition(this.#parts.sql, this.#holder, hold).catch(() => {})
    await Promise.race([released, sleep(RELEASE_MS_MAX, undefined, { ref: false })])
  }

  async #run(): Promise<void> {
    while (!this.#isStopped) {
      let waitMs = this.#options.pollMs
      let isWakeable = true
      this.#isAwake = false
      try {
        await this.#pump()
        if (this.#isPaused) this.#parts.log.info({ event: 'kafka.resumed', msg: 'events go to Kafka again' })
        this.#isPaused = false
      } catch (error) {
        isWakeable = false
        waitMs = error instanceof KafkaFault ? this.#brokerFailed(error) : this.#databaseFailed(error)
      }
      await this.#pause(waitMs, isWakeable)
    }
  }

  /** Everything that is there. @throws KafkaFault; what the database threw */
  async #pump(): Promise<void> {
    const { sql } = this.#parts
    if (!(await this.#take())) return
    const producer = await this.#connected()
    while (!this.#isStopped) {
      const after = this.#hold!.cursor
      const { rows, droppedCursor } = await readAfter(sql, after, PAGE_EVENTS_MAX)
      // the very first look asks for the oldest kept: nothing is missed then
      if (droppedCursor !== undefined && after > 0) this.#missed(after, droppedCursor)
      for (const batch of batchesOf(rows)) if (this.#isStopped || !(await this.#produce(producer, batch))) return
      if (rows.length < PAGE_EVENTS_MAX) break
    }
    // only now: brokers that answer questions but take no events are not back
    this.#brokerAnswered()
    if (performance.now() > this.#renewAtMonoMs) await this.#move(this.#hold!.cursor)
  }

  /** @returns false: another gateway produces to this topic */
  async #take(): Promise<boolean> {
    if (this.#hold !== undefined) return true
    const { sql, log } = this.#parts
    this.#hold = await takePosition(sql, this.#holder)
    this.#renewAtMonoMs = performance.now() + this.#holder.leaseMs / 4
    const isStandby = this.#hold === undefined
    if (isStandby && !this.#isStandby)
      log.info({ event: 'kafka.fenced', topic: this.#options.topic, msg: 'another gateway produces to this topic' })
    this.#isStandby = isStandby
    return !isStandby
  }

  async #connected(): Promise<EventProducer> {
    if (this.#producer !== undefined) return this.#producer
    const producer = this.#parts.createProducer()
    this.#producer = producer
    try {
      await producer.connect()
    } catch (error) {
      producer.close()
      this.#producer = undefined
      throw error
    }
    return producer
  }

  /** One batch until it is acknowledged or refused, in parts if it must be. @returns false: the position is lost */
  async #produce(producer: EventProducer, batch: readonly Read[]): Promise<boolean> {
    const { log, onEvents } = this.#parts
    const last = batch.at(-1)!
    try {
      await producer.send(batch.map(({ envelope }) => envelope))
    } catch (error) {
      if (!(error instanceof KafkaFault) || error.reason !== 'record') throw error
      this.#parts.onFailure(error.reason)
      if (batch.length > 1) {
        const half = Math.ceil(batch.length / 2)
        return (
          (await this.#produce(producer, batch.slice(0, half))) && (await this.#produce(producer, batch.slice(half)))
        )
      }
      // it would be refused for ever, and everything behind it would wait for ever
      const { event_id: eventId, event_type: eventType, device_id: deviceId, cursor } = last.row
      log.error({
        event: 'kafka.eventRefused',
        eventId,
        eventType,
        deviceId,
        cursor,
        bytes: last.envelope.value.length,
        reason: error.message,
        msg: 'the brokers refuse an event for good: it is left out; GET /api/v1/events still has it',
      })
      onEvents('refused', 1)
      return await this.#move(last.row.cursor)
    }
    this.#brokerAnswered()
    // counted when acknowledged; if the move fails they are sent, and counted, again
    onEvents('produced', batch.length)
    return await this.#move(last.row.cursor)
  }

  async #move(cursor: number): Promise<boolean> {
    const hold = this.#hold!
    if (!(await movePosition(this.#parts.sql, this.#holder, hold, cursor))) {
      this.#hold = undefined
      return false
    }
    this.#hold = { ...hold, cursor }
    this.#renewAtMonoMs = performance.now() + this.#holder.leaseMs / 4
    return true
  }

  // ---- trouble --------------------------------------------------------------------------------------------------

  #brokerAnswered(): void {
    this.#failures = 0
    if (this.#fault !== undefined)
      this.#parts.log.info({ event: 'kafka.brokerReturned', topic: this.#options.topic, msg: 'Kafka is back' })
    this.#fault = undefined
  }

  /** The hold is not renewed meanwhile: a gateway that reaches the brokers may take over. @returns ms to wait */
  #brokerFailed({ reason, message }: KafkaFault): number {
    const { log, onFailure, random = Math.random, backoffMs: { min, max } = BACKOFF_MS } = this.#parts
    this.#producer?.close()
    this.#producer = undefined
    if (this.#isStopped) return 0
    onFailure(reason)
    if (this.#fault !== reason)
      log.warn({
        event: 'kafka.brokerLost',
        topic: this.#options.topic,
        reason,
        detail: message,
        msg: 'events do not reach Kafka; they wait in the database',
      })
    this.#fault = reason
    const fullMs = Math.min(max, min * 2 ** Math.min(this.#failures++, 20))
    return fullMs * (0.5 + random() / 2)
  }

  #databaseFailed(error: unknown): number {
    // a move may have been made whose answer we did not get
    this.#hold = undefined
    if (!this.#isPaused && !this.#isStopped)
      this.#parts.log.warn({ event: 'kafka.paused', err: error, msg: 'the Kafka sink waits for the database' })
    this.#isPaused = true
    return DATABASE_WAIT_MS
  }

  #missed(after: number, droppedCursor: number): void {
    if (droppedCursor <= this.#toldDropped) return
    this.#toldDropped = droppedCursor
    this.#parts.onGap()
    this.#parts.log.error({
      event: 'kafka.eventsMissed',
      topic: this.#options.topic,
      after,
      droppedCursor,
      msg: 'retention dropped events before Kafka had them (RETENTION_DAYS_EVENTS)',
    })
  }

  async #measure(): Promise<void> {
    if (this.#isMeasuring) return
    this.#isMeasuring = true
    try {
      const lag = await measureLag(this.#parts.sql, this.#options.topic)
      if (lag !== undefined) this.#parts.onLag(lag)
    } catch {
      // the loop tells of a database that is away; the gauges stay
    }
    this.#isMeasuring = false
  }

  async #pause(ms: number, isWakeable: boolean): Promise<void> {
    if (this.#isStopped || (isWakeable && this.#isAwake)) return
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#interrupt = () => {
        clearTimeout(timer)
        resolve()
      }
      // brokers in trouble are not asked once more for each new event
      if (isWakeable) this.#wake = this.#interrupt
    })
    this.#wake = () => {}
    this.#interrupt = () => {}
  }
}

interface Read {
  readonly row: EventRow
  readonly envelope: Envelope
}

/** In order; each of BATCH_BYTES_MAX at most, or of one event. */
function* batchesOf(rows: readonly EventRow[]): Generator<readonly Read[]> {
  let batch: Read[] = []
  let bytes = 0
  for (const row of rows) {
    const envelope = envelopeOf(row)
    if (batch.length > 0 && bytes + envelope.value.length > BATCH_BYTES_MAX) {
      yield batch
      batch = []
      bytes = 0
    }
    batch.push({ row, envelope })
    bytes += envelope.value.length
  }
  if (batch.length > 0) yield batch
}
