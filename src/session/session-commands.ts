/** The commands of a shard: from the mailbox into the lane of a session, announced, sent, and their fates written. */
import { commandFateRow } from '../rows/index.ts'
import { COMMAND_STATUS, CommandLane, type Fate, type LaneCommand, type LaneWorld } from './command-lane.ts'
import { type Moment, ROW_REFUSED } from './effects.ts'
import { Heard, type ResultFact, remember, UNCLAIMED_MS } from './heard.ts'
import type { SessionRows } from './session-rows.ts'
import type { Session, ShardWorld } from './shard-world.ts'
import { TimingWheel } from './timing-wheel.ts'

/** A command as it comes out of the mailbox. */
export interface ArrivedCommand extends Omit<LaneCommand, 'downlink'> {
  /** Of the protocol's downlink table. */
  readonly name: string
  /** Of the session it is meant for. */
  readonly epoch: number
}

/** A command whose first send waits for its row. */
interface Announced {
  /** Endless position of the row in the ledger lane. */
  readonly position: number
  readonly lane: CommandLane
  readonly session: Session
  readonly commandId: string
}

const OUTCOME = {
  [COMMAND_STATUS.acked]: 'acked',
  [COMMAND_STATUS.dead]: 'dead',
  [COMMAND_STATUS.refused]: 'refused',
  [COMMAND_STATUS.expired]: 'expired',
  [COMMAND_STATUS.cancelled]: 'cancelled',
} as const

/** Finer than the idle timers: spacing of 500 ms should not become 600. */
const LANE_TICK_MS = 20

type WrittenFate = Omit<Fate, 'status'> & { readonly status: number }

/** Of a result in its row; what 4,096 bytes of a device say may be 50,000 as JSON. */
const RESULT_BYTES_MAX = 8_192

/** What is too long is left out: the frame in cmd_log has it. */
function resultText(result: Fate['result']): string {
  const text = JSON.stringify(result)
  const bytes = Buffer.byteLength(text)
  if (bytes <= RESULT_BYTES_MAX) return text
  const { content: _, ...rest } = result
  return JSON.stringify({ ...rest, left_out_bytes: bytes })
}

export class SessionCommands {
  readonly #world: ShardWorld
  readonly #rows: SessionRows
  /** Fates the full ledger would not take yet. */
  #unwrittenFates: (() => boolean)[] = []
  /** In the order of their rows. */
  #announced: Announced[] = []
  readonly #wheel: TimingWheel
  readonly #lanes = new Map<number, Session>()
  /** Of sessions that began within UNCLAIMED_MS. */
  readonly #heard = new Map<Session, Heard>()

  constructor(world: ShardWorld, rows: SessionRows) {
    this.#world = world
    this.#rows = rows
    this.#wheel = new TimingWheel(LANE_TICK_MS, 4096, world.now.monoMs)
  }

  /**
   * A command for a device, from the mailbox.
   * @param session that holds the claim of the device here
   * @param lastMessageId the latest message id the database knows for the device
   */
  arrived(
    session: Session | undefined,
    deviceKey: number,
    arrived: ArrivedCommand,
    lastMessageId: number | undefined,
  ): void {
    const { now } = this.#world
    const downlink = session?.record.protocol.downlinkByName.get(arrived.name)
    const isMeant = session !== undefined && session.epoch === arrived.epoch && this.#world.isStanding(session)
    if (!isMeant || downlink === undefined) {
      const { commandId, attempts, messageId } = arrived
      this.#world.effects.returnCommand(deviceKey, { commandId, attempts, messageId })
      return
    }
    if (lastMessageId !== undefined) session.record.noteMessageId(lastMessageId)
    this.#world.effects.counts.commandsPending(1)
    this.laneOf(session).enqueue({ ...arrived, downlink }, now)
    this.arm(session)
  }

  /** Lets go of a command that was not sent; its fate is main's. @returns false: unknown here, or on its way already */
  cancel(session: Session | undefined, commandId: string): boolean {
    const isCancelled = session?.lane?.letGo(commandId) ?? false
    if (isCancelled) this.#world.effects.counts.commandsPending(-1)
    return isCancelled
  }

  /** A result came. @returns false: no command waits for it here */
  resultReceived(session: Session, fact: ResultFact, messageId: number, uplinkName: string): boolean {
    const { now } = this.#world
    if (session.lane !== undefined) return session.lane.resultReceived(fact, messageId, uplinkName, now)
    const heard = this.#heardOf(session)
    if (heard !== undefined) remember(heard.results, { fact, messageId, uplinkName, monoMs: now.monoMs })
    return false
  }

  /** A report names an order of a port. */
  orderSeen(session: Session, socket: number, port: number, wireHex: string): void {
    if (session.lane !== undefined) session.lane.orderSeen(socket, port, wireHex, this.#world.now)
    else {
      const heard = this.#heardOf(session)
      if (heard !== undefined) remember(heard.orders, { socket, port, wireHex })
    }
  }

  /** For a session that just began and has no lane: its commands may be on their way here. */
  #heardOf(session: Session): Heard | undefined {
    if (this.#world.now.monoMs - session.openedMonoMs > UNCLAIMED_MS) return undefined
    const known = this.#heard.get(session)
    if (known !== undefined) return known
    const heard = new Heard()
    this.#heard.set(session, heard)
    return heard
  }

  laneOf(session: Session): CommandLane {
    if (session.lane !== undefined) return session.lane
    const { record } = session
    const world: LaneWorld = {
      announce: (command, messageId) => {
        // behind what waits for room, or the table would go back
        if (this.#unwrittenFates.length > 0) return false
        const { commandId } = command
        const fate = { status: COMMAND_STATUS.sent, reason: 'sent', attempts: 1, messageId, result: {} }
        const position = this.#world.effects.appendRow(commandFateRow, this.#fateValues(session, commandId, fate))
        if (position === ROW_REFUSED) return false
        this.#announced.push({ position, lane, session, commandId })
        return true
      },
      chargeBefore: (command) => record.chargeBefore(command),
      send: (command, messageId) => {
        if (session.connection.isClosed || !this.#world.isStanding(session)) return false
        const frame = this.#world.encode(session, command.downlink, messageId, command.fields)
        this.#rows.log(session, command.downlink, messageId, frame, false, command.commandId, this.#world.now.wallMs)
        this.#world.effects.record(record.deviceKey, 0, frame, 0, frame.length)
        if (!this.#world.effects.send(session.connection.id, frame, undefined, this.#world.now.monoMs)) {
          this.#world.close(session.connection, 'outbound_overflow', this.#world.now)
          return false
        }
        this.#world.effects.counts.downlink(record.protocol, command.downlink)
        const { socket } = command.fields
        if (command.downlink.asksPorts) record.askedPorts(typeof socket === 'number' ? socket : undefined)
        return true
      },
      sent: (command, messageId, attempts, isResend) => {
        const status = COMMAND_STATUS.sent
        if (!isResend) {
          // its row is there: it was announced
          this.#world.effects.commandMoved(command.commandId, status)
          return
        }
        this.#world.effects.counts.commandResent(command.downlink)
        this.#writeFate(session, command.commandId, { status, reason: 'sent', attempts, messageId, result: {} })
      },
      ended: (command, fate, firstSentMonoMs) => {
        this.#world.effects.counts.command(command.downlink, OUTCOME[fate.status])
        if (firstSentMonoMs !== undefined)
          this.#world.effects.counts.commandSeconds(
            command.downlink,
            (this.#world.now.monoMs - firstSentMonoMs) / 1_000,
          )
        this.#world.effects.counts.commandsPending(-1)
        record.forgetChargeBefore(command.commandId)
        this.#writeFate(session, command.commandId, fate)
      },
      workedAfterAll: (command, fate) => this.#writeFate(session, command.commandId, fate),
      nextMessageId: () => {
        let messageId = record.nextMessageId(this.#world.now.wallMs)
        while (lane.isTaken(messageId)) messageId = record.nextMessageId(this.#world.now.wallMs)
        return messageId
      },
    }
    const { commands } = this.#world.options
    const lane = new CommandLane(record.protocol, commands, world, session.openedMonoMs, this.#heard.get(session))
    this.#heard.delete(session)
    session.lane = lane
    this.#lanes.set(session.index, session)
    return lane
  }

  arm(session: Session): void {
    const due = session.lane?.dueMonoMs ?? Number.POSITIVE_INFINITY
    if (due === Number.POSITIVE_INFINITY) this.#wheel.disarm(session.index)
    else this.#wheel.arm(session.index, due)
  }

  tick(now: Moment): void {
    for (const session of this.#heard.keys()) {
      if (now.monoMs - session.openedMonoMs <= UNCLAIMED_MS) break
      this.#heard.delete(session)
    }
    this.#wheel.advance(now.monoMs, (index) => this.#laneDue(index, now))
    this.#writeFates()
  }

  #laneDue(index: number, now: Moment): void {
    const session = this.#lanes.get(index)
    if (session?.lane === undefined) return
    session.lane.advance(now)
    this.arm(session)
  }

  durableReached(position: number, rejected: readonly number[], now: Moment): void {
    let count = 0
    while (count < this.#announced.length && this.#announced[count]!.position <= position) count++
    for (const { position: end, lane, session, commandId } of this.#announced.splice(0, count)) {
      if (session.lane !== lane || !lane.announced(commandId, !rejected.includes(end))) continue
      lane.advance(now)
      this.arm(session)
    }
  }

  ended(session: Session): void {
    this.#wheel.disarm(session.index)
    this.#lanes.delete(session.index)
    const back = session.lane?.takeBack() ?? []
    session.lane = undefined
    for (const { commandId, attempts, messageId } of back) {
      this.#world.effects.counts.commandsPending(-1)
      this.#world.effects.returnCommand(session.record.deviceKey, { commandId, attempts, messageId })
    }
  }

  /** A fate must not be lost: what the full ledger refuses is offered again at every tick. */
  #writeFate(session: Session, commandId: string, fate: WrittenFate): void {
    const values = this.#fateValues(session, commandId, fate)
    const write = () => {
      if (this.#world.effects.appendRow(commandFateRow, values) === ROW_REFUSED) return false
      // main forgets a command with its fate: not before the row is where the death of this thread does not reach it
      this.#world.effects.commandMoved(commandId, fate.status)
      return true
    }
    if (this.#unwrittenFates.length > 0 || !write()) this.#unwrittenFates.push(write)
  }

  #fateValues(session: Session, commandId: string, fate: WrittenFate) {
    return {
      commandId,
      deviceId: session.record.deviceId,
      epoch: session.epoch,
      status: fate.status,
      attempts: fate.attempts,
      messageId: fate.messageId ?? null,
      atMs: this.#world.now.wallMs,
      reason: fate.reason,
      result: resultText(fate.result),
    }
  }

  #writeFates(): void {
    while (this.#unwrittenFates.length > 0 && this.#unwrittenFates[0]!()) this.#unwrittenFates.shift()
  }
}
