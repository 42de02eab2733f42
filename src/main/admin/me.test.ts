/**
 * Claims: a key is told its role and tenant, the overview counts what is its tenant's and tells what happened last, a
 * running order stands on its port also where the protocol repeats its numbers, and every script the console's pages
 * import is served. Tried over HTTP against the real schema in a real PostgreSQL.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { parseApiKeys } from '../../config/api-keys.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { createLog } from '../log.ts'
import { type Admin, createAdmin } from './admin.ts'
import { zDevice } from './routes/devices.ts'
import { zMe, zOverview } from './routes/me.ts'

const { keys } = parseApiKeys('root:root-secret:admin,view:view-secret:viewer,north:north-secret:operator:north')
let database: TestDatabase
let admin: Admin

before(async () => {
  database = await openTestDatabase()
  admin = createAdmin({
    nonceDirectory: temporaryDirectory(),
    config: { httpHost: '127.0.0.1', httpPort: 0, requestTimeoutMs: 5_000, record: 'errors', allowlist: 'on' },
    log: createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'main' }),
    sql: database.sql,
    apiKeys: keys,
    readiness: () => [],
    presenceOf: () => undefined,
    protocolOf: () => undefined,
    renderMetrics: async () => '',
    observeRequest: () => {},
    now: Date.now,
  })
  await admin.listen()
})
after(async () => {
  await admin.close()
  await database.close()
})

const address = () => `http://127.0.0.1:${admin.port}`
async function get(path: string, secret: string): Promise<unknown> {
  const response = await fetch(`${address()}/api/v1${path}`, { headers: { Authorization: `Bearer ${secret}` } })
  assert.equal(response.status, 200, path)
  return await response.json()
}

test('a key is told who it is, and what the gateway is set to', async () => {
  const { gateway, ...who } = zMe.parse(await get('/me', 'north-secret'))
  assert.deepEqual(who, { key_id: 'north', role: 'operator', tenant: 'north' })
  assert.deepEqual([gateway.record, gateway.allowlist], ['errors', 'on'])
  assert.equal(zMe.parse(await get('/me', 'view-secret')).role, 'viewer')
  assert.equal((await fetch(`${address()}/api/v1/me`)).status, 401)
})

test('the overview counts what is the tenant’s, and tells what happened last', async () => {
  const { sql } = database
  await sql`insert into tenants (tenant_id, name) values ('north', 'North')`
  await sql`insert into devices (device_id, tenant_id) values ('04ab373b', 'default'), ('82200520004869', 'default'),
    ('0000beef', 'north')`
  await sql`
    insert into orders (order_no, tenant_id, device_id, protocol, socket, port, order_key, state, origin)
    values ('a', 'default', '04ab373b', 'ap3000', 0, 1, '01', 'charging', 'card'),
      ('b', 'default', '04ab373b', 'ap3000', 0, 2, '02', 'starting', 'online'),
      ('c', 'default', '04ab373b', 'ap3000', 0, 3, '03', 'settled', 'online'),
      ('d', 'north', '0000beef', 'ap3000', 0, 1, '01', 'charging', 'card')`
  for (let index = 0; index < 60; index++)
    await sql`
      insert into events (event_id, tenant_id, event_type, device_id, epoch, at, data)
      values (${`e${index}`}, ${index % 10 === 9 ? 'north' : 'default'}, ${index % 3 === 0 ? 'device.alarm' : 'device.online'},
        '04ab373b', 1, now() - ${index < 3 ? '2 days' : '0 s'}::interval, '{"kind":"water"}')`

  const {
    recent_alarms: alarms,
    recent_events: events,
    ...counts
  } = zOverview.parse(await get('/overview', 'view-secret'))
  // 20 alarms of 60 events: one is two days old, and 9 and 39 are the other tenant's
  assert.deepEqual(counts, { devices: 2, orders: { starting: 1, charging: 1, stopping: 0 }, alarms_24h: 17 })
  assert.equal(alarms.length, 17)
  assert.deepEqual([alarms[0]!.event_id, alarms.at(-1)!.event_id], ['e57', 'e3'])
  assert.equal(events.length, 50)
  assert.deepEqual(
    events.slice(0, 3).map(({ event_id: id }) => id),
    ['e58', 'e57', 'e56'],
  )
  const north = zOverview.parse(await get('/overview', 'north-secret'))
  assert.deepEqual([north.devices, north.orders.charging, north.alarms_24h], [1, 1, 2])
})

test('a running order stands on its port, whatever the protocol’s number has behind it', async () => {
  const { sql } = database
  await sql`
    insert into ports (device_id, socket, port, state, state_raw, wire_hex, at, epoch, seq)
    values ('82200520004869', 3, 2, 'charging', 144, 'c7f7', now(), 7, 1)`
  await sql`
    insert into orders (order_no, device_id, protocol, socket, port, order_key, state, origin)
    values ('now', '82200520004869', 'bkv', 3, 2, 'c7f7@29920735', 'charging', 'online'),
      ('once', '82200520004869', 'bkv', 3, 2, 'c7f7@29900000', 'settled', 'online')`
  const { ports } = zDevice.parse(await get('/devices/82200520004869', 'view-secret'))
  assert.deepEqual(
    ports.map(({ socket, port, order_no: orderNo }) => [socket, port, orderNo]),
    [[3, 2, 'now']],
  )
})

test('every script that the console imports is served, under a policy without inline script', async () => {
  const seen = new Set<string>()
  const load = async (path: string): Promise<void> => {
    if (seen.has(path)) return
    seen.add(path)
    const response = await fetch(address() + path)
    assert.equal(response.status, 200, path)
    assert.match(
      response.headers.get('content-security-policy') ?? '',
      /default-src 'none'; script-src 'self'; style-src 'self';/,
    )
    const text = await response.text()
    if (path === '/') {
      assert.doesNotMatch(text, /<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=/)
      for (const [, found] of text.matchAll(/(?:src|href)="(\/[^"]+)"/g)) await load(found!)
    } else
      for (const [, found] of text.matchAll(/\bfrom '(\.\/[^']+)'/g))
        await load(new URL(found!, address() + path).pathname)
  }
  await load('/')
  assert.ok(seen.size >= 18, [...seen].join())
  assert.equal((await fetch(`${address()}/console/console.e2e.test.ts`)).status, 404)
  assert.equal((await fetch(`${address()}/console/words.test.ts`)).status, 404)
})
