/**
 * TCP as devices meet it: bytes keep their order, are cut and glued anywhere, and either end may learn much later than
 * the other, or never, that the connection is gone.
 */
import type { World } from './sim-world.ts'

type Item = Uint8Array | 'end'

/** One direction of one connection. */
export class Pipe {
  readonly #world: World
  readonly #deliver: (item: Item) => void
  #queue: Item[] = []
  #dueMs = 0
  #holdUntilMs = 0
  /** Nothing of it arrives any more. */
  isDead = false

  constructor(world: World, deliver: (item: Item) => void) {
    this.#world = world
    this.#deliver = deliver
  }

  send(bytes: Uint8Array): void {
    const { random } = this.#world
    if (bytes.length < 2 || !random.chance(0.25)) {
      this.#push(bytes, random.between(1, 60))
      return
    }
    let from = 0
    for (let pieces = 1 + random.below(3); pieces > 0 && from < bytes.length; pieces--) {
      const to = pieces === 1 ? bytes.length : from + 1 + random.below(bytes.length - from)
      this.#push(bytes.subarray(from, to), random.between(1, 60))
      from = to
    }
  }

  /** A stall ends so much from now, and what it held back trickles in. */
  release(afterMs: number): void {
    const { time } = this.#world
    this.#holdUntilMs = 0
    for (const index of this.#queue.keys()) time.after(afterMs + 40 * index, () => this.#arrive())
    this.#dueMs = Math.max(this.#dueMs, time.nowMs + afterMs + 40 * this.#queue.length)
  }

  /** Behind everything sent so far. */
  end(afterMs: number): void {
    this.#push('end', afterMs)
  }

  stall(ms: number): void {
    this.#holdUntilMs = Math.max(this.#holdUntilMs, this.#world.time.nowMs + ms)
  }

  #push(item: Item, delayMs: number): void {
    if (this.isDead) return
    this.#queue.push(item)
    this.#dueMs = Math.max(this.#dueMs, this.#world.time.nowMs + delayMs)
    this.#world.time.at(this.#dueMs, () => this.#arrive())
  }

  /** One call per item pushed; a call that finds its item glued to an earlier one has nothing to do. */
  #arrive(): void {
    if (this.isDead) return
    const { time, random } = this.#world
    if (time.nowMs < this.#holdUntilMs) {
      time.at(this.#holdUntilMs, () => this.#arrive())
      return
    }
    let item = this.#queue.shift()
    if (item === undefined) return
    while (item !== 'end' && this.#queue.length > 0 && this.#queue[0] !== 'end' && random.chance(0.4)) {
      const next = this.#queue.shift() as Uint8Array
      const glued: Uint8Array = new Uint8Array(item.length + next.length)
      glued.set(item)
      glued.set(next, item.length)
      item = glued
    }
    this.#deliver(item)
  }
}

/** The end of a connection that a device holds. */
export interface DeviceEnd {
  lineReceived(line: Line, bytes: Uint8Array): void
  lineEnded(line: Line, why: string): void
}

/** The end the gateway holds: acceptor first, session thread later. */
export interface ServerEnd {
  received(line: Line, bytes: Uint8Array): void
  ended(line: Line, isReset: boolean): void
}

/** One connection from dial to end. */
export class Line {
  readonly number: number
  readonly name: string
  readonly up: Pipe
  readonly down: Pipe
  readonly #world: World
  /** Undefined before accept and after the gateway let go. */
  server: ServerEnd | undefined
  /** Epoch of its accept; 0 before. */
  birth = 0
  isDeviceOpen = true
  isServerOpen = false
  heardMs = 0
  isWithoutIccid = false
  /** The server's side takes nothing more to send. */
  isFull = false
  /** Uplinks on this connection that no reply has used up, by command, message id and device. */
  readonly unanswered = new Map<string, number>()
  /** Devices that were answered on it. */
  readonly answered = new Set<number>()
  /** Devices that asked for the word on it, whether they got it or not. */
  readonly asked = new Set<number>()
  /** Frames of the batch of its session thread. */
  queued: Uint8Array[] = []
  connectionId = -1

  constructor(world: World, number: number, name: string, device: DeviceEnd) {
    this.#world = world
    this.number = number
    this.name = `${name}#${number}`
    this.up = new Pipe(world, (item) => {
      if (!this.isServerOpen) return
      this.heardMs = world.time.nowMs
      if (item === 'end') this.#serverSees(false)
      else this.server?.received(this, item)
    })
    this.down = new Pipe(world, (item) => {
      if (!this.isDeviceOpen) return
      if (item === 'end') device.lineEnded(this, 'ended by the server')
      else device.lineReceived(this, item)
    })
  }

  #serverSees(isReset: boolean): void {
    const { server } = this
    if (!this.isServerOpen || server === undefined) return
    this.isServerOpen = false
    this.up.isDead = true
    server.ended(this, isReset)
  }

  /**
   * The device has no connection any more.
   * @param learnsAfterMs when the server does; undefined: never, its idle timeout must do
   * @param keepsInFlight what is under way still reaches the server, however late
   */
  abandonedByDevice(learnsAfterMs: number | undefined, keepsInFlight: boolean): void {
    this.isDeviceOpen = false
    this.down.isDead = true
    if (learnsAfterMs === undefined) {
      if (!keepsInFlight) this.up.isDead = true
    } else if (keepsInFlight) this.up.end(learnsAfterMs)
    else {
      this.up.isDead = true
      this.#world.time.after(learnsAfterMs, () => this.#serverSees(true))
    }
  }

  /** The server sees the end of a connection that the device still believes in. */
  lostByServer(deviceLearnsAfterMs: number): void {
    this.#serverSees(true)
    this.down.end(deviceLearnsAfterMs)
  }

  /** The server let go: what it had sent may arrive, what comes is thrown away. */
  letGo(deviceLearnsAfterMs: number): void {
    this.isServerOpen = false
    this.server = undefined
    this.up.isDead = true
    this.down.end(deviceLearnsAfterMs)
  }
}
