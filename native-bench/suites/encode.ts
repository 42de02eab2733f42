/** A reply, from its fields to the bytes of a whole frame. */
import type { Fields, Protocol } from '../../src/codec/protocol.ts'
import { ap3000 } from '../../src/protocols/ap3000/table.ts'
import { bkv } from '../../src/protocols/bkv/table.ts'
import { keep, type Suite } from '../suite.ts'

const REPEATS = 1_000

/** @param uplinkName whose reply is encoded, from the fields its own rule gives */
function reply(protocol: Protocol, uplinkName: string, deviceNo: number): () => void {
  const rule = protocol.uplinkByName.get(uplinkName)?.reply
  if (rule === undefined || rule === 'none') throw new Error(`${uplinkName} has no reply`)
  const downlink = protocol.downlinkByName.get(rule.with)
  if (downlink === undefined) throw new Error(`no downlink ${rule.with}`)
  const context = { nowMs: 1_767_225_600_000, memory: protocol.newMemory() }
  const uplink: Fields = { socket: 1 }
  return () => {
    for (let repeat = 0; repeat < REPEATS; repeat++) {
      const fields = rule.fields(uplink, context) as Fields
      keep(protocol.encodeFrame('downlink', downlink, deviceNo, repeat, downlink.encode(fields)))
    }
  }
}

/** The 15 bytes of a heartbeat's reply, patched into a frame that is there already. */
function template(): void {
  const frame = new Uint8Array(15)
  frame.set([0x44, 0x4e, 0x59, 0x0a, 0x00, 0x3b, 0x37, 0xab, 0x04])
  frame[11] = 0x21
  let fixed = 0
  for (const byte of frame) fixed += byte
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    frame[9] = repeat
    frame[10] = repeat >>> 8
    const sum = fixed + (repeat & 0xff) + ((repeat >>> 8) & 0xff)
    frame[13] = sum
    frame[14] = sum >>> 8
    keep(frame)
  }
}

export const suite: Suite = {
  name: 'encode a reply',
  baseline: 'AP3000 21',
  cases: [
    { name: 'patched by hand, AP3000 21', operations: REPEATS, run: template },
    { name: 'AP3000 21', operations: REPEATS, run: reply(ap3000, 'heartbeat', 0x04ab373b) },
    { name: 'AP3000 22', operations: REPEATS, run: reply(ap3000, 'timeRequest', 0x04ab373b) },
    { name: 'BKV 0000', operations: REPEATS, run: reply(bkv, 'heartbeat', 82_241_218_000_382) },
    { name: 'BKV 1000/1017', operations: REPEATS, run: reply(bkv, 'statusReport', 82_241_218_000_382) },
  ],
}
