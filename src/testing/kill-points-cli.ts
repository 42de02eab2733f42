/**
 * `node src/testing/kill-points-cli.ts --points 50 --seed 1`: kills the gateway at random moments (kill-points.ts). The
 * last line is the report as one JSON object; exit code 1 when something does not hold. Some 3 s per point.
 */
import { exitOnSignals, readOptions, wholeNumber } from '../config/command-line.ts'
import { killPoints } from './kill-points.ts'

const values = readOptions('node src/testing/kill-points-cli.ts [--points 50] [--seed 1] [--devices 12]', {
  points: { type: 'string' },
  seed: { type: 'string' },
  devices: { type: 'string' },
})
const options = {
  points: wholeNumber('points', values.points ?? '50', 1),
  seed: wholeNumber('seed', values.seed ?? '1'),
  // of each protocol at least one
  devices: wholeNumber('devices', values.devices ?? '12', 2, 1_000),
}
exitOnSignals()
const report = await killPoints({ ...options, say: (line) => console.error(line) })
console.log(JSON.stringify(report))
process.exit(report.problems.length === 0 ? 0 : 1)
