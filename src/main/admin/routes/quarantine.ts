/** What was put aside, and why: bytes of strangers, rows the database would not take, contradicting settlements. */
import * as z from 'zod'
import type { Sql } from '../../database/connect.ts'
import { defineRoute, type Route } from '../route.ts'
import { decodeCursor, encodeCursor, pageOf, timeOf, zPage, zPageQuery, zTime } from '../shapes.ts'

export const zQuarantineItem = z.object({
  id: z.int(),
  at: zTime,
  reason: z.string(),
  device_id: z.string().nullable(),
  remote_address: z.string().nullable(),
  bytes_hex: z.string(),
  note: z.string().nullable(),
})

interface QuarantineRow extends Omit<z.input<typeof zQuarantineItem>, 'at' | 'bytes_hex'> {
  at: Date
  bytes: Buffer
}

export function quarantineRoutes({ sql }: { readonly sql: Sql }): readonly Route[] {
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/quarantine',
      role: 'admin',
      summary: 'What was put aside, the newest first',
      query: z.strictObject(zPageQuery),
      response: zPage(zQuarantineItem),
      handle: async ({ key, query }) => {
        const { limit, cursor } = query
        const [before] = decodeCursor('quarantine', ['number'], cursor)
        const rows = await sql<QuarantineRow[]>`
          select id, at, reason, device_id, remote_address, bytes, note from quarantine
          where tenant_id = ${key.tenant} ${before === undefined ? sql`` : sql`and id < ${Number(before)}`}
          order by id desc limit ${limit + 1}`
        return pageOf(
          rows,
          limit,
          ({ bytes, at, ...row }) => ({ ...row, at: timeOf(at), bytes_hex: bytes.toString('hex') }),
          ({ id }) => encodeCursor('quarantine', [String(id)]),
        )
      },
    }),
  ]
}
