/**
 * Claims: a gateway that starts says where it is, one that cannot says why. SIGTERM ends the gateway within 15 s, with code 0 when everything was flushed and another when not; a settlement
 * in flight is then either acked and stored, or not acked; the database goes last. So it is through `npm start`, and
 * also while the database stands still.
 *
 * Tried with devices that settle without pause while the signal comes, and with the server's processes stopped
 * (SIGSTOP). What was acked is compared with what is found after the next start.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { closeClients, DeviceClient, dny, le, settlementData } from '../testing/device-client.ts'
import { dataDirectory, eventually, GatewayProcess, isRunning } from '../testing/gateway-process.ts'

const STOP_MS_MAX = 15_000
const started: GatewayProcess[] = []

async function start(options: Parameters<typeof GatewayProcess.start>[0] = {}): Promise<GatewayProcess> {
  const gateway = await GatewayProcess.start(options)
  started.push(gateway)
  return gateway
}
after(async () => {
  closeClients()
  // several starts share a directory: nobody may live when it goes
  for (const gateway of started) await gateway.kill()
  for (const gateway of started) await gateway.remove()
})

/** Settles one order after the other on one connection, each when the one before is acked; ends with the connection. */
async function settleWithoutPause(port: number, physId: number, acked: Set<string>): Promise<number> {
  const client = await DeviceClient.connect(port)
  let sent = 0
  try {
    for (;;) {
      const orderHex = Buffer.from(`${physId.toString(16)}-${String(sent).padStart(8, '0')}`).toString('hex')
      sent++
      await client.exchange(dny(physId, sent & 0xffff, 0x03, settlementData({ orderHex })), 20_000)
      acked.add(orderHex)
    }
  } catch {
    return sent
  }
}

async function stored(gateway: GatewayProcess): Promise<Set<string>> {
  const rows = await gateway.sql`select wire_hex from settlements`
  return new Set(rows.map((row) => String(row['wire_hex'])))
}

test('SIGTERM in a stream of settlements: exit 0, what was acked is stored, the database is gone', async () => {
  const dataDir = dataDirectory()
  const gateway = await start({ dataDir })
  const acked = new Set<string>()
  const streams = Array.from({ length: 10 }, (_, index) =>
    settleWithoutPause(gateway.tcpPort, 0x04100000 + index, acked),
  )
  // until the stream flows, however busy the machine is
  await eventually(
    'acks',
    async () => acked.size,
    (count) => count > 50,
    30_000,
  )
  const postgresPid = gateway.postgresPid!
  const startedMonoMs = performance.now()
  assert.equal(await gateway.stop(), 0, gateway.stderr)
  assert.ok(performance.now() - startedMonoMs < STOP_MS_MAX)
  const sent = (await Promise.all(streams)).reduce((sum, count) => sum + count, 0)
  assert.equal(isRunning(postgresPid), false, 'the database is gone')
  const events = gateway.log.map(({ event }) => event)
  assert.deepEqual(events.slice(-2), ['database.stopped', 'gateway.stopped'], 'the database last')

  const again = await start({ dataDir })
  const found = await stored(again)
  const missing = [...acked].filter((orderHex) => !found.has(orderHex))
  assert.deepEqual(missing, [], `of ${acked.size} acked`)
  // exit 0 means that everything heard was flushed; one order per device may have been on its way to us
  assert.ok(found.size >= acked.size && found.size <= sent, `${acked.size} acked, ${found.size} stored, ${sent} sent`)
  const [open] = await again.sql`select count(*)::int as count from sessions where closed_at is null`
  assert.equal(open!['count'], 0, 'sessions are closed')
  const [boot] = await again.sql`select stopped_at from gateway_boots order by generation limit 1`
  assert.ok(boot!['stopped_at'] !== null, 'the end is noted')
  assert.equal(await again.stop(), 0)
})

test('SIGTERM to npm, whose child the gateway is: exit 0, nothing left', async () => {
  const gateway = await start({ via: 'npm' })
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(dny(0x04100100, 1, 0x21, `${le(2_200, 2)}0200000000`))
  const postgresPid = gateway.postgresPid!
  const startedMonoMs = performance.now()
  const code = await gateway.stop()
  assert.ok(performance.now() - startedMonoMs < STOP_MS_MAX)
  assert.equal(code, 0, gateway.stderr)
  await client.closedWithin(1_000)
  await eventually(
    'the database is gone',
    () => isRunning(postgresPid),
    (isThere) => !isThere,
    STOP_MS_MAX,
  )
  const events = gateway.log.map(({ event }) => event)
  assert.ok(events.includes('gateway.stopped'), events.join(' '))
})

test('SIGINT twice is one stop', async () => {
  const gateway = await start()
  gateway.child.kill('SIGINT')
  await sleep(50)
  gateway.child.kill('SIGINT')
  assert.equal(await gateway.exit(STOP_MS_MAX), 0, gateway.stderr)
})

test('SIGTERM while the database stands still: over within 15 s, the code says what was not flushed, nothing was acked', async () => {
  const dataDir = dataDirectory()
  const gateway = await start({ dataDir })
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(dny(0x04100200, 1, 0x21, `${le(2_200, 2)}0200000000`))
  const postgresPid = gateway.postgresPid!
  const thaw = gateway.freezePostgres()
  try {
    const orderHex = Buffer.from('NEVER-ACKED-HERE').toString('hex')
    client.send(dny(0x04100200, 2, 0x03, settlementData({ orderHex })))
    assert.deepEqual(await client.silence(500), [])
    const startedMonoMs = performance.now()
    const code = await gateway.stop()
    const tookMs = performance.now() - startedMonoMs
    assert.ok(tookMs < STOP_MS_MAX, `${tookMs} ms`)
    assert.notEqual(code, 0)
    assert.match(gateway.stderr, /not flushed/)
    assert.deepEqual(
      client.frames.filter(({ command }) => command === 0x03),
      [],
      'not acked',
    )
  } finally {
    thaw()
  }
  await eventually(
    'the database is gone',
    () => isRunning(postgresPid),
    (isThere) => !isThere,
    STOP_MS_MAX,
  )

  // what was not acked comes again, and is stored then
  const again = await start({ dataDir })
  const client2 = await DeviceClient.connect(again.tcpPort)
  const orderHex = Buffer.from('NEVER-ACKED-HERE').toString('hex')
  const data = dny(0x04100200, 3, 0x03, settlementData({ orderHex }))
  assert.equal((await client2.exchange(data)).hex, dny(0x04100200, 3, 0x03, '00'))
  assert.equal((await stored(again)).size, 1)
})

test('a database that cannot be reached: no start, the key is named, its secret is not', async () => {
  const env = { DATABASE_URL: 'postgres://pile:hush-hush@127.0.0.1:1/gate', TCP_PORT: '0', HTTP_PORT: '0' }
  const child = spawn(process.execPath, ['src/main/start.ts'], {
    env: { ...process.env, ...env, DATA_DIR: dataDirectory() },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const said = Promise.all([text(child.stdout), text(child.stderr)])
  const [code] = (await once(child, 'exit')) as [number]
  const words = (await said).join('')
  assert.equal(code, 1, words)
  assert.match(words, /DATABASE_URL: 127\.0\.0\.1:1\/gate cannot be used: .*ECONNREFUSED/)
  assert.doesNotMatch(words, /hush-hush/)
})

test('the first line says where everything is, even where nothing else is logged', async () => {
  const gateway = await start({ env: { LOG_LEVEL: 'silent' } })
  assert.equal(gateway.started['event'], 'gateway.started')
  assert.ok(gateway.tcpPort > 0 && gateway.httpPort > 0)
  assert.equal(await gateway.stop(), 0, gateway.stderr)
  assert.equal(gateway.lines.length, 1, gateway.lines.join('\n'))
})
