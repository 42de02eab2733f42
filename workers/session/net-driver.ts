/**
 * The portable socket driver: one `net.Socket` per descriptor, reading into one static buffer (`onread`), one write per
 * connection and batch. Measured at 1.5 times the CPU of a C server per message (io-design D3dup).
 */
import { Socket } from 'node:net'
import type {
  ConnectionId,
  MakeSocketDriver,
  SocketDriver,
  SocketDriverOptions,
  SocketEvents,
} from './socket-driver.ts'

/** Above this many pending bytes a connection is not read (io-design 8.5). */
const PAUSE_BYTES = 16_384
const READ_BYTES = 65_536

interface Held {
  readonly id: ConnectionId
  readonly socket: Socket
  /** Frames of this batch. */
  queued: Uint8Array[]
  queuedBytes: number
  isStoppedByCaller: boolean
  isStoppedByOutput: boolean
  /** Set by close(): nothing is told about it any more. */
  isLetGo: boolean
  error: Error | undefined
}

export const makeNetDriver: MakeSocketDriver = (events, options) => new NetDriver(events, options)

class NetDriver implements SocketDriver {
  readonly #events: SocketEvents
  readonly #options: SocketDriverOptions
  readonly #held: (Held | undefined)[] = []
  readonly #free: ConnectionId[] = []
  readonly #unflushed: Held[] = []
  readonly #closing = new Set<Socket>()
  readonly #buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  #open = 0
  #isBatchOpen = false
  readonly #endBatch = () => {
    this.#isBatchOpen = false
    this.#events.batchEnd()
    this.#flush()
  }

  constructor(events: SocketEvents, options: SocketDriverOptions) {
    this.#events = events
    this.#options = options
  }

  get open(): number {
    return this.#open
  }

  adopt(descriptor: number): ConnectionId {
    const id = this.#free.pop() ?? this.#held.length
    const socket = new Socket({
      fd: descriptor,
      readable: true,
      writable: true,
      onread: {
        buffer: this.#buffer,
        callback: (bytes: number, buffer: Uint8Array) => {
          this.#readable(held, buffer.subarray(0, bytes))
          return true
        },
      },
    })
    const held: Held = {
      id,
      socket,
      queued: [],
      queuedBytes: 0,
      isStoppedByCaller: false,
      isStoppedByOutput: false,
      isLetGo: false,
      error: undefined,
    }
    this.#held[id] = held
    this.#open++
    socket.on('error', (error) => {
      held.error = error
    })
    socket.on('drain', () => this.#drained(held))
    socket.on('close', () => {
      this.#closing.delete(socket)
      if (held.isLetGo) return
      this.#letGo(held)
      this.#events.closed(id, held.error === undefined ? 'peer_closed' : 'peer_reset')
      this.#openBatch()
    })
    return id
  }

  #openBatch(): void {
    if (this.#isBatchOpen) return
    this.#isBatchOpen = true
    // runs after the poll phase: every socket that was readable in this round is in the batch
    setImmediate(this.#endBatch)
  }

  #readable(held: Held, chunk: Uint8Array): void {
    if (held.isLetGo) return
    this.#openBatch()
    this.#events.readable(held.id, chunk)
  }

  #drained(held: Held): void {
    if (held.isLetGo) return
    if (held.isStoppedByOutput) {
      held.isStoppedByOutput = false
      if (!held.isStoppedByCaller) held.socket.resume()
    }
    this.#events.writable(held.id)
    this.#openBatch()
  }

  send(connection: ConnectionId, bytes: Uint8Array): boolean {
    const held = this.#held[connection]
    if (held === undefined) return true
    // what this batch gathered may go out at once: only what the kernel does not take counts against the device
    if (this.#pending(held) + bytes.length > this.#options.outboundBytesMax) this.#write(held)
    if (this.#pending(held) + bytes.length > this.#options.outboundBytesMax) return false
    if (held.queued.length === 0) this.#unflushed.push(held)
    held.queued.push(Buffer.from(bytes))
    held.queuedBytes += bytes.length
    this.#openBatch()
    return true
  }

  #flush(): void {
    for (const held of this.#unflushed) this.#write(held)
    this.#unflushed.length = 0
  }

  #write(held: Held): void {
    if (held.queued.length === 0 || held.socket.destroyed) return
    const bytes = held.queued.length === 1 ? held.queued[0]! : Buffer.concat(held.queued, held.queuedBytes)
    held.queued = []
    held.queuedBytes = 0
    held.socket.write(bytes)
    if (held.socket.writableLength > PAUSE_BYTES && !held.isStoppedByOutput) {
      held.isStoppedByOutput = true
      held.socket.pause()
    }
  }

  stopReading(connection: ConnectionId): void {
    const held = this.#held[connection]
    if (held === undefined || held.isStoppedByCaller) return
    held.isStoppedByCaller = true
    held.socket.pause()
  }

  stopReadingAll(): void {
    for (const held of this.#held) if (held !== undefined) this.stopReading(held.id)
  }

  resumeReading(connection: ConnectionId): void {
    const held = this.#held[connection]
    if (held === undefined || !held.isStoppedByCaller) return
    held.isStoppedByCaller = false
    if (!held.isStoppedByOutput) held.socket.resume()
  }

  #pending(held: Held): number {
    return held.queuedBytes + held.socket.writableLength
  }

  pendingBytes(connection: ConnectionId): number {
    const held = this.#held[connection]
    return held === undefined ? 0 : this.#pending(held)
  }

  #letGo(held: Held): void {
    held.isLetGo = true
    this.#held[held.id] = undefined
    this.#free.push(held.id)
    this.#open--
  }

  close(connection: ConnectionId): void {
    const held = this.#held[connection]
    if (held === undefined) return
    this.#write(held)
    this.#letGo(held)
    const { socket } = held
    this.#closing.add(socket)
    // what the kernel takes at once is sent; a peer that does not read is not waited for
    if (socket.writableLength === 0) socket.destroySoon()
    else socket.destroy()
  }

  async stop(withinMs: number): Promise<void> {
    const until = performance.now() + withinMs
    this.#flush()
    const isPending = () => this.#held.some((held) => held !== undefined && held.socket.writableLength > 0)
    while (isPending() && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 10))
    for (const held of [...this.#held]) if (held !== undefined) this.close(held.id)
    while (this.#closing.size > 0 && performance.now() < until + 1_000)
      await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
