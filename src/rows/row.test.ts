/**
 * Claimed: a row of any kind comes out of `decodeRows` as it went into `encodeRow`, whatever its values and neighbours;
 * whole rows are multiples of 8 bytes; bytes that are not ours are refused and never read past. Tried with random rows
 * from fast-check (a failure prints its seed and path: pass them to `fc.assert` to replay).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { commandLogRow, ROW_KINDS, settlementRow } from './index.ts'
import {
  countRows,
  decodeRows,
  encodeRow,
  type Field,
  ROW_ALIGN_BYTES,
  ROW_BYTES_MAX,
  type RowKind,
  rowBytesAt,
} from './row.ts'

const VALUES: Record<Field['type'], fc.Arbitrary<unknown>> = {
  i32: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  f64: fc.oneof(fc.double(), fc.maxSafeInteger()),
  bool: fc.boolean(),
  // grapheme units: whole characters of every length in UTF-8, NUL among them
  text: fc.string({ unit: 'binary', maxLength: 60 }),
  bytes: fc.uint8Array({ maxLength: 300 }),
}

const anyRow = fc
  .constantFrom(...ROW_KINDS.values())
  .chain((kind) =>
    fc
      .record(
        Object.fromEntries(
          Object.entries(kind.fields).map(([name, { type, nullable }]) => [
            name,
            nullable ? fc.option(VALUES[type]) : VALUES[type],
          ]),
        ),
      )
      .map((values) => ({ kind, values })),
  )

const encode = (kind: RowKind, values: Record<string, unknown>) => encodeRow(kind, values as never).slice()
/** NUL is the one character PostgreSQL cannot hold; bytes come out as views of the span's copy. */
const asStored = (value: unknown) =>
  typeof value === 'string' ? value.replaceAll('\0', '') : value instanceof Uint8Array ? Buffer.from(value) : value

test('random rows of all kinds come back in order, field by field', () => {
  fc.assert(
    fc.property(fc.array(anyRow, { maxLength: 20 }), (rows) => {
      const encoded = rows.map(({ kind, values }) => encode(kind, values))
      for (const bytes of encoded) {
        assert.equal(bytes.length % ROW_ALIGN_BYTES, 0)
        assert.equal(rowBytesAt(new DataView(bytes.buffer, bytes.byteOffset), 0), bytes.length)
      }
      const bytes = new Uint8Array(Buffer.concat(encoded))
      const groups = decodeRows(bytes, ROW_KINDS)
      const counted = countRows(bytes.buffer, bytes.byteOffset, bytes.byteOffset + bytes.length)
      assert.deepEqual(counted, new Map(groups.map(({ row, count }) => [row.kind, count])))
      const seen = new Map<number, number>()
      for (const { kind, values } of rows) {
        const index = seen.get(kind.kind) ?? 0
        seen.set(kind.kind, index + 1)
        const group = groups.find(({ row }) => row === kind)
        assert.ok(group)
        for (const [name, value] of Object.entries(values))
          assert.deepEqual(group.columns[name]![index], asStored(value))
      }
      for (const group of groups) assert.equal(group.count, seen.get(group.row.kind))
    }),
    { numRuns: 300 },
  )
})

test('decoded bytes do not change when the ring is overwritten afterwards', () => {
  const row = encode(commandLogRow as unknown as RowKind, {
    deviceId: 'd',
    epoch: 1,
    seq: 1,
    atMs: 1,
    isUplink: true,
    command: 'c',
    code: 1,
    messageId: 1,
    note: null,
    frame: Uint8Array.of(1, 2, 3),
  })
  const shared = new Uint8Array(new SharedArrayBuffer(row.length))
  shared.set(row)
  const [group] = decodeRows(shared, ROW_KINDS)
  shared.fill(0xff)
  assert.deepEqual(group!.columns['frame'], [Buffer.of(1, 2, 3)])
  assert.deepEqual(group!.columns['command'], ['c'])
})

test('cut or changed rows are refused with RangeError or decode to something, never worse', () => {
  fc.assert(
    fc.property(anyRow, fc.nat(), fc.nat(255), (row, place, value) => {
      const bytes = encode(row.kind, row.values)
      for (let cut = 1; cut < bytes.length; cut++)
        assert.throws(() => decodeRows(bytes.subarray(0, cut), ROW_KINDS), RangeError)
      bytes[place % bytes.length] = value
      try {
        decodeRows(bytes, ROW_KINDS)
      } catch (error) {
        assert.ok(error instanceof RangeError, String(error))
      }
    }),
    { numRuns: 200 },
  )
})

test('a row above the bound is refused whole', () => {
  const fields = Object.fromEntries(
    Object.entries(settlementRow.fields).map(([name, { type, nullable }]) => [
      name,
      nullable ? null : type === 'text' ? '' : type === 'bytes' ? new Uint8Array(0) : 0,
    ]),
  )
  const kind = settlementRow as unknown as RowKind
  assert.throws(() => encode(kind, { ...fields, frame: new Uint8Array(ROW_BYTES_MAX) }), RangeError)
  assert.throws(() => encode(kind, { ...fields, orderNo: 'é'.repeat(ROW_BYTES_MAX / 2) }), RangeError)
  assert.ok(encode(kind, { ...fields, frame: new Uint8Array(ROW_BYTES_MAX - 400) }).length <= ROW_BYTES_MAX)
})
