/** One run of load-client.c: its connections, and what it is told to do with them. */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { cpuMsOf } from '../loadtest/process-use.ts'
import { type Contestant, start } from './contestants.ts'

export interface Reading {
  readonly msgsPerS: number
  readonly cpuUsPerMsg: number
  readonly p50Us: number
  readonly p99Us: number
  readonly p999Us: number
  /** Of one core, over the measured time. */
  readonly cpuPercent: number
}

export class Load {
  readonly #child: ChildProcess
  readonly #contestant: Contestant
  readonly #lines: AsyncIterator<string>
  readonly connections: number
  /** Connections that registered and were answered, per second. */
  readonly stormPerS: number
  /** Replies that were not what they should be, connections that broke, beats without a reply. */
  faults = 0

  constructor(
    child: ChildProcess,
    contestant: Contestant,
    lines: AsyncIterator<string>,
    connections: number,
    stormMs: number,
  ) {
    this.#child = child
    this.#contestant = contestant
    this.#lines = lines
    this.connections = connections
    this.stormPerS = stormMs < 0 ? 0 : Math.round((connections / Math.max(1, stormMs)) * 1_000)
  }

  /** @throws not all connections were registered and answered */
  static async connect(
    program: string,
    contestant: Contestant,
    connections: number,
    core: string | undefined,
  ): Promise<Load> {
    const child = start([program, String(contestant.port), String(connections)], core)
    const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]()
    const told = /^connected (-?\d+)$/.exec((await lines.next()).value ?? '')?.[1]
    if (told === undefined || Number(told) < 0) {
      child.kill()
      throw new Error(`${contestant.name}: ${connections} connections did not all register`)
    }
    return new Load(child, contestant, lines, connections, Number(told))
  }

  /** One heartbeat on each connection. */
  async beat(): Promise<void> {
    await this.#tell('beat')
  }

  /** A report of a running order on each connection. */
  async order(): Promise<void> {
    await this.#tell('order')
  }

  /** One heartbeat in flight on each connection. */
  closed(warmupS: number, seconds: number): Promise<Reading> {
    return this.#measure(`closed ${warmupS} ${seconds}`)
  }

  /** @param rate heartbeats a second over all connections */
  open(warmupS: number, seconds: number, rate: number): Promise<Reading> {
    return this.#measure(`open ${warmupS} ${seconds} ${rate}`)
  }

  async #measure(what: string): Promise<Reading> {
    const { pid } = this.#contestant
    let cpuFromMs = 0
    let cpuUs = 0
    const told = await this.#tell(what, (line) => {
      if (line === 'measuring') cpuFromMs = cpuMsOf(pid)
      else if (line === 'measured') cpuUs = (cpuMsOf(pid) - cpuFromMs) * 1_000
    })
    const replies = told['replies']!
    return {
      msgsPerS: told['msgs_per_s']!,
      cpuUsPerMsg: replies === 0 ? Number.NaN : cpuUs / replies,
      p50Us: told['p50_us']!,
      p99Us: told['p99_us']!,
      p999Us: told['p999_us']!,
      cpuPercent: cpuUs / told['seconds']! / 1e4,
    }
  }

  async #tell(what: string, onLine: (line: string) => void = () => {}): Promise<Record<string, number>> {
    this.#child.stdin!.write(`${what}\n`)
    for (;;) {
      const { value: line, done } = await this.#lines.next()
      if (done === true) throw new Error(`the load client ended while it did "${what}" to ${this.#contestant.name}`)
      if (!line.startsWith('{')) {
        onLine(line)
        continue
      }
      const told = JSON.parse(line) as Record<string, number>
      this.faults = told['mismatches']! + told['closed']! + told['unanswered']!
      return told
    }
  }

  async close(): Promise<void> {
    const ended = once(this.#child, 'exit')
    this.#child.stdin!.end()
    await ended
  }
}
