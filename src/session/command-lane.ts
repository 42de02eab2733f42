/**
 * The command lane of one session: what waits for a device, what is on its way, and the one fate each command gets.
 * Pure: moments and facts come in, frames and fates go out through {@link LaneWorld}.
 *
 * Rules: a command is written down (`announce`) and durable before it is sent, so that no crash makes it go out twice
 * under two ids, nor a start twice at all; at least `spacingMs` between two sends, also of two sessions of a device; stop before start before parameters before firmware before the rest,
 * inside that in order of arrival; an ack is a result of the right command with our message id; without one the same
 * frame is sent again, at most `retries` times and never after the expiry; then the command is dead. A start whose
 * result is missing or says nothing certain is not failed but asked for (AP3000 8, 82; BKV 9): evidence of the running
 * charge within one ack timeout makes it acked. A start is never repeated blindly: see `#mayRepeat`.
 */
import { type Downlink, type Fields, type Protocol, RESULT_WITHIN_MS } from '../codec/protocol.ts'
import type { Moment } from './effects.ts'
import { Heard, type ResultFact, remember, UNCLAIMED_MS } from './heard.ts'
import { isBlankOrder } from './order-key.ts'

/** `outbound_queue.status` (contract 7). */
export const COMMAND_STATUS = { queued: 0, sent: 1, acked: 2, dead: 3, refused: 4, expired: 5, cancelled: 6 } as const
export type FinalStatus = 2 | 3 | 4 | 5 | 6

/** Smaller goes first. */
export const PRIORITY = { stop: 0, start: 1, parameter: 2, firmware: 3, background: 4 } as const

export interface LaneCommand {
  readonly commandId: string
  readonly downlink: Downlink
  readonly fields: Fields
  readonly priority: number
  /** After this nothing is sent any more. */
  readonly expiresMs: number
  /** Of the order that a start begins, where we chose it; '' otherwise. */
  readonly wireHex: string
  readonly socket: number
  /** From 1; 0 when the command is not about a port. */
  readonly port: number
  /** Sends so far; more than 0 when it comes back from another session. */
  readonly attempts: number
  /** Of the first send; undefined while nothing was sent. */
  readonly messageId: number | undefined
}

export interface Fate {
  readonly status: FinalStatus
  readonly reason: string
  readonly attempts: number
  readonly messageId: number | undefined
  /** What the device said, in contract words. */
  readonly result: Readonly<Record<string, unknown>>
}

export interface LaneWorld {
  /**
   * Writes down that a command is about to be sent for the first time; `announced` follows when that is durable.
   * @returns false: there is no room for it now
   */
  announce(command: LaneCommand, messageId: number): boolean
  /** @returns false when the connection does not take it: it is being closed */
  send(command: LaneCommand, messageId: number, attempt: number): boolean
  sent(command: LaneCommand, messageId: number, attempts: number, isResend: boolean): void
  ended(command: LaneCommand, fate: Fate, firstSentMonoMs: number | undefined): void
  /** A start that is dead worked, says a result that came too late: evidence, and its order runs. */
  workedAfterAll(command: LaneCommand, fate: Fate): void
  nextMessageId(): number
  /** What each port was doing when the command was sent first; undefined: no report of it was heard before. */
  chargeBefore(command: LaneCommand): string | null | undefined
}

export interface LaneOptions {
  readonly spacingMs: number
  readonly ackTimeoutMs: number
  readonly retries: number
}

/** What waits for something else than time (a commit, room in the ledger) is looked at this often. */
const RETRY_MS = 250

/** Before a start may go again its device is asked; this much of the ack timeout is over then, the rest is for the answer. */
const ASK_AFTER_SHARE = 2 / 3

/** By how much a report in whole minutes, about a charge that just began, may say too much. */
const REPORT_SLACK_MS = 60_000

/** Id of a question of the lane's own: it has no fate, its answer is whatever the device reports. */
const QUESTION = ''

interface Flying {
  readonly command: LaneCommand
  readonly messageId: number
  attempts: number
  dueMonoMs: number
  readonly firstSentMonoMs: number
  /** False: by an earlier session, or written down and never sent: only what names it is evidence. */
  isSentHere: boolean
  /** From then on it may be sent again, or is given up. */
  resultDueMonoMs: number
  /** The device was asked since the last send. */
  isAsked: boolean
  /** The last report said that the port charges, whatever it charges. */
  isPortCharging: boolean
  /** A stop that names no order: what it was sent for has ended, and another charge may run there. */
  isTargetGone: boolean
  /** Number of a charge that is ours, as far as reports can tell: settles doubt, should the result not come. */
  seenWireHex: string | undefined
  /** Waiting for evidence instead of a result. */
  watch: { readonly status: FinalStatus; readonly reason: string } | undefined
  /** What the port did when the start went out: only another charge proves that it worked. */
  readonly chargeBefore: string | null | undefined
}

/** Why a chunk of firmware ended without a result. */
const UPGRADE_REQUESTED = 'upgrade_requested'
const isLaterChunk = ({ fields }: LaneCommand) => typeof fields['chunk'] === 'number' && fields['chunk'] > 1

/** `unplugPowerDw` -> `unplug_power_dw`: results are read outside. */
const inContractWords = (content: Fields): Fields =>
  Object.fromEntries(
    Object.entries(content).map(([name, value]) => [
      name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      value,
    ]),
  )

/** Names the port only (BKV 6, 07): sent again it would end whatever charges there by then. */
const isNamelessStop = ({ priority, fields, port }: LaneCommand) =>
  priority === PRIORITY.stop && port !== 0 && fields['orderHex'] === undefined

/** A charge under no number might be any. */
const isKnown = (charge: string | null | undefined) => charge !== undefined && charge !== ''

/** A start that the device says it made is of the order and the port that were asked for. */
function isAbout(fact: ResultFact, { socket, port, wireHex }: LaneCommand): boolean {
  if (!fact.ok) return true
  if (port !== 0 && fact.port !== undefined && fact.port !== port) return false
  if (socket !== 0 && fact.socket !== undefined && fact.socket !== socket) return false
  return wireHex === '' || fact.wireHex === undefined || isBlankOrder(fact.wireHex) || fact.wireHex === wireHex
}

export class CommandLane {
  readonly #protocol: Protocol
  readonly #options: LaneOptions
  readonly #world: LaneWorld
  #queue: LaneCommand[] = []
  readonly #flying: Flying[] = []
  /** Announced and not sent, by command id. */
  readonly #announced = new Map<string, { readonly messageId: number; isDurable: boolean }>()
  #nextSendMonoMs: number
  #retryMonoMs = Number.NEGATIVE_INFINITY
  #isOver = false
  /** And the first chunk did not go out since. */
  #isUpgradeRequested = false
  /** Message id that went out last, by downlink: what a device may still know again. */
  readonly #lastSent = new Map<Downlink, number>()
  readonly #heard: Heard
  readonly #deadStarts: { readonly command: LaneCommand; readonly messageId: number }[] = []
  /** Out of the queue and not yet gone. */
  #leaving: LaneCommand | undefined

  /**
   * @param openedMonoMs start of the session: the one before it may have sent a moment earlier
   * @param heard what the device said before there was a lane
   */
  constructor(protocol: Protocol, options: LaneOptions, world: LaneWorld, openedMonoMs: number, heard = new Heard()) {
    this.#heard = heard
    this.#protocol = protocol
    this.#options = options
    this.#world = world
    this.#nextSendMonoMs = openedMonoMs + options.spacingMs
  }

  /** Commands without a fate. */
  get count(): number {
    return this.#queue.length + this.#flying.length
  }

  /** Does a command that may be at the device, or goes there soon, have this id? */
  isTaken(messageId: number): boolean {
    return (
      this.#flying.some((flying) => flying.messageId === messageId) ||
      this.#queue.some((command) => this.#idOf(command) === messageId)
    )
  }

  #idOf({ commandId, messageId }: LaneCommand): number | undefined {
    return this.#announced.get(commandId)?.messageId ?? messageId
  }

  /**
   * What `announce` wrote is durable, or is not: then it is written again. The caller calls `advance` after it.
   * @returns false: the command is not waiting any more
   */
  announced(commandId: string, isDurable: boolean): boolean {
    const announced = this.#announced.get(commandId)
    if (announced === undefined) return false
    if (isDurable) {
      announced.isDurable = true
      this.#retryMonoMs = Number.NEGATIVE_INFINITY
    } else {
      // keeps its id: nobody else may have it now
      this.#queue = this.#queue.map((command) =>
        command.commandId === commandId ? { ...command, messageId: announced.messageId } : command,
      )
      this.#announced.delete(commandId)
    }
    return true
  }

  /** Takes a command over; it gets its fate here, or goes back by `takeBack`. */
  enqueue(command: LaneCommand, now: Moment): void {
    if (this.#isUpgradeRequested && isLaterChunk(command)) this.#dropChunk(command)
    else if (command.attempts > 0) this.#adopt(command, now)
    else this.#insert(command)
    this.advance(now)
  }

  /**
   * What another session sent before its connection broke: its result may come at any moment now, or came a moment ago.
   * It goes again no sooner than the spacing allows; a start, and what was sent as often as allowed, only waits.
   */
  #adopt(command: LaneCommand, now: Moment): void {
    const { attempts, downlink, socket, port, wireHex, expiresMs } = command
    const messageId = command.messageId ?? this.#world.nextMessageId()
    const flying = this.#fly(command, messageId, attempts, false, now)
    const known = this.#heard.results.find(
      ({ fact, monoMs, ...one }) =>
        one.messageId === messageId &&
        fact.downlink === downlink.name &&
        now.monoMs - monoMs <= UNCLAIMED_MS &&
        isAbout(fact, command),
    )
    const isSeen = this.#heard.orders.some(
      (seen) => wireHex !== '' && seen.wireHex === wireHex && seen.socket === socket && seen.port === port,
    )
    if (known !== undefined) this.resultReceived(known.fact, messageId, known.uplinkName, now)
    else if (isSeen && this.#isAskable(command)) this.orderSeen(socket, port, wireHex, now)
    else if (this.#isAskable(command)) this.#lastTryOver(flying, now)
    else if (attempts < this.#triesMax(command) && now.wallMs < expiresMs) flying.dueMonoMs = this.#nextSendMonoMs
    // never later than the expiry plus one ack timeout
    else
      flying.dueMonoMs = Math.min(
        flying.dueMonoMs,
        now.monoMs + Math.max(0, expiresMs + this.#options.ackTimeoutMs - now.wallMs),
      )
  }

  #insert(command: LaneCommand): void {
    let at = this.#queue.length
    while (at > 0 && this.#queue[at - 1]!.priority > command.priority) at--
    this.#queue.splice(at, 0, command)
  }

  /** @returns true: it was neither sent nor announced, and is the caller's now, without a fate */
  letGo(commandId: string): boolean {
    const index = this.#queue.findIndex((command) => command.commandId === commandId)
    if (index < 0 || this.#queue[index]!.attempts > 0 || this.#announced.has(commandId)) return false
    this.#queue.splice(index, 1)
    return true
  }

  /** The session ends: everything without a fate, for whoever speaks for the device next. */
  takeBack(): LaneCommand[] {
    const back = [
      ...this.#flying.map(({ command, attempts, messageId }) => ({ ...command, attempts, messageId })),
      ...[...(this.#leaving === undefined ? [] : [this.#leaving]), ...this.#queue]
        .filter(({ commandId }) => commandId !== QUESTION)
        .map((command) => ({ ...command, messageId: this.#idOf(command) })),
    ]
    // ids first: whoever is told of a command without one has to know which are taken
    back.sort((a, b) => Number(a.messageId === undefined) - Number(b.messageId === undefined))
    // may be called from within a send that closes the connection: what runs then finds nothing left
    this.#isOver = true
    this.#announced.clear()
    this.#queue = []
    this.#flying.length = 0
    return back
  }

  /** When to call `advance` next; Infinity when nothing waits. */
  get dueMonoMs(): number {
    let due = Number.POSITIVE_INFINITY
    for (const flying of this.#flying) due = Math.min(due, flying.dueMonoMs)
    if (this.#queue.length > 0) due = Math.min(due, Math.max(this.#nextSendMonoMs, this.#retryMonoMs))
    return due
  }

  /** Expires, times out, sends what may go. Call it when due and after anything happened. */
  advance(now: Moment): void {
    const late = this.#queue.filter((command) => command.expiresMs <= now.wallMs)
    if (late.length > 0) this.#queue = this.#queue.filter((command) => command.expiresMs > now.wallMs)
    for (const command of late) {
      if (command.commandId === QUESTION) continue
      this.#announced.delete(command.commandId)
      const fate = { status: COMMAND_STATUS.expired, reason: 'expired', attempts: command.attempts }
      this.#end(command, fate, command.messageId, undefined)
    }
    const due = this.#flying.filter(({ dueMonoMs }) => dueMonoMs <= now.monoMs)
    for (const flying of due.sort((a, b) => a.command.priority - b.command.priority))
      if (!this.#isOver && this.#flying.includes(flying)) this.#late(flying, now)
    this.#sendQueued(now)
  }

  #sendQueued(now: Moment): void {
    while (this.#queue.length > 0 && this.#nextSendMonoMs <= now.monoMs) {
      const command = this.#queue[0]!
      if (!this.#isDurable(command)) {
        this.#retryMonoMs = now.monoMs + RETRY_MS
        return
      }
      this.#queue.shift()
      if (!this.#firstSend(command, now)) {
        this.#retryMonoMs = now.monoMs + RETRY_MS
        return
      }
    }
  }

  /** Announces a command that was not, and says whether it may go. */
  #isDurable(command: LaneCommand): boolean {
    const { commandId } = command
    if (commandId === QUESTION) return true
    if (!this.#announced.has(commandId)) {
      const messageId = command.messageId ?? this.#world.nextMessageId()
      this.#announced.set(commandId, { messageId, isDurable: false })
      if (!this.#world.announce(command, messageId)) this.announced(commandId, false)
    }
    return this.#announced.get(commandId)?.isDurable === true
  }

  #withinMs({ downlink }: LaneCommand): number {
    if (downlink.result === 'none' || downlink.result.withinMs === RESULT_WITHIN_MS) return this.#options.ackTimeoutMs
    return downlink.result.withinMs
  }

  #triesMax(command: LaneCommand): number {
    const { result } = command.downlink
    if (result === 'none') return 1
    // the table knows which must not be repeated, and which (firmware) may more often
    const tries = (this.#isAskable(command) ? result.startTries : undefined) ?? result.tries
    return tries === 2 ? 1 + this.#options.retries : tries
  }

  #firstSend(command: LaneCommand, now: Moment): boolean {
    const messageId = this.#idOf(command) ?? this.#world.nextMessageId()
    const attempts = 1
    this.#leaving = command
    const isSent = this.#world.send(command, messageId, attempts)
    this.#leaving = undefined
    if (!isSent) {
      if (!this.#isOver) this.#queue.unshift(command)
      return false
    }
    if (command.fields['chunk'] === 1) this.#isUpgradeRequested = false
    this.#announced.delete(command.commandId)
    this.#nextSendMonoMs = now.monoMs + this.#options.spacingMs
    if (command.commandId === QUESTION) return true
    if (this.#isAskable(command)) this.#targetGone(command.socket, command.port)
    this.#lastSent.set(command.downlink, messageId)
    this.#world.sent(command, messageId, attempts, false)
    const flying = this.#fly(command, messageId, attempts, true, now)
    if (command.downlink.result === 'none' && !this.#isAskable(command)) {
      // nothing answers this one: that it left is all there is to know
      this.#finish(flying, { status: COMMAND_STATUS.acked, reason: 'sent', attempts }, {})
    }
    return true
  }

  #fly(command: LaneCommand, messageId: number, attempts: number, isSentHere: boolean, now: Moment): Flying {
    const flying: Flying = {
      command,
      messageId,
      attempts,
      dueMonoMs: 0,
      firstSentMonoMs: now.monoMs,
      isSentHere,
      resultDueMonoMs: 0,
      isAsked: false,
      isPortCharging: false,
      isTargetGone: false,
      seenWireHex: undefined,
      watch: undefined,
      chargeBefore: this.#world.chargeBefore(command),
    }
    this.#flying.push(flying)
    this.#awaitResult(flying, now)
    return flying
  }

  #awaitResult(flying: Flying, now: Moment): void {
    const { command } = flying
    const withinMs = this.#withinMs(command)
    flying.resultDueMonoMs = now.monoMs + withinMs
    const willAsk = this.#isAskable(command) && flying.attempts < this.#triesMax(command)
    flying.isAsked = !willAsk
    flying.dueMonoMs = willAsk ? now.monoMs + withinMs * ASK_AFTER_SHARE : flying.resultDueMonoMs
  }

  #late(flying: Flying, now: Moment): void {
    const { command } = flying
    if (flying.watch !== undefined) {
      // it did not charge before the start, or nobody knows (another process sent it): nothing proves that it does because of
      // it (a card may), but nobody may say that the order failed (AP3000 8, 82: "the port state in 21 will tell")
      const isPerhapsOurs = flying.isPortCharging && (flying.chargeBefore ?? null) === null
      this.#finish(flying, { ...flying.watch, attempts: flying.attempts }, isPerhapsOurs ? { port_charging: true } : {})
      return
    }
    if (!flying.isAsked && now.monoMs < flying.resultDueMonoMs) {
      flying.isAsked = true
      flying.dueMonoMs = flying.resultDueMonoMs
      this.#ask(command, flying.resultDueMonoMs - now.monoMs, now)
      return
    }
    if (!this.#mayRepeat(flying, now)) {
      this.#lastTryOver(flying, now)
      return
    }
    // what is more urgent goes first, and this one behind it
    if ((this.#queue[0]?.priority ?? Number.POSITIVE_INFINITY) < command.priority) this.#sendQueued(now)
    if (this.#isOver) return
    if (this.#nextSendMonoMs > now.monoMs) {
      flying.dueMonoMs = this.#nextSendMonoMs
      return
    }
    if (!this.#world.send(command, flying.messageId, flying.attempts + 1)) {
      flying.dueMonoMs = now.monoMs + RETRY_MS
      return
    }
    flying.attempts++
    flying.isSentHere = true
    this.#nextSendMonoMs = now.monoMs + this.#options.spacingMs
    this.#awaitResult(flying, now)
    this.#world.sent(command, flying.messageId, flying.attempts, true)
  }

  /**
   * A start that worked and whose result was lost may have come to its end; sent again it could run twice under one
   * number, and only one of the two would be paid. So it goes again in the session of its first send only, after the
   * device was asked, while no report shows a charge on the port, and while its message is the last of its kind that
   * the device got, which it can know again by its id.
   */
  #mayRepeat(flying: Flying, now: Moment): boolean {
    const { command, messageId, attempts, isPortCharging } = flying
    if (attempts >= this.#triesMax(command) || now.wallMs >= command.expiresMs) return false
    if (!this.#isAskable(command)) return !flying.isTargetGone
    return !isPortCharging && this.#lastSent.get(command.downlink) === messageId
  }

  /** No result, and no more sends: dead, unless it is a start, which may run all the same. */
  #lastTryOver(flying: Flying, now: Moment): void {
    this.#watch(flying, { status: COMMAND_STATUS.dead, reason: 'no_result' }, now)
  }

  #isAskable(command: LaneCommand): boolean {
    return this.#protocol.askAfterStart?.(command.downlink.name, command.fields) !== undefined
  }

  #watch(flying: Flying, otherwise: { status: FinalStatus; reason: string }, now: Moment): void {
    const { command, seenWireHex } = flying
    if (seenWireHex !== undefined) {
      this.#confirmed(flying, seenWireHex)
      return
    }
    const ask = this.#protocol.askAfterStart?.(command.downlink.name, command.fields)
    // never later than the expiry plus one ack timeout
    const watchMs = Math.min(this.#options.ackTimeoutMs, command.expiresMs + this.#options.ackTimeoutMs - now.wallMs)
    if (ask === undefined || watchMs <= 0) {
      this.#finish(flying, { ...otherwise, attempts: flying.attempts }, {})
      return
    }
    flying.watch = otherwise
    flying.dueMonoMs = now.monoMs + watchMs
    this.#ask(command, watchMs, now)
  }

  /** @param withinMs later than this nobody wants to know */
  #ask(command: LaneCommand, withinMs: number, now: Moment): void {
    const ask = this.#protocol.askAfterStart?.(command.downlink.name, command.fields)
    if (ask === undefined) return
    const downlink = this.#protocol.downlinkByName.get(ask.name)
    if (downlink === undefined) throw new Error(`${this.#protocol.name}: no downlink ${ask.name}`)
    // queued like everything else: a question keeps the spacing too
    const expiresMs = now.wallMs + withinMs
    this.#insert({
      ...command,
      commandId: QUESTION,
      downlink,
      fields: ask.fields,
      wireHex: '',
      attempts: 0,
      messageId: undefined,
      expiresMs,
    })
    this.#sendQueued(now)
  }

  /** A result came. @returns false: nobody waits for it (late, or never asked): evidence only */
  resultReceived(fact: ResultFact, messageId: number, uplinkName: string, now: Moment): boolean {
    const flying = this.#flying.find(({ command, messageId: ours, isSentHere }) => {
      if (command.downlink.name !== fact.downlink) return false
      if (ours === messageId) return isAbout(fact, command)
      const { result } = command.downlink
      // some models answer on their own, without our id; then the socket must fit
      const isOfSocket = fact.socket === undefined || fact.socket === command.socket
      return isSentHere && result !== 'none' && result.orBy === uplinkName && isOfSocket
    })
    if (flying === undefined) {
      this.#unclaimedResult(fact, messageId, uplinkName, now)
      return false
    }
    const result = {
      raw: fact.raw,
      reason: fact.reason,
      ...(fact.businessNo !== undefined && { business_no: fact.businessNo }),
      ...(fact.chunk !== undefined && { chunk: fact.chunk }),
      ...(fact.port !== undefined && { port: fact.port }),
      ...(fact.socket !== undefined && { socket: fact.socket }),
      ...(fact.content !== undefined && { content: inContractWords(fact.content) }),
    }
    if (fact.ok)
      this.#finish(flying, { status: COMMAND_STATUS.acked, reason: fact.reason, attempts: flying.attempts }, result)
    else if (fact.executed === 'unknown' && flying.watch === undefined)
      this.#watch(flying, { status: COMMAND_STATUS.refused, reason: fact.reason }, now)
    else if (fact.reason === 'already_in_state' && flying.attempts > 1 && this.#isAskable(flying.command))
      // the first sending may have worked and its result be lost, or another charge runs there: its number will tell
      this.#watch(flying, { status: COMMAND_STATUS.refused, reason: fact.reason }, now)
    else if (fact.reason === 'already_in_state' && flying.attempts > 1)
      // the first sending worked, its result was lost
      this.#finish(
        flying,
        { status: COMMAND_STATUS.acked, reason: 'already_in_state', attempts: flying.attempts },
        result,
      )
    else
      this.#finish(flying, { status: COMMAND_STATUS.refused, reason: fact.reason, attempts: flying.attempts }, result)
    this.advance(now)
    return true
  }

  #unclaimedResult(fact: ResultFact, messageId: number, uplinkName: string, now: Moment): void {
    remember(this.#heard.results, { fact, messageId, uplinkName, monoMs: now.monoMs })
    const at = this.#deadStarts.findIndex(
      (dead) => dead.messageId === messageId && dead.command.downlink.name === fact.downlink,
    )
    const dead = this.#deadStarts[at]
    if (dead === undefined || !fact.ok || !isAbout(fact, dead.command)) return
    this.#deadStarts.splice(at, 1)
    const { command } = dead
    const result = { raw: fact.raw, ...(fact.businessNo !== undefined && { business_no: fact.businessNo }) }
    const fate = { status: COMMAND_STATUS.acked, reason: fact.reason, attempts: command.attempts, messageId, result }
    this.#world.workedAfterAll(command, fate)
  }

  /**
   * An uplink of this name came that may stand for a result (BKV 1017 for 1d).
   * @param sockets what it is about
   */
  uplinkSeen(name: string, sockets: readonly number[], now: Moment): void {
    const flying = this.#flying.find(({ command, isSentHere }) => {
      const { result } = command.downlink
      return isSentHere && result !== 'none' && result.orBy === name && sockets.includes(command.socket)
    })
    if (flying === undefined) return
    this.#finish(flying, { status: COMMAND_STATUS.acked, reason: 'ok', attempts: flying.attempts }, {})
    this.advance(now)
  }

  /**
   * The device asks for its upgrade from the beginning: until it gets the first chunk it waits for no later one, so
   * those end at once, and whoever leads the transfer hears of it. Upgrade mode that was asked for is entered.
   */
  upgradeRequested(now: Moment): void {
    // it has not answered the first chunk yet: that one is what it asks for
    this.#isUpgradeRequested = !this.#flying.some(({ command }) => command.fields['chunk'] === 1)
    for (const flying of [...this.#flying]) {
      const { attempts } = flying
      if (isLaterChunk(flying.command))
        this.#finish(flying, { status: COMMAND_STATUS.dead, reason: UPGRADE_REQUESTED, attempts }, {})
      else if (flying.command.fields['trigger'] === true)
        this.#finish(flying, { status: COMMAND_STATUS.acked, reason: UPGRADE_REQUESTED, attempts }, {})
    }
    for (const command of this.#queue.filter(isLaterChunk)) this.#dropChunk(command)
    this.#queue = this.#queue.filter((command) => !isLaterChunk(command))
    this.advance(now)
  }

  #dropChunk(command: LaneCommand): void {
    const { attempts } = command
    const messageId = this.#idOf(command)
    this.#announced.delete(command.commandId)
    this.#end(command, { status: COMMAND_STATUS.dead, reason: UPGRADE_REQUESTED, attempts }, messageId, undefined)
  }

  /** A report says whether a port charges, and not which order. */
  portSeen(socket: number, port: number, isCharging: boolean): void {
    for (const flying of this.#flying)
      if (flying.command.socket === socket && flying.command.port === port) flying.isPortCharging = isCharging
  }

  /** A report says that nothing charges: not that the socket is off the air, nor that a fault hides what it does. */
  portIdle(socket: number, port: number): void {
    this.#targetGone(socket, port)
  }

  /** @param runs what charges there now; undefined: nothing, or nobody knows what */
  #targetGone(socket: number, port: number, runs?: string): void {
    for (const flying of this.#flying) {
      const { command, chargeBefore } = flying
      if (!isNamelessStop(command) || command.socket !== socket || command.port !== port) continue
      // where no report named the charge before the stop, it may be this one
      const isOther = typeof chargeBefore === 'string' && isKnown(chargeBefore) && runs !== chargeBefore
      if (runs === undefined || isOther) flying.isTargetGone = true
    }
  }

  /** An order has its settlement: a stop for it that was not sent has nothing to stop (AP3000 8, 82). */
  orderSettled(wireHex: string): void {
    for (const command of [...this.#queue]) {
      if (command.priority !== PRIORITY.stop || command.fields['orderHex'] !== wireHex) continue
      if (!this.letGo(command.commandId)) continue
      const fate = { status: COMMAND_STATUS.cancelled, reason: 'order_settled', attempts: 0 }
      this.#end(command, fate, undefined, undefined)
    }
  }

  /** A report names an order that a port charges or has charged: where we chose the number, its start worked. */
  orderSeen(socket: number, port: number, wireHex: string, now: Moment): void {
    remember(this.#heard.orders, { socket, port, wireHex })
    for (const flying of [...this.#flying]) {
      const { command, attempts } = flying
      if (!this.#isAskable(command) || command.socket !== socket || command.port !== port) continue
      if (command.wireHex === '' || command.wireHex !== wireHex || !this.#flying.includes(flying)) continue
      this.#finish(flying, { status: COMMAND_STATUS.acked, reason: 'confirmed_by_report', attempts }, {})
      this.advance(now)
    }
  }

  /**
   * A port charges under this number: what starts in doubt wait for.
   * @param durationMs how long it does, in the device's words
   */
  chargeSeen(socket: number, port: number, wireHex: string, durationMs: number, now: Moment): void {
    this.orderSeen(socket, port, wireHex, now)
    this.#targetGone(socket, port, wireHex)
    for (const flying of [...this.#flying]) {
      const { command, chargeBefore } = flying
      if (!this.#isAskable(command) || command.socket !== socket || command.port !== port) continue
      // of two starts nobody knows which one worked (simulation, seed 920748)
      const isOther = (other: Flying) =>
        other !== flying &&
        other.command.socket === socket &&
        other.command.port === port &&
        this.#isAskable(other.command)
      if (command.wireHex !== '' || this.#flying.some(isOther)) continue
      // where the device makes the number, a charge is ours when it is not the one the port had before; where nobody knows
      // what it had, when it began behind the start
      const isOurs =
        chargeBefore === undefined
          ? flying.isSentHere && durationMs <= now.monoMs - flying.firstSentMonoMs + REPORT_SLACK_MS
          : isKnown(chargeBefore) && wireHex !== chargeBefore
      if (!isOurs || !this.#flying.includes(flying)) continue
      // a report may overtake the result, which says more (the business number): only doubt is settled by it
      flying.seenWireHex = wireHex
      if (flying.watch === undefined && command.downlink.result !== 'none') continue
      this.#confirmed(flying, wireHex)
      this.advance(now)
    }
  }

  #confirmed(flying: Flying, wireHex: string): void {
    const fate = { status: COMMAND_STATUS.acked, reason: 'confirmed_by_report', attempts: flying.attempts }
    this.#finish(flying, fate, { business_no: Number.parseInt(wireHex, 16) })
  }

  #finish(flying: Flying, fate: Pick<Fate, 'status' | 'reason' | 'attempts'>, result: Fate['result']): void {
    this.#flying.splice(this.#flying.indexOf(flying), 1)
    const { command, messageId } = flying
    if (fate.status === COMMAND_STATUS.dead && this.#isAskable(command))
      remember(this.#deadStarts, { command: { ...command, attempts: flying.attempts }, messageId })
    this.#end(flying.command, fate, flying.messageId, flying.firstSentMonoMs, result)
  }

  #end(
    command: LaneCommand,
    fate: Pick<Fate, 'status' | 'reason' | 'attempts'>,
    messageId: number | undefined,
    firstSentMonoMs: number | undefined,
    result: Fate['result'] = {},
  ): void {
    this.#world.ended(command, { ...fate, messageId, result }, firstSentMonoMs)
  }
}
