/** What happened to one device: recorded bytes beside their meaning, and everything in the order of time. */
import * as z from 'zod'
import { deviceKey, type Protocol } from '../../../codec/protocol.ts'
import type { ApiKey } from '../../../config/api-keys.ts'
import { HttpError } from '../../../errors/errors.ts'
import { parseAnyDeviceId } from '../../../protocols/index.ts'
import { explain } from '../../../recording/explain.ts'
import { readRecorded } from '../../../recording/reader.ts'
import { snakeOf } from '../../commands/catalogue.ts'
import type { Sql } from '../../database/connect.ts'
import { maskFrame } from '../mask-frame.ts'
import { defineRoute, type Route } from '../route.ts'
import { LIMIT_DEFAULT, LIMIT_MAX, zTime, zTimeInput } from '../shapes.ts'
import { zDeviceParams } from './devices.ts'

export interface EvidenceParts {
  readonly sql: Sql
  /** DATA_DIR/frames */
  readonly framesDirectory: string
  /** ms since the epoch */
  readonly now: () => number
}

const DAY_MS = 86_400_000
const limit = z.coerce.number().int().min(1).max(LIMIT_MAX).default(LIMIT_DEFAULT)
const zWindow = z.strictObject({
  limit,
  from: zTimeInput.optional().describe('Default: a day ago'),
  to: zTimeInput.optional().describe('Default: now'),
})

const zFrame = z.object({
  at: zTime,
  direction: z.enum(['uplink', 'downlink']),
  command: z.string().describe('noise: bytes that are no frame'),
  message_id: z.number().nullable(),
  hex: z
    .string()
    .describe(
      'As on the wire. Below admin the bytes of identity fields are 2a, and all data of a frame in which they cannot be told',
    ),
  fields: z
    .record(z.string(), z.unknown())
    .describe('As on the wire, ports of AP3000 from 0; named as the parameters of commands'),
  source: z.enum(['recording', 'cmd_log']),
})
type Frame = z.input<typeof zFrame>

const zEntry = z.object({
  at: zTime,
  kind: z.enum(['session', 'command', 'order', 'event', 'frame']),
  what: z.string(),
  details: z.record(z.string(), z.unknown()),
})

/** Fields of any depth in snake_case. */
function namesOutside(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(namesOutside)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [snakeOf(name), namesOutside(one)]))
}

export function evidenceRoutes({ sql, framesDirectory, now }: EvidenceParts): Route[] {
  /** `sinceMs`: what is older and names no tenant belongs to whoever had the device then. */
  async function deviceOf(id: string, key: ApiKey): Promise<{ protocol: Protocol; deviceNo: number; sinceMs: number }> {
    const [row] = await sql<{ tenant_since: Date | null }[]>`
      select tenant_since from devices where device_id = ${id} and tenant_id = ${key.tenant}`
    const found = parseAnyDeviceId(id)
    if (row === undefined || found === undefined) throw new HttpError('NOT_FOUND', `no device ${id}`)
    return { ...found, sinceMs: row.tenant_since?.getTime() ?? 0 }
  }

  function show(
    protocol: Protocol,
    key: ApiKey,
    atMs: number,
    isUplink: boolean,
    bytes: Uint8Array,
    source: Frame['source'],
  ): Frame {
    const explained = explain(protocol, bytes, isUplink)
    const { command, messageId } = explained
    const { hex, fields } =
      key.role === 'admin'
        ? { hex: Buffer.from(bytes).toString('hex'), fields: explained.fields }
        : maskFrame(protocol, bytes, isUplink, explained)
    return {
      at: new Date(atMs).toISOString(),
      direction: isUplink ? 'uplink' : 'downlink',
      command,
      message_id: messageId,
      hex,
      fields: namesOutside(fields) as Record<string, unknown>,
      source,
    }
  }

  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/devices/{device_id}/frames',
      role: 'viewer',
      summary: 'Recorded bytes of a device beside their decoding',
      description:
        'From the recording (RECORD=all or errors) where there is one, else from cmd_log, which leaves heartbeats out. ' +
        'Nothing from before the device was given to its tenant.',
      params: zDeviceParams,
      query: zWindow,
      errors: ['NOT_FOUND'],
      response: z.object({ items: z.array(zFrame) }),
      async handle({ params, query, key }) {
        const { protocol, deviceNo, sinceMs } = await deviceOf(params.device_id, key)
        const toMs = query.to?.getTime() ?? now()
        const fromMs = Math.max(query.from?.getTime() ?? toMs - DAY_MS, sinceMs)
        const recorded = await readRecorded(framesDirectory, deviceKey(protocol, deviceNo), fromMs, toMs, query.limit)
        if (recorded.length > 0)
          return {
            items: recorded.map(({ atMs, isUplink, bytes }) => show(protocol, key, atMs, isUplink, bytes, 'recording')),
          }
        const logged = await sql<{ at: Date; is_uplink: boolean; frame: Uint8Array }[]>`
          select at, is_uplink, frame from cmd_log
          where device_id = ${params.device_id} and at >= ${new Date(fromMs)} and at <= ${new Date(toMs)}
          order by at, epoch, seq limit ${query.limit}`
        return {
          items: logged.map((row) => show(protocol, key, row.at.getTime(), row.is_uplink, row.frame, 'cmd_log')),
        }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/devices/{device_id}/timeline',
      role: 'viewer',
      summary: 'Sessions, commands, orders, events and frames of one device in time order, the newest last',
      description:
        "Orders, commands and events are the tenant's own; sessions and frames begin when the device was given to it.",
      params: zDeviceParams,
      query: zWindow,
      errors: ['NOT_FOUND'],
      response: z.object({ items: z.array(zEntry) }),
      async handle({ params, query, key }) {
        const { sinceMs } = await deviceOf(params.device_id, key)
        const id = params.device_id
        const { tenant } = key
        const to = query.to ?? new Date(now())
        const from = query.from ?? new Date(to.getTime() - DAY_MS)
        // what names no tenant
        const since = new Date(Math.max(from.getTime(), sinceMs))
        const rows = await sql<
          {
            at: Date
            kind: 'session' | 'command' | 'order' | 'event' | 'frame'
            what: string
            details: Record<string, unknown>
          }[]
        >`
          select at, kind, what, details from (
            select opened_at as at, 'session' as kind, 'opened' as what,
              jsonb_build_object('epoch', epoch, 'shard', shard, 'remote_address', remote_address) as details
              from sessions where device_id = ${id} and opened_at between ${since} and ${to}
            union all
            select closed_at, 'session', 'closed', jsonb_build_object('epoch', epoch, 'reason', close_reason)
              from sessions where device_id = ${id} and closed_at between ${since} and ${to}
            union all
            select created_at, 'command', name,
              jsonb_build_object('command_id', command_id, 'status', status, 'attempts', attempts, 'order_no', order_no,
                'result', result)
              from outbound_queue
              where device_id = ${id} and tenant_id = ${tenant} and created_at between ${from} and ${to}
            union all
            select coalesce(started_at, created_at), 'order', state,
              jsonb_build_object('order_no', order_no, 'port', port, 'socket', socket, 'energy_wh', energy_wh,
                'duration_s', duration_s, 'end_reason', end_reason, 'amount_fen', amount_fen)
              from orders
              where device_id = ${id} and tenant_id = ${tenant} and coalesce(started_at, created_at) between ${from} and ${to}
            union all
            select at, 'event', event_type, jsonb_build_object('event_id', event_id) || data
              from events where device_id = ${id} and tenant_id = ${tenant} and at between ${from} and ${to}
            union all
            select at, 'frame', command,
              jsonb_build_object('direction', case when is_uplink then 'uplink' else 'downlink' end,
                'message_id', message_id, 'note', note)
              from cmd_log where device_id = ${id} and at between ${since} and ${to}
          ) as everything
          order by at desc limit ${query.limit}`
        return {
          items: rows.reverse().map(({ at, kind, what, details }) => ({ at: at.toISOString(), kind, what, details })),
        }
      },
    }),
  ]
}
