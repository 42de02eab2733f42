/**
 * Claim: a name gets at most `burst` tokens at once and `perS` per second after that, whatever the pattern; names do
 * not share tokens; what is told to wait gets its token after exactly that time, and names at rest are forgotten.
 * Tried with a clock moved by hand and with random patterns (fast-check prints the seed of a failure).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { RateLimit } from './rate-limit.ts'

test('a burst, then one by one', () => {
  let now = 5_000
  const limit = new RateLimit({ perS: 5, burst: 10, nowMonoMs: () => now })
  for (let count = 0; count < 10; count++) assert.equal(limit.take('a'), 0)
  const waitMs = limit.take('a')
  assert.equal(Math.round(waitMs), 200)
  assert.equal(limit.take('b'), 0, 'names share nothing')
  now += waitMs - 1
  assert.ok(limit.take('a') > 0)
  now += 1
  assert.equal(limit.take('a'), 0)
  assert.ok(limit.take('a') > 0)
})

test('never more than burst + rate * time, and never less when asked often enough', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 50 }),
      fc.integer({ min: 1, max: 20 }),
      fc.array(fc.integer({ min: 0, max: 400 }), { minLength: 1, maxLength: 200 }),
      (perS, burst, gapsMs) => {
        let now = 0
        const limit = new RateLimit({ perS, burst, nowMonoMs: () => now })
        let taken = 0
        for (const gapMs of gapsMs) {
          now += gapMs
          while (limit.take('x') === 0) taken++
        }
        const most = burst + (now * perS) / 1_000
        assert.ok(taken <= most + 1e-6, `${taken} of ${most}`)
      },
    ),
  )
})

test('names at rest are forgotten', () => {
  let now = 0
  const limit = new RateLimit({ perS: 10, burst: 2, nowMonoMs: () => now })
  for (let round = 0; round < 20; round++) {
    for (let index = 0; index < 1_000; index++) limit.take(`${round}-${index}`)
    now += 1_000
  }
  assert.ok(limit.names < 3_000, String(limit.names))
})
