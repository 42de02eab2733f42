/**
 * The text that order bytes are, where they are one: printable ASCII without blanks, zeros behind it. The one reader of
 * this rule: of the numbers we take (src/orders/order-number.ts), and of those that devices name (src/session/order-key.ts).
 *
 * @param wireHex lower-case hex digits
 * @returns 1 character or more; undefined: the bytes are no text
 */
export function textOfOrder(wireHex: string): string | undefined {
  const match = /^((?:2[1-9a-f]|[3-6][0-9a-f]|7[0-9a-e])+)(?:00)*$/.exec(wireHex)
  return match === null ? undefined : Buffer.from(match[1] as string, 'hex').toString('latin1')
}
