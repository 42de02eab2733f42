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
  readonly port: number
  /** As in the settlements table. */
  readonly orderKey: string
  /** As `contentOf` of sim-database.ts prints a row. */
  readonly content: string
}

/** Commands below this are the device's own; their answers carry the same code. */
const AP3000_FIRST_DOWNLINK = 0x30
const BKV_COMMANDS = new Set(['0015/07', '0015/1d'])

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
  const isEnd = name === '0015/02' || name === '0015/0c'
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

/** What an end report says; undefined: it is none. */
export function settlementIn({ name, data }: SeenFrame): SeenSettlement | undefined {
  if (name === '03') {
    const u16 = (at: number) => data[at]! | (data[at + 1]! << 8)
    const mode = data[7] as number
    const card = hexOf(data.subarray(8, 12))
    return {
      port: data[6]! + 1,
      orderKey: hexOf(data.subarray(13, 29)),
      content: `${u16(0)} s ${u16(2)} ${u16(4)} mode ${mode} card ${mode === 1 ? null : card} end ${data[12]}`,
    }
  }
  if (name === '0015/02') {
    const u16 = (at: number) => (data[at]! << 8) | data[at + 1]!
    return {
      port: data[8]! + 1,
      orderKey: `~${hex(u16(10), 4)}`,
      content: `${u16(18) * 60} s ${u16(12)} ${u16(16)} mode -1 card null end ${data[9]}`,
    }
  }
  return undefined
}
