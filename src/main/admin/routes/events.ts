/** The event stream by cursor (contract 4): what webhooks and the WebSocket carry, for whoever would rather ask. */
import * as z from 'zod'
import { HttpError } from '../../../errors/errors.ts'
import { EVENT_TYPES, type EventColumns, eventObjectOf } from '../../../events/event-object.ts'
import type { Sql } from '../../database/connect.ts'
import { refuseDropped } from '../../event-horizon.ts'
import { defineRoute, type Route } from '../route.ts'
import { inOrderOfTime, zDeviceId, zPage, zPageQuery, zTimeInput } from '../shapes.ts'

export const zEvent = z.object({
  cursor: z.string().describe('Place in the stream: what came later is asked for with it, here as in the WebSocket'),
  event_id: z.string().describe('The same fact always has the same'),
  event_type: z.string().describe(`One of ${EVENT_TYPES.join(', ')}`),
  device_phy_id: z.string(),
  timestamp: z.int().describe('Unix s'),
  nonce: z.string(),
  data: z.record(z.string(), z.unknown()),
})

const zCursor = z
  .string()
  .max(1_024)
  .transform((text) => {
    if (!/^\d{1,15}$/.test(text)) throw new HttpError('INVALID_ARGUMENT', 'after: not a cursor of the event stream')
    return Number(text)
  })
const zEventQuery = inOrderOfTime(
  z.strictObject({
    limit: zPageQuery.limit,
    after: zCursor.optional().describe('Cursor of the last event that is known; left out or 0: from the oldest kept'),
    cursor: zCursor.optional().describe('The same as after'),
    from: zTimeInput.optional().describe('Happened at or after; RFC 3339'),
    to: zTimeInput.optional().describe('Happened before; RFC 3339'),
    type: z.enum(EVENT_TYPES).optional(),
    device_id: zDeviceId.optional(),
  }),
)

interface EventRow extends EventColumns {
  cursor: number | bigint
}

export function eventRoutes({ sql }: { readonly sql: Sql }): readonly Route[] {
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/events',
      role: 'viewer',
      summary: 'The event stream, the oldest first',
      description:
        'Cursors grow and become visible in their own order, so that nothing ever appears before a cursor that was ' +
        'seen. To follow the stream, ask again with the cursor of the last item; next_cursor is null at its present end. ' +
        'Events are kept for RETENTION_DAYS_EVENTS: after a cursor behind which some are gone the answer is 412 with ' +
        'details {reason: events_dropped, dropped_cursor}; what is kept begins behind dropped_cursor (or after 0).',
      query: zEventQuery,
      response: zPage(zEvent),
      errors: ['FAILED_PRECONDITION'],
      handle: async ({ key, query }) => {
        const { limit, from, to, type, device_id: deviceId } = query
        const after = query.after ?? query.cursor ?? 0
        const rows = await sql<EventRow[]>`
          select cursor, event_id, event_type, device_id, at, data from events
          where tenant_id = ${key.tenant} and cursor > ${after}
            ${from === undefined ? sql`` : sql`and at >= ${from}`}
            ${to === undefined ? sql`` : sql`and at < ${to}`}
            ${type === undefined ? sql`` : sql`and event_type = ${type}`}
            ${deviceId === undefined ? sql`` : sql`and device_id = ${deviceId}`}
          order by cursor limit ${limit + 1}`
        await refuseDropped(sql, key.tenant, after)
        const items = rows.slice(0, limit).map((row) => ({ cursor: String(row.cursor), ...eventObjectOf(row) }))
        return { items, next_cursor: rows.length > limit ? items.at(-1)!.cursor : null }
      },
    }),
  ]
}
