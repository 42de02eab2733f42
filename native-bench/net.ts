/**
 * `npm run bench:net`: the same heartbeats against the plain net server, the C epoll server and the gateway on
 * both its socket drivers, in turn
 * and in a turning order, so that a slow minute of the machine hits all alike. What counts are medians of ratios inside
 * a round, and CPU per message (user + system of the whole process tree, `/proc/PID/stat`) before messages per second.
 *
 *   node native-bench/net.ts [--rounds 5] [--seconds 3] [--connections 500] [--json FILE] [--skip gateway-net]
 *
 * Linux and a C compiler are needed: the load client is C, and no figure is given without it.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { machineFacts, median } from './machine.ts'

const HERE = import.meta.dirname
const ROOT = join(HERE, '..')
const GATEWAY_READY_MS = 60_000
const STOP_MS = 20_000
/** Of /proc/PID/stat; 100 on every Linux that says nothing else. */
const TICKS_PER_S = ticksPerS()

interface Contestant {
  readonly name: string
  readonly child: ChildProcess
  readonly port: number
  readonly stop: () => Promise<void>
}

interface Reading {
  readonly msgsPerS: number
  readonly p50Us: number
  readonly p99Us: number
  readonly cpuUsPerMsg: number
  /** Connections that were opened and got their first reply, per second. */
  readonly stormPerS: number
  /** Growth of the server's own process from no connection to all of them. */
  readonly rssBytesPerConnection: number
  readonly mismatches: number
  readonly closed: number
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '3' },
    connections: { type: 'string', default: '500' },
    json: { type: 'string' },
    skip: { type: 'string', multiple: true, default: [] },
  },
})
const options = {
  rounds: Number(values.rounds),
  seconds: Number(values.seconds),
  connections: Number(values.connections),
}
for (const [name, value] of Object.entries(options))
  if (!(value > 0)) throw new RangeError(`--${name} must be greater than 0`)

process.exitCode = await main()

async function main(): Promise<number> {
  const client = compile('load-client')
  if (client === undefined) {
    process.stderr.write('skipped: no C compiler (cc), and the load client is C\n')
    return 0
  }
  // one core for the server, another for the load: a multi-threaded server then shows its price, not its scaling
  const isPinned = cpus().length >= 2 && spawnSync('taskset', ['-V']).status === 0
  const machine = machineFacts()
  say(`${machine.cpu}, ${machine.cores} cores, node ${machine.node}, commit ${machine.commit}`)
  say(`${options.connections} connections, one 21 in flight each, ${options.rounds} rounds of ${options.seconds} s`)
  say(isPinned ? 'server on core 1, load on core 0' : 'server and load share all cores')

  const contestants: Contestant[] = []
  const readings = new Map<string, Reading[]>()
  try {
    if (!values.skip.includes('plain')) contestants.push(await startPlain(isPinned))
    const epoll = values.skip.includes('epoll') ? undefined : compile('epoll-server')
    if (epoll !== undefined) contestants.push(await startEpoll(epoll, isPinned))
    for (const driver of ['net', 'epoll'] as const)
      if (!values.skip.includes('gateway') && !values.skip.includes(`gateway-${driver}`))
        contestants.push(await startGateway(driver, isPinned))
    for (let round = 0; round < options.rounds; round++) {
      for (let turn = 0; turn < contestants.length; turn++) {
        const contestant = contestants[(round + turn) % contestants.length] as Contestant
        const reading = await measure(contestant, client, isPinned)
        readings.set(contestant.name, [...(readings.get(contestant.name) ?? []), reading])
        say(
          `round ${round + 1} ${contestant.name.padEnd(13)} ${String(reading.msgsPerS).padStart(7)} msgs/s  ` +
            `p50 ${reading.p50Us} us  p99 ${reading.p99Us} us  ${reading.cpuUsPerMsg.toFixed(1)} us CPU/msg  ` +
            `storm ${reading.stormPerS}/s  ${reading.rssBytesPerConnection} B/connection` +
            (reading.mismatches + reading.closed > 0
              ? `  ${reading.mismatches} MISMATCHED, ${reading.closed} CLOSED`
              : ''),
        )
      }
    }
  } finally {
    for (const contestant of contestants.reverse()) await contestant.stop()
  }
  const summary = summarise(readings)
  for (const line of summary) say(JSON.stringify(line))
  if (values.json !== undefined)
    writeFileSync(
      values.json,
      `${JSON.stringify({ machine, options, isPinned, summary, readings: Object.fromEntries(readings) }, null, 2)}\n`,
    )
  const isClean = [...readings.values()].flat().every(({ mismatches, closed }) => mismatches + closed === 0)
  return isClean ? 0 : 1
}

/** Medians, and medians of in-round ratios to each yardstick. */
function summarise(readings: ReadonlyMap<string, readonly Reading[]>): object[] {
  const ratio = (of: readonly Reading[], to: readonly Reading[] | undefined, field: 'msgsPerS' | 'cpuUsPerMsg') =>
    to === undefined ? null : twoDigits(median(of.map((one, round) => one[field] / (to[round] as Reading)[field])))
  return [...readings].map(([name, all]) => ({
    name,
    msgs_per_s: Math.round(median(all.map((one) => one.msgsPerS))),
    cpu_us_per_msg: twoDigits(median(all.map((one) => one.cpuUsPerMsg))),
    p50_us: median(all.map((one) => one.p50Us)),
    p99_us: median(all.map((one) => one.p99Us)),
    storm_per_s: median(all.map((one) => one.stormPerS)),
    // later rounds find memory that earlier ones made
    rss_bytes_per_connection_first: (all[0] as Reading).rssBytesPerConnection,
    speed_to_plain: ratio(all, readings.get('plain'), 'msgsPerS'),
    speed_to_epoll: ratio(all, readings.get('epoll'), 'msgsPerS'),
    cpu_to_plain: ratio(all, readings.get('plain'), 'cpuUsPerMsg'),
    cpu_to_epoll: ratio(all, readings.get('epoll'), 'cpuUsPerMsg'),
  }))
}

// ---- who takes part ------------------------------------------------------------------------------------------------

async function startPlain(isPinned: boolean): Promise<Contestant> {
  const child = start([process.execPath, join(HERE, 'plain-net-server.ts')], isPinned ? '1' : undefined)
  return { name: 'plain', child, port: await portOf(child), stop: () => stop(child) }
}

async function startEpoll(program: string, isPinned: boolean): Promise<Contestant> {
  const child = start([program, '0'], isPinned ? '1' : undefined)
  return { name: 'epoll', child, port: await portOf(child), stop: () => stop(child) }
}

/** The whole gateway on a database of its own, one session thread. */
async function startGateway(driver: 'net' | 'epoll', isPinned: boolean): Promise<Contestant> {
  const dataDir = mkdtempSync(join(tmpdir(), 'pilegate-bench-'))
  // as root the embedded database runs as another user, who has to get in
  chmodSync(dataDir, 0o711)
  const [port, httpPort] = [await freePort(), await freePort()]
  const child = start([process.execPath, join(ROOT, 'src/main/start.ts')], isPinned ? '1' : undefined, {
    DATA_DIR: dataDir,
    TCP_HOST: '127.0.0.1',
    TCP_PORT: String(port),
    HTTP_PORT: String(httpPort),
    SHARDS: '1',
    SOCKET_DRIVER: driver,
    LOG_LEVEL: 'error',
  })
  child.stdout?.resume()
  const stopAll = async () => {
    await stop(child)
    rmSync(dataDir, { recursive: true, force: true })
  }
  const deadlineMs = performance.now() + GATEWAY_READY_MS
  while (performance.now() < deadlineMs && child.exitCode === null) {
    const isReady = await fetch(`http://127.0.0.1:${httpPort}/readyz`).then(
      (answer) => answer.status === 200,
      () => false,
    )
    if (isReady) return { name: `gateway-${driver}`, child, port, stop: stopAll }
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
  await stopAll()
  throw new Error(`the gateway was not ready within ${GATEWAY_READY_MS} ms (exit code ${child.exitCode})`)
}

/** @returns the program, or undefined where nothing can compile it */
function compile(name: string): string | undefined {
  const build = join(HERE, 'build')
  mkdirSync(build, { recursive: true })
  const program = join(build, name)
  const compiled = spawnSync('cc', ['-O2', '-Wall', '-Wextra', '-o', program, join(HERE, `${name}.c`)], {
    encoding: 'utf8',
  })
  if (compiled.error !== undefined) {
    process.stderr.write(`skipped ${name}: no C compiler\n`)
    return undefined
  }
  if (compiled.status !== 0) throw new Error(`${name}.c does not compile:\n${compiled.stderr}`)
  return program
}

function start(command: readonly string[], core: string | undefined, env: Record<string, string> = {}): ChildProcess {
  const [program, ...args] = (core === undefined ? command : ['taskset', '-c', core, ...command]) as [
    string,
    ...string[],
  ]
  return spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env }, cwd: ROOT })
}

async function portOf(child: ChildProcess): Promise<number> {
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    const port = /^listening (\d+)$/.exec(line)?.[1]
    if (port !== undefined) return Number(port)
  }
  throw new Error('a yardstick ended before it listened')
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), STOP_MS)
  await ended
  clearTimeout(late)
}

async function freePort(): Promise<number> {
  const probe = net.createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as net.AddressInfo
  probe.close()
  await once(probe, 'close')
  return port
}

// ---- one measurement -----------------------------------------------------------------------------------------------

async function measure(contestant: Contestant, client: string, isPinned: boolean): Promise<Reading> {
  const args = [String(contestant.port), String(options.connections), '1', String(options.seconds)]
  const rssBeforeBytes = rssBytesOf(contestant.child.pid as number)
  const load = start([client, ...args], isPinned ? '0' : undefined)
  const pid = contestant.child.pid as number
  let cpuBeforeUs = 0
  let rssBytes = 0
  let reading: Reading | undefined
  for await (const line of createInterface({ input: load.stdout as NodeJS.ReadableStream })) {
    if (line === 'measuring') {
      cpuBeforeUs = cpuUsOfTree(pid)
      rssBytes = rssBytesOf(pid) - rssBeforeBytes
    } else if (line.startsWith('{')) {
      const cpuUs = cpuUsOfTree(pid) - cpuBeforeUs
      const told = JSON.parse(line) as Record<string, number>
      const replies = told['replies'] as number
      reading = {
        msgsPerS: told['msgs_per_s'] as number,
        p50Us: told['p50_us'] as number,
        p99Us: told['p99_us'] as number,
        cpuUsPerMsg: replies === 0 ? Number.NaN : cpuUs / replies,
        stormPerS: Math.round((options.connections / (told['storm_ms'] as number)) * 1_000),
        rssBytesPerConnection: Math.round(rssBytes / options.connections),
        mismatches: told['mismatches'] as number,
        closed: told['closed'] as number,
      }
    }
  }
  if (reading === undefined) throw new Error(`the load client gave no figures for ${contestant.name}`)
  return reading
}

/** User and system time of a process and all its living descendants, us. */
function cpuUsOfTree(pid: number): number {
  const children = new Map<number, number[]>()
  const ticks = new Map<number, number>()
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    let stat: string
    try {
      stat = readFileSync(`/proc/${entry}/stat`, 'utf8')
    } catch {
      // it ended while we looked
      continue
    }
    // the name in parentheses may hold anything: fields count from behind it
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    const [parent, user, system] = [Number(fields[1]), Number(fields[11]), Number(fields[12])]
    ticks.set(Number(entry), user + system)
    children.set(parent, [...(children.get(parent) ?? []), Number(entry)])
  }
  let sum = 0
  const open = [pid]
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    sum += ticks.get(next) ?? 0
    open.push(...(children.get(next) ?? []))
  }
  return (sum / TICKS_PER_S) * 1e6
}

/** Of the process itself, without its children (the gateway's database is one). */
function rssBytesOf(pid: number): number {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kilobytes) * 1_024
}

function ticksPerS(): number {
  const told = spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' })
  return told.status === 0 ? Number(told.stdout) : 100
}

function twoDigits(value: number): number {
  return Math.round(value * 100) / 100
}

function say(line: string): void {
  process.stdout.write(`${line}\n`)
}
