/**
 * What follows a card that was found good, where the answer alone starts nothing (AP3000 7, 02: the device waits for an 82).
 * Thread: main, once per swipe.
 */
import type { CardAnswer } from '../codec/protocol.ts'
import type { ApiKey } from '../config/api-keys.ts'
import { HttpError } from '../errors/errors.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import type { CardQuestion } from '../session/effects.ts'
import type { CommandService } from './commands/service.ts'
import type { Sql } from './database/connect.ts'
import type { Log } from './log.ts'

export interface SwipesOptions {
  readonly sql: Sql
  readonly log: Log
  readonly commands: CommandService
}

/** A frame that is repeated within this is one swipe; the port's running order stands in the way of later ones. */
const SAME_SWIPE_MS = 30_000

/** Starts the charge a swipe asked for: `CommandService.chargeByCard`. */
export async function chargeByCard(options: SwipesOptions, question: CardQuestion, answer: CardAnswer): Promise<void> {
  const { deviceId, cardId, port, socket, messageId } = question
  if (answer.status !== 'ok' || port === 0 || !parseAnyDeviceId(deviceId)?.protocol.startsCardByCommand) return
  try {
    const [device] = await options.sql<{ tenant_id: string }[]>`
      select tenant_id from devices where device_id = ${deviceId}`
    if (device === undefined) return
    const key: ApiKey = { id: 'card', secret: '', role: 'operator', tenant: device.tenant_id, isHmacOnly: true }
    // a retransmitted swipe is the same one (AP3000 5)
    const requestId = `swipe-${deviceId}-${port}-${cardId}-${messageId}-${Math.floor(Date.now() / SAME_SWIPE_MS)}`
    await options.commands.chargeByCard(
      { key, requestId, remoteAddress: 'device', idempotencyKey: requestId },
      deviceId,
      { port, socket },
      { cardId, rateMode: answer.rateMode, expiresMs: answer.expiresMs },
    )
  } catch (error) {
    // something came between answer and start: the user hears the balance and sees nothing start; why is in the log
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
