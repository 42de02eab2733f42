/**
 * Is the database there? Asked once a second, because a server that stands still refuses nothing and fails nobody for
 * long; whoever fails to reach it says so too. While it is away one question at a time goes out until it answers.
 * Thread: main.
 */
import { settledWithin } from '../settled-within.ts'
import { connect, type Sql } from './connect.ts'

export interface DatabaseHealthOptions {
  /** Resolves when the database answers, rejects when it does not. */
  readonly probe: () => Promise<void>
  /** While it is away. */
  readonly probeEveryMs: number
  /** While it is here; 0: only `lost` tells. */
  readonly watchEveryMs: number
  /** A probe that takes longer counts as failed. */
  readonly probeMsMax: number
  readonly onChange: (isHere: boolean) => void
}

export class DatabaseHealth {
  readonly #options: DatabaseHealthOptions
  #isHere = true
  #awaySinceMonoMs = 0
  #timer: NodeJS.Timeout | undefined
  #isProbing = false
  #isStopped = false
  readonly #listeners = new Set<() => void>()

  constructor(options: DatabaseHealthOptions) {
    this.#options = options
    if (options.watchEveryMs > 0) this.#schedule(options.watchEveryMs)
  }

  get isHere(): boolean {
    return this.#isHere
  }

  /** How long it has been away, 0 while it is here. */
  get awayMs(): number {
    return this.#isHere ? 0 : performance.now() - this.#awaySinceMonoMs
  }

  /** Called each time the database comes back. */
  onBack(listener: () => void): void {
    this.#listeners.add(listener)
  }

  /** Somebody could not reach it. */
  lost(): void {
    if (!this.#isHere || this.#isStopped) return
    this.#isHere = false
    this.#awaySinceMonoMs = performance.now()
    this.#options.onChange(false)
    if (!this.#isProbing) this.#schedule(this.#options.probeEveryMs)
  }

  #schedule(afterMs: number): void {
    clearTimeout(this.#timer)
    if (this.#isStopped) return
    this.#timer = setTimeout(() => void this.#probe(), afterMs)
  }

  async #probe(): Promise<void> {
    const { probe, probeMsMax, probeEveryMs, watchEveryMs, onChange } = this.#options
    this.#isProbing = true
    const wasHere = this.#isHere
    const isAnswered = await settledWithin(probe(), probeMsMax)
    this.#isProbing = false
    if (this.#isStopped) return
    // somebody failed while the question was under way: it was sent before, ask again
    const isFresh = this.#isHere === wasHere
    if (!isAnswered) this.lost()
    else if (!this.#isHere && isFresh) {
      this.#isHere = true
      onChange(true)
      for (const listener of this.#listeners) listener()
    }
    if (!this.#isHere) this.#schedule(probeEveryMs)
    else if (watchEveryMs > 0) this.#schedule(watchEveryMs)
  }

  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
  }
}

/**
 * Asks `select 1` on a connection of its own, so that a busy pool is not taken for a dead server. A question that stays
 * without an answer gives its connection up: what hangs half open would never answer the next one either.
 */
export class DatabaseProbe {
  readonly #open: () => Sql
  #sql: Sql | undefined
  #isWaiting = false

  constructor(databaseUrl: string, answerMsMax: number) {
    this.#open = () =>
      connect(databaseUrl, { max: 1, applicationName: 'pilegate probe', connectTimeoutMs: answerMsMax })
  }

  /** @throws when it is not reached */
  async ask(): Promise<void> {
    if (this.#isWaiting) await this.close()
    this.#sql ??= this.#open()
    const asked = this.#sql
    this.#isWaiting = true
    try {
      await asked`select 1`
    } finally {
      if (this.#sql === asked) this.#isWaiting = false
    }
  }

  async close(): Promise<void> {
    const sql = this.#sql
    this.#sql = undefined
    this.#isWaiting = false
    await sql?.end({ timeout: 0 }).catch(() => {})
  }
}
