-- Why: what the lane needs to send a command again after a restart, in the words of the wire.
-- Locks: outbound_queue against everybody while the columns are added, milliseconds (no rewrite: constant defaults).

alter table outbound_queue
  -- {fields, wire_hex, socket, port}: what the downlink's encoder takes, and which order and port it is about
  add column wire jsonb not null default '{}',
  -- start and stop move their order with their fate; other moves nothing
  add column kind text not null default 'other' check (kind in ('start', 'stop', 'change', 'other'));

create index outbound_queue_sent on outbound_queue (device_id, sent_at desc) where message_id is not null;
