/**
 * How a job goes through its devices: wave after wave, in each wave so many at once, and no further when too many of a
 * wave failed. Pure.
 */

export const JOB_STATES = ['running', 'paused', 'cancelled', 'finished'] as const
export type JobState = (typeof JOB_STATES)[number]

export const OUTCOMES = ['ok', 'sent', 'refused', 'mismatch', 'dead', 'expired', 'cancelled'] as const
export type Outcome = (typeof OUTCOMES)[number]

/** Outcomes that speak against going on. */
export const FAILURES: readonly Outcome[] = ['refused', 'mismatch', 'dead', 'expired']

/** Where a wave stands. Counts are devices. */
export interface Wave {
  readonly waiting: number
  readonly running: number
  readonly done: number
  /** Of `done`, since somebody last said to go on. */
  readonly failed: number
}

export interface WaveRules {
  readonly concurrency: number
  /** Of the devices of the wave, 0..100; null: never. */
  readonly pauseAbovePercent: number | null
}

export type WaveStep =
  /** @see count 0: wait for those under way */
  { readonly kind: 'begin'; readonly count: number } | { readonly kind: 'pause' } | { readonly kind: 'nextWave' }

export function stepOfWave({ waiting, running, done, failed }: Wave, rules: WaveRules): WaveStep {
  const { concurrency, pauseAbovePercent } = rules
  const devices = waiting + running + done
  // of the whole wave: one failure at its beginning is not yet a hundred percent
  const isBad = pauseAbovePercent !== null && failed * 100 > pauseAbovePercent * devices
  if (isBad) return { kind: 'pause' }
  if (waiting + running === 0) return { kind: 'nextWave' }
  return { kind: 'begin', count: Math.max(0, Math.min(waiting, concurrency - running)) }
}
