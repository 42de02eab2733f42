/**
 * What the database needs from us besides rows: day partitions ahead of time, old days dropped, sessions that nobody
 * ended closed. Thread: main, at start and once an hour.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { insertDerivedEvents } from '../../workers/writer/insert.ts'
import type { DerivedEvent } from '../../workers/writer/order-book.ts'
import type { Config } from '../config/config.ts'
import { eventIdOf } from '../events/event-id.ts'
import type { EventType } from '../events/event-object.ts'
import { EPOCHS_PER_GENERATION } from '../shared/directory-layout.ts'
import { dropDayPartitions, ensureDayPartitions } from './database/boots.ts'
import type { Sql, TransactionSql } from './database/connect.ts'
import { dropEvents } from './event-horizon.ts'
import type { Log } from './log.ts'
import { dropOld, type RetentionTable } from './retention.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const DAYS_AHEAD = 3
/** Devices come back first. */
const FIRST_TIDY_MS = 3_000
/** Sessions closed in one transaction: their devices are locked, and writers wait for them. */
const CLOSE_SESSIONS_MAX = 500
const LOST_LOOK_MS = 100
/** Rows of a dead shard that are not written by then come later, by the spool: the hourly look finds them. */
const LOST_ROWS_MS_MAX = 10_000
const LOST_RETRY_MS = 5_000

/** Sessions of which nobody will tell the end. */
interface Lost {
  /** Undefined: of every shard. */
  readonly shard: number | undefined
  /** All of theirs are smaller. */
  readonly beforeEpoch: number
  readonly reason: 'gateway_ended' | 'shard_lost'
}

export class Maintenance {
  readonly #sql: Sql
  readonly #config: Config
  readonly #log: Log
  #timer: NodeJS.Timeout | undefined
  #isStopped = false
  readonly #lost: Lost[]
  readonly #onDropped: (table: RetentionTable, rows: number) => void
  #firstTimer: NodeJS.Timeout | undefined

  /** @param generation of this start: every epoch of an earlier one is smaller than its first */
  constructor(
    sql: Sql,
    config: Config,
    log: Log,
    generation: number,
    onDropped: (table: RetentionTable, rows: number) => void,
  ) {
    this.#onDropped = onDropped
    this.#sql = sql
    this.#config = config
    this.#log = log
    this.#lost = [{ shard: undefined, beforeEpoch: generation * EPOCHS_PER_GENERATION, reason: 'gateway_ended' }]
  }

  /** Before devices are accepted: today's partitions exist, sessions of earlier starts are over. */
  async prepare(): Promise<void> {
    await ensureDayPartitions(this.#sql, Date.now() - DAY_MS, DAYS_AHEAD + 1)
    for (const lost of this.#lost) await closeLost(this.#sql, lost)
  }

  start(): void {
    // a gateway that is restarted every day tidies too
    this.#firstTimer = setTimeout(() => void this.#tidy(), FIRST_TIDY_MS)
    this.#timer = setInterval(() => void this.#tidy(), HOUR_MS)
  }

  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#firstTimer)
    clearInterval(this.#timer)
  }

  async #tidy(): Promise<void> {
    const config = this.#config
    const before = (days: number) => Date.now() - days * DAY_MS
    try {
      await ensureDayPartitions(this.#sql, Date.now(), DAYS_AHEAD)
      const dropped =
        (await dropDayPartitions(this.#sql, 'cmd_log', before(config.retentionDaysCmdLog))) +
        (await dropDayPartitions(this.#sql, 'port_samples', before(config.retentionDaysPortSamples)))
      // rows that opened a session may have come out of the spool since
      for (const lost of this.#lost) await closeLost(this.#sql, lost)
      const events = await dropEvents(this.#sql, new Date(before(config.retentionDaysEvents)))
      if (events > 0) this.#onDropped('events', events)
      await dropOld(this.#sql, config, Date.now(), this.#onDropped)
      if (dropped > 0) this.#log.info({ event: 'history.dropped', partitions: dropped, msg: 'old days dropped' })
    } catch (error) {
      this.#log.warn({ event: 'maintenance.failed', err: error, msg: 'tidying failed, next try in an hour' })
    }
  }

  /**
   * A session thread died: the sessions it had opened are over. Never rejects.
   *
   * @param beforeEpoch taken when it was dead
   * @param isWritten its rows are in the database or in the spool: also sessions that it opened in its last moment are known
   */
  async closeSessionsOf(shard: number, beforeEpoch: number, isWritten: () => boolean): Promise<void> {
    const lost: Lost = { shard, beforeEpoch, reason: 'shard_lost' }
    // one per shard is enough: a later death includes an earlier one
    const known = this.#lost.findIndex((one) => one.shard === shard)
    this.#lost.splice(known < 0 ? this.#lost.length : known, known < 0 ? 0 : 1, lost)
    const untilMonoMs = performance.now() + LOST_ROWS_MS_MAX
    while (!isWritten() && !this.#isStopped && performance.now() < untilMonoMs)
      await sleep(LOST_LOOK_MS, undefined, { ref: false })
    for (let isTold = false; !this.#isStopped; isTold = true)
      try {
        return await closeLost(this.#sql, lost)
      } catch (error) {
        const msg = 'sessions of a dead shard stay open until the database can be asked'
        if (!isTold) this.#log.warn({ event: 'sessions.unclosed', err: error, shard, msg })
        await sleep(LOST_RETRY_MS, undefined, { ref: false })
      }
  }
}

/** Closes them and tells `device.offline` of every device that has no newer session, in the same transaction. */
async function closeLost(sql: Sql, lost: Lost): Promise<void> {
  while ((await sql.begin((tx) => closeSome(tx, lost))) === CLOSE_SESSIONS_MAX);
}

async function closeSome(tx: TransactionSql, { shard, beforeEpoch, reason }: Lost): Promise<number> {
  const open = await tx<{ device_id: string; epoch: number }[]>`
    select device_id, epoch from sessions
    where closed_at is null and epoch < ${beforeEpoch} ${shard === undefined ? tx`` : tx`and shard = ${shard}`}
    order by device_id, epoch limit ${CLOSE_SESSIONS_MAX}`
  if (open.length === 0) return 0
  const ids = open.map((session) => session.device_id)
  // the writers' order of locks: whoever holds a device is alone with its sessions
  await tx`select from devices where device_id = any(${ids}) order by device_id for no key update`
  // an earlier start ended when the process did; the last row we have of a device says when that was, at the latest now
  const closedAt =
    reason === 'gateway_ended'
      ? tx`greatest(s.opened_at, coalesce(d.last_seen_at, s.opened_at))`
      : tx`greatest(s.opened_at, now())`
  const closed = await tx<ClosedSession[]>`
    update sessions s set close_reason = ${reason}, closed_at = ${closedAt}
    from unnest(${ids}::text[], ${open.map(({ epoch }) => epoch)}::bigint[]) as i (device_id, epoch)
    left join devices d on d.device_id = i.device_id
    where s.device_id = i.device_id and s.epoch = i.epoch and s.closed_at is null
    returning s.device_id, s.epoch, s.protocol, s.opened_at, s.closed_at,
      coalesce(d.epoch, 0) <= s.epoch and not exists (
        select from sessions n where n.device_id = s.device_id and n.epoch > s.epoch) as is_last`
  await insertDerivedEvents(
    tx,
    closed.filter(({ is_last }) => is_last).map((session) => offlineEvent(session, reason)),
  )
  return open.length
}

interface ClosedSession {
  readonly device_id: string
  readonly epoch: number
  readonly protocol: string
  readonly opened_at: Date
  readonly closed_at: Date
  readonly is_last: boolean
}

/** The same event that the session's own end would have told (workers/writer/insert.ts). */
function offlineEvent(
  { device_id, epoch, protocol, opened_at, closed_at }: ClosedSession,
  reason: string,
): DerivedEvent {
  const eventType: EventType = 'device.offline'
  const atMs = closed_at.getTime()
  const onlineS = Math.max(0, Math.round((atMs - opened_at.getTime()) / 1_000))
  return {
    eventId: eventIdOf(eventType, device_id, epoch),
    eventType,
    deviceId: device_id,
    epoch,
    orderKey: null,
    atMs,
    data: { protocol, reason, online_s: onlineS },
  }
}
