/**
 * Is the database there? Whoever fails to reach it says so; from then on one probe at a time asks until it answers.
 * Thread: main.
 */
export interface DatabaseHealthOptions {
  /** Resolves when the database answers, rejects when it does not; bounded in time by itself. */
  readonly probe: () => Promise<void>
  readonly probeEveryMs: number
  readonly onChange: (isHere: boolean) => void
}

export class DatabaseHealth {
  readonly #options: DatabaseHealthOptions
  #isHere = true
  #awaySinceMonoMs = 0
  #timer: NodeJS.Timeout | undefined
  #isStopped = false
  readonly #listeners = new Set<() => void>()

  constructor(options: DatabaseHealthOptions) {
    this.#options = options
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
    this.#schedule()
  }

  #schedule(): void {
    if (this.#isStopped) return
    this.#timer = setTimeout(() => void this.#probe(), this.#options.probeEveryMs)
  }

  async #probe(): Promise<void> {
    try {
      await this.#options.probe()
    } catch {
      this.#schedule()
      return
    }
    if (this.#isStopped) return
    this.#isHere = true
    this.#options.onChange(true)
    for (const listener of this.#listeners) listener()
  }

  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
  }
}
