/** What the commands about orders share: the 16 bytes of an order number, and frames that begin like a settlement. */
import type { Fact, OrderRef } from '../../../codec/facts.ts'
import { bytesHex, FieldError, hexSize } from '../../../codec/fields.ts'
import type { Fields } from '../../../codec/protocol.ts'
import { cardIdOf, originOf, portOf } from '../fields.ts'

const ORDER_BYTES = 16
/** Order numbers are any 16 bytes, not text. */
export const orderHex = bytesHex(ORDER_BYTES)
/** M1 UID, or the code a user typed. */
export const cardOrCodeHex = bytesHex(4)

/** @throws FieldError `orderHex` is not 32 hex digits */
export function orderHexOf(fields: Fields): string {
  const value = fields['orderHex']
  if (hexSize(value, 'orderHex') !== ORDER_BYTES) throw new FieldError('orderHex', 'needs 32 hex digits')
  return value as string
}

/** Whose order, and how it began: what 03, 04 and 43 say first. */
export function orderFacts(fields: {
  readonly port: number
  readonly startMode: number
  readonly cardOrCodeHex: string
  readonly orderHex: string
}): { order: OrderRef; origin: Extract<Fact, { fact: 'settlement' }>['origin']; cardId?: string } {
  const cardId = cardIdOf(fields.startMode, fields.cardOrCodeHex)
  return {
    order: { socket: 0, port: portOf(fields.port), wireHex: fields.orderHex },
    origin: originOf(fields.startMode),
    ...(cardId === undefined ? undefined : { cardId }),
  }
}
