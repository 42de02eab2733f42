/** Names of orders that come from devices: what two reports of one order share, and what we call it outside. */
import type { Fact, OrderRef } from '../codec/facts.ts'
import { textOfOrder } from '../codec/order-text.ts'
import type { Protocol } from '../codec/protocol.ts'
import { eventIdOf } from '../events/event-id.ts'

type Settlement = Extract<Fact, { fact: 'settlement' }>

/** Zeros, or 16 bytes of FF: the device has no order number for this. Two bytes of FF are a business number (BKV). */
export const isBlankOrder = (wireHex: string) => /^(?:0*|f{32})$/.test(wireHex)

/**
 * What repeats of one settlement share, inside one device, socket and port.
 *
 * The wire order number, where the device sent one. Old models leave it blank for card orders; all their settlements
 * would be one, so there the content stands in: a repeat differs in msgId and sending time only (AP3000 7, 03).
 */
export function orderKeyOf(settlement: Settlement, protocol: Protocol): string {
  const { wireHex } = settlement.order
  if (!isBlankOrder(wireHex)) return wireKeyOf(settlement.order, protocol)
  const { cardId, durationS, energyRaw, maxPowerW, endReasonRaw } = settlement
  return `blank:${cardId ?? ''}:${durationS}:${energyRaw}:${maxPowerW}:${endReasonRaw ?? ''}`
}

/** Before a number that comes round again: the writer looks up which order is meant. */
export const REUSED_MARK = '~'

/** The wire number as a key, marked where it names an order only for a while. */
export function wireKeyOf(order: OrderRef, protocol: Protocol): string {
  return protocol.reusesOrderNumbers === true ? REUSED_MARK + order.wireHex : order.wireHex
}

/** Fewer printable bytes are as likely a counter of the device as a text. */
const ORDER_TEXT_CHARS_MIN = 4

/**
 * Our order number for an order we did not start: the wire number as text where it is one of at least four characters,
 * else its hex; for a blank one a digest of device, port and key.
 */
export function orderNoOf(order: OrderRef, orderKey: string, deviceId: string): string {
  const { wireHex } = order
  if (isBlankOrder(wireHex)) return `${deviceId}-${order.port}-${eventIdOf(orderKey).slice(0, 12)}`
  // four digits name an order inside one port of one device only
  if (wireHex.length < 16) return `${deviceId}-${order.socket}-${order.port}-${wireHex}`
  const text = textOfOrder(wireHex)
  return text !== undefined && text.length >= ORDER_TEXT_CHARS_MIN ? text : wireHex
}
