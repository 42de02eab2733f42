/**
 * Claimed: a span of rows changes the database once, however often it is inserted, in whatever order lanes arrive; a
 * settlement is stored once and ends its order; an older session never overwrites a newer one; a row the database
 * refuses costs only itself. Tried on a real PostgreSQL: each test inserts encoded rows as a session thread would have
 * written them and looks at the tables; `dump` compares every table byte for byte before and after a repetition.
 */
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { connect } from '../../src/main/database/connect.ts'
import { openTestDatabase, type TestDatabase } from '../../src/testing/database.ts'
import { insertSpan, WriteFailure } from './insert.ts'
import {
  AT_MS,
  commandLog,
  deviceState,
  event,
  fate,
  opaque,
  orderStart,
  portState,
  progress,
  session,
  settlement,
  spanOf,
} from './row-samples.ts'

let database: TestDatabase
before(async () => {
  database = await openTestDatabase()
})
after(async () => await database.close())

const TABLES = ['devices', 'ports', 'gateway_sockets', 'sessions', 'orders', 'settlements', 'opaque_settlements']
const HISTORY = ['events', 'cmd_log', 'port_samples', 'quarantine']
const ALL = [...TABLES, ...HISTORY]

beforeEach(async () => {
  await database.sql.unsafe(`truncate ${ALL.join(', ')}`)
})

async function dump(): Promise<Record<string, string[]>> {
  const out: Record<string, string[]> = {}
  for (const table of ALL) {
    const rows = await database.sql.unsafe<{ line: string }[]>(`select t::text as line from ${table} t order by 1`)
    out[table] = rows.map(({ line }) => line)
  }
  return out
}

const insert = (...rows: Uint8Array[]) => insertSpan(database.sql, spanOf(...rows))
const orderOf = async (orderNo: string) => {
  const [order] = await database.sql`select * from orders where order_no = ${orderNo}`
  assert.ok(order, `order ${orderNo} exists`)
  return order
}
const at = (value: unknown) => (value as Date).getTime()

test('every kind of row lands in its table, and the same span changes nothing the second and third time', async () => {
  const rows = [
    settlement(),
    opaque(),
    orderStart({ orderKey: 'k2', orderNo: 'N2' }),
    progress({ orderKey: 'k3', orderNo: 'N3', socket: 4, deviceId: '12345678901234', protocol: 'bkv' }),
    deviceState({ firmware: 'V1', portCount: 2, registeredMs: AT_MS }),
    portState({ socket: 4, deviceId: '12345678901234', state: 'charging' }),
    session(),
    session({ closedMs: AT_MS, closeReason: 'idle' }),
    event(),
    commandLog(),
  ]
  const first = await insert(...rows)
  assert.deepEqual(first.rejected, [])
  assert.deepEqual(first.settlements, { stored: 1, repeated: 0, conflicting: 0 })
  for (const [table, counts] of Object.entries(first.tables)) {
    assert.equal(counts.repeated + counts.fenced, 0, table)
    assert.equal(counts.inserted, table === 'sessions' ? 2 : 1, table)
  }
  assert.deepEqual(Object.keys(first.tables).sort(), [
    'cmd_log',
    'devices',
    'events',
    'opaque_settlements',
    'orders',
    'port_samples',
    'ports',
    'sessions',
    'settlements',
  ])
  const state = await dump()
  for (const table of ALL) if (table !== 'quarantine') assert.notEqual(state[table]!.length, 0, table)

  for (let again = 0; again < 2; again++) {
    const result = await insert(...rows)
    assert.deepEqual(result.settlements, { stored: 0, repeated: 1, conflicting: 0 })
    for (const [table, counts] of Object.entries(result.tables)) assert.equal(counts.inserted, 0, table)
    assert.deepEqual(await dump(), state)
  }
})

test('values arrive as they were sent: time, bytes, json, text with quotes and backslashes, unsafe names', async () => {
  const nasty = `a"b\\c,{}'NULL %s ünïcode 充电`
  await insert(
    commandLog({ note: nasty, command: 'NULL', frame: Uint8Array.from({ length: 256 }, (_, i) => i) }),
    event(),
  )
  const [row] = await database.sql`select * from cmd_log`
  assert.equal(row!['note'], nasty)
  assert.equal(row!['command'], 'NULL')
  assert.equal(at(row!['at']), AT_MS)
  assert.deepEqual([...(row!['frame'] as Buffer)], [...Array(256).keys()])
  const [fact] = await database.sql`select data, tenant_id from events`
  assert.deepEqual(fact!['data'], { text: 'a "b" \\ c' })
  assert.equal(fact!['tenant_id'], 'default')
})

test('a settlement of an unknown order makes the order, ended by the device clock only when that can be believed', async () => {
  await insert(
    settlement({ orderKey: 'a', orderNo: 'A', deviceEndedMs: AT_MS - 500_000, durationS: 100 }),
    settlement({ orderKey: 'b', orderNo: 'B', deviceEndedMs: 86_400_000, durationS: 100 }),
    settlement({ orderKey: 'c', orderNo: 'C', origin: 'offline', deviceAmountFen: 120 }),
  )
  const a = await orderOf('A')
  assert.equal(a['state'], 'settled')
  assert.equal(at(a['started_at']), AT_MS - 600_000)
  assert.equal(at(a['ended_at']), AT_MS - 500_000)
  assert.equal(at(a['settled_at']), AT_MS)
  const b = await orderOf('B')
  assert.equal(at(b['ended_at']), AT_MS)
  const c = await orderOf('C')
  assert.equal(c['origin'], 'offline')
  assert.equal(c['amount_fen'], 120)
})

test('a settlement repeated with another timestamp and message id changes nothing; another content is kept aside', async () => {
  await insert(settlement())
  const state = await dump()
  const repeat = await insert(
    settlement({ receivedMs: AT_MS + 60_000, messageId: 99, seq: 500, epoch: 9, frame: Uint8Array.of(4) }),
  )
  assert.deepEqual(repeat.settlements, { stored: 0, repeated: 1, conflicting: 0 })
  assert.deepEqual(await dump(), state)

  const other = settlement({ energyRaw: 9999, energyWh: 99_990, frame: Uint8Array.of(6, 6) })
  assert.deepEqual((await insert(other)).settlements, { stored: 0, repeated: 0, conflicting: 1 })
  assert.deepEqual((await insert(other)).settlements, { stored: 0, repeated: 0, conflicting: 1 })
  const { quarantine, ...rest } = await dump()
  assert.equal(quarantine!.length, 1)
  assert.match(quarantine![0]!, /settlement_conflict/)
  const { quarantine: _, ...before } = state
  assert.deepEqual(rest, before)
})

test('repeats within one span count against its first', async () => {
  const result = await insert(settlement(), settlement({ messageId: 4 }), settlement({ durationS: 1 }))
  assert.deepEqual(result.settlements, { stored: 1, repeated: 1, conflicting: 1 })
  assert.deepEqual(result.tables['settlements'], { inserted: 1, repeated: 2, fenced: 0 })
})

test('an order number that is taken gives the next order a longer one, the same each time', async () => {
  const same = { orderNo: 'DUP', socket: 1 }
  const rows = [
    settlement({ ...same, deviceId: 'a0000001', orderKey: 'x' }),
    settlement({ ...same, deviceId: 'b0000001', orderKey: 'x' }),
    settlement({ ...same, deviceId: 'b0000001', orderKey: 'y' }),
    settlement({ ...same, deviceId: 'b0000001', orderKey: 'x', socket: 2 }),
  ]
  const result = await insert(...rows)
  assert.equal(result.settlements.stored, 4)
  const numbers = async () => (await database.sql`select order_no from orders order by 1`).map((r) => r['order_no'])
  const expected = ['DUP', 'DUP.b0000001.1', 'DUP.b0000001.1.1.y', 'DUP.b0000001.2.1.x']
  assert.deepEqual(await numbers(), expected)
  // One after the other, against the database instead of the batch.
  await database.sql`truncate orders, settlements`
  for (const row of rows) assert.equal((await insert(row)).settlements.stored, 1)
  assert.deepEqual(await numbers(), expected)
  // A device without a number at all.
  await insert(settlement({ orderNo: '', orderKey: 'z' }), progress({ orderNo: '', orderKey: 'w' }))
  assert.deepEqual(
    (await numbers()).filter((number) => number.startsWith('.')),
    ['.04ab373b.0.1.w', '.04ab373b.0.1.z'],
  )
})

test('an order of ours goes pending, charging, settled, keeps its number and tenant, and counts versions', async () => {
  await database.sql`insert into tenants (tenant_id, name) values ('t2', 'Two') on conflict do nothing`
  await database.sql`insert into devices (device_id, tenant_id) values ('04ab373b', 't2')`
  await database.sql`
    insert into orders (order_no, tenant_id, device_id, protocol, socket, port, order_key, state, origin, mode)
    values ('OURS', 't2', '04ab373b', 'ap3000', 0, 1, 'k1', 'pending', 'online', 'time')`
  await insert(orderStart())
  let order = await orderOf('OURS')
  assert.deepEqual([order['state'], order['version'], at(order['started_at'])], ['charging', 2, AT_MS - 3_000_000])
  await insert(progress())
  order = await orderOf('OURS')
  assert.deepEqual([order['energy_wh'], order['duration_s'], order['max_power_w']], [100, 600, 210])
  await insert(settlement())
  order = await orderOf('OURS')
  assert.deepEqual(
    [order['state'], order['version'], order['energy_wh'], order['max_power_w'], order['mode'], order['end_reason']],
    ['settled', 4, 450, 250, 'time', 'full'],
  )
  assert.equal(at(order['ended_at']), at(order['started_at']) + 3_600_000)
  // Late words of the other lane: the sample is kept, the order stays.
  await insert(orderStart(), progress({ seq: 51, atMs: AT_MS + 1, energyWh: 1 }))
  assert.deepEqual(await orderOf('OURS'), order)
  const orders = await database.sql`select order_no, tenant_id from orders`
  assert.deepEqual([...orders], [{ order_no: 'OURS', tenant_id: 't2' }])
  const [kept] = await database.sql`select tenant_id from settlements`
  assert.equal(kept!['tenant_id'], 't2')
})

test('start, progress and settlement of one order in one span end where they end one by one', async () => {
  const rows = [settlement(), progress({ seq: 51, atMs: AT_MS - 1_000 }), orderStart(), progress()]
  await insert(...rows)
  const together = await orderOf('N1')
  await database.sql.unsafe(`truncate ${ALL.join(', ')}`)
  for (const row of [rows[2]!, rows[3]!, rows[1]!, rows[0]!]) await insert(row)
  const apart = await orderOf('N1')
  for (const name of ['state', 'started_at', 'ended_at', 'duration_s', 'energy_wh', 'max_power_w', 'end_reason'])
    assert.deepEqual(together[name], apart[name], name)
  assert.equal(at(together['started_at']), AT_MS - 3_000_000)
})

test('the settlement of an order that was settled by estimate replaces the estimate', async () => {
  await insert(progress())
  await database.sql`
    update orders set state = 'settled', estimated = true, energy_wh = 1, amount_fen = 5, settled_at = now()`
  await insert(settlement({ deviceAmountFen: 77 }))
  const order = await orderOf('N1')
  assert.deepEqual([order['estimated'], order['energy_wh'], order['amount_fen']], [false, 450, 77])
})

test('progress of one order merges within a span: newest wins, peaks are kept, silence is not zero', async () => {
  const rows = [
    progress({ seq: 1, atMs: AT_MS + 2_000, durationS: 602, energyWh: null, powerW: 90, maxPowerW: null }),
    progress({
      seq: 2,
      atMs: AT_MS + 1_000,
      durationS: 601,
      energyWh: 120,
      energyRaw: 12,
      powerW: 300,
      maxPowerW: null,
    }),
    progress({ seq: 3, atMs: AT_MS, durationS: 600, energyWh: 110, energyRaw: 11, powerW: 100, maxPowerW: null }),
  ]
  const result = await insert(...rows)
  assert.deepEqual(result.tables['port_samples'], { inserted: 3, repeated: 0, fenced: 0 })
  const order = await orderOf('N1')
  assert.deepEqual(
    [order['state'], order['duration_s'], order['energy_wh'], order['max_power_w'], order['version']],
    ['charging', 602, 120, 300, 1],
  )
  assert.equal(at(order['last_progress_at']), AT_MS + 2_000)
  // Older news later.
  await insert(progress({ seq: 4, atMs: AT_MS + 1_500, energyWh: 5 }))
  assert.deepEqual(await orderOf('N1'), order)
  // A reading without an order is a sample only.
  await insert(progress({ seq: 5, orderKey: '' }))
  assert.equal((await database.sql`select from orders`).count, 1)
  assert.equal((await database.sql`select from port_samples`).count, 5)
})

test('progress of an older session does not touch an order that a newer one speaks for', async () => {
  await insert(progress({ epoch: 8, seq: 1 }))
  const order = await orderOf('N1')
  const result = await insert(progress({ epoch: 7, seq: 999, atMs: AT_MS + 5_000, energyWh: 1 }))
  assert.deepEqual(result.tables['port_samples'], { inserted: 1, repeated: 0, fenced: 1 })
  assert.deepEqual(await orderOf('N1'), order)
})

test('device rows merge: null keeps, newest word wins, an older session is refused', async () => {
  await insert(
    deviceState({ seq: 12, firmware: 'V2', signal: 20 }),
    deviceState({ seq: 11, firmware: 'V1', iccid: '8986', signal: null }),
  )
  const device = async () => (await database.sql`select * from devices`)[0]!
  let row = await device()
  assert.deepEqual([row['firmware'], row['iccid'], row['signal'], row['seq']], ['V2', '8986', 20, 12])

  const stale = await insert(deviceState({ seq: 11, firmware: 'V0' }), deviceState({ seq: 12, firmware: 'V9' }))
  assert.deepEqual(stale.tables['devices'], { inserted: 0, repeated: 2, fenced: 0 })
  assert.deepEqual(await device(), row)

  // A session that opens fences all earlier ones before the device has said a word.
  await insert(session({ epoch: 8, openedMs: AT_MS }))
  const fenced = await insert(
    deviceState({ epoch: 7, seq: 99, firmware: 'OLD', lastSeenMs: AT_MS + 5_000 }),
    portState({ epoch: 7, seq: 100, state: 'fault' }),
  )
  assert.deepEqual(fenced.tables['devices'], { inserted: 0, repeated: 0, fenced: 1 })
  assert.deepEqual(fenced.tables['ports'], { inserted: 0, repeated: 0, fenced: 1 })
  assert.equal((await database.sql`select from ports`).count, 0)
  row = await device()
  assert.deepEqual([row['firmware'], row['epoch'], at(row['last_seen_at'])], ['V2', 8, AT_MS + 5_000])

  await insert(deviceState({ epoch: 8, seq: 0, firmware: 'V3' }))
  assert.equal((await device())['firmware'], 'V3')
})

test('ports: the newest row of a span wins, sockets become known', async () => {
  const bkv = { deviceId: '12345678901234', socket: 3 }
  await insert(session({ deviceId: bkv.deviceId, protocol: 'bkv' }))
  const result = await insert(
    portState({ ...bkv, seq: 2, state: 'charging', powerW: 90 }),
    portState({ ...bkv, seq: 3, state: 'full', powerW: null, atMs: AT_MS + 1 }),
    portState({ ...bkv, seq: 1, state: 'idle' }),
  )
  assert.deepEqual(result.tables['ports'], { inserted: 3, repeated: 0, fenced: 0 })
  const [port] = await database.sql`select * from ports`
  assert.deepEqual([port!['state'], port!['power_w'], port!['seq']], ['full', null, 3])
  const [socket] = await database.sql`select * from gateway_sockets`
  assert.deepEqual([socket!['socket'], at(socket!['last_seen_at'])], [3, AT_MS + 1])
  const again = await insert(portState({ ...bkv, seq: 2, state: 'charging' }))
  assert.deepEqual(again.tables['ports'], { inserted: 0, repeated: 1, fenced: 0 })
})

test('sessions: opened, then closed, in either order, never opened again', async () => {
  const closed = session({ closedMs: AT_MS, closeReason: 'replaced' })
  await insert(session())
  await insert(closed)
  const state = await dump()
  assert.match(state['sessions']![0]!, /replaced/)
  await insert(session())
  assert.deepEqual((await insert(session({ closedMs: AT_MS + 9, closeReason: 'other' }))).tables['sessions'], {
    inserted: 0,
    repeated: 1,
    fenced: 0,
  })
  assert.deepEqual((await dump())['sessions'], state['sessions'])
})

test('events keep the order of the span in their cursor', async () => {
  const ids = Array.from({ length: 50 }, (_, n) => `e${(n * 37) % 50}`)
  await insert(...ids.map((eventId) => event({ eventId })))
  const rows = await database.sql`select event_id from events order by cursor`
  assert.deepEqual(
    rows.map((row) => row['event_id']),
    ids,
  )
})

test('an event is of the tenant of its order or command, what the device says of itself of its present tenant', async () => {
  const { sql } = database
  await sql`insert into tenants (tenant_id, name) values ('beta', 'Beta') on conflict do nothing`
  const toTenant = (tenant: string) => sql`update devices set tenant_id = ${tenant} where device_id = '04ab373b'`
  await sql`insert into devices (device_id) values ('04ab373b')`
  for (const [commandId, name] of [
    ['c1', 'stopCharge'],
    ['c2', 'readParameters1'],
  ] as const)
    await sql`
      insert into outbound_queue (command_id, tenant_id, device_id, name, created_at, expires_at)
      values (${commandId}, 'default', '04ab373b', ${name}, now(), now() + interval '1 hour')`
  try {
    await insert(orderStart(), progress({ atMs: AT_MS - 2 }))
    await toTenant('beta')
    await insert(
      progress({ seq: 51, atMs: AT_MS - 1, durationS: 601 }),
      session(),
      portState({ state: 'charging' }),
      event({ eventId: 'alarm', eventType: 'device.alarm' }),
      fate({ commandId: 'c1', status: 3, reason: 'dead' }),
      fate({ commandId: 'c2', status: 2, reason: 'ok' }),
      settlement(),
      orderStart({ orderKey: 'k2', orderNo: 'N2', port: 2, atMs: AT_MS }),
    )
    // the next one begins as the new tenant's, and stays so when the device goes back
    await toTenant('default')
    await insert(
      settlement({ orderKey: 'k2', orderNo: 'N2', port: 2 }),
      event({ eventId: 'alarm 2', eventType: 'device.alarm' }),
    )
    const rows = await sql`select event_type, order_key, tenant_id from events order by cursor`
    const of = (tenant: string) =>
      rows
        .filter(({ tenant_id }) => tenant_id === tenant)
        .map(({ event_type, order_key }) => `${event_type} ${order_key ?? '-'}`)
        .sort()
    assert.deepEqual(of('default'), [
      'charging.ended N1',
      'charging.progress N1',
      'charging.progress N1',
      'charging.started N1',
      'command.finished -',
      'command.finished -',
      'device.alarm -',
      'device.param_result -',
    ])
    assert.deepEqual(of('beta'), [
      'charging.ended N2',
      'charging.started N2',
      'device.alarm -',
      'device.online -',
      'port.state_changed -',
    ])
  } finally {
    await sql`delete from outbound_queue`
  }
})

test('event cursors become visible in order: a later cursor waits for an earlier transaction', async () => {
  const insertEvent = (sql: typeof database.sql, id: string) => sql`
    insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
    values (${id}, 'x', 'default', 'd', 1, now(), '{}')`
  const held = Promise.withResolvers<void>()
  const inserted = Promise.withResolvers<void>()
  const slow = database.sql.begin(async (tx) => {
    await insertEvent(tx as unknown as typeof database.sql, 'slow')
    inserted.resolve()
    await held.promise
  })
  await inserted.promise
  let isFastDone = false
  const fast = insertEvent(database.sql, 'fast').then(() => {
    isFastDone = true
  })
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.equal(isFastDone, false)
  assert.equal((await database.sql`select from events`).count, 0)
  held.resolve()
  await Promise.all([slow, fast])
  const rows = await database.sql`select event_id from events order by cursor`
  assert.deepEqual(
    rows.map((row) => row['event_id']),
    ['slow', 'fast'],
  )
})

test('a poison row costs only itself: quarantined with its place and reason, once', async () => {
  const rows = Array.from({ length: 41 }, (_, n) => commandLog({ seq: n }))
  const bad = [
    event({ eventId: 'bad-json', data: '{not json' }),
    commandLog({ seq: 2 ** 60, atMs: Number.NaN }),
    orderStart({ orderKey: 'bad', origin: 'nonsense' }),
  ]
  rows.splice(5, 0, bad[0]!)
  rows.splice(20, 0, bad[1]!)
  rows.push(bad[2]!)
  const bytes = spanOf(...rows)
  for (let again = 0; again < 2; again++) {
    const result = await insertSpan(database.sql, bytes)
    assert.deepEqual(
      result.rejected.map(({ table, code }) => [table, code]),
      [
        ['events', '22P02'],
        ['cmd_log', '22008'],
        ['orders', '23514'],
      ],
    )
    for (const [index, { fromByte, toByte, reason }] of result.rejected.entries()) {
      assert.deepEqual(bytes.slice(fromByte, toByte), bad[index])
      assert.notEqual(reason, '')
    }
    assert.deepEqual(result.tables['cmd_log'], { inserted: again ? 0 : 41, repeated: again ? 41 : 0, fenced: 0 })
  }
  const kept = await database.sql`select bytes from quarantine where reason = 'row_rejected' order by id`
  assert.deepEqual(
    kept.map((row) => new Uint8Array(row['bytes'] as Buffer)),
    bad,
  )
})

test('bytes that are no rows of ours are put aside, the rows before them are inserted', async () => {
  const unknown = commandLog({ seq: 3 })
  unknown[0] = 200
  const torn = commandLog({ seq: 5 }).subarray(0, 20)
  const result = await insert(commandLog({ seq: 1 }), unknown, commandLog({ seq: 2 }), torn)
  assert.deepEqual(result.tables['cmd_log'], { inserted: 2, repeated: 0, fenced: 0 })
  assert.deepEqual(
    result.rejected.map(({ code, table }) => [code, table]),
    [
      ['GW_ROW_UNREADABLE', ''],
      ['GW_ROW_UNREADABLE', 'cmd_log'],
    ],
  )
})

test('two writers with the same devices and orders in opposite order neither deadlock nor lose', async () => {
  const one = connect(database.url, { max: 1 })
  const two = connect(database.url, { max: 1 })
  try {
    for (let round = 0; round < 15; round++) {
      const rows = Array.from({ length: 60 }, (_, n) => {
        const name = { deviceId: `d${n % 7}`, orderKey: `r${round}o${n}`, orderNo: `R${round}`, port: (n % 3) + 1 }
        return {
          ledger: settlement(name),
          history: [
            progress({ ...name, seq: round * 100 + n }),
            deviceState({ deviceId: name.deviceId, seq: round * 100 + n }),
          ],
        }
      })
      const results = await Promise.all([
        insertSpan(one, spanOf(...rows.map((row) => row.ledger))),
        insertSpan(two, spanOf(...rows.toReversed().flatMap((row) => row.history))),
      ])
      for (const { rejected } of results) assert.deepEqual(rejected, [])
      assert.equal(results[0].settlements.stored, 60)
    }
    const [count] =
      await database.sql`select count(*) as n, count(distinct order_no) as numbers from orders where state = 'settled'`
    assert.deepEqual({ ...count }, { n: 900, numbers: 900 })
  } finally {
    await Promise.all([one.end({ timeout: 1 }), two.end({ timeout: 1 })])
  }
})

test('a database that is away is a WriteFailure to be tried again, never a rejected row', async () => {
  const away = connect('postgres://nobody:x@127.0.0.1:1/none', { max: 1 })
  await assert.rejects(insertSpan(away, spanOf(settlement())), (error: WriteFailure) => {
    assert.ok(error instanceof WriteFailure)
    assert.deepEqual([error.code, error.retryable], ['ECONNREFUSED', true])
    return true
  })
  await away.end({ timeout: 1 })
  // A connection that was cut is replaced within the same call.
  const sql = connect(database.url, { max: 1 })
  const [{ pid }] = await sql<[{ pid: number }]>`select pg_backend_pid() as pid`
  await database.sql`select pg_terminate_backend(${pid})`
  assert.equal((await insertSpan(sql, spanOf(settlement()))).settlements.stored, 1)
  await sql.end({ timeout: 1 })
})

test('a lock that is not released in time, or a schema that is not there, is kept for later', async () => {
  const sql = connect(database.url, { max: 1, statementTimeoutMs: 100 })
  await insertSpan(sql, spanOf(deviceState()))
  await database.sql.begin(async (tx) => {
    await tx`select from devices for update`
    await assert.rejects(insertSpan(sql, spanOf(settlement())), {
      name: 'WriteFailure',
      code: '57014',
      retryable: true,
    })
  })
  await sql`set search_path = nowhere`
  await assert.rejects(insertSpan(sql, spanOf(settlement())), { name: 'WriteFailure', code: '42P01', retryable: true })
  await sql`reset search_path`
  assert.equal((await insertSpan(sql, spanOf(settlement()))).settlements.stored, 1)
  assert.equal((await database.sql`select from quarantine`).count, 0)
  await sql.end({ timeout: 1 })
})
