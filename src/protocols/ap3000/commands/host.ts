/** AP3000 document, sections 7 and 8: hosts: 11, 15, 17, 35, 3B with its answer 3A, and 31 to 34. */
import { type Body, downlink, uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import {
  ascii,
  bytesHex,
  FieldError,
  fields as fieldsOf,
  limited,
  optional,
  printable,
  readU16le,
  readU32le,
  u8,
  u16le,
} from '../../../codec/fields.ts'
import { type DeviceMemory, type Fields, PayloadError, RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import {
  byteHex,
  energy32,
  firmwareOf,
  flag,
  hostSignalOf,
  physId,
  result,
  temperatureOf,
  timestamp32,
  voltage16,
  voltOf,
} from '../fields.ts'
import { formatPhysId, parsePhysId } from '../frame.ts'
import { profileOf } from '../profile.ts'
import { byteResult, TRIES } from './result.ts'

// ---- 11, 17: status ----------------------------------------------------------------------------------------------

interface HostStatus {
  readonly fwVersion: number
  readonly timestampS: number
  readonly signal: number
  readonly simIdAscii: string
  readonly hostTypeHex: string
  readonly imeiAscii?: string
  readonly moduleVersionAscii?: string
}

export const hostStatus = uplink({
  code: 0x11,
  name: 'hostStatus',
  section: '7, 11',
  summary: 'host at connect and every 30 min: here the ICCID meets the physId',
  fields: {
    fwVersion: u16le,
    rtcModule: limited(u8, { about: '0 none, 1 SD2068, 2 BM8563' }),
    timestampS: timestamp32,
    signal: limited(u8, { about: '0..31, 99 fault; above 100 subtract 100: 0..97' }),
    commModule: u8,
    simIdAscii: ascii(20),
    hostTypeHex: bytesHex(1),
    frequencyMhz: optional(limited(u16le, { unit: 'MHz', about: '0 none' })),
    imeiAscii: optional(ascii(15)),
    moduleVersionAscii: optional(ascii(24)),
  },
  facts(fields) {
    const host = fields as unknown as HostStatus
    const signal = hostSignalOf(host.signal)
    const facts: Fact[] = [
      { fact: 'heartbeat' },
      {
        fact: 'deviceInfo',
        firmware: firmwareOf(host.fwVersion),
        deviceType: host.hostTypeHex,
        ...(host.simIdAscii === '' ? undefined : { iccid: host.simIdAscii }),
        ...(signal === undefined ? undefined : { signal }),
        ...(host.imeiAscii === undefined || host.imeiAscii === '' ? undefined : { imei: host.imeiAscii }),
        ...(host.moduleVersionAscii === undefined ? undefined : { module: host.moduleVersionAscii }),
      },
    ]
    // 0 without a clock
    if (host.timestampS !== 0) facts.push({ fact: 'clock', deviceMs: host.timestampS * 1000 })
    return facts
  },
  reply: 'none',
})

const current10Ma = limited(u16le, { unit: '0.01 A' })

export const hostElectrical = uplink({
  code: 0x17,
  name: 'hostElectrical',
  section: '7, 17',
  summary: 'breaker, meter, smoke, leakage of a host, every 30 min',
  fields: {
    breakerClosed: u8,
    tempRaw: u8,
    voltageDv: voltage16,
    current10Ma,
    energyTotal10Wh: energy32,
    meterCurrent10Ma: current10Ma,
    meterEnergyTotal10Wh: energy32,
    smokeAlarm: optional(u8),
    alarmRelayClosed: optional(u8),
    leakageMa: optional(limited(u8, { unit: 'mA' })),
    liveWireTempRaw: optional(u8),
    neutralWireTempRaw: optional(u8),
    breakerLocked: optional(u8),
    breakerModel: optional(limited(u8, { about: '0 short, 1 long, 2 with screen' })),
  },
  // Smoke means nothing on a host without leakage protection, and the frame does not say which this is: no alarm here.
  facts(fields, memory) {
    const temperatureC = temperatureOf(fields['tempRaw'] as number, profileOf(memory).settings.temperatureOffset)
    return [
      {
        fact: 'deviceInfo',
        voltageV: voltOf(fields['voltageDv'] as number),
        ...(temperatureC === undefined ? undefined : { temperatureC }),
      },
    ]
  },
  reply: 'none',
})

export const hostUpgradeRequest = uplink({
  code: 0x15,
  name: 'hostUpgradeRequest',
  section: '7, 15',
  summary: 'old host asks for firmware; answered, then F9 from chunk 1',
  fields: {},
  facts: () => [{ fact: 'upgradeRequested', by: 'hostUpgradeRequest' }],
  reply: { with: 'hostUpgradeAck', when: 'decoded', fields: () => ({ result: 0 }) },
})

export const hostUpgradeAck = downlink({
  code: 0x15,
  name: 'hostUpgradeAck',
  section: '7, 15',
  summary: 'ack of 15, 0 ok',
  fields: { result },
  result: 'none',
})

// ---- 35, 3B, 3A: slaves ------------------------------------------------------------------------------------------

/** Virtual ids 0..49 (section 4). */
const SLAVES_MAX = 50
const SLAVE_BYTES = 8

interface Slave {
  readonly deviceTypeHex: string
  readonly reserved: number
  readonly minFwVersion: number
  readonly physIdHex: string
}

const body35: Body = {
  decode(bytes, from, to) {
    if (from >= to) return new PayloadError('too_short', 'types')
    const count = bytes[from] as number
    if (from + 1 + count * SLAVE_BYTES > to) return new PayloadError('inner_length', 'types')
    const types: Slave[] = []
    for (let index = 0; index < count; index++) {
      const at = from + 1 + index * SLAVE_BYTES
      types.push({
        deviceTypeHex: byteHex(bytes[at] as number),
        reserved: bytes[at + 1] as number,
        minFwVersion: readU16le(bytes, at + 2),
        physIdHex: formatPhysId(readU32le(bytes, at + 4)),
      })
    }
    return { types }
  },
  encode(fields) {
    const types = fields['types']
    if (!Array.isArray(types) || types.length > SLAVES_MAX)
      throw new FieldError('types', `needs at most ${SLAVES_MAX} slaves`)
    const data = new Uint8Array(1 + types.length * SLAVE_BYTES)
    data[0] = types.length
    types.forEach((type: Fields, index) => {
      data.set(slaveFields.encode(type), 1 + index * SLAVE_BYTES)
    })
    return data
  },
}
const slaveFields = fieldsOf({ deviceTypeHex: bytesHex(1), reserved: u8, minFwVersion: u16le, physIdHex: physId })

export const slaveTypes = uplink({
  code: 0x35,
  name: 'slaveTypes',
  section: '7, 35',
  summary: 'which slaves a host has',
  body: body35,
  facts(fields, memory) {
    const types = fields['types'] as readonly Slave[]
    const slaves = types.map(({ deviceTypeHex, minFwVersion, physIdHex }) => ({
      deviceNo: parsePhysId(physIdHex) as number,
      deviceType: deviceTypeHex,
      firmware: firmwareOf(minFwVersion),
    }))
    rememberSlaves(
      memory,
      slaves.map(({ deviceNo }) => deviceNo),
    )
    return [{ fact: 'slaveTypes', slaves }]
  },
  reply: 'none',
})

function rememberSlaves(memory: DeviceMemory, deviceNos: readonly number[]): void {
  const count = Math.min(deviceNos.length, SLAVES_MAX)
  for (let index = 0; index < count; index++) memory[`slave${index}`] = deviceNos[index] as number
  memory['slaves'] = count
}

function slavesIn(memory: DeviceMemory): string[] {
  return Array.from({ length: memory['slaves'] ?? 0 }, (_, index) => formatPhysId(memory[`slave${index}`] ?? 0))
}

const frequencyMhz = limited(u16le, { unit: 'MHz' })

export const fskRequest = uplink({
  code: 0x3b,
  name: 'fskRequest',
  section: '7, 3B',
  summary: 'host asks for FSK parameters, 30 s after boot, then every 2 h; answered by command 3A',
  fields: { frequencyMhz },
  // We plan no frequencies: the host keeps the one it has, and hears the slaves it last told us of (35).
  reply: {
    with: 'setFsk',
    when: 'decoded',
    fields: (uplinkFields, { memory }) => ({ frequencyMhz: uplinkFields['frequencyMhz'], slaves: slavesIn(memory) }),
  },
})

const headOf3A = fieldsOf({ frequencyMhz, reservedHex: bytesHex(3), count: u8 })
const HEAD_3A_BYTES = 6

const body3A: Body = {
  decode(bytes, from, to) {
    const decoded = headOf3A.decode(bytes, from, to)
    if (decoded instanceof PayloadError) return decoded
    const { count, ...others } = decoded
    const at = from + HEAD_3A_BYTES
    if (at + 4 * (count as number) > to) return new PayloadError('inner_length', 'slaves')
    const slaves: string[] = []
    for (let index = 0; index < (count as number); index++) slaves.push(formatPhysId(readU32le(bytes, at + 4 * index)))
    return { ...others, slaves }
  },
  encode(fields) {
    const slaves = fields['slaves']
    if (!Array.isArray(slaves) || slaves.length > SLAVES_MAX)
      throw new FieldError('slaves', `needs at most ${SLAVES_MAX} ids`)
    const data = new Uint8Array(HEAD_3A_BYTES + 4 * slaves.length)
    data.set(headOf3A.encode({ reservedHex: '000000', ...fields, count: slaves.length }))
    slaves.forEach((slave, index) => {
      physId.write(data, HEAD_3A_BYTES + 4 * index, slave, 'slaves')
    })
    return data
  },
  parameters: [
    ...headOf3A.parameters
      .filter(({ name }) => name !== 'count')
      .map((one) => (one.name === 'reservedHex' ? { ...one, isOptional: true } : one)),
    {
      name: 'slaves',
      type: 'list',
      bytes: 4 * SLAVES_MAX,
      isOptional: false,
      isRest: true,
      about: `at most ${SLAVES_MAX} device ids of 8 lower-case hex digits`,
    },
  ],
}

export const setFsk = downlink({
  code: 0x3a,
  name: 'setFsk',
  section: '8, 3A',
  summary: 'frequency and slave list; also the answer to 3B, with its msgId (the guide’s table misprints it as 98)',
  body: body3A,
  result: { by: 'setFskResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})
export const setFskResult = byteResult(0x3a, 'setFsk', '8, 3A')

// ---- 31 to 34 ----------------------------------------------------------------------------------------------------

export const rebootHost = downlink({
  code: 0x31,
  name: 'rebootHost',
  section: '8, 31',
  summary: 'reboot the host',
  fields: {},
  result: { by: 'rebootHostResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})
export const rebootHostResult = byteResult(0x31, 'rebootHost', '8, 31')

export const rebootModule = downlink({
  code: 0x32,
  name: 'rebootModule',
  section: '8, 32',
  summary: 'reboot the communication module',
  fields: {},
  result: { by: 'rebootModuleResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})
export const rebootModuleResult = byteResult(0x32, 'rebootModule', '8, 32')

export const clearSlaveUpgrade = downlink({
  code: 0x33,
  name: 'clearSlaveUpgrade',
  section: '8, 33',
  summary: 'clear upgrade data of slaves',
  fields: {},
  result: { by: 'clearSlaveUpgradeResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})
export const clearSlaveUpgradeResult = byteResult(0x33, 'clearSlaveUpgrade', '8, 33')

export const setServer = downlink({
  code: 0x34,
  name: 'setServer',
  section: '8, 34',
  summary: 'change the server address; the device leaves us',
  fields: {
    serverPort: limited(u16le, { min: 1 }),
    moduleType: limited(u8, { min: 1, max: 3, about: '1 WiFi, 2 2G, 3 4G' }),
    socketB: flag,
    addressAscii: printable(ascii(46), 1),
  },
  result: { by: 'setServerResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})
export const setServerResult = byteResult(0x34, 'setServer', '8, 34')
