/**
 * Limits that a device cannot keep itself (budget and power on AP3000, some tariffs on BKV): every few seconds the
 * running orders with such limits are held against their last report, and the ones that reached a limit are stopped. So are
 * the charges that devices began by themselves for a card, once together they cost more than the card has left.
 * It asks the database, so that it goes on after a restart. Reports come every 5 minutes: a charge may run over by that
 * much energy, the amount is capped by what was prepaid. Thread: main.
 */
import type { ApiKey } from '../config/api-keys.ts'
import { limitReached } from '../orders/charge-plan.ts'
import {
  type ChargingOrder,
  spentFen,
  tariffOf,
  type UnpromisedOrder,
  unpromisedOrders,
  usageOf,
} from './commands/card-money.ts'
import type { CommandService } from './commands/service.ts'
import type { Sql } from './database/connect.ts'
import type { Log } from './log.ts'

export interface LimitsOptions {
  readonly sql: Sql
  readonly log: Log
  readonly commands: CommandService
  readonly everyMs: number
}

interface LimitedOrder extends ChargingOrder {
  readonly request: {
    readonly gateway_limits: { readonly duration_s: number | null; readonly amount_fen: number | null }
  }
}

export class Limits {
  readonly #options: LimitsOptions
  #timer: NodeJS.Timeout | undefined
  #isLooking = false

  constructor(options: LimitsOptions) {
    this.#options = options
  }

  start(): void {
    this.#timer = setInterval(() => void this.look(), this.#options.everyMs)
  }

  stop(): void {
    clearInterval(this.#timer)
  }

  /** @returns order numbers for which a stop was stored */
  async look(): Promise<string[]> {
    if (this.#isLooking) return []
    this.#isLooking = true
    const { sql, log } = this.#options
    const stopped: string[] = []
    try {
      const orders = await sql<LimitedOrder[]>`
        select o.order_no, o.tenant_id, d.tenant_id as device_tenant, o.device_id, o.socket, o.port, o.request, o.tariff, o.started_at, o.duration_s,
          o.energy_wh, o.max_power_w
        from orders o join devices d using (device_id)
        where o.state = 'charging' and o.started_at is not null and jsonb_typeof(o.request->'gateway_limits') = 'object'`
      const reached = [
        ...orders.flatMap((order) => {
          const limit = reachedBy(order)
          return limit === null ? [] : [{ order, limit }]
        }),
        ...overdrawing(await unpromisedOrders(sql)).map((order) => ({ order, limit: 'card' })),
      ]
      for (const { order, limit } of reached) {
        try {
          await this.#stop(order, limit)
          stopped.push(order.order_no)
        } catch (error) {
          // one that cannot be stopped must not keep the others running
          log.warn({
            event: 'limit.unstopped',
            orderNo: order.order_no,
            err: error,
            msg: 'a reached limit could not stop its order',
          })
        }
      }
    } catch (error) {
      log.warn({ event: 'limit.unchecked', err: error, msg: 'limits of running orders could not be looked at' })
    } finally {
      this.#isLooking = false
    }
    return stopped
  }

  async #stop(order: ChargingOrder, limit: string): Promise<void> {
    const { log, commands } = this.#options
    const key: ApiKey = { id: 'limits', secret: '', role: 'operator', tenant: order.tenant_id, isHmacOnly: true }
    // one stop per order and report: a refused or lost one is tried again when the next report still says so
    const idempotencyKey = `limit-${order.order_no}-${order.duration_s ?? 0}`
    await commands.stop(
      { key, requestId: idempotencyKey, remoteAddress: 'gateway', idempotencyKey },
      order.device_id,
      { port: order.port, socket: order.socket, order_no: order.order_no },
      order.device_tenant,
    )
    log.info({ event: 'limit.reached', orderNo: order.order_no, limit, msg: 'a limit is reached, stopping' })
  }
}

function reachedBy(order: LimitedOrder): string | null {
  const { duration_s: durationS, amount_fen: amountFen } = order.request.gateway_limits
  const limits = { ...(durationS !== null && { durationS }), ...(amountFen !== null && { amountFen }) }
  return limitReached(limits, usageOf(order), tariffOf(order))
}

/** All orders of the cards whose orders together cost more than there is. */
function overdrawing(orders: readonly UnpromisedOrder[]): UnpromisedOrder[] {
  const nameOf = ({ tenant_id: tenant, card_id: cardId }: UnpromisedOrder) => `${tenant} ${cardId}`
  const spent = new Map<string, number>()
  for (const order of orders) spent.set(nameOf(order), (spent.get(nameOf(order)) ?? 0) + spentFen(order))
  return orders.filter((order) => spent.get(nameOf(order))! > Number(order.left_fen))
}
