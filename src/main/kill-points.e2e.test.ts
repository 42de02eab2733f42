/**
 * Claim: whatever dies at whatever moment, an acked settlement is stored, once; an accepted command has one fate, and no
 * device hears of it after its deadline or its fate; an order ends once, and the amounts add up. Tried by killing (-9)
 * the gateway at random moments below a fleet of both protocols and a client that repeats (src/testing/kill-points.ts);
 * the long form is `node src/testing/kill-points-cli.ts --points 50`. The seed is printed; TEST_SEED repeats it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { killPoints } from '../testing/kill-points.ts'

const seed = Number(process.env['TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31))

test(`three kills while fleet and client go on (TEST_SEED=${seed})`, async (context) => {
  const { problems, ...report } = await killPoints({ points: 3, seed, devices: 8, databaseKillEvery: 3 })
  context.diagnostic(JSON.stringify(report))
  assert.deepEqual(problems, [])
  assert.equal(report.databaseKills, 1)
  assert.ok(report.accepted > 0 && report.settlements > 0 && report.commandFrames > 0)
})
