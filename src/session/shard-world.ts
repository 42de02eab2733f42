/** What a shard keeps of sockets and of devices' conversations, and what its parts share. */
import type { FrameAssembler } from '../codec/frame-assembler.ts'
import type { Downlink, Fields, FrameHead, Protocol } from '../codec/protocol.ts'
import type { Directory, StandingWords } from '../shared/directory.ts'
import type { CommandLane, LaneOptions } from './command-lane.ts'
import type { DeviceRecord } from './device-record.ts'
import type { CloseReason, Effects, Moment } from './effects.ts'
import { Repeats } from './repeats.ts'

export interface ShardOptions {
  readonly shard: number
  /** A connection silent for this long is closed. */
  readonly idleTimeoutMs: number
  /** A changed state is written after at most this long. */
  readonly stateFlushMs: number
  /** The time a device was last heard is written this often when nothing else changed. */
  readonly seenFlushMs: number
  /** A card question without an answer is given up after this long: BKV refuses the card, AP3000 is not answered. */
  readonly cardLookupTimeoutMs: number
  readonly commands: LaneOptions
}

/**
 * One device on one connection. With its claim as `Directory.isStanding` compares it; `slot` NO_CLAIM for an id that many
 * boards share: such a device is answered but speaks for nobody (AP3000 4).
 */
export interface Session extends StandingWords {
  readonly record: DeviceRecord
  readonly connection: Connection
  /** The next device on the same connection. */
  next: Session | undefined
  /** Small number, unique among the sessions of the shard that have a claim; used again. */
  readonly index: number
  readonly epoch: number
  readonly openedMs: number
  readonly openedMonoMs: number
  /** Made with the first command; most sessions of most fleets never have one. */
  lane: CommandLane | undefined
}

export const NO_CLAIM = -1

export interface Connection {
  readonly id: number
  readonly protocol: Protocol
  readonly birth: number
  readonly remoteAddress: string
  /** Only while a unit that a chunk has cut waits for its rest. */
  assembler: FrameAssembler | undefined
  /** A good frame was seen: larger ones are allowed. */
  isLoggedIn: boolean
  /** The first of its sessions, in the order in which they began. */
  first: Session | undefined
  iccid: string | null
  heardMonoMs: number
  noiseBytes: number
  isClosed: boolean
}

/** Ends a connection from our side. */
export type CloseConnection = (connection: Connection, reason: CloseReason, now: Moment) => void

export class ShardWorld {
  readonly options: ShardOptions
  readonly directory: Directory
  readonly effects: Effects
  readonly close: CloseConnection
  readonly repeats = new Repeats()
  #now: Moment
  /** Seconds since the epoch. */
  nowS = 0
  /** Head of the frame in hand, filled anew for every frame. */
  readonly head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  #seq = 0

  constructor(options: ShardOptions, directory: Directory, effects: Effects, now: Moment, close: CloseConnection) {
    this.options = options
    this.directory = directory
    this.effects = effects
    this.#now = now
    this.close = close
  }

  /** When what is being done happens. */
  get now(): Moment {
    return this.#now
  }

  set now(now: Moment) {
    if (now === this.#now) return
    this.#now = now
    this.nowS = Math.floor(now.wallMs / 1_000)
  }

  /** Of rows of this shard since its start. */
  nextSeq(): number {
    return this.#seq++
  }

  isStanding(session: Session): boolean {
    return session.slot === NO_CLAIM || this.directory.isStanding(session)
  }

  encode(session: Session, downlink: Downlink, messageId: number, fields: Fields): Uint8Array {
    const { protocol, deviceNo } = session.record
    return protocol.encodeFrame('downlink', downlink, deviceNo, messageId, downlink.encode(fields))
  }
}

export function downlinkOf(protocol: Protocol, name: string): Downlink {
  const downlink = protocol.downlinkByName.get(name)
  if (downlink === undefined) throw new Error(`${protocol.name}: no downlink ${name}`)
  return downlink
}
