/**
 * The grammar of a 0x1000 payload: a row of entries, repeated to the end. BKV document, section 7.
 *
 * `entry = length, key header 1, key, value`. The length counts the bytes behind it, base 128 with the most significant
 * group first, bit 7 = more follow, at most 4 bytes. The key header holds bit 7 = the key is a string, bits 0..6 = key
 * length. A value is a number (big-endian), bytes, or again a row of entries (keys 94 and 5B).
 *
 * Decoding keeps the wire order as the order of properties, and encoding writes properties in their order, so that a
 * payload survives the way there and back. What has no name here is kept under `unknownKeys`, hex to hex.
 */
import { FieldError, HEX, hexOf, hexSize, integerOf, readU16be, writeBe, writeHex } from '../../codec/fields.ts'
import { type Fields, type NoiseReason, PayloadError } from '../../codec/protocol.ts'
import { STATUS_BITS } from './status.ts'

/** Where {@link openEntries} leaves the entry it read. One object per thread: copy what you need before the next call. */
export const ENTRY = {
  /** 0..255 for a one-byte key, -1 for any other form. */
  key: 0,
  /** Position of the key header, for keys of another form. */
  headerAt: 0,
  /** The value: from..to. */
  from: 0,
  to: 0,
}

const LENGTH_BYTES_MAX = 4

/**
 * Reads the entry at `at` into {@link ENTRY}.
 *
 * @returns the position behind the entry, or -1 when it is malformed or reaches beyond `to`
 */
export function openEntries(bytes: Uint8Array, at: number, to: number): number {
  let length = 0
  let position = at
  for (;;) {
    if (position >= to || position - at >= LENGTH_BYTES_MAX) return -1
    const byte = bytes[position++]!
    length = (length << 7) | (byte & 0x7f)
    if (byte < 0x80) break
  }
  const end = position + length
  if (end > to || length < 1) return -1
  const header = bytes[position]!
  const keyBytes = header & 0x7f
  if (keyBytes === 0 || 1 + keyBytes > length) return -1
  ENTRY.key = header === 1 ? bytes[position + 1]! : -1
  ENTRY.headerAt = position
  ENTRY.from = position + 1 + keyBytes
  ENTRY.to = end
  return end
}

type Kind = 'number' | 'hex' | 'status' | 'windows' | 'socket' | 'port'
interface KeySpec {
  readonly key: number
  readonly name: string
  readonly kind: Kind
  /** Bytes of the value on the wire; a number of another size up to 6 bytes is read all the same. */
  readonly bytes: number
}

const SPECS: readonly KeySpec[] = (
  [
    [0x01, 'subHex', 'hex', 2],
    [0x02, 'bkvSeqHex', 'hex', 8],
    [0x03, 'bkvGatewayId', 'hex', 7],
    [0x94, 'sockets', 'socket', 0],
    [0x5b, 'ports', 'port', 0],
    [0x4a, 'socket', 'number', 1],
    [0x08, 'port', 'number', 1],
    [0x09, 'statusHex', 'status', 1],
    [0x0a, 'businessNo', 'number', 2],
    [0x95, 'voltageDv', 'number', 2],
    [0x0b, 'powerDw', 'number', 2],
    [0x0c, 'currentMa', 'number', 2],
    [0x0d, 'energyRaw', 'number', 2],
    [0x0e, 'minutesMin', 'number', 2],
    [0x3e, 'fwVersionHex', 'hex', 2],
    [0x07, 'tempC', 'number', 1],
    [0x96, 'rssi', 'number', 1],
    [0x0f, 'ack', 'number', 1],
    [0x13, 'on', 'number', 1],
    [0x12, 'mode', 'number', 1],
    [0x47, 'controlType', 'number', 1],
    [0x14, 'minutesLimitMin', 'number', 2],
    [0x15, 'energyLimit', 'number', 2],
    [0x88, 'amountFen', 'number', 2],
    [0x80, 'serviceFeeBasis', 'number', 1],
    [0x89, 'tierCount', 'number', 1],
    [0x83, 'tiers', 'windows', 6],
    [0xf4, 'keyF4', 'number', 1],
    [0x84, 'tierUsedHex', 'hex', 6],
    [0x85, 'electricityFeeFen', 'number', 2],
    [0x86, 'serviceFeeFen', 'number', 2],
    [0x2e, 'endTimeBcd', 'hex', 7],
    [0x2f, 'endReason', 'number', 1],
    [0x06, 'timeBcd', 'hex', 7],
    [0x21, 'fullChargeDelayS', 'number', 2],
    [0x22, 'noLoadDelayS', 'number', 2],
    [0x23, 'fullPowerDw', 'number', 2],
    [0x24, 'noLoadPowerDw', 'number', 2],
    [0x25, 'highTemp', 'number', 1],
    [0x11, 'powerLimitDw', 'number', 2],
    [0x59, 'maxChargeTimeMin', 'number', 2],
    [0x60, 'tricklePercent', 'number', 1],
    [0x10, 'overCurrentMa', 'number', 2],
    [0x68, 'keyBaseAmount', 'number', 4],
    [0x93, 'antiPulse', 'number', 2],
    [0x98, 'key98', 'number', 1],
    [0x99, 'key99', 'number', 1],
    [0x9a, 'key9A', 'number', 1],
    [0x9b, 'key9B', 'number', 1],
    [0x54, 'socketEventReason', 'number', 1],
    [0x4b, 'socketEventState', 'number', 1],
    [0x55, 'port1EventReason', 'number', 1],
    [0x4c, 'port1EventState', 'number', 1],
    [0x56, 'port2EventReason', 'number', 1],
    [0x4d, 'port2EventState', 'number', 1],
    [0x4e, 'overVoltageDv', 'number', 2],
    [0x4f, 'underVoltageDv', 'number', 2],
    [0x50, 'port1Leakage', 'number', 2],
    [0x51, 'port2Leakage', 'number', 2],
    [0x52, 'port1OverTemp', 'number', 1],
    [0x53, 'port2OverTemp', 'number', 1],
    [0x57, 'port1StatusHex', 'status', 1],
    [0x58, 'port2StatusHex', 'status', 1],
    [0x5a, 'key5AHex', 'hex', 2],
  ] as const
).map(([key, name, kind, bytes]) => ({ key, name, kind, bytes }))

const SPEC_BY_KEY: (KeySpec | undefined)[] = Array.from({ length: 256 }, (_, key) =>
  SPECS.find((spec) => spec.key === key),
)
const SPEC_BY_NAME = new Map(SPECS.map((spec) => [spec.name, spec]))
/** Width of a key's value by its name, bytes. */
export const KEY_BYTES: ReadonlyMap<string, number> = new Map(SPECS.map((spec) => [spec.name, spec.bytes]))
/** Derived while decoding, so never encoded. */
const DERIVED = new Set(['status', 'port1Status', 'port2Status', 'isSequenceMismatch', 'isGatewayIdMismatch'])
const NUMBER_BYTES_MAX = 6
const WINDOW_BYTES = 6

type Entries = Record<string, unknown>

/**
 * Decodes a whole payload: `{ bkv: { subHex, bkvSeqHex, bkvGatewayId, .. } }`.
 *
 * Sockets (key 94) and ports (key 5B) become arrays; prices of one window (key 83) too. Of a key that comes twice, the
 * last counts. When the frame's own head stands before `from`, keys 02 and 03 are compared with it, and
 * `isSequenceMismatch` or `isGatewayIdMismatch` is added if they differ: a sign of corruption, or of a deployment that
 * runs without the frame (section 2).
 */
export function decodePayload(bytes: Uint8Array, from: number, to: number): Fields | PayloadError {
  if (from >= to) return new PayloadError('too_short', 'subHex')
  const bkv: Entries = {}
  const badAt = decodeRow(bytes, from, to, bkv, 0)
  if (badAt >= 0) return new PayloadError('bad_entry', `byte ${badAt - from}`)
  if (bkv['subHex'] === undefined) return new PayloadError('bad_entry', 'subHex')
  compareWithHead(bytes, from, bkv)
  return { bkv }
}

/** @returns the position of the first malformed entry, or -1. `depth` 0 payload, 1 socket, 2 port. */
function decodeRow(bytes: Uint8Array, from: number, to: number, target: Entries, depth: number): number {
  let at = from
  while (at < to) {
    const next = openEntries(bytes, at, to)
    if (next < 0) return at
    const valueFrom = ENTRY.from
    const spec = ENTRY.key < 0 ? undefined : SPEC_BY_KEY[ENTRY.key]
    const valueBytes = next - valueFrom
    if (spec === undefined || valueBytes === 0) {
      keepUnknown(bytes, target)
    } else if (spec.kind === 'number') {
      if (valueBytes > NUMBER_BYTES_MAX) keepUnknown(bytes, target)
      else target[spec.name] = readNumber(bytes, valueFrom, next)
    } else if (spec.kind === 'hex') {
      target[spec.name] = hexOf(bytes, valueFrom, next)
    } else if (spec.kind === 'status' && valueBytes === 1) {
      const raw = bytes[valueFrom]!
      target[spec.name] = HEX[raw]
      target[STATUS_NAMES[spec.name]!] = STATUS_BITS[raw]
    } else if (spec.kind === 'windows' && valueBytes % WINDOW_BYTES === 0) {
      listOf(target, spec.name).push(...decodeWindows(bytes, valueFrom, next))
    } else if ((spec.kind === 'socket' && depth === 0) || (spec.kind === 'port' && depth <= 1)) {
      const inner: Entries = {}
      const badAt = decodeRow(bytes, valueFrom, next, inner, spec.kind === 'socket' ? 1 : 2)
      if (badAt >= 0) return badAt
      listOf(target, spec.name).push(inner)
    } else {
      keepUnknown(bytes, target)
    }
    at = next
  }
  return -1
}

const STATUS_NAMES: Readonly<Record<string, string>> = {
  statusHex: 'status',
  port1StatusHex: 'port1Status',
  port2StatusHex: 'port2Status',
}

function readNumber(bytes: Uint8Array, from: number, to: number): number {
  let value = 0
  for (let at = from; at < to; at++) value = value * 256 + bytes[at]!
  return value
}

function listOf(target: Entries, name: string): unknown[] {
  const list = target[name]
  if (list !== undefined) return list as unknown[]
  const fresh: unknown[] = []
  target[name] = fresh
  return fresh
}

/** Keeps {@link ENTRY} as hex: under its key, or under `header:key` when the key is not one plain byte. */
function keepUnknown(bytes: Uint8Array, target: Entries): void {
  const { key, headerAt, from, to } = ENTRY
  const label = key >= 0 ? HEX[key]! : `${HEX[bytes[headerAt]!]}:${hexOf(bytes, headerAt + 1, from)}`
  const kept = (target['unknownKeys'] ?? {}) as Record<string, string>
  kept[label] = hexOf(bytes, from, to)
  target['unknownKeys'] = kept
}

function decodeWindows(bytes: Uint8Array, from: number, to: number): Fields[] {
  const windows: Fields[] = []
  for (let at = from; at < to; at += WINDOW_BYTES) {
    windows.push({
      endHhMm: clockText(bytes[at]!, bytes[at + 1]!),
      electricityPriceFenPerKwh: readU16be(bytes, at + 2),
      servicePriceFenPerKwh: readU16be(bytes, at + 4),
    })
  }
  return windows
}

/** Hour and minute as two binary bytes: `173b` is `23:59`. Impossible times keep their numbers: they are only shown. */
export function clockText(hour: number, minute: number): string {
  return `${String(hour).padStart(2, '0')}:${String(minute).padStart(2, '0')}`
}

/** The inverse of {@link clockText}. @throws FieldError the text is not `hh:mm` with numbers up to 255 */
export function parseClockText(name: string, text: unknown): [number, number] {
  const match = /^(\d{1,3}):(\d{1,3})$/.exec(String(text))
  const hour = Number(match?.[1])
  const minute = Number(match?.[2])
  if (match === null || hour > 255 || minute > 255) throw new FieldError(name, 'needs hh:mm')
  return [hour, minute]
}

/** The same for what a device is to go by. @throws FieldError the text is no time from 00:00 to 23:59 */
export function parseTimeOfDay(name: string, text: unknown): [number, number] {
  const [hour, minute] = parseClockText(name, text)
  if (hour > 23 || minute > 59) throw new FieldError(name, 'needs hh:mm from 00:00 to 23:59')
  return [hour, minute]
}

/** Data begins 18 bytes behind the frame: its sequence stands 12 bytes before the data, its gateway id 7 before. */
function compareWithHead(bytes: Uint8Array, from: number, bkv: Entries): void {
  if (from < 18 || bytes[from - 18] !== 0xfc || bytes[from - 17]! < 0xfe) return
  if (bytes[from - 14] !== 0x10 || bytes[from - 13] !== 0x00) return
  const sequence = bkv['bkvSeqHex']
  if (sequence !== undefined && String(sequence).slice(-8) !== hexOf(bytes, from - 12, from - 8)) {
    bkv['isSequenceMismatch'] = true
  }
  const gatewayId = bkv['bkvGatewayId']
  if (gatewayId !== undefined && gatewayId !== hexOf(bytes, from - 7, from)) bkv['isGatewayIdMismatch'] = true
}

const NO_ROWS: readonly Fields[] = []

/** What {@link decodePayload} found that does not fit: to be counted, the payload is taken all the same. */
export function odditiesOf(fields: Fields): readonly NoiseReason[] | undefined {
  const bkv = fields['bkv'] as Fields | undefined
  if (bkv === undefined) return undefined
  const isSequence = bkv['isSequenceMismatch'] === true
  const isDevice = bkv['isGatewayIdMismatch'] === true
  const isKey = hasUnknownKeys(bkv)
  // nearly always: nothing is allocated
  if (!isSequence && !isDevice && !isKey) return undefined
  const found: NoiseReason[] = []
  if (isSequence) found.push('sequence_mismatch')
  if (isDevice) found.push('device_id_mismatch')
  if (isKey) found.push('unknown_key')
  return found
}

function hasUnknownKeys(row: Fields): boolean {
  if (row['unknownKeys'] !== undefined) return true
  for (const inner of (row['sockets'] ?? NO_ROWS) as readonly Fields[]) if (hasUnknownKeys(inner)) return true
  for (const inner of (row['ports'] ?? NO_ROWS) as readonly Fields[]) if (hasUnknownKeys(inner)) return true
  return false
}

/** How one command writes its payload. */
export interface PayloadShape {
  readonly sub: number
  /** Names in the order of the document; others follow in the order of their properties. */
  readonly order?: readonly string[]
}

// Reused for every payload of this thread: a payload is built here, then copied once.
const scratch = new Uint8Array(8_192)

/**
 * Encodes `fields.bkv` (or `fields` themselves, when a caller gives them flat) behind keys 01, 02 and 03. Missing
 * sequence and gateway id are zeros, which `encodeFrame` replaces by those of the frame.
 *
 * Numbers take the width of the table and grow when they need more, as the decoder reads any width.
 *
 * @throws FieldError a name without a key, or a value that its key cannot hold
 */
export function encodePayload(fields: Fields, shape: PayloadShape): Uint8Array {
  const bkv = (fields['bkv'] ?? fields) as Entries
  let at = writeHexEntry(0, 0x01, 'subHex', bkv['subHex'] ?? shape.sub.toString(16).padStart(4, '0'))
  at = writeHexEntry(at, 0x02, 'bkvSeqHex', bkv['bkvSeqHex'] ?? '0000000000000000')
  at = writeHexEntry(at, 0x03, 'bkvGatewayId', bkv['bkvGatewayId'] ?? '00000000000000')
  const order = shape.order ?? NO_ORDER
  for (const name of order) at = writeNamed(at, name, bkv[name])
  for (const name in bkv) {
    if (!HEAD_NAMES.has(name) && !order.includes(name)) at = writeNamed(at, name, bkv[name])
  }
  return scratch.slice(0, at)
}

const NO_ORDER: readonly string[] = []
const HEAD_NAMES = new Set(['subHex', 'bkvSeqHex', 'bkvGatewayId'])

/** @returns the position behind what was written at `at` of the scratch */
function writeNamed(at: number, name: string, value: unknown): number {
  if (value === undefined || DERIVED.has(name)) return at
  if (name === 'unknownKeys') {
    let position = at
    for (const [label, hex] of Object.entries(value as Record<string, string>)) {
      position = writeUnknown(position, label, hex)
    }
    return position
  }
  const spec = SPEC_BY_NAME.get(name)
  if (spec === undefined) throw new FieldError(name, 'is no key of a BKV payload')
  switch (spec.kind) {
    case 'number': {
      const number = integerOf(value, 256 ** NUMBER_BYTES_MAX - 1, name)
      let bytes = spec.bytes
      while (number >= 256 ** bytes) bytes++
      const from = writeHead(at, spec.key, bytes)
      writeBe(scratch, from, bytes, number)
      return from + bytes
    }
    case 'hex':
    case 'status':
      return writeHexEntry(at, spec.key, name, value)
    case 'windows': {
      const windows = listValue(name, value)
      let position = writeHead(at, spec.key, windows.length * WINDOW_BYTES)
      for (const window of windows) position = writeWindow(position, window)
      return position
    }
    default: {
      let position = at
      for (const inner of listValue(name, value)) position = writeContainer(position, spec.key, inner)
      return position
    }
  }
}

function listValue(name: string, value: unknown): Entries[] {
  if (!Array.isArray(value)) throw new FieldError(name, 'needs a list')
  return value as Entries[]
}

/** Contents are written first, three bytes further on, and moved when the length turned out to need fewer. */
function writeContainer(at: number, key: number, inner: Entries): number {
  const from = at + CONTAINER_HEAD_BYTES_MAX
  let to = from
  for (const name in inner) to = writeNamed(to, name, inner[name])
  const valueAt = writeHead(at, key, to - from)
  scratch.copyWithin(valueAt, from, to)
  return valueAt + to - from
}

/** Two length bytes (a frame holds less than 2^14), key header, key. */
const CONTAINER_HEAD_BYTES_MAX = 4

function writeWindow(at: number, window: Entries): number {
  scratch.set(parseClockText('endHhMm', window['endHhMm']), at)
  for (const [index, name] of ['electricityPriceFenPerKwh', 'servicePriceFenPerKwh'].entries()) {
    writeBe(scratch, at + 2 + 2 * index, 2, integerOf(window[name], 0xffff, name))
  }
  return at + WINDOW_BYTES
}

function writeUnknown(at: number, label: string, hex: string): number {
  const [first = '', key] = label.split(':')
  const head = key === undefined ? `01${first}` : first + key
  const valueBytes = hexSize(hex, label)
  let position = writeLength(at, hexSize(head, label) + valueBytes)
  position = writeText(position, head)
  return writeText(position, hex)
}

function writeHexEntry(at: number, key: number, name: string, value: unknown): number {
  const from = writeHead(at, key, hexSize(value, name))
  return writeText(from, value as string)
}

function writeText(at: number, hex: string): number {
  const to = at + hex.length / 2
  if (to > scratch.length) throw new FieldError('unknownKeys', 'exceeds a frame')
  writeHex(scratch, at, hex)
  return to
}

/** Length, key header and key of an entry with a value of so many bytes. @returns where the value begins */
function writeHead(at: number, key: number, valueBytes: number): number {
  const position = writeLength(at, 2 + valueBytes)
  if (position + 2 + valueBytes > scratch.length) throw new FieldError(`key ${HEX[key]}`, 'exceeds a frame')
  scratch[position] = 1
  scratch[position + 1] = key
  return position + 2
}

/** Base 128, most significant group first, bit 7 = more bytes follow. */
function writeLength(at: number, length: number): number {
  let position = at
  if (length >= 1 << 14) throw new FieldError('bkv', 'exceeds a frame')
  if (length >= 1 << 7) scratch[position++] = 0x80 | (length >> 7)
  scratch[position++] = length & 0x7f
  return position
}
