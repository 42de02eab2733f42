/**
 * AP3000 frames in a byte stream. AP3000 document, sections 1 to 4.
 *
 * Three kinds of unit share one stream: ICCID (20 characters, starts 8986), `link`, and frames:
 * `DNY`, u16 length (bytes behind it, 9 + n), u32 physId, u16 msgId, u8 cmd, n bytes data, u16 sum of all bytes before;
 * little-endian. `DNY` may occur inside data, so frames are delimited by length alone.
 */
import { HEX, readU16le, readU32le } from '../../codec/fields.ts'
import { type FrameHead, type NoiseReason, type Recognition, UNIT, type UnitMark } from '../../codec/protocol.ts'

/** The length field's smallest value: physId 4, msgId 2, cmd 1, no data, sum 2. */
const LENGTH_MIN = 9
/** Header and length field, which the length does not count. */
const BEFORE_LENGTH_ENDS = 5
const DATA_AT = 12
const SUM_BYTES = 2

/** Cap of the length field before the first good frame and after it, plus what the field does not count (section 2). */
export const FRAME_BYTES_MAX_BEFORE_LOGIN = BEFORE_LENGTH_ENDS + 256
export const FRAME_BYTES_MAX = BEFORE_LENGTH_ENDS + 512
/** The most data one frame carries. */
export const DATA_BYTES_MAX = FRAME_BYTES_MAX - DATA_AT - SUM_BYTES

const ICCID_BYTES = 20
const LINK_BYTES = 4
const D = 0x44
const N = 0x4e
const Y = 0x59
const DIGIT_8 = 0x38
const L = 0x6c

/**
 * Looks at `from..to` and says what begins at `from`. One damaged unit is one noise: it reaches to the next place where
 * a unit could begin, and never trusts a length whose sum did not fit (section 3, rule 4).
 */
export function findFrame(bytes: Uint8Array, from: number, to: number, frameBytesMax: number, mark: UnitMark): void {
  mark.from = from
  mark.to = to
  const first = bytes[from]
  const seen =
    first === D
      ? dnyAt(bytes, from, to)
      : first === DIGIT_8
        ? iccidAt(bytes, from, to)
        : first === L
          ? linkAt(bytes, from, to)
          : from < to
            ? NO
            : PREFIX
  if (seen === PREFIX) mark.kind = UNIT.needMore
  else if (seen === NO) noise('bad_header', bytes, from, to, mark)
  else if (first === D) findDny(bytes, from, to, frameBytesMax, mark)
  else if (first === DIGIT_8) {
    mark.kind = UNIT.identity
    mark.to = from + ICCID_BYTES
  } else {
    mark.kind = UNIT.signOfLife
    mark.to = from + LINK_BYTES
  }
}

/** The three header bytes are there; `mark` says `from..to`. */
function findDny(bytes: Uint8Array, from: number, to: number, frameBytesMax: number, mark: UnitMark): void {
  const held = to - from
  mark.kind = UNIT.needMore
  if (held < BEFORE_LENGTH_ENDS) return
  const length = readU16le(bytes, from + 3)
  const frameBytes = BEFORE_LENGTH_ENDS + length
  if (length < LENGTH_MIN || frameBytes > frameBytesMax) {
    // at once, without waiting for such a body
    noise('bad_length', bytes, from, to, mark)
    return
  }
  if (held < frameBytes) return
  const sumAt = from + frameBytes - SUM_BYTES
  if (sumOf(bytes, from, sumAt) !== readU16le(bytes, sumAt)) {
    noise('checksum_mismatch', bytes, from, to, mark)
    return
  }
  mark.kind = UNIT.frame
  mark.to = from + frameBytes
}

/** @returns low 16 bits of the sum of `from..to` */
export function sumOf(bytes: Uint8Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += bytes[at] as number
  return sum & 0xffff
}

/** `from..to` is a frame that findFrame delivered. */
export function readHead(bytes: Uint8Array, from: number, to: number, head: FrameHead): void {
  head.deviceNo = readU32le(bytes, from + 5)
  head.messageId = readU16le(bytes, from + 9)
  head.commandKey = bytes[from + 11] as number
  head.dataFrom = from + DATA_AT
  head.dataTo = to - SUM_BYTES
}

/**
 * The same bytes in both directions: only the side of the socket tells which it is (section 5).
 *
 * @throws RangeError more data than a length field of 512 can say
 */
export function encodeFrame(code: number, deviceNo: number, messageId: number, data: Uint8Array): Uint8Array {
  const frame = new Uint8Array(DATA_AT + data.length + SUM_BYTES)
  writeFrame(frame, code, deviceNo, messageId, data)
  return frame
}

/**
 * The same at the front of `into`. Written byte by byte: a store costs less than a call for every reply.
 *
 * @returns bytes of the frame
 * @throws RangeError more data than a length field of 512 can say
 */
export function writeFrame(
  into: Uint8Array,
  code: number,
  deviceNo: number,
  messageId: number,
  data: Uint8Array,
): number {
  const dataBytes = data.length
  if (dataBytes > DATA_BYTES_MAX) throw new RangeError(`${dataBytes} data bytes, at most ${DATA_BYTES_MAX}`)
  const length = LENGTH_MIN + dataBytes
  into[0] = D
  into[1] = N
  into[2] = Y
  into[3] = length
  into[4] = length >> 8
  into[5] = deviceNo
  into[6] = deviceNo >>> 8
  into[7] = deviceNo >>> 16
  into[8] = deviceNo >>> 24
  into[9] = messageId
  into[10] = messageId >> 8
  into[11] = code
  for (let index = 0; index < dataBytes; index++) into[DATA_AT + index] = data[index] as number
  const sumAt = DATA_AT + dataBytes
  const sum = sumOf(into, 0, sumAt)
  into[sumAt] = sum
  into[sumAt + 1] = sum >> 8
  return sumAt + SUM_BYTES
}

/** 0x04ab373b as `04ab373b`: most significant byte first, unlike the wire and the QR code. */
export function formatPhysId(deviceNo: number): string {
  return (
    (HEX[deviceNo >>> 24] as string) + HEX[(deviceNo >>> 16) & 255] + HEX[(deviceNo >>> 8) & 255] + HEX[deviceNo & 255]
  )
}

/** @returns undefined when the text is not 8 lower-case hex digits */
export function parsePhysId(text: string): number | undefined {
  return /^[0-9a-f]{8}$/.test(text) ? Number.parseInt(text, 16) : undefined
}

/** Numbers under the QR code that boards with damaged memory fall back to, by model (section 4). */
const FACTORY_NUMBERS: readonly number[] = [10_011_001, 12_000_000, 13_000_001]

export function isSharedDefaultId(deviceNo: number): boolean {
  return FACTORY_NUMBERS.includes(deviceNo & 0xffffff)
}

// ---- who speaks on a new connection ----------------------------------------------------------------------------

/**
 * More noise than this in front of the first unit, and the peer is a stranger. The real noise seen is 9 bytes; one
 * damaged uplink frame is 104 bytes with 16 ports.
 */
export const RECOGNISE_NOISE_BYTES_MAX = 128
const BKV_HEADER_FIRST = 0xfc

const RECOGNISE_MARK: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_header' }
const NEED_MORE: Recognition = { kind: 'needMore' }
const FOREIGN: Recognition = { kind: 'foreign' }

/**
 * Finds the first identity or good frame in the first bytes of a connection; `link` in front says nothing yet.
 *
 * An ICCID behind a byte fc is not believed: BKV frames begin with fc and carry an ICCID in their heartbeat, a frame
 * with a good sum is. A stream that begins with fc is no AP3000 stream (section 1).
 */
export function recognise(bytes: Uint8Array, from: number, to: number): Recognition {
  if (from < to && bytes[from] === BKV_HEADER_FIRST) return FOREIGN
  const mark = RECOGNISE_MARK
  let noiseBytes = 0
  let hasBkvHeader = false
  let at = from
  while (at < to) {
    findFrame(bytes, at, to, FRAME_BYTES_MAX_BEFORE_LOGIN, mark)
    switch (mark.kind) {
      case UNIT.frame:
        return { kind: 'known', routingKey: formatPhysId(readU32le(bytes, at + 5)), by: 'deviceId' }
      case UNIT.identity:
        if (!hasBkvHeader) {
          return { kind: 'known', routingKey: latin1(bytes, at, mark.to), by: 'iccid' }
        }
        noiseBytes += mark.to - at
        break
      case UNIT.needMore:
        return NEED_MORE
      case UNIT.noise:
        noiseBytes += mark.to - at
        hasBkvHeader ||= bytes.subarray(at, mark.to).includes(BKV_HEADER_FIRST)
        break
      default:
    }
    if (noiseBytes > RECOGNISE_NOISE_BYTES_MAX) return FOREIGN
    at = mark.to
  }
  return NEED_MORE
}

function latin1(bytes: Uint8Array, from: number, to: number): string {
  return String.fromCharCode(...bytes.subarray(from, to))
}

// ---- what could begin at a position ----------------------------------------------------------------------------

const NO = 0
/** All bytes there are fit, but some are missing. */
const PREFIX = 1
const MATCH = 2

/** MATCH says the three header bytes are there, no more. */
function dnyAt(bytes: Uint8Array, at: number, to: number): number {
  if (at + 1 >= to) return PREFIX
  if (bytes[at + 1] !== N) return NO
  if (at + 2 >= to) return PREFIX
  return bytes[at + 2] === Y ? MATCH : NO
}

function linkAt(bytes: Uint8Array, at: number, to: number): number {
  for (let index = 1; index < LINK_BYTES; index++) {
    if (at + index >= to) return PREFIX
    if (bytes[at + index] !== LINK[index]) return NO
  }
  return MATCH
}

function iccidAt(bytes: Uint8Array, at: number, to: number): number {
  for (let index = 1; index < ICCID_BYTES; index++) {
    if (at + index >= to) return PREFIX
    const byte = bytes[at + index] as number
    if (index < ICCID_PREFIX.length ? byte !== ICCID_PREFIX[index] : !isHexDigit(byte)) return NO
  }
  return MATCH
}

const LINK = [0x6c, 0x69, 0x6e, 0x6b]
const ICCID_PREFIX = [0x38, 0x39, 0x38, 0x36]

function isHexDigit(byte: number): boolean {
  if (byte <= 0x39) return byte >= 0x30
  const letter = byte | 0x20
  return letter >= 0x61 && letter <= 0x66
}

/** @returns where the next unit could begin behind `from`, or `to` */
function nextStart(bytes: Uint8Array, from: number, to: number): number {
  for (let at = from + 1; at < to; at++) {
    const byte = bytes[at]
    if (byte === D) {
      if (dnyAt(bytes, at, to) !== NO) return at
    } else if (byte === DIGIT_8) {
      if (iccidAt(bytes, at, to) !== NO) return at
    } else if (byte === L && linkAt(bytes, at, to) !== NO) return at
  }
  return to
}

function noise(reason: NoiseReason, bytes: Uint8Array, from: number, to: number, mark: UnitMark): void {
  mark.kind = UNIT.noise
  mark.to = nextStart(bytes, from, to)
  mark.reason = reason
}
