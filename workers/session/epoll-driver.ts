/**
 * The socket driver of Linux: the session thread's own loop of epoll_wait, recv and send by FFI (io-design D7). Measured
 * at 1.1 times the CPU of a C server per message, where net.Socket takes 1.5 times.
 *
 * The loop blocks the thread for at most WAIT_MS_MAX; whoever posts to the thread ends that by its eventfd. Between two
 * turns the event loop of Node has its own: port messages, timers, promises. A connection id is the descriptor itself.
 *
 * What io-design 8 asks, and where it is: generation in the event data (`#event`), descriptors closed at the end of the
 * batch only (`#endBatch`), nothing decided on errno (`#read`, `#write`), no reading while output waits (`#interest`).
 */

import { type Arrival, allocateSockets, Sockets } from '../../src/shared/sockets.ts'
import { SOCKET_STATE } from '../../src/shared/sockets-layout.ts'
import {
  addressOf,
  closeDescriptor,
  createEpollSet,
  createEventfd,
  EPOLLERR,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EpollEvents,
  receive,
  rewatch,
  setDeviceOptions,
  transmit,
  watch,
} from '../libc.ts'
import type { ConnectionId, SocketDriver, SocketDriverOptions, SocketEvents } from './socket-driver.ts'

const WAIT_MS_MAX = 10
/** Batches before the event loop of Node has its turn. */
const BATCHES_MAX = 16
const EVENTS_MAX = 512
const READ_BYTES = 65_536
/** Bytes that leave in one batch before it is flushed early. */
const ARENA_BYTES = 262_144
const FRAMES_MAX = 8_192
/** Chunks up to this size are told with a view that is made once. */
const VIEWS_MAX = 1_024

const OPEN = 1
const STOPPED = 2
const PENDING = 4

/** Where a thread waits: its place among the doors of `Sockets`, its epoll set, and what ends its sleep. */
export interface EpollSeat {
  readonly sockets: SharedArrayBuffer
  readonly doors: number
  readonly door: number
  readonly set: number
  readonly eventfd: number
}

/** Event data of the eventfd; generations of connections begin with 1 or are negative. */
export const EVENTFD_GENERATION = 0

export interface EpollDriverOptions extends SocketDriverOptions {
  /** Created by the supervisor, which keeps them beyond this thread; undefined: the driver makes its own. */
  readonly seat?: EpollSeat
  readonly shard?: number
  /** The acceptor handed a connection over; its bytes follow by `readable`. */
  readonly arrived?: (connection: ConnectionId, arrival: Arrival) => void
  /** Shorter than WAIT_MS_MAX where other work shares the thread. */
  readonly waitMsMax?: number
}

export const makeEpollDriver = (events: SocketEvents, options: EpollDriverOptions): SocketDriver =>
  new EpollDriver(events, options)

/** Output the kernel has not taken. */
interface Pending {
  readonly chunks: Buffer[]
  /** Of the first chunk. */
  sentBytes: number
  bytes: number
}

class EpollDriver implements SocketDriver {
  readonly #told: SocketEvents
  readonly #options: EpollDriverOptions
  readonly #waitMsMax: number
  readonly #seat: EpollSeat
  readonly #set: number
  readonly #door: number
  readonly #shard: number
  readonly #sockets: Sockets
  readonly #events = new EpollEvents(EVENTS_MAX)

  // per descriptor; pages of numbers that never occur are never touched
  readonly #generations: Int32Array
  readonly #flags: Uint8Array
  readonly #queuedBytes: Int32Array
  /** Frames of this batch, an index + 1; 0: none. */
  readonly #firstFrame: Int32Array
  readonly #lastFrame: Int32Array
  readonly #pending = new Map<ConnectionId, Pending>()

  readonly #input = Buffer.allocUnsafeSlow(READ_BYTES)
  readonly #inputAddress = addressOf(this.#input)
  readonly #views: Buffer[] = []

  /** Frames of this batch, back to back. */
  readonly #arena = Buffer.allocUnsafeSlow(ARENA_BYTES)
  readonly #arenaAddress = addressOf(this.#arena)
  #arenaBytes = 0
  readonly #frameOwner = new Int32Array(FRAMES_MAX)
  readonly #frameFrom = new Int32Array(FRAMES_MAX)
  readonly #frameBytes = new Int32Array(FRAMES_MAX)
  readonly #frameNext = new Int32Array(FRAMES_MAX)
  #frames = 0
  /** Where the frames of one connection are put together when they do not lie together. */
  readonly #gather = Buffer.allocUnsafeSlow(ARENA_BYTES)
  readonly #gatherAddress = addressOf(this.#gather)

  /** Let go, and closed at the end of the batch: until then nobody else gets the number. */
  readonly #closing: ConnectionId[] = []
  #open = 0
  #isBatchOpen = false
  #seenPosts = 0
  #isStopped = false
  #isStoppedReading = false
  #stopped: (() => void) | undefined
  readonly #turn = () => this.#takeTurn()

  constructor(events: SocketEvents, options: EpollDriverOptions) {
    this.#told = events
    this.#options = options
    this.#waitMsMax = options.waitMsMax ?? WAIT_MS_MAX
    this.#seat = options.seat ?? ownSeat()
    this.#set = this.#seat.set
    this.#door = this.#seat.door
    this.#shard = options.shard ?? 0
    this.#sockets = new Sockets(this.#seat.sockets, this.#seat.doors)
    const count = this.#sockets.descriptorsMax
    this.#generations = new Int32Array(count)
    this.#flags = new Uint8Array(count)
    this.#queuedBytes = new Int32Array(count)
    this.#firstFrame = new Int32Array(count)
    this.#lastFrame = new Int32Array(count)
    // a predecessor on this seat may have watched it already
    watch(this.#set, this.#seat.eventfd, EVENTFD_GENERATION, EPOLLIN | EPOLLET)
    this.#seenPosts = this.#sockets.posts(this.#door)
    setImmediate(this.#turn)
  }

  get open(): number {
    return this.#open
  }

  // ---- the loop ------------------------------------------------------------------------------------------------

  #takeTurn(): void {
    // what timers and port messages sent and closed since the last turn
    this.#endBatch()
    const sockets = this.#sockets
    let nowMonoMs = performance.now()
    const untilMonoMs = nowMonoMs + this.#waitMsMax
    for (let batch = 0; batch < BATCHES_MAX && !this.#isStopped; batch++) {
      const leftMs = Math.ceil(untilMonoMs - nowMonoMs)
      const waitMs = leftMs > 0 && sockets.sleep(this.#door, this.#seenPosts) ? leftMs : 0
      const ready = this.#events.wait(this.#set, waitMs)
      if (waitMs > 0) sockets.awake(this.#door)
      if (ready === 0) break
      for (let index = 0; index < ready; index++) this.#event(index)
      this.#endBatch()
      if (sockets.posts(this.#door) !== this.#seenPosts) break
      nowMonoMs = performance.now()
      if (nowMonoMs >= untilMonoMs) break
    }
    if (this.#isStopped) {
      this.#giveBackSeat()
      this.#stopped?.()
      return
    }
    // posted before this line: the event loop delivers it before the next turn
    this.#seenPosts = sockets.posts(this.#door)
    setImmediate(this.#turn)
  }

  #event(index: number): void {
    const connection = this.#events.descriptor(index)
    const generation = this.#events.generation(index)
    if (generation === EVENTFD_GENERATION) return
    if (this.#generations[connection] !== generation) {
      // stale, or handed over since
      if (!this.#arrive(connection, generation)) return
    }
    const events = this.#events.events(index)
    const flags = this.#flags[connection]!
    if ((flags & OPEN) === 0) return
    if ((flags & (STOPPED | PENDING)) === 0) {
      this.#read(connection, events)
      return
    }
    if ((flags & PENDING) !== 0 && (events & EPOLLOUT) !== 0) this.#drain(connection)
    // a dead socket reports OUT beside ERR and HUP and takes nothing: left alone it would be reported for ever
    const isStuck = (this.#flags[connection]! & OPEN) !== 0 && this.#generations[connection] === generation
    if (isStuck && (events & (EPOLLERR | EPOLLHUP)) !== 0) this.#ended(connection, 'peer_reset')
  }

  #arrive(connection: ConnectionId, generation: number): boolean {
    if (!this.#sockets.isHandedTo(connection, this.#shard, generation)) return false
    this.#admit(connection, generation)
    this.#isBatchOpen = true
    this.#options.arrived?.(connection, this.#sockets.arrival(connection))
    if (this.#isStoppedReading) this.stopReading(connection)
    return true
  }

  #admit(connection: ConnectionId, generation: number): void {
    this.#sockets.setState(connection, SOCKET_STATE.adopted, this.#shard)
    this.#generations[connection] = generation
    this.#flags[connection] = OPEN
    this.#queuedBytes[connection] = 0
    this.#firstFrame[connection] = 0
    this.#lastFrame[connection] = 0
    this.#open++
  }

  #read(connection: ConnectionId, events: number): void {
    const bytes = receive(connection, this.#inputAddress, READ_BYTES)
    if (bytes > 0) {
      this.#isBatchOpen = true
      this.#told.readable(connection, this.#view(bytes))
      return
    }
    if ((events & (EPOLLERR | EPOLLHUP)) !== 0) this.#ended(connection, 'peer_reset')
    else if (bytes === 0) this.#ended(connection, 'peer_closed')
    // negative without ERR or HUP: later; a dead socket comes back with one of them
  }

  #view(bytes: number): Buffer {
    if (bytes > VIEWS_MAX) return this.#input.subarray(0, bytes)
    let view = this.#views[bytes]
    if (view === undefined) {
      view = this.#input.subarray(0, bytes)
      this.#views[bytes] = view
    }
    return view
  }

  #ended(connection: ConnectionId, reason: 'peer_closed' | 'peer_reset'): void {
    this.#isBatchOpen = true
    this.#letGo(connection)
    this.#told.closed(connection, reason)
  }

  #endBatch(): void {
    this.#flush()
    if (this.#isBatchOpen) {
      this.#isBatchOpen = false
      this.#told.batchEnd()
      this.#flush()
    }
    for (let index = 0; index < this.#closing.length; index++) {
      const descriptor = this.#closing[index]!
      // free before closed: the acceptor may get the number at once and writes its own state
      this.#sockets.setState(descriptor, SOCKET_STATE.free)
      closeDescriptor(descriptor)
    }
    this.#closing.length = 0
  }

  // ---- output --------------------------------------------------------------------------------------------------

  send(connection: ConnectionId, bytes: Uint8Array): boolean {
    if ((this.#flags[connection]! & OPEN) === 0) return true
    if (this.pendingBytes(connection) + bytes.length > this.#options.outboundBytesMax) return false
    this.#isBatchOpen = true
    if (bytes.length <= ARENA_BYTES) this.#append(connection, bytes)
    else
      for (let at = 0; at < bytes.length; at += ARENA_BYTES)
        this.#append(connection, bytes.subarray(at, Math.min(at + ARENA_BYTES, bytes.length)))
    return true
  }

  #append(connection: ConnectionId, bytes: Uint8Array): void {
    if (this.#arenaBytes + bytes.length > ARENA_BYTES || this.#frames === FRAMES_MAX) this.#flush()
    const from = this.#arenaBytes
    this.#arena.set(bytes, from)
    this.#arenaBytes = from + bytes.length
    this.#queuedBytes[connection]! += bytes.length
    const last = this.#lastFrame[connection]! - 1
    if (last >= 0 && this.#frameFrom[last]! + this.#frameBytes[last]! === from) {
      this.#frameBytes[last]! += bytes.length
      return
    }
    const frame = this.#frames++
    this.#frameOwner[frame] = connection
    this.#frameFrom[frame] = from
    this.#frameBytes[frame] = bytes.length
    this.#frameNext[frame] = 0
    if (last < 0) this.#firstFrame[connection] = frame + 1
    else this.#frameNext[last] = frame + 1
    this.#lastFrame[connection] = frame + 1
  }

  #flush(): void {
    // a closed connection has no frames left: `close` wrote them, an end dropped them
    for (let frame = 0; frame < this.#frames; frame++) {
      const connection = this.#frameOwner[frame]!
      if (this.#firstFrame[connection] === frame + 1) this.#flushOne(connection)
    }
    this.#frames = 0
    this.#arenaBytes = 0
  }

  #flushOne(connection: ConnectionId): void {
    const first = this.#firstFrame[connection]! - 1
    if (first < 0) return
    this.#firstFrame[connection] = 0
    this.#lastFrame[connection] = 0
    this.#queuedBytes[connection] = 0
    if (this.#frameNext[first] === 0) {
      this.#write(connection, this.#arena, this.#arenaAddress, this.#frameFrom[first]!, this.#frameBytes[first]!)
      return
    }
    let gathered = 0
    for (let frame = first; frame >= 0; frame = this.#frameNext[frame]! - 1) {
      const from = this.#frameFrom[frame]!
      gathered += this.#arena.copy(this.#gather, gathered, from, from + this.#frameBytes[frame]!)
    }
    this.#write(connection, this.#gather, this.#gatherAddress, 0, gathered)
  }

  #write(connection: ConnectionId, buffer: Buffer, address: number, from: number, bytes: number): void {
    const pending = this.#pending.get(connection)
    if (pending !== undefined) {
      pending.chunks.push(copyOf(buffer, from, from + bytes))
      pending.bytes += bytes
      return
    }
    const taken = Math.max(0, transmit(connection, address + from, bytes))
    if (taken === bytes) return
    this.#pending.set(connection, {
      chunks: [copyOf(buffer, from + taken, from + bytes)],
      sentBytes: 0,
      bytes: bytes - taken,
    })
    this.#flags[connection]! |= PENDING
    this.#interest(connection)
  }

  /** The kernel takes bytes again. */
  #drain(connection: ConnectionId): void {
    const pending = this.#pending.get(connection)!
    while (pending.bytes > 0) {
      let gathered = 0
      for (let index = 0; index < pending.chunks.length && gathered < ARENA_BYTES; index++)
        gathered += pending.chunks[index]!.copy(this.#gather, gathered, index === 0 ? pending.sentBytes : 0)
      const taken = transmit(connection, this.#gatherAddress, gathered)
      if (taken <= 0) return
      pending.bytes -= taken
      pending.sentBytes += taken
      while (pending.chunks.length > 0 && pending.sentBytes >= pending.chunks[0]!.length)
        pending.sentBytes -= pending.chunks.shift()!.length
      if (taken < gathered) return
    }
    this.#pending.delete(connection)
    this.#flags[connection]! &= ~PENDING
    this.#interest(connection)
    this.#isBatchOpen = true
    this.#told.writable(connection)
  }

  pendingBytes(connection: ConnectionId): number {
    const flags = this.#flags[connection]!
    if ((flags & OPEN) === 0) return 0
    const queued = this.#queuedBytes[connection]!
    return (flags & PENDING) === 0 ? queued : queued + this.#pending.get(connection)!.bytes
  }

  // ---- who is read ---------------------------------------------------------------------------------------------

  /** Output that waits, or the caller's wish, stops reading. Ends of a connection are told in any case. */
  #interest(connection: ConnectionId): void {
    const flags = this.#flags[connection]!
    const events = (flags & PENDING) !== 0 ? EPOLLOUT : (flags & STOPPED) !== 0 ? 0 : EPOLLIN
    rewatch(this.#set, connection, this.#generations[connection]!, events)
  }

  stopReading(connection: ConnectionId): void {
    if ((this.#flags[connection]! & (OPEN | STOPPED)) !== OPEN) return
    this.#flags[connection]! |= STOPPED
    this.#interest(connection)
  }

  resumeReading(connection: ConnectionId): void {
    if ((this.#flags[connection]! & (OPEN | STOPPED)) !== (OPEN | STOPPED)) return
    this.#flags[connection]! &= ~STOPPED
    this.#interest(connection)
  }

  stopReadingAll(): void {
    this.#isStoppedReading = true
    for (let connection = 0; connection < this.#flags.length; connection++) this.stopReading(connection)
  }

  // ---- coming and going ----------------------------------------------------------------------------------------

  adopt(descriptor: number): ConnectionId {
    if (!(descriptor >= 0 && descriptor < this.#flags.length)) throw new RangeError(`descriptor ${descriptor}`)
    if (!setDeviceOptions(descriptor)) throw new Error(`descriptor ${descriptor} is no TCP socket`)
    const generation = this.#sockets.begin(descriptor)
    if (!watch(this.#set, descriptor, generation, EPOLLIN))
      throw new Error(`descriptor ${descriptor} cannot be watched`)
    this.#admit(descriptor, generation)
    return descriptor
  }

  close(connection: ConnectionId): void {
    if ((this.#flags[connection]! & OPEN) === 0) return
    this.#flushOne(connection)
    // unread bytes would turn the close into a reset, which may overtake the last words
    if ((this.#flags[connection]! & PENDING) === 0) receive(connection, this.#gatherAddress, ARENA_BYTES)
    this.#letGo(connection)
  }

  #letGo(connection: ConnectionId): void {
    this.#sockets.setState(connection, SOCKET_STATE.closing, this.#shard)
    this.#flags[connection] = 0
    this.#firstFrame[connection] = 0
    this.#lastFrame[connection] = 0
    this.#pending.delete(connection)
    this.#open--
    this.#closing.push(connection)
  }

  async stop(withinMs: number): Promise<void> {
    if (this.#isStopped) return
    const until = performance.now() + withinMs
    this.#endBatch()
    while (this.#pending.size > 0 && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 5))
    for (let connection = 0; connection < this.#flags.length; connection++) this.close(connection)
    // handed over, and never seen here
    for (const descriptor of this.#sockets.find([SOCKET_STATE.handed], this.#shard)) this.#closing.push(descriptor)
    this.#endBatch()
    await new Promise<void>((resolve) => {
      this.#stopped = resolve
      this.#isStopped = true
    })
  }

  #giveBackSeat(): void {
    if (this.#options.seat !== undefined) return
    closeDescriptor(this.#seat.eventfd)
    closeDescriptor(this.#set)
  }
}

function copyOf(buffer: Buffer, from: number, to: number): Buffer {
  const copy = Buffer.allocUnsafeSlow(to - from)
  buffer.copy(copy, 0, from, to)
  return copy
}

const OWN_DESCRIPTORS_MAX = 65_536

/** A seat for a driver that shares nothing. */
function ownSeat(): EpollSeat {
  return {
    sockets: allocateSockets(1, OWN_DESCRIPTORS_MAX),
    doors: 1,
    door: 0,
    set: createEpollSet(),
    eventfd: createEventfd(),
  }
}
