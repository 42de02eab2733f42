/** AP3000 document, section 7: 01, 21 and 06, the three commands most frames are. Decoded by hand for speed. */

import { type Body, downlink, uplink } from '../../../codec/command.ts'
import type { Fact, PortReading } from '../../../codec/facts.ts'
import { FieldError, hexOf, integerOf, readU16le, readU32le, writeHex, writeLe } from '../../../codec/fields.ts'
import { type DeviceMemory, type Fields, PayloadError } from '../../../codec/protocol.ts'
import {
  byteHex,
  firmwareOf,
  originOf,
  portOf,
  portReading,
  progressStateOf,
  result,
  temperatureOf,
  voltOf,
  wattOf,
  whOf,
} from '../fields.ts'
import { profileOf } from '../profile.ts'
import { orderHexOf } from './order.ts'

interface Heartbeat01 {
  readonly fwVersion: number
  readonly voltageDv: number
  readonly ports: number
  readonly portStates: readonly number[]
  readonly portPowerDw: readonly number[]
  readonly portPeakPowerDw: readonly number[]
  readonly virtualId?: number
  readonly signal?: number
  readonly deviceTypeHex?: string
  readonly envTempRaw?: number
  readonly workModeHex?: string
}

/** Everything behind the power columns may be missing: v8.6 has dropped the work mode, live devices still send it. */
const body01: Body = {
  decode(bytes, from, to) {
    if (to - from < 5)
      return new PayloadError('too_short', to - from < 2 ? 'fwVersion' : to - from < 4 ? 'voltageDv' : 'ports')
    const ports = bytes[from + 4] as number
    const states = from + 5
    const powers = states + ports
    const peaks = powers + 2 * ports
    const end = peaks + 2 * ports
    if (end > to) {
      return new PayloadError('too_short', powers > to ? 'portStates' : peaks > to ? 'portPowerDw' : 'portPeakPowerDw')
    }
    if (to - end >= 5) {
      return {
        fwVersion: readU16le(bytes, from),
        voltageDv: readU16le(bytes, from + 2),
        ports,
        portStates: readColumn8(bytes, states, ports),
        portPowerDw: readColumn16(bytes, powers, ports),
        portPeakPowerDw: readColumn16(bytes, peaks, ports),
        virtualId: bytes[end],
        signal: bytes[end + 1],
        deviceTypeHex: byteHex(bytes[end + 2] as number),
        envTempRaw: bytes[end + 3],
        workModeHex: byteHex(bytes[end + 4] as number),
      }
    }
    const decoded: Record<string, unknown> = {
      fwVersion: readU16le(bytes, from),
      voltageDv: readU16le(bytes, from + 2),
      ports,
      portStates: readColumn8(bytes, states, ports),
      portPowerDw: readColumn16(bytes, powers, ports),
      portPeakPowerDw: readColumn16(bytes, peaks, ports),
    }
    if (to > end) decoded['virtualId'] = bytes[end]
    if (to > end + 1) decoded['signal'] = bytes[end + 1]
    if (to > end + 2) decoded['deviceTypeHex'] = byteHex(bytes[end + 2] as number)
    if (to > end + 3) decoded['envTempRaw'] = bytes[end + 3]
    return decoded
  },
  encode(fields) {
    const ports = integerOf(fields['ports'], PORTS_MAX, 'ports')
    const tail = [
      fields['virtualId'],
      fields['signal'],
      fields['deviceTypeHex'],
      fields['envTempRaw'],
      fields['workModeHex'],
    ]
    const given = tail.findLastIndex((value) => value !== undefined) + 1
    const data = new Uint8Array(5 + 5 * ports + given)
    writeLe(data, 0, 2, integerOf(fields['fwVersion'], 0xffff, 'fwVersion'))
    writeLe(data, 2, 2, integerOf(fields['voltageDv'], 0xffff, 'voltageDv'))
    data[4] = ports
    writeColumn(data, 5, 1, ports, fields['portStates'], 'portStates')
    writeColumn(data, 5 + ports, 2, ports, fields['portPowerDw'], 'portPowerDw')
    writeColumn(data, 5 + 3 * ports, 2, ports, fields['portPeakPowerDw'], 'portPeakPowerDw')
    for (let index = 0; index < given; index++) {
      const value = tail[index] ?? 0
      const byte = typeof value === 'string' ? Number.parseInt(value, 16) : value
      data[5 + 5 * ports + index] = integerOf(byte, 0xff, TAIL_01[index] as string)
    }
    return data
  },
}
const TAIL_01 = ['virtualId', 'signal', 'deviceTypeHex', 'envTempRaw', 'workModeHex'] as const
/** One byte counts them; a frame of 512 holds fewer. */
const PORTS_MAX = 100

export const heartbeatOld = uplink({
  code: 0x01,
  name: 'heartbeatOld',
  section: '7, 01',
  summary: 'old heartbeat, every 180 s: states, powers, temperature',
  body: body01,
  frequent: true,
  facts(fields, memory) {
    const { fwVersion, voltageDv, ports, portStates, portPowerDw, portPeakPowerDw, ...tail } =
      fields as unknown as Heartbeat01
    if ((memory['heartbeats01'] ?? 0) < 2) memory['heartbeats01'] = (memory['heartbeats01'] ?? 0) + 1
    const temperatureC = temperatureOf(tail.envTempRaw, profileOf(memory).settings.temperatureOffset)
    return [
      { fact: 'heartbeat' },
      {
        fact: 'deviceInfo',
        firmware: firmwareOf(fwVersion),
        voltageV: voltOf(voltageDv),
        portCount: ports,
        ...(tail.deviceTypeHex === undefined ? undefined : { deviceType: tail.deviceTypeHex }),
        ...(tail.virtualId === undefined ? undefined : { virtualId: tail.virtualId }),
        ...(tail.signal === undefined ? undefined : { signal: tail.signal }),
        ...(tail.workModeHex === undefined ? undefined : { workMode: Number.parseInt(tail.workModeHex, 16) }),
        ...(temperatureC === undefined ? undefined : { temperatureC }),
      },
      {
        fact: 'portStates',
        ports: portStates.map((state, index) => portReading(index, state, portPowerDw[index], portPeakPowerDw[index])),
      },
    ]
  },
  // Answer only one of 01 and 21; who sends 21 wants that one answered (section 5, heartbeat periods). A profile may differ.
  reply: {
    with: 'heartbeatOldAck',
    when: 'decoded',
    fields: (_, { memory }) => (isAnswered01(memory) ? { result: 0 } : undefined),
  },
})

/** Called behind facts(), which has counted this 01 already. */
function isAnswered01(memory: DeviceMemory): boolean {
  const { answersOldHeartbeat } = profileOf(memory).settings
  if (answersOldHeartbeat !== 'after_second') return answersOldHeartbeat === 'always'
  return (memory['heartbeats01'] ?? 0) >= 2 && (memory['heartbeats21'] ?? 0) === 0
}

export const heartbeatOldAck = downlink({
  code: 0x01,
  name: 'heartbeatOldAck',
  section: '7, 01',
  summary: 'ack of 01, 0 ok',
  fields: { result },
  result: 'none',
})

interface Heartbeat21 {
  readonly voltageDv: number
  readonly ports: number
  readonly portStates: readonly number[]
  readonly signal?: number
  readonly envTempRaw?: number
}

const body21: Body = {
  decode(bytes, from, to) {
    if (to - from < 3) return new PayloadError('too_short', to - from < 2 ? 'voltageDv' : 'ports')
    const ports = bytes[from + 2] as number
    const end = from + 3 + ports
    if (end > to) return new PayloadError('too_short', 'portStates')
    if (to - end >= 2) {
      return {
        voltageDv: readU16le(bytes, from),
        ports,
        portStates: readColumn8(bytes, from + 3, ports),
        signal: bytes[end],
        envTempRaw: bytes[end + 1],
      }
    }
    const decoded: Record<string, unknown> = {
      voltageDv: readU16le(bytes, from),
      ports,
      portStates: readColumn8(bytes, from + 3, ports),
    }
    if (to > end) decoded['signal'] = bytes[end]
    return decoded
  },
  encode(fields) {
    const ports = integerOf(fields['ports'], PORTS_MAX, 'ports')
    const tail = [fields['signal'], fields['envTempRaw']]
    const given = tail.findLastIndex((value) => value !== undefined) + 1
    const data = new Uint8Array(3 + ports + given)
    writeLe(data, 0, 2, integerOf(fields['voltageDv'], 0xffff, 'voltageDv'))
    data[2] = ports
    writeColumn(data, 3, 1, ports, fields['portStates'], 'portStates')
    for (let index = 0; index < given; index++) {
      data[3 + ports + index] = integerOf(tail[index] ?? 0, 0xff, index === 0 ? 'signal' : 'envTempRaw')
    }
    return data
  },
}

export const heartbeat = uplink({
  code: 0x21,
  name: 'heartbeat',
  section: '7, 21',
  summary: 'heartbeat, every 180 s: states of the ports',
  body: body21,
  frequent: true,
  facts(fields, memory) {
    const { voltageDv, portStates, ports, signal, envTempRaw } = fields as unknown as Heartbeat21
    memory['heartbeats21'] = 1
    const readings: PortReading[] = []
    for (let index = 0; index < portStates.length; index++)
      readings.push(portReading(index, portStates[index] as number))
    const temperatureC = temperatureOf(envTempRaw, profileOf(memory).settings.temperatureOffset)
    return [
      { fact: 'heartbeat' },
      {
        fact: 'deviceInfo',
        voltageV: voltOf(voltageDv),
        portCount: ports,
        ...(signal === undefined ? undefined : { signal }),
        ...(temperatureC === undefined ? undefined : { temperatureC }),
      },
      { fact: 'portStates', ports: readings },
    ]
  },
  // seeing it once more changes nothing, unlike 01, which is counted
  isRepeatable: true,
  reply: { with: 'heartbeatAck', when: 'decoded', fields: () => ({ result: 0 }), sameFor: 'ever' },
})

export const heartbeatAck = downlink({
  code: 0x21,
  name: 'heartbeatAck',
  section: '7, 21',
  summary: 'ack of 21, 0 ok',
  fields: { result },
  result: 'none',
})

interface PowerHeartbeat {
  readonly port: number
  readonly portState: number
  readonly durationS: number
  readonly energy10Wh: number
  readonly startMode: number
  readonly powerDw: number
  readonly maxPowerDw: number
  readonly minPowerDw: number
  readonly avgPowerDw: number
  readonly orderHex: string
  readonly intervalEnergyDiv4800?: number
  readonly peakPowerDw?: number
  readonly voltageDv?: number
  readonly currentMa?: number
  readonly envTempRaw?: number
  readonly portTempRaw?: number
  readonly timestampS?: number
  readonly occupancyMin?: number
}

/** Needed up to the order number (31 bytes); what was appended over the years is read as far as it is there. */
const TAIL_06 = [
  ['intervalEnergyDiv4800', 31, 2],
  ['peakPowerDw', 33, 2],
  ['voltageDv', 35, 2],
  ['currentMa', 37, 2],
  ['envTempRaw', 39, 1],
  ['portTempRaw', 40, 1],
  ['timestampS', 41, 4],
  ['occupancyMin', 45, 2],
] as const
const REQUIRED_06 = [
  ['port', 0, 1],
  ['portState', 1, 1],
  ['durationS', 2, 2],
  ['energy10Wh', 4, 2],
  ['startMode', 6, 1],
  ['powerDw', 7, 2],
  ['maxPowerDw', 9, 2],
  ['minPowerDw', 11, 2],
  ['avgPowerDw', 13, 2],
  ['orderHex', 15, 16],
] as const

const body06: Body = {
  decode(bytes, from, to) {
    const size = to - from
    // the size live devices send
    if (size === 45) {
      return {
        port: bytes[from],
        portState: bytes[from + 1],
        durationS: readU16le(bytes, from + 2),
        energy10Wh: readU16le(bytes, from + 4),
        startMode: bytes[from + 6],
        powerDw: readU16le(bytes, from + 7),
        maxPowerDw: readU16le(bytes, from + 9),
        minPowerDw: readU16le(bytes, from + 11),
        avgPowerDw: readU16le(bytes, from + 13),
        orderHex: hexOf(bytes, from + 15, from + 31),
        intervalEnergyDiv4800: readU16le(bytes, from + 31),
        peakPowerDw: readU16le(bytes, from + 33),
        voltageDv: readU16le(bytes, from + 35),
        currentMa: readU16le(bytes, from + 37),
        envTempRaw: bytes[from + 39],
        portTempRaw: bytes[from + 40],
        timestampS: readU32le(bytes, from + 41),
      }
    }
    const decoded: Record<string, unknown> = {}
    for (const [name, at, count] of REQUIRED_06) {
      if (size < at + count) return new PayloadError('too_short', name)
      decoded[name] = name === 'orderHex' ? hexOf(bytes, from + at, from + at + count) : readLe(bytes, from + at, count)
    }
    for (const [name, at, count] of TAIL_06) {
      if (size < at + count) break
      decoded[name] = readLe(bytes, from + at, count)
    }
    return decoded
  },
  encode(fields) {
    const given = TAIL_06.findLastIndex(([name]) => fields[name] !== undefined)
    const last = TAIL_06[given]
    const data = new Uint8Array(last === undefined ? 31 : last[1] + last[2])
    for (const [name, at, count] of REQUIRED_06) {
      if (name === 'orderHex') writeHex(data, at, orderHexOf(fields))
      else writeLe(data, at, count, integerOf(fields[name], 256 ** count - 1, name))
    }
    for (const [name, at, count] of TAIL_06.slice(0, given + 1)) {
      writeLe(data, at, count, integerOf(fields[name] ?? 0, 256 ** count - 1, name))
    }
    return data
  },
}

export const powerHeartbeat = uplink({
  code: 0x06,
  name: 'powerHeartbeat',
  section: '7, 06',
  summary: 'sample of a running order, every 5 min; a lost one is lost',
  body: body06,
  frequent: true,
  facts: progressFacts,
  reply: 'none',
})

function progressFacts(fields: Fields, memory: DeviceMemory): readonly Fact[] {
  const sample = fields as unknown as PowerHeartbeat
  const state = progressStateOf(sample.portState)
  // 06, offset 1: other states are to be ignored
  if (state === undefined) return []
  const { temperatureOffset } = profileOf(memory).settings
  const ambientC = temperatureOf(sample.envTempRaw, temperatureOffset)
  const portC = temperatureOf(sample.portTempRaw, temperatureOffset)
  return [
    {
      fact: 'progress',
      order: { socket: 0, port: portOf(sample.port), wireHex: sample.orderHex },
      origin: originOf(sample.startMode),
      state,
      stateRaw: sample.portState,
      durationS: sample.durationS,
      energyWh: whOf(sample.energy10Wh),
      energyRaw: sample.energy10Wh,
      powerW: wattOf(sample.powerDw),
      maxPowerW: wattOf(sample.maxPowerDw),
      minPowerW: wattOf(sample.minPowerDw),
      avgPowerW: wattOf(sample.avgPowerDw),
      ...(sample.peakPowerDw === undefined ? undefined : { peakPowerW: wattOf(sample.peakPowerDw) }),
      ...(sample.voltageDv === undefined ? undefined : { voltageV: voltOf(sample.voltageDv) }),
      ...(sample.currentMa === undefined ? undefined : { currentA: sample.currentMa / 1000 }),
      ...(ambientC === undefined ? undefined : { ambientC }),
      ...(portC === undefined ? undefined : { portC }),
    },
  ]
}

// ---- columns: one value per port -------------------------------------------------------------------------------

function readColumn8(bytes: Uint8Array, at: number, count: number): number[] {
  const column: number[] = []
  for (let index = 0; index < count; index++) column.push(bytes[at + index] as number)
  return column
}

function readColumn16(bytes: Uint8Array, at: number, count: number): number[] {
  const column: number[] = []
  for (let index = 0; index < count; index++) column.push(readU16le(bytes, at + 2 * index))
  return column
}

function readLe(bytes: Uint8Array, at: number, count: number): number {
  return count === 1 ? (bytes[at] as number) : count === 2 ? readU16le(bytes, at) : readU32le(bytes, at)
}

function writeColumn(into: Uint8Array, at: number, size: number, ports: number, column: unknown, name: string): void {
  if (!Array.isArray(column) || column.length !== ports) throw new FieldError(name, `needs ${ports} values`)
  column.forEach((value, index) => {
    writeLe(into, at + size * index, size, integerOf(value, 256 ** size - 1, name))
  })
}
