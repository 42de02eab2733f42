-- Why: what happened. Commands as bytes and samples of charging ports by day (old days are dropped whole, without a
-- delete), the event stream with its cursor, and webhooks that carry it.
-- Locks: nothing that anybody uses; all tables are new. For how long: milliseconds.

create table cmd_log (
  device_id text collate "C" not null,
  at timestamptz not null,
  epoch bigint not null,
  seq bigint not null,
  is_uplink boolean not null,
  command text not null,
  code integer not null,
  message_id bigint not null,
  note text,
  frame bytea not null,
  primary key (device_id, at, epoch, seq)
) partition by range (at);
-- a day nobody prepared must not fail an insert
create table cmd_log_default partition of cmd_log default;

create table port_samples (
  device_id text collate "C" not null,
  at timestamptz not null,
  epoch bigint not null,
  seq bigint not null,
  socket integer not null,
  port integer not null,
  order_key text collate "C" not null,
  state text not null,
  state_raw integer not null,
  duration_s integer not null,
  energy_wh double precision,
  energy_raw bigint,
  power_w double precision,
  max_power_w double precision,
  min_power_w double precision,
  avg_power_w double precision,
  peak_power_w double precision,
  voltage_v double precision,
  current_a double precision,
  ambient_c double precision,
  port_c double precision,
  primary key (device_id, at, epoch, seq)
) partition by range (at);
create table port_samples_default partition of port_samples default;

-- Makes the partitions of the UTC days from_day..to_day, `cmd_log_20260131` and so on, and moves rows of such a day
-- out of the default partition. Called at start and once a day for the days ahead. Locks: the default partition against
-- everybody while a partition is made, milliseconds when it is empty.
create function ensure_day_partitions(from_day date, to_day date) returns integer language plpgsql as $$
declare
  parent text;
  day date;
  part text;
  from_at timestamptz;
  to_at timestamptz;
  made integer := 0;
begin
  -- two gateways at once: the second finds everything made
  perform pg_advisory_xact_lock(hashtext('ensure_day_partitions'));
  foreach parent in array array['cmd_log', 'port_samples'] loop
    day := from_day;
    while day <= to_day loop
      part := parent || '_' || to_char(day, 'YYYYMMDD');
      if to_regclass(part) is null then
        from_at := day::timestamp at time zone 'UTC';
        to_at := (day + 1)::timestamp at time zone 'UTC';
        execute format('lock table %I in access exclusive mode', parent || '_default');
        execute format('create table %I (like %I including all)', part, parent);
        execute format(
          'with moved as (delete from %I where at >= %L and at < %L returning *) insert into %I select * from moved',
          parent || '_default', from_at, to_at, part);
        execute format(
          'alter table %I attach partition %I for values from (%L) to (%L)', parent, part, from_at, to_at);
        made := made + 1;
      end if;
      day := day + 1;
    end loop;
  end loop;
  return made;
end $$;

-- Drops the partitions of the UTC days before before_day, and such rows of the default partition. Locks: the table
-- against everybody, milliseconds per day dropped.
create function drop_day_partitions(parent text, before_day date) returns integer language plpgsql as $$
declare
  part text;
  dropped integer := 0;
begin
  if parent not in ('cmd_log', 'port_samples') then
    raise exception 'drop_day_partitions: % is not partitioned by day', parent using errcode = '22023';
  end if;
  perform pg_advisory_xact_lock(hashtext('ensure_day_partitions'));
  for part in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = parent::regclass
      and c.relname ~ ('^' || parent || '_[0-9]{8}$')
      and to_date(right(c.relname, 8), 'YYYYMMDD') < before_day
    order by c.relname
  loop
    execute format('drop table %I', part);
    dropped := dropped + 1;
  end loop;
  execute format('delete from %I where at < %L', parent || '_default', before_day::timestamp at time zone 'UTC');
  return dropped;
end $$;

create table events (
  cursor bigserial primary key,
  event_id text collate "C" not null unique,
  event_type text collate "C" not null,
  tenant_id text collate "C" not null,
  device_id text collate "C" not null,
  order_key text collate "C",
  epoch bigint not null,
  at timestamptz not null,
  data jsonb not null
);
create index events_by_tenant on events (tenant_id, cursor);
create index events_by_tenant_type on events (tenant_id, event_type, cursor);
create index events_by_tenant_time on events (tenant_id, at, cursor);
create index events_by_device on events (device_id, at, cursor);

-- Cursors become visible in their own order: without this, a reader that has passed cursor 7 would miss 6, drawn
-- earlier by a transaction that commits later. Whoever inserts events does so last in its transaction.
create function events_in_order() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtext('events_in_order'));
  return null;
end $$;
create trigger events_in_order before insert on events for each statement execute function events_in_order();

create table webhook_endpoints (
  endpoint_id text collate "C" primary key,
  tenant_id text collate "C" not null default 'default' references tenants,
  url text not null,
  description text,
  event_types text[] not null default '{}',
  device_ids text[] not null default '{}',
  status text not null default 'active' check (status in ('active', 'paused', 'stopped')),
  stop_reason text,
  secret text not null,
  -- signs beside the new one while a secret is being rotated
  previous_secret text,
  previous_secret_until timestamptz,
  created_by text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index webhook_endpoints_by_tenant on webhook_endpoints (tenant_id, endpoint_id);

create table webhook_deliveries (
  delivery_id bigserial primary key,
  endpoint_id text collate "C" not null references webhook_endpoints on delete cascade,
  tenant_id text collate "C" not null,
  event_id text collate "C" not null,
  cursor bigint,
  event_type text not null,
  -- deliveries of one lane go out one after the other: an order, else a device
  lane text collate "C" not null,
  -- 0 first delivery; n-th redelivery
  replay integer not null default 0,
  status text not null default 'pending' check (status in ('pending', 'delivered', 'dead', 'cancelled')),
  attempts integer not null default 0,
  next_attempt_at timestamptz,
  last_status integer,
  last_error text,
  -- array of {at, status, error, duration_ms}
  attempt_log jsonb not null default '[]',
  created_at timestamptz not null default now(),
  finished_at timestamptz,
  unique (endpoint_id, event_id, replay)
) with (fillfactor = 80);
create index webhook_deliveries_due on webhook_deliveries (next_attempt_at) where status = 'pending';
create index webhook_deliveries_lane on webhook_deliveries (endpoint_id, lane, delivery_id) where status = 'pending';
create index webhook_deliveries_by_endpoint on webhook_deliveries (endpoint_id, delivery_id desc);
