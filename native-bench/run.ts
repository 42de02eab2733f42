/**
 * `npm run bench`: every file of `suites/` in turn, medians and ratios to the suite's own baseline.
 * `-- --json FILE` writes the results with the machine they were measured on; `-- --only TEXT` runs the suites whose
 * file or name contains TEXT; `-- --time-ms N` measures each case for N ms (default 300).
 */
import { readdir, writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { Bench } from 'tinybench'
import { machineFacts } from './machine.ts'
import type { Suite } from './suite.ts'

interface CaseResult {
  readonly name: string
  readonly ns_per_operation_median: number
  readonly ns_per_operation_p99: number
  readonly operations_per_s: number
  /** Baseline's time / this time: above 1 is faster than the baseline. */
  readonly times_baseline: number
  readonly samples: number
}

async function loadSuites(only: string): Promise<Suite[]> {
  const folder = new URL('./suites/', import.meta.url)
  const files = (await readdir(folder)).filter((file) => file.endsWith('.ts')).sort()
  const suites: Suite[] = []
  for (const file of files) {
    const { suite } = (await import(new URL(file, folder).href)) as { suite: Suite }
    if (file.includes(only) || suite.name.includes(only)) suites.push(suite)
  }
  return suites
}

async function measure(suite: Suite, timeMs: number): Promise<CaseResult[]> {
  const bench = new Bench({ name: suite.name, time: timeMs, warmupTime: timeMs / 3, throws: true })
  for (const one of suite.cases) bench.add(one.name, one.run)
  await bench.run()
  const measured = suite.cases.map((one, index) => {
    const result = bench.tasks[index]?.result
    if (result?.state !== 'completed') throw new Error(`${suite.name}: ${one.name} ended as ${result?.state}`)
    const nsOf = (ms: number) => (ms * 1e6) / one.operations
    return {
      name: one.name,
      median: nsOf(result.latency.p50),
      p99: nsOf(result.latency.p99),
      samples: result.latency.samplesCount,
    }
  })
  const baseline = measured.find(({ name }) => name === suite.baseline)
  if (baseline === undefined) throw new Error(`${suite.name}: no case is called ${suite.baseline}`)
  return measured.map(({ name, median, p99, samples }) => ({
    name,
    ns_per_operation_median: round(median),
    ns_per_operation_p99: round(p99),
    operations_per_s: Math.round(1e9 / median),
    times_baseline: Math.round((baseline.median / median) * 100) / 100,
    samples,
  }))
}

const round = (ns: number) => Math.round(ns * 10) / 10

const { values } = parseArgs({
  options: {
    json: { type: 'string' },
    only: { type: 'string', default: '' },
    'time-ms': { type: 'string', default: '300' },
  },
})
const timeMs = Number(values['time-ms'])
if (!(timeMs > 0)) throw new RangeError(`--time-ms ${values['time-ms']}: not a time`)
const machine = machineFacts()
process.stdout.write(`${machine.cpu}, ${machine.cores} cores, node ${machine.node}, commit ${machine.commit}\n`)
const results: { suite: string; baseline: string; cases: CaseResult[] }[] = []
for (const suite of await loadSuites(values.only)) {
  const cases = await measure(suite, timeMs)
  results.push({ suite: suite.name, baseline: suite.baseline, cases })
  process.stdout.write(`\n${suite.name} (baseline: ${suite.baseline})\n`)
  for (const one of cases)
    process.stdout.write(
      `  ${one.name.padEnd(36)} ${String(one.ns_per_operation_median).padStart(9)} ns  ${String(one.operations_per_s).padStart(11)}/s  x${one.times_baseline}\n`,
    )
}
if (results.length === 0) {
  process.stderr.write(`no suite is called ${values.only}\n`)
  process.exitCode = 2
} else if (values.json !== undefined) {
  await writeFile(values.json, `${JSON.stringify({ machine, results }, null, 2)}\n`)
}
