/**
 * The spool: where history rows wait on disk while the database is away. One file per shard under DATA_DIR/spool,
 * records `u32 length, u32 crc32, rows`, each appended with fdatasync by a writer thread (workers/writer).
 *
 * Bound: spoolBytesMax over all files. When it is reached, the rows of the span in hand are dropped and counted
 * (`rows_total{result="dropped"}`); settlements never come here. Rows are drained in order once the database is back;
 * rows that arrive meanwhile queue behind them. Everything is idempotent by natural key, so a drain that is
 * interrupted starts over.
 */
import { mkdirSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Span } from '../shared/outbox.ts'
import type { DatabaseHealth } from './database/health.ts'

export interface SpoolTasks {
  /** Appends and syncs. @returns bytes the file grew by */
  readonly append: (path: string, span: Span) => Promise<number>
  /**
   * Inserts the record at `offset`.
   * @returns where the next record starts; 'torn': no whole record there; 'away': the database is
   */
  readonly drain: (path: string, offset: number) => Promise<number | 'torn' | 'away'>
}

export interface SpoolOptions {
  readonly directory: string
  readonly bytesMax: number
  readonly health: DatabaseHealth
  readonly tasks: SpoolTasks
  readonly onDropped: (span: Span) => void
  readonly onError: (path: string, error: unknown) => void
}

interface SpoolFile {
  readonly path: string
  /** Whole records on disk. */
  bytes: number
  appending: number
  appended: Promise<void>
  isDraining: boolean
  /** Called when the file is empty and gone. */
  onEmpty: () => void
}

const idle = { appending: 0, appended: Promise.resolve(), isDraining: false }

export class Spool {
  readonly #options: SpoolOptions
  readonly #files = new Map<string, SpoolFile>()

  constructor(options: SpoolOptions) {
    this.#options = options
    mkdirSync(options.directory, { recursive: true })
    // files of an earlier start keep their rows but give up their names: shard n may be another one today
    for (const name of readdirSync(options.directory).sort()) {
      if (!name.endsWith('.spool')) continue
      const path = join(options.directory, name.startsWith('left-') ? name : `left-${Date.now()}-${name}`)
      if (!name.startsWith('left-')) renameSync(join(options.directory, name), path)
      this.#files.set(path, { path, bytes: statSync(path).size, ...idle, onEmpty: () => {} })
    }
    options.health.onBack(() => this.drainAll())
  }

  get bytes(): number {
    let bytes = 0
    for (const file of this.#files.values()) bytes += file.bytes
    return bytes
  }

  pathOf(shard: number): string {
    return join(this.#options.directory, `shard-${shard}.spool`)
  }

  isSpooling(shard: number): boolean {
    return this.#files.has(this.pathOf(shard))
  }

  /** Keeps a span, or drops it when the spool is full. Resolves when it is on disk. */
  async spill(shard: number, span: Span, onEmpty: () => void): Promise<void> {
    const path = this.pathOf(shard)
    let file = this.#files.get(path)
    if (file === undefined) {
      file = { path, bytes: 0, ...idle, onEmpty }
      this.#files.set(path, file)
    }
    if (this.bytes + (span.toIndex - span.fromIndex) > this.#options.bytesMax) {
      this.#options.onDropped(span)
      return
    }
    file.appending++
    file.appended = this.#append(file, span)
    await file.appended
    if (this.#options.health.isHere) void this.#drain(file)
  }

  async #append(file: SpoolFile, span: Span): Promise<void> {
    try {
      file.bytes += await this.#options.tasks.append(file.path, span)
    } catch (error) {
      this.#options.onError(file.path, error)
      this.#options.onDropped(span)
    } finally {
      file.appending--
    }
  }

  drainAll(): void {
    for (const file of this.#files.values()) void this.#drain(file)
  }

  async #drain(file: SpoolFile): Promise<void> {
    if (file.isDraining) return
    file.isDraining = true
    let offset = 0
    try {
      while (this.#options.health.isHere) {
        // only what is known to be whole on disk is read; `bytes` grows when an append has been synced
        if (offset >= file.bytes) {
          if (file.appending > 0) {
            await file.appended
            continue
          }
          this.#remove(file)
          return
        }
        const next = await this.#options.tasks.drain(file.path, offset)
        if (next === 'away') {
          this.#options.health.lost()
          return
        }
        if (next === 'torn') {
          // the last append of a process that was killed: its rows were never released, or are lost with it
          this.#options.onError(file.path, new Error(`torn record at ${offset} of ${file.bytes} bytes`))
          file.bytes = offset
          continue
        }
        offset = next
      }
    } catch (error) {
      this.#options.onError(file.path, error)
    } finally {
      file.isDraining = false
    }
  }

  #remove(file: SpoolFile): void {
    rmSync(file.path, { force: true })
    this.#files.delete(file.path)
    file.onEmpty()
  }
}
