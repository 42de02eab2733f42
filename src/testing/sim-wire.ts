/**
 * Frames as the simulation's observer reads them: enough of both documents to tell who speaks, which question a reply
 * answers and what a settlement says. Written from the documents, shares nothing with the codecs.
 */
import { deviceKey } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'

export interface SeenFrame {
  readonly deviceKey: number
  readonly deviceId: string
  /** Command as the documents print it: `03`, `0015/02`. */
  readonly name: string
  readonly messageId: number
  /** What a reply and the uplink it answers share, with as much as the device can tell apart. */
  readonly question: string
  /** Commands of the server and their results; the rest is the device's own and its replies. */
  readonly isOfCommand: boolean
  readonly data: Uint8Array
}

export interface SeenSettlement {
  readonly deviceId: string
  /** 0 where the protocol has none. */
  readonly socket: number
  /** From 1. */
  readonly port: number
  /** As in the settlements table. */
  readonly wireHex: string
  readonly durationS: number
  readonly energyWh: number
  readonly maxPowerW: number
  readonly deviceAmountFen: number | null
  /** As `contentOf` of sim-database.ts prints a row. */
  readonly content: string
}

/** What a charge is called here, whoever names it. */
export const settlementKeyOf = (
  { deviceId, socket, port }: { readonly deviceId: string; readonly socket: number; readonly port: number },
  wireHex: string,
): string => `${deviceId}/${socket}/${port}/${wireHex}`

/** Commands below this are the device's own; their answers carry the same code. */
const AP3000_FIRST_DOWNLINK = 0x30
const BKV_COMMANDS = new Set(['0015/07', '0015/17', '0015/1d', '1000/1007'])
const BKV_ENDS = new Set(['0015/02', '0015/18', '0015/0c'])

export const hexOf = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')
const hex = (value: number, digits: number) => value.toString(16).padStart(digits, '0')

/** @returns undefined: no frame (ICCID, link, noise) */
export function readFrame(frame: Uint8Array): SeenFrame | undefined {
  if (frame[0] === 0x44 && frame.length >= 14) return readAp3000(frame)
  if (frame[0] === 0xfc && frame.length >= 21) return readBkv(frame)
  return undefined
}

function readAp3000(frame: Uint8Array): SeenFrame {
  const deviceNo = (frame[5]! | (frame[6]! << 8) | (frame[7]! << 16) | (frame[8]! << 24)) >>> 0
  const messageId = frame[9]! | (frame[10]! << 8)
  const name = hex(frame[11]!, 2)
  return {
    deviceKey: deviceKey(ap3000, deviceNo),
    deviceId: hex(deviceNo, 8),
    name,
    messageId,
    question: `${name}/${messageId}/${deviceNo}`,
    isOfCommand: frame[11]! >= AP3000_FIRST_DOWNLINK,
    data: frame.subarray(12, frame.length - 2),
  }
}

function readBkv(frame: Uint8Array): SeenFrame {
  const u16 = (at: number) => (frame[at]! << 8) | frame[at + 1]!
  const outer = u16(4)
  const deviceId = hexOf(frame.subarray(11, 18))
  const data = frame.subarray(18, frame.length - 3)
  // 0015: length and sub; 1000: the first entry is key 01 with two bytes
  const sub = outer === 0x0015 ? hex(data[2]!, 2) : outer === 0x1000 ? hex((data[3]! << 8) | data[4]!, 4) : undefined
  const name = hex(outer, 4) + (sub === undefined ? '' : `/${sub}`)
  // the ack of an end report names the socket, and not the report
  const isEnd = BKV_ENDS.has(name)
  return {
    deviceKey: deviceKey(bkv, Number(deviceId)),
    deviceId,
    name,
    messageId: u16(6) * 65_536 + u16(8),
    question: isEnd ? `${deviceId}/end/${data[3]}` : `${deviceId}/${name}`,
    isOfCommand: BKV_COMMANDS.has(name),
    data,
  }
}

interface Read {
  readonly socket: number
  readonly port: number
  readonly wireHex: string
  readonly durationS: number
  /** As on the wire. */
  readonly energy: number
  readonly energyWhPerUnit: number
  readonly maxPowerDw: number
  readonly cardId: string | null
  readonly endReason: number
  readonly deviceAmountFen: number | null
}

/** What an end report says; undefined: it is none. */
export function settlementIn({ name, data, deviceId }: SeenFrame): SeenSettlement | undefined {
  const read =
    name === '03'
      ? readAp3000End(data)
      : BKV_ENDS.has(name)
        ? readBkvEnd(name, data)
        : name === '1000/1004'
          ? readFeeEnd(data)
          : undefined
  if (read === undefined) return undefined
  const { socket, port, wireHex, durationS, energy, energyWhPerUnit, maxPowerDw, cardId, endReason } = read
  return {
    deviceId,
    socket,
    port,
    wireHex,
    durationS,
    energyWh: energy * energyWhPerUnit,
    maxPowerW: maxPowerDw / 10,
    deviceAmountFen: read.deviceAmountFen,
    content: `${durationS} s ${maxPowerDw} ${energy} card ${cardId} end ${endReason}`,
  }
}

function readAp3000End(data: Uint8Array): Read {
  const u16 = (at: number) => data[at]! | (data[at + 1]! << 8)
  return {
    socket: 0,
    port: data[6]! + 1,
    wireHex: hexOf(data.subarray(13, 29)),
    durationS: u16(0),
    energy: u16(4),
    energyWhPerUnit: 10,
    maxPowerDw: u16(2),
    cardId: data[7] === 1 ? null : hexOf(data.subarray(8, 12)),
    endReason: data[12]!,
    deviceAmountFen: null,
  }
}

function readBkvEnd(name: string, data: Uint8Array): Read {
  const u16 = (at: number) => (data[at]! << 8) | data[at + 1]!
  const isPlain = name === '0015/02'
  return {
    socket: data[3]!,
    port: data[8]! + 1,
    wireHex: hex(u16(10), 4),
    durationS: u16(18) * 60,
    energy: u16(16),
    energyWhPerUnit: 1,
    maxPowerDw: isPlain ? u16(12) : Math.max(u16(12), u16(30)),
    cardId: name === '0015/0c' ? hexOf(data.subarray(20, 26)) : null,
    endReason: name === '0015/18' ? data[27]! : data[9]!,
    deviceAmountFen: isPlain ? null : u16(28),
  }
}

/** Section 7: length, 01, key, value; all lengths of this report fit one byte. */
function readFeeEnd(data: Uint8Array): Read {
  const keys = new Map<number, number>()
  for (let at = 0; at < data.length; at += 1 + data[at]!) {
    let value = 0
    for (let byte = at + 3; byte < at + 1 + data[at]!; byte++) value = value * 256 + data[byte]!
    keys.set(data[at + 2]!, value)
  }
  const of = (key: number) => keys.get(key) ?? 0
  return {
    socket: of(0x4a),
    port: of(0x08) + 1,
    wireHex: hex(of(0x0a), 4),
    durationS: of(0x0e) * 60,
    energy: of(0x0d),
    energyWhPerUnit: 1,
    maxPowerDw: of(0x0b),
    cardId: null,
    endReason: of(0x2f),
    deviceAmountFen: of(0x85) + of(0x86),
  }
}
