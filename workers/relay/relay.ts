/**
 * Events out of the stream and over to the endpoints. Thread: relay; one loop (fan out, claim) and as many attempts
 * under way as endpoints allow.
 *
 * Each endpoint has its own room, so that one that hangs costs the others nothing. At least once: a delivery is claimed
 * with a lease, sent, and its end stored; a process that dies between the last two sends it again, and the receiver
 * knows it by its event_id. Within a lane only the first pending delivery can be claimed, so order holds whoever sends.
 */
import { randomBytes } from 'node:crypto'
import { eventObjectOf } from '../../src/events/event-object.ts'
import type { Sql } from '../../src/main/database/connect.ts'
import type { Log } from '../../src/main/log.ts'
import type { WEBHOOK_RESULTS } from '../../src/metrics/catalogue.ts'
import { type Outcome, outcomeOf } from '../../src/webhooks/outcome.ts'
import { signatureHeaders } from '../../src/webhooks/sign.ts'
import { Sender, type SenderOptions, type SentAttempt } from './send.ts'
import {
  type Claimed,
  catchUp,
  claimDue,
  countPending,
  dropEnded,
  type Ended,
  fanOut,
  heldEndpoints,
  holdEndpoint,
  markFailing,
  markHealthy,
  recover,
  restEndpoint,
  restingEndpoints,
  type StopReason,
  stopEndpoint,
  storeEnded,
} from './store.ts'

/** Schedule, timeout and concurrency are for endpoints that have none of their own. */
export interface RelayOptions extends Pick<SenderOptions, 'guard'> {
  /** Stable over restarts of the same gateway, different for every other one. */
  readonly name: string
  /** Attempts under way per endpoint. */
  readonly concurrency: number
  /** From the start of an attempt to the status line. */
  readonly timeoutMs: number
  readonly scheduleMs: readonly number[]
  /** An endpoint that has failed for this long is stopped. */
  readonly disableAfterMs: number
  readonly retentionDays: number
  /** When nobody wakes it: how often it looks. */
  readonly pollMs: number
}

export type AttemptResult = (typeof WEBHOOK_RESULTS)[number]

export interface RelayParts {
  readonly sql: Sql
  readonly log: Log
  readonly onAttempt: (result: AttemptResult, seconds: number) => void
  readonly onPending: (count: number) => void
  /** From the commit of an event to the receiver's 2xx; first deliveries only, a redelivery was asked for later. */
  readonly onDelivered?: (seconds: number) => void
  readonly resolve?: SenderOptions['resolve']
}

interface Endpoint {
  readonly endpointId: string
  /** Claimed, waiting for a place. */
  readonly queue: { readonly claimed: Claimed; readonly claimedMonoMs: number }[]
  active: number
  /** The last end of an attempt, or the start of the first one after a rest. */
  endedMonoMs: number
  /** Its own; undefined: as configured. */
  concurrency: number | undefined
  /** Failures since the last success. */
  failures: number
  /** Asked for by the receiver; infinite: being stopped. */
  restUntilMonoMs: number
  /** The rest stands in the database, where its owner may end it. */
  isRestStored: boolean
  failingSinceMs: number | undefined
}

const FAN_OUT_EVENTS_MAX = 1_000
/** Claimed ahead for each place, so that a fast receiver does not wait for the database. */
const CLAIM_AHEAD = 4
/** Deliveries that wait for an endpoint which is held; while it is stuck the few that are tried are enough. */
const HELD_PENDING = 4_000
const STUCK_PENDING = 200
/** All places taken and nothing ended for so long: the stream goes on without it. */
const STUCK_MS = 500
/** After so many failures in a row an endpoint is asked one at a time, and the stream goes on without it. */
const FAILURES_SLOW = 5
const COUNT_EVERY_MS = 2_000
const TIDY_EVERY_MS = 3_600_000
const TROUBLE_MS = 250

export class Relay {
  readonly #options: RelayOptions
  readonly #parts: RelayParts
  readonly #sender: Sender
  readonly #endpoints = new Map<string, Endpoint>()
  /** Claimed and not stored yet: not to be taken a second time when a lease ends early. */
  readonly #held = new Set<number>()
  /** Endpoints the stream goes on without; looked up with the housekeeping. */
  #heldBack: readonly string[] = []
  #ended: Ended[] = []
  #storing: Promise<void> | undefined
  #isStopped = false
  #isAwake = false
  #wake: () => void = () => {}
  #loop: Promise<void> | undefined
  #isTroubled = false
  #isRecovered = false
  #countAtMonoMs = 0
  #tidyAtMonoMs = 0

  constructor(options: RelayOptions, parts: RelayParts) {
    this.#options = options
    this.#parts = parts
    const { guard } = options
    this.#sender = new Sender({ guard, ...(parts.resolve === undefined ? {} : { resolve: parts.resolve }) })
  }

  start(): void {
    this.#loop = this.#run()
  }

  /** Events were stored, or deliveries or endpoints changed. */
  wake(): void {
    this.#isAwake = true
    this.#wake()
  }

  /** Attempts under way have `withinMs`; the others are given back. Never rejects. */
  async stop(withinMs: number): Promise<void> {
    this.#isStopped = true
    this.#wake()
    await this.#loop
    for (const endpoint of this.#endpoints.values())
      for (const { claimed } of endpoint.queue.splice(0)) this.#giveBack(claimed, 0)
    const byMonoMs = performance.now() + withinMs
    const isBusy = () => [...this.#endpoints.values()].some(({ active }) => active > 0)
    while (isBusy() && performance.now() < byMonoMs) await sleep(20)
    this.#sender.abort()
    this.#store()
    while ((isBusy() || this.#storing !== undefined) && performance.now() < byMonoMs + TROUBLE_MS) await sleep(10)
    this.#sender.close()
  }

  async #run(): Promise<void> {
    while (!this.#isStopped) {
      let waitMs = this.#options.pollMs
      this.#isAwake = false
      try {
        if (!this.#isRecovered) {
          await recover(this.#parts.sql, this.#options.name, [...this.#held])
          this.#isRecovered = true
        }
        await this.#pump()
        await this.#housekeeping()
        if (this.#isTroubled) this.#parts.log.info({ event: 'webhooks.resumed', msg: 'webhooks go on' })
        this.#isTroubled = false
      } catch (error) {
        // a claim may have been made whose answer we did not get
        this.#isRecovered = false
        this.#trouble(error)
        waitMs = TROUBLE_MS
      }
      await this.#pause(waitMs)
    }
  }

  #trouble(error: unknown): void {
    if (!this.#isTroubled && !this.#isStopped)
      this.#parts.log.warn({ event: 'webhooks.paused', err: error, msg: 'webhooks wait for the database' })
    this.#isTroubled = true
  }

  async #pause(ms: number): Promise<void> {
    if (this.#isAwake || this.#isStopped) return
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#wake = () => {}
  }

  async #pump(): Promise<void> {
    const { sql } = this.#parts
    for (;;) {
      await this.#holdStuck()
      let events = await fanOut(sql, FAN_OUT_EVENTS_MAX)
      for (const endpointId of this.#heldBack)
        if (!this.#isStuck(endpointId)) {
          const catching = { eventsMax: FAN_OUT_EVENTS_MAX, pendingMax: HELD_PENDING, isKept: false }
          events = Math.max(events, await catchUp(sql, endpointId, catching))
        }
      await this.#claim()
      if (events < FAN_OUT_EVENTS_MAX || this.#isStopped) return
    }
  }

  async #housekeeping(): Promise<void> {
    const { sql, onPending } = this.#parts
    const nowMonoMs = performance.now()
    if (nowMonoMs >= this.#countAtMonoMs) {
      this.#countAtMonoMs = nowMonoMs + COUNT_EVERY_MS
      onPending(await countPending(sql))
      this.#heldBack = await heldEndpoints(sql)
      for (const endpointId of this.#heldBack)
        if (this.#isStuck(endpointId))
          await catchUp(sql, endpointId, { eventsMax: STUCK_PENDING, pendingMax: STUCK_PENDING, isKept: true })
    }
    if (nowMonoMs >= this.#tidyAtMonoMs) {
      this.#tidyAtMonoMs = nowMonoMs + TIDY_EVERY_MS
      while ((await dropEnded(sql, this.#options.retentionDays)) > 0 && !this.#isStopped);
    }
  }

  // ---- claims ---------------------------------------------------------------------------------------------------

  #isStuck(endpointId: string): boolean {
    const endpoint = this.#endpoints.get(endpointId)
    if (endpoint === undefined) return false
    const { active, failures, endedMonoMs } = endpoint
    const isFull = active >= this.#placesOf(endpoint)
    return failures >= FAILURES_SLOW || (isFull && performance.now() - endedMonoMs > STUCK_MS)
  }

  async #holdStuck(): Promise<void> {
    for (const { endpointId, active, queue } of [...this.#endpoints.values()]) {
      if (this.#heldBack.includes(endpointId) || !this.#isStuck(endpointId)) continue
      if (await holdEndpoint(this.#parts.sql, endpointId)) this.#heldBack = [...this.#heldBack, endpointId]
      // stopped or removed: what is remembered of it means nothing any more
      else if (active === 0 && queue.length === 0) this.#endpoints.delete(endpointId)
    }
  }

  #placesOf({ failures, concurrency }: Endpoint): number {
    return failures >= FAILURES_SLOW ? 1 : (concurrency ?? this.#options.concurrency)
  }

  async #claim(): Promise<void> {
    const { concurrency, timeoutMs, name } = this.#options
    await this.#endRests()
    const rooms = new Map<string, number>()
    const nowMonoMs = performance.now()
    for (const endpoint of this.#endpoints.values()) {
      const { endpointId, active, queue, failures, restUntilMonoMs } = endpoint
      if (active === 0 && queue.length === 0 && failures === 0 && restUntilMonoMs <= nowMonoMs) continue
      const ahead = failures >= FAILURES_SLOW ? 1 : this.#placesOf(endpoint) * CLAIM_AHEAD
      rooms.set(endpointId, restUntilMonoMs > nowMonoMs ? 0 : Math.max(0, ahead - active - queue.length))
    }
    const claim = { by: name, concurrency, timeoutMs, ahead: CLAIM_AHEAD, rooms }
    for (const claimed of await claimDue(this.#parts.sql, claim)) {
      if (this.#held.has(claimed.delivery_id)) continue
      this.#held.add(claimed.delivery_id)
      const endpoint = this.#endpointOf(claimed.endpoint_id)
      endpoint.failingSinceMs = claimed.failing_since?.getTime()
      endpoint.concurrency = claimed.concurrency ?? undefined
      endpoint.queue.push({ claimed, claimedMonoMs: performance.now() })
      this.#next(endpoint)
    }
  }

  /** Rests that owners have ended. */
  async #endRests(): Promise<void> {
    const nowMonoMs = performance.now()
    const resting = [...this.#endpoints.values()].filter(
      ({ restUntilMonoMs, isRestStored }) =>
        isRestStored && restUntilMonoMs > nowMonoMs && Number.isFinite(restUntilMonoMs),
    )
    if (resting.length === 0) return
    const ids = resting.map(({ endpointId }) => endpointId)
    const still = new Set(await restingEndpoints(this.#parts.sql, ids))
    // one that was asked to rest again meanwhile has nothing stored yet
    for (const endpoint of resting)
      if (endpoint.isRestStored && !still.has(endpoint.endpointId)) endpoint.restUntilMonoMs = 0
  }

  #rest(endpoint: Endpoint, restMs: number): void {
    const untilMonoMs = Math.max(endpoint.restUntilMonoMs, performance.now() + restMs)
    endpoint.restUntilMonoMs = untilMonoMs
    endpoint.isRestStored = false
    const stored = restEndpoint(this.#parts.sql, endpoint.endpointId, restMs).then(() => {
      endpoint.isRestStored = endpoint.restUntilMonoMs === untilMonoMs
    })
    this.#note(stored)
  }

  #endpointOf(endpointId: string): Endpoint {
    let endpoint = this.#endpoints.get(endpointId)
    if (endpoint === undefined) {
      endpoint = {
        endpointId,
        queue: [],
        active: 0,
        endedMonoMs: 0,
        concurrency: undefined,
        failures: 0,
        restUntilMonoMs: 0,
        isRestStored: false,
        failingSinceMs: undefined,
      }
      this.#endpoints.set(endpointId, endpoint)
    }
    return endpoint
  }

  #next(endpoint: Endpoint): void {
    while (endpoint.queue.length > 0) {
      const restMs = endpoint.restUntilMonoMs - performance.now()
      const { claimed, claimedMonoMs } = endpoint.queue[0]!
      const timeoutMs = claimed.timeout_ms ?? this.#options.timeoutMs
      if (restMs > 0) this.#giveBack(claimed, Number.isFinite(restMs) ? 0 : TROUBLE_MS)
      // too near the end of its lease: another gateway might begin while we still send
      else if (performance.now() - claimedMonoMs > CLAIM_AHEAD * timeoutMs + 2_500) this.#giveBack(claimed, 0)
      else if (endpoint.active < this.#placesOf(endpoint)) {
        if (endpoint.active++ === 0) endpoint.endedMonoMs = performance.now()
        void this.#deliver(endpoint, claimed)
      } else return
      endpoint.queue.shift()
    }
  }

  #giveBack({ delivery_id, endpoint_id, lane }: Claimed, delayMs: number): void {
    this.#ended.push({ delivery_id, endpoint_id, lane, status: 'pending', delay_ms: delayMs })
    this.#store()
  }

  // ---- one delivery ---------------------------------------------------------------------------------------------

  async #deliver(endpoint: Endpoint, claimed: Claimed): Promise<void> {
    const atMs = Date.now()
    const sent = await this.#send(claimed, atMs)
    endpoint.active--
    endpoint.endedMonoMs = performance.now()
    const { delivery_id, endpoint_id, lane } = claimed
    const ended = { delivery_id, endpoint_id, lane }
    if (sent.error === 'aborted') this.#giveBack(claimed, 0)
    else {
      const scheduleMs = claimed.retry_schedule_s?.map((seconds) => seconds * 1_000) ?? this.#options.scheduleMs
      const outcome = outcomeOf(sent, claimed.attempts + 1, scheduleMs, Math.random(), Date.now())
      const attempt = {
        at: new Date(atMs).toISOString(),
        status: sent.status ?? null,
        error: sent.error ?? (outcome.kind === 'delivered' ? null : `status ${sent.status}`),
        duration_ms: Math.round(sent.durationMs),
        answer: sent.answer,
      }
      const status = outcome.kind === 'delivered' ? 'delivered' : outcome.kind === 'retry' ? 'pending' : 'dead'
      this.#ended.push({ ...ended, status, delay_ms: outcome.kind === 'retry' ? outcome.delayMs : 0, attempt })
      this.#parts.onAttempt(RESULTS[outcome.kind], sent.durationMs / 1_000)
      if (outcome.kind === 'delivered' && claimed.replay === 0 && claimed.stored_at !== null)
        this.#parts.onDelivered?.(Math.max(0, atMs + sent.durationMs - claimed.stored_at.getTime()) / 1_000)
      this.#heal(endpoint, outcome, attempt.error ?? '')
      this.#store()
    }
    this.#next(endpoint)
  }

  async #send(claimed: Claimed, atMs: number): Promise<SentAttempt> {
    const { endpoint_id: endpointId, event_id: messageId, secret, previous_secret: previous } = claimed
    try {
      const { event, event_type, device_id, at, data } = claimed
      const object =
        event ??
        (device_id === null || at === null || data === null
          ? undefined
          : eventObjectOf({ event_id: messageId, event_type, device_id, at, data }))
      if (object === undefined) return { ...FAILED, error: 'event is older than what is kept' }
      const body = JSON.stringify(object)
      const { pathname, search } = new URL(claimed.url)
      const headers = signatureHeaders({
        endpointId,
        messageId,
        secrets: previous === null ? [secret] : [secret, previous],
        target: pathname + search,
        body,
        timestampS: Math.floor(atMs / 1_000),
        nonce: randomBytes(12).toString('hex'),
      })
      const timeoutMs = claimed.timeout_ms ?? this.#options.timeoutMs
      return await this.#sender.send({ address: claimed.url, headers, body, timeoutMs })
    } catch (error) {
      // a row that cannot be made into a request fails like one that is not answered, and ends by the schedule
      return { ...FAILED, error: String(error).slice(0, 200) }
    }
  }

  /** What an attempt says about its endpoint. */
  #heal(endpoint: Endpoint, outcome: Outcome, error: string): void {
    const { endpointId } = endpoint
    if (outcome.kind === 'delivered') {
      endpoint.failures = 0
      if (endpoint.failingSinceMs === undefined) return
      endpoint.failingSinceMs = undefined
      this.#note(markHealthy(this.#parts.sql, endpointId))
      return
    }
    endpoint.failures++
    if (outcome.kind === 'retry' && outcome.restMs > 0) this.#rest(endpoint, outcome.restMs)
    if (outcome.kind === 'gone') this.#stopEndpoint(endpoint, 'gone', 'answered 410')
    else if (endpoint.failingSinceMs === undefined) {
      endpoint.failingSinceMs = Date.now()
      this.#note(markFailing(this.#parts.sql, endpointId, error))
    } else if (Date.now() - endpoint.failingSinceMs > this.#options.disableAfterMs)
      this.#stopEndpoint(
        endpoint,
        'failing',
        `failed since ${new Date(endpoint.failingSinceMs).toISOString()}: ${error}`,
      )
  }

  /** Nothing more is sent from now on; the rows follow, also if the database is away at this moment. */
  #stopEndpoint(endpoint: Endpoint, reason: StopReason, detail: string): void {
    if (endpoint.restUntilMonoMs === Number.POSITIVE_INFINITY) return
    const { sql, log } = this.#parts
    const { endpointId } = endpoint
    endpoint.restUntilMonoMs = Number.POSITIVE_INFINITY
    const stop = async () => {
      while (!this.#isStopped) {
        // its last attempt is stored first, or the stop would cancel what has just ended
        await this.#store()
        try {
          if (await stopEndpoint(sql, endpointId, reason, detail))
            log.warn({ event: 'webhook.stopped', endpointId, reason: detail, msg: 'a webhook endpoint was stopped' })
          // the tenant's other endpoints are told
          this.wake()
          break
        } catch (error) {
          this.#trouble(error)
          await sleep(TROUBLE_MS)
        }
      }
      Object.assign(endpoint, { restUntilMonoMs: 0, failures: 0, failingSinceMs: undefined })
    }
    void stop()
  }

  /** What is worth a note is said again by the next attempt, if it cannot be stored now. */
  #note(work: Promise<unknown>): void {
    work.catch((error: unknown) => this.#trouble(error))
  }

  // ---- ends -----------------------------------------------------------------------------------------------------

  /** Stores what has ended, everything that piled up meanwhile with it, until nothing is left. */
  #store(): Promise<void> {
    this.#storing ??= this.#storeAll().finally(() => {
      this.#storing = undefined
    })
    return this.#storing
  }

  async #storeAll(): Promise<void> {
    // the ends of one turn together
    await new Promise(setImmediate)
    while (this.#ended.length > 0) {
      const ended = this.#ended.splice(0)
      try {
        await storeEnded(this.#parts.sql, this.#options.name, ended)
        for (const { delivery_id } of ended) this.#held.delete(delivery_id)
        this.wake()
      } catch (error) {
        this.#ended.unshift(...ended)
        this.#trouble(error)
        if (this.#isStopped) return
        await sleep(TROUBLE_MS)
      }
    }
  }
}

const FAILED = { status: undefined, retryAfter: undefined, durationMs: 0, answer: '' } as const
const RESULTS = {
  delivered: 'delivered',
  retry: 'failed',
  dead: 'dead',
  gone: 'stopped',
} as const satisfies Record<Outcome['kind'], AttemptResult>
const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))
