/**
 * Claim: what the desk asks in one turn of the loop is asked of the table together, and each question gets its own answer:
 * the latest message id of each device, and for each fate whether it is this one. Tried on the real schema.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { SqlCommandStore } from './command-store.ts'

let database: TestDatabase
before(async () => {
  database = await openTestDatabase()
})
after(() => database.close())

async function command(commandId: string, deviceId: string, more: object = {}): Promise<void> {
  const { sql } = database
  await sql`insert into outbound_queue ${sql({
    command_id: commandId,
    device_id: deviceId,
    name: 'locate',
    expires_at: new Date(),
    ...more,
  } as Record<string, unknown>)}`
}
async function transactions(): Promise<number> {
  const [row] = await database.sql<{ xid: string }[]>`select pg_current_xact_id()::text as xid`
  return Number(row!.xid)
}

test('the latest message id of each device, by when it was sent', async () => {
  await command('m1', '00000001', { message_id: 9, sent_at: new Date(2_000), attempts: 1, status: 1 })
  await command('m2', '00000001', { message_id: 4, sent_at: new Date(3_000), attempts: 1, status: 1 })
  await command('m3', '00000002', { message_id: 7, sent_at: new Date(1_000), attempts: 1, status: 1 })
  await command('m4', '00000003')
  const store = new SqlCommandStore(database.sql)
  const ids = ['00000001', '00000002', '00000003', '00000009', '00000001']
  assert.deepEqual(await Promise.all(ids.map((id) => store.lastMessageId(id))), [4, 7, undefined, undefined, 4])
})

test('many fates in one transaction; who has one already is told so', async () => {
  const { sql } = database
  const ids = Array.from({ length: 40 }, (_, index) => `e${index}`)
  for (const id of ids) await command(id, `000000${id.slice(1).padStart(2, '0')}`)
  await sql`update outbound_queue set status = 2, finished_at = now() where command_id = 'e3'`
  const store = new SqlCommandStore(sql)
  const before = await transactions()
  const ends = await Promise.all([...ids, 'nobody'].map((id) => store.end(id, COMMAND_STATUS.expired, 'expired')))
  // this look, the span, and nothing for each
  assert.ok((await transactions()) - before <= 3)
  assert.deepEqual(ends, [...ids.map((id) => id !== 'e3'), false])
  const rows = await sql<{ status: number; count: number }[]>`
    select status, count(*)::int as count from outbound_queue where command_id like 'e%' group by 1 order by 1`
  assert.deepEqual(
    rows.map(({ status, count }) => [status, count]),
    [
      [2, 1],
      [5, 39],
    ],
  )
  const [told] = await sql<{ count: number }[]>`
    select count(*)::int as count from events where event_type = 'command.finished'`
  assert.equal(told!.count, 39)
})

test('a database that does not answer rejects every one of them', async () => {
  const broken = await openTestDatabase()
  const store = new SqlCommandStore(broken.sql)
  await broken.close()
  const asked = await Promise.allSettled([
    store.end('a', COMMAND_STATUS.expired, 'expired'),
    store.end('b', COMMAND_STATUS.expired, 'expired'),
    store.lastMessageId('00000001'),
    store.lastMessageId('00000002'),
  ])
  assert.deepEqual(
    asked.map(({ status }) => status),
    Array.from({ length: 4 }, () => 'rejected'),
  )
})
