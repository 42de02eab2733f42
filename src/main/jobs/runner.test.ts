/**
 * Claim: what the runner stores is what the tables of both protocols encode, one command per device at a time; a fate is
 * acted upon once, whoever looks and however often; a device is in one job at a time; a full queue delays and loses
 * nothing; what a tenant does not own is not touched. Tried on the real schema in a real PostgreSQL with the real command
 * service and desk; the shard is missing: the test writes the fates in its place, by the writer's own code.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { insertSpan } from '../../../workers/writer/insert.ts'
import { type ApiKey, parseApiKeys } from '../../config/api-keys.ts'
import { HttpError } from '../../errors/errors.ts'
import { commandFateRow } from '../../rows/index.ts'
import { encodeRow } from '../../rows/row.ts'
import { COMMAND_STATUS } from '../../session/command-lane.ts'
import { allocateDirectory, Directory } from '../../shared/directory.ts'
import { allocateOutbox, OutboxProducer } from '../../shared/outbox.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { CommandDesk } from '../command-desk.ts'
import { SqlCommandStore } from '../command-store.ts'
import { CommandService } from '../commands/service.ts'
import { createLog } from '../log.ts'
import { type JobRequest, Jobs, shownSpec } from './jobs.ts'
import { JobRunner } from './runner.ts'
import type { JobSpec } from './spec.ts'

const { keys } = parseApiKeys('root:root-secret:admin,north:north-secret:admin:north')
const callerOf = (key: ApiKey) => ({ key, requestId: 'r', remoteAddress: '::1' })
const [root, north] = keys.map(callerOf) as [ReturnType<typeof callerOf>, ReturnType<typeof callerOf>]
const log = createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'main' })
const COMMANDS_MAX = 20

let database: TestDatabase
let desk: CommandDesk
let runner: JobRunner
let jobs: Jobs
let events = 0

before(async () => {
  database = await openTestDatabase()
  const { sql } = database
  desk = new CommandDesk({
    store: new SqlCommandStore(sql),
    log,
    directory: new Directory(allocateDirectory(1_024, 1)),
    mailboxes: [new OutboxProducer(allocateOutbox(262_144))],
    wakeShard: () => {},
    askCancel: () => {},
    commandsMax: COMMANDS_MAX,
    commandsPerDeviceMax: 10,
    now: Date.now,
    after: (ms, act) => void setTimeout(act, ms).unref(),
    onHeld: () => {},
    onEnded: () => {},
  })
  const limits = { perKeyPerS: 1_000, perDevicePerS: 1_000, fleetPerS: 1_000 }
  const commands = new CommandService({ sql, log, desk, commandExpiryMs: 60_000, limits, now: Date.now })
  runner = new JobRunner({ sql, log, commands, isOnline: () => true, now: Date.now, onEvents: () => events++ })
  // rounds are the test's: nobody starts the runner
  jobs = new Jobs({ sql, desk, runner: { wake: () => runner.wake() } })
  await sql`insert into tenants (tenant_id, name) values ('north', 'North')`
})
after(async () => {
  await runner.stop()
  await database.close()
})

async function addDevices(tenant: string, ...ids: string[]): Promise<void> {
  await database.sql`
    insert into devices (device_id, tenant_id, protocol)
    select id, ${tenant}, 'x' from unnest(${ids}::text[]) as given (id)`
}

const make = (spec: JobSpec, deviceIds: string[], more: Partial<JobRequest> = {}, caller = root) =>
  jobs.make(caller, {
    spec,
    imageId: null,
    deviceIds,
    filter: undefined,
    waveSize: undefined,
    concurrency: 10,
    pauseAbovePercent: null,
    expiresInS: 60,
    body: {},
    ...more,
  })

interface DeviceRow {
  readonly device_id: string
  readonly state: string
  readonly step: string | null
  readonly command_id: string
  readonly outcome: string | null
  readonly reason: string | null
  readonly name: string | null
  readonly fields: Record<string, unknown> | null
}
const devicesOf = (jobId: string) =>
  database.sql<DeviceRow[]>`
    select d.device_id, d.state, d.step, d.command_id, d.outcome, d.reason, q.name, q.wire->'fields' as fields
    from job_devices d left join outbound_queue q on q.command_id = d.command_id
    where d.job_id = ${jobId} order by d.item_index`
const stateOf = async (jobId: string) =>
  (await database.sql<{ state: string }[]>`select state from jobs where job_id = ${jobId}`)[0]!.state

/** As a session would, through a writer; the desk hears of it as well. */
async function give(
  { command_id: commandId, device_id: deviceId }: DeviceRow,
  status: keyof typeof COMMAND_STATUS,
  reason: string,
  result: object = {},
): Promise<void> {
  const row = encodeRow(commandFateRow, {
    commandId,
    deviceId,
    epoch: 5,
    status: COMMAND_STATUS[status],
    attempts: 1,
    messageId: 77,
    atMs: Date.now(),
    reason,
    result: JSON.stringify(result),
  })
  await insertSpan(database.sql, row.slice())
  desk.moved(commandId, COMMAND_STATUS[status])
}

/** Twice: the second look must change nothing. */
async function rounds(): Promise<void> {
  for (let round = 0; round < 3; round++) {
    runner.wake()
    await runner.round()
  }
}

test('BKV parameters are written to their socket, read back from it, and compared', async () => {
  const id = '82200520004869'
  await addDevices('default', id)
  const params = { socket: 7, full_charge_delay_s: 60, trickle_percent: 5 }
  const jobId = await make({ kind: 'parameters', set: { name: 'setParameters', params }, verify: true }, [id])
  await rounds()
  const [written] = await devicesOf(jobId)
  assert.equal(written!.name, 'setParameters')
  assert.deepEqual(written!.fields, { socket: 7, fullChargeDelayS: 60, tricklePercent: 5 })
  await give(written!, 'acked', 'ok')
  await rounds()
  const [read] = await devicesOf(jobId)
  assert.deepEqual([read!.step, read!.name, read!.fields], ['read', 'queryParameters', { socket: 7 }])
  await give(read!, 'acked', 'ok', { content: { socket: 7, full_charge_delay_s: 60, trickle_percent: 6 } })
  await rounds()
  const [done] = await devicesOf(jobId)
  assert.deepEqual([done!.outcome, done!.reason], ['mismatch', 'read_back_differs'])
  assert.equal(await stateOf(jobId), 'finished')
  const commands = await database.sql`select from outbound_queue where device_id = ${id}`
  assert.equal(commands.length, 2, 'one write, one read')
})

test('BKV firmware is one command, and nobody knows more than that it was sent', async () => {
  const id = '82200520004870'
  await addDevices('default', id)
  const ftp = { ip: '10.0.0.9', port: 21, file_name: 'cV.1r47.bin' }
  const jobId = await make({ kind: 'firmware', target: 'bkv_socket', ftp }, [id])
  await rounds()
  const [given] = await devicesOf(jobId)
  assert.deepEqual(given!.fields, { target: 2, ftpIp: '10.0.0.9', ftpPort: 21, fileNameAscii: 'cV.1r47.bin' })
  await give(given!, 'acked', 'sent')
  await rounds()
  assert.equal((await devicesOf(jobId))[0]!.outcome, 'sent')
})

test('a host enters upgrade mode first; two jobs for one device take turns', async () => {
  const id = '04000101'
  await addDevices('default', id)
  const { imageId } = await jobs.addImage(root, 'two chunks', new Uint8Array(300).fill(1))
  const spec: JobSpec = { kind: 'firmware', target: 'host', check: { deviceTypeHex: '15', fwVersion: 210 } }
  const first = await make(spec, [id], { imageId })
  const second = await make(spec, [id], { imageId })
  await rounds()
  assert.equal((await devicesOf(second))[0]!.state, 'waiting')
  const chunks: unknown[] = []
  const before = events
  for (;;) {
    const [device] = await devicesOf(first)
    if (device!.outcome !== null) break
    const { chunk = 0 } = device!.fields as { chunk?: number }
    chunks.push(device!.fields!['trigger'] ?? chunk)
    assert.ok(chunks.length < 10)
    const rows = await database.sql`select from outbound_queue where device_id = ${id} and status < 2`
    assert.equal(rows.length, 1, 'one command at a time')
    await give(device!, 'acked', 'ok', { chunk })
    await rounds()
  }
  assert.deepEqual(chunks, [true, 1, 2, 3])
  assert.equal((await devicesOf(first))[0]!.outcome, 'ok')
  assert.ok(events > before)
  await rounds()
  const [next] = await devicesOf(second)
  assert.equal(next!.state, 'running')
  assert.deepEqual(next!.fields, { trigger: true })

  await jobs.cancel(root, second)
  await rounds()
  assert.deepEqual([await stateOf(second), (await devicesOf(second))[0]!.outcome], ['cancelled', 'cancelled'])
})

test('a full queue delays a job, and loses nothing of it', async () => {
  const ids = Array.from({ length: COMMANDS_MAX + 5 }, (_, index) => (0x04000200 + index).toString(16).padStart(8, '0'))
  await addDevices('default', ...ids)
  const set = { name: 'setSilent', params: { silent: 1 } }
  const jobId = await make({ kind: 'parameters', set, verify: false }, ids, { concurrency: 100 })
  for (let look = 0; look < 10 && (await stateOf(jobId)) === 'running'; look++) {
    await rounds()
    const running = (await devicesOf(jobId)).filter(({ state }) => state === 'running')
    // three steps at once see the same last place
    assert.ok(running.length <= COMMANDS_MAX + 2, `${running.length} under way`)
    for (const device of running) await give(device, 'acked', 'ok')
  }
  await rounds()
  assert.equal(await stateOf(jobId), 'finished')
  assert.ok((await devicesOf(jobId)).every(({ outcome }) => outcome === 'ok'))
  const commands = await database.sql`select from outbound_queue where device_id = any(${ids})`
  assert.equal(commands.length, ids.length)
})

test('tenants: devices, images and jobs of another are not there', async () => {
  const id = '04000301'
  await addDevices('default', id)
  const notFound = (error: unknown) => error instanceof HttpError && error.code === 'NOT_FOUND'
  const spec: JobSpec = { kind: 'parameters', set: { name: 'setSilent', params: { silent: 1 } }, verify: false }
  await assert.rejects(make(spec, [id], {}, north), notFound)
  const jobId = await make(spec, [id])
  await assert.rejects(jobs.pause(north, jobId), notFound)
  const { imageId } = await jobs.addImage(root, 'ours', Uint8Array.of(1))
  await addDevices('north', '04000302')
  await assert.rejects(make({ kind: 'firmware', target: 'slave' }, ['04000302'], { imageId }, north), notFound)
  // moved to another tenant after the job was made: it gets nothing
  await database.sql`update devices set tenant_id = 'north' where device_id = ${id}`
  await rounds()
  const [device] = await devicesOf(jobId)
  assert.deepEqual([device!.outcome, device!.reason], ['refused', 'no_device'])
  assert.equal((await database.sql`select from outbound_queue where device_id = ${id}`).length, 0)
})

test('a command whose row is gone is dead, and its job goes on', async () => {
  await addDevices('default', '04000401', '04000402')
  const set = { name: 'setSilent', params: { silent: 1 } }
  const spec: JobSpec = { kind: 'parameters', set, verify: false }
  const jobId = await make(spec, ['04000401', '04000402'], { waveSize: 1 })
  await rounds()
  const [device] = await devicesOf(jobId)
  await database.sql`delete from outbound_queue where command_id = ${device!.command_id}`
  await rounds()
  const [first, second] = await devicesOf(jobId)
  assert.deepEqual([first!.outcome, first!.reason, second!.state], ['dead', 'command_gone', 'running'])
})

test('too many failures pause a job while something is left to be kept from, and no longer', async () => {
  const ids = ['04000501', '04000502', '04000503']
  await addDevices('default', ...ids)
  const set = { name: 'setSilent', params: { silent: 1 } }
  const spec: JobSpec = { kind: 'parameters', set, verify: false }
  const jobOf = async (jobId: string) => {
    const [job] = await database.sql<{ state: string; pause_reason: string | null; is_over: boolean }[]>`
      select state, pause_reason, finished_at is not null as is_over from jobs where job_id = ${jobId}`
    return [job!.state, job!.pause_reason, job!.is_over]
  }
  // the only wave fails as a whole: nobody could let anything go on
  const lost = await make(spec, ids.slice(0, 1), { pauseAbovePercent: 20 })
  await rounds()
  await give((await devicesOf(lost))[0]!, 'refused', 'device')
  await rounds()
  assert.deepEqual(await jobOf(lost), ['finished', null, true])

  // one failed, the other is under way: a pause, which ends with it
  const half = await make(spec, ids.slice(0, 2), { pauseAbovePercent: 20 })
  await rounds()
  await give((await devicesOf(half))[0]!, 'dead', 'timeout')
  await rounds()
  assert.deepEqual(await jobOf(half), ['paused', 'failure_rate', false])
  await give((await devicesOf(half))[1]!, 'acked', 'ok')
  await rounds()
  assert.deepEqual(await jobOf(half), ['finished', null, true])

  // a wave waits behind it
  const waits = await make(spec, ids.slice(1), { pauseAbovePercent: 20, waveSize: 1 })
  await rounds()
  await give((await devicesOf(waits))[0]!, 'dead', 'timeout')
  await rounds()
  assert.deepEqual(await jobOf(waits), ['paused', 'failure_rate', false])
  await jobs.resume(root, waits)
  await rounds()
  await give((await devicesOf(waits))[1]!, 'dead', 'timeout')
  await rounds()
  assert.deepEqual(await jobOf(waits), ['finished', null, true])
})

test('what a job checks is shown in the words it was posted with', () => {
  const check = { deviceTypeHex: '21', fwVersion: 641 }
  assert.deepEqual(shownSpec({ kind: 'firmware', target: 'slave', check }), {
    firmware: { target: 'slave', check: { device_type: '21', fw_version: 641 } },
  })
  assert.deepEqual(shownSpec({ kind: 'firmware', target: 'slave' }), { firmware: { target: 'slave' } })
})
