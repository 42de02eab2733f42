/**
 * `npm run fuzz -- [--protocol ap3000|bkv|all] [--frames N] [--seconds T] [--seed S] [--only N] [--json]`: the codec
 * fuzzer over N damaged frames per protocol, or as many as T seconds allow, or over one input alone, whose bytes it
 * prints. Ends with 1 when a claim was broken.
 */
import { oneOf, readOptions, wholeNumber } from '../config/command-line.ts'
import { type FuzzReport, fuzz } from './fuzz.ts'
import { inputOf, TARGETS } from './fuzz-input.ts'

const values = readOptions(
  'npm run fuzz -- [--protocol ap3000|bkv|all] [--frames N] [--seconds T] [--seed S] [--only N] [--json]',
  {
    protocol: { type: 'string', default: 'all' },
    frames: { type: 'string', default: '1000000' },
    seconds: { type: 'string' },
    seed: { type: 'string', default: '1' },
    only: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
)

const protocol = oneOf('protocol', values.protocol, ['ap3000', 'bkv', 'all'])
const names = (['ap3000', 'bkv'] as const).filter((name) => protocol === 'all' || protocol === name)
const seed = wholeNumber('seed', values.seed)
const frames = wholeNumber('frames', values.frames)
const seconds = values.seconds === undefined ? undefined : wholeNumber('seconds', values.seconds, 1)
const only = values.only === undefined ? undefined : wholeNumber('only', values.only)

function tell({ protocol, counts, commands, failures, seconds: elapsedS }: FuzzReport): void {
  const rate = Math.round(counts.frames / elapsedS)
  const neverDecoded = Object.keys(commands).filter((name) => commands[name] === 0)
  console.log(
    `${protocol} seed ${seed}: ${counts.frames} frames in ${elapsedS.toFixed(1)} s (${rate}/s), ${failures.length} failures`,
  )
  console.log(
    `  ${Object.entries(counts)
      .map(([name, count]) => `${name} ${count}`)
      .join(', ')}`,
  )
  if (only === undefined)
    console.log(
      `  ${Object.keys(commands).length} commands, never decoded: ${neverDecoded.length === 0 ? 'none' : neverDecoded.join(', ')}`,
    )
  for (const failure of failures) {
    console.log(`  FAILED ${failure.what}`)
    console.log(`    bytes ${failure.hex} (good frames from byte ${failure.goodFrom})`)
    console.log(`    replay: ${failure.replay}`)
  }
}

for (const protocol of names) {
  const report = fuzz({
    protocol,
    seed,
    frames,
    ...(only === undefined ? {} : { only }),
    ...(seconds === undefined ? {} : { secondsMax: seconds }),
  })
  if (only !== undefined && !values.json) {
    const { stream, goodAt, isLoggedIn, cuts } = inputOf(TARGETS[protocol], seed, only)
    console.log(`input ${only}: ${Buffer.from(stream).toString('hex')}`)
    console.log(`  good frames at ${goodAt.join(' ')}, logged in ${isLoggedIn}, cut at ${cuts.join(' ') || 'no place'}`)
  }
  if (values.json) console.log(JSON.stringify(report))
  else tell(report)
  if (report.failures.length > 0) process.exitCode = 1
}
