/** Who may connect, where ALLOWLIST is on (src/session/allowlist.ts). */
import * as z from 'zod'
import { HttpError } from '../../../errors/errors.ts'
import { ALLOWLIST_KINDS, parseNetwork } from '../../../session/allowlist.ts'
import type { Sql } from '../../database/connect.ts'
import { writeAudit } from '../audit.ts'
import { defineRoute, type Route } from '../route.ts'
import { decodeCursor, encodeCursor, pageOf, timeOf, zPage, zPageQuery, zTime } from '../shapes.ts'

/** Over all tenants: every session thread holds them. */
const ENTRIES_MAX = 100_000

export const zAllowlistEntry = z.object({
  kind: z.enum(ALLOWLIST_KINDS),
  pattern: z.string(),
  note: z.string().nullable(),
  created_by: z.string().nullable(),
  created_at: zTime,
})
type Entry = z.input<typeof zAllowlistEntry>

const zEntryParams = z.strictObject({
  kind: z.enum(ALLOWLIST_KINDS),
  pattern: z.string().min(1).max(64).describe('A device id, or an address or CIDR range (its slash as %2F)'),
})

interface EntryRow extends Omit<Entry, 'created_at'> {
  created_at: Date
}

export interface AllowlistRoutesOptions {
  readonly sql: Sql
  readonly isDeviceId: (text: string) => boolean
  /** The table has changed and is committed. */
  readonly changed: () => Promise<void>
}

export function allowlistRoutes({ sql, isDeviceId, changed }: AllowlistRoutesOptions): readonly Route[] {
  const columns = sql`kind, pattern, note, created_by, created_at`
  const check = ({ kind, pattern }: z.output<typeof zEntryParams>): void => {
    if (kind === 'device' ? isDeviceId(pattern) : parseNetwork(pattern) !== undefined) return
    throw new HttpError(
      'INVALID_ARGUMENT',
      kind === 'device' ? 'path.pattern: not a device id' : 'path.pattern: not an address or CIDR range',
    )
  }
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/allowlist',
      role: 'admin',
      summary: 'Who may connect',
      description:
        'Kept by everybody, enforced where ALLOWLIST is on: then an entry of any kind admits, nothing else does.',
      query: z.strictObject({ ...zPageQuery, kind: z.enum(ALLOWLIST_KINDS).optional() }),
      response: zPage(zAllowlistEntry),
      handle: async ({ key, query }) => {
        const { limit, cursor, kind } = query
        const [afterKind = '', afterPattern = ''] = decodeCursor('allowlist', ['text', 'text'], cursor)
        const rows = await sql<EntryRow[]>`
          select ${columns} from allowlist
          where tenant_id = ${key.tenant} and (kind, pattern) > (${afterKind!}, ${afterPattern!})
            ${kind === undefined ? sql`` : sql`and kind = ${kind}`}
          order by kind, pattern limit ${limit + 1}`
        return pageOf(rows, limit, entryOf, (last) => encodeCursor('allowlist', [last.kind, last.pattern]))
      },
    }),
    defineRoute({
      method: 'PUT',
      path: '/api/v1/allowlist/{kind}/{pattern}',
      role: 'admin',
      summary: 'Let a device or a network in',
      params: zEntryParams,
      body: z.strictObject({ note: z.string().min(1).max(200).nullable().optional() }),
      bodyIsOptional: true,
      response: zAllowlistEntry,
      statuses: [201],
      errors: ['FAILED_PRECONDITION'],
      handle: async ({ key, params, body, requestId, remoteAddress, setStatus }) => {
        check(params)
        const { kind, pattern } = params
        const entry = await sql.begin(async (tx) => {
          const [{ count } = { count: 0 }] = await tx<{ count: number }[]>`select count(*)::int as count from allowlist`
          if (count >= ENTRIES_MAX)
            throw new HttpError('FAILED_PRECONDITION', `the allowlist has at most ${ENTRIES_MAX} entries`)
          await tx`insert into tenants (tenant_id, name) values (${key.tenant}, ${key.tenant}) on conflict do nothing`
          const [row] = await tx<(EntryRow & { is_new: boolean })[]>`
            insert into allowlist (tenant_id, kind, pattern, note, created_by)
            values (${key.tenant}, ${kind}, ${pattern}, ${body.note ?? null}, ${key.id})
            on conflict (tenant_id, kind, pattern) do update
              set note = ${body.note === undefined ? tx`allowlist.note` : body.note}
            returning ${columns}, xmax = 0 as is_new`
          const { is_new: isNew, ...made } = row!
          if (isNew) setStatus(201)
          const action = isNew ? 'allowlist.added' : 'allowlist.changed'
          await writeAudit(tx, { key, action, target: `${kind} ${pattern}`, requestId, remoteAddress, details: body })
          return made
        })
        await changed()
        return entryOf(entry)
      },
    }),
    defineRoute({
      method: 'DELETE',
      path: '/api/v1/allowlist/{kind}/{pattern}',
      role: 'admin',
      summary: 'Let a device or a network in no longer',
      description: 'Where ALLOWLIST is on, sessions that nothing admits any more are closed.',
      params: zEntryParams,
      response: zAllowlistEntry,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params, requestId, remoteAddress }) => {
        const { kind, pattern } = params
        const entry = await sql.begin(async (tx) => {
          const [row] = await tx<EntryRow[]>`
            delete from allowlist where tenant_id = ${key.tenant} and kind = ${kind} and pattern = ${pattern}
            returning ${columns}`
          if (row === undefined) throw new HttpError('NOT_FOUND', `no ${kind} ${pattern} in the allowlist`)
          const target = `${kind} ${pattern}`
          await writeAudit(tx, { key, action: 'allowlist.removed', target, requestId, remoteAddress, details: {} })
          return row
        })
        await changed()
        return entryOf(entry)
      },
    }),
  ]
}

function entryOf(row: EntryRow): Entry {
  return { ...row, created_at: timeOf(row.created_at) }
}
