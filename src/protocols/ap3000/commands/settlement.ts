/** AP3000 document, section 7: 03 settlement, 43 full but not settled, 04 order confirm, and 23 and 26 as they come. */
import { type Body, downlink, rawBody, uplink } from '../../../codec/command.ts'
import { fields as fieldsOf, hexOf, limited, optional, readU16le, readU32le, u8, u16le } from '../../../codec/fields.ts'
import { endReasonOf, energy16, port, power16, result, seconds16, timestamp32, wattOf, whOf } from '../fields.ts'
import { DATA_BYTES_MAX } from '../frame.ts'
import { cardOrCodeHex, orderFacts, orderHex } from './order.ts'

interface FullNotSettled {
  readonly durationS: number
  readonly maxPowerDw: number
  readonly energy10Wh: number
  readonly port: number
  readonly startMode: number
  readonly cardOrCodeHex: string
  readonly stopReason: number
  readonly orderHex: string
}
interface Settlement extends FullNotSettled {
  readonly secondMaxPowerDw?: number
  readonly timestampS?: number
  readonly occupancyMin?: number
}

/** The first 29 bytes of 03, which are all of 43. */
const first29 = {
  durationS: seconds16,
  maxPowerDw: power16,
  energy10Wh: energy16,
  port,
  startMode: limited(u8, { about: '0 offline card, 1 online, 3 verification code' }),
  cardOrCodeHex,
  stopReason: u8,
  orderHex,
}
const settlementFields = fieldsOf({
  ...first29,
  secondMaxPowerDw: optional(power16),
  timestampS: optional(timestamp32),
  occupancyMin: optional(limited(u16le, { unit: 'min' })),
})

const body03: Body = {
  ...settlementFields,
  decode(bytes, from, to) {
    // the size live devices send
    if (to - from !== 35) return settlementFields.decode(bytes, from, to)
    return {
      durationS: readU16le(bytes, from),
      maxPowerDw: readU16le(bytes, from + 2),
      energy10Wh: readU16le(bytes, from + 4),
      port: bytes[from + 6],
      startMode: bytes[from + 7],
      cardOrCodeHex: hexOf(bytes, from + 8, from + 12),
      stopReason: bytes[from + 12],
      orderHex: hexOf(bytes, from + 13, from + 29),
      secondMaxPowerDw: readU16le(bytes, from + 29),
      timestampS: readU32le(bytes, from + 31),
    }
  },
}

export const settlement = uplink({
  code: 0x03,
  name: 'settlement',
  section: '7, 03',
  summary: 'an order has ended; kept by the device until acked, repeated with a new msgId and timestamp',
  body: body03,
  facts(fields) {
    const record = fields as unknown as Settlement
    return [
      {
        fact: 'settlement',
        ...orderFacts(record),
        startModeRaw: record.startMode,
        durationS: record.durationS,
        energyWh: whOf(record.energy10Wh),
        energyRaw: record.energy10Wh,
        maxPowerW: wattOf(record.maxPowerDw),
        endReason: endReasonOf(record.stopReason),
        endReasonRaw: record.stopReason,
        ...(record.timestampS === undefined ? undefined : { sentMs: record.timestampS * 1000 }),
        ...(record.occupancyMin === undefined ? undefined : { occupancyMin: record.occupancyMin }),
      },
    ]
  },
  reply: { with: 'settlementAck', when: 'durable', fields: () => ({ result: 0 }) },
})

export const settlementAck = downlink({
  code: 0x03,
  name: 'settlementAck',
  section: '7, 03',
  summary: '0 accepted: the device erases its copy',
  fields: { result },
  result: 'none',
})

/** Stands in for a port state, which 43 has none of: the order is full. */
const STATE_FULL = 3

export const fullNotSettled = uplink({
  code: 0x43,
  name: 'fullNotSettled',
  section: '7, 43',
  summary: 'cabinet: full, may still occupy; 03 follows',
  fields: first29,
  facts(fields) {
    const record = fields as unknown as FullNotSettled
    return [
      {
        fact: 'progress',
        ...orderFacts(record),
        state: 'full',
        stateRaw: STATE_FULL,
        durationS: record.durationS,
        energyWh: whOf(record.energy10Wh),
        energyRaw: record.energy10Wh,
        maxPowerW: wattOf(record.maxPowerDw),
      },
    ]
  },
  reply: 'none',
})

interface OrderConfirm {
  readonly port: number
  readonly startMode: number
  readonly cardOrCodeHex: string
  readonly durationS: number
  readonly orderHex: string
}

export const orderConfirm = uplink({
  code: 0x04,
  name: 'orderConfirm',
  section: '7, 04',
  summary: 'an order runs (models before mid-2019, in place of 06); may come before the result of 82',
  fields: { port, startMode: u8, cardOrCodeHex, durationS: seconds16, orderHex },
  facts(fields) {
    const record = fields as unknown as OrderConfirm
    return [{ fact: 'orderConfirmed', ...orderFacts(record), durationS: record.durationS }]
  },
  reply: {
    with: 'orderConfirmAck',
    when: 'durable',
    fields: (uplinkFields) => ({ port: uplinkFields['port'], result: 0 }),
  },
})

export const orderConfirmAck = downlink({
  code: 0x04,
  name: 'orderConfirmAck',
  section: '7, 04',
  summary: 'ack of 04: port as received, 0 ok',
  fields: { port, result },
  result: 'none',
})

export const timeOfUseSettlement = uplink({
  code: 0x23,
  name: 'timeOfUseSettlement',
  section: '7, 23',
  summary: 'time-of-use settlement (2025-02): kept byte for byte',
  layout: 'unpublished',
  body: rawBody(DATA_BYTES_MAX),
  facts: () => [{ fact: 'opaqueSettlement' }],
  // It replaces 03 and blocks the EEPROM in the same way, an inference of the document.
  reply: { with: 'timeOfUseSettlementAck', when: 'durable', fields: () => ({ result: 0 }) },
})

export const timeOfUseSettlementAck = downlink({
  code: 0x23,
  name: 'timeOfUseSettlementAck',
  section: '7, 23',
  summary: 'ack of 23, 0 accepted',
  fields: { result },
  result: 'none',
})

export const timeOfUsePowerHeartbeat = uplink({
  code: 0x26,
  name: 'timeOfUsePowerHeartbeat',
  section: '7, 26',
  summary: 'time-of-use sample of a running order: kept byte for byte',
  layout: 'unpublished',
  body: rawBody(DATA_BYTES_MAX),
  frequent: true,
  reply: 'none',
})
