/**
 * The relay thread seen from main: started, woken, replaced when it dies, stopped. What it held when it died is given
 * back by its successor, which has the same name. Thread: main.
 */
import { Worker } from 'node:worker_threads'
import type { FromRelay, RelayThreadOptions, ToRelay } from '../../workers/relay/messages.ts'
import type { Log } from './log.ts'
import { settledWithin } from './settled-within.ts'

const RESTART_MS_MIN = 100
const RESTART_MS_MAX = 5_000
/** A thread that lived this long starts over with the shortest delay. */
const STABLE_MS = 30_000
/** Spans become durable hundreds of times a second; the relay is told at most every so often. */
const WAKE_EVERY_MS = 20

export class RelayThread {
  readonly #options: RelayThreadOptions
  readonly #log: Log
  #worker: Worker | undefined
  #restarts = 0
  #isStopping = false
  #wakeTimer: NodeJS.Timeout | undefined

  constructor(options: RelayThreadOptions, log: Log) {
    this.#options = options
    this.#log = log
  }

  start(): void {
    const worker = new Worker(new URL('../../workers/relay/index.ts', import.meta.url), {
      workerData: this.#options,
      name: 'relay',
    })
    const startedMonoMs = performance.now()
    this.#worker = worker
    worker.on('error', (error) => this.#log.error({ event: 'relay.failed', err: error, msg: 'relay thread failed' }))
    worker.on('exit', () => {
      this.#worker = undefined
      if (this.#isStopping) return
      if (performance.now() - startedMonoMs > STABLE_MS) this.#restarts = 0
      const waitMs = Math.min(RESTART_MS_MIN * 2 ** this.#restarts++, RESTART_MS_MAX)
      this.#log.error({ event: 'relay.replaced', waitMs, msg: 'relay thread died, starting another' })
      setTimeout(() => {
        if (!this.#isStopping) this.start()
      }, waitMs)
    })
  }

  /** Events may have been stored, or webhooks changed. Cheap: call it as often as it happens. */
  wake(): void {
    if (this.#wakeTimer !== undefined || this.#isStopping) return
    this.#wakeTimer = setTimeout(() => {
      this.#wakeTimer = undefined
      this.#tell({ kind: 'wake' })
    }, WAKE_EVERY_MS)
  }

  #tell(message: ToRelay): void {
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
      worker.on('message', (message: FromRelay) => {
        if (message.kind === 'stopped') resolve()
      })
    })
    this.#tell({ kind: 'stop', withinMs })
    if (!(await settledWithin(ended, withinMs + 1_500))) await worker.terminate()
  }
}
