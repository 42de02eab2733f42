/**
 * What goes when it is old enough: commands with their fates, ended jobs, audit lines, ended sessions, what was put aside,
 * and devices that came once and meant nothing. Orders and settlements stay. Day partitions and events have ways of their
 * own (maintenance.ts). Thread: main.
 *
 * A command's Idempotency-Key goes with it: a repeat that comes later is a new request.
 */
import type { Config } from '../config/config.ts'
import type { RETENTION_TABLES } from '../metrics/catalogue.ts'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import type { Sql } from './database/connect.ts'

const DAY_MS = 86_400_000
/** Of one statement: a delete must not hold up the writers for long. */
const ROWS_MAX = 5_000

export type RetentionTable = (typeof RETENTION_TABLES)[number]

export type RetentionConfig = Pick<
  Config,
  | 'retentionDaysDead'
  | 'retentionDaysCommands'
  | 'retentionDaysJobs'
  | 'retentionDaysAudit'
  | 'retentionDaysSessions'
  | 'retentionDaysStrangers'
>

interface Rule {
  readonly table: RetentionTable
  readonly days: (config: RetentionConfig) => number
  /** Deletes some of what is older. @returns how many; fewer than ROWS_MAX: there were no more */
  readonly drop: (sql: Sql, before: Date) => Promise<number>
}

const RULES: readonly Rule[] = [
  {
    // the desk knows only commands without a fate; orders keep the number of theirs
    table: 'outbound_queue',
    days: ({ retentionDaysDead }) => retentionDaysDead,
    drop: async (sql, before) =>
      (
        await sql`
        delete from outbound_queue where command_id in (
          select command_id from outbound_queue where created_at < ${before} and finished_at < ${before}
            and status = ${COMMAND_STATUS.dead} limit ${ROWS_MAX})`
      ).count,
  },
  {
    // a job that goes on reads the fate of the command under way
    table: 'outbound_queue',
    days: ({ retentionDaysCommands }) => retentionDaysCommands,
    drop: async (sql, before) =>
      (
        await sql`
        delete from outbound_queue where command_id in (
          select q.command_id from outbound_queue q where q.created_at < ${before} and q.finished_at < ${before}
            and q.status > ${COMMAND_STATUS.sent} and q.status <> ${COMMAND_STATUS.dead}
            and not exists (select from job_devices d where d.command_id = q.command_id and d.state = 'running')
          limit ${ROWS_MAX})`
      ).count,
  },
  {
    table: 'jobs',
    days: ({ retentionDaysJobs }) => retentionDaysJobs,
    // one at a time: thousands of devices may hang on it
    drop: async (sql, before) => {
      const gone = await sql`
        delete from jobs where job_id in (
          select job_id from jobs where finished_at < ${before} order by finished_at limit 1)`
      return gone.count * ROWS_MAX
    },
  },
  {
    table: 'audit_logs',
    days: ({ retentionDaysAudit }) => retentionDaysAudit,
    drop: async (sql, before) =>
      (await sql`delete from audit_logs where id in (select id from audit_logs where at < ${before} limit ${ROWS_MAX})`)
        .count,
  },
  {
    table: 'sessions',
    days: ({ retentionDaysSessions }) => retentionDaysSessions,
    drop: async (sql, before) =>
      (
        await sql`
        delete from sessions where (device_id, epoch) in (
          select device_id, epoch from sessions where closed_at < ${before} limit ${ROWS_MAX})`
      ).count,
  },
  {
    table: 'quarantine',
    days: ({ retentionDaysDead }) => retentionDaysDead,
    drop: async (sql, before) =>
      (await sql`delete from quarantine where id in (select id from quarantine where at < ${before} limit ${ROWS_MAX})`)
        .count,
  },
  {
    // nobody has named it, charged there or commanded it: a scanner, a wrong number, a board on a desk
    table: 'devices',
    days: ({ retentionDaysStrangers }) => retentionDaysStrangers,
    drop: async (sql, before) => {
      const gone = await sql`
        with gone as (
          delete from devices where device_id in (
            select d.device_id from devices d
            where d.created_at < ${before} and d.last_seen_at < ${before} and d.protocol is not null
              and num_nonnulls(d.name, d.site, d.tariff, d.model_profile) = 0 and d.tenant_id = 'default'
              and not exists (select from orders o where o.device_id = d.device_id)
              and not exists (select from settlements s where s.device_id = d.device_id)
              and not exists (select from opaque_settlements s where s.device_id = d.device_id)
              and not exists (select from outbound_queue q where q.device_id = d.device_id)
              and not exists (select from sessions s where s.device_id = d.device_id and s.closed_at is null)
            limit ${ROWS_MAX} for update of d)
          returning device_id
        ), ports_gone as (delete from ports p using gone g where p.device_id = g.device_id),
        sockets_gone as (delete from gateway_sockets k using gone g where k.device_id = g.device_id)
        select device_id from gone`
      return gone.count
    },
  },
]

/**
 * @param dropped called with what each statement dropped
 * @throws when the database does not answer: what was dropped is dropped, the rest goes the next time
 */
export async function dropOld(
  sql: Sql,
  config: RetentionConfig,
  nowMs: number,
  dropped: (table: RetentionTable, rows: number) => void,
): Promise<void> {
  for (const { table, days, drop } of RULES) {
    const before = new Date(nowMs - days(config) * DAY_MS)
    for (;;) {
      const rows = await drop(sql, before)
      if (rows > 0) dropped(table, table === 'jobs' ? 1 : rows)
      if (rows < ROWS_MAX) break
    }
  }
}
