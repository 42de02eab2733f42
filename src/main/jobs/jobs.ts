/**
 * Jobs as their callers change them: made, paused, resumed, cancelled, and images that firmware comes from. What runs
 * them is runner.ts. Thread: main.
 */
import { createHash, randomUUID } from 'node:crypto'
import type { ApiKey } from '../../config/api-keys.ts'
import { HttpError } from '../../errors/errors.ts'
import { CHUNKS_MAX, chunksTotalOf, FIRMWARE_TARGETS } from '../../jobs/firmware-image.ts'
import { isSecret, readBackOf } from '../../jobs/parameter-proof.ts'
import type { JobState, Outcome } from '../../jobs/waves.ts'
import { parseAnyDeviceId } from '../../protocols/index.ts'
import { PRIORITY } from '../../session/command-lane.ts'
import { writeAudit } from '../admin/audit.ts'
import type { CommandDesk } from '../command-desk.ts'
import { commandNamed } from '../commands/catalogue.ts'
import { digestOf } from '../commands/request-digest.ts'
import { databaseErrorCode, type Sql, type TransactionSql } from '../database/connect.ts'
import { type JobRunner, otaCommand, writeCommand } from './runner.ts'
import type { JobSpec } from './spec.ts'

/** Devices of one job. */
export const JOB_DEVICES_MAX = 10_000
const UNIQUE_VIOLATION = '23505'

export interface JobFilter {
  readonly protocol?: string | undefined
  readonly firmware?: string | undefined
  readonly device_type?: string | undefined
  readonly site?: string | undefined
  readonly model_profile?: string | undefined
}

export interface JobRequest {
  readonly spec: JobSpec
  readonly imageId: string | null
  /** One of the two. */
  readonly deviceIds: readonly string[] | undefined
  readonly filter: JobFilter | undefined
  /** Devices; undefined: all in one wave. */
  readonly waveSize: number | undefined
  readonly concurrency: number
  readonly pauseAbovePercent: number | null
  readonly expiresInS: number
  /** As the caller gave it. */
  readonly body: object
}

interface Caller {
  readonly key: ApiKey
  readonly requestId: string
  readonly remoteAddress: string
  readonly idempotencyKey?: string | undefined
}

export interface JobsOptions {
  readonly sql: Sql
  readonly desk: Pick<CommandDesk, 'cancel'>
  readonly runner: Pick<JobRunner, 'wake'>
  /** So many devices got this outcome. */
  readonly onEnded?: (outcome: Outcome, devices: number) => void
}

export class Jobs {
  readonly #options: JobsOptions

  constructor(options: JobsOptions) {
    this.#options = options
  }

  /**
   * @returns its id; of a repeated request the first one's
   * @throws HttpError INVALID_ARGUMENT, NOT_FOUND (device, image), CONFLICT (Idempotency-Key of another request)
   */
  async make(caller: Caller, request: JobRequest): Promise<string> {
    const { sql, runner } = this.#options
    const digest = digestOf('job', '', request.body)
    for (let isRetry = false; ; isRetry = true) {
      try {
        const jobId = await sql.begin((tx) => this.#insert(tx, caller, request, digest))
        runner.wake()
        return jobId
      } catch (error) {
        // somebody else was faster with the same Idempotency-Key
        if (databaseErrorCode(error) !== UNIQUE_VIOLATION || isRetry) throw error
      }
    }
  }

  async #insert(tx: TransactionSql, caller: Caller, request: JobRequest, digest: string): Promise<string> {
    const { key, idempotencyKey } = caller
    if (idempotencyKey !== undefined) {
      const [earlier] = await tx<{ job_id: string; request_digest: string }[]>`
        select job_id, request_digest from jobs
        where tenant_id = ${key.tenant} and idempotency_key = ${idempotencyKey}`
      if (earlier?.request_digest === digest) return earlier.job_id
      if (earlier !== undefined)
        throw new HttpError('CONFLICT', 'this Idempotency-Key belongs to another job', { job_id: earlier.job_id })
    }
    const { spec, imageId, concurrency, pauseAbovePercent, expiresInS } = request
    const deviceIds = await devicesOf(tx, key.tenant, request)
    for (const deviceId of deviceIds) checkDevice(deviceId, spec)
    if (spec.kind === 'firmware') await checkImage(tx, key.tenant, spec, imageId)
    const jobId = randomUUID()
    await tx`
      insert into jobs (job_id, tenant_id, kind, state, spec, image_id, device_count, wave_size, concurrency,
        pause_above_percent, expires_in_s, idempotency_key, request_digest, created_by)
      values (${jobId}, ${key.tenant}, ${spec.kind}, 'running', ${tx.json(spec as never)}, ${imageId},
        ${deviceIds.length}, ${request.waveSize ?? deviceIds.length}, ${concurrency}, ${pauseAbovePercent},
        ${expiresInS}, ${idempotencyKey ?? null}, ${digest}, ${key.id})`
    await tx`
      insert into job_devices (job_id, device_id, item_index)
      select ${jobId}, device_id, at - 1 from unnest(${deviceIds}::text[]) with ordinality as given (device_id, at)`
    await writeAudit(tx, {
      ...caller,
      action: 'job.requested',
      target: jobId,
      details: { kind: spec.kind, ...shownSpec(spec), image_id: imageId, devices: deviceIds.length },
    })
    return jobId
  }

  /** No further device begins; those under way go on to their outcome. */
  async pause(caller: Caller, jobId: string): Promise<void> {
    await this.#change(
      caller,
      jobId,
      'job.paused',
      ['running'],
      (tx) => tx`
      update jobs set state = 'paused', pause_reason = 'requested' where job_id = ${jobId}`,
    )
  }

  /** Failures until now are excused. */
  async resume(caller: Caller, jobId: string): Promise<void> {
    await this.#change(
      caller,
      jobId,
      'job.resumed',
      ['paused'],
      (tx) => tx`
      update jobs set state = 'running', pause_reason = null, resumed_at = now() where job_id = ${jobId}`,
    )
  }

  /**
   * Devices that wait are cancelled, and so are commands that were not sent. A transfer ends behind the chunk that is
   * under way; parameters that were written are still read back.
   */
  async cancel(caller: Caller, jobId: string): Promise<void> {
    const { sql, desk, onEnded } = this.#options
    let cancelled = { count: 0 }
    await this.#change(caller, jobId, 'job.cancelled', ['running', 'paused'], async (tx) => {
      await tx`update jobs set state = 'cancelled', pause_reason = null where job_id = ${jobId}`
      cancelled = await tx`
        update job_devices set state = 'done', outcome = 'cancelled', reason = 'cancelled', finished_at = now()
        where job_id = ${jobId} and state = 'waiting'`
    })
    if (cancelled.count > 0) onEnded?.('cancelled', cancelled.count)
    const underWay = await sql<{ command_id: string }[]>`
      select d.command_id from job_devices d join outbound_queue q on q.command_id = d.command_id
      where d.job_id = ${jobId} and d.state = 'running' and d.step <> 'read' and q.status = 0`
    // what a shard has sent meanwhile gets its fate there
    await Promise.all(underWay.map(({ command_id }) => desk.cancel(command_id)))
    this.#options.runner.wake()
  }

  async #change(
    caller: Caller,
    jobId: string,
    action: string,
    from: readonly JobState[],
    act: (tx: TransactionSql) => PromiseLike<unknown>,
  ): Promise<void> {
    await this.#options.sql.begin(async (tx) => {
      const [job] = await tx<{ state: JobState; kind: string }[]>`
        select state, kind from jobs where job_id = ${jobId} and tenant_id = ${caller.key.tenant} for update`
      if (job === undefined) throw new HttpError('NOT_FOUND', `no job ${jobId}`)
      if (job.kind === 'firmware' && caller.key.role !== 'admin')
        throw new HttpError('FORBIDDEN', `firmware needs the role admin, the key has ${caller.key.role}`)
      if (!from.includes(job.state)) throw new HttpError('CONFLICT', `the job is ${job.state}`, { state: job.state })
      await act(tx)
      await writeAudit(tx, { ...caller, action, target: jobId, details: { state: job.state } })
    })
    this.#options.runner.wake()
  }

  /** The same bytes are stored once. @returns id, and whether it is new */
  async addImage(caller: Caller, name: string, content: Uint8Array): Promise<{ imageId: string; isNew: boolean }> {
    if (content.length === 0) throw new HttpError('INVALID_ARGUMENT', 'body: an image has at least one byte')
    const sha256 = createHash('sha256').update(content).digest('hex')
    const { tenant, id } = caller.key
    return await this.#options.sql.begin(async (tx) => {
      const [added] = await tx<{ image_id: string }[]>`
        insert into firmware_images (image_id, tenant_id, name, sha256, bytes, content, created_by)
        values (${randomUUID()}, ${tenant}, ${name}, ${sha256}, ${content.length}, ${Buffer.from(content)}, ${id})
        on conflict (tenant_id, sha256) do nothing returning image_id`
      if (added === undefined) {
        const [known] = await tx<{ image_id: string }[]>`
          select image_id from firmware_images where tenant_id = ${tenant} and sha256 = ${sha256}`
        return { imageId: known!.image_id, isNew: false }
      }
      const details = { name, sha256, bytes: content.length }
      await writeAudit(tx, { ...caller, action: 'firmware.uploaded', target: added.image_id, details })
      return { imageId: added.image_id, isNew: true }
    })
  }
}

/** A job as others may see it: keys of cards are for devices only. */
export function shownSpec(spec: JobSpec): Record<string, unknown> {
  if (spec.kind === 'firmware') {
    const { kind: _, check, ...firmware } = spec
    if (check === undefined) return { firmware }
    // in the words it was posted with
    return { firmware: { ...firmware, check: { device_type: check.deviceTypeHex, fw_version: check.fwVersion } } }
  }
  const params = Object.entries(spec.set.params).map(([name, value]) => [name, isSecret(name) ? '***' : value])
  return { set: { name: spec.set.name, params: Object.fromEntries(params) }, verify: spec.verify }
}

async function devicesOf(
  tx: TransactionSql,
  tenant: string,
  { deviceIds, filter, spec }: JobRequest,
): Promise<string[]> {
  if (deviceIds !== undefined) {
    const ids = [...new Set(deviceIds)]
    const rows = await tx<{ device_id: string }[]>`
      select device_id from devices where tenant_id = ${tenant} and device_id = any(${ids})`
    const known = new Set(rows.map(({ device_id }) => device_id))
    const missing = ids.filter((id) => !known.has(id))
    if (missing.length > 0)
      throw new HttpError('NOT_FOUND', `no device ${missing[0]}`, { device_ids: missing.slice(0, 100) })
    return ids
  }
  // the columns of a filter are those of `devices`
  const wanted = Object.entries(filter ?? {}).filter(([, value]) => value !== undefined) as [string, string][]
  const rows = await tx<{ device_id: string }[]>`
    select device_id from devices
    where tenant_id = ${tenant} ${wanted.map(([column, value]) => tx`and ${tx(column)} = ${value} `)}
    order by device_id limit ${JOB_DEVICES_MAX + 1}`
  if (rows.length === 0) throw new HttpError('NOT_FOUND', 'no device matches the filter')
  if (rows.length > JOB_DEVICES_MAX)
    throw new HttpError('INVALID_ARGUMENT', `filter: a job has at most ${JOB_DEVICES_MAX} devices`, {
      field: 'filter',
      kind: spec.kind,
    })
  return rows.map(({ device_id }) => device_id)
}

/** Can this device get what the job is about, as far as its protocol goes? @throws HttpError INVALID_ARGUMENT */
function checkDevice(deviceId: string, spec: JobSpec): void {
  const found = parseAnyDeviceId(deviceId)
  if (found === undefined) throw new HttpError('NOT_FOUND', `no device ${deviceId}`)
  const { protocol } = found
  const bad = (message: string, field: string) =>
    new HttpError('INVALID_ARGUMENT', message, { field, device_id: deviceId, protocol: protocol.name })
  if (spec.kind === 'firmware') {
    const needs = spec.ftp === undefined ? 'ap3000' : 'bkv'
    if (protocol.name !== needs)
      throw bad(`firmware.target: ${spec.target} is for ${needs}, ${deviceId} is ${protocol.name}`, 'firmware.target')
    if (spec.ftp !== undefined) otaCommand(deviceId, spec)
    return
  }
  const { name, params } = spec.set
  if (commandNamed(protocol, name).priority !== PRIORITY.parameter || !/^(?:set|write)/.test(name))
    throw bad(`set.name: ${name} writes no parameters`, 'set.name')
  if (spec.verify && readBackOf(protocol.name, name, params) === undefined)
    throw bad(`verify: nothing reads what ${name} writes`, 'verify')
  writeCommand(deviceId, spec)
}

async function checkImage(
  tx: TransactionSql,
  tenant: string,
  spec: Extract<JobSpec, { kind: 'firmware' }>,
  imageId: string | null,
): Promise<void> {
  if (spec.target === 'bkv_gateway' || spec.target === 'bkv_socket') return
  const [image] = await tx<{ bytes: number }[]>`
    select bytes from firmware_images where image_id = ${imageId} and tenant_id = ${tenant}`
  if (image === undefined) throw new HttpError('NOT_FOUND', `no firmware image ${imageId}`)
  const target = FIRMWARE_TARGETS[spec.target]
  if (spec.check !== undefined && target.chunkBytes !== 200)
    throw new HttpError('INVALID_ARGUMENT', `firmware.check: ${spec.target} has no check chunk`, {
      field: 'firmware.check',
    })
  if (chunksTotalOf(target, image.bytes, spec.check) > CHUNKS_MAX)
    throw new HttpError('INVALID_ARGUMENT', `an image has at most ${CHUNKS_MAX} chunks`, { field: 'firmware.image_id' })
}
