/**
 * Claim: keys spread evenly over shards, and one shard more or less moves about 1/n of them and no others. Tried on
 * ids as they occur (consecutive physIds, ICCIDs, gateway ids); fixed keys, so a failure replays by itself.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { shardOf } from './rendezvous.ts'

const KEYS = Array.from({ length: 20_000 }, (_, index) =>
  index % 3 === 0
    ? (0x04ab0000 + index).toString(16).padStart(8, '0')
    : index % 3 === 1
      ? `898604${String(10_000_000_000_000 + index * 7)}`
      : String(82_200_520_000_000 + index),
)

for (const shards of [1, 2, 3, 4, 8, 16, 64]) {
  test(`${shards} shards get even shares`, () => {
    const counts = new Array<number>(shards).fill(0)
    for (const key of KEYS) counts[shardOf(key, shards)]!++
    const fair = KEYS.length / shards
    // four standard deviations of a fair draw
    const slack = 4 * Math.sqrt(fair)
    for (const count of counts) assert.ok(Math.abs(count - fair) <= slack, `${count} of fair ${fair}`)
  })

  test(`${shards} to ${shards + 1} shards moves about 1/${shards + 1} of the keys, all to the new shard`, () => {
    let moved = 0
    for (const key of KEYS) {
      const before = shardOf(key, shards)
      const after = shardOf(key, shards + 1)
      if (before === after) continue
      moved++
      assert.equal(after, shards, 'a key moved between old shards')
    }
    const fair = KEYS.length / (shards + 1)
    assert.ok(Math.abs(moved - fair) <= 4 * Math.sqrt(fair), `${moved} moved, fair ${fair}`)
  })
}

test('any string and any number of shards has one owner', () => {
  fc.assert(
    fc.property(fc.string(), fc.integer({ min: 1, max: 256 }), (key, shards) => {
      const shard = shardOf(key, shards)
      assert.ok(Number.isInteger(shard) && shard >= 0 && shard < shards)
      assert.equal(shardOf(key, shards), shard)
    }),
  )
})
