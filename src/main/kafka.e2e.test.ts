/**
 * Claimed: every event of the table reaches the topic, at least once, known by its event_id, first appearances in order
 * per device, through TLS and a login; a gateway killed with a batch under way, brokers that are killed, stand still or
 * lack the topic, and an event that is too large lose nothing else. Without brokers the gateway serves as ever, says so
 * once, and the lag grows; without KAFKA_BROKERS nothing of it is loaded.
 *
 * Tried on the gateway as a process with a simulated pile and a real single-node Kafka, which is fetched from Maven
 * Central once (src/testing/kafka-broker.ts); without Java, Maven or the network that test is skipped and says why.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { Admin, Consumer } from '@platformatic/kafka'
import { eventIdOf } from '../events/event-id.ts'
import { closeClients, DeviceClient, dny, le, settlementData } from '../testing/device-client.ts'
import { eventually, GatewayProcess, REPOSITORY } from '../testing/gateway-process.ts'
import { KAFKA_USER, KafkaBroker } from '../testing/kafka-broker.ts'

const TOPIC = 'pilegate.test'
const PARTITIONS = 3
const RECORD_BYTES_MAX = 60_000
const PILE = 0x04700009

const gateways: GatewayProcess[] = []
// it takes its seconds while the tests without it run
const opening = KafkaBroker.open()
opening.catch(() => {})
after(async () => {
  closeClients()
  for (const gateway of gateways) await gateway.remove()
  const broker = await opening
  if (typeof broker !== 'string') await broker.remove()
})

async function start(env: Record<string, string>, dataDir?: string): Promise<GatewayProcess> {
  const gateway = await GatewayProcess.start({ env, ...(dataDir === undefined ? {} : { dataDir }) })
  gateways.push(gateway)
  return gateway
}

/** A pile that registers and settles one order of the given 16 characters. */
async function settle(gateway: GatewayProcess, order: string): Promise<void> {
  const pile = await DeviceClient.connect(gateway.tcpPort)
  await pile.exchange(dny(PILE, 1, 0x20, `${le(126, 2)}02002100`))
  await pile.exchange(dny(PILE, 2, 0x03, settlementData({ orderHex: Buffer.from(order).toString('hex') })))
  await pile.end()
}

let inserted = 0
async function insertEvents(gateway: GatewayProcess, count: number, padding = ''): Promise<void> {
  const { sql } = gateway
  const rows = Array.from({ length: count }, () => ({
    event_id: eventIdOf('kafka', ++inserted),
    event_type: 'device.alarm',
    tenant_id: inserted % 10 === 0 ? 'north' : 'default',
    device_id: inserted % 50 === 0 ? '' : `0000${String(inserted % 60).padStart(4, '0')}`,
    order_key: null,
    epoch: 1,
    at: new Date(),
    data: sql.json({ n: inserted, padding }),
  }))
  await sql`insert into events ${sql(rows as never)}`
}

const metric = async (gateway: GatewayProcess, name: string) => (await gateway.metrics()).get(`pilegate_${name}`) ?? 0
const isReady = async (gateway: GatewayProcess) =>
  (await gateway.ask('GET', '/readyz', { secret: null })).status === 200
const said = (gateway: GatewayProcess, event: string) => gateway.log.filter((line) => line['event'] === event)

test('brokers that are not there: the gateway serves, says so once, and counts', async () => {
  // nobody listens there, while a port that is free now may be somebody's in a moment
  const gateway = await start({ KAFKA_BROKERS: '127.0.0.1:1', KAFKA_TOPIC: TOPIC })
  assert.equal(await isReady(gateway), true)
  await settle(gateway, 'WITHOUT-BROKER--')
  await eventually(
    'the settlement',
    async () => (await gateway.get('/api/v1/events?type=charging.ended')).items.length,
    (count) => count === 1,
  )
  await eventually(
    'several attempts',
    () => metric(gateway, 'kafka_failures_total{reason="unreachable"}'),
    (count) => count >= 2,
    45_000,
  )
  const [{ count }] = (await gateway.sql`select count(*)::int as count from events`) as unknown as [{ count: number }]
  await eventually(
    'the lag',
    () => metric(gateway, 'kafka_lag_events'),
    (lag) => lag === count,
    10_000,
  )
  assert.ok((await metric(gateway, 'kafka_lag_seconds')) > 0)
  assert.equal(await metric(gateway, 'kafka_events_total{result="produced"}'), 0)
  const lost = await eventually(
    'the log line',
    () => said(gateway, 'kafka.brokerLost'),
    (lines) => lines.length > 0,
    10_000,
  )
  assert.deepEqual([lost.length, lost[0]!['reason']], [1, 'unreachable'])
  assert.equal(await isReady(gateway), true)
  assert.equal(await gateway.stop(), 0)
})

test('the client library is loaded by the Kafka thread alone, and the thread is there with KAFKA_BROKERS only', async () => {
  const loading: string[] = []
  for (const folder of ['src', 'workers'])
    for (const name of readdirSync(join(REPOSITORY, folder), { recursive: true, encoding: 'utf8' })) {
      if (!name.endsWith('.ts') || name.endsWith('.test.ts')) continue
      const text = readFileSync(join(REPOSITORY, folder, name), 'utf8')
      if (/^import (?!type).*'@platformatic\/kafka'|^import (?!type).*\/producer\.ts'/m.test(text))
        loading.push(join(folder, name))
    }
  assert.deepEqual(loading.sort(), ['workers/kafka/index.ts', 'workers/kafka/producer.ts'])
  const gateway = await start({})
  const metrics = await gateway.metrics()
  const threads = [...metrics.keys()].filter((name) => name.startsWith('pilegate_event_loop_delay_seconds'))
  assert.ok(threads.some((name) => name.includes('"relay"')))
  assert.ok(!threads.some((name) => name.includes('"kafka"')))
  assert.equal(await gateway.stop(), 0)
})

test('a real broker', async (t) => {
  const broker = await opening
  if (typeof broker === 'string') return t.skip(broker)
  const { username, password } = KAFKA_USER
  const env = {
    KAFKA_BROKERS: `127.0.0.1:${broker.saslPort}`,
    KAFKA_TOPIC: TOPIC,
    KAFKA_SSL: 'true',
    KAFKA_SSL_CA_PATH: broker.caPath,
    KAFKA_SASL_MECHANISM: 'SCRAM-SHA-512',
    KAFKA_SASL_USERNAME: username,
    KAFKA_SASL_PASSWORD: password,
    LOG_LEVEL: 'trace',
  }
  const lines: string[] = []
  const caughtUp = async () => {
    const [row] = await gateway.sql<{ behind: number }[]>`
      select count(*)::int as behind from events where cursor > (select cursor from kafka_positions where topic = ${TOPIC})`
    return row?.behind
  }
  const restart = async () => {
    await gateway.kill()
    lines.push(...gateway.lines)
    gateway = await start(env, gateway.dataDir)
  }

  // nobody has made the topic, and the broker does not either
  let gateway = await start(env)
  await settle(gateway, 'BEFORE-THE-TOPIC')
  await eventually(
    'the missing topic',
    () => said(gateway, 'kafka.brokerLost').map((line) => line['reason']),
    (reasons) => reasons.includes('topic'),
    30_000,
  )
  assert.equal(await isReady(gateway), true)
  const admin = new Admin({ clientId: 'test', bootstrapBrokers: [`127.0.0.1:${broker.port}`] })
  await admin.createTopics({
    topics: [TOPIC],
    partitions: PARTITIONS,
    replicas: 1,
    configs: [{ name: 'max.message.bytes', value: String(RECORD_BYTES_MAX) }],
  })
  await admin.close()
  await eventually('the first events', caughtUp, (behind) => behind === 0, 30_000)
  await settle(gateway, 'TOPIC-IS-THERE--')

  // one that is too large, among others
  await insertEvents(gateway, 20)
  await insertEvents(gateway, 1, 'x'.repeat(2 * RECORD_BYTES_MAX))
  const refusedId = eventIdOf('kafka', inserted)
  await insertEvents(gateway, 20)
  await eventually('all but the large one', caughtUp, (behind) => behind === 0, 30_000)
  assert.equal(await metric(gateway, 'kafka_events_total{result="refused"}'), 1)
  assert.ok((await metric(gateway, 'kafka_events_total{result="produced"}')) >= 40)

  // kill -9 with a batch under way: the broker has stood still since before it
  const goOn = broker.freeze()
  await insertEvents(gateway, 1_500)
  await eventually(
    'the lag',
    () => metric(gateway, 'kafka_lag_events'),
    (lag) => lag >= 1_000,
    20_000,
  )
  // retention is faster than a broker that stands still
  await insertEvents(gateway, 5)
  await gateway.sql`
    with gone as (
      delete from events where cursor > (select max(cursor) - 5 from events) returning tenant_id, cursor
    ) insert into event_horizons (tenant_id, dropped_cursor) select tenant_id, max(cursor) from gone group by tenant_id`
  await restart()
  goOn()
  await eventually('all after a kill', caughtUp, (behind) => behind === 0, 30_000)
  assert.equal(await metric(gateway, 'kafka_gaps_total'), 1)
  await eventually(
    'that it is said',
    () => said(gateway, 'kafka.eventsMissed').length,
    (count) => count === 1,
    10_000,
  )
  // and wherever it happens to be
  await insertEvents(gateway, 3_000)
  await eventually('some of them', caughtUp, (behind) => behind! < 2_900, 20_000)
  await restart()
  await eventually('all after another kill', caughtUp, (behind) => behind === 0, 30_000)

  // the broker is killed and comes back
  await broker.kill()
  await insertEvents(gateway, 1_200)
  await settle(gateway, 'BROKER-IS-AWAY--')
  await eventually(
    'failures',
    () => metric(gateway, 'kafka_failures_total{reason="unreachable"}'),
    (count) => count >= 1,
    40_000,
  )
  assert.equal(await isReady(gateway), true)
  await broker.start()
  await eventually('all after the outage', caughtUp, (behind) => behind === 0, 45_000)
  await eventually(
    'that it is said',
    () => said(gateway, 'kafka.brokerReturned').length,
    (count) => count >= 1,
    10_000,
  )
  await eventually(
    'no lag',
    async () => [await metric(gateway, 'kafka_lag_events'), await metric(gateway, 'kafka_lag_seconds')],
    ([events, seconds]) => events === 0 && seconds === 0,
    10_000,
  )

  // what the topic has is what the table has
  const stored = await gateway.sql<{ event_id: string; event_type: string; tenant_id: string; device_id: string }[]>`
    select event_id, event_type, tenant_id, device_id from events order by cursor`
  const wanted = stored.filter(({ event_id }) => event_id !== refusedId)
  const records = await readTopic(
    broker.port,
    wanted.map(({ event_id }) => event_id),
  )
  const byId = new Map(stored.map((row) => [row.event_id, row]))
  const firsts = new Map<string, string[]>()
  const partitions = new Map<string, Set<number>>()
  const seen = new Set<string>()
  for (const { key, value, headers, partition } of records) {
    const id = headers['event_id']!
    const row = byId.get(id)!
    assert.equal(key, row.device_id || `tenant:${row.tenant_id}`)
    assert.deepEqual(headers, {
      event_id: id,
      event_type: row.event_type,
      tenant: row.tenant_id,
      schema_version: '1',
    })
    assert.equal((JSON.parse(value) as { event_id: string }).event_id, id)
    partitions.set(key, (partitions.get(key) ?? new Set()).add(partition))
    if (seen.has(id)) continue
    seen.add(id)
    firsts.set(key, [...(firsts.get(key) ?? []), id])
  }
  assert.equal(seen.size, wanted.length)
  for (const [key, ids] of firsts) {
    const inTable = wanted.filter((row) => (row.device_id || `tenant:${row.tenant_id}`) === key)
    assert.deepEqual(
      ids,
      inTable.map(({ event_id }) => event_id),
      key,
    )
    assert.equal(partitions.get(key)!.size, 1, `${key} in one partition`)
  }
  assert.equal(new Set([...partitions.values()].flatMap((set) => [...set])).size, PARTITIONS)
  // pull says the same, byte for byte
  const { items } = await gateway.get('/api/v1/events?type=charging.ended')
  assert.equal(items.length, 3)
  for (const { cursor: _, ...pulled } of items)
    assert.equal(records.find(({ headers }) => headers['event_id'] === pulled.event_id)!.value, JSON.stringify(pulled))
  t.diagnostic(`${records.length} records for ${wanted.length} events`)

  assert.equal(await gateway.stop(), 0)
  lines.push(...gateway.lines, gateway.stderr)
  assert.ok(!lines.join('\n').includes(password), 'the password is in no log')
})

interface TopicRecord {
  readonly key: string
  readonly value: string
  readonly headers: { readonly [name: string]: string }
  readonly partition: number
}

/** From the beginning until every id was seen, each partition in its order. @throws what is missing after 30 s */
async function readTopic(port: number, ids: readonly string[]): Promise<readonly TopicRecord[]> {
  const consumer = new Consumer({ groupId: 'test', clientId: 'test', bootstrapBrokers: [`127.0.0.1:${port}`] })
  const stream = await consumer.consume({ topics: [TOPIC], mode: 'earliest', autocommit: false })
  const missing = new Set(ids)
  const records: TopicRecord[] = []
  const timer = setTimeout(() => stream.destroy(), 30_000)
  try {
    for await (const { key, value, headers, partition } of stream) {
      const texts = Object.fromEntries([...headers].map(([name, text]) => [name.toString(), text.toString()]))
      records.push({ key: key.toString(), value: value.toString(), headers: texts, partition })
      missing.delete(texts['event_id']!)
      if (missing.size === 0) break
    }
  } finally {
    clearTimeout(timer)
    await consumer.close(true)
  }
  assert.equal(missing.size, 0, `not in the topic: ${[...missing].slice(0, 5)}`)
  return records
}
