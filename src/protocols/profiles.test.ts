/**
 * Claims: every model profile is a named, documented choice; what is chosen by itself never changes what energy is worth;
 * a profile changes facts and replies, never what is decoded; what does not fit in a BKV payload is counted and taken.
 * How: both catalogues through their codecs. `UPDATE_README=1 node --test src/protocols/profiles.test.ts` writes the tables.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { chooseProfile, compareFirmware, withProfileTable } from '../codec/profile.ts'
import { type DeviceMemory, type Fields, type FrameHead, PayloadError } from '../codec/protocol.ts'
import { ap3000 } from './ap3000/table.ts'
import { bkv } from './bkv/table.ts'
import { energyWhPerRaw, MODEL_PROFILES, PROTOCOLS, profilesOfDevice } from './index.ts'

for (const { name, profiles } of PROTOCOLS)
  test(`README.md of ${name} lists its model profiles`, () => {
    const place = new URL(`${name}/README.md`, import.meta.url)
    const readme = readFileSync(place, 'utf8')
    const made = withProfileTable(readme, profiles)
    if (process.env['UPDATE_README'] === '1') writeFileSync(place, made)
    else assert.equal(readme, made)
  })

test('names are unique, the default comes first and bears the name of its protocol, cells hold no bars', () => {
  assert.equal(new Set(MODEL_PROFILES.map(({ name }) => name)).size, MODEL_PROFILES.length)
  for (const { name, profiles } of PROTOCOLS) {
    assert.equal(profiles[0]!.name, name)
    for (const profile of profiles) {
      assert.equal(profile.protocol, name)
      assert.doesNotMatch(JSON.stringify(profile), /\|/)
      assert.deepEqual(Object.keys(profile.settings), Object.keys(profiles[0]!.settings), profile.name)
    }
  }
})

test('no profile that is chosen by itself changes what energy is worth', () => {
  for (const { profiles } of PROTOCOLS)
    for (const profile of profiles)
      if (profile.chosenFor.length > 0) assert.equal(profile.energyWhPerRaw, profiles[0]!.energyWhPerRaw, profile.name)
})

test('a name wins, then the model, then the default; firmware compares by numbers', () => {
  const choose = (name: string | null, deviceType?: string, firmware?: string) =>
    chooseProfile(ap3000.profiles, name, { deviceType, firmware }).name
  assert.equal(choose(null), 'ap3000')
  assert.equal(choose(null, '06', '2.00'), 'ap3000-plain-temperature')
  assert.equal(choose(null, '06', '2.99'), 'ap3000-plain-temperature')
  assert.equal(choose(null, '06', '3.00'), 'ap3000')
  assert.equal(choose(null, '06', '1.99'), 'ap3000')
  assert.equal(choose(null, '07', '3.10'), 'ap3000-plain-temperature')
  assert.equal(choose(null, '31', '2.50'), 'ap3000')
  assert.equal(choose(null, '06'), 'ap3000')
  assert.equal(choose('ap3000-answer-01', '06', '2.50'), 'ap3000-answer-01')
  assert.equal(choose('bkv-energy-10wh', '06', '2.50'), 'ap3000-plain-temperature')
  assert.ok(compareFirmware('10.0', '9.99') > 0)
  assert.equal(compareFirmware('2', '2.0.0'), 0)
  assert.ok(Number.isNaN(compareFirmware('cV.1r46', '1.0')))
})

test('energy: by name, of the right protocol, else the default', () => {
  assert.equal(energyWhPerRaw('bkv', null), 1)
  assert.equal(energyWhPerRaw('bkv', 'bkv-energy-10wh'), 10)
  assert.equal(energyWhPerRaw('bkv', 'three-port'), 1)
  assert.equal(energyWhPerRaw('ap3000', 'bkv-energy-10wh'), 10)
  assert.equal(energyWhPerRaw('other', null), undefined)
  assert.deepEqual(profilesOfDevice('04ab373b'), ap3000.profiles)
  assert.deepEqual(profilesOfDevice('82200520004869'), bkv.profiles)
  assert.deepEqual(profilesOfDevice('nobody'), [])
})

function memoryOf(protocol: typeof bkv, profile: string): DeviceMemory {
  const memory = protocol.newMemory()
  assert.equal(protocol.useProfile(memory, profile), true)
  assert.equal(protocol.useProfile(memory, 'no such model'), false)
  return memory
}

test('01 is answered by the profile: from the second, always, never', () => {
  const heard = (profile: string, codes: readonly number[]) => {
    const memory = memoryOf(ap3000, profile)
    return codes.map((code) => {
      const command = ap3000.uplinks.get(code)!
      const fields = {
        voltageDv: 2200,
        ports: 1,
        portStates: [0],
        fwVersion: 640,
        portPowerDw: [0],
        portPeakPowerDw: [0],
      }
      command.facts!(fields, memory)
      return command.reply !== 'none' && command.reply.fields(fields, { nowMs: 0, memory }) !== undefined
    })
  }
  assert.deepEqual(heard('ap3000', [1, 1, 1, 0x21, 1]), [false, true, true, true, false])
  assert.deepEqual(heard('ap3000-answer-01', [1, 1, 0x21, 1]), [true, true, true, true])
  assert.deepEqual(heard('ap3000-ignore-01', [1, 1, 1, 0x21]), [false, false, false, true])
})

test('temperatures are raw minus 65, or plain', () => {
  const temperature = (profile: string, envTempRaw: number) => {
    const facts = ap3000.uplinks.get(0x21)!.facts!(
      { voltageDv: 2200, ports: 1, portStates: [0], signal: 0, envTempRaw },
      memoryOf(ap3000, profile),
    )
    const info = facts.find((fact) => fact.fact === 'deviceInfo')
    return info?.fact === 'deviceInfo' ? info.temperatureC : undefined
  }
  assert.equal(temperature('ap3000', 93), 28)
  assert.equal(temperature('ap3000-plain-temperature', 28), 28)
  assert.equal(temperature('ap3000-plain-temperature', 0), undefined)
})

/** A frame of the corpus that lies in the guide: no-load end of socket 2, raw energy 80. */
const END = '001102025036302000980068000000010050002d'

function endFacts(profile: string, statusHex: string) {
  const data = Buffer.from(END.replace('0098', `00${statusHex}`), 'hex')
  const command = bkv.uplinkByName.get('endReport')!
  const fields = command.decode(data, 0, data.length)
  assert.ok(!(fields instanceof PayloadError))
  const [fact] = command.facts!(fields, memoryOf(bkv, profile))
  assert.ok(fact?.fact === 'settlement')
  return [fact.energyRaw, fact.energyWh, fact.endReason, fact.endReasonRaw]
}

test('bkv: energy factor and end reasons by profile, raw values as they came', () => {
  assert.deepEqual(endFacts('bkv', '98'), [80, 80, 'no_load', 0x98])
  assert.deepEqual(endFacts('bkv-energy-10wh', '98'), [80, 800, 'no_load', 0x98])
  assert.deepEqual(endFacts('bkv-reasons-unknown', '98'), [80, 80, 'unknown', 0x98])
  assert.deepEqual(endFacts('bkv-metering-bit6', 'b0'), [80, 80, 'preset_time', 0xb0])
})

test('bkv: bit 6 is a metering fault only where a profile says so; bit 5 never is', () => {
  const state = (profile: string, statusHex: string) => {
    const [fact] = bkv.uplinkByName.get('statusReport')!.facts!(
      { bkv: { sockets: [{ socket: 1, ports: [{ port: 0, statusHex }] }] } },
      memoryOf(bkv, profile),
    )
    assert.ok(fact?.fact === 'portStates')
    const { state, fault } = fact.ports[0]!
    return fault === undefined ? state : `${state}: ${fault}`
  }
  assert.equal(state('bkv', 'd0'), 'charging')
  assert.equal(state('bkv-metering-bit6', 'd0'), 'fault: metering')
  assert.equal(state('bkv-metering-bit6', 'd4'), 'fault: metering+over_temperature')
  assert.equal(state('bkv-metering-bit6', '84'), 'fault: over_temperature')
  assert.equal(state('bkv-metering-bit6', 'b0'), 'charging')
  assert.equal(state('bkv-metering-bit6', '40'), 'offline')
})

test('bkv: payloads that contradict their head or hold unknown keys say so, also deep inside', () => {
  const command = bkv.uplinkByName.get('statusReport')!
  const deviceNo = bkv.parseDeviceId('82200520004869')!
  const oddities = (fields: Fields, spoil: (frame: Buffer) => void = () => {}) => {
    const frame = Buffer.from(bkv.encodeFrame('uplink', command, deviceNo, 7, command.encode(fields)))
    spoil(frame)
    const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
    bkv.readHead(frame, 0, frame.length, head)
    const decoded = command.decode(frame, head.dataFrom, head.dataTo)
    assert.ok(!(decoded instanceof PayloadError))
    return bkv.oddities!(decoded)
  }
  const port = { port: 0, statusHex: '80' }
  assert.equal(oddities({ bkv: { sockets: [{ socket: 1, ports: [port] }] } }), undefined)
  assert.deepEqual(oddities({ bkv: { unknownKeys: { '7a': '01' } } }), ['unknown_key'])
  const deep = { bkv: { sockets: [{ socket: 1, ports: [{ ...port, unknownKeys: { '7a': '0102' } }] }] } }
  assert.deepEqual(oddities(deep), ['unknown_key'])
  assert.deepEqual(
    oddities({ bkv: {} }, (frame) => frame.writeUInt8(9, 9)),
    ['sequence_mismatch'],
  )
  assert.deepEqual(
    oddities({ bkv: {} }, (frame) => frame.writeUInt8(0x70, 17)),
    ['device_id_mismatch'],
  )
  assert.equal(bkv.oddities!({ socket: 1 }), undefined)
})
