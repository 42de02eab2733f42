/**
 * What the database needs from us besides rows: day partitions ahead of time, old days dropped, sessions that nobody
 * ended closed. Thread: main, at start and once an hour.
 */
import type { Config } from '../config/config.ts'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import { dropDayPartitions, ensureDayPartitions } from './database/boots.ts'
import type { Sql } from './database/connect.ts'
import type { Log } from './log.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const DAYS_AHEAD = 3

export class Maintenance {
  readonly #sql: Sql
  readonly #config: Config
  readonly #log: Log
  #timer: NodeJS.Timeout | undefined

  constructor(sql: Sql, config: Config, log: Log) {
    this.#sql = sql
    this.#config = config
    this.#log = log
  }

  /** Before devices are accepted: today's partitions exist, sessions of earlier starts are over. */
  async prepare(): Promise<void> {
    await ensureDayPartitions(this.#sql, Date.now() - DAY_MS, DAYS_AHEAD + 1)
    // they ended when the process did; the last row we have of a device says when that was, at the latest now
    await this.#sql`
      update sessions set close_reason = 'gateway_ended', closed_at = greatest(sessions.opened_at, coalesce(
        (select d.last_seen_at from devices d where d.device_id = sessions.device_id), sessions.opened_at))
      where closed_at is null`
  }

  start(): void {
    this.#timer = setInterval(() => void this.#tidy(), HOUR_MS)
  }

  stop(): void {
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
      await this.#sql`delete from sessions where closed_at < ${new Date(before(config.retentionDaysSessions))}`
      await this.#sql`delete from events where at < ${new Date(before(config.retentionDaysEvents))}`
      // the desk knows only commands without a fate; orders keep the number of theirs
      await this.#sql`
        delete from outbound_queue where status = ${COMMAND_STATUS.dead}
          and finished_at < ${new Date(before(config.retentionDaysDead))}`
      await this.#sql`delete from quarantine where at < ${new Date(before(config.retentionDaysDead))}`
      if (dropped > 0) this.#log.info({ event: 'history.dropped', partitions: dropped, msg: 'old days dropped' })
    } catch (error) {
      this.#log.warn({ event: 'maintenance.failed', err: error, msg: 'tidying failed, next try in an hour' })
    }
  }

  /** A session thread died: the sessions it had opened are over. @param beforeEpoch taken when it was dead */
  async closeSessionsOf(shard: number, beforeEpoch: number): Promise<void> {
    try {
      await this.#sql`
        update sessions set closed_at = now(), close_reason = 'shard_lost'
        where closed_at is null and shard = ${shard}
          and epoch < ${beforeEpoch}`
    } catch (error) {
      this.#log.warn({
        event: 'sessions.unclosed',
        err: error,
        shard,
        msg: 'sessions of a dead shard stay open until restart',
      })
    }
  }
}
