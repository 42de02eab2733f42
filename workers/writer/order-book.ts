/**
 * The orders that a transaction is about: read once under lock, moved in memory by the state machine, written once, with
 * the events that tell of it. Pure: order-tables.ts reads and writes, the simulation keeps maps instead. Whoever uses it
 * holds the rows of the devices, so nobody else settles these orders; order rows are locked because HTTP and the command
 * desk write them too.
 *
 * Events of orders: charging.started once per order, charging.progress per report that moves one, charging.ended exactly
 * once per order, order.corrected when a device's settlement replaces an estimate or a wrong energy factor is put right,
 * order.failed. `order_key` of an event is our order number.
 */
import { eventIdOf } from '../../src/events/event-id.ts'
import { type OrderEvent, settlementEvent, transition } from '../../src/orders/state.ts'
import { RATE_MODES } from '../../src/protocols/ap3000/rate-mode.ts'
import { protocolNamed } from '../../src/protocols/index.ts'
import type { orderStartRow, ProgressRow, SettlementRow } from '../../src/rows/index.ts'
import type { RowOf } from '../../src/rows/row.ts'
import { REUSED_MARK } from '../../src/session/order-key.ts'
import { type Charged, costOf, linesOf } from './money.ts'
import { NEVER_CHARGED, type Order } from './order.ts'
import { byText } from './statements.ts'
import { isInDoubt, orderOfProgress, orderOfSettlement, type PortSettlement, YEAR_2020_MS } from './which-order.ts'

export type StartRow = RowOf<typeof orderStartRow.fields>

/** A fact for the stream, not yet inserted: what it says may still grow until then. */
export interface DerivedEvent {
  readonly eventId: string
  readonly eventType: string
  readonly deviceId: string
  readonly epoch: number
  readonly orderKey: string | null
  /** Of what it is about; absent: the command that `data` names, else the device. */
  readonly tenantId?: string
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

export interface Place {
  readonly deviceId: string
  readonly socket: number
  readonly port: number
}
export interface FoundSettlement extends PortSettlement, Place {
  readonly orderKey: string
}
/** What was read for {@link Asked}, under lock. */
export interface Found {
  /** Without marks: `isNew` and `isChanged` are false. */
  readonly orders: readonly Order[]
  readonly settlements: readonly FoundSettlement[]
  /** Of the numbers asked for. */
  readonly taken: readonly string[]
  /** Of devices. */
  readonly tariffs: ReadonlyMap<string, unknown>
}
const placeOf = (row: Place) => `${row.deviceId}/${row.socket}/${row.port}`
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

export interface Numbered extends Place {
  readonly orderKey: string
  readonly orderNo: string
}
/** Devices choose their numbers without knowing of one another: ours are tried in this order, the last nobody else has. */
function numbersOf({ deviceId, socket, port, orderNo }: Numbered, key: string): string[] {
  const last = `${orderNo}.${deviceId}.${socket}.${port}.${key}`
  return orderNo === '' ? [last] : [orderNo, `${orderNo}.${deviceId}.${port}`, last]
}

/** What became of a start; of a stop, as far as it counts. */
interface StartFate {
  readonly atMs: number
  readonly epoch: number
  readonly reason: string
  readonly wireHex: string
  readonly result: Readonly<Record<string, unknown>>
}

const isBusinessNo = (value: unknown): value is number =>
  typeof value === 'number' && Number.isInteger(value) && value > 0 && value <= 0xffff

/** What has to be read before anything is decided. */
export interface Asked {
  readonly commandIds: readonly string[]
  readonly commandWires: readonly { readonly commandId: string; readonly wireHex: string }[]
  readonly orderNos: readonly string[]
  /** Orders and settlements with these keys. */
  readonly exact: readonly Numbered[]
  /** Of these places: with a key of this wire number, and orders that wait for a number. */
  readonly wires: readonly (Numbered & { readonly wireHex: string })[]
  /** Which of these order numbers exist? */
  readonly numbers: readonly string[]
  readonly needsSettlements: boolean
  readonly needsTariffs: boolean
}

/** Pure. */
export function askedOf(wants: Wants): Asked {
  const { commandIds = [], commandWires = [], orderNos = [], starts = [], progress = [], settlements = [] } = wants
  const exact = new Map<string, Numbered>()
  const wires = new Map<string, Numbered & { readonly wireHex: string }>()
  const numbers = new Set<string>()
  const want = (row: Numbered, newKey: string) => {
    if (row.orderKey === '') return
    const isWire = isReused(row.orderKey)
    const { deviceId, socket, port, orderKey, orderNo } = row
    const key = `${placeOf(row)}/${orderKey}`
    if (isWire) wires.set(key, { deviceId, socket, port, orderKey, orderNo, wireHex: wireOf(row) })
    else exact.set(key, row)
    for (const number of numbersOf(row, isWire ? newKey : row.orderKey)) numbers.add(number)
  }
  for (const row of starts) want(row, newKeyOfStart(row))
  for (const row of progress) want(row, newKeyOfProgress(row))
  for (const row of settlements) want(row, newKeyOfSettlement(row))
  return {
    commandIds,
    commandWires,
    orderNos,
    exact: [...exact.values()],
    wires: [...wires.values()],
    numbers: [...numbers],
    needsSettlements: settlements.length > 0,
    needsTariffs: settlements.length + orderNos.length > 0,
  }
}

export interface CardBalance {
  readonly tenantId: string
  readonly cardId: string
  /** `cards.rate_mode`. */
  readonly rateMode: number
  /** Of a month that is paid; null: without end. */
  readonly expiresMs: number | null
  readonly balanceFen: number
}

/** What a transaction has to write. */
export interface OrderChanges {
  readonly fresh: readonly Order[]
  readonly changed: readonly Order[]
  /** Sorted by key. */
  readonly settlements: readonly { readonly row: SettlementRow; readonly order: Order }[]
  readonly recomputed: readonly Order[]
}

export class OrderBook {
  readonly counts = noOrderCounts()
  readonly events: DerivedEvent[] = []
  readonly #tenants: ReadonlyMap<string, string>
  readonly #byNo = new Map<string, Order>()
  readonly #byKey = new Map<string, Order>()
  readonly #byPlace = new Map<string, Order[]>()
  readonly #settlements = new Map<string, FoundSettlement[]>()
  readonly #taken = new Set<string>()
  readonly #tariffs = new Map<string, unknown>()
  readonly #newSettlements: { readonly row: SettlementRow; readonly order: Order }[] = []
  /** Settled orders whose energy was converted anew. */
  readonly #recomputed: Order[] = []
  /** Orders whose amount was computed here, with the event that says so. */
  readonly #bills: { readonly order: Order; readonly event: DerivedEvent }[] = []

  /** @param tenants of the devices, whose rows are locked */
  constructor(tenants: ReadonlyMap<string, string>, found: Found) {
    this.#tenants = tenants
    for (const order of found.orders) this.#add(order)
    for (const settlement of found.settlements) this.#addSettlement(settlement)
    for (const orderNo of found.taken) this.#taken.add(orderNo)
    for (const [deviceId, tariff] of found.tariffs) this.#tariffs.set(deviceId, tariff)
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

  #addSettlement(settlement: FoundSettlement): void {
    const place = this.#settlements.get(placeOf(settlement))
    if (place === undefined) this.#settlements.set(placeOf(settlement), [settlement])
    else place.push(settlement)
  }

  #newOrder(row: Numbered & Pick<StartRow, 'protocol' | 'wireHex' | 'origin' | 'cardId'>, key: string): Order {
    const orderNo = numbersOf(row, key).find((number) => !this.#taken.has(number))
    // the last one names the whole key: a transaction that began earlier has just made this order
    if (orderNo === undefined) throw Object.assign(new Error(`order ${key} appeared meanwhile`), { code: '40001' })
    const order: Order = {
      ...NEVER_CHARGED,
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
      // a number that comes round again is the device's business number, known from its first report on
      businessNo: isReused(row.orderKey) ? Number.parseInt(row.wireHex, 16) : null,
      state: 'charging',
      origin: row.origin,
      cardId: row.cardId,
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
  startMoved(order: Order, event: OrderEvent, fate: StartFate): void {
    const { atMs, epoch, reason, result } = fate
    if (event === 'start_acked' && !('illegal' in transition(order.state, event))) {
      const { business_no: businessNo } = result
      // two starts in doubt and one charge: a report is no proof for the second of them (simulation, seed 21127)
      const isGuess = reason === 'confirmed_by_report' && order.wireHex === null && isBusinessNo(businessNo)
      if (isGuess && this.#isOfAnotherStart(order, businessNo)) return
      if (isBusinessNo(businessNo) && this.#isSettledAlready(order, businessNo, atMs, epoch)) return
      if (isBusinessNo(businessNo)) this.#number(order, businessNo, atMs, epoch)
      else if (order.orderKey === null && fate.wireHex.length === 32) this.#key(order, fate.wireHex, fate.wireHex)
    }
    this.#move(order, event, atMs, epoch, reason)
  }

  /** @param result of an acked stop: `business_no` is of the charge that BKV stopped, whatever was meant */
  stopMoved(order: Order, event: OrderEvent, fate: Pick<StartFate, 'atMs' | 'epoch' | 'result'>): void {
    const isOurs = event !== 'stop_acked' || this.#isStopOf(order, fate)
    this.#move(order, isOurs ? event : 'stop_moot', fate.atMs, fate.epoch)
  }

  /**
   * A BKV stop names a port. When our start was refused because another charge ran there, the stop ended that one, and
   * our order must not be taken for one that ran (simulation, seed 319).
   */
  #isStopOf(order: Order, { atMs, epoch, result }: Pick<StartFate, 'atMs' | 'epoch' | 'result'>): boolean {
    if (order.wireHex?.length === 32) return true
    if (order.state === 'failed' && !isInDoubt(order)) return false
    const { business_no: businessNo } = result
    if (!isBusinessNo(businessNo)) return true
    const wireHex = businessNo.toString(16).padStart(4, '0')
    if (order.wireHex !== null) return order.wireHex === wireHex
    const isOther = this.#isOfAnother(order, wireHex)
    if (!isOther) this.#number(order, businessNo, atMs, epoch)
    return !isOther
  }

  /** A charge that a report brought before its start was acked has an order too, but one that nobody started. */
  #isOfAnotherStart(order: Order, businessNo: number): boolean {
    const wireHex = businessNo.toString(16).padStart(4, '0')
    const isStarted = this.#at(order).some(
      (other) => other !== order && other.wireHex === wireHex && other.commandId !== null,
    )
    return isStarted && this.#isOfAnother(order, wireHex)
  }

  /**
   * The result came when the charge was over, and its reports had made an order of their own, which is settled: ours is
   * that charge, and billed again it would be paid twice (simulation, seed 107100).
   */
  #isSettledAlready(order: Order, businessNo: number, atMs: number, epoch: number): boolean {
    const wireHex = businessNo.toString(16).padStart(4, '0')
    const sentMs = order.sentMs ?? order.createdMs
    const settled = this.#at(order).find(
      (other) =>
        other !== order &&
        other.commandId === null &&
        other.wireHex === wireHex &&
        other.state === 'settled' &&
        (other.settledMs ?? 0) >= sentMs &&
        (other.startedMs ?? 0) >= sentMs - 120_000,
    )
    if (settled === undefined || order.orderKey !== null) return false
    this.#change(order)
    order.failReason = `is ${settled.orderNo}`
    if (order.state !== 'failed') {
      order.state = 'cancelled'
      this.counts.cancelled++
      this.#tellFailed(order, atMs, epoch)
    }
    return true
  }

  /** Does this number, told now, name the charge of another order of the port? */
  #isOfAnother(order: Order, wireHex: string): boolean {
    const sentMs = order.sentMs ?? order.createdMs
    return this.#at(order).some(
      (other) =>
        other !== order &&
        other.wireHex === wireHex &&
        // what was estimated may charge still
        (other.state === 'charging' ||
          other.state === 'stopping' ||
          other.isEstimated ||
          (other.settledMs ?? 0) >= sentMs),
    )
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
    // what we began knows its card better: the identity of a social security card is in its swipe alone (AP3000 7, 02)
    if (order.commandId === null || order.cardId === null) order.cardId = row.cardId ?? order.cardId
    order.businessNo = row.businessNo ?? order.businessNo
    order.startedMs ??= startedMs
    order.durationS = row.durationS
    order.endedMs = order.startedMs + row.durationS * 1_000
    order.energyWh = row.energyWh
    // else the tier, and with it the price, would hang on the watts at the end
    order.maxPowerW = protocolNamed(row.protocol)?.endsWithLastPower
      ? Math.max(row.maxPowerW ?? 0, order.maxPowerW ?? 0)
      : row.maxPowerW || (order.maxPowerW ?? 0)
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
    // the device may have been given to another tenant since the order began
    const { deviceId, orderNo, tenantId } = order
    const eventId = eventIdOf(eventType, deviceId, orderNo, ...names)
    const event = { eventId, eventType, deviceId, epoch, orderKey: orderNo, tenantId, atMs, data }
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

  // ---- what is to be written ---------------------------------------------------------------------------------------

  /** Cards that pay for orders of this transaction: to be locked, sorted, and given to `chargeCards`. */
  get cardsWanted(): { readonly tenantId: string; readonly cardId: string }[] {
    const wanted = new Map<string, { tenantId: string; cardId: string }>()
    for (const { order } of this.#cardBills)
      wanted.set(cardOf(order), { tenantId: order.tenantId, cardId: order.cardId as string })
    return [...wanted.values()]
  }

  get #cardBills() {
    return this.#bills.filter(
      ({ order }) => order.origin === 'card' && order.cardId !== null && order.amountFen !== null,
    )
  }

  /**
   * Takes what card orders cost from their cards: the difference to what was taken before, so each amount once.
   * @returns new balances, to be written
   */
  chargeCards(cards: readonly CardBalance[]): CardBalance[] {
    const balances = new Map<string, { -readonly [K in keyof CardBalance]: CardBalance[K] }>()
    const charged = new Set<CardBalance>()
    for (const card of cards) balances.set(`${card.tenantId}/${card.cardId.toLowerCase()}`, { ...card })
    for (const { order, event } of this.#cardBills) {
      const card = balances.get(cardOf(order))
      if (card === undefined || isMonthPaid(card, order)) continue
      this.#change(order)
      card.balanceFen -= order.amountFen! - (order.cardFen ?? 0)
      order.cardFen = order.amountFen
      charged.add(card)
      // the electricity is gone: the debt is kept and said
      if (card.balanceFen < 0) this.counts.overdrawn++
      Object.assign(event.data, { card_balance_fen: card.balanceFen, is_overdrawn: card.balanceFen < 0 })
    }
    return [...charged]
  }

  /** After the cards were charged. */
  changes(): OrderChanges {
    const orders = [...this.#byNo.values()]
    return {
      fresh: orders.filter(({ isNew }) => isNew),
      changed: orders.filter(({ isNew, isChanged }) => isChanged && !isNew),
      settlements: this.#newSettlements.toSorted((a, b) => byText(settlementKey(a.order), settlementKey(b.order))),
      recomputed: this.#recomputed,
    }
  }
}

const settlementKey = (order: Order) => `${placeOf(order)}/${order.orderKey}`

/** What begins within it costs its card nothing more; what begins behind it is paid from the balance like any other. */
const isMonthPaid = ({ rateMode, expiresMs }: CardBalance, { startedMs }: Order) =>
  rateMode === RATE_MODES.monthly && (expiresMs === null || (startedMs ?? 0) < expiresMs)
const cardOf = (order: Order) => `${order.tenantId}/${order.cardId!.toLowerCase()}`

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
