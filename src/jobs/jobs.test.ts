/**
 * Claim: an image becomes the chunks of AP3000 document, section 8, padding and check chunk included; parameters that
 * were read back are compared field by field, and what cannot be compared is said; fates become the outcomes and next
 * commands they mean; waves begin, wait, pause and end as their rules say. Tried case by case; the image also by putting
 * random ones together again.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { decodeCheckChunk } from '../protocols/ap3000/commands/firmware.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import { afterChunk, afterOta, afterRead, afterWrite, type Fate, UPGRADE_REQUESTED } from './dialogue.ts'
import { chunkFields, chunksTotalOf, FIRMWARE_TARGETS } from './firmware-image.ts'
import { newTransfer } from './firmware-transfer.ts'
import { compareParameters, readBackOf } from './parameter-proof.ts'
import { stepOfWave } from './waves.ts'

const fate = (status: keyof typeof COMMAND_STATUS, more: Partial<Fate> = {}): Fate => ({
  status: COMMAND_STATUS[status],
  reason: 'ok',
  attempts: 1,
  ...more,
})

describe('an image', () => {
  test('its chunks, put together, are the image and padding, and every chunk encodes', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 2_000 }),
        fc.constantFrom(...Object.values(FIRMWARE_TARGETS)),
        (image, target) => {
          const chunksTotal = chunksTotalOf(target, image.length, undefined)
          const downlink = ap3000.downlinkByName.get(target.command)!
          const parts = Array.from({ length: chunksTotal }, (_, index) => {
            const data = Buffer.from(downlink.encode(chunkFields(target, image, undefined, index + 1)))
            assert.equal(data.length, 4 + target.chunkBytes)
            assert.deepEqual([data.readUInt16LE(0), data.readUInt16LE(2)], [chunksTotal, index + 1])
            return data.subarray(4)
          })
          const whole = Buffer.concat(parts)
          assert.deepEqual(whole.subarray(0, image.length), Buffer.from(image))
          assert.ok(whole.subarray(image.length).every((byte) => byte === 0xff))
          assert.ok(whole.length - image.length < target.chunkBytes)
        },
      ),
      { numRuns: 200 },
    )
  })

  test('the check chunk stands behind the last and is counted; its sum is that of the firmware', () => {
    const image = Uint8Array.from({ length: 401 }, (_, index) => index & 0xff)
    const check = { deviceTypeHex: '1f', fwVersion: 641 }
    assert.equal(chunksTotalOf(FIRMWARE_TARGETS.slave, image.length, check), 4)
    const { firmwareHex, chunk } = chunkFields(FIRMWARE_TARGETS.slave, image, check, 4) as Record<string, string>
    assert.equal(chunk, 4)
    const sum = image.reduce((total, byte) => total + byte, 0)
    assert.deepEqual(decodeCheckChunk(firmwareHex!), { sum, ...check })
    assert.equal(
      decodeCheckChunk(chunkFields(FIRMWARE_TARGETS.slave, image, check, 3)['firmwareHex'] as string),
      undefined,
    )
  })

  test('upgrade mode of a host is entered by an empty frame', () => {
    const downlink = ap3000.downlinkByName.get('firmwareHost')!
    assert.equal(downlink.encode(chunkFields(FIRMWARE_TARGETS.host, Uint8Array.of(1), undefined, 0)).length, 0)
  })
})

describe('read back', () => {
  test('every command named exists in its table', () => {
    for (const [protocol, name] of [
      [ap3000, 'setParameters1'],
      [ap3000, 'setParameters2'],
      [ap3000, 'setLimits'],
      [ap3000, 'setCardKeys'],
      [bkv, 'setParameters'],
    ] as const) {
      assert.ok(protocol.downlinkByName.has(name))
      const readBack = readBackOf(protocol.name, name, { socket: 7 })
      assert.ok(protocol.downlinkByName.has(readBack!.name))
      assert.deepEqual(readBack!.params, protocol === bkv ? { socket: 7 } : {})
    }
    assert.equal(readBackOf('ap3000', 'setSilent', {}), undefined)
  })

  test('only what was written is compared; keys of cards cannot be', () => {
    const wanted = { a: 1, keyHex: 'AB', card_password_hex: '00', left: undefined }
    assert.deepEqual(compareParameters(wanted, { a: 1, keyHex: 'ab', b: 2 }), {
      mismatches: [],
      unproven: ['card_password_hex'],
    })
    assert.deepEqual(compareParameters({ a: 1, c: 3 }, { a: 2 }).mismatches, [
      { field: 'a', wanted: 1, found: 2 },
      { field: 'c', wanted: 3, found: null },
    ])
  })
})

describe('fates', () => {
  test('of a write', () => {
    assert.deepEqual(afterWrite(fate('acked'), true), { kind: 'read' })
    assert.equal((afterWrite(fate('acked'), false) as { outcome: string }).outcome, 'ok')
    for (const [status, outcome] of [
      ['refused', 'refused'],
      ['dead', 'dead'],
      ['expired', 'expired'],
      ['cancelled', 'cancelled'],
    ] as const)
      assert.deepEqual(afterWrite(fate(status, { reason: 'why' }), true), {
        kind: 'ended',
        outcome,
        reason: 'why',
        detail: {},
      })
  })

  test('of a read', () => {
    assert.equal(afterRead(fate('acked', { content: { a: 1 } }), { a: 1 }).outcome, 'ok')
    assert.equal(afterRead(fate('acked', { content: { a: 2 } }), { a: 1 }).outcome, 'mismatch')
    assert.equal(afterRead(fate('acked'), { a: 1 }).outcome, 'mismatch')
    assert.deepEqual(afterRead(fate('dead', { reason: 'no_result' }), { a: 1 }), {
      kind: 'ended',
      outcome: 'dead',
      reason: 'read_back_no_result',
      detail: {},
    })
  })

  test('of an OTA by FTP: nothing more than that it was sent', () => {
    assert.equal(afterOta(fate('acked')).outcome, 'sent')
    assert.equal(afterOta(fate('expired')).outcome, 'expired')
  })

  test('of a chunk', () => {
    const transfer = newTransfer(3, false)
    const outcome = (next: ReturnType<typeof afterChunk>) => (next.kind === 'send' ? next.chunk : next.outcome)
    assert.equal(outcome(afterChunk(transfer, fate('acked', { chunk: 1 }), false)), 2)
    assert.equal(outcome(afterChunk(transfer, fate('acked', { chunk: 1 }), true)), 'cancelled')
    assert.equal(outcome(afterChunk(transfer, fate('refused', { reason: 'resend' }), false)), 1)
    assert.equal(outcome(afterChunk(transfer, fate('refused', { reason: 'wrong_type' }), false)), 'refused')
    assert.equal(outcome(afterChunk(transfer, fate('dead', { attempts: 4 }), false)), 'dead')
    assert.equal(outcome(afterChunk(transfer, fate('expired'), false)), 'expired')
    const far = { ...transfer, acked: 2 }
    assert.equal(outcome(afterChunk(far, fate('dead', { reason: UPGRADE_REQUESTED }), false)), 1)
    assert.equal(outcome(afterChunk(far, fate('acked', { chunk: 3 }), true)), 'ok')
  })
})

test('waves begin, wait, pause and end', () => {
  const rules = { concurrency: 3, pauseAbovePercent: 20 }
  const wave = { waiting: 0, running: 0, done: 0, failed: 0 }
  assert.deepEqual(stepOfWave({ ...wave, waiting: 10 }, rules), { kind: 'begin', count: 3 })
  assert.deepEqual(stepOfWave({ ...wave, waiting: 8, running: 2 }, rules), { kind: 'begin', count: 1 })
  assert.deepEqual(stepOfWave({ ...wave, waiting: 7, running: 3 }, rules), { kind: 'begin', count: 0 })
  assert.deepEqual(stepOfWave({ ...wave, running: 1, done: 9 }, rules), { kind: 'begin', count: 0 })
  assert.deepEqual(stepOfWave({ ...wave, waiting: 8, done: 2, failed: 2 }, rules), { kind: 'begin', count: 3 })
  assert.deepEqual(stepOfWave({ ...wave, waiting: 7, done: 3, failed: 3 }, rules), { kind: 'pause' })
  // a last wave that failed says so as well
  assert.deepEqual(stepOfWave({ ...wave, done: 3, failed: 3 }, rules), { kind: 'pause' })
  assert.deepEqual(stepOfWave({ ...wave, done: 3, failed: 3 }, { ...rules, pauseAbovePercent: null }), {
    kind: 'nextWave',
  })
  assert.deepEqual(stepOfWave({ ...wave, done: 10 }, rules), { kind: 'nextWave' })
})
