/**
 * One double and its scripted other end, without sockets: bytes cross after a fixed delay, time is moved by hand. For
 * the tests of this folder.
 */
import type { Device, DeviceObserver, DeviceWorld, FailureKind } from './device.ts'
import { type Script, ScriptedPeer } from './scripted-server.ts'

export const STAGE_START_MS = Date.UTC(2026, 0, 1)
const TRAVEL_MS = 1

/** Keeps what a double tells. */
export class Notebook implements DeviceObserver {
  readonly sent: string[] = []
  readonly replies: string[] = []
  readonly ignored: string[] = []
  readonly missed: string[] = []
  readonly commands: string[] = []
  readonly started: string[] = []
  readonly settlementsSent: { order: string; isRepeat: boolean }[] = []
  readonly settlementsAcked: string[] = []
  readonly failures: { kind: FailureKind; detail: string }[] = []

  uplinkSent(name: string): void {
    this.sent.push(name)
  }
  replyReceived(name: string): void {
    this.replies.push(name)
  }
  replyIgnored(name: string): void {
    this.ignored.push(name)
  }
  replyMissed(name: string): void {
    this.missed.push(name)
  }
  commandReceived(name: string): void {
    this.commands.push(name)
  }
  orderStarted(_deviceId: string, _port: number, order: string): void {
    this.started.push(order)
  }
  settlementSent(_deviceId: string, _port: number, order: string, isRepeat: boolean): void {
    this.settlementsSent.push({ order, isRepeat })
  }
  settlementAcked(_deviceId: string, _port: number, order: string): void {
    this.settlementsAcked.push(order)
  }
  failed(kind: FailureKind, detail: string): void {
    this.failures.push({ kind, detail })
  }
}

interface Event {
  readonly atMs: number
  readonly run: () => void
}

export class Stage<D extends Device> implements DeviceWorld {
  readonly device: D
  readonly notebook = new Notebook()
  /** One per connection, oldest first. */
  readonly peers: ScriptedPeer[] = []
  /** Every chunk the device wrote, all connections. */
  readonly chunks: Uint8Array[] = []
  nowMs = STAGE_START_MS
  readonly #script: Script
  #events: Event[] = []
  #connection = 0
  isServerUp = true

  constructor(make: (world: DeviceWorld, observer: DeviceObserver) => D, script: Script) {
    this.#script = script
    this.device = make(this, this.notebook)
  }

  get peer(): ScriptedPeer {
    return this.peers[this.peers.length - 1] as ScriptedPeer
  }

  connect(): void {
    const connection = ++this.#connection
    this.#later(() => {
      if (connection !== this.#connection) return
      if (!this.isServerUp) return this.device.disconnected(this.nowMs, 'refused')
      const write = (bytes: Uint8Array) =>
        this.#later(() => {
          if (connection === this.#connection && this.device.isConnected) this.device.received(bytes, this.nowMs)
        })
      this.peers.push(new ScriptedPeer(write, this.#script))
      this.device.connected(this.nowMs)
    })
  }

  send(bytes: Uint8Array): void {
    const { peer } = this
    this.chunks.push(bytes)
    this.#later(() => peer.push(bytes, this.nowMs))
  }

  close(_isAbrupt: boolean): void {
    this.cut('')
  }

  /** @param why as the device sees it; empty: it hung up itself */
  cut(why: string): void {
    this.#connection++
    this.#later(() => this.device.disconnected(this.nowMs, why))
  }

  /** Moves time; everything due on the way happens at its time. */
  run(forMs: number): void {
    const endMs = this.nowMs + forMs
    for (;;) {
      const next = Math.min(this.device.nextWakeMs, ...this.#events.map((event) => event.atMs))
      if (next > endMs) break
      this.nowMs = Math.max(this.nowMs, next)
      const due = this.#events.filter((event) => event.atMs <= this.nowMs)
      this.#events = this.#events.filter((event) => event.atMs > this.nowMs)
      for (const event of due) event.run()
      if (this.device.nextWakeMs <= this.nowMs) this.device.wake(this.nowMs)
    }
    this.nowMs = endMs
  }

  #later(run: () => void): void {
    this.#events.push({ atMs: this.nowMs + TRAVEL_MS, run })
  }
}
