/**
 * Claim: an end report settles the online order that was started and stopped before anybody knew its business number
 * (found by attack: it became an order of its own, and ours stayed `stopping` and kept the port).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { orderOfSettlement, type PortOrder } from './which-order.ts'

const NOW_MS = Date.UTC(2026, 10, 21)

test('an order that was stopped before its number was known is the one that ends', () => {
  const ours: PortOrder = {
    orderKey: null,
    wireHex: null,
    state: 'stopping',
    origin: 'online',
    failReason: null,
    isEstimated: false,
    startedMs: null,
    endedMs: null,
    sentMs: NOW_MS - 30_000,
    createdMs: NOW_MS - 31_000,
    lastProgressMs: null,
    durationS: null,
  } as PortOrder
  const report = {
    wireHex: '0037',
    origin: 'online',
    durationS: 0,
    energyRaw: 80,
    receivedMs: NOW_MS,
    deviceEndedMs: undefined,
  }
  assert.deepEqual(orderOfSettlement([ours], [], report), { order: ours })
})
