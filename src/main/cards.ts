/** Answers card swipes from the `cards` table. Thread: main; once per swipe, never per frame. */
import type { CardAnswer } from '../codec/protocol.ts'
import type { Sql } from './database/connect.ts'

/** `cards.rate_mode` as in AP3000 7, 02. */
export const RATE_MODES = ['time', 'monthly', 'energy', 'per_use'] as const
const UNREGISTERED: CardAnswer = { status: 'unregistered', rateMode: 'time', balanceFen: 0, expiresMs: null }

/**
 * What a device is told about a card. A card of another tenant than the device's is unregistered there.
 *
 * @param cardId as the protocol writes it: lower-case hex of the wire bytes
 * @throws when the database does not answer
 */
export async function answerCard(sql: Sql, deviceId: string, cardId: string, nowMs: number): Promise<CardAnswer> {
  const [card] = await sql<{ status: string; rate_mode: number; balance_fen: number; expires_at: Date | null }[]>`
    select c.status, c.rate_mode, c.balance_fen, c.expires_at
    from cards c
    where c.card_id = ${cardId}
      and c.tenant_id = coalesce((select d.tenant_id from devices d where d.device_id = ${deviceId}), 'default')`
  if (card === undefined) return UNREGISTERED
  const expiresMs = card.expires_at?.getTime() ?? null
  const base = { rateMode: RATE_MODES[card.rate_mode] ?? 'time', balanceFen: Number(card.balance_fen), expiresMs }
  if (card.status !== 'active') return { ...base, status: 'blocked' }
  if (expiresMs !== null && expiresMs <= nowMs) return { ...base, status: 'expired' }
  if (base.rateMode !== 'monthly' && base.balanceFen <= 0) return { ...base, status: 'insufficient' }
  return { ...base, status: 'ok' }
}
