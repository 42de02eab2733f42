/** Jobs: one change for many devices, in waves, with an outcome per device. Behind it: src/main/jobs. */
import * as z from 'zod'
import { HttpError } from '../../../errors/errors.ts'
import { FIRMWARE_TARGETS, type FirmwareTargetName } from '../../../jobs/firmware-image.ts'
import { percentOf, type Transfer } from '../../../jobs/firmware-transfer.ts'
import { JOB_STATES, OUTCOMES, type Outcome } from '../../../jobs/waves.ts'
import type { Sql } from '../../database/connect.ts'
import { JOB_DEVICES_MAX, type JobRequest, type Jobs, shownSpec } from '../../jobs/jobs.ts'
import { FTP_TARGETS, type JobSpec } from '../../jobs/spec.ts'
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

const CONCURRENCY_MAX = 500
const EXPIRES_IN_S_MAX = 604_800
const PARAMETERS_EXPIRE_IN_S = 3_600
/** A thousand chunks take ten to twenty minutes. */
const FIRMWARE_EXPIRES_IN_S = 14_400

const zWord = z.string().min(1).max(200).optional()
const common = {
  device_ids: z.array(zDeviceId).min(1).max(JOB_DEVICES_MAX).optional().describe('This or filter'),
  filter: z
    .strictObject({
      protocol: zWord,
      firmware: zWord,
      device_type: zWord,
      site: zWord,
      model_profile: zWord,
    })
    .optional()
    .describe(`Devices of the tenant that match all of it now, at most ${JOB_DEVICES_MAX}`),
  waves: z
    .strictObject({
      size: z.int().min(1).max(JOB_DEVICES_MAX).optional().describe('Devices; default all in one wave'),
      concurrency: z.int().min(1).max(CONCURRENCY_MAX).default(20).describe('Devices under way at the same time'),
      pause_above_percent: z
        .number()
        .min(0)
        .max(100)
        .nullable()
        .default(20)
        .describe('Of the devices of a wave; when more failed, the job pauses. null: never'),
    })
    .prefault({}),
  expires_in_s: z
    .int()
    .min(1)
    .max(EXPIRES_IN_S_MAX)
    .optional()
    .describe(
      `For each device, from its beginning; default ${PARAMETERS_EXPIRE_IN_S}, firmware ${FIRMWARE_EXPIRES_IN_S}`,
    ),
}
const zParametersJob = z.strictObject({
  kind: z.literal('parameters'),
  set: z.strictObject({
    name: z
      .string()
      .min(1)
      .max(64)
      .describe('A command that writes parameters: setParameters1, setLimits, setParameters ..'),
    params: z.record(z.string(), z.unknown()).describe('As for POST /devices/{device_id}/commands'),
  }),
  verify: z.boolean().default(true).describe('Read back and compare field by field'),
  ...common,
})
const zFirmwareJob = z.strictObject({
  kind: z.literal('firmware'),
  firmware: z.union([
    z.strictObject({
      target: z
        .enum(Object.keys(FIRMWARE_TARGETS) as [FirmwareTargetName, ...FirmwareTargetName[]])
        .describe('AP3000: slave E0, power_board E1, via_host E2, old_device F8, old_host F9, host FA'),
      image_id: z.string().min(1).max(64),
      check: z
        .strictObject({
          device_type: z.string().regex(/^[0-9a-f]{2}$/),
          fw_version: z.int().min(0).max(65_535),
        })
        .optional()
        .describe('Sends a check chunk behind the last'),
    }),
    z.strictObject({
      target: z.enum(FTP_TARGETS).describe('BKV: the device fetches the file itself; its answer is unpublished'),
      ftp: z.strictObject({
        ip: z.ipv4(),
        port: z.int().min(1).max(65_535),
        file_name: z
          .string()
          .regex(/^[\x21-\x7e]+$/)
          .max(13),
      }),
    }),
  ]),
  ...common,
})
const zMake = z.discriminatedUnion('kind', [zParametersJob, zFirmwareJob])

const zJob = z.object({
  job_id: z.string(),
  kind: z.enum(['parameters', 'firmware']),
  state: z.enum(JOB_STATES).describe('running, paused; cancelled or finished: no further device begins'),
  pause_reason: z.string().nullable().describe('requested, or failure_rate'),
  set: z.record(z.string(), z.unknown()).nullable().describe('Keys of cards are hidden'),
  verify: z.boolean().nullable(),
  firmware: z.record(z.string(), z.unknown()).nullable(),
  image_id: z.string().nullable(),
  waves: z.object({
    size: z.int(),
    concurrency: z.int(),
    pause_above_percent: z.number().nullable(),
    current: z.int().describe('From 1'),
    total: z.int(),
  }),
  expires_in_s: z.int(),
  devices: z
    .object({
      total: z.int(),
      waiting: z.int(),
      running: z.int(),
      ok: z.int(),
      sent: z.int(),
      refused: z.int(),
      mismatch: z.int(),
      dead: z.int(),
      expired: z.int(),
      cancelled: z.int(),
    } satisfies Record<Outcome | 'total' | 'waiting' | 'running', z.ZodType>)
    .describe('How many wait, are under way, or have which outcome'),
  created_by: z.string(),
  created_at: zTime,
  finished_at: zTime.nullable().describe('null: devices wait or are under way'),
})

const zJobDevice = z.object({
  device_id: z.string(),
  state: z.enum(['waiting', 'running', 'done']),
  step: z.string().nullable().describe('Of the last command: write, read, chunk, ota'),
  command_id: z.string().nullable(),
  outcome: z
    .enum(OUTCOMES)
    .nullable()
    .describe('sent: nothing more is known. dead: no answer. mismatch: read back other values'),
  reason: z.string().nullable(),
  detail: z
    .record(z.string(), z.unknown())
    .describe('content as read back, mismatches {field, wanted, found}, unproven'),
  progress: z
    .object({ percent: z.int(), chunk: z.int(), chunks_total: z.int(), restarts: z.int() })
    .nullable()
    .describe('Of a firmware transfer'),
  started_at: zTime.nullable(),
  finished_at: zTime.nullable(),
})

const zImage = z.object({
  image_id: z.string(),
  name: z.string(),
  sha256: z.string(),
  bytes: z.int(),
  created_by: z.string(),
  created_at: zTime,
})

const zJobParams = z.strictObject({ job_id: z.string().min(1).max(64) })

interface JobColumns {
  job_id: string
  kind: 'parameters' | 'firmware'
  state: (typeof JOB_STATES)[number]
  pause_reason: string | null
  spec: JobSpec
  image_id: string | null
  device_count: number
  wave_size: number
  concurrency: number
  pause_above_percent: number | null
  expires_in_s: number
  wave: number
  created_by: string
  created_at: Date
  finished_at: Date | null
  sort_key: string
  /** By state, or by outcome where there is one. */
  counts: Readonly<Record<string, number>> | null
}

interface DeviceColumns {
  device_id: string
  item_index: number
  state: 'waiting' | 'running' | 'done'
  step: string | null
  command_id: string | null
  outcome: (typeof OUTCOMES)[number] | null
  reason: string | null
  detail: Record<string, unknown>
  transfer: Transfer | null
  started_at: Date | null
  finished_at: Date | null
}

export function jobRoutes({ sql, jobs }: { readonly sql: Sql; readonly jobs: Jobs }): readonly Route[] {
  const columns = sql`j.job_id, j.kind, j.state, j.pause_reason, j.spec, j.image_id, j.device_count, j.wave_size,
    j.concurrency, j.pause_above_percent, j.expires_in_s, j.wave, j.created_by, j.created_at, j.finished_at,
    to_json(j.created_at) #>> '{}' as sort_key,
    (select jsonb_object_agg(c.what, c.devices) from (
      select coalesce(d.outcome, d.state) as what, count(*)::int as devices
      from job_devices d where d.job_id = j.job_id group by 1) c) as counts`

  const imageColumns = sql`image_id, name, sha256, bytes, created_by, created_at, to_json(created_at) #>> '{}' as sort_key`

  async function find(jobId: string, tenant: string) {
    const [row] = await sql<JobColumns[]>`
      select ${columns} from jobs j where j.job_id = ${jobId} and j.tenant_id = ${tenant}`
    if (row === undefined) throw new HttpError('NOT_FOUND', `no job ${jobId}`)
    return jobOf(row)
  }

  const change = (verb: 'pause' | 'resume' | 'cancel', summary: string, description: string) =>
    defineRoute({
      method: 'POST',
      path: `/api/v1/jobs/{job_id}/${verb}`,
      role: 'operator',
      summary,
      description,
      params: zJobParams,
      response: zJob,
      errors: ['NOT_FOUND', 'CONFLICT', 'FORBIDDEN'],
      handle: async (context) => {
        await jobs[verb](context, context.params.job_id)
        return await find(context.params.job_id, context.key.tenant)
      },
    })

  return [
    defineRoute({
      method: 'POST',
      path: '/api/v1/jobs',
      role: 'operator',
      summary: 'Parameters or firmware for many devices, in waves',
      description:
        'parameters: each device is written, read back and compared. firmware (role admin): each device gets the image in ' +
        'chunks. A wave begins when the one before it has an outcome for each device. A device is in one job at a time.',
      body: zMake,
      response: zJob,
      status: 202,
      takesIdempotencyKey: true,
      errors: ['NOT_FOUND', 'CONFLICT', 'FORBIDDEN'],
      handle: async (context) => {
        const { key, body } = context
        if (body.kind === 'firmware' && key.role !== 'admin')
          throw new HttpError('FORBIDDEN', `firmware needs the role admin, the key has ${key.role}`)
        return await find(await jobs.make(context, requestOf(body)), key.tenant)
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/jobs',
      role: 'viewer',
      summary: 'Jobs, the newest first',
      query: z.strictObject({ ...zPageQuery, state: z.enum(JOB_STATES).optional() }),
      response: zPage(zJob),
      handle: async ({ key, query: { limit, cursor, state } }) => {
        const [time, id] = decodeCursor('jobs', ['time', 'text'], cursor)
        const rows = await sql<JobColumns[]>`
          select ${columns} from jobs j where j.tenant_id = ${key.tenant}
            ${state === undefined ? sql`` : sql`and j.state = ${state}`}
            ${time === undefined ? sql`` : sql`and (j.created_at, j.job_id) < (${time}::text::timestamptz, ${id!})`}
          order by j.created_at desc, j.job_id desc limit ${limit + 1}`
        return pageOf(rows, limit, jobOf, (last) => encodeCursor('jobs', [last.sort_key, last.job_id]))
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/jobs/{job_id}',
      role: 'viewer',
      summary: 'A job with its devices, in the order of the waves',
      params: zJobParams,
      query: z.strictObject({ ...zPageQuery, outcome: z.enum(OUTCOMES).optional() }),
      response: z.object({ job: zJob, ...zPage(zJobDevice).shape }),
      errors: ['NOT_FOUND'],
      handle: async ({ key, params: { job_id: jobId }, query: { limit, cursor, outcome } }) => {
        const job = await find(jobId, key.tenant)
        const [after = '-1'] = decodeCursor('job_devices', ['number'], cursor)
        const rows = await sql<DeviceColumns[]>`
          select device_id, item_index, state, step, command_id, outcome, reason, detail, transfer, started_at,
            finished_at
          from job_devices where job_id = ${jobId} and item_index > ${Number(after)}
            ${outcome === undefined ? sql`` : sql`and outcome = ${outcome}`}
          order by item_index limit ${limit + 1}`
        const page = pageOf(rows, limit, deviceOf, (last) => encodeCursor('job_devices', [String(last.item_index)]))
        return { job, ...page }
      },
    }),
    change('pause', 'Let no further device begin', 'Devices under way go on to their outcome.'),
    change('resume', 'Go on', 'Failures until now are excused.'),
    change(
      'cancel',
      'End a job',
      'Devices that wait and commands that were not sent are cancelled; a firmware transfer ends behind the chunk under way.',
    ),
    defineRoute({
      method: 'POST',
      path: '/api/v1/firmware',
      role: 'admin',
      summary: 'Upload a firmware image: the bytes themselves, at most 1 MiB',
      description: 'The same bytes again are the same image, answered with 200.',
      query: z.strictObject({ name: z.string().min(1).max(200).default('firmware') }),
      takesBytes: true,
      response: zImage,
      status: 201,
      statuses: [200],
      handle: async (context) => {
        const { imageId, isNew } = await jobs.addImage(context, context.query.name, context.bytes)
        if (!isNew) context.setStatus(200)
        const [row] = await sql<ImageColumns[]>`
          select ${imageColumns} from firmware_images where image_id = ${imageId}`
        return imageOf(row!)
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/firmware',
      role: 'viewer',
      summary: 'Firmware images, the newest first',
      query: z.strictObject(zPageQuery),
      response: zPage(zImage),
      handle: async ({ key, query: { limit, cursor } }) => {
        const [time, id] = decodeCursor('firmware', ['time', 'text'], cursor)
        const rows = await sql<ImageColumns[]>`
          select ${imageColumns} from firmware_images where tenant_id = ${key.tenant}
            ${time === undefined ? sql`` : sql`and (created_at, image_id) < (${time}::text::timestamptz, ${id!})`}
          order by created_at desc, image_id desc limit ${limit + 1}`
        return pageOf(rows, limit, imageOf, (last) => encodeCursor('firmware', [last.sort_key, last.image_id]))
      },
    }),
  ]
}

interface ImageColumns {
  image_id: string
  name: string
  sha256: string
  bytes: number
  created_by: string
  created_at: Date
  /** `created_at` in full precision. */
  sort_key: string
}

const imageOf = ({ created_at, sort_key: _, ...image }: ImageColumns) => ({ ...image, created_at: timeOf(created_at) })

function requestOf(body: z.output<typeof zMake>): JobRequest {
  const { device_ids: deviceIds, filter, waves, expires_in_s: expiresInS } = body
  if ((deviceIds === undefined) === (filter === undefined))
    throw new HttpError('INVALID_ARGUMENT', 'device_ids or filter, one of the two', { field: 'device_ids' })
  const rest = {
    deviceIds,
    filter,
    waveSize: waves.size,
    concurrency: waves.concurrency,
    pauseAbovePercent: waves.pause_above_percent,
    body,
  }
  if (body.kind === 'parameters') {
    const { kind, set, verify } = body
    return { ...rest, spec: { kind, set, verify }, imageId: null, expiresInS: expiresInS ?? PARAMETERS_EXPIRE_IN_S }
  }
  const { kind, firmware } = body
  const forFirmware = { ...rest, expiresInS: expiresInS ?? FIRMWARE_EXPIRES_IN_S }
  if ('ftp' in firmware) {
    const { target, ftp } = firmware
    return { ...forFirmware, spec: { kind, target, ftp }, imageId: null }
  }
  const { target, check } = firmware
  const wireCheck =
    check === undefined ? {} : { check: { deviceTypeHex: check.device_type, fwVersion: check.fw_version } }
  return { ...forFirmware, spec: { kind, target, ...wireCheck }, imageId: firmware.image_id }
}

function jobOf(row: JobColumns): z.input<typeof zJob> {
  const { spec, device_count: total, wave_size: size, wave, counts } = row
  const { set = null, verify = null, firmware = null } = shownSpec(spec) as Partial<z.input<typeof zJob>>
  const waves = Math.ceil(total / size)
  const of = (what: string) => counts?.[what] ?? 0
  const outcomes = Object.fromEntries(OUTCOMES.map((outcome) => [outcome, of(outcome)])) as Record<Outcome, number>
  return {
    job_id: row.job_id,
    kind: row.kind,
    state: row.state,
    pause_reason: row.pause_reason,
    set,
    verify,
    firmware,
    image_id: row.image_id,
    waves: {
      size,
      concurrency: row.concurrency,
      pause_above_percent: row.pause_above_percent,
      current: Math.min(wave + 1, waves),
      total: waves,
    },
    expires_in_s: row.expires_in_s,
    devices: { total, waiting: of('waiting'), running: of('running'), ...outcomes },
    created_by: row.created_by,
    created_at: timeOf(row.created_at),
    finished_at: timeOrNull(row.finished_at),
  }
}

function deviceOf(row: DeviceColumns): z.input<typeof zJobDevice> {
  const { item_index: _, transfer, started_at, finished_at, ...columns } = row
  return {
    ...columns,
    progress:
      transfer === null
        ? null
        : {
            percent: percentOf(transfer),
            chunk: transfer.acked,
            chunks_total: transfer.chunksTotal,
            restarts: transfer.restarts,
          },
    started_at: timeOrNull(started_at),
    finished_at: timeOrNull(finished_at),
  }
}
