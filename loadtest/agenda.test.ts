/**
 * Claim: appointments run in the order of their times and a heap of thousands names the earliest member after any
 * sequence of changes. The heap is compared with a plain scan over random (seeded) changes.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Random } from '../src/testing/random.ts'
import { Agenda, WakeHeap } from './agenda.ts'

test('appointments run by time, equal times in the order planned, and may plan more', () => {
  const agenda = new Agenda()
  const ran: string[] = []
  const note = (name: string) => (nowMs: number, atMs: number) => void ran.push(`${name}@${atMs}/${nowMs}`)
  agenda.at(30, note('c'))
  agenda.at(10, note('a'))
  agenda.at(10, note('b'))
  agenda.at(20, (nowMs) => agenda.at(nowMs - 1, note('planned')))
  assert.equal(agenda.nextMs, 10)
  agenda.runDue(25)
  assert.deepEqual(ran, ['a@10/25', 'b@10/25', 'planned@24/25'])
  assert.equal(agenda.nextMs, 30)
})

test('a cancelled appointment and those of a lost connection never run', () => {
  const agenda = new Agenda()
  const ran: string[] = []
  const cancelled = agenda.at(1, () => ran.push('cancelled'))
  agenda.whileConnected(2, () => ran.push('of the connection'))
  agenda.at(3, () => ran.push('kept'))
  agenda.cancel(cancelled)
  agenda.forgetConnection()
  agenda.runDue(10)
  assert.deepEqual(ran, ['kept'])
  assert.equal(agenda.nextMs, Number.POSITIVE_INFINITY)
})

test('the heap names the earliest member after any change', () => {
  const random = new Random(3)
  const members = 200
  const heap = new WakeHeap(members)
  const times = new Array<number>(members).fill(Number.POSITIVE_INFINITY)
  for (let step = 0; step < 20_000; step++) {
    const member = random.below(members)
    const atMs = random.chance(0.2) ? Number.POSITIVE_INFINITY : random.below(1_000)
    heap.set(member, atMs)
    times[member] = atMs
    const earliest = Math.min(...times)
    assert.equal(heap.nextMs, earliest)
    if (earliest === Number.POSITIVE_INFINITY) assert.equal(heap.first, -1)
    else assert.equal(times[heap.first], earliest)
  }
})
