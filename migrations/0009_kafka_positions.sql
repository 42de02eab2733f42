-- Why: the optional Kafka sink. How far each topic has got in the event stream, and which gateway may move it on.
-- Locks: none, milliseconds (a new table).

create table kafka_positions (
  topic text collate "C" primary key,
  -- events up to here are acknowledged by the brokers, or were refused by them and are counted
  cursor bigint not null,
  -- grows with every holder; whoever moves the position must name it, so that a replaced thread or gateway cannot
  epoch bigint not null default 0,
  -- gateway that produces; null: nobody
  holder text collate "C",
  -- another gateway may take it over after this moment
  held_until timestamptz,
  updated_at timestamptz not null default now()
);
