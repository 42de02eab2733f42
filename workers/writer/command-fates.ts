/**
 * Fates of commands into `outbound_queue`, and what they do to orders. A final status stands: the first one is the fate,
 * another that comes later is evidence. A row of an older session epoch than the one stored is refused; epoch 0 is main,
 * which speaks for commands that no session has.
 */
import { createHash } from 'node:crypto'
import { eventIdOf } from '../../src/events/event-id.ts'
import type { TransactionSql } from '../../src/main/database/connect.ts'
import type { OrderEvent } from '../../src/orders/state.ts'
import type { CommandFateRow } from '../../src/rows/index.ts'
import { COMMAND_STATUS } from '../../src/session/command-lane.ts'
import { type Columns, parameters, source } from './columns.ts'
import type { DerivedEvent, OrderBook } from './order-book.ts'
import { all, pick, run } from './statements.ts'

/** Index is `outbound_queue.status`, as `COMMAND_STATUS` of src/session/command-lane.ts has it; words of contract 3. */
export const COMMAND_STATES = ['queued', 'sent', 'acked', 'dead', 'refused', 'expired', 'cancelled'] as const
/** This and every greater status is final. */
const FINAL = COMMAND_STATUS.acked

/** What a status of a start or stop is to its order. */
export const START_EVENTS: readonly (OrderEvent | undefined)[] = [
  undefined,
  'start_sent',
  'start_acked',
  'start_dead',
  'start_refused',
  'start_expired',
  'start_cancelled',
]
const STOP_EVENTS: readonly (OrderEvent | undefined)[] = [
  undefined,
  'stop_sent',
  'stop_acked',
  'stop_dead',
  'stop_refused',
  'stop_dead',
  'stop_dead',
]
/** States that nothing but the device's own word leads to. */
const HAS_STARTED: ReadonlySet<string> = new Set(['charging', 'stopping', 'settled'])
/** Commands whose result is a parameter, read or written. */
const PARAMETER_COMMAND = /^(?:read|write|set|queryParameters)/

export interface StoredCommand {
  readonly command_id: string
  readonly device_id: string
  readonly name: string
  readonly kind: string
  readonly order_no: string | null
  readonly wire_hex: string | null
  status: number
  attempts: number
  message_id: number | null
  epoch: number | null
  sent_at: Date | null
  finished_at: Date | null
  result: Record<string, unknown> | null
  isChanged?: boolean
}

const LOAD_COMMANDS = `
  select command_id, device_id, name, kind, order_no, wire->>'wire_hex' as wire_hex, status, attempts, message_id, epoch,
    sent_at, finished_at, result
  from outbound_queue where command_id = any($1::text[]) order by command_id for update`
const COMMANDS = {
  command_id: 'text',
  status: 'int4',
  attempts: 'int4',
  message_id: 'int8',
  epoch: 'int8',
  sent_at: 'time',
  finished_at: 'time',
  result: 'json',
} as const satisfies Columns
const UPDATE_COMMANDS = `
  update outbound_queue q set status = i.status, attempts = i.attempts, message_id = i.message_id, epoch = i.epoch,
    sent_at = i.sent_at, finished_at = i.finished_at, result = i.result
  from ${source(COMMANDS)} where q.command_id = i.command_id`

export type FateOutcome = 'applied' | 'repeated' | 'fenced'

export class CommandFates {
  readonly events: DerivedEvent[] = []
  readonly #commands = new Map<string, StoredCommand>()
  /** Finals that came after another one. */
  readonly contradictions: CommandFateRow[] = []

  /** @param commands read under lock; they are changed here */
  constructor(commands: readonly StoredCommand[]) {
    for (const command of commands) this.#commands.set(command.command_id, command)
  }

  get changed(): StoredCommand[] {
    return [...this.#commands.values()].filter(({ isChanged }) => isChanged === true)
  }

  /** Status of a command that was read. */
  statusOf(commandId: string): number {
    return this.#commands.get(commandId)?.status ?? COMMAND_STATUS.queued
  }

  /** @returns repeated also for a command that is not stored any more */
  apply(given: CommandFateRow, book: OrderBook): FateOutcome {
    const command = this.#commands.get(given.commandId)
    if (command === undefined) return 'repeated'
    const row = this.#proven(given, command, book)
    if (row.epoch !== 0 && command.epoch !== null && row.epoch < command.epoch) return 'fenced'
    if (command.status >= FINAL) {
      if (row.status >= FINAL && row.status !== command.status) this.contradictions.push(row)
      // a result behind the last timeout: the fate stands, but the order does run (contract 3: reconciled)
      const isLateStart = command.kind === 'start' && row.status === COMMAND_STATUS.acked
      if (isLateStart && command.status === COMMAND_STATUS.dead) {
        // what it says (BKV: the business number) is not the fate's, but the order's all the same
        const said = JSON.parse(row.result) as Record<string, unknown>
        this.#moveOrder({ ...command, result: { ...command.result, ...said } }, row, book)
      }
      return 'repeated'
    }
    const isFinal = row.status >= FINAL
    // written down by two starts of the gateway, the first of which was read too early: the later one's id is sent
    const isOtherId = row.epoch > (command.epoch ?? 0) && row.messageId !== null && row.messageId !== command.message_id
    const isNews = isFinal || isOtherId || command.status < row.status || row.attempts > command.attempts
    if (!isNews) return 'repeated'
    command.isChanged = true
    command.status = Math.max(command.status, row.status)
    command.attempts = Math.max(command.attempts, row.attempts)
    command.message_id = row.messageId ?? command.message_id
    if (row.epoch !== 0) command.epoch = row.epoch
    if (command.attempts > 0) command.sent_at ??= new Date(row.atMs)
    if (isFinal) {
      command.finished_at = new Date(row.atMs)
      const said = JSON.parse(row.result) as Record<string, unknown>
      command.result = { ...command.result, ...said, reason: row.reason }
      // a thousand per device; its job tells how far it is
      if (command.kind !== 'chunk') this.#tellFinished(command, row, said)
    }
    this.#moveOrder(command, row, book)
    return 'applied'
  }

  /**
   * A start that no session heard of again (it was sent by another one, or the end was told before any result) did work
   * where its order runs or has run: what the device said of the order is its result.
   */
  #proven(row: CommandFateRow, command: StoredCommand, book: OrderBook): CommandFateRow {
    if (command.kind !== 'start' || row.status !== COMMAND_STATUS.dead || command.order_no === null) return row
    const order = book.order(command.order_no)
    if (order === undefined || !HAS_STARTED.has(order.state)) return row
    const result = order.businessNo === null ? {} : { business_no: order.businessNo }
    return { ...row, status: COMMAND_STATUS.acked, reason: 'confirmed_by_report', result: JSON.stringify(result) }
  }

  #moveOrder(command: StoredCommand, row: CommandFateRow, book: OrderBook): void {
    const order = command.order_no === null ? undefined : book.order(command.order_no)
    if (order === undefined) return
    const { atMs, epoch, reason, status } = row
    if (command.kind === 'start') {
      const event = START_EVENTS[status]
      const result = command.result ?? {}
      const fate = { atMs, epoch, reason, wireHex: command.wire_hex ?? '', result }
      // the port charges since, under a number that nobody told yet: the reconciler decides, or a report before it
      if ((event === 'start_dead' || event === 'start_refused') && result['port_charging'] === true) return
      if (event !== undefined) book.startMoved(order, event, fate)
    } else if (command.kind === 'stop') {
      // acked or refused: nothing of this order charges there any more, or yet
      const event = status >= FINAL && reason === 'already_in_state' ? 'stop_moot' : STOP_EVENTS[status]
      if (event !== undefined) book.stopMoved(order, event, { atMs, epoch, result: command.result ?? {} })
    }
  }

  #tellFinished(command: StoredCommand, row: CommandFateRow, said: Record<string, unknown>): void {
    const { command_id, name, order_no } = command
    const { deviceId, epoch, atMs, reason } = row
    const tell = (eventType: string, data: Record<string, unknown>) => {
      const eventId = eventIdOf(eventType, deviceId, command_id)
      this.events.push({ eventId, eventType, deviceId, epoch, orderKey: order_no, atMs, data })
    }
    tell('command.finished', {
      command_id,
      name,
      state: COMMAND_STATES[row.status],
      reason,
      attempts: command.attempts,
      order_no,
      result: said,
    })
    if (row.status === COMMAND_STATUS.acked && PARAMETER_COMMAND.test(name))
      tell('device.param_result', { command_id, name, result: said })
  }
}

export async function loadFates(tx: TransactionSql, rows: readonly CommandFateRow[]): Promise<CommandFates> {
  if (rows.length === 0) return new CommandFates([])
  const ids = [...new Set(rows.map(({ commandId }) => commandId))]
  return new CommandFates(await run<StoredCommand>(tx, LOAD_COMMANDS, parameters({ ids: 'text' }, { ids })))
}

export async function writeFates(tx: TransactionSql, fates: CommandFates): Promise<void> {
  const { changed } = fates
  const values = pick(changed, {
    command_id: (c) => c.command_id,
    status: (c) => c.status,
    attempts: (c) => c.attempts,
    message_id: (c) => c.message_id,
    epoch: (c) => c.epoch,
    sent_at: (c) => c.sent_at?.getTime(),
    finished_at: (c) => c.finished_at?.getTime(),
    result: (c) => (c.result === null ? null : JSON.stringify(c.result)),
  })
  await all([
    changed.length > 0 && run(tx, UPDATE_COMMANDS, parameters(COMMANDS, values)),
    ...fates.contradictions.map((row) => keepContradiction(tx, fates, row)),
  ])
}

/** Exactly one fate; what contradicts it is kept once, as text, for it has no bytes of its own. */
async function keepContradiction(tx: TransactionSql, fates: CommandFates, row: CommandFateRow): Promise<void> {
  const { commandId, deviceId, status, reason, result } = row
  const stands = COMMAND_STATES[fates.statusOf(commandId)]
  const note = `command ${commandId} is ${stands}; later ${COMMAND_STATES[status]}, ${reason}`
  const digest = createHash('sha256').update(`${commandId}/${status}/${reason}`).digest('hex')
  await tx`
    insert into quarantine (tenant_id, device_id, reason, bytes, note, digest)
    values (
      coalesce(
        (select tenant_id from outbound_queue where command_id = ${commandId}),
        (select tenant_id from devices where device_id = ${deviceId}), 'default'),
      ${deviceId}, 'command_fate_conflict', ${Buffer.from(result)}, ${note}, ${`fate:${digest}`})
    on conflict (digest) do nothing`
}
