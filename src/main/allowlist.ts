/**
 * The `allowlist` table as session threads know it (src/session/allowlist.ts). Every thread starts with all of it and
 * hears each change as a whole: it is short, and changes when a person writes. Thread: main.
 */
import type { AllowlistEntry } from '../session/allowlist.ts'
import type { Sql } from './database/connect.ts'

export class AllowlistKeeper {
  readonly #sql: Sql
  readonly #tell: (entries: readonly AllowlistEntry[]) => void
  #entries: readonly AllowlistEntry[] = []
  #changing: Promise<void> = Promise.resolve()

  /** @param tell every session thread */
  constructor(sql: Sql, tell: (entries: readonly AllowlistEntry[]) => void) {
    this.#sql = sql
    this.#tell = tell
  }

  /** Of all tenants; for a session thread that starts now. */
  get entries(): readonly AllowlistEntry[] {
    return this.#entries
  }

  /** Before the first session thread starts. */
  async load(): Promise<void> {
    this.#entries = await this.#sql<AllowlistEntry[]>`select distinct kind, pattern from allowlist`
  }

  /** The table has changed and is committed. One after the other: what is told last is the newest. */
  changed(): Promise<void> {
    const told = this.#changing.then(async () => {
      await this.load()
      this.#tell(this.#entries)
    })
    this.#changing = told.catch(() => {})
    return told
  }
}
