/** The only file that touches the memory of sockets-layout.ts. */
import { DOOR, DOOR_BYTES, SOCKET, SOCKET_BYTES, SOCKET_STATE, type SocketState } from './sockets-layout.ts'

/**
 * @param doors threads that can be woken
 * @param descriptorsMax descriptors the process may have; pages of the ones never used are never touched
 */
export function allocateSockets(doors: number, descriptorsMax: number): SharedArrayBuffer {
  return new SharedArrayBuffer(doors * DOOR_BYTES + descriptorsMax * SOCKET_BYTES)
}

/** What a connection brings along when it changes threads. */
export interface Arrival {
  readonly protocol: number
  readonly birth: number
  /** `address:port`, as node:net writes addresses. */
  readonly remoteAddress: string
}

export class Sockets {
  readonly #words: Int32Array
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #tableSlot: number
  readonly descriptorsMax: number

  constructor(memory: SharedArrayBuffer, doors: number) {
    this.#words = new Int32Array(memory)
    this.#bytes = new Uint8Array(memory)
    this.#view = new DataView(memory)
    this.#tableSlot = (doors * DOOR_BYTES) / 4
    this.descriptorsMax = (memory.byteLength - doors * DOOR_BYTES) / SOCKET_BYTES
  }

  // ---- doors ---------------------------------------------------------------------------------------------------

  /**
   * Thread: any, after its message is posted.
   * @returns true: the thread sleeps, and the caller owes it a write to its eventfd
   */
  knock(door: number): boolean {
    const slot = (door * DOOR_BYTES) / 4
    Atomics.add(this.#words, slot + DOOR.posts.slot, 1)
    return Atomics.exchange(this.#words, slot + DOOR.isAsleep.slot, 0) === 1
  }

  /** Messages posted so far, mod 2^32. Thread: the door's own. */
  posts(door: number): number {
    return Atomics.load(this.#words, (door * DOOR_BYTES) / 4 + DOOR.posts.slot)
  }

  /**
   * Says that the thread will block, then looks once more.
   * @param seen `posts` when the event loop was last given a turn
   * @returns false: something was posted since, do not block
   */
  sleep(door: number, seen: number): boolean {
    const slot = (door * DOOR_BYTES) / 4
    Atomics.store(this.#words, slot + DOOR.isAsleep.slot, 1)
    if (Atomics.load(this.#words, slot + DOOR.posts.slot) === seen) return true
    Atomics.store(this.#words, slot + DOOR.isAsleep.slot, 0)
    return false
  }

  awake(door: number): void {
    Atomics.store(this.#words, (door * DOOR_BYTES) / 4 + DOOR.isAsleep.slot, 0)
  }

  /** Thread: main. */
  setServed(door: number, isServed: boolean): void {
    Atomics.store(this.#words, (door * DOOR_BYTES) / 4 + DOOR.isServed.slot, isServed ? 1 : 0)
  }

  isServed(door: number): boolean {
    return Atomics.load(this.#words, (door * DOOR_BYTES) / 4 + DOOR.isServed.slot) === 1
  }

  // ---- descriptors ---------------------------------------------------------------------------------------------

  #slot(descriptor: number): number {
    return this.#tableSlot + (descriptor * SOCKET_BYTES) / 4
  }

  state(descriptor: number): SocketState {
    return (Atomics.load(this.#words, this.#slot(descriptor) + SOCKET.state.slot) & 0xff) as SocketState
  }

  /** Publishes what was stored for the descriptor before. */
  setState(descriptor: number, state: SocketState, shard = 0): void {
    Atomics.store(this.#words, this.#slot(descriptor) + SOCKET.state.slot, state | (shard << 8))
  }

  generation(descriptor: number): number {
    return this.#words[this.#slot(descriptor) + SOCKET.generation.slot]!
  }

  /**
   * A new connection got this descriptor. Thread: whoever the kernel gave it to.
   * @returns its generation, never 0
   */
  begin(descriptor: number): number {
    const slot = this.#slot(descriptor)
    const generation = (this.#words[slot + SOCKET.generation.slot]! + 1) | 0 || 1
    this.#words[slot + SOCKET.generation.slot] = generation
    this.#words[slot + SOCKET.familyAndPort.slot] = 0
    return generation
  }

  /**
   * Copies the address that accept4 filled in. Thread: acceptor.
   * @param sockaddr struct sockaddr_in or sockaddr_in6, in the byte order of the machine and the network
   */
  setAddress(descriptor: number, sockaddr: Uint8Array, isV6: boolean): void {
    const slot = this.#slot(descriptor)
    const port = (sockaddr[2]! << 8) | sockaddr[3]!
    this.#words[slot + SOCKET.familyAndPort.slot] = (port << 16) | (isV6 ? 6 : 4)
    const from = isV6 ? 8 : 4
    const at = (slot + SOCKET.address.slot) * 4
    for (let index = 0; index < (isV6 ? 16 : 4); index++) this.#bytes[at + index] = sockaddr[from + index]!
  }

  /** Thread: acceptor, before the state says `handed`. */
  setFacts(descriptor: number, protocol: number, birth: number): void {
    const slot = this.#slot(descriptor)
    this.#words[slot + SOCKET.protocol.slot] = protocol
    this.#view.setFloat64((slot + SOCKET.birth.slot) * 4, birth, true)
  }

  isHandedTo(descriptor: number, shard: number, generation: number): boolean {
    const word = Atomics.load(this.#words, this.#slot(descriptor) + SOCKET.state.slot)
    return word === (SOCKET_STATE.handed | (shard << 8)) && this.generation(descriptor) === generation
  }

  arrival(descriptor: number): Arrival {
    const slot = this.#slot(descriptor)
    return {
      protocol: this.#words[slot + SOCKET.protocol.slot]!,
      birth: this.#view.getFloat64((slot + SOCKET.birth.slot) * 4, true),
      remoteAddress: this.remoteAddress(descriptor),
    }
  }

  remoteAddress(descriptor: number): string {
    const slot = this.#slot(descriptor)
    const familyAndPort = this.#words[slot + SOCKET.familyAndPort.slot]!
    const at = (slot + SOCKET.address.slot) * 4
    const bytes = this.#bytes
    const v4 = (from: number) => `${bytes[from]!}.${bytes[from + 1]!}.${bytes[from + 2]!}.${bytes[from + 3]!}`
    const family = familyAndPort & 0xff
    const port = familyAndPort >>> 16
    if (family === 0) return '?:0'
    if (family === 4) return `${v4(at)}:${port}`
    const isMapped = this.#view.getBigUint64(at, true) === 0n && this.#view.getUint32(at + 8) === 0xffff
    if (isMapped) return `::ffff:${v4(at + 12)}:${port}`
    const groups = Array.from({ length: 8 }, (_, group) => this.#view.getUint16(at + group * 2).toString(16))
    // the URL parser writes the shortest form, as node:net does
    return `${new URL(`http://[${groups.join(':')}]/`).hostname.slice(1, -1)}:${port}`
  }

  /** Descriptors in one of these states, of one shard. Cost: looks at the whole table. */
  *find(states: readonly SocketState[], shard: number): Generator<number> {
    for (let descriptor = 0; descriptor < this.descriptorsMax; descriptor++) {
      const word = Atomics.load(this.#words, this.#slot(descriptor) + SOCKET.state.slot)
      if (word !== 0 && word >>> 8 === shard && states.includes((word & 0xff) as SocketState)) yield descriptor
    }
  }
}
