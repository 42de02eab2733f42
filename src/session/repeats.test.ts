/**
 * Claim: a frame is a repeat exactly when the last thing remembered for its session is the same command with the same data,
 * and nothing was forgotten since; and a shard that skips repeats writes and answers what one that decodes every frame
 * does. Tried with random histories against a plain model, and with random frames of one device through two shards, one
 * of which is kept from ever seeing a repeat.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import type { Fields } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { allocateDirectory, Directory } from '../shared/directory.ts'
import { RecordingEffects } from '../testing/recording-effects.ts'
import { Repeats } from './repeats.ts'
import { Shard } from './shard.ts'

test('random histories agree with a model', () => {
  const step = fc.record({
    what: fc.constantFrom('hear', 'hear', 'hear', 'forget'),
    index: fc.nat(130),
    commandKey: fc.constantFrom(0x21, 0x1000_1017, 2 ** 32 - 1),
    data: fc.uint8Array({ maxLength: 42, max: 1 }),
    at: fc.nat(3),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (history) => {
      const repeats = new Repeats()
      const model = new Map<number, string>()
      for (const { what, index, commandKey, data, at } of history) {
        if (what === 'forget') {
          repeats.forget(index)
          model.delete(index)
          continue
        }
        const chunk = Uint8Array.from([...new Array<number>(at).fill(9), ...data, 9])
        const same = `${commandKey} ${data}`
        assert.equal(repeats.isRepeat(index, commandKey, chunk, at, at + data.length), model.get(index) === same)
        repeats.remember(index, commandKey, chunk, at, at + data.length)
        // longer frames are not kept
        if (data.length <= 40) model.set(index, same)
        else model.delete(index)
      }
    }),
    { numRuns: 300 },
  )
})

const PILE = 0x04ab373b
const options = {
  shard: 0,
  idleTimeoutMs: 300_000,
  stateFlushMs: 1_000,
  seenFlushMs: 300_000,
  cardLookupTimeoutMs: 2_000,
  commands: { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 },
}

/** What one device hears and what is written of it. @param isBlind the memory of the last frame is lost before each */
function tell(frames: readonly Buffer[], isBlind: boolean) {
  const directory = new Directory(allocateDirectory(16, 1))
  const effects = new RecordingEffects()
  const at = (monoMs: number) => ({ wallMs: 1_767_225_600_000 + monoMs, monoMs })
  const shard = new Shard(options, directory, effects, at(0))
  const key = PILE
  shard.connectionOpened(
    { connectionId: 1, protocol: ap3000, birth: directory.nextEpoch(), remoteAddress: '127.0.0.1:1' },
    at(0),
  )
  frames.forEach((frame, index) => {
    // choosing a profile is what makes a shard forget: none is chosen, so nothing else changes
    if (isBlind) shard.profileChosen(key, null)
    shard.chunkReceived(1, frame, at(index * 400))
    shard.tick(at(index * 400 + 200))
  })
  shard.stop(at(frames.length * 400))
  return { sent: effects.sent, rows: effects.rows, counted: effects.counted }
}

const frame = (name: string, messageId: number, fields: Fields) => {
  const command = ap3000.uplinkByName.get(name)!
  return Buffer.from(ap3000.encodeFrame('uplink', command, PILE, messageId, command.encode(fields)))
}

test('skipping repeats changes neither answers nor rows', () => {
  const beat = fc.record({
    name: fc.constant('heartbeat'),
    fields: fc.record({
      voltageDv: fc.constantFrom(2_200, 2_310),
      ports: fc.constant(2),
      portStates: fc.constantFrom([0, 0], [0, 1], [1, 1]),
      signal: fc.constantFrom(20, 28),
      envTempRaw: fc.constantFrom(90, 93),
    }),
  })
  const old = fc.record({
    name: fc.constant('heartbeatOld'),
    fields: fc.record({
      fwVersion: fc.constantFrom(640, 200),
      voltageDv: fc.constant(2_200),
      ports: fc.constant(2),
      portStates: fc.constantFrom([0, 0], [0, 2]),
      portPowerDw: fc.constantFrom([0, 0], [0, 900]),
      portPeakPowerDw: fc.constant([0, 0]),
    }),
  })
  const register = fc.record({
    name: fc.constant('register'),
    fields: fc.record({
      fwVersion: fc.constantFrom(126, 250),
      ports: fc.constant(2),
      virtualId: fc.constant(0),
      deviceTypeHex: fc.constantFrom('21', '06'),
      workModeHex: fc.constant('00'),
    }),
  })
  const uplink = fc.oneof(
    { weight: 8, arbitrary: beat },
    { weight: 1, arbitrary: old },
    { weight: 1, arbitrary: register },
  )
  fc.assert(
    fc.property(fc.array(uplink, { minLength: 1, maxLength: 40 }), (uplinks) => {
      const frames = uplinks.map(({ name, fields }, index) => frame(name, index + 1, fields as Fields))
      const [quick, blind] = [tell(frames, false), tell(frames, true)]
      assert.deepEqual(quick, blind)
      assert.equal(quick.counted['uplink heartbeat'] ?? 0, uplinks.filter(({ name }) => name === 'heartbeat').length)
    }),
    { numRuns: 200 },
  )
})
