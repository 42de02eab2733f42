/** Claim: only the thread that gives way does; its process and the other threads keep their priority. Tried on Linux. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { getPriority } from 'node:os'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { giveWay } from './priority.ts'

const skip = process.platform === 'linux' ? false : 'threads have no priority of their own here'

test('a thread gives way, its process does not', { skip }, async () => {
  const before = getPriority()
  const source = `
    import { giveWay } from ${JSON.stringify(new URL('./priority.ts', import.meta.url).href)}
    import { getPriority } from 'node:os'
    import { parentPort } from 'node:worker_threads'
    giveWay()
    parentPort.postMessage(getPriority())`
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`))
  const [inWorker] = (await once(worker, 'message')) as [number]
  assert.ok(inWorker >= 5, `${inWorker}`)
  assert.equal(getPriority(), before)
  assert.equal(getPriority(process.pid), before)
  await worker.terminate()
})

test('a child gives way; one that has ended is no error', { skip }, async () => {
  const child = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60_000)'])
  giveWay(child.pid!)
  assert.ok(getPriority(child.pid!) >= 5)
  child.kill('SIGKILL')
  await once(child, 'exit')
  giveWay(child.pid!)
})
