/**
 * Claimed: a side thread that dies is replaced as long as nobody stops it; wakes reach it together, not one by one; a
 * thread that does not answer a stop is ended. Tried with threads of a few lines.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../testing/gateway-process.ts'
import type { Log } from './log.ts'
import { SideThread } from './side-thread.ts'

function sideThread(script: string) {
  /** 0: starts; 1: wakes heard. */
  const seen = new Int32Array(new SharedArrayBuffer(8))
  const events: unknown[] = []
  const log = { error: (line: { event: string }) => events.push(line.event) } as unknown as Log
  const head = `import { parentPort, workerData as seen } from 'node:worker_threads'
    const starts = Atomics.add(seen, 0, 1) + 1
    `
  const thread = new SideThread({
    name: 'side',
    entry: new URL(`data:text/javascript,${encodeURIComponent(head + script)}`),
    data: seen,
    log,
    failed: { event: 'side.failed', msg: '' },
    replaced: { event: 'side.replaced', msg: '' },
  })
  return { thread, seen, events }
}

test('it dies by an error, and by an end; the third stays and hears', async () => {
  const { thread, seen, events } = sideThread(`
    if (starts === 1) throw new Error('dies')
    if (starts === 2) process.exit(0)
    parentPort.on('message', ({ kind }) => {
      if (kind === 'wake') return Atomics.add(seen, 1, 1)
      parentPort.postMessage({ kind: 'stopped' })
      parentPort.close()
    })`)
  thread.start()
  await eventually(
    'the third thread',
    () => seen[0],
    (starts) => starts === 3,
    20_000,
  )
  assert.deepEqual(events, ['side.failed', 'side.replaced', 'side.replaced'])
  await eventually(
    'a wake',
    () => {
      for (let n = 0; n < 100; n++) thread.wake()
      return seen[1]!
    },
    (wakes) => wakes >= 1,
    20_000,
  )
  assert.ok(seen[1]! < 100)
  await thread.stop(1_000)
  thread.wake()
  assert.equal(seen[0], 3)
})

test('one that does not answer is ended', async () => {
  const { thread, seen, events } = sideThread(`parentPort.on('message', () => {})`)
  thread.start()
  await eventually(
    'the thread',
    () => seen[0],
    (starts) => starts === 1,
    20_000,
  )
  await thread.stop(10)
  assert.deepEqual([seen[0], events], [1, []])
})
