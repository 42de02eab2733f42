/**
 * How a BKV frame is found, read and written. BKV document, sections 1 and 2.
 *
 * All integers are big-endian and unsigned:
 *
 * | offset | bytes | field                                                       |
 * | ------ | ----- | ----------------------------------------------------------- |
 * | 0      | 2     | header, `fc fe` from the gateway, `fc ff` from the server   |
 * | 2      | 2     | length: bytes after this field with the tail, 17 + n        |
 * | 4      | 2     | outer command                                               |
 * | 6      | 4     | sequence                                                    |
 * | 10     | 1     | direction, 01 up, 00 down (never decides: the header does)  |
 * | 11     | 7     | gateway id, 14 BCD digits                                   |
 * | 18     | n     | data                                                        |
 * | 18 + n | 1     | low 8 bits of the sum of bytes 2 .. 17 + n                  |
 * | 19 + n | 2     | tail `fc ee`                                                |
 */
import { readU32be, writeBe } from '../../codec/fields.ts'
import { type FrameHead, type NoiseReason, type Recognition, UNIT, type UnitMark } from '../../codec/protocol.ts'
import { ENTRY, openEntries } from './entries.ts'

export const HEADER_BYTE = 0xfc
export const HEADER_UPLINK = 0xfe
export const HEADER_DOWNLINK = 0xff
const TAIL_BYTE = 0xee

/** Offset of the data in a frame. */
export const DATA_AT = 18
/** Whole frame around no data, bytes. */
export const FRAME_BYTES_MIN = 21
/** What the length field counts besides the data. */
const LENGTH_MIN = 17
/** Bytes of a frame that its length field does not count: header and the field itself. */
const LENGTH_EXTRA = 4

/** Whole frame before the first good one of a connection: length field at most 512. Section 1, bounds. */
export const FRAME_BYTES_MAX_BEFORE_LOGIN = LENGTH_EXTRA + 512
/** Whole frame afterwards: length field at most 4096 (250 sockets in one node list need 1771). */
export const FRAME_BYTES_MAX = LENGTH_EXTRA + 4096

/** Gateway ids are 14 decimal digits, so smaller than this. */
export const DEVICE_NO_MAX = 10 ** 14 - 1
const SUB_ABSENT = 0xffff

export const CODE_HEARTBEAT = 0x0000
export const CODE_NETWORK = 0x0005
export const CODE_OTA = 0x0007
export const CODE_SOCKET = 0x0015
export const CODE_PAYLOAD = 0x1000

/**
 * Key of a command in the table: outer command and inner sub-command (1 byte in 0005 and 0015, 2 bytes in 1000).
 * A command without sub-command, or one whose data is too short to hold it, has 0xffff there.
 */
export function commandKey(code: number, sub: number = SUB_ABSENT): number {
  return code * 0x1_0000 + sub
}

/**
 * Marks what lies at `from`: section 1, bounds and resynchronisation.
 *
 * Delimits by length, then checks tail and sum; never searches for the tail, because `fcee` may occur in data. Noise
 * ends where the next header may begin: the declared length of a bad frame is not believed.
 *
 * Thread: any. Cost: one pass over the frame, no allocation, never throws.
 */
export function findFrame(bytes: Uint8Array, from: number, to: number, frameBytesMax: number, mark: UnitMark): void {
  mark.from = from
  mark.to = to
  if (from >= to) mark.kind = UNIT.needMore
  else if (bytes[from] !== HEADER_BYTE) markNoise(bytes, from, to, 'bad_header', mark)
  else if (from + 1 === to) mark.kind = UNIT.needMore
  else if (!isHeaderSecond(bytes[from + 1]!)) markNoise(bytes, from, to, 'bad_header', mark)
  else if (from + LENGTH_EXTRA > to) mark.kind = UNIT.needMore
  else markDeclared(bytes, from, to, frameBytesMax, mark)
}

/** Header and length field are there. */
function markDeclared(bytes: Uint8Array, from: number, to: number, frameBytesMax: number, mark: UnitMark): void {
  const frameBytes = LENGTH_EXTRA + ((bytes[from + 2]! << 8) | bytes[from + 3]!)
  const end = from + frameBytes
  if (frameBytes < FRAME_BYTES_MIN || frameBytes > frameBytesMax) {
    // Said at once, without waiting for bytes that would never come.
    markNoise(bytes, from, to, 'bad_length', mark)
  } else if (end > to) {
    mark.kind = UNIT.needMore
  } else if (bytes[end - 2] !== HEADER_BYTE || bytes[end - 1] !== TAIL_BYTE) {
    markNoise(bytes, from, to, 'bad_tail', mark)
  } else if (sumOf(bytes, from + 2, end - 3) !== bytes[end - 3]) {
    markNoise(bytes, from, to, 'checksum_mismatch', mark)
  } else {
    mark.kind = UNIT.frame
    mark.to = end
  }
}

/** Low 8 bits of the sum of `from..to`. */
function sumOf(bytes: Uint8Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += bytes[at]!
  return sum & 0xff
}

function isHeaderSecond(byte: number): boolean {
  return byte === HEADER_UPLINK || byte === HEADER_DOWNLINK
}

/** Skips at least one byte, then everything that cannot begin a header; a lone `fc` at the end is kept. */
function markNoise(bytes: Uint8Array, from: number, to: number, reason: NoiseReason, mark: UnitMark): void {
  let at = from + 1
  while (at < to && !(bytes[at] === HEADER_BYTE && (at + 1 === to || isHeaderSecond(bytes[at + 1]!)))) at++
  mark.kind = UNIT.noise
  mark.to = at
  mark.reason = reason
}

/**
 * Reads the head of a frame that {@link findFrame} delivered. Cost: no allocation.
 *
 * `head.deviceNo` is -1 when a nibble of the gateway id is no decimal digit; `head.isDownlink` tells the header, which
 * matters because a peer that echoes us would otherwise be answered for ever.
 */
export function readHead(bytes: Uint8Array, from: number, to: number, head: FrameHead): void {
  const code = (bytes[from + 4]! << 8) | bytes[from + 5]!
  const dataFrom = from + DATA_AT
  const dataTo = to - 3
  head.deviceNo = readGatewayNo(bytes, from + 11)
  head.messageId = readU32be(bytes, from + 6)
  head.dataFrom = dataFrom
  head.dataTo = dataTo
  head.isDownlink = bytes[from + 1] === HEADER_DOWNLINK
  let sub = SUB_ABSENT
  if (code === CODE_SOCKET || code === CODE_NETWORK) {
    if (dataTo - dataFrom >= 3) sub = bytes[dataFrom + 2]!
  } else if (code === CODE_PAYLOAD) {
    sub = readSub(bytes, dataFrom, dataTo)
  }
  head.commandKey = commandKey(code, sub)
}

/** Sub-command of a 0x1000 payload, key 01; 0xffff when there is none before the first malformed entry. */
function readSub(bytes: Uint8Array, from: number, to: number): number {
  // Every known payload begins with `04 01 01`: length 4, header 1, key 01.
  if (to - from >= 5 && bytes[from] === 4 && bytes[from + 1] === 1 && bytes[from + 2] === 1) {
    return (bytes[from + 3]! << 8) | bytes[from + 4]!
  }
  let at = from
  while (at < to) {
    at = openEntries(bytes, at, to)
    if (at < 0) break
    if (ENTRY.key === 1 && ENTRY.to - ENTRY.from === 2) return (bytes[ENTRY.from]! << 8) | bytes[ENTRY.from + 1]!
  }
  return SUB_ABSENT
}

/** @returns 14 BCD digits at `at` as a decimal number, or -1 when a nibble is above 9. */
function readGatewayNo(bytes: Uint8Array, at: number): number {
  let no = 0
  for (let i = 0; i < 7; i++) {
    const byte = bytes[at + i]!
    const high = byte >> 4
    const low = byte & 15
    if (high > 9 || low > 9) return -1
    no = no * 100 + high * 10 + low
  }
  return no
}

function writeGatewayNo(bytes: Uint8Array, at: number, deviceNo: number): void {
  let rest = deviceNo
  for (let i = 6; i >= 0; i--) {
    const pair = rest % 100
    rest = (rest - pair) / 100
    bytes[at + i] = (Math.floor(pair / 10) << 4) | (pair % 10)
  }
}

/**
 * Says whether the first bytes of a connection are a BKV gateway, and which: its id stands in every frame.
 *
 * `known` needs 18 bytes of one plausible frame of a gateway: header `fc fe`, length 17..512, direction 00 or 01, a
 * decimal gateway id. Noise before it is stepped over. `foreign` only when no position could still become such a head.
 */
export function recognise(bytes: Uint8Array, from: number, to: number): Recognition {
  for (let at = from; at < to; at++) {
    if (bytes[at] !== HEADER_BYTE) continue
    if (at + 1 === to) return NEED_MORE
    if (bytes[at + 1] !== HEADER_UPLINK) continue
    if (at + 2 === to) return NEED_MORE
    if (bytes[at + 2]! > 2) continue
    if (at + 3 === to) return NEED_MORE
    const length = (bytes[at + 2]! << 8) | bytes[at + 3]!
    if (length < LENGTH_MIN || LENGTH_EXTRA + length > FRAME_BYTES_MAX_BEFORE_LOGIN) continue
    if (at + 10 < to && bytes[at + 10]! > 1) continue
    if (at + DATA_AT > to) return NEED_MORE
    const deviceNo = readGatewayNo(bytes, at + 11)
    if (deviceNo >= 0) return { kind: 'known', routingKey: formatDeviceId(deviceNo), by: 'deviceId' }
  }
  return FOREIGN
}

const NEED_MORE: Recognition = { kind: 'needMore' }
const FOREIGN: Recognition = { kind: 'foreign' }

/**
 * A whole frame around a command's data.
 *
 * A 0x1000 payload repeats the sequence (key 02) and the gateway id (key 03); both are made to agree with the frame
 * here, because nobody who builds the data knows them yet. The given data is not changed.
 *
 * @throws RangeError when the data exceeds the frame bound, or the device number is no gateway id
 */
export function encodeFrame(
  direction: 'uplink' | 'downlink',
  command: { readonly code: number },
  deviceNo: number,
  messageId: number,
  data: Uint8Array,
): Uint8Array {
  const frame = new Uint8Array(LENGTH_EXTRA + LENGTH_MIN + data.length)
  writeFrame(frame, direction, command, deviceNo, messageId, data)
  return frame
}

/** The same at the front of `frame`. @returns bytes of the frame */
export function writeFrame(
  frame: Uint8Array,
  direction: 'uplink' | 'downlink',
  command: { readonly code: number },
  deviceNo: number,
  messageId: number,
  data: Uint8Array,
): number {
  const length = LENGTH_MIN + data.length
  if (LENGTH_EXTRA + length > FRAME_BYTES_MAX) throw new RangeError(`BKV data of ${data.length} bytes exceeds a frame`)
  if (!(deviceNo >= 0 && deviceNo <= DEVICE_NO_MAX)) throw new RangeError(`no BKV gateway id: ${deviceNo}`)
  const isUplink = direction === 'uplink'
  frame[0] = HEADER_BYTE
  frame[1] = isUplink ? HEADER_UPLINK : HEADER_DOWNLINK
  frame[2] = length >> 8
  frame[3] = length
  frame[4] = command.code >> 8
  frame[5] = command.code
  writeBe(frame, 6, 4, messageId)
  frame[10] = isUplink ? 1 : 0
  writeGatewayNo(frame, 11, deviceNo)
  frame.set(data, DATA_AT)
  const sumAt = DATA_AT + data.length
  if (command.code === CODE_PAYLOAD) repeatHead(frame, sumAt)
  frame[sumAt] = sumOf(frame, 2, sumAt)
  frame[sumAt + 1] = HEADER_BYTE
  frame[sumAt + 2] = TAIL_BYTE
  return LENGTH_EXTRA + length
}

/** Copies sequence and gateway id of the frame into keys 02 (low four bytes) and 03 of its payload. */
function repeatHead(frame: Uint8Array, dataTo: number): void {
  let at = DATA_AT
  // Keys 01..03 come first; anything else means that no more of them follow.
  while (at < dataTo) {
    at = openEntries(frame, at, dataTo)
    if (at < 0 || ENTRY.key < 1 || ENTRY.key > 3) return
    if (ENTRY.key === 2 && ENTRY.to - ENTRY.from === 8) frame.copyWithin(ENTRY.from + 4, 6, 10)
    if (ENTRY.key === 3 && ENTRY.to - ENTRY.from === 7) frame.copyWithin(ENTRY.from, 11, 18)
  }
}

/** Outside name of a gateway: its 14 digits. */
export function formatDeviceId(deviceNo: number): string {
  return String(deviceNo).padStart(14, '0')
}

/** The inverse of {@link formatDeviceId}; undefined unless the text is 14 decimal digits. */
export function parseDeviceId(text: string): number | undefined {
  return /^[0-9]{14}$/.test(text) ? Number(text) : undefined
}
