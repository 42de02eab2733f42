/**
 * The acceptor of Linux: accept4, a peek at the first bytes, and the descriptor goes into the epoll set of its session
 * thread. The bytes stay in the kernel, nothing is copied or posted; the connection's facts wait in `Sockets`.
 *
 * Strangers are watched edge-triggered: half a frame must not spin (io-design 8.7). The loop is that of the session
 * threads: it blocks for at most WAIT_MS_MAX, then Node's event loop has its turn.
 */
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { PROTOCOLS } from '../../src/protocols/index.ts'
import { shardOf } from '../../src/shared/rendezvous.ts'
import { Sockets } from '../../src/shared/sockets.ts'
import { SOCKET_STATE } from '../../src/shared/sockets-layout.ts'
import {
  accept,
  acceptedFrom,
  addressOf,
  closeDescriptor,
  EPOLLERR,
  EPOLLET,
  EPOLLHUP,
  EPOLLIN,
  EPOLLRDHUP,
  EpollEvents,
  isAcceptedFromV6,
  listenOn,
  peek,
  receive,
  unwatch,
  watch,
} from '../libc.ts'
import { EVENTFD_GENERATION } from '../session/epoll-driver.ts'
import type { Acceptor, AcceptorParts, Refusal, Turned } from './acceptor.ts'
import { identify } from './identify.ts'
import type { EpollAcceptorSeat } from './messages.ts'

/** Longer than a session thread's: nothing here is due sooner than the sweep ten times a second, and posts end the wait. */
const WAIT_MS_MAX = 50
const BATCHES_MAX = 16
const EVENTS_MAX = 512
/** Connections accepted before strangers are looked at again. */
const ACCEPTS_MAX = 256
/** The kernel's queue of accepted connections: a storm of 10,000 arrives in about a second. */
const BACKLOG = 4096
const PEEK_BYTES = 65_536
const STRANGER_EVENTS = EPOLLIN | EPOLLRDHUP | EPOLLET

interface Stranger {
  readonly descriptor: number
  readonly generation: number
  readonly birth: number
  readonly dueMonoMs: number
}

export class EpollAcceptor implements Acceptor {
  readonly #parts: AcceptorParts
  readonly #seat: EpollAcceptorSeat
  readonly #sockets: Sockets
  readonly #events = new EpollEvents(EVENTS_MAX)
  readonly #bytes = Buffer.allocUnsafeSlow(PEEK_BYTES)
  readonly #address = addressOf(this.#bytes)
  /** By descriptor, oldest first: they time out in this order. */
  readonly #strangers = new Map<number, Stranger>()
  readonly #closing: number[] = []
  #listener = -1
  #listenerGeneration = 0
  #isListenerWatched = false
  #seenPosts = 0
  #isStopped = false
  readonly #turn = () => this.#takeTurn()

  constructor(parts: AcceptorParts, seat: EpollAcceptorSeat) {
    this.#parts = parts
    this.#seat = seat
    this.#sockets = new Sockets(seat.sockets, seat.doors)
  }

  async listen(): Promise<number> {
    const { host, port } = this.#parts.options
    const address = isIP(host) === 0 ? (await lookup(host)).address : host
    const listening = listenOn(address, port, BACKLOG)
    this.#listener = listening.descriptor
    this.#listenerGeneration = this.#sockets.begin(this.#listener)
    // main closes it, should this thread die: its successor wants the port
    this.#sockets.setState(this.#listener, SOCKET_STATE.stranger)
    watch(this.#seat.set, this.#seat.eventfd, EVENTFD_GENERATION, EPOLLIN | EPOLLET)
    this.#watchListener()
    this.#seenPosts = this.#sockets.posts(this.#seat.door)
    setImmediate(this.#turn)
    return listening.port
  }

  #watchListener(): void {
    this.#isListenerWatched = watch(this.#seat.set, this.#listener, this.#listenerGeneration, EPOLLIN)
  }

  #takeTurn(): void {
    if (this.#isStopped) return
    this.#closeAll()
    const { set, door } = this.#seat
    let nowMonoMs = performance.now()
    const untilMonoMs = nowMonoMs + WAIT_MS_MAX
    for (let batch = 0; batch < BATCHES_MAX; batch++) {
      const leftMs = Math.ceil(untilMonoMs - nowMonoMs)
      const waitMs = leftMs > 0 && this.#sockets.sleep(door, this.#seenPosts) ? leftMs : 0
      const ready = this.#events.wait(set, waitMs)
      if (waitMs > 0) this.#sockets.awake(door)
      if (ready === 0) break
      for (let index = 0; index < ready; index++) this.#event(index)
      this.#closeAll()
      if (this.#sockets.posts(door) !== this.#seenPosts) break
      nowMonoMs = performance.now()
      if (nowMonoMs >= untilMonoMs) break
    }
    // posted before this line: the event loop delivers it before the next turn
    this.#seenPosts = this.#sockets.posts(door)
    setImmediate(this.#turn)
  }

  #event(index: number): void {
    const descriptor = this.#events.descriptor(index)
    const generation = this.#events.generation(index)
    if (generation === EVENTFD_GENERATION) return
    if (descriptor === this.#listener && generation === this.#listenerGeneration) {
      this.#acceptSome()
      return
    }
    const stranger = this.#strangers.get(descriptor)
    // gone earlier in this batch
    if (stranger === undefined || stranger.generation !== generation) return
    this.#look(stranger, this.#events.events(index))
  }

  #acceptSome(): void {
    const { options, gate, countAccepted, countClosed, nextBirth, log } = this.#parts
    const dueMonoMs = performance.now() + options.identifyTimeoutMs
    for (let count = 0; count < ACCEPTS_MAX; count++) {
      const descriptor = accept(this.#listener)
      if (descriptor < 0) {
        if (count > 0) return
        // no descriptor to be had, or the device left meanwhile: level-triggered, it would spin; `sweep` looks again
        unwatch(this.#seat.set, this.#listener)
        this.#isListenerWatched = false
        return
      }
      countAccepted()
      if (descriptor >= this.#sockets.descriptorsMax) {
        log.error({ event: 'handoff.failed', descriptor, msg: 'more descriptors than the table has room for' })
        countClosed('handoff_failed')
        closeDescriptor(descriptor)
        continue
      }
      const generation = this.#sockets.begin(descriptor)
      this.#sockets.setAddress(descriptor, acceptedFrom, isAcceptedFromV6())
      this.#sockets.setState(descriptor, SOCKET_STATE.stranger)
      if (gate.open + this.#strangers.size >= options.connectionsMax) {
        countClosed('too_many_connections')
        this.#closing.push(descriptor)
        continue
      }
      const stranger: Stranger = { descriptor, generation, birth: nextBirth(), dueMonoMs }
      this.#strangers.set(descriptor, stranger)
      // in a storm the first bytes are there already, and the descriptor never enters our own set
      if (this.#recognise(stranger, peek(descriptor, this.#address, options.identifyBytesMax), false)) continue
      watch(this.#seat.set, descriptor, generation, STRANGER_EVENTS)
    }
  }

  #look(stranger: Stranger, events: number): void {
    const bytes = peek(stranger.descriptor, this.#address, this.#parts.options.identifyBytesMax)
    if (bytes > 0 && this.#recognise(stranger, bytes, true)) return
    // a half-closed stranger will never say more than it has said
    if (bytes === 0 || (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) !== 0) this.#turnAway(stranger, 'peer_closed')
  }

  /** @returns true when the stranger is one no more: handed over or turned away */
  #recognise(stranger: Stranger, bytes: number, isWatched: boolean): boolean {
    if (bytes <= 0) return false
    const { options, gate, countClosed, log } = this.#parts
    const { descriptor, generation } = stranger
    const identity = identify(PROTOCOLS, this.#bytes.subarray(0, bytes), options.identifyBytesMax)
    if (identity.kind === 'needMore') return false
    if (identity.kind === 'foreign') {
      this.#refuse(stranger, 'unknown_protocol')
      return true
    }
    const shard = shardOf(identity.routingKey, options.shards)
    if (!this.#sockets.isServed(this.#seat.shardDoors[shard]!)) {
      // its thread is being replaced: the device comes back in a moment, by then somebody is there
      this.#turnAway(stranger, 'shard_lost')
      return true
    }
    this.#strangers.delete(descriptor)
    if (isWatched) unwatch(this.#seat.set, descriptor)
    this.#sockets.setFacts(descriptor, identity.protocol.index, stranger.birth)
    gate.add(shard, 'handed')
    // the last word on this descriptor here: with the next line it belongs to the session thread
    this.#sockets.setState(descriptor, SOCKET_STATE.handed, shard)
    if (!watch(this.#seat.shardSets[shard]!, descriptor, generation, EPOLLIN)) {
      this.#sockets.setState(descriptor, SOCKET_STATE.stranger)
      gate.add(shard, 'ended')
      countClosed('handoff_failed')
      log.error({ event: 'handoff.failed', descriptor, msg: 'the epoll set of the shard does not take it' })
      this.#closing.push(descriptor)
    }
    return true
  }

  #refuse(stranger: Stranger, reason: Refusal): void {
    const { descriptor } = stranger
    this.#strangers.delete(descriptor)
    // read, not peeked: unread bytes would turn the close into a reset
    const bytes = Math.max(0, receive(descriptor, this.#address, PEEK_BYTES))
    this.#parts.refused(this.#sockets.remoteAddress(descriptor), reason, this.#bytes.subarray(0, bytes))
    this.#closing.push(descriptor)
  }

  #turnAway(stranger: Stranger, reason: Turned): void {
    this.#strangers.delete(stranger.descriptor)
    this.#parts.countClosed(reason)
    receive(stranger.descriptor, this.#address, PEEK_BYTES)
    this.#closing.push(stranger.descriptor)
  }

  #closeAll(): void {
    for (const descriptor of this.#closing) {
      this.#sockets.setState(descriptor, SOCKET_STATE.free)
      closeDescriptor(descriptor)
    }
    this.#closing.length = 0
  }

  // main says it in shared memory, which is never behind
  shardUp(): void {}

  shardDown(): void {}

  sweep(nowMonoMs: number): void {
    for (const stranger of this.#strangers.values()) {
      if (stranger.dueMonoMs > nowMonoMs) break
      this.#refuse(stranger, 'identify_timeout')
    }
    if (!this.#isListenerWatched && this.#listener >= 0) this.#watchListener()
  }

  stop(): void {
    this.#isStopped = true
    for (const { descriptor } of this.#strangers.values()) this.#closing.push(descriptor)
    this.#strangers.clear()
    if (this.#listener >= 0) this.#closing.push(this.#listener)
    this.#listener = -1
    this.#closeAll()
  }
}
