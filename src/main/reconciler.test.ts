/**
 * Claimed: an order that falls silent is doubted, its device asked once per round while it is online, and settled once with
 * its last known figures; a sign of life ends the doubt; the device's settlement that comes later takes the estimate's
 * place; starts that a crash left undecided are decided. Tried on a real PostgreSQL with a clock moved by hand.
 */
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { insertSpan } from '../../workers/writer/insert.ts'
import { noOrderCounts, type OrderCounts } from '../../workers/writer/order-book.ts'
import { AT_MS, orderStart, portState, progress, settlement, spanOf } from '../../workers/writer/row-samples.ts'
import { openTestDatabase, type TestDatabase } from '../testing/database.ts'
import { createLog } from './log.ts'
import { CHARGE_MS_MAX, type DoubtedOrder, decide, Reconciler } from './reconciler.ts'
import { SqlReconcilerStore } from './reconciler-store.ts'

const MIN = 60_000
const AFTER_MS = 30 * MIN
const AP = '04ab373b'

let database: TestDatabase
before(async () => {
  database = await openTestDatabase()
})
after(async () => await database.close())
beforeEach(async () => {
  await database.sql.unsafe(
    'truncate devices, ports, orders, settlements, outbound_queue, cards, events, port_samples cascade',
  )
  online.clear()
  online.add(AP)
  asked.length = 0
  counts = noOrderCounts()
  cursors = 0
})

let nowMs = AT_MS
const online = new Set<string>()
const asked: string[] = []
let counts: OrderCounts
let cursors = 0
function reconciler(ask: (order: DoubtedOrder) => Promise<unknown> = async ({ orderNo }) => asked.push(orderNo)) {
  return new Reconciler({
    store: new SqlReconcilerStore(database.sql),
    log: createLog({ level: 'silent', serviceName: 'test', env: 'test', thread: 'main' }),
    reconcileAfterMs: AFTER_MS,
    now: () => nowMs,
    isOnline: (deviceId) => online.has(deviceId),
    ask,
    onMoved: (moved, cursor) => {
      for (const name of ['estimated', 'failed', 'cancelled', 'started'] as const) counts[name] += moved[name]
      if (cursor !== null) cursors++
    },
  })
}
const insert = (...rows: Uint8Array[]) => insertSpan(database.sql, spanOf(...rows))
const orderOf = async (orderNo: string) => {
  const [order] = await database.sql`select * from orders where order_no = ${orderNo}`
  assert.ok(order, `order ${orderNo} exists`)
  return order
}
const QUIET = { doubted: 0, asked: 0, estimated: 0, repaired: 0, timedOut: 0 }

test('decide: silence and preset time first, then a doubt of the same length; a later sign of life ends it', () => {
  const order: DoubtedOrder = {
    orderNo: 'N',
    deviceId: AP,
    socket: 0,
    port: 1,
    wireHex: null,
    createdMs: 0,
    startedMs: 0,
    lastProgressMs: 10 * MIN,
    portChargedMs: null,
    presetS: null,
    doubtedMs: null,
  }
  const at = (minutes: number, change: Partial<DoubtedOrder> = {}) =>
    decide({ ...order, ...change }, minutes * MIN, AFTER_MS)
  assert.equal(at(39), 'wait')
  assert.equal(at(40), 'doubt')
  assert.equal(at(60, { doubtedMs: 40 * MIN }), 'ask')
  assert.equal(at(70, { doubtedMs: 40 * MIN }), 'settle')
  assert.equal(at(75, { doubtedMs: 40 * MIN, lastProgressMs: 44 * MIN }), 'doubt')
  assert.equal(at(60, { presetS: 3_600 }), 'wait')
  assert.equal(at(70, { presetS: 3_600 }), 'doubt')
  assert.equal(at(29, { startedMs: null, lastProgressMs: null }), 'wait')
  assert.equal(at(30, { startedMs: null, lastProgressMs: null }), 'doubt')
})

test('a silent order is asked for each round, settled by estimate once, and corrected by its late settlement', async () => {
  const { sql } = database
  await sql`insert into devices (device_id, protocol, tariff)
    values (${AP}, 'ap3000', ${sql.json({ energy: { price_fen_per_kwh: 1000 } })})`
  await sql`insert into cards (card_id, balance_fen) values ('7a8d05dd', 500)`
  const card = { origin: 'card', cardId: '7a8d05dd' }
  await insert(orderStart(card), progress({ ...card, atMs: AT_MS, energyWh: 100, durationS: 3_000 }))
  const reconcile = reconciler()

  nowMs = AT_MS + AFTER_MS - 1
  assert.deepEqual(await reconcile.round(), QUIET)
  nowMs = AT_MS + AFTER_MS + 1
  assert.deepEqual(await reconcile.round(), { ...QUIET, doubted: 1, asked: 1 })
  nowMs += MIN
  assert.deepEqual(await reconcile.round(), { ...QUIET, asked: 1 })
  online.clear()
  nowMs += MIN
  assert.deepEqual(await reconcile.round(), QUIET)
  assert.deepEqual(asked, ['N1', 'N1'])

  nowMs = AT_MS + 2 * AFTER_MS + 1
  assert.deepEqual(await reconcile.round(), { ...QUIET, estimated: 1 })
  let order = await orderOf('N1')
  assert.deepEqual(
    [
      order['state'],
      order['estimated'],
      order['energy_wh'],
      order['duration_s'],
      order['amount_fen'],
      order['card_fen'],
    ],
    ['settled', true, 100, 3_000, 100, 100],
  )
  assert.equal((await sql`select balance_fen from cards`)[0]!['balance_fen'], 400)
  assert.deepEqual(await reconcile.round(), QUIET)
  assert.deepEqual([counts.estimated, cursors], [1, 1])

  // days later; and once more
  for (let copy = 0; copy < 2; copy++) {
    const late = await insert(settlement({ ...card, receivedMs: AT_MS + 5 * 86_400_000, messageId: copy }))
    assert.equal(late.orders.corrected, copy === 0 ? 1 : 0)
  }
  order = await orderOf('N1')
  assert.deepEqual([order['estimated'], order['energy_wh'], order['amount_fen']], [false, 450, 450])
  assert.equal((await sql`select balance_fen from cards`)[0]!['balance_fen'], 50)
  const told = await sql`select event_type, data->'estimated' as estimated, data->>'version' as version from events
    where event_type in ('charging.ended', 'order.corrected') order by cursor`
  assert.deepEqual(
    told.map((event) => [event['event_type'], event['estimated']]),
    [
      ['charging.ended', true],
      ['order.corrected', false],
    ],
  )
})

test('a report ends the doubt; a device that cannot be asked does not stop the round', async () => {
  await insert(progress({ atMs: AT_MS }), progress({ orderKey: 'k2', orderNo: 'N2', port: 2, atMs: AT_MS, seq: 60 }))
  const reconcile = reconciler(async ({ orderNo }) => {
    if (orderNo === 'N1') throw new Error('queue full')
    asked.push(orderNo)
  })
  nowMs = AT_MS + AFTER_MS + 1
  assert.deepEqual(await reconcile.round(), { ...QUIET, doubted: 2, asked: 1 })
  await insert(progress({ orderKey: 'k2', orderNo: 'N2', port: 2, atMs: nowMs + MIN, seq: 61, durationS: 3_000 }))
  nowMs += AFTER_MS + MIN / 2
  assert.deepEqual(await reconcile.round(), { ...QUIET, estimated: 1 })
  assert.equal((await orderOf('N1'))['state'], 'settled')
  assert.equal((await orderOf('N2'))['state'], 'charging')
  // silent again: doubted anew
  nowMs += AFTER_MS
  assert.deepEqual(await reconcile.round(), { ...QUIET, doubted: 1, asked: 1 })
})

test('a port that says it charges keeps its order, asked again after each silence; one that charges something else does not', async () => {
  await insert(progress({ atMs: AT_MS }), portState({ state: 'charging', atMs: AT_MS }))
  const reconcile = reconciler()
  for (let silence = 1; silence <= 3; silence++) {
    nowMs = AT_MS + silence * (AFTER_MS + MIN)
    assert.deepEqual(await reconcile.round(), { ...QUIET, doubted: 1, asked: 1 })
    await insert(portState({ state: 'charging', atMs: nowMs, seq: 20 + silence }))
    nowMs += MIN
    assert.deepEqual(await reconcile.round(), QUIET)
  }
  // it ends, and the settlement does not come
  await insert(portState({ state: 'idle', atMs: nowMs, seq: 30 }))
  nowMs += AFTER_MS
  const [first] = [await reconcile.round()]
  assert.equal(first.estimated + first.doubted, 1)
  nowMs += AFTER_MS
  await reconcile.round()
  assert.equal((await orderOf('N1'))['state'], 'settled')
  assert.equal(counts.estimated, 1)

  const second = { orderKey: 'k2', orderNo: 'N2', port: 2, wireHex: 'bb' }
  await insert(progress({ ...second, atMs: nowMs, seq: 60 }))
  const charging = { port: 2, state: 'charging', wireHex: 'cc' }
  nowMs += AFTER_MS + MIN
  await insert(portState({ ...charging, atMs: nowMs, seq: 61 }))
  assert.equal((await reconcile.round()).doubted, 1)
  nowMs += AFTER_MS
  await insert(portState({ ...charging, atMs: nowMs, seq: 62 }))
  assert.equal((await reconcile.round()).estimated, 1)
})

test('a port that says so for ever keeps no order for ever', async () => {
  await insert(progress({ atMs: AT_MS }))
  const reconcile = reconciler()
  nowMs = AT_MS + CHARGE_MS_MAX - 2 * 60 * MIN
  await insert(portState({ state: 'charging', atMs: nowMs }))
  assert.deepEqual(await reconcile.round(), QUIET)
  nowMs = AT_MS + CHARGE_MS_MAX + AFTER_MS
  await insert(portState({ state: 'charging', atMs: nowMs, seq: 20 }))
  assert.equal((await reconcile.round()).doubted, 1)
  nowMs += AFTER_MS
  await insert(portState({ state: 'charging', atMs: nowMs, seq: 21 }))
  assert.equal((await reconcile.round()).estimated, 1)
})

test('a report that comes while the round decides wins', async () => {
  await insert(progress({ atMs: AT_MS }))
  const order = { orderKey: 'k2', orderNo: 'N2', port: 2 }
  await insert(progress({ ...order, atMs: AT_MS - MIN, seq: 60 }))
  await database.sql`update orders set doubted_at = ${new Date(AT_MS + AFTER_MS)} where order_no = 'N1'`
  nowMs = AT_MS + 2 * AFTER_MS
  // N2 is looked at first, and while its device is asked N1 reports
  const reconcile = reconciler(async ({ orderNo }) => {
    if (orderNo === 'N2') await insert(progress({ atMs: nowMs, durationS: 3_600, seq: 70 }))
  })
  assert.deepEqual(await reconcile.round(), { ...QUIET, doubted: 1, asked: 1 })
  assert.equal((await orderOf('N1'))['state'], 'charging')
})

test('starts that a crash left undecided follow their command, or time out', async () => {
  const { sql } = database
  const wire = 'a'.repeat(32)
  await sql`insert into devices (device_id, protocol) values (${AP}, 'ap3000'), ('82200520004869', 'bkv')`
  const start = async (
    orderNo: string,
    status: number | null,
    result: object | null = null,
    deviceId = AP,
    orderKey: string | null = `${orderNo}${wire}`.slice(0, 32),
  ) => {
    await sql`insert into orders (order_no, device_id, protocol, socket, port, order_key, state, origin, command_id, created_at)
      values (${orderNo}, ${deviceId}, ${deviceId === AP ? 'ap3000' : 'bkv'}, 0, 1, ${orderKey}, 'starting', 'online',
        ${status === null ? null : orderNo}, ${new Date(AT_MS)})`
    if (status === null) return
    await sql`insert into outbound_queue (command_id, device_id, name, kind, status, attempts, order_no, created_at,
        expires_at, finished_at, result)
      values (${orderNo}, ${deviceId}, 'startCharge', 'start', ${status}, 1, ${orderNo}, ${new Date(AT_MS)},
        ${new Date(AT_MS + 5 * MIN)}, ${status < 2 ? null : new Date(AT_MS + MIN)},
        ${result === null ? null : sql.json(result as never)})`
  }
  await start('acked', 2)
  await start('refused', 4, { reason: 'port_fault' })
  await start('bkv', 2, { reason: 'ok', business_no: 26 }, '82200520004869', null)
  await start('charges', 3, { reason: 'no_result', port_charging: true })
  await start('sent', 1)
  await start('orphan', null)

  nowMs = AT_MS + MIN + 5_000
  assert.deepEqual(await reconciler().round(), QUIET)
  nowMs = AT_MS + 2 * MIN
  assert.deepEqual(await reconciler().round(), { ...QUIET, repaired: 3 })
  assert.equal((await orderOf('acked'))['state'], 'charging')
  assert.equal((await orderOf('charges'))['state'], 'starting', 'a report of its port may still name it')
  const refused = await orderOf('refused')
  assert.deepEqual([refused['state'], refused['fail_reason']], ['failed', 'port_fault'])
  const bkv = await orderOf('bkv')
  assert.deepEqual([bkv['state'], bkv['order_key'], bkv['started_at']], ['charging', '001a@bkv', new Date(AT_MS + MIN)])
  nowMs = AT_MS + AFTER_MS + 6 * MIN
  const late = await reconciler().round()
  assert.deepEqual([late.timedOut, late.repaired], [2, 1])
  assert.equal((await orderOf('charges'))['fail_reason'], 'no_result')
  for (const orderNo of ['sent', 'orphan']) assert.equal((await orderOf(orderNo))['fail_reason'], 'timed_out')
  assert.deepEqual([counts.failed, counts.started], [4, 2])
})
