/**
 * The status byte: BKV document, section 8.
 *
 * Bits 7 (online), 4 (charging or an order is active), 3 (no load) are proven by captures; 2..0 (over-temperature,
 * over-current, over-power) follow the guide's order of words; 6 and 5 are open (one of them is a metering fault), and
 * since bit 5 is set in every captured end after the preset time, neither is read as a fault unless a profile says so.
 */
import type { EndReason, PortState } from '../../codec/facts.ts'

export interface StatusBits {
  readonly online: boolean
  readonly bit6: boolean
  readonly bit5: boolean
  readonly charging: boolean
  readonly noLoad: boolean
  readonly overTemp: boolean
  readonly overCurrent: boolean
  readonly overPower: boolean
}

const ONLINE = 0x80
const BIT6 = 0x40
const BIT5 = 0x20
const CHARGING = 0x10
const NO_LOAD = 0x08
const OVER_TEMPERATURE = 0x04
const OVER_CURRENT = 0x02
const OVER_POWER = 0x01
const PROTECTION = OVER_TEMPERATURE | OVER_CURRENT | OVER_POWER

/** One shared, frozen object per status byte: decoding a status allocates nothing. */
export const STATUS_BITS: readonly StatusBits[] = Array.from({ length: 256 }, (_, raw) =>
  Object.freeze({
    online: (raw & ONLINE) !== 0,
    bit6: (raw & BIT6) !== 0,
    bit5: (raw & BIT5) !== 0,
    charging: (raw & CHARGING) !== 0,
    noLoad: (raw & NO_LOAD) !== 0,
    overTemp: (raw & OVER_TEMPERATURE) !== 0,
    overCurrent: (raw & OVER_CURRENT) !== 0,
    overPower: (raw & OVER_POWER) !== 0,
  }),
)

/**
 * @param meteringBit the bit that means a metering fault, from the profile; 0: none does
 * @returns the state in words shared by all protocols; first match: off the air, protection, charging, nothing
 */
export function portStateOf(raw: number, meteringBit = 0): PortState {
  if (!(raw & ONLINE)) return 'offline'
  if (raw & (PROTECTION | meteringBit)) return 'fault'
  return raw & CHARGING ? 'charging' : 'idle'
}

/** @returns which faults, for state `fault`: one or more of four words joined with `+`; '' when none. */
export function faultOf(raw: number, meteringBit = 0): string {
  const protections = FAULTS[raw & PROTECTION]!
  if ((raw & meteringBit) === 0) return protections
  return protections === '' ? 'metering' : `metering+${protections}`
}

/** The status bits that a profile calls metering fault. */
export function meteringBitOf({ bit5, bit6 }: { readonly bit5: string; readonly bit6: string }): number {
  return (bit6 === 'metering_fault' ? BIT6 : 0) | (bit5 === 'metering_fault' ? BIT5 : 0)
}

const FAULTS = Array.from({ length: 8 }, (_, bits) =>
  [
    bits & OVER_TEMPERATURE && 'over_temperature',
    bits & OVER_CURRENT && 'over_current',
    bits & OVER_POWER && 'over_power',
  ]
    .filter(Boolean)
    .join('+'),
)

/**
 * Why a charge ended, derived from the status byte of the end report, which has no reason of its own.
 *
 * @param presetTimeStatus the byte that means "preset time reached", from the profile
 * @returns `unknown` rather than a guess
 */
export function endReasonOf(raw: number, presetTimeStatus: number): EndReason {
  if (raw & NO_LOAD) return 'no_load'
  if (raw === presetTimeStatus) return 'preset_time'
  switch (raw & PROTECTION) {
    case 0:
      return 'unknown'
    case OVER_TEMPERATURE:
      return 'port_overheat'
    case OVER_CURRENT:
      return 'over_current'
    case OVER_POWER:
      return 'overload'
    default:
      return 'protection'
  }
}
