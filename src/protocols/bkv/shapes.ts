/** Groups of fields that several commands of outer command 0015 share, and texts for times. BKV document, section 6. */
import { bytesHex, type Field, FieldError, limited, readU16be, u8, u16be, writeBe } from '../../codec/fields.ts'
import { listOf } from './inner.ts'

/** 0 stands for a unit without separate sockets. */
export const SOCKET = limited(u8, { max: 250, about: 'socket in the node list, 0: unit without sockets' })
/** On the wire A = 0, B = 1. */
export const WIRE_PORT = limited(u8, { about: '0 = A, 1 = B' })
export const RESULT = limited(u8, { about: '1 ok, 0 failed' })

export const SOCKET_HEAD = { socket: u8, fwVersionHex: bytesHex(2), tempC: u8, rssi: u8 }
/** The business number is made by the device; it names the order until the number comes round again. */
export const PORT_HEAD = { port: u8, statusHex: bytesHex(1), businessNo: u16be }
/** Since the start of the charge; energy is raw on purpose, see profile.ts. */
export const METER = { powerDw: u16be, currentMa: u16be, energyRaw: u16be, minutesMin: u16be }

/** Price tiers by power: pay `priceFen` for `minutesMin` while the power stays below `powerDw`. */
export const POWER_TIERS = listOf('tiers', 'u8', 5, {
  powerDw: limited(u16be, { unit: 'dW', about: 'upper bound' }),
  priceFen: limited(u16be, { unit: 'fen' }),
  minutesMin: limited(u16be, { unit: 'min' }),
})

/** `year u16, month, day, hour, minute, second`, all binary, as `2020-06-08 14:21:07`; Beijing time. */
export const binaryTime: Field = {
  type: 'ascii',
  bytes: 7,
  isRest: false,
  isOptional: false,
  limits: {},
  fallback: undefined,
  group: 0,
  read: (bytes, at) => {
    const two = (index: number) => String(bytes[at + index]).padStart(2, '0')
    return `${String(readU16be(bytes, at)).padStart(4, '0')}-${two(2)}-${two(3)} ${two(4)}:${two(5)}:${two(6)}`
  },
  write: (into, at, value, name) => {
    const match = /^(\d{4,5})-(\d{2,3})-(\d{2,3}) (\d{2,3}):(\d{2,3}):(\d{2,3})$/.exec(String(value))
    const [year = -1, ...rest] = (match?.slice(1) ?? []).map(Number)
    if (year < 0 || year > 0xffff || rest.some((part) => part > 0xff)) {
      throw new FieldError(name, 'needs yyyy-mm-dd hh:mm:ss')
    }
    writeBe(into, at, 2, year)
    into.set(rest, at + 2)
  },
}

const BEIJING_OFFSET_MS = 8 * 3_600_000

/** @returns `yyyyMMddHHmmss` in Beijing time */
export function beijingDigits(nowMs: number): string {
  const second = Math.floor(nowMs / 1000)
  if (second !== digitsSecond) {
    digitsSecond = second
    digits = new Date(nowMs + BEIJING_OFFSET_MS).toISOString().replace(/[-T:]/g, '').slice(0, 14)
  }
  return digits
}

// every heartbeat of a second gets the same answer; the text costs more than the rest of the reply
let digitsSecond = Number.NaN
let digits = ''

/** @returns ms since the epoch of `yyyyMMddHHmmss` digits in Beijing time; undefined when they are no time */
export function beijingMs(digits: unknown): number | undefined {
  if (typeof digits !== 'string' || !/^\d{14}$/.test(digits)) return undefined
  const [year, month, day, hour, minute, second] = [
    digits.slice(0, 4),
    ...(digits.slice(4).match(/../g) as RegExpMatchArray),
  ] as [string, string, string, string, string, string]
  const utcMs = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`)
  // Date.parse accepts 31 February and makes it March: such a clock is not believed.
  if (Number.isNaN(utcMs) || new Date(utcMs).getUTCDate() !== Number(day)) return undefined
  return utcMs - BEIJING_OFFSET_MS
}
