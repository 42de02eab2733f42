-- Why: what an order costs is computed once, when it is settled, and kept with its reasons: amount and lines beside the
-- settlement and the order, and what was taken from a card, so that a correction takes only the difference. When the
-- reconciler began to doubt an order outlives a restart.
-- Locks: orders and settlements against everybody while columns are added, milliseconds (no rewrite); orders against
-- writers while the index is built, seconds per million orders without a key.

alter table orders
  -- array of {what, quantity, unit, amount_fen, note}; null: the device computed the amount, or nobody did
  add column amount_lines jsonb,
  -- taken from the card so far; null: nothing was, because no card of ours paid
  add column card_fen bigint,
  -- the reconciler missed a sign of life from here on; means nothing once a later one came
  add column doubted_at timestamptz;
-- orders whose number on the wire is not known yet (BKV: the device makes it)
create index orders_unnumbered on orders (device_id, socket, port, created_at desc) where order_key is null;

alter table settlements
  add column amount_fen bigint,
  add column lines jsonb;
