/**
 * Claimed: every event that an endpoint wants arrives there, in the order of its order or device, and has its effect
 * once at a receiver that knows events by their id, whatever the receiver does meanwhile (field-notes D7, D8, F5); a dead
 * endpoint costs the others nothing; two relays on one database send nothing twice.
 *
 * Tried with the relay in this thread, a real PostgreSQL and real HTTP receivers, one per fault. The schedule is a few
 * milliseconds long, everything else is as in the gateway.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { type AddressInfo, createServer as createTcp, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventIdOf } from '../../src/events/event-id.ts'
import { connect, type Sql } from '../../src/main/database/connect.ts'
import { createLog } from '../../src/main/log.ts'
import { openTestDatabase, type TestDatabase } from '../../src/testing/database.ts'
import { eventually } from '../../src/testing/gateway-process.ts'
import { openReceiver, type Receiver, type ReceiverOptions } from '../../src/testing/webhook-receiver.ts'
import { makeSecret } from '../../src/webhooks/sign.ts'
import { type AttemptResult, Relay, type RelayOptions, type RelayParts } from './relay.ts'
import { endRest, fanOut, queueAgain, queueDeliveryAgain, stopEndpoint } from './store.ts'

let database: TestDatabase
let sql: Sql
before(async () => {
  database = await openTestDatabase()
  sql = database.sql
})
after(async () => await database.close())

const closers: (() => Promise<void>)[] = []
let results: AttemptResult[] = []
let events = 0
let endpoints = 0
beforeEach(async () => {
  results = []
  await sql`truncate webhook_deliveries, webhook_endpoints, events`
  await sql`update webhook_positions set cursor = (select coalesce(max(cursor), 0) from events)`
})
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close()
})

const log = createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'relay' })
function startRelay(options: Partial<RelayOptions> = {}, parts: Partial<RelayParts> = {}): Relay {
  const relay = new Relay(
    {
      name: 'test:/data',
      timeoutMs: 300,
      concurrency: 8,
      scheduleMs: [20, 20, 20, 40, 40, 40],
      disableAfterMs: 3_600_000,
      retentionDays: 30,
      pollMs: 25,
      guard: { allowPrivate: true, allowedHosts: [] },
      ...options,
    },
    { sql, log, onAttempt: (result) => results.push(result), onPending: () => {}, ...parts },
  )
  relay.start()
  closers.push(() => relay.stop(1_000))
  return relay
}

interface EndpointOptions {
  readonly types?: string[]
  readonly devices?: string[]
  readonly tenant?: string
  readonly secret?: string
}
async function endpointAt(
  url: string,
  { types = [], devices = [], tenant = 'default', secret = makeSecret() }: EndpointOptions = {},
) {
  const id = `wh_${++endpoints}`
  await sql`
    insert into webhook_endpoints (endpoint_id, tenant_id, url, event_types, device_ids, secret)
    values (${id}, ${tenant}, ${url}, ${types}, ${devices}, ${secret})`
  return id
}
/** A receiver and an endpoint that leads to it. */
async function hook(
  options: ReceiverOptions & EndpointOptions = {},
): Promise<{ receiver: Receiver; id: string; secret: string }> {
  const secret = makeSecret()
  const receiver = await openReceiver({ secrets: () => [secret], ...options })
  closers.push(() => receiver.close())
  return { receiver, id: await endpointAt(receiver.url, { secret, ...options }), secret }
}

interface EventOptions {
  readonly device?: string
  readonly order?: string | null
  readonly type?: string
  readonly tenant?: string
  readonly n?: number
}
async function happen(
  count: number,
  { device = '04ab373b', order = null, type = 'device.alarm', tenant = 'default' }: EventOptions = {},
) {
  const rows = Array.from({ length: count }, () => {
    const n = ++events
    return {
      event_id: eventIdOf('test', n),
      event_type: type,
      tenant_id: tenant,
      device_id: device,
      order_key: order,
      epoch: 1,
      at: new Date(),
      data: sql.json({ n }),
    }
  })
  await sql`insert into events ${sql(rows as never)}`
  return rows.map((row) => row.event_id)
}
const pending = async (id: string) =>
  Number(
    (await sql`select count(*)::int as n from webhook_deliveries where endpoint_id = ${id} and status = 'pending'`)[0]![
      'n'
    ],
  )
const settled = (id: string, count: number, withinMs = 5_000) =>
  eventually(
    `${count} deliveries of ${id} ended`,
    async () =>
      await sql`select status, attempts, last_status, last_error, attempt_log, event_id from webhook_deliveries where endpoint_id = ${id} order by delivery_id`,
    (rows) => rows.length === count && rows.every((row) => row['status'] !== 'pending'),
    withinMs,
  )
const numbersOf = (list: readonly { data: Readonly<Record<string, unknown>> }[]) =>
  list.map(({ data }) => Number(data['n']))
const isSorted = (list: readonly number[]) => list.every((n, index) => index === 0 || n > list[index - 1]!)

describe('what arrives', () => {
  test('the event object, signed by both conventions, at the endpoints that want it and no others', async () => {
    const all = await hook({ path: '/in?x=1&y=%20z' })
    const ended = await hook({ types: ['charging.ended'] })
    const device = await hook({ devices: ['0000beef'] })
    await sql`insert into tenants (tenant_id, name) values ('north', 'North') on conflict do nothing`
    const north = await hook({ tenant: 'north' })
    startRelay()
    const [first] = await happen(1)
    await happen(1, { type: 'charging.ended', order: 'N1' })
    await happen(1, { device: '0000beef' })
    await settled(all.id, 3)
    await settled(ended.id, 1)
    await settled(device.id, 1)
    assert.equal(north.receiver.received.length, 0)
    const one = all.receiver.received.find(({ event }) => event.event_id === first)!
    assert.equal(one.own, all.secret)
    assert.deepEqual(one.standard, [all.secret])
    assert.equal(one.target, '/in?x=1&y=%20z')
    assert.equal(one.headers['webhook-id'], first)
    assert.equal(one.headers['x-api-key'], all.id)
    assert.equal(one.headers['content-type'], 'application/json')
    assert.deepEqual(Object.keys(one.event), ['event_id', 'event_type', 'device_phy_id', 'timestamp', 'nonce', 'data'])
    assert.ok(Math.abs(Number(one.headers['x-timestamp']) - Date.now() / 1_000) < 5)
    assert.equal(all.receiver.nonces.size, 3)
    assert.deepEqual(results, Array(5).fill('delivered'))
  })

  test('the delay is from the commit to the 2xx, failed attempts included, and no redelivery', async () => {
    const delays: number[] = []
    const { receiver, id } = await hook({ behave: () => (receiver.received.length === 1 ? 500 : 200) })
    startRelay({ scheduleMs: [200] }, { onDelivered: (seconds) => delays.push(seconds) })
    const [eventId] = await happen(1)
    await settled(id, 1)
    await sql.begin((tx) => queueAgain(tx, id, { eventId: eventId! }))
    await settled(id, 2)
    assert.equal(delays.length, 1)
    assert.ok(delays[0]! >= 0.155 && delays[0]! < 10, `${delays[0]} s`)
  })

  test('first 500, then 200: the same body again, a new nonce, one effect (D7)', async () => {
    const { receiver, id } = await hook({ behave: () => (receiver.received.length === 1 ? 500 : 200) })
    startRelay()
    await happen(1)
    const [row] = await settled(id, 1)
    assert.deepEqual([row!['status'], row!['attempts'], row!['last_status']], ['delivered', 2, 200])
    assert.equal(receiver.received[0]!.body, receiver.received[1]!.body)
    assert.ok(receiver.received.every(({ own, standard }) => own !== undefined && standard.length === 1))
    assert.equal(receiver.nonces.size, 2)
    assert.equal(receiver.effects.length, 1)
    const log = row!['attempt_log'] as { status: number; answer: string; duration_ms: number; error: string | null }[]
    assert.deepEqual(
      log.map(({ status, answer, error }) => [status, answer, error]),
      [
        [500, 'no: 500', 'status 500'],
        [200, 'thanks', null],
      ],
    )
  })

  test('while secrets rotate both sign; when the overlap is over, the new one alone', async () => {
    const old = makeSecret()
    const fresh = makeSecret()
    const { receiver, id } = await hook({ secrets: () => [old, fresh], secret: fresh })
    await sql`
      update webhook_endpoints set previous_secret = ${old}, previous_secret_until = now() + interval '1 hour' where endpoint_id = ${id}`
    startRelay()
    await happen(1)
    await settled(id, 1)
    assert.deepEqual(
      [receiver.received[0]!.own, [...receiver.received[0]!.standard].sort()],
      [fresh, [old, fresh].sort()],
    )
    assert.match(String(receiver.received[0]!.headers['x-signature-previous']), /^[0-9a-f]{64}$/)
    await sql`update webhook_endpoints set previous_secret_until = now() where endpoint_id = ${id}`
    await happen(1)
    await settled(id, 2)
    assert.deepEqual(receiver.received[1]!.standard, [fresh])
    assert.equal(receiver.received[1]!.headers['x-signature-previous'], undefined)
  })
})

describe('faults', () => {
  /** Three failures of a kind, then health: one effect per event, in order. */
  async function survives(
    fail: (receiver: Receiver, response: Parameters<Receiver['behave']>[1]) => number | undefined,
  ) {
    const { receiver, id } = await hook({
      behave: (_, response) => (receiver.received.length <= 3 ? fail(receiver, response) : 200),
    })
    startRelay()
    await happen(3)
    const rows = await settled(id, 3, 8_000)
    assert.ok(rows.every((row) => row['status'] === 'delivered'))
    assert.deepEqual([receiver.effects.length, isSorted(numbersOf(receiver.effects))], [3, true])
    const [health] = await sql`select failing_since, status from webhook_endpoints where endpoint_id = ${id}`
    assert.deepEqual([health!['failing_since'], health!['status']], [null, 'active'])
    return {
      log: rows[0]!['attempt_log'] as { status: number | null; error: string; duration_ms: number; answer: string }[],
    }
  }

  test('500s', async () => assert.equal((await survives(() => 500)).log.length, 4))
  test('400s', async () => assert.equal((await survives(() => 400)).log[0]!.error, 'status 400'))
  test('hangs', async () => {
    const { log } = await survives(() => undefined)
    assert.deepEqual([log[0]!.status, log[0]!.error], [null, 'timeout'])
    assert.ok(log[0]!.duration_ms >= 280 && log[0]!.duration_ms < 1_000, `${log[0]!.duration_ms} ms`)
  })
  test('drips its head, byte by byte', async () => {
    const { log } = await survives((_, response) => {
      const { socket } = response
      const text = 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n'
      let at = 0
      const timer = setInterval(
        () => (at < text.length && socket?.writable ? socket.write(text[at++]!) : clearInterval(timer)),
        50,
      )
      socket?.on('error', () => {})
      return undefined
    })
    assert.equal(log[0]!.error, 'timeout')
  })
  test('resets', async () => {
    const { log } = await survives((_, response) => {
      ;(response.socket as Socket).resetAndDestroy()
      return undefined
    })
    assert.equal(log[0]!.error, 'ECONNRESET')
  })
  test('redirects, to a place that would take it', async () => {
    const { receiver } = await hook({ types: ['nothing'] })
    const { log } = await survives((_, response) => {
      response.writeHead(307, { location: receiver.url }).end()
      return undefined
    })
    assert.deepEqual([log[0]!.status, receiver.received.length], [307, 0])
  })
  test('answers what is no HTTP', async () => {
    const { log } = await survives((_, response) => {
      response.socket?.end('220 smtp.example.com ESMTP\r\n')
      return undefined
    })
    assert.equal(log[0]!.status, null)
  })

  test('a huge body, and one that never ends: delivered, cut, 256 bytes kept', async () => {
    const { receiver, id } = await hook({
      behave: (_, response) => {
        response.writeHead(200)
        const chunk = 'x\u0000'.repeat(32_768)
        if (receiver.received.length === 1) response.end(chunk.repeat(100))
        else response.write('dribble')
        return undefined
      },
    })
    startRelay({ timeoutMs: 400 })
    await happen(2)
    const rows = await settled(id, 2)
    assert.deepEqual(
      rows.map((row) => [row['status'], row['attempts'], row['attempt_log'][0].answer]),
      [
        ['delivered', 1, 'x\ufffd'.repeat(128)],
        ['delivered', 1, 'dribble'],
      ],
    )
  })

  test('410 stops the endpoint, what waited is cancelled, nothing more goes there', async () => {
    const { receiver, id } = await hook({ behave: () => 410 })
    startRelay()
    await happen(5)
    const rows = await settled(id, 5)
    assert.deepEqual(
      rows.map((row) => row['status']),
      ['dead', 'cancelled', 'cancelled', 'cancelled', 'cancelled'],
    )
    const [endpoint] = await sql`select status, stop_reason from webhook_endpoints where endpoint_id = ${id}`
    assert.deepEqual([endpoint!['status'], endpoint!['stop_reason']], ['stopped', 'answered 410'])
    await happen(1)
    await sleep(150)
    assert.equal(receiver.received.length, 1)
    assert.deepEqual(results, ['stopped'])
    const audit = await sql`select actor from audit_logs where action = 'webhook.stopped' and target = ${id}`
    assert.equal(audit.length, 1)
  })

  test('who was stopped is told to the tenant by an event, once per stop, and to nobody else', async () => {
    const gone = await hook({ behave: () => 410 })
    const other = await hook({ types: ['webhook.disabled'] })
    await sql`insert into tenants (tenant_id, name) values ('north', 'North') on conflict do nothing`
    const north = await hook({ tenant: 'north' })
    startRelay()
    for (let stop = 1; stop <= 2; stop++) {
      await happen(3)
      await settled(other.id, stop)
      const { event } = other.receiver.received[stop - 1]!
      assert.deepEqual([event.event_type, event.device_phy_id], ['webhook.disabled', ''])
      assert.deepEqual(event.data, {
        webhook_id: gone.id,
        reason: 'gone',
        detail: 'answered 410',
        failing_since: null,
        cancelled_deliveries: 2,
      })
      // as PATCH {"status":"active"} does
      await sql`
        update webhook_endpoints set status = 'active', from_cursor = (select max(cursor) from events)
        where endpoint_id = ${gone.id}`
    }
    assert.equal(new Set(other.receiver.received.map(({ event }) => event.event_id)).size, 2)
    assert.equal(gone.receiver.received.length, 2)
    assert.equal(north.receiver.received.length, 0)
  })

  test('a stop and its event are one transaction: without the event there is no stop', async () => {
    const { id } = await hook()
    await happen(1)
    await fanOut(sql, 100)
    await sql`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$`
    await sql`create trigger refuse before insert on events for each statement execute function refuse()`
    try {
      await assert.rejects(stopEndpoint(sql, id, 'gone', 'test'))
    } finally {
      await sql`drop trigger refuse on events`
      await sql`drop function refuse`
    }
    const [endpoint] = await sql`select status from webhook_endpoints where endpoint_id = ${id}`
    assert.deepEqual([endpoint!['status'], await pending(id)], ['active', 1])
  })

  test('429 with Retry-After: the whole endpoint rests that long, nobody is asked before', async () => {
    const { receiver, id } = await hook({
      behave: (_, response) => {
        if (receiver.received.length > 1) return 200
        response.writeHead(429, { 'retry-after': '1' }).end()
        return undefined
      },
    })
    startRelay({ concurrency: 1 })
    for (let device = 0; device < 6; device++) await happen(1, { device: `0000000${device}` })
    const rows = await settled(id, 6)
    assert.ok(rows.every((row) => row['status'] === 'delivered'))
    assert.equal(
      rows.reduce((sum, row) => sum + Number(row['attempts']), 0),
      7,
    )
    const [first, second] = receiver.received
    assert.ok(second!.atMonoMs - first!.atMonoMs >= 990, `${second!.atMonoMs - first!.atMonoMs} ms`)
  })

  test('a rest of an hour outlives a restart, and ends when its owner asks for a delivery', async () => {
    const { receiver, id } = await hook({
      behave: (_, response) => {
        if (receiver.received.length > 1) return 200
        response.writeHead(503, { 'retry-after': '3600' }).end()
        return undefined
      },
    })
    const first = startRelay({ concurrency: 1 })
    for (let device = 0; device < 3; device++) await happen(1, { device: `0000000${device}` })
    const restMs = () =>
      sql`select extract(epoch from rest_until - now()) * 1000 as ms from webhook_endpoints where endpoint_id = ${id}`
    await eventually('rest', restMs, ([row]) => Number(row!['ms']) > 3_590_000)
    await first.stop(1_000)
    const second = startRelay({ concurrency: 1 })
    await sleep(200)
    assert.equal(receiver.received.length, 1)
    const [newest] = await sql`select max(delivery_id) as delivery_id from webhook_deliveries`
    await sql.begin(async (tx) => {
      await endRest(tx, id)
      await queueDeliveryAgain(tx, id, Number(newest!['delivery_id']))
    })
    second.wake()
    assert.ok((await settled(id, 3)).every((row) => row['status'] === 'delivered'))
  })

  test('a rest that this relay remembers ends all the same', async () => {
    const { receiver, id } = await hook({
      behave: (_, response) => {
        if (receiver.received.length > 1) return 200
        response.writeHead(429, { 'retry-after': '3600' }).end()
        return undefined
      },
    })
    startRelay({ concurrency: 1 })
    await happen(1)
    await eventually(
      'rest',
      () => sql`select from webhook_endpoints where endpoint_id = ${id} and rest_until > now()`,
      ({ length }) => length === 1,
    )
    await happen(1, { device: '00000001' })
    await sleep(100)
    assert.equal(receiver.received.length, 1)
    await sql.begin((tx) => endRest(tx, id))
    assert.ok((await settled(id, 2)).every((row) => row['status'] === 'delivered'))
  })

  test('TLS that nobody vouches for', async (context) => {
    const dir = mkdtempSync(join(tmpdir(), 'pilegate-tls-'))
    closers.push(async () => rmSync(dir, { recursive: true }))
    const [key, cert] = [join(dir, 'key.pem'), join(dir, 'cert.pem')]
    try {
      const subject = ['-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1']
      const made = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1']
      execFileSync('openssl', [...made, '-keyout', key, '-out', cert, ...subject], { stdio: 'ignore' })
    } catch {
      return context.skip('no openssl to make a certificate with')
    }
    const { receiver, id } = await hook({ tls: { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') } })
    startRelay({ scheduleMs: [10] })
    await happen(1)
    const [row] = await settled(id, 1)
    assert.deepEqual([row!['status'], row!['attempts'], row!['last_error']], ['dead', 2, 'DEPTH_ZERO_SELF_SIGNED_CERT'])
    assert.equal(receiver.received.length, 0)
  })

  test('nobody there, no such name: dead at the end of the schedule, each attempt in the log', async () => {
    const { receiver } = await hook({ types: ['nothing'] })
    await receiver.close()
    const refused = await endpointAt(receiver.url)
    const unknown = await endpointAt('http://no-such-host.invalid/')
    startRelay(
      { scheduleMs: [10, 10] },
      {
        resolve: async (host) => {
          if (host.endsWith('.invalid')) throw Object.assign(new Error('no'), { code: 'ENOTFOUND' })
          return [{ address: host, family: 4 }]
        },
      },
    )
    await happen(1)
    for (const [id, error] of [
      [refused, 'ECONNREFUSED'],
      [unknown, 'ENOTFOUND'],
    ] as const) {
      const [row] = await settled(id, 1)
      assert.deepEqual([row!['status'], row!['attempts'], row!['last_error']], ['dead', 3, error])
      assert.equal(row!['attempt_log'].length, 3)
    }
    assert.deepEqual(results.filter((result) => result === 'dead').length, 2)
  })

  test('a name that leads inside is not connected to, whatever else it leads to', async () => {
    const { receiver } = await hook({ types: ['nothing'] })
    const inside = await endpointAt(`http://rebound.example:${receiver.port}/`)
    const literal = await endpointAt(receiver.url)
    const listed = await endpointAt(`http://listed.example:${receiver.port}/`)
    let asked = 0
    startRelay(
      { scheduleMs: [], guard: { allowPrivate: false, allowedHosts: ['listed.example'] } },
      {
        resolve: async () => {
          asked++
          return [{ address: '127.0.0.1', family: 4 }]
        },
      },
    )
    await happen(1)
    for (const id of [inside, literal]) {
      const [row] = await settled(id, 1)
      assert.deepEqual([row!['status'], row!['last_error']], ['dead', 'address_refused'])
    }
    assert.equal((await settled(listed, 1))[0]!['status'], 'delivered')
    assert.deepEqual([asked, receiver.received.length], [2, 1])
  })

  test('an endpoint that fails for too long is stopped, and says since when', async () => {
    const { id } = await hook({ behave: () => 500 })
    startRelay({ disableAfterMs: 120 })
    await happen(2)
    const rows = await settled(id, 2)
    assert.ok(rows.every((row) => row['status'] === 'cancelled'))
    const [endpoint] = await sql`select status, stop_reason from webhook_endpoints where endpoint_id = ${id}`
    assert.equal(endpoint!['status'], 'stopped')
    assert.match(String(endpoint!['stop_reason']), /^failed since 20.*: status 500$/)
    const [told] = await sql`select data from events where event_type = 'webhook.disabled'`
    const { webhook_id: webhookId, reason, detail, failing_since: since } = told!['data']
    assert.deepEqual([webhookId, reason, detail], [id, 'failing', endpoint!['stop_reason']])
    assert.ok(Date.parse(since) > Date.now() - 60_000)
  })
})

describe('what an endpoint has of its own', () => {
  const set = async (id: string, of: { scheduleS?: number[]; timeoutMs?: number; concurrency?: number }) =>
    await sql`
      update webhook_endpoints set retry_schedule_s = ${of.scheduleS ?? null}, timeout_ms = ${of.timeoutMs ?? null},
        concurrency = ${of.concurrency ?? null} where endpoint_id = ${id}`

  test('schedule: its own number of attempts and delays, the other as configured', async () => {
    const own = await hook({ behave: () => 500 })
    const common = await hook({ behave: () => 500 })
    await set(own.id, { scheduleS: [0.2, 0.01] })
    startRelay({ scheduleMs: [10] })
    await happen(1)
    const [ownRow] = await settled(own.id, 1)
    const [commonRow] = await settled(common.id, 1)
    assert.deepEqual([ownRow!['attempts'], ownRow!['status']], [3, 'dead'])
    assert.deepEqual([commonRow!['attempts'], commonRow!['status']], [2, 'dead'])
    const [first, second] = own.receiver.received
    // 200 ms less the fifth by which delays are spread
    assert.ok(second!.atMonoMs - first!.atMonoMs >= 155, `${second!.atMonoMs - first!.atMonoMs} ms`)
  })

  test('timeout: the patient one is waited for, the impatient one is cut', async () => {
    const slow: ReceiverOptions['behave'] = (_, response) =>
      void setTimeout(() => response.writableEnded || response.writeHead(200).end(), 400)
    const patient = await hook({ behave: slow })
    const impatient = await hook({ behave: slow })
    await set(patient.id, { timeoutMs: 20_000 })
    await set(impatient.id, { timeoutMs: 60 })
    startRelay({ timeoutMs: 200, scheduleMs: [] })
    await happen(1)
    assert.deepEqual([(await settled(patient.id, 1))[0]!['status']], ['delivered'])
    const [cut] = await settled(impatient.id, 1)
    assert.deepEqual([cut!['status'], cut!['last_error']], ['dead', 'timeout'])
    assert.ok(cut!['attempt_log'][0].duration_ms < 200, `${cut!['attempt_log'][0].duration_ms} ms`)
  })

  test('concurrency: never more under way than its own, changed while it runs', async () => {
    const most = new Map<string, number>()
    const counting = (name: string): NonNullable<ReceiverOptions['behave']> => {
      let active = 0
      return (_, response) => {
        most.set(name, Math.max(most.get(name) ?? 0, ++active))
        setTimeout(() => {
          active--
          response.writeHead(200).end()
        }, 20)
        return undefined
      }
    }
    const one = await hook({ behave: counting('one') })
    const many = await hook({ behave: counting('many') })
    await set(one.id, { concurrency: 1 })
    await set(many.id, { concurrency: 20 })
    startRelay({ concurrency: 3 })
    for (let device = 10; device < 50; device++) await happen(1, { device: `000000${device}` })
    await settled(one.id, 40)
    await settled(many.id, 40)
    assert.equal(most.get('one'), 1)
    assert.ok(most.get('many')! > 3 && most.get('many')! <= 20, `${most.get('many')}`)
    await set(many.id, { concurrency: 2 })
    // the next claim tells the relay
    await happen(1)
    await settled(many.id, 41)
    most.clear()
    for (let device = 10; device < 50; device++) await happen(1, { device: `000000${device}` })
    await settled(many.id, 81)
    assert.equal(most.get('many'), 2)
  })
})

describe('order and isolation', () => {
  test('lanes keep their order under random failures, each event has its effect once', async () => {
    let seed = 91_827
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647
      return seed / 2_147_483_647
    }
    const { receiver, id } = await hook({ behave: () => (random() < 0.3 ? 503 : 200) })
    startRelay({ scheduleMs: Array(30).fill(5) })
    // of each device what is about its two orders, and what is about none
    const devices = Array.from({ length: 12 }, (_, index) => `0000000${index.toString(16)}`)
    for (let round = 0; round < 20; round++)
      for (const device of devices) await happen(1, { device, order: [null, 'N1', 'N2'][round % 3]! })
    const rows = await settled(id, 240, 20_000)
    assert.ok(rows.every((row) => row['status'] === 'delivered'))
    assert.equal(receiver.effects.length, 240)
    assert.ok(receiver.received.length > 260, 'the receiver did fail')
    const [laneRows, numbers] = [
      new Map<string, number[]>(),
      new Map(receiver.effects.map((event) => [event.event_id, Number(event.data['n'])])),
    ]
    for (const { event_id: eventId, lane } of await sql<{ event_id: string; lane: string }[]>`
      select event_id, lane from webhook_deliveries order by array_position(${receiver.effects.map((e) => e.event_id)}::text[], event_id)`)
      laneRows.set(lane, [...(laneRows.get(lane) ?? []), numbers.get(eventId)!])
    assert.equal(laneRows.size, 12)
    for (const [lane, list] of laneRows) assert.ok(list.length === 20 && isSorted(list), `${lane}: ${list}`)
  })

  test('a dead and a hanging endpoint cost the others nothing (D8)', async () => {
    const healthy = await hook()
    const hanging = await hook({ behave: () => undefined })
    const holes: Socket[] = []
    const hole = createTcp((socket) => void holes.push(socket.on('error', () => {})))
    await new Promise<void>((resolve) => hole.listen(0, '127.0.0.1', resolve))
    closers.push(async () => {
      for (const socket of holes) socket.destroy()
      hole.close()
    })
    const dead = await endpointAt(`http://127.0.0.1:${(hole.address() as AddressInfo).port}/`)
    startRelay({ timeoutMs: 30_000, concurrency: 4 })
    for (let batch = 0; batch < 10; batch++)
      for (let device = 0; device < 20; device++)
        await happen(1, { device: `000000${String(device).padStart(2, '0')}` })
    await settled(healthy.id, 200, 5_000)
    assert.equal(healthy.receiver.effects.length, 200)
    // none is lost: what is not made yet lies behind held_cursor
    for (const id of [hanging.id, dead]) {
      const waiting = await pending(id)
      assert.ok(waiting >= 4 && waiting <= 200, `${waiting}`)
    }
    assert.ok(hanging.receiver.received.length <= 4 && holes.length <= 4, 'no more under way than allowed')
    for (const id of [hanging.id, dead]) await sql`delete from webhook_endpoints where endpoint_id = ${id}`
  })

  test('the stream goes on without an endpoint that fails; when it is well it gets everything, once and in order', async () => {
    let isDown = true
    const sick = await hook({ behave: () => (isDown ? 500 : 200) })
    const healthy = await hook()
    startRelay({ scheduleMs: Array(50).fill(100), concurrency: 16 })
    const devices = Array.from({ length: 20 }, (_, device) => `000000${device + 10}`)
    for (const device of devices) await happen(2, { device })
    await eventually(
      'it is held',
      async () => await sql`select from webhook_endpoints where endpoint_id = ${sick.id} and held_cursor is not null`,
      ({ count }) => count === 1,
    )
    for (const device of devices) await happen(60, { device })
    await settled(healthy.id, 1_240, 30_000)
    // a few are tried, the rest is not even written
    assert.ok((await pending(sick.id)) <= 40 + 2 * 200, `${await pending(sick.id)}`)
    isDown = false
    const rows = await settled(sick.id, 1_240, 30_000)
    assert.ok(rows.every((row) => row['status'] === 'delivered'))
    assert.equal(sick.receiver.effects.length, 1_240)
    for (const device of devices)
      assert.ok(isSorted(numbersOf(sick.receiver.effects.filter((event) => event.device_phy_id === device))), device)
    await eventually(
      'it goes with the stream again',
      async () => await sql`select from webhook_endpoints where held_cursor is not null`,
      ({ count }) => count === 0,
    )
    await happen(1)
    await settled(sick.id, 1_241)
  })

  test('two gateways on one database: everything once, in order', async () => {
    const { receiver, id } = await hook()
    const other = connect(database.url, { max: 3 })
    closers.push(() => other.end({ timeout: 1 }))
    startRelay({ name: 'a:/data' })
    startRelay({ name: 'b:/data' }, { sql: other })
    for (let round = 0; round < 15; round++) for (const order of ['A', 'B', 'C', 'D', 'E']) await happen(2, { order })
    await settled(id, 150)
    assert.equal(receiver.received.length, 150)
    assert.equal(receiver.effects.length, 150)
  })

  test('what a dead process held goes out at the start of the next, also what the lease of another left', async () => {
    const { receiver, id } = await hook()
    await happen(3)
    while ((await fanOut(sql, 100)) > 0);
    await sql`
      update webhook_deliveries set claimed_by = 'test:/data', next_attempt_at = now() + interval '1 hour' where next_attempt_at is not null`
    await happen(2, { device: '0000beef' })
    while ((await fanOut(sql, 100)) > 0);
    await sql`
      update webhook_deliveries set claimed_by = 'other:/data', next_attempt_at = now() + interval '200 ms'
      where next_attempt_at is not null and lane = 'device 0000beef'`
    startRelay()
    await settled(id, 5)
    assert.equal(receiver.effects.length, 5)
  })

  test('stopping: what is under way ends, what hangs is cut off, and both are known by the next relay', async () => {
    let isHanging = true
    const { receiver, id } = await hook({
      behave: (received, response) => {
        if (!isHanging) return 200
        if (received.event.device_phy_id === '0000beef') return undefined
        setTimeout(() => response.writeHead(200).end(), 80)
        return undefined
      },
    })
    const relay = startRelay({ timeoutMs: 30_000 })
    await happen(1)
    await happen(1, { device: '0000beef' })
    await eventually(
      'both are under way',
      () => receiver.received.length,
      (count) => count === 2,
    )
    const startedMonoMs = performance.now()
    await relay.stop(400)
    assert.ok(performance.now() - startedMonoMs < 1_200)
    const rows = await sql`select status, attempts, claimed_by from webhook_deliveries order by delivery_id`
    assert.deepEqual(
      rows.map((row) => [row['status'], row['attempts'], row['claimed_by']]),
      [
        ['delivered', 1, null],
        ['pending', 0, null],
      ],
    )
    isHanging = false
    startRelay()
    await settled(id, 2)
    assert.equal(receiver.received.length, 3)
  })
})

describe('the queue', () => {
  test('fan-out is repeatable: read again from the start, it adds nothing', async () => {
    const { receiver, id } = await hook()
    startRelay()
    await happen(20)
    await settled(id, 20)
    await sql`update webhook_positions set cursor = 0`
    await happen(1)
    await settled(id, 21)
    await sleep(60)
    assert.equal(receiver.received.length, 21)
  })

  test('an endpoint gets nothing from before it was made', async () => {
    await happen(3)
    const { receiver, id } = await hook()
    await sql`update webhook_endpoints set from_cursor = (select max(cursor) from events) where endpoint_id = ${id}`
    startRelay()
    await happen(2)
    await settled(id, 2)
    assert.equal(receiver.received.length, 2)
  })

  test('redelivery by event, by delivery and by window goes behind what waits in its lane', async () => {
    let isDown = false
    const { receiver, id } = await hook({ types: ['device.alarm'], behave: () => (isDown ? 500 : 200) })
    startRelay({ scheduleMs: Array(9).fill(30) })
    const from = new Date()
    const ids = await happen(3)
    await happen(1, { type: 'device.online' })
    await settled(id, 3)
    isDown = true
    const [blocked] = await happen(1)
    await eventually(
      'the fourth fails',
      () => receiver.received.length,
      (count) => count > 4,
    )
    const again = await sql.begin((tx) => queueAgain(tx, id, { eventId: ids[1]! }))
    const window = await sql.begin((tx) => queueAgain(tx, id, { from, to: new Date(Date.now() + 1_000) }))
    assert.deepEqual([again.length, window.length], [1, 4])
    isDown = false
    const rows = await settled(id, 9)
    assert.ok(rows.every((row) => row['status'] === 'delivered'))
    const tail = receiver.received.filter(({ event }) => event.event_id !== blocked).map(({ event }) => event.event_id)
    assert.deepEqual(tail, [...ids, ids[1], ...ids])
    assert.equal(receiver.effects.length, 4)
    const [first] = await sql<
      { delivery_id: number }[]
    >`select delivery_id from webhook_deliveries order by delivery_id limit 1`
    assert.equal(typeof (await sql.begin((tx) => queueDeliveryAgain(tx, id, first!.delivery_id))), 'number')
    await settled(id, 10)
    const replays = await sql`select replay from webhook_deliveries where event_id = ${ids[0]!} order by delivery_id`
    assert.deepEqual(
      replays.map((row) => row['replay']),
      [0, 1, 2],
    )
  })

  test('a delivery that waits for its next attempt goes at once when asked to', async () => {
    let isDown = true
    const { id } = await hook({ behave: () => (isDown ? 500 : 200) })
    const relay = startRelay({ scheduleMs: [3_600_000] })
    await happen(1)
    const [row] = await eventually(
      'it waits for an hour',
      async () =>
        await sql<
          { delivery_id: number; attempts: number }[]
        >`select delivery_id, attempts from webhook_deliveries where claimed_by is null and attempts = 1`,
      (rows) => rows.length === 1,
    )
    isDown = false
    await sql.begin((tx) => queueDeliveryAgain(tx, id, row!.delivery_id))
    relay.wake()
    await settled(id, 1)
  })

  test('a stopped endpoint gets nothing new; a removed one leaves nothing', async () => {
    const { id } = await hook()
    await happen(2)
    await fanOut(sql, 100)
    assert.equal(await stopEndpoint(sql, id, 'gone', 'test'), true)
    assert.equal(await stopEndpoint(sql, id, 'gone', 'test'), false)
    await happen(2)
    await fanOut(sql, 100)
    const rows = await sql`select status from webhook_deliveries`
    assert.deepEqual(
      rows.map((row) => row['status']),
      ['cancelled', 'cancelled'],
    )
  })

  test('events that many writers insert at once are all delivered: no cursor appears behind one that was read', async () => {
    const { receiver, id } = await hook()
    const writers = connect(database.url, { max: 8 })
    closers.push(() => writers.end({ timeout: 1 }))
    startRelay({ pollMs: 1 })
    await Promise.all(
      Array.from({ length: 8 }, async (_, writer) => {
        for (let n = 0; n < 25; n++)
          await writers.begin(async (tx) => {
            await tx`
              insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
              values (${eventIdOf('writer', writer, n, Math.random())}, 'device.alarm', 'default', ${`0000000${writer}`}, 1, now(), ${tx.json({ n })})`
            await tx`select pg_sleep(${Math.random() / 200})`
          })
      }),
    )
    await settled(id, 200)
    assert.equal(receiver.effects.length, 200)
  })

  test('the database goes away for a moment: what was sent meanwhile is not sent again', async () => {
    const { receiver, id } = await hook({
      behave: (_, response) => void setTimeout(() => response.writeHead(200).end(), 150),
    })
    const own = connect(database.url, { max: 3, applicationName: 'cut off' })
    closers.push(() => own.end({ timeout: 1 }))
    startRelay({}, { sql: own })
    await happen(4)
    await eventually(
      'the first is under way',
      () => receiver.received.length,
      (count) => count === 1,
    )
    for (let cut = 0; cut < 10; cut++) {
      // not in its first moment: driver 3.4.9 leaves a rejection unhandled when it is cut while it asks for array types
      await sql`
        select pg_terminate_backend(pid) from pg_stat_activity
        where application_name = 'cut off' and backend_start < clock_timestamp() - interval '100 ms'`
      await sleep(40)
    }
    await settled(id, 4, 8_000)
    assert.equal(receiver.received.length, 4)
  })
})
