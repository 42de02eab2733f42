/**
 * Claimed: a command gets exactly one fate and moves its order by the state machine; a BKV number that comes round again
 * finds its order, and no repeat makes a second settlement; an amount is computed once, and a card pays it once; each fact
 * leaves one event. Tried on a real PostgreSQL with encoded rows; every span of a scenario is inserted a second time, which
 * must change nothing.
 */
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { connect } from '../../src/main/database/connect.ts'
import { openTestDatabase, type TestDatabase } from '../../src/testing/database.ts'
import { assertKeysOfSample } from '../../src/testing/event-samples.ts'
import { insertSpan, type SpanResult } from './insert.ts'
import {
  AT_MS,
  deviceState,
  fate,
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

const ALL = ['devices', 'ports', 'sessions', 'orders', 'settlements', 'outbound_queue', 'cards', 'events', 'quarantine']
beforeEach(async () => {
  await database.sql.unsafe(`truncate ${ALL.join(', ')}, gateway_sockets, port_samples cascade`)
})

const SEC = 1_000
const MIN = 60_000
const DAY = 86_400_000
const AP = '04ab373b'
const BKV = '82200520004869'
const AP_WIRE = '4f524445523100000000000000000000'

async function dump(): Promise<Record<string, string[]>> {
  const out: Record<string, string[]> = {}
  for (const table of ALL) {
    const rows = await database.sql.unsafe<{ line: string }[]>(`select t::text as line from ${table} t order by 1`)
    out[table] = rows.map(({ line }) => line)
  }
  return out
}

/** Inserts twice: the second time as if the first answer had been lost. */
async function insert(...rows: Uint8Array[]): Promise<SpanResult> {
  const first = await insertSpan(database.sql, spanOf(...rows))
  assert.deepEqual(first.rejected, [])
  const state = await dump()
  const again = await insertSpan(database.sql, spanOf(...rows))
  assert.deepEqual(again.rejected, [])
  assert.equal(again.settlements.stored, 0)
  assert.equal(again.eventCursor, null)
  assert.deepEqual(await dump(), state)
  return first
}

const orders = async () => [...(await database.sql`select * from orders order by created_at, order_no`)]
const orderOf = async (orderNo: string) => {
  const [order] = await database.sql`select * from orders where order_no = ${orderNo}`
  assert.ok(order, `order ${orderNo} exists`)
  return order
}
const commandOf = async (commandId: string) =>
  (await database.sql`select * from outbound_queue where command_id = ${commandId}`)[0]!
const settlementCount = async () => (await database.sql`select from settlements`).count
const eventTypes = async () =>
  (await database.sql`select event_type from events order by cursor`).map((e) => e['event_type'])
const dataOf = async (eventType: string) =>
  (await database.sql`select data from events where event_type = ${eventType} order by cursor`).map((e) => e['data'])

interface Asked {
  readonly orderNo?: string
  readonly commandId?: string
  readonly createdMs?: number
  readonly port?: number
  readonly tariff?: object
  readonly mode?: string
  readonly request?: object
}

/** An order as POST …/charge leaves it. */
async function charge(protocol: 'ap3000' | 'bkv', asked: Asked = {}) {
  const { orderNo = 'ORDER1', commandId = 'c1', createdMs = AT_MS - MIN, port = 1, mode = 'time', request = {} } = asked
  const { sql } = database
  const deviceId = protocol === 'ap3000' ? AP : BKV
  const socket = protocol === 'ap3000' ? 0 : 4
  const wire = protocol === 'ap3000' ? AP_WIRE : null
  await sql`insert into devices (device_id, protocol) values (${deviceId}, ${protocol}) on conflict do nothing`
  await sql`
    insert into orders (order_no, device_id, protocol, socket, port, order_key, wire_hex, mode, state, origin, request,
      tariff, command_id, created_at)
    values (${orderNo}, ${deviceId}, ${protocol}, ${socket}, ${port}, ${wire}, ${wire}, ${mode}, 'pending', 'online',
      ${sql.json(request as never)}, ${asked.tariff === undefined ? null : sql.json(asked.tariff as never)}, ${commandId},
      ${new Date(createdMs)})`
  await command(deviceId, commandId, 'start', orderNo, createdMs, wire ?? '')
}

async function command(
  deviceId: string,
  commandId: string,
  kind: string,
  orderNo: string | null,
  atMs: number,
  wire = '',
) {
  await database.sql`
    insert into outbound_queue (command_id, device_id, name, kind, order_no, wire, created_at, expires_at)
    values (${commandId}, ${deviceId}, ${kind === 'other' ? 'readParameters1' : 'startCharge'}, ${kind}, ${orderNo},
      ${database.sql.json({ wire_hex: wire })}, ${new Date(atMs)}, ${new Date(atMs + 60 * MIN)})`
}

const SENT = 1
const ACKED = 2
const DEAD = 3
const REFUSED = 4
const CANCELLED = 6
const sent = (atMs: number, change = {}) => fate({ status: SENT, reason: 'sent', atMs, ...change })
const bkvFate = (atMs: number, status: number, result: object, change = {}) =>
  fate({ deviceId: BKV, atMs, status, reason: 'ok', result: JSON.stringify(result), ...change })

const AT_BKV = { deviceId: BKV, protocol: 'bkv', socket: 4, port: 1 }
const numbered = (wireHex: string) => ({
  ...AT_BKV,
  wireHex,
  orderKey: `~${wireHex}`,
  orderNo: `${BKV}-4-1-${wireHex}`,
})
const bkvProgress = (wireHex: string, atMs: number, minutes: number, change = {}) =>
  progress({ ...numbered(wireHex), atMs, seq: Math.floor(atMs / SEC), durationS: minutes * 60, ...change })
const bkvSettlement = (wireHex: string, receivedMs: number, minutes: number, change = {}) =>
  settlement({
    ...numbered(wireHex),
    receivedMs,
    seq: Math.floor(receivedMs / SEC),
    durationS: minutes * 60,
    energyRaw: minutes,
    energyWh: minutes,
    businessNo: Number.parseInt(wireHex, 16),
    ...change,
  })

// ---- commands ----

test('a start goes sent, acked, stop sent, stop acked, settled; each fate moves its order once', async () => {
  await charge('ap3000')
  const first = await insert(sent(AT_MS))
  assert.deepEqual(first.tables['outbound_queue'], { inserted: 1, repeated: 0, fenced: 0 })
  assert.equal((await orderOf('ORDER1'))['state'], 'starting')
  await insert(fate({ atMs: AT_MS + SEC, result: '{"raw":0}' }))
  let row = await commandOf('c1')
  assert.deepEqual([row['status'], row['attempts'], row['message_id'], row['epoch']], [2, 1, 77, 7])
  assert.deepEqual([row['sent_at'], row['finished_at']], [new Date(AT_MS), new Date(AT_MS + SEC)])
  assert.deepEqual(row['result'], { raw: 0, reason: 'ok' })
  const order = await orderOf('ORDER1')
  assert.deepEqual([order['state'], order['started_at'], order['version']], ['charging', new Date(AT_MS + SEC), 3])
  await command(AP, 'c2', 'stop', 'ORDER1', AT_MS)
  // one span: sends and fate of one command merge
  await insert(
    sent(AT_MS + 2 * SEC, { commandId: 'c2' }),
    sent(AT_MS + 3 * SEC, { commandId: 'c2', attempts: 2 }),
    fate({ commandId: 'c2', attempts: 2, atMs: AT_MS + 4 * SEC }),
  )
  row = await commandOf('c2')
  assert.deepEqual([row['status'], row['attempts'], row['sent_at']], [2, 2, new Date(AT_MS + 2 * SEC)])
  assert.equal((await orderOf('ORDER1'))['state'], 'stopping')
  await insert(settlement({ orderKey: AP_WIRE, wireHex: AP_WIRE, orderNo: 'ORDER1', receivedMs: AT_MS + 5 * SEC }))
  assert.equal((await orderOf('ORDER1'))['state'], 'settled')
  assert.deepEqual(await eventTypes(), ['command.finished', 'charging.started', 'command.finished', 'charging.ended'])
  const [finished] = await dataOf('command.finished')
  assert.deepEqual(finished, {
    command_id: 'c1',
    name: 'startCharge',
    state: 'acked',
    reason: 'ok',
    attempts: 1,
    order_no: 'ORDER1',
    result: { raw: 0 },
  })
})

test('a final fate stands: another one is evidence, an older session is refused, main is not', async () => {
  await charge('ap3000')
  await insert(sent(AT_MS, { epoch: 8 }))
  const older = await insertSpan(database.sql, spanOf(fate({ epoch: 7, status: REFUSED, reason: 'busy' })))
  assert.deepEqual(older.tables['outbound_queue'], { inserted: 0, repeated: 0, fenced: 1 })
  assert.equal((await commandOf('c1'))['status'], SENT)
  const dead = fate({ epoch: 8, status: DEAD, reason: 'no_result', atMs: AT_MS + SEC })
  const both = await insert(dead, fate({ epoch: 8, status: REFUSED, reason: 'port_fault', atMs: AT_MS + 2 * SEC }))
  assert.deepEqual(both.tables['outbound_queue'], { inserted: 1, repeated: 1, fenced: 0 })
  assert.deepEqual([both.orders.failed, both.orders.started], [1, 0])
  assert.equal((await commandOf('c1'))['status'], DEAD)
  const kept = await database.sql`select reason, note from quarantine`
  assert.deepEqual(
    [...kept],
    [{ reason: 'command_fate_conflict', note: 'command c1 is dead; later refused, port_fault' }],
  )
  const order = await orderOf('ORDER1')
  assert.deepEqual([order['state'], order['fail_reason']], ['failed', 'no_result'])
  // unknown, not failed: a report shows it running after all
  await insert(progress({ orderKey: AP_WIRE, wireHex: AP_WIRE, epoch: 8, atMs: AT_MS + 10 * SEC, durationS: 9 }))
  const revived = await orderOf('ORDER1')
  assert.deepEqual([revived['state'], revived['fail_reason']], ['charging', null])
  // so does its own result, behind the last timeout
  await charge('ap3000', { orderNo: 'ORDER3', commandId: 'c3', port: 3 })
  await insert(sent(AT_MS, { commandId: 'c3' }), fate({ commandId: 'c3', status: DEAD, reason: 'no_result' }))
  const late = await insert(fate({ commandId: 'c3', status: ACKED, atMs: AT_MS + 2 * SEC }))
  assert.deepEqual([late.tables['outbound_queue']?.repeated, late.orders.started], [1, 1])
  assert.equal((await commandOf('c3'))['status'], DEAD)
  assert.equal((await orderOf('ORDER3'))['state'], 'charging')

  // and while its port charges nobody says that it failed
  await charge('ap3000', { orderNo: 'ORDER4', commandId: 'c4', port: 4 })
  const charges = { status: DEAD, reason: 'no_result', result: JSON.stringify({ port_charging: true }) }
  await insert(sent(AT_MS, { commandId: 'c4' }), fate({ commandId: 'c4', ...charges }))
  assert.equal((await orderOf('ORDER4'))['state'], 'starting')
  await charge('ap3000', { orderNo: 'ORDER5', commandId: 'c5', port: 5 })
  await insert(
    sent(AT_MS, { commandId: 'c5' }),
    fate({ commandId: 'c5', ...charges, status: REFUSED, reason: 'already_in_state' }),
  )
  assert.equal((await orderOf('ORDER5'))['state'], 'starting')

  await charge('ap3000', { orderNo: 'ORDER2', commandId: 'c9', port: 2 })
  await insert(
    fate({ commandId: 'c9', epoch: 0, status: CANCELLED, reason: 'cancelled', attempts: 0, messageId: null }),
  )
  const row = await commandOf('c9')
  assert.deepEqual([row['status'], row['epoch'], row['sent_at']], [CANCELLED, null, null])
  assert.equal((await orderOf('ORDER2'))['state'], 'cancelled')
})

test('a refused start fails its order; a refused or dead stop lets it charge on; what is illegal is counted', async () => {
  await charge('ap3000')
  const refused = await insert(sent(AT_MS), fate({ status: REFUSED, reason: 'port_fault', atMs: AT_MS + SEC }))
  assert.equal(refused.orders.failed, 1)
  const [failed] = await dataOf('order.failed')
  assert.deepEqual([failed['order_no'], failed['state'], failed['reason']], ['ORDER1', 'failed', 'port_fault'])

  await database.sql`update orders set state = 'charging', fail_reason = null`
  for (const [index, status] of [REFUSED, DEAD].entries()) {
    const commandId = `s${index}`
    await command(AP, commandId, 'stop', 'ORDER1', AT_MS)
    await insert(sent(AT_MS + 2 * SEC, { commandId }))
    assert.equal((await orderOf('ORDER1'))['state'], 'stopping')
    await insert(fate({ commandId, status, reason: 'x', atMs: AT_MS + 3 * SEC }))
    assert.equal((await orderOf('ORDER1'))['state'], 'charging')
  }
  assert.equal((await eventTypes()).filter((type) => type === 'charging.started').length, 0)
  // a start that seems to have failed does not undo what the device has shown
  await command(AP, 'c5', 'start', 'ORDER1', AT_MS)
  const late = await insertSpan(database.sql, spanOf(fate({ commandId: 'c5', status: REFUSED })))
  assert.deepEqual(late.orders.illegal, { 'start_refused in charging': 1 })
  assert.equal((await orderOf('ORDER1'))['state'], 'charging')
})

test('a start without result whose order runs, or has run, worked', async () => {
  await charge('bkv')
  await insert(sent(AT_MS, { deviceId: BKV }), bkvProgress('001a', AT_MS + SEC, 0))
  assert.equal((await orderOf('ORDER1'))['state'], 'charging')
  await insert(bkvFate(AT_MS + 30 * SEC, DEAD, {}, { reason: 'no_result' }))
  const { status, result } = await commandOf('c1')
  assert.deepEqual([status, result], [ACKED, { business_no: 26, reason: 'confirmed_by_report' }])
  assert.equal((await orderOf('ORDER1'))['state'], 'charging')
  const [told] = await dataOf('command.finished')
  assert.deepEqual([told['state'], told['reason']], ['acked', 'confirmed_by_report'])
})

test('a parameter that was read tells its result; a port that changed, a device that came and went tell once', async () => {
  await insert(session(), deviceState(), portState({ state: 'idle' }))
  assert.deepEqual(await eventTypes(), ['device.online'])
  await command(AP, 'p1', 'other', null, AT_MS)
  await insert(fate({ commandId: 'p1', result: '{"full_power_w":30}' }))
  const [result] = await dataOf('device.param_result')
  assert.deepEqual(result, { command_id: 'p1', name: 'readParameters1', result: { full_power_w: 30 } })
  await insert(portState({ seq: 12, state: 'charging', powerW: 100 }))
  await insert(portState({ seq: 13, state: 'charging', powerW: 130 }))
  await insert(portState({ seq: 14, state: 'fault', fault: 'relay_stuck' }))
  assert.deepEqual(
    (await dataOf('port.state_changed')).map((data) => [data['previous_state'], data['state'], data['fault']]),
    [
      ['idle', 'charging', null],
      ['charging', 'fault', 'relay_stuck'],
    ],
  )
  // a takeover: the newer session opens before the older one closes
  await insert(session({ epoch: 9, openedMs: AT_MS + MIN }))
  await insert(session({ closedMs: AT_MS + MIN, closeReason: 'superseded' }))
  assert.equal((await dataOf('device.offline')).length, 0)
  await insert(session({ epoch: 9, openedMs: AT_MS + MIN, closedMs: AT_MS + 2 * MIN, closeReason: 'idle' }))
  const offline = await dataOf('device.offline')
  assert.deepEqual(offline, [{ protocol: 'ap3000', reason: 'idle', online_s: 60 }])
})

// ---- numbers that come round ----

test('BKV: a result behind the last timeout brings its business number: its order charges and settles', async () => {
  await charge('bkv', { createdMs: AT_MS - 2 * MIN })
  await insert(sent(AT_MS - MIN, { deviceId: BKV }))
  await insert(bkvFate(AT_MS - 30 * SEC, DEAD, {}, { reason: 'no_result' }))
  await insert(bkvFate(AT_MS - 27 * SEC, ACKED, { raw: 1, business_no: 26 }))
  assert.deepEqual([(await orderOf('ORDER1'))['state'], (await commandOf('c1'))['status']], ['charging', DEAD])
  await insert(bkvProgress('001a', AT_MS + 5 * MIN, 5))
  await insert(bkvSettlement('001a', AT_MS + 60 * MIN, 60))
  const all = await orders()
  assert.deepEqual(
    all.map((order) => [order['order_no'], order['state']]),
    [['ORDER1', 'settled']],
  )
})

test('evidence against an order or a command is theirs who had the device then', async () => {
  const { sql } = database
  await sql`insert into tenants (tenant_id, name) values ('beta', 'Beta') on conflict do nothing`
  await sql`insert into devices (device_id, protocol) values (${AP}, 'ap3000')`
  await insert(settlement({ origin: 'card', cardId: '7a8d05dd' }))
  await charge('ap3000', { port: 3 })
  await insert(sent(AT_MS), fate({ status: DEAD, reason: 'no_result' }))
  await sql`update devices set tenant_id = 'beta'`
  await insert(
    settlement({ origin: 'card', cardId: '7a8d05dd', durationS: 7 }),
    fate({ status: REFUSED, reason: 'port_fault', atMs: AT_MS + SEC }),
  )
  const rows = await sql`select tenant_id, reason from quarantine order by reason`
  assert.deepEqual(
    rows.map((row) => [row['tenant_id'], row['reason']]),
    [
      ['default', 'command_fate_conflict'],
      ['default', 'settlement_conflict'],
    ],
  )
})

test('BKV: the 07 result names the order; reports and the end find it; a repeat days later changes nothing', async () => {
  await charge('bkv')
  await insert(sent(AT_MS, { deviceId: BKV }))
  await insert(bkvFate(AT_MS + SEC, ACKED, { business_no: 26 }))
  let order = await orderOf('ORDER1')
  assert.deepEqual(
    [order['state'], order['business_no'], order['wire_hex'], order['order_key']],
    ['charging', 26, '001a', '001a@ORDER1'],
  )
  await insert(bkvProgress('001a', AT_MS + 5 * MIN, 5, { energyWh: 20 }))
  await insert(bkvSettlement('001a', AT_MS + 11 * MIN, 10))
  order = await orderOf('ORDER1')
  assert.deepEqual([order['state'], order['duration_s'], order['energy_wh']], ['settled', 600, 10])
  const state = await dump()
  const repeat = await insert(bkvSettlement('001a', AT_MS + 5 * DAY, 10, { maxPowerW: 0, epoch: 99, messageId: 9 }))
  assert.deepEqual(repeat.settlements, { stored: 0, repeated: 1, conflicting: 0 })
  assert.deepEqual(await dump(), state)
  // a copy with other measurements: evidence, no second settlement
  const other = await insert(bkvSettlement('001a', AT_MS + 6 * DAY, 10, { energyRaw: 9, energyWh: 9 }))
  assert.deepEqual(other.settlements, { stored: 0, repeated: 0, conflicting: 1 })
  assert.equal(await settlementCount(), 1)
  assert.equal((await orders()).length, 1)
  assert.equal((await database.sql`select from quarantine`).count, 1)
  // a report that took the slower lane is a sample
  await insert(bkvProgress('001a', AT_MS + 10 * MIN, 10, { seq: 1 }))
  assert.equal((await orders()).length, 1)
})

test('BKV: the number after a wrap, shown by a report first, is another order with a settlement of its own', async () => {
  await insert(bkvProgress('001a', AT_MS + 5 * MIN, 5))
  await insert(bkvSettlement('001a', AT_MS + 10 * MIN, 10))
  const later = AT_MS + 20 * DAY
  await insert(bkvProgress('001a', later + 5 * MIN, 5))
  const two = await orders()
  assert.deepEqual(
    two.map((order) => [order['order_key'], order['state']]),
    [
      [`001a@${AT_MS / MIN}`, 'settled'],
      [`001a@${later / MIN}`, 'charging'],
    ],
  )
  const result = await insert(bkvSettlement('001a', later + 10 * MIN, 10))
  // the same duration and energy as 20 days ago, and yet no repeat
  assert.deepEqual(result.settlements, { stored: 1, repeated: 0, conflicting: 0 })
  assert.equal(await settlementCount(), 2)
  assert.equal((await insert(bkvSettlement('001a', later + 11 * MIN, 10))).settlements.repeated, 1)
})

test('BKV: an order that a card began has its business number from the first word of it on', async () => {
  const card = { origin: 'card', cardId: '0102030405a7' } as const
  const numbers = async () => (await orders()).map((order) => [order['state'], order['business_no'], order['card_id']])
  await insert(orderStart({ ...numbered('001a'), ...card, atMs: AT_MS }))
  assert.deepEqual(await numbers(), [['charging', 26, card.cardId]])
  await insert(bkvProgress('001a', AT_MS + 5 * MIN, 5, card))
  await insert(bkvSettlement('001a', AT_MS + 10 * MIN, 10, card))
  assert.deepEqual(await numbers(), [['settled', 26, card.cardId]])
  // 0f was lost: the report of the port is the first word
  await insert(bkvProgress('001b', AT_MS + 20 * MIN, 5, card))
  assert.deepEqual((await numbers()).at(-1), ['charging', 27, card.cardId])
})

test('BKV: after a memory loss the same number charges again, while its first order never ended', async () => {
  await insert(bkvProgress('0001', AT_MS + 30 * MIN, 30))
  await insert(bkvProgress('0001', AT_MS + 65 * MIN, 5))
  let both = await orders()
  assert.deepEqual(
    both.map((order) => [order['state'], order['duration_s']]),
    [
      ['charging', 1800],
      ['charging', 300],
    ],
  )
  await insert(bkvSettlement('0001', AT_MS + 71 * MIN, 10))
  both = await orders()
  assert.deepEqual(
    both.map((order) => order['state']),
    ['charging', 'settled'],
  )
  // not seen charging in between: months later it is another one all the same
  await insert(bkvSettlement('0001', AT_MS + 60 * DAY, 10))
  assert.equal(await settlementCount(), 2)
  // the device's own clock tells two charges apart at once
  await insert(bkvSettlement('0002', AT_MS, 10, { deviceEndedMs: AT_MS }))
  const clock = await insert(bkvSettlement('0002', AT_MS + 30 * MIN, 10, { deviceEndedMs: AT_MS + 30 * MIN }))
  assert.equal(clock.settlements.stored, 1)
})

test('BKV: a lost 07 result: the next report, or the end, gives the order its number', async () => {
  await charge('bkv')
  await insert(sent(AT_MS, { deviceId: BKV }))
  const reported = await insert(bkvProgress('0010', AT_MS + 2 * MIN, 2))
  assert.equal(reported.orders.started, 1)
  let order = await orderOf('ORDER1')
  assert.deepEqual([order['state'], order['order_key'], order['business_no']], ['charging', '0010@ORDER1', 16])

  await charge('bkv', { orderNo: 'ORDER2', commandId: 'c2', createdMs: AT_MS + 60 * MIN })
  await insert(sent(AT_MS + 60 * MIN, { deviceId: BKV, commandId: 'c2' }))
  await insert(bkvFate(AT_MS + 61 * MIN, DEAD, {}, { commandId: 'c2', reason: 'no_result' }))
  assert.equal((await orderOf('ORDER2'))['state'], 'failed')
  await insert(bkvSettlement('0011', AT_MS + 71 * MIN, 10))
  order = await orderOf('ORDER2')
  assert.deepEqual([order['state'], order['order_key'], order['fail_reason']], ['settled', '0011@ORDER2', null])

  // one that waits for a device that is away is not meant by what the device did meanwhile
  await charge('bkv', { orderNo: 'ORDER3', commandId: 'c3', createdMs: AT_MS + 100 * MIN })
  await insert(bkvProgress('0012', AT_MS + 130 * MIN, 5))
  assert.equal((await orderOf('ORDER3'))['state'], 'pending')
  // nor is an online order meant by a card
  await insert(sent(AT_MS + 140 * MIN, { deviceId: BKV, commandId: 'c3' }))
  await insert(bkvSettlement('0013', AT_MS + 151 * MIN, 5, { origin: 'card', cardId: '000000298352' }))
  assert.equal((await orderOf('ORDER3'))['state'], 'starting')
  assert.equal((await orders()).length, 5)
})

test('BKV: a repeat of the last end does not settle the order that was just started', async () => {
  await insert(bkvSettlement('0020', AT_MS, 1))
  await charge('bkv', { createdMs: AT_MS + 5 * SEC })
  await insert(sent(AT_MS + 5 * SEC, { deviceId: BKV }))
  for (const change of [{}, { energyRaw: 7, energyWh: 7 }])
    await insert(bkvSettlement('0020', AT_MS + 90 * SEC, 1, change))
  assert.equal((await orderOf('ORDER1'))['state'], 'starting')
  assert.equal(await settlementCount(), 1)
})

test('BKV: a report that overtakes the result and finds no order makes none beside it for long', async () => {
  await charge('bkv', { createdMs: AT_MS - 10 * MIN })
  // the row that it was sent comes late, too
  await insert(bkvProgress('0030', AT_MS + MIN, 1))
  assert.equal((await orders()).length, 2)
  await insert(sent(AT_MS, { deviceId: BKV }), bkvFate(AT_MS + SEC, ACKED, { business_no: 48 }))
  const order = await orderOf('ORDER1')
  assert.deepEqual([order['state'], order['order_key'], order['duration_s']], ['charging', '0030@ORDER1', 60])
  await insert(bkvSettlement('0030', AT_MS + 10 * MIN, 10))
  assert.equal((await orderOf('ORDER1'))['state'], 'settled')
  const [other] = await database.sql`select state, fail_reason from orders where order_no <> 'ORDER1'`
  assert.deepEqual({ ...other }, { state: 'cancelled', fail_reason: 'is ORDER1' })
})

// ---- money ----

const PER_KWH = { name: 'kWh', energy: { price_fen_per_kwh: 1000 } }
const PER_HOUR = { name: 'hour', time: { price_fen: 100, step_minutes: 60 } }

test('the amount: the order’s tariff, else the device’s, else the device’s own figure; kept with its lines', async () => {
  await charge('ap3000', { tariff: PER_KWH })
  const ours = { orderKey: AP_WIRE, wireHex: AP_WIRE, orderNo: 'ORDER1' }
  await insert(settlement({ ...ours, deviceAmountFen: 5 }))
  const order = await orderOf('ORDER1')
  assert.equal(order['amount_fen'], 450)
  assert.deepEqual(order['amount_lines'], [{ what: 'energy', quantity: 450, unit: 'Wh', amount_fen: 450 }])
  const [stored] = await database.sql`select amount_fen, device_amount_fen, lines from settlements`
  assert.deepEqual([stored!['amount_fen'], stored!['device_amount_fen']], [450, 5])
  assert.deepEqual(stored!['lines'], order['amount_lines'])

  await database.sql`update devices set tariff = ${database.sql.json(PER_HOUR)}`
  await insert(settlement({ orderKey: 'x', orderNo: 'X', deviceAmountFen: 5 }))
  const fromDevice = await orderOf('X')
  assert.deepEqual([fromDevice['amount_fen'], fromDevice['tariff']], [100, PER_HOUR])
  // a tariff that does not read makes no amount, and refuses no settlement
  await database.sql`update devices set tariff = '{"nonsense":1}'`
  await insert(
    settlement({ orderKey: 'y', orderNo: 'Y' }),
    settlement({ orderKey: 'z', orderNo: 'Z', deviceAmountFen: 9 }),
  )
  assert.equal((await orderOf('Y'))['amount_fen'], null)
  assert.equal((await orderOf('Z'))['amount_fen'], 9)
  // paid ahead: never more than that
  const budget = { orderNo: 'B', commandId: 'cb', port: 3, mode: 'budget', request: { amount_fen: 300 } }
  await charge('ap3000', { ...budget, tariff: PER_KWH })
  await insert(settlement({ ...ours, port: 3 }))
  assert.equal((await orderOf('B'))['amount_fen'], 300)
  const [sums] = await database.sql`
    select (select sum(amount_fen) from settlements)::int as settlements, (select sum(amount_fen) from orders)::int as orders`
  assert.deepEqual({ ...sums }, { settlements: 859, orders: 859 })
})

test('a card pays its order once, also below zero; a monthly card and a card of another tenant pay nothing', async () => {
  const { sql } = database
  await sql`insert into devices (device_id, protocol, tariff) values (${AP}, 'ap3000', ${sql.json(PER_KWH)})`
  await sql`insert into tenants (tenant_id, name) values ('t2', 'Two') on conflict do nothing`
  await sql`insert into cards (tenant_id, card_id, rate_mode, balance_fen) values
    ('default', '7a8d05dd', 0, 600), ('default', 'a1b2c3d4', 1, 50), ('t2', '11223344', 0, 50)`
  const card = (cardId: string, n: string) =>
    settlement({ origin: 'card', cardId, orderKey: n, orderNo: n, receivedMs: AT_MS + Number(n) })
  await insert(card('7a8d05dd', '1'), card('a1b2c3d4', '2'), card('11223344', '3'))
  const balances = async () =>
    Object.fromEntries((await sql`select card_id, balance_fen from cards`).map((c) => [c['card_id'], c['balance_fen']]))
  assert.deepEqual(await balances(), { '7a8d05dd': 150, a1b2c3d4: 50, '11223344': 50 })
  const below = await insert(card('7a8d05dd', '4'))
  assert.equal(below.orders.overdrawn, 1)
  assert.equal((await balances())['7a8d05dd'], -300)
  const told = (await dataOf('charging.ended')).map((data) => [data['card_balance_fen'], data['is_overdrawn']])
  assert.deepEqual(told, [
    [150, false],
    [undefined, undefined],
    [undefined, undefined],
    [-300, true],
  ])
})

test('a month that is over is not paid: what begins behind its end comes from the balance', async () => {
  const { sql } = database
  await sql`insert into devices (device_id, protocol, tariff) values (${AP}, 'ap3000', ${sql.json(PER_KWH)})`
  const startedMs = AT_MS - 3_600_000
  await sql`insert into cards (card_id, rate_mode, balance_fen, expires_at) values
    ('7a8d05dd', 1, 1000, ${new Date(startedMs)}), ('a1b2c3d4', 1, 1000, ${new Date(startedMs + 1)})`
  const card = (cardId: string, n: string) => settlement({ origin: 'card', cardId, orderKey: n, orderNo: n })
  await insert(card('7a8d05dd', '1'), card('a1b2c3d4', '2'))
  const cards = await sql`select card_id, balance_fen from cards order by 1`
  assert.deepEqual(
    cards.map((row) => [row['card_id'], row['balance_fen']]),
    [
      ['7a8d05dd', 550],
      ['a1b2c3d4', 1000],
    ],
  )
})

test('BKV says the watts of its last moment: the tier is that of the highest power heard', async () => {
  const { sql } = database
  const tiers = [
    { max_power_w: 200, price_fen: 25, minutes: 60 },
    { max_power_w: 2_000, price_fen: 500, minutes: 120 },
  ]
  await sql`insert into devices (device_id, protocol, tariff) values (${BKV}, 'bkv', ${sql.json({ power: { tiers } })})`
  await insert(bkvProgress('001a', AT_MS - MIN, 1, { powerW: 1_500, maxPowerW: null }))
  await insert(bkvSettlement('001a', AT_MS, 1, { maxPowerW: 0.1 }))
  const [order] = await orders()
  assert.deepEqual([order!['max_power_w'], order!['amount_fen']], [1_500, 500])
})

test('a settlement after the estimate corrects it once: figures, card by the difference, event that says what it corrects', async () => {
  const { sql } = database
  await sql`insert into devices (device_id, protocol, tariff) values (${AP}, 'ap3000', ${sql.json(PER_KWH)})`
  await sql`insert into cards (card_id, balance_fen) values ('7a8d05dd', 500)`
  await insert(orderStart({ origin: 'card', cardId: '7a8d05dd' }))
  await sql`update orders set state = 'settled', estimated = true, energy_wh = 100, amount_fen = 100, card_fen = 100,
    duration_s = 60, version = 2`
  const result = await insert(settlement({ origin: 'card', cardId: '7a8d05dd' }))
  assert.deepEqual([result.orders.corrected, result.orders.settled, result.settlements.stored], [1, 0, 1])
  const order = await orderOf('N1')
  assert.deepEqual([order['estimated'], order['amount_fen'], order['card_fen'], order['version']], [false, 450, 450, 3])
  assert.equal((await sql`select balance_fen from cards`)[0]!['balance_fen'], 500 - 350)
  const [corrected] = await dataOf('order.corrected')
  assert.deepEqual([corrected['before']['amount_fen'], corrected['amount_fen'], corrected['version']], [100, 450, 3])
  assert.match(corrected['corrects'], /^[0-9a-f]{32}$/)
  const { card_balance_fen: balanceFen, is_overdrawn: isOverdrawn, ...ofEveryOrder } = corrected
  assert.deepEqual([balanceFen, isOverdrawn], [150, false])
  assertKeysOfSample('order.corrected', ofEveryOrder)
})

test('one charge leaves its events in order, with figures in contract units', async () => {
  await insert(
    settlement(),
    orderStart(),
    progress({ atMs: AT_MS - 40 * MIN, durationS: 600 }),
    progress({ seq: 51, atMs: AT_MS - 30 * MIN, durationS: 1200, energyWh: 200 }),
  )
  assert.deepEqual(await eventTypes(), ['charging.started', 'charging.progress', 'charging.progress', 'charging.ended'])
  const [ended] = await dataOf('charging.ended')
  assert.deepEqual(ended, {
    order_no: 'N1',
    socket: 0,
    port: 1,
    mode: null,
    origin: 'online',
    business_no: null,
    started_at: '2026-01-31T11:10:00.000Z',
    ended_at: '2026-01-31T12:10:00.000Z',
    duration_s: 3600,
    energy_wh: 450,
    max_power_w: 250,
    amount_fen: null,
    end_reason: 'full',
    end_reason_raw: 1,
    card_id: null,
    amount_lines: null,
    estimated: false,
    version: 1,
  })
  const keys = await database.sql`select distinct order_key from events`
  assert.deepEqual([...keys], [{ order_key: 'N1' }])
})

test('two writers with the same cards at other devices, in opposite order: no deadlock, money adds up to the fen', async () => {
  const { sql } = database
  const writers = [connect(database.url, { max: 1 }), connect(database.url, { max: 1 })]
  const cards = ['00000001', '00000002', '00000003', '00000004']
  try {
    await sql`insert into devices (device_id, protocol, tariff) select 'd' || n, 'ap3000', ${sql.json(PER_KWH)}
      from generate_series(0, 9) n`
    await sql`insert into cards (card_id, balance_fen) select unnest(${cards}::text[]), 100000`
    for (let round = 0; round < 10; round++) {
      const rowsOf = (writer: number) =>
        Array.from({ length: 20 }, (_, n) => {
          const name = `w${writer}r${round}n${n}`
          const cardId = cards[(writer === 0 ? n : 19 - n) % cards.length]!
          return settlement({
            deviceId: `d${writer * 5 + (n % 5)}`,
            orderKey: name,
            orderNo: name,
            origin: 'card',
            cardId,
          })
        })
      const results = await Promise.all(writers.map((writer, index) => insertSpan(writer, spanOf(...rowsOf(index)))))
      for (const { rejected, settlements } of results) assert.deepEqual([rejected.length, settlements.stored], [0, 20])
    }
    const [sums] = await sql`
      select (select sum(amount_fen)::int from settlements) as settled, (select sum(amount_fen)::int from orders) as ordered,
        (select sum(100000 - balance_fen)::int from cards) as paid,
        (select count(*)::int from events where event_type = 'charging.ended') as ended`
    assert.deepEqual({ ...sums }, { settled: 400 * 450, ordered: 400 * 450, paid: 400 * 450, ended: 400 })
  } finally {
    await Promise.all(writers.map((writer) => writer.end({ timeout: 1 })))
  }
})
