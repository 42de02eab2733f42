/**
 * Counters of all threads in one region.
 *
 * Head, Int32 words: magic, bytes of the plan, threads, slots per thread. Then the plan, UTF-8 JSON: which series lies
 * at which slot ({@link SeriesPlan}), so that a thread needs the memory and its number, nothing else. Then one block of
 * Float64 slots per thread, each block starting on its own cache line.
 *
 * Invariant: a slot is written by the thread of its block only, and read by main at any time. Plain loads and stores of
 * aligned 8-byte slots; a reader may see a histogram between two of its stores, never half a number.
 */
export const COUNTERS = {
  magic: { slot32: 0, value: 0x70634e54 },
  planBytes: { slot32: 1, unit: 'bytes', writer: 'main, once' },
  threads: { slot32: 2, unit: 'count', writer: 'main, once' },
  slotsPerThread: { slot32: 3, unit: 'count', writer: 'main, once' },
} as const

export const COUNTERS_HEAD_BYTES = 64
/** Two lines: the neighbour line is fetched along. */
export const COUNTERS_BLOCK_ALIGN_BYTES = 128

/**
 * One series. Combination `i` of label values has its slots at `at + i * width`: one for a counter or gauge; for a
 * histogram one per bucket (not cumulated), one beyond the last bound, one for the sum.
 */
export interface SeriesPlan {
  readonly name: string
  readonly type: 'counter' | 'gauge' | 'histogram'
  readonly labels: readonly string[]
  readonly combinations: readonly (readonly string[])[]
  readonly at: number
  readonly width: number
  readonly boundsS: readonly number[]
}

export interface CountersPlan {
  readonly threads: readonly string[]
  readonly series: readonly SeriesPlan[]
}
