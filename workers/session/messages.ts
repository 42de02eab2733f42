/** What a session thread says and hears: a few numbers per connection, login or batch, never per frame. */
import type { MessagePort } from 'node:worker_threads'
import type { CardAnswer } from '../../src/codec/protocol.ts'
import type { CardQuestion, } from '../../src/session/effects.ts'
import type { ShardOptions } from '../../src/session/shard.ts'

export interface SessionThreadOptions extends ShardOptions {
  readonly ledger: SharedArrayBuffer
  readonly history: SharedArrayBuffer
  /** Where the streams of rows stand: not 0 when this thread replaces a dead one. */
  readonly ledgerPosition: number
  readonly historyPosition: number
  readonly directory: SharedArrayBuffer
  readonly gate: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  readonly countersThread: number
  readonly outboundBytesMax: number
  readonly log: { readonly level: string; readonly serviceName: string; readonly env: string }
}

export type ToSession =
  | { readonly kind: 'acceptor'; readonly port: MessagePort }
  | { readonly kind: 'durable'; readonly position: number; readonly rejected: readonly number[] }
  | { readonly kind: 'card'; readonly questionId: number; readonly answer: CardAnswer | undefined }
  | { readonly kind: 'superseded'; readonly deviceKey: number; readonly epoch: number }
  /** End sessions, write their rows, but wait for acks on their way. */
  | { readonly kind: 'drain' }
  | { readonly kind: 'stop' }

export type FromSession =
  | { readonly kind: 'ready' }
  /** Rows were published while main slept. */
  | { readonly kind: 'rows'; readonly lane: 'ledger' | 'history' }
  | { readonly kind: 'card'; readonly question: CardQuestion }
  | { readonly kind: 'supersede'; readonly shard: number; readonly deviceKey: number; readonly epoch: number }
  /** After `drain`: nothing more will be appended. */
  | { readonly kind: 'drained' }
  | { readonly kind: 'stopped' }
