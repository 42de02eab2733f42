/**
 * Claim: the entry grammar of section 7 is read for every length form and key form, malformed rows are payload errors,
 * and what has no name is kept. Tried with hand-made rows and with random rows from a fixed seed, which must either be
 * refused or survive the way to fields and back with their meaning unchanged.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FieldError } from '../../codec/fields.ts'
import { type Fields, PayloadError } from '../../codec/protocol.ts'
import { decodePayload, encodePayload } from './entries.ts'

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(' ', ''), 'hex'))
const SUB = '04 01 01 1017'
const decode = (text: string): Fields | PayloadError => decodePayload(hex(text), 0, hex(text).length)

function bkvOf(decoded: Fields | PayloadError): Fields {
  assert.ok(!(decoded instanceof PayloadError), JSON.stringify(decoded))
  return decoded['bkv'] as Fields
}

test('the worked examples of the document', () => {
  assert.deepEqual(bkvOf(decode(`${SUB} 03 01 0f 01`)), { subHex: '1017', ack: 1 })
})

test('lengths of one to four bytes, most significant group first', () => {
  const value = '11'.repeat(130)
  const expected = { subHex: '1017', unknownKeys: { fd: value } }
  // 132 = 1 * 128 + 4: 81 04, also with leading empty groups up to four bytes.
  for (const length of ['81 04', '80 81 04', '80 80 81 04']) {
    assert.deepEqual(bkvOf(decode(`${SUB} ${length} 01 fd ${value}`)), expected)
  }
  const fiveBytes = decode(`${SUB} 80 80 80 81 04 01 fd ${value}`)
  assert.ok(fiveBytes instanceof PayloadError && fiveBytes.payloadError === 'bad_entry')
})

test('keys of another form, empty values and unknown keys are kept raw and written back', () => {
  const row = `${SUB} 0a 01 02 0000000000000000 09 01 03 00000000000000 05 82 6162 99 88  06 03 010203 ffff  02 01 4a`
  const bkv = bkvOf(decode(row))
  assert.deepEqual(bkv['unknownKeys'], { '82:6162': '9988', '03:010203': 'ffff', '4a': '' })
  assert.equal(bkv['socket'], undefined)
  assert.equal(Buffer.from(encodePayload({ bkv }, { sub: 0x1017 })).toString('hex'), row.replaceAll(' ', ''))
})

test('malformed rows are payload errors', () => {
  const rows = {
    'beyond the end': `${SUB} 7f 01 4a 01`,
    'no key header': `${SUB} 00`,
    'no key': `${SUB} 02 00 4a`,
    'key longer than the entry': `${SUB} 03 05 4a 01`,
    'length cut': `${SUB} 81`,
    'inside a container': `${SUB} 06 01 94 7f 01 4a 01`,
    'inside a container of a container': `${SUB} 09 01 94 06 01 5b 7f 01 08 00`,
    'no sub-command': '03 01 0f 01',
  }
  for (const [name, row] of Object.entries(rows)) {
    const decoded = decode(row)
    assert.ok(decoded instanceof PayloadError, name)
    assert.equal(decoded.payloadError, 'bad_entry', name)
  }
  const nothing = decode('')
  assert.ok(nothing instanceof PayloadError && nothing.payloadError === 'too_short')
})

test('a number may be wider than the table says, never wider than six bytes', () => {
  assert.equal(bkvOf(decode(`${SUB} 06 01 0d 00010000`))['energyRaw'], 65_536)
  assert.deepEqual(bkvOf(decode(`${SUB} 09 01 0d 00000000010000`))['unknownKeys'], { '0d': '00000000010000' })
  assert.deepEqual(encodePayload({ bkv: { energyRaw: 65_536 } }, { sub: 0x1017 }).subarray(-6), hex('05 01 0d 010000'))
})

test('containers lie two deep; a deeper one is kept raw', () => {
  const bkv = bkvOf(decode(`${SUB} 0a 01 94 07 01 94 04 01 0a 0001`))
  assert.deepEqual(bkv['sockets'], [{ unknownKeys: { '94': '04010a0001' } }])
})

test('keys 02 and 03 are compared with the frame when it stands before them', () => {
  const payload = `${SUB} 0a 01 02 0000000000000007 09 01 03 82241218000382`
  const head = (sequence: string, gateway: string) => `fcfe 0000 1000 ${sequence} 01 ${gateway}`
  const flags = (frame: string): unknown[] => {
    const bkv = bkvOf(decodePayload(hex(frame), 18, hex(frame).length))
    return [bkv['isSequenceMismatch'], bkv['isGatewayIdMismatch']]
  }
  assert.deepEqual(flags(`${head('00000007', '82241218000382')} ${payload}`), [undefined, undefined])
  assert.deepEqual(flags(`${head('00000008', '82241218000382')} ${payload}`), [true, undefined])
  assert.deepEqual(flags(`${head('00000007', '82241218000383')} ${payload}`), [undefined, true])
  assert.deepEqual(flags(`${'00'.repeat(18)} ${payload}`), [undefined, undefined], 'no frame before it')
})

test('what the wire cannot carry is refused by name', () => {
  const refused: Fields[] = [
    { nonsense: 1 },
    { socket: -1 },
    { socket: 1.5 },
    { socket: '1' },
    { timeBcd: '123' },
    { tiers: 1 },
    { tiers: [{ endHhMm: 'noon', electricityPriceFenPerKwh: 1, servicePriceFenPerKwh: 1 }] },
    { tiers: [{ endHhMm: '23:59', electricityPriceFenPerKwh: 65_536, servicePriceFenPerKwh: 1 }] },
    { unknownKeys: { fd: 'xy' } },
    { unknownKeys: { fd: '00'.repeat(9_000) } },
  ]
  for (const bkv of refused)
    assert.throws(() => encodePayload({ bkv }, { sub: 0x1007 }), FieldError, JSON.stringify(bkv))
})

test('random rows: refused, or the same fields after the way back', () => {
  let seed = 41
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
    return (seed >>> 8) % below
  }
  const keys = [0x94, 0x5b, 0x4a, 0x08, 0x09, 0x0a, 0x0d, 0x83, 0x84, 0x2e, 0x57, 0xfd, 0x01]
  const row = (depth: number): number[] => {
    const out: number[] = []
    for (let count = random(5); count > 0; count--) {
      const value = depth < 3 && random(3) === 0 ? row(depth + 1) : Array.from({ length: random(9) }, () => random(256))
      const length = value.length + 2 + (random(40) === 0 ? 1 : 0)
      if (length > 127) out.push(0x80 | (length >> 7))
      out.push(length & 127, random(30) === 0 ? random(256) : 1, keys[random(keys.length)]!, ...value)
    }
    return out
  }
  let decodedCount = 0
  for (let round = 0; round < 20_000; round++) {
    const bytes = Uint8Array.from([...hex(SUB), ...row(0)])
    const decoded = decodePayload(bytes, 0, bytes.length)
    if (decoded instanceof PayloadError) continue
    decodedCount++
    const encoded = encodePayload(decoded, { sub: 0x1017 })
    const { bkvSeqHex: _seq, bkvGatewayId: _id, ...back } = bkvOf(decodePayload(encoded, 0, encoded.length))
    assert.deepEqual(back, decoded['bkv'], Buffer.from(bytes).toString('hex'))
  }
  assert.ok(decodedCount > 1_000, `${decodedCount} decodable rows`)
})
