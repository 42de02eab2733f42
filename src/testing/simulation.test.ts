/**
 * The whole-gateway simulation (simulation.ts says what is claimed and how it is tried) over the first thousand seeds;
 * that its generator of faults brings about everything in `COVERAGE`; that a seed repeats itself exactly; and that the
 * invariants can fail: each mutant breaks the gateway in one way, by wrapping an object of it, and must be caught.
 *
 * A failure names its seed and the command that replays it. More seeds: `npm run sim -- --seeds N --from S`.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { COVERAGE, type Covered, MUTANTS, type Mutant } from './sim-world.ts'
import { SimulationFailure, type SimulationResult, simulate } from './simulation.ts'

const SEEDS = 1_000
const PIECE = 200
/** Seeds that found something, each kept with what it found; beyond the first thousand. */
const FOUND: Readonly<Record<number, string>> = {
  503630: 'an unsent command came back with its id, which another had been given meanwhile',
  504415: 'a host lost one of its devices to a newer connection and kept the others',
  102355: 'the ack of a report sent three times came when the next charge of the socket had ended',
  107100: 'the result of a start that had timed out came when its charge was settled as one of the device’s own',
  920748: 'of two starts in doubt on a port a report proved the older one',
}
/** Seeds within which a mutant must be caught. */
const MUTANT_SEEDS = 150

/** Which invariants may report a mutant: being caught by accident would prove nothing. */
const CAUGHT_BY: Record<Mutant, readonly string[]> = {
  ackBeforeDurable: ['no ack before durable', 'written down before it is sent'],
  ackOfPutAside: ['no ack before durable'],
  forgetRetry: ['no ack before durable', 'written down before it is sent'],
  durableOutOfOrder: ['no ack before durable', 'written down before it is sent'],
  staleCloseUnbinds: ['a reconnect wins'],
  olderMayClaim: ['a reconnect wins', 'one speaker per device'],
  noFence: ['one speaker per device'],
  spoolDropped: ['no row lost'],
  sameGeneration: ['epochs grow'],
  shardForgetsPosition: ['no row lost', 'outbox', 'no exception', 'no ack before durable', 'liveness'],
  deafPump: ['liveness'],
  claimKept: ['liveness', 'the directory tells who is there'],
  stateUnfenced: ['the newest epoch stands', 'the newest state stands'],
  answerTwice: ['each reply answers one uplink'],
  sendAfterExpiry: ['nothing is sent after its expiry'],
  twoFates: ['one fate'],
  noSpacing: ['commands keep their distance'],
  newIdOnResend: ['a resend has the same id'],
  startRepeatedBlindly: ['a BKV start is sent once'],
  startRanTwice: ['an order runs once', 'a start is sent in one session'],
  settlementCountedTwice: ['no row twice', 'one settlement per order', 'an estimate gives way'],
  balanceMovedTwice: ['a card pays once'],
  estimateStands: ['none contradicting', 'one settlement per order'],
  correctionIsAnotherEnd: ['one charging.ended per order'],
  orderNumbersCollide: ['an order runs once', 'one settlement per order'],
  forgetReturned: ['liveness'],
  ackWithoutResult: ['acked means done'],
  sendBeforeDurable: ['written down before it is sent'],
  deskTrustsTheDead: ['nothing is sent after its fate', 'written down before it is sent'],
}

describe('the gateway as a whole', () => {
  const counts = new Map<Covered, number>()
  let settlements = 0
  let commands = 0
  // in pieces: a test that takes minutes on a busy machine would be taken for one that hangs
  for (let from = 1; from <= SEEDS; from += PIECE)
    test(`holds over seeds ${from} to ${from + PIECE - 1}`, async () => {
      for (let seed = from; seed < from + PIECE; seed++) {
        const result = await simulate(seed)
        settlements += result.settlements
        commands += result.commands
        for (const [name, count] of result.coverage) counts.set(name, (counts.get(name) ?? 0) + count)
      }
    })

  test(`over these ${SEEDS} seeds everything that should go wrong did`, () => {
    assert.deepEqual(
      COVERAGE.filter((name) => !counts.has(name)),
      [],
      'never exercised',
    )
    assert.ok(settlements > 10 * SEEDS, `only ${settlements} settlements`)
    assert.ok(commands > 10 * SEEDS, `only ${commands} commands`)
    assert.ok(counts.get('order.paid')! > 5 * SEEDS, `only ${counts.get('order.paid')} orders cost anything`)
  })

  for (const [seed, what] of Object.entries(FOUND))
    test(`holds where it did not: ${what} (seed ${seed})`, async () => {
      await simulate(Number(seed))
    })

  test('a seed is the same story every time, line by line', async () => {
    const tell = async (seed: number): Promise<{ lines: string[]; result: SimulationResult }> => {
      const lines: string[] = []
      const result = await simulate(seed, { say: (line) => lines.push(line) })
      return { lines, result }
    }
    for (const seed of [3, 17]) {
      const first = await tell(seed)
      const second = await tell(seed)
      assert.ok(first.lines.length > 200, `${first.lines.length} lines`)
      assert.deepEqual(second, first)
    }
    assert.notDeepEqual((await tell(4)).lines, (await tell(5)).lines)
  })
})

describe('the invariants can fail', () => {
  for (const mutant of MUTANTS)
    test(`${mutant} is caught`, async () => {
      const failure = await firstFailure(mutant)
      assert.ok(failure, `${mutant} lived through ${MUTANT_SEEDS} seeds`)
      assert.ok(CAUGHT_BY[mutant].includes(failure.invariant), failure.message)
      assert.match(failure.message, new RegExp(`npm run sim -- --seed ${failure.seed} `))
    })
})

async function firstFailure(mutant: Mutant): Promise<SimulationFailure | undefined> {
  for (let seed = 1; seed <= MUTANT_SEEDS; seed++)
    try {
      await simulate(seed, { mutant })
    } catch (error) {
      if (error instanceof SimulationFailure) return error
      throw error
    }
  return undefined
}
