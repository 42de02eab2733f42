/**
 * No order stays open for ever. Every minute it looks for orders that charge without a sign of life: the device is asked,
 * and when it stays silent for as long again the order is settled with its last known figures, marked estimated; the
 * device's settlement, should it still come, takes its place (workers/writer). A port that says it charges is a sign of
 * life (AP3000 7, 04: some models never say more). Starts that are undecided although their command has a fate, or long after its expiry, are moved by what `outbound_queue` says, or time out.
 *
 * Thread: main. Each order in a transaction of its own that locks its device first, as writers do.
 */

import { START_EVENTS } from '../../workers/writer/command-fates.ts'
import type { OrderBook, OrderCounts, Wants } from '../../workers/writer/order-book.ts'
import type { Log } from './log.ts'

const ROUND_MS = 60_000
/** After what was asked for is used up, a device ends within a minute; its end report may need a reconnect. */
const PRESET_SLACK_MS = 600_000
/** No charge lasts longer: a port that says for ever that it charges keeps no order open for ever. */
export const CHARGE_MS_MAX = 48 * 3_600_000
/** A fate and its order are committed together: what is still apart after this was left so by an older release, or by hand. */
const REPAIR_AFTER_MS = 10_000

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
  /** The last report of its port, where that says that it charges and nothing says that it charges something else. */
  readonly portChargedMs: number | null
  /** Longest time it was asked to charge; null: until full. */
  readonly presetS: number | null
  /** When the silence was noticed. */
  readonly doubtedMs: number | null
}

/** doubt: notice the silence, and ask; ask: once more; settle: by estimate. */
export type Decision = 'wait' | 'doubt' | 'ask' | 'settle'

/** Pure. */
export function decide(order: DoubtedOrder, nowMs: number, reconcileAfterMs: number): Decision {
  const { createdMs, startedMs, lastProgressMs, portChargedMs, presetS, doubtedMs } = order
  const beganMs = startedMs ?? createdMs
  const portMs = portChargedMs === null ? Number.NEGATIVE_INFINITY : Math.min(portChargedMs, beganMs + CHARGE_MS_MAX)
  const heardMs = Math.max(beganMs, lastProgressMs ?? Number.NEGATIVE_INFINITY, portMs)
  const presetMs = presetS === null ? Number.NEGATIVE_INFINITY : beganMs + presetS * 1_000 + PRESET_SLACK_MS
  if (nowMs < Math.max(heardMs + reconcileAfterMs, presetMs)) return 'wait'
  // doubts from before the last sign of life are over
  if (doubtedMs === null || doubtedMs <= heardMs) return 'doubt'
  return nowMs - doubtedMs >= reconcileAfterMs ? 'settle' : 'ask'
}

/** A start that nobody decides. */
export interface UndecidedStart {
  readonly orderNo: string
  readonly deviceId: string
  readonly commandId: string | null
  /** Of the command, like all below; null: there is none. */
  readonly status: number | null
  readonly result: { readonly reason?: string; readonly business_no?: number; readonly port_charging?: boolean } | null
  readonly finishedMs: number | null
  readonly epoch: number | null
  readonly wireHex: string | null
}

/** The tables, as the reconciler needs them; every call throws when the database does not answer. */
export interface ReconcilerStore {
  /** Orders that charge or are being stopped and were not heard of since, longest silence first, a bounded number. */
  silentOrders(sinceMs: number): Promise<readonly DoubtedOrder[]>
  doubt(orderNo: string, atMs: number): Promise<unknown>
  /**
   * Orders whose start is undecided although its command has a fate since `decidedBeforeMs` (since `overdueBeforeMs`, where
   * its port charges: reports come every few minutes, one of them may name it), or has none and expired before
   * `overdueBeforeMs`, or does not exist and the order is older than that. A bounded number, oldest first.
   */
  undecidedStarts(decidedBeforeMs: number, overdueBeforeMs: number): Promise<readonly UndecidedStart[]>
  /**
   * One transaction that locks the device first, as writers do.
   * @param act false: nothing is to be written
   * @returns undefined: nothing was written
   */
  within(
    deviceId: string,
    wants: Wants,
    act: (book: OrderBook) => boolean,
  ): Promise<{ readonly counts: OrderCounts; readonly eventCursor: number | null } | undefined>
}

export interface ReconcilerOptions {
  readonly store: ReconcilerStore
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
    const { store, now, reconcileAfterMs } = this.#options
    const cutoffMs = now() - reconcileAfterMs
    for (const start of await store.undecidedStarts(now() - REPAIR_AFTER_MS, cutoffMs)) {
      const outcome = await this.#repair(start)
      if (outcome !== undefined) round[outcome]++
    }
    for (const order of await store.silentOrders(cutoffMs)) {
      const decision = decide(order, now(), reconcileAfterMs)
      if (decision === 'wait') continue
      if (decision === 'settle') {
        if (await this.#estimate(order)) round.estimated++
        continue
      }
      let asked = order
      if (decision === 'doubt') {
        asked = { ...order, doubtedMs: now() }
        await store.doubt(order.orderNo, asked.doubtedMs!)
        round.doubted++
      }
      if (await this.#ask(asked)) round.asked++
    }
    return round
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

  async #repair(start: UndecidedStart): Promise<'repaired' | 'timedOut' | undefined> {
    const { log, now } = this.#options
    const { orderNo, deviceId, commandId, status, result, finishedMs, epoch, wireHex } = start
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
      if (event !== undefined && finishedMs !== null)
        book.startMoved(order, event, {
          atMs: finishedMs,
          epoch: epoch ?? 0,
          reason: result?.reason ?? '',
          wireHex: wireHex ?? '',
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

  async #within(deviceId: string, wants: Wants, act: (book: OrderBook) => boolean): Promise<boolean> {
    const { store, onMoved } = this.#options
    const written = await store.within(deviceId, wants, act)
    if (written !== undefined) onMoved(written.counts, written.eventCursor)
    return written !== undefined
  }
}
