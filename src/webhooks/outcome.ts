/**
 * What becomes of a delivery after an attempt. Pure: the answer, the count and a random number decide.
 *
 * | answer | then |
 * | --- | --- |
 * | 2xx | delivered |
 * | 410 | delivery dead, endpoint stopped |
 * | 429, 503 with Retry-After | again, not before that time (at most an hour) and not before the schedule's; the endpoint rests until then |
 * | any other status, redirects included, and no answer | again by the schedule, at its end dead |
 */
export interface Attempt {
  /** Undefined: no status line came. */
  readonly status: number | undefined
  /** Code of what went wrong, where no status came: timeout, ECONNRESET, address_refused, a TLS code .. */
  readonly error: string | undefined
  /** Header as it came. */
  readonly retryAfter: string | undefined
}

export type Outcome =
  | { readonly kind: 'delivered' }
  | { readonly kind: 'retry'; readonly delayMs: number; readonly restMs: number }
  | { readonly kind: 'dead' }
  /** Dead, and nothing more goes to this endpoint. */
  | { readonly kind: 'gone' }

/** Longest wait because a receiver asked for it, spreading included. */
export const RETRY_AFTER_MS_MAX = 3_600_000
/** Delays are spread by this part of themselves, so that what failed together does not come back together. */
const JITTER = 0.2

/**
 * @param attempts how many were made, this one included
 * @param scheduleMs delay after the first, second .. failed attempt; one more failure than entries is the end
 * @param random 0 <= r < 1
 */
export function outcomeOf(
  attempt: Attempt,
  attempts: number,
  scheduleMs: readonly number[],
  random: number,
  nowMs: number,
): Outcome {
  const { status } = attempt
  if (status !== undefined && status >= 200 && status < 300) return { kind: 'delivered' }
  if (status === 410) return { kind: 'gone' }
  const delayMs = scheduleMs[attempts - 1]
  if (delayMs === undefined) return { kind: 'dead' }
  const asked = status === 429 || status === 503 ? retryAfterMs(attempt.retryAfter, nowMs) : undefined
  const ownMs = Math.round(delayMs * (1 - JITTER + 2 * JITTER * random))
  if (asked === undefined) return { kind: 'retry', delayMs: ownMs, restMs: 0 }
  // never sooner than asked; later ones spread out behind it, as far as the hour leaves room
  const spreadMs = Math.min(Math.ceil(asked * (1 + JITTER * random)), RETRY_AFTER_MS_MAX)
  return { kind: 'retry', delayMs: Math.max(ownMs, spreadMs), restMs: asked }
}

/** @returns ms from now, 0 to RETRY_AFTER_MS_MAX; undefined: absent, or neither seconds nor a date */
export function retryAfterMs(header: string | undefined, nowMs: number): number | undefined {
  const text = header?.trim()
  if (text === undefined || text === '') return undefined
  // a date begins with its weekday; Date.parse would also take `-5` or `1.5` for one
  const ms = /^\d+$/.test(text)
    ? Number(text) * 1_000
    : /^[A-Z][a-z]{2}/.test(text)
      ? Date.parse(text) - nowMs
      : Number.NaN
  return Number.isNaN(ms) ? undefined : Math.min(Math.max(0, ms), RETRY_AFTER_MS_MAX)
}
