/**
 * The writer pool seen from main: spans in, outcomes out, counted. A writer thread that dies is replaced by piscina and
 * its span is simply written again: every row is idempotent.
 */
import { Piscina } from 'piscina'
import type { SpanResult } from '../../workers/writer/insert.ts'
import type { OrderCounts } from '../../workers/writer/order-book.ts'
import type { AnswerOf, WriterAnswer, WriterData, WriterTask } from '../../workers/writer/task.ts'
import { ORDER_OUTCOMES, ROW_RESULTS, type SETTLEMENT_RESULTS } from '../metrics/catalogue.ts'
import { ROW_KINDS, ROW_TABLES } from '../rows/index.ts'
import { countRows } from '../rows/row.ts'
import type { ThreadCounters } from '../shared/counters.ts'
import type { Span } from '../shared/outbox.ts'
import type { SpanOutcome } from './lane-pump.ts'
import type { Log } from './log.ts'

export interface WritersOptions {
  readonly threads: number
  readonly data: WriterData
  readonly log: Log
  readonly counters: ThreadCounters
  /** Events were committed: whoever publishes them may look. */
  readonly onEvents: () => void
}

const POOL_LOOK_MS = 250
/** A dead thread is replaced within milliseconds; this is longer than its start takes on a busy machine. */
const POOL_SHORT_MS = 1_000

const rangeOf = ({ memory, fromIndex, toIndex }: Span) => ({ memory, byteOffset: 0, fromIndex, toIndex })

export class Writers {
  readonly #makePool: () => Piscina<WriterTask, WriterAnswer>
  #pool: Piscina<WriterTask, WriterAnswer>
  readonly #threads: number
  #shortSinceMonoMs: number | undefined
  readonly #watch: NodeJS.Timeout
  readonly #log: Log
  readonly #count: (table: string, result: (typeof ROW_RESULTS)[number], n: number) => void
  readonly #settled: (result: (typeof SETTLEMENT_RESULTS)[number], n: number) => void
  readonly #ordered: (outcome: (typeof ORDER_OUTCOMES)[number], n: number) => void
  readonly #commit: (seconds: number) => void
  readonly #onEvents: () => void

  constructor({ threads, data, log, counters, onEvents }: WritersOptions) {
    this.#log = log
    this.#onEvents = onEvents
    this.#threads = threads
    this.#makePool = () =>
      new Piscina<WriterTask, WriterAnswer>({
        filename: new URL('../../workers/writer/index.ts', import.meta.url).href,
        minThreads: threads,
        maxThreads: threads,
        idleTimeout: Number.POSITIVE_INFINITY,
        // a writer waits for its database connection, so its event loop must turn: no Atomics.wait
        atomics: 'disabled',
        workerData: data,
        // a batch is at most a megabyte; what a storm makes V8 take for it would stay
        resourceLimits: { maxYoungGenerationSizeMb: 12 },
      })
    this.#pool = this.#makePool()
    this.#watch = setInterval(() => this.#lookAfterPool(), POOL_LOOK_MS)
    const slots = new Map<string, number>()
    for (const table of new Set(ROW_TABLES))
      for (const result of ROW_RESULTS)
        slots.set(`${table} ${result}`, counters.counter('rows_total', { table, result }))
    this.#count = (table, result, n) => {
      const slot = slots.get(`${table} ${result}`)
      if (n > 0 && slot !== undefined) counters.add(slot, n)
    }
    this.#settled = (result, n) => {
      if (n > 0) counters.add(counters.counter('settlements_total', { result }), n)
    }
    this.#ordered = (outcome, n) => {
      if (n > 0) counters.add(counters.counter('orders_total', { outcome }), n)
    }
    const commits = counters.histogram('row_commit_seconds')
    this.#commit = (seconds) => counters.observe(commits, seconds)
  }

  /**
   * piscina gives up replacing threads once one has died before it was ready, and then tasks wait for ever: a pool that
   * stays short of threads is replaced as a whole. What it had is written again.
   */
  #lookAfterPool(): void {
    if (this.#pool.threads.length >= this.#threads) {
      this.#shortSinceMonoMs = undefined
      return
    }
    this.#shortSinceMonoMs ??= performance.now()
    if (performance.now() - this.#shortSinceMonoMs < POOL_SHORT_MS) return
    this.#shortSinceMonoMs = undefined
    this.#log.error({
      event: 'writer.poolReplaced',
      threads: this.#pool.threads.length,
      msg: 'writer pool lost threads for good',
    })
    const old = this.#pool
    this.#pool = this.#makePool()
    void old.destroy().catch(() => {})
  }

  async #run<T extends WriterTask>(task: T): Promise<AnswerOf<T['kind']>> {
    try {
      return (await this.#pool.run(task)) as AnswerOf<T['kind']>
    } catch (error) {
      // the thread died under the task, or the pool is closing: nothing is known to be written
      this.#log.error({ event: 'writer.lost', err: error, msg: 'writer thread failed' })
      return { ok: false, code: 'GW_THREAD_LOST', retryable: true, message: String(error) }
    }
  }

  /** Inserts a span in one transaction. */
  async insert(span: Span): Promise<SpanOutcome> {
    const startedMonoMs = performance.now()
    const answer = await this.#run({ kind: 'insert', ...rangeOf(span) })
    if (!answer.ok) {
      this.#log.warn({ event: 'span.refused', code: answer.code, rows: span.rows, msg: answer.message })
      return { kind: 'away' }
    }
    this.#commit((performance.now() - startedMonoMs) / 1_000)
    this.#tally(answer.result)
    return { kind: 'stored', rejected: answer.result.rejected.map((row) => span.fromPosition + row.toByte) }
  }

  #tally({ tables, settlements, rejected, orders, eventCursor }: SpanResult): void {
    for (const [table, counts] of Object.entries(tables)) {
      this.#count(table, 'stored', counts.inserted)
      this.#count(table, 'repeated', counts.repeated)
      this.#count(table, 'fenced', counts.fenced)
    }
    for (const row of rejected) {
      this.#count(row.table, 'put_aside', 1)
      if (row.table === 'settlements') this.#settled('put_aside', 1)
      this.#log.error({ event: 'row.rejected', table: row.table, code: row.code, msg: row.reason })
    }
    this.#settled('stored', settlements.stored)
    this.#settled('repeated', settlements.repeated)
    this.#settled('contradicting', settlements.conflicting)
    this.#settled('opaque', tables['opaque_settlements']?.inserted ?? 0)
    this.tallyOrders(orders)
    if (eventCursor !== null) this.#onEvents()
  }

  /** Orders that moved, here or in the reconciler. */
  tallyOrders({ illegal, ...moved }: OrderCounts): void {
    for (const outcome of ORDER_OUTCOMES) if (outcome !== 'refused_move') this.#ordered(outcome, moved[outcome])
    for (const [move, n] of Object.entries(illegal)) {
      this.#ordered('refused_move', n)
      this.#log.info({ event: 'order.unmoved', move, count: n, msg: 'a report did not fit the state of its order' })
    }
  }

  /** Appends a span to a spool file and syncs it. @returns bytes the file grew by */
  async spool(path: string, span: Span): Promise<number> {
    const answer = await this.#run({ kind: 'spool', path, ...rangeOf(span) })
    if (!answer.ok) throw new Error(`${answer.code}: ${answer.message}`)
    return answer.to - answer.from
  }

  /** Inserts one record of a spool file. @throws when it can neither be read nor be put aside */
  async drain(path: string, offset: number): Promise<number | 'torn' | 'away'> {
    const answer = await this.#run({ kind: 'drain', path, from: offset })
    if (!answer.ok) {
      if (answer.retryable) return 'away'
      throw new Error(`${answer.code}: ${answer.message}`)
    }
    if (answer.result !== null) this.#tally(answer.result)
    if (answer.outcome === 'torn' || answer.outcome === 'end') return 'torn'
    return answer.next
  }

  /** A span that nobody will write. */
  dropped({ memory, fromIndex, toIndex }: Span): void {
    for (const [kind, rows] of countRows(memory, fromIndex, toIndex)) {
      const row = ROW_KINDS.get(kind)
      if (row !== undefined) this.#count(row.table, 'dropped', rows)
    }
  }

  async close(): Promise<void> {
    clearInterval(this.#watch)
    await this.#pool.close({ force: false })
  }
}
