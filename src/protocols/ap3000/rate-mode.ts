/** How an account is charged, in AP3000's words (7, 02 and 8, 82), and what stands there for the end of a month. */
import type { CardAnswer } from '../../codec/protocol.ts'

export const RATE_MODES = { time: 0, monthly: 1, energy: 2, per_use: 3 } as const satisfies Record<
  CardAnswer['rateMode'],
  number
>

/** For a month without end: the last second that a signed clock of 32 bits knows. */
const NEVER_EXPIRES_S = 0x7fffffff
const U32_MAX = 0xffffffff

/** @param expiresMs null: never. @returns Unix s */
export function expirySOf(expiresMs: number | null): number {
  const expiryS = expiresMs === null ? NEVER_EXPIRES_S : Math.floor(expiresMs / 1_000)
  return Math.min(Math.max(expiryS, 0), U32_MAX)
}
