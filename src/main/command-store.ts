/** What the command desk asks of `outbound_queue`. Thread: main; every call throws when the database does not answer. */

import { parameters } from '../../workers/writer/columns.ts'
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

interface Question {
  readonly deviceId: string
  readonly resolve: (messageId: number | undefined) => void
  readonly reject: (error: unknown) => void
}

interface Ending {
  readonly commandId: string
  readonly status: number
  readonly reason: string
  readonly problem: string | undefined
  readonly resolve: (isEnded: boolean) => void
  readonly reject: (error: unknown) => void
}

/** Subquery: the id of the command of device `id` that was sent last, if one was. */
export const lastMessageIdOf = (id: string) => `(
  select message_id from outbound_queue
  where device_id = ${id} and message_id is not null and sent_at is not null order by sent_at desc limit 1)`
const LAST_MESSAGE_IDS = `
  select i.device_id, q.message_id
  from (select distinct unnest($1::text[]) as device_id) i cross join lateral ${lastMessageIdOf('i.device_id')} q`

/** Fates of one transaction. */
const ENDINGS_MAX = 500

export class SqlCommandStore implements CommandStore {
  readonly #sql: Sql
  /** Asked in this turn of the loop: commands for many devices are stored at once, and asked for with one statement. */
  #questions: Question[] = []
  /** The same of fates: thousands may expire at one look. */
  #endings: Ending[] = []

  constructor(sql: Sql) {
    this.#sql = sql
  }

  lastMessageId(deviceId: string): Promise<number | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#questions.length === 0) setImmediate(() => void this.#askLastMessageIds())
      this.#questions.push({ deviceId, resolve, reject })
    })
  }

  async #askLastMessageIds(): Promise<void> {
    const questions = this.#questions
    this.#questions = []
    try {
      const ids = parameters({ ids: 'text' }, { ids: questions.map(({ deviceId }) => deviceId) })
      const rows = await this.#sql.unsafe<{ device_id: string; message_id: number }[]>(LAST_MESSAGE_IDS, ids, {
        prepare: true,
      })
      const byDevice = new Map(rows.map((row) => [row.device_id, Number(row.message_id)]))
      for (const { deviceId, resolve } of questions) resolve(byDevice.get(deviceId))
    } catch (error) {
      for (const { reject } of questions) reject(error)
    }
  }

  end(commandId: string, status: number, reason: string, problem?: string): Promise<boolean> {
    return new Promise((resolve, reject) => {
      if (this.#endings.length === 0) setImmediate(() => this.#endAll())
      this.#endings.push({ commandId, status, reason, problem, resolve, reject })
    })
  }

  #endAll(): void {
    const endings = this.#endings
    this.#endings = []
    for (let from = 0; from < endings.length; from += ENDINGS_MAX) {
      const some = endings.slice(from, from + ENDINGS_MAX)
      this.#endSome(some).catch((error: unknown) => {
        for (const { reject } of some) reject(error)
      })
    }
  }

  async #endSome(endings: readonly Ending[]): Promise<void> {
    const ids = endings.map(({ commandId }) => commandId)
    const rows = await this.#sql<
      { command_id: string; device_id: string; attempts: number; message_id: number | null }[]
    >`
      select command_id, device_id, attempts, message_id from outbound_queue
      where command_id = any(${ids}) and status < 2`
    const open = new Map(rows.map((row) => [row.command_id, row]))
    // the same way as a fate from a session: order, card and events move in one transaction; epoch 0 is main's
    const fates = endings.flatMap(({ commandId, status, reason, problem }) => {
      const row = open.get(commandId)
      if (row === undefined) return []
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
      // the encoder's memory is its own
      return [fate.slice()]
    })
    const span = fates.length === 0 ? undefined : await insertSpan(this.#sql, Buffer.concat(fates))
    const areAllOurs = (span?.tables['outbound_queue']?.inserted ?? 0) === rows.length
    // a session was faster with some of them
    const stored = areAllOurs
      ? undefined
      : new Map((await this.progress(ids)).map((row) => [row.commandId, row.status]))
    for (const { commandId, status, resolve } of endings)
      resolve(open.has(commandId) && (stored === undefined || stored.get(commandId) === status))
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
