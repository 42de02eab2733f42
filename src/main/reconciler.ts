/**
 * No order stays open for ever. Every minute it looks for orders that charge without a sign of life: the device is asked,
 * and when it stays silent for as long again the order is settled with its last known figures, marked estimated; the
 * device's settlement, should it still come, takes its place (workers/writer). Starts that are undecided although their
 * command has a fate, or long after its expiry, are moved by what `outbound_queue` says, or time out.
 *
 * Thread: main. Each order in a transaction of its own that locks its device first, as writers do.
 */

import { START_EVENTS } from '../../workers/writer/command-fates.ts'
import { insertDerivedEvents } from '../../workers/writer/insert.ts'
import { noOrderCounts, OrderBook, type OrderCounts, type Wants } from '../../workers/writer/order-book.ts'
import type { Sql } from './database/connect.ts'
import type { Log } from './log.ts'

const ROUND_MS = 60_000
/** After what was asked for is used up, a device ends within a minute; its end report may need a reconnect. */
const PRESET_SLACK_MS = 600_000
/** A fate and its order are committed together: what is still apart after this was left so by an older release, or by hand. */
const REPAIR_AFTER_MS = 10_000
const ORDERS_PER_ROUND = 500

/** An order that charges, as far as anybody knows. */
export interface DoubtedOrder {
  readonly orderNo: string
  readonly deviceId: string
  readonly socket: number
  readonly port: number
  readonly wireHex: string | null
  readonly createdMs: number
  readonly startedMs: number | null
  readonly lastProgressMs: number | null
  /** Longest time it was asked to charge; null: until full. */
  readonly presetS: number | null
  /** When the silence was noticed. */
  readonly doubtedMs: number | null
}

/** doubt: notice the silence, and ask; ask: once more; settle: by estimate. */
export type Decision = 'wait' | 'doubt' | 'ask' | 'settle'

/** Pure. */
export function decide(order: DoubtedOrder, nowMs: number, reconcileAfterMs: number): Decision {
  const { createdMs, startedMs, lastProgressMs, presetS, doubtedMs } = order
  const beganMs = startedMs ?? createdMs
  const heardMs = Math.max(beganMs, lastProgressMs ?? Number.NEGATIVE_INFINITY)
  const presetMs = presetS === null ? Number.NEGATIVE_INFINITY : beganMs + presetS * 1_000 + PRESET_SLACK_MS
  if (nowMs < Math.max(heardMs + reconcileAfterMs, presetMs)) return 'wait'
  // doubts from before the last sign of life are over
  if (doubtedMs === null || doubtedMs < heardMs) return 'doubt'
  return nowMs - doubtedMs >= reconcileAfterMs ? 'settle' : 'ask'
}

export interface ReconcilerOptions {
  readonly sql: Sql
  readonly log: Log
  readonly reconcileAfterMs: number
  readonly now: () => number
  readonly isOnline: (deviceId: string) => boolean
  /**
   * Queues a status query for the port of the order. At most once per order and round, while its device is online; what
   * it rejects with is logged, and the silence goes on.
   */
  readonly ask: (order: DoubtedOrder) => Promise<unknown>
  /** After each transaction: for orders_total, and to wake whoever publishes events. */
  readonly onMoved: (counts: OrderCounts, eventCursor: number | null) => void
}

export interface Round {
  readonly doubted: number
  readonly asked: number
  readonly estimated: number
  /** Starts moved by the fate of their command. */
  readonly repaired: number
  readonly timedOut: number
}

interface StartRow {
  readonly order_no: string
  readonly device_id: string
  readonly command_id: string | null
  readonly status: number | null
  readonly result: { reason?: string; business_no?: number } | null
  readonly finished_at: Date | null
  readonly epoch: number | null
  readonly wire_hex: string | null
}

export class Reconciler {
  readonly #options: ReconcilerOptions
  #timer: NodeJS.Timeout | undefined
  #round: Promise<Round> | undefined

  constructor(options: ReconcilerOptions) {
    this.#options = options
  }

  start(): void {
    this.#timer = setInterval(() => void this.#tick(), ROUND_MS)
  }

  /** Resolves when a round that runs has ended. */
  async stop(): Promise<void> {
    clearInterval(this.#timer)
    await this.#round?.catch(() => {})
  }

  async #tick(): Promise<void> {
    if (this.#round !== undefined) return
    try {
      await this.round()
    } catch (error) {
      this.#options.log.warn({ event: 'orders.unreconciled', err: error, msg: 'next try in a minute' })
    }
  }

  /** @throws when the database does not answer; what was done until then stays done */
  async round(): Promise<Round> {
    this.#round = this.#work()
    try {
      return await this.#round
    } finally {
      this.#round = undefined
    }
  }

  async #work(): Promise<Round> {
    const round = { doubted: 0, asked: 0, estimated: 0, repaired: 0, timedOut: 0 }
    const { sql, now, reconcileAfterMs } = this.#options
    for (const row of await this.#undecidedStarts()) {
      const outcome = await this.#repair(row)
      if (outcome !== undefined) round[outcome]++
    }
    for (const order of await this.#silentOrders()) {
      const decision = decide(order, now(), reconcileAfterMs)
      if (decision === 'wait') continue
      if (decision === 'settle') {
        if (await this.#estimate(order)) round.estimated++
        continue
      }
      if (decision === 'doubt') {
        await sql`update orders set doubted_at = ${new Date(now())} where order_no = ${order.orderNo}`
        round.doubted++
      }
      if (await this.#ask(order)) round.asked++
    }
    return round
  }

  async #silentOrders(): Promise<DoubtedOrder[]> {
    const { sql, now, reconcileAfterMs } = this.#options
    const rows = await sql<
      {
        order_no: string
        device_id: string
        socket: number
        port: number
        wire_hex: string | null
        created_at: Date
        started_at: Date | null
        last_progress_at: Date | null
        doubted_at: Date | null
        request: { duration_s?: number; max_duration_s?: number } | null
      }[]
    >`
      select order_no, device_id, socket, port, wire_hex, created_at, started_at, last_progress_at, doubted_at, request
      from orders
      where state in ('charging', 'stopping')
        and coalesce(greatest(last_progress_at, started_at), created_at) < ${new Date(now() - reconcileAfterMs)}
      order by coalesce(greatest(last_progress_at, started_at), created_at), order_no limit ${ORDERS_PER_ROUND}`
    return rows.map((row) => ({
      orderNo: row.order_no,
      deviceId: row.device_id,
      socket: row.socket,
      port: row.port,
      wireHex: row.wire_hex,
      createdMs: row.created_at.getTime(),
      startedMs: row.started_at?.getTime() ?? null,
      lastProgressMs: row.last_progress_at?.getTime() ?? null,
      presetS: row.request?.duration_s ?? row.request?.max_duration_s ?? null,
      doubtedMs: row.doubted_at?.getTime() ?? null,
    }))
  }

  async #ask(order: DoubtedOrder): Promise<boolean> {
    const { isOnline, ask, log } = this.#options
    if (!isOnline(order.deviceId)) return false
    try {
      await ask(order)
      return true
    } catch (error) {
      const { deviceId, orderNo } = order
      log.warn({ event: 'orders.unreconciled', err: error, deviceId, orderNo, msg: 'the device could not be asked' })
      return false
    }
  }

  async #estimate(seen: DoubtedOrder): Promise<boolean> {
    const { log, now } = this.#options
    const { orderNo, deviceId } = seen
    const isDone = await this.#within(deviceId, { orderNos: [orderNo] }, (book) => {
      const order = book.order(orderNo)
      // something came while we looked
      if (order === undefined || order.lastProgressMs !== seen.lastProgressMs) return false
      return (order.state === 'charging' || order.state === 'stopping') && book.estimate(order, now())
    })
    if (isDone)
      log.warn({ event: 'order.estimated', deviceId, orderNo, msg: 'silent for too long: settled by estimate' })
    return isDone
  }

  /** Starts whose command has a fate, has none long after its expiry, or does not exist. */
  async #undecidedStarts(): Promise<StartRow[]> {
    const { sql, now, reconcileAfterMs } = this.#options
    const cutoff = new Date(now() - reconcileAfterMs)
    return await sql<StartRow[]>`
      select o.order_no, o.device_id, q.command_id, q.status, q.result, q.finished_at, q.epoch,
        q.wire->>'wire_hex' as wire_hex
      from orders o left join outbound_queue q on q.command_id = o.command_id
      where o.state in ('pending', 'starting')
        and (q.finished_at < ${new Date(now() - REPAIR_AFTER_MS)}
          or (q.status < 2 and q.expires_at < ${cutoff})
          or (q.command_id is null and o.created_at < ${cutoff}))
      order by o.created_at, o.order_no limit ${ORDERS_PER_ROUND}`
  }

  async #repair(row: StartRow): Promise<'repaired' | 'timedOut' | undefined> {
    const { log, now } = this.#options
    const { order_no: orderNo, device_id: deviceId, command_id: commandId, status, result } = row
    const businessNo = result?.business_no
    const wants: Wants = {
      orderNos: [orderNo],
      ...(commandId !== null &&
        typeof businessNo === 'number' && {
          commandWires: [{ commandId, wireHex: businessNo.toString(16).padStart(4, '0') }],
        }),
    }
    let outcome: 'repaired' | 'timedOut' | undefined
    await this.#within(deviceId, wants, (book) => {
      const order = book.order(orderNo)
      if (order === undefined || (order.state !== 'pending' && order.state !== 'starting')) return false
      const before = order.state
      const event = status === null ? undefined : START_EVENTS[status]
      if (event !== undefined && row.finished_at !== null)
        book.startMoved(order, event, {
          atMs: row.finished_at.getTime(),
          epoch: row.epoch ?? 0,
          reason: result?.reason ?? '',
          wireHex: row.wire_hex ?? '',
          result: result ?? {},
        })
      if (order.state !== before) outcome = 'repaired'
      else if (book.timeOut(order, now())) outcome = 'timedOut'
      return outcome !== undefined
    })
    if (outcome !== undefined)
      log.warn({ event: 'order.repaired', deviceId, orderNo, outcome, msg: 'start decided late' })
    return outcome
  }

  /** @param act false: nothing is to be written */
  async #within(deviceId: string, wants: Wants, act: (book: OrderBook) => boolean): Promise<boolean> {
    const { sql, onMoved } = this.#options
    let counts = noOrderCounts()
    let cursor: number | null = null
    const isDone = await sql.begin(async (tx) => {
      const [device] = await tx<{ tenant_id: string }[]>`
        select tenant_id from devices where device_id = ${deviceId} for no key update`
      const book = await OrderBook.load(tx, new Map([[deviceId, device?.tenant_id ?? 'default']]), wants)
      if (!act(book)) return false
      await book.write()
      cursor = await insertDerivedEvents(tx, book.events)
      counts = book.counts
      return true
    })
    if (isDone) onMoved(counts, cursor)
    return isDone
  }
}
