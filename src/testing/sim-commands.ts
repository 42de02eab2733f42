/**
 * Operators who give commands, the table their commands are in, and what must hold of each command from its first byte
 * to its fate.
 */
import type { Fields } from '../codec/protocol.ts'
import type { StoredCommand } from '../main/command-desk.ts'
import type { CommandProgress, CommandStore, WaitingCommand } from '../main/command-store.ts'
import type { CommandFateRow } from '../rows/index.ts'
import { COMMAND_STATUS, PRIORITY } from '../session/command-lane.ts'
import { ACK_TIMEOUT_MS, type Gateway, SPACING_MS, WALL_MS } from './sim-gateway.ts'
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
  /** Virtual time, like all times here. */
  readonly storedMs: number
  status: number
  attempts: number
  messageId: number | null
  epoch: number | null
  sentMs: number | null
  reason: string
}

/** `outbound_queue`: workers/writer/command-fates.ts and src/main/command-store.ts as rules. */
export class CommandTable implements CommandStore {
  readonly rows = new Map<string, Row>()
  readonly #world: World
  readonly #isUp: () => boolean
  /** Told of each fate. */
  readonly #ended: (row: Row) => void

  constructor(world: World, isUp: () => boolean, ended: (row: Row) => void) {
    this.#world = world
    this.#isUp = isUp
    this.#ended = ended
  }

  get isUp(): boolean {
    return this.#isUp()
  }

  insert(command: StoredCommand): void {
    this.rows.set(command.commandId, {
      command,
      storedMs: this.#world.time.nowMs,
      status: COMMAND_STATUS.queued,
      attempts: 0,
      messageId: null,
      epoch: null,
      sentMs: null,
      reason: '',
    })
  }

  /** A row of a session, in a transaction of a writer. */
  apply(fate: CommandFateRow): void {
    const world = this.#world
    const row = this.rows.get(fate.commandId)
    if (row === undefined) {
      world.violated('commands are known', fate.commandId)
      return
    }
    if (row.epoch !== null && fate.epoch < row.epoch) {
      world.covered('fenced.fate')
      return
    }
    if (isFinal(row.status)) {
      if (world.mutant === 'twoFates' && isFinal(fate.status)) this.#end(row, fate.status, fate.reason)
      return
    }
    row.attempts = Math.max(row.attempts, fate.attempts)
    row.messageId = fate.messageId ?? row.messageId
    row.epoch = fate.epoch
    if (row.attempts > 0) row.sentMs ??= fate.atMs
    if (isFinal(fate.status)) this.#end(row, fate.status, fate.reason)
    else row.status = Math.max(row.status, fate.status)
  }

  #end(row: Row, status: number, reason: string): void {
    const world = this.#world
    const { command } = row
    if (isFinal(row.status))
      world.violated('one fate', `${command.commandId} is ${row.status} ${row.reason}, then ${status} ${reason}`)
    row.status = status
    row.reason = reason
    this.#ended(row)
  }

  // ---- as main asks -----------------------------------------------------------------------------------------------

  /** A statement that is carried out, or not, and an answer that comes, or not. */
  #ask<T>(run: () => T): Promise<T> {
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
    return this.#ask(() => {
      let latest: Row | undefined
      for (const row of this.rows.values())
        if (row.command.deviceId === deviceId && row.messageId !== null)
          if (latest === undefined || row.sentMs! >= latest.sentMs!) latest = row
      return latest?.messageId ?? undefined
    })
  }

  end(commandId: string, status: number, reason: string): Promise<boolean> {
    return this.#ask(() => {
      const row = this.rows.get(commandId)
      if (row === undefined || isFinal(row.status)) return false
      this.#end(row, status, reason)
      return true
    })
  }

  waiting(): Promise<readonly WaitingCommand[]> {
    return this.#ask(() =>
      [...this.rows.values()]
        .filter(({ status }) => !isFinal(status))
        .map(({ command, attempts, messageId }) => ({ ...command, attempts, messageId })),
    )
  }

  progress(commandIds: readonly string[]): Promise<readonly CommandProgress[]> {
    return this.#ask(() =>
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
}

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
  readonly #world: World
  readonly #gatewayOf: () => Gateway | undefined
  readonly #commands = new Map<string, StoredCommand & Target>()
  readonly #sent = new Map<string, Sent>()
  readonly #lastSendMs = new Map<number, number>()
  /** Place in the order of arrival. */
  readonly #acceptedAt = new Map<string, number>()
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
    const port = random.below(2)
    const start = PRIORITY.start
    if (target.protocol === 'bkv') {
      const control = (on: number) => ({
        socket: 1,
        port,
        on,
        mode: 1,
        minutesMin: on * (1 + random.below(9)),
        energyWh: 0,
      })
      const draw = random.unit()
      if (draw < 0.5) this.#submit(target, 'control', control(1), start, '', 1, port + 1)
      else if (draw < 0.7) this.#submit(target, 'control', control(0), PRIORITY.stop, '', 1, port + 1)
      else this.#submit(target, 'queryStatus', { socket: 1 }, start, '', 1, 0)
      return
    }
    const orderHex = hexOrder(this.#count + 1)
    const draw = random.unit()
    if (draw < 0.35) {
      const fields = {
        rateMode: 0,
        balanceFen: 0,
        port,
        command: 1,
        durationS: 600,
        orderHex,
        maxChargeS: 0,
        overloadPowerDw: 0,
      }
      this.#submit(target, 'startCharge', fields, start, orderHex, 0, port + 1)
      this.#lastOrder.set(`${target.deviceKey}/${port}`, orderHex)
    } else if (draw < 0.5) {
      const running = this.#lastOrder.get(`${target.deviceKey}/${port}`) ?? orderHex
      this.#submit(target, 'startCharge', { port, command: 0, orderHex: running }, PRIORITY.stop, '', 0, port + 1)
    } else if (draw < 0.75) this.#submit(target, 'locate', { locateS: 5 }, PRIORITY.background, '', 0, 0)
    else if (draw < 0.95)
      this.#submit(target, 'setLimits', { maxChargeS: 36_000, overloadPowerDw: 20_000 }, PRIORITY.parameter, '', 0, 0)
    else this.#submit(target, 'askStatus', {}, start, '', 0, 0)
  }

  readonly #lastOrder = new Map<string, string>()

  /** Stored, then told to the desk, unless the gateway dies in between. */
  #submit(
    target: Target,
    name: string,
    fields: Fields,
    priority: number,
    wireHex: string,
    socket: number,
    port: number,
  ): void {
    const world = this.#world
    const { time, random } = world
    const gateway = this.#gatewayOf()
    const commandId = `c${++this.#count}`
    const expiresMs = this.#wallStartMs + time.nowMs + random.pick([1_000, 4_000, 10_000, 30_000, 60_000])
    const { deviceId } = target
    const command = { commandId, deviceId, name, fields, priority, expiresMs, wireHex, socket, port }
    time.after(random.between(1, 8), () => {
      if (gateway?.isServing !== true || this.table.rows.size > 400) return
      if (!this.table.isUp) return
      this.#commands.set(commandId, { ...command, ...target })
      this.table.insert(command)
      world.trace(() => `command ${commandId} for ${deviceId}: ${name} ${JSON.stringify(fields)}`)
      world.covered('command.stored')
      this.#acceptedAt.set(commandId, this.table.rows.size)
      time.after(1, () => {
        if (gateway.isAlive) gateway.desk.accept(command)
      })
      if (world.goesWrong(0.15)) time.after(random.between(0, 4_000), () => this.#cancel(commandId))
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
  sends(commandId: string, frame: SeenFrame): void {
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
      this.#checkOrder(command)
      return
    }
    world.covered('command.resent')
    if (isStart(command) && command.protocol === 'bkv') world.violated('a BKV start is sent once', commandId)
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
    const lateMs = fate.atMs - command.expiresMs - ACK_TIMEOUT_MS
    if (lateMs > LOOK_MS) world.violated('a fate in time', `${fate.commandId} is ${fate.status} ${lateMs} ms too late`)
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
      (this.#startedAt.get(`${command.deviceId}/${command.port}`) ?? []).some(
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

  /** @returns how often a device began this order */
  startsOf(deviceId: string, port: number, order: string): number {
    const started = this.#startedAt.get(`${deviceId}/${port}`) ?? []
    return started.reduce((count, one) => count + (one.order === order ? 1 : 0), 0)
  }

  deviceStarted(deviceId: string, port: number, order: string): void {
    const key = `${deviceId}/${port + 1}`
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
const CODES: Readonly<Record<string, string>> = { startCharge: '82', locate: '96', setLimits: '85', control: '0015/07' }
const isStart = ({ name, fields }: StoredCommand) =>
  (name === 'control' && fields['on'] === 1) || (name === 'startCharge' && fields['command'] === 1)
const hexOrder = (number: number) => Buffer.from(`SIM${String(number).padStart(13, '0')}`, 'latin1').toString('hex')
