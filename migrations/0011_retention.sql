-- Why: commands, ended jobs and audit lines go after a while, looked for by time; and a command is written three times in
-- its life, through every index of its table. Two of them nobody asked; one serves the start, which reads what has no fate.
-- Locks: outbound_queue and audit_logs against writers while indexes are built, one or two seconds per million rows.

drop index outbound_queue_pending;
drop index outbound_queue_expiring;
create index outbound_queue_open on outbound_queue (created_at) where status < 2;
-- a few kilobytes each, and nearly nothing per row: rows lie in the order of their time
create index outbound_queue_age on outbound_queue using brin (created_at);
create index audit_logs_age on audit_logs using brin (at);
create index jobs_finished on jobs (finished_at) where finished_at is not null;
