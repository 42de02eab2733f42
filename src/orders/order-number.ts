/**
 * Order numbers on the wire. AP3000 carries any 16 bytes and gives them back untouched (section 7, 03); BKV carries none.
 *
 * The rule, from which it follows that no two of our numbers share their bytes: up to 16 printable ASCII characters (no
 * blank) are those, padded with zeros; 32 lower-case hex digits are these bytes, unless they are the bytes of a text.
 * README.md says how numbers come back.
 */
import { textOfOrder } from '../codec/order-text.ts'

export const ORDER_NO_CHARS_MAX = 32
const WIRE_BYTES = 16

export type WireOrderNumber =
  | { readonly wireHex: string }
  | { readonly code: 'INVALID_ARGUMENT'; readonly reason: string; readonly message: string }

/** @returns 32 lower-case hex digits, never all zeros or all ff; or why this number cannot be sent */
export function wireOrderNumber(orderNo: string): WireOrderNumber {
  if (orderNo.length < 1 || orderNo.length > ORDER_NO_CHARS_MAX)
    return refused('order_no_length', `order_no needs 1..${ORDER_NO_CHARS_MAX} characters`)
  if (/^[\x21-\x7e]{1,16}$/.test(orderNo))
    return {
      wireHex: Buffer.from(orderNo, 'latin1')
        .toString('hex')
        .padEnd(2 * WIRE_BYTES, '0'),
    }
  if (!/^[0-9a-f]{32}$/.test(orderNo))
    return refused(
      'order_no_form',
      'this protocol carries 16 bytes: order_no needs at most 16 printable ASCII characters, or 32 lower-case hex digits',
    )
  if (/^(?:0+|f+)$/.test(orderNo)) return refused('order_no_blank', 'all zeros or all ff mean that there is no order')
  const text = textOfOrder(orderNo)
  if (text !== undefined) return refused('order_no_ambiguous', `these bytes are the order number ${text}`)
  return { wireHex: orderNo }
}

function refused(reason: string, message: string): WireOrderNumber {
  return { code: 'INVALID_ARGUMENT', reason, message }
}

/** Crockford's base 32: no I, L, O, U, so that a number can be read out. */
const DIGITS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'
export const ORDER_NO_RANDOM_BYTES = 10

/**
 * A fresh order number of 16 characters, which fits the wire as it is.
 * @param random at least 10 bytes of a cryptographic source: 80 bits make a repeat unlikely (10^-6 in 10^9 orders)
 * @throws RangeError fewer bytes
 */
export function newOrderNo(random: Uint8Array): string {
  if (random.length < ORDER_NO_RANDOM_BYTES) throw new RangeError(`random: needs ${ORDER_NO_RANDOM_BYTES} bytes`)
  let rest = 0n
  for (const byte of random.subarray(0, ORDER_NO_RANDOM_BYTES)) rest = (rest << 8n) | BigInt(byte)
  let orderNo = ''
  for (let digit = 0; digit < WIRE_BYTES; digit++, rest >>= 5n) orderNo = DIGITS[Number(rest & 31n)] + orderNo
  return orderNo
}
