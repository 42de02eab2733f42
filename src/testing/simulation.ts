/**
 * The whole gateway in one thread, from one seed, on a clock that stands still while an event runs.
 *
 * Claimed: whatever devices, network, database and threads do,
 * 1. no ack before durable: what a device counts as acked is in the database at that moment;
 * 2. no row twice, none contradicting what the device sent, and no two rows under one name;
 * 3. none lost: settlements once acked, and history rows once their ring space was given up (unless the full spool
 *    dropped them);
 * 4. one speaker per device: no session thread sends for a device while a newer open connection was answered for it,
 *    no connection is closed as superseded, or refused, without a newer one; in the end the directory says online for
 *    exactly the devices whose newest connection is open;
 * 5. epochs of a device only grow, over restarts too, and its rows end up with the newest one's values;
 * 6. the protocol is kept: each reply answers one uplink of that device on that connection, none twice;
 * 7. rings and pumps keep their own invariants and come to rest empty;
 * 8. once faults stop, every ended order is stored once and acked, every device is connected, nothing is outstanding;
 * 9. each command has one fate, in time; it is written down before it leaves, goes out in order of arrival, at its pace,
 *    under one id that nothing else in flight has, never after its expiry, never once it is cancelled, and a BKV start
 *    only once; acked means that the device did it (sim-commands.ts);
 * 10. an order runs once, and ends in one settlement: exactly one order is billed for each charge, with the device's
 *    figures, by its tariff (computed a second time, sim-tariff.ts); an estimate gives way to the device's word; one
 *    charging.ended per order; settlements and orders add up to the same fen; a card pays once; no order stays open
 *    (sim-orders.ts).
 *
 * Tried by: 1 to 3 shards, 3 to 6 AP3000 and BKV doubles, operators; delays, cuts, glue, half-open connections, database outages,
 * writers that finish out of order, answers lost after the commit, crashes of a shard and of the process (see
 * `COVERAGE` in sim-world.ts). Replay: `npm run sim -- --seed X --verbose`.
 *
 * Real code: identify, rendezvous, Directory, Shard with its lanes and codecs, outboxes, mailboxes, rows, LanePump,
 * CommandDesk, Reconciler, charge plans, and what writers decide about orders, cards and fates (workers/writer). Modelled:
 * sockets, threads and their messages, tables, health, spool.
 */

import type { DeviceObserver, DeviceWorld, FailureKind } from '../../loadtest/device.ts'
import { ap3000DeviceNo, DeviceAp3000, iccidOf } from '../../loadtest/device-ap3000.ts'
import { bkvGatewayNo, DeviceBkv } from '../../loadtest/device-bkv.ts'
import { type CardAnswer, DEVICE_NO_LIMIT, deviceKey } from '../codec/protocol.ts'
import type { DoubtedOrder } from '../main/reconciler.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import type { CommandFateRow } from '../rows/index.ts'
import { LANES } from '../rows/row.ts'
import type { CardQuestion, CloseReason } from '../session/effects.ts'
import type { ClaimAnswer } from '../shared/directory.ts'
import { Random } from './random.ts'
import { Operators, TARIFFS, type Target } from './sim-commands.ts'
import { ModelDatabase, ModelSpool } from './sim-database.ts'
import { Gateway, IDLE_TIMEOUT_MS, WALL_MS, type Watch } from './sim-gateway.ts'
import { type DeviceEnd, Line } from './sim-network.ts'
import { VirtualTime } from './sim-time.ts'
import { hexOf, readFrame, type SeenSettlement, settlementIn, settlementKeyOf } from './sim-wire.ts'
import { type Covered, FAULTS, type Fault, type Mutant, type Plan, World } from './sim-world.ts'

export interface SimulationOptions {
  /** A fault planted on purpose. */
  readonly mutant?: Mutant
  /** Told every event worth reading, as text. */
  readonly say?: (line: string) => void
}

export interface SimulationResult {
  readonly seed: number
  readonly events: number
  readonly virtualMs: number
  readonly settlements: number
  readonly commands: number
  readonly coverage: ReadonlyMap<Covered, number>
}

export class SimulationFailure extends Error {
  readonly seed: number
  readonly invariant: string

  constructor(seed: number, atMs: number, invariant: string, detail: string) {
    super(
      `seed ${seed} at ${(atMs / 1000).toFixed(3)} s: ${invariant}: ${detail}\nreplay: npm run sim -- --seed ${seed} --verbose`,
    )
    this.seed = seed
    this.invariant = invariant
  }
}

/** After the last fault everything must have come to rest within this. */
const CALM_MS_MAX = 240_000
/** Continuations behind one resolved promise: a cancel needs eight turns, the rest is slack. */
const TURNS = 16
const PORTS_PER_DEVICE = 2
/** @throws SimulationFailure at the first thing that does not hold */
export async function simulate(seed: number, options: SimulationOptions = {}): Promise<SimulationResult> {
  const simulation = new Simulation(seed, options)
  return simulation.run()
}

function drawPlan(random: Random): Plan {
  const weight = () => random.pick([0, 0.3, 1, 1, 3])
  const faultWeights = Object.fromEntries(FAULTS.map((fault) => [fault, weight()])) as Record<Fault, number>
  // a crash of everything ends most stories: rarer than the rest
  faultWeights.gatewayCrash /= 5
  faultWeights.shardCrash /= 2
  return {
    shards: 1 + random.below(3),
    devices: 3 + random.below(4),
    bkvShare: random.pick([0, 0, 0.3, 0.6]),
    ledgerRingBytes: random.pick([1_024, 2_048, 4_096, 16_384]),
    historyRingBytes: random.pick([4_096, 8_192, 16_384, 65_536]),
    mailboxBytes: random.pick([1_024, 1_024, 16_384]),
    spoolBytesMax: random.pick([4_096, 16_384, 1_000_000, 1_000_000]),
    faultMs: random.between(35_000, 60_000),
    faultEveryMs: random.pick([1_500, 3_500, 8_000]),
    faultWeights,
    withoutIccidShare: random.pick([0, 0.3, 0.6]),
    busyShare: random.pick([0.02, 0.02, 0.2, 0.7]),
    slowStartShare: random.pick([0, 0.1, 0.5]),
    doubledShare: random.pick([0, 0.05, 0.3]),
    noiseShare: random.pick([0, 0.02]),
    slowWriterShare: random.pick([0, 0.05, 0.3]),
    lostAnswerShare: random.pick([0, 0.02, 0.1]),
    putAsideShare: random.pick([0, 0, 0.1]),
    commandEveryMs: random.pick([1_000, 3_000, 8_000]),
    badResultShare: random.pick([0, 0.1, 0.4]),
    reconcileAfterMs: random.pick([3_000, 12_000, 12_000, 60_000]),
    socketsMax: random.pick([1, 2, 3]),
    tariffShare: random.pick([0.5, 1]),
    streamPosition: random.pick([0, 2 ** 32 - 4_096, 2 ** 33 - 1_024 * (1 + random.below(64))]),
  }
}

class Simulation implements Watch {
  readonly #seed: number
  readonly #world: World
  readonly #faults: Random
  readonly #database: ModelDatabase
  readonly #spool: ModelSpool
  readonly #devices: SimDevice[]
  readonly #lineByBirth = new Map<number, Line>()
  /** Open at the server, by device key: who may compete for the word. */
  readonly #openLines = new Set<Line>()
  readonly #lastEpoch = new Map<number, number>()
  /** Connection whose claim was taken last, by device key. */
  readonly #holder = new Map<number, Line>()
  readonly #newestClaimedBirth = new Map<number, number>()
  readonly #owed = new Set<string>()
  /** What devices settled, by device, socket, port and number. */
  readonly #truth = new Map<string, SeenSettlement>()
  readonly #acked = new Set<string>()
  readonly #ackSent = new Map<string, number>()
  /** Settlements that session threads heard, by device and socket. */
  readonly #heard = new Map<string, Set<string>>()
  readonly #operators: Operators
  readonly #started = new Set<string>()
  #gateway: Gateway | undefined
  #generation = 0
  #lines = 0
  #events = 0

  constructor(seed: number, options: SimulationOptions) {
    this.#seed = seed
    const random = new Random(seed, 0x51)
    this.#faults = random.fork()
    const plan = drawPlan(random.fork())
    // what shows rarely is brought about more often, or catching it would take minutes
    if (options.mutant === 'deskTrustsTheDead') {
      Object.assign(plan, { slowWriterShare: 0.6, commandEveryMs: 500, faultEveryMs: 1_500 })
      Object.assign(plan.faultWeights, { shardCrash: 5, outage: 1 })
    }
    this.#world = new World(new VirtualTime(), random, plan, options.mutant, options.say)
    this.#world.trace(() => `plan ${JSON.stringify(plan)}`)
    this.#operators = new Operators(
      this.#world,
      () => this.#database.isUp,
      () => this.#gateway,
    )
    this.#database = new ModelDatabase(this.#world, this.#truth, this.#operators.orders)
    this.#spool = new ModelSpool(this.#world, this.#database)
    for (const number of CARDS) {
      const rateMode = number === MONTHLY_CARD ? 1 : 0
      // far apart, so that one card's balance is never another's; the poor one is soon in debt
      const startFen =
        number === POOR_CARD ? random.pick([0, 5, 15]) : random.pick([0, 60, 5_000]) + 10_007 * (number % 16)
      const isActive = number !== LOST_CARD
      // the same card at both kinds of device
      for (const cardId of cardIdsOf(number)) this.#operators.orders.addCard(cardId, rateMode, isActive, startFen)
    }
    this.#startGateway()
    this.#devices = Array.from({ length: plan.devices }, (_, index) => new SimDevice(this, this.#world, seed, index))
    for (const { targets } of this.#devices)
      for (const { deviceId } of targets)
        if (random.chance(plan.tariffShare)) this.#operators.orders.tariffs.set(deviceId, random.pick(TARIFFS))
  }

  get gateway(): Gateway | undefined {
    return this.#gateway
  }

  // ---- the run -----------------------------------------------------------------------------------------------------

  async run(): Promise<SimulationResult> {
    const { time, plan } = this.#world
    for (const device of this.#devices) device.powerOn(this.#faults.between(0, 3_000))
    this.#planOrder()
    this.#planCommand()
    this.#planFault()
    await this.#until(plan.faultMs)

    this.#calmDown()
    const deadlineMs = time.nowMs + CALM_MS_MAX
    while (!this.#isAtRest() && time.nowMs < deadlineMs) await this.#until(time.nowMs + 1_000)
    this.#checkRest()
    await this.#reconcile()
    // one more flush interval: the newest state is on its way or stored
    await this.#until(time.nowMs + 3_000)
    this.#checkState()

    const lost = this.#devices.filter((_, index) => index % 3 === this.#seed % 3)
    for (const device of lost) device.powerOff(this.#faults)
    await this.#until(time.nowMs + IDLE_TIMEOUT_MS + 5_000)
    this.#checkDirectory()

    for (const device of this.#devices) device.quiet()
    await this.#until(time.nowMs + 10_000)
    for (const device of this.#devices)
      if (device.double.outstanding > 0)
        this.#world.violated(
          'liveness',
          `${device.double.deviceId}: ${device.double.outstanding} outstanding when quiet`,
        )
    this.#raise()
    return {
      seed: this.#seed,
      events: this.#events,
      virtualMs: time.nowMs,
      settlements: this.#acked.size,
      commands: this.#operators.count,
      coverage: this.#world.coverage,
    }
  }

  /** Hours pass: what is still open by then is asked for and estimated. */
  async #reconcile(): Promise<void> {
    const { time } = this.#world
    for (const laterMs of [10, 20]) {
      this.#world.laterMs = laterMs * 3_600_000
      await this.#until(time.nowMs + 9_000)
    }
    const deadlineMs = time.nowMs + CALM_MS_MAX
    while (!(this.#isAtRest() && this.#operators.orders.isAtRest) && time.nowMs < deadlineMs)
      await this.#until(time.nowMs + 1_000)
    this.#operators.orders.check(this.#truth)
    this.#checkRest()
  }

  async #until(untilMs: number): Promise<void> {
    const world = this.#world
    for (;;) {
      let isMore: boolean
      try {
        isMore = world.time.step(untilMs)
      } catch (error) {
        if (error instanceof SimulationFailure) throw error
        world.violated('no exception', (error as Error).stack ?? String(error))
        isMore = false
      }
      this.#events++
      // every promise here is settled by an event, so that this many turns are the same in every run
      while (world.owesTurn) {
        world.owesTurn = false
        for (let turn = 0; turn < TURNS; turn++) await undefined
      }
      if (world.failure !== undefined) this.#raise()
      if (!isMore) break
    }
    if (world.time.nowMs < untilMs) world.time.nowMs = untilMs
  }

  #raise(): void {
    const { failure } = this.#world
    if (failure !== undefined) throw new SimulationFailure(this.#seed, failure.atMs, failure.invariant, failure.detail)
  }

  #startGateway(): void {
    if (this.#world.mutant !== 'sameGeneration' || this.#generation === 0) this.#generation++
    const { table, orders } = this.#operators
    const { reconcilerStore } = orders
    this.#gateway = new Gateway(
      this.#world,
      this,
      this.#database,
      table,
      reconcilerStore,
      this.#spool,
      this.#generation,
    )
    this.#world.trace(() => `gateway started, generation ${this.#generation}`)
  }

  dial(device: SimDevice): Line {
    const line = new Line(this.#world, ++this.#lines, device.double.deviceId, device)
    line.isWithoutIccid = this.#world.goesWrong(this.#world.plan.withoutIccidShare)
    if (this.#world.goesWrong(this.#world.plan.slowStartShare)) line.up.stall(this.#faults.between(100, 6_000))
    const { time, random } = this.#world
    time.after(random.between(1, 80), () => {
      if (!line.isDeviceOpen) return
      const gateway = this.#gateway
      if (gateway?.isServing !== true) {
        this.#world.covered('connection.refused')
        device.lineEnded(line, 'refused')
        return
      }
      gateway.accept(line)
      for (const other of this.#openLines) if (!other.isServerOpen) this.#openLines.delete(other)
      this.#openLines.add(line)
      this.#lineByBirth.set(line.birth, line)
      time.after(random.between(1, 80), () => device.lineOpened(line))
    })
    return line
  }

  // ---- what goes wrong ---------------------------------------------------------------------------------------------

  #planOrder(): void {
    const random = this.#faults
    this.#world.time.after(random.between(200, 4_000), () => {
      if (this.#world.isCalm) return
      random.pick(this.#devices).startOrder(random.chance(0.6))
      this.#planOrder()
    })
  }

  #planCommand(): void {
    const { plan, time, random } = this.#world
    time.after(random.between(0, 2 * plan.commandEveryMs), () => {
      if (this.#world.isCalm) return
      const device = random.pick(this.#devices)
      const target = random.pick(device.targets)
      if (this.#gateway?.directory.look(target.deviceKey)?.isOnline !== true)
        this.#world.covered('command.for_offline_device')
      if (!this.#database.isUp) this.#world.covered('command.while_outage')
      // operators come in bursts
      for (let count = random.chance(0.2) ? 4 : 1; count > 0; count--) this.#operators.giveCommand(target)
      this.#planCommand()
    })
  }

  #planFault(): void {
    const { plan, time } = this.#world
    const random = this.#faults
    time.after(-Math.log(1 - random.unit()) * plan.faultEveryMs, () => {
      if (this.#world.isCalm) return
      const total = FAULTS.reduce((sum, fault) => sum + plan.faultWeights[fault], 0)
      let draw = random.unit() * total
      const fault = FAULTS.find((candidate) => {
        draw -= plan.faultWeights[candidate]
        return draw < 0
      })
      if (fault !== undefined) this.#cause(fault)
      this.#planFault()
    })
  }

  #cause(fault: Fault): void {
    const world = this.#world
    const random = this.#faults
    const device = random.pick(this.#devices)
    const line = device.line
    world.trace(() => `fault ${fault} (${line?.name ?? device.double.deviceId})`)
    switch (fault) {
      case 'outage':
        this.#outage(random.chance(0.3) ? random.between(10_000, 45_000) : random.between(300, 8_000))
        return
      case 'shardCrash':
        this.#gateway?.crashShardSoon(random.below(world.plan.shards), random.chance(0.4))
        return
      case 'gatewayCrash':
        this.#crashGateway()
        return
      default:
    }
    if (line === undefined || !line.isDeviceOpen || !line.isServerOpen) return
    switch (fault) {
      case 'cut':
        world.covered('connection.cut')
        device.hangUp('cut')
        line.abandonedByDevice(random.between(0, 3_000), random.chance(0.5))
        return
      case 'halfOpen':
        world.covered('connection.half_open')
        if (random.chance(0.5)) line.up.stall(random.between(100, 20_000))
        device.hangUp('half-open')
        line.abandonedByDevice(random.chance(0.3) ? undefined : random.between(5_000, 70_000), random.chance(0.7))
        return
      case 'deadAtServer':
        world.covered('connection.dead_at_server')
        line.lostByServer(random.between(100, 25_000))
        return
      case 'stall':
        world.covered('connection.stalled')
        random.pick([line.up, line.down]).stall(random.between(500, 10_000))
        return
      case 'overflow':
        world.covered('outbound.full')
        line.isFull = true
        return
      case 'restarts':
        this.#restart(device, 1 + random.below(4))
        return
      case 'backlog':
        // what the device goes on sending arrives long after it has given this connection up
        world.covered('connection.backlog')
        line.up.stall(30_000)
        world.time.after(random.between(500, 8_000), () => {
          if (!line.isDeviceOpen || device.line !== line) return
          device.hangUp('backlog')
          // about when the next connection takes over, or much later
          line.up.release(random.chance(0.7) ? random.between(300, 3_000) : random.between(3_000, 25_000))
          line.abandonedByDevice(random.between(0, 20_000), true)
        })
        return
      default:
    }
  }

  /** A module that restarts over and over: several connections of one device, their first bytes in any order. */
  #restart(device: SimDevice, times: number): void {
    const random = this.#faults
    const { line } = device
    if (line !== undefined) {
      device.hangUp('restart')
      line.abandonedByDevice(random.between(100, 30_000), random.chance(0.8))
    }
    if (times > 1)
      this.#world.time.after(random.between(300, 4_000), () => {
        if (!this.#world.isCalm) this.#restart(device, times - 1)
      })
  }

  #outage(ms: number): void {
    const world = this.#world
    if (!this.#database.isUp) return
    world.covered('outage')
    if ((this.#gateway?.acksPending ?? 0) > 0) world.covered('outage.with_ack_pending')
    this.#database.isUp = false
    this.#operators.troubleBegan()
    world.time.after(ms, () => {
      this.#operators.troubleOver()
      this.#database.isUp = true
      world.trace(() => 'outage over')
    })
  }

  #crashGateway(): void {
    const gateway = this.#gateway
    if (gateway === undefined) return
    gateway.crash()
    this.#operators.troubleBegan()
    this.#operators.gatewayDied()
    this.#gateway = undefined
    for (const key of this.#acked) if (this.#storedOf(key) === 0) this.#world.violated('none lost once acked', key)
    const start = () => {
      // the generation comes from the database: without it there is no start
      if (this.#database.isUp) {
        this.#operators.troubleOver()
        this.#startGateway()
      } else this.#world.time.after(500, start)
    }
    this.#world.time.after(this.#faults.between(300, 8_000), start)
  }

  #calmDown(): void {
    this.#world.trace(() => 'calm from here on')
    this.#world.isCalm = true
    this.#database.isUp = true
    this.#database.poison.clear()
  }

  // ---- what devices do ---------------------------------------------------------------------------------------------

  /** Looks at every frame a device sends, before the network has it. */
  frameSent(line: Line, frame: Uint8Array): void {
    const seen = readFrame(frame)
    if (seen === undefined) return
    const { question } = seen
    line.unanswered.set(question, (line.unanswered.get(question) ?? 0) + 1)
    this.#operators.deviceSent(seen)
    const settlement = settlementIn(seen)
    if (settlement === undefined) return
    const order = settlementKeyOf(settlement, settlement.wireHex)
    const known = this.#truth.get(order)
    if (known === undefined) {
      this.#truth.set(order, settlement)
      if (seen.name.includes('/')) this.#world.covered(`end.${seen.name}` as Covered)
      if (this.#world.goesWrong(this.#world.plan.putAsideShare))
        this.#database.poison.set(order, 1 + this.#faults.below(2))
    } else if (known.content !== settlement.content) this.#world.violated('the double repeats itself', order)
    this.#orderOf.set(`${line.number} ${question}`, order)
  }

  /** Which order an ack is about, by connection and uplink. */
  readonly #orderOf = new Map<string, string>()

  heardSettlement(deviceId: string, socket: number, port: number, wireHex: string): void {
    const about = `${deviceId}/${socket}`
    const heard = this.#heard.get(about) ?? new Set()
    this.#heard.set(about, heard.add(settlementKeyOf({ deviceId, socket, port }, wireHex)))
  }

  decides(fate: CommandFateRow): void {
    this.#operators.decides(fate)
  }

  decided(commandId: string): void {
    this.#operators.decided(commandId)
  }

  troubleBegan(): void {
    this.#operators.troubleBegan()
  }

  troubleOver(): void {
    this.#operators.troubleOver()
  }

  cardAnswer(question: CardQuestion): CardAnswer {
    return this.#operators.orders.answerCard(question.cardId)
  }

  cardAnswered({ deviceId, port, cardId }: CardQuestion, answer: CardAnswer): void {
    this.#operators.chargeByCard(this.#targetOf(deviceId), port, cardId, answer)
  }

  asks(order: DoubtedOrder): void {
    this.#world.covered('order.asked_for')
    this.#operators.askFor(this.#targetOf(order.deviceId), order)
  }

  keepsLimits(): void {
    this.#operators.keepLimits((deviceId) => this.#targetOf(deviceId))
  }

  #targetOf(deviceId: string): Target {
    for (const { targets } of this.#devices)
      for (const target of targets) if (target.deviceId === deviceId) return target
    throw new Error(`no device ${deviceId}`)
  }

  /** @param order as doubles name it: BKV with socket and port */
  started(deviceId: string, port: number, order: string): void {
    const place = placeOf(deviceId, port, order)
    const key = settlementKeyOf(place, place.wireHex)
    if (this.#started.has(key)) this.#world.violated('an order runs once', `${key} began again`)
    this.#started.add(key)
    this.#operators.deviceStarted(deviceId, place.socket, place.port, place.wireHex)
  }

  acked(deviceId: string, port: number, order: string): void {
    const place = placeOf(deviceId, port, order)
    const key = settlementKeyOf(place, place.wireHex)
    this.#acked.add(key)
    this.#mustBeStored(key, 'the device has its ack')
  }

  #storedOf(key: string): number {
    const [deviceId = '', socket, port, wireHex = ''] = key.split('/')
    return this.#operators.orders.stored({ deviceId, socket: Number(socket), port: Number(port) }, wireHex)
  }

  #mustBeStored(key: string, why: string): void {
    const rows = this.#storedOf(key)
    if (rows === 0) this.#world.violated('no ack before durable', `${why}, settlement ${key} is not stored`)
    if (rows > 1) this.#world.violated('no row twice', `${why}, settlement ${key} has ${rows} rows`)
  }

  // ---- what the gateway does ---------------------------------------------------------------------------------------

  /** A session thread sends for a device. */
  #spoken(line: Line, frame: Uint8Array) {
    const world = this.#world
    const seen = readFrame(frame)!
    world.trace(() => `${line.name} < ${seen.name} ${hexOf(frame)}`)
    for (const other of this.#openLines)
      if (other.birth > line.birth && other.isServerOpen && other.answered.has(seen.deviceKey))
        world.violated('one speaker per device', `${line.name} is answered, the newer ${other.name} was already`)
    line.answered.add(seen.deviceKey)
    return seen
  }

  commands(line: Line, frame: Uint8Array, commandId: string): void {
    this.#operators.sends(commandId, this.#spoken(line, frame), line.number)
  }

  speaks(line: Line, frame: Uint8Array): void {
    const world = this.#world
    const { question, name, deviceId, data, isOfCommand } = this.#spoken(line, frame)
    if (isOfCommand) return
    const unanswered = line.unanswered.get(question) ?? 0
    if (unanswered === 0)
      world.violated('each reply answers one uplink', `${line.name}: ${question} was not asked, or answered`)
    else line.unanswered.set(question, unanswered - 1)
    if (name === '03' || name === '1000/1004') {
      const order = this.#orderOf.get(`${line.number} ${question}`) ?? 'unknown'
      this.#countAck(order)
      this.#mustBeStored(order, 'its ack is sent')
    } else if (name === '0015/0c') {
      this.#countAck(`${line.number} ${question}`)
      // it names the socket only: whatever was heard of that is taken for acked
      for (const order of this.#heard.get(`${deviceId}/${data[3]}`) ?? [])
        this.#mustBeStored(order, 'an ack for its socket is sent')
    } else if (name === '02') {
      const card = this.#operators.orders.cards.get(hexOf(data.subarray(0, 4)))
      const told = new DataView(data.buffer, data.byteOffset).getUint32(6, true)
      // cards differ by more than they ever spend; a debt is told as nothing
      const isItsOwn = card?.rateMode === 1 || card?.balances.has(told) || (told === 0 && (card?.balanceFen ?? 0) < 0)
      if (!isItsOwn || (data[4] === 0 && !card?.isActive))
        world.violated(
          'a card gets its own answer',
          `${line.name}: ${hexOf(frame)}, it had ${[...(card?.balances ?? [])]}`,
        )
    }
  }

  #countAck(about: string): void {
    const sent = (this.#ackSent.get(about) ?? 0) + 1
    this.#ackSent.set(about, sent)
    this.#world.covered(sent === 1 ? 'ack.sent' : 'ack.repeated')
  }

  closes(line: Line, reason: CloseReason): void {
    const world = this.#world
    world.trace(() => `${line.name} closed by the gateway: ${reason}`)
    if (reason === 'idle') {
      world.covered('close.idle')
      if (world.time.nowMs - line.heardMs < IDLE_TIMEOUT_MS)
        world.violated('no close without reason', `${line.name} idle, heard ${world.time.nowMs - line.heardMs} ms ago`)
      return
    }
    if (reason === 'outbound_overflow' && line.isFull) return
    if (reason !== 'superseded') {
      world.violated('no close without reason', `${line.name}: ${reason}`)
      return
    }
    world.covered('close.superseded')
    const isNewerThere = [...line.asked].some((key) => (this.#newestClaimedBirth.get(key) ?? 0) > line.birth)
    if (!isNewerThere) world.violated('a reconnect wins', `${line.name} superseded, nobody newer had the word`)
  }

  peerEnded(line: Line): void {
    if ([...line.asked].some((key) => (this.#newestClaimedBirth.get(key) ?? 0) > line.birth))
      this.#world.covered('server_end.late')
  }

  claimed(birth: number, key: number, answer: ClaimAnswer): void {
    const world = this.#world
    const line = this.#lineByBirth.get(birth)
    if (line === undefined) {
      world.violated('births are known', `${birth}`)
      return
    }
    line.asked.add(key)
    if (answer.kind === 'full') {
      world.violated('the directory has room', line.name)
      return
    }
    if (answer.kind === 'refused') {
      world.trace(() => `${line.name} refused, epoch ${answer.by.epoch} stands`)
      const holder = this.#holder.get(key)
      if (holder === undefined || holder.birth < birth)
        world.violated('a reconnect wins', `${line.name} is refused, the older ${holder?.name} holds the word`)
      return
    }
    const { claim, previous } = answer
    const loserLine = this.#holder.get(key)
    // another connection has the word now: whatever it says for this device from here on is checked against the others
    if (loserLine !== undefined && loserLine.birth < birth) loserLine.answered.delete(key)
    world.trace(() => `${line.name} claims, epoch ${claim.epoch}, shard ${claim.shard}`)
    if (claim.epoch <= (this.#lastEpoch.get(key) ?? 0))
      world.violated('epochs grow', `${line.name}: ${claim.epoch} after ${this.#lastEpoch.get(key)}`)
    this.#lastEpoch.set(key, claim.epoch)
    this.#holder.set(key, line)
    if (birth < (this.#newestClaimedBirth.get(key) ?? 0)) world.covered('claim.again_by_older')
    else this.#newestClaimedBirth.set(key, birth)
    if (previous?.isOnline !== true) return
    world.covered('takeover')
    const gateway = this.#gateway as Gateway
    const loser = gateway.threads[previous.shard]
    if (previous.shard !== claim.shard) world.covered('takeover.across_shards')
    if (loser?.isAlive !== true) world.covered('takeover.of_dead_shard')
    else if (loser.shard.acksPending > 0 && this.hasUnacked(key)) world.covered('takeover.with_ack_pending')
    if (!this.#database.isUp) world.covered('takeover.during_outage')
    if (loser !== undefined && loser.commandsInFlight > 0) {
      world.covered('command.takeover_in_flight')
      if (previous.shard !== claim.shard) world.covered('command.takeover_across_shards')
    }
  }

  hasUnacked(key: number): boolean {
    return this.#devices.some((device) => device.keys.includes(key) && device.double.unackedOrders.length > 0)
  }

  released(names: readonly string[]): void {
    for (const name of names) if (!this.#database.arrived.has(name)) this.#owed.add(name)
  }

  // ---- in the end --------------------------------------------------------------------------------------------------

  #isAtRest(): boolean {
    const gateway = this.#gateway
    return (
      gateway?.isIdle === true &&
      gateway.acksPending === 0 &&
      this.#operators.isAtRest &&
      this.#spool.isEmpty &&
      gateway.threads.every((thread) => thread?.isAlive === true) &&
      this.#devices.every(
        ({ double, portCount }) => double.isConnected && double.outstanding === 0 && double.freePorts === portCount,
      ) &&
      this.#devices.every((device) => device.keys.every((key) => gateway.directory.look(key)?.isOnline === true))
    )
  }

  #checkRest(): void {
    const world = this.#world
    if (!this.#isAtRest()) {
      const gateway = this.#gateway
      const lanes = gateway?.lanes.map(({ pumps }) =>
        LANES.map((lane) => `${lane} ${pumps[lane].rowsPending}`).join(' '),
      )
      const devices = this.#devices.map(
        ({ double }) =>
          `${double.deviceId} ${double.isConnected ? 'connected' : 'away'} ${double.outstanding} outstanding ${double.unackedOrders.length} unacked`,
      )
      world.violated(
        'liveness',
        `not at rest ${CALM_MS_MAX / 1000} s after the last fault: ${gateway?.acksPending} acks pending; ${lanes}; ${devices}; spool empty ${this.#spool.isEmpty}; ${this.#operators.describe()}`,
      )
    }
    for (const key of this.#started) {
      this.#mustBeStored(key, 'its order has ended')
      if (!this.#acked.has(key)) world.violated('liveness', `settlement ${key} was never acked`)
    }
    for (const name of this.#owed)
      if (!this.#database.arrived.has(name) && !this.#spool.dropped.has(name))
        world.violated('no row lost', `history row ${name} left its ring and never arrived`)
    this.#raise()
  }

  /** The devices and ports tables tell what is. */
  #checkState(): void {
    const world = this.#world
    for (const device of this.#devices)
      for (const key of device.keys) {
        const claim = this.#gateway?.directory.look(key)
        const deviceId = idOf(key)
        const row = this.#database.devices.get(deviceId)
        if (row?.epoch !== claim?.epoch && this.#spool.dropped.size === 0)
          world.violated('the newest epoch stands', `devices row of ${deviceId}: ${row?.epoch}, claim ${claim?.epoch}`)
        for (const [port, { state }] of this.#database.ports)
          if (port.startsWith(deviceId) && state !== 'idle' && this.#spool.dropped.size === 0)
            world.violated('the newest state stands', `port ${port} is ${state}, no order runs`)
      }
    this.#raise()
  }

  #checkDirectory(): void {
    for (const device of this.#devices) {
      const isOpen = device.line?.isDeviceOpen === true && device.line.isServerOpen
      for (const key of device.keys) {
        const isOnline = this.#gateway?.directory.look(key)?.isOnline === true
        if (isOnline !== isOpen)
          this.#world.violated(
            'the directory tells who is there',
            `${device.double.deviceId} is ${isOpen ? 'connected' : 'off'}, the directory says ${isOnline ? 'online' : 'offline'}`,
          )
      }
    }
    this.#raise()
  }
}

const protocolOf = (key: number) => (key < DEVICE_NO_LIMIT ? ap3000 : bkv)
const idOf = (key: number) => protocolOf(key).formatDeviceId(key % DEVICE_NO_LIMIT)

/** BKV doubles name an order by socket, port and business number. @param wirePort from 0 */
function placeOf(deviceId: string, wirePort: number, order: string) {
  const isBkv = order.includes('/')
  const socket = isBkv ? Number.parseInt(order, 10) : 0
  return { deviceId, socket, port: wirePort + 1, wireHex: isBkv ? order.slice(-4) : order }
}

const CARDS = [0x10000001, 0x10000002, 0x10000003, 0x10000004, 0x10000005, 0x10000006]
const POOR_CARD = 0x10000004
const MONTHLY_CARD = 0x10000005
const LOST_CARD = 0x10000006
/** AP3000 has four bytes of a card, BKV six. */
const cardIdsOf = (number: number) => [number.toString(16), number.toString(16).padStart(12, '0')]

/** One device double on the simulated network. */
class SimDevice implements DeviceEnd {
  readonly double: DeviceAp3000 | DeviceBkv
  /** Its own and its slaves' device keys. */
  readonly keys: readonly number[]
  /** The same, for operators. */
  readonly targets: readonly Target[]
  /** Of all of them. */
  readonly portCount: number
  line: Line | undefined
  readonly #simulation: Simulation
  readonly #world: World
  #wakeMs = Number.POSITIVE_INFINITY
  #isOff = false
  #hasSentFrame = false

  constructor(simulation: Simulation, world: World, seed: number, index: number) {
    this.#simulation = simulation
    this.#world = world
    const { random } = world
    const isBkv = random.chance(world.plan.bkvShare)
    const deviceNo = isBkv ? bkvGatewayNo(seed, index) : ap3000DeviceNo(seed, index * 10)
    const isHost = !isBkv && random.chance(0.3)
    const slaves = isHost ? [deviceNo + 1, deviceNo + 2].slice(0, 1 + random.below(2)) : []
    const protocol = isBkv ? bkv : ap3000
    this.keys = [deviceNo, ...slaves].map((number) => deviceKey(protocol, number))
    const sockets = isBkv ? 1 + random.below(world.plan.socketsMax) : 0
    this.targets = this.keys.map((key) => ({ deviceKey: key, deviceId: idOf(key), protocol: protocol.name, sockets }))
    this.portCount = this.keys.length * PORTS_PER_DEVICE * Math.max(1, sockets)
    const common = {
      iccid: iccidOf(seed * 100 + index),
      seed,
      chargeMs: random.between(4_000, 30_000),
      timeScale: 20,
      reconnectMs: random.between(300, 1_500),
      replyLoss: random.pick([0, 0, 0.1]),
    }
    this.double = isBkv
      ? new DeviceBkv(
          {
            ...common,
            gatewayNo: deviceNo,
            socketCount: sockets,
            // two acks for a socket cross on their way, and nobody can tell them apart: not the gateway's doing
            acksInOrder: true,
            // a report says whole minutes, from which its beginning is computed: no more than the clock allows
            timeScale: 2,
            cards: CARDS.map((card) => new Uint8Array(Buffer.from(cardIdsOf(card)[1] as string, 'hex'))),
            heartbeatMs: random.between(8_000, 15_000),
            heartbeatReplyMs: 30_000,
            statusMs: random.between(15_000, 40_000),
            endRepeatMs: random.between(3_000, 6_000),
          },
          this.#deviceWorld(),
          this.#observer(),
        )
      : new DeviceAp3000(
          {
            ...common,
            deviceNo,
            cards: CARDS,
            portCount: PORTS_PER_DEVICE,
            isHost,
            slaves,
            heartbeatMs: random.between(20_000, 40_000),
            linkMs: random.between(8_000, 15_000),
            settleRepeatMs: random.between(6_000, 12_000),
            nextRecordMs: 300,
          },
          this.#deviceWorld(),
          this.#observer(),
        )
  }

  get #nowMs(): number {
    return WALL_MS + this.#world.time.nowMs
  }

  powerOn(afterMs: number): void {
    this.#act(() => this.double.powerOn(this.#nowMs + afterMs))
  }

  startOrder(isByCard: boolean): void {
    this.#act(() => {
      if (this.double.startOrder(this.#nowMs, isByCard) && isByCard) this.#world.covered('order.by_card')
    })
  }

  quiet(): void {
    this.double.quiet()
  }

  /** Its end of the connection is gone; it dials again by itself. */
  hangUp(why: string): void {
    const { line } = this
    if (line === undefined) return
    this.line = undefined
    this.#world.trace(() => `${line.name} hangs up: ${why}`)
    this.#act(() => this.double.disconnected(this.#nowMs, why))
  }

  /** For good: politely, by reset, or without a word. */
  powerOff(random: Random): void {
    this.#isOff = true
    this.double.quiet()
    const { line } = this
    if (line === undefined) return
    line.abandonedByDevice(
      random.pick([random.between(0, 100), random.between(1_000, 30_000), undefined]),
      random.chance(0.5),
    )
    this.hangUp('power off')
  }

  lineOpened(line: Line): void {
    if (this.line !== line || !line.isDeviceOpen) return
    this.#hasSentFrame = false
    this.#act(() => this.double.connected(this.#nowMs))
  }

  lineReceived(line: Line, bytes: Uint8Array): void {
    if (this.line === line) this.#act(() => this.double.received(bytes, this.#nowMs))
  }

  lineEnded(line: Line, why: string): void {
    if (this.line !== line) return
    line.isDeviceOpen = false
    this.hangUp(why)
  }

  /** Calls the double and looks when it wants to be woken. */
  #act(call: () => void): void {
    call()
    const atMs = this.double.nextWakeMs - WALL_MS
    if (atMs >= this.#wakeMs || !Number.isFinite(atMs)) return
    this.#wakeMs = atMs
    this.#world.time.at(atMs, () => {
      if (this.#wakeMs !== atMs) return
      this.#wakeMs = Number.POSITIVE_INFINITY
      this.#act(() => this.double.wake(this.#nowMs))
    })
  }

  #deviceWorld(): DeviceWorld {
    return {
      connect: () => {
        if (!this.#isOff) this.line = this.#simulation.dial(this)
      },
      send: (bytes) => this.#send(bytes),
      close: () => {
        this.line?.abandonedByDevice(0, true)
        this.hangUp('')
      },
    }
  }

  #send(bytes: Uint8Array): void {
    const { line } = this
    const world = this.#world
    if (line === undefined) return
    const seen = readFrame(bytes)
    if (seen === undefined) {
      if (bytes.length === 20 && line.isWithoutIccid) world.covered('connection.without_iccid')
      else line.up.send(bytes)
      return
    }
    if (seen.isOfCommand && world.goesWrong(world.plan.badResultShare)) {
      const { random } = world
      const draw = random.unit()
      world.covered(draw < 0.3 ? 'result.never' : draw < 0.7 ? 'result.late' : 'result.twice')
      if (draw >= 0.7) this.#sendFrame(bytes)
      // whatever connection it has by then
      if (draw >= 0.3) world.time.after(random.between(500, 20_000), () => this.#sendFrame(bytes))
      return
    }
    // before the first frame it could make the gateway take it for a stranger, and rightly
    if (this.#hasSentFrame && world.goesWrong(world.plan.noiseShare)) {
      world.covered('noise.sent')
      line.up.send(new Uint8Array(1 + world.random.below(12)))
    }
    this.#hasSentFrame = true
    this.#sendFrame(bytes)
    // an ack that names the socket only would be one too many: the double has not sent what it answers
    const isDoubtful = seen.name.startsWith('0015/')
    if (settlementIn(seen) !== undefined && !isDoubtful && world.goesWrong(world.plan.doubledShare)) {
      world.covered('frame.doubled')
      this.#sendFrame(bytes)
    }
  }

  #sendFrame(bytes: Uint8Array): void {
    const { line } = this
    if (line === undefined || !this.double.isConnected) return
    this.#world.trace(() => `${line.name} > ${hexOf(bytes)}`)
    this.#simulation.frameSent(line, bytes)
    line.up.send(bytes)
  }

  #observer(): DeviceObserver {
    const world = this.#world
    return {
      uplinkSent: () => {},
      replyReceived: () => {},
      replyIgnored: (name) => {
        if (name === '03' || name === '0015/02') world.covered('ack.lost_at_device')
      },
      replyMissed: () => {},
      commandReceived: () => {},
      orderStarted: (deviceId, port, order) => {
        this.#simulation.started(deviceId, port, order)
      },
      settlementSent: (_deviceId, _port, _order, isRepeat) => {
        if (isRepeat) world.covered('settlement.repeated')
      },
      settlementAcked: (deviceId, port, order) => this.#simulation.acked(deviceId, port, order),
      failed: (kind, detail) => this.#failed(kind, detail),
    }
  }

  #failed(kind: FailureKind, detail: string): void {
    switch (kind) {
      // both ends are watched: every end of a connection has a cause here, every reply an uplink
      case 'connection.closed':
      case 'connection.failed':
      case 'reply.unexpected':
        return
      default:
        this.#world.violated('the protocol is kept', `${this.double.deviceId}: ${kind} ${detail}`)
    }
  }
}
