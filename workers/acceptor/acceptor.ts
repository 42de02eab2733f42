/** What the acceptor thread does with connections, whichever way they are moved. */
import type { MessagePort } from 'node:worker_threads'
import type { Log } from '../../src/main/log.ts'
import type { Gate } from '../../src/shared/gate.ts'
import type { AcceptorOptions } from './messages.ts'

/** Why a connection got no session. */
export type Refusal = 'identify_timeout' | 'unknown_protocol'
export type Turned = Refusal | 'too_many_connections' | 'peer_closed' | 'shard_lost' | 'handoff_failed'

/** What both ways share. */
export interface AcceptorParts {
  readonly options: AcceptorOptions
  readonly gate: Gate
  readonly log: Log
  readonly nextBirth: () => number
  readonly countAccepted: () => void
  readonly countClosed: (reason: Turned) => void
  /** A stranger was refused. @param bytes what it had said; copied by the callee */
  readonly refused: (remoteAddress: string, reason: Refusal, bytes: Uint8Array) => void
}

export interface Acceptor {
  /** @returns the port. @throws when it cannot be listened on */
  listen(): Promise<number>
  /** @param port leads to the session thread */
  shardUp(shard: number, port: MessagePort): void
  shardDown(shard: number): void
  /** Refuses whoever has been silent for too long. About ten times a second. */
  sweep(nowMonoMs: number): void
  stop(): void
}
