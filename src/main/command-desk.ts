/**
 * Commands between HTTP and the shards: each one is in `outbound_queue` before it comes here, waits for its device,
 * goes to the shard that speaks for it, and comes back when that shard loses the device. The desk sends nothing and
 * decides no fate, except for commands that never reached a shard. Thread: main.
 *
 * Bounds: commandsMax over all devices, commandsPerDeviceMax for one; one more is refused with TOO_MANY_REQUESTS before
 * it is stored.
 */
import { randomUUID } from 'node:crypto'
import { deviceKey as deviceKeyOf, type Fields } from '../codec/protocol.ts'
import { HttpError } from '../errors/errors.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import { commandMail } from '../rows/mail.ts'
import { encodeRow } from '../rows/row.ts'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import type { ReturnedCommand } from '../session/effects.ts'
import type { Directory } from '../shared/directory.ts'
import { OUTBOX_FULL, type OutboxProducer } from '../shared/outbox.ts'
import type { Sql } from './database/connect.ts'
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
  /** held: waits for its device; given: with a shard. */
  state: 'held' | 'given'
  shard: number
  attempts: number
  messageId: number | undefined
}

export interface CommandDeskOptions {
  readonly sql: Sql
  readonly log: Log
  readonly directory: Directory
  /** One per shard. */
  readonly mailboxes: readonly OutboxProducer[]
  readonly wakeShard: (shard: number) => void
  readonly askCancel: (shard: number, questionId: number, deviceKey: number, commandId: string) => void
  readonly commandsMax: number
  readonly commandsPerDeviceMax: number
  readonly now: () => number
  /** Held commands came or went: part of commands_pending. */
  readonly onHeld: (change: number) => void
  /** A command ended here: it never reached its device. */
  readonly onEnded: (name: string, outcome: 'expired' | 'cancelled' | 'dead') => void
}

export type CancelAnswer = 'cancelled' | 'too_late' | 'unknown'

const CANCEL_WITHIN_MS = 2_000

export class CommandDesk {
  readonly #options: CommandDeskOptions
  readonly #live = new Map<string, Live>()
  readonly #byDevice = new Map<number, Set<Live>>()
  readonly #cancels = new Map<number, (isCancelled: boolean) => void>()
  /** Latest message id the database knew, asked once per device and start. */
  readonly #lastMessageId = new Map<number, number | null>()
  readonly #lookups = new Map<number, Promise<void>>()
  #questionId = 0
  #timer: NodeJS.Timeout | undefined

  constructor(options: CommandDeskOptions) {
    this.#options = options
  }

  /** Commands without a fate. */
  get count(): number {
    return this.#live.size
  }

  newCommandId(): string {
    return randomUUID()
  }

  /**
   * Is there room for one more? Asked before a command is stored.
   * @throws HttpError TOO_MANY_REQUESTS
   */
  admit(deviceId: string): void {
    const { commandsMax, commandsPerDeviceMax } = this.#options
    if (this.#live.size >= commandsMax)
      throw new HttpError('TOO_MANY_REQUESTS', 'too many commands wait', { limit: commandsMax })
    const found = parseAnyDeviceId(deviceId)
    const key = found === undefined ? undefined : deviceKeyOf(found.protocol, found.deviceNo)
    if (key !== undefined && (this.#byDevice.get(key)?.size ?? 0) >= commandsPerDeviceMax)
      throw new HttpError('TOO_MANY_REQUESTS', 'too many commands wait for this device', {
        limit: commandsPerDeviceMax,
      })
  }

  /** Takes over a command that is committed in `outbound_queue` with status queued. */
  accept(command: StoredCommand): void {
    this.#take(command, 0, undefined)
  }

  #take(command: StoredCommand, attempts: number, messageId: number | undefined): void {
    if (this.#live.has(command.commandId)) return
    const found = parseAnyDeviceId(command.deviceId)
    if (found === undefined) throw new Error(`command ${command.commandId} for no device of ours: ${command.deviceId}`)
    const key = deviceKeyOf(found.protocol, found.deviceNo)
    const live: Live = { ...command, deviceKey: key, state: 'held', shard: -1, attempts, messageId }
    this.#live.set(live.commandId, live)
    const ofDevice = this.#byDevice.get(key) ?? new Set()
    this.#byDevice.set(key, ofDevice.add(live))
    this.#options.onHeld(1)
    void this.#giveAll(live.deviceKey, live.deviceId)
  }

  /** Gives everything held for a device to the shard that speaks for it, if one does, in order of arrival. */
  async #giveAll(deviceKey: number, deviceId: string): Promise<void> {
    if (!this.#lastMessageId.has(deviceKey)) {
      // one question for all who wait: nobody may overtake the one that asked
      let lookup = this.#lookups.get(deviceKey)
      if (lookup === undefined) {
        lookup = this.#lookUpMessageId(deviceKey, deviceId)
        this.#lookups.set(deviceKey, lookup)
      }
      await lookup
      this.#lookups.delete(deviceKey)
    }
    for (const live of this.#byDevice.get(deviceKey) ?? []) if (live.state === 'held') this.#give(live)
  }

  async #lookUpMessageId(deviceKey: number, deviceId: string): Promise<void> {
    try {
      const [row] = await this.#options.sql<{ message_id: number }[]>`
        select message_id from outbound_queue
        where device_id = ${deviceId} and message_id is not null order by sent_at desc nulls last limit 1`
      this.#lastMessageId.set(deviceKey, row?.message_id ?? null)
    } catch {
      // the database is away: the session's own memory decides, and the next command asks again
    }
  }

  #give(live: Live): void {
    const claim = this.#options.directory.look(live.deviceKey)
    if (claim === undefined || !claim.isOnline) return
    const mailbox = this.#options.mailboxes[claim.shard]!
    const row = encodeRow(commandMail, {
      commandId: live.commandId,
      deviceKey: live.deviceKey,
      name: live.name,
      fields: JSON.stringify(live.fields),
      priority: live.priority,
      expiresMs: live.expiresMs,
      wireHex: live.wireHex,
      socket: live.socket,
      port: live.port,
      attempts: live.attempts,
      messageId: live.messageId ?? null,
      lastMessageId: this.#lastMessageId.get(live.deviceKey) ?? null,
    })
    // a full mailbox keeps it held; the sweep tries again
    if (mailbox.append(row) === OUTBOX_FULL) return
    live.state = 'given'
    live.shard = claim.shard
    this.#options.onHeld(-1)
    if (mailbox.publish()) this.#options.wakeShard(claim.shard)
  }

  /** A device has a session again: what waits for it goes, in order of arrival. */
  deviceOnline(deviceKey: number): void {
    for (const { deviceId } of this.#byDevice.get(deviceKey) ?? []) {
      void this.#giveAll(deviceKey, deviceId)
      return
    }
  }

  /** A shard could not finish a command: its device is not there any more. */
  returned({ commandId, attempts, messageId }: ReturnedCommand): void {
    const live = this.#live.get(commandId)
    if (live === undefined || live.state === 'held') return
    live.state = 'held'
    live.attempts = Math.max(live.attempts, attempts)
    live.messageId = messageId ?? live.messageId
    this.#options.onHeld(1)
    void this.#giveAll(live.deviceKey, live.deviceId)
  }

  /** A session thread died: what it had is given to whoever speaks for the devices next. */
  shardLost(shard: number): void {
    for (const live of this.#live.values())
      if (live.state === 'given' && live.shard === shard) {
        live.state = 'held'
        this.#options.onHeld(1)
      }
  }

  /** A shard sent a command or gave it its fate. */
  moved(commandId: string, status: number): void {
    const live = this.#live.get(commandId)
    if (live === undefined) return
    if (status === COMMAND_STATUS.sent) {
      live.attempts++
      return
    }
    this.#forget(live)
  }

  #forget(live: Live): void {
    if (live.state === 'held') this.#options.onHeld(-1)
    this.#live.delete(live.commandId)
    const ofDevice = this.#byDevice.get(live.deviceKey)
    ofDevice?.delete(live)
    if (ofDevice?.size === 0) this.#byDevice.delete(live.deviceKey)
  }

  /** Cancels a command that was not sent. */
  async cancel(commandId: string): Promise<CancelAnswer> {
    const live = this.#live.get(commandId)
    if (live === undefined) return 'unknown'
    if (live.attempts > 0) return 'too_late'
    if (live.state === 'given') {
      const questionId = ++this.#questionId
      const isCancelled = await new Promise<boolean>((resolve) => {
        this.#cancels.set(questionId, resolve)
        this.#options.askCancel(live.shard, questionId, live.deviceKey, commandId)
        setTimeout(() => {
          if (this.#cancels.delete(questionId)) resolve(false)
        }, CANCEL_WITHIN_MS)
      })
      return isCancelled ? 'cancelled' : 'too_late'
    }
    return (await this.#endHeld(live, COMMAND_STATUS.cancelled, 'cancelled')) ? 'cancelled' : 'too_late'
  }

  cancelAnswered(questionId: number, isCancelled: boolean): void {
    const resolve = this.#cancels.get(questionId)
    this.#cancels.delete(questionId)
    resolve?.(isCancelled)
  }

  /** Gives a fate to a command that no shard has. @returns false: it has one, or the database is away */
  async #endHeld(live: Live, status: number, reason: string): Promise<boolean> {
    // not held any more, so that nobody gives it away while its fate is being written
    live.state = 'given'
    live.shard = -1
    this.#options.onHeld(-1)
    try {
      const rows = await this.#options.sql`
        update outbound_queue set status = ${status}, finished_at = now(),
          result = ${this.#options.sql.json({ reason })}
        where command_id = ${live.commandId} and status < 2 returning order_no`
      const orderNo = rows[0]?.['order_no'] as string | null | undefined
      if (orderNo != null)
        await this.#options.sql`
          update orders set state = ${status === COMMAND_STATUS.cancelled ? 'cancelled' : 'failed'}, fail_reason = ${reason},
            version = version + 1, updated_at = now()
          where order_no = ${orderNo} and state in ('pending', 'starting') and command_id = ${live.commandId}`
    } catch (error) {
      this.#options.log.warn({
        event: 'command.unended',
        err: error,
        commandId: live.commandId,
        msg: 'fate not stored yet',
      })
      live.state = 'held'
      this.#options.onHeld(1)
      return false
    }
    this.#forget(live)
    this.#options.onEnded(
      live.name,
      status === COMMAND_STATUS.cancelled ? 'cancelled' : status === COMMAND_STATUS.dead ? 'dead' : 'expired',
    )
    return true
  }

  #sweep(): void {
    const nowMs = this.#options.now()
    for (const live of this.#live.values()) {
      if (live.state !== 'held') continue
      if (live.expiresMs > nowMs) void this.#giveAll(live.deviceKey, live.deviceId)
      else if (live.attempts > 0) void this.#endHeld(live, COMMAND_STATUS.dead, 'connection_lost')
      else void this.#endHeld(live, COMMAND_STATUS.expired, 'expired')
    }
  }

  /** Cold start: commands without a fate are picked up where the last start left them. */
  async load(): Promise<number> {
    const rows = await this.#options.sql<
      {
        command_id: string
        device_id: string
        name: string
        priority: number
        wire: { fields: Fields; wire_hex: string; socket: number; port: number }
        expires_at: Date
        attempts: number
        message_id: number | null
      }[]
    >`select command_id, device_id, name, priority, wire, expires_at, attempts, message_id
      from outbound_queue where status < 2 order by created_at`
    for (const row of rows) {
      const problem = problemOf(row)
      if (problem !== undefined) {
        await this.#endUnusable(row.command_id, row.name, problem)
        continue
      }
      this.#take(
        {
          commandId: row.command_id,
          deviceId: row.device_id,
          name: row.name,
          fields: row.wire.fields,
          priority: row.priority,
          expiresMs: row.expires_at.getTime(),
          wireHex: row.wire.wire_hex,
          socket: row.wire.socket,
          port: row.wire.port,
        },
        row.attempts,
        row.message_id ?? undefined,
      )
    }
    return rows.length
  }

  /** Stored by another release, or by hand: it would take its shard's thread along when it is sent. */
  async #endUnusable(commandId: string, name: string, problem: string): Promise<void> {
    await this.#options.sql`
      update outbound_queue set status = ${COMMAND_STATUS.dead}, finished_at = now(),
        result = ${this.#options.sql.json({ reason: 'unusable', problem })}
      where command_id = ${commandId} and status < 2`
    this.#options.log.error({ event: 'command.unusable', commandId, command: name, msg: problem })
  }

  start(): void {
    this.#timer = setInterval(() => this.#sweep(), 250)
  }

  stop(): void {
    clearInterval(this.#timer)
  }
}

/** Why a stored command can never be sent; undefined: it can. */
function problemOf(row: {
  readonly device_id: string
  readonly name: string
  readonly wire: { readonly fields: Fields; readonly wire_hex: string; readonly socket: number; readonly port: number }
}): string | undefined {
  const found = parseAnyDeviceId(row.device_id)
  if (found === undefined) return `no device of ours: ${row.device_id}`
  const downlink = found.protocol.downlinkByName.get(row.name)
  if (downlink === undefined) return `${found.protocol.name} has no command ${row.name}`
  try {
    downlink.encode(row.wire.fields)
  } catch (error) {
    return (error as Error).message
  }
  const { wire_hex: wireHex, socket, port } = row.wire
  if (typeof wireHex !== 'string' || typeof socket !== 'number' || typeof port !== 'number') return 'wire is incomplete'
  return undefined
}
