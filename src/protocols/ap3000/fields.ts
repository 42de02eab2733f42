/**
 * What AP3000 fields mean: field kinds only this protocol has, and its units, states and reasons in shared words.
 * AP3000 document, sections 4, 5, 7 and 8.
 */
import type { EndReason, OrderOrigin, PortReading, PortState } from '../../codec/facts.ts'
import { type Field, FieldError, HEX, limited, readU32le, u8, u16le, u32le, writeLe } from '../../codec/fields.ts'
import { formatPhysId, parsePhysId } from './frame.ts'

/** A device named inside data, as its outside name: `04ab373b`. */
export const physId: Field = {
  ...u32le,
  type: 'hex',
  read: (bytes, at) => formatPhysId(readU32le(bytes, at)),
  write: (into, at, value, name) => {
    const deviceNo = typeof value === 'string' ? parsePhysId(value) : undefined
    if (deviceNo === undefined) throw new FieldError(name, 'needs 8 lower-case hex digits')
    writeLe(into, at, 4, deviceNo)
  },
}

/** Port on the wire: from 0, or ff. */
export const port = limited(u8, { about: 'port on the wire, from 0; 255 = the device chooses' })
/** 0 = done. */
export const result = u8

export const seconds16 = limited(u16le, { unit: 's' })
export const power16 = limited(u16le, { unit: '0.1 W' })
export const voltage16 = limited(u16le, { unit: '0.1 V' })
export const energy16 = limited(u16le, { unit: '0.01 kWh' })
export const energy32 = limited(u32le, { unit: '0.01 kWh' })
export const timestamp32 = limited(u32le, { unit: 's since 1970-01-01 UTC' })
export const flag = limited(u8, { min: 0, max: 1 })

export const byteHex = (byte: number): string => HEX[byte] as string

// ---- units -----------------------------------------------------------------------------------------------------

export const wattOf = (powerDw: number): number => powerDw / 10
export const voltOf = (voltageDv: number): number => voltageDv / 10
export const whOf = (energy10Wh: number): number => energy10Wh * 10
/** 0 on the wire is the first socket; ff (no port, device chooses) is 0 outside. */
export const portOf = (wirePort: number): number => (wirePort === 0xff ? 0 : wirePort + 1)

/**
 * Raw 0 = no sensor. Old firmware sends the plain value, and the bytes do not tell (section 11).
 * @param offset of the profile: 65, or 0 where the value is plain
 */
export function temperatureOf(raw: number | undefined, offset: number): number | undefined {
  return raw === undefined || raw === 0 ? undefined : raw - offset
}

/** 640 as `6.40`. */
export function firmwareOf(version: number): string {
  const minor = version % 100
  return `${(version - minor) / 100}.${minor < 10 ? '0' : ''}${minor}`
}

/** Signal of a host (11): 0..31; 99 = fault, absent; above 100 another scale, 0..97, brought to 0..31. */
export function hostSignalOf(raw: number): number | undefined {
  if (raw === 99) return undefined
  return raw > 100 ? Math.round(((raw - 100) * 31) / 97) : raw
}

// ---- states and reasons ----------------------------------------------------------------------------------------

interface StateWords {
  readonly state: PortState
  readonly fault?: string
}
const UNKNOWN_STATE: StateWords = { state: 'unknown' }

/** Index is the raw port state of 21 and 01. */
const STATES: readonly (StateWords | undefined)[] = [
  { state: 'idle' },
  { state: 'charging' },
  { state: 'plugged' },
  { state: 'full' },
  { state: 'fault', fault: 'metering' },
  { state: 'float' },
  { state: 'fault', fault: 'memory' },
  { state: 'fault', fault: 'contact_spring_stuck' },
  { state: 'fault', fault: 'contact_or_fuse' },
  { state: 'fault', fault: 'relay_stuck' },
  { state: 'fault', fault: 'hall_sensor' },
  { state: 'fault', fault: 'precheck_relay_or_fuse' },
  undefined,
  { state: 'fault', fault: 'precheck_load_short' },
  { state: 'fault', fault: 'precheck_relay_stuck' },
  { state: 'fault', fault: 'card_reader' },
  { state: 'fault', fault: 'detection_circuit' },
]

/** One port of 21 or 01. Values no guide names are `unknown`; the raw one stays beside. */
export function portReading(index: number, stateRaw: number, powerDw?: number, peakPowerDw?: number): PortReading {
  const words = STATES[stateRaw] ?? UNKNOWN_STATE
  const reading: { -readonly [K in keyof PortReading]: PortReading[K] } = {
    socket: 0,
    port: index + 1,
    state: words.state,
    stateRaw,
  }
  if (words.fault !== undefined) reading.fault = words.fault
  if (powerDw !== undefined) reading.powerW = wattOf(powerDw)
  if (peakPowerDw !== undefined) reading.peakPowerW = wattOf(peakPowerDw)
  return reading
}

/** States a 06 may carry; the others are to be ignored. 0 is sent once at the stop: a last sample. */
export function progressStateOf(stateRaw: number): PortState | undefined {
  switch (stateRaw) {
    case 0:
      return 'idle'
    case 1:
      return 'charging'
    case 2:
      return 'plugged'
    case 3:
      return 'full'
    case 5:
      return 'float'
    default:
      return undefined
  }
}

/** Index is the raw stop reason of 03 and 43. */
const END_REASON_BY_RAW: readonly (EndReason | undefined)[] = [
  undefined,
  'full',
  'max_time',
  'preset_time',
  'preset_energy',
  'unplugged',
  'overload',
  'server_stop',
  'dynamic_overload',
  'low_power', // 09 power too small
  'ambient_overheat',
  'port_overheat',
  'over_current',
  'unplugged', // 0D, the second kind
  'no_power',
  'relay_fault',
  'water',
  'fire',
  'fire_other_port',
  'door_password',
  'door_open',
  'external',
  'card_stop',
  'server_forced',
  'fire_system',
  'memory_error',
  'over_voltage',
  'under_voltage',
  'low_power', // 1C low power
]

export function endReasonOf(raw: number): EndReason {
  return END_REASON_BY_RAW[raw] ?? 'unknown'
}

/** Start modes of 03, 04, 06 and 43. A mode no guide names was not started by us: `offline`. */
export function originOf(startMode: number): OrderOrigin {
  switch (startMode) {
    case 0:
      return 'card'
    case 1:
      return 'online'
    case 3:
      return 'code'
    default:
      return 'offline'
  }
}

/** Card of an order as 8 hex digits; absent for online orders, whose field is zero, and for codes, which are no card. */
export function cardIdOf(startMode: number, cardOrCodeHex: string): string | undefined {
  return startMode === 3 || cardOrCodeHex === '00000000' ? undefined : cardOrCodeHex
}
