/**
 * Epoll sets, eventfds and the table of descriptors (src/shared/sockets.ts) for acceptor and session threads. They
 * belong to main for as long as the gateway runs: a thread that replaces a dead one waits on the same set, so nobody
 * writes to a number that has become something else. Descriptors opened by FFI are not closed by Node when their thread
 * dies; main does that here. Thread: main.
 */
import type { EpollAcceptorSeat } from '../../workers/acceptor/messages.ts'
import {
  closeDescriptor,
  createEpollSet,
  createEventfd,
  descriptorsMax,
  netOnlyReason,
  ring,
} from '../../workers/libc.ts'
import type { EpollSeat } from '../../workers/session/epoll-driver.ts'
import type { Config } from '../config/config.ts'
import { allocateSockets, Sockets } from '../shared/sockets.ts'
import { SOCKET_STATE, type SocketState } from '../shared/sockets-layout.ts'
import type { Log } from './log.ts'

/** A limit of 2^30 and more is no promise of so many connections. */
const TABLE_MAX = 1_048_576
const ACCEPTOR_DOOR = 0
const doorOf = (shard: number) => shard + 1

/**
 * @returns undefined: sockets move by node:net
 * @throws when epoll is asked for and cannot be had
 */
export function chooseSeats(wanted: Config['socketDriver'], shards: number, log: Log): EpollSeats | undefined {
  const reason = wanted === 'net' ? 'SOCKET_DRIVER=net' : netOnlyReason()
  if (wanted === 'epoll' && reason !== undefined) throw new Error(`SOCKET_DRIVER=epoll: ${reason}`)
  const driver = reason === undefined ? 'epoll' : 'net'
  log.info({ event: 'driver.chosen', driver, reason, msg: `sockets are moved by ${driver}` })
  return reason === undefined ? new EpollSeats(shards) : undefined
}

export class EpollSeats {
  readonly #memory: SharedArrayBuffer
  readonly #sockets: Sockets
  readonly #doors: { readonly set: number; readonly eventfd: number }[]

  constructor(shards: number) {
    const doors = shards + 1
    this.#memory = allocateSockets(doors, Math.min(descriptorsMax() ?? 65_536, TABLE_MAX))
    this.#sockets = new Sockets(this.#memory, doors)
    this.#doors = Array.from({ length: doors }, () => ({ set: createEpollSet(), eventfd: createEventfd() }))
  }

  #seat(door: number): EpollSeat {
    return { sockets: this.#memory, doors: this.#doors.length, door, ...this.#doors[door]! }
  }

  ofShard(shard: number): EpollSeat {
    return this.#seat(doorOf(shard))
  }

  ofAcceptor(): EpollAcceptorSeat {
    return {
      ...this.#seat(ACCEPTOR_DOOR),
      shardSets: this.#doors.slice(1).map(({ set }) => set),
      shardDoors: this.#doors.slice(1).map((_, shard) => doorOf(shard)),
    }
  }

  /** After a message was posted: ends the thread's sleep. */
  wakeShard(shard: number): void {
    this.#wake(doorOf(shard))
  }

  wakeAcceptor(): void {
    this.#wake(ACCEPTOR_DOOR)
  }

  #wake(door: number): void {
    if (this.#doors.length > 0 && this.#sockets.knock(door)) ring(this.#doors[door]!.eventfd)
  }

  /** A session thread serves this shard: connections may be handed to it. */
  shardServed(shard: number): void {
    this.#sockets.setServed(doorOf(shard), true)
  }

  /**
   * A session thread is dead: closes what was its own. What was handed over and not seen waits for its successor.
   * @returns how many connections wait
   */
  shardEnded(shard: number): number {
    this.#sockets.setServed(doorOf(shard), false)
    this.#closeAll([SOCKET_STATE.adopted, SOCKET_STATE.closing], shard)
    return [...this.#sockets.find([SOCKET_STATE.handed], shard)].length
  }

  /** The acceptor is dead: closes its strangers and the listening socket. */
  acceptorEnded(): void {
    this.#closeAll([SOCKET_STATE.stranger], 0)
  }

  #closeAll(states: readonly SocketState[], shard: number): void {
    for (const descriptor of this.#sockets.find(states, shard)) {
      this.#sockets.setState(descriptor, SOCKET_STATE.free)
      closeDescriptor(descriptor)
    }
  }

  /** Every thread has ended. */
  close(): void {
    for (const { set, eventfd } of this.#doors.splice(0)) {
      closeDescriptor(set)
      closeDescriptor(eventfd)
    }
  }
}
