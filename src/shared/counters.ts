/** The only file that touches the memory of the counters. */
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks'
import {
  THREAD_METRICS,
  type ThreadCounter,
  type ThreadGauge,
  type ThreadHistogram,
  type ThreadMetric,
  type Vocabulary,
} from '../metrics/catalogue.ts'
import {
  COUNTERS,
  COUNTERS_BLOCK_ALIGN_BYTES,
  COUNTERS_HEAD_BYTES,
  type CountersPlan,
  type SeriesPlan,
} from './counters-layout.ts'

export type Labels = Readonly<Record<string, string>>

const alignUp = (bytes: number) => Math.ceil(bytes / COUNTERS_BLOCK_ALIGN_BYTES) * COUNTERS_BLOCK_ALIGN_BYTES
const combinationKey = (values: readonly string[]) => values.join('\0')

/**
 * Makes the counters of all threads, zeroed.
 *
 * Thread: main, once. About 25 KB per thread with both protocols.
 * @param threads names, also the label values of event_loop_delay_seconds{thread}; their order gives the numbers
 */
export function allocateCounters(threads: readonly string[], vocabulary: Vocabulary): SharedArrayBuffer {
  let slots = 0
  const series: SeriesPlan[] = []
  for (const [name, { type, labels, combinations, boundsS = [] }] of THREAD_METRICS) {
    const width = type === 'histogram' ? boundsS.length + 2 : 1
    const values = combinations({ ...vocabulary, threads })
    series.push({ name, type, labels, combinations: values, at: slots, width, boundsS })
    slots += values.length * width
  }
  const plan: CountersPlan = { threads, series }
  const planBytes = Buffer.from(JSON.stringify(plan))
  const slotsPerThread = alignUp(slots * 8) / 8
  const blocksFrom = alignUp(COUNTERS_HEAD_BYTES + planBytes.length)
  const memory = new SharedArrayBuffer(blocksFrom + threads.length * slotsPerThread * 8)
  const head = new Int32Array(memory, 0, COUNTERS_HEAD_BYTES / 4)
  head[COUNTERS.magic.slot32] = COUNTERS.magic.value
  head[COUNTERS.planBytes.slot32] = planBytes.length
  head[COUNTERS.threads.slot32] = threads.length
  head[COUNTERS.slotsPerThread.slot32] = slotsPerThread
  new Uint8Array(memory, COUNTERS_HEAD_BYTES, planBytes.length).set(planBytes)
  return memory
}

interface Opened {
  readonly plan: CountersPlan
  readonly slotsPerThread: number
  block(thread: number): Float64Array
}

function open(memory: SharedArrayBuffer): Opened {
  const head = new Int32Array(memory, 0, COUNTERS_HEAD_BYTES / 4)
  if (head[COUNTERS.magic.slot32] !== COUNTERS.magic.value) throw new Error('this memory holds no counters')
  const planBytes = head[COUNTERS.planBytes.slot32]!
  const slotsPerThread = head[COUNTERS.slotsPerThread.slot32]!
  const text = Buffer.from(memory, COUNTERS_HEAD_BYTES, planBytes).toString('utf8')
  const plan = JSON.parse(text) as CountersPlan
  const blocksFrom = alignUp(COUNTERS_HEAD_BYTES + planBytes)
  return {
    plan,
    slotsPerThread,
    block: (thread) => new Float64Array(memory, blocksFrom + thread * slotsPerThread * 8, slotsPerThread),
  }
}

/**
 * The counters of one thread. Names and label values are looked up once at start (they throw when not declared); what
 * is called per frame takes the number found then and allocates nothing.
 */
export class ThreadCounters {
  readonly #block: Float64Array
  readonly #series = new Map<string, { plan: SeriesPlan; indexes: Map<string, number> }>()
  readonly #histograms: { readonly at: number; readonly boundsS: readonly number[] }[] = []
  readonly #histogramBySlot = new Map<number, number>()
  #delay: IntervalHistogram | undefined

  constructor(memory: SharedArrayBuffer, thread: number) {
    const { plan, block } = open(memory)
    if (!(thread >= 0 && thread < plan.threads.length)) throw new RangeError(`thread ${thread} has no counters`)
    this.#block = block(thread)
    for (const series of plan.series) {
      const indexes = new Map(series.combinations.map((values, index) => [combinationKey(values), index]))
      this.#series.set(series.name, { plan: series, indexes })
      // a thread that replaces a dead one goes on counting, but what its predecessor held is gone
      if (series.type === 'gauge') this.#block.fill(0, series.at, series.at + series.combinations.length)
    }
  }

  #slot(name: ThreadMetric, labels: Labels): number {
    const { plan, indexes } = this.#series.get(name)!
    const index = indexes.get(combinationKey(plan.labels.map((label) => labels[label] ?? '')))
    if (index === undefined || Object.keys(labels).length !== plan.labels.length)
      throw new Error(`metric ${name} has no labels ${JSON.stringify(labels)}`)
    return plan.at + index * plan.width
  }

  /** @returns handle for `add` */
  counter(name: ThreadCounter, labels: Labels = {}): number {
    return this.#slot(name, labels)
  }

  /** @returns handle for `set` and `add` */
  gauge(name: ThreadGauge, labels: Labels = {}): number {
    return this.#slot(name, labels)
  }

  /** @returns handle for `observe`, no use for `add` or `set` */
  histogram(name: ThreadHistogram, labels: Labels = {}): number {
    const at = this.#slot(name, labels)
    const known = this.#histogramBySlot.get(at)
    if (known !== undefined) return known
    const handle = this.#histograms.push({ at, boundsS: this.#series.get(name)!.plan.boundsS }) - 1
    this.#histogramBySlot.set(at, handle)
    return handle
  }

  /** One load and one store. */
  add(slot: number, n = 1): void {
    this.#block[slot]! += n
  }

  set(slot: number, value: number): void {
    this.#block[slot] = value
  }

  /** A walk over at most a dozen bounds, two loads and two stores. @param n observations of the same value */
  observe(histogram: number, seconds: number, n = 1): void {
    const { at, boundsS } = this.#histograms[histogram]!
    const block = this.#block
    let bucket = 0
    while (bucket < boundsS.length && seconds > boundsS[bucket]!) bucket++
    block[at + bucket]! += n
    block[at + boundsS.length + 1]! += seconds * n
  }

  /** How late timers of the calling thread were since the last call, 99th percentile, seconds; 0 at the first call. */
  loopDelaySeconds(): number {
    if (this.#delay === undefined) {
      this.#delay = monitorEventLoopDelay({ resolution: LOOP_DELAY_RESOLUTION_MS })
      this.#delay.enable()
      return 0
    }
    const delay = this.#delay
    // without a sample percentile() is not 0 but the floor of the histogram; samples include the period itself
    const seconds = delay.count === 0 ? 0 : delay.percentile(99) / 1e9 - LOOP_DELAY_RESOLUTION_MS / 1e3
    delay.reset()
    return Math.max(0, seconds)
  }
}

const LOOP_DELAY_RESOLUTION_MS = 20

/** @param thread its place in the list given to `allocateCounters`; one open ThreadCounters per thread */
export function openCounters(memory: SharedArrayBuffer, thread: number): ThreadCounters {
  return new ThreadCounters(memory, thread)
}

export interface CounterSample {
  readonly labels: Labels
  readonly value: number
}

export interface HistogramSample {
  readonly labels: Labels
  readonly boundsS: readonly number[]
  /** Observations up to bound `i`, cumulated; one more entry than bounds: all. */
  readonly cumulated: readonly number[]
  readonly sumS: number
}

/** All threads' counters, added up. Thread: main; any may. */
export class CountersReader {
  readonly #series = new Map<string, SeriesPlan>()
  readonly #blocks: readonly Float64Array[]

  constructor(memory: SharedArrayBuffer) {
    const { plan, block } = open(memory)
    for (const series of plan.series) this.#series.set(series.name, series)
    this.#blocks = plan.threads.map((_, thread) => block(thread))
  }

  #sum(slot: number): number {
    let sum = 0
    for (const block of this.#blocks) sum += block[slot]!
    return sum
  }

  #labels(series: SeriesPlan, values: readonly string[]): Labels {
    return Object.fromEntries(series.labels.map((label, index) => [label, values[index]!]))
  }

  samples(name: ThreadCounter | ThreadGauge): readonly CounterSample[] {
    const series = this.#series.get(name)!
    return series.combinations.map((values, index) => ({
      labels: this.#labels(series, values),
      value: this.#sum(series.at + index),
    }))
  }

  histograms(name: ThreadHistogram): readonly HistogramSample[] {
    const series = this.#series.get(name)!
    return series.combinations.map((values, index) => {
      const at = series.at + index * series.width
      let count = 0
      const cumulated: number[] = []
      for (let bucket = 0; bucket <= series.boundsS.length; bucket++) {
        count += this.#sum(at + bucket)
        cumulated.push(count)
      }
      return {
        labels: this.#labels(series, values),
        boundsS: series.boundsS,
        cumulated,
        sumS: this.#sum(at + series.boundsS.length + 1),
      }
    })
  }
}
