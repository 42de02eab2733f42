/** Devices: who they are, whether they are there, what their ports do. */
import * as z from 'zod'
import { PORT_STATES } from '../../../codec/facts.ts'
import type { ModelProfile } from '../../../codec/profile.ts'
import { TENANT_DEFAULT } from '../../../config/api-keys.ts'
import { HttpError } from '../../../errors/errors.ts'
import { MODEL_PROFILES, profilesOfDevice } from '../../../protocols/index.ts'
import { PRESENCE_REASONS, presenceFrom } from '../../../session/presence.ts'
import { snakeOf } from '../../commands/catalogue.ts'
import { readTariff } from '../../commands/read-tariff.ts'
import type { Sql } from '../../database/connect.ts'
import { writeAudit } from '../audit.ts'
import { defineRoute, type Route } from '../route.ts'
import {
  assignments,
  decodeCursor,
  encodeCursor,
  likePattern,
  pageOf,
  timeOf,
  timeOrNull,
  zDeviceId,
  zPage,
  zPageQuery,
  zTime,
} from '../shapes.ts'

export const zPort = z.object({
  socket: z.int().describe('BKV socket 1 to 250; 0 where the protocol has none'),
  port: z.int().describe('As on the sticker, from 1'),
  state: z.enum(PORT_STATES),
  state_raw: z.int(),
  fault: z.string().nullable(),
  power_w: z.number().nullable(),
  voltage_v: z.number().nullable(),
  current_a: z.number().nullable(),
  energy_wh: z.number().nullable(),
  temperature_c: z.number().nullable(),
  order_no: z.string().nullable().describe('The order that runs on this port'),
  reported_at: zTime,
})

export const zDevice = z.object({
  device_id: z.string(),
  protocol: z.string().nullable(),
  tenant: z.string(),
  site: z.string().nullable(),
  name: z.string().nullable(),
  model_profile: z.string().nullable(),
  tariff: z.record(z.string(), z.unknown()).nullable(),
  firmware: z.string().nullable(),
  device_type: z.string().nullable(),
  port_count: z.int().nullable(),
  iccid: z.string().nullable(),
  imei: z.string().nullable(),
  module: z.string().nullable(),
  signal: z.int().nullable(),
  voltage_v: z.number().nullable(),
  temperature_c: z.number().nullable(),
  clock_offset_ms: z.number().nullable().describe("Device clock minus the gateway's"),
  presence: z.object({
    online: z.boolean(),
    score: z.number().min(0).max(100).describe('60 connected, 40 heard within 1.5 heartbeat periods'),
    reasons: z.array(z.enum(PRESENCE_REASONS)),
  }),
  ports: z.array(zPort),
  session: z
    .object({
      epoch: z.int().describe('Fencing token: grows with every takeover'),
      shard: z.int(),
      opened_at: zTime.nullable().describe('null: not yet written'),
      remote_address: z.string().nullable(),
    })
    .nullable(),
  registered_at: zTime.nullable().describe('By AP3000 20, by the first 0000 heartbeat of BKV; null: by none yet'),
  last_seen_at: zTime.nullable(),
  created_at: zTime,
  updated_at: zTime,
})
type Device = z.input<typeof zDevice>

const zDevicePage = zPage(zDevice)

export const zDeviceParams = z.strictObject({
  device_id: zDeviceId.describe('AP3000 physId, 8 lower-case hex digits, or BKV gateway id, 14 digits'),
})

const zDeviceQuery = z.strictObject({
  ...zPageQuery,
  online: z
    .enum(['true', 'false'])
    .transform((text) => text === 'true')
    .optional()
    .describe('A page may then hold fewer items than limit although more follow'),
  protocol: z
    .string()
    .regex(/^[a-z0-9]{1,32}$/)
    .optional(),
  q: z.string().min(1).max(100).optional().describe('Part of device_id, name, site or ICCID'),
})

const text = (max: number) => z.string().min(1).max(max).nullable().optional()
const zDeviceBody = z.strictObject({
  tenant: z
    .string()
    .regex(/^[A-Za-z0-9_.-]{1,64}$/)
    .optional()
    .describe('Only an admin of the default tenant may give a device to a tenant'),
  site: text(200),
  name: text(200),
  model_profile: text(100).describe('A name of GET /api/v1/model-profiles; null: the model decides'),
  tariff: z
    .record(z.string(), z.unknown())
    .nullable()
    .optional()
    .describe('As on POST of a charge; null: none, the device names its own amounts'),
})

const zModelProfile = z.object({
  name: z.string(),
  protocol: z.string(),
  summary: z.string(),
  energy_wh_per_raw: z.number().describe('Wh per raw count of energy in reports'),
  settings: z.record(z.string(), z.unknown()),
  chosen_for: z.array(
    z.object({
      device_type: z.string(),
      firmware_from: z.string(),
      firmware_before: z.string().describe('Exclusive'),
    }),
  ),
})

/** What shared memory says about a device. */
export interface LivePresence {
  readonly online: boolean
  readonly epoch: number
  readonly shard: number
  readonly lastSeenMs: number
}

export interface DeviceParts {
  readonly sql: Sql
  readonly presenceOf: (deviceId: string) => LivePresence | undefined
  /** Name of the protocol whose ids look like this. */
  readonly protocolOf: (deviceId: string) => string | undefined
  /** A device has another `model_profile` now, and the row is committed. */
  readonly profileChanged?: (deviceId: string, name: string | null) => void
  /** ms since the epoch */
  readonly now: () => number
}

interface DeviceRow {
  device_id: string
  tenant_id: string
  protocol: string | null
  site: string | null
  name: string | null
  tariff: Record<string, unknown> | null
  model_profile: string | null
  firmware: string | null
  device_type: string | null
  port_count: number | null
  iccid: string | null
  imei: string | null
  module: string | null
  signal: number | null
  voltage_v: number | null
  temperature_c: number | null
  clock_offset_ms: number | null
  registered_at: Date | null
  last_seen_at: Date | null
  created_at: Date
  updated_at: Date
}

/** Rows looked at per request when the filter is not the database's: presence lives in memory. */
const SCAN_ROWS_MAX = 20_000
const SCAN_ROWS = 1_000

export function deviceRoutes(parts: DeviceParts): readonly Route[] {
  const { sql, presenceOf, protocolOf } = parts

  const columns = sql`device_id, tenant_id, protocol, site, name, tariff, model_profile, firmware, device_type, port_count,
    iccid, imei, module, signal, voltage_v, temperature_c, clock_offset_ms, registered_at, last_seen_at, created_at,
    updated_at`

  async function find(deviceId: string, tenant: string | undefined): Promise<Device | undefined> {
    const rows = await sql<DeviceRow[]>`
      select ${columns} from devices
      where device_id = ${deviceId} ${tenant === undefined ? sql`` : sql`and tenant_id = ${tenant}`}`
    return (await completed(parts, rows))[0]
  }

  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/model-profiles',
      role: 'viewer',
      summary: 'Model profiles: what differs between models or is not certain, by name',
      description:
        'The first of each protocol is its default. A profile is chosen by name (PUT of a device), else for the device ' +
        'types and firmwares it names, which never changes energy_wh_per_raw.',
      query: z.strictObject(zPageQuery),
      response: zPage(zModelProfile),
      needsDatabase: false,
      handle: async ({ query: { limit, cursor } }) => {
        const [after] = decodeCursor('model-profiles', ['text'], cursor)
        const index = MODEL_PROFILES.findIndex(({ name }) => name === after)
        if (after !== undefined && index < 0) throw new HttpError('INVALID_ARGUMENT', 'cursor: no such model profile')
        const rows = MODEL_PROFILES.slice(index + 1, index + 2 + limit)
        return pageOf(rows, limit, modelProfileOf, ({ name }) => encodeCursor('model-profiles', [name]))
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/devices',
      role: 'viewer',
      summary: 'Devices, by id',
      query: zDeviceQuery,
      response: zDevicePage,
      handle: async ({ key, query }) => {
        const { limit, online, protocol, q } = query
        let [after = ''] = decodeCursor('devices', ['text'], query.cursor)
        const pattern = q === undefined ? undefined : likePattern(q)
        const kept: DeviceRow[] = []
        let isMore = true
        let scanned = 0
        while (isMore && kept.length < limit && scanned < SCAN_ROWS_MAX) {
          // one more than wanted tells whether there is a next page
          const wanted = online === undefined ? limit + 1 : SCAN_ROWS
          const rows = await sql<DeviceRow[]>`
            select ${columns} from devices
            where tenant_id = ${key.tenant} and device_id > ${after}
              ${protocol === undefined ? sql`` : sql`and protocol = ${protocol}`}
              ${
                pattern === undefined
                  ? sql``
                  : sql`and (device_id ilike ${pattern} or name ilike ${pattern} or site ilike ${pattern}
                      or iccid ilike ${pattern})`
              }
            order by device_id limit ${wanted}`
          scanned += rows.length
          isMore = rows.length === wanted
          for (const [index, row] of rows.entries()) {
            after = row.device_id
            if (online === undefined || (presenceOf(row.device_id)?.online ?? false) === online) kept.push(row)
            if (kept.length < limit) continue
            isMore ||= index < rows.length - 1
            break
          }
        }
        return {
          items: await completed(parts, kept),
          next_cursor: isMore ? encodeCursor('devices', [after]) : null,
        }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/devices/{device_id}',
      role: 'viewer',
      summary: 'One device',
      params: zDeviceParams,
      response: zDevice,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params }) => {
        const device = await find(params.device_id, key.tenant)
        if (device === undefined) throw new HttpError('NOT_FOUND', `no device ${params.device_id}`)
        return device
      },
    }),
    defineRoute({
      method: 'PUT',
      path: '/api/v1/devices/{device_id}',
      role: 'admin',
      summary: 'Register a device ahead, or amend it',
      description:
        'What is left out stays as it was, null clears it. 201 when the device was not known. An admin of the default ' +
        'tenant who names a tenant reaches devices of every tenant: this is how devices are given to tenants and taken back. ' +
        'What happened before stays with the tenant it was given by, and so does an order that began before.',
      params: zDeviceParams,
      body: zDeviceBody,
      bodyIsOptional: true,
      response: zDevice,
      statuses: [201],
      errors: ['NOT_FOUND'],
      handle: async ({ key, params, body, requestId, remoteAddress, setStatus }) => {
        const { device_id: deviceId } = params
        if (protocolOf(deviceId) === undefined)
          throw new HttpError('INVALID_ARGUMENT', 'device_id: 8 lower-case hex digits (AP3000) or 14 digits (BKV)')
        if (body.tenant !== undefined && body.tenant !== key.tenant && key.tenant !== TENANT_DEFAULT)
          throw new HttpError('FORBIDDEN', 'only an admin of the default tenant may give a device to another tenant')
        const profileName = body.model_profile
        const names = profilesOfDevice(deviceId).map(({ name }) => name)
        if (typeof profileName === 'string' && !names.includes(profileName))
          throw new HttpError('INVALID_ARGUMENT', `body.model_profile: one of ${names.join(', ')}`, {
            model_profiles: names,
          })
        if (body.tariff !== undefined && body.tariff !== null) readTariff(body.tariff, true)
        const mayReachAll = key.tenant === TENANT_DEFAULT && body.tenant !== undefined
        const tenant = body.tenant ?? key.tenant
        const { tenant: _, ...given } = body
        const amended = Object.fromEntries(
          Object.entries(given).map(([column, value]) => [
            column,
            column === 'tariff' && value !== null ? sql.json(value as never) : value,
          ]),
        )
        await sql.begin(async (tx) => {
          await tx`insert into tenants (tenant_id, name) values (${tenant}, ${tenant}) on conflict do nothing`
          const made = await tx`
            insert into devices (device_id, tenant_id) values (${deviceId}, ${tenant}) on conflict do nothing`
          const changed = await tx`
            update devices set updated_at = now(), tenant_id = ${tenant},
              tenant_since = case when tenant_id = ${tenant} then tenant_since else ${new Date(parts.now())} end
              ${assignments(tx, amended)}
            where device_id = ${deviceId} ${mayReachAll ? tx`` : tx`and tenant_id = ${key.tenant}`}`
          // of another tenant: as if it did not exist
          if (changed.count === 0) throw new HttpError('NOT_FOUND', `no device ${deviceId}`)
          if (made.count > 0) setStatus(201)
          await writeAudit(tx, {
            key,
            action: made.count > 0 ? 'device.registered' : 'device.amended',
            target: deviceId,
            requestId,
            remoteAddress,
            details: body,
          })
        })
        if (profileName !== undefined) parts.profileChanged?.(deviceId, profileName)
        return (await find(deviceId, undefined))!
      },
    }),
  ]
}

function modelProfileOf({ name, protocol, summary, energyWhPerRaw, settings, chosenFor }: ModelProfile) {
  return {
    name,
    protocol,
    summary,
    energy_wh_per_raw: energyWhPerRaw,
    settings: Object.fromEntries(Object.entries(settings).map(([setting, value]) => [snakeOf(setting), value])),
    chosen_for: chosenFor.map(({ deviceType, firmwareFrom, firmwareBefore }) => ({
      device_type: deviceType,
      firmware_from: firmwareFrom,
      firmware_before: firmwareBefore,
    })),
  }
}

interface PortRow {
  device_id: string
  socket: number
  port: number
  state: (typeof PORT_STATES)[number]
  state_raw: number
  fault: string | null
  power_w: number | null
  voltage_v: number | null
  current_a: number | null
  energy_wh: number | null
  temperature_c: number | null
  order_no: string | null
  at: Date
}

interface SessionRow {
  device_id: string
  epoch: number
  opened_at: Date
  remote_address: string
}

/** Adds ports, sessions and presence to rows of devices: two more queries for a whole page. */
async function completed(parts: DeviceParts, rows: readonly DeviceRow[]): Promise<Device[]> {
  if (rows.length === 0) return []
  const { sql, presenceOf, protocolOf, now } = parts
  const nowMs = now()
  const live = new Map(rows.map(({ device_id: id }) => [id, presenceOf(id)]))
  const ids = rows.map((row) => row.device_id)
  const onlineIds = ids.filter((id) => live.get(id)?.online === true)
  const [ports, sessions] = await Promise.all([
    sql<PortRow[]>`
      select p.device_id, p.socket, p.port, p.state, p.state_raw, p.fault, p.power_w, p.voltage_v, p.current_a,
        p.energy_wh, p.temperature_c, p.at, o.order_no
      from ports p join devices d on d.device_id = p.device_id
      left join orders o on o.device_id = p.device_id and o.socket = p.socket and o.port = p.port
        -- an order that began before the device was given away is another tenant's
        and o.tenant_id = d.tenant_id
        -- where numbers repeat (BKV) the minute of the start stands behind them
        and split_part(o.order_key, '@', 1) = p.wire_hex and o.state in ('starting', 'charging', 'stopping')
      where p.device_id = any(${ids}) order by p.device_id, p.socket, p.port`,
    onlineIds.length === 0
      ? []
      : sql<SessionRow[]>`
          select s.device_id, s.epoch, s.opened_at, s.remote_address
          from sessions s
          join unnest(${onlineIds}::text[], ${onlineIds.map((id) => String(live.get(id)!.epoch))}::text[]) as l (id, epoch)
            on s.device_id = l.id and s.epoch = l.epoch::bigint`,
  ])
  const portsOf = Map.groupBy(ports, (port) => port.device_id)
  const sessionOf = new Map(sessions.map((session) => [session.device_id, session]))
  return rows.map((row) => {
    const { device_id: id, tenant_id: tenant, ...columns } = row
    const here = live.get(id)
    const session = sessionOf.get(id)
    const lastSeenMs = Math.max(row.last_seen_at?.getTime() ?? 0, here?.lastSeenMs ?? 0)
    const protocol = row.protocol ?? protocolOf(id) ?? null
    const presence = presenceFrom(
      { isConnected: here?.online ?? false, lastSeenMs: lastSeenMs === 0 ? undefined : lastSeenMs, protocol },
      nowMs,
    )
    return {
      device_id: id,
      tenant,
      ...columns,
      protocol,
      presence: { ...presence, reasons: [...presence.reasons] },
      ports: (portsOf.get(id) ?? []).map(({ device_id: _, at, ...port }) => ({ ...port, reported_at: timeOf(at) })),
      session:
        here?.online === true
          ? {
              epoch: here.epoch,
              shard: here.shard,
              opened_at: timeOrNull(session?.opened_at ?? null),
              remote_address: session?.remote_address ?? null,
            }
          : null,
      registered_at: timeOrNull(row.registered_at),
      last_seen_at: lastSeenMs === 0 ? null : timeOf(new Date(lastSeenMs)),
      created_at: timeOf(row.created_at),
      updated_at: timeOf(row.updated_at),
    }
  })
}
