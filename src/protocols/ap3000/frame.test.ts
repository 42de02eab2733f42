/**
 * Claims: the finder takes progress on any bytes and never looks beyond them, refuses impossible lengths at once, never
 * trusts a length whose sum is wrong, and recognises a connection only when certain. How: every length of interest with
 * right and wrong sums, random bytes and random damage (fast-check prints its seed), and first bytes of several peers.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { FrameAssembler, type UnitVisitor } from '../../codec/frame-assembler.ts'
import { type FrameHead, type NoiseReason, UNIT, type UnitMark } from '../../codec/protocol.ts'
import {
  DATA_BYTES_MAX,
  encodeFrame,
  FRAME_BYTES_MAX,
  FRAME_BYTES_MAX_BEFORE_LOGIN,
  findFrame,
  formatPhysId,
  isSharedDefaultId,
  parsePhysId,
  RECOGNISE_NOISE_BYTES_MAX,
  readHead,
  recognise,
} from './frame.ts'
import { ap3000 } from './table.ts'

const good = encodeFrame(0x12, 0x04a26cf3, 2, new Uint8Array(0))

function hex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text.replaceAll(' ', ''), 'hex'))
}
function look(bytes: Uint8Array, frameBytesMax = FRAME_BYTES_MAX): UnitMark {
  const mark: UnitMark = { kind: UNIT.needMore, from: -1, to: -1, reason: 'bad_tail' }
  findFrame(bytes, 0, bytes.length, frameBytesMax, mark)
  return mark
}
/** A frame whose length field says `length`, with a right sum if that many bytes can hold one. */
function frameSaying(length: number): Uint8Array {
  const frame = new Uint8Array(5 + Math.max(length, 9))
  frame.set([0x44, 0x4e, 0x59, length & 255, length >> 8])
  const sum = frame.subarray(0, -2).reduce((all, byte) => all + byte, 0) & 0xffff
  frame.set([sum & 255, sum >> 8], frame.length - 2)
  return frame
}
function listen(): UnitVisitor & { frames: string[]; reasons: NoiseReason[] } {
  const frames: string[] = []
  const reasons: NoiseReason[] = []
  return {
    frames,
    reasons,
    unit(kind, bytes, from, to, reason) {
      if (kind === UNIT.noise) reasons.push(reason)
      else if (kind === UNIT.frame) frames.push(Buffer.from(bytes.subarray(from, to)).toString('hex'))
    },
  }
}
const goodHex = Buffer.from(good).toString('hex')

describe('frame', () => {
  test('the worked example of section 2', () => {
    assert.equal(goodHex, '444e590900f36ca2040200120d03')
    const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
    readHead(good, 0, good.length, head)
    assert.deepEqual(head, { deviceNo: 0x04a26cf3, messageId: 2, commandKey: 0x12, dataFrom: 12, dataTo: 12 })
  })

  test('ids with the top bit stay positive', () => {
    const frame = encodeFrame(0x21, 0xfedcba98, 65_535, hex('00'))
    const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
    readHead(frame, 0, frame.length, head)
    assert.deepEqual([head.deviceNo, head.messageId], [0xfedcba98, 65_535])
    assert.equal(formatPhysId(0xfedcba98), 'fedcba98')
    assert.equal(formatPhysId(7), '00000007')
    assert.equal(parsePhysId('fedcba98'), 0xfedcba98)
    for (const text of ['FEDCBA98', '4ab373b', '04ab373b0', '', '04ab373g']) assert.equal(parsePhysId(text), undefined)
  })

  test('more data than the cap cannot be encoded', () => {
    const largest = encodeFrame(0xe0, 1, 1, new Uint8Array(DATA_BYTES_MAX))
    assert.equal(largest.length, FRAME_BYTES_MAX)
    assert.equal(look(largest).kind, UNIT.frame)
    assert.throws(() => encodeFrame(0xe0, 1, 1, new Uint8Array(DATA_BYTES_MAX + 1)), RangeError)
  })

  test('ids of boards with damaged memory, whatever the recognition code', () => {
    for (const number of [10_011_001, 12_000_000, 13_000_001])
      for (const code of [0x03, 0x04, 0x09, 0x0a, 0xff])
        assert.ok(isSharedDefaultId(((code << 24) | number) >>> 0), `${code} ${number}`)
    for (const deviceNo of [0x04ceaa40, 0x04a26cf3, 10_011_000, 12_000_001, 13_000_000])
      assert.ok(!isSharedDefaultId(deviceNo))
  })
})

describe('length fields', () => {
  const expected: readonly (readonly [length: number, known: UnitMark['kind'], stranger: UnitMark['kind']])[] = [
    [0, UNIT.noise, UNIT.noise],
    [1, UNIT.noise, UNIT.noise],
    [8, UNIT.noise, UNIT.noise],
    [9, UNIT.frame, UNIT.frame],
    [255, UNIT.frame, UNIT.frame],
    [256, UNIT.frame, UNIT.frame],
    [257, UNIT.frame, UNIT.noise],
    [512, UNIT.frame, UNIT.noise],
    [513, UNIT.noise, UNIT.noise],
    [65_535, UNIT.noise, UNIT.noise],
  ]
  for (const [length, known, stranger] of expected) {
    test(`${length}`, () => {
      const frame = frameSaying(length)
      for (const [cap, kind] of [
        [FRAME_BYTES_MAX, known],
        [FRAME_BYTES_MAX_BEFORE_LOGIN, stranger],
      ] as const) {
        const whole = look(frame, cap)
        assert.equal(whole.kind, kind)
        // the verdict on a length needs no body
        const five = look(frame.subarray(0, 5), cap)
        if (kind === UNIT.noise) assert.deepEqual([five.kind, five.reason], [UNIT.noise, 'bad_length'])
        else assert.equal(five.kind, UNIT.needMore)
        if (kind === UNIT.frame) assert.deepEqual([whole.from, whole.to], [0, 5 + length])
      }
      if (known !== UNIT.frame) return
      const broken = Uint8Array.from(frame)
      broken[broken.length - 1]! ^= 1
      const refused = look(broken)
      assert.deepEqual([refused.kind, refused.reason], [UNIT.noise, 'checksum_mismatch'])
    })

    test(`${length} in front of a good frame does not cost that frame`, () => {
      const header = frameSaying(length).subarray(0, 5)
      const heard = listen()
      const assembler = new FrameAssembler(ap3000, true)
      assembler.push(Buffer.concat([header, good]), 0, heard)
      while (assembler.pendingBytes > 0) assembler.giveUpPending(0, heard)
      assert.deepEqual(heard.frames, [goodHex])
      assert.deepEqual(heard.reasons.length, 1, 'one damage is counted once')
    })
  }
})

describe('finding', () => {
  test('any bytes: progress, inside the bytes, the same in place as alone', () => {
    const likely = fc.constantFrom(0x44, 0x4e, 0x59, 0x09, 0x00, 0x38, 0x39, 0x36, 0x6c, 0x69, 0x6e, 0x6b, 0xff)
    fc.assert(
      fc.property(fc.array(fc.oneof(likely, fc.nat(255)), { minLength: 1, maxLength: 80 }), (values) => {
        const alone = Uint8Array.from(values)
        const framed = Uint8Array.of(0x44, 0x4e, ...values, 0x59, 0x09, 0x00)
        const mark = look(alone)
        const inPlace: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_tail' }
        findFrame(framed, 2, 2 + values.length, FRAME_BYTES_MAX, inPlace)
        assert.deepEqual({ ...inPlace, from: inPlace.from - 2, to: inPlace.to - 2 }, mark)
        assert.equal(mark.from, 0)
        assert.ok(mark.to >= 1 && mark.to <= values.length)
        if (mark.kind === UNIT.needMore) assert.equal(mark.to, values.length)
      }),
      { numRuns: 3_000 },
    )
  })

  test('DNY inside data does not delimit', () => {
    const frame = encodeFrame(0x82, 1, 1, hex('444e590900444e590900'))
    const mark = look(Uint8Array.from([...frame, ...good]))
    assert.deepEqual([mark.kind, mark.to], [UNIT.frame, frame.length])
  })

  test('a frame swallowed by a damaged length is found in it', () => {
    const liar = Uint8Array.from(encodeFrame(0x21, 1, 1, hex('98080200000905')))
    liar[3]! += good.length
    const heard = listen()
    new FrameAssembler(ap3000).push(Buffer.concat([liar, good, good]), 0, heard)
    assert.deepEqual(heard.frames, [goodHex, goodHex])
    assert.deepEqual(heard.reasons, ['checksum_mismatch'])
  })

  test('prefixes wait, near misses do not', () => {
    for (const text of [
      '44',
      '444e',
      '444e59',
      '444e5909',
      '38',
      '3839',
      '383938',
      '38393836',
      '3839383630',
      '6c',
      '6c69',
      '6c696e',
    ])
      assert.equal(look(hex(text)).kind, UNIT.needMore, text)
    for (const text of ['444f', '444e5a', '3838', '38393837', '383938364730', '6c6a', '6c696e6c'])
      assert.equal(look(hex(text)).kind, UNIT.noise, text)
    assert.deepEqual(look(hex('6c696e6b')).kind, UNIT.signOfLife)
    const iccid = look(Uint8Array.from(Buffer.from('898604D9162390488297x')))
    assert.deepEqual([iccid.kind, iccid.to], [UNIT.identity, 20])
  })
})

describe('recognise', () => {
  const of = (...parts: (Uint8Array | string)[]) => {
    const bytes = Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'latin1') : part)))
    return recognise(bytes, 0, bytes.length)
  }
  const iccid = '898604D9162390488297'
  const byIccid = { kind: 'known', routingKey: iccid, by: 'iccid' }
  const byDevice = { kind: 'known', routingKey: '04a26cf3', by: 'deviceId' }
  const stray = hex('000000000000010000')

  test('ICCID, physId, behind link and behind noise', () => {
    assert.deepEqual(of(iccid), byIccid)
    assert.deepEqual(of(iccid, good), byIccid)
    assert.deepEqual(of('link', 'link', iccid), byIccid)
    assert.deepEqual(of(good, iccid), byDevice)
    assert.deepEqual(of('link', good), byDevice)
    assert.deepEqual(of(stray, good), byDevice)
    assert.deepEqual(of(stray, iccid), byIccid)
  })

  test('undecided while it could still become one', () => {
    assert.deepEqual(recognise(new Uint8Array(4), 2, 2), { kind: 'needMore' })
    for (let cut = 1; cut < iccid.length; cut++) assert.deepEqual(of(iccid.slice(0, cut)), { kind: 'needMore' })
    for (let cut = 1; cut < good.length; cut++) assert.deepEqual(of(good.subarray(0, cut)), { kind: 'needMore' })
    for (const part of ['link', 'lin', stray]) assert.deepEqual(of(part), { kind: 'needMore' })
    const damaged = Uint8Array.from(good)
    damaged[12]! ^= 1
    assert.deepEqual(of(damaged), { kind: 'needMore' })
    assert.deepEqual(of(damaged, good), byDevice)
  })

  test('a BKV heartbeat, which carries an ICCID, is not ours', () => {
    const bkv = hex(
      'fcfe002e0000000000000182200520004869383938363034363331313230373033313934313763562e31723436001fcafcee',
    )
    assert.deepEqual(of(bkv), { kind: 'foreign' })
    assert.deepEqual(of(bkv.subarray(0, 1)), { kind: 'foreign' })
    assert.deepEqual(of(stray, bkv), { kind: 'needMore' })
    assert.deepEqual(of(stray, bkv, bkv, bkv, bkv), { kind: 'foreign' })
  })

  test('a stranger who talks on is foreign, whatever he says', () => {
    const web =
      'GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: something with a name of some length\r\nAccept: */*\r\n'
    assert.deepEqual(of(web), { kind: 'needMore' })
    assert.deepEqual(of(web, web), { kind: 'foreign' })
    assert.deepEqual(of(new Uint8Array(RECOGNISE_NOISE_BYTES_MAX)), { kind: 'needMore' })
    assert.deepEqual(of(new Uint8Array(RECOGNISE_NOISE_BYTES_MAX + 1)), { kind: 'foreign' })
  })

  test('each cut of a stream gives needMore first and then the same answer', () => {
    const stream = Buffer.concat([stray, Buffer.from('link'), good, Buffer.from(iccid)])
    for (let to = 0; to <= stream.length; to++) {
      const answer = recognise(stream, 0, to)
      assert.deepEqual(answer, to < stray.length + 4 + good.length ? { kind: 'needMore' } : byDevice)
    }
  })
})
