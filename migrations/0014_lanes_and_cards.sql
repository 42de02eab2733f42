-- Why: deliveries that an earlier release left waiting in lanes of their orders wait in their device's lane now, like new ones,
-- or a new one would overtake them; and what the orders of a card may still use up is asked at every swipe.
-- Locks: relays while deliveries move; orders against writers while the index is built, one or two seconds per
-- million rows.

select lock_webhook_lanes(true);
update webhook_deliveries set lane = 'device ' || split_part(lane, ' ', 2)
  where status = 'pending' and lane like 'order %';
-- only the first of a lane has a time
update webhook_deliveries d set next_attempt_at = null
  where d.status = 'pending' and d.claimed_by is null and d.next_attempt_at is not null
    and exists (select from webhook_deliveries n
      where n.endpoint_id || ' ' || n.lane = d.endpoint_id || ' ' || d.lane and n.status = 'pending'
        and n.delivery_id < d.delivery_id);

create index orders_by_card on orders (tenant_id, card_id, created_at desc) where card_id is not null;
