/**
 * The regression gate: ratios of a run beside those recorded on the same class of machine. Pure.
 *
 * Times of a shared machine say little: they move by half with what else runs there. So each round measures a yardstick
 * beside the cases, and what is kept and compared is a case's time in yardsticks of the same round. A case is worse when
 * even the better quarter of its rounds lies above the worse quarter of the recorded ones, by more than the tolerance.
 */

/** Quartiles of a figure over rounds. */
export interface Spread {
  readonly q1: number
  readonly median: number
  readonly q3: number
}

export interface CaseRecord {
  readonly name: string
  readonly ns_per_operation: Spread
  /** Time of the case / time of the yardstick, per round. */
  readonly ratios: readonly number[]
}

export interface SuiteRecord {
  readonly suite: string
  readonly cases: readonly CaseRecord[]
}

export type Verdict = 'equal' | 'worse' | 'better' | 'new' | 'gone'

export interface Judgement {
  readonly suite: string
  readonly name: string
  /** Medians; undefined: measured only once. */
  readonly recorded: number | undefined
  readonly present: number | undefined
  /** present / recorded - 1. */
  readonly change: number | undefined
  readonly verdict: Verdict
}

/** Of at least one value, by linear interpolation between neighbours. */
export function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share: number): number => {
    const place = share * (sorted.length - 1)
    const below = sorted[Math.floor(place)] as number
    const above = sorted[Math.ceil(place)] as number
    return below + (above - below) * (place - Math.floor(place))
  }
  return { q1: at(0.25), median: at(0.5), q3: at(0.75) }
}

/** @param tolerance 0.1: a tenth beyond the quartiles is still equal */
export function judge(recorded: SuiteRecord, present: SuiteRecord, tolerance: number): Judgement[] {
  const judgements: Judgement[] = present.cases.map(({ name, ratios }) => {
    const now = spreadOf(ratios)
    const before = recorded.cases.find((one) => one.name === name)
    if (before === undefined)
      return { suite: present.suite, name, recorded: undefined, present: now.median, change: undefined, verdict: 'new' }
    const then = spreadOf(before.ratios)
    const verdict =
      now.q1 > then.q3 * (1 + tolerance) ? 'worse' : now.q3 * (1 + tolerance) < then.q1 ? 'better' : 'equal'
    const change = now.median / then.median - 1
    return { suite: present.suite, name, recorded: then.median, present: now.median, change, verdict }
  })
  for (const { name, ratios } of recorded.cases)
    if (!present.cases.some((one) => one.name === name))
      judgements.push({
        suite: present.suite,
        name,
        recorded: spreadOf(ratios).median,
        present: undefined,
        change: undefined,
        verdict: 'gone',
      })
  return judgements
}

/** What was measured twice is worse only if it was worse twice: one bad second of the machine is no regression. */
export function confirmed(first: readonly Judgement[], again: readonly Judgement[]): Judgement[] {
  return first.map((one) => {
    const other = again.find(({ name }) => name === one.name)
    return one.verdict === 'worse' && other !== undefined && other.verdict !== 'worse' ? other : one
  })
}

export function tableOf(judgements: readonly Judgement[]): string {
  const ratio = (value: number | undefined) => (value === undefined ? '–' : value.toPrecision(3))
  const percent = (value: number | undefined) =>
    value === undefined ? '–' : `${value >= 0 ? '+' : '−'}${Math.abs(value * 100).toFixed(1)} %`
  const rows = judgements.map(({ suite, name, recorded, present, change, verdict }) => [
    `${suite}: ${name}`,
    ratio(recorded),
    ratio(present),
    percent(change),
    verdict === 'equal' ? '' : verdict,
  ])
  const head = ['case', 'recorded', 'present', 'change', '']
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join('  ')
      .trimEnd()
  return [head, ...rows].map(line).join('\n')
}
