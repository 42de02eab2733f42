/**
 * Claim: no series is exported that nothing moves. Every name of src/metrics/catalogue.ts changes while a gateway lives
 * through what it is for: devices come, settle, move and misbehave, a command is sent twice, the database goes away and
 * comes back.
 *
 * /metrics is read again and again meanwhile; a series has moved when two readings differ. Series that cannot move are
 * listed below with the reason, and the list may not hold one that does.
 */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import { METRIC_PREFIX, METRICS } from '../metrics/catalogue.ts'
import { TEST_SETTINGS } from '../testing/database.ts'
import { closeClients, DeviceClient, dny, le, settlementData } from '../testing/device-client.ts'
import { dataDirectory, endPostgres, eventually, GatewayProcess } from '../testing/gateway-process.ts'
import { openReceiver, type Receiver } from '../testing/webhook-receiver.ts'
import { connect } from './database/connect.ts'
import { type EmbeddedPostgres, startEmbeddedPostgres } from './database/embedded-postgres.ts'
import { migrate } from './database/migrate.ts'

/** Why a series stands still. */
const STILL: Readonly<Record<string, string>> = {
  build_info: 'a constant by its nature: its labels are the information',
  kafka_events_total: 'needs brokers: moved in kafka.e2e.test.ts, where there are some',
  kafka_gaps_total: 'the same',
}

const directory = dataDirectory()
let gateway: GatewayProcess | undefined
let receiver: Receiver | undefined
after(async () => {
  closeClients()
  await receiver?.close()
  await gateway?.remove()
  await endPostgres(directory)
})

const PILE = 0x04600001
const PILE_ID = '04600001'
const heartbeat = (physId: number, messageId: number) => dny(physId, messageId, 0x21, `${le(2_200, 2)}0200000000`)
const orderHexOf = (name: string) => Buffer.from(name.padEnd(16, '-')).toString('hex')

/** A WebSocket that does not read, and more events than the kernel takes for it. */
async function cutSubscriber(started: GatewayProcess): Promise<void> {
  const socket = new WebSocket(`ws://127.0.0.1:${started.httpPort}/ws`, {
    headers: { authorization: `Bearer ${started.secret}` },
  })
  await once(socket, 'open')
  socket.send('{"op":"subscribe","topics":["device/*"]}')
  await once(socket, 'message')
  socket.pause()
  await started.sql`
    insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
    select 'much' || n, 'device.alarm', 'default', '00000000', 1, now(), jsonb_build_object('pad', repeat('x', 50000))
    from generate_series(1, 160) n`
  // it is off the books at once, whatever it has not read yet
  await eventually(
    'the subscriber is cut',
    () => started.metrics(),
    (samples) => samples.get('pilegate_ws_subscribers') === 0,
  )
  socket.terminate()
}

test('every exported series moves', async (context) => {
  const silent = { info: () => {}, warn: () => {}, error: () => {} }
  const open = () => startEmbeddedPostgres({ dataDir: directory, log: silent, settings: TEST_SETTINGS })
  let database: EmbeddedPostgres = await open()
  await migrate(database.url)
  // a command that waited for its device over the start
  const sql = connect(database.url, { max: 1 })
  const wire = { fields: { locateS: 5 }, wire_hex: '', socket: 0, port: 0 }
  await sql`
    insert into outbound_queue (command_id, device_id, name, wire, expires_at)
    values (${randomUUID()}, ${PILE_ID}, 'locate', ${sql.json(wire)}, now() + interval '1 minute')`
  // one that nobody needs any more
  await sql`
    insert into outbound_queue (command_id, device_id, name, status, created_at, expires_at, finished_at)
    select ${randomUUID()}, ${PILE_ID}, 'locate', 3, at, at, at from (select now() - interval '10 years' as at) a`
  // a webhook whose receiver is not there, and one that is
  receiver = await openReceiver()
  await sql`
    insert into webhook_endpoints (endpoint_id, url, secret) values
      ('wh_1', 'http://127.0.0.1:1/', 'whsec_AAAA'), ('wh_2', ${receiver.url}, 'whsec_AAAA')`
  await sql.end({ timeout: 1 })

  const started = await GatewayProcess.start({
    env: {
      DATABASE_URL: database.url,
      ACK_TIMEOUT_MS: '400',
      COMMAND_SPACING_MS: '50',
      IDENTIFY_TIMEOUT_MS: '300',
      OUTBOUND_BYTES_MAX: '4096',
      WS_BACKPRESSURE_BYTES_MAX: '16384',
      OUTBOX_BYTES: '65536',
      STATE_FLUSH_MS: '50',
      WEBHOOK_ALLOW_PRIVATE: 'true',
      // nobody listens there: events wait
      KAFKA_BROKERS: '127.0.0.1:1',
    },
  })
  gateway = started

  /** Values of every sample by series, over all readings; a sample that is not there yet is 0. */
  const seen = new Map<string, Set<number>>()
  let readings = 0
  const read = async (): Promise<ReadonlyMap<string, number>> => {
    const samples = await started.metrics()
    readings++
    for (const [name, value] of samples) {
      if (!name.startsWith(METRIC_PREFIX)) continue
      const values = seen.get(name) ?? new Set(readings > 1 ? [0] : [])
      seen.set(name, values.add(value))
    }
    return samples
  }
  await read()
  let isReading = true
  // ends by itself when the gateway does, so that a failure is told once
  const reader = (async () => {
    while (isReading) {
      await read().catch(() => {})
      await sleep(100)
      if (started.hasEnded) return
    }
  })()

  // devices come and talk; the waiting command goes out, is not answered, goes out again, and is then
  const pile = await DeviceClient.connect(started.tcpPort)
  assert.equal((await pile.exchange(heartbeat(PILE, 1))).command, 0x21)
  const sent = await pile.next()
  assert.deepEqual([sent.command, sent.dataHex], [0x96, '05'])
  const again = await pile.next()
  assert.equal(again.hex, sent.hex, 'a resend is the same frame')
  pile.send(dny(PILE, again.messageId, 0x96, '00'))
  await pile.exchange(dny(PILE, 2, 0x20, `${le(126, 2)}02002100`))
  await pile.exchange(dny(PILE, 3, 0x02, `a1b2c3d40100${le(0, 2)}${le(1, 4)}`))
  for (const messageId of [4, 5])
    await pile.exchange(dny(PILE, messageId, 0x03, settlementData({ orderHex: orderHexOf('METRICS') })))

  // damaged bytes, a stranger, a device that moves while its old place still speaks, one that does not read
  pile.send('00112233', heartbeat(PILE, 6))
  await pile.next()
  const stranger = await DeviceClient.connect(started.tcpPort)
  stranger.send('ff'.repeat(200))
  await stranger.closedWithin(3_000)
  const host = await DeviceClient.connect(started.tcpPort)
  await host.exchange(heartbeat(0x09600002, 1))
  await host.exchange(heartbeat(0x04600003, 2))
  const other = await DeviceClient.connect(started.tcpPort)
  await other.exchange(heartbeat(0x04600003, 3))
  host.send(heartbeat(0x04600003, 4))
  const greedy = await DeviceClient.connect(started.tcpPort)
  await greedy.exchange(heartbeat(0x04600004, 1))
  greedy.send(...Array.from({ length: 1_000 }, (_, index) => dny(0x04600004, index, 0x22)))
  await greedy.closedWithin(3_000)

  // the database goes: history spools, and the ledger lane, small on purpose, fills up
  await started.closeSql()
  await database.stop()
  for (let index = 0; index < 1_000; index++)
    pile.send(dny(PILE, 1_000 + index, 0x03, settlementData({ orderHex: orderHexOf(`FULL-${index}`) })))
  await eventually('the outbox is full', read, (samples) => (samples.get('pilegate_acks_withheld_total') ?? 0) > 0)
  await eventually('history spools', read, (samples) => (samples.get('pilegate_spool_bytes') ?? 0) > 0)
  database = await open()
  await eventually(
    'ready',
    () => started.ask('GET', '/readyz', { secret: null }),
    ({ status }) => status === 200,
  )
  await cutSubscriber(started)
  await eventually('the spool is empty', read, (samples) => samples.get('pilegate_spool_bytes') === 0, 10_000)
  await started.get('/api/v1/devices')
  // a job for a device that is away, and is not waited for
  const set = { name: 'setLimits', params: { max_charge_s: 36_000, overload_power_dw: 20_000 } }
  const body = { kind: 'parameters', device_ids: ['04600004'], set }
  const { json: job, text } = await started.ask('POST', '/api/v1/jobs', { body })
  assert.ok(job.job_id, text)
  assert.equal((await started.ask('POST', `/api/v1/jobs/${job.job_id}/cancel`)).status, 200)
  // one look finds them waiting, however short
  const ask = () => started.ask('POST', '/api/v1/devices/04600009/commands', { body: { name: 'locate' } })
  const [answers] = await Promise.all([Promise.all(Array.from({ length: 40 }, ask)), read()])
  assert.ok(answers.every(({ status }) => status === 404))
  isReading = false
  await reader

  const isMoved = (name: string, type: string): boolean => {
    const series = `${METRIC_PREFIX}${name}${type === 'histogram' ? '_count' : ''}`
    return [...seen].some(
      ([sample, values]) => (sample === series || sample.startsWith(`${series}{`)) && values.size > 1,
    )
  }
  const stillNow = () =>
    Object.entries(METRICS)
      .filter(([name, { type }]) => !isMoved(name, type))
      .map(([name]) => name)
      .sort()
  const excused = Object.keys(STILL).sort()
  // some are measured once a second
  await eventually('the last series moves', read, () => stillNow().length <= excused.length, 4_000).catch(() => {})
  assert.deepEqual(stillNow(), excused, 'series that stood still, and those that may')
  context.diagnostic(`${Object.keys(METRICS).length - excused.length} series moved in ${readings} readings`)
  // the catalogue is all there is
  const names = new Set([...seen.keys()].map((sample) => sample.slice(METRIC_PREFIX.length).split('{')[0]!))
  for (const name of names)
    assert.ok(name.replace(/_(?:bucket|count|sum)$/, '') in METRICS || name in METRICS, `${name} is in the catalogue`)
  // no device id is ever a label
  assert.ok(![...seen.keys()].some((sample) => sample.includes(PILE_ID)))

  assert.equal(await started.stop(), 0, started.stderr)
  await database.stop()
})
