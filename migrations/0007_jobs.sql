-- Why: jobs. One change for many devices (parameters with proof, firmware in waves), what became of each device, and the
-- images that firmware comes from. Everything a job needs to go on after a restart stands here.
-- Locks: outbound_queue against everybody while the check is replaced, milliseconds (not valid: old rows are not read).

-- chunk: a piece of firmware. Its fate is no event: a transfer has a thousand of them, and its job tells of it.
alter table outbound_queue drop constraint outbound_queue_kind_check;
alter table outbound_queue add constraint outbound_queue_kind_check
  check (kind in ('start', 'stop', 'change', 'other', 'chunk')) not valid;

create table firmware_images (
  image_id text collate "C" primary key,
  tenant_id text collate "C" not null references tenants,
  name text not null,
  -- of content, 64 hex digits: the same bytes are one image
  sha256 text collate "C" not null,
  bytes integer not null,
  content bytea not null,
  created_by text not null,
  created_at timestamptz not null default now(),
  unique (tenant_id, sha256)
);
create index firmware_images_by_tenant on firmware_images (tenant_id, created_at desc, image_id desc);

create table jobs (
  job_id text collate "C" primary key,
  tenant_id text collate "C" not null references tenants,
  kind text not null check (kind in ('parameters', 'firmware')),
  state text not null check (state in ('running', 'paused', 'cancelled', 'finished')),
  -- who or what paused it
  pause_reason text,
  -- {set: {name, params}, verify} or {firmware: {target, ..}}
  spec jsonb not null,
  image_id text collate "C" references firmware_images,
  device_count integer not null,
  wave_size integer not null,
  concurrency integer not null,
  pause_above_percent double precision,
  expires_in_s integer not null,
  -- the wave under way, from 0: devices wave * wave_size and the wave_size - 1 behind it
  wave integer not null default 0,
  -- failures until here are excused: somebody said to go on
  resumed_at timestamptz not null default now(),
  idempotency_key text collate "C",
  request_digest text not null,
  created_by text not null,
  created_at timestamptz not null default now(),
  -- no device waits or runs any more
  finished_at timestamptz
);
create unique index jobs_idempotency on jobs (tenant_id, idempotency_key) where idempotency_key is not null;
create index jobs_by_tenant on jobs (tenant_id, created_at desc, job_id desc);
create index jobs_open on jobs (created_at) where finished_at is null;

create table job_devices (
  job_id text collate "C" not null references jobs on delete cascade,
  device_id text collate "C" not null,
  item_index integer not null,
  state text not null default 'waiting' check (state in ('waiting', 'running', 'done')),
  -- what the command under way is: write, read, ota, chunk
  step text,
  command_id text collate "C",
  -- the chunk before it; deleted when the next one is stored
  prior_command_id text collate "C",
  -- the transfer as src/jobs/firmware-transfer.ts has it
  transfer jsonb,
  outcome text check (outcome in ('ok', 'sent', 'refused', 'mismatch', 'dead', 'expired', 'cancelled')),
  reason text,
  detail jsonb not null default '{}',
  started_at timestamptz,
  -- nothing is sent any more after it
  expires_at timestamptz,
  finished_at timestamptz,
  primary key (job_id, device_id),
  unique (job_id, item_index),
  check ((state = 'done') = (outcome is not null)),
  check (state <> 'running' or command_id is not null)
) with (fillfactor = 80);
-- one job per device at a time: two transfers would take each other's chunks for their own
create unique index job_devices_busy on job_devices (device_id) where state = 'running';
