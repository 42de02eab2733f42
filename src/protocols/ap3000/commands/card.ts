/** AP3000 document, section 7: 02 card swipe. The user stands there and waits. */
import { type Body, downlink, uplink } from '../../../codec/command.ts'
import {
  bytesHex,
  describe,
  FieldError,
  fields as fieldsOf,
  hexOf,
  hexSize,
  limited,
  optional,
  u8,
  u16le,
  u32le,
  writeHex,
} from '../../../codec/fields.ts'
import { type CardAnswer, type Fields, PayloadError, type ReplyContext } from '../../../codec/protocol.ts'
import { portOf, timestamp32 } from '../fields.ts'
import { expirySOf, RATE_MODES } from '../rate-mode.ts'

interface CardSwipe {
  readonly cardIdHex: string
  readonly cardType: number
  readonly port: number
  readonly cardBalanceFen: number
  readonly timestampS?: number
  readonly card2Hex?: string
}

const fixedPart = fieldsOf({
  cardIdHex: bytesHex(4),
  cardType: u8,
  port: limited(u8, { about: '255 = only a balance query' }),
  cardBalanceFen: limited(u16le, { unit: 'fen' }),
  timestampS: optional(timestamp32),
})
const FIXED_BYTES = 12

/** The fixed part, and a second card number of counted length when there is one. */
const body02: Body = {
  decode(bytes, from, to) {
    const decoded = fixedPart.decode(bytes, from, to)
    const card2At = from + FIXED_BYTES
    if (decoded instanceof PayloadError || to <= card2At) return decoded
    const end = card2At + 1 + (bytes[card2At] as number)
    if (end > to) return new PayloadError('inner_length', 'card2Hex')
    return { ...decoded, card2Hex: hexOf(bytes, card2At + 1, end) }
  },
  encode(fields) {
    const card2 = fields['card2Hex']
    if (card2 === undefined) return fixedPart.encode(fields)
    const size = hexSize(card2, 'card2Hex')
    if (size > 0xff) throw new FieldError('card2Hex', 'at most 255 bytes')
    const data = new Uint8Array(FIXED_BYTES + 1 + size)
    data.set(fixedPart.encode({ timestampS: 0, ...fields }))
    data[FIXED_BYTES] = size
    writeHex(data, FIXED_BYTES + 1, card2 as string)
    return data
  },
}

export const cardSwipe = uplink({
  code: 0x02,
  name: 'cardSwipe',
  section: '7, 02',
  summary: 'a card was held to the reader; port ff = only a balance query',
  body: body02,
  facts(fields) {
    const swipe = fields as unknown as CardSwipe
    return [
      {
        fact: 'cardSwiped',
        cardId: isKnownByIdentity(swipe) ? swipe.card2Hex : swipe.cardIdHex,
        socket: 0,
        port: portOf(swipe.port),
        cardKind: swipe.cardType,
        balanceFen: swipe.cardBalanceFen,
      },
    ]
  },
  reply: { with: 'cardAnswer', when: 'lookup', fields: answerCard },
})

const SOCIAL_SECURITY = 4
const NO_NUMBER = '00000000'
/** Bytes of an identity that `cards` has room for. */
const IDENTITY_BYTES_MAX = 32

/** A social security card without a number of its own: its identity is in card 2, and all of them share the 00000000. */
function isKnownByIdentity(swipe: CardSwipe): swipe is CardSwipe & { readonly card2Hex: string } {
  const { cardType, cardIdHex, card2Hex = '' } = swipe
  const digits = card2Hex.length
  return cardType === SOCIAL_SECURITY && cardIdHex === NO_NUMBER && digits > 0 && digits <= 2 * IDENTITY_BYTES_MAX
}

/**
 * Our card states in the words the device can speak. There is no word for a blocked card: `unregistered` (01) is the
 * only refusal that claims nothing false about money, uses or the device (05, for one, says monthly uses exhausted).
 */
const ACCOUNT_STATUS: Readonly<Record<CardAnswer['status'], number>> = {
  ok: 0x00,
  unregistered: 0x01,
  insufficient: 0x06,
  expired: 0x07,
  blocked: 0x01,
  port_unusable: 0x08,
}
const U32_MAX = 0xffffffff

/** Status 00 alone starts nothing: a charge needs a following 82 (7, 02). Without a card answer: no reply this time. */
function answerCard(uplinkFields: Fields, { card }: ReplyContext): Fields | undefined {
  if (card === undefined) return undefined
  const { cardIdHex, port } = uplinkFields as unknown as CardSwipe
  const shared = { cardIdHex, accountStatus: ACCOUNT_STATUS[card.status], rateMode: RATE_MODES[card.rateMode], port }
  if (shared.rateMode !== RATE_MODES.monthly) {
    return { ...shared, balanceFen: Math.min(Math.max(Math.trunc(card.balanceFen), 0), U32_MAX) }
  }
  return { ...shared, expiryS: expirySOf(card.expiresMs) }
}

/** The four bytes at 6 are money, or an expiry when the mode is monthly. */
const answer = {
  cardIdHex: bytesHex(4),
  accountStatus: u8,
  rateMode: limited(u8, { min: 0, max: 3, about: '0 time, 1 monthly, 2 energy, 3 per use' }),
}
const answerWithBalance = fieldsOf({ ...answer, balanceFen: u32le, port: u8 })
const answerWithExpiry = fieldsOf({ ...answer, expiryS: u32le, port: u8 })
const RATE_MODE_AT = 5

const bodyAnswer: Body = {
  decode: (bytes, from, to) =>
    (bytes[from + RATE_MODE_AT] === RATE_MODES.monthly ? answerWithExpiry : answerWithBalance).decode(bytes, from, to),
  encode: (fields) => (fields['rateMode'] === RATE_MODES.monthly ? answerWithExpiry : answerWithBalance).encode(fields),
  parameters: [...answerWithBalance.parameters, describe('expiryS', optional(timestamp32))],
}

export const cardAnswer = downlink({
  code: 0x02,
  name: 'cardAnswer',
  section: '7, 02',
  summary: 'account status, rate mode, and balance or expiry',
  body: bodyAnswer,
  result: 'none',
})
