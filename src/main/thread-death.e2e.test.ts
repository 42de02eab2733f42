/**
 * Claims: a session thread that dies takes only its own connections along; its shard is served again, rows it had
 * published are written, and the other shard notices nothing; its devices are told to be offline, once. A writer thread
 * that dies loses nothing. The acceptor comes back on its port. The relay thread is replaced, and no webhook is lost.
 *
 * A thread cannot be killed from outside its process, so the gateway runs inside this one, as `start.ts` builds it, and
 * every `Worker` it makes is noted on the way (node:worker_threads is patched before the gateway is imported; nothing in
 * the gateway knows of it). Threads die by `terminate()`, which stops JavaScript where it is.
 */
import assert from 'node:assert/strict'
import { rmSync } from 'node:fs'
import { createRequire, syncBuiltinESMExports } from 'node:module'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type * as workerThreads from 'node:worker_threads'
import { loadConfig } from '../config/config.ts'
import { eventIdOf } from '../events/event-id.ts'
import { shardOf } from '../shared/rendezvous.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { closeClients, DeviceClient, dny, iccidHex, le, settlementData } from '../testing/device-client.ts'
import { dataDirectory, eventually } from '../testing/gateway-process.ts'
import { openReceiver } from '../testing/webhook-receiver.ts'
import { makeSecret } from '../webhooks/sign.ts'
import type { Gateway } from './start.ts'

const SHARDS = 2
const threads: { readonly name: string; readonly worker: workerThreads.Worker; isAlive: boolean }[] = []
const builtin = createRequire(import.meta.url)('node:worker_threads') as { Worker: typeof workerThreads.Worker }
builtin.Worker = class NotedWorker extends builtin.Worker {
  constructor(file: string | URL, options: workerThreads.WorkerOptions = {}) {
    super(file, options)
    const noted = {
      name: options.name ?? (String(file).includes('piscina') ? 'writer' : '?'),
      worker: this as workerThreads.Worker,
      isAlive: true,
    }
    threads.push(noted)
    this.once('exit', () => {
      noted.isAlive = false
    })
  }
}
syncBuiltinESMExports()
const { startGateway } = await import('./start.ts')

const alive = (name: string) => threads.filter((thread) => thread.name === name && thread.isAlive)
async function terminate(name: string): Promise<void> {
  const victim = alive(name)[0]
  assert.ok(victim !== undefined, `a ${name} among ${threads.map((thread) => thread.name).join(', ')}`)
  await victim.worker.terminate()
}

const dataDir = dataDirectory()
let database: TestDatabase
let gateway: Gateway

before(async () => {
  database = await openTestDatabase()
  gateway = await startGateway(
    loadConfig({
      DATA_DIR: dataDir,
      DATABASE_URL: database.url,
      TCP_HOST: '127.0.0.1',
      TCP_PORT: '0',
      HTTP_PORT: '0',
      SHARDS: String(SHARDS),
      LOG_LEVEL: 'silent',
      BATCH_ROWS_MAX: '20',
      STATE_FLUSH_MS: '50',
      WEBHOOK_ALLOWED_HOSTS: '127.0.0.1',
    }),
  )
})
after(async () => {
  closeClients()
  // a gateway that hangs after a failed test must not hang the run
  const unflushed = await Promise.race([gateway.stop(), sleep(15_000, ['stop takes more than 15 s'], { ref: false })])
  await database.close()
  rmSync(dataDir, { recursive: true, force: true })
  if (unflushed.length > 0) setTimeout(() => process.exit(1), 1_000)
  assert.deepEqual(unflushed, [])
})

const heartbeat = (physId: number, messageId: number) => dny(physId, messageId, 0x21, `${le(2_200, 2)}0200000000`)
async function answers(client: DeviceClient, physId: number, messageId: number): Promise<void> {
  assert.equal((await client.exchange(heartbeat(physId, messageId))).hex, dny(physId, messageId, 0x21, '00'))
}
function iccidOn(shard: number, salt: number): string {
  for (let number = salt * 1_000; ; number++) {
    const iccid = `898604${String(number).padStart(14, '0')}`
    if (shardOf(iccid, SHARDS) === shard) return iccid
  }
}
async function dial(shard: number, salt: number): Promise<DeviceClient> {
  const client = await DeviceClient.connect(gateway.tcpPort)
  client.send(iccidHex(iccidOn(shard, salt)))
  return client
}
const orderHexOf = (name: string) => Buffer.from(name.padEnd(16, '-')).toString('hex')
async function isStored(orderHex: string): Promise<boolean> {
  return (await database.sql`select from settlements where wire_hex = ${orderHex}`).count === 1
}
async function readyz(): Promise<number> {
  const response = await fetch(`http://127.0.0.1:${gateway.httpPort}/readyz`, { headers: { connection: 'close' } })
  await response.body?.cancel()
  return response.status
}

test('a session thread dies: its shard is served again, the other one goes on, published rows are written', async () => {
  for (let round = 0; round < 3; round++) {
    const [mine, other] = [0x04400000 + round, 0x04400100 + round]
    const here = await dial(0, 10 + round)
    const there = await dial(1, 20 + round)
    await answers(here, mine, 1)
    await answers(there, other, 1)
    const [{ epoch: epochBefore } = { epoch: 0 }] = await eventually(
      'session',
      () => database.sql`select epoch from sessions where device_id = ${mine.toString(16).padStart(8, '0')}`,
      ({ count }) => count === 1,
    )

    // rows on their way while it dies: the ones it had published come through, with nobody left to ack them
    const orders = Array.from({ length: 200 }, (_, index) => orderHexOf(`DIES${round}-${index}`))
    for (const [index, orderHex] of orders.entries())
      here.send(dny(mine, 100 + index, 0x03, settlementData({ orderHex })))
    await sleep(random(15))
    const threadBefore = alive('session-0')[0]
    await terminate('session-0')
    await here.closedWithin(2_000)
    const acked = here.frames.filter(({ command }) => command === 0x03).map(({ messageId }) => orders[messageId - 100]!)

    // the other shard, without a pause
    for (let messageId = 2; messageId < 6; messageId++) await answers(there, other, messageId)
    await eventually('ready again', readyz, (status) => status === 200, 10_000)
    assert.notEqual(alive('session-0')[0], threadBefore)

    const again = await eventually(
      'the device is back',
      async () => {
        const client = await dial(0, 10 + round)
        await answers(client, mine, 2)
        return client
      },
      () => true,
      10_000,
    )
    for (const orderHex of acked) assert.ok(await isStored(orderHex), 'acked and stored')
    // what was not acked comes again and is stored once
    for (const [index, orderHex] of orders.entries())
      again.send(dny(mine, 1_000 + index, 0x03, settlementData({ orderHex })))
    for (let index = 0; index < orders.length; index++) await again.next(10_000)
    const [row] = await database.sql`
      select count(*)::int as count from settlements where device_id = ${mine.toString(16).padStart(8, '0')}`
    assert.equal(row!['count'], orders.length)

    const sessions = await eventually(
      'sessions',
      () => database.sql`select epoch, close_reason from sessions
        where device_id = ${mine.toString(16).padStart(8, '0')} order by epoch`,
      (rows) => rows.length === 2 && rows[0]!['close_reason'] !== null,
    )
    assert.deepEqual(
      sessions.map((session) => session['close_reason']),
      ['shard_lost', null],
    )
    assert.ok(sessions[1]!['epoch'] > epochBefore)
    const offline = await database.sql`
      select epoch, data from events where event_type = 'device.offline'
        and device_id = ${mine.toString(16).padStart(8, '0')}`
    // told unless the new session's row was there before the old one was closed: then it never was offline to anybody
    assert.ok(offline.length <= 1)
    for (const event of offline) assert.deepEqual([event['epoch'], event['data'].reason], [epochBefore, 'shard_lost'])
    assert.equal(there.isClosed, false)
    again.destroy()
    there.destroy()
  }

  // one that does not come back is told to be offline in any case
  const leaves = 0x04400050
  const id = leaves.toString(16).padStart(8, '0')
  await answers(await dial(0, 90), leaves, 1)
  const of = (type: string) => database.sql`select data from events where event_type = ${type} and device_id = ${id}`
  await eventually(
    'it is told to be online',
    () => of('device.online'),
    ({ count }) => count === 1,
  )
  await terminate('session-0')
  const offline = await eventually(
    'it is told to be offline',
    () => of('device.offline'),
    ({ count }) => count === 1,
    15_000,
  )
  assert.equal(offline[0]!['data'].reason, 'shard_lost')
  await eventually('ready again', readyz, (status) => status === 200, 10_000)
})

test('writer threads die under a stream of settlements: every one is acked and stored', async () => {
  const physId = 0x04400200
  const client = await dial(0, 40)
  await answers(client, physId, 1)
  const before = threads.filter(({ name }) => name === 'writer').length
  assert.ok(before >= 2, 'writers are noted')
  const orders = Array.from({ length: 1_500 }, (_, index) => orderHexOf(`WRITER-${index}`))
  const deaths = (async () => {
    for (let death = 0; death < 4; death++) {
      await sleep(random(40))
      await alive('writer')[0]?.worker.terminate()
    }
  })()
  for (const [index, orderHex] of orders.entries()) {
    client.send(dny(physId, 100 + index, 0x03, settlementData({ orderHex })))
    if (index % 100 === 99) await sleep(5)
  }
  const acked = new Set<number>()
  while (acked.size < orders.length) acked.add((await client.next(15_000)).messageId)
  await deaths
  assert.ok(threads.filter(({ name }) => name === 'writer').length > before, 'dead writers are replaced')
  const [row] = await database.sql`select count(*)::int as count from settlements where device_id = '04400200'`
  assert.equal(row!['count'], orders.length)
})

test('the relay dies in the middle of deliveries, twice: another takes over, each event has its effect once and in order', async () => {
  const secret = makeSecret()
  let isSlow = true
  const receiver = await openReceiver({
    secrets: () => [secret],
    behave: (_, response) => {
      if (!isSlow) return 200
      setTimeout(() => response.writeHead(200).end(), 15)
      return undefined
    },
  })
  try {
    const { sql } = database
    await sql`
      insert into webhook_endpoints (endpoint_id, url, secret, device_ids, from_cursor)
      values ('wh_relay', ${receiver.url}, ${secret}, '{0440040a,0440040b,0440040c}', (select coalesce(max(cursor), 0) from events))`
    const COUNT = 300
    const rows = Array.from({ length: COUNT }, (_, n) => ({
      event_id: eventIdOf('relay dies', n),
      event_type: 'device.alarm',
      tenant_id: 'default',
      device_id: `0440040${'abc'[n % 3]}`,
      epoch: 1,
      at: new Date(),
      data: sql.json({ n }),
    }))
    await sql`insert into events ${sql(rows as never)}`
    for (const share of [0.1, 0.3]) {
      const known = new Set(receiver.received.map(({ event }) => event.event_id)).size
      await eventually(
        `${share} of them`,
        () => new Set(receiver.received.map(({ event }) => event.event_id)).size,
        (count) => count >= COUNT * share && count > known,
        20_000,
      )
      const [victim] = alive('relay')
      await terminate('relay')
      await eventually(
        'another relay',
        () => alive('relay'),
        ([relay]) => relay !== undefined && relay !== victim,
        10_000,
      )
    }
    isSlow = false
    await eventually(
      'every delivery ends',
      async () =>
        (await sql`select status from webhook_deliveries where endpoint_id = 'wh_relay'`).map((row) => row['status']),
      (statuses) => statuses.length === COUNT && statuses.every((status) => status === 'delivered'),
      30_000,
    )
    // what a receiver that keeps event ids has done: each once, each device in order
    const numbers = new Map<string, number[]>()
    for (const { event } of receiver.received) {
      const list = numbers.get(event.device_phy_id) ?? []
      numbers.set(event.device_phy_id, list)
      const n = Number(event.data['n'])
      if (!list.includes(n)) list.push(n)
    }
    assert.equal([...numbers.values()].flat().length, COUNT)
    for (const [device, list] of numbers)
      assert.deepEqual(
        list,
        [...list].sort((a, b) => a - b),
        device,
      )
    // at most what was under way at the two deaths came again: one per lane
    assert.ok(receiver.received.length <= COUNT + 2 * 3, `${receiver.received.length} requests`)
    const [endpoint] = await sql`select status, failing_since from webhook_endpoints where endpoint_id = 'wh_relay'`
    assert.deepEqual([endpoint!['status'], endpoint!['failing_since']], ['active', null])
  } finally {
    await database.sql`delete from webhook_endpoints where endpoint_id = 'wh_relay'`
    await receiver.close()
  }
})

test('the acceptor dies: open connections stay, and new ones come through the same port', async () => {
  const physId = 0x04400300
  const client = await dial(1, 50)
  await answers(client, physId, 1)
  await terminate('acceptor')
  await answers(client, physId, 2)
  const newcomer = await eventually(
    'a new connection',
    () => dial(0, 51),
    () => true,
    10_000,
  )
  await answers(newcomer, 0x04400301, 1)
  await answers(client, physId, 3)
  await eventually('ready', readyz, (status) => status === 200)
})

function random(below: number): number {
  return Math.floor(Math.random() * below)
}
