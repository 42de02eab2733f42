/** What happened to one device: recorded bytes beside their meaning, and everything in the order of time. */
import * as z from 'zod'
import { deviceKey, type Protocol } from '../../../codec/protocol.ts'
import type { ApiKey } from '../../../config/api-keys.ts'
import { HttpError } from '../../../errors/errors.ts'
import { parseAnyDeviceId } from '../../../protocols/index.ts'
import { explain, maskIdentity } from '../../../recording/explain.ts'
import { readRecorded } from '../../../recording/reader.ts'
import type { Sql } from '../../database/connect.ts'
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
  hex: z.string().describe('As on the wire; identity fields are masked below admin'),
  fields: z.record(z.string(), z.unknown()),
  source: z.enum(['recording', 'cmd_log']),
})
type Frame = z.input<typeof zFrame>

const zEntry = z.object({
  at: zTime,
  kind: z.enum(['session', 'command', 'order', 'event', 'frame']),
  what: z.string(),
  details: z.record(z.string(), z.unknown()),
})

/** Hides ICCIDs inside raw bytes from whoever may not see them: the digits stand there as ASCII. */
function maskHex(hex: string): string {
  return hex.replace(/38393836(?:3[0-9]|[46][1-6]){16}/g, (iccid) => '2a'.repeat(16) + iccid.slice(-8))
}

export function evidenceRoutes({ sql, framesDirectory, now }: EvidenceParts): Route[] {
  async function deviceOf(id: string, key: ApiKey): Promise<{ protocol: Protocol; deviceNo: number }> {
    const [row] = await sql`select 1 from devices where device_id = ${id} and tenant_id = ${key.tenant}`
    const found = parseAnyDeviceId(id)
    if (row === undefined || found === undefined) throw new HttpError('NOT_FOUND', `no device ${id}`)
    return found
  }

  function show(
    protocol: Protocol,
    key: ApiKey,
    atMs: number,
    isUplink: boolean,
    bytes: Uint8Array,
    source: Frame['source'],
  ): Frame {
    const { command, messageId, fields } = explain(protocol, bytes, isUplink)
    const hex = Buffer.from(bytes).toString('hex')
    const isAdmin = key.role === 'admin'
    return {
      at: new Date(atMs).toISOString(),
      direction: isUplink ? 'uplink' : 'downlink',
      command,
      message_id: messageId,
      hex: isAdmin ? hex : maskHex(hex),
      fields: (isAdmin ? fields : maskIdentity(fields)) as Record<string, unknown>,
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
        'From the recording (RECORD=all or errors) where there is one, else from cmd_log, which leaves heartbeats out.',
      params: zDeviceParams,
      query: zWindow,
      response: z.object({ items: z.array(zFrame) }),
      async handle({ params, query, key }) {
        const { protocol, deviceNo } = await deviceOf(params.device_id, key)
        const toMs = query.to?.getTime() ?? now()
        const fromMs = query.from?.getTime() ?? toMs - DAY_MS
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
      params: zDeviceParams,
      query: zWindow,
      response: z.object({ items: z.array(zEntry) }),
      async handle({ params, query, key }) {
        await deviceOf(params.device_id, key)
        const id = params.device_id
        const to = query.to ?? new Date(now())
        const from = query.from ?? new Date(to.getTime() - DAY_MS)
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
              from sessions where device_id = ${id} and opened_at between ${from} and ${to}
            union all
            select closed_at, 'session', 'closed', jsonb_build_object('epoch', epoch, 'reason', close_reason)
              from sessions where device_id = ${id} and closed_at between ${from} and ${to}
            union all
            select created_at, 'command', name,
              jsonb_build_object('command_id', command_id, 'status', status, 'attempts', attempts, 'order_no', order_no,
                'result', result)
              from outbound_queue where device_id = ${id} and created_at between ${from} and ${to}
            union all
            select coalesce(started_at, created_at), 'order', state,
              jsonb_build_object('order_no', order_no, 'port', port, 'socket', socket, 'energy_wh', energy_wh,
                'duration_s', duration_s, 'end_reason', end_reason, 'amount_fen', amount_fen)
              from orders where device_id = ${id} and coalesce(started_at, created_at) between ${from} and ${to}
            union all
            select at, 'event', event_type, jsonb_build_object('event_id', event_id) || data
              from events where device_id = ${id} and at between ${from} and ${to}
            union all
            select at, 'frame', command,
              jsonb_build_object('direction', case when is_uplink then 'uplink' else 'downlink' end,
                'message_id', message_id, 'note', note)
              from cmd_log where device_id = ${id} and at between ${from} and ${to}
          ) as everything
          order by at desc limit ${query.limit}`
        return {
          items: rows.reverse().map(({ at, kind, what, details }) => ({ at: at.toISOString(), kind, what, details })),
        }
      },
    }),
  ]
}
