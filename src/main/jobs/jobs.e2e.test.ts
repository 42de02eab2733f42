/**
 * Claim: a job reaches each of its devices over the ordinary command lane and tells what became of it: parameters are
 * written and proven by reading them back, a refusal and an absence are outcomes of their own; a firmware image arrives
 * whole and in order although a device asks for a chunk again, asks to begin again, and the gateway is killed in the
 * middle; waves stop when too many fail and go on when somebody says so. Tried with the gateway as a child process and
 * devices on real sockets that answer by AP3000 document, section 8.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { after, before, test } from 'node:test'
import { closeClients, DeviceClient, type Dny, dny, le } from '../../testing/device-client.ts'
import { assertKeysOfSample } from '../../testing/event-samples.ts'
import { dataDirectory, eventually, GatewayProcess } from '../../testing/gateway-process.ts'

const env = { SHARDS: '1', STATE_FLUSH_MS: '50', COMMAND_SPACING_MS: '20', ACK_TIMEOUT_MS: '1000', ACK_RETRIES: '0' }
const idOf = (pile: number) => pile.toString(16).padStart(8, '0')
const FAR_FUTURE_S = 600

let gateway: GatewayProcess
let dataDir: string

before(async () => {
  dataDir = dataDirectory()
  gateway = await GatewayProcess.start({ dataDir, env })
})
after(async () => {
  closeClients()
  await gateway.remove()
})

/** What a pile answers to a command: data of the result as hex; undefined: silence. */
type Answer = (command: Dny) => string | undefined

interface Pile {
  readonly heard: Dny[]
  readonly client: DeviceClient
  stop(): Promise<void>
}

/** A pile that is here and answers until it is stopped, or its connection ends. */
async function arrive(pile: number, answer: Answer): Promise<Pile> {
  const client = await DeviceClient.connect(gateway.tcpPort)
  const registered = await client.exchange(dny(pile, 1, 0x20, '800202001f00'))
  assert.equal(registered.command, 0x20)
  const heard: Dny[] = []
  let isOver = false
  const loop = (async () => {
    while (!isOver) {
      let frame: Dny
      try {
        frame = await client.next(100)
      } catch {
        if (client.isClosed) return
        continue
      }
      if (frame.command === 0x20) continue
      heard.push(frame)
      const data = answer(frame)
      if (data !== undefined && !client.isClosed) client.send(dny(pile, frame.messageId, frame.command, data))
    }
  })()
  const stop = async () => {
    isOver = true
    client.destroy()
    await loop
  }
  return { heard, client, stop }
}

// biome-ignore lint/suspicious/noExplicitAny: see HttpReply.json
async function post(path: string, body: unknown, status = 202): Promise<any> {
  const reply = await gateway.ask('POST', path, { body })
  assert.equal(reply.status, status, reply.text)
  return reply.json
}

const jobOf = (jobId: string) => gateway.get(`/api/v1/jobs/${jobId}`)
const finished = (jobId: string, withinMs = 15_000) =>
  eventually(
    'the end of the job',
    () => jobOf(jobId),
    ({ job }) => job.finished_at !== null,
    withinMs,
  )

/** Parameters 1.1 as bytes: what 83 writes and 90 reads. */
const PARAMETERS = {
  unplug_power_dw: 5,
  unplug_time_s: 20,
  float_percent: 15,
  float_detect_s: 900,
  float_time_s: 1_800,
  heartbeat_s: 120,
}
const PARAMETERS_HEX = le(5, 2) + le(20, 2) + le(15, 1) + le(900, 2) + le(1_800, 2) + le(120, 2)

/** Keeps what 83 wrote and reads it with 90, unless told otherwise. */
function settings(rules: { readonly refuses?: boolean; readonly forgets?: boolean } = {}): Answer {
  let stored = le(3, 2) + le(10, 2) + le(20, 1) + le(1_800, 2) + le(3_600, 2) + le(180, 2)
  return ({ command, dataHex }) => {
    if (command === 0x90) return stored
    if (command !== 0x83) return undefined
    if (rules.refuses === true) return '01'
    if (rules.forgets !== true) stored = dataHex
    return '00'
  }
}

test('parameters: proven, refused, other values, and a device that is away', async () => {
  const piles = [0x04000001, 0x04000002, 0x04000003, 0x04000004]
  const [good, refusing, forgetful, away] = [
    await arrive(piles[0]!, settings()),
    await arrive(piles[1]!, settings({ refuses: true })),
    await arrive(piles[2]!, settings({ forgets: true })),
    await arrive(piles[3]!, settings()),
  ]
  await eventually(
    'devices',
    () => gateway.sql`select from devices where device_id = any(${piles.map(idOf)})`,
    (rows) => rows.length === 4,
  )
  await away.stop()
  await eventually(
    'one offline',
    () => gateway.get(`/api/v1/devices/${idOf(piles[3]!)}`),
    (device) => !device.presence.online,
  )
  const body = {
    kind: 'parameters',
    device_ids: piles.map(idOf),
    set: { name: 'setParameters1', params: PARAMETERS },
    waves: { pause_above_percent: null },
    expires_in_s: 3,
  }
  const headers = { 'idempotency-key': 'parameters-1' }
  const first = await gateway.ask('POST', '/api/v1/jobs', { body, headers })
  assert.equal(first.status, 202, first.text)
  const again = await gateway.ask('POST', '/api/v1/jobs', { body, headers })
  assert.equal(again.json.job_id, first.json.job_id)
  const other = await gateway.ask('POST', '/api/v1/jobs', { body: { ...body, expires_in_s: 4 }, headers })
  assert.equal(other.status, 409)
  assert.equal(first.json.devices.total, 4)

  const { job, items } = await finished(first.json.job_id)
  assert.equal(job.state, 'finished')
  const seen = items.map(({ device_id, outcome, reason }: Record<string, string>) => [device_id, outcome, reason])
  assert.deepEqual(seen, [
    [idOf(piles[0]!), 'ok', 'proven'],
    [idOf(piles[1]!), 'refused', 'bad_parameter'],
    [idOf(piles[2]!), 'mismatch', 'read_back_differs'],
    [idOf(piles[3]!), 'expired', 'expired'],
  ])
  assert.deepEqual(items[0].detail.content, PARAMETERS)
  assert.equal(items[2].detail.mismatches.length, 6)
  const mismatch = items[2].detail.mismatches.find(({ field }: { field: string }) => field === 'unplug_power_dw')
  assert.deepEqual(mismatch, { field: 'unplug_power_dw', wanted: 5, found: 3 })
  assert.deepEqual(
    good.heard.map(({ command, dataHex }) => [command, dataHex]),
    [
      [0x83, PARAMETERS_HEX],
      [0x90, ''],
    ],
  )
  assert.deepEqual(
    refusing.heard.map(({ command }) => command),
    [0x83],
  )
  const audited = await gateway.sql`select from audit_logs where action = 'job.requested'`
  assert.equal(audited.length, 1)
  for (const pile of [good, refusing, forgetful]) await pile.stop()
})

/** Takes chunks in order by section 8, E0; what it holds can be looked at. */
class Flash {
  readonly chunks = new Map<number, string>()
  total = 0
  /** Asked for again once. */
  readonly #resends: Set<number>
  constructor(resends: readonly number[] = []) {
    this.#resends = new Set(resends)
  }
  readonly answer: Answer = ({ command, dataHex }) => {
    if (command !== 0xe0) return undefined
    const data = Buffer.from(dataHex, 'hex')
    assert.equal(data.length, 204)
    this.total = data.readUInt16LE(0)
    const chunk = data.readUInt16LE(2)
    if (chunk === 1) this.chunks.clear()
    // what was under way when it began again
    if (chunk > this.chunks.size + 1) return undefined
    if (this.#resends.delete(chunk)) return `01${le(chunk, 2)}`
    this.chunks.set(chunk, data.toString('hex', 4))
    return `00${le(chunk, 2)}`
  }
  get image(): Buffer {
    return Buffer.from(
      [...this.chunks.entries()]
        .sort(([a], [b]) => a - b)
        .flatMap(([, hex]) => [hex])
        .join(''),
      'hex',
    )
  }
}

test('firmware: 20 chunks to two piles through a resend, a request to begin again, and a killed gateway', async () => {
  const piles = [0x04000011, 0x04000012]
  const flashes = [new Flash([3]), new Flash()]
  let here = [await arrive(piles[0]!, flashes[0]!.answer), await arrive(piles[1]!, flashes[1]!.answer)]
  const image = Buffer.from(Array.from({ length: 20 * 200 - 50 }, (_, index) => (index * 7) & 0xff))
  const upload = await gateway.ask('POST', '/api/v1/firmware?name=V6.41', { body: image })
  assert.equal(upload.status, 201, upload.text)
  assert.equal(upload.json.sha256, createHash('sha256').update(image).digest('hex'))
  assert.equal((await gateway.ask('POST', '/api/v1/firmware?name=again', { body: image })).status, 200)
  await eventually(
    'devices',
    () => gateway.sql`select from devices where device_id = any(${piles.map(idOf)})`,
    (rows) => rows.length === 2,
  )
  const { job_id: jobId } = await post('/api/v1/jobs', {
    kind: 'firmware',
    device_ids: piles.map(idOf),
    firmware: { target: 'slave', image_id: upload.json.image_id },
    expires_in_s: FAR_FUTURE_S,
  })
  await eventually(
    'seven chunks',
    () => flashes.map(({ chunks }) => chunks.size),
    (sizes) => sizes.every((size) => size >= 7),
    15_000,
  )
  await gateway.kill()
  await Promise.all(here.map((pile) => pile.stop()))
  const before = flashes.map(({ chunks }) => chunks.size)
  gateway = await GatewayProcess.start({ dataDir, env })
  here = [await arrive(piles[0]!, flashes[0]!.answer), await arrive(piles[1]!, flashes[1]!.answer)]
  await eventually(
    'a chunk more',
    () => flashes.map(({ chunks }) => chunks.size),
    (sizes) => sizes.every((size, index) => size > before[index]!),
    15_000,
  )
  // the second one loses power and asks by itself: it forgets, and begins at chunk 1
  flashes[1]!.chunks.clear()
  const begunAgain = here[1]!.heard.length
  here[1]!.client.send(dny(piles[1]!, 500, 0x05, `1f${le(640, 2)}${le(0, 4)}`))
  await eventually(
    'chunk 1 again',
    () => here[1]!.heard.slice(begunAgain).some(({ dataHex }) => dataHex.slice(4, 8) === le(1, 2)),
    Boolean,
    15_000,
  )
  const { items } = await finished(jobId, 40_000)
  assert.deepEqual(
    items.map(({ outcome, progress }: { outcome: string; progress: object }) => [outcome, progress]),
    [
      ['ok', { percent: 100, chunk: 20, chunks_total: 20, restarts: 0 }],
      ['ok', { percent: 100, chunk: 20, chunks_total: 20, restarts: 1 }],
    ],
  )
  for (const flash of flashes) {
    assert.equal(flash.total, 20)
    assert.deepEqual(flash.image.subarray(0, image.length), image)
    assert.deepEqual(
      [...flash.image.subarray(image.length)],
      Array.from({ length: 50 }, () => 0xff),
    )
  }
  // what went before the kill was not sent anew
  assert.ok(
    here[0]!.heard.length <= 20 - before[0]! + 2,
    `${here[0]!.heard.length} frames for ${20 - before[0]!} chunks`,
  )

  const left = await gateway.sql`
    select device_id, wire ? 'fields' as has_bytes from outbound_queue where kind = 'chunk' order by device_id`
  assert.deepEqual(
    left.map(({ device_id, has_bytes }) => [device_id, has_bytes]),
    piles.map((pile) => [idOf(pile), false]),
    'one row without its bytes stays for each device',
  )
  const { items: events } = await gateway.get('/api/v1/events?type=ota.progress_update&limit=500')
  const told = events.filter(
    (event: { device_phy_id: string; data: { job_id?: string } }) =>
      event.device_phy_id === idOf(piles[0]!) && event.data.job_id === jobId,
  )
  assert.deepEqual(
    told.map(({ data }: { data: { state: string; percent: number } }) => [data.state, data.percent]),
    [...Array.from({ length: 20 }, (_, index) => ['transferring', index * 5]), ['ok', 100]],
  )
  for (const { data } of told) assertKeysOfSample('ota.progress_update', data)
  const { items: fates } = await gateway.get('/api/v1/events?type=command.finished&limit=500')
  assert.ok(!fates.some(({ data }: { data: { name: string } }) => data.name === 'firmwareSlave'), 'a chunk is no event')
  for (const pile of here) await pile.stop()
})

test('waves: one after the other, a pause when too many fail, on and away by hand', async () => {
  const piles = Array.from({ length: 6 }, (_, index) => 0x04000021 + index)
  const here: Pile[] = []
  for (const [index, pile] of piles.entries()) here.push(await arrive(pile, settings({ refuses: index < 2 })))
  await eventually(
    'devices',
    () => gateway.sql`select from devices where device_id = any(${piles.map(idOf)})`,
    (rows) => rows.length === 6,
  )
  const { job_id: jobId } = await post('/api/v1/jobs', {
    kind: 'parameters',
    device_ids: piles.map(idOf),
    set: { name: 'setParameters1', params: PARAMETERS },
    waves: { size: 2, concurrency: 1, pause_above_percent: 40 },
  })
  const paused = await eventually(
    'a pause',
    () => jobOf(jobId),
    ({ job }) => job.state === 'paused',
  )
  assert.equal(paused.job.pause_reason, 'failure_rate')
  // 50 % of the wave with the first failure: the second device has not begun
  assert.deepEqual([paused.job.devices.refused, paused.job.devices.waiting], [1, 5])
  assert.equal((await gateway.ask('POST', `/api/v1/jobs/${jobId}/pause`)).status, 409)
  await post(`/api/v1/jobs/${jobId}/resume`, undefined, 200)
  await eventually(
    'another pause',
    () => jobOf(jobId),
    ({ job }) => job.state === 'paused' && job.devices.refused === 2,
  )
  assert.deepEqual(
    here.slice(2).map(({ heard }) => heard.length),
    [0, 0, 0, 0],
    'the next wave has not begun',
  )
  await post(`/api/v1/jobs/${jobId}/resume`, undefined, 200)
  const { job } = await finished(jobId)
  assert.deepEqual([job.state, job.devices.ok, job.waves.current, job.waves.total], ['finished', 4, 3, 3])

  // nobody answers: what waits is cancelled at once, what was sent ends by itself
  for (const pile of here) await pile.stop()
  await eventually(
    'nobody there',
    () => gateway.get('/api/v1/devices?limit=100'),
    ({ items }) => items.every(({ presence }: { presence: { online: boolean } }) => !presence.online),
  )
  const { job_id: cancelled } = await post('/api/v1/jobs', {
    kind: 'parameters',
    filter: { protocol: 'ap3000' },
    set: { name: 'setLimits', params: { max_charge_s: 30_000, overload_power_dw: 20_000 } },
    waves: { concurrency: 2 },
  })
  await eventually(
    'two under way',
    () => jobOf(cancelled),
    ({ job: one }) => one.devices.running === 2,
  )
  await post(`/api/v1/jobs/${cancelled}/cancel`, undefined, 200)
  const over = await finished(cancelled)
  assert.equal(over.job.state, 'cancelled')
  assert.equal(over.job.devices.cancelled, over.job.devices.total)
})

test('what cannot be is refused and leaves nothing', async () => {
  const [{ count: before }] = (await gateway.sql`select count(*)::int from jobs`) as unknown as [{ count: number }]
  const refusal = async (body: object, status: number, secret?: string) => {
    const reply = await gateway.ask('POST', '/api/v1/jobs', { body, ...(secret === undefined ? {} : { secret }) })
    assert.equal(reply.status, status, reply.text)
  }
  const device_ids = [idOf(0x04000001)]
  const set = { name: 'setParameters1', params: PARAMETERS }
  await refusal({ kind: 'parameters', set }, 400)
  await refusal({ kind: 'parameters', device_ids: ['04ffffff'], set }, 404)
  await refusal({ kind: 'parameters', device_ids, set: { name: 'reboot', params: {} }, verify: false }, 400)
  await refusal({ kind: 'parameters', device_ids, set: { name: 'setSilent', params: { silent: 1 } } }, 400)
  await refusal({ kind: 'parameters', device_ids, set: { name: 'setParameters1', params: {} } }, 400)
  await refusal({ kind: 'firmware', device_ids, firmware: { target: 'slave', image_id: 'none' } }, 404)
  const ftp = { ip: '10.0.0.9', port: 21, file_name: 'a.bin' }
  await refusal({ kind: 'firmware', device_ids, firmware: { target: 'bkv_gateway', ftp } }, 400)
  assert.equal((await gateway.ask('POST', '/api/v1/firmware', { body: Buffer.alloc(1_048_577) })).status, 413)
  const [{ count: now }] = (await gateway.sql`select count(*)::int from jobs`) as unknown as [{ count: number }]
  assert.equal(now, before)
})
