/** What main asks of the database once per start and once an hour. Thread: main; everything throws when it is away. */
import type { Sql } from './connect.ts'

/**
 * Takes the next generation number, which no earlier or concurrent start has: an epoch of this start is larger than
 * any epoch of an earlier one (EPOCHS_PER_GENERATION in src/shared/directory-layout.ts).
 */
export async function takeGeneration(sql: Sql, boot: { host: string; pid: number; release: string }): Promise<number> {
  const [row] = await sql<{ generation: number }[]>`
    insert into gateway_boots (host, pid, release) values (${boot.host}, ${boot.pid}, ${boot.release})
    returning generation`
  return row!.generation
}

/** Notes that this start ended in order. */
export async function endGeneration(sql: Sql, generation: number): Promise<void> {
  await sql`update gateway_boots set stopped_at = now() where generation = ${generation}`
}

/** Makes the day partitions (UTC) of cmd_log and port_samples; days that exist are left alone. @returns how many were made */
export async function ensureDayPartitions(sql: Sql, fromMs: number, days: number): Promise<number> {
  const day = (ms: number) => new Date(ms).toISOString().slice(0, 10)
  const [row] = await sql<{ made: number }[]>`
    select ensure_day_partitions(${day(fromMs)}::date, ${day(fromMs + (days - 1) * 86_400_000)}::date) as made`
  return row!.made
}

/** Drops the days (UTC) that lie wholly before `beforeMs`. @returns how many partitions were dropped */
export async function dropDayPartitions(
  sql: Sql,
  table: 'cmd_log' | 'port_samples',
  beforeMs: number,
): Promise<number> {
  const day = new Date(beforeMs).toISOString().slice(0, 10)
  const [row] = await sql<{ dropped: number }[]>`select drop_day_partitions(${table}, ${day}::date) as dropped`
  return row!.dropped
}
