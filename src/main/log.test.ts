/**
 * Claim: lines have the stable fields, secrets are masked, and closeLog loses nothing although several threads write
 * into one pipe at once. Tried with real threads in a child process whose output is read through a pipe.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { promisify } from 'node:util'
import { closeLog, createLog } from './log.ts'

const folder = mkdtempSync(join(tmpdir(), 'pilegate-log-'))
after(() => rmSync(folder, { recursive: true, force: true }))

const names = { serviceName: 'pilegate', env: 'test', thread: 'main' }

test('fields, redaction, errors, and silence below the level', async () => {
  const to = join(folder, 'a.log')
  const log = createLog({ ...names, level: 'info', to })
  log.debug({ event: 'x.hidden' })
  log.info({ event: 'x.said', request_id: 'r1', databaseUrl: 'postgres://u:hunter2@h', config: { apiKeys: 'hunter2' } })
  log.error({ event: 'x.failed', err: new Error('no'), msg: 'it failed' })
  await closeLog()
  const lines = readFileSync(to, 'utf8').trim().split('\n')
  assert.equal(lines.length, 2)
  assert.doesNotMatch(lines[0]!, /hunter2/)
  const first = JSON.parse(lines[0]!) as Record<string, unknown>
  assert.match(String(first['ts']), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
  assert.deepEqual(
    [first['level'], first['service'], first['env'], first['thread'], first['event'], first['request_id']],
    ['info', 'pilegate', 'test', 'main', 'x.said', 'r1'],
  )
  const second = JSON.parse(lines[1]!) as { msg: string; err: { message: string; stack: string } }
  assert.equal(second.msg, 'it failed')
  assert.match(second.err.stack, /log\.test\.ts/)
})

test('a line said after closeLog does not throw', async () => {
  const log = createLog({ ...names, level: 'info', to: join(folder, 'b.log') })
  await closeLog()
  log.info({ event: 'x.late' })
})

test('four threads, one pipe: every line arrives, whole', async () => {
  const LINES = 3_000
  const program = `
    import { Worker, isMainThread, workerData } from 'node:worker_threads'
    const { createLog, closeLog } = await import(${JSON.stringify(new URL('./log.ts', import.meta.url).href)})
    const say = async (thread) => {
      const log = createLog({ level: 'info', serviceName: 's', env: 'e', thread })
      for (let i = 0; i < ${LINES}; i++) {
        log.info({ event: 'x.said', i, filler: 'y'.repeat(i % 300) })
        if (i % 500 === 0) await new Promise((resolve) => setImmediate(resolve))
      }
      await closeLog()
    }
    if (isMainThread) {
      const workers = [1, 2, 3].map((n) => new Worker(new URL(import.meta.url), { workerData: 'w' + n, stdout: false }))
      await Promise.all([say('main'), ...workers.map((worker) => new Promise((resolve) => worker.once('exit', resolve)))])
      process.exit(0)
    } else await say(workerData)`
  const path = join(folder, 'program.mjs')
  const { writeFileSync } = await import('node:fs')
  writeFileSync(path, program)
  const { stdout } = await promisify(execFile)(process.execPath, [path], { maxBuffer: 64 * 1024 * 1024 })
  const seen = new Map<string, number>()
  for (const line of stdout.trim().split('\n')) {
    const { thread, i } = JSON.parse(line) as { thread: string; i: number }
    // each thread's lines come in order
    assert.equal(i, seen.get(thread) ?? 0)
    seen.set(thread, i + 1)
  }
  assert.deepEqual([...seen].sort(), [
    ['main', LINES],
    ['w1', LINES],
    ['w2', LINES],
    ['w3', LINES],
  ])
})
