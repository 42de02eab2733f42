/** Claim: only a number that devices use for "none" counts as none. Tried with both protocols' widths. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isBlankOrder } from './order-key.ts'

test('zeros and erased memory are no order; business number ffff is one (simulation, seed 101402)', () => {
  for (const blank of ['', '0000', '00'.repeat(16), 'ff'.repeat(16)]) assert.ok(isBlankOrder(blank), blank)
  for (const order of ['ffff', '0001', `${'ff'.repeat(15)}fe`, `${'00'.repeat(15)}01`])
    assert.ok(!isBlankOrder(order), order)
})
