-- Why: what is charged and what is commanded. Orders, the settlements that end them, cards, and the commands waiting
-- for a device.
-- Locks: nothing that anybody uses; all tables are new. For how long: milliseconds.

create table orders (
  order_no text collate "C" primary key,
  tenant_id text collate "C" not null default 'default' references tenants,
  device_id text collate "C" not null,
  protocol text not null,
  socket integer not null,
  port integer not null,
  -- what all frames about this order share (see settlements); null while the wire number is not chosen yet
  order_key text collate "C",
  wire_hex text,
  mode text,
  state text not null check (state in
    ('pending', 'starting', 'charging', 'stopping', 'settled', 'failed', 'cancelled')),
  origin text not null check (origin in ('online', 'card', 'code', 'offline')),
  card_id text,
  business_no integer,
  -- what was asked for: limits and expiry of the charge request
  request jsonb,
  tariff jsonb,
  command_id text,
  started_at timestamptz,
  ended_at timestamptz,
  duration_s integer,
  energy_wh double precision,
  max_power_w double precision,
  amount_fen bigint,
  end_reason text,
  end_reason_raw integer,
  fail_reason text,
  -- settled without the device's own word; its settlement, should it still come, replaces the figures
  estimated boolean not null default false,
  settled_at timestamptz,
  last_progress_at timestamptz,
  epoch bigint not null default 0,
  version integer not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (device_id, socket, port, order_key)
) with (fillfactor = 80);
create index orders_by_tenant on orders (tenant_id, created_at desc, order_no desc);
create index orders_by_tenant_state on orders (tenant_id, state, created_at desc, order_no desc);
create index orders_by_tenant_start on orders (tenant_id, started_at desc, order_no desc);
create index orders_by_device on orders (device_id, created_at desc, order_no desc);
-- for the one that looks for orders nobody ends
create index orders_running on orders (updated_at) where state in ('pending', 'starting', 'charging', 'stopping');

-- The device's last word on an order, once, as it was received first. order_key: the wire order number, or a digest
-- of the content where the device sent none.
create table settlements (
  device_id text collate "C" not null,
  socket integer not null,
  port integer not null,
  order_key text collate "C" not null,
  tenant_id text collate "C" not null,
  protocol text not null,
  epoch bigint not null,
  seq bigint not null,
  wire_hex text not null,
  -- the device's number as text; the order may carry a longer one where two devices chose the same
  device_order_no text not null,
  origin text not null,
  start_mode_raw integer not null,
  card_id text,
  duration_s integer not null,
  energy_wh double precision not null,
  energy_raw bigint not null,
  max_power_w double precision not null,
  end_reason text not null,
  end_reason_raw integer,
  device_sent_at timestamptz,
  device_ended_at timestamptz,
  received_at timestamptz not null,
  occupancy_min integer,
  business_no integer,
  device_amount_fen bigint,
  message_id bigint not null,
  frame bytea not null,
  primary key (device_id, socket, port, order_key)
);
create index settlements_by_tenant on settlements (tenant_id, received_at desc);

-- Settlements of unpublished layout, byte for byte.
create table opaque_settlements (
  device_id text collate "C" not null,
  digest text collate "C" not null,
  tenant_id text collate "C" not null,
  protocol text not null,
  epoch bigint not null,
  command text not null,
  received_at timestamptz not null,
  frame bytea not null,
  primary key (device_id, digest)
);

create table cards (
  tenant_id text collate "C" not null default 'default' references tenants,
  card_id text collate "C" not null,
  status text not null default 'active' check (status in ('active', 'blocked', 'lost')),
  rate_mode smallint not null default 0,
  balance_fen bigint not null default 0,
  expires_at timestamptz,
  holder text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (tenant_id, card_id)
);
-- a device knows only the card number
create index cards_by_number on cards (card_id);

-- Commands to devices. status: 0 queued, 1 sent, 2 acked, 3 dead, 4 refused, 5 expired, 6 cancelled; 2..6 are final.
create table outbound_queue (
  command_id text collate "C" primary key,
  tenant_id text collate "C" not null default 'default' references tenants,
  device_id text collate "C" not null,
  name text not null,
  params jsonb not null default '{}',
  priority smallint not null default 0,
  idempotency_key text collate "C",
  request_digest text,
  status smallint not null default 0 check (status between 0 and 6),
  attempts integer not null default 0,
  message_id bigint,
  epoch bigint,
  order_no text collate "C",
  requested_by text,
  created_at timestamptz not null default now(),
  not_before timestamptz,
  expires_at timestamptz not null,
  sent_at timestamptz,
  finished_at timestamptz,
  result jsonb,
  check ((status >= 2) = (finished_at is not null))
) with (fillfactor = 80);
create unique index outbound_queue_idempotency on outbound_queue (tenant_id, idempotency_key)
  where idempotency_key is not null;
create index outbound_queue_pending on outbound_queue (device_id, priority desc, created_at) where status in (0, 1);
create index outbound_queue_expiring on outbound_queue (expires_at) where status in (0, 1);
create index outbound_queue_by_tenant on outbound_queue (tenant_id, created_at desc, command_id desc);
create index outbound_queue_by_device on outbound_queue (device_id, created_at desc, command_id desc);
create index outbound_queue_by_order on outbound_queue (order_no) where order_no is not null;
