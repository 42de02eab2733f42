/**
 * Every statement on `webhook_deliveries`. Threads: relay; main for what an operator asks (redelivery, tests, stops).
 *
 * What always holds, per endpoint and lane: at most one pending delivery has a `next_attempt_at`, and it is the one with
 * the lowest id. Whoever adds or cancels takes `lock_webhook_lanes(true)`, whoever ends one takes it shared (0006).
 */
import { eventIdOf } from '../../src/events/event-id.ts'
import type { EventType } from '../../src/events/event-object.ts'
import type { Sql, TransactionSql } from '../../src/main/database/connect.ts'

export const FAN_OUT = 'fan-out'

/**
 * Settings of the relay's connections.
 *
 * Plans: the tables are a queue, and what a statement touches is a few rows found by index, however many there are. A plan
 * that was made while they were empty reads all of them for every row, until statistics come a minute later (deliveries were
 * 14 s to 100 s late after a burst of 8,000 events): so plans are made anew for the size of the moment, without joins that
 * read a whole table.
 *
 * Commits: not waited for. What a crash of the server takes back, be it a fan-out with its position, a claim or an end, is
 * done again, and the receiver knows it by its event_id. A stop waits for its commit (stopEndpoint).
 */
export const RELAY_SETTINGS = {
  plan_cache_mode: 'force_custom_plan',
  enable_seqscan: 'off',
  enable_hashjoin: 'off',
  enable_mergejoin: 'off',
  jit: 'off',
  synchronous_commit: 'off',
} as const

/** SQL of the lane of an event `e`: its device, and with it its order (contract 4: in order per order and device). */
const laneOf = (tx: TransactionSql) => tx`'device ' || e.device_id`
const isWanted = (tx: TransactionSql) => tx`
  (w.event_types = '{}' or e.event_type = any(w.event_types)) and (w.device_ids = '{}' or e.device_id = any(w.device_ids))`
/**
 * SQL: a new row `r`, the `place`-th of its lane, may go at once, else waits for the one before it. Lanes, deliveries of an
 * event and due ones are found by the expressions of their indexes (0008), in every statement here.
 */
const timeOfNew = (tx: TransactionSql) => tx`
  case when r.place = 1 and not exists (select from webhook_deliveries d
    where d.endpoint_id || ' ' || d.lane = r.endpoint_id || ' ' || r.lane and d.status = 'pending') then now() end`

const lockLanes = (tx: TransactionSql, isExclusive: boolean) => tx`select lock_webhook_lanes(${isExclusive})`

// ---- from the stream into the lanes -------------------------------------------------------------------------------

/**
 * Deliveries for the next events of the stream, in one transaction with the position behind them.
 *
 * @returns events read; 0: the end is reached
 */
export async function fanOut(sql: Sql, eventsMax: number): Promise<number> {
  const [ahead] = await sql`
    select from events where cursor > (select cursor from webhook_positions where name = ${FAN_OUT}) limit 1`
  if (ahead === undefined) return 0
  return await sql.begin(async (tx) => {
    // sent together: what the second one sees begins when it has the lock
    const [, [read]] = await Promise.all([
      lockLanes(tx, true),
      tx<{ count: number }[]>`
        with n as materialized (
          select tenant_id, event_id, cursor, event_type, device_id, order_key from events
          where cursor > (select cursor from webhook_positions where name = ${FAN_OUT}) order by cursor limit ${eventsMax}
        ), wanted as (
          select w.endpoint_id, e.tenant_id, e.event_id, e.cursor, e.event_type, ${laneOf(tx)} as lane
          from n e join webhook_endpoints w on w.tenant_id = e.tenant_id
          where w.status <> 'stopped' and w.held_cursor is null and e.cursor > w.from_cursor and ${isWanted(tx)}
            and not exists (select from webhook_deliveries d
              where d.endpoint_id || ' ' || d.event_id = w.endpoint_id || ' ' || e.event_id and d.replay = 0)
        ), r as (
          select *, row_number() over (partition by endpoint_id, lane order by cursor) as place from wanted
        ), made as (
          insert into webhook_deliveries (endpoint_id, tenant_id, event_id, cursor, event_type, lane, next_attempt_at)
          select endpoint_id, tenant_id, event_id, cursor, event_type, lane, ${timeOfNew(tx)} from r
          order by cursor, endpoint_id
        ), moved as (
          update webhook_positions set cursor = (select max(cursor) from n), updated_at = now()
          where name = ${FAN_OUT} and exists (select from n)
        )
        select count(*)::int as count from n`,
    ])
    return read!.count
  })
}

/**
 * The stream goes on without an endpoint that fails, so that it costs the others nothing: what happens from now on is turned
 * into deliveries by `catchUp`, in the same order.
 *
 * @returns false: it was stopped or removed
 */
export async function holdEndpoint(sql: Sql, endpointId: string): Promise<boolean> {
  const [, held] = await sql.begin((tx) =>
    Promise.all([
      lockLanes(tx, true),
      tx`
        update webhook_endpoints
        set held_cursor = coalesce(held_cursor, (select cursor from webhook_positions where name = ${FAN_OUT}))
        where endpoint_id = ${endpointId} and status <> 'stopped'`,
    ]),
  )
  return held.count > 0
}

export async function heldEndpoints(sql: Sql): Promise<readonly string[]> {
  const rows = await sql<{ endpoint_id: string }[]>`
    select endpoint_id from webhook_endpoints where held_cursor is not null and status <> 'stopped'`
  return rows.map((row) => row.endpoint_id)
}

export interface CatchUp {
  readonly eventsMax: number
  /** With so many deliveries waiting nothing is read. */
  readonly pendingMax: number
  /** It stays held also at the fan-out's position. */
  readonly isKept: boolean
}

/**
 * The next events of the stream for an endpoint that is held. At the fan-out's position it goes on with the stream.
 *
 * @returns events read
 */
export async function catchUp(
  sql: Sql,
  endpointId: string,
  { eventsMax, pendingMax, isKept }: CatchUp,
): Promise<number> {
  return await sql.begin(async (tx) => {
    const [, [read]] = await Promise.all([
      lockLanes(tx, true),
      tx<{ count: number }[]>`
        with h as materialized (
          select * from webhook_endpoints w
          where w.endpoint_id = ${endpointId} and w.held_cursor is not null and w.status <> 'stopped'
            and ${pendingMax} > (select count(*) from (select from webhook_deliveries d
              where d.endpoint_id || ' ' || d.lane >= w.endpoint_id || ' ' and d.endpoint_id || ' ' || d.lane < w.endpoint_id || '!'
                and d.status = 'pending' limit ${pendingMax}) as d)
        ), n as materialized (
          select tenant_id, event_id, cursor, event_type, device_id, order_key from events
          where cursor > (select held_cursor from h)
            and cursor <= (select cursor from webhook_positions where name = ${FAN_OUT}) order by cursor limit ${eventsMax}
        ), wanted as (
          select w.endpoint_id, e.tenant_id, e.event_id, e.cursor, e.event_type, ${laneOf(tx)} as lane
          from n e join h w on w.tenant_id = e.tenant_id
          where e.cursor > w.from_cursor and ${isWanted(tx)}
            and not exists (select from webhook_deliveries d
              where d.endpoint_id || ' ' || d.event_id = w.endpoint_id || ' ' || e.event_id and d.replay = 0)
        ), r as (
          select *, row_number() over (partition by lane order by cursor) as place from wanted
        ), made as (
          insert into webhook_deliveries (endpoint_id, tenant_id, event_id, cursor, event_type, lane, next_attempt_at)
          select endpoint_id, tenant_id, event_id, cursor, event_type, lane, ${timeOfNew(tx)} from r order by cursor
        ), moved as (
          update webhook_endpoints w set held_cursor = case
            when ${isKept} or (select count(*) from n) = ${eventsMax} then coalesce((select max(cursor) from n), w.held_cursor) end
          from h where w.endpoint_id = h.endpoint_id
        )
        select count(*)::int as count from n`,
    ])
    return read!.count
  })
}

// ---- from the lanes to the sender ---------------------------------------------------------------------------------

export interface Claimed {
  readonly delivery_id: number
  readonly endpoint_id: string
  readonly event_id: string
  readonly lane: string
  readonly attempts: number
  readonly url: string
  readonly secret: string
  /** Only while it still signs. */
  readonly previous_secret: string | null
  readonly failing_since: Date | null
  /** What the endpoint has of its own; null: as configured. */
  readonly retry_schedule_s: readonly number[] | null
  readonly timeout_ms: number | null
  readonly concurrency: number | null
  /** 0: the first delivery; n: the n-th redelivery. */
  readonly replay: number
  /** When the event was committed; null: long ago, or it is not from the stream. */
  readonly stored_at: Date | null
  /** The event object itself; null: made of the columns below. */
  readonly event: Readonly<Record<string, unknown>> | null
  readonly event_type: string
  /** Null: the event is gone from the stream. */
  readonly device_id: string | null
  readonly at: Date | null
  readonly data: Readonly<Record<string, unknown>> | null
}

export interface Claim {
  /** Who claims; stable over restarts, so that what a killed process held is found again. */
  readonly by: string
  /** Of endpoints that have none of their own. */
  readonly concurrency: number
  readonly timeoutMs: number
  /** Deliveries per place of an endpoint. */
  readonly ahead: number
  /** Deliveries at most for endpoints that have less room. */
  readonly rooms: ReadonlyMap<string, number>
}

/** All that was claimed for a place may time out before the last of it starts, and then it is sent. */
const LEASE_SLACK_MS = 5_000

/** Takes due deliveries of active endpoints that do not rest; one that another gateway is taking at this moment is left to it. */
export async function claimDue(
  sql: Sql,
  { by, concurrency, timeoutMs, ahead, rooms }: Claim,
): Promise<readonly Claimed[]> {
  const known = [...rooms].map(([endpoint_id, room]) => ({ endpoint_id, room }))
  return await sql<Claimed[]>`
    with rooms as (
      select w.endpoint_id, coalesce(k.room, coalesce(w.concurrency, ${concurrency}::int) * ${ahead}::int) as room,
        (${ahead}::int + 2) * coalesce(w.timeout_ms, ${timeoutMs}::int) + ${LEASE_SLACK_MS}::int as lease_ms
      from webhook_endpoints w
      left join jsonb_to_recordset(${sql.json(known)}) as k (endpoint_id text, room int) using (endpoint_id)
      where w.status = 'active' and (w.rest_until is null or w.rest_until <= now())
    ), due as materialized (
      select d.delivery_id, r.lease_ms from rooms r cross join lateral (
        select delivery_id from webhook_deliveries d
        where d.endpoint_id || '' = r.endpoint_id and d.status = 'pending' and d.next_attempt_at <= now()
        order by d.next_attempt_at, d.delivery_id limit r.room for update skip locked) as d
      where r.room > 0
    ), taken as (
      update webhook_deliveries d set claimed_by = ${by}, next_attempt_at = now() + due.lease_ms * interval '1 ms'
      from due where d.delivery_id = due.delivery_id
      returning d.delivery_id, d.endpoint_id, d.event_id, d.lane, d.attempts, d.replay, d.event, d.event_type
    )
    select t.*, w.url, w.secret, w.failing_since, w.retry_schedule_s, w.timeout_ms, w.concurrency,
      case when w.previous_secret_until > now() then w.previous_secret end as previous_secret,
      e.device_id, e.at, e.data, e.stored_at
    from taken t join webhook_endpoints w using (endpoint_id) left join events e using (event_id)
    order by t.delivery_id`
}

export interface Ended {
  readonly delivery_id: number
  readonly endpoint_id: string
  readonly lane: string
  /** pending: tried again after delay_ms. */
  readonly status: 'pending' | 'delivered' | 'dead'
  readonly delay_ms: number
  /** Undefined: no attempt was made, the claim is given back. */
  readonly attempt?: {
    readonly at: string
    readonly status: number | null
    readonly error: string | null
    readonly duration_ms: number
    readonly answer: string
  }
}

/** Stores what became of claimed deliveries and lets the next of their lanes go. Repeatable. */
export async function storeEnded(sql: Sql, by: string, ended: readonly Ended[]): Promise<void> {
  await sql.begin(async (tx) => {
    const list = tx.json(ended as never)
    await Promise.all([
      lockLanes(tx, false),
      tx`
        update webhook_deliveries d set
          status = i.status,
          attempts = d.attempts + case when i.attempt is null then 0 else 1 end,
          next_attempt_at = case when i.status = 'pending' then now() + i.delay_ms * interval '1 ms' end,
          last_status = coalesce((i.attempt ->> 'status')::int, case when i.attempt is null then d.last_status end),
          last_error = case when i.attempt is null then d.last_error else i.attempt ->> 'error' end,
          attempt_log = case when i.attempt is null then d.attempt_log else d.attempt_log || i.attempt end,
          finished_at = case when i.status <> 'pending' then now() end,
          claimed_by = null
        from jsonb_to_recordset(${list}) as i (delivery_id bigint, status text, delay_ms float8, attempt jsonb)
        where d.delivery_id = i.delivery_id and d.claimed_by || '' = ${by} and d.status = 'pending'`,
      tx`
        update webhook_deliveries d set next_attempt_at = now()
        where d.next_attempt_at is null and d.status || '' = 'pending' and d.delivery_id = any(array(
          select n.delivery_id
          from (select distinct endpoint_id || ' ' || lane as line from jsonb_to_recordset(${list})
            as i (endpoint_id text, lane text, status text) where status <> 'pending') as l
          cross join lateral (
            select n.delivery_id from webhook_deliveries n
            where n.endpoint_id || ' ' || n.lane = l.line and n.status = 'pending' order by n.delivery_id + 0 limit 1) as n))`,
    ])
  })
}

/**
 * After a start, and after a claim whose answer was lost: gives back what is claimed and not held. Lanes that wait for
 * nobody (a row removed by hand) go on.
 */
export async function recover(sql: Sql, by: string, held: readonly number[]): Promise<void> {
  await sql.begin(async (tx) => {
    await lockLanes(tx, true)
    await tx`
      update webhook_deliveries set claimed_by = null, next_attempt_at = now()
      where claimed_by = ${by} and status = 'pending' and delivery_id <> all(${[...held]}::bigint[])`
    await tx`
      update webhook_deliveries d set next_attempt_at = now()
      where d.status = 'pending' and d.next_attempt_at is null and not exists (select from webhook_deliveries n
        where n.endpoint_id || ' ' || n.lane = d.endpoint_id || ' ' || d.lane and n.status = 'pending' and n.delivery_id < d.delivery_id)`
  })
}

export async function countPending(sql: Sql): Promise<number> {
  const [row] = await sql<
    { count: number }[]
  >`select count(*)::int as count from webhook_deliveries where status = 'pending'`
  return row!.count
}

const TIDY_ROWS = 10_000

/** Drops ended deliveries, the oldest first. @returns rows dropped; as many as one call takes: ask again */
export async function dropEnded(sql: Sql, olderThanDays: number): Promise<number> {
  // only the oldest rows are looked at: an index for this would cost every delivery
  const dropped = await sql`
    delete from webhook_deliveries where delivery_id in (
      select delivery_id from (select delivery_id, status, finished_at from webhook_deliveries
        order by delivery_id limit ${TIDY_ROWS}) as oldest
      where status <> 'pending' and finished_at < now() - ${olderThanDays} * interval '1 day')`
  return dropped.count
}

// ---- endpoints ----------------------------------------------------------------------------------------------------

export async function markFailing(sql: Sql, endpointId: string, error: string): Promise<void> {
  await sql`
    update webhook_endpoints set failing_since = coalesce(failing_since, now()), last_error = ${error}
    where endpoint_id = ${endpointId}`
}

export async function markHealthy(sql: Sql, endpointId: string): Promise<void> {
  await sql`update webhook_endpoints set failing_since = null where endpoint_id = ${endpointId}`
}

/** The receiver asked for it (Retry-After): nothing goes there until then, whoever sends. */
export async function restEndpoint(sql: Sql, endpointId: string, restMs: number): Promise<void> {
  await sql`
    update webhook_endpoints set rest_until = greatest(rest_until, now() + ${restMs}::float8 * interval '1 ms')
    where endpoint_id = ${endpointId}`
}

export async function restingEndpoints(sql: Sql, ids: readonly string[]): Promise<readonly string[]> {
  const rows = await sql<{ endpoint_id: string }[]>`
    select endpoint_id from webhook_endpoints where endpoint_id = any(${[...ids]}) and rest_until > now()`
  return rows.map((row) => row.endpoint_id)
}

/** Why the gateway stopped an endpoint by itself. */
export type StopReason = 'gone' | 'failing'

/**
 * Nothing more goes there; what waited is cancelled and comes back by redelivery only. The tenant's other endpoints and
 * everybody else at the stream hear of it: the event is committed with the stop.
 *
 * @param detail for people
 * @returns false: was stopped
 */
export async function stopEndpoint(sql: Sql, endpointId: string, reason: StopReason, detail: string): Promise<boolean> {
  return await sql.begin(async (tx) => {
    await tx`set local synchronous_commit = on`
    await lockLanes(tx, true)
    const [stopped] = await tx<{ tenant_id: string; from_cursor: number; failing_since: Date | null }[]>`
      update webhook_endpoints set status = 'stopped', stop_reason = ${detail}, updated_at = now(), held_cursor = null
      where endpoint_id = ${endpointId} and status <> 'stopped' returning tenant_id, from_cursor, failing_since`
    if (stopped === undefined) return false
    const { tenant_id: tenant, from_cursor: fromCursor, failing_since: failingSince } = stopped
    const cancelled = await tx`
      update webhook_deliveries set status = 'cancelled', finished_at = now(), next_attempt_at = null, claimed_by = null
      where endpoint_id = ${endpointId} and status = 'pending'`
    await tx`
      insert into audit_logs (tenant_id, actor, role, action, target, details)
      values (${tenant}, 'gateway', 'gateway', 'webhook.stopped', ${endpointId}, ${tx.json({ reason: detail })})`
    const eventType: EventType = 'webhook.disabled'
    // no URL: it may carry a secret of its receiver, and this goes to others
    const data = {
      webhook_id: endpointId,
      reason,
      detail,
      failing_since: failingSince?.toISOString() ?? null,
      cancelled_deliveries: cancelled.count,
    }
    // the endpoint's start moves from_cursor, so that each stop is a fact of its own; no device: the text is empty
    await tx`
      insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
      values (${eventIdOf(eventType, endpointId, fromCursor)}, ${eventType}, ${tenant}, '', 0, now(), ${tx.json(data)})
      on conflict (event_id) do nothing`
    return true
  })
}

/** Its deliveries go with it. */
export async function removeEndpoint(tx: TransactionSql, endpointId: string): Promise<void> {
  await lockLanes(tx, true)
  await tx`delete from webhook_endpoints where endpoint_id = ${endpointId}`
}

// ---- what an operator asks for --------------------------------------------------------------------------------------

/** Who asks for a delivery, a test or another receiver wants it now: a rest ends, and what waited because of it goes. */
export async function endRest(tx: TransactionSql, endpointId: string): Promise<void> {
  await lockLanes(tx, true)
  const ended = await tx`
    update webhook_endpoints set rest_until = null where endpoint_id = ${endpointId} and rest_until > now()`
  if (ended.count === 0) return
  await tx`
    update webhook_deliveries set next_attempt_at = now()
    where endpoint_id || '' = ${endpointId} and status = 'pending' and next_attempt_at > now() and claimed_by is null`
}

/** One event by its id, or all of a window that the endpoint's filter wants. */
export type Again = { readonly eventId: string } | { readonly from: Date; readonly to: Date }

export async function countWindow(
  tx: TransactionSql,
  endpointId: string,
  from: Date,
  to: Date,
  max: number,
): Promise<number> {
  const [row] = await tx<{ count: number }[]>`
    select count(*)::int as count from (select from events e join webhook_endpoints w on w.tenant_id = e.tenant_id
      where w.endpoint_id = ${endpointId} and e.at >= ${from} and e.at < ${to} and ${isWanted(tx)} limit ${max + 1}) as n`
  return row!.count
}

/** Queues events of the endpoint's tenant once more, each behind what waits in its lane. @returns ids of deliveries */
export async function queueAgain(tx: TransactionSql, endpointId: string, again: Again): Promise<readonly number[]> {
  await lockLanes(tx, true)
  const which =
    'eventId' in again
      ? tx`e.event_id = ${again.eventId}`
      : tx`e.at >= ${again.from} and e.at < ${again.to} and ${isWanted(tx)}`
  const rows = await tx<{ delivery_id: number }[]>`
    with wanted as (
      select w.endpoint_id, e.tenant_id, e.event_id, e.cursor, e.event_type, ${laneOf(tx)} as lane,
        1 + coalesce((select max(d.replay) from webhook_deliveries d
          where d.endpoint_id || ' ' || d.event_id = w.endpoint_id || ' ' || e.event_id), 0) as replay
      from events e join webhook_endpoints w on w.tenant_id = e.tenant_id
      where w.endpoint_id = ${endpointId} and ${which}
        -- what lies behind is still to come, and in order
        and (w.held_cursor is null or e.cursor <= w.held_cursor)
    ), r as (select *, row_number() over (partition by lane order by cursor) as place from wanted)
    insert into webhook_deliveries
      (endpoint_id, tenant_id, event_id, cursor, event_type, lane, replay, next_attempt_at)
    select endpoint_id, tenant_id, event_id, cursor, event_type, lane, replay, ${timeOfNew(tx)} from r order by cursor
    returning delivery_id`
  return rows.map((row) => row.delivery_id)
}

/** Sends one delivery again: at once if it waits for its next attempt, else as a new delivery. */
export async function queueDeliveryAgain(
  tx: TransactionSql,
  endpointId: string,
  deliveryId: number,
): Promise<number | undefined> {
  await lockLanes(tx, true)
  const [row] = await tx<{ status: string; event_id: string; event: Record<string, unknown> | null }[]>`
    select status, event_id, event from webhook_deliveries
    where delivery_id = ${deliveryId} and endpoint_id = ${endpointId}`
  if (row === undefined) return undefined
  if (row.status === 'pending') {
    await tx`
      update webhook_deliveries set next_attempt_at = now()
      where delivery_id = ${deliveryId} and next_attempt_at is not null and claimed_by is null`
    return deliveryId
  }
  if (row.event !== null) return await queueTest(tx, endpointId, row.event_id, row.event)
  return (await queueAgain(tx, endpointId, { eventId: row.event_id }))[0]
}

/** Queues an event that the stream does not have. Its lane is its own. */
export async function queueTest(
  tx: TransactionSql,
  endpointId: string,
  eventId: string,
  event: Readonly<Record<string, unknown>>,
): Promise<number> {
  const [row] = await tx<{ delivery_id: number }[]>`
    insert into webhook_deliveries (endpoint_id, tenant_id, event_id, event_type, lane, replay, event, next_attempt_at)
    select w.endpoint_id, w.tenant_id, ${eventId}, ${String(event['event_type'])}, 'test ' || ${eventId} || ' ' || n.replay,
      n.replay, ${tx.json(event as never)}, now()
    from webhook_endpoints w cross join lateral (select 1 + coalesce(max(d.replay), -1) as replay from webhook_deliveries d
      where d.endpoint_id || ' ' || d.event_id = w.endpoint_id || ' ' || ${eventId}) as n
    where w.endpoint_id = ${endpointId} returning delivery_id`
  return row!.delivery_id
}
