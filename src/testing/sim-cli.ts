/**
 * `npm run sim -- [--seeds N] [--from S] [--seed X] [--verbose] [--mutant NAME]`: the simulation over many seeds, or one
 * seed with everything that happens in it. Ends with 1 at the first seed that fails, and with 1 when something that the
 * generator should bring about never occurred (from 1,000 seeds on).
 */
import { oneOf, readOptions, wholeNumber } from '../config/command-line.ts'
import { COVERAGE, type Covered, MUTANTS, type Mutant } from './sim-world.ts'
import { SimulationFailure, simulate } from './simulation.ts'

const values = readOptions('npm run sim -- [--seeds N] [--from S] [--seed X] [--verbose] [--mutant NAME]', {
  seeds: { type: 'string', default: '10000' },
  from: { type: 'string', default: '1' },
  seed: { type: 'string' },
  mutant: { type: 'string' },
  verbose: { type: 'boolean', default: false },
})

const mutant: Mutant | undefined = values.mutant === undefined ? undefined : oneOf('mutant', values.mutant, MUTANTS)

const from = wholeNumber('from', values.from)
const seeds =
  values.seed !== undefined
    ? [wholeNumber('seed', values.seed)]
    : Array.from({ length: wholeNumber('seeds', values.seeds) }, (_, index) => from + index)
const say = values.verbose ? (line: string) => console.log(line) : undefined
const startedMs = performance.now()
const coverage = new Map<Covered, { count: number; seeds: number }>(
  COVERAGE.map((name) => [name, { count: 0, seeds: 0 }]),
)
let current = 0
let done = 0
let events = 0
let virtualMs = 0
let settlements = 0
let commands = 0
let toldMs = startedMs

process.on('unhandledRejection', (error) => {
  console.error(
    `seed ${current}: ${(error as Error).stack ?? error}\nreplay: npm run sim -- --seed ${current} --verbose`,
  )
  process.exit(1)
})

for (const seed of seeds) {
  current = seed
  try {
    const result = await simulate(seed, { ...(mutant && { mutant }), ...(say && { say }) })
    events += result.events
    virtualMs += result.virtualMs
    settlements += result.settlements
    commands += result.commands
    for (const [name, count] of result.coverage) {
      const sum = coverage.get(name)!
      sum.count += count
      sum.seeds++
    }
  } catch (error) {
    if (!(error instanceof SimulationFailure)) throw error
    console.error(error.message)
    process.exit(1)
  }
  done++
  const nowMs = performance.now()
  if (nowMs - toldMs > 5_000) {
    toldMs = nowMs
    console.log(`${done} of ${seeds.length} seeds, ${((nowMs - startedMs) / done).toFixed(1)} ms each`)
  }
}

const tookMs = performance.now() - startedMs
for (const [name, { count, seeds: inSeeds }] of coverage)
  console.log(`${name.padEnd(40)} ${String(count).padStart(9)} in ${inSeeds} seeds`)
console.log(
  `${done} seeds hold: ${events} events, ${(virtualMs / 3_600_000).toFixed(1)} virtual hours, ${settlements} settlements acked, ${commands} commands, ${(tookMs / 1000).toFixed(1)} s, ${(tookMs / done).toFixed(1)} ms per seed`,
)
const missing = COVERAGE.filter((name) => coverage.get(name)!.count === 0)
if (done >= 1_000 && missing.length > 0) {
  console.error(`never occurred: ${missing.join(', ')}`)
  process.exit(1)
}
