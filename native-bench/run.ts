/**
 * `npm run bench`: every file of `suites/` in rounds, each round beside the yardstick; compares with what was recorded on
 * this class of machine and ends with 1 when a case has become worse (gate.ts says what worse is).
 *
 *   --record           writes results/SUITE-MACHINE.json instead of comparing
 *   --only TEXT        suites whose file or name contains TEXT
 *   --tolerance 0.1    beyond the quartiles
 *   --rounds 9 --time-ms 40    rounds, and ms per case and round
 *   --json FILE        also writes all results of this run into one file
 *
 * What looks worse is measured once more before it counts.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Bench } from 'tinybench'
import { anyNumber, readOptions, refuse, wholeNumber, writablePath } from '../src/config/command-line.ts'
import { confirmed, type Judgement, judge, type SuiteRecord, spreadOf, tableOf } from './gate.ts'
import { type MachineFacts, machineClass, machineFacts } from './machine.ts'
import type { Suite } from './suite.ts'
import { YARDSTICK_OPERATIONS, yardstick } from './yardstick.ts'

/** One file of results/. */
interface Recorded extends SuiteRecord {
  readonly machine: MachineFacts
  readonly rounds: number
  readonly time_ms: number
  readonly yardstick_ns: number
}

const RESULTS = join(import.meta.dirname, 'results')
const YARDSTICK = 'yardstick'
const CALIBRATION_CALLS = 20
const SAMPLE_MS_MIN = 0.5
const RECORD_TRIES = 4
const RESTLESS = 1.15

const text = { type: 'string' } as const
const values = readOptions(
  'npm run bench -- [--only TEXT] [--rounds 9] [--time-ms 40] [--tolerance 0.1] [--record] [--json FILE]',
  {
    json: text,
    only: { ...text, default: '' },
    'time-ms': { ...text, default: '40' },
    rounds: { ...text, default: '9' },
    tolerance: { ...text, default: '0.1' },
    record: { type: 'boolean', default: false },
  },
)
const timeMs = anyNumber('time-ms', values['time-ms'], 1)
// quartiles of fewer say nothing
const rounds = wholeNumber('rounds', values.rounds, 3)
const tolerance = anyNumber('tolerance', values.tolerance, 0)
if (values.json !== undefined) writablePath('json', values.json)

/** Suites by the name of their file. */
async function loadSuites(only: string): Promise<Map<string, Suite>> {
  const folder = join(import.meta.dirname, 'suites')
  const suites = new Map<string, Suite>()
  for (const file of readdirSync(folder)
    .filter((name) => name.endsWith('.ts'))
    .sort()) {
    const { suite } = (await import(join(folder, file))) as { suite: Suite }
    if (file.includes(only) || suite.name.includes(only)) suites.set(file.replace(/\.ts$/, ''), suite)
  }
  return suites
}

interface Repeated {
  readonly name: string
  readonly operations: number
  readonly run: () => void
}

/**
 * CPU time of this process, ms: time in which somebody else had the core is not in it. (That of the thread alone counts
 * whole ticks of the kernel.)
 */
function cpuMs(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1_000
}

/** So many calls in one sample that a clock of whole microseconds is fine enough. */
function repeated({ name, operations, run }: Repeated): Repeated {
  let callMs = Number.POSITIVE_INFINITY
  for (let call = 0; call < CALIBRATION_CALLS; call++) {
    const startMs = performance.now()
    run()
    callMs = Math.min(callMs, performance.now() - startMs)
  }
  const calls = Math.max(1, Math.ceil(SAMPLE_MS_MIN / callMs))
  return {
    name,
    operations: operations * calls,
    run: () => {
      for (let call = 0; call < calls; call++) run()
    },
  }
}

/**
 * ns per operation of every case and the yardstick, once: the faster quarter's end, since what other work does to caches
 * and clock only ever adds.
 */
async function measureRound(cases: readonly Repeated[], isFirst: boolean): Promise<Map<string, number>> {
  const bench = new Bench({
    time: timeMs,
    iterations: 3,
    now: cpuMs,
    warmup: true,
    // the first round also waits for the compiler
    warmupTime: isFirst ? 3 * timeMs : timeMs / 4,
    warmupIterations: isFirst ? 8 : 1,
    throws: true,
    retainSamples: true,
  })
  for (const { name, run } of cases) bench.add(name, run)
  await bench.run()
  return new Map(
    cases.map(({ name, operations }, index) => {
      const result = bench.tasks[index]?.result
      if (result?.state !== 'completed') throw new Error(`${name} ended as ${result?.state}`)
      const ns = (spreadOf(result.latency.samples ?? []).q1 * 1e6) / operations
      if (!(ns > 0)) throw new Error(`${name}: ${ns} ns is no time: the clock is too coarse here`)
      return [name, ns]
    }),
  )
}

async function measure(suite: Suite, machine: MachineFacts): Promise<Recorded> {
  const cases = [{ name: YARDSTICK, operations: YARDSTICK_OPERATIONS, run: yardstick }, ...suite.cases].map(repeated)
  const measured: Map<string, number>[] = []
  for (let round = 0; round < rounds; round++) measured.push(await measureRound(cases, round === 0))
  const of = (name: string) => measured.map((round) => round.get(name) as number)
  return {
    suite: suite.name,
    machine,
    rounds,
    time_ms: timeMs,
    yardstick_ns: digits(spreadOf(of(YARDSTICK)).median),
    cases: suite.cases.map(({ name }) => {
      const { q1, median, q3 } = spreadOf(of(name))
      return {
        name,
        ns_per_operation: { q1: digits(q1), median: digits(median), q3: digits(q3) },
        ratios: measured.map((round) => digits((round.get(name) as number) / (round.get(YARDSTICK) as number))),
      }
    }),
  }
}

/** How far the quartiles of its worst case lie apart: 1 is not at all. */
const restlessness = ({ cases }: Recorded): number =>
  Math.max(
    ...cases.map(({ ratios }) => {
      const { q1, q3 } = spreadOf(ratios)
      return q3 / q1
    }),
  )

/** For a record: again while the machine was restless, and the quietest of them. */
async function measureQuietly(suite: Suite, machine: MachineFacts): Promise<Recorded> {
  let best = await measure(suite, machine)
  for (let tries = 1; tries < RECORD_TRIES && restlessness(best) > RESTLESS; tries++) {
    const next = await measure(suite, machine)
    if (restlessness(next) < restlessness(best)) best = next
  }
  if (restlessness(best) > RESTLESS)
    process.stderr.write(
      `${suite.name}: quartiles of a case lie ${restlessness(best).toFixed(2)} x apart; record again when the machine is quiet\n`,
    )
  return best
}

const digits = (value: number) => Number(value.toPrecision(4))

/** JSON as the formatter of this repository has it: lists of numbers on one line. */
function textOf(recorded: Recorded): string {
  const text = JSON.stringify(recorded, null, 2)
  return `${text.replaceAll(/\[\s+([\d.,\s-]+?)\s+\]/g, (_, numbers: string) => `[${numbers.split(/,\s+/).join(', ')}]`)}\n`
}

/** @param baseline the case that others are compared with */
function printTimes({ suite, yardstick_ns, cases }: Recorded, baseline: string): void {
  process.stdout.write(`\n${suite} (yardstick ${yardstick_ns} ns)\n`)
  const base = cases.find(({ name }) => name === baseline)
  for (const { name, ns_per_operation: ns, ratios } of cases) {
    // medians of ratios of the same round, as everywhere here
    const times = base && spreadOf(ratios.map((ratio, round) => ratio / (base.ratios[round] as number))).median
    const besides = name === baseline ? 'the baseline' : `${times?.toPrecision(3)} x the baseline`
    const perS = Math.round(1e9 / ns.median).toLocaleString('en')
    process.stdout.write(
      `  ${name.padEnd(36)} ${String(ns.median).padStart(8)} ns  (${ns.q1} to ${ns.q3})  ${perS.padStart(12)}/s  ${spreadOf(ratios).median.toPrecision(3)} yardsticks, ${besides}\n`,
    )
  }
}

const machine = machineFacts()
const suites = await loadSuites(values.only)
if (suites.size === 0) refuse(`--only ${values.only}: no suite is called so`)
process.stdout.write(`${machine.cpu}, ${machine.cores} cores, node ${machine.node}, commit ${machine.commit}\n`)
const results: Recorded[] = []
const judgements: Judgement[] = []
for (const [file, suite] of suites) {
  const present = await (values.record ? measureQuietly(suite, machine) : measure(suite, machine))
  results.push(present)
  printTimes(present, suite.baseline)
  const path = join(RESULTS, `${file}-${machineClass(machine)}.json`)
  if (values.record) {
    mkdirSync(RESULTS, { recursive: true })
    writeFileSync(path, textOf(present))
  } else if (existsSync(path)) {
    const recorded = JSON.parse(readFileSync(path, 'utf8')) as Recorded
    const first = judge(recorded, present, tolerance)
    const isWorse = first.some(({ verdict }) => verdict === 'worse')
    judgements.push(...(isWorse ? confirmed(first, judge(recorded, await measure(suite, machine), tolerance)) : first))
  } else process.stdout.write(`  nothing recorded for ${machineClass(machine)}: --record writes ${path}\n`)
}
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(results, null, 2)}\n`)
if (judgements.length > 0) {
  const worse = judgements.filter(({ verdict }) => verdict === 'worse').length
  process.stdout.write(`\nin yardsticks, beside the record of ${machineClass(machine)}\n${tableOf(judgements)}\n`)
  process.stdout.write(
    worse === 0
      ? `\nno case is worse by more than ${tolerance * 100} % beyond the quartiles\n`
      : `\n${worse} worse by more than ${tolerance * 100} % beyond the quartiles\n`,
  )
  if (worse > 0) process.exitCode = 1
}
