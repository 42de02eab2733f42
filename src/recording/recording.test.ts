/**
 * Claim: what is recorded is found again by device and time, byte for byte, in order, also while the segment grows and
 * after its last record was torn by a crash; identity fields are masked at any depth. Tried on real files.
 */
import assert from 'node:assert/strict'
import {
  appendFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { Random } from '../testing/random.ts'
import { explain, maskIdentity } from './explain.ts'
import { readRecorded } from './reader.ts'
import { Recorder } from './recorder.ts'
import { FLAG } from './segment-layout.ts'

const directory = mkdtempSync(join(tmpdir(), 'pilegate-frames-'))
after(() => rmSync(directory, { recursive: true }))
const START_MS = Date.UTC(2026, 10, 21)

test('found again by device and time, over several flushes', async () => {
  const random = new Random(1)
  const recorder = new Recorder({
    directory,
    shard: 0,
    bytesMax: 2 ** 30,
    onError: (error) => assert.fail(String(error)),
  })
  const expected = new Map<number, { atMs: number; hex: string; isUplink: boolean }[]>()
  for (let count = 0; count < 20_000; count++) {
    const device = random.below(50)
    const atMs = START_MS + count * 10
    const bytes = random.bytes(14 + random.below(60))
    const isUplink = random.chance(0.5)
    recorder.record(device, atMs, isUplink ? FLAG.uplink : 0, bytes, 0, bytes.length)
    const list = expected.get(device) ?? []
    expected.set(device, list)
    list.push({ atMs, hex: Buffer.from(bytes).toString('hex'), isUplink })
    if (random.chance(0.001)) recorder.flush(atMs)
  }
  recorder.flush(START_MS + 200_000)
  for (const [device, all] of expected) {
    const from = START_MS + 30_000
    const to = START_MS + 150_000
    const found = await readRecorded(directory, device, from, to, 100_000)
    assert.deepEqual(
      found.map(({ atMs, bytes, isUplink }) => ({ atMs, hex: bytes.toString('hex'), isUplink })),
      all.filter(({ atMs }) => atMs >= from && atMs <= to),
    )
  }
  recorder.close(START_MS + 200_000)
})

test('a torn record is left out, the others stay', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'pilegate-torn-'))
  const recorder = new Recorder({
    directory: folder,
    shard: 3,
    bytesMax: 2 ** 30,
    onError: (error) => assert.fail(String(error)),
  })
  for (let count = 0; count < 10; count++)
    recorder.record(7, START_MS + count, FLAG.uplink, Buffer.alloc(40, count), 0, 40)
  recorder.close(START_MS + 20)
  const segment = join(folder, readdirSync(folder).find((name) => name.endsWith('.seg'))!)
  truncateSync(segment, statSync(segment).size - 5)
  appendFileSync(segment.replace(/seg$/, 'idx'), Buffer.alloc(11))
  const found = await readRecorded(folder, 7, 0, START_MS + 100, 100)
  assert.equal(found.length, 9)
  assert.deepEqual(await readRecorded(folder, 7, 0, START_MS + 100, 3), found.slice(0, 3))
  assert.deepEqual(await readRecorded(folder, 7, 0, START_MS + 100, 100, found[5]), found.slice(6))
  // a damaged one does not count towards the limit
  const bytes = readFileSync(segment)
  bytes[72 * 4 + 40] = 0xff
  writeFileSync(segment, bytes)
  const intact = found.filter((_, index) => index !== 4)
  assert.deepEqual(await readRecorded(folder, 7, 0, START_MS + 100, 6), intact.slice(0, 6))
  rmSync(folder, { recursive: true })
})

test('frames are explained, identities masked', () => {
  const heartbeat = Buffer.from('444e5910003b37ab0401002198080200000905ee02', 'hex')
  const told = explain(ap3000, heartbeat, true)
  assert.equal(told.command, 'heartbeat')
  assert.equal(told.messageId, 1)
  assert.equal(explain(ap3000, heartbeat.subarray(1), true).command, 'noise')
  assert.deepEqual(maskIdentity({ a: [{ simIdAscii: '89860413161892009275' }], cardIdHex: '7a8d05dd', n: 1 }), {
    a: [{ simIdAscii: '****************9275' }],
    cardIdHex: '****05dd',
    n: 1,
  })
})
