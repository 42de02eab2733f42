/** Frames out of chunks: chunks that end where frames end, chunks cut at random, and bytes one by one. */
import { FrameAssembler, type UnitVisitor } from '../../src/codec/frame-assembler.ts'
import { type Protocol, UNIT } from '../../src/codec/protocol.ts'
import { ap3000 } from '../../src/protocols/ap3000/table.ts'
import { bkv } from '../../src/protocols/bkv/table.ts'
import { Random } from '../../src/testing/random.ts'
import { AP3000_HEARTBEAT, BKV_HEARTBEAT } from '../frames.ts'
import type { Suite } from '../suite.ts'

const FRAMES = 1_000

class Counter implements UnitVisitor {
  frames = 0
  unit(kind: number): void {
    if (kind === UNIT.frame) this.frames++
  }
}

function streamOf(frame: Uint8Array): Uint8Array {
  const stream = new Uint8Array(frame.length * FRAMES)
  for (let index = 0; index < FRAMES; index++) stream.set(frame, index * frame.length)
  return stream
}

function chunked(stream: Uint8Array, bytesOf: () => number): Uint8Array[] {
  const chunks: Uint8Array[] = []
  for (let at = 0; at < stream.length; ) {
    const to = Math.min(stream.length, at + bytesOf())
    chunks.push(stream.slice(at, to))
    at = to
  }
  return chunks
}

const push = (protocol: Protocol, chunks: readonly Uint8Array[]) => () => {
  const assembler = new FrameAssembler(protocol, true)
  const counter = new Counter()
  for (const chunk of chunks) assembler.push(chunk, 0, counter)
  if (counter.frames !== FRAMES) throw new Error(`${counter.frames} frames of ${FRAMES}`)
}

const random = new Random(1)
const ap3000Stream = streamOf(AP3000_HEARTBEAT)
const bkvStream = streamOf(BKV_HEARTBEAT)
const oneEach = AP3000_HEARTBEAT.length

export const suite: Suite = {
  name: 'assemble frames, per frame',
  baseline: 'AP3000 21, one per chunk',
  cases: [
    {
      name: 'AP3000 21, one per chunk',
      operations: FRAMES,
      run: push(
        ap3000,
        chunked(ap3000Stream, () => oneEach),
      ),
    },
    {
      name: 'AP3000 21, 64 glued',
      operations: FRAMES,
      run: push(
        ap3000,
        chunked(ap3000Stream, () => 64 * oneEach),
      ),
    },
    {
      name: 'AP3000 21, cut at random 1..64',
      operations: FRAMES,
      run: push(
        ap3000,
        chunked(ap3000Stream, () => 1 + random.below(64)),
      ),
    },
    {
      name: 'AP3000 21, byte by byte',
      operations: FRAMES,
      run: push(
        ap3000,
        chunked(ap3000Stream, () => 1),
      ),
    },
    {
      name: 'BKV 0000, cut at random 1..64',
      operations: FRAMES,
      run: push(
        bkv,
        chunked(bkvStream, () => 1 + random.below(64)),
      ),
    },
  ],
}
