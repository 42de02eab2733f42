/** Answers card swipes from the `cards` table. Thread: main; once per swipe, never per frame. */
import type { CardAnswer } from '../codec/protocol.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import type { CardQuestion } from '../session/effects.ts'
import { leftOnCard } from './commands/card-money.ts'
import { runningOrder } from './commands/intake.ts'
import { isInTheWay } from './commands/service.ts'
import type { Sql } from './database/connect.ts'

/** `cards.rate_mode` as in AP3000 7, 02. */
export const RATE_MODES = ['time', 'monthly', 'energy', 'per_use'] as const
const UNREGISTERED: CardAnswer = { status: 'unregistered', rateMode: 'time', balanceFen: 0, expiresMs: null }

/**
 * What a device is told about a card. A card of another tenant than the device's is unregistered there. Who only asks for
 * the balance (port 0) hears that the card is good although nothing is left to start with.
 *
 * @param question `cardId` as the protocol writes it: lower-case hex of the wire bytes
 * @throws when the database does not answer
 */
export async function answerCard(
  sql: Sql,
  question: Pick<CardQuestion, 'deviceId' | 'cardId' | 'socket' | 'port'>,
  nowMs: number,
): Promise<CardAnswer> {
  const { deviceId, cardId, port } = question
  const [card] = await sql<CardRow[]>`
    select c.tenant_id, c.status, c.rate_mode, c.balance_fen, c.expires_at
    from cards c
    where c.card_id = ${cardId}
      and c.tenant_id = coalesce((select d.tenant_id from devices d where d.device_id = ${deviceId}), 'default')`
  if (card === undefined) return UNREGISTERED
  const expiresMs = card.expires_at?.getTime() ?? null
  const base = { rateMode: RATE_MODES[card.rate_mode] ?? 'time', balanceFen: Number(card.balance_fen), expiresMs }
  if (card.status !== 'active') return { ...base, status: 'blocked' }
  if (expiresMs !== null && expiresMs <= nowMs) return { ...base, status: 'expired' }
  if (base.rateMode !== 'monthly' && base.balanceFen <= 0) return { ...base, status: 'insufficient' }
  if (port !== 0) {
    const running = await runningOrder(sql, { ...question, tenantId: card.tenant_id })
    // a swipe that is repeated hears what the first one heard
    if (running?.card_id === cardId) return { ...base, status: 'ok' }
    if (base.rateMode !== 'monthly' && (await leftOnCard(sql, card.tenant_id, cardId)) <= 0)
      return { ...base, status: 'insufficient' }
    // BKV as well: a card's charge beside the running one would be nobody's, or end with it
    if (running !== undefined && isInTheWay(running)) return { ...base, status: 'port_unusable' }
    if (parseAnyDeviceId(deviceId)?.protocol.startsCardByCommand) {
      const [device] = await sql<{ port_count: number | null }[]>`
        select port_count from devices where device_id = ${deviceId}`
      if (port > (device?.port_count ?? port)) return { ...base, status: 'port_unusable' }
    }
  }
  return { ...base, status: 'ok' }
}

interface CardRow {
  readonly tenant_id: string
  readonly status: string
  readonly rate_mode: number
  readonly balance_fen: number
  readonly expires_at: Date | null
}
