/** Asks a device what became of an order it has not spoken of for long. Thread: main. */
import type { ApiKey } from '../config/api-keys.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import type { CommandService } from './commands/service.ts'
import type { Sql } from './database/connect.ts'
import type { DoubtedOrder } from './reconciler.ts'

/** An answer comes within seconds or not at all: one question per order in this time. */
const ASK_EVERY_MS = 300_000

/** @throws HttpError the question could not be stored */
export async function askOrder(commands: CommandService, sql: Sql, order: DoubtedOrder): Promise<void> {
  const { deviceId, socket, orderNo, doubtedMs } = order
  const [device] = await sql<{ tenant_id: string }[]>`select tenant_id from devices where device_id = ${deviceId}`
  const protocol = parseAnyDeviceId(deviceId)?.protocol
  if (device === undefined || protocol === undefined) return
  const key: ApiKey = { id: 'reconciler', secret: '', role: 'operator', tenant: device.tenant_id, isHmacOnly: true }
  // a new doubt is not taken for the one before
  const idempotencyKey = `ask-${orderNo}-${doubtedMs}-${Math.floor(Date.now() / ASK_EVERY_MS)}`
  await commands.send({ key, requestId: idempotencyKey, remoteAddress: 'gateway', idempotencyKey }, deviceId, {
    name: protocol.name === 'bkv' ? 'queryStatus' : 'askStatus',
    params: protocol.name === 'bkv' ? { socket } : {},
  })
}
