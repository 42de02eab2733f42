/**
 * The event stream as subscribers get it: one poller on the `events` table for all of them, by cursor.
 *
 * Cursors become visible in their own order (trigger `events_in_order`), so a look that saw cursor 7 has seen everything
 * before it. Main wakes the poller when rows became durable; a timer looks all the same, because other processes insert
 * too. Without a user the poller rests and asks nothing.
 *
 * Thread: main.
 */
import { type EventColumns, eventObjectOf } from '../../events/event-object.ts'
import type { Sql } from '../database/connect.ts'
import { refuseDropped } from '../event-horizon.ts'
import type { StreamEvent } from './topics.ts'

export interface EventStreamOptions {
  readonly sql: Sql
  /** In order, none twice, none left out while there are users. */
  readonly onEvents: (events: readonly StreamEvent[]) => void
  /** The table cannot be asked; told at the first failure in a row. */
  readonly onTrouble?: (error: unknown) => void
  /** A look without being woken. */
  readonly everyMs?: number
  /** Least time between two looks, so that many small commits become one. */
  readonly gapMs?: number
  readonly pageEventsMax?: number
  /** Events kept in memory, so that whoever comes back soon needs no query. */
  readonly recentMax?: number
}

interface EventsRow extends EventColumns {
  readonly cursor: number | bigint
  readonly tenant_id: string
}

const RETRY_MS = 1_000

export class EventStream {
  readonly #options: Required<Omit<EventStreamOptions, 'onTrouble'>>
  readonly #onTrouble: (error: unknown) => void
  #users = 0
  /** Everything up to here was handed on; undefined: nobody asked yet. */
  #position: number | undefined
  #recent: StreamEvent[] = []
  /** Everything in the stream behind this cursor and up to the position is in `#recent`. */
  #recentFrom = 0
  #isLooking = false
  #isWanted = false
  #isTroubled = false
  #isStopped = false
  #lookedMonoMs = Number.NEGATIVE_INFINITY
  #timer: NodeJS.Timeout | undefined
  /** Wait for a look that begins after they came. */
  #waiters: { resolve: () => void; reject: (error: unknown) => void }[] = []

  constructor(options: EventStreamOptions) {
    const { sql, onEvents, onTrouble = () => {} } = options
    const { everyMs = 250, gapMs = 10, pageEventsMax = 1_000, recentMax = 4_096 } = options
    this.#options = { sql, onEvents, everyMs, gapMs, pageEventsMax, recentMax }
    this.#onTrouble = onTrouble
  }

  get position(): number | undefined {
    return this.#position
  }

  /** From the first to the last user the poller runs. */
  acquire(): void {
    if (this.#users++ === 0) this.wake()
  }

  release(): void {
    if (--this.#users > 0) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#position = undefined
    this.#recent = []
  }

  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
    this.#timer = undefined
    for (const { reject } of this.#waiters.splice(0)) reject(new Error('the event stream was stopped'))
  }

  /** Rows may have come. Cheap; call it as often as you like. */
  wake(): void {
    if (this.#users === 0 || this.#isStopped) return
    if (this.#isLooking) {
      this.#isWanted = true
      return
    }
    this.#plan(Math.max(0, this.#lookedMonoMs + this.#options.gapMs - performance.now()))
  }

  /**
   * Resolves when everything that was committed before the call is handed on.
   *
   * @throws what the database threw
   */
  refreshed(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#isStopped) return reject(new Error('the event stream was stopped'))
      this.#waiters.push({ resolve, reject })
      this.wake()
    })
  }

  /** The first `limit` events behind the cursor, from memory; undefined: not all up to the position are there. */
  recentAfter(cursor: number, limit: number): readonly StreamEvent[] | undefined {
    if (this.#position === undefined || cursor < this.#recentFrom) return undefined
    let low = 0
    let high = this.#recent.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#recent[middle]!.cursor > cursor) high = middle
      else low = middle + 1
    }
    return this.#recent.slice(low, low + limit)
  }

  /** @throws HttpError FAILED_PRECONDITION not everything behind the cursor is kept; what the database threw */
  async refuseDropped(tenant: string, after: number): Promise<void> {
    if (this.recentAfter(after, 0) === undefined) await refuseDropped(this.#options.sql, tenant, after)
  }

  /**
   * Events of one tenant behind the cursor, oldest first, from the database.
   *
   * @throws HttpError FAILED_PRECONDITION some of them were dropped meanwhile; what the database threw
   */
  async page(tenant: string, after: number, upTo: number, limit: number): Promise<StreamEvent[]> {
    const rows = await this.#options.sql<EventsRow[]>`
      select cursor, tenant_id, event_id, event_type, device_id, at, data from events
      where tenant_id = ${tenant} and cursor > ${after} and cursor <= ${upTo} order by cursor limit ${limit}`
    await refuseDropped(this.#options.sql, tenant, after)
    return rows.map(streamEventOf)
  }

  #plan(ms: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#look(), ms)
  }

  async #look(): Promise<void> {
    if (this.#isLooking || this.#users === 0 || this.#isStopped) return
    this.#isLooking = true
    this.#isWanted = false
    this.#lookedMonoMs = performance.now()
    const waiters = this.#waiters.splice(0)
    let isMore = false
    try {
      isMore = await this.#read()
      this.#isTroubled = false
      if (isMore) this.#waiters.unshift(...waiters)
      else for (const { resolve } of waiters) resolve()
    } catch (error) {
      if (!this.#isTroubled && !this.#isStopped) this.#onTrouble(error)
      this.#isTroubled = true
      for (const { reject } of waiters) reject(error)
    }
    this.#isLooking = false
    if (this.#users === 0 || this.#isStopped) return
    const { everyMs, gapMs } = this.#options
    if (this.#isTroubled) this.#plan(RETRY_MS)
    else if (isMore) this.#plan(0)
    else this.#plan(this.#isWanted || this.#waiters.length > 0 ? gapMs : everyMs)
  }

  /** @returns true: the page was full, there may be more */
  async #read(): Promise<boolean> {
    const { sql, onEvents, pageEventsMax, recentMax } = this.#options
    const after = this.#position
    if (after === undefined) {
      const [row] = await sql<{ cursor: number | bigint }[]>`select coalesce(max(cursor), 0) as cursor from events`
      // kept without a user, it would make the next one begin with everything since
      if (this.#users === 0) return false
      this.#position = Number(row!.cursor)
      this.#recentFrom = this.#position
      this.#recent = []
      return false
    }
    const rows = await sql<EventsRow[]>`
      select cursor, tenant_id, event_id, event_type, device_id, at, data from events
      where cursor > ${after} order by cursor limit ${pageEventsMax}`
    // the last user left meanwhile: whoever comes next starts anew
    if (rows.length === 0 || this.#position !== after) return false
    const events = rows.map(streamEventOf)
    this.#position = events.at(-1)!.cursor
    this.#recent.push(...events)
    // cut seldom: each cut copies what stays
    if (this.#recent.length > 2 * recentMax) {
      const gone = this.#recent.length - recentMax
      this.#recentFrom = this.#recent[gone - 1]!.cursor
      this.#recent = this.#recent.slice(gone)
    }
    onEvents(events)
    return rows.length === pageEventsMax
  }
}

function streamEventOf(row: EventsRow): StreamEvent {
  const cursor = Number(row.cursor)
  // the object once; what differs between topics stands before it
  const tail = `","cursor":"${cursor}","event":${JSON.stringify(eventObjectOf(row))}}`
  const frames = new Map<string, Uint8Array>()
  return {
    cursor,
    tenant: row.tenant_id,
    deviceId: row.device_id,
    eventType: row.event_type,
    frame(topic) {
      let frame = frames.get(topic)
      if (frame === undefined) {
        frame = Buffer.from(`{"op":"event","topic":"${topic}${tail}`)
        frames.set(topic, frame)
      }
      return frame
    },
  }
}
