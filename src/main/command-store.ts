/** What the command desk asks of `outbound_queue`. Thread: main; every call throws when the database does not answer. */

import { insertSpan } from '../../workers/writer/insert.ts'
import type { Fields } from '../codec/protocol.ts'
import { commandFateRow } from '../rows/index.ts'
import { encodeRow } from '../rows/row.ts'
import type { StoredCommand } from './command-desk.ts'
import type { Sql } from './database/connect.ts'

/** A command without a fate, as it is stored: nobody has looked at its fields yet. */
export interface WaitingCommand extends StoredCommand {
  readonly attempts: number
  readonly messageId: number | null
}

/** How far a command is; `attempts` counts sends, or one that was about to be. */
export interface CommandProgress {
  readonly commandId: string
  readonly status: number
  readonly attempts: number
  readonly messageId: number | null
}

export interface CommandStore {
  /** The message id that was given last to a command for this device; undefined: none was. */
  lastMessageId(deviceId: string): Promise<number | undefined>
  /**
   * Writes the fate of a command that never reached a session, or left it, and moves its order along.
   * @param problem what is wrong with it, for people
   * @returns false: it has a fate already, or is not stored
   */
  end(commandId: string, status: number, reason: string, problem?: string): Promise<boolean>
  /** Every command without a fate, in order of arrival. */
  waiting(): Promise<readonly WaitingCommand[]>
  progress(commandIds: readonly string[]): Promise<readonly CommandProgress[]>
}

export class SqlCommandStore implements CommandStore {
  readonly #sql: Sql

  constructor(sql: Sql) {
    this.#sql = sql
  }

  async lastMessageId(deviceId: string): Promise<number | undefined> {
    const [row] = await this.#sql<{ message_id: number }[]>`
      select message_id from outbound_queue
      where device_id = ${deviceId} and message_id is not null order by sent_at desc nulls last limit 1`
    return row === undefined ? undefined : Number(row.message_id)
  }

  async end(commandId: string, status: number, reason: string, problem?: string): Promise<boolean> {
    const [row] = await this.#sql<{ device_id: string; attempts: number; message_id: number | null }[]>`
      select device_id, attempts, message_id from outbound_queue where command_id = ${commandId} and status < 2`
    if (row === undefined) return false
    // the same way as a fate from a session: order, card and events move in one transaction; epoch 0 is main's
    const fate = encodeRow(commandFateRow, {
      commandId,
      deviceId: row.device_id,
      epoch: 0,
      status,
      attempts: row.attempts,
      messageId: row.message_id,
      atMs: Date.now(),
      reason,
      result: JSON.stringify(problem === undefined ? {} : { problem }),
    })
    const { tables } = await insertSpan(this.#sql, fate.slice())
    return (tables['outbound_queue']?.inserted ?? 0) > 0
  }

  async waiting(): Promise<readonly WaitingCommand[]> {
    const rows = await this.#sql<
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
    return rows.map((row) => ({
      commandId: row.command_id,
      deviceId: row.device_id,
      name: row.name,
      fields: row.wire.fields,
      priority: row.priority,
      expiresMs: row.expires_at.getTime(),
      wireHex: row.wire.wire_hex,
      socket: row.wire.socket,
      port: row.wire.port,
      attempts: row.attempts,
      messageId: row.message_id,
    }))
  }

  async progress(commandIds: readonly string[]): Promise<readonly CommandProgress[]> {
    const rows = await this.#sql<
      { command_id: string; status: number; attempts: number; message_id: number | null }[]
    >`select command_id, status, attempts, message_id from outbound_queue where command_id = any(${[...commandIds]})`
    return rows.map((row) => ({
      commandId: row.command_id,
      status: row.status,
      attempts: row.attempts,
      messageId: row.message_id,
    }))
  }
}
