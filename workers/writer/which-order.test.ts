/**
 * Claims: an end report settles the online order that was started and stopped before anybody knew its business number
 * (found by attack: it became an order of its own, and ours stayed `stopping` and kept the port); a charge that the device
 * spoke of before our start was sent is not ours (found by the simulation: a start that waited got the end of a charge
 * that a user had begun at the socket).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { orderOfProgress, orderOfSettlement, type PortOrder } from './which-order.ts'

const NOW_MS = Date.UTC(2026, 10, 21)
const waits: PortOrder = {
  orderKey: null,
  wireHex: null,
  state: 'starting',
  origin: 'online',
  isEstimated: false,
  failReason: null,
  createdMs: NOW_MS - 31_000,
  startedMs: null,
  endedMs: null,
  durationS: null,
  lastProgressMs: null,
  sentMs: NOW_MS - 30_000,
  finishedMs: null,
}
const end = { wireHex: '0037', origin: 'online', durationS: 60, energyRaw: 8, deviceEndedMs: undefined }
const progress = { wireHex: '0037', origin: 'online', durationS: 60 }

test('what a device said before our start was sent is about another charge', () => {
  for (const [heardMs, isOurs] of [
    [NOW_MS, true],
    [NOW_MS - 30_001, false],
  ] as const) {
    const expected = isOurs ? { order: waits } : 'new'
    assert.deepEqual(orderOfSettlement([waits], [], { ...end, receivedMs: heardMs }), expected)
    assert.equal(orderOfProgress([waits], { ...progress, atMs: heardMs }), isOurs ? waits : 'new')
  }
})

test('a start that was not sent did not begin a charge', () => {
  const pending: PortOrder = { ...waits, state: 'pending', sentMs: null, createdMs: NOW_MS - 1_000 }
  assert.equal(orderOfSettlement([pending], [], { ...end, receivedMs: NOW_MS }), 'new')
  assert.equal(orderOfProgress([pending], { ...progress, atMs: NOW_MS }), 'new')
  const announced: PortOrder = { ...pending, sentMs: NOW_MS - 500 }
  assert.deepEqual(orderOfSettlement([announced], [], { ...end, receivedMs: NOW_MS }), { order: announced })
})

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
