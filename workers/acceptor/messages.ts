/** What the acceptor says and hears: once per connection, never per frame. */
import type { MessagePort } from 'node:worker_threads'
import type { EpollSeat } from '../session/epoll-driver.ts'

/** Acceptor to session thread, over their own port; by epoll nothing is posted (src/shared/sockets.ts). */
export interface Handoff {
  /** A duplicate made for this connection; the session thread closes it. */
  readonly descriptor: number
  /** Read while identifying; to be handled before anything the socket says. */
  readonly bytes: Uint8Array
  /** Index of the protocol. */
  readonly protocol: number
  /** Epoch taken at accept: newer connections have greater births. */
  readonly birth: number
  readonly remoteAddress: string
}

export interface AcceptorOptions {
  readonly host: string
  readonly port: number
  readonly shards: number
  readonly identifyTimeoutMs: number
  readonly identifyBytesMax: number
  readonly evidenceBytesMax: number
  readonly connectionsMax: number
  readonly gate: SharedArrayBuffer
  readonly directory: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  readonly countersThread: number
  readonly log: { readonly level: string; readonly serviceName: string; readonly env: string }
  /** Undefined: sockets move by node:net. */
  readonly epoll?: EpollAcceptorSeat
}

/** Where the acceptor waits, and where its connections go. */
export interface EpollAcceptorSeat extends EpollSeat {
  /** The epoll set of each shard's session thread. */
  readonly shardSets: readonly number[]
  /** Its door, which says whether it is served. */
  readonly shardDoors: readonly number[]
}

export type ToAcceptor =
  /** A session thread serves this shard from now on; the port leads to it. Not told by epoll. */
  | { readonly kind: 'shardUp'; readonly shard: number; readonly port: MessagePort }
  | { readonly kind: 'shardDown'; readonly shard: number }
  | { readonly kind: 'stop' }

export type FromAcceptor =
  | { readonly kind: 'listening'; readonly port: number }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'evidence'; readonly items: readonly Evidence[] }
  | { readonly kind: 'stopped' }

/** Bytes of a connection that was refused, for whoever asks why. */
export interface Evidence {
  readonly atMs: number
  readonly remoteAddress: string
  /** Where it is known. */
  readonly deviceId?: string
  readonly reason: string
  readonly bytes: Uint8Array
}
