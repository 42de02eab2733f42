/** What main asks of a writer thread, and what it hears back: plain values, also for errors (piscina loses their codes). */
import type { SpanResult } from './insert.ts'

/** piscina's `workerData`. */
export interface WriterData {
  readonly databaseUrl: string
  /** A task that takes longer drops its connection and answers GW_WRITER_TIMEOUT; default 20,000. */
  readonly taskMsMax?: number
}

/** Whole rows without padding at byteOffset + fromIndex .. byteOffset + toIndex of `memory`; copied before decoding. */
interface RowRange {
  readonly memory: SharedArrayBuffer
  readonly byteOffset: number
  readonly fromIndex: number
  readonly toIndex: number
}

export type WriterTask =
  /** Inserts the rows of a range in one transaction. */
  | ({ readonly kind: 'insert' } & RowRange)
  /** Appends the range as one record to a spool file and syncs it. One task per path at a time. */
  | ({ readonly kind: 'spool'; readonly path: string } & RowRange)
  /** Inserts the record of a spool file that starts at byte `from`. */
  | { readonly kind: 'drain'; readonly path: string; readonly from: number }

export interface Inserted {
  readonly ok: true
  readonly kind: 'inserted'
  readonly result: SpanResult
}
export interface Spooled {
  readonly ok: true
  readonly kind: 'spooled'
  /** The record lies in from..to of the file; `to` is the file's size. */
  readonly from: number
  readonly to: number
}
export interface Drained {
  readonly ok: true
  readonly kind: 'drained'
  /**
   * `inserted`: the record is in the database. `corrupt`: its checksum is wrong, its bytes are in quarantine. `end`:
   * `from` is the size of the file. `torn`: the file ends within a record, whose append was never reported as done.
   */
  readonly outcome: 'inserted' | 'corrupt' | 'end' | 'torn'
  /** Where the next record starts; for `end` and `torn` as asked. */
  readonly next: number
  /** For `inserted`. */
  readonly result: SpanResult | null
}
export interface WriterFailure {
  readonly ok: false
  /** SQLSTATE, system or driver code, GW_WRITER_TIMEOUT or GW_WRITER_UNKNOWN. */
  readonly code: string
  /** True: ask the same again later. False: it would fail the same way, ours is the mistake. */
  readonly retryable: boolean
  readonly message: string
}
export type WriterAnswer = Inserted | Spooled | Drained | WriterFailure

/** The answer's type by the task's kind. */
export type AnswerOf<K extends WriterTask['kind']> =
  | WriterFailure
  | { insert: Inserted; spool: Spooled; drain: Drained }[K]
