-- Why: who exists. Tenants, devices and what hangs on them (ports, BKV sockets, sessions), the generation number that
-- makes every session epoch larger than those of earlier starts, who may connect, and what was put aside.
-- Locks: nothing that anybody uses; all tables are new. For how long: milliseconds.
--
-- Text keys sort by bytes (collate "C"): device ids are hex digits, and the index does not depend on a locale.
-- Tables that writers fill carry no foreign keys: a row that arrives is a fact, also before its device is registered.

create table tenants (
  tenant_id text collate "C" primary key,
  name text not null,
  created_at timestamptz not null default now()
);
insert into tenants (tenant_id, name) values ('default', 'Default tenant');

create table devices (
  device_id text collate "C" primary key,
  tenant_id text collate "C" not null default 'default' references tenants,
  -- null: registered ahead, never seen
  protocol text,
  -- what people say about it
  site text,
  name text,
  tariff jsonb,
  model_profile text,
  -- what it says about itself; null = it never did
  firmware text,
  device_type text,
  port_count integer,
  iccid text,
  imei text,
  module text,
  signal integer,
  voltage_v double precision,
  temperature_c double precision,
  virtual_id integer,
  work_mode integer,
  clock_offset_ms double precision,
  registered_at timestamptz,
  last_seen_at timestamptz,
  -- the newest row that has written here: older ones are fenced
  epoch bigint not null default 0,
  seq bigint not null default -1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index devices_by_tenant on devices (tenant_id, device_id);

create table ports (
  device_id text collate "C" not null,
  socket integer not null,
  port integer not null,
  state text not null,
  state_raw integer not null,
  fault text,
  power_w double precision,
  voltage_v double precision,
  current_a double precision,
  energy_wh double precision,
  temperature_c double precision,
  wire_hex text,
  at timestamptz not null,
  epoch bigint not null,
  seq bigint not null,
  primary key (device_id, socket, port)
) with (fillfactor = 70);

-- The sockets (slaves, 1-250) behind a BKV gateway.
create table gateway_sockets (
  device_id text collate "C" not null,
  socket integer not null,
  first_seen_at timestamptz not null,
  last_seen_at timestamptz not null,
  device_type text,
  firmware text,
  primary key (device_id, socket)
);

create table sessions (
  device_id text collate "C" not null,
  epoch bigint not null,
  protocol text not null,
  shard integer not null,
  connection_id bigint not null,
  remote_address text not null,
  iccid text,
  opened_at timestamptz not null,
  closed_at timestamptz,
  close_reason text,
  primary key (device_id, epoch)
);
create index sessions_open on sessions (opened_at) where closed_at is null;

-- One row per start; the number is never used twice. Session epoch = generation * 2^32 + counter.
create table gateway_boots (
  generation bigint generated always as identity (maxvalue 2097151) primary key,
  started_at timestamptz not null default now(),
  stopped_at timestamptz,
  host text not null,
  pid integer not null,
  release text not null
);

-- Who may connect. kind device: pattern is a device id; kind network: pattern is an address or CIDR range.
create table allowlist (
  tenant_id text collate "C" not null default 'default' references tenants,
  kind text not null check (kind in ('device', 'network')),
  pattern text collate "C" not null,
  note text,
  created_by text,
  created_at timestamptz not null default now(),
  primary key (kind, pattern)
);

-- Evidence of what was refused: bytes of strangers, rows the database would not take, settlements that contradict an
-- earlier one. digest: the same evidence is kept once.
create table quarantine (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  tenant_id text collate "C" not null default 'default',
  remote_address text,
  device_id text collate "C",
  reason text not null,
  bytes bytea not null,
  note text,
  digest text collate "C" unique
);
create index quarantine_by_tenant on quarantine (tenant_id, id);

create table audit_logs (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  tenant_id text collate "C" not null,
  actor text not null,
  role text not null,
  action text not null,
  target text,
  request_id text,
  remote_address text,
  details jsonb not null default '{}'
);
create index audit_logs_by_tenant on audit_logs (tenant_id, id);
