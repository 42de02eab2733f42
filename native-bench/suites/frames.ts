/** Finding a frame and checking its sum, in place, against the same work written the way one would first write it. */
import { UNIT, type UnitMark } from '../../src/codec/protocol.ts'
import { ap3000 } from '../../src/protocols/ap3000/table.ts'
import { bkv } from '../../src/protocols/bkv/table.ts'
import { AP3000_HEARTBEAT, AP3000_SETTLEMENT, BKV_HEARTBEAT, BKV_STATUS } from '../frames.ts'
import { keep, type Suite } from '../suite.ts'

const REPEATS = 1_000
const mark: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_header' }

const find = (protocol: typeof ap3000, frame: Uint8Array) => () => {
  for (let repeat = 0; repeat < REPEATS; repeat++)
    protocol.findFrame(frame, 0, frame.length, protocol.frameBytesMax, mark)
  if (mark.kind !== UNIT.frame) throw new Error('the frame was not found')
}

/** Copies, searches text, sums with reduce. */
function firstDraft(): void {
  let found = 0
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const buffer = Buffer.concat([Buffer.alloc(0), AP3000_HEARTBEAT])
    const at = buffer.indexOf('DNY')
    const end = at + 5 + buffer.readUInt16LE(at + 3)
    const sum = buffer.subarray(at, end - 2).reduce((total, byte) => total + byte, 0) & 0xffff
    if (sum === buffer.readUInt16LE(end - 2)) found++
  }
  if (found !== REPEATS) throw new Error('the frame was not found')
  keep(found)
}

export const suite: Suite = {
  name: 'find and check a frame',
  baseline: 'first draft, AP3000 21',
  cases: [
    { name: 'first draft, AP3000 21', operations: REPEATS, run: firstDraft },
    { name: 'AP3000 21, 29 bytes', operations: REPEATS, run: find(ap3000, AP3000_HEARTBEAT) },
    { name: 'AP3000 03, 49 bytes', operations: REPEATS, run: find(ap3000, AP3000_SETTLEMENT) },
    { name: 'BKV 0000, 50 bytes', operations: REPEATS, run: find(bkv, BKV_HEARTBEAT) },
    { name: 'BKV 1017, 149 bytes', operations: REPEATS, run: find(bkv, BKV_STATUS) },
  ],
}
