/**
 * Claims: a command keeps the id under which it leaves, whichever start of the gateway wrote it down last; a stop moves
 * only the order that it stopped. Both were found by the simulation (seeds 294, 105 and 319), the second as an order that
 * never ran and was billed by estimate. Tried without a database: both classes are pure.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { CommandFateRow } from '../../src/rows/index.ts'
import { COMMAND_STATUS } from '../../src/session/command-lane.ts'
import { CommandFates, type StoredCommand } from './command-fates.ts'
import { NEVER_CHARGED, type Order } from './order.ts'
import { OrderBook } from './order-book.ts'

const AT_MS = Date.UTC(2026, 10, 21)
const DEVICE = '82200520004869'

const command = (change: Partial<StoredCommand> = {}): StoredCommand => ({
  command_id: 'c1',
  device_id: DEVICE,
  name: 'control',
  kind: 'stop',
  order_no: 'N1',
  wire_hex: '',
  status: COMMAND_STATUS.sent,
  attempts: 1,
  message_id: 10,
  epoch: 5,
  sent_at: new Date(AT_MS),
  finished_at: null,
  result: null,
  ...change,
})
const row = (change: Partial<CommandFateRow> = {}): CommandFateRow => ({
  commandId: 'c1',
  deviceId: DEVICE,
  epoch: 5,
  status: COMMAND_STATUS.acked,
  attempts: 1,
  messageId: 10,
  atMs: AT_MS,
  reason: 'ok',
  result: '{}',
  ...change,
})
const order = (change: Partial<Order> = {}): Order => ({
  ...NEVER_CHARGED,
  orderNo: 'N1',
  tenantId: 'default',
  deviceId: DEVICE,
  protocol: 'bkv',
  socket: 1,
  port: 1,
  mode: 'full',
  request: null,
  commandId: 'start',
  orderKey: null,
  wireHex: null,
  state: 'starting',
  origin: 'online',
  cardId: null,
  createdMs: AT_MS - 2_000,
  sentMs: AT_MS - 1_000,
  finishedMs: null,
  isNew: false,
  isChanged: false,
  ...change,
})
const bookOf = (...orders: Order[]) =>
  new OrderBook(new Map(), { orders, settlements: [], taken: [], tariffs: new Map() })

test('written down again by a later start, under another id: that one counts, an older one never', () => {
  const announced = { status: COMMAND_STATUS.sent, reason: 'sent' }
  for (const [epoch, messageId, expected] of [
    [6, 11, ['applied', 11]],
    [5, 10, ['repeated', 10]],
    [4, 9, ['fenced', 10]],
  ] as const) {
    const stored = command()
    const outcome = new CommandFates([stored]).apply(row({ ...announced, epoch, messageId }), bookOf())
    assert.deepEqual([outcome, stored.message_id], expected)
  }
  const done = command({ status: COMMAND_STATUS.acked })
  assert.equal(new CommandFates([done]).apply(row({ ...announced, epoch: 6, messageId: 11 }), bookOf()), 'repeated')
})

/** State of N1 after its stop got this fate. */
function afterStop(orders: readonly Order[], fate: Partial<CommandFateRow>): string {
  const book = bookOf(...orders)
  assert.equal(new CommandFates([command()]).apply(row(fate), book), 'applied')
  return book.order('N1')!.state
}

test('nothing was to be stopped: an order that never ran is not taken for one that did', () => {
  for (const status of [COMMAND_STATUS.acked, COMMAND_STATUS.refused]) {
    const moot = { status, reason: 'already_in_state' }
    assert.equal(afterStop([order()], moot), 'starting')
    assert.equal(afterStop([order({ state: 'failed', failReason: 'no_result' })], moot), 'failed')
    assert.equal(afterStop([order({ state: 'charging' })], moot), 'stopping')
  }
})

test('a stop of a port ends the charge that its result names', () => {
  const ended = { result: '{"business_no":26}' }
  const other = order({ orderNo: 'N2', orderKey: '001a@1', wireHex: '001a', state: 'charging', commandId: null })
  assert.equal(afterStop([order(), other], ended), 'starting', 'another order has this number')
  assert.equal(afterStop([order({ state: 'failed', failReason: 'failed' })], ended), 'failed', 'ours was refused')
  assert.equal(afterStop([order({ wireHex: '0019', orderKey: '0019@N1', state: 'charging' })], ended), 'stopping')
  const estimated = { ...other, state: 'settled' as const, isEstimated: true, settledMs: AT_MS - 60_000 }
  assert.equal(afterStop([order(), estimated], ended), 'starting', 'what was estimated may charge still')
  const long = { ...other, state: 'settled' as const, settledMs: AT_MS - 86_400_000 }
  const ours = order()
  assert.equal(afterStop([ours, long], ended), 'stopping', 'the number came round')
  assert.equal(ours.wireHex, '001a', 'and is known by that')
})

test('a stop that names its order says that it ran', () => {
  const wireHex = '53'.repeat(16)
  const named = { wireHex, orderKey: wireHex, protocol: 'ap3000' }
  assert.equal(afterStop([order(named)], {}), 'stopping')
  assert.equal(afterStop([order({ ...named, state: 'failed', failReason: 'port_fault' })], {}), 'stopping')
})

test('a report that confirms a start is no proof when another start has that charge already', () => {
  const confirmed = { reason: 'confirmed_by_report', result: '{"business_no":26}' }
  const other = order({ orderNo: 'N2', orderKey: '001a@N2', wireHex: '001a', state: 'charging' })
  const stateAfter = (orders: readonly Order[], fate: Partial<CommandFateRow>) => {
    const book = bookOf(...orders)
    new CommandFates([command({ kind: 'start' })]).apply(row(fate), book)
    const { state, wireHex } = book.order('N1')!
    return [state, wireHex]
  }
  assert.deepEqual(stateAfter([order(), other], confirmed), ['starting', null])
  assert.deepEqual(stateAfter([order()], confirmed), ['charging', '001a'])
  // a report that overtook the result made an order that nobody started: that one is ours
  const unasked = { ...other, orderKey: '001a@7', commandId: null, startedMs: AT_MS }
  assert.deepEqual(stateAfter([order(), unasked], confirmed), ['charging', '001a'])
})
