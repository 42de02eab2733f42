/**
 * What session logic asks of the world. The session worker carries these out on sockets and shared memory; the
 * simulation carries them out on queues. Nothing here returns a promise.
 */

import type { CardAnswer, Downlink, NoiseReason, Protocol, Uplink } from '../codec/protocol.ts'
import type { CardResult } from '../metrics/catalogue.ts'
import type { Field, Lane, RowKind, RowOf } from '../rows/row.ts'

/** Why a connection ended: label values of `pilegate_closed_total{reason}`. */
export const CLOSE_REASONS = [
  'peer_closed',
  'peer_reset',
  'idle',
  'superseded',
  'outbound_overflow',
  'noise',
  'directory_full',
  'not_allowed',
  'identify_timeout',
  'unknown_protocol',
  'too_many_connections',
  'handoff_failed',
  'shard_lost',
  'shutdown',
] as const
export type CloseReason = (typeof CLOSE_REASONS)[number]

/** What an outdated epoch was kept from doing: label values of `pilegate_fenced_total{what}`. */
export const FENCED_ACTIONS = ['uplink', 'ack', 'close', 'card_reply', 'claim'] as const
export type FencedAction = (typeof FENCED_ACTIONS)[number]

/** How a command ended: label values of `pilegate_commands_total{outcome}`; `late`: an ack nobody waited for any more. */
export const COMMAND_OUTCOMES = ['acked', 'dead', 'refused', 'expired', 'cancelled', 'late'] as const
export type CommandOutcome = (typeof COMMAND_OUTCOMES)[number]

/** One moment, told to pure code. `wallMs` since the epoch; `monoMs` never goes back. */
export interface Moment {
  readonly wallMs: number
  readonly monoMs: number
}

export interface CardQuestion {
  readonly questionId: number
  readonly deviceId: string
  readonly cardId: string
  readonly socket: number
  /** From 1; 0: only the balance is asked for, nothing is to be started. */
  readonly port: number
  /** Of the swipe: a repeat of the frame has the same, the next swipe another one. */
  readonly messageId: number
}

/** What main needs to send a command again elsewhere. */
export interface ReturnedCommand {
  readonly commandId: string
  readonly attempts: number
  readonly messageId: number | undefined
}

export const ROW_REFUSED = -1

export interface Effects {
  /**
   * Queues bytes for a connection. They are looked at during the call only.
   * @param answers the uplink this replies to, undefined for a command of ours
   * @returns false: too much waits already, nothing was queued; the caller closes
   */
  send(connectionId: number, frame: Uint8Array, answers: Uplink | undefined, receivedMonoMs: number): boolean
  /** Keeps bytes as evidence, if the configuration wants it. `deviceKey` 0: nobody has spoken on the connection yet. */
  record(deviceKey: number, flags: number, bytes: Uint8Array, from: number, to: number): void
  /** Ends a connection after what is queued for it has been tried. Session logic has already forgotten it. */
  close(connectionId: number, reason: CloseReason): void
  /** @returns endless position of the row in its lane, or ROW_REFUSED: the lane is full, nothing was kept */
  appendRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): number
  /** Asks the cards table; the answer comes by `Shard.cardAnswered`, or never. */
  askCard(question: CardQuestion): void
  /** A device has a session here now: commands that wait for it may come. */
  deviceOnline(deviceKey: number): void
  /** A device that may not connect; its connection is closed. */
  deviceRefused(deviceId: string, remoteAddress: string): void
  /** A command that ends without a fate here: its device is not, or not any more, on this shard. */
  returnCommand(deviceKey: number, command: ReturnedCommand): void
  /** Progress of a command, for whoever counts and cancels: sent, or final. Its row is in the ledger. */
  commandMoved(commandId: string, status: number): void
  /** Another shard's connection has lost a device to us. */
  supersede(shard: number, deviceKey: number, epoch: number): void
  readonly counts: SessionCounts
}

/** Counters a shard moves; plain stores into shared memory in the worker. */
export interface SessionCounts {
  uplink(protocol: Protocol, command: Uplink | undefined): void
  downlink(protocol: Protocol, command: Downlink): void
  frameError(protocol: Protocol, reason: NoiseReason): void
  connections(protocol: Protocol, change: 1 | -1): void
  closed(reason: CloseReason): void
  devices(protocol: Protocol, change: 1 | -1): void
  takeover(): void
  fenced(what: FencedAction): void
  ackWithheld(): void
  rowRefused(lane: Lane): void
  cardLookup(result: CardResult): void
  command(command: Downlink, outcome: CommandOutcome): void
  commandSeconds(command: Downlink, seconds: number): void
  commandResent(command: Downlink): void
  commandsPending(change: number): void
}

export type { CardAnswer }
