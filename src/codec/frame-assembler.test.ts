/**
 * Claims: units are visited in order and in place; only a cut unit is kept, never more than one frame of it; caps are
 * smaller before the first good frame; a header whose body never comes is given up and what it swallowed is found; no
 * chunking changes what is seen. How: an invented protocol (`7e`, length, body, xor) and AP3000-like damage of it.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { FrameAssembler, type UnitVisitor } from './frame-assembler.ts'
import { type NoiseReason, type Protocol, UNIT, type UnitMark } from './protocol.ts'

const HEADER = 0x7e
const CAP_BEFORE_LOGIN = 12
const CAP = 32

/** `7e`, length of body, body, xor of body. */
function findFrame(bytes: Uint8Array, from: number, to: number, frameBytesMax: number, mark: UnitMark): void {
  mark.from = from
  mark.to = to
  mark.kind = UNIT.needMore
  const reason = damageOf(bytes, from, to, frameBytesMax)
  if (reason !== undefined) {
    const next = bytes.subarray(0, to).indexOf(HEADER, from + 1)
    mark.kind = UNIT.noise
    mark.to = next < 0 ? to : next
    mark.reason = reason
    return
  }
  if (to - from < 2) return
  const frameBytes = 3 + bytes[from + 1]!
  if (to - from < frameBytes) return
  mark.kind = UNIT.frame
  mark.to = from + frameBytes
}

function damageOf(bytes: Uint8Array, from: number, to: number, frameBytesMax: number): NoiseReason | undefined {
  if (bytes[from] !== HEADER) return 'bad_header'
  if (to - from < 2) return undefined
  const frameBytes = 3 + bytes[from + 1]!
  if (frameBytes > frameBytesMax) return 'bad_length'
  if (to - from < frameBytes) return undefined
  const sum = bytes.subarray(from + 2, from + frameBytes - 1).reduce((all, byte) => all ^ byte, 0)
  return sum === bytes[from + frameBytes - 1] ? undefined : 'checksum_mismatch'
}

const plover = {
  frameBytesMaxBeforeLogin: CAP_BEFORE_LOGIN,
  frameBytesMax: CAP,
  findFrame,
} as unknown as Protocol

function frameOf(...body: number[]): Uint8Array {
  return Uint8Array.of(
    HEADER,
    body.length,
    ...body,
    body.reduce((all, byte) => all ^ byte, 0),
  )
}

interface Heard extends UnitVisitor {
  readonly seen: string[]
  /** The buffers units were visited in. */
  readonly buffers: Uint8Array[]
}
function listener(): Heard {
  const seen: string[] = []
  const buffers: Uint8Array[] = []
  return {
    seen,
    buffers,
    unit(kind, bytes, from, to, reason) {
      const hex = Buffer.from(bytes.subarray(from, to)).toString('hex')
      seen.push(kind === UNIT.noise ? `${reason} ${hex}` : hex)
      buffers.push(bytes)
    },
  }
}
const hexes = (...frames: Uint8Array[]) => frames.map((frame) => Buffer.from(frame).toString('hex'))

describe('FrameAssembler', () => {
  test('whole frames are visited in the chunk itself and nothing is kept', () => {
    const assembler = new FrameAssembler(plover)
    const heard = listener()
    const chunk = Buffer.concat([frameOf(1), frameOf(2, 3)])
    assembler.push(chunk, 5, heard)
    assert.deepEqual(heard.seen, hexes(frameOf(1), frameOf(2, 3)))
    assert.ok(heard.buffers.every((buffer) => buffer === chunk))
    assert.equal(assembler.pendingBytes, 0)
    assert.equal(assembler.pendingSinceMonoMs, undefined)
  })

  test('a cut frame is kept, its chunk is not: what the caller does to the chunk afterwards changes nothing', () => {
    const assembler = new FrameAssembler(plover)
    const heard = listener()
    const frame = frameOf(1, 2, 3, 4)
    const chunk = Uint8Array.from(frame.subarray(0, 4))
    assembler.push(chunk, 5, heard)
    assert.equal(assembler.pendingBytes, 4)
    assert.equal(assembler.pendingSinceMonoMs, 5)
    chunk.fill(0)
    assembler.push(frame.subarray(4, 5), 6, heard)
    assert.equal(assembler.pendingSinceMonoMs, 5, 'the wait counts from the first byte')
    const rest = Buffer.concat([frame.subarray(5), frameOf(9)])
    assembler.push(rest, 7, heard)
    assert.deepEqual(heard.seen, hexes(frame, frameOf(9)))
    assert.ok(heard.buffers[0] !== rest && heard.buffers[1] === rest, 'copied no further than the cut frame')
    assert.equal(assembler.pendingSinceMonoMs, undefined)
  })

  test('a second partial frame has a wait of its own', () => {
    const assembler = new FrameAssembler(plover)
    const heard = listener()
    const frame = frameOf(1, 2)
    assembler.push(frame.subarray(0, 2), 5, heard)
    assembler.push(Buffer.concat([frame.subarray(2), frame.subarray(0, 3)]), 9, heard)
    assert.deepEqual(heard.seen, hexes(frame))
    assert.equal(assembler.pendingSinceMonoMs, 9)
  })

  test('before the first good frame the cap is the small one', () => {
    const long = frameOf(...Array.from({ length: 20 }, () => 1))
    const stranger = listener()
    const assembler = new FrameAssembler(plover)
    assembler.push(long, 0, stranger)
    assert.deepEqual(stranger.seen, [`bad_length ${hexes(long)[0]}`])
    const known = listener()
    assembler.push(Buffer.concat([frameOf(1), long]), 0, known)
    assert.deepEqual(known.seen, hexes(frameOf(1), long))
    assert.equal(assembler.frameBytesMax, CAP)
    const handedOver = listener()
    new FrameAssembler(plover, true).push(long, 0, handedOver)
    assert.deepEqual(handedOver.seen, hexes(long))
  })

  test('given up, a header is noise, and the frames it had swallowed are found', () => {
    const assembler = new FrameAssembler(plover, true)
    const heard = listener()
    const liar = Uint8Array.of(HEADER, 25, 5, 5)
    assembler.push(Buffer.concat([liar, frameOf(1), frameOf(2).subarray(0, 2)]), 0, heard)
    assert.deepEqual(heard.seen, [])
    assembler.giveUpPending(15_000, heard)
    assert.deepEqual(heard.seen, ['incomplete 7e190505', ...hexes(frameOf(1))])
    assert.deepEqual([assembler.pendingBytes, assembler.pendingSinceMonoMs], [2, 15_000])
    assembler.push(frameOf(2).subarray(2), 15_001, heard)
    assert.deepEqual(heard.seen.slice(2), hexes(frameOf(2)))
    assembler.giveUpPending(15_002, heard)
    assert.equal(heard.seen.length, 3, 'nothing waits, nothing is given up')
  })

  test('a finder that always wants more does not make it hold more than one frame', () => {
    const greedy = {
      ...plover,
      findFrame: (_: Uint8Array, from: number, to: number, _max: number, mark: UnitMark) => {
        mark.kind = UNIT.needMore
        mark.from = from
        mark.to = to
      },
    } as unknown as Protocol
    const assembler = new FrameAssembler(greedy)
    const heard = listener()
    for (let index = 0; index < 500; index++) {
      assembler.push(new Uint8Array(1 + (index % 50)), index, heard)
      assert.ok(assembler.pendingBytes < CAP)
    }
  })

  test('no chunking changes what is seen', () => {
    const piece = fc.oneof(
      fc.array(fc.nat(255), { maxLength: 20 }).map((body) => frameOf(...body)),
      fc.uint8Array({ maxLength: 6 }),
      fc.constant(Uint8Array.of(HEADER, 200)),
    )
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 12 }),
        fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
        (pieces, sizes) => {
          const stream = Buffer.concat(pieces)
          // noise is split differently by different cuts, frames are not
          const framesIn = (chunks: readonly Uint8Array[]) => {
            const heard = listener()
            const assembler = new FrameAssembler(plover, true)
            for (const chunk of chunks) assembler.push(chunk, 0, heard)
            while (assembler.pendingBytes > 0) assembler.giveUpPending(0, heard)
            const noiseAndFrames = heard.seen.map((unit) => unit.split(' ').at(-1)).join('')
            assert.equal(noiseAndFrames, stream.toString('hex'), 'every byte is visited once')
            return heard.seen.filter((unit) => !unit.includes(' '))
          }
          const chunks: Uint8Array[] = []
          for (let at = 0, index = 0; at < stream.length; index++) {
            const size = sizes[index % sizes.length]!
            chunks.push(stream.subarray(at, at + size))
            at += size
          }
          assert.deepEqual(framesIn(chunks), framesIn([stream]))
        },
      ),
      { numRuns: 500 },
    )
  })
})
