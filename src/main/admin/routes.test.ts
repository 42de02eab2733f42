/**
 * Claim: devices, orders, cards and quarantine are answered in the declared shapes, page by page without gap or repeat,
 * filtered as asked, and a key sees nothing of another tenant. Tried over HTTP against the real schema in a real
 * PostgreSQL; every answer is checked against the schema its route declares.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import * as z from 'zod'
import { parseApiKeys } from '../../config/api-keys.ts'
import { HTTP_ERRORS } from '../../errors/errors.ts'
import { PROTOCOLS } from '../../protocols/index.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { answerCard } from '../cards.ts'
import { createLog } from '../log.ts'
import { type Admin, createAdmin } from './admin.ts'
import { auditRoutes } from './routes/audit.ts'
import { zCard } from './routes/cards.ts'
import { type LivePresence, zDevice } from './routes/devices.ts'
import { evidenceRoutes } from './routes/evidence.ts'
import { zOrder } from './routes/orders.ts'
import { zQuarantineItem } from './routes/quarantine.ts'
import { zError, zPage } from './shapes.ts'

const NOW = Date.UTC(2026, 0, 31, 12)
const { keys } = parseApiKeys('root:root-secret:admin,view:view-secret:viewer,north:north-secret:admin:north')
const ap3000 = PROTOCOLS.find(({ name }) => name === 'ap3000')!
/** Of a timeline, or of frames. */
const zItems = z.object({
  items: z.array(
    z.object({
      kind: z.string().optional(),
      what: z.string().optional(),
      details: z.record(z.string(), z.unknown()).optional(),
      hex: z.string().optional(),
      fields: z.record(z.string(), z.unknown()).optional(),
    }),
  ),
})
const live = new Map<string, LivePresence>()
let database: TestDatabase
let admin: Admin

before(async () => {
  database = await openTestDatabase()
  admin = createAdmin({
    nonceDirectory: temporaryDirectory(),
    config: { httpHost: '127.0.0.1', httpPort: 0, requestTimeoutMs: 5_000 },
    log: createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'main' }),
    sql: database.sql,
    apiKeys: keys,
    readiness: () => [],
    presenceOf: (deviceId) => live.get(deviceId),
    protocolOf: (deviceId) =>
      /^[0-9a-f]{8}$/.test(deviceId) ? 'ap3000' : /^\d{14}$/.test(deviceId) ? 'bkv' : undefined,
    renderMetrics: async () => '',
    observeRequest: () => {},
    now: () => NOW,
    moreRoutes: [
      ...evidenceRoutes({ sql: database.sql, framesDirectory: '/nowhere', now: () => NOW }),
      ...auditRoutes({ sql: database.sql }),
    ],
  })
  await admin.listen()
})
after(async () => {
  await admin.close()
  await database.close()
})

type Secret = 'root-secret' | 'view-secret' | 'north-secret'
async function ask(method: string, path: string, secret: Secret, body?: unknown): Promise<Response> {
  return fetch(`http://127.0.0.1:${admin.port}/api/v1${path}`, {
    method,
    headers: { Authorization: `Bearer ${secret}` },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
}
async function get<S extends z.ZodType>(shape: S, path: string, secret: Secret = 'view-secret'): Promise<z.output<S>> {
  const response = await ask('GET', path, secret)
  const json: unknown = await response.json()
  assert.equal(response.status, 200, JSON.stringify(json))
  return shape.parse(json)
}
async function refused(response: Response, code: keyof typeof HTTP_ERRORS): Promise<void> {
  const { error } = zError.parse(await response.json())
  assert.equal(error.code, code, error.message)
  assert.equal(response.status, HTTP_ERRORS[code])
}
/** All pages of a list. */
async function all<S extends z.ZodType>(item: S, path: string, secret: Secret = 'view-secret') {
  const items: z.output<S>[] = []
  let pages = 0
  for (let cursor: string | null = ''; cursor !== null; pages++) {
    const page: z.output<ReturnType<typeof zPage<S>>> = await get(
      zPage(item),
      `${path}${cursor === '' ? '' : `&cursor=${cursor}`}`,
      secret,
    )
    items.push(...(page.items as z.output<S>[]))
    cursor = page.next_cursor
    assert.ok(pages < 1_000)
  }
  return { items, pages }
}

describe('devices', () => {
  const at = (ms: number) => new Date(ms)
  before(async () => {
    const { sql } = database
    await sql`insert into tenants (tenant_id, name) values ('north', 'North')`
    await sql`
      insert into devices (device_id, tenant_id, protocol, firmware, iccid, site, clock_offset_ms, last_seen_at, registered_at)
      values ('04ab373b', 'default', 'ap3000', '1.2', '89860000000000000001', 'Yard 100%', -1500, ${at(NOW - 10_000)}, ${at(NOW)}),
        ('82200520004869', 'default', 'bkv', null, null, 'Gate', null, ${at(NOW - 86_400_000)}, null),
        ('0000beef', 'north', 'ap3000', null, null, null, null, ${at(NOW)}, null)`
    await sql`
      insert into ports (device_id, socket, port, state, state_raw, power_w, voltage_v, energy_wh, wire_hex, at, epoch, seq)
      values ('04ab373b', 0, 2, 'charging', 1, 180.5, 221.3, 40, 'aabb', ${at(NOW)}, 7, 2),
        ('04ab373b', 0, 1, 'idle', 0, null, 221.3, null, null, ${at(NOW)}, 7, 1)`
    await sql`
      insert into orders (order_no, device_id, protocol, socket, port, order_key, state, origin)
      values ('running', '04ab373b', 'ap3000', 0, 2, 'aabb', 'charging', 'card'),
        ('over', '04ab373b', 'ap3000', 0, 1, 'aabb', 'settled', 'card')`
    await sql`
      insert into sessions (device_id, epoch, protocol, shard, connection_id, remote_address, opened_at)
      values ('04ab373b', 7, 'ap3000', 1, 3, '10.0.0.9:4711', ${at(NOW - 60_000)}),
        ('04ab373b', 6, 'ap3000', 0, 2, '10.0.0.8:4711', ${at(NOW - 90_000)})`
    live.set('04ab373b', { online: true, epoch: 7, shard: 1, lastSeenMs: NOW - 1_000 })
    live.set('82200520004869', { online: false, epoch: 5, shard: 0, lastSeenMs: NOW - 60_000 })
  })

  test('a device with everything', async () => {
    const device = await get(zDevice, '/devices/04ab373b')
    assert.deepEqual(device.presence, { online: true, score: 100, reasons: ['tcp_connected', 'heard_recently'] })
    assert.deepEqual(device.session, {
      epoch: 7,
      shard: 1,
      opened_at: '2026-01-31T11:59:00.000Z',
      remote_address: '10.0.0.9:4711',
    })
    assert.equal(device.clock_offset_ms, -1500)
    assert.equal(device.last_seen_at, '2026-01-31T11:59:59.000Z')
    assert.deepEqual(
      device.ports.map(({ port, state, power_w, order_no }) => [port, state, power_w, order_no]),
      [
        [1, 'idle', null, null],
        [2, 'charging', 180.5, 'running'],
      ],
    )
  })

  test('memory knows better than the table when a device was last heard', async () => {
    const device = await get(zDevice, '/devices/82200520004869')
    assert.equal(device.presence.online, false)
    assert.equal(device.session, null)
    assert.equal(device.last_seen_at, '2026-01-31T11:59:00.000Z')
  })

  test('a session that is not written yet', async () => {
    live.set('82200520004869', { online: true, epoch: 99, shard: 0, lastSeenMs: NOW })
    const { session } = await get(zDevice, '/devices/82200520004869')
    assert.deepEqual(session, { epoch: 99, shard: 0, opened_at: null, remote_address: null })
    live.set('82200520004869', { online: false, epoch: 99, shard: 0, lastSeenMs: NOW })
  })

  test('filters', async () => {
    const ids = async (query: string) => (await get(zPage(zDevice), `/devices?${query}`)).items.map((d) => d.device_id)
    assert.deepEqual(await ids(''), ['04ab373b', '82200520004869'])
    assert.deepEqual(await ids('online=true'), ['04ab373b'])
    assert.deepEqual(await ids('online=false'), ['82200520004869'])
    assert.deepEqual(await ids('protocol=bkv'), ['82200520004869'])
    assert.deepEqual(await ids('q=AB37'), ['04ab373b'])
    assert.deepEqual(await ids('q=gate'), ['82200520004869'])
    // a per cent sign is a letter
    assert.deepEqual(await ids('q=100%25'), ['04ab373b'])
    assert.deepEqual(await ids('q=%25%25'), [])
  })

  test('nothing of another tenant', async () => {
    await refused(await ask('GET', '/devices/0000beef', 'root-secret'), 'NOT_FOUND')
    await refused(await ask('GET', '/devices/04ab373b', 'north-secret'), 'NOT_FOUND')
    await refused(await ask('PUT', '/devices/04ab373b', 'north-secret', { name: 'mine' }), 'NOT_FOUND')
    const { items } = await get(zPage(zDevice), '/devices', 'north-secret')
    assert.deepEqual(
      items.map((device) => device.device_id),
      ['0000beef'],
    )
  })

  test('registered ahead, amended, cleared; each with its line in the audit log', async () => {
    const path = '/devices/11223344'
    await refused(await ask('PUT', path, 'view-secret', {}), 'FORBIDDEN')
    const tariff = { energy: { price_fen_per_kwh: 120 } }
    const made = await ask('PUT', path, 'root-secret', { name: 'Post 9', site: 'Yard', tariff })
    assert.equal(made.status, 201)
    const device = zDevice.parse(await made.json())
    assert.equal(device.protocol, 'ap3000')
    assert.deepEqual(device.presence, { online: false, score: 0, reasons: ['tcp_absent', 'never_seen'] })
    assert.deepEqual(device.tariff, tariff)
    const amended = await ask('PUT', path, 'root-secret', { name: null, model_profile: 'ap3000-answer-01' })
    assert.equal(amended.status, 200)
    const now = zDevice.parse(await amended.json())
    assert.deepEqual([now.name, now.site, now.model_profile], [null, 'Yard', 'ap3000-answer-01'])
    const log = await database.sql`
      select action, actor, details from audit_logs where target = '11223344' order by id`
    assert.deepEqual(
      log.map(({ action, actor }) => `${action} by ${actor}`),
      ['device.registered by root', 'device.amended by root'],
    )
    assert.deepEqual(log[1]!['details'], { name: null, model_profile: 'ap3000-answer-01' })
  })

  test('a tariff that no charge could be billed by is refused with what is wrong, and changes nothing; null removes it', async () => {
    const path = '/devices/11223344'
    const tariffNow = async () => (await get(zDevice, path)).tariff
    const before = await tariffNow()
    assert.notEqual(before, null)
    for (const [tariff, field, problem] of [
      [{ fen_per_kwh: 120 }, 'tariff.fen_per_kwh', 'is not known'],
      [{}, 'tariff', 'needs at least one of time, energy, power, periods'],
      [{ energy: { price_fen_per_kwh: -1 } }, 'tariff.energy.price_fen_per_kwh', 'needs an integer, 0..1000000'],
    ] as const) {
      const answer = await ask('PUT', path, 'root-secret', { name: 'never', tariff })
      assert.equal(answer.status, 400)
      const { error } = zError.parse(await answer.json())
      assert.equal(error.code, 'INVALID_ARGUMENT')
      assert.deepEqual(error.details, { reason: 'tariff_invalid', field, problem })
    }
    assert.deepEqual(await tariffNow(), before)
    assert.notEqual((await get(zDevice, path)).name, 'never')
    assert.equal((await ask('PUT', path, 'root-secret', { tariff: null })).status, 200)
    assert.equal(await tariffNow(), null)
  })

  test('a model profile is one of its protocol, or refused with their names; a viewer can list them', async () => {
    const path = '/devices/11223344'
    for (const name of ['three-port', 'bkv-energy-10wh', 'AP3000']) {
      const answer = await ask('PUT', path, 'root-secret', { model_profile: name })
      assert.equal(answer.status, 400)
      const { error } = (await answer.json()) as { error: { code: string; details: Record<string, unknown> } }
      assert.equal(error.code, 'INVALID_ARGUMENT')
      assert.deepEqual((error.details['model_profiles'] as string[])[0], 'ap3000')
    }
    const [row] = await database.sql`select model_profile from devices where device_id = '11223344'`
    assert.equal(row!['model_profile'], 'ap3000-answer-01')
    const listed = await ask('GET', '/model-profiles', 'view-secret')
    assert.equal(listed.status, 200)
    const { items } = (await listed.json()) as { items: Record<string, unknown>[] }
    assert.deepEqual(
      items
        .filter(({ name }) => name === 'bkv-energy-10wh')
        .map((item) => [item['protocol'], item['energy_wh_per_raw']]),
      [['bkv', 10]],
    )
  })

  test('what no device is called is not registered, what is no field is refused', async () => {
    for (const id of ['xyz', '04AB373B', '0'.repeat(40), '123'])
      await refused(await ask('PUT', `/devices/${id}`, 'root-secret', {}), 'INVALID_ARGUMENT')
    await refused(await ask('PUT', '/devices/11223344', 'root-secret', { nmae: 'x' }), 'INVALID_ARGUMENT')
    await refused(await ask('PUT', '/devices/11223344', 'root-secret', []), 'INVALID_ARGUMENT')
  })

  test('only an admin of the default tenant gives devices away, and takes them back', async () => {
    await refused(await ask('PUT', '/devices/0000beef', 'north-secret', { tenant: 'default' }), 'FORBIDDEN')
    const given = await ask('PUT', '/devices/11223344', 'root-secret', { tenant: 'south' })
    assert.equal(zDevice.parse(await given.json()).tenant, 'south')
    await refused(await ask('GET', '/devices/11223344', 'root-secret'), 'NOT_FOUND')
    const back = await ask('PUT', '/devices/11223344', 'root-secret', { tenant: 'default' })
    assert.equal(zDevice.parse(await back.json()).tenant, 'default')
    const own = await ask('PUT', '/devices/0000cafe', 'north-secret', { name: 'N1' })
    assert.equal(own.status, 201)
    assert.equal(zDevice.parse(await own.json()).tenant, 'north')
  })

  test('pages of many devices, also where the filter is not the database’s', async () => {
    const ids = Array.from({ length: 2_500 }, (_, i) => `f${i.toString(16).padStart(7, '0')}`)
    await database.sql`
      insert into devices (device_id, protocol) select id, 'ap3000' from unnest(${ids}::text[]) as u (id)`
    for (const [i, id] of ids.entries())
      if (i % 100 === 7) live.set(id, { online: true, epoch: i + 100, shard: 0, lastSeenMs: NOW })
    const everything = await all(zDevice, '/devices?limit=500&q=f0')
    assert.deepEqual(
      everything.items.map((device) => device.device_id),
      ids,
    )
    for (const limit of [1, 4, 5, 25, 500]) {
      const online = await all(zDevice, `/devices?limit=${limit}&q=f0&online=true`)
      assert.deepEqual(
        online.items.map((device) => device.device_id),
        ids.filter((_, i) => i % 100 === 7),
      )
    }
    await database.sql`delete from devices where device_id like 'f0%'`
  })
})

describe('a device that is given to another tenant', () => {
  const MINUTE = 60_000
  const id = '04500077'
  const at = (minutes: number) => new Date(NOW + minutes * MINUTE)
  const swipe = Buffer.from(
    ap3000.encodeFrame(
      'uplink',
      ap3000.uplinkByName.get('cardSwipe')!,
      0x04500077,
      1,
      Buffer.from('7a8d05dd0001020000000000', 'hex'),
    ),
  )
  /** What a session, an order, a command, an event, a logged and a recorded frame leave. */
  async function happen(tenant: string, name: string, minutes: number): Promise<void> {
    const { sql } = database
    await sql`
      insert into orders (order_no, tenant_id, device_id, protocol, socket, port, order_key, wire_hex, state, origin,
        started_at, created_at)
      values (${name}, ${tenant}, ${id}, 'ap3000', 0, 1, ${`aabb@${name}`}, 'aabb', 'charging', 'card', ${at(minutes)}, ${at(minutes)})`
    await sql`
      insert into outbound_queue (command_id, tenant_id, device_id, name, created_at, expires_at)
      values (${name}, ${tenant}, ${id}, ${name}, ${at(minutes)}, ${at(minutes + 1)})`
    await sql`
      insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
      values (${name}, ${name}, ${tenant}, ${id}, 1, ${at(minutes)}, '{}')`
    await sql`
      insert into sessions (device_id, epoch, protocol, shard, connection_id, remote_address, opened_at, closed_at)
      values (${id}, ${minutes + 1_000}, 'ap3000', 0, 1, ${name}, ${at(minutes)}, ${at(minutes + 1)})`
    await sql`
      insert into cmd_log (device_id, at, epoch, seq, is_uplink, command, code, message_id, note, frame)
      values (${id}, ${at(minutes)}, 1, ${minutes + 1_000}, true, ${name}, 2, 1, null, ${swipe})`
  }
  const window = `from=${at(-60).toISOString()}&to=${at(60).toISOString()}&limit=500`
  async function timeline(secret: Secret) {
    const { items } = await get(zItems, `/devices/${id}/timeline?${window}`, secret)
    return items
      .map(({ kind, what, details }) => `${kind} ${details?.['order_no'] ?? details?.['remote_address'] ?? what}`)
      .sort()
  }

  test('its new tenant begins with nothing: timeline, frames, the order of a port', async () => {
    const { sql } = database
    await ask('PUT', `/devices/${id}`, 'root-secret', {})
    await sql`
      insert into ports (device_id, socket, port, state, state_raw, wire_hex, at, epoch, seq)
      values (${id}, 0, 1, 'charging', 1, 'aabb', ${at(-20)}, 7, 1)`
    await happen('default', 'ours', -20)
    const ours = ['command ours', 'event ours', 'frame ours', 'order ours', 'session closed', 'session ours']
    assert.deepEqual(await timeline('root-secret'), ours)
    assert.equal((await get(zDevice, `/devices/${id}`)).ports[0]!.order_no, 'ours')
    await refused(await ask('GET', `/devices/${id}/timeline`, 'north-secret'), 'NOT_FOUND')

    // the clock of the gateway stands at NOW
    assert.equal((await ask('PUT', `/devices/${id}`, 'root-secret', { tenant: 'north' })).status, 200)
    for (const path of ['timeline', 'frames'])
      await refused(await ask('GET', `/devices/${id}/${path}`, 'root-secret'), 'NOT_FOUND')
    assert.deepEqual(await timeline('north-secret'), [])
    assert.deepEqual((await get(zItems, `/devices/${id}/frames?${window}`, 'north-secret')).items, [])
    assert.equal((await get(zDevice, `/devices/${id}`, 'north-secret')).ports[0]!.order_no, null)

    // an order of the former tenant goes on, and its word comes later
    await sql`
      insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
      values ('late', 'charging.ended', 'default', ${id}, 1, ${at(5)}, '{}')`
    await happen('north', 'theirs', 10)
    const theirs = [
      'command theirs',
      'event theirs',
      'frame theirs',
      'order theirs',
      'session closed',
      'session theirs',
    ]
    assert.deepEqual(await timeline('north-secret'), theirs)
    assert.equal((await get(zItems, `/devices/${id}/frames?${window}`, 'north-secret')).items.length, 1)
    // amended, not moved: nothing is lost
    await ask('PUT', `/devices/${id}`, 'north-secret', { name: 'N' })
    assert.deepEqual(await timeline('north-secret'), theirs)
  })

  test('bytes of a frame hide what its fields hide, from everybody but an admin', async () => {
    await ask('PUT', '/devices/04500078', 'root-secret', {})
    await database.sql`
      insert into cmd_log (device_id, at, epoch, seq, is_uplink, command, code, message_id, note, frame)
      values ('04500078', ${at(-1)}, 1, 1, true, 'cardSwipe', 2, 1, null, ${swipe})`
    const [shown] = (await get(zItems, `/devices/04500078/frames?${window}`, 'view-secret')).items
    assert.equal(shown!.hex, swipe.toString('hex').replace('7a8d05dd', '2a2a05dd'))
    assert.equal(shown!.fields?.['card_id_hex'], '****05dd')
    const [whole] = (await get(zItems, `/devices/04500078/frames?${window}`, 'root-secret')).items
    assert.equal(whole!.hex, swipe.toString('hex'))
    assert.equal(whole!.fields?.['card_id_hex'], '7a8d05dd')
  })
})

describe('orders', () => {
  before(async () => {
    const { sql } = database
    await sql`delete from orders`
    // five each share their moment, to the microsecond; two have not started
    await sql`
      insert into orders (order_no, tenant_id, device_id, protocol, socket, port, order_key, state, origin, mode, started_at,
        ended_at, duration_s, energy_wh, max_power_w, amount_fen, end_reason, end_reason_raw, business_no, settled_at, created_at)
      select 'o' || lpad(i::text, 3, '0'), 'default', case when i % 2 = 0 then '04ab373b' else '82200520004869' end, 'ap3000', 0, 1,
        i::text, case when i % 10 = 0 then 'charging' else 'settled' end, 'card', null,
        case when i >= 2 then timestamptz '2026-01-01T00:00:00.000123Z' + i / 5 * interval '1 hour' end, null, 600, 120.5,
        200, 99, 'full', 1, null, now(), timestamptz '2026-02-01T00:00:00.000456Z' + i / 5 * interval '1 second'
      from generate_series(0, 99) as i`
    await sql`
      insert into orders (order_no, tenant_id, device_id, protocol, socket, port, order_key, state, origin)
      values ('theirs', 'north', '0000beef', 'ap3000', 0, 1, '1', 'settled', 'card')`
  })

  test('the fields of the contract, no others', async () => {
    const order = await get(zOrder, '/orders/o042')
    assert.deepEqual(
      Object.keys((await (await ask('GET', '/orders/o042', 'view-secret')).json()) as object).sort(),
      (
        'order_no device_id socket port mode state origin started_at ended_at duration_s energy_wh max_power_w amount_fen ' +
        'end_reason end_reason_raw business_no estimated settled_at version'
      )
        .split(' ')
        .sort(),
    )
    assert.equal(order.started_at, '2026-01-01T08:00:00.000Z')
    assert.equal(order.amount_fen, 99)
    assert.equal(order.estimated, false)
  })

  test('pages have every order once, the newest first', async () => {
    const expected = Array.from({ length: 100 }, (_, i) => `o${String(99 - i).padStart(3, '0')}`)
    for (const limit of [1, 3, 7, 50, 99, 100, 500]) {
      const { items, pages } = await all(zOrder, `/orders?limit=${limit}`)
      assert.deepEqual(
        items.map((order) => order.order_no),
        expected,
      )
      assert.equal(pages, Math.ceil(100 / limit))
    }
  })

  test('filters', async () => {
    const count = async (query: string) => (await all(zOrder, `/orders?limit=7&${query}`)).items.length
    assert.equal(await count('device_id=04ab373b'), 50)
    assert.equal(await count('state=charging'), 10)
    assert.equal(await count('state=charging&device_id=82200520004869'), 0)
    // from and to are about the start, half open; an order that has not started is in no window
    assert.equal(await count('from=2025-01-01T00:00:00Z'), 98)
    assert.equal(await count('from=2026-01-01T01:00:00Z&to=2026-01-01T03:00:00Z'), 10)
    assert.equal(await count('from=2026-01-01T09:00:00%2B08:00&to=2026-01-01T11:00:00%2B08:00'), 10)
    assert.equal((await get(zPage(zOrder), '/orders')).items.length, 50)
  })

  test('nothing of another tenant, nothing that is not there', async () => {
    await refused(await ask('GET', '/orders/theirs', 'view-secret'), 'NOT_FOUND')
    await refused(await ask('GET', '/orders/none', 'view-secret'), 'NOT_FOUND')
    assert.equal((await get(zPage(zOrder), '/orders', 'north-secret')).items.length, 1)
  })

  test('a cursor belongs to its sorting, and is not believed', async () => {
    const { next_cursor: cursor } = await get(zPage(zOrder), '/orders?limit=1')
    await refused(
      await ask('GET', `/orders?from=2025-01-01T00:00:00Z&cursor=${cursor}`, 'view-secret'),
      'INVALID_ARGUMENT',
    )
    for (const time of ['5', 'yesterday', '2026-02-31T00:00:00+00:00', "2026-01-01T00:00:00+00:00'"]) {
      const forged = Buffer.from(JSON.stringify(['orders created_at', time, 'x'])).toString('base64url')
      await refused(await ask('GET', `/orders?cursor=${forged}`, 'view-secret'), 'INVALID_ARGUMENT')
    }
    for (const [path, ...values] of [
      ['/audit', 'audit', 'x'],
      ['/audit', 'audit', ''],
      ['/cards', 'cards', '\0'],
      ['/cards', 'cards', 'a', 'b'],
      ['/devices', 'devices', '\0'],
      ['/quarantine', 'quarantine', '-1'],
    ]) {
      const forged = Buffer.from(JSON.stringify(values)).toString('base64url')
      await refused(await ask('GET', `${path}?cursor=${forged}`, 'root-secret'), 'INVALID_ARGUMENT')
    }
  })

  test('a NUL is no text', async () => {
    await refused(await ask('GET', '/orders/%00', 'view-secret'), 'INVALID_ARGUMENT')
    await refused(await ask('GET', '/devices?q=%00', 'view-secret'), 'INVALID_ARGUMENT')
    await refused(await ask('PUT', '/devices/04ab373b', 'root-secret', { name: '\0' }), 'INVALID_ARGUMENT')
  })
})

describe('cards', () => {
  test('made, changed, listed, and what a device is told then', async () => {
    const expires_at = '2027-01-01T00:00:00.000Z'
    const made = await ask('PUT', '/cards/aabbccdd', 'root-secret', {
      balance_fen: 500,
      rate_mode: 'energy',
      expires_at,
    })
    assert.equal(made.status, 201)
    const card = zCard.parse(await made.json())
    assert.deepEqual(
      [card.status, card.rate_mode, card.balance_fen, card.expires_at],
      ['active', 'energy', 500, expires_at],
    )
    assert.deepEqual(
      await answerCard(database.sql, { deviceId: '04ab373b', cardId: 'aabbccdd', socket: 0, port: 1 }, NOW),
      {
        status: 'ok',
        rateMode: 'energy',
        balanceFen: 500,
        expiresMs: Date.parse(expires_at),
      },
    )
    const blocked = await ask('PUT', '/cards/aabbccdd', 'root-secret', { status: 'blocked', expires_at: null })
    assert.equal(blocked.status, 200)
    assert.deepEqual(zCard.parse(await blocked.json()).balance_fen, 500)
    assert.equal(
      (await answerCard(database.sql, { deviceId: '04ab373b', cardId: 'aabbccdd', socket: 0, port: 1 }, NOW)).status,
      'blocked',
    )
    // of another tenant: the same number is another card
    assert.equal((await ask('PUT', '/cards/aabbccdd', 'north-secret', { balance_fen: 1 })).status, 201)
    const { items } = await get(zPage(zCard), '/cards')
    assert.deepEqual(
      items.map(({ card_id, status, expires_at }) => [card_id, status, expires_at]),
      [['aabbccdd', 'blocked', null]],
    )
  })

  test('refused input', async () => {
    await refused(await ask('PUT', '/cards/AABB', 'root-secret', {}), 'INVALID_ARGUMENT')
    await refused(await ask('PUT', '/cards/aabb', 'root-secret', { balance_fen: 1.5 }), 'INVALID_ARGUMENT')
    await refused(await ask('PUT', '/cards/aabb', 'root-secret', { rate_mode: 'free' }), 'INVALID_ARGUMENT')
    await refused(await ask('PUT', '/cards/aabb', 'view-secret', {}), 'FORBIDDEN')
  })

  test('pages', async () => {
    await database.sql`
      insert into cards (tenant_id, card_id) select 'default', to_hex(i) from generate_series(4096, 4195) as i`
    const { items } = await all(zCard, '/cards?limit=9')
    assert.equal(items.length, 101)
    assert.equal(new Set(items.map((card) => card.card_id)).size, 101)
  })
})

describe('quarantine', () => {
  test('the newest first, bytes as hex, pages without gap', async () => {
    for (let i = 0; i < 11; i++)
      await database.sql`
        insert into quarantine (remote_address, reason, bytes) values ('10.0.0.1:5', 'unknown_protocol', ${Buffer.from([i, 255])})`
    const { items } = await all(zQuarantineItem, '/quarantine?limit=3', 'root-secret')
    assert.deepEqual(
      items.map(({ bytes_hex }) => bytes_hex),
      Array.from({ length: 11 }, (_, i) => `0${(10 - i).toString(16)}ff`),
    )
    assert.equal((await get(zPage(zQuarantineItem), '/quarantine', 'north-secret')).items.length, 0)
  })
})
