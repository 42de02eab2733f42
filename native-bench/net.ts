/**
 * `npm run bench:net`: the same devices against the plain net server, the C epoll server and the gateway on both its
 * socket drivers, in turn and in a turning order, so that a slow minute of the machine hits all alike. What counts are
 * medians of ratios inside a round, and CPU per message (user + system of the whole process tree, `/proc/PID/stat`)
 * before messages per second.
 *
 *   node native-bench/net.ts                  1,000 and 10,000 connections, 5 rounds: about 20 minutes
 *   node native-bench/net.ts --quick          1,000 connections, 2 short rounds: below 2 minutes
 *   node native-bench/net.ts --grow           the gateway alone: by connections, shards, orders; about 6 minutes
 *   --rounds 5 --seconds 3 --connections 1000,10000 --skip gateway-net --json FILE --record (results/net-MACHINE.json)
 *
 * One measurement: all devices connect and register (the storm), each sends a heartbeat, and the server comes to rest,
 * its rows written. Then saturation (one heartbeat in flight per connection), then half of the rate just measured, open
 * loop, latency from the moment each heartbeat was due.
 *
 * Linux and a C compiler are needed: the load client is C, and no figure is given without it.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { cpuMsOf, rssBytesOf } from '../loadtest/process-use.ts'
import { anyNumber, oneOf, readOptions, wholeNumber, writablePath } from '../src/config/command-line.ts'
import {
  type Contestant,
  compile,
  settled,
  startEpoll,
  startGateway,
  startPlain,
  stopContestants,
} from './contestants.ts'
import { Load, type Reading } from './load.ts'
import { machineClass, machineFacts, median } from './machine.ts'

const WARMUP_S = 1
/** 60 s heartbeats of that many devices: what a quiet fleet costs. */
const HEARTBEAT_S = 60
/** Long enough for V8 to give back what a storm made it take. */
const QUIET_S = 12

interface Measured {
  readonly saturated: Reading
  readonly half: Reading
  readonly stormPerS: number
  /** CPU of connecting, registering and the first heartbeat, with everything written, us per device. */
  readonly cpuUsPerLogin: number
  /** Growth of the server's own process from no connection to all of them, at rest. */
  readonly rssBytesPerConnection: number
  readonly faults: number
}

const USAGE = `npm run bench:net -- [--quick] [--grow] [options]
  --rounds 5 --seconds 3 --connections 1000,10000 --skip plain|epoll|gateway|gateway-net|gateway-epoll (may be repeated)
  --json FILE --record`
const SKIPPED = ['plain', 'epoll', 'gateway', 'gateway-net', 'gateway-epoll'] as const
/** Of the 20,000 descriptors that a process has, some are for the rest. */
const CONNECTIONS_MAX = 19_000

const text = { type: 'string' } as const
const flag = { type: 'boolean', default: false } as const
const values = readOptions(USAGE, {
  rounds: text,
  seconds: text,
  connections: text,
  json: text,
  record: flag,
  quick: flag,
  grow: flag,
  skip: { type: 'string', multiple: true, default: [] },
})
const skipped = values.skip.map((name) => oneOf('skip', name, SKIPPED))
const options = {
  rounds: wholeNumber('rounds', values.rounds ?? (values.quick ? '2' : '5'), 1),
  seconds: anyNumber('seconds', values.seconds ?? (values.quick ? '2' : '3'), 0.1),
  connections: (values.connections ?? (values.quick ? '1000' : '1000,10000'))
    .split(',')
    .map((one) => wholeNumber('connections', one, 1, CONNECTIONS_MAX)),
}
if (values.json !== undefined) writablePath('json', values.json)

// one core for the server, another for the load: a multi-threaded server then shows its price, not its scaling
const isPinned = cpus().length >= 2 && spawnSync('taskset', ['-V']).status === 0
const [loadCore, serverCore] = isPinned ? ['0', '1'] : [undefined, undefined]
const machine = machineFacts()

// a signal must not leave servers running, nor the gateway's database
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => void stopContestants().finally(() => process.exit(130)))
process.exitCode = await main()

async function main(): Promise<number> {
  const client = compile('load-client')
  if (client === undefined) {
    process.stderr.write('skipped: no C compiler (cc), and the load client is C\n')
    return 0
  }
  say(`${machine.cpu}, ${machine.cores} cores, node ${machine.node}, commit ${machine.commit}`)
  say(isPinned ? 'server on core 1, load on core 0' : 'server and load share all cores')
  const { result, faults } = values.grow ? await grow(client) : await sideBySide(client)
  const text = `${JSON.stringify({ machine, options, isPinned, ...result }, null, 2)}\n`
  if (values.json !== undefined) writeFileSync(values.json, text)
  if (values.record) {
    const folder = join(import.meta.dirname, 'results')
    mkdirSync(folder, { recursive: true })
    const path = join(folder, `net-${values.grow ? 'grow-' : ''}${machineClass(machine)}.json`)
    writeFileSync(path, text)
    say(`written: ${path}`)
  }
  if (faults > 0) say(`${faults} replies wrong or missing, or connections broken`)
  return faults === 0 ? 0 : 1
}

// ---- side by side --------------------------------------------------------------------------------------------------

async function sideBySide(client: string): Promise<{ result: object; faults: number }> {
  say(`${options.rounds} rounds, ${options.seconds} s at saturation and ${options.seconds} s at half load`)
  const contestants: Contestant[] = []
  const all = new Map<number, Map<string, Measured[]>>()
  let faults = 0
  try {
    if (!skipped.includes('plain')) contestants.push(await startPlain(serverCore))
    const epoll = skipped.includes('epoll') ? undefined : compile('epoll-server')
    if (epoll !== undefined) contestants.push(await startEpoll(epoll, serverCore))
    for (const driver of ['net', 'epoll'] as const)
      if (!skipped.includes('gateway') && !skipped.includes(`gateway-${driver}`))
        contestants.push(await startGateway(driver, serverCore))
    for (const connections of options.connections) {
      const measured = new Map<string, Measured[]>()
      all.set(connections, measured)
      say(`\n${connections} connections`)
      for (let round = 0; round < options.rounds; round++)
        for (let turn = 0; turn < contestants.length; turn++) {
          const contestant = contestants[(round + turn) % contestants.length] as Contestant
          const one = await measure(contestant, client, connections)
          measured.set(contestant.name, [...(measured.get(contestant.name) ?? []), one])
          faults += one.faults
          say(`round ${round + 1} ${contestant.name.padEnd(13)} ${lineOf(one)}`)
        }
    }
  } finally {
    for (const contestant of contestants.reverse()) await contestant.stop()
  }
  const summary = [...all].flatMap(([connections, measured]) => summarise(connections, measured))
  table(summary)
  return {
    result: { summary, measured: [...all].map(([n, of]) => ({ connections: n, of: Object.fromEntries(of) })) },
    faults,
  }
}

async function measure(contestant: Contestant, client: string, connections: number): Promise<Measured> {
  const { pid } = contestant
  await settled(pid)
  const rssBefore = rssBytesOf(pid)
  const cpuBefore = cpuMsOf(pid)
  const load = await Load.connect(client, contestant, connections, loadCore)
  try {
    await load.beat()
    await settled(pid)
    const cpuUsPerLogin = ((cpuMsOf(pid) - cpuBefore) * 1_000) / connections
    const rssBytes = rssBytesOf(pid) - rssBefore
    const saturated = await load.closed(WARMUP_S, options.seconds)
    const half = await load.open(WARMUP_S, options.seconds, Math.round(saturated.msgsPerS / 2))
    return {
      saturated,
      half,
      stormPerS: load.stormPerS,
      cpuUsPerLogin,
      rssBytesPerConnection: Math.round(rssBytes / connections),
      faults: load.faults,
    }
  } finally {
    await load.close()
  }
}

function lineOf({ saturated, half, stormPerS, cpuUsPerLogin, rssBytesPerConnection, faults }: Measured): string {
  return (
    `${String(saturated.msgsPerS).padStart(7)} msgs/s ${saturated.cpuUsPerMsg.toFixed(1)} us  half: p50 ${half.p50Us} ` +
    `p99 ${half.p99Us} p99.9 ${half.p999Us} us, ${half.cpuUsPerMsg.toFixed(1)} us  storm ${stormPerS}/s, ` +
    `${cpuUsPerLogin.toFixed(0)} us/login, ${rssBytesPerConnection} B/connection${faults > 0 ? `  ${faults} FAULTS` : ''}`
  )
}

interface Summary {
  readonly connections: number
  readonly name: string
  readonly [figure: string]: number | string | null
}

/** Medians, and medians of in-round ratios to each yardstick. */
function summarise(connections: number, measured: ReadonlyMap<string, readonly Measured[]>): Summary[] {
  return [...measured].map(([name, all]) => {
    const middle = (of: (one: Measured) => number, digits = 0) => rounded(median(all.map(of)), digits)
    const ratio = (to: string, of: (one: Measured) => number) => {
      const others = measured.get(to)
      return others === undefined ? null : rounded(median(all.map((one, at) => of(one) / of(others[at]!))), 2)
    }
    const c = measured.get('epoll')
    return {
      connections,
      name,
      msgs_per_s: middle((one) => one.saturated.msgsPerS),
      cpu_us_per_msg: middle((one) => one.saturated.cpuUsPerMsg, 2),
      cpu_to_c: ratio('epoll', (one) => one.saturated.cpuUsPerMsg),
      cpu_to_plain: ratio('plain', (one) => one.saturated.cpuUsPerMsg),
      speed_to_plain: ratio('plain', (one) => one.saturated.msgsPerS),
      half_cpu_us: middle((one) => one.half.cpuUsPerMsg, 2),
      half_p50_us: middle((one) => one.half.p50Us),
      half_p99_us: middle((one) => one.half.p99Us),
      half_p999_us: middle((one) => one.half.p999Us),
      half_p99_over_c_us:
        c === undefined ? null : rounded(median(all.map((one, at) => one.half.p99Us - c[at]!.half.p99Us)), 0),
      storm_per_s: middle((one) => one.stormPerS),
      login_us: middle((one) => one.cpuUsPerLogin),
      // later rounds find memory that earlier ones made
      rss_b_first: all[0]!.rssBytesPerConnection,
    }
  })
}

// ---- how it grows --------------------------------------------------------------------------------------------------

/**
 * A fresh gateway for each row: memory that an earlier load made does not hide what the next one needs. Resident memory
 * moves by twenty MiB with the moments at which V8 collects: what a device costs is the slope over sizes, not a difference.
 */
async function grow(client: string): Promise<{ result: object; faults: number }> {
  const sizes = values.connections === undefined ? [1_000, 5_000, 10_000, 19_000] : options.connections
  const plan = [
    ...sizes.map((connections) => ({ connections, shards: 1 })),
    ...[2, 4].map((shards) => ({ connections: Math.min(5_000, sizes.at(-1)!), shards })),
  ]
  const rows: Summary[] = []
  let faults = 0
  for (const { connections, shards } of plan) {
    const gateway = await startGateway('epoll', serverCore, shards)
    try {
      await settled(gateway.pid)
      const startBytes = rssBytesOf(gateway.pid)
      const cpuBefore = cpuMsOf(gateway.pid)
      const load = await Load.connect(client, gateway, connections, loadCore)
      await load.beat()
      await settled(gateway.pid)
      const loginUs = ((cpuMsOf(gateway.pid) - cpuBefore) * 1_000) / connections
      const quiet = await load.open(WARMUP_S, QUIET_S, Math.ceil(connections / HEARTBEAT_S))
      const idleBytes = rssBytesOf(gateway.pid)
      const saturated = await load.closed(WARMUP_S, options.seconds)
      await load.order()
      await settled(gateway.pid)
      await load.open(WARMUP_S, QUIET_S, Math.ceil(connections / HEARTBEAT_S))
      const orderBytes = rssBytesOf(gateway.pid)
      rows.push({
        connections,
        name: `${shards} shard${shards > 1 ? 's' : ''}`,
        msgs_per_s: saturated.msgsPerS,
        cpu_us_per_msg: rounded(saturated.cpuUsPerMsg, 2),
        heartbeats_60s_core_percent: rounded(quiet.cpuPercent, 1),
        storm_per_s: load.stormPerS,
        login_us: rounded(loginUs, 0),
        rss_mib_start: rounded(startBytes / 2 ** 20, 1),
        rss_mib_idle: rounded(idleBytes / 2 ** 20, 1),
        rss_mib_with_orders: rounded(orderBytes / 2 ** 20, 1),
      })
      say(JSON.stringify(rows.at(-1)))
      faults += load.faults
      await load.close()
    } finally {
      await gateway.stop()
    }
  }
  table(rows)
  const one = rows.filter(({ name }) => name === '1 shard')
  const slope = (figure: string) => slopeOf(one.map((row) => [row.connections, Number(row[figure]) * 2 ** 20]))
  const perDevice = { idle: slope('rss_mib_idle'), with_order: slope('rss_mib_with_orders') }
  say(
    `bytes per device, slope over the rows of one shard: ${perDevice.idle} idle, ${perDevice.with_order} with an open order`,
  )
  return { result: { rows, rss_b_per_device_slope: perDevice }, faults }
}

/** Least squares: what one more costs, whatever the first one cost. */
function slopeOf(points: readonly (readonly [number, number])[]): number | null {
  if (points.length < 2) return null
  const mean = (of: readonly number[]) => of.reduce((sum, one) => sum + one, 0) / of.length
  const [x, y] = [mean(points.map(([at]) => at)), mean(points.map(([, is]) => is))]
  const over = points.reduce((sum, [at, is]) => sum + (at - x) * (is - y), 0)
  return Math.round(over / points.reduce((sum, [at]) => sum + (at - x) ** 2, 0))
}

function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits))
}

/** Markdown, to be put into the README as it is. */
function table(rows: readonly Summary[]): void {
  const columns = Object.keys(rows[0] ?? {})
  say(`\n| ${columns.join(' | ')} |\n|${' --- |'.repeat(columns.length)}`)
  for (const row of rows) say(`| ${columns.map((column) => row[column] ?? '').join(' | ')} |`)
}

function say(line: string): void {
  process.stdout.write(`${line}\n`)
}
