/**
 * The portable acceptor: `net.Server`, the first bytes are read, the descriptor is duplicated and posted with them. The
 * session thread of a socket-driver `net` takes it up.
 */
import { createServer, type Socket } from 'node:net'
import type { MessagePort } from 'node:worker_threads'
import { PROTOCOLS } from '../../src/protocols/index.ts'
import { shardOf } from '../../src/shared/rendezvous.ts'
import type { Acceptor, AcceptorParts, Refusal } from './acceptor.ts'
import { closeDetached, detach } from './handoff.ts'
import { identify } from './identify.ts'
import type { Handoff } from './messages.ts'

interface Stranger {
  readonly socket: Socket
  readonly birth: number
  readonly remoteAddress: string
  readonly dueMonoMs: number
  bytes: Uint8Array
}

interface ShardDoor {
  port: MessagePort | undefined
  /** Handoffs whose adoption has not been seen yet, in order; needed to close descriptors of a thread that died. */
  readonly sent: { readonly descriptor: number; readonly count: number }[]
}

export class NetAcceptor implements Acceptor {
  readonly #parts: AcceptorParts
  /** Connections that have not said who they are, oldest first: they time out in this order. */
  readonly #strangers = new Set<Stranger>()
  readonly #doors: ShardDoor[]
  readonly #server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 }, (socket) =>
    this.#accept(socket),
  )

  constructor(parts: AcceptorParts) {
    this.#parts = parts
    this.#doors = Array.from({ length: parts.options.shards }, () => ({ port: undefined, sent: [] }))
  }

  listen(): Promise<number> {
    const { host, port } = this.#parts.options
    return new Promise((resolve, reject) => {
      this.#server.on('error', reject)
      // the kernel's queue of accepted connections: a storm of 10,000 arrives in about a second
      this.#server.listen({ host, port, backlog: 4096 }, () => {
        const address = this.#server.address()
        resolve(typeof address === 'object' && address !== null ? address.port : port)
      })
    })
  }

  #accept(socket: Socket): void {
    const { options, gate, countAccepted, countClosed, nextBirth } = this.#parts
    countAccepted()
    const remoteAddress = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`
    socket.on('error', () => socket.destroy())
    if (gate.open + this.#strangers.size >= options.connectionsMax) {
      countClosed('too_many_connections')
      socket.destroy()
      return
    }
    const stranger: Stranger = {
      socket,
      birth: nextBirth(),
      remoteAddress,
      dueMonoMs: performance.now() + options.identifyTimeoutMs,
      bytes: new Uint8Array(0),
    }
    this.#strangers.add(stranger)
    socket.on('data', (chunk) => this.#heard(stranger, chunk))
    socket.on('close', () => {
      // gone before it said who it is; after a handover it is no stranger any more
      if (this.#strangers.delete(stranger)) countClosed('peer_closed')
    })
  }

  #refuse(stranger: Stranger, reason: Refusal): void {
    this.#strangers.delete(stranger)
    this.#parts.refused(stranger.remoteAddress, reason, stranger.bytes)
    stranger.socket.destroy()
  }

  #heard(stranger: Stranger, chunk: Uint8Array): void {
    const { options, gate, countClosed, log } = this.#parts
    // the chunk is a view of the socket's own buffer: what is handed over or kept must be a copy
    const bytes = new Uint8Array(stranger.bytes.length + chunk.length)
    bytes.set(stranger.bytes)
    bytes.set(chunk, stranger.bytes.length)
    stranger.bytes = bytes
    const identity = identify(PROTOCOLS, bytes, options.identifyBytesMax)
    if (identity.kind === 'needMore') return
    if (identity.kind === 'foreign') {
      this.#refuse(stranger, 'unknown_protocol')
      return
    }
    this.#strangers.delete(stranger)
    const shard = shardOf(identity.routingKey, options.shards)
    const door = this.#doors[shard]!
    if (door.port === undefined) {
      // its thread is being replaced: the device comes back in a moment, by then somebody is there
      countClosed('shard_lost')
      stranger.socket.destroy()
      return
    }
    const descriptor = detach(stranger.socket)
    if (descriptor < 0) {
      countClosed('handoff_failed')
      log.error({
        event: 'handoff.failed',
        remoteAddress: stranger.remoteAddress,
        msg: 'no descriptor for the handover',
      })
      return
    }
    gate.add(shard, 'handed')
    this.#noteAdopted(shard)
    door.sent.push({ descriptor, count: gate.count(shard, 'handed') })
    const handoff: Handoff = {
      descriptor,
      bytes,
      protocol: identity.protocol.index,
      birth: stranger.birth,
      remoteAddress: stranger.remoteAddress,
    }
    door.port.postMessage(handoff, [bytes.buffer])
  }

  /** Forgets the handoffs that the session thread has taken up. */
  #noteAdopted(shard: number): void {
    const adopted = this.#parts.gate.count(shard, 'adopted')
    const { sent } = this.#doors[shard]!
    let done = 0
    while (done < sent.length && ((adopted - sent[done]!.count) | 0) >= 0) done++
    if (done > 0) sent.splice(0, done)
  }

  shardUp(shard: number, port: MessagePort): void {
    this.#doors[shard]!.port = port
  }

  shardDown(shard: number): void {
    const door = this.#doors[shard]!
    door.port?.close()
    door.port = undefined
    this.#noteAdopted(shard)
    for (const { descriptor } of door.sent.splice(0)) closeDetached(descriptor)
  }

  sweep(nowMonoMs: number): void {
    for (const stranger of this.#strangers) {
      if (stranger.dueMonoMs > nowMonoMs) break
      this.#refuse(stranger, 'identify_timeout')
    }
    for (let shard = 0; shard < this.#doors.length; shard++) this.#noteAdopted(shard)
  }

  stop(): void {
    this.#server.close()
    for (const stranger of this.#strangers) stranger.socket.destroy()
    this.#strangers.clear()
    for (const door of this.#doors) door.port?.close()
  }
}
