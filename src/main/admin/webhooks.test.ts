/**
 * Claims: the event stream is answered by cursor, window and type without gap or repeat, also while many writers insert
 * and commit out of order; webhooks are made, changed, rotated, tested, redelivered and removed as declared, each with its
 * line in the audit log, the secret shown to whoever makes or rotates it, never by a repeat after a rotation, and nowhere else; nothing of another tenant. Tried over HTTP
 * on a real PostgreSQL; every answer is checked against the schema of its route.
 */
import assert from 'node:assert/strict'
import { after, before, beforeEach, describe, test } from 'node:test'
import * as z from 'zod'
import { parseApiKeys } from '../../config/api-keys.ts'
import type { HTTP_ERRORS } from '../../errors/errors.ts'
import { eventIdOf } from '../../events/event-id.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { quietAdmin } from '../../testing/quiet-admin.ts'
import { connect } from '../database/connect.ts'
import { dropEvents } from '../event-horizon.ts'
import { type Admin, createAdmin } from './admin.ts'
import { eventRoutes, zEvent } from './routes/events.ts'
import { webhookRoutes, zWebhook, zWebhookDelivery } from './routes/webhooks.ts'
import { zError, zPage } from './shapes.ts'

const { keys } = parseApiKeys('root:root-secret:admin,view:view-secret:viewer,north:north-secret:admin:north')
let database: TestDatabase
let admin: Admin
let wakes = 0

before(async () => {
  database = await openTestDatabase()
  const { sql } = database
  admin = createAdmin({
    ...quietAdmin(sql, keys),
    moreRoutes: [
      ...eventRoutes({ sql }),
      ...webhookRoutes({
        sql,
        guard: { allowPrivate: false, allowedHosts: ['billing.internal'] },
        wake: () => wakes++,
      }),
    ],
  })
  await admin.listen()
})
after(async () => {
  await admin.close()
  await database.close()
})
beforeEach(async () => {
  await database.sql`truncate events, webhook_endpoints, webhook_deliveries, audit_logs`
})

type Secret = 'root-secret' | 'view-secret' | 'north-secret'
async function ask(method: string, path: string, body?: unknown, secret: Secret = 'root-secret') {
  const response = await fetch(`http://127.0.0.1:${admin.port}/api/v1${path}`, {
    method,
    headers: { Authorization: `Bearer ${secret}` },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  return { status: response.status, json: (await response.json()) as unknown }
}
async function good<S extends z.ZodType>(
  shape: S,
  method: string,
  path: string,
  body?: unknown,
  secret?: Secret,
): Promise<z.output<S>> {
  const { status, json } = await ask(method, path, body, secret)
  assert.ok(status < 300, JSON.stringify(json))
  return shape.parse(json)
}
async function refused(code: keyof typeof HTTP_ERRORS, method: string, path: string, body?: unknown, secret?: Secret) {
  const { error } = zError.parse((await ask(method, path, body, secret)).json)
  assert.equal(error.code, code, error.message)
}
async function happen(count: number, more: Record<string, unknown> = {}) {
  const { sql } = database
  const rows = Array.from({ length: count }, (_, n) => ({
    event_id: eventIdOf('api', Math.random(), n),
    event_type: 'device.alarm',
    tenant_id: 'default',
    device_id: '04ab373b',
    order_key: null,
    epoch: 1,
    at: new Date(),
    data: sql.json({ n }),
    ...more,
  }))
  await sql`insert into events ${sql(rows as never)}`
  return rows.map((row) => row.event_id)
}
const zNew = zWebhook.extend({ secret: z.string().regex(/^whsec_[A-Za-z0-9+/]{43}=$/) })
const zQueued = z.object({ queued: z.int(), delivery_ids: z.array(z.int()) })
const make = (body: Record<string, unknown> = {}, secret?: Secret) =>
  good(zNew, 'POST', '/webhooks', { url: 'https://example.com/hook', ...body }, secret)

describe('the event stream', () => {
  test('pages by cursor, filters, the object of the contract and its cursor, nothing of another tenant', async () => {
    const ids = await happen(120, { at: new Date('2026-01-31T12:00:00.900Z') })
    await happen(3, { event_type: 'charging.ended', at: new Date('2026-02-01T00:00:00Z'), device_id: '0000beef' })
    await happen(5, { tenant_id: 'north' })
    const seen: string[] = []
    for (let cursor: string | null = '0'; cursor !== null; ) {
      const page: z.output<ReturnType<typeof zPage<typeof zEvent>>> = await good(
        zPage(zEvent),
        'GET',
        `/events?type=device.alarm&limit=50&after=${cursor}`,
      )
      seen.push(...page.items.map((item) => item.event_id))
      cursor = page.next_cursor
    }
    assert.deepEqual(seen, ids)
    const { items } = await good(zPage(zEvent), 'GET', '/events?limit=500', undefined, 'view-secret')
    assert.equal(items.length, 123)
    const raw = (await ask('GET', '/events?limit=1')).json as { items: Record<string, unknown>[] }
    assert.deepEqual(Object.keys(raw.items[0]!).sort(), [
      'cursor',
      'data',
      'device_phy_id',
      'event_id',
      'event_type',
      'nonce',
      'timestamp',
    ])
    assert.deepEqual([raw.items[0]!['timestamp'], raw.items[0]!['data']], [Date.UTC(2026, 0, 31, 12) / 1_000, { n: 0 }])
    const count = async (query: string) => (await good(zPage(zEvent), 'GET', `/events?limit=500&${query}`)).items.length
    assert.equal(await count('from=2026-02-01T00:00:00Z'), 3)
    assert.equal(await count('to=2026-02-01T00:00:00Z'), 120)
    assert.equal(await count('device_id=0000beef'), 3)
    assert.equal(await count(`cursor=${items[119]!.cursor}`), 3)
    assert.equal(await count(`after=${items.at(-1)!.cursor}`), 0)
    for (const query of [
      'after=x',
      'after=-1',
      'after=1e3',
      'type=nonsense',
      'limit=501',
      'from=yesterday',
      'from=2026-02-01T00:00:00.001Z&to=2026-02-01T00:00:00Z',
    ])
      await refused('INVALID_ARGUMENT', 'GET', `/events?${query}`)
  })

  test('after a cursor behind which events were dropped: said with where to go on, not passed over', async () => {
    const { sql } = database
    await sql`truncate event_horizons`
    const old = new Date(Date.now() - 10 * 86_400_000)
    await happen(30, { stored_at: old })
    await happen(5, { stored_at: old, tenant_id: 'north' })
    // stored before the column was there
    await happen(1, { at: old })
    await sql`update events set stored_at = null where at = ${old}`
    await happen(10)
    // happened long ago, told now: it stays
    await happen(1, { at: old })
    // a clock that went back: no gap in what is kept
    await happen(1, { stored_at: old })
    await happen(2)
    const cursors = (
      await sql<{ cursor: number }[]>`select cursor from events where tenant_id = 'default' order by cursor`
    ).map((row) => row.cursor)
    const before = new Date(Date.now() - 86_400_000)
    assert.equal((await good(zPage(zEvent), 'GET', `/events?after=${cursors[5]}`)).items.length, 39)
    assert.equal(await dropEvents(sql, before), 36)
    assert.equal(await dropEvents(sql, before), 0)
    for (const after of [cursors[0], cursors[5], cursors[29]]) {
      const { json } = await ask('GET', `/events?after=${after}`)
      const { error } = json as { error: { code: string; details: Record<string, unknown> } }
      const details = { reason: 'events_dropped', after: String(after), dropped_cursor: String(cursors[30]) }
      assert.deepEqual([error.code, error.details], ['FAILED_PRECONDITION', details])
    }
    const count = async (query: string) => (await good(zPage(zEvent), 'GET', `/events?limit=500&${query}`)).items.length
    assert.deepEqual(
      [
        await count(`after=${cursors[30]}`),
        await count(`after=${cursors[40]}`),
        await count('after=0'),
        await count(''),
      ],
      [14, 4, 14, 14],
    )
    // another tenant's horizon is its own
    const north = async (after: number) =>
      (await ask('GET', `/events?after=${after}`, undefined, 'north-secret')).status
    assert.deepEqual([await north(cursors[29]!), await north(cursors[29]! + 5)], [412, 200])
    await sql`truncate event_horizons`
  })

  test('a reader that follows while writers commit out of order sees every event once, cursors only growing', async () => {
    const writers = connect(database.url, { max: 6 })
    let isWriting = true
    const written = Promise.all(
      Array.from({ length: 6 }, async (_, writer) => {
        for (let n = 0; n < 30; n++)
          await writers.begin(async (tx) => {
            await tx`
              insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
              values (${eventIdOf('race', writer, n)}, 'device.alarm', 'default', '04ab373b', 1, now(), '{}')`
            // the cursor is drawn; others would overtake it here
            await tx`select pg_sleep(${Math.random() / 250})`
          })
      }),
    ).finally(() => {
      isWriting = false
    })
    const seen: number[] = []
    for (let isLast = false; !isLast; ) {
      isLast = !isWriting
      const { items } = await good(zPage(zEvent), 'GET', `/events?limit=7&after=${seen.at(-1) ?? 0}`)
      seen.push(...items.map((item) => Number(item.cursor)))
      if (items.length > 0) isLast = false
    }
    await written
    await writers.end({ timeout: 1 })
    const all = await database.sql<{ cursor: number }[]>`select cursor from events order by cursor`
    assert.equal(all.length, 180)
    assert.deepEqual(
      seen,
      all.map((row) => row.cursor),
    )
  })
})

describe('webhooks', () => {
  test('made, listed, changed, removed; the secret is shown once; audit', async () => {
    const { secret, ...made } = await make({
      event_types: ['charging.ended', 'order.failed'],
      device_ids: ['04ab373b'],
      description: 'bills',
    })
    assert.deepEqual(
      [made.status, made.event_types, made.device_ids],
      ['active', ['charging.ended', 'order.failed'], ['04ab373b']],
    )
    assert.deepEqual(await good(zWebhook, 'GET', `/webhooks/${made.id}`), made)
    const list = await ask('GET', '/webhooks')
    assert.ok(!JSON.stringify(list.json).includes(secret))
    assert.deepEqual((await good(zPage(zWebhook), 'GET', '/webhooks')).items, [made])
    const changed = await good(zWebhook, 'PATCH', `/webhooks/${made.id}`, {
      event_types: [],
      status: 'paused',
      description: null,
      url: 'https://example.org/x',
    })
    assert.deepEqual(
      [changed.event_types, changed.status, changed.description, changed.url],
      [[], 'paused', null, 'https://example.org/x'],
    )
    assert.deepEqual((await good(zWebhook, 'PATCH', `/webhooks/${made.id}`, { device_ids: ['0000beef'] })).device_ids, [
      '0000beef',
    ])
    await good(zWebhook, 'DELETE', `/webhooks/${made.id}`)
    await refused('NOT_FOUND', 'GET', `/webhooks/${made.id}`)
    const audit = await database.sql`select action, details from audit_logs order by id`
    assert.deepEqual(
      audit.map((row) => row['action']),
      ['webhook.made', 'webhook.changed', 'webhook.changed', 'webhook.removed'],
    )
    assert.ok(!JSON.stringify(audit).includes(secret))
  })

  test('a repeat by Idempotency-Key is the first endpoint with its secret; another body is refused; one event comes once', async () => {
    const post = async (idempotencyKey: string, body: object, secret: Secret = 'root-secret') => {
      const response = await fetch(`http://127.0.0.1:${admin.port}/api/v1/webhooks`, {
        method: 'POST',
        headers: { Authorization: `Bearer ${secret}`, 'Idempotency-Key': idempotencyKey },
        body: JSON.stringify(body),
      })
      return { status: response.status, json: (await response.json()) as Record<string, unknown> }
    }
    const url = 'https://example.com/once'
    // at the same moment, as a proxy repeats them
    const answers = await Promise.all(Array.from({ length: 5 }, () => post('once', { url, description: 'd' })))
    const later = await post('once', { description: 'd', url })
    for (const { status, json } of [...answers, later]) {
      assert.equal(status, 201, JSON.stringify(json))
      assert.deepEqual(json, answers[0]!.json)
    }
    assert.match(String(later.json['secret']), /^whsec_/)
    const other = await post('once', { url, description: 'another' })
    assert.deepEqual([other.status, (other.json['error'] as { code: string }).code], [409, 'CONFLICT'])
    assert.equal((await good(zPage(zWebhook), 'GET', '/webhooks')).items.length, 1)
    const audit = await database.sql`select from audit_logs where action = 'webhook.made'`
    assert.equal(audit.count, 1)
    // of another tenant the same key is another request
    assert.notEqual((await post('once', { url }, 'north-secret')).json['id'], later.json['id'])
    // without a key each is another endpoint; and what was removed is made anew
    await make({ url })
    await make({ url })
    assert.equal((await good(zPage(zWebhook), 'GET', '/webhooks')).items.length, 3)
    await good(zWebhook, 'DELETE', `/webhooks/${later.json['id']}`)
    assert.notEqual((await post('once', { url, description: 'd' })).json['id'], later.json['id'])
  })

  test('a repeat by Idempotency-Key is the first answer, also when the endpoint was changed; no secret of a rotation', async () => {
    const post = async (body: object) => {
      const response = await fetch(`http://127.0.0.1:${admin.port}/api/v1/webhooks`, {
        method: 'POST',
        headers: { Authorization: 'Bearer root-secret', 'Idempotency-Key': 'first' },
        body: JSON.stringify(body),
      })
      return { status: response.status, json: (await response.json()) as Record<string, unknown> }
    }
    const body = {
      url: 'https://example.com',
      timeout_s: 1.234,
      retry_schedule_s: [0.5, 60],
      event_types: ['device.alarm'],
    }
    const first = await post(body)
    assert.equal(first.status, 201)
    const path = `/webhooks/${first.json['id']}`
    await good(zWebhook, 'PATCH', path, {
      url: 'https://example.org/',
      status: 'paused',
      timeout_s: null,
      event_types: [],
    })
    assert.deepEqual(await post(body), first)
    // an overlap that is over at once leaves no date behind, and counts all the same
    const { secret } = await good(zNew, 'POST', `${path}/rotate`, { overlap_s: 0 })
    const { status, json } = await post(body)
    const { error } = zError.parse(json)
    assert.deepEqual([status, error.code, error.details], [409, 'CONFLICT', { id: first.json['id'] }])
    assert.match(error.message, /rotated since/)
    assert.ok(!JSON.stringify(json).includes(secret) && !JSON.stringify(json).includes(String(first.json['secret'])))
  })

  test('schedule, timeout and concurrency of its own: kept, changed, given up, within bounds', async () => {
    const { secret: _, ...common } = await make()
    assert.deepEqual([common.retry_schedule_s, common.timeout_s, common.concurrency], [null, null, null])
    const own = { retry_schedule_s: [0.5, 60], timeout_s: 1.5, concurrency: 16 }
    const { secret: __, ...made } = await make(own)
    assert.deepEqual({ ...made, ...own }, made)
    assert.deepEqual(await good(zWebhook, 'GET', `/webhooks/${made.id}`), made)
    const path = `/webhooks/${made.id}`
    assert.equal((await good(zWebhook, 'PATCH', path, { timeout_s: 20 })).timeout_s, 20)
    const changed = await good(zWebhook, 'PATCH', path, { retry_schedule_s: null, concurrency: 1 })
    assert.deepEqual([changed.retry_schedule_s, changed.timeout_s, changed.concurrency], [null, 20, 1])
    const [row] = await database.sql`
      select retry_schedule_s, timeout_ms, concurrency from webhook_endpoints where endpoint_id = ${made.id}`
    assert.deepEqual([row!['retry_schedule_s'], row!['timeout_ms'], row!['concurrency']], [null, 20_000, 1])
    for (const bad of [
      { retry_schedule_s: [] },
      { retry_schedule_s: [0] },
      { retry_schedule_s: [604_801] },
      { retry_schedule_s: Array(51).fill(1) },
      { retry_schedule_s: '1,5' },
      { timeout_s: 0 },
      { timeout_s: 61 },
      { concurrency: 0 },
      { concurrency: 257 },
      { concurrency: 1.5 },
    ]) {
      await refused('INVALID_ARGUMENT', 'PATCH', path, bad)
      await refused('INVALID_ARGUMENT', 'POST', '/webhooks', { url: 'https://example.com/', ...bad })
    }
  })

  test('only admins, only their own tenant, only addresses outside, only what is declared', async () => {
    const { id } = await make()
    await refused('FORBIDDEN', 'GET', '/webhooks', undefined, 'view-secret')
    for (const [method, path, body] of [
      ['GET', ''],
      ['PATCH', '', {}],
      ['DELETE', ''],
      ['GET', '/deliveries'],
      ['POST', '/test'],
      ['POST', '/rotate', {}],
      ['POST', '/redeliver', { event_id: 'x' }],
    ] as const)
      await refused('NOT_FOUND', method, `/webhooks/${id}${path}`, body, 'north-secret')
    for (const url of [
      'http://127.0.0.1/',
      'http://[::1]/',
      'http://169.254.169.254/',
      'ftp://example.com/',
      'http://localhost/',
      'https://u:p@example.com/',
      'no',
    ])
      await refused('INVALID_ARGUMENT', 'POST', '/webhooks', { url })
    await refused('INVALID_ARGUMENT', 'PATCH', `/webhooks/${id}`, { url: 'http://10.0.0.1/' })
    await refused('INVALID_ARGUMENT', 'POST', '/webhooks', { url: 'https://example.com/', event_types: ['nonsense'] })
    await refused('INVALID_ARGUMENT', 'POST', '/webhooks', { url: 'https://example.com/', secret: 'mine' })
    assert.equal((await make({ url: 'http://billing.internal:8080/in' })).url, 'http://billing.internal:8080/in')
    for (let n = 0; n < 98; n++)
      await database.sql`insert into webhook_endpoints (endpoint_id, url, secret) values (${`wh_${n}`}, 'https://example.com', 'x')`
    await refused('FAILED_PRECONDITION', 'POST', '/webhooks', { url: 'https://example.com/' })
    const pages: string[] = []
    for (let cursor: string | null = ''; cursor !== null; ) {
      const page: z.output<ReturnType<typeof zPage<typeof zWebhook>>> = await good(
        zPage(zWebhook),
        'GET',
        `/webhooks?limit=33${cursor === '' ? '' : `&cursor=${cursor}`}`,
      )
      pages.push(...page.items.map((item) => item.id))
      cursor = page.next_cursor
    }
    assert.equal(new Set(pages).size, 100)
  })

  test('a new secret; the old one stays beside it for as long as asked', async () => {
    const made = await make()
    const rotated = await good(zNew, 'POST', `/webhooks/${made.id}/rotate`, { overlap_s: 600 })
    assert.notEqual(rotated.secret, made.secret)
    const untilMs = Date.parse(rotated.previous_secret_until!)
    assert.ok(Math.abs(untilMs - Date.now() - 600_000) < 10_000)
    const [row] = await database.sql`select secret, previous_secret from webhook_endpoints`
    assert.deepEqual([row!['secret'], row!['previous_secret']], [rotated.secret, made.secret])
    assert.equal(
      (await good(zNew, 'POST', `/webhooks/${made.id}/rotate`, { overlap_s: 0 })).previous_secret_until,
      null,
    )
  })

  test('a new secret without a body: the old one stays for a day; a body that is no JSON is refused', async () => {
    const { id, ...made } = await make()
    const rotated = await good(zNew, 'POST', `/webhooks/${id}/rotate`)
    assert.notEqual(rotated.secret, made.secret)
    assert.ok(Math.abs(Date.parse(rotated.previous_secret_until!) - Date.now() - 86_400_000) < 10_000)
    await good(zWebhook, 'PATCH', `/webhooks/${id}`)
    const text = await fetch(`http://127.0.0.1:${admin.port}/api/v1/webhooks/${id}/rotate`, {
      method: 'POST',
      headers: { Authorization: 'Bearer root-secret' },
      body: ' ',
    })
    assert.equal(text.status, 400)
    const { paths } = (await (await fetch(`http://127.0.0.1:${admin.port}/openapi.json`)).json()) as {
      paths: Record<string, Record<string, { requestBody: { required: boolean } }>>
    }
    assert.equal(paths['/api/v1/webhooks/{id}/rotate']!['post']!.requestBody.required, false)
    assert.equal(paths['/api/v1/webhooks/{id}/redeliver']!['post']!.requestBody.required, true)
  })

  test('test, redelivery by event, delivery and window; deliveries page by page; each wakes the relay', async () => {
    const { id } = await make({ event_types: ['device.alarm'] })
    const from = new Date(Date.now() - 1_000).toISOString()
    const [first] = await happen(4)
    await happen(1, { event_type: 'device.online' })
    const [foreign] = await happen(1, { tenant_id: 'north' })
    const to = new Date(Date.now() + 1_000).toISOString()
    wakes = 0
    const tested = await good(zQueued, 'POST', `/webhooks/${id}/test`)
    assert.equal((await good(zQueued, 'POST', `/webhooks/${id}/redeliver`, { event_id: first })).queued, 1)
    assert.equal((await good(zQueued, 'POST', `/webhooks/${id}/redeliver`, { from, to })).queued, 4)
    assert.equal((await good(zQueued, 'POST', `/webhooks/${id}/redeliver`, { from: to, to })).queued, 0)
    await refused('INVALID_ARGUMENT', 'POST', `/webhooks/${id}/redeliver`, { from: to, to: from })
    assert.equal(
      (await good(zQueued, 'POST', `/webhooks/${id}/redeliver`, { delivery_id: tested.delivery_ids[0] })).queued,
      1,
    )
    assert.equal(wakes, 5)
    for (const body of [{}, { from }, { to }, { event_id: first, from, to }, { event_id: first, delivery_id: 1 }])
      await refused('INVALID_ARGUMENT', 'POST', `/webhooks/${id}/redeliver`, body)
    for (const body of [{ event_id: foreign }, { event_id: 'none' }, { delivery_id: 999_999 }])
      await refused('NOT_FOUND', 'POST', `/webhooks/${id}/redeliver`, body)
    const items: z.output<typeof zWebhookDelivery>[] = []
    for (let cursor: string | null = ''; cursor !== null; ) {
      const page: z.output<ReturnType<typeof zPage<typeof zWebhookDelivery>>> = await good(
        zPage(zWebhookDelivery),
        'GET',
        `/webhooks/${id}/deliveries?limit=2${cursor === '' ? '' : `&cursor=${cursor}`}`,
      )
      items.push(...page.items)
      cursor = page.next_cursor
    }
    assert.deepEqual(items.map(({ event_type, replay }) => `${event_type} ${replay}`).reverse(), [
      'webhook.test 0',
      'device.alarm 1',
      'device.alarm 2',
      'device.alarm 1',
      'device.alarm 1',
      'device.alarm 1',
    ])
    // one lane, one device: only its first is due
    assert.equal(items.filter((item) => item.next_attempt_at !== null).length, 2)
    assert.equal(
      (await good(zPage(zWebhookDelivery), 'GET', `/webhooks/${id}/deliveries?event_id=${first}`)).items.length,
      2,
    )
    await database.sql`update webhook_endpoints set status = 'stopped', stop_reason = 'answered 410'`
    await refused('FAILED_PRECONDITION', 'POST', `/webhooks/${id}/test`)
    await refused('FAILED_PRECONDITION', 'POST', `/webhooks/${id}/redeliver`, { event_id: first })
    const started = await good(zWebhook, 'PATCH', `/webhooks/${id}`, { status: 'active' })
    assert.deepEqual([started.status, started.stop_reason], ['active', null])
  })

  test('an endpoint begins with what happens after it was made', async () => {
    await happen(3)
    const { id } = await make()
    const [row] = await database.sql`
      select from_cursor = (select max(cursor) from events) as good from webhook_endpoints where endpoint_id = ${id}`
    assert.equal(row!['good'], true)
  })
})
