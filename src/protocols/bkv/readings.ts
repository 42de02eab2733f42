/**
 * BKV fields in words that all protocols share: readings of ports, progress and settlements. BKV document, sections 8, 9.
 *
 * Ports count from 1 outside, 0 = A on the wire. An order is named by socket, port and the device's business number.
 */
import type { Fact, OrderOrigin, OrderRef, PortReading } from '../../codec/facts.ts'
import { HEX } from '../../codec/fields.ts'
import type { DeviceMemory, Fields } from '../../codec/protocol.ts'
import { type BkvProfile, profileOf } from './profile.ts'
import { endReasonOf, faultOf, meteringBitOf, portStateOf } from './status.ts'

/** The start mode is not said in this report. */
export const START_MODE_UNSAID = -1

type Writable<T> = { -readonly [K in keyof T]: T[K] }
type Progress = Extract<Fact, { fact: 'progress' }>
type Settlement = Extract<Fact, { fact: 'settlement' }>

/** @param businessNo 0..65535 */
export function orderRef(socket: number, wirePort: number, businessNo: number): OrderRef {
  return { socket, port: wirePort + 1, wireHex: HEX[(businessNo >> 8) & 0xff]! + HEX[businessNo & 0xff]! }
}

export function statusOf(fields: Fields): number {
  const hex = fields['statusHex']
  return typeof hex === 'string' ? Number.parseInt(hex, 16) : -1
}

/**
 * Readings and progress of the ports of some sockets. A port without number or status is passed over: nothing can be
 * said about it.
 *
 * @param sockets each with `socket`, `tempC` and `ports`; temperatures above 127 are not taken as negative (section 10)
 */
export function factsOfSockets(sockets: readonly Fields[], memory: DeviceMemory): Fact[] {
  const readings: PortReading[] = []
  const facts: Fact[] = [{ fact: 'portStates', ports: readings }]
  const profile = profileOf(memory)
  for (const entry of sockets) {
    const socket = numberOr(entry['socket'], 0)
    for (const port of (entry['ports'] ?? []) as readonly Fields[]) {
      const wirePort = port['port']
      const stateRaw = statusOf(port)
      if (typeof wirePort !== 'number' || wirePort > WIRE_PORT_MAX || stateRaw < 0) continue
      const reading = portReading(socket, wirePort, stateRaw, port, entry['tempC'], profile)
      readings.push(reading)
      if (reading.state === 'charging' && isBusinessNo(reading.businessNo))
        facts.push(progressOf(reading, port, memory))
    }
  }
  return readings.length > 0 ? facts : []
}

const WIRE_PORT_MAX = 0xff

/** 0 says that there is no order; more than two bytes cannot be one. */
function isBusinessNo(value: number | undefined): boolean {
  return value !== undefined && value > 0 && value <= 0xffff
}

function portReading(
  socket: number,
  wirePort: number,
  stateRaw: number,
  fields: Fields,
  tempC: unknown,
  profile: BkvProfile,
): PortReading {
  const meteringBit = meteringBitOf(profile.settings)
  const state = portStateOf(stateRaw, meteringBit)
  const reading: Writable<PortReading> = { socket, port: wirePort + 1, state, stateRaw }
  const { powerDw, voltageDv, currentMa, energyRaw, minutesMin, businessNo } = fields
  if (typeof powerDw === 'number') reading.powerW = powerDw / 10
  if (typeof voltageDv === 'number') reading.voltageV = voltageDv / 10
  if (typeof currentMa === 'number') reading.currentA = currentMa / 1000
  if (typeof energyRaw === 'number' && energyRaw <= 0x7fff_ffff) {
    reading.energyRaw = energyRaw
    reading.energyWh = energyRaw * profile.energyWhPerRaw
  }
  if (isTwoBytes(minutesMin)) reading.durationS = minutesMin * 60
  if (isTwoBytes(businessNo)) reading.businessNo = businessNo
  if (typeof tempC === 'number') reading.temperatureC = tempC
  if (reading.state === 'fault') reading.fault = faultOf(stateRaw, meteringBit)
  return reading
}

function progressOf(reading: PortReading, fields: Fields, memory: DeviceMemory): Progress {
  const { socket, port, state, stateRaw, durationS = 0, energyWh, energyRaw, powerW, voltageV, currentA } = reading
  const businessNo = reading.businessNo as number
  const progress: Writable<Progress> = {
    fact: 'progress',
    order: orderRef(socket, fields['port'] as number, businessNo),
    ...originOf(memory, socket, port - 1, businessNo),
    state,
    stateRaw,
    durationS,
  }
  if (energyWh !== undefined) progress.energyWh = energyWh
  if (energyRaw !== undefined) progress.energyRaw = energyRaw
  if (powerW !== undefined) progress.powerW = powerW
  if (voltageV !== undefined) progress.voltageV = voltageV
  if (currentA !== undefined) progress.currentA = currentA
  return progress
}

/** What only some end reports say; see {@link settlementOf}. */
export type SettlementExtras = Partial<
  Pick<Settlement, 'origin' | 'startModeRaw' | 'cardId' | 'endReason' | 'endReasonRaw' | 'endedMs' | 'deviceAmountFen'>
> & {
  /** The highest power the device kept, 0.1 W. */
  readonly settlePowerDw?: number
}

/**
 * A settlement from the fields that all four end reports share.
 *
 * `maxPowerW` is a lower bound: a BKV socket reports the power of its last moment, and a settlement power only in 18
 * and 0c. `endReasonRaw` is the report's reason byte where it has one, else the status byte the reason was derived from.
 */
export function settlementOf(fields: Fields, memory: DeviceMemory, extras: SettlementExtras): Settlement {
  const { settings, energyWhPerRaw } = profileOf(memory)
  const socket = numberOr(fields['socket'], 0)
  const wirePort = fields['port'] as number
  const businessNo = fields['businessNo'] as number
  const energyRaw = numberOr(fields['energyRaw'], 0)
  const stateRaw = statusOf(fields)
  const { settlePowerDw = 0, ...said } = extras
  return {
    fact: 'settlement',
    order: orderRef(socket, wirePort, businessNo),
    ...originOf(memory, socket, wirePort, businessNo),
    startModeRaw: START_MODE_UNSAID,
    durationS: isTwoBytes(fields['minutesMin']) ? fields['minutesMin'] * 60 : 0,
    energyWh: energyRaw * energyWhPerRaw,
    energyRaw,
    maxPowerW: Math.max(numberOr(fields['powerDw'], 0), settlePowerDw) / 10,
    endReason:
      stateRaw < 0 || settings.endReasonRule === 'unknown'
        ? 'unknown'
        : endReasonOf(stateRaw, settings.presetTimeStatus),
    endReasonRaw: stateRaw < 0 ? null : stateRaw,
    businessNo,
    ...said,
  }
}

/** As wide as the table has minutes, fees and business numbers; what came wider is no such value. */
export function isTwoBytes(value: unknown): value is number {
  return typeof value === 'number' && value <= 0xffff
}

/** Keys of a payload may come wider than the table has them; what exceeds 31 bits is no value of ours and no column's. */
export function numberOr(value: unknown, fallback: number): number {
  return typeof value === 'number' && value <= 0x7fff_ffff ? value : fallback
}

/** A port of one device remembers one card order; this many ports are remembered, so a device cannot fill the memory. */
const CARD_PORTS_MAX = 64
const CARD_PREFIX = 'card.'
/** Six bytes of card as a number: exact. */
const CARD_ID_PREFIX = 'cardId.'
const CARD_ID_DIGITS = 12

/** Remembers that this business number came from a card swipe, and of which card: later reports do not say so. */
export function rememberCardOrder(
  memory: DeviceMemory,
  socket: number,
  wirePort: number,
  businessNo: number,
  cardIdHex: string,
): void {
  const keys = Object.keys(memory).filter((key) => key.startsWith(CARD_PREFIX))
  const place = `${socket}.${wirePort}`
  if (keys.length >= CARD_PORTS_MAX && memory[CARD_PREFIX + place] === undefined) {
    const oldest = keys[0]!.slice(CARD_PREFIX.length)
    delete memory[CARD_PREFIX + oldest]
    delete memory[CARD_ID_PREFIX + oldest]
  }
  memory[CARD_PREFIX + place] = businessNo
  memory[CARD_ID_PREFIX + place] = Number.parseInt(cardIdHex, 16)
}

/** @returns the business number of the card order last seen on this port; undefined when none is remembered */
export function cardOrderNo(memory: DeviceMemory, socket: number, wirePort: number): number | undefined {
  return memory[`${CARD_PREFIX}${socket}.${wirePort}`]
}

/** Who began the order, and with which card, as far as this session saw it. */
export function originOf(
  memory: DeviceMemory,
  socket: number,
  wirePort: number,
  businessNo: number,
): { readonly origin: OrderOrigin; readonly cardId?: string } {
  if (cardOrderNo(memory, socket, wirePort) !== businessNo) return { origin: 'online' }
  const cardNo = memory[`${CARD_ID_PREFIX}${socket}.${wirePort}`] as number
  return { origin: 'card', cardId: cardNo.toString(16).padStart(CARD_ID_DIGITS, '0') }
}
