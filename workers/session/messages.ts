/** What a session thread says and hears: a few numbers per connection, login or batch, never per frame. */
import type { MessagePort } from 'node:worker_threads'
import type { CardAnswer } from '../../src/codec/protocol.ts'
import type { AllowlistEntry } from '../../src/session/allowlist.ts'
import type { CardQuestion, ReturnedCommand } from '../../src/session/effects.ts'
import type { ShardOptions } from '../../src/session/shard.ts'
import type { Evidence } from '../acceptor/messages.ts'
import type { EpollSeat } from './epoll-driver.ts'

export interface SessionThreadOptions extends ShardOptions {
  readonly ledger: SharedArrayBuffer
  readonly history: SharedArrayBuffer
  /** Where the streams of rows stand: not 0 when this thread replaces a dead one. */
  readonly ledgerPosition: number
  readonly historyPosition: number
  /** Commands from main; where its stream stands: nothing before that is for this thread. */
  readonly mailbox: SharedArrayBuffer
  readonly mailboxPosition: number
  readonly directory: SharedArrayBuffer
  readonly gate: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  readonly countersThread: number
  readonly outboundBytesMax: number
  /** Device keys and names of model profiles chosen by people; later changes come as messages. */
  readonly profiles: readonly (readonly [deviceKey: number, name: string])[]
  /** Undefined: whoever speaks a protocol may connect; later changes come as messages. */
  readonly allowlist: readonly AllowlistEntry[] | undefined
  /** Undefined: sockets move by node:net, and come over the acceptor's port. */
  readonly epoll?: EpollSeat
  readonly record: 'all' | 'errors' | 'off'
  readonly recordDirectory: string
  readonly recordBytesMax: number
  readonly log: { readonly level: string; readonly serviceName: string; readonly env: string }
}

/** A command was sent, or has its fate (`outbound_queue.status`). */
export interface MovedCommand {
  readonly commandId: string
  readonly status: number
}

export type ToSession =
  | { readonly kind: 'acceptor'; readonly port: MessagePort }
  | { readonly kind: 'durable'; readonly position: number; readonly rejected: readonly number[] }
  | { readonly kind: 'card'; readonly questionId: number; readonly answer: CardAnswer | undefined }
  | { readonly kind: 'superseded'; readonly deviceKey: number; readonly epoch: number }
  /** Commands were put into the mailbox while this thread slept. */
  | { readonly kind: 'mail' }
  /** A person has chosen another model profile for a device; null: none. */
  | { readonly kind: 'profile'; readonly deviceKey: number; readonly name: string | null }
  /** Who may connect has changed; all of it. */
  | { readonly kind: 'allowlist'; readonly entries: readonly AllowlistEntry[] }
  | { readonly kind: 'cancel'; readonly questionId: number; readonly deviceKey: number; readonly commandId: string }
  /** Read nothing more and write what was held back; sessions stay, acks on their way still go out. */
  | { readonly kind: 'drain' }
  | { readonly kind: 'stop' }

export type FromSession =
  | { readonly kind: 'ready' }
  /** Rows were published while main slept. */
  | { readonly kind: 'rows'; readonly lane: 'ledger' | 'history' }
  | { readonly kind: 'card'; readonly question: CardQuestion }
  | { readonly kind: 'supersede'; readonly shard: number; readonly deviceKey: number; readonly epoch: number }
  /** Devices that may not connect. */
  | { readonly kind: 'evidence'; readonly items: readonly Evidence[] }
  /** Devices have a session here. */
  | { readonly kind: 'online'; readonly deviceKeys: readonly number[] }
  | { readonly kind: 'returned'; readonly deviceKey: number; readonly command: ReturnedCommand }
  | { readonly kind: 'moved'; readonly commands: readonly MovedCommand[] }
  | { readonly kind: 'cancelled'; readonly questionId: number; readonly isCancelled: boolean }
  /** After `drain`: everything that was read is in the outbox. */
  | { readonly kind: 'drained' }
  | { readonly kind: 'stopped' }
