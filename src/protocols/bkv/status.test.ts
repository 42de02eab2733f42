/** Claim: every one of the 256 status bytes has the state section 8 gives it. Tried against a table written out here. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endReasonOf, faultOf, portStateOf, STATUS_BITS } from './status.ts'

/** Rows: high nibble; columns: low nibble. o offline, i idle, c charging, f fault. */
const STATES = [
  ...Array<string>(8).fill('oooooooooooooooo'), // 0x00..0x7f
  'ifffffffifffffff', // 0x80
  'cfffffffcfffffff', // 0x90
  'ifffffffifffffff', // 0xa0
  'cfffffffcfffffff', // 0xb0
  'ifffffffifffffff', // 0xc0
  'cfffffffcfffffff', // 0xd0
  'ifffffffifffffff', // 0xe0
  'cfffffffcfffffff', // 0xf0
].join('')
const WORDS: Readonly<Record<string, string>> = { o: 'offline', i: 'idle', c: 'charging', f: 'fault' }

test('all 256 states', () => {
  assert.equal(STATES.length, 256)
  for (let raw = 0; raw < 256; raw++) assert.equal(portStateOf(raw), WORDS[STATES[raw]!], raw.toString(16))
})

test('all 256 sets of bits, once each and unchangeable', () => {
  const names = ['online', 'bit6', 'bit5', 'charging', 'noLoad', 'overTemp', 'overCurrent', 'overPower']
  for (let raw = 0; raw < 256; raw++) {
    const digits = raw.toString(2).padStart(8, '0')
    const bits = Object.fromEntries(names.map((name, index) => [name, digits[index] === '1']))
    assert.deepEqual(STATUS_BITS[raw], bits)
    assert.ok(Object.isFrozen(STATUS_BITS[raw]))
  }
})

test('a fault says which protections', () => {
  const words = ['', 'over_power', 'over_current', 'over_current+over_power', 'over_temperature']
  words.push('over_temperature+over_power', 'over_temperature+over_current', 'over_temperature+over_current+over_power')
  for (let raw = 0; raw < 256; raw++) assert.equal(faultOf(raw), words[raw & 7])
})

test('end reasons: no load first, then the preset time, then protections, else unknown', () => {
  const expected: Readonly<Record<number, string>> = {
    152: 'no_load', // guide
    184: 'no_load',
    176: 'preset_time', // captures
    144: 'unknown',
    128: 'unknown',
    160: 'unknown',
    132: 'port_overheat',
    146: 'over_current',
    177: 'overload',
    135: 'protection',
    156: 'no_load',
  }
  for (const [raw, reason] of Object.entries(expected)) {
    assert.equal(endReasonOf(Number(raw), 0xb0), reason, Number(raw).toString(16))
  }
  assert.equal(endReasonOf(0xb0, 0xa0), 'unknown', 'the profile says which byte means preset time')
})
