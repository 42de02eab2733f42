/**
 * Claims: who may listen and what each hears. A ticket works once; a tenant hears nothing of another; each event comes
 * once; with `after` nothing is missing and nothing comes twice, however often a subscriber is cut off while others
 * insert; one that does not read is told, closed with 4008, and nobody else notices; while it catches up it has its own
 * pace, but not for ever.
 *
 * Tried on the real HTTP server with the `ws` client and a real database; events are inserted as the writers do it, by
 * several connections at once. The slow subscriber stops reading its socket.
 */
import assert from 'node:assert/strict'
import { createHash, createHmac, randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ClientOptions, WebSocket } from 'ws'
import { parseApiKeys } from '../../config/api-keys.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { quietAdmin } from '../../testing/quiet-admin.ts'
import { type Admin, createAdmin } from '../admin/admin.ts'
import type { Sql } from '../database/connect.ts'
import { dropEvents } from '../event-horizon.ts'
import { PushHub, TOPICS_MAX } from './hub.ts'
import { EventStream } from './stream.ts'

const { keys } = parseApiKeys(
  'view:viewer-secret:viewer,other:other-secret:viewer:other,sign:signing-secret:viewer:default:hmac',
)
const VIEWER = { headers: { authorization: 'Bearer viewer-secret' } }
const OTHER = { headers: { authorization: 'Bearer other-secret' } }
const SUBSCRIBERS_MAX = 40
const BUFFERED_BYTES_MAX = 65_536

let database: TestDatabase
let sql: Sql
let admin: Admin
let hub: PushHub
let stream: EventStream
let nowMs = Date.now()
let dropped = 0
let subscribers = 0
let cuts = 0
const troubles: unknown[] = []

before(async () => {
  database = await openTestDatabase()
  sql = database.sql
  await sql`insert into tenants (tenant_id, name) values ('other', 'other')`
  stream = new EventStream({
    sql,
    onEvents: (events) => hub.tell(events),
    onTrouble: (error) => troubles.push(error),
    everyMs: 50,
    recentMax: 64,
  })
  hub = new PushHub({
    stream,
    figures: () => ({ connections: 7 }),
    bufferedBytesMax: BUFFERED_BYTES_MAX,
    subscribersMax: SUBSCRIBERS_MAX,
    onSubscribers: (change) => {
      subscribers += change
    },
    onDropped: (frames) => {
      dropped += frames
    },
    onCut: () => {
      cuts++
    },
    catchUpStallMs: 700,
  })
  admin = createAdmin({
    ...quietAdmin(sql, keys),
    now: () => nowMs,
    push: hub,
  })
  await admin.listen()
})
after(async () => {
  for (const client of clients) client.socket.terminate()
  hub.close()
  stream.stop()
  await admin.close()
  await database.close()
})

// ---- a subscriber --------------------------------------------------------------------------------------------------

interface Said {
  readonly op: string
  readonly topic?: string
  readonly topics?: string[]
  readonly cursor?: string | null
  readonly event?: { event_id: string; event_type: string; device_phy_id: string; data: Record<string, unknown> }
  readonly error?: { code: string; message: string; details?: Record<string, unknown> }
}

const clients = new Set<Client>()

class Client {
  readonly socket: WebSocket
  readonly said: Said[] = []
  /** When each was heard, ms, monotonic. */
  readonly heardMonoMs: number[] = []
  readonly opened: Promise<void>
  /** Close code; for a refused upgrade its status. */
  readonly ended: Promise<number>
  #wake: () => void = () => {}

  constructor(options: ClientOptions = VIEWER, query = '') {
    this.socket = new WebSocket(`ws://127.0.0.1:${admin.port}/ws${query}`, options)
    clients.add(this)
    let status: number | undefined
    this.opened = new Promise((resolve, reject) => {
      this.socket.once('open', resolve)
      this.socket.once('error', reject)
      this.socket.once('unexpected-response', (_, { statusCode }) => reject(new Error(`refused with ${statusCode}`)))
    })
    this.opened.catch(() => {})
    this.ended = new Promise((resolve) => {
      this.socket.on('unexpected-response', (_, response) => {
        status = response.statusCode!
        response.resume()
        this.socket.terminate()
        resolve(status)
      })
      this.socket.on('close', (code) => {
        clients.delete(this)
        resolve(status ?? code)
        this.#wake()
      })
    })
    this.socket.on('error', () => {})
    this.socket.on('message', (bytes) => {
      this.said.push(JSON.parse(String(bytes)) as Said)
      this.heardMonoMs.push(performance.now())
      this.#wake()
    })
  }

  static async open(options: ClientOptions = VIEWER, query = ''): Promise<Client> {
    const client = new Client(options, query)
    await client.opened
    return client
  }

  say(message: unknown): void {
    this.socket.send(typeof message === 'string' ? message : JSON.stringify(message))
  }

  /** The first answer that fits, also if it came already. */
  async heard(isIt: (said: Said) => boolean, withinMs = 5_000): Promise<Said> {
    const until = performance.now() + withinMs
    for (;;) {
      const found = this.said.find(isIt)
      if (found !== undefined) return found
      assert.ok(performance.now() < until, `not heard; last: ${JSON.stringify(this.said.slice(-3))}`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
        setTimeout(resolve, 100)
      })
    }
  }

  async subscribe(topics: readonly string[], from?: string): Promise<Said> {
    const before = this.said.length
    this.say({ op: 'subscribe', topics, ...(from === undefined ? {} : { after: from }) })
    return await this.heard((said) => this.said.indexOf(said) >= before && said.op === 'subscribed')
  }

  get events(): Said[] {
    return this.said.filter(({ op }) => op === 'event')
  }

  get ids(): string[] {
    return this.events.map(({ event }) => event!.event_id)
  }

  async close(): Promise<void> {
    this.socket.close()
    await this.ended
  }
}

interface Fact {
  readonly type?: string
  readonly device?: string
  readonly tenant?: string
  readonly data?: Record<string, unknown>
}

/** One transaction; returns the ids. */
async function insert(...facts: readonly Fact[]): Promise<string[]> {
  const rows = facts.map(({ type = 'device.online', device = '04ab373b', tenant = 'default', data = {} }) => ({
    event_id: randomUUID(),
    event_type: type,
    tenant_id: tenant,
    device_id: device,
    epoch: 1,
    at: new Date(),
    data: sql.json(data as never),
  }))
  await sql`insert into events ${sql(rows as never[])}`
  stream.wake()
  return rows.map(({ event_id }) => event_id)
}

/** The server hears of a lost connection a moment later. */
async function subscribersAre(count: number): Promise<void> {
  for (let wait = 0; subscribers !== count && wait < 100; wait++) await sleep(20)
  assert.equal(subscribers, count)
}

const ask = (path: string, init: RequestInit = {}) => fetch(`http://127.0.0.1:${admin.port}${path}`, init)

async function ticketOf(secret = 'viewer-secret'): Promise<string> {
  const reply = await ask('/api/v1/ws-tickets', { method: 'POST', headers: { authorization: `Bearer ${secret}` } })
  assert.equal(reply.status, 201)
  const { ticket, expires_in_s: expiresInS } = (await reply.json()) as { ticket: string; expires_in_s: number }
  assert.equal(expiresInS, 30)
  return ticket
}

// ---- who may listen ------------------------------------------------------------------------------------------------

test('without a key nobody is let in, and the refusal is the envelope', async () => {
  assert.equal(await new Client({}).ended, 401)
  assert.equal(await new Client({ headers: { authorization: 'Bearer wrong' } }).ended, 401)
  assert.equal(await new Client({}, '?ticket=wrong').ended, 401)
  const plain = await ask('/ws')
  assert.equal(plain.status, 400)
  assert.equal(((await plain.json()) as { error: { code: string } }).error.code, 'INVALID_ARGUMENT')
  const upgrade = await ask('/api/v1/ws-tickets', { method: 'POST' })
  assert.equal(upgrade.status, 401)
})

test('a key in the header, a signature and a ticket let in; the ticket once and for 30 s', async () => {
  await (await Client.open()).close()
  const timestamp = String(Math.floor(nowMs / 1_000))
  const nonce = randomUUID()
  const digest = createHash('sha256').update('').digest('hex')
  const signature = createHmac('sha256', 'signing-secret')
    .update(['GET', '/ws', timestamp, nonce, digest].join('\n'))
    .digest('hex')
  const signed = {
    headers: { 'x-api-key': 'sign', 'x-timestamp': timestamp, 'x-nonce': nonce, 'x-signature': signature },
  }
  await (await Client.open(signed)).close()
  assert.equal(await new Client(signed).ended, 401, 'a nonce works once')

  const ticket = await ticketOf()
  const client = await Client.open({}, `?ticket=${ticket}`)
  client.say({ op: 'ping' })
  await client.heard(({ op }) => op === 'pong')
  assert.equal(await new Client({}, `?ticket=${ticket}`).ended, 401, 'a ticket works once')
  await client.close()
  const late = await ticketOf()
  nowMs += 30_001
  assert.equal(await new Client({}, `?ticket=${late}`).ended, 401, 'and not for ever')
  nowMs = Date.now()
})

test('a tenant hears nothing of another, by wildcard or by name', async () => {
  const ours = await Client.open()
  const theirs = await Client.open({}, `?ticket=${await ticketOf('other-secret')}`)
  await ours.subscribe(['device/*', 'device/0000beef', 'alarm/*', 'order/*'])
  await theirs.subscribe(['device/*', 'device/04ab373b', 'alarm/*', 'order/*'])
  const mine = await insert({ type: 'device.alarm' }, { type: 'charging.started' })
  const their = await insert({ tenant: 'other', device: '0000beef' })
  await ours.heard(({ event }) => event?.event_id === mine[1])
  await theirs.heard(({ event }) => event?.event_id === their[0])
  // and also not from the past
  const past = await Client.open(OTHER)
  await past.subscribe(['device/*'], '0')
  await past.heard(({ event }) => event?.event_id === their[0])
  await sleep(100)
  assert.deepEqual(ours.ids, mine)
  assert.deepEqual(theirs.ids, their)
  assert.deepEqual(past.ids, their)
  await Promise.all([ours, theirs, past].map((client) => client.close()))
})

// ---- what is heard -------------------------------------------------------------------------------------------------

test('each event once, under the narrowest topic, as the object of the contract', async () => {
  const [all, one, orders] = await Promise.all([Client.open(), Client.open(), Client.open()])
  await all.subscribe(['device/*', 'order/*', 'alarm/*', 'device/04ab373b'])
  await one.subscribe(['device/04ab373b'])
  await orders.subscribe(['order/*'])
  const ids = await insert(
    { type: 'device.alarm', data: { kind: 'smoke' } },
    { type: 'charging.ended', device: '00000001', data: { order_no: 'A1', note: '电动车 "充电"' } },
    { type: 'device.online' },
    { type: 'device.offline', device: '00000001' },
  )
  await all.heard(({ event }) => event?.event_id === ids[3])
  assert.deepEqual(
    all.events.map(({ topic, event }) => [topic, event!.event_id]),
    [
      ['alarm/*', ids[0]],
      ['order/*', ids[1]],
      ['device/04ab373b', ids[2]],
      ['device/*', ids[3]],
    ],
  )
  await one.heard(({ event }) => event?.event_id === ids[2])
  assert.deepEqual(one.ids, [ids[0], ids[2]])
  await orders.heard(({ event }) => event?.event_id === ids[1])
  const { event } = orders.events[0]!
  assert.deepEqual(Object.keys(event!), ['event_id', 'event_type', 'device_phy_id', 'timestamp', 'nonce', 'data'])
  assert.equal(event!.device_phy_id, '00000001')
  assert.deepEqual(event!.data, { order_no: 'A1', note: '电动车 "充电"' })

  all.say({ op: 'unsubscribe', topics: ['device/*', 'alarm/*', 'device/04ab373b'] })
  assert.deepEqual((await all.heard(({ op }) => op === 'unsubscribed')).topics, ['order/*'])
  const before = all.events.length
  const more = await insert({ type: 'device.alarm' }, { type: 'order.failed' })
  await all.heard(({ event: told }) => told?.event_id === more[1])
  assert.equal(all.events.length, before + 1)
  await Promise.all([all, one, orders].map((client) => client.close()))
})

test('metrics come every second, without events', async () => {
  const client = await Client.open()
  await client.subscribe(['metrics'])
  const ids = await insert({})
  const { event, cursor } = await client.heard(({ topic }) => topic === 'metrics')
  assert.deepEqual(event!.data, { connections: 7 })
  assert.equal(cursor, null)
  assert.ok(!client.ids.includes(ids[0]!))
  await client.close()
})

test('a further subscription with after tells the past of the new topic only', async () => {
  const client = await Client.open()
  const { cursor } = await client.subscribe(['device/04ab373b'])
  const ids = await insert(
    { type: 'charging.started', device: '00000002' },
    { type: 'device.online' },
    { type: 'charging.started' },
  )
  await client.heard(({ event }) => event?.event_id === ids[2])
  // back to back: the second waits for the first
  client.say({ op: 'subscribe', topics: ['order/*'], after: cursor })
  client.say({ op: 'subscribe', topics: ['device/*'], after: cursor })
  await client.heard(({ topics }) => topics?.includes('device/*') === true)
  const last = await insert({ device: '00000003' })
  await client.heard(({ event }) => event?.event_id === last[0])
  assert.deepEqual(client.ids, [ids[1], ids[2], ids[0], last[0]])
  await client.close()
})

test('resuming with after while many insert: everything once, in order, over many connections', async () => {
  const first = await Client.open()
  const { cursor: start } = await first.subscribe(['device/*'])
  await first.close()
  let isOver = false
  const expected: string[] = []
  // four at once, with transactions that stay open for a moment so that cursors and commits cross
  const inserters = Array.from({ length: 4 }, async (_, n) => {
    for (let round = 0; round < 60; round++) {
      const facts = Array.from({ length: 1 + ((round * 7 + n) % 9) }, (__, at) => ({
        tenant: at % 4 === 3 ? 'other' : 'default',
        data: { round, n, at, pad: 'x'.repeat(200) },
      }))
      const ids = await insert(...facts)
      expected.push(...ids.filter((___, at) => facts[at]!.tenant === 'default'))
      await sleep(3)
    }
  })
  const told: { cursor: number; id: string }[] = []
  let from = start!
  let connections = 0
  const resuming = (async () => {
    for (let isLast = false; ; ) {
      isLast = isOver
      const client = await Client.open()
      connections++
      client.say({ op: 'subscribe', topics: ['device/*'], after: from })
      if (isLast) await client.heard(() => told.length + client.events.length >= expected.length, 10_000)
      else await sleep(10 + 17 * (connections % 5))
      // whatever was not heard by now is as good as lost
      client.socket.terminate()
      const { events } = client
      told.push(...events.map(({ cursor, event }) => ({ cursor: Number(cursor), id: event!.event_id })))
      from = events.at(-1)?.cursor ?? from
      if (isLast) return
    }
  })()
  await Promise.all(inserters)
  isOver = true
  await resuming
  const rows = await sql`
    select event_id from events where tenant_id = 'default' and cursor > ${Number(start)} order by cursor`
  assert.deepEqual(
    told.map(({ id }) => id),
    rows.map((row) => row['event_id']),
  )
  assert.equal(new Set(told.map(({ id }) => id)).size, expected.length)
  assert.ok(connections > 5, `${connections} connections`)
})

test('a long past comes whole, although it is larger than the bound', async () => {
  const client = await Client.open()
  const { cursor } = await client.subscribe(['device/*'])
  await client.close()
  const ids: string[] = []
  for (let batch = 0; batch < 10; batch++)
    ids.push(...(await insert(...Array.from({ length: 100 }, () => ({ data: { pad: 'y'.repeat(2_000) } })))))
  const again = await Client.open()
  again.socket.pause()
  again.say({ op: 'subscribe', topics: ['device/*'], after: cursor })
  await sleep(200)
  again.socket.resume()
  await again.heard(() => again.events.length >= ids.length, 10_000)
  assert.deepEqual(again.ids, ids)
  await again.close()
})

test('after a cursor behind which events were dropped: an error that says where to go on, and no subscription', async () => {
  const client = await Client.open()
  const { cursor } = await client.subscribe(['device/*'])
  const gone = await insert({}, {}, {})
  await client.heard(() => client.events.length === 3)
  const lastGone = client.events.at(-1)!.cursor
  await client.close()
  const stream = new EventStream({ sql: database.sql, onEvents: () => {} })
  await dropEvents(database.sql, new Date(Date.now() + 60_000))
  const kept = await insert({}, {})
  // nobody was there since: the past is not in the poller's memory any more
  const again = await Client.open()
  again.say({ op: 'subscribe', topics: ['device/*'], after: cursor })
  const { error } = await again.heard(({ op }) => op === 'error')
  assert.deepEqual(error, {
    code: 'FAILED_PRECONDITION',
    message: error!.message,
    details: { reason: 'events_dropped', after: cursor!, dropped_cursor: lastGone! },
  })
  assert.equal(again.events.length, 0)
  again.say({ op: 'subscribe', topics: ['device/*'], after: error!.details!['dropped_cursor'] })
  await again.heard(() => again.events.length === 2)
  assert.deepEqual(again.ids, kept)
  await again.close()
  // between two pages of a long past: not passed over either
  await assert.rejects(stream.page('default', Number(cursor), Number.MAX_SAFE_INTEGER, 100), {
    code: 'FAILED_PRECONDITION',
  })
  assert.equal((await stream.page('default', 0, Number.MAX_SAFE_INTEGER, 100)).length, 2)
  stream.stop()
  assert.equal(gone.length, 3)
})

// ---- who misbehaves ------------------------------------------------------------------------------------------------

test('a subscriber that does not read is told, closed with 4008, and nobody else notices', async () => {
  const others = await Promise.all(Array.from({ length: 5 }, () => Client.open()))
  const slow = await Client.open()
  for (const client of [...others, slow]) await client.subscribe(['device/*'])
  slow.socket.pause()
  const droppedBefore = dropped
  const delays: number[] = []
  let count = 0
  // the kernel takes megabytes before anything waits here
  for (let batch = 0; batch < 200 && cuts === 0; batch++) {
    const sentMonoMs = performance.now()
    const ids = await insert(...Array.from({ length: 20 }, () => ({ data: { pad: 'z'.repeat(4_000) } })))
    count += ids.length
    await Promise.all(
      others.map(async (client) => {
        await client.heard(({ event }) => event?.event_id === ids.at(-1))
        delays.push(performance.now() - sentMonoMs)
      }),
    )
  }
  assert.equal(cuts, 1)
  assert.ok(dropped > droppedBefore)
  for (const client of others) assert.equal(client.events.length, count)
  delays.sort((a, b) => a - b)
  const p99 = delays[Math.floor(delays.length * 0.99)]!
  assert.ok(p99 < 1_000, `others waited ${p99} ms`)
  assert.equal(subscribers, others.length, 'the slow one is gone from the books')

  slow.socket.resume()
  assert.equal(await slow.ended, 4008)
  assert.equal(slow.said.at(-1)!.op, 'lagging')
  // what it did hear is whole, so that it can go on from there
  const again = await Client.open()
  const last = slow.events.at(-1)!
  await again.subscribe(['device/*'], last.cursor!)
  await again.heard(() => slow.events.length + again.events.length >= count, 10_000)
  assert.deepEqual([...slow.ids, ...again.ids], others[0]!.ids)
  await Promise.all([...others, again].map((client) => client.close()))
})

test('one that stalls while it catches up is waited for, then told and closed with 4008; one that reads slowly is not', async () => {
  const client = await Client.open()
  const { cursor } = await client.subscribe(['device/*'])
  await client.close()
  const ids: string[] = []
  // more than the kernel takes
  for (let batch = 0; batch < 20; batch++)
    ids.push(...(await insert(...Array.from({ length: 50 }, () => ({ data: { pad: 'w'.repeat(20_000) } })))))
  const [cutsBefore, subscribersBefore] = [cuts, subscribers]
  const [stalled, slow] = [await Client.open(), await Client.open()]
  stalled.socket.pause()
  for (const one of [stalled, slow]) one.say({ op: 'subscribe', topics: ['device/*'], after: cursor })
  const startedMs = performance.now()
  let isReading = true
  const reading = (async () => {
    for (; isReading; await sleep(20)) {
      slow.socket.pause()
      await sleep(60)
      slow.socket.resume()
    }
  })()
  try {
    while (cuts === cutsBefore) {
      assert.ok(performance.now() - startedMs < 10_000, 'never cut')
      await sleep(20)
    }
    assert.ok(performance.now() - startedMs >= 650, 'waited for')
    assert.equal(subscribers, subscribersBefore + 1, 'the stalled one is gone from the books')
    await slow.heard(() => slow.events.length >= ids.length, 30_000)
  } finally {
    isReading = false
    await reading
  }
  assert.deepEqual(slow.ids, ids)
  assert.equal(cuts, cutsBefore + 1)
  stalled.socket.resume()
  assert.equal(await stalled.ended, 4008)
  assert.equal(stalled.said.at(-1)!.op, 'lagging')
  // from memory too no more at once than asked for
  const from = stream.position!
  const more = await insert(...Array.from({ length: 30 }, () => ({})))
  await slow.heard(({ event }) => event?.event_id === more.at(-1))
  assert.deepEqual([stream.recentAfter(from, 10)?.length, stream.recentAfter(from, 100)?.length], [10, 30])
  await slow.close()
})

test('nonsense is answered with an error and costs nobody else; too much of it ends the connection', async () => {
  const client = await Client.open()
  const wrong: unknown[] = [
    'no json',
    '[1]',
    'null',
    { op: 'publish' },
    { op: 'subscribe' },
    { op: 'subscribe', topics: [] },
    { op: 'subscribe', topics: ['device/../x'] },
    { op: 'subscribe', topics: ['everything'] },
    { op: 'subscribe', topics: [7] },
    `{"op":"subscribe","topics":[${'['.repeat(10_000)}${']'.repeat(10_000)}]}`,
    { op: 'subscribe', topics: ['device/*'], after: 'x' },
    { op: 'subscribe', topics: ['device/*'], after: -1 },
    { op: 'subscribe', topics: ['device/*'], after: 1.5 },
    { op: 'subscribe', topics: ['device/*'], after: '9000000000000000' },
  ]
  for (const message of wrong) {
    const before = client.said.length
    client.say(message)
    const said = await client.heard((one) => client.said.indexOf(one) >= before)
    assert.equal(said.op, 'error', JSON.stringify(message).slice(0, 100))
    assert.equal(said.error!.code, 'INVALID_ARGUMENT')
  }
  client.say({ op: 'ping' })
  await client.heard(({ op }) => op === 'pong')
  for (let n = 0; n < 100; n++) client.say('nonsense')
  assert.equal(await client.ended, 1008)
})

test('a message of more than 64 KiB ends its connection', async () => {
  const client = await Client.open()
  client.say({ op: 'ping', pad: 'x'.repeat(60_000) })
  await client.heard(({ op }) => op === 'pong')
  client.say({ op: 'ping', pad: 'x'.repeat(70_000) })
  assert.ok([1006, 1009].includes(await client.ended))
})

test('subscriptions are bounded: topics per connection, operations that wait, subscribers', async () => {
  const client = await Client.open()
  const topics = Array.from({ length: TOPICS_MAX }, (_, n) => `device/${String(n).padStart(8, '0')}`)
  assert.equal((await client.subscribe(topics)).topics!.length, TOPICS_MAX)
  client.say({ op: 'subscribe', topics: ['order/*'] })
  assert.match((await client.heard(({ op }) => op === 'error')).error!.message, /100 topics/)
  // nothing of the refused one stayed
  const ids = await insert({ type: 'charging.started', device: 'ffffffff' }, { device: '00000005' })
  await client.heard(({ event }) => event?.event_id === ids[1])
  assert.deepEqual(client.ids, [ids[1]])

  // a past that memory does not hold
  await insert(...Array.from({ length: 300 }, () => ({ tenant: 'other' })))
  const bomber = await Client.open()
  for (let n = 0; n < 50; n++) bomber.say({ op: 'subscribe', topics: ['device/*'], after: '0' })
  await bomber.heard(({ error }) => error?.code === 'TOO_MANY_REQUESTS')
  client.say({ op: 'ping' })
  await client.heard(({ op }) => op === 'pong')
  bomber.socket.terminate()
  await bomber.ended
  await subscribersAre(1)

  const crowd = await Promise.all(Array.from({ length: SUBSCRIBERS_MAX - subscribers }, () => Client.open()))
  assert.equal(await new Client().ended, 503)
  await crowd[0]!.close()
  await subscribersAre(SUBSCRIBERS_MAX - 1)
  await (await Client.open()).close()
  for (const one of [...crowd, client]) one.socket.terminate()
  await Promise.all([...crowd, client].map(({ ended }) => ended))
  await subscribersAre(0)
  assert.deepEqual(troubles, [])
})

test('at the end everybody is told so', async () => {
  const client = await Client.open()
  await client.subscribe(['device/*'])
  hub.close()
  assert.equal(await client.ended, 1001)
  assert.equal(await new Client().ended, 503)
})
