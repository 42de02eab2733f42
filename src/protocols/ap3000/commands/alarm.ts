/** AP3000 document, section 7: 42 alarm, and the alarms and numbers that no guide lays out (07, 08, 73). */
import { rawBody, uplink } from '../../../codec/command.ts'
import { u8 } from '../../../codec/fields.ts'
import { portOf } from '../fields.ts'
import { DATA_BYTES_MAX } from '../frame.ts'

interface Alarm {
  readonly alarmType: number
  readonly port: number
  readonly triggerMask: number
}

interface AlarmKind {
  readonly kind: string
  /** What the port byte means: a port, the address of a sensor on RS485 (0 = the device's own), or nothing. */
  readonly where: 'port' | 'sensor' | 'nothing'
}

const ALARM_KINDS: readonly (AlarmKind | undefined)[] = [
  undefined,
  { kind: 'power_cut', where: 'nothing' },
  { kind: 'water', where: 'sensor' },
  { kind: 'fire', where: 'port' },
  { kind: 'smoke', where: 'sensor' },
  { kind: 'temperature', where: 'sensor' },
  { kind: 'water_level', where: 'sensor' },
  { kind: 'door_sprang_open', where: 'port' },
]
const UNKNOWN_ALARM: AlarmKind = { kind: 'unknown', where: 'nothing' }

export const alarm = uplink({
  code: 0x42,
  name: 'alarm',
  section: '7, 42',
  summary: 'power cut, water, fire, smoke, temperature, water level, door',
  fields: { alarmType: u8, port: u8, triggerMask: u8 },
  facts(fields) {
    const { alarmType, port, triggerMask } = fields as unknown as Alarm
    const { kind, where } = ALARM_KINDS[alarmType] ?? UNKNOWN_ALARM
    return [
      {
        fact: 'alarm',
        kind,
        kindRaw: alarmType,
        socket: 0,
        port: where === 'port' ? portOf(port) : 0,
        trigger: triggerMask,
        ...(where === 'sensor' ? { sensor: port } : undefined),
      },
    ]
  },
  reply: 'none',
})

export const overTemperatureAlarm = uplink({
  code: 0x07,
  name: 'overTemperatureAlarm',
  section: '6, 07',
  summary: 'named only in the change log; that it comes is the alarm, where and how hot is unpublished',
  layout: 'unpublished',
  body: rawBody(DATA_BYTES_MAX),
  facts: () => [{ fact: 'alarm', kind: 'over_temperature', kindRaw: 0x07, socket: 0, port: 0 }],
  reply: 'none',
})

export const unnamed08 = uplink({
  code: 0x08,
  name: 'unnamed08',
  section: '6, 08',
  summary: 'absent from both guides',
  layout: 'unpublished',
  body: rawBody(DATA_BYTES_MAX),
  reply: 'none',
})

export const unnamed73 = uplink({
  code: 0x73,
  name: 'unnamed73',
  section: '6, 73',
  summary: 'named only in the change log',
  layout: 'unpublished',
  body: rawBody(DATA_BYTES_MAX),
  reply: 'none',
})
