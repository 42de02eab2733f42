/**
 * Claim: bounds, headers and identity of BKV frames are judged as sections 1 and 2 of the document say, whatever the
 * bytes. Tried with length extremes, heads cut short, other protocols' first bytes, and random bytes from a fixed seed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type FrameHead, UNIT, type UnitMark } from '../../codec/protocol.ts'
import { commandKey, FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_LOGIN } from './frame.ts'
import { bkv } from './table.ts'

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(' ', ''), 'hex'))
const HEARTBEAT = hex(
  'fcfe002e0000000000000182200520004869383938363034363331313230373033313934313763562e31723436001fcafcee',
)

function find(bytes: Uint8Array, frameBytesMax = FRAME_BYTES_MAX): UnitMark {
  const mark: UnitMark = { kind: UNIT.needMore, from: -1, to: -1, reason: 'bad_header' }
  bkv.findFrame(bytes, 0, bytes.length, frameBytesMax, mark)
  return mark
}

function readHead(bytes: Uint8Array): FrameHead {
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  bkv.readHead(bytes, 0, bytes.length, head)
  return head
}

test('length bounds are told from four bytes, before and after the first good frame', () => {
  for (const [length, before, after] of [
    [0, UNIT.noise, UNIT.noise],
    [1, UNIT.noise, UNIT.noise],
    [16, UNIT.noise, UNIT.noise],
    [17, UNIT.needMore, UNIT.needMore],
    [255, UNIT.needMore, UNIT.needMore],
    [256, UNIT.needMore, UNIT.needMore],
    [512, UNIT.needMore, UNIT.needMore],
    [513, UNIT.noise, UNIT.needMore],
    [4096, UNIT.noise, UNIT.needMore],
    [4097, UNIT.noise, UNIT.noise],
    [65_535, UNIT.noise, UNIT.noise],
  ] as const) {
    const head = Uint8Array.of(0xfc, 0xfe, length >> 8, length & 0xff)
    assert.equal(find(head, FRAME_BYTES_MAX_BEFORE_LOGIN).kind, before, `${length} before`)
    assert.equal(find(head, FRAME_BYTES_MAX).kind, after, `${length} after`)
  }
})

test('noise ends where a header may begin, and half a header at the end is kept', () => {
  assert.deepEqual(find(hex('01 02 fc 03 fc fe 00')), { kind: UNIT.noise, from: 0, to: 4, reason: 'bad_header' })
  assert.deepEqual(find(hex('01 02 fc')), { kind: UNIT.noise, from: 0, to: 2, reason: 'bad_header' })
  assert.deepEqual(find(hex('fc fe ff ff fc ff')), { kind: UNIT.noise, from: 0, to: 4, reason: 'bad_length' })
  assert.equal(find(hex('fc')).kind, UNIT.needMore)
  assert.equal(find(hex('')).kind, UNIT.needMore)
})

test('nothing outside from..to is looked at or believed', () => {
  const mark: UnitMark = { kind: UNIT.needMore, from: -1, to: -1, reason: 'bad_header' }
  const bytes = Uint8Array.from([0xfc, ...HEARTBEAT, 0xfc, 0xfe])
  bkv.findFrame(bytes, 1, 1 + HEARTBEAT.length, FRAME_BYTES_MAX, mark)
  assert.deepEqual([mark.kind, mark.from, mark.to], [UNIT.frame, 1, 1 + HEARTBEAT.length])
  bkv.findFrame(bytes, 1, HEARTBEAT.length, FRAME_BYTES_MAX, mark)
  assert.deepEqual([mark.kind, mark.from, mark.to], [UNIT.needMore, 1, HEARTBEAT.length])
})

test('random bytes: always progress, never a throw', () => {
  let seed = 20_251_124
  const random = () => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
    return seed >>> 24
  }
  const alphabet = [0xfc, 0xfe, 0xff, 0xee, 0x00, 0x11]
  for (let round = 0; round < 20_000; round++) {
    const bytes = Uint8Array.from({ length: random() % 48 }, () => {
      const byte = random()
      return byte < 128 ? alphabet[byte % alphabet.length]! : byte
    })
    const mark = find(bytes)
    assert.equal(mark.from, 0)
    assert.ok(mark.to <= bytes.length)
    if (mark.kind !== UNIT.needMore) assert.ok(mark.to >= 1)
    bkv.recognise(bytes, 0, bytes.length)
  }
})

test('the first frame names the device as soon as its id is there, and not before', () => {
  for (let bytes = 0; bytes < HEARTBEAT.length; bytes++) {
    const seen = bkv.recognise(HEARTBEAT, 0, bytes)
    if (bytes === 0) assert.equal(seen.kind, 'foreign')
    else if (bytes < 18) assert.equal(seen.kind, 'needMore', `${bytes} bytes`)
    else assert.deepEqual(seen, { kind: 'known', routingKey: '82200520004869', by: 'deviceId' })
  }
})

test('noise before the first frame is stepped over; what cannot begin one is foreign', () => {
  const behindNoise = Uint8Array.from([0x00, 0xfc, 0x0d, ...HEARTBEAT])
  assert.deepEqual(bkv.recognise(behindNoise, 0, behindNoise.length), {
    kind: 'known',
    routingKey: '82200520004869',
    by: 'deviceId',
  })
  const foreign = {
    'AP3000 ICCID': '38393836303436333131323037303331393431',
    'AP3000 link': '6c696e6b',
    'AP3000 frame': '444e591d00f36ca2040200',
    HTTP: '474554202f20485454502f312e310d0a',
    'a server': 'fcff0018000000000000008220052000486920200730164545a7fcee',
    'length 16': 'fcfe0010',
    'length 513': 'fcfe0201',
    'direction 2': 'fcfe002e00000000000002',
    'id not decimal': 'fcfe002e000000000000018a200520004869',
  }
  for (const [name, bytes] of Object.entries(foreign)) {
    assert.equal(bkv.recognise(hex(bytes), 0, bytes.length / 2).kind, 'foreign', name)
  }
})

test('ids are 14 digits inside and outside', () => {
  for (const id of ['82241218000382', '00000000000001', '99999999999999']) {
    const deviceNo = bkv.parseDeviceId(id)
    assert.ok(deviceNo !== undefined && Number.isSafeInteger(deviceNo))
    assert.equal(bkv.formatDeviceId(deviceNo), id)
    const frame = bkv.encodeFrame('uplink', { ...bkv.uplinkByName.get('heartbeat')! }, deviceNo, 7, new Uint8Array(0))
    assert.equal(readHead(frame).deviceNo, deviceNo)
    assert.equal(readHead(frame).messageId, 7)
  }
  for (const text of ['', '8224121800038', '822412180003820', '8224121800038a', ' 2241218000382']) {
    assert.equal(bkv.parseDeviceId(text), undefined)
  }
  const malformed = Uint8Array.from(HEARTBEAT)
  malformed[13] = 0x0a
  assert.equal(readHead(malformed).deviceNo, -1)
  assert.ok(bkv.isSharedDefaultId(0) && bkv.isSharedDefaultId(-1) && bkv.isSharedDefaultId(99_999_999_999_999))
  assert.ok(!bkv.isSharedDefaultId(82_241_218_000_382))
})

test('the command key carries the inner sub-command; without one it is ffff', () => {
  const keyOf = (code: number, data: string): number =>
    readHead(bkv.encodeFrame('uplink', { ...bkv.uplinkByName.get('heartbeat')!, code }, 1, 0, hex(data))).commandKey
  assert.equal(keyOf(0x0000, '01'), commandKey(0))
  assert.equal(keyOf(0x0015, '0011 02'), commandKey(0x15, 0x02))
  assert.equal(keyOf(0x0005, '0001 08 01'), commandKey(0x05, 0x08))
  assert.equal(keyOf(0x0015, '0011'), commandKey(0x15, 0xffff))
  assert.equal(keyOf(0x1000, '04 01 01 1017'), commandKey(0x1000, 0x1017))
  assert.equal(keyOf(0x1000, '03 01 4a 01  04 01 01 1004'), commandKey(0x1000, 0x1004), 'key 01 is not the first')
  assert.equal(keyOf(0x1000, '7f 01 4a 01'), commandKey(0x1000, 0xffff))
  assert.equal(keyOf(0x1000, ''), commandKey(0x1000, 0xffff))
})

test('a frame that nobody could carry is not built', () => {
  const heartbeat = bkv.uplinkByName.get('heartbeat')!
  assert.throws(() => bkv.encodeFrame('uplink', heartbeat, 1, 0, new Uint8Array(4_080)), RangeError)
  assert.equal(bkv.encodeFrame('uplink', heartbeat, 1, 0, new Uint8Array(4_079)).length, FRAME_BYTES_MAX)
  assert.throws(() => bkv.encodeFrame('uplink', heartbeat, 10 ** 14, 0, new Uint8Array(0)), RangeError)
  assert.throws(() => bkv.encodeFrame('uplink', heartbeat, -1, 0, new Uint8Array(0)), RangeError)
})
