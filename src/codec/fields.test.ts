/**
 * Claims: a field specification decodes by length (optional fields end where data ends, longer data is ignored), names
 * the field that is missing, encodes what it decoded, and refuses what the wire cannot carry. How: small invented
 * specifications with known bytes, and random values in both byte orders (fast-check prints its seed).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  ascii,
  bcdDigits,
  bytesHex,
  FieldError,
  fields,
  hexOf,
  limited,
  optional,
  restHex,
  u8,
  u16be,
  u16le,
  u32be,
  u32le,
} from './fields.ts'
import { PayloadError } from './protocol.ts'

function bytes(hex: string): Uint8Array {
  return Uint8Array.from(Buffer.from(hex, 'hex'))
}
function decodeAll(codec: ReturnType<typeof fields>, hex: string): unknown {
  return codec.decode(bytes(hex), 0, hex.length / 2)
}

describe('fields', () => {
  const each = fields({
    one: u8,
    two: u16le,
    four: u32le,
    twoBig: u16be,
    fourBig: u32be,
    raw: bytesHex(2),
    text: ascii(4),
    digits: bcdDigits(4),
  })
  const eachHex = `ff${'0102'}${'01020384'}${'0102'}${'81020304'}${'abcd'}${'61620000'}${'0912'}`
  const eachFields = {
    one: 255,
    two: 0x0201,
    four: 0x84030201,
    twoBig: 0x0102,
    fourBig: 0x81020304,
    raw: 'abcd',
    text: 'ab',
    digits: '0912',
  }

  test('every kind reads and writes its bytes', () => {
    assert.deepEqual(decodeAll(each, eachHex), eachFields)
    assert.equal(Buffer.from(each.encode(eachFields)).toString('hex'), eachHex)
  })

  test('decode reads where the data lies', () => {
    const framed = bytes(`ffff${eachHex}ffff`)
    assert.deepEqual(each.decode(framed, 2, framed.length - 2), eachFields)
  })

  test('too short names the first field that is missing', () => {
    const at = (size: number) => {
      const refused = each.decode(bytes(eachHex), 0, size)
      assert.ok(refused instanceof PayloadError)
      assert.equal(refused.payloadError, 'too_short')
      return refused.at
    }
    assert.deepEqual([0, 1, 2, 3, 6, 7, 18, 20].map(at), [
      'one',
      'two',
      'two',
      'four',
      'four',
      'twoBig',
      'text',
      'digits',
    ])
  })

  test('a nibble above nine is no BCD digit', () => {
    assert.deepEqual(decodeAll(fields({ digits: bcdDigits(4) }), '091a'), new PayloadError('bad_value', 'digits'))
  })

  test('integers of both byte orders come back', () => {
    const integers = fields({ a: u8, b: u16le, c: u32le, d: u16be, e: u32be })
    fc.assert(
      fc.property(
        fc.record(
          {
            a: fc.nat(0xff),
            b: fc.nat(0xffff),
            c: fc.integer({ min: 0, max: 0xffffffff }),
            d: fc.nat(0xffff),
            e: fc.integer({ min: 0, max: 0xffffffff }),
          },
          { noNullPrototype: true },
        ),
        (values) => {
          const encoded = integers.encode(values)
          assert.deepEqual(integers.decode(encoded, 0, encoded.length), values)
        },
      ),
    )
  })
})

describe('growing frames', () => {
  const grown = fields({ first: u8, second: optional(u16le, 7, 1), third: optional(u8, 9, 1), last: optional(u8) })

  test('stop where data ends, ignore what is longer', () => {
    assert.deepEqual(decodeAll(grown, '01'), { first: 1 })
    assert.deepEqual(decodeAll(grown, '0102'), { first: 1 })
    assert.deepEqual(decodeAll(grown, '010200'), { first: 1, second: 2 })
    assert.deepEqual(decodeAll(grown, '01020003'), { first: 1, second: 2, third: 3 })
    assert.deepEqual(decodeAll(grown, '0102000304'), { first: 1, second: 2, third: 3, last: 4 })
    assert.deepEqual(decodeAll(grown, '0102000304ffff'), { first: 1, second: 2, third: 3, last: 4 })
  })

  test('encode writes a group whole, and fallbacks in front of what is given', () => {
    const hex = (values: Record<string, number>) => Buffer.from(grown.encode(values)).toString('hex')
    assert.equal(hex({ first: 1 }), '01')
    assert.equal(hex({ first: 1, second: 2 }), '01020009')
    assert.equal(hex({ first: 1, third: 2 }), '01070002')
    assert.equal(hex({ first: 1, last: 2 }), '0107000902')
  })

  test('a rest field takes what is there, also nothing', () => {
    const rest = fields({ first: u8, rest: restHex(4) })
    assert.deepEqual(decodeAll(rest, '01'), { first: 1, rest: '' })
    assert.deepEqual(decodeAll(rest, '01020304'), { first: 1, rest: '020304' })
    assert.equal(Buffer.from(rest.encode({ first: 1, rest: '0203' })).toString('hex'), '010203')
    assert.throws(() => rest.encode({ first: 1, rest: '0102030405' }), FieldError)
  })

  test('a specification that cannot be decoded by length is refused at once', () => {
    assert.throws(() => fields({ a: optional(u8), b: u8 }), /required/)
    assert.throws(() => fields({ a: restHex(4), b: u8 }), /rest/)
  })
})

describe('encode', () => {
  const spec = fields({
    small: limited(u8, { min: 1, max: 3, unit: 's' }),
    word: u16le,
    raw: bytesHex(2),
    text: ascii(3),
    digits: bcdDigits(2),
  })
  const good = { small: 1, word: 2, raw: 'aabb', text: 'abc', digits: '42' }
  const bad: readonly (readonly [field: string, value: unknown])[] = [
    ['small', 0],
    ['small', 4],
    ['small', undefined],
    ['word', -1],
    ['word', 65_536],
    ['word', 1.5],
    ['word', '2'],
    ['word', Number.NaN],
    ['raw', 'aab'],
    ['raw', 'aabbcc'],
    ['raw', 'zzzz'],
    ['raw', 7],
    ['text', 'abcd'],
    ['text', 'a\u0000'],
    ['text', '电'],
    ['text', 5],
    ['digits', '4'],
    ['digits', '4a'],
  ]

  test('what fits is written', () => assert.equal(Buffer.from(spec.encode(good)).toString('hex'), '010200aabb61626342'))

  for (const [field, value] of bad) {
    test(`refuses ${field} = ${String(value)} and names the field`, () => {
      assert.throws(
        () => spec.encode({ ...good, [field]: value }),
        (error) => error instanceof FieldError && error.field === field,
      )
    })
  }

  test('limits bind encode, not decode: devices may send what no document knows', () => {
    assert.deepEqual(decodeAll(fields({ small: limited(u8, { max: 3 }) }), 'ff'), { small: 255 })
  })

  test('parameters describe what encode takes', () => {
    assert.deepEqual(fields({ small: limited(u8, { min: 1, unit: 's' }), rest: optional(restHex(9)) }).parameters, [
      { name: 'small', type: 'integer', bytes: 1, isOptional: false, isRest: false, min: 1, max: 255, unit: 's' },
      { name: 'rest', type: 'hex', bytes: 9, isOptional: true, isRest: true },
    ])
  })
})

test('hex by table and by native code are the same', () => {
  const all = Uint8Array.from({ length: 256 }, (_, byte) => byte)
  for (let size = 0; size < 20; size++)
    assert.equal(hexOf(all, 100, 100 + size), Buffer.from(all.slice(100, 100 + size)).toString('hex'))
})
