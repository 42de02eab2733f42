/** Commands to devices: given, looked up, cancelled. What is behind them: src/main/commands/service.ts. */
import * as z from 'zod'
import { COMMAND_STATES } from '../../../../workers/writer/command-fates.ts'
import { HttpError } from '../../../errors/errors.ts'
import { CHARGE_MODES } from '../../../orders/charge-plan.ts'
import { ORDER_NO_CHARS_MAX } from '../../../orders/order-number.ts'
import { PROTOCOLS } from '../../../protocols/index.ts'
import { COMMAND_STATUS } from '../../../session/command-lane.ts'
import { commandSchemas } from '../../commands/catalogue.ts'
import type { CommandService } from '../../commands/service.ts'
import type { Sql } from '../../database/connect.ts'
import { defineRoute, type Route } from '../route.ts'
import {
  decodeCursor,
  encodeCursor,
  pageOf,
  timeOf,
  timeOrNull,
  zDeviceId,
  zPage,
  zPageQuery,
  zTime,
} from '../shapes.ts'
import { zDeviceParams } from './devices.ts'

export const zCommand = z.object({
  command_id: z.string(),
  device_id: z.string(),
  name: z.string().describe("Of the protocol's command table"),
  params: z.record(z.string(), z.unknown()).describe('As given; keys of cards are hidden'),
  state: z.enum(COMMAND_STATES),
  attempts: z.int().describe('How often it was sent'),
  message_id: z.int().nullable(),
  order_no: z.string().nullable(),
  created_at: zTime,
  expires_at: zTime,
  sent_at: zTime.nullable(),
  finished_at: zTime.nullable(),
  reason: z.string().nullable().describe("Why it ended so; of a refused command the device's own reason"),
  result: z.record(z.string(), z.unknown()).nullable().describe('What the device said'),
})
type Command = z.input<typeof zCommand>

const zAccepted = z.object({ command_id: z.string(), state: z.enum(COMMAND_STATES) })
const zOrderAccepted = z.object({
  command_id: z.string(),
  order_no: z.string().nullable().describe('null: what is stopped is no order that is known'),
  state: z.enum(COMMAND_STATES),
})

const EXPIRES_IN_S_MAX = 604_800
const zExpiresInS = z
  .int()
  .min(1)
  .max(EXPIRES_IN_S_MAX)
  .optional()
  .describe('After this nothing is sent any more; default COMMAND_EXPIRY_MS')
const zPortNo = z.int().min(1).max(255).describe('As on the sticker, from 1; BKV: 1 = A, 2 = B')
const zSocket = z.int().min(0).max(250).optional().describe('BKV: 1 to 250, required. AP3000: left out or 0')
const zOrderNo = z
  .string()
  .regex(/^[\x21-\x7e]+$/)
  .max(ORDER_NO_CHARS_MAX)
const quantity = (max: number) => z.number().positive().max(max).optional()

const zCharge = z.strictObject({
  port: zPortNo,
  socket: zSocket,
  mode: z
    .enum(CHARGE_MODES)
    .describe('full: until full; time: duration_s; energy: energy_wh; budget and power: amount_fen and a tariff'),
  duration_s: quantity(1_000_000).describe('Mode time; rounded up to what the device can count'),
  energy_wh: quantity(10_000_000).describe('Mode energy; rounded up to what the device can count'),
  amount_fen: z.int().min(1).max(100_000_000).optional().describe('Modes budget and power: paid ahead'),
  order_no: zOrderNo
    .optional()
    .describe(
      'Made when left out. A repeat with the same one gets the first answer. One number means one order of the whole ' +
        'gateway, over all tenants: one that is taken is CONFLICT, and no more is said of it. AP3000: at most 16 ' +
        'printable ASCII characters, or 32 lower-case hex digits',
    ),
  max_power_w: quantity(100_000),
  max_duration_s: quantity(1_000_000),
  tariff: z.record(z.string(), z.unknown()).optional().describe("Default: the device's; stored with the order"),
  expires_in_s: zExpiresInS,
})
const zStop = z.strictObject({ port: zPortNo, socket: zSocket, order_no: z.string().min(1).max(200).optional() })
const zSend = z
  .strictObject({
    name: z.string().min(1).max(64),
    params: z.record(z.string(), z.unknown()).default({}),
    expires_in_s: zExpiresInS,
  })
  // which names there are, and what they take; the tables of the protocols check it
  .meta({ anyOf: commandSchemas(PROTOCOLS) })

const zCommandParams = z.strictObject({ command_id: z.string().min(1).max(64) })
const zCommandQuery = z.strictObject({
  ...zPageQuery,
  device_id: zDeviceId.optional(),
  state: z.enum(COMMAND_STATES).optional(),
})

interface CommandRow {
  command_id: string
  device_id: string
  name: string
  params: Record<string, unknown>
  status: number
  attempts: number
  message_id: number | null
  order_no: string | null
  created_at: Date
  expires_at: Date
  sent_at: Date | null
  finished_at: Date | null
  result: Record<string, unknown> | null
  /** `created_at` in full precision. */
  sort_key: string
}

export interface CommandParts {
  readonly sql: Sql
  readonly commands: CommandService
}

/** A cancelled command is final at once, but its row may be written by a writer some milliseconds later. */
const FATE_LOOKS = 20
const FATE_LOOK_MS = 50

export function commandRoutes({ sql, commands }: CommandParts): readonly Route[] {
  const columns = sql`command_id, device_id, name, params, status, attempts, message_id, order_no, created_at, expires_at,
    sent_at, finished_at, result`

  async function find(commandId: string, tenant: string): Promise<Command> {
    const [row] = await sql<CommandRow[]>`
      select ${columns}, '' as sort_key from outbound_queue
      where command_id = ${commandId} and tenant_id = ${tenant}`
    if (row === undefined) throw new HttpError('NOT_FOUND', `no command ${commandId}`)
    return commandOf(row)
  }

  return [
    defineRoute({
      method: 'POST',
      path: '/api/v1/devices/{device_id}/charge',
      role: 'operator',
      summary: 'Start a charge',
      description:
        'Stored when answered. A device that is away gets it when it returns, if it has not expired by then. What neither ' +
        'device nor gateway can do is FAILED_PRECONDITION with error.details.reason; a port with a running order is CONFLICT.',
      params: zDeviceParams,
      body: zCharge,
      response: zOrderAccepted,
      status: 202,
      takesIdempotencyKey: true,
      errors: ['NOT_FOUND', 'CONFLICT', 'FAILED_PRECONDITION'],
      handle: (context) => commands.charge(context, context.params.device_id, context.body),
    }),
    defineRoute({
      method: 'POST',
      path: '/api/v1/devices/{device_id}/stop',
      role: 'operator',
      summary: 'Stop what charges on a port',
      description:
        'A start that was not sent yet is cancelled instead; then the stop is answered as acked, reason start_cancelled.',
      params: zDeviceParams,
      body: zStop,
      response: zOrderAccepted,
      status: 202,
      takesIdempotencyKey: true,
      errors: ['NOT_FOUND', 'CONFLICT', 'FAILED_PRECONDITION'],
      handle: (context) => commands.stop(context, context.params.device_id, context.body),
    }),
    defineRoute({
      method: 'POST',
      path: '/api/v1/devices/{device_id}/commands',
      role: 'operator',
      summary: 'Any other command of the protocol, by its table name',
      description:
        'Parameters are named as in the table of the protocol, in snake_case with the unit they have on the wire (dw: ' +
        '0.1 W, dv: 0.1 V, 10_wh: 0.01 kWh); ports count from 1. Answers to uplinks are no commands.',
      params: zDeviceParams,
      body: zSend,
      response: zAccepted,
      status: 202,
      takesIdempotencyKey: true,
      errors: ['NOT_FOUND', 'CONFLICT'],
      handle: async (context) => {
        const { command_id, state } = await commands.send(context, context.params.device_id, context.body)
        return { command_id, state }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/commands',
      role: 'viewer',
      summary: 'Commands, the newest first',
      query: zCommandQuery,
      response: zPage(zCommand),
      handle: async ({ key, query }) => {
        const { limit, device_id: deviceId, state } = query
        const [time, id] = decodeCursor('commands', ['time', 'text'], query.cursor)
        const rows = await sql<CommandRow[]>`
          select ${columns}, to_json(created_at) #>> '{}' as sort_key from outbound_queue
          where tenant_id = ${key.tenant}
            ${deviceId === undefined ? sql`` : sql`and device_id = ${deviceId}`}
            ${state === undefined ? sql`` : sql`and status = ${COMMAND_STATUS[state]}`}
            ${time === undefined ? sql`` : sql`and (created_at, command_id) < (${time}::text::timestamptz, ${id!})`}
          order by created_at desc, command_id desc limit ${limit + 1}`
        return pageOf(rows, limit, commandOf, (last) => encodeCursor('commands', [last.sort_key, last.command_id]))
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/commands/{command_id}',
      role: 'viewer',
      summary: 'The fate of a command',
      params: zCommandParams,
      response: zCommand,
      errors: ['NOT_FOUND'],
      handle: ({ key, params }) => find(params.command_id, key.tenant),
    }),
    defineRoute({
      method: 'DELETE',
      path: '/api/v1/commands/{command_id}',
      role: 'operator',
      summary: 'Cancel a command while it is queued',
      description: 'CONFLICT when it was sent or has its fate.',
      params: zCommandParams,
      response: zCommand,
      errors: ['NOT_FOUND', 'CONFLICT'],
      handle: async (context) => {
        const { key, params } = context
        await commands.cancel(context, params.command_id)
        let command = await find(params.command_id, key.tenant)
        for (let look = 0; look < FATE_LOOKS && command.state !== 'cancelled'; look++) {
          await new Promise((resolve) => setTimeout(resolve, FATE_LOOK_MS))
          command = await find(params.command_id, key.tenant)
        }
        // the fate is certain, whenever its row comes
        return { ...command, state: 'cancelled' as const, reason: command.reason ?? 'cancelled' }
      },
    }),
  ]
}

function commandOf(row: CommandRow): Command {
  const { sort_key: _, status, created_at, expires_at, sent_at, finished_at, result, ...columns } = row
  const reason = result?.['reason']
  return {
    ...columns,
    state: COMMAND_STATES[status] ?? 'dead',
    created_at: timeOf(created_at),
    expires_at: timeOf(expires_at),
    sent_at: timeOrNull(sent_at),
    finished_at: timeOrNull(finished_at),
    reason: typeof reason === 'string' ? reason : null,
    result,
  }
}
