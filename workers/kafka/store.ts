/** Every statement on `kafka_positions`, and the events behind one. Thread: kafka. */
import type { EventColumns } from '../../src/events/event-object.ts'
import type { Sql } from '../../src/main/database/connect.ts'

/** The right to move the position of a topic; whoever takes it later makes this one useless. */
export interface Hold {
  /** Everything up to here was acknowledged by the brokers, or refused and counted. */
  readonly cursor: number
  /** Fencing token. */
  readonly epoch: number
}

export interface Holder {
  readonly topic: string
  /** Stable over restarts of the same gateway, different for every other one. */
  readonly name: string
  /** Where a topic begins that has no position yet. */
  readonly from: 'oldest' | 'new'
  /** Another gateway may take over after this long without a renewal. */
  readonly leaseMs: number
}

/** @returns undefined: another gateway has it */
export async function takePosition(sql: Sql, { topic, name, from, leaseMs }: Holder): Promise<Hold | undefined> {
  await sql`
    insert into kafka_positions (topic, cursor)
    select ${topic}, case when ${from === 'new'} then coalesce((select max(cursor) from events), 0) else 0 end
    on conflict (topic) do nothing`
  const [taken] = await sql<Hold[]>`
    update kafka_positions
    set epoch = epoch + 1, holder = ${name}, held_until = now() + ${leaseMs} * interval '1 ms', updated_at = now()
    where topic = ${topic} and (holder is null or holder = ${name} or held_until < now())
    returning cursor, epoch`
  return taken
}

/**
 * Moves the position, never backwards, and renews the hold; the same cursor only renews.
 *
 * @returns false: somebody has taken the position over, nothing was changed
 */
export async function movePosition(
  sql: Sql,
  { topic, leaseMs }: Holder,
  { epoch }: Hold,
  cursor: number,
): Promise<boolean> {
  const moved = await sql`
    update kafka_positions
    set cursor = ${cursor}, held_until = now() + ${leaseMs} * interval '1 ms', updated_at = now()
    where topic = ${topic} and epoch = ${epoch} and cursor <= ${cursor}`
  return moved.count === 1
}

/** Another gateway need not wait for the end of the hold. */
export async function releasePosition(sql: Sql, { topic }: Holder, { epoch }: Hold): Promise<void> {
  await sql`update kafka_positions set holder = null, held_until = null where topic = ${topic} and epoch = ${epoch}`
}

export interface EventRow extends EventColumns {
  readonly cursor: number
  readonly tenant_id: string
}

export interface Page {
  /** Oldest first; none is left out, because cursors become visible in their own order (trigger `events_in_order`). */
  readonly rows: readonly EventRow[]
  /** The highest cursor that retention has dropped; undefined: none behind `after`. */
  readonly droppedCursor: number | undefined
}

export async function readAfter(sql: Sql, after: number, eventsMax: number): Promise<Page> {
  const rows = await sql<EventRow[]>`
    select cursor, tenant_id, event_id, event_type, device_id, at, data from events
    where cursor > ${after} order by cursor limit ${eventsMax}`
  if (rows.length === 0) return { rows, droppedCursor: undefined }
  // asked after the rows: what was dropped before they were read has been noted by now
  const [gone] = await sql<{ cursor: number | null }[]>`
    select max(dropped_cursor) as cursor from event_horizons where dropped_cursor > ${after}`
  return { rows, droppedCursor: gone?.cursor ?? undefined }
}

export interface Lag {
  /** Behind the position, not more than LAG_EVENTS_MAX are counted. */
  readonly events: number
  /** Age of the oldest of them since its commit; 0: none. */
  readonly seconds: number
}

export const LAG_EVENTS_MAX = 100_000

/** Whoever holds the position. */
export async function measureLag(sql: Sql, topic: string): Promise<Lag | undefined> {
  const [lag] = await sql<Lag[]>`
    select
      (select count(*)::int from (select from events where cursor > p.cursor limit ${LAG_EVENTS_MAX}) as n) as events,
      coalesce((select greatest(0, extract(epoch from now() - coalesce(stored_at, at)))
        from events where cursor > p.cursor order by cursor limit 1), 0)::float8 as seconds
    from kafka_positions p where p.topic = ${topic}`
  return lag
}
