/** Who is measured by net.ts: the two yardsticks and the gateway, each a process of its own, and what a process costs. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const HERE = import.meta.dirname
const ROOT = join(HERE, '..')
const GATEWAY_READY_MS = 60_000
const STOP_MS = 20_000
/** Of /proc/PID/stat; 100 on every Linux that says nothing else. */
const TICKS_PER_S = Number(spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }).stdout ?? 100) || 100

export interface Contestant {
  readonly name: string
  readonly pid: number
  readonly port: number
  readonly stop: () => Promise<void>
}

/** @param core undefined: wherever the kernel puts it */
export async function startPlain(core: string | undefined): Promise<Contestant> {
  return listening('plain', start([process.execPath, join(HERE, 'plain-net-server.ts')], core))
}

export async function startEpoll(program: string, core: string | undefined): Promise<Contestant> {
  return listening('epoll', start([program, '0'], core))
}

async function listening(name: string, child: ChildProcess): Promise<Contestant> {
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    const port = /^listening (\d+)$/.exec(line)?.[1]
    if (port !== undefined) return { name, pid: child.pid as number, port: Number(port), stop: () => stop(child) }
  }
  throw new Error(`${name} ended before it listened`)
}

/** The whole gateway with everything on, on a database of its own in a folder of its own. */
export async function startGateway(
  driver: 'net' | 'epoll',
  core: string | undefined,
  shards = 1,
  env: Record<string, string> = {},
): Promise<Contestant> {
  const dataDir = mkdtempSync(join(tmpdir(), 'pilegate-bench-'))
  // as root the embedded database runs as another user, who has to get in
  chmodSync(dataDir, 0o711)
  const [port, httpPort] = [await freePort(), await freePort()]
  const child = start([process.execPath, join(ROOT, 'src/main/start.ts')], core, {
    DATA_DIR: dataDir,
    TCP_HOST: '127.0.0.1',
    TCP_PORT: String(port),
    HTTP_PORT: String(httpPort),
    SHARDS: String(shards),
    SOCKET_DRIVER: driver,
    LOG_LEVEL: 'error',
    ...env,
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
    if (isReady) return { name: `gateway-${driver}`, pid: child.pid as number, port, stop: stopAll }
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
  await stopAll()
  throw new Error(`the gateway was not ready within ${GATEWAY_READY_MS} ms (exit code ${child.exitCode})`)
}

/** @returns the program, or undefined where nothing can compile it */
export function compile(name: string): string | undefined {
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

export function start(
  command: readonly string[],
  core: string | undefined,
  env: Record<string, string> = {},
): ChildProcess {
  const [program, ...args] = (core === undefined ? command : ['taskset', '-c', core, ...command]) as [
    string,
    ...string[],
  ]
  return spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, ...env }, cwd: ROOT })
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

// ---- what it costs -------------------------------------------------------------------------------------------------

/** User and system time of a process and all its living descendants, us. */
export function cpuUsOfTree(pid: number): number {
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
export function rssBytesOf(pid: number): number {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kilobytes) * 1_024
}

const SETTLE_LOOK_MS = 500
/** Of one core; the gateway at rest takes two to three. */
const SETTLED_PERCENT = 8

/** Waits until a process tree has nothing to do: what one step left behind is not charged to the next. */
export async function settled(pid: number, withinMs = 60_000): Promise<void> {
  const untilMs = performance.now() + withinMs
  for (let before = cpuUsOfTree(pid); performance.now() < untilMs; ) {
    const fromMs = performance.now()
    await new Promise((resolve) => setTimeout(resolve, SETTLE_LOOK_MS))
    const now = cpuUsOfTree(pid)
    const percent = (now - before) / 10 / (performance.now() - fromMs)
    if (percent < SETTLED_PERCENT) return
    before = now
  }
}
