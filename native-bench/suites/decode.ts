/** Head and fields of a frame that was found: what every uplink costs before anybody decides anything. */
import { type FrameHead, PayloadError, type Protocol } from '../../src/codec/protocol.ts'
import { ap3000 } from '../../src/protocols/ap3000/table.ts'
import { bkv } from '../../src/protocols/bkv/table.ts'
import { AP3000_HEARTBEAT, AP3000_PROGRESS, AP3000_SETTLEMENT, BKV_END, BKV_HEARTBEAT, BKV_STATUS } from '../frames.ts'
import { keep, type Suite } from '../suite.ts'

const REPEATS = 1_000
const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }

const decode = (protocol: Protocol, frame: Uint8Array) => () => {
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    protocol.readHead(frame, 0, frame.length, head)
    const command = protocol.uplinks.get(head.commandKey)
    const fields = command?.decode(frame, head.dataFrom, head.dataTo)
    if (fields === undefined || fields instanceof PayloadError) throw new Error('the frame was not decoded')
    keep(fields)
  }
}

const headOnly = (protocol: Protocol, frame: Uint8Array) => () => {
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    protocol.readHead(frame, 0, frame.length, head)
    keep(protocol.uplinks.get(head.commandKey))
  }
}

export const suite: Suite = {
  name: 'decode a command',
  baseline: 'AP3000 21',
  cases: [
    { name: 'head alone, AP3000 21', operations: REPEATS, run: headOnly(ap3000, AP3000_HEARTBEAT) },
    { name: 'AP3000 21', operations: REPEATS, run: decode(ap3000, AP3000_HEARTBEAT) },
    { name: 'AP3000 06', operations: REPEATS, run: decode(ap3000, AP3000_PROGRESS) },
    { name: 'AP3000 03', operations: REPEATS, run: decode(ap3000, AP3000_SETTLEMENT) },
    { name: 'BKV 0000', operations: REPEATS, run: decode(bkv, BKV_HEARTBEAT) },
    { name: 'BKV 1000/1017', operations: REPEATS, run: decode(bkv, BKV_STATUS) },
    { name: 'BKV 0015/02', operations: REPEATS, run: decode(bkv, BKV_END) },
  ],
}
