/**
 * Tickets for browsers, which cannot send headers with a WebSocket: made with a key over HTTP, good for one connection
 * within half a minute. They stand in an address, which proxies log; a used one is worth nothing. Thread: main.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { ApiKey } from '../../config/api-keys.ts'
import { HttpError } from '../../errors/errors.ts'

export const TICKET_MS = 30_000
/** About 300 bytes each. */
const TICKETS_MAX = 10_000

const digestOf = (ticket: string) => createHash('sha256').update(ticket).digest('base64')

export class Tickets {
  /** By digest, oldest first. */
  readonly #tickets = new Map<string, { readonly key: ApiKey; readonly untilMs: number }>()
  readonly #now: () => number

  /** @param now ms since the epoch */
  constructor(now: () => number) {
    this.#now = now
  }

  /** @throws HttpError TOO_MANY_REQUESTS ten thousand wait to be used */
  make(key: ApiKey): { readonly ticket: string; readonly untilMs: number } {
    const nowMs = this.#now()
    // all live equally long, so the oldest are the first to go
    for (const [digest, { untilMs }] of this.#tickets) {
      if (untilMs > nowMs) break
      this.#tickets.delete(digest)
    }
    if (this.#tickets.size >= TICKETS_MAX) throw new HttpError('TOO_MANY_REQUESTS', 'too many unused tickets')
    const ticket = randomBytes(24).toString('base64url')
    const untilMs = nowMs + TICKET_MS
    this.#tickets.set(digestOf(ticket), { key, untilMs })
    return { ticket, untilMs }
  }

  /** @returns whose it was; undefined: unknown, used or too old */
  take(ticket: string): ApiKey | undefined {
    const digest = digestOf(ticket)
    const found = this.#tickets.get(digest)
    this.#tickets.delete(digest)
    return found !== undefined && found.untilMs > this.#now() ? found.key : undefined
  }
}
