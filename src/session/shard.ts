/**
 * Everything a session thread decides: whose frame this is, what it is answered, which rows it leaves, who may still
 * speak for a device. Pure: bytes, answers and moments come in, effects go out; the worker and the simulation run the
 * same code.
 *
 * A connection carries one or several devices (AP3000 4: a host relays up to 50 slaves). A session is one device on
 * one connection; it holds a claim in the directory, and every effect it wants checks that the claim still stands.
 */

import type { Fact, OrderRef } from '../codec/facts.ts'
import { FrameAssembler, type UnitVisitor } from '../codec/frame-assembler.ts'
import {
  type CardAnswer,
  type Downlink,
  deviceKey as deviceKeyOf,
  type Fields,
  type FrameHead,
  type NoiseReason,
  PayloadError,
  type Protocol,
  type Reply,
  UNIT,
  type UnitKind,
  type Uplink,
} from '../codec/protocol.ts'
import { eventIdOf } from '../events/event-id.ts'
import { FLAG } from '../recording/segment-layout.ts'
import {
  commandFateRow,
  commandLogRow,
  eventRow,
  opaqueSettlementRow,
  orderStartRow,
  progressRow,
  sessionRow,
  settlementRow,
} from '../rows/index.ts'
import type { Claim, Directory, StandingWords } from '../shared/directory.ts'
import {
  COMMAND_STATUS,
  CommandLane,
  type Fate,
  type LaneCommand,
  type LaneOptions,
  type LaneWorld,
  portKeyOf,
} from './command-lane.ts'
import { DeviceRecord } from './device-record.ts'
import { type CloseReason, type Effects, type Moment, ROW_REFUSED } from './effects.ts'
import { isBlankOrder, orderKeyOf, orderNoOf, wireKeyOf } from './order-key.ts'
import { PendingAcks, type WaitingAck } from './pending-acks.ts'
import { TimingWheel } from './timing-wheel.ts'

export interface ShardOptions {
  readonly shard: number
  /** A connection silent for this long is closed. */
  readonly idleTimeoutMs: number
  /** A changed state is written after at most this long. */
  readonly stateFlushMs: number
  /** The time a device was last heard is written this often when nothing else changed. */
  readonly seenFlushMs: number
  /** A card question without an answer is forgotten after this long; the device is not answered. */
  readonly cardLookupTimeoutMs: number
  readonly commands: LaneOptions
}

/** A header whose body does not come within this is noise (AP3000 3.5, BKV 1). */
const INCOMPLETE_MS = 15_000
/** Card questions under way at once; one more is refused and not answered. */
const CARD_QUESTIONS_MAX = 1_024
/** Bytes of noise from one connection before it is given up, without a good frame in between. */
const NOISE_BYTES_MAX = 65_536
const TICK_MS = 100
/** Finer than the idle timers: spacing of 500 ms should not become 600. */
const LANE_TICK_MS = 20

interface Session {
  readonly record: DeviceRecord
  readonly connection: Connection
  /** Undefined for an id that many boards share: such a device is answered but speaks for nobody (AP3000 4). */
  readonly claim: Claim | undefined
  readonly words: StandingWords | undefined
  readonly epoch: number
  readonly openedMs: number
  readonly openedMonoMs: number
  /** Made with the first command; most sessions of most fleets never have one. */
  lane: CommandLane | undefined
  /** Id of the lane's timer. */
  readonly timerId: number
}

interface Connection {
  readonly id: number
  readonly protocol: Protocol
  readonly birth: number
  readonly remoteAddress: string
  readonly assembler: FrameAssembler
  readonly sessions: Session[]
  iccid: string | null
  heardMonoMs: number
  noiseBytes: number
  isClosed: boolean
}

interface PendingAck extends WaitingAck {
  readonly session: Session
  readonly frame: Uint8Array
  readonly answers: Uplink
  readonly downlink: Downlink
  readonly receivedMonoMs: number
}

interface PendingCard {
  readonly questionId: number
  readonly session: Session
  readonly command: Uplink
  readonly reply: Exclude<Reply, 'none'>
  readonly fields: Fields
  readonly messageId: number
  readonly receivedMonoMs: number
  readonly dueMonoMs: number
}

export interface ConnectionOpened {
  /** Small integer, unique among the open connections of this shard; may be used again after the close. */
  readonly connectionId: number
  readonly protocol: Protocol
  /** Epoch taken when the connection was accepted. */
  readonly birth: number
  readonly remoteAddress: string
}

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

const replyNames = new Map<Protocol, Set<string>>()

/** Sent as an answer only, so that what the device says to it (BKV 0f to 0b) is no result of a command. */
function isReply(protocol: Protocol, downlinkName: string): boolean {
  let names = replyNames.get(protocol)
  if (names === undefined) {
    names = new Set([...protocol.uplinks.values()].flatMap(({ reply }) => (reply === 'none' ? [] : [reply.with])))
    replyNames.set(protocol, names)
  }
  return names.has(downlinkName)
}

const OUTCOME = {
  [COMMAND_STATUS.acked]: 'acked',
  [COMMAND_STATUS.dead]: 'dead',
  [COMMAND_STATUS.refused]: 'refused',
  [COMMAND_STATUS.expired]: 'expired',
  [COMMAND_STATUS.cancelled]: 'cancelled',
} as const

export class Shard {
  readonly #options: ShardOptions
  readonly #directory: Directory
  readonly #effects: Effects
  readonly #connections = new Map<number, Connection>()
  /** Every device this shard has heard since its start, by device key; bounded by the directory. */
  readonly #records = new Map<number, DeviceRecord>()
  /** Model profiles chosen by name, by device key: known before a device says its first word. Bounded by who tells. */
  readonly #profiles = new Map<number, string>()
  /** The session that holds the claim of a device here. */
  readonly #sessions = new Map<number, Session>()
  readonly #dirty = new Set<Session>()
  /** Fates the full ledger would not take yet. */
  #unwrittenFates: (() => boolean)[] = []
  /** In the order of their rows. */
  #announced: Announced[] = []
  readonly #laneWheel: TimingWheel
  readonly #lanes = new Map<number, Session>()
  readonly #freeTimerIds: number[] = []
  #timerIds = 0
  readonly #halfFrames = new Set<Connection>()
  readonly #wheel: TimingWheel
  readonly #acks = new PendingAcks<PendingAck>()
  readonly #cards = new Map<number, PendingCard>()
  #seq = 0
  #flushedMonoMs = 0
  #seenSweptMonoMs = 0

  // One of each per thread: filled anew for every frame.
  readonly #head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  readonly #visitor: UnitVisitor
  #now: Moment = { wallMs: 0, monoMs: 0 }
  #speaking: Connection | undefined
  /** Sockets whose ports the frame in hand reports. */
  readonly #socketsSeen: number[] = []
  /** The swipe of the frame in hand. */
  #swipe: { readonly cardId: string; readonly socket: number; readonly port: number } | undefined

  constructor(options: ShardOptions, directory: Directory, effects: Effects, now: Moment) {
    this.#options = options
    this.#directory = directory
    this.#effects = effects
    this.#wheel = new TimingWheel(TICK_MS, 4096, now.monoMs)
    this.#laneWheel = new TimingWheel(LANE_TICK_MS, 4096, now.monoMs)
    this.#flushedMonoMs = now.monoMs
    this.#seenSweptMonoMs = now.monoMs
    this.#visitor = {
      unit: (kind, bytes, from, to, reason) => this.#unit(kind, bytes, from, to, reason),
    }
  }

  get connections(): number {
    return this.#connections.size
  }

  /** Acks that wait for the database. */
  get acksPending(): number {
    return this.#acks.count
  }

  // ---- what happens to a shard ---------------------------------------------------------------------------------

  connectionOpened(opened: ConnectionOpened, now: Moment): void {
    const connection: Connection = {
      id: opened.connectionId,
      protocol: opened.protocol,
      birth: opened.birth,
      remoteAddress: opened.remoteAddress,
      assembler: new FrameAssembler(opened.protocol),
      sessions: [],
      iccid: null,
      heardMonoMs: now.monoMs,
      noiseBytes: 0,
      isClosed: false,
    }
    this.#connections.set(connection.id, connection)
    this.#wheel.arm(connection.id, now.monoMs + this.#options.idleTimeoutMs)
    this.#effects.counts.connections(connection.protocol, 1)
  }

  /** @param chunk bytes as read; looked at during the call only */
  chunkReceived(connectionId: number, chunk: Uint8Array, now: Moment): void {
    const connection = this.#connections.get(connectionId)
    if (connection === undefined) return
    connection.heardMonoMs = now.monoMs
    this.#now = now
    this.#speaking = connection
    connection.assembler.push(chunk, now.monoMs, this.#visitor)
    this.#speaking = undefined
    this.#afterUnits(connection)
  }

  /** The socket is gone; whatever the reason, only what is still this connection's is undone. */
  connectionClosed(connectionId: number, reason: CloseReason, now: Moment): void {
    const connection = this.#connections.get(connectionId)
    if (connection === undefined) return
    this.#forget(connection, reason, now)
  }

  /**
   * `devices.model_profile` of a device, wherever it lives: at the start of this shard, and when it changes.
   * @param name null: none is chosen any more
   */
  profileChosen(deviceKey: number, name: string | null): void {
    if (name === null) this.#profiles.delete(deviceKey)
    else this.#profiles.set(deviceKey, name)
    this.#records.get(deviceKey)?.useProfile(name)
  }

  /** Another shard took a device from us. Ignored when we have taken it back meanwhile. */
  superseded(deviceKey: number, epoch: number, now: Moment): void {
    const session = this.#sessions.get(deviceKey)
    if (session === undefined || session.epoch !== epoch || this.#isStanding(session)) return
    this.#lose(session, now)
  }

  /** Every ledger row before `position` is committed, except the ones in `rejected`, whose acks are never sent. */
  durableReached(position: number, rejected: readonly number[], now: Moment): void {
    this.#now = now
    const withheld = this.#acks.reached(position, rejected, now.monoMs, (ack) => {
      if (ack.session.connection.isClosed || !this.#isStanding(ack.session)) this.#effects.counts.fenced('ack')
      else this.#send(ack.session, ack.downlink, ack.frame, ack.answers, ack.receivedMonoMs)
    })
    for (let count = 0; count < withheld; count++) this.#effects.counts.ackWithheld()
    this.#announcedReached(position, rejected, now)
  }

  #announcedReached(position: number, rejected: readonly number[], now: Moment): void {
    let count = 0
    while (count < this.#announced.length && this.#announced[count]!.position <= position) count++
    for (const { position: end, lane, session, commandId } of this.#announced.splice(0, count)) {
      if (session.lane !== lane || !lane.announced(commandId, !rejected.includes(end))) continue
      lane.advance(now)
      this.#armLane(session)
    }
  }

  /** @param answer undefined: the cards table could not be asked; the device is not answered and decides by itself */
  cardAnswered(questionId: number, answer: CardAnswer | undefined, now: Moment): void {
    const pending = this.#cards.get(questionId)
    if (pending === undefined) return
    this.#now = now
    this.#cards.delete(questionId)
    const { session } = pending
    if (session.connection.isClosed || !this.#isStanding(session)) {
      this.#effects.counts.fenced('card_reply')
      return
    }
    this.#effects.counts.cardLookup(answer === undefined ? 'unavailable' : 'answered')
    // without an answer the protocol decides: BKV refuses at once, AP3000 has no word for it and stays silent
    const reply = pending.reply.fields(pending.fields, {
      nowMs: now.wallMs,
      memory: session.record.memory,
      ...(answer !== undefined && { card: answer }),
    })
    if (reply === undefined) return
    const downlink = this.#downlinkOf(session.record.protocol, pending.reply.with)
    const messageId =
      pending.reply.freshSequence === true ? session.record.nextMessageId(now.wallMs) : pending.messageId
    const frame = this.#encode(session, downlink, messageId, reply)
    this.#log(session, downlink, messageId, frame, false, null, now.wallMs)
    this.#send(session, downlink, frame, pending.command, pending.receivedMonoMs)
  }

  /** Timers, half frames, coalesced rows. The worker calls it about fifty times a second. */
  tick(now: Moment): void {
    this.#now = now
    this.#wheel.advance(now.monoMs, (connectionId) => this.#idleDue(connectionId, now))
    this.#laneWheel.advance(now.monoMs, (timerId) => this.#laneDue(timerId, now))
    this.#writeFates()
    for (const connection of this.#halfFrames) {
      const since = connection.assembler.pendingSinceMonoMs
      if (since === undefined || connection.isClosed) this.#halfFrames.delete(connection)
      else if (now.monoMs - since >= INCOMPLETE_MS) {
        this.#speaking = connection
        connection.assembler.giveUpPending(now.monoMs, this.#visitor)
        this.#speaking = undefined
        this.#afterUnits(connection)
      }
    }
    for (const pending of this.#cards.values()) {
      if (pending.dueMonoMs > now.monoMs) break
      this.cardAnswered(pending.questionId, undefined, now)
    }
    if (now.monoMs - this.#flushedMonoMs >= this.#options.stateFlushMs) {
      this.#flushedMonoMs = now.monoMs
      this.#flushDirty(now)
    }
    // spread over the period would be smoother; once per period keeps the devices of one batch in few INSERTs
    if (now.monoMs - this.#seenSweptMonoMs >= this.#options.seenFlushMs / 4) {
      this.#seenSweptMonoMs = now.monoMs
      for (const session of this.#sessions.values())
        if (session.record.isSeenStale(now.wallMs, this.#options.seenFlushMs)) this.#dirty.add(session)
    }
  }

  /** Writes every state that was held back. */
  flush(now: Moment): void {
    this.#flushDirty(now)
    for (const session of this.#sessions.values()) this.#flushSession(session, now, 0)
  }

  /** The gateway stops: what was held back is written, sessions end, connections are closed. */
  stop(now: Moment): void {
    this.flush(now)
    for (const connection of [...this.#connections.values()]) {
      this.#effects.close(connection.id, 'shutdown')
      this.#forget(connection, 'shutdown', now)
    }
  }

  // ---- commands -------------------------------------------------------------------------------------------------

  /**
   * A command for a device, from the mailbox.
   * @param lastMessageId the latest message id the database knows for the device
   */
  commandArrived(deviceKey: number, arrived: ArrivedCommand, lastMessageId: number | undefined, now: Moment): void {
    this.#now = now
    const session = this.#sessions.get(deviceKey)
    const downlink = session?.record.protocol.downlinkByName.get(arrived.name)
    const isMeant = session !== undefined && session.epoch === arrived.epoch && this.#isStanding(session)
    if (!isMeant || downlink === undefined) {
      const { commandId, attempts, messageId } = arrived
      this.#effects.returnCommand(deviceKey, { commandId, attempts, messageId })
      return
    }
    if (lastMessageId !== undefined) session.record.noteMessageId(lastMessageId)
    this.#effects.counts.commandsPending(1)
    this.#laneOf(session).enqueue({ ...arrived, downlink }, now)
    this.#armLane(session)
  }

  /** Lets go of a command that was not sent; its fate is main's. @returns false: unknown here, or on its way already */
  cancelCommand(deviceKey: number, commandId: string, now: Moment): boolean {
    this.#now = now
    const isCancelled = this.#sessions.get(deviceKey)?.lane?.letGo(commandId) ?? false
    if (isCancelled) this.#effects.counts.commandsPending(-1)
    return isCancelled
  }

  #laneOf(session: Session): CommandLane {
    if (session.lane !== undefined) return session.lane
    const { record } = session
    const world: LaneWorld = {
      announce: (command, messageId) => {
        // behind what waits for room, or the table would go back
        if (this.#unwrittenFates.length > 0) return false
        const { commandId } = command
        const fate = { status: COMMAND_STATUS.sent, reason: 'sent', attempts: 1, messageId, result: {} }
        const position = this.#effects.appendRow(commandFateRow, this.#fateValues(session, commandId, fate))
        if (position === ROW_REFUSED) return false
        this.#announced.push({ position, lane, session, commandId })
        return true
      },
      chargeBefore: (command) => record.chargeBefore(command),
      send: (command, messageId) => {
        if (session.connection.isClosed || !this.#isStanding(session)) return false
        const frame = this.#encode(session, command.downlink, messageId, command.fields)
        this.#log(session, command.downlink, messageId, frame, false, command.commandId, this.#now.wallMs)
        this.#effects.record(record.deviceKey, 0, frame, 0, frame.length)
        if (!this.#effects.send(session.connection.id, frame, undefined, this.#now.monoMs)) {
          this.#close(session.connection, 'outbound_overflow', this.#now)
          return false
        }
        this.#effects.counts.downlink(record.protocol, command.downlink)
        return true
      },
      sent: (command, messageId, attempts, isResend) => {
        const status = COMMAND_STATUS.sent
        if (!isResend) {
          // its row is there: it was announced
          this.#effects.commandMoved(command.commandId, status)
          return
        }
        this.#effects.counts.commandResent(command.downlink)
        this.#writeFate(session, command.commandId, { status, reason: 'sent', attempts, messageId, result: {} })
      },
      ended: (command, fate, firstSentMonoMs) => {
        this.#effects.counts.command(command.downlink, OUTCOME[fate.status])
        if (firstSentMonoMs !== undefined)
          this.#effects.counts.commandSeconds(command.downlink, (this.#now.monoMs - firstSentMonoMs) / 1_000)
        this.#effects.counts.commandsPending(-1)
        record.forgetChargeBefore(command.commandId)
        this.#writeFate(session, command.commandId, fate)
      },
      nextMessageId: () => {
        let messageId = record.nextMessageId(this.#now.wallMs)
        while (lane.isTaken(messageId)) messageId = record.nextMessageId(this.#now.wallMs)
        return messageId
      },
    }
    const lane = new CommandLane(record.protocol, this.#options.commands, world, session.openedMonoMs)
    session.lane = lane
    this.#lanes.set(session.timerId, session)
    return lane
  }

  #armLane(session: Session): void {
    const due = session.lane?.dueMonoMs ?? Number.POSITIVE_INFINITY
    if (due === Number.POSITIVE_INFINITY) this.#laneWheel.disarm(session.timerId)
    else this.#laneWheel.arm(session.timerId, due)
  }

  #laneDue(timerId: number, now: Moment): void {
    const session = this.#lanes.get(timerId)
    if (session?.lane === undefined) return
    session.lane.advance(now)
    this.#armLane(session)
  }

  #endLane(session: Session): void {
    this.#laneWheel.disarm(session.timerId)
    this.#lanes.delete(session.timerId)
    this.#freeTimerIds.push(session.timerId)
    const back = session.lane?.takeBack() ?? []
    session.lane = undefined
    for (const { commandId, attempts, messageId } of back) {
      this.#effects.counts.commandsPending(-1)
      this.#effects.returnCommand(session.record.deviceKey, { commandId, attempts, messageId })
    }
  }

  /** A fate must not be lost: what the full ledger refuses is offered again at every tick. */
  #writeFate(session: Session, commandId: string, fate: Omit<Fate, 'status'> & { readonly status: number }): void {
    const values = this.#fateValues(session, commandId, fate)
    const write = () => {
      if (this.#effects.appendRow(commandFateRow, values) === ROW_REFUSED) return false
      // main forgets a command with its fate: not before the row is where the death of this thread does not reach it
      this.#effects.commandMoved(commandId, fate.status)
      return true
    }
    if (this.#unwrittenFates.length > 0 || !write()) this.#unwrittenFates.push(write)
  }

  #fateValues(session: Session, commandId: string, fate: Omit<Fate, 'status'> & { readonly status: number }) {
    return {
      commandId,
      deviceId: session.record.deviceId,
      epoch: session.epoch,
      status: fate.status,
      attempts: fate.attempts,
      messageId: fate.messageId ?? null,
      atMs: this.#now.wallMs,
      reason: fate.reason,
      result: JSON.stringify(fate.result),
    }
  }

  #writeFates(): void {
    while (this.#unwrittenFates.length > 0 && this.#unwrittenFates[0]!()) this.#unwrittenFates.shift()
  }

  // ---- one unit of the stream ----------------------------------------------------------------------------------

  #unit(kind: UnitKind, bytes: Uint8Array, from: number, to: number, reason: NoiseReason): void {
    const connection = this.#speaking!
    // a frame behind the one that got this connection closed is not heard any more
    if (connection.isClosed) return
    switch (kind) {
      case UNIT.frame:
        connection.noiseBytes = 0
        this.#frame(connection, bytes, from, to)
        return
      case UNIT.noise:
        connection.noiseBytes += to - from
        this.#effects.record(connection.sessions[0]?.record.deviceKey ?? 0, FLAG.uplink | FLAG.error, bytes, from, to)
        this.#effects.counts.frameError(connection.protocol, reason)
        return
      case UNIT.identity:
        connection.iccid = Buffer.from(bytes.subarray(from, to)).toString('latin1')
        for (const session of connection.sessions) this.#noteIccid(session)
        return
      default:
    }
  }

  #afterUnits(connection: Connection): void {
    if (connection.isClosed) return
    if (connection.assembler.pendingSinceMonoMs !== undefined) this.#halfFrames.add(connection)
    if (connection.noiseBytes > NOISE_BYTES_MAX) this.#close(connection, 'noise', this.#now)
  }

  #frame(connection: Connection, bytes: Uint8Array, from: number, to: number): void {
    const { protocol } = connection
    const head = this.#head
    protocol.readHead(bytes, from, to, head)
    if (head.deviceNo < 0) {
      this.#effects.counts.frameError(protocol, 'bad_device_id')
      return
    }
    if (head.isDownlink === true) {
      // our own frame, echoed: an answer would be echoed too
      this.#effects.counts.frameError(protocol, 'bad_direction')
      return
    }
    const session = this.#sessionOf(connection, head.deviceNo)
    if (session === undefined) return
    const { record } = session
    const now = this.#now
    record.lastSeenMs = now.wallMs
    if (session.claim !== undefined) this.#directory.touch(session.claim.slot, Math.floor(now.wallMs / 1000))

    const command = protocol.uplinks.get(head.commandKey)
    this.#effects.counts.uplink(protocol, command)
    if (command === undefined) {
      this.#effects.record(record.deviceKey, FLAG.uplink | FLAG.error, bytes, from, to)
      this.#logUplink(session, undefined, bytes, from, to, 'unknown command')
      return
    }
    const fields = command.decode(bytes, head.dataFrom, head.dataTo)
    if (fields instanceof PayloadError) {
      this.#effects.counts.frameError(protocol, 'payload_error')
      this.#effects.record(record.deviceKey, FLAG.uplink | FLAG.error, bytes, from, to)
      this.#logUplink(session, command, bytes, from, to, `${fields.payloadError} at ${fields.at}`)
      return
    }
    const odd = protocol.oddities?.(fields)
    if (odd !== undefined) for (const reason of odd) this.#effects.counts.frameError(protocol, reason)
    this.#effects.record(record.deviceKey, odd === undefined ? FLAG.uplink : FLAG.uplink | FLAG.error, bytes, from, to)
    // head is reused by whatever a fact may cause; what follows needs these
    const messageId = head.messageId
    record.noteMessageId(messageId)
    if (command.frequent !== true || odd !== undefined)
      this.#logUplink(session, command, bytes, from, to, odd?.join(', ') ?? null)
    let storedAt: number | undefined
    this.#socketsSeen.length = 0
    if (command.facts !== undefined)
      for (const fact of command.facts(fields, record.memory)) {
        const position = this.#fact(session, command, fact, messageId, bytes, from, to)
        if (position !== undefined) storedAt = position
      }
    if (record.isDirty) this.#dirty.add(session)
    if (session.lane !== undefined) {
      session.lane.uplinkSeen(command.name, this.#socketsSeen, now)
      this.#armLane(session)
    }
    if (command.reply !== 'none') this.#reply(session, command, command.reply, fields, messageId, storedAt)
  }

  #reply(
    session: Session,
    command: Uplink,
    reply: Exclude<Reply, 'none'>,
    fields: Fields,
    messageId: number,
    storedAt: number | undefined,
  ): void {
    const now = this.#now
    const { protocol } = session.record
    if (reply.when === 'lookup') {
      this.#askCard(session, command, reply, fields, messageId)
      return
    }
    const answer = reply.fields(fields, { nowMs: now.wallMs, memory: session.record.memory })
    if (answer === undefined) return
    const downlink = this.#downlinkOf(protocol, reply.with)
    const replyId = reply.freshSequence === true ? session.record.nextMessageId(now.wallMs) : messageId
    const frame = this.#encode(session, downlink, replyId, answer)
    if (reply.when === 'decoded') {
      this.#send(session, downlink, frame, command, now.monoMs)
      return
    }
    if (storedAt === undefined)
      throw new Error(`${protocol.name} ${command.name}: reply when durable, but no fact of it is stored`)
    const group = reply.group === undefined ? undefined : `${session.record.deviceKey} ${reply.group(fields)}`
    const about = group === undefined ? '' : `${command.name} ${fields['port']} ${fields['businessNo']}`
    if (storedAt === ROW_REFUSED) {
      // the device keeps its copy and sends it again (AP3000 7, 03)
      this.#effects.counts.ackWithheld()
      if (group !== undefined) this.#acks.refuse(group, about, now.monoMs)
      return
    }
    this.#acks.add({
      position: storedAt,
      group,
      about,
      session,
      frame,
      answers: command,
      downlink,
      receivedMonoMs: now.monoMs,
    })
  }

  #askCard(session: Session, command: Uplink, reply: Exclude<Reply, 'none'>, fields: Fields, messageId: number): void {
    const swipe = this.#swipe
    if (this.#cards.size >= CARD_QUESTIONS_MAX || swipe === undefined) {
      this.#effects.counts.cardLookup('refused')
      return
    }
    // unique over restarts too: an answer to this shard's predecessor must not meet a question of ours, or a card is told
    // another card's balance (simulation, seed 40009)
    const questionId = this.#directory.nextEpoch()
    this.#cards.set(questionId, {
      questionId,
      session,
      command,
      reply,
      fields,
      messageId,
      receivedMonoMs: this.#now.monoMs,
      dueMonoMs: this.#now.monoMs + this.#options.cardLookupTimeoutMs,
    })
    const { cardId, socket, port } = swipe
    this.#swipe = undefined
    this.#effects.askCard({ questionId, deviceId: session.record.deviceId, cardId, socket, port })
  }

  // ---- who speaks for a device ---------------------------------------------------------------------------------

  #isStanding(session: Session): boolean {
    return session.words === undefined || this.#directory.isStanding(session.words)
  }

  /** The session of this device on this connection; made at its first frame. Undefined: it may not speak here. */
  #sessionOf(connection: Connection, deviceNo: number): Session | undefined {
    for (const session of connection.sessions) {
      if (session.record.deviceNo !== deviceNo) continue
      if (this.#isStanding(session)) return session
      this.#effects.counts.fenced('uplink')
      this.#lose(session, this.#now)
      return undefined
    }
    return this.#login(connection, deviceNo)
  }

  #login(connection: Connection, deviceNo: number): Session | undefined {
    const { protocol } = connection
    const now = this.#now
    const key = deviceKeyOf(protocol, deviceNo)
    if (protocol.isSharedDefaultId(deviceNo)) {
      const record = new DeviceRecord(protocol, key, deviceNo)
      const session: Session = {
        record,
        connection,
        claim: undefined,
        words: undefined,
        epoch: connection.birth,
        openedMs: now.wallMs,
        openedMonoMs: now.monoMs,
        lane: undefined,
        timerId: -1,
      }
      connection.sessions.push(session)
      return session
    }
    const answer = this.#directory.claim(key, connection.birth, this.#options.shard)
    if (answer.kind === 'full') {
      this.#close(connection, 'directory_full', now)
      return undefined
    }
    if (answer.kind === 'refused') {
      this.#effects.counts.fenced('claim')
      // nobody else speaks here: the device, if it lives behind this socket, comes back as the newest
      if (connection.sessions.length === 0) this.#close(connection, 'superseded', now)
      return undefined
    }
    const { claim, previous } = answer
    if (previous?.isOnline === true) {
      this.#effects.counts.takeover()
      if (previous.shard !== this.#options.shard) this.#effects.supersede(previous.shard, key, previous.epoch)
    }
    const older = this.#sessions.get(key)
    if (older !== undefined) this.#lose(older, now)
    let record = this.#records.get(key)
    if (record === undefined) {
      record = new DeviceRecord(protocol, key, deviceNo, this.#profiles.get(key) ?? null)
      this.#records.set(key, record)
    } else record.forgetWritten()
    const session: Session = {
      record,
      connection,
      claim,
      words: this.#directory.standingWords(claim),
      epoch: claim.epoch,
      openedMs: now.wallMs,
      openedMonoMs: now.monoMs,
      lane: undefined,
      timerId: this.#freeTimerIds.pop() ?? this.#timerIds++,
    }
    connection.sessions.push(session)
    this.#sessions.set(key, session)
    this.#effects.counts.devices(protocol, 1)
    record.lastSeenMs = now.wallMs
    this.#noteIccid(session)
    this.#dirty.add(session)
    this.#writeSession(session, null, now)
    this.#effects.deviceOnline(key)
    return session
  }

  #noteIccid(session: Session): void {
    if (session.connection.iccid === null) return
    session.record.noteIccid(session.connection.iccid)
    this.#dirty.add(session)
  }

  /** A newer connection speaks for this device: unbind it here, and close the connection if nobody is left on it. */
  #lose(session: Session, now: Moment): void {
    const { connection } = session
    this.#unbind(session, 'superseded', now)
    if (connection.sessions.length === 0) this.#close(connection, 'superseded', now)
  }

  #unbind(session: Session, reason: CloseReason, now: Moment): void {
    const { connection, record } = session
    const index = connection.sessions.indexOf(session)
    if (index >= 0) connection.sessions.splice(index, 1)
    this.#dirty.delete(session)
    if (this.#sessions.get(record.deviceKey) === session) this.#sessions.delete(record.deviceKey)
    if (session.claim === undefined) return
    this.#endLane(session)
    this.#effects.counts.devices(record.protocol, -1)
    if (this.#directory.giveBack(session.claim)) this.#flushSession(session, now, 0)
    else this.#effects.counts.fenced('close')
    this.#writeSession(session, reason, now)
  }

  /** Ends a connection from our side. */
  #close(connection: Connection, reason: CloseReason, now: Moment): void {
    if (connection.isClosed) return
    this.#effects.close(connection.id, reason)
    this.#forget(connection, reason, now)
  }

  #forget(connection: Connection, reason: CloseReason, now: Moment): void {
    connection.isClosed = true
    this.#connections.delete(connection.id)
    this.#halfFrames.delete(connection)
    this.#wheel.disarm(connection.id)
    for (const session of [...connection.sessions]) this.#unbind(session, reason, now)
    this.#effects.counts.connections(connection.protocol, -1)
    this.#effects.counts.closed(reason)
  }

  #idleDue(connectionId: number, now: Moment): void {
    const connection = this.#connections.get(connectionId)
    if (connection === undefined) return
    const due = connection.heardMonoMs + this.#options.idleTimeoutMs
    // armed once per timeout, not once per frame: look when it fires whether something was heard meanwhile
    if (due > now.monoMs) this.#wheel.arm(connectionId, due)
    else this.#close(connection, 'idle', now)
  }

  // ---- facts to rows -------------------------------------------------------------------------------------------

  /** @returns position of a ledger row when the fact left one */
  #fact(
    session: Session,
    command: Uplink,
    fact: Fact,
    messageId: number,
    bytes: Uint8Array,
    from: number,
    to: number,
  ): number | undefined {
    const { record } = session
    const nowMs = this.#now.wallMs
    const { deviceId } = record
    const base = { deviceId, protocol: record.protocol.name, epoch: session.epoch }
    switch (fact.fact) {
      case 'deviceInfo': {
        const wasRegistered = record.isRegistered
        record.noteInfo(fact, nowMs)
        if (record.isRegistered && !wasRegistered)
          this.#event(session, 'device.registered', eventIdOf('device.registered', deviceId), null, {
            firmware: fact.firmware ?? null,
            device_type: fact.deviceType ?? null,
            port_count: fact.portCount ?? null,
          })
        return undefined
      }
      case 'portStates':
        for (const reading of fact.ports) {
          record.notePort(reading)
          record.noteCharge(portKeyOf(reading.socket, reading.port), reading.state === 'charging', undefined)
          this.#socketsSeen.push(reading.socket)
        }
        return undefined
      case 'clock':
        record.noteClock(fact.deviceMs, nowMs)
        return undefined
      case 'progress': {
        const { order } = fact
        const isCharging = fact.state === 'charging'
        if (isCharging) session.lane?.chargeSeen(order.socket, order.port, order.wireHex, this.#now)
        record.noteCharge(portKeyOf(order.socket, order.port), isCharging, order.wireHex)
        record.notePort(
          {
            socket: order.socket,
            port: order.port,
            state: fact.state,
            stateRaw: fact.stateRaw,
            ...(fact.powerW !== undefined && { powerW: fact.powerW }),
            ...(fact.voltageV !== undefined && { voltageV: fact.voltageV }),
            ...(fact.currentA !== undefined && { currentA: fact.currentA }),
            ...(fact.energyWh !== undefined && { energyWh: fact.energyWh }),
            ...(fact.portC !== undefined && { temperatureC: fact.portC }),
          },
          fact.state === 'idle' ? null : order.wireHex,
        )
        this.#effects.appendRow(progressRow, {
          ...base,
          ...this.#orderColumns(order, record),
          seq: this.#seq++,
          origin: fact.origin,
          cardId: fact.cardId ?? null,
          atMs: nowMs,
          state: fact.state,
          stateRaw: fact.stateRaw,
          durationS: fact.durationS,
          energyWh: fact.energyWh ?? null,
          energyRaw: fact.energyRaw ?? null,
          powerW: fact.powerW ?? null,
          maxPowerW: fact.maxPowerW ?? null,
          minPowerW: fact.minPowerW ?? null,
          avgPowerW: fact.avgPowerW ?? null,
          peakPowerW: fact.peakPowerW ?? null,
          voltageV: fact.voltageV ?? null,
          currentA: fact.currentA ?? null,
          ambientC: fact.ambientC ?? null,
          portC: fact.portC ?? null,
        })
        return undefined
      }
      case 'orderConfirmed':
        return this.#effects.appendRow(orderStartRow, {
          ...base,
          ...this.#orderColumns(fact.order, record),
          origin: fact.origin,
          cardId: fact.cardId ?? null,
          durationS: fact.durationS,
          atMs: nowMs,
        })
      case 'settlement': {
        const orderKey = orderKeyOf(fact, record.protocol)
        return this.#effects.appendRow(settlementRow, {
          ...base,
          seq: this.#seq++,
          socket: fact.order.socket,
          port: fact.order.port,
          orderKey,
          wireHex: fact.order.wireHex,
          orderNo: orderNoOf(fact.order, orderKey, deviceId),
          origin: fact.origin,
          startModeRaw: fact.startModeRaw,
          cardId: fact.cardId ?? null,
          durationS: fact.durationS,
          energyWh: fact.energyWh,
          energyRaw: fact.energyRaw,
          maxPowerW: fact.maxPowerW,
          endReason: fact.endReason,
          endReasonRaw: fact.endReasonRaw,
          deviceSentMs: fact.sentMs ?? null,
          deviceEndedMs: fact.endedMs ?? null,
          receivedMs: nowMs,
          occupancyMin: fact.occupancyMin ?? null,
          businessNo: fact.businessNo ?? null,
          deviceAmountFen: fact.deviceAmountFen ?? null,
          messageId,
          frame: bytes.subarray(from, to),
        })
      }
      case 'opaqueSettlement': {
        const { dataFrom, dataTo } = this.#head
        return this.#effects.appendRow(opaqueSettlementRow, {
          ...base,
          command: command.name,
          digest: eventIdOf(Buffer.from(bytes.subarray(dataFrom, dataTo)).toString('hex')),
          receivedMs: nowMs,
          frame: bytes.subarray(from, to),
        })
      }
      case 'alarm':
        this.#event(
          session,
          'device.alarm',
          eventIdOf('device.alarm', deviceId, session.epoch, messageId, fact.kindRaw, fact.port, fact.trigger ?? 0),
          null,
          {
            kind: fact.kind,
            kind_raw: fact.kindRaw,
            socket: fact.socket,
            port: fact.port,
            trigger: fact.trigger ?? null,
          },
        )
        return undefined
      case 'cardSwiped':
        this.#swipe = fact
        return undefined
      // seen, logged with its bytes and counted; nothing else follows from these yet
      case 'heartbeat':
      case 'slaveTypes':
        return undefined
      case 'upgradeRequested':
        this.#event(
          session,
          'ota.progress_update',
          eventIdOf('ota.progress_update', deviceId, session.epoch, messageId, fact.by),
          null,
          { state: 'requested', by: fact.by },
        )
        this.#laneOf(session).upgradeRequested(this.#now)
        return undefined
      case 'result': {
        if (session.lane?.resultReceived(fact, messageId, command.name, this.#now) === true) return undefined
        // its command has its fate already, or was never ours: the frame in cmd_log is the evidence
        const downlink = record.protocol.downlinkByName.get(fact.downlink)
        if (downlink !== undefined && !isReply(record.protocol, fact.downlink))
          this.#effects.counts.command(downlink, 'late')
        return undefined
      }
    }
  }

  /** A blank order number leaves the key empty: a sample is kept, no order can be told from it. */
  #orderColumns(order: OrderRef, record: DeviceRecord) {
    const orderKey = isBlankOrder(order.wireHex) ? '' : wireKeyOf(order, record.protocol)
    return {
      socket: order.socket,
      port: order.port,
      orderKey,
      wireHex: order.wireHex,
      orderNo: orderKey === '' ? '' : orderNoOf(order, orderKey, record.deviceId),
    }
  }

  #event(
    session: Session,
    type: string,
    eventId: string,
    orderKey: string | null,
    data: Record<string, unknown>,
  ): void {
    this.#effects.appendRow(eventRow, {
      eventId,
      eventType: type,
      deviceId: session.record.deviceId,
      epoch: session.epoch,
      orderKey,
      atMs: this.#now.wallMs,
      data: JSON.stringify(data),
    })
  }

  #writeSession(session: Session, closeReason: CloseReason | null, now: Moment): void {
    const { connection } = session
    this.#effects.appendRow(sessionRow, {
      deviceId: session.record.deviceId,
      protocol: connection.protocol.name,
      epoch: session.epoch,
      shard: this.#options.shard,
      connectionId: connection.birth,
      remoteAddress: connection.remoteAddress,
      iccid: connection.iccid,
      openedMs: session.openedMs,
      closedMs: closeReason === null ? null : now.wallMs,
      closeReason,
    })
  }

  #logUplink(
    session: Session,
    command: Uplink | undefined,
    bytes: Uint8Array,
    from: number,
    to: number,
    note: string | null,
  ): void {
    const frame = bytes.subarray(from, to)
    this.#log(session, command, this.#head.messageId, frame, true, note, this.#now.wallMs)
  }

  #log(
    session: Session,
    command: Uplink | Downlink | undefined,
    messageId: number,
    frame: Uint8Array,
    isUplink: boolean,
    note: string | null,
    nowMs: number,
  ): void {
    this.#effects.appendRow(commandLogRow, {
      deviceId: session.record.deviceId,
      epoch: session.epoch,
      seq: this.#seq++,
      atMs: nowMs,
      isUplink,
      command: command?.name ?? 'unknown',
      code: command?.code ?? this.#head.commandKey,
      messageId,
      note,
      frame,
    })
  }

  #flushDirty(now: Moment): void {
    for (const session of this.#dirty) {
      if (!this.#flushSession(session, now)) return
      this.#dirty.delete(session)
    }
  }

  #flushSession(session: Session, now: Moment, seenFlushMs = this.#options.seenFlushMs): boolean {
    return session.record.flush(this.#effects, session.epoch, () => this.#seq++, now.wallMs, seenFlushMs)
  }

  #send(session: Session, downlink: Downlink, frame: Uint8Array, answers: Uplink, receivedMonoMs: number): void {
    const { connection } = session
    this.#effects.record(session.record.deviceKey, 0, frame, 0, frame.length)
    if (this.#effects.send(connection.id, frame, answers, receivedMonoMs))
      this.#effects.counts.downlink(connection.protocol, downlink)
    else this.#close(connection, 'outbound_overflow', this.#now)
  }

  // ---- replies -------------------------------------------------------------------------------------------------

  #downlinkOf(protocol: Protocol, name: string): Downlink {
    const downlink = protocol.downlinkByName.get(name)
    if (downlink === undefined) throw new Error(`${protocol.name}: no downlink ${name}`)
    return downlink
  }

  #encode(session: Session, downlink: Downlink, messageId: number, fields: Fields): Uint8Array {
    const { protocol, deviceNo } = session.record
    return protocol.encodeFrame('downlink', downlink, deviceNo, messageId, downlink.encode(fields))
  }
}
