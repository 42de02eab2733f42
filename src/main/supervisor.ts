/**
 * Keeps one session thread per shard and the acceptor alive. A dead session thread takes its sockets with it; its
 * devices come back by themselves. Its outbox stays: rows it had published are written, the new thread goes on behind
 * them. Nothing of other shards is touched. Thread: main.
 */
import { MessageChannel, Worker } from 'node:worker_threads'
import type { AcceptorOptions, FromAcceptor, ToAcceptor } from '../../workers/acceptor/messages.ts'
import type { FromSession, SessionThreadOptions, ToSession } from '../../workers/session/messages.ts'
import type { Config } from '../config/config.ts'
import { GatewayError } from '../errors/errors.ts'
import type { Gate } from '../shared/gate.ts'
import { chooseSeats, type EpollSeats } from './epoll-seats.ts'
import type { Log } from './log.ts'
import { settledWithin } from './settled-within.ts'

export interface ShardThread {
  readonly shard: number
  worker: Worker | undefined
  isReady: boolean
  restarts: number
}

export interface SupervisorOptions {
  readonly shards: number
  readonly socketDriver: Config['socketDriver']
  readonly log: Log
  readonly gate: Gate
  /** What a new session thread is started with; asked again for every replacement. */
  readonly sessionOptions: (shard: number) => SessionThreadOptions
  readonly acceptorOptions: AcceptorOptions
  readonly onSessionMessage: (shard: number, message: FromSession) => void
  readonly onEvidence: (message: Extract<FromAcceptor, { kind: 'evidence' }>) => void
  /** The thread is gone, its shard not yet served again: put right what it left behind. */
  readonly onShardLost: (shard: number) => void
}

/**
 * What these threads make dies at once or stays: with the default of 48 MB each would hold tens of megabytes that one
 * storm of connections had made it take.
 */
const YOUNG = { maxYoungGenerationSizeMb: 12 }

const RESTART_MS_MIN = 100
const RESTART_MS_MAX = 5_000
/** A thread that lived this long starts over with the shortest delay. */
const STABLE_MS = 30_000

export class Supervisor {
  readonly #options: SupervisorOptions
  readonly #threads: ShardThread[]
  /** Undefined: sockets move by node:net. */
  readonly #seats: EpollSeats | undefined
  #acceptor: Worker | undefined
  #isStopping = false
  #acceptorRestarts = 0
  /** TCP port the acceptor listens on; known once it does. */
  tcpPort = 0
  isListening = false

  /** @throws when the socket driver asked for cannot be had */
  constructor(options: SupervisorOptions) {
    this.#options = options
    this.#seats = chooseSeats(options.socketDriver, options.shards, options.log)
    this.#threads = Array.from({ length: options.shards }, (_, shard) => ({
      shard,
      worker: undefined,
      isReady: false,
      restarts: 0,
    }))
  }

  /** Shards whose thread does not serve right now. */
  get shardsDown(): number[] {
    return this.#threads.filter((thread) => !thread.isReady).map((thread) => thread.shard)
  }

  get restarts(): number {
    return this.#threads.reduce((sum, thread) => sum + thread.restarts, 0)
  }

  /** @throws a thread ended before it was ready */
  async startShards(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => this.#startShard(thread)))
  }

  /** @throws when the port cannot be listened on */
  async startAcceptor(): Promise<void> {
    const worker = new Worker(new URL('../../workers/acceptor/index.ts', import.meta.url), {
      // a replacement must come back on the port that devices know
      workerData: {
        ...this.#options.acceptorOptions,
        port: this.tcpPort || this.#options.acceptorOptions.port,
        ...(this.#seats !== undefined && { epoll: this.#seats.ofAcceptor() }),
      } satisfies AcceptorOptions,
      name: 'acceptor',
      resourceLimits: YOUNG,
    })
    this.#acceptor = worker
    await new Promise<void>((resolve, reject) => {
      worker.on('error', (error) => {
        this.#options.log.error({ event: 'acceptor.failed', err: error, msg: 'acceptor thread failed' })
        reject(error)
      })
      worker.on('exit', () => {
        this.isListening = false
        this.#seats?.acceptorEnded()
        reject(new Error('acceptor thread ended before it listened'))
        if (this.#isStopping || this.tcpPort === 0) return
        this.#acceptorRestarts++
        this.#options.log.error({ event: 'acceptor.replaced', msg: 'acceptor thread died, starting another' })
        setTimeout(
          () => void this.startAcceptor().catch(() => {}),
          RESTART_MS_MIN * 2 ** Math.min(this.#acceptorRestarts, 5),
        )
      })
      worker.on('message', (message: FromAcceptor) => {
        if (message.kind === 'listening') {
          this.tcpPort = message.port
          this.isListening = true
          resolve()
        } else if (message.kind === 'failed')
          reject(new GatewayError('GW_LISTEN_FAILED', `cannot listen for devices: ${message.message}`))
        else if (message.kind === 'evidence') this.#options.onEvidence(message)
      })
    })
    for (const thread of this.#threads) if (thread.isReady) this.#connect(thread)
  }

  /** A handover does not pass through main: acceptor and session thread have an epoll set or a channel of their own. */
  #connect(thread: ShardThread): void {
    if (this.#acceptor === undefined || thread.worker === undefined) return
    if (this.#seats !== undefined) return
    const { port1, port2 } = new MessageChannel()
    this.#tellAcceptor({ kind: 'shardUp', shard: thread.shard, port: port1 })
    const toSession: ToSession = { kind: 'acceptor', port: port2 }
    thread.worker.postMessage(toSession, [port2])
  }

  #tellAcceptor(message: ToAcceptor): void {
    this.#acceptor?.postMessage(message, message.kind === 'shardUp' ? [message.port] : [])
    this.#seats?.wakeAcceptor()
  }

  /** To a thread that is down: lost, its successor begins from shared memory. */
  tellShard(shard: number, message: ToSession): void {
    this.#threads[shard]?.worker?.postMessage(message)
    this.#seats?.wakeShard(shard)
  }

  async #startShard(thread: ShardThread): Promise<void> {
    const { shard } = thread
    const worker = new Worker(new URL('../../workers/session/index.ts', import.meta.url), {
      workerData: {
        ...this.#options.sessionOptions(shard),
        ...(this.#seats !== undefined && { epoll: this.#seats.ofShard(shard) }),
      } satisfies SessionThreadOptions,
      name: `session-${shard}`,
      resourceLimits: YOUNG,
    })
    const startedMonoMs = performance.now()
    thread.worker = worker
    await new Promise<void>((resolve, reject) => {
      worker.on('error', (error) =>
        this.#options.log.error({ event: 'shard.failed', shard, err: error, msg: 'session thread failed' }),
      )
      worker.on('exit', (code) => {
        thread.worker = undefined
        thread.isReady = false
        const waiting = this.#seats?.shardEnded(shard) ?? 0
        reject(new Error(`session thread ${shard} ended with ${code} before it was ready`))
        if (!this.#isStopping) this.#replace(thread, performance.now() - startedMonoMs, waiting)
      })
      worker.on('message', (message: FromSession) => {
        if (message.kind === 'ready') {
          thread.isReady = true
          this.#seats?.shardServed(shard)
          this.#connect(thread)
          resolve()
        }
        this.#options.onSessionMessage(shard, message)
      })
    })
  }

  /** @param waiting connections that were handed over and wait for the next thread */
  #replace(thread: ShardThread, livedMs: number, waiting: number): void {
    const { shard } = thread
    if (livedMs > STABLE_MS) thread.restarts = 0
    const waitMs = Math.min(RESTART_MS_MIN * 2 ** thread.restarts, RESTART_MS_MAX)
    thread.restarts++
    this.#tellAcceptor({ kind: 'shardDown', shard })
    this.#options.onShardLost(shard)
    this.#options.gate.endAll(shard, waiting)
    this.#options.log.error({ event: 'shard.replaced', shard, waitMs, msg: 'session thread died, starting another' })
    setTimeout(() => {
      if (!this.#isStopping) void this.#startShard(thread).catch(() => {})
    }, waitMs)
  }

  /** No new connections from now on. */
  async stopAcceptor(): Promise<void> {
    this.#isStopping = true
    const worker = this.#acceptor
    if (worker === undefined) return
    const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()))
    this.#tellAcceptor({ kind: 'stop' })
    if (!(await settledWithin(ended, 2_000))) await worker.terminate()
  }

  /** Asks every session thread and waits for its answer; after `stop`, a thread that is too late is terminated. */
  async askAll(question: 'drain' | 'stop', withinMs: number): Promise<void> {
    await Promise.all(
      this.#threads.map(async ({ shard, worker }) => {
        if (worker === undefined) return
        const answered = new Promise<void>((resolve) => {
          worker.on('message', (message: FromSession) => {
            if (question === 'drain' && message.kind === 'drained') resolve()
          })
          worker.once('exit', () => resolve())
        })
        const message: ToSession = { kind: question }
        worker.postMessage(message)
        this.#seats?.wakeShard(shard)
        if (!(await settledWithin(answered, withinMs)) && question === 'stop') await worker.terminate()
      }),
    )
    if (question === 'stop') this.#seats?.close()
  }
}
