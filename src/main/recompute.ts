/**
 * Settled orders converted anew from the raw energy count of their settlement, after a model profile turned out to have
 * another factor (BKV document, section 8: the energy unit is unsafe). Idempotent: what is right already is not touched.
 *
 * One transaction for at most {@link ORDERS_PER_TRANSACTION} orders of one device, which locks the device first, as writers
 * do: a running gateway goes on beside it.
 */

import { insertDerivedEvents } from '../../workers/writer/insert.ts'
import { loadOrders, writeOrders } from '../../workers/writer/order-tables.ts'
import { energyWhPerRaw } from '../protocols/index.ts'
import type { Sql, TransactionSql } from './database/connect.ts'

export interface RecomputeOptions {
  readonly sql: Sql
  /** One device, or every device for which people chose this profile. */
  readonly which: { readonly deviceId: string } | { readonly profile: string }
  /** Settlements received from here on and before there, ms since the epoch. */
  readonly fromMs?: number
  readonly toMs?: number
  /** False: everything is computed, and rolled back. */
  readonly isApplied: boolean
  /** For the audit log. */
  readonly actor: string
  readonly now: () => number
}

/** What is, or would be, different about one order. */
export interface RecomputedOrder {
  readonly orderNo: string
  readonly deviceId: string
  readonly profile: string | null
  readonly energyRaw: number
  readonly energyWh: { readonly before: number; readonly after: number }
  readonly amountFen: { readonly before: number | null; readonly after: number | null }
  /** Taken from the card beyond what it had paid; negative: given back. Null: no card of ours paid. */
  readonly cardFen: number | null
}

export interface Recomputation {
  readonly devices: number
  readonly orders: readonly RecomputedOrder[]
  /** Settled by estimate, in the same window: there is no raw count to convert. */
  readonly estimated: number
}

const ORDERS_PER_TRANSACTION = 200
class DryRun extends Error {}

/** @throws when the database does not answer; transactions that were committed until then stay */
export async function recompute(options: RecomputeOptions): Promise<Recomputation> {
  const { sql, which } = options
  const devices = await sql<{ device_id: string }[]>`
    select device_id from devices
    where ${'deviceId' in which ? sql`device_id = ${which.deviceId}` : sql`model_profile = ${which.profile}`}
    order by device_id`
  const orders: RecomputedOrder[] = []
  let estimated = 0
  for (const { device_id: deviceId } of devices) {
    estimated += await countEstimated(options, deviceId)
    for (let after: string | undefined = ''; after !== undefined; ) {
      const done: Batch = await recomputeBatch(options, deviceId, after)
      orders.push(...done.orders)
      after = done.last
    }
  }
  return { devices: devices.length, orders, estimated }
}

function windowOf({ sql, fromMs, toMs }: RecomputeOptions, column: 's.received_at' | 'settled_at') {
  const at = sql(column)
  return sql`${fromMs === undefined ? sql`` : sql`and ${at} >= ${new Date(fromMs)}`}
    ${toMs === undefined ? sql`` : sql`and ${at} < ${new Date(toMs)}`}`
}

async function countEstimated(options: RecomputeOptions, deviceId: string): Promise<number> {
  const rows = await options.sql`
    select from orders where device_id = ${deviceId} and state = 'settled' and estimated
      ${windowOf(options, 'settled_at')}`
  return rows.count
}

interface Batch {
  readonly orders: readonly RecomputedOrder[]
  /** Undefined: there are no more. */
  readonly last: string | undefined
}

async function recomputeBatch(options: RecomputeOptions, deviceId: string, after: string): Promise<Batch> {
  let batch: Batch = { orders: [], last: undefined }
  try {
    await options.sql.begin(async (tx) => {
      batch = await withinTransaction(tx, options, deviceId, after)
      if (!options.isApplied) throw new DryRun()
    })
  } catch (error) {
    if (!(error instanceof DryRun)) throw error
  }
  return batch
}

async function withinTransaction(
  tx: TransactionSql,
  options: RecomputeOptions,
  deviceId: string,
  after: string,
): Promise<Batch> {
  const none: Batch = { orders: [], last: undefined }
  const [device] = await tx<{ tenant_id: string; protocol: string | null; model_profile: string | null }[]>`
    select tenant_id, protocol, model_profile from devices where device_id = ${deviceId} for no key update`
  if (device === undefined || device.protocol === null) return none
  const { tenant_id: tenantId, model_profile: profile } = device
  // the device may have got another profile since it was listed
  if ('profile' in options.which && profile !== options.which.profile) return none
  const factor = energyWhPerRaw(device.protocol, profile)
  if (factor === undefined) return none
  const found = await tx<{ order_no: string; energy_raw: number }[]>`
    select o.order_no, s.energy_raw
    from settlements s join orders o using (device_id, socket, port, order_key)
    where s.device_id = ${deviceId} and o.state = 'settled' and not o.estimated and o.order_no > ${after}
      and o.energy_wh is distinct from s.energy_raw::float8 * ${factor}::float8
      ${windowOf(options, 's.received_at')}
    order by o.order_no limit ${ORDERS_PER_TRANSACTION}`
  if (found.length === 0) return none

  const book = await loadOrders(tx, new Map([[deviceId, tenantId]]), {
    orderNos: found.map(({ order_no }) => order_no),
  })
  const why = { reason: 'energy_factor', model_profile: profile, energy_wh_per_raw: factor }
  const changes = found.flatMap(({ order_no: orderNo, energy_raw: energyRaw }) => {
    const order = book.order(orderNo)
    if (order === undefined) return []
    const { energyWh, amountFen, cardFen } = order
    if (!book.recompute(order, energyRaw * factor, options.now(), why)) return []
    return [{ order, energyRaw, energyWh: energyWh ?? 0, amountFen, cardFen }]
  })
  await writeOrders(tx, book)
  const orders = changes.map(
    ({ order, energyRaw, energyWh, amountFen, cardFen }): RecomputedOrder => ({
      orderNo: order.orderNo,
      deviceId,
      profile,
      energyRaw,
      energyWh: { before: energyWh, after: order.energyWh ?? 0 },
      amountFen: { before: amountFen, after: order.amountFen },
      cardFen: cardFen === null ? null : (order.cardFen ?? 0) - cardFen,
    }),
  )
  if (options.isApplied && orders.length > 0) {
    const details = { profile, energy_wh_per_raw: factor, orders: orders.length, ...sumsOf(orders) }
    await tx`
      insert into audit_logs (tenant_id, actor, role, action, target, details)
      values (${tenantId}, ${options.actor}, 'admin', 'orders.recomputed', ${deviceId}, ${tx.json(details)})`
    // last in the transaction (migrations/0003_history.sql)
    await insertDerivedEvents(tx, book.events)
  }
  return { orders, last: found.length < ORDERS_PER_TRANSACTION ? undefined : found.at(-1)!.order_no }
}

/** Differences, after minus before. */
export function sumsOf(orders: readonly RecomputedOrder[]) {
  let energyWh = 0
  let amountFen = 0
  let cardFen = 0
  for (const order of orders) {
    energyWh += order.energyWh.after - order.energyWh.before
    amountFen += (order.amountFen.after ?? 0) - (order.amountFen.before ?? 0)
    cardFen += order.cardFen ?? 0
  }
  return { energy_wh: energyWh, amount_fen: amountFen, card_fen: cardFen }
}
