/**
 * Claimed: migrations run once, in order, also when several gateways start at the same moment; a file that was edited
 * after it ran, a gap, or a database newer than the checkout stop the start; a failing file leaves nothing behind. And
 * what the SQL files promise: day partitions that never lose a row, generations that only grow. On a real PostgreSQL.
 */
import assert from 'node:assert/strict'
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { dropDayPartitions, endGeneration, ensureDayPartitions, takeGeneration } from './boots.ts'
import { MIGRATIONS_DIR, migrate } from './migrate.ts'

let database: TestDatabase
const dir = temporaryDirectory()
before(async () => {
  database = await openTestDatabase({ empty: true })
})
after(async () => {
  await database.close()
  rmSync(dir, { recursive: true, force: true })
})

test('every file opens with why, what it locks and for how long', () => {
  for (const name of readdirSync(MIGRATIONS_DIR)) {
    const head = readFileSync(join(MIGRATIONS_DIR, name), 'utf8').split('\n\n')[0]!
    assert.match(head, /^-- Why: .+Locks: .+seconds/s, name)
  }
})

test('three migrators at once apply each file once; later ones find nothing to do', async () => {
  const outcomes = await Promise.all([migrate(database.url), migrate(database.url), migrate(database.sql)])
  const names = readdirSync(MIGRATIONS_DIR).sort()
  assert.deepEqual(
    outcomes.flatMap(({ applied }) => applied),
    names,
  )
  assert.deepEqual(await migrate(database.url), { applied: [], known: names.length })
  const rows = await database.sql`select version, name from schema_migrations order by version`
  assert.deepEqual(
    rows.map(({ version, name }) => [version, name]),
    names.map((name, index) => [index + 1, name]),
  )
})

test('every table that others may read is there', async () => {
  const rows = await database.sql`select table_name from information_schema.tables where table_schema = 'public'`
  const names = new Set(rows.map((row) => row['table_name']))
  for (const table of [
    'tenants devices ports gateway_sockets sessions orders settlements outbound_queue cmd_log port_samples events',
    'webhook_endpoints webhook_deliveries cards audit_logs schema_migrations opaque_settlements quarantine allowlist',
  ].flatMap((line) => line.split(' ')))
    assert.ok(names.has(table), table)
})

test('an edited file, a gap, an unknown version and a failing file are refused with their code', async () => {
  const code = (expected: string) => (error: unknown) => (error as { code: string }).code === expected
  const copy = join(dir, 'copy')
  cpSync(MIGRATIONS_DIR, copy, { recursive: true })
  const last = readdirSync(copy).sort().at(-1)!
  const next = String(readdirSync(copy).length + 1).padStart(4, '0')

  const broken = join(copy, `${next}_broken.sql`)
  writeFileSync(broken, 'create table half (id int); select 1 / 0;')
  await assert.rejects(migrate(database.url, copy), code('GW_MIGRATION_FAILED'))
  const half = await database.sql`select to_regclass('half') as half`
  assert.equal(half[0]!['half'], null)
  rmSync(broken)

  writeFileSync(join(copy, last), `${readFileSync(join(copy, last), 'utf8')}\n-- later thought\n`)
  await assert.rejects(migrate(database.url, copy), code('GW_MIGRATION_EDITED'))
  rmSync(join(copy, last))
  await assert.rejects(migrate(database.url, copy), code('GW_MIGRATION_UNKNOWN'))
  const gap = join(dir, 'gap')
  mkdirSync(gap)
  writeFileSync(join(gap, '0002_second.sql'), 'select 1;')
  await assert.rejects(migrate(database.url, gap), code('GW_MIGRATION_NAME'))
})

test('deliveries that waited in lanes of orders wait in their device’s, the first of them alone with a time', async () => {
  const other = await openTestDatabase({ empty: true })
  const { sql, url } = other
  const before0014 = join(dir, 'before-0014')
  cpSync(MIGRATIONS_DIR, before0014, { recursive: true })
  for (const name of readdirSync(before0014)) if (name >= '0014') rmSync(join(before0014, name))
  await migrate(url, before0014)
  await sql`insert into webhook_endpoints (endpoint_id, url, secret) values ('e', 'http://127.0.0.1/', 's')`
  const lanes = ['order d1 A', 'device d1', 'order d1 A', 'order d1 B', 'order d2 C', 'device d3']
  for (const [index, lane] of lanes.entries())
    await sql`
      insert into webhook_deliveries (endpoint_id, tenant_id, event_id, event_type, lane, status, next_attempt_at)
      values ('e', 'default', ${`v${index}`}, 'x', ${lane}, ${index === 0 ? 'delivered' : 'pending'},
        ${index === 2 ? null : new Date()})`
  await migrate(url)
  const rows = await sql`
    select lane, next_attempt_at is not null as has_time from webhook_deliveries order by delivery_id`
  assert.deepEqual(
    rows.map((row) => [row['lane'], row['has_time']]),
    [
      ['order d1 A', true],
      ['device d1', true],
      ['device d1', false],
      ['device d1', false],
      ['device d2', true],
      ['device d3', true],
    ],
  )
  await other.close()
})

test('a day that nobody prepared keeps its rows, and gets them when it is prepared; old days go', async () => {
  const { sql } = database
  const dayMs = 86_400_000
  const firstMs = Date.UTC(2026, 2, 1)
  const log = (atMs: number, seq: number) => sql`
    insert into cmd_log (device_id, at, epoch, seq, is_uplink, command, code, message_id, frame)
    values ('d', ${new Date(atMs)}, 1, ${seq}, true, 'c', 1, 1, '')`
  await log(firstMs, 1)
  await log(firstMs + dayMs - 1, 2)
  await log(firstMs + dayMs, 3)
  const where = async () =>
    (await sql`select tableoid::regclass::text as part, seq from cmd_log order by seq`).map((r) => [
      r['part'],
      r['seq'],
    ])
  assert.deepEqual(await where(), [
    ['cmd_log_default', 1],
    ['cmd_log_default', 2],
    ['cmd_log_default', 3],
  ])
  assert.equal(await ensureDayPartitions(sql, firstMs + 3_600_000, 1), 2)
  const made = await Promise.all([ensureDayPartitions(sql, firstMs, 4), ensureDayPartitions(sql, firstMs, 4)])
  assert.equal(made[0] + made[1], 6)
  await log(firstMs + 2 * dayMs, 4)
  await log(Date.UTC(2020, 0, 1), 5)
  assert.deepEqual(await where(), [
    ['cmd_log_20260301', 1],
    ['cmd_log_20260301', 2],
    ['cmd_log_20260302', 3],
    ['cmd_log_20260303', 4],
    ['cmd_log_default', 5],
  ])
  // The same row again is still one row, also after it has moved.
  await assert.rejects(log(firstMs, 1), { code: '23505' })
  assert.equal(await dropDayPartitions(sql, 'cmd_log', firstMs + 2 * dayMs + 5), 2)
  assert.deepEqual(await where(), [['cmd_log_20260303', 4]])
})

test('generations only grow, also for two starts at once', async () => {
  const boot = { host: 'h', pid: 1, release: '0' }
  const first = await takeGeneration(database.sql, boot)
  const both = await Promise.all([takeGeneration(database.sql, boot), takeGeneration(database.sql, boot)])
  assert.ok(both.every((generation) => generation > first))
  assert.notEqual(both[0], both[1])
  await endGeneration(database.sql, first)
  const [row] = await database.sql`select stopped_at from gateway_boots where generation = ${first}`
  assert.ok(row!['stopped_at'] instanceof Date)
})
