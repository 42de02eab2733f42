-- Why: one tenant's entry must not keep another from making the same one, nor tell that it exists.
-- Locks: allowlist, exclusively, while an index over at most 100,000 rows is built: less than two seconds.
alter table allowlist drop constraint allowlist_pkey;
alter table allowlist add primary key (tenant_id, kind, pattern);
