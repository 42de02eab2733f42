/** Who is measured by net.ts: the two yardsticks and the gateway, each a process of its own. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { ownEnvironment } from '../loadtest/own-gateway.ts'
import { cpuMsOf } from '../loadtest/process-use.ts'
import { dataDirectory, endPostgres } from '../src/testing/gateway-process.ts'

const HERE = import.meta.dirname
const ROOT = join(HERE, '..')
const GATEWAY_READY_MS = 60_000
const STOP_MS = 20_000

export interface Contestant {
  readonly name: string
  readonly pid: number
  readonly port: number
  readonly stop: () => Promise<void>
}

/** Ends what runs, the youngest first; for a signal. */
const running = new Set<() => Promise<void>>()
export async function stopContestants(): Promise<void> {
  for (const stopOne of [...running].reverse()) await stopOne()
}

/** @param core undefined: wherever the kernel puts it */
export async function startPlain(core: string | undefined): Promise<Contestant> {
  return listening('plain', start([process.execPath, join(HERE, 'plain-net-server.ts')], core))
}

export async function startEpoll(program: string, core: string | undefined): Promise<Contestant> {
  return listening('epoll', start([program, '0'], core))
}

async function listening(name: string, child: ChildProcess): Promise<Contestant> {
  const stop = stopOnce(child)
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    const port = /^listening (\d+)$/.exec(line)?.[1]
    if (port !== undefined) return { name, pid: child.pid as number, port: Number(port), stop }
  }
  await stop()
  throw new Error(`${name} ended before it listened`)
}

/** The whole gateway with everything on, on a database of its own in a folder of its own. */
export async function startGateway(driver: 'net' | 'epoll', core: string | undefined, shards = 1): Promise<Contestant> {
  const dataDir = dataDirectory()
  const child = start([process.execPath, join(ROOT, 'src/main/start.ts')], core, {
    ...ownEnvironment(),
    DATA_DIR: dataDir,
    TCP_HOST: '127.0.0.1',
    TCP_PORT: '0',
    HTTP_PORT: '0',
    SHARDS: String(shards),
    SOCKET_DRIVER: driver,
    LOG_LEVEL: 'error',
  })
  const stop = stopOnce(child, async () => {
    // one that was ended before it had started leaves its database running
    await endPostgres(dataDir)
    rmSync(dataDir, { recursive: true, force: true })
  })
  const late = setTimeout(() => child.kill('SIGKILL'), GATEWAY_READY_MS)
  try {
    for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
      // its first line says where it is
      const port = /"devices":"tcp:[^"]*:(\d+)"/.exec(line)?.[1]
      if (port !== undefined) return { name: `gateway-${driver}`, pid: child.pid as number, port: Number(port), stop }
    }
  } finally {
    clearTimeout(late)
    // the loop has paused it, and what nobody reads would stop the gateway some day
    child.stdout?.resume()
  }
  await stop()
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
  env: NodeJS.ProcessEnv = process.env,
): ChildProcess {
  const [program, ...args] = (core === undefined ? command : ['taskset', '-c', core, ...command]) as [
    string,
    ...string[],
  ]
  return spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env, cwd: ROOT })
}

/** @returns stops it and clears up behind it; may be called again */
function stopOnce(child: ChildProcess, clearUp: () => Promise<void> = async () => {}): () => Promise<void> {
  let stopping: Promise<void> | undefined
  const stop = async () => {
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit')
      child.kill('SIGTERM')
      const late = setTimeout(() => child.kill('SIGKILL'), STOP_MS)
      await ended
      clearTimeout(late)
    }
    await clearUp()
    running.delete(stopHere)
  }
  const stopHere = () => {
    stopping ??= stop()
    return stopping
  }
  running.add(stopHere)
  return stopHere
}

const SETTLE_LOOK_MS = 500
/** Of one core; the gateway at rest takes 4.5 (README.md, the model for larger machines). */
const SETTLED_PERCENT = 8

/** Waits until a process tree has nothing to do: what one step left behind is not charged to the next. */
export async function settled(pid: number, withinMs = 60_000): Promise<void> {
  const untilMs = performance.now() + withinMs
  for (let before = cpuMsOf(pid); performance.now() < untilMs; ) {
    const fromMs = performance.now()
    await new Promise((resolve) => setTimeout(resolve, SETTLE_LOOK_MS))
    const now = cpuMsOf(pid)
    const percent = ((now - before) * 100) / (performance.now() - fromMs)
    if (percent < SETTLED_PERCENT) return
    before = now
  }
}
