/**
 * Commands between HTTP and the shards: each one is in `outbound_queue` before it comes here, waits for its device,
 * goes to the session that speaks for it, and comes back when that session ends. The desk sends nothing and decides no
 * fate, except for commands that no session has. Thread: main.
 *
 * Bounds: commandsMax over all devices, commandsPerDeviceMax for one; one more is refused with TOO_MANY_REQUESTS before
 * it is stored. Stops have the same room of their own: nothing else may keep a charge from being ended.
 */
import { randomUUID } from 'node:crypto'
import { deviceKey as deviceKeyOf, type Fields } from '../codec/protocol.ts'
import { HttpError } from '../errors/errors.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import { COMMAND_FIELDS_BYTES_MAX, commandMail } from '../rows/mail.ts'
import { encodeRow } from '../rows/row.ts'
import { COMMAND_STATUS, PRIORITY } from '../session/command-lane.ts'
import type { ReturnedCommand } from '../session/effects.ts'
import type { Directory } from '../shared/directory.ts'
import { OUTBOX_FULL, type OutboxProducer } from '../shared/outbox.ts'
import type { CommandStore, WaitingCommand } from './command-store.ts'
import type { Log } from './log.ts'

/** A command that is stored. */
export interface StoredCommand {
  readonly commandId: string
  readonly deviceId: string
  /** Of the protocol's downlink table. */
  readonly name: string
  /** What the downlink's `encode` takes; encoded once already, so it does not throw. */
  readonly fields: Fields
  /** `PRIORITY` of src/session/command-lane.ts. */
  readonly priority: number
  readonly expiresMs: number
  /** Order number on the wire that a start begins (AP3000: 32 hex digits); '' otherwise. */
  readonly wireHex: string
  readonly socket: number
  /** From 1; 0 when not about a port. */
  readonly port: number
}

interface Live extends StoredCommand {
  readonly deviceKey: number
  /** held: waits for its device; given: with a shard; ending: its fate is being written here. */
  state: 'held' | 'given' | 'ending'
  shard: number
  /** Session it was given to. */
  epoch: number
  attempts: number
  messageId: number | undefined
  /**
   * The table may know more than we do (its session thread died, or an answer was lost): nothing is done with it before
   * this is true and the table was asked.
   */
  isTold: (() => boolean) | undefined
}

/** The latest message id the database knows for a device; asked once per session that gets commands. */
interface LastMessageId {
  readonly epoch: number
  /** undefined: the answer is not there yet */
  messageId: number | null | undefined
}

/** What the database knew when the session `epoch` spoke for the device already. */
export interface KnownMessageId {
  readonly epoch: number
  /** null: no id was given yet */
  readonly messageId: number | null
}

interface Cancel {
  readonly live: Live
  readonly resolve: (answer: CancelAnswer) => void
}

export interface CommandDeskOptions {
  readonly store: CommandStore
  readonly log: Log
  readonly directory: Directory
  /** One per shard. */
  readonly mailboxes: readonly OutboxProducer[]
  readonly wakeShard: (shard: number) => void
  readonly askCancel: (shard: number, questionId: number, deviceKey: number, commandId: string) => void
  readonly commandsMax: number
  readonly commandsPerDeviceMax: number
  readonly now: () => number
  /** setTimeout, or the simulation's. */
  readonly after: (ms: number, act: () => void) => void
  /** Held commands came or went: part of commands_pending. */
  readonly onHeld: (change: number) => void
  /** A command ended here: it never reached its device. */
  readonly onEnded: (name: string, outcome: 'expired' | 'cancelled' | 'dead') => void
  /** A command got its fate, wherever; its row may be written some milliseconds later. */
  readonly onFinal?: (commandId: string) => void
}

export type CancelAnswer = 'cancelled' | 'too_late' | 'unknown'

const CANCEL_WITHIN_MS = 2_000
export const SWEEP_MS = 250

export class CommandDesk {
  readonly #options: CommandDeskOptions
  readonly #live = new Map<string, Live>()
  readonly #byDevice = new Map<number, Set<Live>>()
  readonly #cancels = new Map<number, Cancel>()
  readonly #lastMessageIds = new Map<number, LastMessageId>()
  /** Whose device could take them at once, and of which no send was heard yet. */
  readonly #dispatching = new Set<Live>()
  #questionId = 0
  #timer: NodeJS.Timeout | undefined

  constructor(options: CommandDeskOptions) {
    this.#options = options
  }

  /** Commands without a fate. */
  get count(): number {
    return this.#live.size
  }

  /**
   * Commands on their way to devices that could take them at once: nothing else waits there. What waits for its device, or
   * behind another command of its device, is not among them.
   */
  get dispatchingCount(): number {
    return this.#dispatching.size
  }

  /** Of the session that speaks for a device, if one does: what the database knows from now on can go with a command. */
  epochOf(deviceKey: number): number | undefined {
    const claim = this.#options.directory.look(deviceKey)
    return claim?.isOnline === true ? claim.epoch : undefined
  }

  newCommandId(): string {
    return randomUUID()
  }

  /**
   * Is there room for one more? Asked before a command is stored.
   * @param coming commands that are being stored, and will be accepted
   * @throws HttpError TOO_MANY_REQUESTS
   */
  admit(deviceId: string, priority: number, coming = 0): void {
    const { commandsMax, commandsPerDeviceMax } = this.#options
    const isStop = priority === PRIORITY.stop
    if (this.#live.size + coming >= (isStop ? 2 : 1) * commandsMax)
      throw new HttpError('TOO_MANY_REQUESTS', 'too many commands wait', { limit: commandsMax })
    const found = parseAnyDeviceId(deviceId)
    const key = found === undefined ? undefined : deviceKeyOf(found.protocol, found.deviceNo)
    const ofDevice = key === undefined ? undefined : this.#byDevice.get(key)
    if (ofDevice === undefined || ofDevice.size < commandsPerDeviceMax) return
    const ofItsKind = [...ofDevice].filter((live) => (live.priority === PRIORITY.stop) === isStop)
    if (ofItsKind.length >= commandsPerDeviceMax)
      throw new HttpError('TOO_MANY_REQUESTS', 'too many commands wait for this device', {
        limit: commandsPerDeviceMax,
      })
  }

  /**
   * Takes over a command that is committed in `outbound_queue` with status queued.
   * @param known read after `epochOf` said its epoch; saves the question
   * @param isPaced it follows the last one of its device (a job's), and waits for the spacing: never one that is dispatching
   */
  accept(command: StoredCommand, known?: KnownMessageId, isPaced = false): void {
    this.#take(command, 0, undefined, known, isPaced)
  }

  #take(
    command: StoredCommand,
    attempts: number,
    messageId: number | undefined,
    known: KnownMessageId | undefined,
    isPaced: boolean,
  ): void {
    const found = parseAnyDeviceId(command.deviceId)
    if (found === undefined) throw new Error(`command ${command.commandId} for no device of ours: ${command.deviceId}`)
    const deviceKey = deviceKeyOf(found.protocol, found.deviceNo)
    const epoch = this.epochOf(deviceKey)
    if (known !== undefined && known.epoch === epoch && this.#lastMessageIds.get(deviceKey)?.epoch !== epoch)
      this.#lastMessageIds.set(deviceKey, { ...known })
    const live: Live = {
      ...command,
      deviceKey,
      state: 'held',
      shard: -1,
      epoch: 0,
      attempts,
      messageId,
      isTold: undefined,
    }
    this.#live.set(live.commandId, live)
    const ofDevice = this.#byDevice.get(deviceKey) ?? new Set()
    this.#byDevice.set(deviceKey, ofDevice.add(live))
    if (epoch !== undefined && ofDevice.size === 1 && !isPaced) this.#dispatching.add(live)
    this.#options.onHeld(1)
    this.#deliver(deviceKey)
  }

  /**
   * Gives what is held for a device to the session that speaks for it, if one does, in order of arrival: what an older
   * session still has comes back first, and nothing overtakes what a full mailbox did not take.
   */
  #deliver(deviceKey: number): void {
    const ofDevice = this.#byDevice.get(deviceKey)
    const claim = this.#options.directory.look(deviceKey)
    if (ofDevice === undefined || claim?.isOnline !== true) return
    const last = this.#lastMessageIds.get(deviceKey)
    if (last?.epoch !== claim.epoch) {
      void this.#askLastMessageId(deviceKey, claim.epoch)
      return
    }
    if (last.messageId === undefined) return
    const mailbox = this.#options.mailboxes[claim.shard]!
    const nowMs = this.#options.now()
    const lastMessageId = latestId(ofDevice, last.messageId)
    let isAnyGiven = false
    for (const live of ofDevice) {
      if (live.state === 'given' && live.epoch !== claim.epoch) break
      if (live.state !== 'held' || live.expiresMs <= nowMs) continue
      if (live.isTold !== undefined) break
      const row = encodeRow(commandMail, {
        commandId: live.commandId,
        deviceKey,
        epoch: claim.epoch,
        name: live.name,
        fields: JSON.stringify(live.fields),
        priority: live.priority,
        expiresMs: live.expiresMs,
        wireHex: live.wireHex,
        socket: live.socket,
        port: live.port,
        attempts: live.attempts,
        messageId: live.messageId ?? null,
        lastMessageId,
      })
      // a full mailbox keeps it held; the sweep tries again
      if (mailbox.append(row) === OUTBOX_FULL) break
      live.state = 'given'
      live.shard = claim.shard
      live.epoch = claim.epoch
      this.#options.onHeld(-1)
      isAnyGiven = true
    }
    if (isAnyGiven && mailbox.publish()) this.#options.wakeShard(claim.shard)
  }

  /**
   * Every id that ever left is in the table, because a command is written there before it is sent: a session goes on
   * behind it, whoever spoke for the device before.
   */
  async #askLastMessageId(deviceKey: number, epoch: number): Promise<void> {
    const [{ deviceId } = { deviceId: '' }] = this.#byDevice.get(deviceKey) ?? []
    const last: LastMessageId = { epoch, messageId: undefined }
    this.#lastMessageIds.set(deviceKey, last)
    try {
      last.messageId = (await this.#options.store.lastMessageId(deviceId)) ?? null
    } catch {
      // the database is away: nothing could be sent anyway; the sweep asks again
      if (this.#lastMessageIds.get(deviceKey) === last) this.#lastMessageIds.delete(deviceKey)
      return
    }
    this.#deliver(deviceKey)
  }

  /** A device has a session again: what waits for it goes. */
  deviceOnline(deviceKey: number): void {
    this.#deliver(deviceKey)
  }

  /** A shard could not finish a command: its session is not there any more. */
  returned({ commandId, attempts, messageId }: ReturnedCommand): void {
    const live = this.#live.get(commandId)
    if (live === undefined || live.state !== 'given') return
    live.attempts = Math.max(live.attempts, attempts)
    live.messageId = messageId ?? live.messageId
    this.#hold(live)
    this.#deliver(live.deviceKey)
  }

  #hold(live: Live): void {
    this.#dispatching.delete(live)
    live.state = 'held'
    this.#options.onHeld(1)
  }

  /**
   * A session thread died: what it had is given to whoever speaks for the devices next, once the table says how far it
   * was: what it told us last may have died with it.
   * @param isTold true from when every row that it left behind is stored
   */
  shardLost(shard: number, isTold: () => boolean): void {
    for (const live of this.#live.values())
      if (live.state === 'given' && live.shard === shard) {
        live.isTold = isTold
        this.#hold(live)
      }
    for (const [questionId, { live, resolve }] of this.#cancels)
      if (live.shard === shard) {
        this.#cancels.delete(questionId)
        resolve('too_late')
      }
  }

  /** A shard sent a command or gave it its fate. */
  moved(commandId: string, status: number): void {
    const live = this.#live.get(commandId)
    if (live === undefined) return
    this.#dispatching.delete(live)
    if (status === COMMAND_STATUS.sent) {
      live.attempts++
      return
    }
    this.#forget(live)
  }

  #forget(live: Live): void {
    this.#dispatching.delete(live)
    if (live.state === 'held') this.#options.onHeld(-1)
    this.#live.delete(live.commandId)
    this.#options.onFinal?.(live.commandId)
    const ofDevice = this.#byDevice.get(live.deviceKey)
    ofDevice?.delete(live)
    if (ofDevice?.size !== 0) return
    this.#byDevice.delete(live.deviceKey)
    this.#lastMessageIds.delete(live.deviceKey)
  }

  /** Cancels a command that was not sent. The answer `cancelled` is durable. */
  async cancel(commandId: string): Promise<CancelAnswer> {
    const live = this.#live.get(commandId)
    if (live === undefined) return 'unknown'
    if (live.attempts > 0 || live.state === 'ending' || live.isTold !== undefined) return 'too_late'
    if (live.state === 'held') return this.#endCancelled(live)
    const questionId = ++this.#questionId
    return new Promise<CancelAnswer>((resolve) => {
      this.#cancels.set(questionId, { live, resolve })
      this.#options.askCancel(live.shard, questionId, live.deviceKey, commandId)
      // the answer may come later all the same: then the command is in our hands again
      this.#options.after(CANCEL_WITHIN_MS, () => resolve('too_late'))
    })
  }

  /** @param isCancelled the shard has let go of the command; its fate is ours to write */
  cancelAnswered(questionId: number, isCancelled: boolean): void {
    const cancel = this.#cancels.get(questionId)
    if (cancel === undefined) return
    this.#cancels.delete(questionId)
    const { live, resolve } = cancel
    if (!isCancelled) {
      resolve('too_late')
      return
    }
    this.#hold(live)
    void this.#endCancelled(live).then(resolve)
  }

  async #endCancelled(live: Live): Promise<CancelAnswer> {
    return (await this.#endHeld(live, COMMAND_STATUS.cancelled, 'cancelled')) ? 'cancelled' : 'too_late'
  }

  /** Gives a fate to a command that no shard has. @returns false: it has one, or the database is away */
  async #endHeld(live: Live, status: number, reason: string): Promise<boolean> {
    live.state = 'ending'
    this.#options.onHeld(-1)
    let isEnded: boolean
    try {
      isEnded = await this.#options.store.end(live.commandId, status, reason)
    } catch (error) {
      this.#options.log.warn({
        event: 'command.unended',
        err: error,
        commandId: live.commandId,
        msg: 'fate not stored yet',
      })
      // stored all the same, perhaps, and only the answer was lost: what is cancelled must not be sent
      live.isTold = () => true
      this.#hold(live)
      return false
    }
    this.#forget(live)
    // a fate that was written by an earlier try, whose answer was lost, or by a session before a restart
    if (!isEnded) return false
    this.#options.onEnded(
      live.name,
      status === COMMAND_STATUS.cancelled ? 'cancelled' : status === COMMAND_STATUS.dead ? 'dead' : 'expired',
    )
    return true
  }

  /** What waits: asks about the commands of dead threads, ends what is overdue, offers the rest again. */
  sweep(): void {
    const nowMs = this.#options.now()
    const told: Live[] = []
    const waiting = new Set<number>()
    for (const live of this.#live.values()) {
      if (live.state !== 'held') continue
      // its device went meanwhile, or its mailbox is full
      this.#dispatching.delete(live)
      if (live.isTold !== undefined) {
        if (live.isTold()) told.push(live)
      } else if (live.expiresMs > nowMs) waiting.add(live.deviceKey)
      else if (live.attempts > 0) void this.#endHeld(live, COMMAND_STATUS.dead, 'connection_lost')
      else void this.#endHeld(live, COMMAND_STATUS.expired, 'expired')
    }
    if (told.length > 0) void this.#learn(told)
    for (const deviceKey of waiting) this.#deliver(deviceKey)
  }

  /** How far were the commands of a dead thread? */
  async #learn(lives: readonly Live[]): Promise<void> {
    const isTold = new Map(lives.map((live) => [live, live.isTold!]))
    // asked once, not at every sweep until the answer is there
    for (const live of lives) live.isTold = () => false
    try {
      const rows = await this.#options.store.progress(lives.map(({ commandId }) => commandId))
      const byId = new Map(rows.map((row) => [row.commandId, row]))
      for (const live of lives) {
        const row = byId.get(live.commandId)
        if (row === undefined || row.status >= COMMAND_STATUS.acked) {
          this.#forget(live)
          continue
        }
        live.attempts = Math.max(live.attempts, row.attempts)
        live.messageId = row.messageId ?? live.messageId
        live.isTold = undefined
      }
    } catch {
      for (const live of lives) live.isTold = isTold.get(live)
    }
    for (const deviceKey of new Set(lives.map((live) => live.deviceKey))) this.#deliver(deviceKey)
  }

  /** Cold start: commands without a fate are picked up where the last start left them. */
  async load(): Promise<number> {
    const { store, log } = this.#options
    const rows = await store.waiting()
    for (const row of rows) {
      const problem = problemOf(row)
      if (problem === undefined) {
        this.#take(row, row.attempts, row.messageId ?? undefined, undefined, false)
        continue
      }
      // stored by another release, or by hand: it would take its shard's thread along when it is sent
      await store.end(row.commandId, COMMAND_STATUS.dead, 'unusable', problem)
      log.error({ event: 'command.unusable', commandId: row.commandId, command: row.name, msg: problem })
    }
    return rows.length
  }

  start(): void {
    // what expired while nobody was there has waited long enough
    this.sweep()
    this.#timer = setInterval(() => this.sweep(), SWEEP_MS)
  }

  stop(): void {
    clearInterval(this.#timer)
  }
}

/**
 * A command that comes back with the id it was to be sent under may be given behind one that has none yet, and its row may
 * not have been stored when the table was asked (simulation, seed 503630).
 */
function latestId(ofDevice: ReadonlySet<Live>, stored: number | null): number | null {
  let latest = stored
  for (const { deviceId, messageId } of ofDevice) {
    if (messageId === undefined) continue
    const span = 2 ** (parseAnyDeviceId(deviceId)?.protocol.messageIdBits ?? 32)
    // serial arithmetic: ids come round
    if (latest === null || (((messageId - latest) % span) + span) % span < span / 2) latest = messageId
  }
  return latest
}

/** Why a stored command can never be sent; undefined: it can. */
function problemOf(row: WaitingCommand): string | undefined {
  const found = parseAnyDeviceId(row.deviceId)
  if (found === undefined) return `no device of ours: ${row.deviceId}`
  const downlink = found.protocol.downlinkByName.get(row.name)
  if (downlink === undefined) return `${found.protocol.name} has no command ${row.name}`
  try {
    downlink.encode(row.fields)
  } catch (error) {
    return (error as Error).message
  }
  if (Buffer.byteLength(JSON.stringify(row.fields)) > COMMAND_FIELDS_BYTES_MAX) return 'fields are too long'
  const { wireHex, socket, port } = row
  if (typeof wireHex !== 'string' || typeof socket !== 'number' || typeof port !== 'number') return 'wire is incomplete'
  return undefined
}
