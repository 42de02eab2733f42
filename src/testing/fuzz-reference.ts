/**
 * A second opinion on frames, for the fuzzer alone: what a stream holds according to sections 1 to 3 of both protocol
 * documents, written as plainly as the documents say it (skip one byte whenever nothing fits) and sharing no code with
 * src/protocols. It sees the whole stream at once, so it needs to know neither chunks nor waiting.
 */
import { UNIT, type UnitKind } from '../codec/protocol.ts'

export interface Reference {
  /** Bytes of the smallest whole frame. */
  readonly frameBytesMin: number
  /** Where the length field is. */
  readonly lengthAt: number
  /** Where the data begins. */
  readonly dataAt: number
  /** Bytes behind the data. */
  readonly tailBytes: number
  /** Puts length, sum and tail of a whole frame right, in place. Frames shorter than the smallest are left alone. */
  seal(frame: Uint8Array): void
  writeLength(frame: Uint8Array, length: number): void
  /** A whole sealed frame around data. `id`: the device as its bytes on the wire. */
  frameOf(isUplink: boolean, code: number, id: Uint8Array, messageId: number, data: Uint8Array): Uint8Array
  /** @returns bytes of the unit that begins at `at` and ends at `to` or before; 0 when none does. See {@link kindAt}. */
  unitBytesAt(bytes: Uint8Array, at: number, to: number, frameBytesMax: number): number
  kindAt(bytes: Uint8Array, at: number): UnitKind
}

const byteAt = (bytes: Uint8Array, at: number): number => bytes[at] as number

// ---- AP3000 ----------------------------------------------------------------------------------------------------

const AP_PREFIX = [0x44, 0x4e, 0x59]
const AP_LINK = [0x6c, 0x69, 0x6e, 0x6b]
const AP_ICCID = [0x38, 0x39, 0x38, 0x36]
const AP_ICCID_BYTES = 20

function begins(bytes: Uint8Array, at: number, to: number, text: readonly number[]): boolean {
  return at + text.length <= to && text.every((byte, index) => bytes[at + index] === byte)
}

function isHexCharacter(byte: number): boolean {
  return /[0-9A-Fa-f]/.test(String.fromCharCode(byte))
}

/** Low 16 bits of the sum of `count` bytes, last byte first. */
function apSum(bytes: Uint8Array, from: number, count: number): number {
  let sum = 0
  for (let left = count; left > 0; left--) sum = (sum + byteAt(bytes, from + left - 1)) % 65_536
  return sum
}

export const AP3000_REFERENCE: Reference = {
  frameBytesMin: 14,
  lengthAt: 3,
  dataAt: 12,
  tailBytes: 2,
  writeLength(frame, length) {
    frame[3] = length % 256
    frame[4] = Math.floor(length / 256)
  },
  seal(frame) {
    if (frame.length < 14) return
    this.writeLength(frame, frame.length - 5)
    const sum = apSum(frame, 0, frame.length - 2)
    frame[frame.length - 2] = sum % 256
    frame[frame.length - 1] = Math.floor(sum / 256)
  },
  frameOf(_isUplink, code, id, messageId, data) {
    const head = [...AP_PREFIX, 0, 0, ...id, messageId % 256, Math.floor(messageId / 256) % 256, code]
    const frame = Uint8Array.from([...head, ...data, 0, 0])
    this.seal(frame)
    return frame
  },
  kindAt: (bytes, at) => (bytes[at] === 0x44 ? UNIT.frame : bytes[at] === 0x6c ? UNIT.signOfLife : UNIT.identity),
  unitBytesAt(bytes, at, to, frameBytesMax) {
    const first = bytes[at]
    if (first === 0x44 && begins(bytes, at, to, AP_PREFIX)) {
      if (at + 5 > to) return 0
      const frameBytes = 5 + byteAt(bytes, at + 3) + 256 * byteAt(bytes, at + 4)
      if (frameBytes < 14 || frameBytes > frameBytesMax || at + frameBytes > to) return 0
      const sum = byteAt(bytes, at + frameBytes - 2) + 256 * byteAt(bytes, at + frameBytes - 1)
      return apSum(bytes, at, frameBytes - 2) === sum ? frameBytes : 0
    }
    if (first === 0x6c) return begins(bytes, at, to, AP_LINK) ? AP_LINK.length : 0
    if (first === 0x38 && begins(bytes, at, to, AP_ICCID)) {
      const end = at + AP_ICCID_BYTES
      return end <= to && bytes.subarray(at, end).every(isHexCharacter) ? AP_ICCID_BYTES : 0
    }
    return 0
  },
}

// ---- BKV -------------------------------------------------------------------------------------------------------

/** Low 8 bits of the sum of `count` bytes, last byte first. */
function bkvSum(bytes: Uint8Array, from: number, count: number): number {
  let sum = 0
  for (let left = count; left > 0; left--) sum = (sum + byteAt(bytes, from + left - 1)) % 256
  return sum
}

export const BKV_REFERENCE: Reference = {
  frameBytesMin: 21,
  lengthAt: 2,
  dataAt: 18,
  tailBytes: 3,
  writeLength(frame, length) {
    frame[2] = Math.floor(length / 256)
    frame[3] = length % 256
  },
  seal(frame) {
    if (frame.length < 21) return
    this.writeLength(frame, frame.length - 4)
    frame[frame.length - 3] = bkvSum(frame, 2, frame.length - 5)
    frame[frame.length - 2] = 0xfc
    frame[frame.length - 1] = 0xee
  },
  frameOf(isUplink, code, id, messageId, data) {
    const sequence = [24, 16, 8, 0].map((shift) => (messageId >>> shift) & 0xff)
    const head = [0xfc, isUplink ? 0xfe : 0xff, 0, 0, code >> 8, code & 0xff, ...sequence, isUplink ? 1 : 0, ...id]
    const frame = Uint8Array.from([...head, ...data, 0, 0xfc, 0xee])
    this.seal(frame)
    return frame
  },
  kindAt: () => UNIT.frame,
  unitBytesAt(bytes, at, to, frameBytesMax) {
    if (bytes[at] !== 0xfc || at + 4 > to) return 0
    if (bytes[at + 1] !== 0xfe && bytes[at + 1] !== 0xff) return 0
    const frameBytes = 4 + 256 * byteAt(bytes, at + 2) + byteAt(bytes, at + 3)
    if (frameBytes < 21 || frameBytes > frameBytesMax || at + frameBytes > to) return 0
    if (bytes[at + frameBytes - 2] !== 0xfc || bytes[at + frameBytes - 1] !== 0xee) return 0
    return bkvSum(bytes, at + 2, frameBytes - 5) === bytes[at + frameBytes - 3] ? frameBytes : 0
  },
}

/** One unit of a stream, `from` and `to` being positions in it. */
export interface Unit {
  readonly kind: UnitKind
  readonly from: number
  readonly to: number
}

/** Every unit of a whole stream that is no noise; the cap grows with the first good frame. */
export function referenceUnits(
  reference: Reference,
  stream: Uint8Array,
  frameBytesMaxAtFirst: number,
  frameBytesMax: number,
): Unit[] {
  const units: Unit[] = []
  let cap = frameBytesMaxAtFirst
  for (let at = 0; at < stream.length; ) {
    const count = reference.unitBytesAt(stream, at, stream.length, cap)
    if (count === 0) {
      at++
      continue
    }
    const kind = reference.kindAt(stream, at)
    if (kind === UNIT.frame) cap = frameBytesMax
    units.push({ kind, from: at, to: at + count })
    at += count
  }
  return units
}
