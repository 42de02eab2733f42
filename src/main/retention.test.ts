/**
 * Claim: old rows go, young ones and whatever is still in use stay, and what went is counted by its table. Tried on the
 * real schema with one row on each side of every rule, at days that are all different so that none can stand for another.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { dropOld } from './retention.ts'

const CONFIG = {
  retentionDaysDead: 10,
  retentionDaysCommands: 20,
  retentionDaysJobs: 30,
  retentionDaysAudit: 40,
  retentionDaysSessions: 50,
  retentionDaysStrangers: 60,
}
const NOW_MS = Date.UTC(2026, 10, 21)
const daysAgo = (days: number) => new Date(NOW_MS - days * 86_400_000)

let database: TestDatabase
before(async () => {
  database = await openTestDatabase()
})
after(() => database.close())

async function tidy(): Promise<Record<string, number>> {
  const dropped: Record<string, number> = {}
  await dropOld(database.sql, CONFIG, NOW_MS, (table, rows) => {
    dropped[table] = (dropped[table] ?? 0) + rows
  })
  return dropped
}

async function command(commandId: string, status: number, finishedDaysAgo: number | null): Promise<void> {
  const { sql } = database
  await sql`
    insert into outbound_queue (command_id, device_id, name, status, created_at, expires_at, finished_at)
    values (${commandId}, '04ab373b', 'locate', ${status}, ${daysAgo(100)}, ${daysAgo(100)},
      ${finishedDaysAgo === null ? null : daysAgo(finishedDaysAgo)})`
}
const idsOf = async (table: string, column: string) => {
  const rows = await database.sql<{ id: string }[]>`
    select ${database.sql(column)} as id from ${database.sql(table)} order by 1`
  return rows.map(({ id }) => String(id))
}

test('commands: dead ones by their own days, others by theirs, none without a fate, none a running job reads', async () => {
  const { sql } = database
  await command('dead-11', 3, 11)
  await command('dead-09', 3, 9)
  await command('acked-21', 2, 21)
  await command('acked-19', 2, 19)
  await command('cancelled-21', 6, 21)
  await command('queued', 0, null)
  await command('sent', 1, null)
  await command('of-job', 2, 99)
  await sql`
    insert into jobs (job_id, tenant_id, kind, state, spec, device_count, wave_size, concurrency, expires_in_s,
      request_digest, created_by, created_at, finished_at)
    select id, 'default', 'parameters', state, '{}', 1, 1, 1, 60, 'd', 'op', ${daysAgo(100)}, finished
    from (values ('open', 'running', null::timestamptz), ('ended-31', 'finished', ${daysAgo(31)}::timestamptz),
      ('ended-32', 'cancelled', ${daysAgo(32)}), ('ended-29', 'finished', ${daysAgo(29)})) as j (id, state, finished)`
  await sql`
    insert into job_devices (job_id, device_id, item_index, state, step, command_id, outcome)
    values ('open', '04ab373b', 0, 'running', 'write', 'of-job', null),
      ('ended-31', '04ab373b', 0, 'done', null, null, 'ok')`
  assert.deepEqual(await tidy(), { outbound_queue: 3, jobs: 2 })
  assert.deepEqual(await idsOf('outbound_queue', 'command_id'), ['acked-19', 'dead-09', 'of-job', 'queued', 'sent'])
  assert.deepEqual(await idsOf('jobs', 'job_id'), ['ended-29', 'open'])
  assert.deepEqual(await idsOf('job_devices', 'job_id'), ['open'])
  assert.deepEqual(await tidy(), {}, 'nothing is left to drop')
})

test('audit lines, sessions, what was put aside', async () => {
  const { sql } = database
  for (const days of [39, 41])
    await sql`
      insert into audit_logs (at, tenant_id, actor, role, action, target)
      values (${daysAgo(days)}, 'default', 'op', 'operator', 'charge.requested', ${String(days)})`
  for (const [epoch, closed] of [
    [1, daysAgo(51)],
    [2, daysAgo(49)],
    [3, null],
  ] as const)
    await sql`
      insert into sessions (device_id, epoch, protocol, shard, connection_id, remote_address, opened_at, closed_at)
      values ('04ab373b', ${epoch}, 'ap3000', 0, 1, '-', ${daysAgo(90)}, ${closed})`
  for (const days of [9, 11])
    await sql`insert into quarantine (at, reason, bytes) values (${daysAgo(days)}, 'row_rejected', '\\x00')`
  assert.deepEqual(await tidy(), { audit_logs: 1, sessions: 1, quarantine: 1 })
  assert.deepEqual(await idsOf('audit_logs', 'target'), ['39'])
  assert.deepEqual(await idsOf('sessions', 'epoch'), ['2', '3'])
})

test('devices that came once: with their ports; not what has a name, a history of money, or came lately', async () => {
  const { sql } = database
  const row = (deviceId: string, heardDaysAgo: number, more: object = {}) =>
    sql`insert into devices ${sql({
      device_id: deviceId,
      protocol: 'ap3000',
      created_at: daysAgo(100),
      last_seen_at: daysAgo(heardDaysAgo),
      ...more,
    } as Record<string, unknown>)}`
  await sql`insert into tenants (tenant_id, name) values ('north', 'North')`
  await row('00000001', 61)
  await row('00000002', 59)
  await row('00000003', 61, { name: 'gate' })
  await row('00000004', 61, { tenant_id: 'north' })
  await row('00000005', 61)
  await row('00000006', 61)
  await row('00000007', 61)
  await sql`
    insert into orders (order_no, device_id, protocol, socket, port, state, origin)
    values ('N', '00000005', 'ap3000', 0, 1, 'settled', 'offline')`
  await sql`
    insert into outbound_queue (command_id, device_id, name, expires_at) values ('c', '00000006', 'locate', now())`
  await sql`
    insert into sessions (device_id, epoch, protocol, shard, connection_id, remote_address, opened_at)
    values ('00000007', 9, 'ap3000', 0, 1, '-', now())`
  for (const id of ['00000001', '00000003'])
    await sql`
      insert into ports (device_id, socket, port, state, state_raw, at, epoch, seq)
      values (${id}, 0, 1, 'idle', 0, now(), 1, 1)`
  assert.deepEqual(await tidy(), { devices: 1 })
  assert.deepEqual(await idsOf('devices', 'device_id'), [
    '00000002',
    '00000003',
    '00000004',
    '00000005',
    '00000006',
    '00000007',
  ])
  assert.deepEqual(await idsOf('ports', 'device_id'), ['00000003'])
})
