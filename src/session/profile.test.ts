/**
 * Claims: a profile chosen by people holds from the first frame of a login, and from the next frame on when it changes; a
 * device's own word chooses one where people did not; what is odd about a frame is counted, noted and taken; an unknown
 * command is counted, kept with its bytes, not answered, and costs no connection. How: a shard by its effects.
 */
import assert from 'node:assert/strict'
import { beforeEach, test } from 'node:test'
import { deviceKey, type Fields, type Protocol } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import { allocateDirectory, Directory } from '../shared/directory.ts'
import { RecordingEffects } from '../testing/recording-effects.ts'
import { Shard } from './shard.ts'

const NOW = { wallMs: Date.UTC(2026, 10, 21, 8), monoMs: 0 }
const GATEWAY = bkv.parseDeviceId('86004459453005')!
const PILE = 0x04ab373b
/** Guide V1.7: a no-load end, raw energy 80. */
const END = 'fcfe00250015000000000186004459453005001102025036302000980068000000010050002d41fcee'

let effects: RecordingEffects
let shard: Shard
let directory: Directory
beforeEach(() => {
  effects = new RecordingEffects()
  directory = new Directory(allocateDirectory(64, 1))
  const commands = { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 }
  shard = new Shard(
    {
      shard: 0,
      idleTimeoutMs: 300_000,
      stateFlushMs: 1_000,
      seenFlushMs: 300_000,
      cardLookupTimeoutMs: 2_000,
      commands,
    },
    directory,
    effects,
    NOW,
  )
})

function open(protocol: Protocol, connectionId = 1): void {
  shard.connectionOpened({ connectionId, protocol, birth: directory.nextEpoch(), remoteAddress: '127.0.0.1:1' }, NOW)
}
const hear = (bytes: Uint8Array, connectionId = 1) => shard.chunkReceived(connectionId, bytes, NOW)
function uplink(protocol: Protocol, name: string, fields: Fields, deviceNo: number): Buffer {
  const command = protocol.uplinkByName.get(name)!
  return Buffer.from(protocol.encodeFrame('uplink', command, deviceNo, 1, command.encode(fields)))
}
const energies = () => effects.rowsOf('settlements').map(({ values }) => [values['energyRaw'], values['energyWh']])

test('the very first frame of a login is converted by the chosen profile; a change holds from the next frame on', () => {
  const key = deviceKey(bkv, GATEWAY)
  shard.profileChosen(key, 'bkv-energy-10wh')
  open(bkv)
  hear(Buffer.from(END, 'hex'))
  shard.profileChosen(key, null)
  hear(Buffer.from(END, 'hex'))
  shard.profileChosen(key, 'bkv-energy-10wh')
  hear(Buffer.from(END, 'hex'))
  // a name that is none counts as none
  shard.profileChosen(key, 'ap3000-answer-01')
  hear(Buffer.from(END, 'hex'))
  assert.deepEqual(energies(), [
    [80, 800],
    [80, 80],
    [80, 800],
    [80, 80],
  ])
})

test('a device that tells an old firmware gets its profile; people who name one win, and give way again', () => {
  const temperatures = () => effects.rowsOf('devices').map(({ values }) => values['temperatureC'])
  const register = { fwVersion: 250, ports: 2, virtualId: 0, deviceTypeHex: '06', workModeHex: '00' }
  const heartbeat = (envTempRaw: number) => {
    hear(uplink(ap3000, 'heartbeat', { voltageDv: 2200, ports: 1, portStates: [0], signal: 0, envTempRaw }, PILE))
    shard.flush(NOW)
  }
  open(ap3000)
  hear(uplink(ap3000, 'register', register, PILE))
  heartbeat(20)
  shard.profileChosen(deviceKey(ap3000, PILE), 'ap3000')
  heartbeat(100)
  shard.profileChosen(deviceKey(ap3000, PILE), null)
  heartbeat(50)
  assert.deepEqual(temperatures().slice(-3), [20, 35, 50])
})

test('a payload whose sequence and gateway contradict the frame is counted, noted, acked', () => {
  const frame = uplink(bkv, 'exceptionReport', { bkv: { socket: 1, unknownKeys: { '7a': '01' } } }, GATEWAY)
  // the head says something else than keys 02 and 03; the sum is made good again
  frame.writeUInt8(9, 9)
  frame.writeUInt8(0x70, 17)
  let sum = 0
  for (const byte of frame.subarray(2, -3)) sum += byte
  frame.writeUInt8(sum & 0xff, frame.length - 3)
  open(bkv)
  hear(frame)
  for (const reason of ['sequence_mismatch', 'device_id_mismatch', 'unknown_key'])
    assert.equal(effects.counted[`error ${reason}`], 1, reason)
  assert.equal(effects.counted['uplink exceptionReport'], 1)
  assert.equal(effects.rowsOf('cmd_log')[0]!.values['note'], 'sequence_mismatch, device_id_mismatch, unknown_key')
  assert.equal(effects.sent[0]!.answers, 'exceptionReport')
  assert.deepEqual(effects.closed, [])
})

test('an unknown command of either protocol is counted and kept, never answered, and closes nothing', () => {
  for (const [index, protocol] of [ap3000, bkv].entries()) {
    open(protocol, index)
    const command = { ...[...protocol.uplinks.values()][0]!, code: protocol === bkv ? 0x0099 : 0x7f, sub: 1 }
    const deviceNo = protocol === bkv ? GATEWAY : PILE
    const frame = protocol.encodeFrame('uplink', command, deviceNo, 5, Buffer.from('000101ab', 'hex'))
    hear(frame, index)
    const { values } = effects.rowsOf('cmd_log')[index]!
    assert.deepEqual([values['command'], values['note']], ['unknown', 'unknown command'])
    assert.deepEqual(Buffer.from(values['frame'] as Uint8Array), Buffer.from(frame))
  }
  assert.equal(effects.counted['uplink unknown'], 2)
  assert.deepEqual([effects.sent, effects.closed], [[], []])
})
