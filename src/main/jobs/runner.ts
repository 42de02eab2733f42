/**
 * Jobs on their way: looks which commands of jobs have got their fate, gives each device its next command or its
 * outcome, and lets the next devices of a wave begin. Everything it knows stands in `jobs` and `job_devices`, so a start
 * goes on where the last one ended; what a fate means is decided in src/jobs.
 *
 * Thread: main. A step of a device is one transaction: the next command, the note that it is waited for, and the events.
 * A round is asked for by `wake` (a fate was heard, a job was changed) and comes every 250 ms while a job is open.
 */
import { insertDerivedEvents } from '../../../workers/writer/insert.ts'
import type { DerivedEvent } from '../../../workers/writer/order-book.ts'
import type { Fields } from '../../codec/protocol.ts'
import { HttpError } from '../../errors/errors.ts'
import { eventIdOf } from '../../events/event-id.ts'
import { afterChunk, afterOta, afterRead, afterWrite, type Ended, type Fate } from '../../jobs/dialogue.ts'
import { chunkFields, chunksTotalOf, FIRMWARE_TARGETS } from '../../jobs/firmware-image.ts'
import { newTransfer, nextChunk, percentOf, type Transfer } from '../../jobs/firmware-transfer.ts'
import { type Params, readBackOf } from '../../jobs/parameter-proof.ts'
import { FAILURES, type Outcome, stepOfWave } from '../../jobs/waves.ts'
import { parseAnyDeviceId } from '../../protocols/index.ts'
import { PRIORITY } from '../../session/command-lane.ts'
import { commandNamed, encodeCommand } from '../commands/catalogue.ts'
import type { CommandService } from '../commands/service.ts'
import { databaseErrorCode, type Sql, type TransactionSql } from '../database/connect.ts'
import type { Log } from '../log.ts'
import type { JobSpec } from './spec.ts'

const ROUND_MS = 250
/** A job of another process, or one whose `wake` was lost. */
const IDLE_ROUND_MS = 5_000
/** Waves are looked at when something of theirs changed, and this often: a device was busy, a queue was full. */
const WAVE_LOOK_MS = 2_000
const FATES_PER_ROUND = 500
/** Steps at the same time: each holds a connection of main's pool. */
const STEPS_AT_ONCE = 3
const IMAGES_KEPT = 4
const UNIQUE_VIOLATION = '23505'

export interface JobRunnerOptions {
  readonly sql: Sql
  readonly log: Log
  readonly commands: Pick<CommandService, 'storeForJob'>
  readonly isOnline: (deviceId: string) => boolean
  readonly now: () => number
  /** Events were added: wake whoever publishes them. */
  readonly onEvents: () => void
  /** So many devices got this outcome. */
  readonly onEnded?: (outcome: Outcome, devices: number) => void
}

interface JobRow {
  readonly job_id: string
  readonly tenant_id: string
  readonly state: string
  readonly spec: JobSpec
  readonly image_id: string | null
  readonly created_by: string
  readonly expires_in_s: number
  readonly wave: number
  readonly wave_size: number
  readonly concurrency: number
  readonly pause_above_percent: number | null
  readonly device_count: number
  readonly resumed_at: Date
}

/** A device whose command has its fate. */
interface DueDevice extends JobRow {
  readonly device_id: string
  readonly step: 'write' | 'read' | 'ota' | 'chunk'
  readonly command_id: string
  readonly prior_command_id: string | null
  readonly transfer: Transfer | null
  readonly expires_at: Date
  /** null: the row of the command is gone. */
  readonly status: number | null
  readonly attempts: number | null
  readonly result: { reason?: string; chunk?: number; content?: Params } | null
}

/** One command of a job, as the step needs it. */
interface Command {
  readonly step: DueDevice['step']
  readonly name: string
  readonly fields: Fields
  readonly params: Readonly<Record<string, unknown>>
  readonly priority: number
  readonly socket: number
}

export class JobRunner {
  readonly #options: JobRunnerOptions
  readonly #images = new Map<string, Uint8Array>()
  /** Jobs whose wave may have something to do. */
  readonly #stirred = new Set<string>()
  #nextWaveLookMs = 0
  #timer: NodeJS.Timeout | undefined
  #round: Promise<void> | undefined
  #isWoken = false
  #isStopped = true
  #hasOpenJobs = true

  constructor(options: JobRunnerOptions) {
    this.#options = options
  }

  start(): void {
    this.#isStopped = false
    this.#plan(0)
  }

  /** Resolves when a round that runs has ended. */
  async stop(): Promise<void> {
    this.#isStopped = true
    clearTimeout(this.#timer)
    await this.#round
  }

  /** A job was changed: look at once. */
  wake(): void {
    this.#hasOpenJobs = true
    this.#nextWaveLookMs = 0
    this.#isWoken = true
    if (this.#round === undefined) this.#plan(0)
  }

  /** A command got its fate, and its row is about to. Costs nothing while no job is open. */
  fateHeard(): void {
    if (!this.#hasOpenJobs || this.#isWoken || this.#round !== undefined) return
    this.#isWoken = true
    this.#plan(ROW_MS)
  }

  #plan(ms: number): void {
    clearTimeout(this.#timer)
    if (this.#isStopped) return
    this.#timer = setTimeout(() => {
      this.#isWoken = false
      this.#round = this.round()
        .catch((error: unknown) => {
          this.#options.log.warn({ event: 'jobs.unlooked', err: error, msg: 'jobs wait; next try in seconds' })
          this.#hasOpenJobs = false
        })
        .then(() => {
          this.#round = undefined
          this.#plan(this.#isWoken ? 0 : this.#hasOpenJobs ? ROUND_MS : IDLE_ROUND_MS)
        })
    }, ms)
  }

  /** Everything that can be done now. @throws when the database does not answer; what was done until then stays done */
  async round(): Promise<void> {
    const due = await this.#dueDevices()
    await inParallel(due, STEPS_AT_ONCE, (device) => this.#guarded(device, () => this.#step(device)))
    const nowMs = this.#options.now()
    if (nowMs < this.#nextWaveLookMs && this.#stirred.size === 0) return
    const isLook = nowMs >= this.#nextWaveLookMs
    if (isLook) this.#nextWaveLookMs = nowMs + WAVE_LOOK_MS
    const jobs = await this.#openJobs()
    this.#hasOpenJobs = jobs.length > 0
    const stirred = new Set(this.#stirred)
    this.#stirred.clear()
    for (const job of jobs) if (isLook || stirred.has(job.job_id)) await this.#moveWave(job)
  }

  /** One device in trouble keeps no other from going on; the database being away keeps all. */
  async #guarded(device: { job_id: string; device_id: string }, act: () => Promise<void>): Promise<void> {
    try {
      await act()
    } catch (error) {
      if (error instanceof HttpError && error.code === 'TOO_MANY_REQUESTS') return
      if (isAway(error)) throw error
      const { job_id: jobId, device_id: deviceId } = device
      this.#options.log.error({ event: 'job.stuck', err: error, jobId, deviceId, msg: 'a step of a job failed' })
    }
  }

  async #dueDevices(): Promise<readonly DueDevice[]> {
    const { sql } = this.#options
    return await sql<DueDevice[]>`
      select ${jobColumns(sql)}, d.device_id, d.step, d.command_id, d.prior_command_id, d.transfer, d.expires_at,
        q.status, q.attempts, q.result
      from job_devices d join jobs j on j.job_id = d.job_id left join outbound_queue q on q.command_id = d.command_id
      where d.state = 'running' and (q.status >= 2 or q.command_id is null)
      limit ${FATES_PER_ROUND}`
  }

  async #openJobs(): Promise<readonly JobRow[]> {
    const { sql } = this.#options
    return await sql<JobRow[]>`
      select ${jobColumns(sql)} from jobs j where j.finished_at is null order by j.created_at, j.job_id`
  }

  // ---- one device -------------------------------------------------------------------------------------------------

  async #step(device: DueDevice): Promise<void> {
    const { spec, step } = device
    const fate: Fate = {
      // a row that is gone was swept with the dead ones
      status: device.status ?? COMMAND_GONE,
      reason: device.result?.reason ?? 'command_gone',
      attempts: device.attempts ?? 0,
      chunk: device.result?.chunk,
      content: device.result?.content,
    }
    switch (step) {
      case 'write': {
        if (spec.kind !== 'parameters') throw new Error(`job ${device.job_id} writes nothing`)
        const next = afterWrite(fate, spec.verify)
        if (next.kind === 'ended') return await this.#end(device, next)
        return await this.#next(device, readCommand(device.device_id, spec))
      }
      case 'read':
        if (spec.kind !== 'parameters') throw new Error(`job ${device.job_id} reads nothing`)
        return await this.#end(device, afterRead(fate, spec.set.params))
      case 'ota':
        return await this.#end(device, afterOta(fate))
      case 'chunk': {
        if (device.transfer === null) throw new Error(`job ${device.job_id} has no transfer`)
        const next = afterChunk(device.transfer, fate, device.state === 'cancelled')
        if (next.kind === 'ended') return await this.#end(device, next, next.transfer)
        // the time of the device is over; what is left would only expire
        if (device.expires_at.getTime() <= this.#options.now())
          return await this.#end(
            device,
            { kind: 'ended', outcome: 'expired', reason: 'expired', detail: {} },
            next.transfer,
          )
        return await this.#next(device, await this.#chunkCommand(device, next.chunk), next.transfer)
      }
    }
  }

  /** Stores the next command of a device that is under way. */
  async #next(device: DueDevice, command: Command, transfer: Transfer | null = null): Promise<void> {
    const { device_id: deviceId, job_id: jobId, expires_at: expiresAt } = device
    const events = transfer === null ? [] : this.#progress(device, device.transfer, transfer)
    await this.#options.commands.storeForJob(
      { ...storable(device, command), deviceId, expiresMs: expiresAt.getTime() },
      async (tx, commandId) => {
        const isOurs = await tx`
          update job_devices set step = ${command.step}, command_id = ${commandId}, prior_command_id = command_id,
            transfer = ${transfer === null ? null : tx.json(transfer as never)}
          where job_id = ${jobId} and device_id = ${deviceId} and state = 'running' and command_id = ${device.command_id}`
        if (isOurs.count === 0) return false
        await this.#dropPrior(tx, device)
        await insertDerivedEvents(tx, events)
        return true
      },
    )
    if (events.length > 0) this.#options.onEvents()
  }

  async #end(device: DueDevice, { outcome, reason, detail }: Ended, transfer: Transfer | null = null): Promise<void> {
    const { sql, now, onEvents } = this.#options
    const { device_id: deviceId, job_id: jobId } = device
    const events = transfer === null ? [] : [this.#told(device, transfer, 'end', { state: outcome, reason })]
    const isEnded = await sql.begin(async (tx) => {
      const isOurs = await tx`
        update job_devices set state = 'done', outcome = ${outcome}, reason = ${reason},
          detail = ${tx.json(detail as never)}, prior_command_id = null, finished_at = ${new Date(now())},
          transfer = ${transfer === null ? null : tx.json(transfer as never)}
        where job_id = ${jobId} and device_id = ${deviceId} and state = 'running' and command_id = ${device.command_id}`
      if (isOurs.count === 0) return false
      await this.#dropPrior(tx, device)
      // the last one stays, for its message id; its bytes are nobody's any more
      if (device.step === 'chunk')
        await tx`update outbound_queue set wire = wire - 'fields' where command_id = ${device.command_id}`
      await insertDerivedEvents(tx, events)
      return true
    })
    if (isEnded) this.#options.onEnded?.(outcome, 1)
    this.#stirred.add(jobId)
    if (events.length > 0) onEvents()
  }

  /**
   * A transfer leaves at most two rows in `outbound_queue`: the chunk whose fate was just read stays until the next one
   * has got its message id, because the id of a device's latest command is where a new session goes on.
   */
  async #dropPrior(tx: TransactionSql, { step, prior_command_id: prior }: DueDevice): Promise<void> {
    if (step === 'chunk' && prior !== null)
      await tx`delete from outbound_queue where command_id = ${prior} and kind = 'chunk' and status >= 2`
  }

  #progress(job: DueDevice, before: Transfer | null, after: Transfer): readonly DerivedEvent[] {
    const percent = percentOf(after)
    const isNews = before === null || percentOf(before) !== percent || before.restarts !== after.restarts
    return isNews ? [this.#told(job, after, percent, { state: 'transferring', reason: null })] : []
  }

  #told(
    job: JobRow & { readonly device_id: string },
    transfer: Transfer,
    what: number | 'end',
    said: Readonly<Record<string, unknown>>,
  ): DerivedEvent {
    const { job_id, device_id: deviceId, spec, image_id } = job
    const eventType = 'ota.progress_update'
    return {
      // after a restart the same steps are news again
      eventId: eventIdOf(eventType, deviceId, job_id, transfer.restarts, what),
      eventType,
      deviceId,
      epoch: 0,
      orderKey: null,
      atMs: this.#options.now(),
      data: {
        job_id,
        image_id,
        target: spec.kind === 'firmware' ? spec.target : null,
        ...said,
        percent: percentOf(transfer),
        chunk: transfer.acked,
        chunks_total: transfer.chunksTotal,
        restarts: transfer.restarts,
      },
    }
  }

  async #chunkCommand(job: JobRow, chunk: number): Promise<Command> {
    const { spec } = job
    if (spec.kind !== 'firmware' || spec.target === 'bkv_gateway' || spec.target === 'bkv_socket')
      throw new Error(`job ${job.job_id} has no chunks`)
    const target = FIRMWARE_TARGETS[spec.target]
    const image = await this.#image(job.image_id ?? '')
    return {
      step: 'chunk',
      name: target.command,
      fields: chunkFields(target, image, spec.check, chunk),
      params: { job_id: job.job_id, chunk, chunks_total: chunksTotalOf(target, image.length, spec.check) },
      priority: PRIORITY.firmware,
      socket: 0,
    }
  }

  async #image(imageId: string): Promise<Uint8Array> {
    const known = this.#images.get(imageId)
    if (known !== undefined) return known
    const [row] = await this.#options.sql<{ content: Uint8Array }[]>`
      select content from firmware_images where image_id = ${imageId}`
    if (row === undefined) throw new Error(`no image ${imageId}`)
    for (const oldest of this.#images.keys()) if (this.#images.size >= IMAGES_KEPT) this.#images.delete(oldest)
    this.#images.set(imageId, row.content)
    return row.content
  }

  // ---- waves ------------------------------------------------------------------------------------------------------

  async #moveWave(job: JobRow): Promise<void> {
    const { sql, log, now } = this.#options
    const { job_id: jobId, wave, wave_size: size } = job
    const from = wave * size
    // a paused one ends as well when its last devices do: there is nothing left that anybody could let go on
    if (job.state !== 'running' || from >= job.device_count) {
      const state = job.state === 'cancelled' ? 'cancelled' : 'finished'
      await sql`
        update jobs set state = ${state}, pause_reason = null, finished_at = ${new Date(now())}
        where job_id = ${jobId} and finished_at is null and state = ${job.state}
          and not exists (select from job_devices d where d.job_id = ${jobId} and d.state <> 'done')`
      return
    }
    const [counts] = await sql<{ waiting: number; running: number; done: number; failed: number }[]>`
      select count(*) filter (where state = 'waiting')::int as waiting,
        count(*) filter (where state = 'running')::int as running,
        count(*) filter (where state = 'done')::int as done,
        count(*) filter (where outcome = any(${[...FAILURES]}) and finished_at > ${job.resumed_at})::int as failed
      from job_devices where job_id = ${jobId} and item_index >= ${from} and item_index < ${from + size}`
    const rules = { concurrency: job.concurrency, pauseAbovePercent: job.pause_above_percent }
    const isLastDone = from + size >= job.device_count && counts!.waiting + counts!.running === 0
    const step = isLastDone ? ({ kind: 'nextWave' } as const) : stepOfWave(counts!, rules)
    if (step.kind === 'pause') {
      await sql`
        update jobs set state = 'paused', pause_reason = 'failure_rate' where job_id = ${jobId} and state = 'running'`
      log.warn({ event: 'job.paused', jobId, wave, failed: counts!.failed, msg: 'too many devices of a wave failed' })
    } else if (step.kind === 'nextWave') {
      await sql`update jobs set wave = ${wave + 1} where job_id = ${jobId} and wave = ${wave}`
      this.#stirred.add(jobId)
    } else if (step.count > 0) await this.#begin(job, from, step.count)
  }

  /** Devices that are here begin first: one that is away would keep its place until it expires. */
  async #begin(job: JobRow, from: number, count: number): Promise<void> {
    const { sql, isOnline } = this.#options
    const waiting = await sql<{ device_id: string }[]>`
      select d.device_id from job_devices d
      where d.job_id = ${job.job_id} and d.state = 'waiting'
        and d.item_index >= ${from} and d.item_index < ${from + job.wave_size}
        and not exists (select from job_devices o where o.device_id = d.device_id and o.state = 'running')
      order by d.item_index`
    const here = waiting.filter(({ device_id }) => isOnline(device_id))
    const away = waiting.filter(({ device_id }) => !isOnline(device_id))
    const chosen = [...here, ...away].slice(0, count).map(({ device_id }) => ({ ...job, device_id }))
    await inParallel(chosen, STEPS_AT_ONCE, (device) => this.#guarded(device, () => this.#beginDevice(device)))
  }

  async #beginDevice(job: JobRow & { readonly device_id: string }): Promise<void> {
    const { commands, now, onEvents } = this.#options
    const { job_id: jobId, device_id: deviceId, tenant_id: tenant, spec } = job
    let transfer: Transfer | null = null
    let command: Command
    try {
      if (spec.kind === 'parameters') command = writeCommand(deviceId, spec)
      else if (spec.target === 'bkv_gateway' || spec.target === 'bkv_socket') command = otaCommand(deviceId, spec)
      else {
        const target = FIRMWARE_TARGETS[spec.target]
        const image = await this.#image(job.image_id ?? '')
        transfer = newTransfer(chunksTotalOf(target, image.length, spec.check), target.hasTrigger)
        command = await this.#chunkCommand(job, nextChunk(transfer))
      }
    } catch (error) {
      if (!(error instanceof HttpError)) throw error
      return await this.#refuse(job, error.message)
    }
    const nowMs = now()
    const expiresMs = nowMs + job.expires_in_s * 1_000
    let isForeign = false
    try {
      await commands.storeForJob({ ...storable(job, command), deviceId, expiresMs }, async (tx, commandId) => {
        const [device] = await tx`select from devices where device_id = ${deviceId} and tenant_id = ${tenant}`
        isForeign = device === undefined
        if (isForeign) return false
        const isOurs = await tx`
          update job_devices set state = 'running', step = ${command.step}, command_id = ${commandId},
            transfer = ${transfer === null ? null : tx.json(transfer as never)}, started_at = ${new Date(nowMs)},
            expires_at = ${new Date(expiresMs)}
          where job_id = ${jobId} and device_id = ${deviceId} and state = 'waiting'
            and exists (select from jobs where job_id = ${jobId} and state = 'running')`
        if (isOurs.count === 0) return false
        if (transfer !== null)
          await insertDerivedEvents(tx, [this.#told(job, transfer, 0, { state: 'transferring', reason: null })])
        return true
      })
    } catch (error) {
      // another job has begun with it a moment ago: its turn comes
      if (databaseErrorCode(error) === UNIQUE_VIOLATION) return
      throw error
    }
    if (isForeign) return await this.#refuse(job, 'no_device')
    if (transfer !== null) onEvents()
  }

  /** The device cannot get this at all: it has moved to another tenant, or its release cannot say it. */
  async #refuse(job: JobRow & { readonly device_id: string }, reason: string): Promise<void> {
    const at = new Date(this.#options.now())
    const { count } = await this.#options.sql`
      update job_devices set state = 'done', outcome = 'refused', reason = ${reason}, started_at = ${at},
        finished_at = ${at}
      where job_id = ${job.job_id} and device_id = ${job.device_id} and state = 'waiting'`
    if (count > 0) this.#options.onEnded?.('refused', count)
    this.#stirred.add(job.job_id)
  }
}

/** Not the statement is the trouble, but that nobody answers it. Classes 08 (connection), 53 (resources), 57P (stopping). */
function isAway(error: unknown): boolean {
  const code = databaseErrorCode(error)
  return code !== undefined && (!/^[0-9A-Z]{5}$/.test(code) || /^(?:08...|53...|57P0.)$/.test(code))
}

/** A session thread tells main of a fate while a writer is still committing it. */
const ROW_MS = 25
/** Status `dead` of `outbound_queue`: only dead rows are swept. */
const COMMAND_GONE = 3

const jobColumns = (sql: Sql) => sql`j.job_id, j.tenant_id, j.state, j.spec, j.image_id, j.created_by, j.expires_in_s,
  j.wave, j.wave_size, j.concurrency, j.pause_above_percent, j.device_count, j.resumed_at`

function storable(job: JobRow, { step, name, fields, params, priority, socket }: Command) {
  const kind = step === 'chunk' ? ('chunk' as const) : ('other' as const)
  return { tenant: job.tenant_id, requestedBy: job.created_by, kind, name, fields, params, priority, socket, port: 0 }
}

/** @throws HttpError INVALID_ARGUMENT the device's protocol does not take it */
function named(deviceId: string, step: Command['step'], name: string, params: Params): Command {
  const found = parseAnyDeviceId(deviceId)
  if (found === undefined) throw new HttpError('NOT_FOUND', `no device ${deviceId}`)
  const entry = commandNamed(found.protocol, name)
  const { fields, socket } = encodeCommand(found.protocol, entry, found.deviceNo, params)
  return { step, name, fields, params, priority: entry.priority, socket }
}

export function writeCommand(deviceId: string, { set }: Extract<JobSpec, { kind: 'parameters' }>): Command {
  return named(deviceId, 'write', set.name, set.params)
}

function readCommand(deviceId: string, { set }: Extract<JobSpec, { kind: 'parameters' }>): Command {
  const readBack = readBackOf(parseAnyDeviceId(deviceId)?.protocol.name ?? '', set.name, set.params)
  if (readBack === undefined) throw new Error(`nothing reads what ${set.name} writes`)
  // the same urgency as the write: it belongs to it
  return { ...named(deviceId, 'read', readBack.name, readBack.params), priority: PRIORITY.parameter }
}

export function otaCommand(deviceId: string, spec: Extract<JobSpec, { kind: 'firmware' }>): Command {
  const { target, ftp } = spec
  if (ftp === undefined) throw new Error('an OTA names the FTP server')
  const params = {
    target: target === 'bkv_gateway' ? 1 : 2,
    ftp_ip: ftp.ip,
    ftp_port: ftp.port,
    file_name_ascii: ftp.file_name,
  }
  return named(deviceId, 'ota', 'startOta', params)
}

async function inParallel<T>(items: readonly T[], atOnce: number, act: (item: T) => Promise<void>): Promise<void> {
  let next = 0
  const lane = async () => {
    while (next < items.length) await act(items[next++]!)
  }
  await Promise.all(Array.from({ length: atOnce }, lane))
}
