/** Orders as they stand, the newest first. */
import * as z from 'zod'
import { END_REASONS, ORDER_ORIGINS } from '../../../codec/facts.ts'
import { HttpError } from '../../../errors/errors.ts'
import { CHARGE_MODES } from '../../../orders/charge-plan.ts'
import { ORDER_STATES } from '../../../orders/state.ts'
import type { Sql } from '../../database/connect.ts'
import { defineRoute, type Route } from '../route.ts'
import {
  decodeCursor,
  encodeCursor,
  inOrderOfTime,
  pageOf,
  timeOrNull,
  zDeviceId,
  zPage,
  zPageQuery,
  zTime,
  zTimeInput,
} from '../shapes.ts'

export const zOrder = z.object({
  order_no: z.string(),
  device_id: z.string(),
  socket: z.int(),
  port: z.int(),
  mode: z
    .string()
    .nullable()
    .describe(`What was asked for (${CHARGE_MODES.join(', ')}); null: the device did not say`),
  state: z.enum(ORDER_STATES),
  origin: z.enum(ORDER_ORIGINS),
  started_at: zTime.nullable(),
  ended_at: zTime.nullable(),
  duration_s: z.int().nullable(),
  energy_wh: z.number().nullable(),
  max_power_w: z.number().nullable(),
  amount_fen: z.int().nullable(),
  end_reason: z
    .string()
    .nullable()
    .describe(`One of ${END_REASONS.join(', ')}`),
  end_reason_raw: z.int().nullable().describe("The device's own code"),
  business_no: z.int().nullable(),
  estimated: z.boolean().describe("Settled without the device's own word"),
  settled_at: zTime.nullable(),
  version: z.int().describe('Grows with every change'),
})
type Order = z.input<typeof zOrder>

const zOrderQuery = inOrderOfTime(
  z.strictObject({
    ...zPageQuery,
    device_id: zDeviceId.optional(),
    state: z.enum(ORDER_STATES).optional(),
    from: zTimeInput.optional().describe('Started at or after; RFC 3339'),
    to: zTimeInput.optional().describe('Started before; RFC 3339'),
  }),
)
const zOrderParams = z.strictObject({ order_no: z.string().min(1).max(200) })

interface OrderRow extends Omit<Order, 'started_at' | 'ended_at' | 'settled_at' | 'amount_fen'> {
  started_at: Date | null
  ended_at: Date | null
  settled_at: Date | null
  amount_fen: number | bigint | null
  /** The time the list is sorted by, in full precision. */
  sort_key: string
}

export function orderRoutes({ sql }: { readonly sql: Sql }): readonly Route[] {
  const columns = sql`order_no, device_id, socket, port, mode, state, origin, started_at, ended_at, duration_s, energy_wh,
    max_power_w, amount_fen, end_reason, end_reason_raw, business_no, estimated, settled_at, version`
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/orders',
      role: 'viewer',
      summary: 'Orders, the newest first',
      description: 'Sorted by when the order came to be known; with from or to by when it started.',
      query: zOrderQuery,
      response: zPage(zOrder),
      handle: async ({ key, query }) => {
        const { limit, device_id: deviceId, state, from, to } = query
        // a cursor belongs to one of two orders of sorting, each with its index
        const sort = from === undefined && to === undefined ? 'created_at' : 'started_at'
        const by = sql(sort)
        const [time, orderNo] = decodeCursor(`orders ${sort}`, ['time', 'text'], query.cursor)
        const rows = await sql<OrderRow[]>`
          select ${columns}, to_json(${by}) #>> '{}' as sort_key from orders
          where tenant_id = ${key.tenant}
            ${deviceId === undefined ? sql`` : sql`and device_id = ${deviceId}`}
            ${state === undefined ? sql`` : sql`and state = ${state}`}
            ${from === undefined ? sql`` : sql`and started_at >= ${from}`}
            ${to === undefined ? sql`` : sql`and started_at < ${to}`}
            ${time === undefined ? sql`` : sql`and (${by}, order_no) < (${time}::text::timestamptz, ${orderNo!})`}
          order by ${by} desc, order_no desc limit ${limit + 1}`
        return pageOf(rows, limit, orderOf, (last) => encodeCursor(`orders ${sort}`, [last.sort_key, last.order_no]))
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/orders/{order_no}',
      role: 'viewer',
      summary: 'One order',
      params: zOrderParams,
      response: zOrder,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params }) => {
        const [row] = await sql<OrderRow[]>`
          select ${columns}, '' as sort_key from orders
          where order_no = ${params.order_no} and tenant_id = ${key.tenant}`
        if (row === undefined) throw new HttpError('NOT_FOUND', `no order ${params.order_no}`)
        return orderOf(row)
      },
    }),
  ]
}

function orderOf({ sort_key: _, ...row }: OrderRow): Order {
  return {
    ...row,
    amount_fen: row.amount_fen === null ? null : Number(row.amount_fen),
    started_at: timeOrNull(row.started_at),
    ended_at: timeOrNull(row.ended_at),
    settled_at: timeOrNull(row.settled_at),
  }
}
