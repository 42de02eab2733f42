/**
 * Claim: every suite does the work it names (each case checks its own outcome and throws otherwise), and both yardstick
 * servers answer right, cut and glued bytes included: a yardstick that cheats measures nothing. Each case runs twice,
 * without a clock; the servers are real processes, the C one only where a compiler is.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { type TestContext, test } from 'node:test'
import { dny, hexOf, iccidOf } from '../loadtest/device-ap3000.ts'
import { AP3000_HEARTBEAT, DEVICE_NO } from './frames.ts'
import { median } from './machine.ts'
import type { Suite } from './suite.ts'

const HERE = import.meta.dirname

for (const file of readdirSync(join(HERE, 'suites')).sort()) {
  test(`suites/${file}: every case does its work, the baseline is one of them`, async () => {
    const { suite } = (await import(`./suites/${file}`)) as { suite: Suite }
    assert.ok(suite.cases.some(({ name }) => name === suite.baseline))
    for (const one of suite.cases) {
      one.run()
      one.run()
    }
  })
}

test('the median of an even count lies between the middle two', () => {
  assert.equal(median([5, 1, 3]), 3)
  assert.equal(median([4, 1, 3, 2]), 2.5)
})

test('plain net server', async (t) => {
  await askServer(
    t,
    spawn(process.execPath, [join(HERE, 'plain-net-server.ts')], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
})

const hasCompiler = spawnSync('cc', ['--version']).error === undefined

test('C epoll server', { skip: hasCompiler ? false : 'no C compiler' }, async (t) => {
  const build = mkdtempSync(join(tmpdir(), 'pilegate-yardstick-'))
  t.after(() => rmSync(build, { recursive: true }))
  const program = join(build, 'epoll-server')
  const compiled = spawnSync(
    'cc',
    ['-O2', '-Wall', '-Wextra', '-Werror', '-o', program, join(HERE, 'epoll-server.c')],
    {
      encoding: 'utf8',
    },
  )
  assert.equal(compiled.status, 0, compiled.stderr)
  await askServer(t, spawn(program, ['0'], { stdio: ['ignore', 'pipe', 'inherit'] }))
})

test('the load client compiles', { skip: hasCompiler ? false : 'no C compiler' }, () => {
  const compiled = spawnSync('cc', ['-fsyntax-only', '-Wall', '-Wextra', '-Werror', join(HERE, 'load-client.c')])
  assert.equal(compiled.status, 0, String(compiled.stderr))
})

/** ICCID, noise, a bad sum and two heartbeats, whole and cut at every place: exactly two right replies each time. */
async function askServer(t: TestContext, server: ChildProcess): Promise<void> {
  t.after(() => server.kill('SIGKILL'))
  const [line] = (await once(createInterface({ input: server.stdout as NodeJS.ReadableStream }), 'line')) as [string]
  const port = Number(/^listening (\d+)$/.exec(line)?.[1])
  const damaged = dny(DEVICE_NO, 1, 0x21, Uint8Array.of(1, 2, 3))
  damaged[12] = 9
  const second = dny(DEVICE_NO, 8, 0x21, Uint8Array.of(1, 2, 1, 0, 0, 0))
  const stream = Buffer.concat([Buffer.from(iccidOf(1)), Buffer.from('link'), damaged, AP3000_HEARTBEAT, second])
  const expected = hexOf(dny(DEVICE_NO, 7, 0x21, Uint8Array.of(0))) + hexOf(dny(DEVICE_NO, 8, 0x21, Uint8Array.of(0)))
  for (let cut = 0; cut < stream.length; cut += 3) {
    const socket = net.connect({ port, host: '127.0.0.1', noDelay: true })
    await once(socket, 'connect')
    const replied = new Promise<string>((resolve, reject) => {
      let hex = ''
      socket.on('error', reject)
      socket.on('close', () => reject(new Error(`closed after ${hex}`)))
      socket.on('data', (chunk) => {
        hex += chunk.toString('hex')
        if (hex.length >= expected.length) resolve(hex)
      })
    })
    socket.write(stream.subarray(0, cut))
    await new Promise((resolve) => setTimeout(resolve, 2))
    socket.write(stream.subarray(cut))
    assert.equal(await replied, expected, `cut at ${cut}`)
    socket.removeAllListeners('close')
    socket.destroy()
  }
}
