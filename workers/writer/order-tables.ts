/**
 * Reads and writes what order-book.ts decides about. Thread: writer, and main for fates and estimates of its own; inside
 * a transaction that holds the rows of the devices.
 */
import type { TransactionSql } from '../../src/main/database/connect.ts'
import { type Columns, parameters, source } from './columns.ts'
import type { Order } from './order.ts'
import {
  askedOf,
  type CardBalance,
  type FoundSettlement,
  type Numbered,
  OrderBook,
  type OrderChanges,
  type Wants,
} from './order-book.ts'
import { all, fieldOf, pick, run } from './statements.ts'

/** @param tenants of the devices, whose rows are locked */
export async function loadOrders(
  tx: TransactionSql,
  tenants: ReadonlyMap<string, string>,
  wants: Wants,
): Promise<OrderBook> {
  const { commandIds, commandWires, orderNos, exact, wires, numbers, needsSettlements, needsTariffs } = askedOf(wants)
  if (exact.length + wires.length + commandIds.length + orderNos.length === 0)
    return new OrderBook(tenants, { orders: [], settlements: [], taken: [], tariffs: new Map() })
  const keys = parameters(KEYS, keyValues(exact))
  const wired = parameters(WIRES, { ...keyValues(wires), wire_hex: wires.map(({ wireHex }) => wireHex) })
  const told = parameters(
    COMMAND_WIRES,
    pick(commandWires, { command_id: (c) => c.commandId, wire_hex: (c) => c.wireHex }),
  )
  const [orders, stored, taken, tariffs] = await all([
    run<ReadOrder>(tx, LOAD_ORDERS, [list(commandIds), list(orderNos), ...keys, ...wired, ...told]),
    needsSettlements ? run<ReadOrder>(tx, LOAD_SETTLEMENTS, [...keys, ...wired]) : [],
    numbers.length === 0 ? [] : run<{ order_no: string }>(tx, TAKEN_NUMBERS, [list(numbers)]),
    needsTariffs ? run<{ device_id: string; tariff: unknown }>(tx, DEVICE_TARIFFS, [list([...tenants.keys()])]) : [],
  ])
  return new OrderBook(tenants, {
    orders: orders.map(orderOf),
    settlements: stored.map((row) => readRow(row) as unknown as FoundSettlement),
    taken: taken.map(({ order_no }) => order_no),
    tariffs: new Map(tariffs.map(({ device_id, tariff }) => [device_id, tariff])),
  })
}

/** Writes cards, orders and settlements. Events are left to the caller, who inserts them last in the transaction. */
export async function writeOrders(tx: TransactionSql, book: OrderBook): Promise<void> {
  await chargeCards(tx, book)
  const { fresh, changed, settlements, recomputed } = book.changes()
  await all([
    changed.length > 0 && run(tx, UPDATE_ORDERS, parameters(ORDERS, orderValues(changed))),
    fresh.length > 0 && run(tx, INSERT_ORDERS, parameters(ORDERS, orderValues(fresh))),
    insertSettlements(tx, settlements),
    recomputed.length > 0 && run(tx, UPDATE_CONVERTED, parameters(CONVERTED, convertedValues(recomputed))),
  ])
}

async function chargeCards(tx: TransactionSql, book: OrderBook): Promise<void> {
  const wanted = book.cardsWanted
  if (wanted.length === 0) return
  const cards = await run<{ tenant_id: string; card_id: string; rate_mode: number; balance_fen: number }>(
    tx,
    LOCK_CARDS,
    parameters(CARDS, pick(wanted, { tenant_id: (c) => c.tenantId, card_id: (c) => c.cardId })),
  )
  const balances = book.chargeCards(cards.map((card) => readRow(card) as unknown as CardBalance))
  const values = pick(balances, {
    tenant_id: (c) => c.tenantId,
    card_id: (c) => c.cardId,
    balance_fen: (c) => c.balanceFen,
  })
  if (balances.length > 0) await run(tx, UPDATE_CARDS, parameters(BALANCES, values))
}

async function insertSettlements(tx: TransactionSql, rows: OrderChanges['settlements']): Promise<void> {
  if (rows.length === 0) return
  const values = pick(rows, {
    tenant_id: ({ order }) => order.tenantId,
    device_id: ({ row }) => row.deviceId,
    socket: ({ row }) => row.socket,
    port: ({ row }) => row.port,
    order_key: ({ order }) => order.orderKey,
    protocol: ({ row }) => row.protocol,
    epoch: ({ row }) => row.epoch,
    seq: ({ row }) => row.seq,
    wire_hex: ({ row }) => row.wireHex,
    device_order_no: ({ row }) => row.orderNo,
    origin: ({ row }) => row.origin,
    start_mode_raw: ({ row }) => row.startModeRaw,
    card_id: ({ row }) => row.cardId,
    duration_s: ({ row }) => row.durationS,
    energy_wh: ({ row }) => row.energyWh,
    energy_raw: ({ row }) => row.energyRaw,
    max_power_w: ({ row }) => row.maxPowerW,
    end_reason: ({ row }) => row.endReason,
    end_reason_raw: ({ row }) => row.endReasonRaw,
    device_sent_at: ({ row }) => row.deviceSentMs,
    device_ended_at: ({ row }) => row.deviceEndedMs,
    received_at: ({ row }) => row.receivedMs,
    occupancy_min: ({ row }) => row.occupancyMin,
    business_no: ({ row }) => row.businessNo,
    device_amount_fen: ({ row }) => row.deviceAmountFen,
    amount_fen: ({ order }) => order.amountFen,
    lines: ({ order }) => jsonText(order.amountLines),
    message_id: ({ row }) => row.messageId,
    frame: ({ row }) => row.frame,
  })
  await run(tx, INSERT_SETTLEMENTS, parameters(SETTLEMENTS, values))
}

/** Columns written by `insert`, all but the immutable ones by `update`. */
const ORDERS = {
  order_no: 'text',
  tenant_id: 'text',
  device_id: 'text',
  protocol: 'text',
  socket: 'int4',
  port: 'int4',
  order_key: 'text',
  wire_hex: 'text',
  state: 'text',
  origin: 'text',
  card_id: 'text',
  business_no: 'int4',
  tariff: 'json',
  started_at: 'time',
  ended_at: 'time',
  duration_s: 'int4',
  energy_wh: 'float8',
  max_power_w: 'float8',
  amount_fen: 'int8',
  amount_lines: 'json',
  card_fen: 'int8',
  end_reason: 'text',
  end_reason_raw: 'int4',
  fail_reason: 'text',
  estimated: 'bool',
  settled_at: 'time',
  last_progress_at: 'time',
  epoch: 'int8',
  version: 'int4',
} as const satisfies Columns
const ORDER_NAMES = Object.keys(ORDERS) as (keyof typeof ORDERS)[]
const IMMUTABLE = new Set<string>(['order_no', 'tenant_id', 'device_id', 'protocol', 'socket', 'port'])
const propertyOf = (column: string) => (column === 'estimated' ? 'isEstimated' : fieldOf(column)) as keyof Order

const INSERT_ORDERS = `
  insert into orders (${ORDER_NAMES.join(', ')}) select ${ORDER_NAMES.join(', ')} from ${source(ORDERS)}
  order by i.device_id, i.socket, i.port, i.order_key`
const UPDATE_ORDERS = `
  update orders o set ${ORDER_NAMES.filter((name) => !IMMUTABLE.has(name))
    .map((name) => `${name} = i.${name}`)
    .join(', ')}, updated_at = now()
  from ${source(ORDERS)} where o.order_no = i.order_no`

const KEYS = { device_id: 'text', socket: 'int4', port: 'int4', order_key: 'text' } as const satisfies Columns
const WIRES = { device_id: 'text', socket: 'int4', port: 'int4', wire_hex: 'text' } as const satisfies Columns
const COMMAND_WIRES = { command_id: 'text', wire_hex: 'text' } as const satisfies Columns

/** `source` of several tables in one statement: parameters count on. */
function sourceFrom(columns: Columns, firstParameter: number): string {
  return source(columns).replace(/\$(\d+)/g, (_, n: string) => `$${Number(n) + firstParameter - 1}`)
}
const keysAt = sourceFrom(KEYS, 3)
const wiresAt = sourceFrom(WIRES, 7)
const commandWiresAt = sourceFrom(COMMAND_WIRES, 11)
/** Keys of a number that comes round are `001a@…`: byte order finds them by their beginning. */
const ofWire = (order: string, wire: string) =>
  `${order}.order_key >= ${wire} || '@' and ${order}.order_key < ${wire} || 'A'`
/** Of one port: starts come one after the other, and only the latest can still be meant. */
const UNNUMBERED_MAX = 8
/** Of one port and number: more than one is unsettled only after a memory loss. */
const NUMBERED_MAX = 3
const LOAD_ORDERS = `
  select o.order_no, o.mode, o.request, o.command_id, ${ORDER_NAMES.slice(1)
    .map((name) => `o.${name}`)
    .join(', ')},
    o.created_at, c.sent_at, c.finished_at
  from orders o left join outbound_queue c on c.command_id = o.command_id
  where o.order_no in (
    select q.order_no from outbound_queue q where q.command_id = any($1::text[])
    union select unnest($2::text[])
    union select n.order_no from ${keysAt} join orders n using (device_id, socket, port, order_key)
    union select x.order_no from ${wiresAt} cross join lateral (
      select n.order_no from orders n
      where n.device_id = i.device_id and n.socket = i.socket and n.port = i.port and n.order_key is null
        and n.state in ('pending', 'starting', 'stopping', 'failed')
      order by n.created_at desc limit ${UNNUMBERED_MAX}) x
    union select x.order_no from ${wiresAt} cross join lateral (
      select n.order_no from orders n
      where n.device_id = i.device_id and n.socket = i.socket and n.port = i.port and ${ofWire('n', 'i.wire_hex')}
      order by coalesce(n.started_at, n.created_at) desc limit ${NUMBERED_MAX}) x
    union select x.order_no from ${commandWiresAt} join outbound_queue q on q.command_id = i.command_id
      join orders p on p.order_no = q.order_no cross join lateral (
      select n.order_no from orders n
      where n.device_id = p.device_id and n.socket = p.socket and n.port = p.port and ${ofWire('n', 'i.wire_hex')}
      order by coalesce(n.started_at, n.created_at) desc limit ${NUMBERED_MAX}) x)
  order by o.order_no for update of o`
const LOAD_SETTLEMENTS = `
  select device_id, socket, port, order_key, s.wire_hex, s.duration_s, s.energy_raw, s.received_at, s.device_ended_at
  from ${source(KEYS)} join settlements s using (device_id, socket, port, order_key)
  union
  select x.* from ${sourceFrom(WIRES, 5)} cross join lateral (
    select s.device_id, s.socket, s.port, s.order_key, s.wire_hex, s.duration_s, s.energy_raw, s.received_at,
      s.device_ended_at
    from settlements s
    where s.device_id = i.device_id and s.socket = i.socket and s.port = i.port and ${ofWire('s', 'i.wire_hex')}
    order by s.received_at desc limit ${NUMBERED_MAX}) x`
const TAKEN_NUMBERS = `select order_no from orders where order_no = any($1::text[])`
const DEVICE_TARIFFS = `select device_id, tariff from devices where device_id = any($1::text[]) and tariff is not null`

const list = (values: readonly string[]) => parameters({ values: 'text' }, { values })[0]!

const SETTLEMENTS = {
  tenant_id: 'text',
  device_id: 'text',
  socket: 'int4',
  port: 'int4',
  order_key: 'text',
  protocol: 'text',
  epoch: 'int8',
  seq: 'int8',
  wire_hex: 'text',
  device_order_no: 'text',
  origin: 'text',
  start_mode_raw: 'int4',
  card_id: 'text',
  duration_s: 'int4',
  energy_wh: 'float8',
  energy_raw: 'int8',
  max_power_w: 'float8',
  end_reason: 'text',
  end_reason_raw: 'int4',
  device_sent_at: 'time',
  device_ended_at: 'time',
  received_at: 'time',
  occupancy_min: 'int4',
  business_no: 'int4',
  device_amount_fen: 'int8',
  amount_fen: 'int8',
  lines: 'json',
  message_id: 'int8',
  frame: 'hex',
} as const satisfies Columns
const SETTLEMENT_NAMES = Object.keys(SETTLEMENTS).join(', ')
/** Without `on conflict`: what is stored was read under lock, so a conflict means that we must look again. */
const INSERT_SETTLEMENTS = `
  insert into settlements (${SETTLEMENT_NAMES}) select ${SETTLEMENT_NAMES} from ${source(SETTLEMENTS)}
  order by i.ordinal`
/** What follows from a settlement's raw count; what the device said stays. */
const CONVERTED = { ...KEYS, energy_wh: 'float8', amount_fen: 'int8', lines: 'json' } as const satisfies Columns
const UPDATE_CONVERTED = `
  update settlements s set energy_wh = i.energy_wh, amount_fen = i.amount_fen, lines = i.lines
  from ${source(CONVERTED)}
  where s.device_id = i.device_id and s.socket = i.socket and s.port = i.port and s.order_key = i.order_key`
const convertedValues = (orders: readonly Order[]) =>
  pick(orders, {
    device_id: (o) => o.deviceId,
    socket: (o) => o.socket,
    port: (o) => o.port,
    order_key: (o) => o.orderKey,
    energy_wh: (o) => o.energyWh,
    amount_fen: (o) => o.amountFen,
    lines: (o) => jsonText(o.amountLines),
  })

const CARDS = { tenant_id: 'text', card_id: 'text' } as const satisfies Columns
const BALANCES = { ...CARDS, balance_fen: 'int8' } as const satisfies Columns
/** One card may be used at many devices: sorted, so that two writers never wait for one another. */
const LOCK_CARDS = `
  select c.tenant_id, c.card_id, c.rate_mode, c.expires_at, c.balance_fen from cards c
  join ${source(CARDS)} on c.tenant_id = i.tenant_id and c.card_id = i.card_id
  order by c.tenant_id, c.card_id for update of c`
const UPDATE_CARDS = `
  update cards c set balance_fen = i.balance_fen, updated_at = now()
  from ${source(BALANCES)} where c.tenant_id = i.tenant_id and c.card_id = i.card_id`

interface ReadOrder {
  readonly [column: string]: unknown
}

const jsonText = (value: unknown) => (value === null || value === undefined ? null : JSON.stringify(value))

function keyValues(rows: readonly Numbered[]) {
  return pick(rows, {
    device_id: (r) => r.deviceId,
    socket: (r) => r.socket,
    port: (r) => r.port,
    order_key: (r) => r.orderKey,
  })
}

function orderValues(orders: readonly Order[]): Record<string, unknown[]> {
  return Object.fromEntries(
    ORDER_NAMES.map((name) => {
      const property = propertyOf(name)
      const isJson = ORDERS[name] === 'json'
      return [name, orders.map((order) => (isJson ? jsonText(order[property]) : order[property]))]
    }),
  )
}

/** Columns as properties; times as ms. */
function readRow(row: ReadOrder): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(row).map(([name, value]) => [propertyOf(name), value instanceof Date ? value.getTime() : value]),
  )
}
const orderOf = (row: ReadOrder): Order => ({ ...readRow(row), isNew: false, isChanged: false }) as unknown as Order
