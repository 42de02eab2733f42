/**
 * What any protocol is: how its units are found in a byte stream, and a table of commands.
 *
 * A protocol is one folder under `src/protocols/` that exports one {@link Protocol}; `src/protocols/index.ts`
 * names it in one line and nothing else does. Everything here is pure: no clock, no I/O, no globals.
 */
import type { Fact } from './facts.ts'
import type { ParameterDescription } from './fields.ts'
import type { ModelProfile } from './profile.ts'

/** What `findFrame` saw at the read position. */
export const UNIT = {
  /** Not enough bytes to decide; keep `from..to` and come back with more. */
  needMore: 0,
  /** `from..to` belong to nothing; skip and count `reason`. */
  noise: 1,
  /** `from..to` is one whole frame with a good checksum. */
  frame: 2,
  /** `from..to` is a sign of life without content (AP3000 `link`). */
  signOfLife: 3,
  /** `from..to` is a bare identity (AP3000 ICCID, 20 ASCII characters). */
  identity: 4,
} as const
export type UnitKind = (typeof UNIT)[keyof typeof UNIT]

/**
 * Why bytes were skipped, or what is odd about a frame that was taken (the last three, see `Protocol.oddities`); the label
 * values of `pilegate_frame_errors_total{reason}`.
 */
export const NOISE_REASONS = [
  'bad_header',
  'bad_length',
  'checksum_mismatch',
  'bad_tail',
  'incomplete',
  'payload_error',
  'bad_device_id',
  'bad_direction',
  'sequence_mismatch',
  'device_id_mismatch',
  'unknown_key',
] as const
export type NoiseReason = (typeof NOISE_REASONS)[number]

/** Filled in place by `findFrame`: one object per assembler, never one per frame. Positions index the given bytes. */
export interface UnitMark {
  kind: UnitKind
  from: number
  to: number
  /** Set when kind is noise. */
  reason: NoiseReason
}

/** Filled in place by `readHead`. */
export interface FrameHead {
  /** The device inside its protocol: AP3000 physId (u32), BKV gateway id read as decimal (< 10^14). -1 when malformed. */
  deviceNo: number
  /** Message id (AP3000 u16) or sequence (BKV u32) to copy into a reply. */
  messageId: number
  /** Key into `uplinks`/`downlinks`: see `Protocol.commandKey`. */
  commandKey: number
  /** The command's data: from..to in the given bytes. */
  dataFrom: number
  dataTo: number
  /**
   * Set by protocols whose header tells the direction. True in what a device sent means that it echoes us: count it,
   * never act on it and never answer, or two ends would answer each other for ever.
   */
  isDownlink?: boolean
}

/** What the first bytes of a connection say. */
export type Recognition =
  /** Could still become this protocol; more bytes wanted. */
  | { readonly kind: 'needMore' }
  /** Certainly not this protocol. */
  | { readonly kind: 'foreign' }
  /** This protocol, and who speaks: `routingKey` is hashed onto a shard. */
  | { readonly kind: 'known'; readonly routingKey: string; readonly by: 'iccid' | 'deviceId' }

/** Decoded fields: names carry units (`voltageDv` 0.1 V, `energy10Wh`, `durationS`), raw bytes are lower-case hex. */
export type Fields = Readonly<Record<string, unknown>>

/** Well framed, but the data cannot be this command: report, never act on it, never answer it. */
export class PayloadError {
  readonly payloadError: 'too_short' | 'inner_length' | 'bad_entry' | 'bad_value'
  readonly at: string
  constructor(payloadError: 'too_short' | 'inner_length' | 'bad_entry' | 'bad_value', at: string) {
    this.payloadError = payloadError
    this.at = at
  }
}

/** Small numbers a protocol remembers per device between frames (for example: has it ever sent 21?). */
export type DeviceMemory = Record<string, number>

/** What the cards table said about a swiped card. Money in fen, times in ms since the epoch. */
export interface CardAnswer {
  /** port_unusable: the card is good, and nothing can start on this port. */
  readonly status: 'ok' | 'unregistered' | 'insufficient' | 'expired' | 'blocked' | 'port_unusable'
  readonly rateMode: 'time' | 'monthly' | 'energy' | 'per_use'
  readonly balanceFen: number
  readonly expiresMs: number | null
}

export interface ReplyContext {
  readonly nowMs: number
  readonly memory: DeviceMemory
  /** Present for `when: 'lookup'`. */
  readonly card?: CardAnswer
}

/**
 * How the receiver of an uplink answers. `when` decides what must have happened first: nothing but decoding, the
 * commit of the row, or the answer of the cards table. `fields` returning undefined means: not this time.
 */
export type Reply =
  | 'none'
  | {
      readonly with: string
      readonly when: 'decoded' | 'durable' | 'lookup'
      readonly fields: (uplink: Fields, context: ReplyContext) => Fields | undefined
      /** Durable replies of one group cannot be told apart by the device: released together, or not at all. */
      readonly group?: (uplink: Fields) => string
      /** The reply opens a dialogue: it carries a message id of ours instead of the uplink's. */
      readonly freshSequence?: true
      /**
       * `fields` gives every device the same, whatever its uplink says: for ever, or to the second. Such a reply is encoded
       * once.
       */
      readonly sameFor?: 'ever' | 'second'
    }

interface CommandBase {
  /** AP3000: cmd. BKV: outer command. */
  readonly code: number
  /** BKV: inner sub-command of 0005, 0015 and 1000. */
  readonly sub?: number
  /** camelCase, unique per protocol and direction; the label value of frames_total{command}. */
  readonly name: string
  /** Chapter of the protocol document. */
  readonly section: string
  /** One line for the generated table in the protocol's README. */
  readonly summary: string
  /** `published`: layout known. `unpublished`: kept raw. `internal`: never reaches a server, kept raw if it does. */
  readonly layout: 'published' | 'unpublished' | 'internal'
  /** `from..to` of `bytes` is the command's data. Bytes behind the last known field are ignored (growing frames). */
  readonly decode: (bytes: Uint8Array, from: number, to: number) => Fields | PayloadError
  /** The command's data. */
  readonly encode: (fields: Fields) => Uint8Array
  /** What `encode` takes, in wire order; a JSON schema for callers is made from it. */
  readonly parameters?: readonly ParameterDescription[]
}

export interface Uplink extends CommandBase {
  readonly direction: 'uplink'
  readonly reply: Reply
  /** What the fields mean in words both protocols share. Called only for decoded frames. */
  readonly facts?: (fields: Fields, memory: DeviceMemory) => readonly Fact[]
  /** Counted and answered like the others, but not worth a row in cmd_log (heartbeats). */
  readonly frequent?: boolean
  /**
   * Twice the same data with nothing in between says nothing new: the facts of the second frame change neither `memory` nor
   * anything else. It is answered without being decoded; its reply is the `sameFor` one.
   */
  readonly isRepeatable?: true
}

/**
 * `result.withinMs` of a command that has no time of its own. There the lane waits as long as ACK_TIMEOUT_MS says; any
 * other value is meant as it is (firmware). AP3000 section 5 says 15 s; BKV states none, its live answers took 1.05 s and
 * 3.4 s (section 3).
 */
export const RESULT_WITHIN_MS = 15_000

export interface Downlink extends CommandBase {
  readonly direction: 'downlink'
  /** Which uplink is its result, how long to wait, how often to send in all. 'none': nothing answers. */
  readonly result:
    | {
        readonly by: string
        /** {@link RESULT_WITHIN_MS}, or a time of this command's own. */
        readonly withinMs: number
        readonly tries: number
        /** The same of a start (`Protocol.askAfterStart`), where the command is either. */
        readonly startTries?: number
        /** Another uplink that some models send instead, on their own and so without our message id. */
        readonly orBy?: string
      }
    | 'none'
  /** The device reports its ports (of field `socket`, or all) behind it. */
  readonly asksPorts?: true
  /** What a caller means who gives no parameter at all; absent: that nothing is to be said. */
  readonly withoutParameters?: Fields
}

export interface Protocol {
  readonly name: 'ap3000' | 'bkv'
  /** 0..62; part of the device key. Never reused. */
  readonly index: number
  /** Cap for the whole frame before and after the first good frame of a connection, bytes. */
  readonly frameBytesMaxBeforeLogin: number
  readonly frameBytesMax: number
  readonly uplinks: ReadonlyMap<number, Uplink>
  readonly downlinks: ReadonlyMap<number, Downlink>
  readonly downlinkByName: ReadonlyMap<string, Downlink>
  readonly uplinkByName: ReadonlyMap<string, Uplink>
  commandKey(code: number, sub?: number): number
  recognise(bytes: Uint8Array, from: number, to: number): Recognition
  /** Looks at `from..to` only; writes `mark`. Never throws, never copies. Progress is certain: noise and units are >= 1 byte. */
  findFrame(bytes: Uint8Array, from: number, to: number, frameBytesMax: number, mark: UnitMark): void
  /** `from..to` is a frame that findFrame delivered. */
  readHead(bytes: Uint8Array, from: number, to: number, head: FrameHead): void
  /** A whole frame around a command's data, in the given direction. */
  encodeFrame(
    direction: 'uplink' | 'downlink',
    command: CommandBase,
    deviceNo: number,
    messageId: number,
    data: Uint8Array,
  ): Uint8Array
  /** The same, at the front of `into`, which has room for frameBytesMax. @returns bytes of the frame */
  writeFrame(
    into: Uint8Array,
    direction: 'uplink' | 'downlink',
    command: CommandBase,
    deviceNo: number,
    messageId: number,
    data: Uint8Array,
  ): number
  /** Outside name of a device: `04ab373b`, `82200520004869`. */
  formatDeviceId(deviceNo: number): string
  /** The inverse; undefined when the text is no id of this protocol. */
  parseDeviceId(text: string): number | undefined
  /**
   * The ICCID that a frame says of the connection it came by, where no bare one does (BKV 2): looked for before the frame
   * opens a session, so that the session is told with it.
   */
  iccidIn?(bytes: Uint8Array, head: FrameHead): string | undefined
  /** Ids that many boards share after memory damage; a session on them is never merged across connections blindly. */
  isSharedDefaultId(deviceNo: number): boolean
  newMemory(): DeviceMemory
  /** Model profiles of this protocol, the default first; see profile.ts. */
  readonly profiles: readonly ModelProfile[]
  /** Chooses a profile for one device. @returns false: there is none of this name, the memory is unchanged */
  useProfile(memory: DeviceMemory, name: string): boolean
  /** What does not fit in a decoded frame that is taken all the same: to be counted and noted. Undefined: nothing. */
  oddities?(fields: Fields): readonly NoiseReason[] | undefined
  /**
   * The message id after `last` for a command of ours, never 0, never one that may still be in flight.
   * @param last the latest we or the device used, undefined when nothing is known
   */
  nextMessageId(last: number | undefined, nowMs: number): number
  /** Width of a message id: which of two is later is told by serial arithmetic. */
  readonly messageIdBits: 16 | 32
  /**
   * What to ask when a start got no certain result: the charge may run. Undefined: this command is no start.
   */
  askAfterStart?(command: string, fields: Fields): { readonly name: string; readonly fields: Fields } | undefined
  /**
   * The device's order numbers come round again (BKV: 16 bits): the number alone does not name an order, the database
   * decides which one is meant (workers/writer).
   */
  readonly reusesOrderNumbers?: true
  /** Its end report says the power of the last moment, not the highest of the charge (BKV 6, 02). */
  readonly endsWithLastPower?: true
  /** The answer to a swipe starts nothing, a command has to follow (AP3000 7, 02). BKV carries the start in its answer. */
  readonly startsCardByCommand?: true
}

/** Result of a lookup whose device key is one safe integer over all protocols: index * 2^47 + deviceNo. */
export const DEVICE_NO_LIMIT = 2 ** 47

/** @returns the number under which session tables and the directory know a device; a safe integer. */
export function deviceKey(protocol: Protocol, deviceNo: number): number {
  return protocol.index * DEVICE_NO_LIMIT + deviceNo
}
