-- Why: until when an endpoint rests because its receiver asked for it (Retry-After) is seen, outlives a restart, and can be
-- ended by its owner; before, each delivery that waited carried the hour by itself, in the relay's memory and in its own time.
-- Locks: webhook_endpoints, for milliseconds; no row is rewritten.

alter table webhook_endpoints add column rest_until timestamptz;
