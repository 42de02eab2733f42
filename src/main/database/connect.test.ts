/**
 * Claimed: a pool gives bigint columns as numbers while they are safe, UTC times, a query's error within milliseconds
 * when the server is away, and by itself a new connection for a lost one; small statements do not wait for Nagle. Tried
 * against a real PostgreSQL and a listener that only watches the socket.
 */
import assert from 'node:assert/strict'
import net from 'node:net'
import { after, before, test } from 'node:test'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { connect, databaseErrorCode } from './connect.ts'

let database: TestDatabase
before(async () => {
  database = await openTestDatabase({ empty: true })
})
after(async () => await database.close())

test('bigint is a number while it is safe, else a bigint, also in arrays', async () => {
  const [row] = await database.sql`
    select 9007199254740991::bigint as safe, 9007199254740993::bigint as large, array[1, -2]::bigint[] as list`
  assert.deepEqual({ ...row }, { safe: 9007199254740991, large: 9007199254740993n, list: [1, -2] })
  const [back] = await database.sql`select ${2 ** 40}::bigint as number, ${2n ** 60n}::bigint as large`
  assert.deepEqual({ ...back }, { number: 2 ** 40, large: 2n ** 60n })
})

test('sessions speak UTC and bound their statements', async () => {
  const sql = connect(database.url, { max: 1, statementTimeoutMs: 80, applicationName: 'bounded' })
  const [row] = await sql`
    select current_setting('TimeZone') as zone, current_setting('application_name') as name, '2026-01-31 12:00'::timestamptz as at`
  assert.deepEqual({ ...row }, { zone: 'UTC', name: 'bounded', at: new Date('2026-01-31T12:00:00Z') })
  const error = await sql`select pg_sleep(5)`.then(
    () => null,
    (reason: unknown) => reason,
  )
  assert.equal(databaseErrorCode(error), '57014')
  await sql.end({ timeout: 1 })
})

test('while the server is away every query fails fast, and the pool comes back by itself', {
  timeout: 20_000,
}, async () => {
  const away = connect('postgres://a:b@127.0.0.1:1/c', { max: 2 })
  for (let tries = 0; tries < 3; tries++) {
    const startedMonoMs = performance.now()
    await assert.rejects(
      away`select 1`.then(() => {}),
      { code: 'ECONNREFUSED' },
    )
    assert.ok(performance.now() - startedMonoMs < 1_500)
  }
  await away.end({ timeout: 1 })

  // Ten times: queries that were lost between the socket's error and its close used to wait for ever.
  for (let round = 0; round < 10; round++) {
    const sql = connect(database.url, { max: 1 })
    const [{ pid }] = await sql<[{ pid: number }]>`select pg_backend_pid() as pid`
    await database.sql`select pg_terminate_backend(${pid})`
    const answers: unknown[] = []
    while (answers.at(-1) !== 'ok' && answers.length < 5)
      answers.push(await sql`select 1`.then(() => 'ok', databaseErrorCode))
    assert.equal(answers.at(-1), 'ok', String(answers))
    await sql.end({ timeout: 1 })
  }
})

test('sockets are opened without Nagle', async (t) => {
  const asked: unknown[] = []
  const original = net.Socket.prototype.connect
  t.mock.method(net.Socket.prototype, 'connect', function (this: net.Socket, ...args: unknown[]) {
    asked.push(args[0])
    return Reflect.apply(original, this, args)
  })
  const sql = connect(database.url, { max: 1 })
  await sql`select 1`
  await sql.end({ timeout: 1 })
  assert.equal(asked.length, 1)
  assert.equal((asked[0] as { noDelay?: boolean }).noDelay, true)
})
