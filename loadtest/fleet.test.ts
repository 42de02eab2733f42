/**
 * Claim: the fleet's summary is what the other end saw, the command line keeps contract section 8, and the run ends by
 * itself. Tried over real sockets against a scripted server in this file that answers with the gateway's codec, silent
 * or rude on demand. Rates are small: this is about counting, not speed.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import { describe, type TestContext, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { DEVICES_MAX, FLEET_DEFAULTS, type FleetOptions, runFleet } from './fleet-run.ts'
import { GOOD_CARD, type Script, ScriptedPeer } from './scripted-server.ts'

interface Server {
  readonly port: number
  readonly peers: ScriptedPeer[]
  readonly sockets: Set<net.Socket>
  seen(name: string): number
}

async function serve(t: TestContext, script: Partial<Script> = {}): Promise<Server> {
  const peers: ScriptedPeer[] = []
  const sockets = new Set<net.Socket>()
  const server = net.createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    const peer = new ScriptedPeer((bytes) => socket.write(bytes), { card: GOOD_CARD, ...script })
    peers.push(peer)
    socket.on('data', (chunk) => peer.push(chunk, Date.now()))
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  return {
    port: (server.address() as net.AddressInfo).port,
    peers,
    sockets,
    seen: (name) => peers.reduce((count, peer) => count + peer.of(name).length, 0),
  }
}

const SMALL: FleetOptions = {
  ...FLEET_DEFAULTS,
  devices: 20,
  rampPerS: 100,
  heartbeatS: 0.5,
  ordersPerS: 20,
  chargeS: 0.4,
  durationS: 3,
  cardShare: 0,
  settleRepeatS: 0.5,
  timeScale: 10,
  graceS: 3,
}

// each test waits for clocks far more than it works: together they take as long as the longest
describe('fleet', { concurrency: true }, () => {
  test('a healthy run: everything is answered, everything settles, the counts agree with the other end', async (t) => {
    const server = await serve(t)
    const { summary, notes } = await runFleet({ ...SMALL, port: server.port })
    assert.deepEqual(notes.firstFailures, [])
    assert.equal(summary.errors, 0)
    assert.equal(summary.devices, 20)
    assert.equal(summary.connected, 20)
    const seen = server.peers.reduce((count, peer) => count + peer.seen.length, 0)
    assert.equal(summary.uplinks_sent, seen)
    assert.ok(summary.settlements_sent >= 30, `${summary.settlements_sent} settlements`)
    assert.equal(summary.settlements_acked, summary.settlements_sent)
    // on a busy machine a record may be sent again before its ack was read
    assert.equal(server.seen('settlement'), summary.settlements_sent + notes.settlementRepeats)
    assert.ok(summary.replies_received >= 20 * 3)
    assert.equal(summary.achieved_per_s, summary.offered_per_s)
    assert.ok((summary.reply_ms_p50 ?? 1e9) <= (summary.reply_ms_p99 ?? 0))
    assert.ok((summary.reply_ms_p99 ?? 1e9) < 10_000, `p99 ${summary.reply_ms_p99} ms on loopback`)
    assert.equal(server.peers.filter((peer) => peer.complaints.length > 0).length, 0)
  })

  test('mixed protocols on a rough wire', async (t) => {
    const server = await serve(t)
    const { summary, notes } = await runFleet({
      ...SMALL,
      port: server.port,
      protocol: 'mix',
      chaos: 'noise',
      cardShare: 0.3,
      seed: 4,
    })
    assert.deepEqual(notes.firstFailures, [])
    assert.equal(summary.errors, 0)
    assert.equal(summary.settlements_acked, summary.settlements_sent)
    assert.ok(server.seen('statusReport') >= 10, 'BKV spoke')
    assert.ok(server.seen('register') >= 10, 'AP3000 spoke')
    assert.ok(
      server.peers.some((peer) => peer.complaints.length > 0),
      'noise arrived',
    )
  })

  test('lost replies make repeats, not errors', async (t) => {
    const server = await serve(t)
    const { summary, notes } = await runFleet({ ...SMALL, port: server.port, replyLoss: 0.3 })
    assert.equal(summary.errors, 0)
    assert.ok(notes.settlementRepeats > 3, `${notes.settlementRepeats} repeats`)
    assert.equal(server.seen('settlement'), summary.settlements_sent + notes.settlementRepeats)
  })

  test('settlements that are never acked are errors, and the grace ends', async (t) => {
    const server = await serve(t, { isSilent: (name) => name === 'settlement' })
    const startMs = performance.now()
    const { summary, notes } = await runFleet({ ...SMALL, port: server.port, durationS: 2, graceS: 1 })
    assert.ok(performance.now() - startMs < 8_000)
    assert.ok(summary.settlements_sent > 0)
    assert.equal(summary.settlements_acked, 0)
    assert.equal(summary.errors, summary.settlements_sent)
    assert.equal(notes.unacked, summary.settlements_sent)
  })

  test('a connection that the server closes is an error, and the device comes back', async (t) => {
    const server = await serve(t)
    let isCut = false
    const run = runFleet({ ...SMALL, port: server.port, devices: 5, ordersPerS: 0, durationS: 8 }, undefined, () => {
      if (isCut || server.sockets.size < 5) return
      isCut = true
      for (const socket of server.sockets) socket.destroy()
    })
    const { summary, notes } = await run
    assert.equal(notes.failures['connection.closed'], 5)
    assert.equal(summary.errors, 5)
    assert.equal(summary.connected, 5)
    assert.equal(server.peers.length, 10)
  })

  test('commands of the server are counted and carried out', async (t) => {
    // a device that waits long for the answer registers again
    const told = new Set<number>()
    const server = await serve(t, {
      onUplink: (uplink, peer) => {
        if (uplink.name !== 'register' || told.has(uplink.deviceNo)) return
        told.add(uplink.deviceNo)
        peer.command(uplink.deviceNo, 'locate', { locateS: 3 })
      },
    })
    const { summary } = await runFleet({ ...SMALL, port: server.port, devices: 3, ordersPerS: 0, durationS: 6 })
    assert.equal(summary.commands_received, 3)
    assert.equal(server.seen('locateResult'), 3)
  })

  const CLI = fileURLToPath(new URL('./fleet.ts', import.meta.url))

  async function cli(
    args: string[],
    interruptWhen?: () => boolean,
  ): Promise<{ code: number; stdout: string; stderr: string }> {
    const child = spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
    const out = { stdout: '', stderr: '' }
    child.stdout.setEncoding('utf8').on('data', (text: string) => (out.stdout += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (out.stderr += text))
    const look = setInterval(() => {
      if (interruptWhen?.() !== true) return
      clearInterval(look)
      child.kill('SIGINT')
    }, 50)
    child.once('close', () => clearInterval(look))
    const [code] = (await once(child, 'close')) as [number]
    return { code, ...out }
  }

  const FIELDS = [
    'devices',
    'connected',
    'uplinks_sent',
    'replies_received',
    'offered_per_s',
    'achieved_per_s',
    'reply_ms_p50',
    'reply_ms_p99',
    'settlements_sent',
    'settlements_acked',
    'commands_received',
    'errors',
  ]

  test('the command line: one JSON object last, exactly the fields of the contract, exit code 0', async (t) => {
    const server = await serve(t)
    const line = `--port ${server.port} --devices 5 --ramp-per-s 50 --heartbeat-s 1 --orders-per-s 2 --charge-s 0.5 --duration-s 2 --seed 7 --reply-loss 0 --time-scale 10 --json`
    const { code, stdout, stderr } = await cli(line.split(' '))
    assert.equal(code, 0, stderr)
    const summary = JSON.parse(stdout.trimEnd().split('\n').at(-1) as string)
    assert.deepEqual(Object.keys(summary), FIELDS)
    assert.equal(summary.connected, 5)
  })

  test('SIGINT ends a run early with its summary', async (t) => {
    const server = await serve(t)
    const startMs = performance.now()
    const { code, stdout } = await cli(
      ['--port', String(server.port), '--devices', '3', '--orders-per-s', '0', '--json'],
      // each is there, and was answered
      () => server.peers.length === 3 && server.peers.every((peer) => peer.seen.length > 0),
    )
    // --duration-s is 60
    assert.ok(performance.now() - startMs < 40_000)
    assert.equal(code, 0)
    assert.equal(JSON.parse(stdout.trim()).connected, 3)
  })

  test('nobody listening: errors and exit code 1; bad options: a sentence and exit code 2', async (t) => {
    const server = await serve(t)
    const dead = await (async () => {
      const other = net.createServer().listen(0, '127.0.0.1')
      await once(other, 'listening')
      const { port } = other.address() as net.AddressInfo
      other.close()
      await once(other, 'close')
      return port
    })()
    const refused = await cli(`--port ${dead} --devices 2 --orders-per-s 0 --duration-s 1 --json`.split(' '))
    assert.equal(refused.code, 1)
    assert.equal(JSON.parse(refused.stdout.trim()).reply_ms_p50, null)
    for (const [args, about] of [
      [['--devices', String(DEVICES_MAX + 1)], /at most \d+ connections/],
      [['--protocol', 'modbus'], /ap3000, bkv or mix/],
      [['--reply-loss', '2'], /0\.\.1/],
      [['--devices', 'many'], /not a number/],
      [['--wheels', '4'], /wheels/],
    ] as const) {
      const bad = await cli(['--port', String(server.port), ...args])
      assert.equal(bad.code, 2)
      assert.match(bad.stderr, about)
    }
  })
})
