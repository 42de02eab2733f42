/**
 * Claims: every captured, documented and built BKV frame decodes to the fields noted beside it, encodes back to its
 * bytes, and is found again after doubling, noise, damage and cuts. How: `corpus/vectors.json` (a copy of the vectors of
 * the protocol reference) through src/codec/corpus-suite.ts; what that suite cannot say of BKV is said below it, vector
 * by vector. Replay one: `node --test --test-name-pattern NAME src/protocols/bkv/corpus.test.ts`.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { type CorpusAdapter, corpusSuite, type Vector } from '../../codec/corpus-suite.ts'
import { FrameAssembler } from '../../codec/frame-assembler.ts'
import { type FrameHead, type NoiseReason, PayloadError, UNIT, type UnitMark } from '../../codec/protocol.ts'
import { decodePayload } from './entries.ts'
import { bkv } from './table.ts'

const vectors = JSON.parse(readFileSync(new URL('corpus/vectors.json', import.meta.url), 'utf8')) as readonly Vector[]

/** In no table, so they have no command to decode them; see their tests below. */
const UNKNOWN = ['abcd-syn-unknown-command', '1000-syn-100c-unknown-sub']
/** Read, but written in another form: the guide prints outer command 0005, and 0015 is sent (section 6). */
const NOT_CANONICAL = '0005-17-doc-start-by-power'
/** The vector says `too_short`; an entry that reaches beyond the data is a malformed row here, `bad_entry`. */
const OVERRUN = '1000-syn-entry-overruns'
/** The frames of the corpus that the common suite cannot judge. */
const APART = [...UNKNOWN, NOT_CANONICAL, OVERRUN]

/** Fields of vectors that belong to the frame, not to the command. */
const OF_THE_FRAME = ['kind', 'length', 'cmd_hex', 'seq_hex', 'directionFlag', 'gatewayId', 'checksum_hex', 'data_hex']

const REASONS: Readonly<Record<string, readonly NoiseReason[]>> = {
  checksum_mismatch: ['checksum_mismatch'],
  bad_tail: ['bad_tail'],
  length_below_minimum: ['bad_length'],
  bad_header: ['bad_header'],
  // incomplete for ever, or a length above the cap, for which nobody waits
  incomplete: ['incomplete', 'bad_length'],
}

function codesOf(vector: Vector): { code: number; sub: number | undefined } {
  const bkvFields = vector.fields['bkv'] as { sub_hex?: string } | undefined
  const subHex = (vector.fields['sub_hex'] ?? bkvFields?.sub_hex) as string | undefined
  return {
    code: Number.parseInt(vector.fields['cmd_hex'] as string, 16),
    sub: subHex === undefined ? undefined : Number.parseInt(subHex, 16),
  }
}

/** Empty texts say nothing, so they need not be decoded. */
function contentOf({ fields }: Vector): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).filter(([name, value]) => !OF_THE_FRAME.includes(name) && value !== ''),
  )
}

const adapter: CorpusAdapter = {
  kindOf: () => UNIT.frame,
  headOf: (vector) => {
    const { code, sub } = codesOf(vector)
    return {
      deviceId: vector.fields['gatewayId'] as string,
      messageId: Number.parseInt(vector.fields['seq_hex'] as string, 16),
      commandKey: bkv.commandKey(code, sub),
    }
  },
  expected: contentOf,
  derived: () => ({}),
  reasonsFor: ({ fields }) => REASONS[fields['error'] as string]!,
  strays: [
    // a server framework's own header; another protocol's; a lone tail
    hex('000000000000010000'),
    hex('444e5905'),
    hex('fcee'),
    // headers whose frames never come: cut short, of a length that would swallow what follows, too short, too long
    hex('fc'),
    hex('fcfe'),
    hex('fcff'),
    hex('fcfe0011'),
    hex('fcfe0fff0000'),
    hex('fcfe0010'),
    hex('fcfeffff'),
  ],
  witness: '0015-02-cap-end-time-up',
  // fe for ff in the header is another direction, which no sum covers: see `the header turned` below
  uncheckedPositions: () => [1],
}

function hex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'))
}

corpusSuite(
  bkv,
  vectors.filter(({ name }) => !APART.includes(name)),
  adapter,
)

function vectorOf(name: string): Vector {
  const vector = vectors.find((candidate) => candidate.name === name)
  assert.ok(vector, name)
  return vector
}

function headOf(bytes: Uint8Array): FrameHead {
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  bkv.readHead(bytes, 0, bytes.length, head)
  return head
}

function assertFrame(bytes: Uint8Array): void {
  const mark: UnitMark = { kind: UNIT.needMore, from: -1, to: -1, reason: 'bad_header' }
  bkv.findFrame(bytes, 0, bytes.length, bkv.frameBytesMax, mark)
  assert.deepEqual([mark.kind, mark.from, mark.to], [UNIT.frame, 0, bytes.length])
}

test('the corpus is whole, and every vector is judged once', () => {
  assert.equal(vectors.length, 89)
  for (const name of APART) assertFrame(hex(vectorOf(name).hex))
})

for (const name of UNKNOWN) {
  test(`${name} is a good frame of an unknown command, kept raw`, () => {
    const vector = vectorOf(name)
    const head = headOf(hex(vector.hex))
    const { code, sub } = codesOf(vector)
    assert.equal(head.commandKey, bkv.commandKey(code, sub))
    assert.equal(bkv.uplinks.get(head.commandKey), undefined)
    assert.equal(vector.hex.slice(2 * head.dataFrom, 2 * head.dataTo), vector.fields['data_hex'])
  })
}

test('an unknown sub-command of 1000 can still be shown entry by entry', () => {
  const bytes = hex(vectorOf(UNKNOWN[1]!).hex)
  const { dataFrom, dataTo } = headOf(bytes)
  assert.deepEqual(decodePayload(bytes, dataFrom, dataTo), {
    bkv: {
      subHex: '100c',
      bkvSeqHex: '0000000000000000',
      bkvGatewayId: '82241218000382',
      socket: 1,
      unknownKeys: { '77': '00' },
    },
  })
})

test(`${NOT_CANONICAL} is read, and written with outer command 0015`, () => {
  const vector = vectorOf(NOT_CANONICAL)
  const bytes = hex(vector.hex)
  const head = headOf(bytes)
  const command = bkv.downlinks.get(head.commandKey)
  assert.equal(command?.name, 'startByPower')
  const fields = command.decode(bytes, head.dataFrom, head.dataTo)
  assert.ok(!(fields instanceof PayloadError))
  const tiers = [
    [2000, 25, 60],
    [4000, 50, 60],
    [6000, 100, 60],
    [8000, 150, 60],
    [20_000, 500, 120],
  ].map(([powerDw, priceFen, minutesMin]) => ({ powerDw, priceFen, minutesMin }))
  const expected = { socket: 1, port: 0, on: 1, amountFen: 100, tiers, subHex: '17', innerLength: 36 }
  assert.deepEqual(fields, expected)
  const data = command.encode(fields)
  assert.deepEqual(data, bytes.slice(head.dataFrom, head.dataTo), 'the data is the same')
  const again = bkv.encodeFrame('downlink', command, head.deviceNo, head.messageId, data)
  assert.equal(headOf(again).commandKey, bkv.commandKey(0x0015, 0x17))
})

test(`${OVERRUN} is well framed, reported and not decoded`, () => {
  const bytes = hex(vectorOf(OVERRUN).hex)
  const head = headOf(bytes)
  const decoded = decodePayload(bytes, head.dataFrom, head.dataTo)
  assert.ok(decoded instanceof PayloadError)
  assert.equal(decoded.payloadError, 'bad_entry')
})

test('the header turned: the frame is found, and its head says that it is not from a gateway', () => {
  for (const { hex: text, valid, direction } of vectors) {
    if (!valid) continue
    const bytes = hex(text)
    assert.equal(headOf(bytes).isDownlink, direction === 'down')
    bytes[1]! ^= 1
    assertFrame(bytes)
    assert.equal(headOf(bytes).isDownlink, direction === 'up')
  }
})

test('the guide frame with a length too long: waits, and the next frame is found once the wait is given up', () => {
  const good = vectorOf('0000-doc-heartbeat').hex
  const frames: string[] = []
  const reasons: NoiseReason[] = []
  const visitor = {
    unit(kind: number, bytes: Uint8Array, from: number, to: number, reason: NoiseReason) {
      if (kind === UNIT.frame) frames.push(Buffer.from(bytes.subarray(from, to)).toString('hex'))
      else reasons.push(reason)
    },
  }
  const assembler = new FrameAssembler(bkv, true)
  assembler.push(hex(vectorOf('bad-doc-1007-length').hex), 0, visitor)
  assert.deepEqual([frames, reasons], [[], []])
  assembler.giveUpPending(15_000, visitor)
  assembler.push(hex(good), 15_000, visitor)
  assert.deepEqual([frames, reasons[0]], [[good], 'incomplete'])
})

test('the corpus holds a frame of every command, but for those nobody has shown', () => {
  const seen = { up: new Set<unknown>(), down: new Set<unknown>() }
  for (const vector of vectors.filter(({ valid }) => valid)) {
    const table = vector.direction === 'up' ? bkv.uplinks : bkv.downlinks
    seen[vector.direction].add(table.get(headOf(hex(vector.hex)).commandKey))
  }
  const missing = [
    ...[...bkv.uplinkByName.values()].filter((command) => !seen.up.has(command)),
    ...[...bkv.downlinkByName.values()].filter((command) => !seen.down.has(command)),
  ]
  assert.deepEqual(
    missing.map(({ name }) => name),
    ['otaReport', 'feeControlResult'],
  )
})
