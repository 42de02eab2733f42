/**
 * Claims: without its database the gateway goes on answering what needs none (20, 21, 22), says on /readyz what is
 * missing, acks no settlement, and has lost nothing when the database is back: settlements are acked then, history
 * comes out of the spool.
 *
 * Tried by killing the server (-9), by stopping all its processes for five seconds (a server that stands still refuses
 * nothing), and by taking a given database away for several seconds, also over a kill -9 of the gateway.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { TEST_SETTINGS } from '../testing/database.ts'
import { closeClients, DeviceClient, dny, le, settlementData } from '../testing/device-client.ts'
import { dataDirectory, endPostgres, eventually, GatewayProcess } from '../testing/gateway-process.ts'
import { type EmbeddedPostgres, startEmbeddedPostgres } from './database/embedded-postgres.ts'

const started: GatewayProcess[] = []
async function start(options: Parameters<typeof GatewayProcess.start>[0] = {}): Promise<GatewayProcess> {
  const gateway = await GatewayProcess.start(options)
  started.push(gateway)
  return gateway
}
const databases: string[] = []
after(async () => {
  closeClients()
  for (const gateway of started) await gateway.kill()
  for (const gateway of started) await gateway.remove()
  for (const directory of databases) await endPostgres(directory)
})

const heartbeat = (physId: number, messageId: number) => dny(physId, messageId, 0x21, `${le(2_200, 2)}0200000000`)
const orderHexOf = (name: string) => Buffer.from(name.padEnd(16, '-')).toString('hex')
const readiness = (gateway: GatewayProcess) => gateway.ask('GET', '/readyz', { secret: null })

/** What needs no database is answered at once, whatever happens to it. */
async function answersWithoutDatabase(client: DeviceClient, physId: number): Promise<void> {
  const startedMonoMs = performance.now()
  assert.equal((await client.exchange(heartbeat(physId, 901))).hex, dny(physId, 901, 0x21, '00'))
  const registered = await client.exchange(dny(physId, 902, 0x20, `${le(126, 2)}02002100`))
  assert.equal(registered.hex, dny(physId, 902, 0x20, '00'))
  assert.equal((await client.exchange(dny(physId, 903, 0x22))).command, 0x22)
  const tookMs = performance.now() - startedMonoMs
  assert.ok(tookMs < 1_000, `${tookMs} ms`)
}

test('kill -9 of the server: restarted by the gateway, devices notice nothing, every settlement is acked once stored', async () => {
  const gateway = await start()
  const physId = 0x04300001
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(heartbeat(physId, 1))
  for (let round = 0; round < 3; round++) {
    const before = gateway.postgresPid!
    gateway.killPostgres()
    const orderHex = orderHexOf(`KILLED-${round}`)
    // sent into the gap; the gateway keeps the row and acks it by itself when it is stored
    client.send(dny(physId, 100 + round, 0x03, settlementData({ orderHex })))
    await answersWithoutDatabase(client, physId).catch((error: unknown) => {
      // the ack may come first when the server is back sooner than we ask
      if (!client.frames.some(({ messageId }) => messageId === 100 + round)) throw error
    })
    await eventually(
      'acked',
      () => client.frames,
      (frames) => frames.some(({ messageId }) => messageId === 100 + round),
      15_000,
    )
    await client.silence(50)
    const rows = await eventually(
      'stored',
      () => gateway.sql`select from settlements where wire_hex = ${orderHex}`,
      () => true,
    )
    assert.equal(rows.length, 1, `round ${round}`)
    await eventually(
      'another server',
      () => gateway.postgresPid,
      (pid) => pid !== undefined && pid !== before,
    )
    await eventually(
      'ready',
      () => readiness(gateway),
      ({ status }) => status === 200,
    )
  }
  assert.ok(gateway.log.some(({ event }) => event === 'database.restarted'))
  assert.equal(await gateway.stop(), 0, gateway.stderr)
})

test('a server that stands still for five seconds: answered, not ready with the reason, nothing acked; afterwards everything', async () => {
  const gateway = await start()
  const physId = 0x04300002
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(heartbeat(physId, 1))
  assert.equal((await readiness(gateway)).status, 200)

  const thaw = gateway.freezePostgres()
  const frozenMonoMs = performance.now()
  try {
    const names = ['FROZEN-0', 'FROZEN-1', 'FROZEN-2']
    for (const [index, name] of names.entries())
      client.send(dny(physId, 200 + index, 0x03, settlementData({ orderHex: orderHexOf(name) })))
    await answersWithoutDatabase(client, physId)
    const { json } = await eventually(
      'not ready',
      () => readiness(gateway),
      ({ status }) => status === 503,
      4_500,
    )
    assert.deepEqual(json.error.details.reasons, ['database: away'])
    assert.equal(json.error.code, 'UNAVAILABLE')
    // what needs the database says so at once instead of hanging
    const asked = await gateway.ask('GET', '/api/v1/orders')
    assert.deepEqual([asked.status, asked.json.error.code], [503, 'UNAVAILABLE'])
    assert.equal((await gateway.ask('GET', '/healthz', { secret: null })).status, 200)
    await answersWithoutDatabase(client, physId)
    // a device that came only now is served as well
    const newcomer = await DeviceClient.connect(gateway.tcpPort)
    await answersWithoutDatabase(newcomer, 0x04300003)
    await sleep(Math.max(0, 5_000 - (performance.now() - frozenMonoMs)))
    assert.deepEqual(
      client.frames.filter(({ command }) => command === 0x03),
      [],
      'no ack meanwhile',
    )
  } finally {
    thaw()
  }
  await eventually(
    'acked by itself',
    () => client.frames,
    (frames) => frames.filter(({ command }) => command === 0x03).length === 3,
    10_000,
  )
  await client.silence(50)
  const repeated = dny(physId, 210, 0x03, settlementData({ orderHex: orderHexOf('FROZEN-0'), sentS: 5 }))
  assert.equal((await client.exchange(repeated)).hex, dny(physId, 210, 0x03, '00'))
  const rows = await gateway.sql`select wire_hex from settlements`
  assert.equal(rows.length, 3)
  await eventually(
    'ready',
    () => readiness(gateway),
    ({ status }) => status === 200,
  )
  // the newcomer's row was kept as well
  await eventually(
    'newcomer',
    () => gateway.get('/api/v1/devices/04300003'),
    ({ firmware }) => firmware === '1.26',
  )
  assert.equal(await gateway.stop(), 0, gateway.stderr)
})

test('a given database goes away for seconds: history waits in the spool, over a kill -9 of the gateway too', async () => {
  const directory = dataDirectory()
  databases.push(directory)
  const silent = { info: () => {}, warn: () => {}, error: () => {} }
  const open = () => startEmbeddedPostgres({ dataDir: directory, log: silent, settings: TEST_SETTINGS })
  let database: EmbeddedPostgres = await open()
  const env = { DATABASE_URL: database.url, STATE_FLUSH_MS: '50' }
  const dataDir = dataDirectory()
  let gateway = await start({ dataDir, env })
  const physId = 0x04300004
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(heartbeat(physId, 1))
  const spooled = async () => (await gateway.metrics()).get('pilegate_spool_bytes')
  const logged = async (command: number) => {
    const rows = await gateway.sql`select message_id from cmd_log where code = ${command} order by message_id`
    return rows.map((row) => Number(row['message_id']))
  }
  assert.equal(await spooled(), 0)

  await gateway.closeSql()
  await database.stop()
  const messageIds = Array.from({ length: 200 }, (_, index) => 1_000 + index)
  for (const messageId of messageIds) {
    // an alarm by a number the guide does not know: worth a row in cmd_log, no answer
    client.send(dny(physId, messageId, 0x5a, 'cafe'))
    if (messageId % 20 === 0) await sleep(150)
  }
  client.send(dny(physId, 2_000, 0x03, settlementData({ orderHex: orderHexOf('AWAY') })))
  await answersWithoutDatabase(client, physId)
  assert.equal((await readiness(gateway)).status, 503)
  await eventually('spooled', spooled, (bytes) => (bytes ?? 0) > 0)
  // a card is not decided without the table: AP3000 has no word for that, the device hears nothing
  client.send(dny(physId, 2_001, 0x02, `a1b2c3d40100${le(0, 2)}${le(1, 4)}`))
  assert.deepEqual(await client.silence(300), [])

  database = await open()
  await eventually(
    'ready',
    () => readiness(gateway),
    ({ status }) => status === 200,
  )
  await eventually(
    'acked',
    () => client.frames,
    (frames) => frames.some(({ command }) => command === 0x03),
    10_000,
  )
  await eventually('the spool is empty', spooled, (bytes) => bytes === 0, 10_000)
  assert.deepEqual(
    await eventually(
      'history',
      () => logged(0x5a),
      ({ length }) => length >= messageIds.length,
    ),
    messageIds,
  )

  // once more, and now the gateway dies while rows lie in the spool
  await gateway.closeSql()
  await database.stop()
  for (const messageId of messageIds) client.send(dny(physId, messageId, 0x5b, 'beef'))
  const reached = await eventually('spooled again', spooled, (bytes) => (bytes ?? 0) > 200 * 20, 8_000)
  assert.ok(reached)
  await sleep(300)
  await gateway.kill()
  database = await open()
  gateway = await start({ dataDir, env })
  await eventually('the spool of the earlier start is empty', spooled, (bytes) => bytes === 0, 10_000)
  assert.deepEqual(await logged(0x5b), messageIds)
  assert.equal(await gateway.stop(), 0, gateway.stderr)
  await database.stop()
})

test('a spool without room: history is dropped and counted by table, and the settlement beside it is not', async () => {
  const directory = dataDirectory()
  databases.push(directory)
  const silent = { info: () => {}, warn: () => {}, error: () => {} }
  const open = () => startEmbeddedPostgres({ dataDir: directory, log: silent, settings: TEST_SETTINGS })
  let database: EmbeddedPostgres = await open()
  const gateway = await start({ env: { DATABASE_URL: database.url, STATE_FLUSH_MS: '50', SPOOL_BYTES_MAX: '0' } })
  const physId = 0x04300005
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(heartbeat(physId, 1))
  await gateway.closeSql()
  await database.stop()

  client.send(
    dny(physId, 3_000, 0x5a, 'cafe'),
    dny(physId, 3_001, 0x03, settlementData({ orderHex: orderHexOf('FULL') })),
  )
  // a port that changes is a row of another table
  client.send(dny(physId, 3_002, 0x21, `${le(2_200, 2)}0201000000`))
  const dropped = (metrics: ReadonlyMap<string, number>, table: string) =>
    metrics.get(`pilegate_rows_total{table="${table}",result="dropped"}`) ?? 0
  const metrics = await eventually(
    'dropped',
    () => gateway.metrics(),
    (found) => dropped(found, 'cmd_log') > 0 && dropped(found, 'ports') > 0,
    15_000,
  )
  assert.equal(dropped(metrics, 'settlements'), 0)
  assert.equal(metrics.get('pilegate_spool_bytes'), 0)

  database = await open()
  await eventually(
    'acked',
    () => client.frames,
    (frames) => frames.some(({ command }) => command === 0x03),
    15_000,
  )
  assert.equal((await gateway.sql`select from settlements`).length, 1)
  assert.equal(await gateway.stop(), 0, gateway.stderr)
  await database.stop()
})
