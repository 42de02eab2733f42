/**
 * `npm run k6 -- SCRIPT [options of k6]`: runs a script of this folder. Without `API` (and `KEY`) in the environment it
 * starts a gateway of its own, with the fleet that the script wants, and ends both afterwards.
 *
 *   --record           writes results/SCRIPT-MACHINE.json: metrics, thresholds, machine, what the gateway used
 *   --help             how it is called; those of k6: `k6 run --help`
 *
 * k6 is a tool beside the project, not a dependency of it: `K6=PATH`, else the one on PATH if it can do what the script
 * needs, else one that `go` builds from k6/tcp into the user's cache. Exit code: that of k6 (99: a threshold was crossed);
 * 2 unknown script or option, 1 no gateway or fleet of its own, 127 no k6.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type OwnGateway, startGateway } from '../loadtest/own-gateway.ts'
import { cpuMsOf, rssBytesOf } from '../loadtest/process-use.ts'
import { machineClass, machineFacts } from '../native-bench/machine.ts'

const HERE = import.meta.dirname
const TCP = join(HERE, 'tcp')
const FLEET = join(HERE, '../loadtest/fleet.ts')
const TCP_MODULE = 'k6/x/tcp'
const FLEET_READY_MS_MAX = 60_000
/** k6 leaves out p99 by itself. */
const TREND_STATS = 'avg,min,med,max,p(90),p(95),p(99)'

interface Need {
  /** Options of the fleet that runs beside; none: the script brings its own load. */
  readonly fleet: readonly string[]
}
const mix = (devices: number, more: readonly string[]): readonly string[] => [
  '--protocol',
  'mix',
  '--devices',
  String(devices),
  '--ramp-per-s',
  '1000',
  '--duration-s',
  '600',
  '--grace-s',
  '0',
  ...more,
]
/** What each script finds when the gateway is ours. */
const NEEDS: Readonly<Record<string, Need>> = {
  'api-read': { fleet: mix(1_000, ['--orders-per-s', '10', '--charge-s', '10']) },
  'charge-burst': { fleet: mix(400, ['--orders-per-s', '0', '--charge-s', '600']) },
  'ws-fanout': { fleet: mix(500, ['--orders-per-s', '20', '--charge-s', '5']) },
  'tcp-devices': { fleet: [] },
}

const SCRIPTS = readdirSync(HERE)
  .filter((file) => file.endsWith('.js'))
  .map((file) => file.slice(0, -3))
const USAGE = `npm run k6 -- SCRIPT [--record] [options of k6]\nSCRIPT is one of: ${SCRIPTS.join(', ')}`

/** Says why there is nothing to run, and with which code to end. */
class Refusal extends Error {
  readonly exitCode: number
  constructor(exitCode: number, message: string) {
    super(message)
    this.exitCode = exitCode
  }
}

/** @returns a k6 that has all of `modules` */
function findK6(modules: readonly string[]): string {
  const lacks = (program: string): string | undefined => {
    const told = spawnSync(program, ['version'], { encoding: 'utf8' })
    if (told.error !== undefined || told.status !== 0) return 'does not run'
    return modules.find((name) => !told.stdout.includes(name))
  }
  const given = process.env['K6']
  if (given !== undefined) {
    const lack = lacks(given)
    if (lack !== undefined) throw new Refusal(127, `K6=${given}: ${lack.startsWith('k6/') ? `lacks ${lack}` : lack}`)
    return given
  }
  if (lacks('k6') === undefined) return 'k6'
  const sources = ['go.mod', 'go.sum', 'main.go', 'tcp/socket.go']
  const hash = createHash('sha256')
  for (const source of sources) hash.update(readFileSync(join(TCP, source)))
  const cache = join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'pilegate')
  const built = join(cache, `k6-${hash.digest('hex').slice(0, 16)}`)
  if (existsSync(built)) return built
  if (spawnSync('go', ['version']).error !== undefined)
    throw new Refusal(
      127,
      `There is no k6 on PATH${modules.length > 0 ? ` with ${modules.join(', ')}` : ''}, and no Go to build one.
Put k6 on PATH (K6=FILE works too), or install Go 1.25 or newer: then it is built from k6/tcp.`,
    )
  process.stderr.write(`building k6 from k6/tcp into ${built}: a few minutes, once\n`)
  mkdirSync(cache, { recursive: true })
  // beside its place first: a build that was cut off must not look like a program
  const half = `${built}.${process.pid}`
  const run = spawnSync('go', ['build', '-trimpath', '-o', half, '.'], {
    cwd: TCP,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, GOFLAGS: `${process.env['GOFLAGS'] ?? ''} -buildvcs=false`.trim() },
  })
  if (run.status !== 0)
    throw new Refusal(127, 'k6 could not be built: see above. Go 1.25 or newer and its module proxy are needed.')
  renameSync(half, built)
  return built
}

/** Before a gateway is started for nothing. @throws Refusal an option that `k6 run` does not have */
function checkOptions(k6: string, given: readonly string[]): void {
  const help = spawnSync(k6, ['run', '--help'], { encoding: 'utf8' }).stdout
  // `  -d, --duration duration  test duration limit`
  const known = new Set([...help.matchAll(/^ +(?:(-\w), )?(--[\w-]+)/gm)].flatMap(([, short, long]) => [short, long]))
  for (const option of given) {
    // `-d10s`, `--vus=5`; a word may be the value of the option before it
    const name = option.startsWith('--') ? option.split('=')[0] : option.slice(0, 2)
    if (known.size > 0 && /^--?[a-zA-Z]/.test(option) && !known.has(name))
      throw new Refusal(2, `${option}: \`k6 run\` has no such option\n${USAGE}`)
  }
}

/** Started, and its devices known to the API. */
async function startFleet(options: readonly string[], gateway: OwnGateway): Promise<ChildProcess> {
  const fleet = spawn(process.execPath, [FLEET, '--port', String(gateway.port), ...options], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  fleet.stderr?.resume()
  const devices = Number(options[options.indexOf('--devices') + 1])
  const untilMs = Date.now() + FLEET_READY_MS_MAX
  while (Date.now() < untilMs) {
    const page = await (await fetch(gateway.metrics)).text()
    let online = 0
    for (const [, count] of page.matchAll(/^pilegate_devices_online\{[^}]*\} (\d+)/gm)) online += Number(count)
    if (online >= devices) {
      // what they said first is in the database then, or the next look finds the rest
      await sleep(2_500)
      return fleet
    }
    await sleep(200)
  }
  fleet.kill('SIGKILL')
  throw new Refusal(1, `only a part of ${devices} piles was there after ${FLEET_READY_MS_MAX} ms`)
}

/** What k6 exports, without the parts nobody reads again. */
interface Exported {
  readonly metrics: Record<string, Record<string, unknown> & { thresholds?: Record<string, boolean> }>
}

function record(
  script: string,
  k6: string,
  exported: string,
  exitCode: number,
  used: Record<string, number> | undefined,
  need: Need,
): void {
  const { metrics } = JSON.parse(readFileSync(exported, 'utf8')) as Exported
  const crossed = Object.entries(metrics).flatMap(([name, { thresholds }]) =>
    // in k6's export `true` means that the threshold was crossed
    Object.entries(thresholds ?? {}).flatMap(([rule, isCrossed]) => (isCrossed ? [`${name}: ${rule}`] : [])),
  )
  const machine = machineFacts()
  const path = join(HERE, 'results', `${script}-${machineClass(machine)}.json`)
  mkdirSync(join(HERE, 'results'), { recursive: true })
  const result = {
    script,
    command: `npm run k6 -- ${script} --record`,
    k6: spawnSync(k6, ['version'], { encoding: 'utf8' }).stdout.split('\n')[0],
    machine,
    fleet: need.fleet.join(' '),
    exit_code: exitCode,
    thresholds_crossed: crossed,
    gateway: used ?? null,
    metrics: Object.fromEntries(Object.entries(metrics).sort(([a], [b]) => (a < b ? -1 : 1))),
  }
  writeFileSync(path, `${JSON.stringify(result, null, 2)}\n`)
  process.stderr.write(`recorded ${path}\n`)
}

async function main(args: readonly string[]): Promise<number> {
  if (args.includes('--help')) {
    console.log(`${USAGE}\nother options go to k6: see \`k6 run --help\``)
    return 0
  }
  const name = args[0]?.replace(/\.js$/, '') ?? ''
  if (!SCRIPTS.includes(name)) throw new Refusal(2, `${name && `${name}: no such script\n`}${USAGE}`)
  const isRecording = args.includes('--record')
  const rest = args.slice(1).filter((arg) => arg !== '--record')
  const script = join(HERE, `${name}.js`)
  const k6 = findK6(readFileSync(script, 'utf8').includes(`'${TCP_MODULE}'`) ? [TCP_MODULE] : [])
  checkOptions(k6, rest)
  const need = NEEDS[name] ?? { fleet: [] }

  const scratch = mkdtempSync(join(tmpdir(), 'pilegate-k6-'))
  const exported = join(scratch, 'summary.json')
  let gateway: OwnGateway | undefined
  let fleet: ChildProcess | undefined
  let running: ChildProcess | undefined
  const end = async () => {
    if (fleet?.exitCode === null) {
      fleet.kill('SIGINT')
      await once(fleet, 'exit')
    }
    await gateway?.stop()
    rmSync(scratch, { recursive: true, force: true })
  }
  // k6 ends with its summary; before it runs there is none
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () =>
      running === undefined ? void end().then(() => process.exit(130)) : running.kill('SIGINT'),
    )
  try {
    const env: Record<string, string> = { K6_NO_USAGE_REPORT: 'true' }
    if (process.env['API'] === undefined && process.env['TCP'] === undefined) {
      gateway = await startGateway().catch((error: Error) => {
        throw new Refusal(1, `k6: ${error.message}`)
      })
      Object.assign(env, { API: gateway.api, KEY: gateway.key, TCP: `127.0.0.1:${gateway.port}` })
      if (need.fleet.length > 0) fleet = await startFleet(need.fleet, gateway)
    }
    const before = gateway && { cpuMs: cpuMsOf(gateway.pid), atMs: performance.now() }
    const commandLine = ['run', '--summary-export', exported, '--summary-trend-stats', TREND_STATS, ...rest, script]
    running = spawn(k6, commandLine, { stdio: 'inherit', env: { ...process.env, ...env } })
    const [code] = (await once(running, 'exit')) as [number | null]
    const exitCode = code ?? 1
    const used = gateway &&
      before && {
        cpu_s: Math.round((cpuMsOf(gateway.pid) - before.cpuMs) / 10) / 100,
        wall_s: Math.round((performance.now() - before.atMs) / 10) / 100,
        rss_mib: Math.round(rssBytesOf(gateway.pid) / 2 ** 20),
      }
    if (isRecording) record(name, k6, exported, exitCode, used, need)
    return exitCode
  } finally {
    await end()
  }
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (!(error instanceof Refusal)) throw error
  console.error(error.message)
  process.exitCode = error.exitCode
}
