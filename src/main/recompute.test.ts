/**
 * Claims: a dry run changes nothing and says what it would; applied, energy, amount, card and settlement follow the raw count
 * once, with one event and one line in the audit log; a second run changes nothing; every fen that orders cost was taken from
 * cards; what an order cost by its own tariff, or by the device's figure, is never priced by the tariff of today. Tried on a
 * real PostgreSQL with orders settled under the wrong factor.
 */
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { insertSpan } from '../../workers/writer/insert.ts'
import { AT_MS, settlement, spanOf } from '../../workers/writer/row-samples.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { type RecomputeOptions, recompute, sumsOf } from './recompute.ts'

let database: TestDatabase
before(async () => {
  database = await openTestDatabase()
})
after(async () => await database.close())

const BKV = '82200520004869'
const OTHER = '86004459453005'
const PER_KWH = { name: 'kWh', energy: { price_fen_per_kwh: 1000 } }
const DOUBLE = { name: 'kWh', energy: { price_fen_per_kwh: 2000 } }
const TABLES = ['devices', 'orders', 'settlements', 'cards', 'events', 'audit_logs']

async function dump(): Promise<Record<string, string[]>> {
  const out: Record<string, string[]> = {}
  for (const table of TABLES) {
    const rows = await database.sql.unsafe<{ line: string }[]>(`select t::text as line from ${table} t order by 1`)
    out[table] = rows.map(({ line }) => line)
  }
  return out
}

const bkvEnd = (n: number, raw: number, change = {}) => {
  const wireHex = n.toString(16).padStart(4, '0')
  return settlement({
    deviceId: BKV,
    protocol: 'bkv',
    socket: 4,
    wireHex,
    orderKey: `~${wireHex}`,
    orderNo: `B${n}`,
    origin: 'card',
    cardId: '00000001',
    energyRaw: raw,
    energyWh: raw,
    seq: n,
    receivedMs: AT_MS + n * 86_400_000,
    ...change,
  })
}

/** Three orders of one device under the wrong factor: paid by card, by nobody's card, and priced by the device. */
beforeEach(async () => {
  const { sql } = database
  await sql.unsafe(`truncate ${TABLES.join(', ')} cascade`)
  await sql`insert into devices (device_id, protocol, tariff) values (${BKV}, 'bkv', ${sql.json(PER_KWH)}),
    (${OTHER}, 'bkv', ${sql.json(PER_KWH)})`
  await sql`insert into cards (card_id, balance_fen) values ('00000001', 5000)`
  await insertSpan(sql, spanOf(bkvEnd(1, 80), bkvEnd(2, 5, { origin: 'online', cardId: null })))
  await sql`update devices set tariff = null where device_id = ${BKV}`
  await insertSpan(sql, spanOf(bkvEnd(3, 7, { origin: 'online', cardId: null, deviceAmountFen: 33 })))
  await insertSpan(sql, spanOf(bkvEnd(9, 9, { deviceId: OTHER })))
  // what it costs today is not what it cost then
  await sql`update devices set tariff = ${sql.json(DOUBLE)}, model_profile = 'bkv-energy-10wh' where device_id = ${BKV}`
})

const run = (change: Partial<RecomputeOptions> = {}) =>
  recompute({
    sql: database.sql,
    which: { deviceId: BKV },
    isApplied: true,
    actor: 'recompute:test',
    now: () => AT_MS + 90 * 86_400_000,
    ...change,
  })
const balance = async () => (await database.sql`select balance_fen from cards`)[0]!['balance_fen'] as number

test('a dry run says what would change, and changes nothing', async () => {
  const before = await dump()
  const dry = await run({ isApplied: false })
  assert.deepEqual(await dump(), before)
  assert.deepEqual(
    dry.orders.map(({ orderNo, energyRaw, energyWh, amountFen, cardFen }) => [
      orderNo,
      energyRaw,
      energyWh.before,
      energyWh.after,
      amountFen.before,
      amountFen.after,
      cardFen,
    ]),
    [
      ['B1', 80, 80, 800, 80, 800, 720],
      ['B2', 5, 5, 50, 5, 50, null],
      ['B3', 7, 7, 70, 33, 33, null],
    ],
  )
  const applied = await run()
  assert.deepEqual(applied, dry)
})

test('applied once: order, settlement, card by the difference, one event and one audit line; again nothing', async () => {
  assert.equal(await balance(), 5000 - 80 - 9)
  const done = await run()
  assert.deepEqual(sumsOf(done.orders), { energy_wh: 828, amount_fen: 765, card_fen: 720 })
  assert.equal(await balance(), 5000 - 800 - 9)
  const rows = await database.sql`
    select o.order_no, o.energy_wh, o.amount_fen, o.card_fen, o.version, s.energy_raw, s.energy_wh as settled_wh,
      s.amount_fen as settled_fen, s.lines = o.amount_lines as same_lines
    from orders o join settlements s using (device_id, socket, port, order_key)
    where o.device_id = ${BKV} order by o.order_no`
  assert.deepEqual(
    rows.map((row) => Object.values(row)),
    [
      ['B1', 800, 800, 800, 2, 80, 800, 800, true],
      ['B2', 50, 50, null, 2, 5, 50, 50, true],
      ['B3', 70, 33, null, 2, 7, 70, 33, null],
    ],
  )
  const events = await database.sql`
    select data->>'order_no' as order_no, data from events where event_type = 'order.corrected' order by cursor`
  assert.deepEqual(
    events.map(({ order_no }) => order_no),
    ['B1', 'B2', 'B3'],
  )
  const { before, version, energy_wh, amount_fen, reason, model_profile, card_balance_fen } = events[0]!['data']
  assert.deepEqual([before.energy_wh, before.amount_fen, energy_wh, amount_fen, version], [80, 80, 800, 800, 2])
  assert.deepEqual([reason, model_profile, card_balance_fen], ['energy_factor', 'bkv-energy-10wh', 5000 - 800 - 9])
  const audit = await database.sql`select actor, action, target, details from audit_logs`
  assert.equal(audit.length, 1)
  assert.deepEqual(audit[0]!['details'], {
    profile: 'bkv-energy-10wh',
    energy_wh_per_raw: 10,
    orders: 3,
    energy_wh: 828,
    amount_fen: 765,
    card_fen: 720,
  })
  const state = await dump()
  assert.deepEqual((await run()).orders, [])
  assert.deepEqual(await dump(), state)

  // and back, when the bench test says so: every fen returns
  await database.sql`update devices set model_profile = null where device_id = ${BKV}`
  assert.equal((await run()).orders.length, 3)
  assert.equal(await balance(), 5000 - 80 - 9)
})

test('by profile and window: other devices and other days are left alone', async () => {
  const { sql } = database
  const day = (n: number) => AT_MS + n * 86_400_000
  const window = await run({ which: { profile: 'bkv-energy-10wh' }, fromMs: day(2), toMs: day(3) })
  assert.deepEqual(
    window.orders.map(({ orderNo }) => orderNo),
    ['B2'],
  )
  assert.deepEqual((await run({ which: { profile: 'bkv-metering-bit6' } })).orders, [])
  const rest = await run({ which: { profile: 'bkv-energy-10wh' } })
  assert.deepEqual([rest.devices, rest.orders.map(({ orderNo }) => orderNo)], [1, ['B1', 'B3']])
  const [other] = await sql`select energy_wh from orders where device_id = ${OTHER}`
  assert.equal(other!['energy_wh'], 9)
})

test('orders settled by estimate have no raw count: counted, left alone; a repeat of a settlement changes nothing', async () => {
  const { sql } = database
  await sql`update orders set estimated = true where order_no = 'B2'`
  const done = await run()
  assert.deepEqual([done.estimated, done.orders.map(({ orderNo }) => orderNo)], [1, ['B1', 'B3']])
  const state = await dump()
  const again = await insertSpan(sql, spanOf(bkvEnd(1, 80)))
  assert.deepEqual(again.settlements, { stored: 0, repeated: 1, conflicting: 0 })
  assert.deepEqual((await dump())['orders'], state['orders'])
})

test('more orders than one transaction takes: all of them, the money adds up', async () => {
  const { sql } = database
  await sql`update devices set tariff = ${sql.json(PER_KWH)}, model_profile = null where device_id = ${BKV}`
  const many = Array.from({ length: 450 }, (_, n) => bkvEnd(100 + n, n % 7, { receivedMs: AT_MS + n * 3_600_000 }))
  await insertSpan(sql, spanOf(...many))
  await sql`update devices set model_profile = 'bkv-energy-10wh' where device_id = ${BKV}`
  const done = await run()
  const [sums] = await sql`
    select count(*)::int as orders, sum(o.energy_wh - 10 * s.energy_raw) as wrong, sum(o.card_fen)::int as paid,
      sum(o.amount_fen) filter (where o.origin = 'card')::int as cost
    from orders o join settlements s using (device_id, socket, port, order_key) where o.device_id = ${BKV}`
  // what counts 0 is 0 by any factor
  assert.equal(done.orders.length, 3 + many.filter((_, n) => n % 7 !== 0).length)
  assert.deepEqual([sums!['orders'], sums!['wrong'], sums!['paid']], [453, 0, sums!['cost']])
  assert.equal(await balance(), 5000 - sums!['cost'] - 9)
  assert.deepEqual((await run()).orders, [])
})
