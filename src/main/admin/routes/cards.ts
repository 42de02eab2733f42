/** Cards: what a device is told when one is swiped (src/main/cards.ts). */
import * as z from 'zod'
import { RATE_MODES } from '../../cards.ts'
import type { Sql } from '../../database/connect.ts'
import { writeAudit } from '../audit.ts'
import { defineRoute, type Route } from '../route.ts'
import {
  assignments,
  decodeCursor,
  encodeCursor,
  pageOf,
  timeOf,
  timeOrNull,
  zPage,
  zPageQuery,
  zTime,
  zTimeInput,
} from '../shapes.ts'

const CARD_STATUSES = ['active', 'blocked', 'lost'] as const
const BALANCE_FEN_MAX = 2 ** 31 - 1

export const zCard = z.object({
  card_id: z.string(),
  status: z.enum(CARD_STATUSES),
  rate_mode: z.enum(RATE_MODES).describe('How the device charges for it'),
  balance_fen: z.int(),
  expires_at: zTime.nullable(),
  holder: z.string().nullable(),
  created_at: zTime,
  updated_at: zTime,
})
type Card = z.input<typeof zCard>

const zCardParams = z.strictObject({
  card_id: z
    .string()
    .regex(/^(?:[0-9a-f]{2}){1,32}$/)
    .describe('As the device reports it: lower-case hex of the bytes on the wire'),
})
const zCardBody = z.strictObject({
  status: z.enum(CARD_STATUSES).optional(),
  rate_mode: z.enum(RATE_MODES).optional(),
  balance_fen: z.int().min(-BALANCE_FEN_MAX).max(BALANCE_FEN_MAX).optional(),
  expires_at: zTimeInput.nullable().optional(),
  holder: z.string().min(1).max(200).nullable().optional(),
})

interface CardRow {
  card_id: string
  status: (typeof CARD_STATUSES)[number]
  rate_mode: number
  balance_fen: number | bigint
  expires_at: Date | null
  holder: string | null
  created_at: Date
  updated_at: Date
}

export function cardRoutes({ sql }: { readonly sql: Sql }): readonly Route[] {
  const columns = sql`card_id, status, rate_mode, balance_fen, expires_at, holder, created_at, updated_at`
  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/cards',
      role: 'viewer',
      summary: 'Cards, by number',
      query: z.strictObject(zPageQuery),
      response: zPage(zCard),
      handle: async ({ key, query }) => {
        const { limit, cursor } = query
        const [after = ''] = decodeCursor('cards', ['text'], cursor)
        const rows = await sql<CardRow[]>`
          select ${columns} from cards where tenant_id = ${key.tenant} and card_id > ${after}
          order by card_id limit ${limit + 1}`
        return pageOf(rows, limit, cardOf, (last) => encodeCursor('cards', [last.card_id]))
      },
    }),
    defineRoute({
      method: 'PUT',
      path: '/api/v1/cards/{card_id}',
      role: 'admin',
      summary: 'Make or change a card',
      description: 'What is left out stays as it was; a new card is active, rated by time, with no balance.',
      params: zCardParams,
      body: zCardBody,
      bodyIsOptional: true,
      response: zCard,
      statuses: [201],
      handle: async ({ key, params, body, requestId, remoteAddress, setStatus }) => {
        const { card_id: cardId } = params
        const { rate_mode: rateMode, ...rest } = body
        const changes = {
          ...rest,
          ...(rateMode === undefined ? {} : { rate_mode: RATE_MODES.indexOf(rateMode) }),
        }
        const row = await sql.begin(async (tx) => {
          await tx`insert into tenants (tenant_id, name) values (${key.tenant}, ${key.tenant}) on conflict do nothing`
          const made = await tx`
            insert into cards (tenant_id, card_id) values (${key.tenant}, ${cardId}) on conflict do nothing`
          const [changed] = await tx<CardRow[]>`
            update cards set updated_at = now() ${assignments(tx, changes)}
            where tenant_id = ${key.tenant} and card_id = ${cardId} returning ${columns}`
          if (made.count > 0) setStatus(201)
          const action = made.count > 0 ? 'card.made' : 'card.changed'
          await writeAudit(tx, { key, action, target: cardId, requestId, remoteAddress, details: body })
          return changed!
        })
        return cardOf(row)
      },
    }),
  ]
}

function cardOf(row: CardRow): Card {
  return {
    ...row,
    rate_mode: RATE_MODES[row.rate_mode] ?? 'time',
    balance_fen: Number(row.balance_fen),
    expires_at: timeOrNull(row.expires_at),
    created_at: timeOf(row.created_at),
    updated_at: timeOf(row.updated_at),
  }
}
