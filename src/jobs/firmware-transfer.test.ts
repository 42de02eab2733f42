/**
 * Claim: whatever a device answers, a transfer ends, within a number of sends that its length bounds; the device gets
 * every chunk from the first to the last, none skipped; a request of the device always leads back to chunk 1; and a
 * transfer cut off anywhere goes on from what was kept. Tried by a model device behind a line that loses, delays and
 * forgets at random (fast-check prints the seed of a failure), and by the steps of the document one by one.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  advance,
  newTransfer,
  nextChunk,
  percentOf,
  RESTARTS_MAX,
  SENDS_MAX,
  type Transfer,
  type TransferInput,
  type TransferStep,
} from './firmware-transfer.ts'

const step = (transfer: Transfer, ...inputs: TransferInput[]) =>
  inputs.reduce<{ transfer: Transfer; step: TransferStep }>((so, input) => advance(so.transfer, input), {
    transfer,
    step: { kind: 'send', chunk: nextChunk(transfer) },
  })

describe('the dialogue', () => {
  test('next leads to the next chunk, the last one to the end', () => {
    const begun = newTransfer(2, false)
    assert.equal(nextChunk(begun), 1)
    assert.deepEqual(step(begun, { kind: 'next', chunk: 1 }).step, { kind: 'send', chunk: 2 })
    const over = step(begun, { kind: 'next', chunk: 1 }, { kind: 'next', chunk: 2 })
    assert.deepEqual(over.step, { kind: 'finished' })
    assert.equal(percentOf(over.transfer), 100)
  })

  test('a host enters upgrade mode first, and then gets chunk 1', () => {
    const begun = newTransfer(3, true)
    assert.equal(nextChunk(begun), 0)
    assert.deepEqual(step(begun, { kind: 'next', chunk: 0 }).step, { kind: 'send', chunk: 1 })
  })

  test('resends are counted with the sends of the lane, per chunk', () => {
    const resend = { kind: 'resend', sends: 1 } as const
    const begun = newTransfer(3, false)
    assert.deepEqual(step(begun, resend, resend, resend).step, { kind: 'send', chunk: 1 })
    assert.deepEqual(step(begun, resend, resend, resend, resend).step, {
      kind: 'failed',
      reason: 'too_many_resends',
      isSilence: false,
    })
    const taken = step(begun, resend, resend, resend, { kind: 'next', chunk: 1 }, resend, resend, resend)
    assert.deepEqual(taken.step, { kind: 'send', chunk: 2 })
    assert.deepEqual(step(begun, { kind: 'timeout', sends: 4 }).step, {
      kind: 'failed',
      reason: 'no_result',
      isSilence: true,
    })
  })

  test('sum error and wrong type end it', () => {
    assert.deepEqual(step(newTransfer(3, false), { kind: 'refused', reason: 'wrong_type' }).step, {
      kind: 'failed',
      reason: 'wrong_type',
      isSilence: false,
    })
  })

  test('a request leads back to chunk 1, also of a host, but not for ever', () => {
    const begun = step(newTransfer(9, true), { kind: 'next', chunk: 0 }, { kind: 'next', chunk: 1 }).transfer
    const restarts = Array.from({ length: RESTARTS_MAX }, () => ({ kind: 'restart' }) as const)
    assert.deepEqual(step(begun, restarts[0]!).step, { kind: 'send', chunk: 1 })
    assert.equal(step(begun, restarts[0]!).transfer.acked, 0)
    assert.deepEqual(step(begun, ...restarts).step, { kind: 'send', chunk: 1 })
    assert.equal(step(begun, ...restarts, { kind: 'restart' }).step.kind, 'failed')
  })

  test('a result for another chunk skips nothing', () => {
    const wrong = step(newTransfer(9, false), { kind: 'next', chunk: 4 })
    assert.deepEqual(wrong.step, { kind: 'send', chunk: 1 })
    assert.equal(wrong.transfer.acked, 0)
  })
})

/** What happens to one frame: weights of ten. */
const line = fc.constantFrom<'taken' | 'resend' | 'lost' | 'wrong' | 'forgets' | 'refused'>(
  ...Array.from({ length: 24 }, () => 'taken' as const),
  'resend',
  'resend',
  'lost',
  'wrong',
  'forgets',
  'refused',
)

test('any device and any line: it ends in bounded sends, and a finished device has every chunk in order', () => {
  const outcomes = new Map<string, number>()
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.boolean(),
      fc.infiniteStream(line),
      (chunksTotal, needsTrigger, happenings) => {
        let transfer = newTransfer(chunksTotal, needsTrigger)
        let held: number[] = []
        let isInUpgradeMode = !needsTrigger
        let sends = 0
        const bound = (RESTARTS_MAX + 1) * (chunksTotal + 1) * SENDS_MAX
        for (;;) {
          const chunk = nextChunk(transfer)
          sends++
          assert.ok(sends <= bound, `${sends} sends of ${chunksTotal} chunks`)
          if (chunk > 1) assert.equal(chunk, held.length + 1, 'what goes out follows what the device has')
          let input: TransferInput
          switch (happenings.next().value) {
            case 'resend':
              input = { kind: 'resend', sends: 1 }
              break
            case 'lost':
              input = { kind: 'timeout', sends: SENDS_MAX - 1 }
              break
            case 'wrong':
              input = { kind: 'next', chunk: chunk + 1 }
              break
            case 'forgets':
              held = []
              isInUpgradeMode = true
              input = { kind: 'restart' }
              break
            case 'refused':
              input = { kind: 'refused', reason: 'sum_error' }
              break
            default:
              if (chunk === 0) isInUpgradeMode = true
              else {
                assert.ok(isInUpgradeMode, 'a chunk before upgrade mode')
                held.push(chunk)
              }
              input = { kind: 'next', chunk }
          }
          // as through a restart of the gateway: only what is stored goes on
          const moved = advance(JSON.parse(JSON.stringify(transfer)) as Transfer, input)
          transfer = moved.transfer
          if (moved.step.kind !== 'send') {
            outcomes.set(moved.step.kind, (outcomes.get(moved.step.kind) ?? 0) + 1)
            if (moved.step.kind === 'finished')
              assert.deepEqual(
                held,
                Array.from({ length: chunksTotal }, (_, index) => index + 1),
              )
            return
          }
          assert.equal(moved.step.chunk, nextChunk(transfer))
        }
      },
    ),
    { numRuns: 2_000 },
  )
  // both ends were seen, or the claim was not tried
  assert.ok((outcomes.get('finished') ?? 0) > 50 && (outcomes.get('failed') ?? 0) > 50, JSON.stringify([...outcomes]))
})
