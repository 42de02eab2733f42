/** Who did what. */
import * as z from 'zod'
import type { Sql } from '../../database/connect.ts'
import { defineRoute, type Route } from '../route.ts'
import { decodeCursor, encodeCursor, pageOf, zPage, zPageQuery, zTime } from '../shapes.ts'

const zDeed = z.object({
  at: zTime,
  actor: z.string().describe('Id of the API key, or the part of the gateway that acted'),
  role: z.string(),
  action: z.string(),
  target: z.string().nullable(),
  request_id: z.string().nullable(),
  remote_address: z.string().nullable(),
  details: z.record(z.string(), z.unknown()),
})

interface DeedRow {
  readonly id: number
  readonly at: Date
  readonly actor: string
  readonly role: string
  readonly action: string
  readonly target: string | null
  readonly request_id: string | null
  readonly remote_address: string | null
  readonly details: Record<string, unknown>
}

export function auditRoutes({ sql }: { readonly sql: Sql }): Route[] {
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/audit',
      role: 'admin',
      summary: 'Who did what, the newest first',
      query: z.strictObject({
        ...zPageQuery,
        target: z.string().min(1).max(200).optional().describe('A device, card, order …'),
      }),
      response: zPage(zDeed),
      async handle({ query, key }) {
        const [before] = decodeCursor('audit', ['number'], query.cursor)
        const rows = await sql<DeedRow[]>`
          select id, at, actor, role, action, target, request_id, remote_address, details from audit_logs
          where tenant_id = ${key.tenant} ${before === undefined ? sql`` : sql`and id < ${Number(before)}`}
            ${query.target === undefined ? sql`` : sql`and target = ${query.target}`}
          order by id desc limit ${query.limit + 1}`
        return pageOf(
          rows,
          query.limit,
          ({ id: _, at, ...deed }) => ({ at: at.toISOString(), ...deed }),
          ({ id }) => encodeCursor('audit', [String(id)]),
        )
      },
    }),
  ]
}
