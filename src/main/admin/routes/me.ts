/** Who asks, and what a person in front of the console should know about this gateway before asking for more. */
import * as z from 'zod'
import { ROLES } from '../../../config/api-keys.ts'
import type { Config } from '../../../config/config.ts'
import { type EventColumns, eventObjectOf } from '../../../events/event-object.ts'
import type { Sql } from '../../database/connect.ts'
import { defineRoute, type Route } from '../route.ts'

const RECORD = ['all', 'errors', 'off'] as const
const ALLOWLIST = ['on', 'off'] as const

export const zMe = z.object({
  key_id: z.string(),
  role: z.enum(ROLES).describe('Each role may do everything the ones before it may'),
  tenant: z.string(),
  gateway: z
    .object({
      version: z.string(),
      record: z.enum(RECORD).describe('Which frames are kept as bytes (RECORD)'),
      allowlist: z.enum(ALLOWLIST).describe('on: who is not in the allowlist gets no session (ALLOWLIST)'),
    })
    .describe('Settings of the gateway that decide what its lists can show'),
})

const zFact = z.object({
  event_id: z.string(),
  event_type: z.string(),
  device_phy_id: z.string(),
  timestamp: z.int().describe('Unix s'),
  nonce: z.string(),
  data: z.record(z.string(), z.unknown()),
})

export const zOverview = z.object({
  devices: z.int().describe('Known to the tenant'),
  orders: z
    .object({ starting: z.int(), charging: z.int(), stopping: z.int() })
    .describe('Orders that run now, by state'),
  alarms_24h: z.int().describe(`At most 10000`),
  recent_alarms: z.array(zFact).describe('Of these 24 h, the newest first, at most 20'),
  recent_events: z.array(zFact).describe('The newest first, at most 50'),
})

export interface MeParts {
  readonly sql: Sql
  readonly gateway: Pick<Config, 'record' | 'allowlist'>
  readonly version: string
}

const ALARMS_COUNTED_MAX = 10_000

export function meRoutes({ sql, gateway: { record, allowlist }, version }: MeParts): readonly Route[] {
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/me',
      role: 'viewer',
      summary: 'The key that asks: its role and tenant',
      response: zMe,
      needsDatabase: false,
      handle: ({ key }) => ({
        key_id: key.id,
        role: key.role,
        tenant: key.tenant,
        gateway: { version, record, allowlist },
      }),
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/overview',
      role: 'viewer',
      summary: 'Figures of the tenant, and what happened last',
      description: 'Few counts by index; how many are online stands in the metrics and in the topic metrics of /ws.',
      response: zOverview,
      handle: async ({ key: { tenant } }) => {
        const [[counts], alarms, events] = await Promise.all([
          sql<{ devices: number; starting: number; charging: number; stopping: number; alarms_24h: number }[]>`
            select
              (select count(*)::int from devices where tenant_id = ${tenant}) as devices,
              (select count(*)::int from orders where tenant_id = ${tenant} and state = 'starting') as starting,
              (select count(*)::int from orders where tenant_id = ${tenant} and state = 'charging') as charging,
              (select count(*)::int from orders where tenant_id = ${tenant} and state = 'stopping') as stopping,
              (select count(*)::int from (
                select 1 from events
                where tenant_id = ${tenant} and event_type = 'device.alarm' and at > now() - interval '24 h'
                limit ${ALARMS_COUNTED_MAX}) as alarms) as alarms_24h`,
          sql<EventColumns[]>`
            select event_id, event_type, device_id, at, data from events
            where tenant_id = ${tenant} and event_type = 'device.alarm' and at > now() - interval '24 h'
            order by cursor desc limit 20`,
          sql<EventColumns[]>`
            select event_id, event_type, device_id, at, data from events
            where tenant_id = ${tenant} order by cursor desc limit 50`,
        ])
        const { devices, alarms_24h, ...orders } = counts!
        return {
          devices,
          orders,
          alarms_24h,
          recent_alarms: alarms.map((row) => ({ ...eventObjectOf(row) })),
          recent_events: events.map((row) => ({ ...eventObjectOf(row) })),
        }
      },
    }),
  ]
}
