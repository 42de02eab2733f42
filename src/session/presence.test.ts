/** Claim: the score follows from connection and last frame as the docstring says. Tried as a table, edges included. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { HEARTBEAT_MS, presenceFrom } from './presence.ts'

const NOW = Date.UTC(2026, 0, 31)
const period = HEARTBEAT_MS['ap3000']!

const table: [name: string, isConnected: boolean, silentMs: number | undefined, score: number, reasons: string[]][] = [
  ['connected and just heard', true, 0, 100, ['tcp_connected', 'heard_recently']],
  ['connected, at one and a half periods', true, 1.5 * period, 100, ['tcp_connected', 'heard_recently']],
  ['connected, one heartbeat missing', true, 1.5 * period + 1, 80, ['tcp_connected', 'heard_late']],
  ['connected, at three periods', true, 3 * period, 80, ['tcp_connected', 'heard_late']],
  ['connected, but silent', true, 3 * period + 1, 60, ['tcp_connected', 'silent']],
  ['connected, its clock entry in the future', true, -5_000, 100, ['tcp_connected', 'heard_recently']],
  ['gone a moment ago', false, 1_000, 20, ['tcp_absent', 'heard_recently']],
  ['gone for some minutes', false, 2 * period, 10, ['tcp_absent', 'heard_late']],
  ['gone for a day', false, 86_400_000, 0, ['tcp_absent', 'silent']],
  ['registered ahead', false, undefined, 0, ['tcp_absent', 'never_seen']],
  ['connected, nothing said yet', true, undefined, 60, ['tcp_connected', 'never_seen']],
]
for (const [name, isConnected, silentMs, score, reasons] of table)
  test(name, () => {
    const lastSeenMs = silentMs === undefined ? undefined : NOW - silentMs
    const presence = presenceFrom({ isConnected, lastSeenMs, protocol: 'ap3000' }, NOW)
    assert.deepEqual(presence, { online: isConnected, score, reasons })
  })

test('the period is the protocol’s own', () => {
  const signs = { isConnected: true, lastSeenMs: NOW - 100_000 }
  assert.equal(presenceFrom({ ...signs, protocol: 'ap3000' }, NOW).score, 100)
  assert.equal(presenceFrom({ ...signs, protocol: 'bkv' }, NOW).score, 80)
  assert.equal(presenceFrom({ ...signs, protocol: null }, NOW).score, 100)
})
