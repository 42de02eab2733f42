/**
 * How a row is described once and travels twice: from a session thread into its outbox (`encodeRow`), and from the
 * outbox in a writer thread into columns (`decodeRows`). `index.ts` lists the fields of every kind in wire order.
 *
 * Layout of one row in an outbox, little-endian:
 * u16 kind, u16 reserved, u32 body bytes, then the fields in order. Numbers are fixed width; text and bytes are u16
 * length + content; a nullable field is preceded by one byte, 0 = null. Zeros fill the row up to a multiple of 8 bytes.
 */

import { ROW_HEADER_BYTES } from '../shared/outbox-layout.ts'

export type FieldType = 'i32' | 'f64' | 'text' | 'bytes' | 'bool'
export interface Field {
  readonly type: FieldType
  readonly nullable: boolean
}

const field = <T extends FieldType, N extends boolean>(type: T, nullable: N) => ({ type, nullable }) as const
export const i32 = field('i32', false)
/** Times in ms since the epoch, epochs of sessions, sequences: integers up to 2^53, and measured values. */
export const f64 = field('f64', false)
/** At most 65,535 bytes of UTF-8; NUL bytes are dropped, PostgreSQL cannot hold them. */
export const text = field('text', false)
export const bytes = field('bytes', false)
export const bool = field('bool', false)
export const i32OrNull = field('i32', true)
export const f64OrNull = field('f64', true)
export const textOrNull = field('text', true)

type Scalar<T extends FieldType> = T extends 'text'
  ? string
  : T extends 'bytes'
    ? Uint8Array
    : T extends 'bool'
      ? boolean
      : number
export type RowOf<F extends Record<string, Field>> = {
  readonly [K in keyof F]: F[K]['nullable'] extends true ? Scalar<F[K]['type']> | null : Scalar<F[K]['type']>
}

/**
 * `ledger`: somebody waits for the commit (settlements). Never spilled, never dropped: a full ring withholds the ack.
 * `history`: may wait; spilled to the spool while the database is away, dropped and counted when that is full too.
 */
export const LANES = ['ledger', 'history'] as const
export type Lane = (typeof LANES)[number]

export interface RowKind<F extends Record<string, Field> = Record<string, Field>> {
  /** Number in the outbox and the spool; never reused. */
  readonly kind: number
  readonly table: string
  readonly lane: Lane
  readonly fields: F
}

/** @param kind 1..65535, unique for good; @param table as in SQL, and as label of rows_total */
export function defineRow<const F extends Record<string, Field>>(
  kind: number,
  table: string,
  lane: Lane,
  fields: F,
): RowKind<F> {
  return { kind, table, lane, fields }
}

/** A whole row is a multiple of this; up to 7 zero bytes stand behind its last field. */
export const ROW_ALIGN_BYTES = 8
/** The largest row an outbox takes; the largest real one is a frame of 4,100 bytes in cmd_log. */
export const ROW_BYTES_MAX = 16_384

const utf8 = new TextEncoder()
// Reused for every row of this thread: a row is built here, then copied once into the ring.
const scratch = new Uint8Array(ROW_BYTES_MAX)
const scratchView = new DataView(scratch.buffer)

/**
 * Builds one row in a buffer that the next call overwrites.
 *
 * @returns a view of 8..ROW_BYTES_MAX bytes
 * @throws RangeError when text or bytes exceed the row bound (a bug in the caller: device bytes are bounded before)
 */
export function encodeRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): Uint8Array {
  let at = ROW_HEADER_BYTES
  const { names, fields } = listsOf(row as unknown as RowKind)
  for (let index = 0; index < names.length; index++) {
    const name = names[index]!
    const { type, nullable } = fields[index]!
    const value = (values as Record<string, unknown>)[name]
    if (nullable) {
      scratch[at++] = value === null ? 0 : 1
      if (value === null) continue
    }
    switch (type) {
      case 'i32':
        scratchView.setInt32(at, value as number, true)
        at += 4
        break
      case 'f64':
        scratchView.setFloat64(at, value as number, true)
        at += 8
        break
      case 'bool':
        scratch[at++] = value ? 1 : 0
        break
      case 'text': {
        const string = value as string
        const asciiBytes = writeAscii(string, at + 2)
        if (asciiBytes >= 0) {
          scratchView.setUint16(at, asciiBytes, true)
          at += 2 + asciiBytes
          break
        }
        const clean = string.includes('\0') ? string.replaceAll('\0', '') : string
        const { read, written } = utf8.encodeInto(clean, scratch.subarray(at + 2))
        if (read !== clean.length) throw new RangeError(`row ${row.table}.${name} exceeds ${ROW_BYTES_MAX} bytes`)
        scratchView.setUint16(at, written, true)
        at += 2 + written
        break
      }
      case 'bytes': {
        const content = value as Uint8Array
        if (at + 2 + content.length > ROW_BYTES_MAX)
          throw new RangeError(`row ${row.table}.${name} exceeds ${ROW_BYTES_MAX} bytes`)
        scratchView.setUint16(at, content.length, true)
        scratch.set(content, at + 2)
        at += 2 + content.length
        break
      }
    }
  }
  // whole rows are multiples of 8 bytes: the ring needs it, and zeros behind the fields decode to nothing
  while (at % ROW_ALIGN_BYTES !== 0) scratch[at++] = 0
  scratchView.setUint16(0, row.kind, true)
  scratchView.setUint16(2, 0, true)
  scratchView.setUint32(4, at - ROW_HEADER_BYTES, true)
  return scratch.subarray(0, at)
}

/** Most text of most rows: written here, a call into native code costs more. @returns its bytes, -1: not short and plain */
function writeAscii(string: string, at: number): number {
  const { length } = string
  if (length > ASCII_MAX || at + length > ROW_BYTES_MAX) return -1
  for (let index = 0; index < length; index++) {
    const code = string.charCodeAt(index)
    if (code === 0 || code > 0x7f) return -1
    scratch[at + index] = code
  }
  return length
}
const ASCII_MAX = 64

/** Names and fields of a kind as lists, made once. */
interface FieldLists {
  readonly row: RowKind
  readonly names: readonly string[]
  readonly fields: readonly Field[]
}
const lists: (FieldLists | undefined)[] = []
function listsOf(row: RowKind): FieldLists {
  const known = lists[row.kind]
  if (known?.row === row) return known
  const made = { row, names: Object.keys(row.fields), fields: Object.values(row.fields) }
  lists[row.kind] = made
  return made
}

/** Columns of many rows of one kind, in the order they were appended: what `unnest` takes. */
export interface RowColumns {
  readonly row: RowKind
  readonly count: number
  readonly columns: Readonly<Record<string, unknown[]>>
}

/**
 * Splits a run of whole rows into columns per kind. `bytes` may be shared memory and is copied once; bytes of rows are views
 * of the copy, which lives as long as they do.
 *
 * @param bytes whole rows back to back
 * @throws RangeError on an unknown kind or a row that does not fill its declared length: the bytes are not ours
 */
export function decodeRows(bytes: Uint8Array, kinds: ReadonlyMap<number, RowKind>): RowColumns[] {
  // one copy for all: text decoders and the database driver refuse shared memory, and its content may change
  const own = Buffer.from(bytes)
  const view = new DataView(own.buffer, own.byteOffset, own.byteLength)
  const found = new Map<number, { row: RowKind; count: number; columns: unknown[][] }>()
  let at = 0
  while (at < own.length) {
    if (at + ROW_HEADER_BYTES > own.length) throw new RangeError(`row header torn at ${at}`)
    const kind = view.getUint16(at, true)
    const end = at + ROW_HEADER_BYTES + view.getUint32(at + 4, true)
    const row = kinds.get(kind)
    if (row === undefined) throw new RangeError(`unknown row kind ${kind} at ${at}`)
    if (end > own.length) throw new RangeError(`row ${row.table} torn at ${at}`)
    let group = found.get(kind)
    if (group === undefined) {
      group = { row, count: 0, columns: Object.keys(row.fields).map(() => []) }
      found.set(kind, group)
    }
    at += ROW_HEADER_BYTES
    const { fields } = listsOf(row)
    for (let index = 0; index < fields.length; index++) {
      const { type, nullable } = fields[index]!
      const column = group.columns[index]!
      if (nullable && view.getUint8(at++) === 0) {
        column.push(null)
        continue
      }
      switch (type) {
        case 'i32':
          column.push(view.getInt32(at, true))
          at += 4
          break
        case 'f64':
          column.push(view.getFloat64(at, true))
          at += 8
          break
        case 'bool':
          column.push(view.getUint8(at) === 1)
          at += 1
          break
        default: {
          const from = at + 2
          at = from + view.getUint16(at, true)
          column.push(type === 'text' ? textIn(own, from, at) : own.subarray(from, at))
        }
      }
    }
    if (at > end || end - at >= ROW_ALIGN_BYTES) throw new RangeError(`row ${row.table} ends at ${at}, declared ${end}`)
    at = end
    group.count++
  }
  return Array.from(found.values(), ({ row, count, columns }) => ({
    row,
    count,
    columns: Object.fromEntries(listsOf(row).names.map((name, index) => [name, columns[index]!])),
  }))
}

/** Most text is ASCII, which needs no decoder. */
function textIn(bytes: Buffer, from: number, to: number): string {
  for (let at = from; at < to; at++) if ((bytes[at] as number) > 0x7f) return bytes.toString('utf8', from, to)
  return bytes.toString('latin1', from, to)
}

/** The rows of one kind in a run of whole rows, as objects: for the few that are read one by one. */
export function readRows<F extends Record<string, Field>>(bytes: Uint8Array, row: RowKind<F>): RowOf<F>[] {
  const kinds = new Map([[row.kind, row as unknown as RowKind]])
  const [group] = decodeRows(bytes, kinds)
  if (group === undefined) return []
  return Array.from(
    { length: group.count },
    (_, index) =>
      Object.fromEntries(Object.entries(group.columns).map(([name, column]) => [name, column[index]])) as RowOf<F>,
  )
}

/**
 * How many rows of which kind are in a run of whole rows: headers only are read.
 * @param toIndex just past the last row. @returns by `RowKind.kind`
 */
export function countRows(bytes: ArrayBufferLike, fromIndex: number, toIndex: number): ReadonlyMap<number, number> {
  const view = new DataView(bytes)
  const counts = new Map<number, number>()
  for (let at = fromIndex; at < toIndex; at += rowBytesAt(view, at)) {
    const kind = view.getUint16(at, true)
    counts.set(kind, (counts.get(kind) ?? 0) + 1)
  }
  return counts
}

/** Whole bytes of the row that starts at `at` in `view`. */
export function rowBytesAt(view: DataView, at: number): number {
  return ROW_HEADER_BYTES + view.getUint32(at + 4, true)
}
