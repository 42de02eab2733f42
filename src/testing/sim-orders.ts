/**
 * `orders`, `settlements`, `cards` and `events` as maps by natural key, moved by the writers' own code: the order book,
 * the fates of commands and the reconciler decide here as they do on PostgreSQL, only reading and writing is modelled.
 * Beside it what must hold of money in the end.
 */
import { CommandFates } from '../../workers/writer/command-fates.ts'
import { NEVER_CHARGED, type Order } from '../../workers/writer/order.ts'
import {
  type Asked,
  askedOf,
  type CardBalance,
  type DerivedEvent,
  type Found,
  type FoundSettlement,
  OrderBook,
  type OrderCounts,
  type Place,
  type Wants,
} from '../../workers/writer/order-book.ts'
import { applyOrderRows, type OrderRows, wantsOf } from '../../workers/writer/order-rows.ts'
import type { CardAnswer } from '../codec/protocol.ts'
import type { DoubtedOrder, ReconcilerStore, UndecidedStart } from '../main/reconciler.ts'
import type { SettlementRow } from '../rows/index.ts'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import type { CommandTable } from './sim-commands.ts'
import { WALL_MS } from './sim-gateway.ts'
import { referenceFen, type TariffJson } from './sim-tariff.ts'
import { type SeenSettlement, settlementKeyOf } from './sim-wire.ts'
import type { World } from './sim-world.ts'

const TENANT = 'default'
const RUNNING = new Set(['pending', 'starting', 'charging', 'stopping'])
/** As the statements of order-tables.ts bound them. */
const UNNUMBERED_MAX = 8
const NUMBERED_MAX = 3
const WAITS_FOR_NUMBER = new Set(['pending', 'starting', 'stopping', 'failed'])
const MONTHLY = 1
/** How many digits of a number the mutant `orderNumbersCollide` keeps apart. */
export const COLLIDING_NUMBERS = 7

export interface ModelSettlement extends FoundSettlement {
  readonly row: SettlementRow
  readonly amountFen: number | null
}

interface ModelCard {
  readonly cardId: string
  readonly rateMode: number
  readonly isActive: boolean
  readonly startFen: number
  balanceFen: number
  /** Every balance it ever had. */
  readonly balances: Set<number>
}

/** An order as HTTP stores it, together with its start. */
export interface NewOrder extends Place {
  readonly orderNo: string
  readonly protocol: string
  /** AP3000: the 32 digits; null: the device makes the number. */
  readonly orderKey: string | null
  readonly mode: string
  readonly origin: string
  readonly cardId: string | null
  readonly request: Readonly<Record<string, unknown>>
  readonly tariff: TariffJson | null
  readonly commandId: string
}

const placeOf = ({ deviceId, socket, port }: Place) => `${deviceId}/${socket}/${port}`
const keyOf = (place: Place, orderKey: string) => `${placeOf(place)}/${orderKey}`

export class ModelOrders {
  readonly orders = new Map<string, Order>()
  /** By natural key; more than one row is a violation that only a mutant can bring about. */
  readonly settlements = new Map<string, ModelSettlement[]>()
  readonly cards = new Map<string, ModelCard>()
  readonly events = new Map<string, DerivedEvent>()
  /** `devices.tariff`. */
  readonly tariffs = new Map<string, TariffJson>()
  readonly #world: World
  readonly #table: CommandTable
  readonly #byPlace = new Map<string, string[]>()
  readonly #byKey = new Map<string, string>()
  /** Settlement rows by device, socket, port and wire number. */
  readonly #byWire = new Map<string, ModelSettlement[]>()
  readonly #doubtedMs = new Map<string, number>()

  constructor(world: World, table: CommandTable) {
    this.#world = world
    this.#table = table
  }

  get #nowMs(): number {
    return WALL_MS + this.#world.time.nowMs
  }

  /** @returns how many settlements of this number are stored */
  stored(place: Place, wireHex: string): number {
    return this.#byWire.get(keyOf(place, wireHex))?.length ?? 0
  }

  // ---- what HTTP stores and asks ----------------------------------------------------------------------------------

  insert(order: NewOrder): void {
    const { orderNo, orderKey } = order
    if (this.orders.has(orderNo)) this.#world.violated('order numbers are unique', orderNo)
    if (orderKey !== null && this.#byKey.has(keyOf(order, orderKey)) && this.#world.mutant !== 'orderNumbersCollide')
      this.#world.violated('order numbers are unique', `${orderNo} on ${placeOf(order)}`)
    this.#store({
      ...NEVER_CHARGED,
      ...order,
      tenantId: TENANT,
      wireHex: orderKey,
      state: 'pending',
      createdMs: this.#nowMs,
      sentMs: null,
      finishedMs: null,
      isNew: false,
      isChanged: false,
    })
  }

  /** `runningOrder` of src/main/commands/service.ts. */
  running(place: Place): Order | undefined {
    let newest: Order | undefined
    for (const orderNo of this.#byPlace.get(placeOf(place)) ?? []) {
      const order = this.orders.get(orderNo) as Order
      if (RUNNING.has(order.state) && (newest === undefined || order.createdMs >= newest.createdMs)) newest = order
    }
    return newest
  }

  /** As src/main/cards.ts. */
  answerCard(cardId: string): CardAnswer {
    const card = this.cards.get(cardId.toLowerCase())
    if (card === undefined) return { status: 'unregistered', rateMode: 'time', balanceFen: 0, expiresMs: null }
    const { isActive, rateMode, balanceFen } = card
    const isShort = rateMode !== MONTHLY && balanceFen <= 0
    const status = !isActive ? 'expired' : isShort ? 'insufficient' : 'ok'
    return { status, rateMode: rateMode === MONTHLY ? 'monthly' : 'time', balanceFen, expiresMs: null }
  }

  /** What running orders of a card may still use up. */
  promisedFen(cardId: string): number {
    let sum = 0
    for (const order of this.orders.values())
      if (order.cardId === cardId && RUNNING.has(order.state))
        sum += Number((order.request as { amount_fen?: number } | null)?.amount_fen ?? 0)
    return sum
  }

  addCard(cardId: string, rateMode: number, isActive: boolean, startFen: number): void {
    const balances = new Set([startFen])
    this.cards.set(cardId, { cardId, rateMode, isActive, startFen, balanceFen: startFen, balances })
  }

  // ---- transactions ------------------------------------------------------------------------------------------------

  /** One transaction of a writer, or of main for a fate of its own. */
  apply(rows: OrderRows): void {
    const world = this.#world
    const fates = new CommandFates(this.#table.read(rows.fates))
    const book = new OrderBook(new Map(), this.#find(askedOf(wantsOf(rows))))
    const { counts, settled, contradicting } = applyOrderRows(rows, fates, book)
    if (counts['outbound_queue']!.fenced > 0) world.covered('fenced.fate')
    if (settled.repeated > 0) world.covered('settlement.row_repeated')
    for (const row of contradicting)
      world.violated('none contradicting', `a second settlement ${row.orderKey} of ${placeOf(row)} says something else`)
    this.#table.write(fates.changed)
    this.#write(book, fates.events)
  }

  #find({ commandIds, commandWires, orderNos, exact, wires, numbers, needsSettlements }: Asked): Found {
    const orders = new Map<string, Order>()
    const settlements = new Set<ModelSettlement>()
    const take = (orderNo: string | null | undefined) => {
      const order = orderNo == null ? undefined : this.orders.get(orderNo)
      if (order !== undefined) orders.set(order.orderNo, order)
      return order
    }
    const at = (place: Place) =>
      (this.#byPlace.get(placeOf(place)) ?? []).map((orderNo) => this.orders.get(orderNo) as Order)
    const takeNumbered = (place: Place, wireHex: string) => {
      const numbered = at(place).filter(({ orderKey }) => orderKey?.startsWith(`${wireHex}@`))
      const beganMs = ({ startedMs, createdMs }: Order) => startedMs ?? createdMs
      for (const order of numbered.sort((a, b) => beganMs(b) - beganMs(a)).slice(0, NUMBERED_MAX)) take(order.orderNo)
    }
    for (const commandId of commandIds) take(this.#table.rows.get(commandId)?.orderNo)
    for (const orderNo of orderNos) take(orderNo)
    for (const row of exact) {
      take(this.#byKey.get(keyOf(row, row.orderKey)))
      if (needsSettlements)
        for (const settlement of this.settlements.get(keyOf(row, row.orderKey)) ?? []) settlements.add(settlement)
    }
    for (const row of wires) {
      const unnumbered = at(row).filter(({ orderKey, state }) => orderKey === null && WAITS_FOR_NUMBER.has(state))
      for (const order of unnumbered.sort((a, b) => b.createdMs - a.createdMs).slice(0, UNNUMBERED_MAX))
        take(order.orderNo)
      takeNumbered(row, row.wireHex)
      if (needsSettlements)
        for (const settlement of (this.#byWire.get(keyOf(row, row.wireHex)) ?? []).slice(-NUMBERED_MAX))
          settlements.add(settlement)
    }
    for (const { commandId, wireHex } of commandWires) {
      const order = this.orders.get(this.#table.rows.get(commandId)?.orderNo ?? '')
      if (order !== undefined) takeNumbered(order, wireHex)
    }
    const isForgetful = this.#world.mutant === 'settlementCountedTwice'
    return {
      orders: [...orders.values()]
        .filter(({ state }) => !(isForgetful && state === 'settled'))
        .sort((a, b) => (a.orderNo < b.orderNo ? -1 : 1))
        .map((order) => this.#read(order)),
      settlements: isForgetful ? [] : [...settlements],
      taken: numbers.filter((orderNo) => this.orders.has(orderNo)),
      tariffs: this.tariffs,
    }
  }

  #read(order: Order): Order {
    const { sentMs, finishedMs } = this.#table.rows.get(order.commandId ?? '') ?? { sentMs: null, finishedMs: null }
    return { ...order, sentMs, finishedMs, isNew: false, isChanged: false }
  }

  #store(order: Order): void {
    const { orderNo } = order
    const before = this.orders.get(orderNo)
    if (before === undefined) {
      const place = this.#byPlace.get(placeOf(order))
      if (place === undefined) this.#byPlace.set(placeOf(order), [orderNo])
      else place.push(orderNo)
    } else if (before.orderKey !== null && before.orderKey !== order.orderKey)
      this.#byKey.delete(keyOf(before, before.orderKey))
    this.orders.set(orderNo, order)
    if (order.orderKey !== null) this.#byKey.set(keyOf(order, order.orderKey), orderNo)
  }

  #write(book: OrderBook, fateEvents: readonly DerivedEvent[]): void {
    const world = this.#world
    const cards = book.cardsWanted.flatMap(({ tenantId, cardId }): CardBalance[] => {
      const card = this.cards.get(cardId.toLowerCase())
      return card === undefined
        ? []
        : [{ tenantId, cardId, rateMode: card.rateMode, expiresMs: null, balanceFen: card.balanceFen }]
    })
    for (const { cardId, balanceFen } of book.chargeCards(cards)) {
      const card = this.cards.get(cardId.toLowerCase()) as ModelCard
      world.covered('card.charged')
      if (balanceFen < 0) world.covered('card.overdrawn')
      card.balanceFen = balanceFen
      card.balances.add(balanceFen)
    }
    const { fresh, changed, settlements } = book.changes()
    for (const order of changed) this.#store(this.#stored(order))
    for (const order of fresh) {
      if (this.orders.has(order.orderNo)) world.violated('order numbers are unique', order.orderNo)
      this.#store({ ...this.#stored(order), createdMs: this.#nowMs })
    }
    for (const { row, order } of settlements) this.#insertSettlement(row, order)
    for (const event of [...fateEvents, ...book.events]) this.#insertEvent(event)
    const { counts } = book
    if (counts.estimated > 0) world.covered('order.estimated')
    if (counts.corrected > 0) world.covered('order.corrected')
  }

  #stored(order: Order): Order {
    const { mutant } = this.#world
    if (mutant === 'balanceMovedTwice') return { ...order, cardFen: null }
    if (mutant === 'estimateStands' && order.isEstimated && order.orderKey !== null) {
      // as if the estimate were a settlement: the device's own is taken for its repeat
      const { orderKey, wireHex, durationS, deviceId, socket, port } = order
      const row = { deviceId, socket, port, orderKey, wireHex, durationS } as unknown as SettlementRow
      const place = { deviceId, socket, port }
      const found = { ...place, orderKey, wireHex: wireHex ?? '', durationS: durationS ?? 0, energyRaw: 0 }
      const settlement = { ...found, receivedMs: this.#nowMs, deviceEndedMs: null, row, amountFen: order.amountFen }
      this.settlements.set(keyOf(place, orderKey), [settlement])
      this.#byWire.set(keyOf(place, wireHex ?? ''), [settlement])
      return { ...order, isEstimated: false }
    }
    return order
  }

  #insertSettlement(row: SettlementRow, order: Order): void {
    const { deviceId, socket, port, wireHex, durationS, energyRaw, receivedMs, deviceEndedMs } = row
    const orderKey = order.orderKey as string
    const found = { deviceId, socket, port, orderKey, wireHex, durationS, energyRaw, receivedMs, deviceEndedMs }
    const settlement: ModelSettlement = { ...found, row, amountFen: order.amountFen }
    const key = keyOf(row, orderKey)
    const known = this.settlements.get(key)
    if (known !== undefined) this.#world.violated('no row twice', `settlement ${key}`)
    this.settlements.set(key, [...(known ?? []), settlement])
    const wire = keyOf(row, wireHex)
    this.#byWire.set(wire, [...(this.#byWire.get(wire) ?? []), settlement])
  }

  #insertEvent(event: DerivedEvent): void {
    const isRenamed = this.#world.mutant === 'correctionIsAnotherEnd' && event.eventType === 'order.corrected'
    if (!this.events.has(event.eventId))
      this.events.set(event.eventId, isRenamed ? { ...event, eventType: 'charging.ended' } : event)
  }

  // ---- as the reconciler asks --------------------------------------------------------------------------------------

  readonly reconcilerStore: ReconcilerStore = {
    silentOrders: (sinceMs) => this.#table.ask(() => this.#silentOrders(sinceMs)),
    doubt: (orderNo, atMs) => this.#table.ask(() => this.#doubtedMs.set(orderNo, atMs)),
    undecidedStarts: (decidedBeforeMs, overdueBeforeMs) =>
      this.#table.ask(() => this.#undecidedStarts(decidedBeforeMs, overdueBeforeMs)),
    within: (_deviceId, wants, act) => this.#table.ask(() => this.#within(wants, act)),
  }

  #silentOrders(sinceMs: number): DoubtedOrder[] {
    const silent: DoubtedOrder[] = []
    for (const order of this.orders.values()) {
      if (order.state !== 'charging' && order.state !== 'stopping') continue
      const { startedMs, lastProgressMs, createdMs } = order
      const heardMs =
        startedMs === null && lastProgressMs === null ? createdMs : Math.max(startedMs ?? 0, lastProgressMs ?? 0)
      if (heardMs >= sinceMs) continue
      const request = order.request as { duration_s?: number; max_duration_s?: number } | null
      silent.push({
        orderNo: order.orderNo,
        deviceId: order.deviceId,
        socket: order.socket,
        port: order.port,
        wireHex: order.wireHex,
        createdMs,
        startedMs,
        lastProgressMs,
        // a port's word is not in these tables: its devices report their charges
        portChargedMs: null,
        presetS: request?.duration_s ?? request?.max_duration_s ?? null,
        doubtedMs: this.#doubtedMs.get(order.orderNo) ?? null,
      })
    }
    return silent
  }

  #undecidedStarts(decidedBeforeMs: number, overdueBeforeMs: number): UndecidedStart[] {
    const undecided: UndecidedStart[] = []
    for (const { orderNo, deviceId, commandId, createdMs, state } of this.orders.values()) {
      if (state !== 'pending' && state !== 'starting') continue
      const row = commandId === null ? undefined : this.#table.rows.get(commandId)
      const isDue =
        row === undefined
          ? createdMs < overdueBeforeMs
          : row.finishedMs !== null
            ? row.finishedMs < (row.result?.['port_charging'] === true ? overdueBeforeMs : decidedBeforeMs)
            : row.command.expiresMs < overdueBeforeMs
      if (!isDue) continue
      undecided.push({
        orderNo,
        deviceId,
        commandId: row === undefined ? null : commandId,
        status: row?.status ?? null,
        result: row?.result ?? null,
        finishedMs: row?.finishedMs ?? null,
        epoch: row?.epoch ?? null,
        wireHex: row?.command.wireHex ?? null,
      })
    }
    return undecided
  }

  #within(
    wants: Wants,
    act: (book: OrderBook) => boolean,
  ): { readonly counts: OrderCounts; readonly eventCursor: number | null } | undefined {
    const book = new OrderBook(new Map(), this.#find(askedOf(wants)))
    if (!act(book)) return undefined
    this.#write(book, [])
    return { counts: book.counts, eventCursor: null }
  }

  // ---- in the end --------------------------------------------------------------------------------------------------

  get isAtRest(): boolean {
    for (const { state } of this.orders.values()) if (RUNNING.has(state)) return false
    return true
  }

  /**
   * Every device has its acks, everything open was reconciled.
   * @param truth what devices settled, by device, socket, port and number
   */
  check(truth: ReadonlyMap<string, SeenSettlement>): void {
    const world = this.#world
    const settled = new Map<string, Order[]>()
    let ordersFen = 0
    for (const order of this.orders.values()) {
      const about = `order ${order.orderNo} (${placeOf(order)}/${order.orderKey}, ${order.state})`
      if (RUNNING.has(order.state)) world.violated('no order stays open', about)
      this.#checkEvents(order, about)
      if (order.state !== 'settled') {
        if (order.wireHex !== null && order.wireHex.length === 32 && truth.has(settlementKeyOf(order, order.wireHex)))
          world.violated('one settlement per order', `${about} ran`)
        continue
      }
      ordersFen += order.amountFen ?? 0
      if (order.isEstimated) {
        world.violated('an estimate gives way', `${about}: every device has told how its charges ended`)
        continue
      }
      const key = settlementKeyOf(order, order.wireHex ?? '')
      settled.set(key, [...(settled.get(key) ?? []), order])
      const told = truth.get(key)
      if (told === undefined) world.violated('one settlement per order', `${about}: no such charge`)
      else this.#checkFigures(order, told, about)
    }
    let settlementsFen = 0
    for (const rows of this.settlements.values()) for (const { amountFen } of rows) settlementsFen += amountFen ?? 0
    if (settlementsFen !== ordersFen)
      world.violated('money adds up', `settlements ${settlementsFen} fen, orders ${ordersFen} fen`)
    for (const key of truth.keys()) {
      const count = settled.get(key)?.length ?? 0
      if (count !== 1) world.violated('one settlement per order', `charge ${key} is billed ${count} times`)
    }
    this.#checkCommands()
    this.#checkCards()
  }

  #checkFigures(order: Order, told: SeenSettlement, about: string): void {
    const world = this.#world
    const { durationS, energyWh, maxPowerW } = told
    const found = `${order.durationS} s ${order.energyWh} Wh`
    if (order.durationS !== durationS || order.energyWh !== energyWh)
      world.violated('one settlement per order', `${about}: ${found}, the device said ${durationS} s ${energyWh} Wh`)
    const row = this.settlements.get(keyOf(order, order.orderKey ?? ''))?.[0]
    const tariff = order.tariff as TariffJson | null
    const prepaidFen =
      order.mode === 'budget' || order.mode === 'power'
        ? (order.request as { amount_fen?: number } | null)?.amount_fen
        : undefined
    const charge = { startedMs: order.startedMs as number, durationS, energyWh, maxPowerW, prepaidFen }
    const dueFen = tariff === null ? told.deviceAmountFen : referenceFen(tariff, charge)
    if (order.amountFen !== dueFen || row?.amountFen !== dueFen)
      world.violated(
        'the amount follows the tariff',
        `${about}: ${order.amountFen} fen, settlement ${row?.amountFen} fen, due ${dueFen} for ${JSON.stringify(charge)} by ${JSON.stringify(tariff)}`,
      )
    if ((dueFen ?? 0) > 0) world.covered('order.paid')
    if (prepaidFen !== undefined && dueFen === prepaidFen) world.covered('order.paid_ahead_used_up')
  }

  #checkEvents({ orderNo, state }: Order, about: string): void {
    const count = this.#eventCounts().get(orderNo) ?? 0
    const due = state === 'settled' ? 1 : 0
    if (count !== due) this.#world.violated('one charging.ended per order', `${about} has ${count}`)
  }

  #counts: Map<string, number> | undefined

  #eventCounts(): Map<string, number> {
    if (this.#counts !== undefined) return this.#counts
    this.#counts = new Map()
    for (const { eventType, orderKey } of this.events.values())
      if (eventType === 'charging.ended' && orderKey !== null)
        this.#counts.set(orderKey, (this.#counts.get(orderKey) ?? 0) + 1)
    return this.#counts
  }

  /**
   * The number that a device gave in its result is the order's, unless a report of another charge, which began within the
   * minutes that reports leave open, came before it: then it was guessed wrong (BKV 9), which nobody can tell.
   */
  #checkCommands(): void {
    for (const { command, orderNo, status, kind, reason, result } of this.#table.rows.values()) {
      const businessNo = result?.['business_no']
      if (reason !== 'ok' || kind !== 'start' || status !== COMMAND_STATUS.acked || typeof businessNo !== 'number')
        continue
      const order = this.orders.get(orderNo ?? '')
      if (order?.wireHex === businessNo.toString(16).padStart(4, '0')) continue
      if (order?.wireHex == null)
        this.#world.violated(
          'an order keeps its number',
          `${command.commandId}: ${businessNo}, order ${order?.orderNo}`,
        )
    }
  }

  #checkCards(): void {
    const paidFen = new Map<string, number>()
    for (const { origin, cardId, amountFen, state } of this.orders.values())
      if (state === 'settled' && origin === 'card' && cardId !== null)
        paidFen.set(cardId, (paidFen.get(cardId) ?? 0) + (amountFen ?? 0))
    for (const { cardId, rateMode, startFen, balanceFen } of this.cards.values()) {
      const dueFen = rateMode === MONTHLY ? startFen : startFen - (paidFen.get(cardId) ?? 0)
      if (balanceFen !== dueFen)
        this.#world.violated('a card pays once', `card ${cardId} has ${balanceFen} fen, due ${dueFen}`)
    }
  }
}
