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
import {
  decodeCursor,
  encodeCursor,
  inOrderOfTime,
  kindOfCursor,
  pageOf,
  zPage,
  zPageQuery,
  zTime,
  zTimeInput,
} from '../shapes.ts'
import { zDeviceParams } from './devices.ts'

export interface EvidenceParts {
  readonly sql: Sql
  /** DATA_DIR/frames */
  readonly framesDirectory: string
  /** ms since the epoch */
  readonly now: () => number
}

const DAY_MS = 86_400_000
const zWindow = inOrderOfTime(
  z.strictObject({
    ...zPageQuery,
    from: zTimeInput.optional().describe('Default: a day before to; with a cursor as on the page before'),
    to: zTimeInput.optional().describe('Default: now; with a cursor as on the page before'),
  }),
)
/** Frames come from one of two sources, and all pages from the same. */
const RECORDING = 'frames recording'
const CMD_LOG = 'frames cmd_log'

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

type Window = z.output<typeof zWindow>

interface Device {
  readonly protocol: Protocol
  readonly deviceNo: number
  /** What is older and names no tenant belongs to whoever had the device then. */
  readonly sinceMs: number
}

interface LoggedRow {
  readonly at: Date
  /** `at` in full precision. */
  readonly sort_key: string
  readonly epoch: number | bigint
  readonly seq: number | bigint
  readonly is_uplink: boolean
  readonly frame: Uint8Array
}

interface EntryRow {
  readonly at: Date
  /** `at` in full precision. */
  readonly sort_key: string
  /** Among entries of the same moment. */
  readonly place: string
  readonly kind: z.input<typeof zEntry>['kind']
  readonly what: string
  readonly details: Record<string, unknown>
}

/** Fields of any depth in snake_case. */
function namesOutside(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(namesOutside)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [snakeOf(name), namesOutside(one)]))
}

export function evidenceRoutes({ sql, framesDirectory, now }: EvidenceParts): Route[] {
  async function deviceOf(id: string, key: ApiKey): Promise<Device> {
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

  /** @param cursorToMs where the window of the page before ended */
  function boundsOf({ from, to }: Window, sinceMs: number, cursorToMs: string | undefined) {
    const toMs = to?.getTime() ?? (cursorToMs === undefined ? now() : Number(cursorToMs))
    return { fromMs: Math.max(from?.getTime() ?? toMs - DAY_MS, sinceMs), toMs }
  }

  async function recordedFrames(id: string, device: Device, query: Window, key: ApiKey) {
    const { protocol, deviceNo, sinceMs } = device
    const place = decodeCursor(RECORDING, ['number', 'number', 'number', 'number', 'number'], query.cursor)
    const [atMs, openedMs, shard, offset] = place.map(Number)
    const after = place.length === 0 ? undefined : { atMs: atMs!, openedMs: openedMs!, shard: shard!, offset: offset! }
    const { fromMs, toMs } = boundsOf(query, sinceMs, place[4])
    const wanted = deviceKey(protocol, deviceNo)
    const rows = await readRecorded(framesDirectory, wanted, fromMs, toMs, query.limit + 1, after)
    if (rows.length === 0 && after === undefined) return await loggedFrames(id, device, query, key)
    return pageOf(
      rows,
      query.limit,
      (row) => show(protocol, key, row.atMs, row.isUplink, row.bytes, 'recording'),
      (last) => encodeCursor(RECORDING, [last.atMs, last.openedMs, last.shard, last.offset, toMs].map(String)),
    )
  }

  async function loggedFrames(id: string, { protocol, sinceMs }: Device, query: Window, key: ApiKey) {
    const [time, epoch, seq, cursorToMs] = decodeCursor(CMD_LOG, ['time', 'bigint', 'bigint', 'number'], query.cursor)
    const { fromMs, toMs } = boundsOf(query, sinceMs, cursorToMs)
    const rows = await sql<LoggedRow[]>`
      select at, to_json(at) #>> '{}' as sort_key, epoch, seq, is_uplink, frame from cmd_log
      where device_id = ${id} and at >= ${new Date(fromMs)} and at <= ${new Date(toMs)}
        ${time === undefined ? sql`` : sql`and (at, epoch, seq) > (${time}::text::timestamptz, ${epoch!}::text::bigint, ${seq!}::text::bigint)`}
      order by at, epoch, seq limit ${query.limit + 1}`
    return pageOf(
      rows,
      query.limit,
      (row) => show(protocol, key, row.at.getTime(), row.is_uplink, row.frame, 'cmd_log'),
      (last) => encodeCursor(CMD_LOG, [last.sort_key, last.epoch, last.seq, toMs].map(String)),
    )
  }

  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/devices/{device_id}/frames',
      role: 'viewer',
      summary: 'Recorded bytes of a device beside their decoding',
      description:
        'From the recording (RECORD=all or errors) where there is one, else from cmd_log, which leaves heartbeats out. ' +
        'Nothing from before the device was given to its tenant. The first of the window first; next_cursor leads to the ' +
        'frames that follow, in the same window and from the same source.',
      params: zDeviceParams,
      query: zWindow,
      errors: ['NOT_FOUND'],
      response: zPage(zFrame),
      async handle({ params, query, key }) {
        const device = await deviceOf(params.device_id, key)
        return kindOfCursor(query.cursor) === CMD_LOG
          ? await loggedFrames(params.device_id, device, query, key)
          : await recordedFrames(params.device_id, device, query, key)
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/devices/{device_id}/timeline',
      role: 'viewer',
      summary: 'Sessions, commands, orders, events and frames of one device in time order, the newest last',
      description:
        "Orders, commands and events are the tenant's own; sessions and frames begin when the device was given to it. " +
        'The last of the window; next_cursor leads to the page before it in time, in the same window, its newest last too.',
      params: zDeviceParams,
      query: zWindow,
      errors: ['NOT_FOUND'],
      response: zPage(zEntry),
      async handle({ params, query, key }) {
        const { sinceMs } = await deviceOf(params.device_id, key)
        const id = params.device_id
        const { tenant } = key
        const [time, place, cursorFromMs] = decodeCursor('timeline', ['time', 'text', 'number'], query.cursor)
        const to = query.to ?? new Date(now())
        const from = query.from ?? new Date(cursorFromMs === undefined ? to.getTime() - DAY_MS : Number(cursorFromMs))
        // what names no tenant
        const since = new Date(Math.max(from.getTime(), sinceMs))
        const upTo = time === undefined ? sql`${to}` : sql`least(${to}, ${time}::text::timestamptz)`
        const behind = time === undefined ? sql`` : sql`where (at, place) < (${time}::text::timestamptz, ${place!})`
        const newest = sql`${behind} order by at desc, place desc limit ${query.limit + 1}`
        // of each kind no more than the page can hold; numbers of one length sort as texts
        const rows = await sql<EntryRow[]>`
          select at, to_json(at) #>> '{}' as sort_key, place, kind, what, details from (
            (select * from (
              select opened_at as at, 'session ' || lpad(epoch::text, 19, '0') || ' 0 opened' collate "C" as place,
                'session' as kind, 'opened' as what,
                jsonb_build_object('epoch', epoch, 'shard', shard, 'remote_address', remote_address) as details
              from sessions where device_id = ${id} and opened_at between ${since} and ${upTo}
            ) as opened ${newest})
            union all
            (select * from (
              select closed_at as at, 'session ' || lpad(epoch::text, 19, '0') || ' 1 closed' collate "C" as place,
                'session' as kind, 'closed' as what, jsonb_build_object('epoch', epoch, 'reason', close_reason) as details
              from sessions where device_id = ${id} and closed_at between ${since} and ${upTo}
            ) as closed ${newest})
            union all
            (select * from (
              select created_at as at, 'command ' || command_id collate "C" as place, 'command' as kind, name as what,
                jsonb_build_object('command_id', command_id, 'status', status, 'attempts', attempts,
                  'order_no', order_no, 'result', result) as details
              from outbound_queue
              where device_id = ${id} and tenant_id = ${tenant} and created_at between ${from} and ${upTo}
            ) as commands ${newest})
            union all
            (select * from (
              select coalesce(started_at, created_at) as at, 'order ' || order_no collate "C" as place, 'order' as kind,
                state as what,
                jsonb_build_object('order_no', order_no, 'port', port, 'socket', socket, 'energy_wh', energy_wh,
                  'duration_s', duration_s, 'end_reason', end_reason, 'amount_fen', amount_fen) as details
              from orders
              where device_id = ${id} and tenant_id = ${tenant}
                and coalesce(started_at, created_at) between ${from} and ${upTo}
            ) as orders ${newest})
            union all
            (select * from (
              select at, 'event ' || lpad(cursor::text, 19, '0') collate "C" as place, 'event' as kind,
                event_type as what, jsonb_build_object('event_id', event_id) || data as details
              from events where device_id = ${id} and tenant_id = ${tenant} and at between ${from} and ${upTo}
            ) as events ${newest})
            union all
            (select * from (
              select at, 'frame ' || lpad(epoch::text, 19, '0') || lpad(seq::text, 19, '0') collate "C" as place,
                'frame' as kind, command as what,
                jsonb_build_object('direction', case when is_uplink then 'uplink' else 'downlink' end,
                  'message_id', message_id, 'note', note) as details
              from cmd_log where device_id = ${id} and at between ${since} and ${upTo}
            ) as frames ${newest})
          ) as everything
          order by at desc, place desc limit ${query.limit + 1}`
        const { items, next_cursor } = pageOf(
          rows,
          query.limit,
          ({ at, kind, what, details }) => ({ at: at.toISOString(), kind, what, details }),
          // what is older than 1970 is no entry of ours
          (last) => encodeCursor('timeline', [last.sort_key, last.place, String(Math.max(from.getTime(), 0))]),
        )
        return { items: items.reverse(), next_cursor }
      },
    }),
  ]
}
