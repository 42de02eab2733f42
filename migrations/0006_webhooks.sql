-- Why: webhooks that leave. Where the fan-out stands in the event stream, since when an endpoint gets events and fails,
-- who holds a delivery, and lanes whose next delivery is found by one index.
-- Locks: webhook_endpoints and webhook_deliveries against everybody, milliseconds (nobody has used them before).

-- The relay reads events behind `cursor` and writes deliveries in the same transaction that moves it.
create table webhook_positions (
  name text collate "C" primary key,
  cursor bigint not null,
  updated_at timestamptz not null default now()
);
-- nobody had an endpoint before: what happened until now is for nobody
insert into webhook_positions (name, cursor) select 'fan-out', coalesce(max(cursor), 0) from events;

alter table webhook_endpoints
  -- events behind this cursor are for the endpoint; older ones only by redelivery
  add column from_cursor bigint not null default 0,
  -- no attempt has succeeded since; null: the last one did
  add column failing_since timestamptz,
  add column last_error text;

alter table webhook_deliveries
  -- the event object itself, where the stream has none (test deliveries)
  add column event jsonb,
  -- who sends it right now
  add column claimed_by text collate "C";

-- A pending delivery waits in its lane while next_attempt_at is null: only the first of a lane has a time. A claim moves
-- the time to the end of its lease, so that a delivery whose sender died becomes due again by itself. Deliveries appear
-- in the order of their ids under the lock below, so that the first of a lane is never overtaken.
drop index webhook_deliveries_due;
create index webhook_deliveries_due on webhook_deliveries (endpoint_id, next_attempt_at, delivery_id)
  where status = 'pending' and next_attempt_at is not null;
create index webhook_deliveries_claimed on webhook_deliveries (claimed_by) where claimed_by is not null;

-- Lanes change under this lock: exclusive for whoever adds or cancels deliveries, shared for whoever ends one (each
-- touches only what it has claimed). Until the end of the transaction.
create function lock_webhook_lanes(is_exclusive boolean) returns void language plpgsql as $$
begin
  if is_exclusive then perform pg_advisory_xact_lock(hashtext('webhook_lanes'));
  else perform pg_advisory_xact_lock_shared(hashtext('webhook_lanes'));
  end if;
end $$;
