-- Why: when a command may leave is decided in its session (spacing, priority); nobody ever wrote this column.
-- Locks: outbound_queue against everybody for milliseconds (the catalogue only, no rewrite).

alter table outbound_queue drop column not_before;
