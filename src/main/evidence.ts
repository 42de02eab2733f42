/**
 * Bytes of connections that were refused, kept in `quarantine` for whoever asks why a device does not appear.
 * Bounded twice: the acceptor keeps 50 a second, and at most 1,000 wait here while the database is away. Thread: main.
 */
import type { Evidence } from '../../workers/acceptor/messages.ts'
import type { Sql } from './database/connect.ts'

const WAITING_MAX = 1_000

export class EvidenceKeeper {
  readonly #sql: Sql
  readonly #onDropped: (count: number) => void
  #waiting: Evidence[] = []
  #isWriting = false

  constructor(sql: Sql, onDropped: (count: number) => void) {
    this.#sql = sql
    this.#onDropped = onDropped
  }

  /** Never waits; beyond the bound the oldest go. */
  keep(items: readonly Evidence[]): void {
    this.#waiting.push(...items)
    this.#bound()
    void this.flush()
  }

  #bound(): void {
    const excess = this.#waiting.length - WAITING_MAX
    if (excess > 0) {
      this.#waiting.splice(0, excess)
      this.#onDropped(excess)
    }
  }

  /** Writes what waits; what cannot be written waits for the next call. */
  async flush(): Promise<void> {
    if (this.#isWriting || this.#waiting.length === 0) return
    this.#isWriting = true
    const batch = this.#waiting
    this.#waiting = []
    try {
      await this.#sql`
        insert into quarantine ${this.#sql(
          batch.map((item) => ({
            at: new Date(item.atMs),
            remote_address: item.remoteAddress,
            device_id: item.deviceId ?? null,
            reason: item.reason,
            bytes: Buffer.from(item.bytes),
          })),
        )}`
    } catch {
      this.#waiting = [...batch, ...this.#waiting]
      this.#bound()
    } finally {
      this.#isWriting = false
    }
  }
}
