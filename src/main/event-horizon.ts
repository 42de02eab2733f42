/**
 * Where the kept part of the event stream begins, for each tenant. Retention notes in `event_horizons` what it drops, in
 * the same transaction, so that whoever resumes behind that is told instead of missing events without a word.
 * Thread: main.
 */
import { HttpError } from '../errors/errors.ts'
import type { Sql } from './database/connect.ts'

/** Rows looked at per transaction: a delete must not hold up the writers for long. */
const DROP_ROWS = 10_000

/**
 * Drops the beginning of the stream, up to the first event that was stored at `before` or later: what is kept has no gap.
 *
 * @returns how many
 */
export async function dropEvents(sql: Sql, before: Date): Promise<number> {
  for (let dropped = 0; ; ) {
    const [row] = await sql<{ gone: number }[]>`
      with looked as (
        select cursor, coalesce(stored_at, at) >= ${before} as is_kept from events order by cursor limit ${DROP_ROWS}
      ), gone as (
        delete from events e using looked l where e.cursor = l.cursor
          and l.cursor < coalesce((select min(cursor) from looked where is_kept), l.cursor + 1)
        returning e.tenant_id, e.cursor
      ), noted as (
        insert into event_horizons (tenant_id, dropped_cursor) select tenant_id, max(cursor) from gone group by tenant_id
        on conflict (tenant_id) do update set
          dropped_cursor = greatest(event_horizons.dropped_cursor, excluded.dropped_cursor), dropped_at = now()
      )
      select count(*)::int as gone from gone`
    dropped += row!.gone
    if (row!.gone < DROP_ROWS) return dropped
  }
}

/**
 * Call it after the events were read: what was dropped before they were read has been noted by now.
 *
 * @param after 0 asks for the oldest kept, and is always right
 * @throws HttpError FAILED_PRECONDITION events between `after` and the oldest kept are gone
 */
export async function refuseDropped(sql: Sql, tenant: string, after: number): Promise<void> {
  if (after === 0) return
  const [row] = await sql<{ dropped_cursor: number }[]>`
    select dropped_cursor from event_horizons where tenant_id = ${tenant} and dropped_cursor > ${after}`
  if (row === undefined) return
  const dropped = String(row.dropped_cursor)
  throw new HttpError(
    'FAILED_PRECONDITION',
    `events behind ${after} are no longer kept: go on from ${dropped}, and look for what was missed by other means`,
    { reason: 'events_dropped', after: String(after), dropped_cursor: dropped },
  )
}
