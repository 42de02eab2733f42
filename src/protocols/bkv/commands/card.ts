/**
 * Outer command 0015, cards. BKV document, section 6, card flow:
 * 0b up (the LED flashes) > 0b down, on or refused > 0f up > 1a when the user asks > end > 0c up > 0c down.
 */
import { type Body, downlink, uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import { bytesHex, limited, u8, u16be, u32be } from '../../../codec/fields.ts'
import { RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import { CODE_SOCKET } from '../frame.ts'
import { innerBody, listOfU16 } from '../inner.ts'
import { profileOf } from '../profile.ts'
import { cardOrderNo, orderRef, originOf, rememberCardOrder, settlementOf } from '../readings.ts'
import { METER, PORT_HEAD, POWER_TIERS, RESULT, SOCKET_HEAD, WIRE_PORT } from '../shapes.ts'
import { resultFact } from './network.ts'
import { endAckReply, POWER_MODE } from './socket.ts'

const TIME_MODE = 1
const BALANCE_FEN_MAX = 0xffff_ffff

/**
 * A card that may charge starts by time with the longest time the profile allows: without a tariff nothing shorter can
 * be justified, and the end report says what was used. Any other card, and a lookup that failed, is refused at once,
 * because the user waits in front of a flashing LED.
 */
export const cardSwiped = uplink({
  code: CODE_SOCKET,
  sub: 0x0b,
  name: 'cardSwiped',
  section: '6',
  summary: 'a card wants to charge',
  body: innerBody(0x0b, {
    socket: u8,
    port: u8,
    businessNo: u16be,
    statusHex: bytesHex(1),
    cardIdHex: bytesHex(6),
    offlineHex: bytesHex(20),
  }),
  reply: {
    with: 'cardOrder',
    when: 'lookup',
    freshSequence: true,
    fields: (uplink, { card, memory }) => {
      const isAllowed = card?.status === 'ok'
      return {
        socket: uplink['socket'],
        port: uplink['port'],
        businessNo: uplink['businessNo'],
        on: isAllowed ? 1 : 0,
        mode: TIME_MODE,
        minutesMin: isAllowed ? profileOf(memory).settings.cardMinutesMax : 0,
        energyWh: 0,
      }
    },
  },
  facts: (fields, memory) => {
    const socket = fields['socket'] as number
    const wirePort = fields['port'] as number
    const businessNo = fields['businessNo'] as number
    const cardId = fields['cardIdHex'] as string
    rememberCardOrder(memory, socket, wirePort, businessNo, cardId)
    return [{ fact: 'cardSwiped', cardId, socket, port: wirePort + 1, cardKind: 0, businessNo }]
  },
})

// Socket and port are echoed from what a device sent, so they are not bounded: a reply must not fail.
const CARD_ORDER = {
  socket: u8,
  port: WIRE_PORT,
  businessNo: limited(u16be, { about: 'as received' }),
  on: limited(u8, { max: 1, about: '1 start, 0 refuse' }),
  mode: limited(u8, { about: '1 time, 2 energy, 3 power tiers' }),
  // Not bound to 900 as in 0015/07: the guide's own example says 48000.
  minutesMin: limited(u16be, { unit: 'min' }),
  energyWh: limited(u16be, { unit: 'Wh' }),
}
const shortOrder = innerBody(0x0b, CARD_ORDER)
const powerOrder = innerBody(0x0b, { ...CARD_ORDER, amountFen: limited(u16be, { unit: 'fen' }) }, POWER_TIERS)
/** Mode is the fifth parameter, behind 3 bytes of inner head. */
const MODE_AT = 3 + 5

const orderBody: Body = {
  decode: (bytes, from, to) =>
    (from + MODE_AT < to && bytes[from + MODE_AT] === POWER_MODE ? powerOrder : shortOrder).decode(bytes, from, to),
  encode: (fields) => (fields['mode'] === POWER_MODE ? powerOrder : shortOrder).encode(fields),
  parameters: [
    ...(shortOrder.parameters ?? []),
    ...(powerOrder.parameters ?? []).slice(-2).map((parameter) => ({ ...parameter, isOptional: true })),
  ],
}

/** Two shapes: mode 3 has an amount and tiers behind the rest. */
export const cardOrder = downlink({
  code: CODE_SOCKET,
  sub: 0x0b,
  name: 'cardOrder',
  section: '6',
  summary: 'order for a card, or its refusal',
  body: orderBody,
  result: { by: 'cardOrderConfirm', withinMs: RESULT_WITHIN_MS, tries: 1 },
})

/** Copies the sequence of the order. It names no business number: that of the last swipe on this port is meant. */
export const cardOrderConfirm = uplink({
  code: CODE_SOCKET,
  sub: 0x0f,
  name: 'cardOrderConfirm',
  section: '6',
  summary: 'the device took the card order',
  body: innerBody(0x0f, { socket: u8, port: u8, result: RESULT }),
  reply: { with: 'cardOrderAck', when: 'decoded', fields: () => ({ result: 1 }) },
  facts: (fields, memory) => {
    const socket = fields['socket'] as number
    const wirePort = fields['port'] as number
    const businessNo = cardOrderNo(memory, socket, wirePort)
    const result = { ...resultFact('cardOrder', fields), socket, port: wirePort + 1 }
    if (businessNo === undefined) return [result]
    const facts: Fact[] = [{ ...result, businessNo }]
    if (result.ok) {
      const order = orderRef(socket, wirePort, businessNo)
      facts.push({ fact: 'orderConfirmed', order, ...originOf(memory, socket, wirePort, businessNo), durationS: 0 })
    }
    return facts
  },
})

/** Reported by other projects as optional; sent, because a device that wants it is quiet afterwards. */
export const cardOrderAck = downlink({
  code: CODE_SOCKET,
  sub: 0x0f,
  name: 'cardOrderAck',
  section: '6',
  summary: 'answers cardOrderConfirm',
  body: innerBody(0x0f, { result: RESULT }),
  result: 'none',
})

export const cardEndReport = uplink({
  code: CODE_SOCKET,
  sub: 0x0c,
  name: 'cardEndReport',
  section: '6',
  summary: 'end of a charge by card',
  body: innerBody(
    0x0c,
    {
      ...SOCKET_HEAD,
      ...PORT_HEAD,
      ...METER,
      cardIdHex: bytesHex(6),
      cardKind: u8,
      mode: u8,
      amountFen: u16be,
      settlePowerDw: u16be,
    },
    listOfU16('tierMinutesMin', 'u8', 255),
  ),
  reply: endAckReply(),
  facts: (fields, memory) => [
    settlementOf(fields, memory, {
      origin: 'card',
      cardId: fields['cardIdHex'] as string,
      startModeRaw: fields['mode'] as number,
      deviceAmountFen: fields['amountFen'] as number,
      settlePowerDw: fields['settlePowerDw'] as number,
    }),
  ],
})

export const cardBalanceQuery = uplink({
  code: CODE_SOCKET,
  sub: 0x1a,
  name: 'cardBalanceQuery',
  section: '6',
  summary: 'what is on this card?',
  body: innerBody(0x1a, { socket: u8, port: u8, cardIdHex: bytesHex(6) }),
  reply: {
    with: 'cardBalance',
    when: 'lookup',
    freshSequence: true,
    fields: (uplink, { card }) => ({
      socket: uplink['socket'],
      port: uplink['port'],
      cardIdHex: uplink['cardIdHex'],
      balanceFen: Math.min(BALANCE_FEN_MAX, Math.max(0, Math.trunc(card?.balanceFen ?? 0))),
    }),
  },
  // Port 0: nothing is to be charged, see CardSwiped in facts.ts.
  facts: (fields) => [
    {
      fact: 'cardSwiped',
      cardId: fields['cardIdHex'] as string,
      socket: fields['socket'] as number,
      port: 0,
      cardKind: 0,
    },
  ],
})

export const cardBalance = downlink({
  code: CODE_SOCKET,
  sub: 0x1a,
  name: 'cardBalance',
  section: '6',
  summary: 'answers cardBalanceQuery',
  body: innerBody(0x1a, {
    socket: u8,
    port: WIRE_PORT,
    cardIdHex: bytesHex(6),
    balanceFen: limited(u32be, { unit: 'fen' }),
  }),
  result: 'none',
})
