/**
 * Everything a session thread decides: whose frame this is, what it is answered, which rows it leaves, who may still
 * speak for a device. Pure: bytes, answers and moments come in, effects go out; the worker and the simulation run the
 * same code.
 *
 * A connection carries one or several devices (AP3000 4: a host relays up to 50 slaves). A session is one device on
 * one connection; it holds a claim in the directory, and every effect it wants checks that the claim still stands.
 */

import { FrameAssembler, type UnitVisitor } from '../codec/frame-assembler.ts'
import {
  type CardAnswer,
  type NoiseReason,
  PayloadError,
  type Protocol,
  UNIT,
  type UnitKind,
} from '../codec/protocol.ts'
import { FLAG } from '../recording/segment-layout.ts'
import type { Directory } from '../shared/directory.ts'
import type { Allowlist } from './allowlist.ts'
import type { CloseReason, Effects, Moment } from './effects.ts'
import { SessionClaims } from './session-claims.ts'
import { type ArrivedCommand, SessionCommands } from './session-commands.ts'
import { SessionFacts } from './session-facts.ts'
import { SessionReplies } from './session-replies.ts'
import { SessionRows } from './session-rows.ts'
import { type Connection, NO_CLAIM, type ShardOptions, ShardWorld } from './shard-world.ts'
import { TimingWheel } from './timing-wheel.ts'

export type { ArrivedCommand, ShardOptions }

/** A header whose body does not come within this is noise (AP3000 3.5, BKV 1). */
const INCOMPLETE_MS = 15_000
/** Bytes of noise from one connection before it is given up, without a good frame in between. */
const NOISE_BYTES_MAX = 65_536
const TICK_MS = 100
/** Devices whose state is written in one tick: a storm's ten thousand at once would keep everybody waiting for 50 ms. */
const FLUSHED_PER_TICK = 500

export interface ConnectionOpened {
  /** Small integer, unique among the open connections of this shard; may be used again after the close. */
  readonly connectionId: number
  readonly protocol: Protocol
  /** Epoch taken when the connection was accepted. */
  readonly birth: number
  readonly remoteAddress: string
}

export class Shard {
  readonly #world: ShardWorld
  readonly #rows: SessionRows
  readonly #commands: SessionCommands
  readonly #claims: SessionClaims
  readonly #facts: SessionFacts
  readonly #replies: SessionReplies
  /** By id, which is a small number. */
  readonly #connections: (Connection | undefined)[] = []
  #open = 0
  /** By protocol: whatever connection is heard uses it, and keeps it when a unit was cut. */
  readonly #assemblers = new Map<Protocol, FrameAssembler>()
  readonly #halfFrames = new Set<Connection>()
  readonly #wheel: TimingWheel
  #flushedMonoMs = 0
  #isFlushing = false
  #seenSweptMonoMs = 0
  readonly #visitor: UnitVisitor
  #speaking: Connection | undefined

  constructor(options: ShardOptions, directory: Directory, effects: Effects, now: Moment) {
    const world = new ShardWorld(options, directory, effects, now, (connection, reason, at) =>
      this.#close(connection, reason, at),
    )
    this.#world = world
    this.#rows = new SessionRows(world)
    this.#commands = new SessionCommands(world, this.#rows)
    this.#claims = new SessionClaims(world, this.#rows, this.#commands)
    this.#facts = new SessionFacts(world, this.#rows, this.#commands)
    this.#replies = new SessionReplies(world, this.#rows, this.#facts)
    this.#wheel = new TimingWheel(TICK_MS, 4096, now.monoMs)
    this.#flushedMonoMs = now.monoMs
    this.#seenSweptMonoMs = now.monoMs
    this.#visitor = {
      unit: (kind, bytes, from, to, reason) => this.#unit(kind, bytes, from, to, reason),
    }
  }

  get connections(): number {
    return this.#open
  }

  /** Acks that wait for the database. */
  get acksPending(): number {
    return this.#replies.acksPending
  }

  // ---- what happens to a shard ---------------------------------------------------------------------------------

  connectionOpened(opened: ConnectionOpened, now: Moment): void {
    const connection: Connection = {
      id: opened.connectionId,
      protocol: opened.protocol,
      birth: opened.birth,
      remoteAddress: opened.remoteAddress,
      assembler: undefined,
      isLoggedIn: false,
      first: undefined,
      iccid: null,
      heardMonoMs: now.monoMs,
      noiseBytes: 0,
      isClosed: false,
    }
    this.#connections[connection.id] = connection
    this.#open++
    this.#wheel.arm(connection.id, now.monoMs + this.#world.options.idleTimeoutMs)
    this.#world.effects.counts.connections(connection.protocol, 1)
  }

  /** @param chunk bytes as read; looked at during the call only */
  chunkReceived(connectionId: number, chunk: Uint8Array, now: Moment): void {
    const connection = this.#connections[connectionId]
    if (connection === undefined) return
    connection.heardMonoMs = now.monoMs
    this.#world.now = now
    const assembler = connection.assembler ?? this.#assemblerFor(connection)
    this.#speaking = connection
    assembler.push(chunk, now.monoMs, this.#visitor)
    this.#speaking = undefined
    this.#afterUnits(connection, assembler)
  }

  /** The socket is gone; whatever the reason, only what is still this connection's is undone. */
  connectionClosed(connectionId: number, reason: CloseReason, now: Moment): void {
    const connection = this.#connections[connectionId]
    if (connection === undefined) return
    this.#forget(connection, reason, now)
  }

  /**
   * `devices.model_profile` of a device, wherever it lives: at the start of this shard, and when it changes.
   * @param name null: none is chosen any more
   */
  profileChosen(deviceKey: number, name: string | null): void {
    this.#claims.profileChosen(deviceKey, name)
  }

  /** Who may connect, from now on. @param allowlist undefined: everybody */
  allowlistChanged(allowlist: Allowlist | undefined, now: Moment): void {
    this.#claims.allowlistChanged(allowlist, this.#connections, now)
  }

  /** Another shard took a device from us. Ignored when we have taken it back meanwhile. */
  superseded(deviceKey: number, epoch: number, now: Moment): void {
    const session = this.#claims.holder(deviceKey)
    if (session === undefined || session.epoch !== epoch || this.#world.isStanding(session)) return
    this.#claims.lose(session, now)
  }

  /** Every ledger row before `position` is committed, except the ones in `rejected`, whose acks are never sent. */
  durableReached(position: number, rejected: readonly number[], now: Moment): void {
    this.#world.now = now
    this.#replies.durableReached(position, rejected, now)
    this.#commands.durableReached(position, rejected, now)
  }

  /** @param answer undefined: the cards table could not be asked; BKV refuses the card, AP3000 is not answered */
  cardAnswered(questionId: number, answer: CardAnswer | undefined, now: Moment): void {
    this.#world.now = now
    this.#replies.cardAnswered(questionId, answer, now)
  }

  /**
   * A command for a device, from the mailbox.
   * @param lastMessageId the latest message id the database knows for the device
   */
  commandArrived(deviceKey: number, arrived: ArrivedCommand, lastMessageId: number | undefined, now: Moment): void {
    this.#world.now = now
    this.#commands.arrived(this.#claims.holder(deviceKey), deviceKey, arrived, lastMessageId)
  }

  /** Lets go of a command that was not sent; its fate is main's. @returns false: unknown here, or on its way already */
  cancelCommand(deviceKey: number, commandId: string, now: Moment): boolean {
    this.#world.now = now
    return this.#commands.cancel(this.#claims.holder(deviceKey), commandId)
  }

  /** Timers, half frames, coalesced rows. The worker calls it about fifty times a second. */
  tick(now: Moment): void {
    this.#world.now = now
    this.#wheel.advance(now.monoMs, (connectionId) => this.#idleDue(connectionId, now))
    this.#commands.tick(now)
    for (const connection of this.#halfFrames) {
      const { assembler } = connection
      if (assembler === undefined || now.monoMs - assembler.pendingSinceMonoMs! < INCOMPLETE_MS) continue
      this.#speaking = connection
      assembler.giveUpPending(now.monoMs, this.#visitor)
      this.#speaking = undefined
      this.#afterUnits(connection, assembler)
    }
    this.#replies.tick(now)
    if (now.monoMs - this.#flushedMonoMs >= this.#world.options.stateFlushMs) {
      this.#flushedMonoMs = now.monoMs
      this.#isFlushing = true
    }
    if (this.#isFlushing) this.#isFlushing = !this.#claims.flushDirty(now, FLUSHED_PER_TICK)
    // spread over the period would be smoother; once per period keeps the devices of one batch in few INSERTs
    if (now.monoMs - this.#seenSweptMonoMs >= this.#world.options.seenFlushMs / 4) {
      this.#seenSweptMonoMs = now.monoMs
      this.#claims.noteSeenStale(now)
    }
  }

  /** Writes every state that was held back. */
  flush(now: Moment): void {
    this.#claims.flushAll(now)
  }

  /** The gateway stops: what was held back is written, sessions end, connections are closed. */
  stop(now: Moment): void {
    this.flush(now)
    for (const connection of this.#connections) {
      if (connection === undefined) continue
      this.#world.effects.close(connection.id, 'shutdown')
      this.#forget(connection, 'shutdown', now)
    }
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
        this.#world.effects.record(connection.first?.record.deviceKey ?? 0, FLAG.uplink | FLAG.error, bytes, from, to)
        this.#world.effects.counts.frameError(connection.protocol, reason)
        return
      case UNIT.identity:
        connection.iccid = Buffer.from(bytes.subarray(from, to)).toString('latin1')
        for (let session = connection.first; session !== undefined; session = session.next)
          this.#claims.noteIccid(session)
        return
      default:
    }
  }

  #assemblerFor(connection: Connection): FrameAssembler {
    const { protocol } = connection
    let assembler = this.#assemblers.get(protocol)
    if (assembler === undefined) {
      assembler = new FrameAssembler(protocol)
      this.#assemblers.set(protocol, assembler)
    }
    assembler.serve(connection.isLoggedIn)
    return assembler
  }

  #afterUnits(connection: Connection, assembler: FrameAssembler): void {
    const { protocol } = connection
    const isCut = assembler.pendingBytes > 0
    if (connection.isClosed) {
      // what it holds is nobody's
      if (isCut && this.#assemblers.get(protocol) === assembler) this.#assemblers.delete(protocol)
      return
    }
    connection.isLoggedIn = assembler.isLoggedIn
    if (isCut !== (connection.assembler !== undefined)) {
      if (isCut) {
        connection.assembler = assembler
        this.#assemblers.delete(protocol)
        this.#halfFrames.add(connection)
      } else {
        connection.assembler = undefined
        this.#assemblers.set(protocol, assembler)
        this.#halfFrames.delete(connection)
      }
    }
    if (connection.noiseBytes > NOISE_BYTES_MAX) this.#close(connection, 'noise', this.#world.now)
  }

  #frame(connection: Connection, bytes: Uint8Array, from: number, to: number): void {
    const { protocol } = connection
    const head = this.#world.head
    protocol.readHead(bytes, from, to, head)
    if (head.deviceNo < 0) {
      this.#world.effects.counts.frameError(protocol, 'bad_device_id')
      return
    }
    if (head.isDownlink === true) {
      // our own frame, echoed: an answer would be echoed too
      this.#world.effects.counts.frameError(protocol, 'bad_direction')
      return
    }
    // before its first session only: this runs for every frame, and a module may never know its ICCID
    if (connection.first === undefined) connection.iccid ??= protocol.iccidIn?.(bytes, head) ?? null
    const session = this.#claims.sessionOf(connection, head.deviceNo)
    if (session === undefined) return
    const { record } = session
    const now = this.#world.now
    record.lastSeenMs = now.wallMs
    if (session.slot !== NO_CLAIM) this.#world.directory.touch(session.slot, this.#world.nowS)

    const command = protocol.uplinks.get(head.commandKey)
    this.#world.effects.counts.uplink(protocol, command)
    if (command === undefined) {
      this.#world.effects.record(record.deviceKey, FLAG.uplink | FLAG.error, bytes, from, to)
      this.#rows.logUplink(session, undefined, bytes, from, to, 'unknown command')
      return
    }
    const { repeats } = this.#world
    const { commandKey, messageId, dataFrom, dataTo } = head
    const mayRepeat = command.isRepeatable === true && session.index >= 0 && session.lane === undefined
    if (mayRepeat && repeats.isRepeat(session.index, commandKey, bytes, dataFrom, dataTo)) {
      this.#world.effects.record(record.deviceKey, FLAG.uplink, bytes, from, to)
      record.noteMessageId(messageId)
      if (command.reply !== 'none') this.#replies.same(session, command, command.reply, messageId)
      return
    }
    const fields = command.decode(bytes, dataFrom, dataTo)
    if (fields instanceof PayloadError) {
      this.#world.effects.counts.frameError(protocol, 'payload_error')
      this.#world.effects.record(record.deviceKey, FLAG.uplink | FLAG.error, bytes, from, to)
      this.#rows.logUplink(session, command, bytes, from, to, `${fields.payloadError} at ${fields.at}`)
      return
    }
    const odd = protocol.oddities?.(fields)
    if (odd !== undefined) for (const reason of odd) this.#world.effects.counts.frameError(protocol, reason)
    this.#world.effects.record(
      record.deviceKey,
      odd === undefined ? FLAG.uplink : FLAG.uplink | FLAG.error,
      bytes,
      from,
      to,
    )
    record.noteMessageId(messageId)
    if (command.frequent !== true || odd !== undefined)
      this.#rows.logUplink(session, command, bytes, from, to, odd?.join(', ') ?? null)
    let storedAt: number | undefined
    this.#facts.socketsSeen.length = 0
    if (command.facts !== undefined)
      for (const fact of command.facts(fields, record.memory)) {
        const position = this.#facts.apply(session, command, fact, messageId, bytes, from, to)
        if (position !== undefined) storedAt = position
      }
    if (mayRepeat && odd === undefined) repeats.remember(session.index, commandKey, bytes, dataFrom, dataTo)
    else repeats.forget(session.index)
    if (record.isDirty) this.#claims.noteDirty(session)
    if (session.lane !== undefined) {
      session.lane.uplinkSeen(command.name, this.#facts.socketsSeen, now)
      this.#commands.arm(session)
    }
    if (command.reply !== 'none') this.#replies.reply(session, command, command.reply, fields, messageId, storedAt)
  }

  // ---- ends ----------------------------------------------------------------------------------------------------

  /** Ends a connection from our side. */
  #close(connection: Connection, reason: CloseReason, now: Moment): void {
    if (connection.isClosed) return
    this.#world.effects.close(connection.id, reason)
    this.#forget(connection, reason, now)
  }

  #forget(connection: Connection, reason: CloseReason, now: Moment): void {
    connection.isClosed = true
    this.#connections[connection.id] = undefined
    this.#open--
    this.#halfFrames.delete(connection)
    this.#wheel.disarm(connection.id)
    while (connection.first !== undefined) this.#claims.unbind(connection.first, reason, now)
    this.#world.effects.counts.connections(connection.protocol, -1)
    this.#world.effects.counts.closed(reason)
  }

  #idleDue(connectionId: number, now: Moment): void {
    const connection = this.#connections[connectionId]
    if (connection === undefined) return
    const due = connection.heardMonoMs + this.#world.options.idleTimeoutMs
    // armed once per timeout, not once per frame: look when it fires whether something was heard meanwhile
    if (due > now.monoMs) this.#wheel.arm(connectionId, due)
    else this.#close(connection, 'idle', now)
  }
}
