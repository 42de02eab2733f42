/**
 * Claim: every armed timer fires once, never early, at most one tick late after an `advance`, and a disarmed or
 * re-armed one does not fire for its old deadline. Tried against a plain map of deadlines over random histories
 * (fast-check prints the seed), with deadlines beyond one turn and pauses longer than a turn.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { TimingWheel } from './timing-wheel.ts'

const TICK_MS = 100
const SLOTS = 16

test('agrees with a map of deadlines', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          what: fc.constantFrom('arm', 'arm', 'disarm', 'advance'),
          id: fc.nat(20),
          ms: fc.nat(5_000),
        }),
        { maxLength: 200 },
      ),
      fc.nat(100_000),
      (history, startMs) => {
        const wheel = new TimingWheel(TICK_MS, SLOTS, startMs)
        const due = new Map<number, number>()
        let nowMs = startMs
        for (const { what, id, ms } of history) {
          if (what === 'arm') {
            wheel.arm(id, nowMs + ms)
            due.set(id, nowMs + ms)
          } else if (what === 'disarm') {
            wheel.disarm(id)
            due.delete(id)
          } else {
            nowMs += ms
            const fired = new Set<number>()
            wheel.advance(nowMs, (which) => {
              assert.ok(!fired.has(which), 'fired twice')
              fired.add(which)
              assert.ok(due.get(which)! <= nowMs, `fired early: due ${due.get(which)} now ${nowMs}`)
              due.delete(which)
            })
            // a tick later at the most: what is still waiting is not overdue by more than that
            for (const at of due.values()) assert.ok(at > nowMs - 2 * TICK_MS, `due ${at}, now ${nowMs}, not fired`)
          }
          assert.equal(wheel.armed, due.size)
        }
      },
    ),
    { numRuns: 1_000 },
  )
})

test('a timer may arm itself and disarm others while it fires', () => {
  const wheel = new TimingWheel(TICK_MS, SLOTS, 0)
  wheel.arm(1, 100)
  wheel.arm(2, 100)
  const fired: number[] = []
  const act = (id: number) => {
    fired.push(id)
    wheel.disarm(id === 1 ? 2 : 1)
    wheel.arm(id, 1_000)
  }
  wheel.advance(250, act)
  assert.equal(fired.length, 1)
  wheel.advance(900, act)
  assert.equal(fired.length, 1)
  wheel.advance(1_200, act)
  assert.equal(fired.length, 2)
  assert.equal(fired[0], fired[1])
})

test('ids beyond the first table are grown for', () => {
  const wheel = new TimingWheel(TICK_MS, SLOTS, 0)
  for (let id = 0; id < 5_000; id++) wheel.arm(id, 500)
  let count = 0
  wheel.advance(700, () => count++)
  assert.equal(count, 5_000)
})
