/**
 * Operators who give commands, the table their commands are in, and what must hold of each command from its first byte
 * to its fate.
 */
import type { StoredCommand as WrittenCommand } from '../../workers/writer/command-fates.ts'
import type { CardAnswer, Fields } from '../codec/protocol.ts'
import type { StoredCommand } from '../main/command-desk.ts'
import type { CommandProgress, CommandStore, WaitingCommand } from '../main/command-store.ts'
import type { DoubtedOrder } from '../main/reconciler.ts'
import {
  CHARGE_MODES,
  type ChargeMode,
  chargePlan,
  type GatewayLimits,
  isRefusal,
  limitReached,
  stopPlan,
} from '../orders/charge-plan.ts'
import { isTariffProblem, parseTariff, type Tariff } from '../orders/tariff.ts'
import type { CommandFateRow } from '../rows/index.ts'
import { COMMAND_STATUS, PRIORITY } from '../session/command-lane.ts'
import { ACK_TIMEOUT_MS, type Gateway, SPACING_MS, WALL_MS } from './sim-gateway.ts'
import { COLLIDING_NUMBERS, ModelOrders, type NewOrder } from './sim-orders.ts'
import type { TariffJson } from './sim-tariff.ts'
import type { SeenFrame } from './sim-wire.ts'
import type { World } from './sim-world.ts'

/** Between a thread's decision and its row in the table, when nothing is away: busy threads and slow writers. */
const WRITE_MS_MAX = 20_000
/** A lane looks at its commands at each tick. */
const LOOK_MS = 300
/** A report of a charge may have been under way this long when the start goes out that it seems to confirm (BKV 6). */
const REPORT_AGE_MS = 30_000

const isFinal = (status: number) => status >= COMMAND_STATUS.acked

interface Row {
  readonly command: StoredCommand
  /** `outbound_queue.kind`: what it is to its order. */
  readonly kind: 'start' | 'stop' | 'other'
  readonly orderNo: string | null
  /** Virtual time, like all times here that do not say otherwise. */
  readonly storedMs: number
  status: number
  attempts: number
  messageId: number | null
  epoch: number | null
  /** As the database has it. */
  sentMs: number | null
  /** As the database has it. */
  finishedMs: number | null
  reason: string
  result: Readonly<Record<string, unknown>> | null
}

/** `outbound_queue`: src/main/command-store.ts as rules; fates are moved by workers/writer/command-fates.ts. */
export class CommandTable implements CommandStore {
  readonly rows = new Map<string, Row>()
  readonly #world: World
  readonly #isUp: () => boolean
  /** Told of each fate. */
  readonly #ended: (row: Row) => void
  /** One transaction. */
  #transact: (fate: CommandFateRow) => void = () => {}

  constructor(world: World, isUp: () => boolean, ended: (row: Row) => void) {
    this.#world = world
    this.#isUp = isUp
    this.#ended = ended
  }

  /** @param transact for the fates that main gives */
  opened(transact: (fate: CommandFateRow) => void): void {
    this.#transact = transact
  }

  get isUp(): boolean {
    return this.#isUp()
  }

  insert(command: StoredCommand, kind: Row['kind'], orderNo: string | null): void {
    this.rows.set(command.commandId, {
      command,
      kind,
      orderNo,
      storedMs: this.#world.time.nowMs,
      status: COMMAND_STATUS.queued,
      attempts: 0,
      messageId: null,
      epoch: null,
      sentMs: null,
      finishedMs: null,
      reason: '',
      result: null,
    })
  }

  /** What a transaction reads for these rows. */
  read(fates: readonly CommandFateRow[]): WrittenCommand[] {
    return [...new Set(fates.map(({ commandId }) => commandId))].flatMap((commandId): WrittenCommand[] => {
      const row = this.rows.get(commandId)
      if (row === undefined) {
        this.#world.violated('commands are known', commandId)
        return []
      }
      // as if its fate were not looked at
      const isForgotten = this.#world.mutant === 'twoFates' && isFinal(row.status)
      const { command, kind, orderNo, attempts, messageId, epoch, sentMs, finishedMs, result } = row
      return [
        {
          command_id: commandId,
          device_id: command.deviceId,
          name: command.name,
          kind,
          order_no: orderNo,
          wire_hex: command.wireHex,
          status: isForgotten ? COMMAND_STATUS.sent : row.status,
          attempts,
          message_id: messageId,
          epoch,
          sent_at: sentMs === null ? null : new Date(sentMs),
          finished_at: finishedMs === null ? null : new Date(finishedMs),
          result: result === null ? null : { ...result },
        },
      ]
    })
  }

  write(changed: readonly WrittenCommand[]): void {
    for (const { command_id, status, attempts, message_id, epoch, sent_at, finished_at, result } of changed) {
      const row = this.rows.get(command_id) as Row
      row.attempts = attempts
      row.messageId = message_id
      row.epoch = epoch
      row.sentMs = sent_at?.getTime() ?? null
      if (!isFinal(status)) {
        row.status = status
        continue
      }
      const reason = String(result?.['reason'] ?? '')
      if (isFinal(row.status))
        this.#world.violated('one fate', `${command_id} is ${row.status} ${row.reason}, then ${status} ${reason}`)
      row.status = status
      row.finishedMs = finished_at?.getTime() ?? null
      row.result = result
      row.reason = reason
      this.#ended(row)
    }
  }

  // ---- as main asks -----------------------------------------------------------------------------------------------

  /** A transaction that is carried out, or not, and an answer that comes, or not. */
  ask<T>(run: () => T): Promise<T> {
    const world = this.#world
    const { time, random } = world
    return new Promise((resolve, reject) => {
      const answer = (settle: () => void, afterMs: number) =>
        time.after(afterMs, () => {
          world.owesTurn = true
          settle()
        })
      const away = () => reject(new Error('database away'))
      time.after(random.between(0.5, 5), () => {
        if (!this.#isUp()) return answer(away, random.between(0, 2_000))
        const result = run()
        if (world.goesWrong(world.plan.lostAnswerShare / 2)) {
          world.covered('command.answer_lost')
          answer(away, random.between(0, 2_000))
        } else answer(() => resolve(result), random.between(0.2, 5))
      })
    })
  }

  lastMessageId(deviceId: string): Promise<number | undefined> {
    return this.ask(() => this.latestMessageId(deviceId))
  }

  latestMessageId(deviceId: string): number | undefined {
    let latest: Row | undefined
    for (const row of this.rows.values())
      if (row.command.deviceId === deviceId && row.messageId !== null)
        if (latest === undefined || row.sentMs! >= latest.sentMs!) latest = row
    return latest?.messageId ?? undefined
  }

  end(commandId: string, status: number, reason: string): Promise<boolean> {
    return this.ask(() => {
      const row = this.rows.get(commandId)
      if (row === undefined || isFinal(row.status)) return false
      const { command, attempts, messageId } = row
      const { deviceId } = command
      const atMs = WALL_MS + this.#world.time.nowMs
      // epoch 0 is main's
      this.#transact({ commandId, deviceId, epoch: 0, status, attempts, messageId, atMs, reason, result: '{}' })
      return true
    })
  }

  waiting(): Promise<readonly WaitingCommand[]> {
    return this.ask(() =>
      [...this.rows.values()]
        .filter(({ status }) => !isFinal(status))
        .map(({ command, attempts, messageId }) => ({ ...command, attempts, messageId })),
    )
  }

  progress(commandIds: readonly string[]): Promise<readonly CommandProgress[]> {
    return this.ask(() =>
      commandIds.flatMap((commandId) => {
        const row = this.rows.get(commandId)
        if (row === undefined) return []
        const { status, attempts, messageId } = row
        return [{ commandId, status, attempts, messageId }]
      }),
    )
  }
}

/** A device as an operator sees it. */
export interface Target {
  readonly deviceId: string
  readonly deviceKey: number
  readonly protocol: 'ap3000' | 'bkv'
  /** 0: the protocol has none. */
  readonly sockets: number
}

interface At {
  readonly socket: number
  /** From 1. */
  readonly port: number
}

/** Of `POST …/charge`. */
interface ChargeBody {
  readonly mode: ChargeMode
  readonly duration_s?: number
  readonly energy_wh?: number
  readonly amount_fen?: number
  readonly max_duration_s?: number
  readonly tariff?: TariffJson
}

/** A command that a transaction is about to store. */
interface Planned extends At {
  readonly name: string
  readonly fields: Fields
  readonly priority: number
  readonly kind: Row['kind']
  readonly orderNo: string | null
  readonly wireHex: string
  readonly order?: Omit<NewOrder, 'commandId'>
}
const NO_ORDER = { priority: PRIORITY.start, kind: 'other', orderNo: null, wireHex: '', socket: 0, port: 0 } as const

/** Prices that show in charges of half a minute: 16:01 Beijing is one minute after every run began. */
const POWER_TARIFFS: readonly TariffJson[] = [
  {
    power: {
      tiers: [
        { max_power_w: 150, price_fen: 5, minutes: 1 },
        { max_power_w: 300, price_fen: 9, minutes: 2 },
        { max_power_w: 2_000, price_fen: 30, minutes: 5 },
      ],
    },
  },
  {
    power: { tiers: [{ max_power_w: 250, price_fen: 7, minutes: 3 }] },
    energy: { price_fen_per_kwh: 333 },
    cap_fen: 40,
  },
]
export const TARIFFS: readonly TariffJson[] = [
  { time: { price_fen: 7, step_minutes: 1 }, cap_fen: 60 },
  { time: { price_fen: 50, step_minutes: 60 }, free_minutes: 2 },
  { energy: { price_fen_per_kwh: 1_237 }, min_fen: 3 },
  { energy: { price_fen_per_kwh: 5_001 }, cap_fen: 77 },
  {
    periods: {
      windows: [
        { end: '16:01', electricity_fen_per_kwh: 1_111, service_fen_per_kwh: 777 },
        { end: '16:03', electricity_fen_per_kwh: 2_503 },
        { end: '24:00', electricity_fen_per_kwh: 5_003, service_fen_per_kwh: 99 },
      ],
    },
  },
  ...POWER_TARIFFS,
]

const MODE_COVERED = {
  full: 'order.mode_full',
  time: 'order.mode_time',
  energy: 'order.mode_energy',
  budget: 'order.mode_budget',
  power: 'order.mode_power',
} as const

/** What a device did, told by its double. */
interface Started {
  readonly atMs: number
  readonly order: string
}

/** Everything known of one command that went out. */
interface Sent {
  readonly messageId: number
  readonly firstMs: number
  readonly deviceKey: number
  count: number
}

export class Operators {
  readonly table: CommandTable
  readonly orders: ModelOrders
  readonly #world: World
  readonly #gatewayOf: () => Gateway | undefined
  readonly #commands = new Map<string, StoredCommand & Target>()
  readonly #sent = new Map<string, Sent>()
  /** Of the first send. */
  readonly #connectionOf = new Map<string, number>()
  readonly #lastSendMs = new Map<number, number>()
  /** Place in the order of arrival. */
  readonly #acceptedAt = new Map<string, number>()
  /** Given up by a lane. */
  readonly #dead = new Set<string>()
  readonly #lastFirstSend = new Map<string, number>()
  /** Commands of which a lane knows no fate, by device: ids in flight. */
  readonly #inFlight = new Map<number, Map<number, string>>()
  /** Results that devices really sent, by device, message id and command. */
  readonly #results = new Map<string, Set<number>>()
  readonly #statusSentMs = new Map<number, number>()
  readonly #startedAt = new Map<string, Started[]>()
  readonly #cancelled = new Set<string>()
  /** Commands whose fate is stored, or will be unless the gateway dies. */
  readonly #decided = new Set<string>()
  readonly #trouble: { readonly fromMs: number; toMs: number }[] = []
  #openTroubles = 0
  readonly #wallStartMs = WALL_MS
  #count = 0

  constructor(world: World, isDatabaseUp: () => boolean, gatewayOf: () => Gateway | undefined) {
    this.#world = world
    this.#gatewayOf = gatewayOf
    this.table = new CommandTable(world, isDatabaseUp, (row) => this.#ended(row))
    this.orders = new ModelOrders(world, this.table)
    this.table.opened((fate) => this.orders.apply({ fates: [fate], starts: [], progress: [], settlements: [] }))
  }

  get count(): number {
    return this.#count
  }

  /** The database, a shard or the gateway is away from now on: fates may take that much longer. */
  troubleBegan(): void {
    if (this.#openTroubles++ === 0)
      this.#trouble.push({ fromMs: this.#world.time.nowMs, toMs: Number.POSITIVE_INFINITY })
  }

  troubleOver(): void {
    if (--this.#openTroubles === 0) this.#trouble.at(-1)!.toMs = this.#world.time.nowMs
  }

  #troubleMsSince(fromMs: number): number {
    const { nowMs } = this.#world.time
    return this.#trouble.reduce(
      (sum, trouble) => sum + Math.max(0, Math.min(trouble.toMs, nowMs) - Math.max(trouble.fromMs, fromMs)),
      0,
    )
  }

  // ---- what operators do ------------------------------------------------------------------------------------------

  giveCommand(target: Target): void {
    const { random } = this.#world
    const place = { socket: target.sockets === 0 ? 0 : 1 + random.below(target.sockets), port: 1 + random.below(2) }
    const draw = random.unit()
    if (draw < 0.4) {
      const body = this.#drawCharge(target.protocol)
      this.#submit(target, () => this.#chargePlanned(target, place, body, null))
    } else if (draw < 0.6) this.#submit(target, () => this.#stopPlanned(target, place))
    else if (target.protocol === 'bkv')
      this.#submit(target, () => ({
        ...NO_ORDER,
        name: 'queryStatus',
        fields: { socket: place.socket },
        ...place,
        port: 0,
      }))
    else if (draw < 0.78)
      this.#submit(target, () => ({
        ...NO_ORDER,
        name: 'locate',
        fields: { locateS: 5 },
        priority: PRIORITY.background,
      }))
    else if (draw < 0.95) {
      const fields = { maxChargeS: 36_000, overloadPowerDw: 20_000 }
      this.#submit(target, () => ({ ...NO_ORDER, name: 'setLimits', fields, priority: PRIORITY.parameter }))
    } else this.#submit(target, () => ({ ...NO_ORDER, name: 'askStatus', fields: {} }))
  }

  /** A card that was found good at an AP3000: src/main/swipes.ts. */
  chargeByCard(target: Target, port: number, cardId: string, answer: CardAnswer): void {
    if (answer.status !== 'ok' || port === 0 || target.protocol !== 'ap3000') return
    this.#submit(target, () => {
      const isCounted = this.orders.tariffs.has(target.deviceId) && answer.rateMode !== 'monthly'
      const leftFen = answer.balanceFen - this.orders.promisedFen(cardId)
      if (isCounted && leftFen <= 0) return undefined
      this.#world.covered('order.for_card')
      const body: ChargeBody = isCounted ? { mode: 'budget', amount_fen: leftFen } : { mode: 'full' }
      return this.#chargePlanned(target, { socket: 0, port }, body, cardId)
    })
  }

  /** src/main/ask-order.ts. */
  askFor(target: Target, { socket }: DoubtedOrder): void {
    const isBkv = target.protocol === 'bkv'
    this.#submit(target, () => ({
      ...NO_ORDER,
      name: isBkv ? 'queryStatus' : 'askStatus',
      fields: isBkv ? { socket } : {},
      socket,
    }))
  }

  /** src/main/limits.ts: what a device cannot keep itself. */
  keepLimits(targetOf: (deviceId: string) => Target): void {
    if (!this.table.isUp) return
    for (const order of this.orders.orders.values()) {
      if (order.state !== 'charging' || order.startedMs === null) continue
      const limits = (order.request as { gateway_limits?: GatewayLimits | null } | null)?.gateway_limits
      if (limits == null) continue
      const usage = {
        startedMs: order.startedMs,
        durationS: order.durationS ?? 0,
        energyWh: order.energyWh ?? 0,
        maxPowerW: order.maxPowerW ?? 0,
      }
      const tariff = order.tariff === null ? undefined : parseTariff(order.tariff)
      if (limitReached(limits, usage, tariff === undefined || isTariffProblem(tariff) ? undefined : tariff) === null)
        continue
      const stop = `${order.orderNo}-${usage.durationS}`
      if (this.#limitStops.has(stop)) continue
      this.#limitStops.add(stop)
      this.#world.covered('order.limit_reached')
      const target = targetOf(order.deviceId)
      this.#submit(target, () => this.#stopPlanned(target, order))
    }
  }

  readonly #limitStops = new Set<string>()

  #drawCharge(protocol: Target['protocol']): ChargeBody {
    const { random } = this.#world
    const tariff = random.chance(0.7) ? { tariff: random.pick(TARIFFS) } : {}
    switch (random.pick(CHARGE_MODES)) {
      case 'time':
        return { mode: 'time', duration_s: random.pick([60, 120, 300, 600]), ...tariff }
      case 'energy':
        return { mode: 'energy', energy_wh: 1 + random.below(protocol === 'bkv' ? 4 : 60), ...tariff }
      case 'budget':
        return { mode: 'budget', amount_fen: 1 + random.below(60), ...tariff }
      case 'power':
        return { mode: 'power', amount_fen: 1 + random.below(60), tariff: random.pick(POWER_TARIFFS) }
      default:
        return { mode: 'full', ...tariff, ...(random.chance(0.2) && { max_duration_s: 120 }) }
    }
  }

  /** `charge` of src/main/commands/service.ts, inside its transaction. */
  #chargePlanned(target: Target, place: At, body: ChargeBody, cardId: string | null): Planned | undefined {
    const { protocol, deviceId } = target
    const where = { deviceId, ...place }
    // what the device started by itself may have ended without our hearing of it; there the port's state decides
    if (this.orders.running(where) !== undefined) {
      this.#world.covered('order.port_busy')
      return undefined
    }
    const { mode, duration_s, energy_wh, amount_fen, max_duration_s } = body
    const json = body.tariff ?? this.orders.tariffs.get(deviceId) ?? null
    const tariff = json === null ? undefined : (parseTariff(json) as Tariff)
    const orderNo = `SIM${String(++this.#orderCount).padStart(13, '0')}`
    const plan = chargePlan(protocol, {
      mode,
      ...place,
      orderNo,
      ...(duration_s !== undefined && { durationS: duration_s }),
      ...(energy_wh !== undefined && { energyWh: energy_wh }),
      ...(amount_fen !== undefined && { amountFen: amount_fen }),
      ...(max_duration_s !== undefined && { maxDurationS: max_duration_s }),
      ...(tariff !== undefined && { tariff }),
    })
    if (isRefusal(plan)) {
      this.#world.covered('order.refused')
      return undefined
    }
    let { fields, wireHex } = plan
    if (this.#world.mutant === 'orderNumbersCollide' && wireHex !== '') {
      wireHex = `c0de${String(this.#orderCount % COLLIDING_NUMBERS).padStart(28, '0')}`
      fields = { ...fields, orderHex: wireHex }
    }
    this.#world.covered(MODE_COVERED[mode])
    const order = {
      ...where,
      orderNo,
      protocol,
      orderKey: wireHex === '' ? null : wireHex,
      mode,
      origin: cardId === null ? 'online' : 'card',
      cardId,
      request: { ...body, gateway_limits: plan.gatewayLimits },
      tariff: json,
    }
    return { name: plan.name, fields, priority: PRIORITY.start, kind: 'start', orderNo, wireHex, ...place, order }
  }

  #orderCount = 0

  /** `stop` of the same; a start that was not sent yet is cancelled instead. */
  #stopPlanned(target: Target, { socket, port }: At): Planned | undefined {
    const { protocol, deviceId } = target
    const running = this.orders.running({ deviceId, socket, port })
    const start = this.table.rows.get(running?.commandId ?? '')
    if (running?.state === 'pending' && start?.status === COMMAND_STATUS.queued) {
      this.#cancel(start.command.commandId)
      return undefined
    }
    if (running === undefined && protocol === 'ap3000') return undefined
    const plan = stopPlan(protocol, port, socket, running?.wireHex ?? '')
    if (isRefusal(plan)) return undefined
    const kind = running === undefined ? 'other' : 'stop'
    return { ...plan, priority: PRIORITY.stop, kind, orderNo: running?.orderNo ?? null, wireHex: '', socket, port }
  }

  /** Stored, then told to the desk, unless the gateway dies in between. */
  #submit(target: Target, plan: () => Planned | undefined): void {
    const world = this.#world
    const { time, random } = world
    const gateway = this.#gatewayOf()
    const number = ++this.#count
    const commandId = `c${number}`
    // asked before the table is read; every other time, so that the desk asks by itself, too
    const epoch = number % 2 === 0 ? gateway?.desk.epochOf(target.deviceKey) : undefined
    const expiresMs = this.#wallStartMs + time.nowMs + random.pick([1_000, 4_000, 10_000, 30_000, 60_000])
    const { deviceId } = target
    const isCancelled = world.goesWrong(0.15)
    const cancelMs = random.between(0, 4_000)
    time.after(random.between(1, 8), () => {
      if (gateway?.isServing !== true || this.table.rows.size > 400) return
      if (!this.table.isUp) return
      const planned = plan()
      if (planned === undefined) return
      const { kind, orderNo, order, ...rest } = planned
      const command: StoredCommand = { commandId, deviceId, expiresMs, ...rest }
      const messageId = this.table.latestMessageId(deviceId) ?? null
      const known = epoch === undefined ? undefined : { epoch, messageId }
      this.#commands.set(commandId, { ...command, ...target })
      this.table.insert(command, kind, orderNo)
      if (order !== undefined) this.orders.insert({ ...order, commandId })
      world.trace(() => `command ${commandId} for ${deviceId}: ${command.name} ${JSON.stringify(command.fields)}`)
      world.covered('command.stored')
      this.#acceptedAt.set(commandId, this.table.rows.size)
      time.after(1, () => {
        if (gateway.isAlive) gateway.desk.accept(command, known)
      })
      if (isCancelled) time.after(cancelMs, () => this.#cancel(commandId))
    })
  }

  #cancel(commandId: string): void {
    const gateway = this.#gatewayOf()
    if (gateway?.isServing !== true) return
    // a cancel that cannot be stored gives it back, behind what came meanwhile
    this.#acceptedAt.delete(commandId)
    void gateway.desk.cancel(commandId).then((answer) => {
      if (answer !== 'cancelled') return
      this.#world.covered('command.cancelled')
      this.#cancelled.add(commandId)
      if (this.table.rows.get(commandId)?.status !== COMMAND_STATUS.cancelled)
        this.#world.violated('cancelled means never sent', `${commandId} is not stored as cancelled`)
    })
  }

  // ---- what the gateway does --------------------------------------------------------------------------------------

  /** A session thread decides to send a command; '' is a question of the lane's own. */
  sends(commandId: string, frame: SeenFrame, connection: number): void {
    const world = this.#world
    const { nowMs } = world.time
    const { deviceKey, messageId } = frame
    const gapMs = nowMs - (this.#lastSendMs.get(deviceKey) ?? Number.NEGATIVE_INFINITY)
    if (gapMs < SPACING_MS - 1e-6)
      world.violated(
        'commands keep their distance',
        `${commandId} for ${frame.deviceId} ${gapMs.toFixed(1)} ms after another`,
      )
    this.#lastSendMs.set(deviceKey, nowMs)
    world.trace(
      () => `command ${commandId === '' ? '(question)' : commandId} goes to ${frame.deviceId}, id ${messageId}`,
    )
    if (commandId === '') {
      world.covered('start.asked_for')
      return
    }
    const command = this.#commands.get(commandId)
    const row = this.table.rows.get(commandId)
    if (command === undefined || row === undefined) {
      world.violated('commands are known', commandId)
      return
    }
    if (nowMs > command.expiresMs - this.#wallStartMs)
      world.violated(
        'nothing is sent after its expiry',
        `${commandId} ${nowMs - (command.expiresMs - this.#wallStartMs)} ms late`,
      )
    if (this.#cancelled.has(commandId) || row.status === COMMAND_STATUS.cancelled)
      world.violated('cancelled means never sent', commandId)
    if (this.#decided.has(commandId)) world.violated('nothing is sent after its fate', commandId)
    const sent = this.#sent.get(commandId)
    if (sent === undefined) {
      if (row.messageId !== messageId || row.status < COMMAND_STATUS.sent)
        world.violated('written down before it is sent', `${commandId} with id ${messageId}, stored ${row.messageId}`)
      const ids = this.#inFlight.get(deviceKey) ?? new Map<number, string>()
      this.#inFlight.set(deviceKey, ids)
      const other = ids.get(messageId)
      if (other !== undefined && other !== commandId)
        world.violated('an id in flight is nobody else’s', `${commandId} and ${other} both have ${messageId}`)
      ids.set(messageId, commandId)
      this.#sent.set(commandId, { messageId, firstMs: nowMs, deviceKey, count: 1 })
      this.#connectionOf.set(commandId, connection)
      this.#checkOrder(command)
      return
    }
    world.covered('command.resent')
    if (isStart(command) && command.protocol === 'bkv') world.violated('a BKV start is sent once', commandId)
    if (isStart(command) && this.#connectionOf.get(commandId) !== connection)
      world.violated('a start is sent in one session', commandId)
    if (sent.messageId !== messageId)
      world.violated('a resend has the same id', `${commandId} had ${sent.messageId}, now ${messageId}`)
    sent.count++
  }

  /** Of one device and priority, commands go out in the order in which they were accepted. */
  #checkOrder({ commandId, deviceKey, priority }: StoredCommand & Target): void {
    const at = this.#acceptedAt.get(commandId)
    // picked up from the table after a start: then that order counts, which is the order of storing
    if (at === undefined) return
    const lane = `${deviceKey}/${priority}`
    const last = this.#lastFirstSend.get(lane) ?? -1
    if (at < last) this.#world.violated('order of arrival', `${commandId} goes out behind a later one`)
    this.#lastFirstSend.set(lane, Math.max(last, at))
  }

  decided(commandId: string): void {
    this.#decided.add(commandId)
  }

  /** What its rings held is lost: fates that are not stored are open again. */
  gatewayDied(): void {
    this.#decided.clear()
  }

  /** A session thread gives a fate, seen when its row is appended. */
  decides(fate: CommandFateRow): void {
    this.#world.trace(
      () =>
        `command ${fate.commandId} written as ${fate.status} ${fate.reason}, epoch ${fate.epoch}, id ${fate.messageId}`,
    )
    if (!isFinal(fate.status)) return
    const world = this.#world
    const command = this.#commands.get(fate.commandId)
    if (command === undefined) {
      world.violated('commands are known', fate.commandId)
      return
    }
    // a result behind the last timeout: evidence, and no second fate
    const isEvidence = this.#dead.has(fate.commandId) && fate.status === COMMAND_STATUS.acked
    if (fate.status === COMMAND_STATUS.dead) this.#dead.add(fate.commandId)
    const lateMs = fate.atMs - command.expiresMs - ACK_TIMEOUT_MS
    if (lateMs > LOOK_MS && !isEvidence)
      world.violated('a fate in time', `${fate.commandId} is ${fate.status} ${lateMs} ms too late`)
    if (fate.status === COMMAND_STATUS.acked) this.#checkAcked(command, fate)
  }

  #checkAcked(command: StoredCommand & Target, { commandId, reason, messageId }: CommandFateRow): void {
    const world = this.#world
    const sent = this.#sent.get(commandId)
    if (sent === undefined) {
      world.violated('acked means done', `${commandId} was never sent`)
      return
    }
    const isStarted = (sinceMs: number, order?: string) =>
      (this.#startedAt.get(`${command.deviceId}/${command.socket}/${command.port}`) ?? []).some(
        (started) => started.atMs >= sinceMs && (order === undefined || started.order === order),
      )
    if (reason === 'sent') {
      if (command.name !== 'askStatus') world.violated('acked means done', `${commandId} is only sent`)
    } else if (reason === 'confirmed_by_report') {
      world.covered('start.confirmed_by_report')
      const isDone = command.wireHex === '' ? isStarted(sent.firstMs - REPORT_AGE_MS) : isStarted(0, command.wireHex)
      if (!isDone) world.violated('acked means done', `${commandId}: no charge began on its port`)
    } else if (command.name === 'queryStatus') {
      if (!this.#statusSentMs.has(command.deviceKey))
        world.violated('acked means done', `${commandId}: no status was sent`)
    } else {
      const results = this.#results.get(`${command.deviceKey}/${messageId}/${CODES[command.name]}`)
      const isGood = reason === 'already_in_state' || results?.has(command.protocol === 'bkv' ? 1 : 0)
      if (results === undefined || !isGood)
        world.violated('acked means done', `${commandId}: the device sent no such result (${reason})`)
      if (isStart(command) && command.wireHex !== '' && !isStarted(0, command.wireHex))
        world.violated('acked means done', `${commandId}: order ${command.wireHex} never began`)
    }
  }

  /** A fate is in the table. */
  #ended({ command, storedMs, status, reason }: Row): void {
    const world = this.#world
    const { commandId } = command
    const sent = this.#sent.get(commandId)
    world.trace(() => `command ${commandId} is ${status} ${reason}`)
    world.covered(FATES[status] ?? 'fate.dead')
    if (sent !== undefined) {
      const ids = this.#inFlight.get(sent.deviceKey)
      if (ids?.get(sent.messageId) === commandId) ids.delete(sent.messageId)
    }
    if (status === COMMAND_STATUS.cancelled && sent !== undefined)
      world.violated('cancelled means never sent', commandId)
    if (status === COMMAND_STATUS.expired && sent !== undefined)
      world.violated('expired means never sent', `${commandId} was sent ${sent.count} times`)
    const dueMs = command.expiresMs - this.#wallStartMs + ACK_TIMEOUT_MS
    const lateMs = world.time.nowMs - dueMs - this.#troubleMsSince(storedMs) - WRITE_MS_MAX
    if (lateMs > 0) world.violated('a fate in time', `${commandId} is stored ${lateMs.toFixed(0)} ms too late`)
  }

  // ---- what devices do --------------------------------------------------------------------------------------------

  /** A frame really left a device. */
  deviceSent({ deviceKey, messageId, name, data }: SeenFrame): void {
    if (name === '1000/1017' || name === '0015/1d') this.#statusSentMs.set(deviceKey, this.#world.time.nowMs)
    const key = `${deviceKey}/${messageId}/${name}`
    const results = this.#results.get(key) ?? new Set()
    this.#results.set(key, results.add(data[name.startsWith('0015') ? 3 : 0]!))
  }

  /** @param port from 1 */
  deviceStarted(deviceId: string, socket: number, port: number, order: string): void {
    const key = `${deviceId}/${socket}/${port}`
    const started = this.#startedAt.get(key) ?? []
    this.#startedAt.set(key, started)
    started.push({ atMs: this.#world.time.nowMs, order })
  }

  // ---- in the end -------------------------------------------------------------------------------------------------

  get isAtRest(): boolean {
    for (const { status } of this.table.rows.values()) if (!isFinal(status)) return false
    const gateway = this.#gatewayOf()
    return gateway !== undefined && gateway.desk.count === 0 && gateway.commandsPending === 0
  }

  describe(): string {
    const open = [...this.table.rows.values()].filter(({ status }) => !isFinal(status))
    const gateway = this.#gatewayOf()
    return `commands without a fate: ${open.map(({ command, status }) => `${command.commandId} (${status})`).join(' ')}; desk ${gateway?.desk.count}, pending ${gateway?.commandsPending}`
  }
}

const FATES = [
  undefined,
  undefined,
  'fate.acked',
  'fate.dead',
  'fate.refused',
  'fate.expired',
  'fate.cancelled',
] as const
const CODES: Readonly<Record<string, string>> = {
  startCharge: '82',
  locate: '96',
  setLimits: '85',
  control: '0015/07',
  startByPower: '0015/17',
}
const isStart = ({ fields }: StoredCommand) =>
  fields['on'] === 1 || fields['command'] === 1 || (fields['bkv'] as Fields | undefined)?.['on'] === 1
