/**
 * Claim (field-notes D1): a burst of 2,000 commands to 2,000 devices is no queue of one: each device gets its own, once,
 * and its command is acked because the device said so; a device that says nothing ends dead, never done. Tried over HTTP
 * and real sockets. How fast it is is measured by `node loadtest/commands.ts`; here the time only shows that nobody waits
 * for the timeouts of others: 20 silent devices one after the other would take longer than the whole test may.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { ApiClient } from '../../../loadtest/api-client.ts'
import { ap3000DeviceNo } from '../../../loadtest/device-ap3000.ts'
import { FLEET_DEFAULTS, type FleetResult, runFleet } from '../../../loadtest/fleet-run.ts'
import { eventually, GatewayProcess } from '../../testing/gateway-process.ts'
import { readFrame } from '../../testing/sim-wire.ts'

const DEVICES = 2_000
const SILENT_EVERY = 100
const SEED = 31
const ACK_TIMEOUT_MS = 2_000
const LOCATE = '96'
const WITHIN_MS = 30_000

const idOf = (index: number) => ap3000DeviceNo(SEED, index).toString(16).padStart(8, '0')
const silent = new Set(Array.from({ length: DEVICES / SILENT_EVERY }, (_, index) => idOf(index * SILENT_EVERY)))

const fleetDone = new AbortController()
let gateway: GatewayProcess | undefined
let api: ApiClient | undefined
let fleet: Promise<FleetResult> | undefined
after(async () => {
  fleetDone.abort()
  await fleet
  api?.close()
  await gateway?.remove()
})

test('D1: 2,000 commands to 2,000 devices; who is silent is dead', async (context) => {
  const started = await GatewayProcess.start({ env: { ACK_TIMEOUT_MS: String(ACK_TIMEOUT_MS), ACK_RETRIES: '0' } })
  gateway = started
  const client = new ApiClient(`http://127.0.0.1:${started.httpPort}`, started.secret, 128)
  api = client
  /** Command frames by device. */
  const heard = new Map<string, number>()
  fleet = runFleet(
    {
      ...FLEET_DEFAULTS,
      port: started.tcpPort,
      devices: DEVICES,
      rampPerS: 2_000,
      ordersPerS: 0,
      durationS: 120,
      seed: SEED,
      hostEvery: 0,
      graceS: 0,
      wiretap: {
        received: (deviceId, bytes) => {
          if (readFrame(bytes)?.name === LOCATE) heard.set(deviceId, (heard.get(deviceId) ?? 0) + 1)
        },
        mayPass: (deviceId, bytes) => !silent.has(deviceId) || readFrame(bytes)?.name !== LOCATE,
      },
    },
    fleetDone.signal,
  )
  const count = async (what: string) => {
    const [row] = await started.sql.unsafe<{ count: number }[]>(`select count(*)::int as count from ${what}`)
    return row!.count
  }
  await eventually(
    'every device is stored',
    () => count('devices'),
    (stored) => stored === DEVICES,
    WITHIN_MS,
  )

  const startedMonoMs = performance.now()
  const body = { name: 'locate', params: { locate_s: 1 } }
  const replies = await Promise.all(
    Array.from({ length: DEVICES }, (_, index) => client.ask('POST', `/api/v1/devices/${idOf(index)}/commands`, body)),
  )
  const postedMs = performance.now() - startedMonoMs
  assert.deepEqual([...new Set(replies.map(({ status }) => status))], [202])
  await eventually(
    'every command has its fate',
    () => count('outbound_queue where status < 2'),
    (waiting) => waiting === 0,
    WITHIN_MS,
  )
  context.diagnostic(
    `posted in ${Math.round(postedMs)} ms, ended in ${Math.round(performance.now() - startedMonoMs)} ms`,
  )
  const rows = await started.sql<{ device_id: string; status: number; reason: string; attempts: number }[]>`
    select device_id, status, result ->> 'reason' as reason, attempts from outbound_queue`
  assert.equal(rows.length, DEVICES)
  for (const { device_id: deviceId, status, reason, attempts } of rows)
    assert.deepEqual(
      [status, reason, attempts],
      silent.has(deviceId) ? [3, 'no_result', 1] : [2, 'ok', 1],
      `${deviceId}: ${status} ${reason}`,
    )
  assert.equal(heard.size, DEVICES)
  assert.ok([...heard.values()].every((frames) => frames === 1))
})
