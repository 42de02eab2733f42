/**
 * What follows a card that was found good: on AP3000 the answer alone starts nothing, the device waits for an 82
 * (AP3000 7, 02). BKV carries the start in its answer. Thread: main, once per swipe.
 */
import type { CardAnswer } from '../codec/protocol.ts'
import type { ApiKey } from '../config/api-keys.ts'
import { HttpError } from '../errors/errors.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import type { CardQuestion } from '../session/effects.ts'
import type { ChargeBody, CommandService } from './commands/service.ts'
import type { Sql } from './database/connect.ts'
import type { Log } from './log.ts'

export interface SwipesOptions {
  readonly sql: Sql
  readonly log: Log
  readonly commands: CommandService
}

/** Swipes of one card at one port within this are one; the port's running order stands in the way of later ones. */
const SAME_SWIPE_MS = 30_000

/**
 * Starts the charge a swipe asked for: up to the card's balance where a tariff can count it, else until full. A card
 * per month has no balance to watch.
 */
export async function chargeByCard(options: SwipesOptions, question: CardQuestion, answer: CardAnswer): Promise<void> {
  const { deviceId, cardId, port, socket } = question
  if (answer.status !== 'ok' || port === 0 || parseAnyDeviceId(deviceId)?.protocol.name !== 'ap3000') return
  try {
    const [device] = await options.sql<{ tenant_id: string; has_tariff: boolean; promised_fen: number }[]>`
      select d.tenant_id, d.tariff is not null as has_tariff,
        (select coalesce(sum((o.request->>'amount_fen')::bigint), 0) from orders o
         where o.tenant_id = d.tenant_id and o.card_id = ${cardId}
           and o.state in ('pending', 'starting', 'charging', 'stopping')) as promised_fen
      from devices d where d.device_id = ${deviceId}`
    if (device === undefined) return
    const key: ApiKey = { id: 'card', secret: '', role: 'operator', tenant: device.tenant_id, isHmacOnly: true }
    const isCounted = device.has_tariff && answer.rateMode !== 'monthly'
    // what other ports may still use up is not there a second time
    const leftFen = answer.balanceFen - Number(device.promised_fen)
    if (isCounted && leftFen <= 0) {
      options.log.warn({
        event: 'swipe.unstarted',
        deviceId,
        port,
        msg: 'the card’s balance is promised to running orders',
      })
      return
    }
    const body: ChargeBody = isCounted
      ? { port, socket, mode: 'budget', amount_fen: leftFen }
      : { port, socket, mode: 'full' }
    // a retransmitted or impatient swipe is the same one (AP3000 5)
    const requestId = `swipe-${deviceId}-${port}-${cardId}-${Math.floor(Date.now() / SAME_SWIPE_MS)}`
    await options.commands.charge(
      { key, requestId, remoteAddress: 'device', idempotencyKey: requestId },
      deviceId,
      body,
      cardId,
    )
  } catch (error) {
    // the user hears the balance and sees nothing start; why is in the log
    const isRefused = error instanceof HttpError
    options.log.warn({
      event: 'swipe.unstarted',
      deviceId,
      port,
      ...(isRefused ? { code: error.code } : { err: error }),
      msg: isRefused ? error.message : 'a swipe could not start a charge',
    })
  }
}
