/**
 * Subscribers of the WebSocket (contract 5): what each asked for, where in the stream each is, and who cannot keep up.
 *
 * A subscriber is live (told by the fan-out) or catching up (told from memory or the database at its own pace). It turns
 * live in the same turn of the loop in which it has been told everything up to the stream's position, so nothing is
 * missing and nothing comes twice. A live one for whom more than `bufferedBytesMax` would wait is told so and closed; so is
 * one that catches up and makes no room for the next 32 KiB within a minute: until then it only waits, at its own pace.
 *
 * Thread: main.
 */
import type { ApiKey } from '../../config/api-keys.ts'
import { HttpError, type HttpErrorCode } from '../../errors/errors.ts'
import type { PushSocket, SocketHandler } from '../admin/http-server.ts'
import type { EventStream } from './stream.ts'
import { isTopic, METRICS_TOPIC, type StreamEvent, TopicSet } from './topics.ts'

export interface PushHubOptions {
  readonly stream: EventStream
  /** What the topic `metrics` tells; asked once a second while somebody listens. */
  readonly figures: () => Readonly<Record<string, number>>
  readonly bufferedBytesMax: number
  readonly subscribersMax: number
  /** +1 or -1 */
  readonly onSubscribers: (change: number) => void
  /** Frames that a subscriber did not get because it was cut. */
  readonly onDropped: (frames: number) => void
  /** One was told to be lagging and closed. */
  readonly onCut?: (keyId: string) => void
  /** Catching up: without room for so long it is lagging; default 60,000. */
  readonly catchUpStallMs?: number
}

export const TOPICS_MAX = 100
/** Longest message of a subscriber; a longer one closes the socket. */
export const PUSH_PAYLOAD_BYTES_MAX = 65_536
export const CLOSE_LAGGING = 4008
const CLOSE_GOING_AWAY = 1001
const CLOSE_POLICY = 1008
const FIGURES_MS = 1_000
/** Operations that may wait for a subscriber's own catching up. */
const WAITING_OPS_MAX = 16
/** A peer that talks nonsense this often is no subscriber. */
const ERRORS_MAX = 100
/** Catching up: so much leaves with one system call. */
const GROUP_BYTES = 32_768
const PAGE_EVENTS = 200
const CATCH_UP_STALL_MS = 60_000
const LAGGING = Buffer.from('{"op":"lagging"}')

/** Above the bound, so that `lagging` always fits. */
const HARD_BOUND_SLACK_BYTES = 131_072

interface Subscribe {
  readonly op: 'subscribe'
  readonly topics: readonly string[]
  readonly after: number | undefined
}
interface Unsubscribe {
  readonly op: 'unsubscribe'
  readonly topics: readonly string[]
}
type Operation = Subscribe | Unsubscribe | { readonly op: 'ping' }

/** Subscribers of one tenant, by how events find them. */
interface Tenant {
  readonly wide: Set<Subscriber>
  readonly byDevice: Map<string, Set<Subscriber>>
}

export class PushHub {
  readonly #options: PushHubOptions
  readonly #subscribers = new Set<Subscriber>()
  readonly #tenants = new Map<string, Tenant>()
  #accepted = 0
  #isClosed = false
  readonly #timer: NodeJS.Timeout

  constructor(options: PushHubOptions) {
    this.#options = options
    this.#timer = setInterval(() => this.#tellFigures(), FIGURES_MS)
    this.#timer.unref()
  }

  /** For the server behind us. */
  get bufferedBytesHardMax(): number {
    return this.#options.bufferedBytesMax + HARD_BOUND_SLACK_BYTES
  }

  /** @throws HttpError UNAVAILABLE no room for one more */
  accept(key: ApiKey): SocketHandler {
    const { subscribersMax, stream, onSubscribers } = this.#options
    if (this.#isClosed) throw new HttpError('UNAVAILABLE', 'stopping')
    if (this.#accepted >= subscribersMax)
      throw new HttpError('UNAVAILABLE', `there are ${subscribersMax} subscribers already`, {
        subscribers_max: subscribersMax,
      })
    this.#accepted++
    let subscriber: Subscriber | undefined
    return {
      opened: (socket) => {
        subscriber = new Subscriber(key, socket, this.#options, (one, before) => this.#index(one, before))
        this.#subscribers.add(subscriber)
        stream.acquire()
        onSubscribers(1)
      },
      received: (text) => subscriber?.received(text),
      drained: () => subscriber?.drained(),
      closed: () => {
        this.#accepted--
        if (subscriber === undefined) return
        this.#subscribers.delete(subscriber)
        subscriber.closed()
        stream.release()
        onSubscribers(-1)
      },
    }
  }

  /** Hands events on to whoever is live. Called by the stream. */
  tell(events: readonly StreamEvent[]): void {
    const touched = new Set<Subscriber>()
    for (const event of events) {
      const tenant = this.#tenants.get(event.tenant)
      if (tenant === undefined) continue
      for (const subscriber of tenant.wide) if (subscriber.offer(event)) touched.add(subscriber)
      for (const subscriber of tenant.byDevice.get(event.deviceId) ?? [])
        if (subscriber.offer(event)) touched.add(subscriber)
    }
    for (const subscriber of touched) subscriber.flush()
  }

  /** Says goodbye to everybody; nobody else is accepted. */
  close(): void {
    this.#isClosed = true
    clearInterval(this.#timer)
    for (const subscriber of [...this.#subscribers]) subscriber.end(CLOSE_GOING_AWAY, 'the gateway stops')
  }

  #tellFigures(): void {
    const listeners = [...this.#subscribers].filter(({ topics }) => topics.has(METRICS_TOPIC))
    if (listeners.length === 0) return
    const event = {
      event_type: METRICS_TOPIC,
      timestamp: Math.floor(Date.now() / 1_000),
      data: this.#options.figures(),
    }
    const frame = Buffer.from(JSON.stringify({ op: 'event', topic: METRICS_TOPIC, cursor: null, event }))
    for (const subscriber of listeners) subscriber.send([frame])
  }

  #index(subscriber: Subscriber, before: TopicSet): void {
    const { tenant: name } = subscriber.key
    let tenant = this.#tenants.get(name)
    if (tenant === undefined) {
      tenant = { wide: new Set(), byDevice: new Map() }
      this.#tenants.set(name, tenant)
    }
    for (const id of before.deviceIds) {
      const others = tenant.byDevice.get(id)
      others?.delete(subscriber)
      if (others?.size === 0) tenant.byDevice.delete(id)
    }
    for (const id of subscriber.topics.deviceIds) {
      const others = tenant.byDevice.get(id)
      if (others === undefined) tenant.byDevice.set(id, new Set([subscriber]))
      else others.add(subscriber)
    }
    if (subscriber.topics.hasWildcard) tenant.wide.add(subscriber)
    else tenant.wide.delete(subscriber)
  }
}

class Subscriber {
  readonly key: ApiKey
  topics = new TopicSet()
  readonly #socket: PushSocket
  readonly #options: PushHubOptions
  readonly #onTopics: (subscriber: Subscriber, before: TopicSet) => void
  #isClosed = false
  #isLive = false
  /** Live: told everything up to here at least. */
  #position = 0
  /** Frames of the events being fanned out. */
  #frames: Uint8Array[] = []
  readonly #waiting: Operation[] = []
  #isBusy = false
  #errors = 0
  #wake: (() => void) | undefined

  constructor(
    key: ApiKey,
    socket: PushSocket,
    options: PushHubOptions,
    onTopics: (subscriber: Subscriber, before: TopicSet) => void,
  ) {
    this.key = key
    this.#socket = socket
    this.#options = options
    this.#onTopics = onTopics
  }

  // ---- what comes in ---------------------------------------------------------------------------------------------

  received(text: string): void {
    if (this.#isClosed) return
    let operation: Operation
    try {
      operation = operationOf(text)
    } catch (error) {
      this.#refuse(error)
      return
    }
    if (operation.op === 'ping') {
      this.#say({ op: 'pong' })
      return
    }
    if (this.#waiting.length >= WAITING_OPS_MAX) {
      this.#refuse(new HttpError('TOO_MANY_REQUESTS', 'wait for the answers to earlier operations'))
      return
    }
    this.#waiting.push(operation)
    if (!this.#isBusy) void this.#work()
  }

  async #work(): Promise<void> {
    this.#isBusy = true
    for (let next = this.#waiting.shift(); next !== undefined && !this.#isClosed; next = this.#waiting.shift())
      try {
        if (next.op === 'subscribe') await this.#subscribe(next)
        else if (next.op === 'unsubscribe') this.#unsubscribe(next)
      } catch (error) {
        this.#refuse(error)
      }
    this.#isBusy = false
  }

  async #subscribe({ topics, after }: Subscribe): Promise<void> {
    const { stream } = this.#options
    const wanted = new TopicSet([...this.topics.list(), ...topics])
    if (wanted.size > TOPICS_MAX) throw new HttpError('INVALID_ARGUMENT', `at most ${TOPICS_MAX} topics per connection`)
    // a cursor from the API may be a moment ahead of the poller
    if (stream.position === undefined || (after !== undefined && after > stream.position))
      try {
        await stream.refreshed()
      } catch (error) {
        throw new HttpError('UNAVAILABLE', 'the database is away', {}, error)
      }
    if (after !== undefined)
      try {
        await stream.refuseDropped(this.key.tenant, after)
      } catch (error) {
        if (error instanceof HttpError) throw error
        throw new HttpError('UNAVAILABLE', 'the database is away', {}, error)
      }
    if (this.#isClosed) return
    const position = stream.position
    // the poller began anew meanwhile: nobody else was subscribed
    if (position === undefined) throw new HttpError('UNAVAILABLE', 'the database is away')
    if (after !== undefined && after > position)
      throw new HttpError('INVALID_ARGUMENT', 'after: ahead of the stream; it belongs to another gateway')
    const known = this.topics
    const wasLive = this.#isLive
    this.topics = wanted
    this.#onTopics(this, known)
    this.#say({ op: 'subscribed', topics: wanted.list(), cursor: String(after ?? position) })
    if (!wanted.hasEvents) return
    if (after !== undefined) {
      this.#isLive = false
      // what it was told under its earlier topics is not told again
      await this.#catchUp(after, (event) => wasLive && event.cursor <= position && known.topicOf(event) !== undefined)
    } else if (!wasLive) {
      this.#position = position
      this.#isLive = true
    }
  }

  #unsubscribe({ topics }: Unsubscribe): void {
    const known = this.topics
    const left = new TopicSet(known.list())
    for (const topic of topics) left.delete(topic)
    this.topics = left
    if (!left.hasEvents) this.#isLive = false
    this.#onTopics(this, known)
    this.#say({ op: 'unsubscribed', topics: left.list() })
  }

  /** @param isKnown events to leave out */
  async #catchUp(after: number, isKnown: (event: StreamEvent) => boolean): Promise<void> {
    const { stream, bufferedBytesMax } = this.#options
    let told = after
    for (;;) {
      let events = stream.recentAfter(told, PAGE_EVENTS)
      const isRecent = events !== undefined
      const upTo = stream.position
      if (upTo === undefined) await this.#refreshed()
      else if (events === undefined) {
        try {
          events = await stream.page(this.key.tenant, told, upTo, PAGE_EVENTS)
        } catch (error) {
          // dropped between two pages: it was told of a part, and hears why it ends
          if (error instanceof HttpError) this.#refuse(error)
          this.end(1013, error instanceof HttpError ? 'events dropped' : 'the database is away')
          throw error
        }
        if (events.length < PAGE_EVENTS) told = Math.max(told, upTo)
      }
      if (this.#isClosed) return
      const group: Uint8Array[] = []
      let bytes = 0
      // no more than a page: whoever stalls would keep all of them alive, long after the stream has let go of them
      let isCutShort = events?.length === PAGE_EVENTS
      for (const event of events ?? []) {
        if (bytes >= GROUP_BYTES && isRecent) {
          isCutShort = true
          break
        }
        // a page of the database is sent in groups, too: it may be much larger than the bound
        if (bytes >= GROUP_BYTES) {
          this.#sendUnbounded(group.splice(0))
          bytes = 0
          if (!(await this.#roomBelow(bufferedBytesMax / 4))) return
        }
        if (isRecent) told = event.cursor
        else told = Math.max(told, event.cursor)
        if (event.tenant !== this.key.tenant || isKnown(event)) continue
        const topic = this.topics.topicOf(event)
        if (topic === undefined) continue
        const frame = event.frame(topic)
        group.push(frame)
        bytes += frame.length
      }
      this.#sendUnbounded(group)
      if (this.#isClosed) return
      if (isRecent && !isCutShort) {
        // nothing was awaited since the stream was asked: from here on the fan-out goes on
        this.#position = Math.max(told, stream.position ?? told)
        this.#isLive = true
        return
      }
      if (!(await this.#roomBelow(bufferedBytesMax / 4))) return
    }
  }

  async #refreshed(): Promise<void> {
    await this.#options.stream.refreshed().catch(() => {
      this.end(1013, 'the database is away')
    })
  }

  /** @returns false: closed meanwhile, also because it made no room in time */
  async #roomBelow(bytes: number): Promise<boolean> {
    if (this.#isClosed || this.#socket.bufferedBytes <= bytes) return !this.#isClosed
    const stalled = setTimeout(() => this.#cut(), this.#options.catchUpStallMs ?? CATCH_UP_STALL_MS)
    while (!this.#isClosed && this.#socket.bufferedBytes > bytes)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    clearTimeout(stalled)
    return !this.#isClosed
  }

  // ---- what goes out ---------------------------------------------------------------------------------------------

  /** @returns true: it is for this one, `flush` sends it */
  offer(event: StreamEvent): boolean {
    if (!this.#isLive || event.cursor <= this.#position) return false
    const topic = this.topics.topicOf(event)
    if (topic === undefined) return false
    this.#position = event.cursor
    this.#frames.push(event.frame(topic))
    return true
  }

  flush(): void {
    const frames = this.#frames
    this.#frames = []
    this.send(frames)
  }

  /** Within the bound, or cut. */
  send(frames: readonly Uint8Array[]): void {
    if (this.#isClosed) return
    const { bufferedBytesMax, onDropped } = this.#options
    let sent = 0
    let corkedBytes = 0
    let isFull = false
    const buffered = this.#socket.bufferedBytes
    this.#socket.cork(() => {
      for (const frame of frames) {
        // what is corked is not counted as buffered yet, and may never be
        const waiting = Math.max(this.#socket.bufferedBytes, buffered > 0 ? buffered + corkedBytes : 0)
        if (waiting + frame.length > bufferedBytesMax || this.#socket.send(frame) < 0) {
          isFull = true
          return
        }
        corkedBytes += frame.length
        sent++
      }
    })
    if (!isFull) return
    onDropped(frames.length - sent)
    this.#cut()
  }

  #cut(): void {
    if (this.#isClosed) return
    this.#options.onCut?.(this.key.id)
    this.#socket.send(LAGGING)
    this.end(CLOSE_LAGGING, 'lagging')
  }

  /** For catching up, which waits for room between groups. */
  #sendUnbounded(frames: readonly Uint8Array[]): void {
    if (frames.length === 0 || this.#isClosed) return
    let isSent = true
    this.#socket.cork(() => {
      for (const frame of frames) isSent &&= this.#socket.send(frame) >= 0
    })
    // beyond the hard bound: one event larger than everything allowed
    if (!isSent) this.end(CLOSE_LAGGING, 'lagging')
  }

  #say(answer: Readonly<Record<string, unknown>>): void {
    this.send([Buffer.from(JSON.stringify(answer))])
  }

  #refuse(error: unknown): void {
    const code: HttpErrorCode = error instanceof HttpError ? error.code : 'INTERNAL_ERROR'
    const message = error instanceof HttpError ? error.message : 'the gateway failed'
    const details =
      error instanceof HttpError && Object.keys(error.details).length > 0 ? { details: error.details } : {}
    this.#say({ op: 'error', error: { code, message, ...details } })
    if (++this.#errors >= ERRORS_MAX) this.end(CLOSE_POLICY, 'too many errors')
  }

  drained(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  end(code: number, reason: string): void {
    if (this.#isClosed) return
    // the server calls `closed` before this returns
    this.#socket.end(code, reason)
  }

  closed(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#isLive = false
    this.#waiting.length = 0
    const known = this.topics
    this.topics = new TopicSet()
    this.#onTopics(this, known)
    this.drained()
  }
}

/** @throws HttpError INVALID_ARGUMENT */
function operationOf(text: string): Operation {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new HttpError('INVALID_ARGUMENT', 'a message is one JSON object')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new HttpError('INVALID_ARGUMENT', 'a message is one JSON object')
  const { op, topics, after } = value as Readonly<Record<string, unknown>>
  if (op === 'ping') return { op }
  if (op !== 'subscribe' && op !== 'unsubscribe')
    throw new HttpError('INVALID_ARGUMENT', 'op: one of subscribe, unsubscribe, ping')
  if (!Array.isArray(topics) || topics.length === 0 || topics.length > TOPICS_MAX)
    throw new HttpError('INVALID_ARGUMENT', `topics: a list of 1 to ${TOPICS_MAX}`)
  for (const topic of topics as unknown[])
    if (typeof topic !== 'string' || !isTopic(topic))
      throw new HttpError(
        'INVALID_ARGUMENT',
        `topics: ${typeof topic === 'string' ? JSON.stringify(topic.slice(0, 100)) : typeof topic} is none of device/<id>, device/*, order/*, alarm/*, metrics`,
      )
  if (op === 'unsubscribe') return { op, topics: topics as string[] }
  return { op, topics: topics as string[], after: afterOf(after) }
}

function afterOf(after: unknown): number | undefined {
  if (after === undefined || after === null) return undefined
  const cursor = typeof after === 'string' && /^\d{1,16}$/.test(after) ? Number(after) : after
  if (typeof cursor !== 'number' || !Number.isSafeInteger(cursor) || cursor < 0)
    throw new HttpError('INVALID_ARGUMENT', 'after: the cursor of an event')
  return cursor
}
