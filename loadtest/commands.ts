/**
 * `node loadtest/commands.ts --devices 5000 --kind charge --result-loss 0.005 --port 7000 --api http://127.0.0.1:8080
 * --key-file .data/api-key`: a burst of commands over HTTP to as many simulated AP3000 piles (field-notes D1 and L4), as
 * fast as the API takes them; it ends when each has its fate, or after --within-s.
 *
 * Prints one JSON object. `dispatch_ms_*`: from the caller's having its 202 to the first byte of the first frame at the
 * device; a frame that is there before its 202 counts as 0. `spacing_*`: gaps between two 8x frames that one device
 * received. A frame can be read late, by as much as this process is busy: a gap is a violation when it is shorter than the
 * spacing by more than this process was late just then. `--result-loss`: share of results that devices send and nobody
 * gets. Exit code 1: none taken, a command without a fate, not acked without loss, or a violation.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { anyNumber, oneOf, readOptions, refuse, wholeNumber } from '../src/config/command-line.ts'
import { Random } from '../src/testing/random.ts'
import { ApiClient } from './api-client.ts'
import { ap3000DeviceNo } from './device-ap3000.ts'
import { checkFleetOptions, FLEET_DEFAULTS, type FleetOptions, runFleet } from './fleet-run.ts'
import { apiAddress, gatewayMustBeThere } from './gateway-there.ts'

const USAGE = `node loadtest/commands.ts [options]
  --devices 2000 --commands N (as many) --kind locate|charge --concurrency 256 --result-loss 0 --seed 77
  --spacing-ms 500 --within-s 60 --host 127.0.0.1 --port 7000 --api http://127.0.0.1:8080 --key-file .data/api-key`
const KINDS = {
  /** 82, one order per command. */
  charge: { code: 0x82, name: 'startCharge', path: 'charge', body: { port: 1, mode: 'time', duration_s: 3_600 } },
  locate: { code: 0x96, name: 'locate', path: 'commands', body: { name: 'locate', params: { locate_s: 1 } } },
} as const

const text = { type: 'string' } as const
const values = readOptions(USAGE, {
  devices: { ...text, default: '2000' },
  commands: text,
  kind: { ...text, default: 'locate' },
  host: { ...text, default: '127.0.0.1' },
  port: { ...text, default: '7000' },
  api: { ...text, default: 'http://127.0.0.1:8080' },
  'key-file': { ...text, default: '.data/api-key' },
  seed: { ...text, default: '77' },
  'result-loss': { ...text, default: '0' },
  'spacing-ms': { ...text, default: '500' },
  'within-s': { ...text, default: '60' },
  concurrency: { ...text, default: '256' },
})
const kind = KINDS[oneOf('kind', values.kind, ['locate', 'charge'])]
const devices = wholeNumber('devices', values.devices, 1)
const commands = wholeNumber('commands', values.commands ?? values.devices, 1)
const seed = wholeNumber('seed', values.seed)
const resultLoss = anyNumber('result-loss', values['result-loss'], 0, 1)
const spacingMs = wholeNumber('spacing-ms', values['spacing-ms'])
const withinS = wholeNumber('within-s', values['within-s'], 1, 86_400)
const concurrency = wholeNumber('concurrency', values.concurrency, 1, 1_000)
const fleetOptions: FleetOptions = {
  ...FLEET_DEFAULTS,
  host: values.host,
  port: wholeNumber('port', values.port, 1, 65_535),
  devices,
  rampPerS: 2_000,
  ordersPerS: 0,
  // nobody's charge ends meanwhile
  chargeS: 3_600,
  durationS: withinS + 120,
  seed,
  hostEvery: 0,
  graceS: 0,
}
const address = apiAddress(values.api)
let key: string
try {
  checkFleetOptions(fleetOptions)
  key = readFileSync(values['key-file'], 'utf8').trim()
} catch (error) {
  const { message } = error as Error
  refuse(error instanceof RangeError ? message : `--key-file ${values['key-file']}: ${message}`)
}
await gatewayMustBeThere('commands', address, fleetOptions.host, fleetOptions.port)
const api = new ApiClient(address, key, concurrency)

/** How late this process was lately: what is read now may have been there for so long. */
let lateMs = 0
let tickMonoMs = performance.now()
const TICK_MS = 5
setInterval(() => {
  const monoMs = performance.now()
  lateMs = Math.max(monoMs - tickMonoMs - TICK_MS, lateMs * 0.98)
  tickMonoMs = monoMs
}, TICK_MS).unref()

interface Heard {
  /** Of the last command frame, and how late it may have been read. */
  lastMonoMs: number
  lateMs: number
}
const heard = new Map<string, Heard>()
/** By device, in the order of their 202. */
const accepted = new Map<string, number[]>()
/** First frames by device: what was read. */
const arrived = new Map<string, number[]>()
const messageIds = new Set<string>()
const gaps = { violations: 0, leastMs: Number.POSITIVE_INFINITY, repeats: 0, frames: 0 }
const random = new Random(seed, 1)
let resultsLost = 0

/** `DNY`, length of what follows, physId, message id, command: little-endian. */
const HEAD_BYTES = 12
const commandOf = (bytes: Uint8Array, at: number) => bytes[at + 11]!

function frameRead(deviceId: string, bytes: Uint8Array, at: number): void {
  const command = commandOf(bytes, at)
  // answers to uplinks are below, but for the new heartbeats of neither kind
  if (command < 0x81) return
  const monoMs = performance.now()
  const nowLateMs = Math.max(lateMs, monoMs - tickMonoMs - TICK_MS, 0)
  gaps.frames++
  const before = heard.get(deviceId)
  if (before !== undefined) {
    const gapMs = monoMs - before.lastMonoMs
    gaps.leastMs = Math.min(gaps.leastMs, gapMs)
    if (gapMs < spacingMs - before.lateMs - 1) gaps.violations++
  }
  heard.set(deviceId, { lastMonoMs: monoMs, lateMs: nowLateMs })
  if (command !== kind.code) return
  const id = `${deviceId} ${bytes[at + 9]! | (bytes[at + 10]! << 8)}`
  if (messageIds.has(id)) {
    gaps.repeats++
    return
  }
  messageIds.add(id)
  const list = arrived.get(deviceId)
  if (list === undefined) arrived.set(deviceId, [monoMs])
  else list.push(monoMs)
}

const fleetDone = new AbortController()
const fleet = runFleet(
  {
    ...fleetOptions,
    wiretap: {
      received: (deviceId, bytes) => {
        // frames of the gateway come whole over loopback
        for (let at = 0; at + HEAD_BYTES <= bytes.length; at += 5 + (bytes[at + 3]! | (bytes[at + 4]! << 8)))
          frameRead(deviceId, bytes, at)
      },
      mayPass: (_, bytes) => {
        if (bytes.length < HEAD_BYTES || commandOf(bytes, 0) !== kind.code || !random.chance(resultLoss)) return true
        resultsLost++
        return false
      },
    },
  },
  fleetDone.signal,
)

const untilMs = Date.now() + withinS * 1_000 + 20_000
while ((await api.metric('pilegate_devices_online')) < devices && Date.now() < untilMs) await sleep(200)
// a device can be commanded once its row is stored
await sleep(2_500)

const fates = () => api.metric('pilegate_commands_total', new RegExp(`command="${kind.name}"`))
const before = await fates()
const startedMs = performance.now()
const postMs: number[] = []
const refused = new Map<number, number>()
let next = 0
const deviceIdOf = (index: number) =>
  ap3000DeviceNo(seed, index % devices)
    .toString(16)
    .padStart(8, '0')
await Promise.all(
  Array.from({ length: concurrency }, async () => {
    for (;;) {
      const index = next++
      if (index >= commands) return
      const deviceId = deviceIdOf(index)
      const sentMs = performance.now()
      // another port for another charge of the same device
      const body =
        kind.code === 0x82
          ? { ...kind.body, port: 1 + (Math.floor(index / devices) % FLEET_DEFAULTS.ports) }
          : kind.body
      const { status } = await api.ask('POST', `/api/v1/devices/${deviceId}/${kind.path}`, body)
      const answeredMs = performance.now()
      postMs.push(answeredMs - sentMs)
      if (status !== 202) {
        refused.set(status, (refused.get(status) ?? 0) + 1)
        continue
      }
      const list = accepted.get(deviceId)
      if (list === undefined) accepted.set(deviceId, [answeredMs])
      else list.push(answeredMs)
    }
  }),
)
const postedMs = performance.now() - startedMs
const acceptedCount = commands - [...refused.values()].reduce((sum, count) => sum + count, 0)
const endMs = performance.now() + withinS * 1_000
let ended = 0
for (;;) {
  ended = (await fates()) - before
  if (ended >= acceptedCount || performance.now() > endMs) break
  await sleep(50)
}
const endedMs = performance.now() - startedMs
const outcome = (name: string) =>
  api.metric('pilegate_commands_total', new RegExp(`command="${kind.name}",outcome="${name}"`))
const outcomes: Record<string, number> = {}
for (const name of ['acked', 'refused', 'expired', 'dead', 'cancelled']) outcomes[name] = await outcome(name)
const resends = await api.metric('pilegate_command_resends_total', new RegExp(`command="${kind.name}"`))
fleetDone.abort()
const { summary } = await fleet
api.close()

const dispatchMs: number[] = []
let undelivered = 0
for (const [deviceId, list] of accepted)
  for (const [index, answeredMs] of list.entries()) {
    const arrivedMs = arrived.get(deviceId)?.[index]
    // the second one to a device waits for the spacing behind the first
    if (arrivedMs === undefined) undelivered++
    else if (index === 0) dispatchMs.push(Math.max(0, arrivedMs - answeredMs))
  }
const at = (list: number[], share: number) => {
  list.sort((a, b) => a - b)
  const value = list[Math.min(list.length - 1, Math.floor(list.length * share))]
  return value === undefined ? null : Math.round(value * 10) / 10
}
console.log(
  JSON.stringify({
    devices: summary.connected,
    commands,
    kind: kind.name,
    accepted: acceptedCount,
    not_taken: Object.fromEntries(refused),
    ended,
    ...outcomes,
    undelivered,
    results_lost: resultsLost,
    resends,
    resends_percent: Math.round((resends / commands) * 10_000) / 100,
    posted_ms: Math.round(postedMs),
    all_fates_ms: Math.round(endedMs),
    posts_per_s: Math.round((commands / postedMs) * 1_000),
    post_ms_p50: at(postMs, 0.5),
    post_ms_p99: at(postMs, 0.99),
    dispatch_ms_p50: at(dispatchMs, 0.5),
    dispatch_ms_p99: at(dispatchMs, 0.99),
    dispatch_ms_max: at(dispatchMs, 1),
    command_frames: gaps.frames,
    repeated_frames: gaps.repeats,
    spacing_ms_least: Number.isFinite(gaps.leastMs) ? Math.round(gaps.leastMs) : null,
    spacing_violations: gaps.violations,
    errors: summary.errors,
  }),
)
const isWell =
  acceptedCount > 0 &&
  ended >= acceptedCount &&
  gaps.violations === 0 &&
  undelivered === 0 &&
  (resultLoss > 0 || summary.errors === 0)
process.exit(isWell && (resultLoss > 0 || outcomes['acked']! >= acceptedCount) ? 0 : 1)
