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
  rowTwice: ['no row twice'],
  spoolDropped: ['no row lost'],
  sameGeneration: ['epochs grow'],
  shardForgetsPosition: ['no row lost', 'outbox', 'no exception', 'no ack before durable', 'liveness'],
  deafRelay: ['liveness'],
  claimKept: ['liveness', 'the directory tells who is there'],
  stateUnfenced: ['the newest epoch stands', 'the newest state stands'],
  answerTwice: ['each reply answers one uplink'],
  sendAfterExpiry: ['nothing is sent after its expiry'],
  twoFates: ['one fate'],
  noSpacing: ['commands keep their distance'],
  newIdOnResend: ['a resend has the same id'],
  startRepeatedBlindly: ['a BKV start is sent once'],
  forgetReturned: ['liveness'],
  ackWithoutResult: ['acked means done'],
  sendBeforeDurable: ['written down before it is sent'],
  deskTrustsTheDead: ['nothing is sent after its fate', 'written down before it is sent'],
}

describe('the gateway as a whole', () => {
  test(`holds over ${SEEDS} seeds, and everything that should go wrong did`, async () => {
    const counts = new Map<Covered, number>()
    let settlements = 0
    let commands = 0
    for (let seed = 1; seed <= SEEDS; seed++) {
      const result = await simulate(seed)
      settlements += result.settlements
      commands += result.commands
      for (const [name, count] of result.coverage) counts.set(name, (counts.get(name) ?? 0) + count)
    }
    assert.deepEqual(
      COVERAGE.filter((name) => !counts.has(name)),
      [],
      'never exercised',
    )
    assert.ok(settlements > 10 * SEEDS, `only ${settlements} settlements`)
    assert.ok(commands > 10 * SEEDS, `only ${commands} commands`)
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
