/**
 * `node loadtest/commands.ts --devices 2000 --commands 2000 --port 7000 --api http://127.0.0.1:8080 --key-file .data/api-key`:
 * a burst of commands to as many simulated piles (field-notes L4). Each pile gets its share; the commands are posted as
 * fast as the API takes them, and the run ends when every one has its fate. Prints one JSON object: how long the posts
 * took, when the last fate came, what became of them, and the latency of the posts. Bounded by --within-s.
 */
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { ap3000DeviceNo } from './device-ap3000.ts'
import { FLEET_DEFAULTS, runFleet } from './fleet-run.ts'

const text = { type: 'string' } as const
const { values } = parseArgs({
  options: {
    devices: text,
    commands: text,
    host: text,
    port: text,
    api: text,
    'key-file': text,
    seed: text,
    'reply-loss': text,
    'within-s': text,
    concurrency: text,
  },
})
const devices = Number(values.devices ?? 2_000)
const commands = Number(values.commands ?? devices)
const seed = Number(values.seed ?? 77)
const withinS = Number(values['within-s'] ?? 60)
const concurrency = Number(values.concurrency ?? 64)
const api = values.api ?? 'http://127.0.0.1:8080'
const headers = {
  authorization: `Bearer ${readFileSync(values['key-file'] ?? '.data/api-key', 'utf8').trim()}`,
  'content-type': 'application/json',
}

const fleetDone = new AbortController()
const fleet = runFleet(
  {
    ...FLEET_DEFAULTS,
    host: values.host ?? '127.0.0.1',
    port: Number(values.port ?? 7_000),
    devices,
    rampPerS: 2_000,
    ordersPerS: 0,
    durationS: withinS + 60,
    seed,
    replyLoss: Number(values['reply-loss'] ?? 0),
    hostEvery: 0,
    graceS: 0,
  },
  fleetDone.signal,
)

/** Sum of one series over its labels that match. */
async function metric(name: string, labels: RegExp = /./): Promise<number> {
  const page = await (await fetch(`${api}/metrics`)).text()
  return page
    .split('\n')
    .filter((line) => line.startsWith(name) && labels.test(line))
    .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
}
const fates = () => metric('pilegate_commands_total', /command="locate"/)

const untilMs = Date.now() + withinS * 1_000
while ((await metric('pilegate_devices_online')) < devices && Date.now() < untilMs)
  await new Promise((done) => setTimeout(done, 200))
// a device can be commanded once its row is stored
await new Promise((done) => setTimeout(done, 2_500))

const before = await fates()
const startedMs = performance.now()
const postMs: number[] = []
const refused = new Map<number, number>()
let next = 0
await Promise.all(
  Array.from({ length: concurrency }, async () => {
    for (;;) {
      const index = next++
      if (index >= commands) return
      const id = ap3000DeviceNo(seed, index % devices)
        .toString(16)
        .padStart(8, '0')
      const body = JSON.stringify({ name: 'locate', params: { locate_s: 1 } })
      const sentMs = performance.now()
      const answer = await fetch(`${api}/api/v1/devices/${id}/commands`, { method: 'POST', headers, body })
      await answer.arrayBuffer()
      postMs.push(performance.now() - sentMs)
      if (answer.status !== 202) refused.set(answer.status, (refused.get(answer.status) ?? 0) + 1)
    }
  }),
)
const postedMs = performance.now() - startedMs
const accepted = commands - [...refused.values()].reduce((sum, count) => sum + count, 0)
while ((await fates()) - before < accepted && Date.now() < untilMs) await new Promise((done) => setTimeout(done, 50))
const endedMs = performance.now() - startedMs
const acked = await metric('pilegate_commands_total', /command="locate",outcome="acked"/)
const resends = await metric('pilegate_command_resends_total', /command="locate"/)
fleetDone.abort()
const { summary } = await fleet
postMs.sort((a, b) => a - b)
const at = (share: number) =>
  Math.round(postMs[Math.min(postMs.length - 1, Math.floor(postMs.length * share))]! * 10) / 10
console.log(
  JSON.stringify({
    devices: summary.connected,
    commands,
    accepted,
    refused: Object.fromEntries(refused),
    acked,
    resends,
    posted_ms: Math.round(postedMs),
    all_fates_ms: Math.round(endedMs),
    posts_per_s: Math.round((commands / postedMs) * 1_000),
    post_ms_p50: at(0.5),
    post_ms_p99: at(0.99),
    commands_received: summary.commands_received,
    errors: summary.errors,
  }),
)
process.exit(acked >= accepted && summary.errors === 0 ? 0 : 1)
