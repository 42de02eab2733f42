/** Outer commands 0000, 0005 and 0007: heartbeat, node list, firmware. BKV document, section 5. */
import { downlink, rawBody, uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import {
  ascii,
  bcdDigits,
  bytesHex,
  describe,
  type Field,
  FieldError,
  fields,
  limited,
  printable,
  u8,
  u16be,
} from '../../../codec/fields.ts'
import { type Fields, RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import { CODE_HEARTBEAT, CODE_NETWORK, CODE_OTA } from '../frame.ts'
import { innerBody, listOf } from '../inner.ts'
import { beijingDigits, RESULT } from '../shapes.ts'

/** Data of the largest frame, bytes. */
export const DATA_BYTES_MAX = 4_079

/** Every 60 s; a gateway that gets no time drops its TCP connection. Its first frame of a connection names the device. */
export const heartbeat = uplink({
  code: CODE_HEARTBEAT,
  name: 'heartbeat',
  section: '5',
  summary: 'ICCID, firmware, signal; every 60 s',
  fields: { iccidAscii: ascii(20), fwVersionAscii: ascii(8), rssi: u8 },
  reply: {
    with: 'timeReply',
    when: 'decoded',
    fields: (_uplink, { nowMs }) => ({ timeBcd: beijingDigits(nowMs) }),
    sameFor: 'second',
  },
  isRepeatable: true,
  facts: (fields) => [
    { fact: 'heartbeat' },
    {
      fact: 'deviceInfo',
      iccid: fields['iccidAscii'] as string,
      firmware: fields['fwVersionAscii'] as string,
      signal: fields['rssi'] as number,
      // BKV has no other registration: its first heartbeat is one
      registered: true,
    },
  ],
  frequent: true,
})

export const timeReply = downlink({
  code: CODE_HEARTBEAT,
  name: 'timeReply',
  section: '5',
  summary: 'Beijing time, answers a heartbeat',
  fields: { timeBcd: bcdDigits(14) },
  result: 'none',
})

/** Numbers are unique per gateway and name the socket in every other command; the MAC appears nowhere else. */
const NODE = { socket: limited(u8, { min: 1, max: 250 }), macHex: bytesHex(6) }

/** Replaces the whole list, as its name says; the guide does not. */
export const refreshNodes = downlink({
  code: CODE_NETWORK,
  sub: 0x08,
  name: 'refreshNodes',
  section: '5',
  summary: 'replaces the list of sockets',
  body: innerBody(
    0x08,
    { channel: limited(u8, { min: 1, max: 15 }) },
    { ...listOf('nodes', 'toEnd', 250, NODE), isUniqueBy: 'socket' },
  ),
  result: { by: 'refreshNodesResult', withinMs: RESULT_WITHIN_MS, tries: 2 },
})

export const addNode = downlink({
  code: CODE_NETWORK,
  sub: 0x09,
  name: 'addNode',
  section: '5',
  summary: 'adds one socket',
  body: innerBody(0x09, NODE),
  result: { by: 'addNodeResult', withinMs: RESULT_WITHIN_MS, tries: 2 },
})

/** The guide omits the format; one byte, the socket number, is the natural reading. */
export const deleteNode = downlink({
  code: CODE_NETWORK,
  sub: 0x0a,
  name: 'deleteNode',
  section: '5',
  summary: 'removes one socket (format inferred)',
  body: innerBody(0x0a, { socket: NODE.socket }),
  result: { by: 'deleteNodeResult', withinMs: RESULT_WITHIN_MS, tries: 2 },
})

const nodesResult = (sub: number, downlinkName: string) =>
  uplink({
    code: CODE_NETWORK,
    sub,
    name: `${downlinkName}Result`,
    section: '5',
    summary: `outcome of ${downlinkName}`,
    body: innerBody(sub, { result: RESULT }),
    reply: 'none',
    facts: (fields) => [resultFact(downlinkName, fields)],
  })

export const refreshNodesResult = nodesResult(0x08, 'refreshNodes')
export const addNodeResult = nodesResult(0x09, 'addNode')
export const deleteNodeResult = nodesResult(0x0a, 'deleteNode')

/** Outcome of a downlink command whose field `result` is 1 for ok. */
export function resultFact(downlinkName: string, fields: Fields): Extract<Fact, { fact: 'result' }> {
  const raw = fields['result'] as number
  return { fact: 'result', downlink: downlinkName, raw, ok: raw === 1, reason: raw === 1 ? 'ok' : 'failed' }
}

/** Four bytes as `10.0.0.9`. */
const ipv4: Field = {
  ...u8,
  type: 'ascii',
  bytes: 4,
  read: (bytes, at) => `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`,
  write: (into, at, value, name) => {
    const parts = String(value).split('.')
    if (parts.length !== 4 || parts.some((part) => !/^\d{1,3}$/.test(part) || Number(part) > 255)) {
      throw new FieldError(name, 'needs an IPv4 address')
    }
    into.set(parts.map(Number), at)
  },
}

const OTA = {
  target: limited(u8, { min: 1, max: 2, about: '1 gateway, 2 socket' }),
  ftpIp: ipv4,
  ftpPort: limited(u16be, { min: 1 }),
  fileNameAscii: printable(ascii(13), 1),
}

/** Reply, progress and FTP credentials are unpublished: nothing certain follows this command. */
export const startOta = downlink({
  code: CODE_OTA,
  name: 'startOta',
  section: '5',
  summary: 'fetch firmware by FTP',
  body: {
    ...fields(OTA),
    parameters: Object.entries(OTA).map(([name, field]) => ({
      ...describe(name, field),
      // Callers give text of up to 15 characters, not the four bytes of the wire.
      ...(name === 'ftpIp' ? { bytes: 15 } : {}),
    })),
  },
  result: 'none',
})

export const otaReport = uplink({
  code: CODE_OTA,
  name: 'otaReport',
  section: '5',
  summary: 'unpublished answer to startOta',
  layout: 'unpublished',
  body: rawBody(DATA_BYTES_MAX),
  reply: 'none',
})
