/**
 * Claimed: a writer answers every task with a value, never with a rejection; what it spooled it drains again, record by
 * record, once into the database however often it is asked; a file cut at any byte or changed at any byte loses no whole
 * record and invents none. Tried on files in a temporary directory and a real PostgreSQL, once through a piscina pool
 * with rows in shared memory as main sends them.
 */
import assert from 'node:assert/strict'
import { appendFileSync, copyFileSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { Piscina } from 'piscina'
import { openTestDatabase, type TestDatabase } from '../../src/testing/database.ts'
import { temporaryDirectory } from '../../src/testing/temporary-directory.ts'
import { commandLog, settlement, spanOf } from './row-samples.ts'
import { appendRecord, readRecord } from './spool-file.ts'
import type { WriterAnswer, WriterTask } from './task.ts'
import { createWriter, type Writer } from './writer.ts'

let database: TestDatabase
let writer: Writer
const dir = temporaryDirectory()
before(async () => {
  database = await openTestDatabase()
  writer = createWriter({ databaseUrl: database.url })
})
after(async () => {
  await writer.close()
  await database.close()
  rmSync(dir, { recursive: true, force: true })
})

/** Rows somewhere in the middle of shared memory, as in an outbox. */
function rangeOf(bytes: Uint8Array) {
  const memory = new SharedArrayBuffer(bytes.length + 64)
  new Uint8Array(memory, 48).set(bytes)
  return { memory, byteOffset: 32, fromIndex: 16, toIndex: 16 + bytes.length }
}

const recordOf = (n: number) => spanOf(commandLog({ seq: n * 10 }), commandLog({ seq: n * 10 + 1 }))

async function countLog(): Promise<number> {
  return (await database.sql`select from cmd_log`).count
}

test('insert answers through a piscina pool with several threads', async () => {
  const pool = new Piscina<WriterTask, WriterAnswer>({
    filename: new URL('./index.ts', import.meta.url).href,
    minThreads: 2,
    maxThreads: 2,
    idleTimeout: 2 ** 31 - 1,
    atomics: 'disabled',
    workerData: { databaseUrl: database.url },
  })
  try {
    const rows = Array.from({ length: 8 }, (_, n) => settlement({ orderKey: `p${n}`, orderNo: `P${n}` }))
    const answers = await Promise.all([...rows, ...rows].map((row) => pool.run({ kind: 'insert', ...rangeOf(row) })))
    let stored = 0
    for (const answer of answers) {
      assert.ok(answer.ok && answer.kind === 'inserted')
      stored += answer.result.settlements.stored
      assert.equal(answer.result.settlements.stored + answer.result.settlements.repeated, 1)
    }
    assert.equal(stored, 8)
  } finally {
    await pool.destroy()
  }
})

test('what was spooled is drained record by record, to the end, and once more without effect', async () => {
  await database.sql`truncate cmd_log`
  const path = join(dir, 'whole')
  let to = 0
  for (let n = 0; n < 3; n++) {
    const answer = await writer.run({ kind: 'spool', path, ...rangeOf(recordOf(n)) })
    assert.deepEqual(answer, { ok: true, kind: 'spooled', from: to, to: to + 8 + recordOf(n).length })
    to += 8 + recordOf(n).length
  }
  assert.equal(statSync(path).size, to)
  for (let pass = 0; pass < 2; pass++) {
    let from = 0
    for (let n = 0; n < 3; n++) {
      const answer = await writer.run({ kind: 'drain', path, from })
      assert.ok(answer.ok && answer.kind === 'drained' && answer.outcome === 'inserted')
      assert.equal(answer.result!.tables['cmd_log']!.inserted, pass === 0 ? 2 : 0)
      from = answer.next
    }
    assert.deepEqual(await writer.run({ kind: 'drain', path, from }), {
      ok: true,
      kind: 'drained',
      outcome: 'end',
      next: to,
      result: null,
    })
  }
  assert.equal(await countLog(), 6)
})

test('a spool file cut at any byte gives its whole records, then torn or end, never half a record', () => {
  const path = join(dir, 'cut')
  const records = [recordOf(1), recordOf(2)]
  const ends = records.map((bytes) => appendRecord(path, bytes).to)
  for (let cut = ends[1]! - 1; cut >= 0; cut--) {
    truncateSync(path, cut)
    let from = 0
    let whole = 0
    let record = readRecord(path, from)
    while (record.state === 'whole') {
      assert.deepEqual(record.bytes, records[whole++])
      from = record.next
      record = readRecord(path, from)
    }
    assert.equal(whole, cut >= ends[0]! ? 1 : 0)
    assert.equal(record.state, cut === from ? 'end' : 'torn')
  }
})

test('a changed byte anywhere is never taken for a record; zeros behind the end are torn', () => {
  const path = join(dir, 'flip')
  const { to } = appendRecord(path, recordOf(1))
  const good = readFileSync(path)
  for (let at = 0; at < to; at++) {
    const bad = Buffer.from(good)
    bad[at]! ^= 0x10
    writeFileSync(path, bad)
    assert.notEqual(readRecord(path, 0).state, 'whole', `byte ${at}`)
  }
  writeFileSync(path, good)
  appendFileSync(path, Buffer.alloc(4096))
  assert.equal(readRecord(path, to).state, 'torn')
})

test('a corrupt record goes to quarantine, the next one is still drained', async () => {
  await database.sql`truncate cmd_log, quarantine`
  const path = join(dir, 'corrupt')
  const first = appendRecord(path, recordOf(1))
  appendRecord(path, recordOf(2))
  const file = readFileSync(path)
  file[first.to - 3]! ^= 1
  writeFileSync(path, file)
  const corrupt = await writer.run({ kind: 'drain', path, from: 0 })
  assert.deepEqual(corrupt, { ok: true, kind: 'drained', outcome: 'corrupt', next: first.to, result: null })
  const next = await writer.run({ kind: 'drain', path, from: first.to })
  assert.ok(next.ok && next.kind === 'drained' && next.outcome === 'inserted')
  assert.equal(await countLog(), 2)
  const kept = await database.sql`select reason, bytes from quarantine`
  assert.equal(kept[0]!['reason'], 'spool_corrupt')
  assert.deepEqual(kept[0]!['bytes'], file.subarray(8, first.to))
})

test('a failed append leaves the file as it was', async () => {
  const path = join(dir, 'bounded')
  appendRecord(path, recordOf(1))
  const size = statSync(path).size
  const empty = await writer.run({ kind: 'spool', path, ...rangeOf(new Uint8Array(0)) })
  assert.equal(empty.ok, false)
  assert.equal(statSync(path).size, size)
  const missing = await writer.run({ kind: 'spool', path: join(dir, 'no', 'such'), ...rangeOf(recordOf(1)) })
  assert.deepEqual({ ...missing, message: '' }, { ok: false, code: 'ENOENT', retryable: true, message: '' })
  // /dev/full takes nothing: the answer is the system's, not a record.
  const full = await writer.run({ kind: 'spool', path: '/dev/full', ...rangeOf(recordOf(1)) })
  assert.deepEqual({ ...full, message: '' }, { ok: false, code: 'ENOSPC', retryable: true, message: '' })
})

test('a database that is away or silent is an answer within the deadline, and the writer works again afterwards', async () => {
  const lost = createWriter({ databaseUrl: 'postgres://x:y@127.0.0.1:1/z' })
  const answer = await lost.run({ kind: 'insert', ...rangeOf(settlement()) })
  assert.deepEqual({ ...answer, message: '' }, { ok: false, code: 'ECONNREFUSED', retryable: true, message: '' })
  const path = join(dir, 'away')
  appendRecord(path, recordOf(1))
  copyFileSync(path, `${path}.copy`)
  const drain = await lost.run({ kind: 'drain', path, from: 0 })
  assert.ok(!drain.ok && drain.retryable)
  assert.deepEqual(readFileSync(path), readFileSync(`${path}.copy`))
  await lost.close()

  // Stopped, not dead: the connection stays open and nothing comes.
  const patient = createWriter({ databaseUrl: database.url, taskMsMax: 400 })
  assert.equal((await patient.run({ kind: 'insert', ...rangeOf(settlement({ orderKey: 'early' })) })).ok, true)
  const [{ pid }] = await database.sql<[{ pid: number }]>`
    select pid from pg_stat_activity where datname = current_database() and application_name = 'pilegate writer'
    order by backend_start desc limit 1`
  process.kill(pid, 'SIGSTOP')
  try {
    const startedMonoMs = performance.now()
    const late = await patient.run({ kind: 'insert', ...rangeOf(settlement({ orderKey: 'late' })) })
    assert.ok(!late.ok && late.retryable && late.code === 'GW_WRITER_TIMEOUT')
    assert.ok(performance.now() - startedMonoMs < 2_000)
    // On a connection of its own, while the old one still sleeps.
    const again = await patient.run({ kind: 'insert', ...rangeOf(settlement({ orderKey: 'late' })) })
    assert.ok(again.ok && again.kind === 'inserted')
    assert.equal(again.result.settlements.stored, 1)
  } finally {
    process.kill(pid, 'SIGCONT')
    await patient.close()
  }
})
