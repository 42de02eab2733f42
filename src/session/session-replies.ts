/** What a device is answered, and when: at once, when its row is durable, or when the cards table has been asked. */
import type { CardAnswer, Downlink, Fields, Reply, Uplink } from '../codec/protocol.ts'
import { type Moment, ROW_REFUSED } from './effects.ts'
import { PendingAcks, type WaitingAck } from './pending-acks.ts'
import type { SessionFacts } from './session-facts.ts'
import type { SessionRows } from './session-rows.ts'
import { downlinkOf, type Session, type ShardWorld } from './shard-world.ts'

/** Card questions under way at once; one more is refused and not answered. */
const CARD_QUESTIONS_MAX = 1_024

interface PendingAck extends WaitingAck {
  readonly session: Session
  readonly frame: Uint8Array
  readonly answers: Uplink
  readonly downlink: Downlink
  readonly receivedMonoMs: number
}

interface PendingCard {
  readonly questionId: number
  readonly session: Session
  readonly command: Uplink
  readonly reply: Exclude<Reply, 'none'>
  readonly fields: Fields
  readonly messageId: number
  readonly receivedMonoMs: number
  readonly dueMonoMs: number
}

/** A reply's data, as every device gets it. */
interface SameReply {
  readonly downlink: Downlink
  readonly data: Uint8Array
  readonly madeS: number
}

export class SessionReplies {
  readonly #world: ShardWorld
  readonly #rows: SessionRows
  readonly #facts: SessionFacts
  readonly #acks = new PendingAcks<PendingAck>()
  readonly #cards = new Map<number, PendingCard>()
  readonly #same = new Map<Uplink, SameReply>()
  /** Where they are put together, and a view of its front for each size that occurs. */
  readonly #frame = new Uint8Array(8_192)
  readonly #views: Uint8Array[] = []

  constructor(world: ShardWorld, rows: SessionRows, facts: SessionFacts) {
    this.#world = world
    this.#rows = rows
    this.#facts = facts
  }

  /** Acks that wait for the database. */
  get acksPending(): number {
    return this.#acks.count
  }

  reply(
    session: Session,
    command: Uplink,
    reply: Exclude<Reply, 'none'>,
    fields: Fields,
    messageId: number,
    storedAt: number | undefined,
  ): void {
    const now = this.#world.now
    const { protocol } = session.record
    if (reply.sameFor !== undefined) {
      this.same(session, command, reply, messageId)
      return
    }
    if (reply.when === 'lookup') {
      this.#askCard(session, command, reply, fields, messageId)
      return
    }
    const answer = reply.fields(fields, { nowMs: now.wallMs, memory: session.record.memory })
    if (answer === undefined) return
    const downlink = downlinkOf(protocol, reply.with)
    const replyId = reply.freshSequence === true ? session.record.nextMessageId(now.wallMs) : messageId
    const frame = this.#world.encode(session, downlink, replyId, answer)
    if (reply.when === 'decoded') {
      this.#send(session, downlink, frame, command, now.monoMs)
      return
    }
    if (storedAt === undefined)
      throw new Error(`${protocol.name} ${command.name}: reply when durable, but no fact of it is stored`)
    const group = reply.group === undefined ? undefined : `${session.record.deviceKey} ${reply.group(fields)}`
    const about = group === undefined ? '' : `${command.name} ${fields['port']} ${fields['businessNo']}`
    if (storedAt === ROW_REFUSED) {
      // the device keeps its copy and sends it again (AP3000 7, 03)
      this.#world.effects.counts.ackWithheld()
      if (group !== undefined) this.#acks.refuse(group, about, now.monoMs)
      return
    }
    this.#acks.add({
      position: storedAt,
      group,
      about,
      session,
      frame,
      answers: command,
      downlink,
      receivedMonoMs: now.monoMs,
    })
  }

  /** Every ledger row before `position` is committed, except the ones in `rejected`, whose acks are never sent. */
  durableReached(position: number, rejected: readonly number[], now: Moment): void {
    const withheld = this.#acks.reached(position, rejected, now.monoMs, (ack) => {
      if (ack.session.connection.isClosed || !this.#world.isStanding(ack.session))
        this.#world.effects.counts.fenced('ack')
      else this.#send(ack.session, ack.downlink, ack.frame, ack.answers, ack.receivedMonoMs)
    })
    for (let count = 0; count < withheld; count++) this.#world.effects.counts.ackWithheld()
  }

  /** A reply that every device gets alike: its data is encoded once, or once a second. */
  same(session: Session, command: Uplink, reply: Exclude<Reply, 'none'>, messageId: number): void {
    const { protocol, deviceNo } = session.record
    const { nowS, now } = this.#world
    let same = this.#same.get(command)
    if (same === undefined || (reply.sameFor === 'second' && same.madeS !== nowS)) {
      const downlink = downlinkOf(protocol, reply.with)
      const fields = reply.fields({}, { nowMs: now.wallMs, memory: {} })
      if (fields === undefined) throw new Error(`${protocol.name} ${command.name}: no reply, but the same for all`)
      same = { downlink, data: downlink.encode(fields), madeS: nowS }
      this.#same.set(command, same)
    }
    const frameBytes = protocol.writeFrame(this.#frame, 'downlink', same.downlink, deviceNo, messageId, same.data)
    let view = this.#views[frameBytes]
    if (view === undefined) {
      view = this.#frame.subarray(0, frameBytes)
      this.#views[frameBytes] = view
    }
    this.#send(session, same.downlink, view, command, now.monoMs)
  }

  #askCard(session: Session, command: Uplink, reply: Exclude<Reply, 'none'>, fields: Fields, messageId: number): void {
    const swipe = this.#facts.swipe
    if (this.#cards.size >= CARD_QUESTIONS_MAX || swipe === undefined) {
      this.#world.effects.counts.cardLookup('refused')
      return
    }
    // unique over restarts too: an answer to this shard's predecessor must not meet a question of ours, or a card is told
    // another card's balance (simulation, seed 40009)
    const questionId = this.#world.directory.nextEpoch()
    this.#cards.set(questionId, {
      questionId,
      session,
      command,
      reply,
      fields,
      messageId,
      receivedMonoMs: this.#world.now.monoMs,
      dueMonoMs: this.#world.now.monoMs + this.#world.options.cardLookupTimeoutMs,
    })
    const { cardId, socket, port } = swipe
    this.#facts.swipe = undefined
    this.#world.effects.askCard({ questionId, deviceId: session.record.deviceId, cardId, socket, port, messageId })
  }

  /** @param answer undefined: the cards table could not be asked; BKV refuses the card, AP3000 is not answered */
  cardAnswered(questionId: number, answer: CardAnswer | undefined, now: Moment): void {
    const pending = this.#cards.get(questionId)
    if (pending === undefined) return
    this.#cards.delete(questionId)
    const { session } = pending
    if (session.connection.isClosed || !this.#world.isStanding(session)) {
      this.#world.effects.counts.fenced('card_reply')
      return
    }
    this.#world.effects.counts.cardLookup(answer === undefined ? 'unavailable' : 'answered')
    // without an answer the protocol decides: BKV refuses at once, AP3000 has no word for it and stays silent
    const reply = pending.reply.fields(pending.fields, {
      nowMs: now.wallMs,
      memory: session.record.memory,
      ...(answer !== undefined && { card: answer }),
    })
    if (reply === undefined) return
    const downlink = downlinkOf(session.record.protocol, pending.reply.with)
    const messageId =
      pending.reply.freshSequence === true ? session.record.nextMessageId(now.wallMs) : pending.messageId
    const frame = this.#world.encode(session, downlink, messageId, reply)
    this.#rows.log(session, downlink, messageId, frame, false, null, now.wallMs)
    this.#send(session, downlink, frame, pending.command, pending.receivedMonoMs)
  }

  /** Gives up card questions that nobody answered in time. */
  tick(now: Moment): void {
    for (const pending of this.#cards.values()) {
      if (pending.dueMonoMs > now.monoMs) break
      this.cardAnswered(pending.questionId, undefined, now)
    }
  }

  #send(session: Session, downlink: Downlink, frame: Uint8Array, answers: Uplink, receivedMonoMs: number): void {
    const { connection } = session
    this.#world.effects.record(session.record.deviceKey, 0, frame, 0, frame.length)
    if (this.#world.effects.send(connection.id, frame, answers, receivedMonoMs))
      this.#world.effects.counts.downlink(connection.protocol, downlink)
    else this.#world.close(connection, 'outbound_overflow', this.#world.now)
  }
}
