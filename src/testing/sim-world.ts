/** What all parts of the simulation share: clock, randomness, the record of what must hold, and what was exercised. */
import type { Random } from './random.ts'
import type { VirtualTime } from './sim-time.ts'

/**
 * What the generator of faults must bring about over a thousand seeds: single events, and pairs that meet in time. A
 * name that never occurs means a generator that never exercises it.
 */
export const COVERAGE = [
  // the network
  'connection.cut',
  'connection.half_open',
  'connection.dead_at_server',
  'connection.stalled',
  'connection.backlog',
  'connection.refused',
  'connection.without_iccid',
  'frame.doubled',
  'noise.sent',
  'server_end.late',
  // who speaks for a device
  'takeover',
  'takeover.across_shards',
  'takeover.with_ack_pending',
  'takeover.during_outage',
  'takeover.of_dead_shard',
  'claim.again_by_older',
  'close.stale',
  'close.superseded',
  'close.idle',
  'fenced.uplink',
  'fenced.ack',
  'fenced.claim',
  'fenced.card_reply',
  'superseded.late',
  // rows and acks
  'ack.sent',
  'ack.repeated',
  'ack.lost_at_device',
  'ack.withheld',
  'settlement.repeated',
  'settlement.row_repeated',
  'settlement.put_aside',
  'order.by_card',
  // orders and money
  'order.for_card',
  'order.port_busy',
  'order.refused',
  'order.mode_full',
  'order.mode_time',
  'order.mode_energy',
  'order.mode_budget',
  'order.mode_power',
  'order.limit_reached',
  'order.paid',
  'order.paid_ahead_used_up',
  'order.estimated',
  'order.corrected',
  'order.asked_for',
  'card.charged',
  'card.overdrawn',
  'end.0015/02',
  'end.0015/0c',
  'end.0015/18',
  'end.1000/1004',
  'card.unanswered',
  'writers.out_of_order',
  'writer.slow',
  'commit.answer_lost',
  'commit.after_away',
  'ring.wrapped',
  'ring.full_ledger',
  'ring.full_history',
  'position.wrapped',
  // the database away
  'outage',
  'outage.with_ack_pending',
  'spool.used',
  'spool.full',
  'spool.drain_interrupted',
  'spool.left_over',
  // crashes
  'shard.crash',
  'shard.crash_with_ack_pending',
  'shard.crash_with_unpublished_rows',
  'shard.crash_during_outage',
  'shard.crash_with_span_in_flight',
  'shard.crash_with_card_question',
  'handoff.to_dead_shard',
  'gateway.crash',
  'gateway.crash_with_ack_pending',
  'gateway.crash_with_unreleased_rows',
  'gateway.crash_during_outage',
  'gateway.crash_with_spool',
  'commit.after_gateway_crash',
  // commands
  'command.stored',
  'command.resent',
  'command.cancelled',
  'command.answer_lost',
  'command.returned',
  'command.returned_in_flight',
  'command.returned_unsent',
  'command.while_outage',
  'command.takeover_in_flight',
  'command.takeover_across_shards',
  'command.shard_crash_in_flight',
  'command.shard_crash_in_mailbox',
  'command.gateway_crash_in_flight',
  'command.for_offline_device',
  'mailbox.full',
  'outbound.full',
  'start.asked_for',
  'start.confirmed_by_report',
  'fate.acked',
  'fate.dead',
  'fate.refused',
  'fate.expired',
  'fate.cancelled',
  'fenced.fate',
  'result.late',
  'result.twice',
  'result.never',
  'result.of_nobody',
] as const
export type Covered = (typeof COVERAGE)[number]

/** Faults planted on purpose, to prove that the invariants can fail. Each is caught by at least one of them. */
export const MUTANTS = [
  /** Main says `durable` when it hands a span out. */
  'ackBeforeDurable',
  /** Main says `durable`, but not which rows were put aside. */
  'ackOfPutAside',
  /** A close that comes late takes the claim of the newer connection away. */
  'staleCloseUnbinds',
  /** The connection that spoke last wins, not the newest one. */
  'olderMayClaim',
  /** A session that lost its device goes on speaking. */
  'noFence',
  /** A span whose answer was lost counts as stored. */
  'forgetRetry',
  /** The second writer to finish moves `durable` over the first one's span. */
  'durableOutOfOrder',
  /** A drain that the database interrupts loses the rest of the file. */
  'spoolDropped',
  /** The database gives the next start of the gateway the same generation. */
  'sameGeneration',
  /** The replacement of a dead shard writes over rows that are not stored yet. */
  'shardForgetsPosition',
  /** After an outage nobody looks at the ledger again. */
  'deafPump',
  /** A closed connection keeps its claims. */
  'claimKept',
  /** The writers do not compare (epoch, seq): the last write wins. */
  'stateUnfenced',
  /** One frame in fifty goes out twice. */
  'answerTwice',
  /** Lanes are told an expiry that is later. */
  'sendAfterExpiry',
  /** The database lets a second fate replace the first. */
  'twoFates',
  /** Lanes send as fast as they can. */
  'noSpacing',
  /** A command that comes back to a session is given a new message id. */
  'newIdOnResend',
  /** A start that comes back to a session counts as never sent. */
  'startRepeatedBlindly',
  /** Main does not hear of commands that a session could not finish. */
  'forgetReturned',
  /** What nobody answered in time counts as done (field-notes D1). */
  'ackWithoutResult',
  /** A command is sent before its row is durable. */
  'sendBeforeDurable',
  /** The same for an AP3000, which may run it twice under one number. */
  'startRanTwice',
  /** Settlements have no natural key, and orders no state. */
  'settlementCountedTwice',
  /** What a card paid for an order is not kept. */
  'balanceMovedTwice',
  /** A settlement that comes after an estimate is taken for its repeat. */
  'estimateStands',
  /** A correction is told as another end (field-notes D5). */
  'correctionIsAnotherEnd',
  /** Order numbers share their bytes on the wire (field-notes D11). */
  'orderNumbersCollide',
  /** After the death of a thread main believes what it was told last. */
  'deskTrustsTheDead',
] as const
export type Mutant = (typeof MUTANTS)[number]

/** How often what goes wrong; drawn from the seed, so that every seed is a mixture of its own. */
export interface Plan {
  readonly shards: number
  readonly devices: number
  /** Of the devices, that are BKV gateways. */
  readonly bkvShare: number
  readonly ledgerRingBytes: number
  readonly historyRingBytes: number
  readonly mailboxBytes: number
  readonly spoolBytesMax: number
  readonly faultMs: number
  readonly faultEveryMs: number
  readonly faultWeights: Readonly<Record<Fault, number>>
  readonly withoutIccidShare: number
  readonly slowStartShare: number
  /** Of messages between threads, that wait for the receiver. */
  readonly busyShare: number
  readonly doubledShare: number
  readonly noiseShare: number
  readonly slowWriterShare: number
  readonly lostAnswerShare: number
  readonly putAsideShare: number
  /** Mean time between commands of operators. */
  readonly commandEveryMs: number
  /** Of the results that devices owe, late, twice or never. */
  readonly badResultShare: number
  /** Silence of an order after which it is asked for, and of the same length again after which it is estimated. */
  readonly reconcileAfterMs: number
  /** Sockets of a BKV gateway. */
  readonly socketsMax: number
  /** Of the devices, that have a tariff of their own. */
  readonly tariffShare: number
  /** Where the streams of rows begin: near 2^32 the shared words wrap. */
  readonly streamPosition: number
}

export const FAULTS = [
  'cut',
  'halfOpen',
  'deadAtServer',
  'stall',
  'restarts',
  'backlog',
  'overflow',
  'outage',
  'shardCrash',
  'gatewayCrash',
] as const
export type Fault = (typeof FAULTS)[number]

export class World {
  readonly time: VirtualTime
  readonly random: Random
  readonly plan: Plan
  readonly mutant: Mutant | undefined
  readonly coverage = new Map<Covered, number>()
  /** No new faults: every wait is short, every write succeeds. */
  isCalm = false
  /** Added to the clock that the reconciler sees. */
  laterMs = 0
  /** First thing that did not hold. */
  failure: { readonly invariant: string; readonly detail: string; readonly atMs: number } | undefined
  /** A promise was resolved: its continuations are owed their turn before the next event. */
  owesTurn = false
  readonly #say: ((line: string) => void) | undefined

  constructor(
    time: VirtualTime,
    random: Random,
    plan: Plan,
    mutant: Mutant | undefined,
    say: ((line: string) => void) | undefined,
  ) {
    this.time = time
    this.random = random
    this.plan = plan
    this.mutant = mutant
    this.#say = say
  }

  /** @returns true with the probability while faults last */
  goesWrong(probability: number): boolean {
    return !this.isCalm && this.random.chance(probability)
  }

  covered(what: Covered): void {
    this.coverage.set(what, (this.coverage.get(what) ?? 0) + 1)
  }

  /** Kept, not thrown: the caller may be the continuation of a promise that nobody waits for. */
  violated(invariant: string, detail: string): void {
    this.trace(() => `VIOLATED ${invariant}: ${detail}`)
    this.failure ??= { invariant, detail, atMs: this.time.nowMs }
  }

  trace(line: () => string): void {
    this.#say?.(`${(this.time.nowMs / 1000).toFixed(3).padStart(9)} ${line()}`)
  }
}
