/**
 * Claims: an order number has 16 wire bytes of its own: no two numbers share them, none is blank, and
 * src/session/order-key.ts, which names orders unknown here, gives back what was sent from four characters on, hex for
 * fewer. How: documented numbers, and random ones (fast-check) of the kinds that could collide: texts, hex, hex of texts,
 * near blank ones.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { isBlankOrder, orderNoOf } from '../session/order-key.ts'
import { newOrderNo, ORDER_NO_RANDOM_BYTES, wireOrderNumber } from './order-number.ts'

function wireOf(orderNo: string): string {
  const found = wireOrderNumber(orderNo)
  if ('code' in found) assert.fail(`${orderNo}: ${found.message}`)
  return found.wireHex
}
function reasonOf(orderNo: string): string {
  const found = wireOrderNumber(orderNo)
  assert.ok('code' in found, orderNo)
  assert.equal(found.code, 'INVALID_ARGUMENT')
  return found.reason
}

test('numbers as in the vectors', () => {
  assert.equal(wireOf('ORDER_2025061900'), '4f524445525f32303235303631393030')
  assert.equal(wireOf('A1'), `4131${'0'.repeat(28)}`)
  assert.equal(wireOf('20230503223414193991312684105000'), '20230503223414193991312684105000')
  assert.equal(wireOf('0123456789abcdef'), '30313233343536373839616263646566')
})

test('numbers that cannot be sent say why', () => {
  const reasons: readonly [string, string][] = [
    ['', 'order_no_length'],
    ['x'.repeat(33), 'order_no_length'],
    ['x'.repeat(17), 'order_no_form'],
    ['with blank', 'order_no_form'],
    ['订单', 'order_no_form'],
    ['tab\t', 'order_no_form'],
    ['20230503223414193991312684105000'.replace('2', 'A'), 'order_no_form'],
    ['0'.repeat(32), 'order_no_blank'],
    ['f'.repeat(32), 'order_no_blank'],
    ['4f524445525f32303235303631393030', 'order_no_ambiguous'],
    [`41${'0'.repeat(30)}`, 'order_no_ambiguous'],
  ]
  for (const [orderNo, reason] of reasons) assert.equal(reasonOf(orderNo), reason, orderNo)
})

/** Of an order that is unknown here. */
const numberFrom = (wireHex: string) => orderNoOf({ socket: 0, port: 1, wireHex }, wireHex, '04ab373b')

const hexDigits = fc
  .array(fc.constantFrom(...'0123456789abcdefF'), { minLength: 31, maxLength: 32 })
  .map((c) => c.join(''))
const ascii = fc.string({ unit: 'binary-ascii', minLength: 1, maxLength: 18 })
const hexOfText = ascii.map((text) => Buffer.from(text.slice(0, 16)).toString('hex').padEnd(32, '0'))
const nearBlank = fc
  .tuple(fc.constantFrom('0', 'f'), fc.nat(31), fc.constantFrom(...'0123456789abcdef'))
  .map(([fill, at, digit]) => fill.repeat(at) + digit + fill.repeat(31 - at))
const anyNumber = fc.oneof(ascii, hexDigits, hexOfText, nearBlank, fc.string({ minLength: 1, maxLength: 32 }))

test('whatever is accepted has 16 bytes, is not blank, and comes back as it went; below four characters as hex', () => {
  fc.assert(
    fc.property(anyNumber, (orderNo) => {
      const found = wireOrderNumber(orderNo)
      if ('code' in found) return
      assert.match(found.wireHex, /^[0-9a-f]{32}$/)
      assert.ok(!isBlankOrder(found.wireHex))
      assert.equal(numberFrom(found.wireHex), orderNo.length < 4 ? found.wireHex : orderNo)
    }),
    { numRuns: 5_000 },
  )
})

test('two numbers never share their bytes', () => {
  fc.assert(
    fc.property(fc.array(anyNumber, { maxLength: 200 }), (numbers) => {
      const bytes = new Map<string, string>()
      // each beside its own hex, and beside itself padded with the zeros that padding would add
      for (const orderNo of numbers.flatMap((number) => [
        number,
        Buffer.from(number).toString('hex').padEnd(32, '0').slice(0, 32),
        `${number}\0`,
        number.toUpperCase(),
      ])) {
        const found = wireOrderNumber(orderNo)
        if ('code' in found) continue
        assert.equal(bytes.get(found.wireHex) ?? orderNo, orderNo)
        bytes.set(found.wireHex, orderNo)
      }
    }),
    { numRuns: 200 },
  )
})

test('the number of an order unknown here names its bytes and no others', () => {
  const wires = fc.oneof(
    fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => Buffer.from(bytes).toString('hex')),
    hexOfText.filter((hex) => hex.length === 32),
  )
  fc.assert(
    fc.property(wires, (wireHex) => {
      if (isBlankOrder(wireHex)) return
      const orderNo = numberFrom(wireHex)
      const found = wireOrderNumber(orderNo)
      if (!('code' in found)) assert.equal(found.wireHex, wireHex)
      // hex of fewer than four characters: stored so, and refused when a caller brings it, who means the text
      else assert.deepEqual([orderNo, found.reason], [wireHex, 'order_no_ambiguous'])
    }),
    { numRuns: 2_000 },
  )
})

test('fresh numbers: 100,000 of 16 characters, all different, each from its own bytes', () => {
  const seen = new Set<string>()
  const random = new Uint8Array(ORDER_NO_RANDOM_BYTES)
  // each single bit counts: none of the random bytes gets lost
  for (let bit = 0; bit < 80; bit++) {
    random.fill(0)
    random[bit >> 3] = 1 << (bit & 7)
    seen.add(wireOf(newOrderNo(random)))
  }
  assert.equal(seen.size, 80)
  assert.ok(!seen.has(wireOf(newOrderNo(new Uint8Array(10)))))
  const view = new DataView(random.buffer)
  random.fill(0)
  for (let n = 1; n <= 100_000; n++) {
    // never a power of two alone, which was above
    view.setUint32(0, n)
    view.setUint32(6, n)
    const orderNo = newOrderNo(random)
    assert.equal(orderNo.length, 16)
    seen.add(wireOf(orderNo))
  }
  assert.equal(seen.size, 100_080)
  assert.equal(newOrderNo(new Uint8Array(10)), '0000000000000000')
  assert.equal(newOrderNo(new Uint8Array(10).fill(255)), 'ZZZZZZZZZZZZZZZZ')
  assert.throws(() => newOrderNo(new Uint8Array(9)), RangeError)
})
