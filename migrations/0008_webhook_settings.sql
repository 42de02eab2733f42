-- Why: what a webhook endpoint may have of its own (schedule, timeout, places), when an event was committed (for the delay
-- until a receiver has it), up to which cursor retention has dropped events of a tenant (who resumes behind is told), how
-- far the stream was turned into deliveries for an endpoint that fails, and indexes that the relay's statements cannot miss.
-- Locks: webhook_endpoints and events against everybody, milliseconds (no rewrite: the default is set for new rows only);
-- webhook_deliveries against writers while three indexes are built, seconds per million deliveries.

alter table webhook_endpoints
  -- null: what configuration says
  add column retry_schedule_s double precision[],
  add column timeout_ms integer,
  add column concurrency integer,
  -- nobody is there: events behind this cursor are turned into deliveries later; null: with the stream
  add column held_cursor bigint;

-- The clock at the insert, which is the last statement of its transaction and already holds the cursors' lock: the
-- commit follows at once. Null: stored before this migration.
alter table events add column stored_at timestamptz;
alter table events alter column stored_at set default clock_timestamp();

-- Events of the tenant up to this cursor may be gone.
create table event_horizons (
  tenant_id text collate "C" primary key,
  dropped_cursor bigint not null,
  dropped_at timestamptz not null default now()
);

-- A queue that was empty when a plan was made has no statistics: endpoint_id led three indexes and delivery_id another, and
-- the planner took one of those, so that each look into a lane read every delivery. Expressions leave it no choice.
drop index webhook_deliveries_lane;
create index webhook_deliveries_lane on webhook_deliveries ((endpoint_id || ' ' || lane), (delivery_id + 0))
  where status = 'pending';
drop index webhook_deliveries_due;
create index webhook_deliveries_due on webhook_deliveries ((endpoint_id || ''), next_attempt_at, delivery_id)
  where status = 'pending' and next_attempt_at is not null;
alter table webhook_deliveries drop constraint webhook_deliveries_endpoint_id_event_id_replay_key;
create unique index webhook_deliveries_once on webhook_deliveries ((endpoint_id || ' ' || event_id), replay);
