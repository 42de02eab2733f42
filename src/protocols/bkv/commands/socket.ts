/** Outer command 0015, sockets: status, start and stop, end reports, voice. BKV document, section 6. */
import { downlink, uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import { limited, u8, u16be } from '../../../codec/fields.ts'
import { type Fields, RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import { clockText, parseTimeOfDay } from '../entries.ts'
import { CODE_SOCKET } from '../frame.ts'
import { innerBody, type ListSpec, listOf, listOfU16 } from '../inner.ts'
import { factsOfSockets, settlementOf } from '../readings.ts'
import {
  beijingMs,
  binaryTime,
  METER,
  PORT_HEAD,
  POWER_TIERS,
  RESULT,
  SOCKET,
  SOCKET_HEAD,
  WIRE_PORT,
} from '../shapes.ts'
import { resultFact } from './network.ts'

export const queryStatus = downlink({
  code: CODE_SOCKET,
  sub: 0x1d,
  name: 'queryStatus',
  section: '6',
  summary: 'asks one socket for its ports',
  body: innerBody(0x1d, { socket: SOCKET }),
  // The live socket answered with 1000/1017 only, which has sequence 0.
  result: { by: 'socketStatus', orBy: 'statusReport', withinMs: RESULT_WITHIN_MS, tries: 2 },
  asksPorts: true,
})

/** The guide prints sub 1c in the answer to 1d; the table has both. */
export const socketStatus = uplink({
  code: CODE_SOCKET,
  sub: 0x1d,
  name: 'socketStatus',
  section: '6',
  summary: 'answer to queryStatus, also under sub 1c',
  body: innerBody(0x1d, SOCKET_HEAD, listOf('ports', 2, 2, { ...PORT_HEAD, voltageDv: u16be, ...METER })),
  reply: 'none',
  facts: (fields, memory) => [
    { fact: 'result', downlink: 'queryStatus', raw: 1, ok: true, reason: 'ok', socket: fields['socket'] as number },
    ...factsOfSockets([fields], memory),
  ],
})

/**
 * Starts or stops by time or energy. The command carries no order number: the device makes a business number and
 * returns it, so a start is never repeated blindly (section 3); hence one try. A stop is repeated like any other command.
 */
export const control = downlink({
  code: CODE_SOCKET,
  sub: 0x07,
  name: 'control',
  section: '6',
  summary: 'start or stop by time or energy',
  body: innerBody(0x07, {
    socket: SOCKET,
    port: WIRE_PORT,
    on: limited(u8, { max: 1, about: '1 start, 0 stop: the rest is ignored' }),
    mode: limited(u8, { max: 1, about: '1 time, 0 energy' }),
    minutesMin: limited(u16be, { max: 900, unit: 'min' }),
    energyWh: limited(u16be, { unit: 'Wh' }),
  }),
  result: { by: 'controlResult', withinMs: RESULT_WITHIN_MS, tries: 2, startTries: 1 },
})

const CONTROL_RESULT = { result: RESULT, socket: u8, port: u8, businessNo: u16be }

export const controlResult = uplink({
  code: CODE_SOCKET,
  sub: 0x07,
  name: 'controlResult',
  section: '6',
  summary: 'outcome of control, with the business number',
  body: innerBody(0x07, CONTROL_RESULT),
  reply: 'none',
  facts: (fields) => [startResult('control', fields)],
})

function startResult(downlinkName: string, fields: Fields): Fact {
  return {
    ...resultFact(downlinkName, fields),
    businessNo: fields['businessNo'] as number,
    socket: fields['socket'] as number,
    port: (fields['port'] as number) + 1,
  }
}

/** End reports are repeated every 10.5 s and cost the gateway a reconnect; the first durable copy wins. */
export const endReport = uplink({
  code: CODE_SOCKET,
  sub: 0x02,
  name: 'endReport',
  section: '6',
  summary: 'end of a charge by time or energy',
  body: innerBody(0x02, { ...SOCKET_HEAD, ...PORT_HEAD, ...METER }),
  reply: endAckReply(),
  facts: (fields, memory) => [settlementOf(fields, memory, {})],
})

/**
 * Sub 0c answers 02, 18 and 0c: a live device stopped repeating 02 after it. It names the socket only, so two reports
 * of one socket need one ack each.
 */
export function endAckReply() {
  return {
    with: 'endAck',
    when: 'durable',
    // the ack names the socket only: end reports of its two ports are acked when both are durable, or neither
    group: (uplink: Fields) => String(uplink['socket']),
    fields: (uplink: Fields): Fields => ({ socket: uplink['socket'], result: 1 }),
  } as const
}

/** The socket is echoed from what a device sent, so it is not bounded: an ack must not fail. */
const END_ACK = { socket: u8, result: RESULT }

export const endAck = downlink({
  code: CODE_SOCKET,
  sub: 0x0c,
  name: 'endAck',
  section: '6',
  summary: 'answers every end report of 0015',
  body: innerBody(0x0c, END_ACK),
  result: 'none',
})

/** Plausible but unproven: never sent by a rule, known so that a recording can be read. */
export const endAckEcho02 = downlink({
  code: CODE_SOCKET,
  sub: 0x02,
  name: 'endAckEcho02',
  section: '6',
  summary: 'unproven form of endAck',
  body: innerBody(0x02, END_ACK),
  result: 'none',
})
export const endAckEcho18 = downlink({
  code: CODE_SOCKET,
  sub: 0x18,
  name: 'endAckEcho18',
  section: '6',
  summary: 'unproven form of endAck',
  body: innerBody(0x18, END_ACK),
  result: 'none',
})

/**
 * The guide's bytes have outer command 0005, its text 0015: 0015 is sent, both are read. Repeated as control.
 */
export const startByPower = downlink({
  code: CODE_SOCKET,
  sub: 0x17,
  name: 'startByPower',
  section: '6',
  summary: 'start by power tiers and an amount',
  body: innerBody(
    0x17,
    {
      socket: SOCKET,
      port: WIRE_PORT,
      on: limited(u8, { max: 1, about: '1 start, 0 stop' }),
      amountFen: limited(u16be, { unit: 'fen' }),
    },
    POWER_TIERS,
  ),
  result: { by: 'startByPowerResult', withinMs: RESULT_WITHIN_MS, tries: 2, startTries: 1 },
})

/** Shape of controlResult assumed: the guide only says that a business number comes back. */
export const startByPowerResult = uplink({
  code: CODE_SOCKET,
  sub: 0x17,
  name: 'startByPowerResult',
  section: '6',
  summary: 'outcome of startByPower (shape inferred)',
  body: innerBody(0x17, CONTROL_RESULT),
  reply: 'none',
  facts: (fields) => [startResult('startByPower', fields)],
})

export const POWER_MODE = 3

/** `endReason` has no published table; the reason is derived from the status, and the byte is kept. */
export const powerEndReport = uplink({
  code: CODE_SOCKET,
  sub: 0x18,
  name: 'powerEndReport',
  section: '6',
  summary: 'end of a charge by power tiers',
  body: innerBody(
    0x18,
    {
      ...SOCKET_HEAD,
      ...PORT_HEAD,
      ...METER,
      endTime: binaryTime,
      endReason: u8,
      amountFen: u16be,
      settlePowerDw: u16be,
    },
    listOfU16('tierMinutesMin', 'u8', 255),
  ),
  reply: endAckReply(),
  facts: (fields, memory) => {
    const endedMs = beijingMs(String(fields['endTime']).replace(/\D/g, ''))
    return [
      settlementOf(fields, memory, {
        startModeRaw: POWER_MODE,
        endReasonRaw: fields['endReason'] as number,
        deviceAmountFen: fields['amountFen'] as number,
        settlePowerDw: fields['settlePowerDw'] as number,
        ...(endedMs === undefined ? {} : { endedMs }),
      }),
    ]
  },
})

/** Hours and minutes in binary: `173b` is 23:59. */
const VOICE_WINDOWS: ListSpec = {
  name: 'windows',
  count: 'u8',
  countMax: 2,
  itemBytes: 4,
  about: 'items: start, end as hh:mm',
  itemNames: ['start', 'end'],
  read: (bytes, at) => ({
    start: clockText(bytes[at]!, bytes[at + 1]!),
    end: clockText(bytes[at + 2]!, bytes[at + 3]!),
  }),
  write: (into, at, item) => {
    const { start, end } = item as Fields
    // 24:00 is in no example of the guide
    into.set([...parseTimeOfDay('windows', start), ...parseTimeOfDay('windows', end)], at)
  },
}

export const setVoice = downlink({
  code: CODE_SOCKET,
  sub: 0x1b,
  name: 'setVoice',
  section: '6',
  summary: 'buzzer, voice and when they may sound',
  body: innerBody(
    0x1b,
    {
      socket: limited(SOCKET, { max: 254, not: [251, 252, 253], about: `${SOCKET.limits.about}, 254: all` }),
      port: WIRE_PORT,
      buzzer: limited(u8, { max: 1, about: '1 on' }),
      voice: limited(u8, { max: 1, about: '1 on' }),
    },
    VOICE_WINDOWS,
  ),
  result: { by: 'setVoiceResult', withinMs: RESULT_WITHIN_MS, tries: 2 },
})

export const setVoiceResult = uplink({
  code: CODE_SOCKET,
  sub: 0x1b,
  name: 'setVoiceResult',
  section: '6',
  summary: 'outcome of setVoice',
  body: innerBody(0x1b, { socket: u8, port: u8, result: RESULT }),
  reply: 'none',
  facts: (fields) => [
    {
      ...resultFact('setVoice', fields),
      socket: fields['socket'] as number,
      port: (fields['port'] as number) + 1,
    },
  ],
})
