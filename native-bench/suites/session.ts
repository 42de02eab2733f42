/**
 * One chunk through the session logic: find, decode, decide, encode the reply, build rows. Replies are dropped and rows
 * are encoded and dropped, so that the deciding is measured. Settlements are acked in bulk, as main would.
 */
import type { Protocol } from '../../src/codec/protocol.ts'
import { ap3000 } from '../../src/protocols/ap3000/table.ts'
import { bkv } from '../../src/protocols/bkv/table.ts'
import { encodeRow, type Field, type RowKind, type RowOf } from '../../src/rows/row.ts'
import type { Moment, SessionCounts } from '../../src/session/effects.ts'
import { Shard } from '../../src/session/shard.ts'
import { allocateDirectory, Directory } from '../../src/shared/directory.ts'
import { RecordingEffects } from '../../src/testing/recording-effects.ts'
import { AP3000_HEARTBEAT, AP3000_PROGRESS, AP3000_SETTLEMENT, BKV_HEARTBEAT, BKV_STATUS } from '../frames.ts'
import { keep, type Suite } from '../suite.ts'

const REPEATS = 500
const nothing = () => {}

/** Everything is taken and forgotten. */
class ForgetfulEffects extends RecordingEffects {
  override readonly counts = Object.fromEntries(
    Object.keys(new RecordingEffects().counts).map((name) => [name, nothing]),
  ) as unknown as SessionCounts
  frames = 0
  #rowBytes = 0

  override send(_connectionId: number, frame: Uint8Array): boolean {
    this.frames++
    keep(frame)
    return true
  }

  override appendRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): number {
    this.#rowBytes += encodeRow(row, values).length
    return this.#rowBytes
  }

  override get position(): number {
    return this.#rowBytes
  }
}

const CONNECTION = 1

/** @param isAnswered false for commands that nothing answers */
function step(protocol: Protocol, chunk: Uint8Array, isAnswered = true): () => void {
  const directory = new Directory(allocateDirectory(1_024, 1))
  const effects = new ForgetfulEffects()
  let monoMs = 0
  const now = (): Moment => ({ wallMs: 1_767_225_600_000 + monoMs, monoMs })
  const shard = new Shard(
    {
      shard: 0,
      idleTimeoutMs: 300_000,
      stateFlushMs: 1_000,
      seenFlushMs: 300_000,
      cardLookupTimeoutMs: 2_000,
      commands: { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 },
    },
    directory,
    effects,
    now(),
  )
  shard.connectionOpened(
    { connectionId: CONNECTION, protocol, birth: directory.nextEpoch(), remoteAddress: '127.0.0.1:1' },
    now(),
  )
  return () => {
    effects.frames = 0
    for (let repeat = 0; repeat < REPEATS; repeat++) shard.chunkReceived(CONNECTION, chunk, now())
    shard.durableReached(effects.position, [], now())
    if (effects.frames > 0 !== isAnswered) throw new Error(`${effects.frames} replies to ${REPEATS} frames`)
    // a thousandth of a second per frame: timers and flushes run as often as they would
    monoMs += REPEATS
    shard.tick(now())
    shard.flush(now())
  }
}

export const suite: Suite = {
  name: 'one session step, per frame',
  baseline: 'AP3000 21',
  cases: [
    { name: 'AP3000 21', operations: REPEATS, run: step(ap3000, AP3000_HEARTBEAT) },
    { name: 'AP3000 06', operations: REPEATS, run: step(ap3000, AP3000_PROGRESS, false) },
    { name: 'AP3000 03, with its ack', operations: REPEATS, run: step(ap3000, AP3000_SETTLEMENT) },
    { name: 'BKV 0000', operations: REPEATS, run: step(bkv, BKV_HEARTBEAT) },
    { name: 'BKV 1000/1017', operations: REPEATS, run: step(bkv, BKV_STATUS) },
  ],
}
