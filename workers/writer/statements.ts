/** What the statements of a span have in common. */
import type { TransactionSql } from '../../src/main/database/connect.ts'

/** A prepared statement over the parameters that `parameters` of columns.ts makes. */
export async function run<T extends object = Record<string, unknown>>(
  tx: TransactionSql,
  text: string,
  values: string[],
) {
  return await tx.unsafe<T[]>(text, values, { prepare: true })
}

/** One array per property of `mapping`. */
export function pick<R>(
  rows: readonly R[],
  mapping: Readonly<Record<string, (row: R) => unknown>>,
): Record<string, unknown[]> {
  return Object.fromEntries(Object.entries(mapping).map(([name, get]) => [name, rows.map(get)]))
}

/** Order of text as in the database (collate "C"). */
export const byText = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)

/** `power_w` -> `powerW`, `started_at` -> `startedMs`. */
export const fieldOf = (column: string) =>
  column.replace(/_at$/, '_ms').replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())

const ABORTED = '25P02'

/**
 * `Promise.all` for statements of one transaction: waits for all of them also when one fails, because whoever goes on
 * meanwhile would send the next one behind our ROLLBACK, outside of the transaction. Throws the cause, not its echo
 * (25P02) in the statements behind it.
 */
export async function all<T extends readonly unknown[] | []>(
  steps: T,
): Promise<{ -readonly [P in keyof T]: Awaited<T[P]> }> {
  const outcomes = await Promise.allSettled(steps)
  const failures = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason as unknown] : []))
  if (failures.length > 0)
    throw failures.find((error) => (error as { code?: unknown } | null)?.code !== ABORTED) ?? failures[0]
  return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<unknown>).value) as {
    -readonly [P in keyof T]: Awaited<T[P]>
  }
}
