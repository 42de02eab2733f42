/** What a file of `suites/` exports, and what `run.ts` makes of it. */

export interface BenchCase {
  readonly name: string
  /** Operations one call performs: short ones are repeated inside, or the clock would be measured. */
  readonly operations: number
  readonly run: () => void
}

export interface Suite {
  readonly name: string
  /** The case that others are compared with. */
  readonly baseline: string
  readonly cases: readonly BenchCase[]
}

const kept: { value: unknown } = { value: undefined }
/** Keeps a result alive, so that the engine cannot prove that nobody wants it. */
export function keep(value: unknown): void {
  kept.value = value
}
