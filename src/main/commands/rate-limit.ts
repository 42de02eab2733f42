/**
 * A token bucket per name, kept as one number each: the moment at which the bucket would be full again. Names whose
 * bucket is full are forgotten, so there are never more than what came within the last `burst / perS` seconds.
 *
 * Thread: main.
 */
export interface RateLimitOptions {
  /** Tokens that come back per second, more than 0. */
  readonly perS: number
  /** Tokens of a full bucket, at least 1. */
  readonly burst: number
  /** Never goes back; ms. */
  readonly nowMonoMs: () => number
}

const SWEEP_AT_NAMES = 1_024

export class RateLimit {
  readonly #options: RateLimitOptions
  readonly #fullAtMonoMs = new Map<string, number>()
  #sweepAt = SWEEP_AT_NAMES

  constructor(options: RateLimitOptions) {
    this.#options = options
  }

  /** Names whose bucket is not known to be full. */
  get names(): number {
    return this.#fullAtMonoMs.size
  }

  /**
   * Takes one token.
   * @returns 0 when there was one; else nothing was taken, and there is one after so many ms
   */
  take(name: string): number {
    const { perS, burst, nowMonoMs } = this.#options
    const now = nowMonoMs()
    const tokenMs = 1_000 / perS
    const fullAt = Math.max(this.#fullAtMonoMs.get(name) ?? 0, now) + tokenMs
    const waitMs = fullAt - now - burst * tokenMs
    // half a microsecond of rounding is no token
    if (waitMs > 0.0005) return waitMs
    this.#fullAtMonoMs.set(name, fullAt)
    if (this.#fullAtMonoMs.size > this.#sweepAt) this.#sweep(now)
    return 0
  }

  #sweep(now: number): void {
    for (const [name, fullAt] of this.#fullAtMonoMs) if (fullAt <= now) this.#fullAtMonoMs.delete(name)
    this.#sweepAt = Math.max(SWEEP_AT_NAMES, 2 * this.#fullAtMonoMs.size)
  }
}
