/** Rows that tell of sessions, of frames and of what happened to a device. */
import type { Downlink, Uplink } from '../codec/protocol.ts'
import { commandLogRow, eventRow, sessionRow } from '../rows/index.ts'
import type { CloseReason, Moment } from './effects.ts'
import type { Session, ShardWorld } from './shard-world.ts'

export class SessionRows {
  readonly #world: ShardWorld

  constructor(world: ShardWorld) {
    this.#world = world
  }

  session(session: Session, closeReason: CloseReason | null, now: Moment): void {
    const { connection } = session
    this.#world.effects.appendRow(sessionRow, {
      deviceId: session.record.deviceId,
      protocol: connection.protocol.name,
      epoch: session.epoch,
      shard: this.#world.options.shard,
      connectionId: connection.birth,
      remoteAddress: connection.remoteAddress,
      iccid: connection.iccid,
      openedMs: session.openedMs,
      closedMs: closeReason === null ? null : now.wallMs,
      closeReason,
    })
  }

  event(session: Session, type: string, eventId: string, orderKey: string | null, data: Record<string, unknown>): void {
    this.#world.effects.appendRow(eventRow, {
      eventId,
      eventType: type,
      deviceId: session.record.deviceId,
      epoch: session.epoch,
      orderKey,
      atMs: this.#world.now.wallMs,
      data: JSON.stringify(data),
    })
  }

  logUplink(
    session: Session,
    command: Uplink | undefined,
    bytes: Uint8Array,
    from: number,
    to: number,
    note: string | null,
  ): void {
    const frame = bytes.subarray(from, to)
    this.log(session, command, this.#world.head.messageId, frame, true, note, this.#world.now.wallMs)
  }

  log(
    session: Session,
    command: Uplink | Downlink | undefined,
    messageId: number,
    frame: Uint8Array,
    isUplink: boolean,
    note: string | null,
    nowMs: number,
  ): void {
    this.#world.effects.appendRow(commandLogRow, {
      deviceId: session.record.deviceId,
      epoch: session.epoch,
      seq: this.#world.nextSeq(),
      atMs: nowMs,
      isUplink,
      command: command?.name ?? 'unknown',
      code: command?.code ?? this.#world.head.commandKey,
      messageId,
      note,
      frame,
    })
  }
}
