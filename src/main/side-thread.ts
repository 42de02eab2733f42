/**
 * A thread beside the way of rows (webhooks, Kafka), seen from main: started, woken, replaced when it dies, stopped. Its
 * successor goes on from the database. Thread: main.
 */
import { Worker } from 'node:worker_threads'
import type { Log } from './log.ts'
import { settledWithin } from './settled-within.ts'

const RESTART_MS_MIN = 100
const RESTART_MS_MAX = 5_000
/** A thread that lived this long starts over with the shortest delay. */
const STABLE_MS = 30_000
/** Spans become durable hundreds of times a second; the thread is told at most every so often. */
const WAKE_EVERY_MS = 20

type ToSideThread = { readonly kind: 'wake' } | { readonly kind: 'stop'; readonly withinMs: number }
type FromSideThread = { readonly kind: 'ready' } | { readonly kind: 'stopped' }

/** A log line. */
interface Line {
  readonly event: string
  readonly msg: string
}

export interface SideThreadOptions {
  readonly name: string
  readonly entry: URL
  readonly data: unknown
  readonly log: Log
  readonly failed: Line
  readonly replaced: Line
}

export class SideThread {
  readonly #options: SideThreadOptions
  #worker: Worker | undefined
  #restarts = 0
  #isStopping = false
  #wakeTimer: NodeJS.Timeout | undefined

  constructor(options: SideThreadOptions) {
    this.#options = options
  }

  start(): void {
    const { name, entry, data, log, failed, replaced } = this.#options
    const worker = new Worker(entry, { workerData: data, name })
    const startedMonoMs = performance.now()
    this.#worker = worker
    worker.on('error', (error) => log.error({ ...failed, err: error }))
    worker.on('exit', () => {
      this.#worker = undefined
      if (this.#isStopping) return
      if (performance.now() - startedMonoMs > STABLE_MS) this.#restarts = 0
      const waitMs = Math.min(RESTART_MS_MIN * 2 ** this.#restarts++, RESTART_MS_MAX)
      log.error({ ...replaced, waitMs })
      setTimeout(() => {
        if (!this.#isStopping) this.start()
      }, waitMs)
    })
  }

  /** Events may have been stored. Cheap: call it as often as it happens. */
  wake(): void {
    if (this.#wakeTimer !== undefined || this.#isStopping) return
    this.#wakeTimer = setTimeout(() => {
      this.#wakeTimer = undefined
      this.#tell({ kind: 'wake' })
    }, WAKE_EVERY_MS)
  }

  #tell(message: ToSideThread): void {
    this.#worker?.postMessage(message)
  }

  /** What is under way may end within `withinMs`; the rest goes out after the next start. */
  async stop(withinMs: number): Promise<void> {
    this.#isStopping = true
    clearTimeout(this.#wakeTimer)
    const worker = this.#worker
    if (worker === undefined) return
    const ended = new Promise<void>((resolve) => {
      worker.once('exit', () => resolve())
      worker.on('message', (message: FromSideThread) => {
        if (message.kind === 'stopped') resolve()
      })
    })
    this.#tell({ kind: 'stop', withinMs })
    if (!(await settledWithin(ended, withinMs + 1_500))) await worker.terminate()
  }
}
