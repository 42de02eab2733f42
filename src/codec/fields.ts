/**
 * Field descriptors: a command says its fields once, in wire order, and has decode, encode and a parameter
 * description from that. A body that cannot be said this way has a hand-written pair beside its table entry.
 *
 * Decoding goes by length: it stops where the data ends, and ignores what is longer (growing frames). Missing required
 * fields are a {@link PayloadError}; missing optional ones are absent. Values are kept as they are: limits bind
 * `encode` only, since a device may send what a document does not know yet.
 */
import { type Fields, PayloadError } from './protocol.ts'

/** Bounds of a value, inclusive, in `unit`. They bind `encode` and the parameter schema, never `decode`. */
export interface FieldLimits {
  /** Of text and rest fields: the least characters or bytes. */
  readonly min?: number
  readonly max?: number
  /** Between `min` and `max`, and refused all the same. */
  readonly not?: readonly number[]
  readonly unit?: string
  /** One line for the reader of the parameter schema. */
  readonly about?: string
}

/** One field as the caller of a downlink sees it; enough for a JSON schema. */
export interface ParameterDescription extends FieldLimits {
  readonly name: string
  /** integer: number. hex: lower-case text of 2 * bytes digits. ascii: text up to bytes. bcd: text of 2 * bytes digits. */
  readonly type: 'integer' | 'hex' | 'ascii' | 'bcd' | 'list'
  /** Bytes on the wire; for `isRest` and lists: the most that fit. */
  readonly bytes: number
  readonly isOptional: boolean
  /** The value runs to the end of the data and may be shorter than `bytes`. */
  readonly isRest: boolean
  /** Of a list whose items are objects: the names they may have. */
  readonly itemNames?: readonly string[]
  /** Callers give the optional ones of a group together, or none of them. */
  readonly group?: number
}

export interface Field {
  readonly type: ParameterDescription['type']
  /** Fixed size; 0 for a field that takes all that is left. */
  readonly bytes: number
  readonly isRest: boolean
  readonly limits: FieldLimits
  readonly isOptional: boolean
  /** What `encode` writes when this optional field is absent but a later one is given. */
  readonly fallback: unknown
  /** Optional fields of one group are encoded together: one of them given, all are written. */
  readonly group: number
  /** `at + this.bytes <= to` is certain. */
  readonly read: (bytes: Uint8Array, at: number, to: number) => unknown
  /** False when the bytes cannot be this field (BCD nibble above 9). Absent: every byte is fine. */
  readonly isValid?: (bytes: Uint8Array, at: number) => boolean
  /** Bytes this value takes; only asked of rest fields. */
  readonly sizeOf?: (value: unknown, name: string) => number
  /** @throws FieldError the value does not fit; nothing usable was written */
  readonly write: (into: Uint8Array, at: number, value: unknown, name: string) => void
}

/** A value given to `encode` that the wire cannot carry. The caller's mistake: tell him `field` and the message. */
export class FieldError extends RangeError {
  override readonly name = 'FieldError'
  readonly field: string
  constructor(field: string, problem: string) {
    super(`${field}: ${problem}`)
    this.field = field
  }
}

export interface FieldsCodec {
  readonly decode: (bytes: Uint8Array, from: number, to: number) => Fields | PayloadError
  /** @throws FieldError a value is missing, of the wrong type or outside its limits */
  readonly encode: (fields: Fields) => Uint8Array
  readonly parameters: readonly ParameterDescription[]
}

/**
 * Makes a codec of fields in wire order. Optional fields must stand behind all required ones; a rest field is last.
 *
 * @throws Error the specification is wrong (at load time, so a test run shows it)
 */
export function fields(spec: Readonly<Record<string, Field>>): FieldsCodec {
  const names = Object.keys(spec)
  const list = Object.values(spec)
  assertOrder(names, list)
  const bytesMin = list.reduce((sum, field) => sum + (field.isOptional ? 0 : field.bytes), 0)

  function decode(bytes: Uint8Array, from: number, to: number): Fields | PayloadError {
    if (to - from < bytesMin) return tooShort(names, list, to - from)
    const decoded: Record<string, unknown> = {}
    let at = from
    for (let index = 0; index < list.length; index++) {
      const field = list[index] as Field
      const next = at + field.bytes
      if (next > to) break // only optional ones can be missing here
      if (field.isOptional && field.isRest && at === to) break
      const name = names[index] as string
      if (field.isValid !== undefined && !field.isValid(bytes, at)) return new PayloadError('bad_value', name)
      decoded[name] = field.read(bytes, at, to)
      at = next
    }
    return decoded
  }

  function encode(values: Fields): Uint8Array {
    const count = countToEncode(names, list, values)
    let size = 0
    for (let index = 0; index < count; index++) {
      const field = list[index] as Field
      const name = names[index] as string
      size += field.sizeOf === undefined ? field.bytes : field.sizeOf(givenOf(field, name, values), name)
    }
    const data = new Uint8Array(size)
    let at = 0
    for (let index = 0; index < count; index++) {
      const field = list[index] as Field
      const name = names[index] as string
      field.write(data, at, givenOf(field, name, values), name)
      at += field.bytes
    }
    return data
  }

  const parameters = list.map((field, index) => describe(names[index] as string, field))
  return { decode, encode, parameters }
}

/** A field for a parameter list without a `fields` specification (hand-written pairs). */
export function describe(name: string, field: Field): ParameterDescription {
  return {
    name,
    type: field.type,
    bytes: field.isRest ? (field.limits.max ?? 0) : field.bytes,
    isOptional: field.isOptional,
    isRest: field.isRest,
    ...(field.type === 'integer' ? { min: 0, max: 256 ** field.bytes - 1 } : {}),
    ...(field.isRest ? withoutMax(field.limits) : field.limits),
    ...(field.group === 0 ? {} : { group: field.group }),
  }
}

/** The same field with bounds, unit and a line of explanation. */
export function limited(field: Field, limits: FieldLimits): Field {
  return { ...field, limits: { ...field.limits, ...limits } }
}

/** A trailing field that older frames do not have. See `Field.fallback` and `Field.group`. */
export function optional(field: Field, fallback: unknown = undefined, group = 0): Field {
  return { ...field, isOptional: true, fallback: fallback ?? zeroOf(field), group }
}

// ---- the fields themselves -------------------------------------------------------------------------------------

const fixed = {
  isRest: false,
  isOptional: false,
  limits: {},
  fallback: undefined,
  group: 0,
} as const

export const u8: Field = {
  ...fixed,
  type: 'integer',
  bytes: 1,
  read: (bytes, at) => bytes[at],
  write: (into, at, value, name) => {
    into[at] = integerOf(value, 0xff, name)
  },
}
export const u16le: Field = {
  ...fixed,
  type: 'integer',
  bytes: 2,
  read: readU16le,
  write: (into, at, value, name) => writeLe(into, at, 2, integerOf(value, 0xffff, name)),
}
export const u32le: Field = {
  ...fixed,
  type: 'integer',
  bytes: 4,
  read: readU32le,
  write: (into, at, value, name) => writeLe(into, at, 4, integerOf(value, 0xffffffff, name)),
}
export const u16be: Field = {
  ...fixed,
  type: 'integer',
  bytes: 2,
  read: readU16be,
  write: (into, at, value, name) => writeBe(into, at, 2, integerOf(value, 0xffff, name)),
}
export const u32be: Field = {
  ...fixed,
  type: 'integer',
  bytes: 4,
  read: readU32be,
  write: (into, at, value, name) => writeBe(into, at, 4, integerOf(value, 0xffffffff, name)),
}

/** Raw bytes in wire order as lower-case hex. */
export function bytesHex(count: number): Field {
  return {
    ...fixed,
    type: 'hex',
    bytes: count,
    read: (bytes, at) => hexOf(bytes, at, at + count),
    write: (into, at, value, name) => {
      if (hexSize(value, name) !== count) throw new FieldError(name, `needs ${2 * count} hex digits`)
      writeHex(into, at, value as string)
    },
  }
}

/** Text, one byte a character (Latin-1, so that every byte survives), padded with zeros; ends at the first zero. */
export function ascii(count: number): Field {
  return {
    ...fixed,
    type: 'ascii',
    bytes: count,
    read: (bytes, at) => asciiOf(bytes, at, at + count),
    write: (into, at, value, name) => {
      if (typeof value !== 'string') throw new FieldError(name, 'needs text')
      if (value.length > count) throw new FieldError(name, `at most ${count} characters`)
      for (let index = 0; index < value.length; index++) {
        const code = value.charCodeAt(index)
        if (code === 0 || code > 0xff) throw new FieldError(name, 'holds a character the wire cannot carry')
        into[at + index] = code
      }
    },
  }
}

/** The same text field for what we send: printable ASCII, as no document says which other letters a device knows. */
export function printable(field: Field, charactersMin = 0): Field {
  return {
    ...field,
    limits: { ...field.limits, ...(charactersMin === 0 ? {} : { min: charactersMin }) },
    write: (into, at, value, name) => {
      if (typeof value === 'string' && !IS_PRINTABLE.test(value))
        throw new FieldError(name, 'holds something else than printable ASCII')
      if (typeof value === 'string' && value.length < charactersMin)
        throw new FieldError(name, `at least ${charactersMin} characters`)
      field.write(into, at, value, name)
    },
  }
}

/** An even count of decimal digits, two a byte, as text; leading zeros stay. */
export function bcdDigits(digits: number): Field {
  const count = digits / 2
  const isDigits = new RegExp(`^[0-9]{${digits}}$`)
  return {
    ...fixed,
    type: 'bcd',
    bytes: count,
    isValid: (bytes, at) => isBcd(bytes, at, at + count),
    read: (bytes, at) => hexOf(bytes, at, at + count),
    write: (into, at, value, name) => {
      if (typeof value !== 'string' || !isDigits.test(value)) throw new FieldError(name, `needs ${digits} digits`)
      writeHex(into, at, value)
    },
  }
}

/** All bytes to the end as lower-case hex, so many of them when encoded; last in its specification. */
export function restHex(bytesMax: number, bytesMin = 0): Field {
  return {
    ...fixed,
    type: 'hex',
    bytes: 0,
    isRest: true,
    limits: { max: bytesMax, ...(bytesMin === 0 ? {} : { min: bytesMin }) },
    read: (bytes, at, to) => hexOf(bytes, at, to),
    sizeOf: (value, name) => {
      const size = hexSize(value, name)
      if (size < bytesMin) throw new FieldError(name, `at least ${bytesMin} bytes`)
      if (size > bytesMax) throw new FieldError(name, `at most ${bytesMax} bytes`)
      return size
    },
    write: (into, at, value) => writeHex(into, at, value as string),
  }
}

// ---- readers and writers, also for hand-written decoders -------------------------------------------------------

export function readU16le(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) | ((bytes[at + 1] as number) << 8)
}

export function readU32le(bytes: Uint8Array, at: number): number {
  return (
    ((bytes[at] as number) |
      ((bytes[at + 1] as number) << 8) |
      ((bytes[at + 2] as number) << 16) |
      ((bytes[at + 3] as number) << 24)) >>>
    0
  )
}

export function readU16be(bytes: Uint8Array, at: number): number {
  return ((bytes[at] as number) << 8) | (bytes[at + 1] as number)
}

export function readU32be(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) << 24) |
      ((bytes[at + 1] as number) << 16) |
      ((bytes[at + 2] as number) << 8) |
      (bytes[at + 3] as number)) >>>
    0
  )
}

/** Writes the low `count` bytes of a non-negative integer, least significant first. */
export function writeLe(into: Uint8Array, at: number, count: number, value: number): void {
  let left = value
  for (let index = 0; index < count; index++) {
    into[at + index] = left % 256
    left = Math.floor(left / 256)
  }
}

/** Writes the low `count` bytes of a non-negative integer, most significant first. */
export function writeBe(into: Uint8Array, at: number, count: number, value: number): void {
  let left = value
  for (let index = count - 1; index >= 0; index--) {
    into[at + index] = left % 256
    left = Math.floor(left / 256)
  }
}

/** `HEX[byte]`: two lower-case digits. */
export const HEX: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))

/** @returns `from..to` as lower-case hex */
export function hexOf(bytes: Uint8Array, from: number, to: number): string {
  if (to - from > HEX_BY_TABLE_BYTES)
    return Buffer.from(bytes.buffer, bytes.byteOffset + from, to - from).toString('hex')
  let text = ''
  for (let at = from; at < to; at++) text += HEX[bytes[at] as number]
  return text
}

/** @returns text up to the first zero byte or `to` */
export function asciiOf(bytes: Uint8Array, from: number, to: number): string {
  let end = from
  while (end < to && bytes[end] !== 0) end++
  return Buffer.from(bytes.buffer, bytes.byteOffset + from, end - from).toString('latin1')
}

/** Writes hex text that has been checked before. */
export function writeHex(into: Uint8Array, at: number, hex: string): void {
  for (let index = 0; index < hex.length; index += 2) {
    into[at + index / 2] = Number.parseInt(hex.slice(index, index + 2), 16)
  }
}

/** @throws FieldError not an integer within 0..max */
export function integerOf(value: unknown, max: number, name: string): number {
  if (typeof value !== 'number' || !Number.isInteger(value)) throw new FieldError(name, 'needs an integer')
  if (value < 0 || value > max) throw new FieldError(name, `must lie within 0..${max}`)
  return value
}

/**
 * @returns bytes that this hex text stands for
 * @throws FieldError no text, an odd count of digits, or something else than hex digits
 */
export function hexSize(value: unknown, name: string): number {
  if (typeof value !== 'string' || value.length % 2 !== 0 || !IS_HEX.test(value)) {
    throw new FieldError(name, 'needs an even count of hex digits')
  }
  return value.length / 2
}

function isBcd(bytes: Uint8Array, from: number, to: number): boolean {
  for (let at = from; at < to; at++) {
    const byte = bytes[at] as number
    if (byte >> 4 > 9 || (byte & 15) > 9) return false
  }
  return true
}

// ---- helpers of fields() ---------------------------------------------------------------------------------------

const IS_HEX = /^[0-9a-fA-F]*$/
const IS_PRINTABLE = /^[ -~]*$/
/** Measured on Node 22: up to 7 bytes the table is faster than a call into native code (80 against 190 ns at 4 bytes). */
const HEX_BY_TABLE_BYTES = 7

function assertOrder(names: readonly string[], list: readonly Field[]): void {
  list.forEach((field, index) => {
    const next = list[index + 1]
    if (next === undefined) return
    if (field.isRest) throw new Error(`field ${names[index]} takes the rest but is not last`)
    if (field.isOptional && !next.isOptional) {
      throw new Error(`field ${names[index + 1]} is required but stands behind an optional one`)
    }
  })
}

function tooShort(names: readonly string[], list: readonly Field[], size: number): PayloadError {
  let end = 0
  for (let index = 0; index < list.length; index++) {
    end += (list[index] as Field).bytes
    if (end > size) return new PayloadError('too_short', names[index] as string)
  }
  return new PayloadError('too_short', names.at(-1) ?? 'data')
}

/** How many leading fields to write: all required ones, and optional ones up to the last given one's group. */
function countToEncode(names: readonly string[], list: readonly Field[], values: Fields): number {
  let last = list.length - 1
  while (last >= 0 && (list[last] as Field).isOptional && values[names[last] as string] === undefined) last--
  const group = last >= 0 ? (list[last] as Field).group : 0
  if (group !== 0) while (last + 1 < list.length && (list[last + 1] as Field).group === group) last++
  return last + 1
}

function givenOf(field: Field, name: string, values: Fields): unknown {
  const value = values[name] ?? (field.isOptional ? field.fallback : undefined)
  if (value === undefined) throw new FieldError(name, 'is required')
  const { min, max, not } = field.limits
  if (typeof value === 'number' && field.type === 'integer') {
    if (min !== undefined && value < min) throw new FieldError(name, `must be at least ${min}`)
    if (max !== undefined && value > max) throw new FieldError(name, `must be at most ${max}`)
    if (not?.includes(value) === true) throw new FieldError(name, `must not be ${not.join(', ')}`)
  }
  return value
}

function zeroOf(field: Field): unknown {
  if (field.type === 'integer') return 0
  if (field.type === 'ascii' || field.isRest) return ''
  return '00'.repeat(field.bytes)
}

function withoutMax(limits: FieldLimits): FieldLimits {
  const { max: _max, ...others } = limits
  return others
}
