/**
 * The orders that a transaction is about: read once under lock, moved in memory by the state machine, written once, with
 * the events that tell of it. Whoever uses it holds the rows of the devices, so nobody else settles these orders; order
 * rows are locked because HTTP and the command desk write them too.
 *
 * Events of orders: charging.started once per order, charging.progress per report that moves one, charging.ended exactly
 * once per order, order.corrected when a device's settlement replaces an estimate or a wrong energy factor is put right,
 * order.failed. `order_key` of an event
 * is our order number.
 */
import { eventIdOf } from '../../src/events/event-id.ts'
import type { TransactionSql } from '../../src/main/database/connect.ts'
import { type OrderEvent, type OrderState, settlementEvent, transition } from '../../src/orders/state.ts'
import type { orderStartRow, ProgressRow, SettlementRow } from '../../src/rows/index.ts'
import type { RowOf } from '../../src/rows/row.ts'
import { REUSED_MARK } from '../../src/session/order-key.ts'
import { type Columns, parameters, source } from './columns.ts'
import { type Charged, costOf, linesOf } from './money.ts'
import { all, byText, fieldOf, pick, run } from './statements.ts'
import { orderOfProgress, orderOfSettlement, type PortSettlement, YEAR_2020_MS } from './which-order.ts'

export type StartRow = RowOf<typeof orderStartRow.fields>

export interface Order {
  readonly orderNo: string
  readonly tenantId: string
  readonly deviceId: string
  readonly protocol: string
  readonly socket: number
  readonly port: number
  readonly mode: string | null
  readonly request: unknown
  readonly commandId: string | null
  orderKey: string | null
  wireHex: string | null
  state: OrderState
  origin: string
  cardId: string | null
  businessNo: number | null
  tariff: unknown
  startedMs: number | null
  endedMs: number | null
  durationS: number | null
  energyWh: number | null
  maxPowerW: number | null
  amountFen: number | null
  amountLines: unknown
  cardFen: number | null
  endReason: string | null
  endReasonRaw: number | null
  failReason: string | null
  isEstimated: boolean
  settledMs: number | null
  lastProgressMs: number | null
  epoch: number
  /** As it will be when written. */
  version: number
  readonly createdMs: number
  /** Of its start command. */
  readonly sentMs: number | null
  readonly finishedMs: number | null
  isNew: boolean
  isChanged: boolean
}

/** A fact for the stream, not yet inserted: what it says may still grow until then. */
export interface DerivedEvent {
  readonly eventId: string
  readonly eventType: string
  readonly deviceId: string
  readonly epoch: number
  readonly orderKey: string | null
  readonly atMs: number
  readonly data: Record<string, unknown>
}

/** What became of orders. */
export interface OrderCounts {
  /** Charging for the first time, or again after they were given up. */
  started: number
  /** By the device's word, corrections excepted. */
  settled: number
  /** By the reconciler. */
  estimated: number
  /** A device's settlement took the place of an estimate. */
  corrected: number
  failed: number
  cancelled: number
  /** Cards that went below zero. */
  overdrawn: number
  /** Moves the state machine refused, by `event in state`. */
  readonly illegal: Record<string, number>
}

export const noOrderCounts = (): OrderCounts => ({
  started: 0,
  settled: 0,
  estimated: 0,
  corrected: 0,
  failed: 0,
  cancelled: 0,
  overdrawn: 0,
  illegal: {},
})

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

/** What to read before anything is decided. */
export interface Wants {
  readonly commandIds?: readonly string[]
  /** Numbers a command's result told, beside the command. */
  readonly commandWires?: readonly { readonly commandId: string; readonly wireHex: string }[]
  readonly orderNos?: readonly string[]
  readonly starts?: readonly StartRow[]
  readonly progress?: readonly ProgressRow[]
  readonly settlements?: readonly SettlementRow[]
}

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

interface StoredSettlement extends PortSettlement {
  readonly orderKey: string
}

interface Place {
  readonly deviceId: string
  readonly socket: number
  readonly port: number
}
const placeOf = (row: Place) => `${row.deviceId}/${row.socket}/${row.port}`
const list = (values: readonly string[]) => parameters({ values: 'text' }, { values })[0]!
const isReused = (orderKey: string) => orderKey.startsWith(REUSED_MARK)
const wireOf = (row: { readonly orderKey: string }) => row.orderKey.slice(REUSED_MARK.length)
const minuteOf = (atMs: number) => Math.floor(atMs / 60_000)
const timeOf = (atMs: number | null) => (atMs === null ? null : new Date(atMs).toISOString())

const DAY_MS = 86_400_000

/** The device's word on when the charge ended, if its clock can be believed (many start in 1970). */
function believedEndMs({ deviceEndedMs, receivedMs }: SettlementRow): number | undefined {
  if (deviceEndedMs === null || deviceEndedMs < YEAR_2020_MS || deviceEndedMs > receivedMs + DAY_MS) return undefined
  return deviceEndedMs
}
const endedMs = (row: SettlementRow) => believedEndMs(row) ?? row.receivedMs

/** Keys of orders that a device makes under a number that comes round again. */
const newKeyOfStart = (row: StartRow) => `${wireOf(row)}@${minuteOf(row.atMs)}`
const newKeyOfProgress = (row: ProgressRow) => `${wireOf(row)}@${minuteOf(row.atMs - row.durationS * 1_000)}`
const newKeyOfSettlement = (row: SettlementRow) => `${wireOf(row)}@${minuteOf(endedMs(row))}e`

interface Numbered extends Place {
  readonly orderKey: string
  readonly orderNo: string
}
/** Devices choose their numbers without knowing of one another: ours are tried in this order, the last nobody else has. */
function numbersOf({ deviceId, socket, port, orderNo }: Numbered, key: string): string[] {
  const last = `${orderNo}.${deviceId}.${socket}.${port}.${key}`
  return orderNo === '' ? [last] : [orderNo, `${orderNo}.${deviceId}.${port}`, last]
}

interface ReadOrder {
  readonly [column: string]: unknown
}

export class OrderBook {
  readonly counts = noOrderCounts()
  readonly events: DerivedEvent[] = []
  readonly #tx: TransactionSql
  readonly #tenants: ReadonlyMap<string, string>
  readonly #byNo = new Map<string, Order>()
  readonly #byKey = new Map<string, Order>()
  readonly #byPlace = new Map<string, Order[]>()
  readonly #settlements = new Map<string, StoredSettlement[]>()
  readonly #taken = new Set<string>()
  readonly #tariffs = new Map<string, unknown>()
  readonly #newSettlements: { readonly row: SettlementRow; readonly order: Order }[] = []
  /** Settled orders whose energy was converted anew. */
  readonly #recomputed: Order[] = []
  /** Orders whose amount was computed here, with the event that says so. */
  readonly #bills: { readonly order: Order; readonly event: DerivedEvent }[] = []

  private constructor(tx: TransactionSql, tenants: ReadonlyMap<string, string>) {
    this.#tx = tx
    this.#tenants = tenants
  }

  /** @param tenants of the devices, whose rows are locked */
  static async load(tx: TransactionSql, tenants: ReadonlyMap<string, string>, wants: Wants): Promise<OrderBook> {
    const { commandIds = [], commandWires = [], orderNos = [], starts = [], progress = [], settlements = [] } = wants
    const book = new OrderBook(tx, tenants)
    const exact = new Map<string, Numbered>()
    const wires = new Map<string, Numbered>()
    const numbers = new Set<string>()
    const want = (row: Numbered, newKey: string) => {
      if (row.orderKey === '') return
      const isWire = isReused(row.orderKey)
      ;(isWire ? wires : exact).set(`${placeOf(row)}/${row.orderKey}`, row)
      for (const number of numbersOf(row, isWire ? newKey : row.orderKey)) numbers.add(number)
    }
    for (const row of starts) want(row, newKeyOfStart(row))
    for (const row of progress) want(row, newKeyOfProgress(row))
    for (const row of settlements) want(row, newKeyOfSettlement(row))
    if (exact.size + wires.size + commandIds.length + orderNos.length === 0) return book

    const keys = parameters(KEYS, keyValues([...exact.values()]))
    const wired = parameters(WIRES, {
      ...keyValues([...wires.values()]),
      wire_hex: [...wires.values()].map(wireOf),
    })
    const told = parameters(
      COMMAND_WIRES,
      pick(commandWires, { command_id: (c) => c.commandId, wire_hex: (c) => c.wireHex }),
    )
    const [orders, stored, taken, tariffs] = await all([
      run<ReadOrder>(tx, LOAD_ORDERS, [list(commandIds), list(orderNos), ...keys, ...wired, ...told]),
      settlements.length === 0 ? [] : run<ReadOrder>(tx, LOAD_SETTLEMENTS, [...keys, ...wired]),
      numbers.size === 0 ? [] : run<{ order_no: string }>(tx, TAKEN_NUMBERS, [list([...numbers])]),
      settlements.length + orderNos.length === 0
        ? []
        : run<{ device_id: string; tariff: unknown }>(tx, DEVICE_TARIFFS, [list([...tenants.keys()])]),
    ])
    for (const row of orders) book.#add(orderOf(row))
    for (const row of stored) book.#addSettlement(readRow(row) as unknown as StoredSettlement & Place)
    for (const { order_no } of taken) book.#taken.add(order_no)
    for (const { device_id, tariff } of tariffs) book.#tariffs.set(device_id, tariff)
    return book
  }

  /** Undefined: there is none, or it was not asked for. */
  order(orderNo: string): Order | undefined {
    return this.#byNo.get(orderNo)
  }

  #add(order: Order): void {
    this.#byNo.set(order.orderNo, order)
    this.#taken.add(order.orderNo)
    if (order.orderKey !== null) this.#byKey.set(`${placeOf(order)}/${order.orderKey}`, order)
    const place = this.#byPlace.get(placeOf(order))
    if (place === undefined) this.#byPlace.set(placeOf(order), [order])
    else place.push(order)
  }

  #addSettlement(settlement: StoredSettlement & Place): void {
    const place = this.#settlements.get(placeOf(settlement))
    if (place === undefined) this.#settlements.set(placeOf(settlement), [settlement])
    else place.push(settlement)
  }

  #newOrder(row: Numbered & Pick<StartRow, 'protocol' | 'wireHex' | 'origin' | 'cardId'>, key: string): Order {
    const orderNo = numbersOf(row, key).find((number) => !this.#taken.has(number))
    // the last one names the whole key: a transaction that began earlier has just made this order
    if (orderNo === undefined) throw Object.assign(new Error(`order ${key} appeared meanwhile`), { code: '40001' })
    const order: Order = {
      orderNo,
      tenantId: this.#tenants.get(row.deviceId) ?? 'default',
      deviceId: row.deviceId,
      protocol: row.protocol,
      socket: row.socket,
      port: row.port,
      mode: null,
      request: null,
      commandId: null,
      orderKey: key,
      wireHex: row.wireHex,
      state: 'charging',
      origin: row.origin,
      cardId: row.cardId,
      businessNo: null,
      tariff: null,
      startedMs: null,
      endedMs: null,
      durationS: null,
      energyWh: null,
      maxPowerW: null,
      amountFen: null,
      amountLines: null,
      cardFen: null,
      endReason: null,
      endReasonRaw: null,
      failReason: null,
      isEstimated: false,
      settledMs: null,
      lastProgressMs: null,
      epoch: 0,
      version: 1,
      createdMs: Number.NaN,
      sentMs: null,
      finishedMs: null,
      isNew: true,
      isChanged: false,
    }
    this.#add(order)
    return order
  }

  #change(order: Order): void {
    if (order.isNew || order.isChanged) return
    order.isChanged = true
    order.version++
  }

  /** @returns false: the state machine refuses, and nothing is to be changed */
  #move(order: Order, event: OrderEvent, atMs: number, epoch: number, reason: string | null = null): boolean {
    const found = transition(order.state, event)
    if ('illegal' in found) {
      const name = `${event} in ${order.state}`
      this.counts.illegal[name] = (this.counts.illegal[name] ?? 0) + 1
      return false
    }
    const from = order.state
    if (found.to === from) return true
    this.#change(order)
    order.state = found.to
    if (found.to === 'charging' && from !== 'stopping') {
      order.failReason = null
      order.startedMs ??= atMs
      this.#tellStarted(order, atMs, epoch)
    }
    if (found.to === 'failed' || found.to === 'cancelled') {
      order.failReason = reason
      this.counts[found.to]++
      if (found.to === 'failed') this.#tellFailed(order, atMs, epoch)
    }
    return true
  }

  // ---- commands ------------------------------------------------------------------------------------------------

  /** @param result of an acked start: `business_no` names a BKV order */
  startMoved(
    order: Order,
    event: OrderEvent,
    fate: { atMs: number; epoch: number; reason: string; wireHex: string; result: Readonly<Record<string, unknown>> },
  ): void {
    const { atMs, epoch, reason, result } = fate
    if (event === 'start_acked' && !('illegal' in transition(order.state, event))) {
      const { business_no: businessNo } = result
      if (typeof businessNo === 'number' && Number.isInteger(businessNo) && businessNo > 0 && businessNo <= 0xffff)
        this.#number(order, businessNo, atMs, epoch)
      else if (order.orderKey === null && fate.wireHex.length === 32) this.#key(order, fate.wireHex, fate.wireHex)
    }
    this.#move(order, event, atMs, epoch, reason)
  }

  stopMoved(order: Order, event: OrderEvent, atMs: number, epoch: number): void {
    this.#move(order, event, atMs, epoch)
  }

  /** The device's number of an order we started. */
  #number(order: Order, businessNo: number, atMs: number, epoch: number): void {
    if (order.orderKey !== null) return
    const wireHex = businessNo.toString(16).padStart(4, '0')
    const sentMs = order.sentMs ?? order.createdMs
    // a report overtook the result and made an order of its own
    for (const other of this.#byPlace.get(placeOf(order)) ?? []) {
      const isSame =
        other !== order &&
        other.wireHex === wireHex &&
        other.commandId === null &&
        (other.state === 'charging' || other.state === 'stopping') &&
        (other.startedMs ?? 0) >= sentMs - 120_000
      if (isSame) this.#merge(other, order, atMs, epoch)
    }
    this.#key(order, wireHex, `${wireHex}@${order.orderNo}`)
    order.businessNo = businessNo
  }

  #key(order: Order, wireHex: string, orderKey: string): void {
    this.#change(order)
    order.wireHex = wireHex
    order.orderKey = orderKey
    this.#byKey.set(`${placeOf(order)}/${orderKey}`, order)
  }

  /** No move of a charge, so the state machine is not asked: `from` never was one of its own. */
  #merge(from: Order, into: Order, atMs: number, epoch: number): void {
    this.#change(from)
    this.#change(into)
    into.startedMs ??= from.startedMs
    into.durationS = from.durationS
    into.energyWh = from.energyWh
    into.maxPowerW = from.maxPowerW
    into.lastProgressMs = from.lastProgressMs
    if (from.orderKey !== null) this.#byKey.delete(`${placeOf(from)}/${from.orderKey}`)
    from.orderKey = null
    from.state = 'cancelled'
    from.failReason = `is ${into.orderNo}`
    this.counts.cancelled++
    this.#tellFailed(from, atMs, epoch)
  }

  // ---- reports -------------------------------------------------------------------------------------------------

  /** The device says that an order runs. @returns false: nothing new */
  started(row: StartRow): boolean {
    let order = this.#byKey.get(`${placeOf(row)}/${row.orderKey}`)
    let key = row.orderKey
    if (isReused(row.orderKey)) {
      const { atMs, origin } = row
      const found = orderOfProgress(this.#at(row), { wireHex: wireOf(row), origin, atMs, durationS: 0 })
      if (found === 'late') return false
      order = found === 'new' ? undefined : found
      key = newKeyOfStart(row)
      if (order !== undefined) this.#number(order, Number.parseInt(wireOf(row), 16), row.atMs, row.epoch)
    }
    if (order === undefined) {
      if (row.orderKey === '') return false
      order = this.#newOrder(row, key)
      order.startedMs = row.atMs
      order.epoch = row.epoch
      this.#tellStarted(order, row.atMs, row.epoch)
      return true
    }
    const before = order.state
    order.startedMs ??= row.atMs
    if (!this.#move(order, 'confirmed', row.atMs, row.epoch) || order.state === before) return false
    order.wireHex ??= row.wireHex
    order.cardId ??= row.cardId
    order.epoch = Math.max(order.epoch, row.epoch)
    return true
  }

  /** @returns fenced: a newer session speaks for the order, the sample is kept all the same */
  progressed(row: ProgressRow): 'fenced' | undefined {
    if (row.orderKey === '') return undefined
    let order = this.#byKey.get(`${placeOf(row)}/${row.orderKey}`)
    let key = row.orderKey
    if (isReused(row.orderKey)) {
      const { origin, atMs, durationS } = row
      const found = orderOfProgress(this.#at(row), { wireHex: wireOf(row), origin, atMs, durationS })
      if (found === 'late') return undefined
      order = found === 'new' ? undefined : found
      key = newKeyOfProgress(row)
    }
    const startedMs = row.atMs - row.durationS * 1_000
    if (order === undefined) {
      order = this.#newOrder(row, key)
      order.startedMs = startedMs
      this.#tellStarted(order, row.atMs, row.epoch)
    } else {
      if (row.epoch < order.epoch) return order.state === 'settled' ? undefined : 'fenced'
      if (order.lastProgressMs !== null && row.atMs <= order.lastProgressMs) return undefined
      if (isReused(row.orderKey)) this.#number(order, Number.parseInt(wireOf(row), 16), row.atMs, row.epoch)
      order.startedMs ??= startedMs
      if (!this.#move(order, 'progress', row.atMs, row.epoch)) return undefined
      this.#change(order)
    }
    order.wireHex ??= row.wireHex
    order.cardId ??= row.cardId
    order.durationS = row.durationS
    order.energyWh = row.energyWh ?? order.energyWh
    order.maxPowerW = largest(order.maxPowerW, row.maxPowerW, row.peakPowerW, row.powerW)
    order.lastProgressMs = row.atMs
    order.epoch = Math.max(order.epoch, row.epoch)
    this.#tell('charging.progress', order, row.atMs, row.epoch, [row.durationS], {
      order_no: order.orderNo,
      socket: order.socket,
      port: order.port,
      state: order.state,
      port_state: row.state,
      started_at: timeOf(order.startedMs),
      duration_s: order.durationS,
      energy_wh: order.energyWh,
      power_w: row.powerW,
      voltage_v: row.voltageV,
      current_a: row.currentA,
    })
    return undefined
  }

  #at(row: Place): readonly Order[] {
    return this.#byPlace.get(placeOf(row)) ?? []
  }

  /** @returns the stored settlement that this one repeats, maybe with other figures; undefined: it was new */
  settled(row: SettlementRow): PortSettlement | undefined {
    let order = this.#byKey.get(`${placeOf(row)}/${row.orderKey}`)
    let key = row.orderKey
    const stored = this.#settlements.get(placeOf(row)) ?? []
    if (isReused(row.orderKey)) {
      const found = orderOfSettlement(this.#at(row), stored, {
        wireHex: wireOf(row),
        origin: row.origin,
        durationS: row.durationS,
        energyRaw: row.energyRaw,
        receivedMs: row.receivedMs,
        deviceEndedMs: believedEndMs(row),
      })
      if (found !== 'new' && 'repeats' in found) return found.repeats
      order = found === 'new' ? undefined : found.order
      key = newKeyOfSettlement(row)
    } else {
      const known = stored.find((settlement) => settlement.orderKey === row.orderKey)
      if (known !== undefined) return known
    }
    const startedMs = endedMs(row) - row.durationS * 1_000
    let event: OrderEvent = 'settled'
    const before = order === undefined ? undefined : figuresOf(order)
    if (order === undefined) {
      order = this.#newOrder(row, key)
      order.state = 'settled'
    } else {
      if (isReused(row.orderKey)) this.#number(order, Number.parseInt(wireOf(row), 16), row.receivedMs, row.epoch)
      event = settlementEvent(order.state, order.isEstimated)
      // a settlement without a row of its own, which only an older release can have left: the device's word stands
      if (order.state === 'settled' && !order.isEstimated) this.#change(order)
      else this.#move(order, event, row.receivedMs, row.epoch)
      this.#change(order)
    }
    order.wireHex ??= row.wireHex
    // who started it is said at its end only, unless we did
    if (order.commandId === null) order.origin = row.origin
    order.cardId = row.cardId ?? order.cardId
    order.businessNo = row.businessNo ?? order.businessNo
    order.startedMs ??= startedMs
    order.durationS = row.durationS
    order.endedMs = order.startedMs + row.durationS * 1_000
    order.energyWh = row.energyWh
    order.maxPowerW = row.maxPowerW || (order.maxPowerW ?? 0)
    order.endReason = row.endReason
    order.endReasonRaw = row.endReasonRaw
    order.failReason = null
    order.isEstimated = false
    order.settledMs = row.receivedMs
    order.epoch = Math.max(order.epoch, row.epoch)
    this.#bill(order, row.deviceAmountFen)
    this.#newSettlements.push({ row, order })
    this.#addSettlement({ ...row, orderKey: order.orderKey ?? key, wireHex: row.wireHex })
    if (event === 'real_settlement_after_estimate') {
      this.counts.corrected++
      this.#tellEnd('order.corrected', order, row.receivedMs, row.epoch, [order.version], {
        corrects: eventIdOf('charging.ended', order.deviceId, order.orderNo),
        before,
      })
    } else {
      this.counts.settled++
      this.#tellEnd('charging.ended', order, row.receivedMs, row.epoch, [], {})
    }
    return undefined
  }

  /** Settles with the last known figures. @returns false: it is not open any more */
  estimate(order: Order, atMs: number): boolean {
    if (!this.#move(order, 'settled_estimated', atMs, order.epoch)) return false
    order.startedMs ??= order.createdMs
    order.durationS ??= 0
    order.energyWh ??= 0
    order.maxPowerW ??= 0
    order.endedMs = order.startedMs + order.durationS * 1_000
    order.endReason = 'unknown'
    order.isEstimated = true
    order.settledMs = atMs
    this.#bill(order, null)
    this.counts.estimated++
    this.#tellEnd('charging.ended', order, atMs, order.epoch, [], {})
    return true
  }

  /**
   * Puts right what a wrong energy factor did to a settled order: its energy, its amount by the tariff it was billed with,
   * and by the difference what its card paid. An amount that the device named stays.
   *
   * @param energyWh the raw count of the order's settlement by the right factor
   * @param why for the event
   * @returns false: nothing differs, or the order has no settlement by its device
   */
  recompute(order: Order, energyWh: number, atMs: number, why: Readonly<Record<string, unknown>>): boolean {
    if (order.state !== 'settled' || order.isEstimated || order.orderKey === null) return false
    if (order.energyWh === energyWh) return false
    const before = figuresOf(order)
    this.#change(order)
    order.energyWh = energyWh
    // never the tariff of today: without one of its own, nobody can say what the order would have cost
    const cost = costOf(chargedOf(order), order.tariff, null, order.amountFen)
    order.amountFen = cost.amountFen
    if (cost.lines !== null) order.amountLines = linesOf(cost.lines)
    this.#recomputed.push(order)
    this.counts.corrected++
    const event = this.#endEvent('order.corrected', order, atMs, order.epoch, [order.version], {
      corrects: eventIdOf('charging.ended', order.deviceId, order.orderNo),
      before,
      ...why,
    })
    // a card that paid nothing then pays nothing now
    if (order.cardFen !== null) this.#bills.push({ order, event })
    return true
  }

  /** A start that nobody decides any more: failed. @returns false: it is decided already */
  timeOut(order: Order, atMs: number): boolean {
    return this.#move(order, 'timed_out', atMs, order.epoch, 'timed_out')
  }

  #bill(order: Order, deviceAmountFen: number | null): void {
    const cost = costOf(chargedOf(order), order.tariff, this.#tariffs.get(order.deviceId), deviceAmountFen)
    order.amountFen = cost.amountFen
    order.amountLines = cost.lines === null ? null : linesOf(cost.lines)
    order.tariff = cost.tariff
  }

  // ---- events --------------------------------------------------------------------------------------------------

  #tell(
    eventType: string,
    order: Order,
    atMs: number,
    epoch: number,
    names: readonly (string | number)[],
    data: Record<string, unknown>,
  ): DerivedEvent {
    const { deviceId, orderNo } = order
    const eventId = eventIdOf(eventType, deviceId, orderNo, ...names)
    const event = { eventId, eventType, deviceId, epoch, orderKey: orderNo, atMs, data }
    this.events.push(event)
    return event
  }

  #tellStarted(order: Order, atMs: number, epoch: number): void {
    this.counts.started++
    this.#tell('charging.started', order, atMs, epoch, [], {
      order_no: order.orderNo,
      socket: order.socket,
      port: order.port,
      mode: order.mode,
      origin: order.origin,
      card_id: order.cardId,
      started_at: timeOf(order.startedMs),
    })
  }

  #tellFailed(order: Order, atMs: number, epoch: number): void {
    this.#tell('order.failed', order, atMs, epoch, [order.version], {
      order_no: order.orderNo,
      socket: order.socket,
      port: order.port,
      mode: order.mode,
      origin: order.origin,
      state: order.state,
      reason: order.failReason,
    })
  }

  #tellEnd(
    eventType: 'charging.ended' | 'order.corrected',
    order: Order,
    atMs: number,
    epoch: number,
    names: readonly number[],
    more: Record<string, unknown>,
  ): void {
    this.#bills.push({ order, event: this.#endEvent(eventType, order, atMs, epoch, names, more) })
  }

  #endEvent(
    eventType: 'charging.ended' | 'order.corrected',
    order: Order,
    atMs: number,
    epoch: number,
    names: readonly number[],
    more: Record<string, unknown>,
  ): DerivedEvent {
    return this.#tell(eventType, order, atMs, epoch, names, {
      order_no: order.orderNo,
      socket: order.socket,
      port: order.port,
      mode: order.mode,
      origin: order.origin,
      business_no: order.businessNo,
      ...figuresOf(order),
      amount_lines: order.amountLines,
      estimated: order.isEstimated,
      version: order.version,
      ...more,
    })
  }

  // ---- writing -------------------------------------------------------------------------------------------------

  /** Writes cards, orders and settlements. Events are left to the caller, who inserts them last in the transaction. */
  async write(): Promise<void> {
    await this.#chargeCards()
    const orders = [...this.#byNo.values()]
    const fresh = orders.filter(({ isNew }) => isNew)
    const changed = orders.filter(({ isNew, isChanged }) => isChanged && !isNew)
    await all([
      changed.length > 0 && run(this.#tx, UPDATE_ORDERS, parameters(ORDERS, orderValues(changed))),
      fresh.length > 0 && run(this.#tx, INSERT_ORDERS, parameters(ORDERS, orderValues(fresh))),
      this.#insertSettlements(),
      this.#recomputed.length > 0 &&
        run(this.#tx, UPDATE_CONVERTED, parameters(CONVERTED, convertedValues(this.#recomputed))),
    ])
  }

  /** Takes what card orders cost from their cards: the difference to what was taken before, so each amount once. */
  async #chargeCards(): Promise<void> {
    const bills = this.#bills.filter(
      ({ order }) => order.origin === 'card' && order.cardId !== null && order.amountFen !== null,
    )
    if (bills.length === 0) return
    const wanted = new Map<string, { tenant_id: string; card_id: string }>()
    for (const { order } of bills) wanted.set(cardOf(order), { tenant_id: order.tenantId, card_id: order.cardId! })
    const cards = await run<{ tenant_id: string; card_id: string; rate_mode: number; balance_fen: number }>(
      this.#tx,
      LOCK_CARDS,
      parameters(CARDS, pick([...wanted.values()], { tenant_id: (c) => c.tenant_id, card_id: (c) => c.card_id })),
    )
    const balances = new Map<string, { tenant_id: string; card_id: string; balance_fen: number }>()
    for (const card of cards)
      if (card.rate_mode !== MONTHLY) balances.set(`${card.tenant_id}/${card.card_id.toLowerCase()}`, { ...card })
    for (const { order, event } of bills) {
      const card = balances.get(cardOf(order))
      if (card === undefined) continue
      this.#change(order)
      card.balance_fen -= order.amountFen! - (order.cardFen ?? 0)
      order.cardFen = order.amountFen
      // the electricity is gone: the debt is kept and said
      if (card.balance_fen < 0) this.counts.overdrawn++
      Object.assign(event.data, { card_balance_fen: card.balance_fen, is_overdrawn: card.balance_fen < 0 })
    }
    const values = pick([...balances.values()], {
      tenant_id: (c) => c.tenant_id,
      card_id: (c) => c.card_id,
      balance_fen: (c) => c.balance_fen,
    })
    if (balances.size > 0) await run(this.#tx, UPDATE_CARDS, parameters(BALANCES, values))
  }

  async #insertSettlements(): Promise<void> {
    if (this.#newSettlements.length === 0) return
    const rows = this.#newSettlements.toSorted((a, b) => byText(settlementKey(a.order), settlementKey(b.order)))
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
    await run(this.#tx, INSERT_SETTLEMENTS, parameters(SETTLEMENTS, values))
  }
}

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
const settlementKey = (order: Order) => `${placeOf(order)}/${order.orderKey}`

/** `cards.rate_mode`: the month is paid, its charges cost nothing more. */
const MONTHLY = 1
const CARDS = { tenant_id: 'text', card_id: 'text' } as const satisfies Columns
const BALANCES = { ...CARDS, balance_fen: 'int8' } as const satisfies Columns
/** One card may be used at many devices: sorted, so that two writers never wait for one another. */
const LOCK_CARDS = `
  select c.tenant_id, c.card_id, c.rate_mode, c.balance_fen from cards c
  join ${source(CARDS)} on c.tenant_id = i.tenant_id and c.card_id = i.card_id
  order by c.tenant_id, c.card_id for update of c`
const UPDATE_CARDS = `
  update cards c set balance_fen = i.balance_fen, updated_at = now()
  from ${source(BALANCES)} where c.tenant_id = i.tenant_id and c.card_id = i.card_id`
const cardOf = (order: Order) => `${order.tenantId}/${order.cardId!.toLowerCase()}`

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

const chargedOf = ({ startedMs, durationS, energyWh, maxPowerW, mode, request }: Order): Charged => ({
  startedMs: startedMs ?? 0,
  durationS: durationS ?? 0,
  energyWh: energyWh ?? 0,
  maxPowerW: maxPowerW ?? 0,
  mode,
  request,
})

function figuresOf(order: Order) {
  return {
    started_at: timeOf(order.startedMs),
    ended_at: timeOf(order.endedMs),
    duration_s: order.durationS,
    energy_wh: order.energyWh,
    max_power_w: order.maxPowerW,
    amount_fen: order.amountFen,
    end_reason: order.endReason,
    end_reason_raw: order.endReasonRaw,
    card_id: order.cardId,
  }
}

function largest(...values: readonly (number | null)[]): number | null {
  const given = values.filter((value) => value !== null)
  return given.length === 0 ? null : Math.max(...given)
}
