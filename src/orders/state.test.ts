/**
 * Claims: the order table says what contract 3 and the protocol documents say of an order's life; every illegal pair is
 * explained; README.md shows exactly this table. How: the decisive paths one by one, then random event rows (fast-check)
 * on which the rules must hold. Write README.md anew: `UPDATE_README=1 node --test src/orders/state.test.ts`.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  illegalTable,
  ORDER_EVENT_NAMES,
  ORDER_STATES,
  type OrderEvent,
  type OrderState,
  settlementEvent,
  stateTable,
  transition,
} from './state.ts'

/** Where these events lead; illegal ones are not applied. */
function walk(from: OrderState, ...events: OrderEvent[]): OrderState {
  let state = from
  for (const event of events) {
    const found = transition(state, event)
    if (!('illegal' in found)) state = found.to
  }
  return state
}

test('the paths of a life', () => {
  const from = (...events: OrderEvent[]) => walk('pending', ...events)
  assert.equal(from('start_sent'), 'starting')
  assert.equal(from('start_sent', 'start_sent', 'start_acked'), 'charging')
  assert.equal(from('start_sent', 'start_acked', 'progress', 'stop_sent', 'stop_acked'), 'stopping')
  assert.equal(from('start_sent', 'start_acked', 'stop_sent', 'stop_acked', 'settled'), 'settled')
  assert.equal(from('start_cancelled'), 'cancelled')
  assert.equal(from('start_expired'), 'failed')
  assert.equal(from('start_sent', 'start_refused'), 'failed')
  assert.equal(from('timed_out'), 'failed')
  // 04 before the 82 result, which then is a refusal of the resend (02: already in the asked state)
  assert.equal(from('start_sent', 'confirmed', 'start_sent', 'start_refused'), 'charging')
  assert.equal(from('start_sent', 'progress', 'start_dead'), 'charging')
  // after a timeout is unknown, not failed
  for (const evidence of ['progress', 'confirmed', 'start_acked'] as const)
    assert.equal(from('start_sent', 'start_dead', evidence), 'charging')
  // a stop between start and result
  assert.equal(from('start_sent', 'stop_sent', 'start_refused'), 'failed')
  assert.equal(from('start_sent', 'stop_sent', 'stop_acked', 'start_dead'), 'stopping')
  assert.equal(from('start_sent', 'start_dead', 'stop_sent', 'stop_acked'), 'stopping')
  // a stop that did not work leaves the order charging
  for (const failure of ['stop_refused', 'stop_dead'] as const)
    assert.equal(from('start_sent', 'start_acked', 'stop_sent', failure), 'charging')
  assert.equal(from('start_sent', 'start_acked', 'stop_sent', 'progress'), 'stopping')
  assert.equal(from('start_sent', 'start_acked', 'settled_estimated'), 'settled')
})

test('a settlement settles from every state, once; after an estimate it corrects', () => {
  for (const state of ORDER_STATES) {
    const found = transition(state, settlementEvent(state, false))
    if (state === 'settled') assert.ok('illegal' in found)
    else assert.deepEqual(found, { to: 'settled', versionStep: 1, isCorrection: false })
  }
  const event = settlementEvent('settled', true)
  assert.deepEqual(transition('settled', event), { to: 'settled', versionStep: 1, isCorrection: true })
  // the flag of an unsettled order means nothing
  for (const state of ORDER_STATES.filter((name) => name !== 'settled'))
    assert.equal(settlementEvent(state, true), 'settled')
})

test('what is illegal is a value with a reason that names both', () => {
  for (const event of ORDER_EVENT_NAMES)
    for (const state of ORDER_STATES) {
      const found = transition(state, event)
      if (!('illegal' in found)) continue
      assert.ok(found.why.startsWith(`${event} in ${state}: `) && found.why.length > 40, found.why)
    }
  assert.ok('illegal' in transition('starting', 'start_cancelled'))
  assert.ok('illegal' in transition('charging', 'timed_out'))
  assert.ok('illegal' in transition('settled', 'progress'))
  assert.ok('illegal' in transition('pending', 'stop_sent'))
})

test('any row of events: settled stays settled, nothing is settled without a settlement, versions count changes', () => {
  const events = fc.array(fc.constantFrom(...ORDER_EVENT_NAMES), { maxLength: 30 })
  fc.assert(
    fc.property(events, (row) => {
      let state: OrderState = 'pending'
      let isEstimated = false
      let hasSettlement = false
      let version = 1
      for (const given of row) {
        // as the writer does: which event a settlement is depends on the order
        const event =
          given === 'settled' || given === 'real_settlement_after_estimate'
            ? settlementEvent(state, isEstimated)
            : given
        const before: OrderState = state
        const found = transition(state, event)
        if ('illegal' in found) continue
        state = found.to
        version += found.versionStep
        if (event === 'settled_estimated') isEstimated = true
        if (event === 'settled' || event === 'real_settlement_after_estimate') {
          assert.ok(!hasSettlement, 'a real settlement is applied once')
          hasSettlement = true
          isEstimated = false
        }
        assert.ok(before !== 'settled' || state === 'settled')
        assert.equal(found.versionStep === 1, before !== state || found.isCorrection)
      }
      assert.equal(state === 'settled', hasSettlement || isEstimated)
      assert.ok(version <= row.length + 1)
      // whatever happened, the device's settlement has the last word
      assert.equal(walk(state, settlementEvent(state, isEstimated)), 'settled')
    }),
    { numRuns: 2_000 },
  )
})

test('no order stays open for ever: timed_out or settled_estimated ends every open state', () => {
  for (const state of ORDER_STATES) {
    const end = walk(state, 'timed_out', 'settled_estimated')
    assert.ok(['settled', 'failed', 'cancelled'].includes(end), state)
  }
})

test('README.md shows this table', () => {
  const place = new URL('README.md', import.meta.url)
  const readme = readFileSync(place, 'utf8')
  const between = (text: string, name: string, content: string) => {
    const marks = new RegExp(`(<!-- ${name} -->)[\\s\\S]*(<!-- /${name} -->)`)
    assert.match(text, marks)
    return text.replace(marks, (_, open, close) => `${open}\n\n${content}\n\n${close}`)
  }
  const made = between(between(readme, 'states', stateTable()), 'illegal', illegalTable())
  if (process.env['UPDATE_README'] === '1') writeFileSync(place, made)
  else assert.equal(readme, made)
})
