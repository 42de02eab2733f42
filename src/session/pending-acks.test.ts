/**
 * Claim: acks go out in the order of their rows once these are durable; acks that a device cannot tell apart go out
 * only when every report of their group is stored, however the reports, refusals and commits interleave. Tried by
 * hand-made histories and against the rule itself over random ones (fast-check prints the seed).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { PendingAcks, type WaitingAck } from './pending-acks.ts'

const ack = (position: number, group?: string, about = String(position)): WaitingAck => ({ position, group, about })
const positions = (acks: PendingAcks<WaitingAck>, to: number, rejected: number[] = [], monoMs = 0) => {
  const released: number[] = []
  acks.reached(to, rejected, monoMs, ({ position }) => released.push(position))
  return released
}

test('two ports of one socket are acked together, in order', () => {
  const acks = new PendingAcks<WaitingAck>()
  acks.add(ack(10, 's1'))
  acks.add(ack(20))
  acks.add(ack(30, 's1'))
  assert.deepEqual(positions(acks, 15), [])
  assert.deepEqual(positions(acks, 25), [20])
  assert.deepEqual(positions(acks, 30), [10, 30])
  assert.equal(acks.count, 0)
})

test('one refused report holds the whole group back until it has come again', () => {
  const acks = new PendingAcks<WaitingAck>()
  acks.add(ack(10, 's1', 'A'))
  acks.refuse('s1', 'B', 0)
  assert.deepEqual(positions(acks, 10), [])
  acks.add(ack(20, 's1', 'A'))
  assert.deepEqual(positions(acks, 20), [], 'B is still missing')
  acks.add(ack(30, 's1', 'A'))
  acks.add(ack(40, 's1', 'B'))
  assert.deepEqual(positions(acks, 40), [30, 40])
})

test('a refused report that never comes again holds nobody for ever', () => {
  const acks = new PendingAcks<WaitingAck>()
  acks.refuse('s1', 'B', 0)
  acks.add(ack(10, 's1', 'A'))
  assert.deepEqual(positions(acks, 10, [], 70_000), [10])
})

test('a row the database would not take is not acked, and neither is its group', () => {
  const acks = new PendingAcks<WaitingAck>()
  acks.add(ack(10, 's1'))
  acks.add(ack(20, 's1'))
  acks.add(ack(30))
  assert.deepEqual(positions(acks, 30, [20]), [30])
})

test('random histories: order kept, nothing before durable, no group split', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({ what: fc.constantFrom('add', 'add', 'reach', 'refuse'), group: fc.nat(3), step: fc.nat(3) }),
        {
          maxLength: 80,
        },
      ),
      (history) => {
        const acks = new PendingAcks<WaitingAck>()
        let written = 0
        let durable = 0
        const released = new Set<number>()
        const all: WaitingAck[] = []
        let last = new Map<string | undefined, number>()
        for (const { what, group, step } of history) {
          const name = group === 0 ? undefined : `s${group}`
          if (what === 'add') {
            const made = ack(++written, name)
            all.push(made)
            acks.add(made)
          } else if (what === 'refuse' && name !== undefined) acks.refuse(name, 'never', 0)
          else if (what === 'reach') {
            durable = Math.min(written, durable + step)
            for (const position of positions(acks, durable)) {
              assert.ok(position <= durable)
              assert.ok(!released.has(position))
              const { group: of } = all[position - 1]!
              assert.ok(position > (last.get(of) ?? 0), 'order inside a group')
              last = last.set(of, position)
              released.add(position)
              if (of === undefined) continue
              for (const other of all) if (other.group === of) assert.ok(other.position <= durable, 'group split')
            }
          }
        }
        assert.ok(acks.count <= all.length - released.size)
      },
    ),
    { numRuns: 1_000 },
  )
})
