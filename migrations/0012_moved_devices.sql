-- Why: a device that is given to another tenant takes no history along: since when its tenant has it, because sessions,
-- cmd_log and recorded frames name no tenant. And a repeated POST of a webhook endpoint finds the one it made.
-- Locks: devices and webhook_endpoints against everybody while columns are added and an index over at most 100 endpoints
-- per tenant is built, milliseconds (no rewrite).

-- null: since ever
alter table devices add column tenant_since timestamptz;

alter table webhook_endpoints
  add column idempotency_key text collate "C",
  add column request_digest text;
create unique index webhook_endpoints_idempotency on webhook_endpoints (tenant_id, idempotency_key)
  where idempotency_key is not null;
