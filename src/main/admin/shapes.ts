/** Pieces that several routes share: lists with cursors, times, and the envelope of errors. */
import * as z from 'zod'
import { HTTP_ERRORS, HttpError, type HttpErrorCode } from '../../errors/errors.ts'
import type { TransactionSql } from '../database/connect.ts'

export const LIMIT_DEFAULT = 50
export const LIMIT_MAX = 500

/** The id of a device of any protocol, as a route or a filter takes it. */
export const zDeviceId = z.string().regex(/^[0-9a-z]{1,32}$/)

/** RFC 3339 UTC with milliseconds. */
export const zTime = z.iso.datetime({ precision: 3 })
export const timeOf = (at: Date) => at.toISOString()
export const timeOrNull = (at: Date | null) => (at === null ? null : at.toISOString())

/** A time in a query or body: RFC 3339 with any offset. */
export const zTimeInput = z.iso.datetime({ offset: true }).transform((text) => new Date(text))

/** What takes a `from` and a `to`: a window that ends before it begins is a mistake, and no empty list. */
export const inOrderOfTime = <T extends z.ZodType<{ from?: Date | undefined; to?: Date | undefined }>>(schema: T): T =>
  schema.refine(({ from, to }) => from === undefined || to === undefined || from <= to, {
    path: ['from'],
    message: 'is later than to',
  })

export const zPageQuery = {
  limit: z.coerce
    .number()
    .int()
    .min(1)
    .max(LIMIT_MAX)
    .default(LIMIT_DEFAULT)
    .describe(`Items at most, 1 to ${LIMIT_MAX}, default ${LIMIT_DEFAULT}`),
  cursor: z.string().max(1_024).optional().describe('next_cursor of the page before'),
}

export const zPage = <T extends z.ZodType>(item: T) =>
  z.object({ items: z.array(item), next_cursor: z.string().nullable().describe('null: this was the last page') })

/** What the values of a cursor may be: anybody may make one up, and the database must not stumble over it. */
const CURSOR_VALUES = {
  text: (value: string) => !value.includes('\0'),
  number: (value: string) => /^\d{1,15}$/.test(value),
  /** Of a column of type bigint. */
  bigint: (value: string) => /^\d{1,18}$/.test(value),
  /** As `to_json` writes a timestamptz: microseconds. */
  time: (value: string) => {
    const ms = /^\d{4}-\d\d-\d\dT[\d:.]{8,15}\+00:00$/.test(value) ? Date.parse(value) : Number.NaN
    // a 31st of February would be taken for the 3rd of March
    return !Number.isNaN(ms) && new Date(ms).toISOString().startsWith(value.slice(0, 10))
  },
}

/** @param kind which list it belongs to: a cursor of another list is refused instead of leading somewhere odd */
export function encodeCursor(kind: string, values: readonly string[]): string {
  return Buffer.from(JSON.stringify([kind, ...values])).toString('base64url')
}

/**
 * For a list that is told from one of several sources, each with cursors of its own.
 * @returns what it was made for, still to be checked by `decodeCursor`; undefined: no cursor
 */
export function kindOfCursor(cursor: string | undefined): unknown {
  if (cursor === undefined) return undefined
  try {
    return (JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8')) as unknown[])[0]
  } catch {
    return 'none'
  }
}

/**
 * @returns a value for each of `wanted`; none without a cursor
 * @throws HttpError INVALID_ARGUMENT not a cursor of this list
 */
export function decodeCursor(
  kind: string,
  wanted: readonly (keyof typeof CURSOR_VALUES)[],
  cursor: string | undefined,
): string[] {
  if (cursor === undefined) return []
  try {
    const [of, ...values] = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8')) as unknown[]
    const isGood = (value: unknown, index: number): value is string =>
      typeof value === 'string' && wanted[index] !== undefined && CURSOR_VALUES[wanted[index]](value)
    if (of === kind && values.length === wanted.length && values.every(isGood)) return values
  } catch {}
  throw new HttpError('INVALID_ARGUMENT', 'cursor: not a next_cursor of this list')
}

/**
 * One page of a list.
 * @param rows what `limit + 1` gave
 * @param cursorOf leads behind a row
 */
export function pageOf<Row, Item>(
  rows: readonly Row[],
  limit: number,
  itemOf: (row: Row) => Item,
  cursorOf: (row: Row) => string,
): { readonly items: Item[]; readonly next_cursor: string | null } {
  const last = rows.length > limit ? rows[limit - 1] : undefined
  return {
    items: rows.slice(0, limit).map((row) => itemOf(row)),
    next_cursor: last === undefined ? null : cursorOf(last),
  }
}

export const zError = z.object({
  error: z.object({
    code: z.enum(Object.keys(HTTP_ERRORS) as [HttpErrorCode, ...HttpErrorCode[]]),
    message: z.string(),
    request_id: z.string(),
    details: z.record(z.string(), z.unknown()),
  }),
})

/** `%` and `_` in what somebody searches for are letters. */
export const likePattern = (text: string) => `%${text.replace(/[\\%_]/g, (letter) => `\\${letter}`)}%`

/** `, column = value` for every entry, to go behind the first assignment of an update; null clears. */
export function assignments(tx: TransactionSql, changes: Readonly<Record<string, unknown>>) {
  const parts = Object.entries(changes).map(([column, value]) => tx`, ${tx(column)} = ${value as string | null}`)
  // the driver takes a list of fragments, but not an empty one
  return parts.length === 0 ? tx`` : parts
}
