/**
 * The gateway as its users meet it: a child process, started exactly as `npm start` does, on its embedded PostgreSQL in
 * a directory of its own, or on a given database. What it says on its first line is all a test knows about it.
 *
 * Whatever happens, nothing outlives the test: processes are ended by their ids, also the database that a killed
 * gateway leaves behind.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { connect, type Sql } from '../main/database/connect.ts'

export const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url))
const START_MS_MAX = 30_000

export interface GatewayStart {
  /** Kept from an earlier start; a fresh one when left out. */
  readonly dataDir?: string
  /** Over the defaults for tests: free ports on loopback, one shard. */
  readonly env?: Readonly<Record<string, string>>
  /** `npm`: through `npm start`, as a user would. */
  readonly via?: 'node' | 'npm'
  /** In a process group of its own: Ctrl-C reaches only who started it, and he ends it when he is done. */
  readonly isApart?: boolean
}

export interface HttpReply {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly text: string
  /** The text as JSON; undefined when it is none. */
  // biome-ignore lint/suspicious/noExplicitAny: answers of many shapes, looked into by assertions only
  readonly json: any
}

export interface HttpAsk {
  readonly body?: unknown
  /** Sent instead of the gateway's own first key; null: no key at all. */
  readonly secret?: string | null
  readonly headers?: Readonly<Record<string, string>>
}

/** One line of the log. */
export type LogLine = Readonly<Record<string, unknown>>

const running = new Set<GatewayProcess>()
/** Everything this test process made, and whatever database still runs there. */
const directories = new Set<string>()
process.once('exit', () => {
  for (const gateway of running) gateway.abandon()
  for (const directory of directories) abandonDirectory(directory)
})

export class GatewayProcess {
  readonly dataDir: string
  readonly child: ChildProcess
  /** As parsed from the first line. */
  started: LogLine = {}
  tcpPort = 0
  httpPort = 0
  readonly lines: string[] = []
  stderr = ''
  #rest = ''
  readonly #exited: Promise<number>
  #sql: Sql | undefined
  readonly #databaseUrl: string | undefined

  private constructor(dataDir: string, { env = {}, via = 'node', isApart = false }: GatewayStart) {
    this.dataDir = dataDir
    this.#databaseUrl = env['DATABASE_URL']
    const [command, args] = via === 'npm' ? ['npm', ['start', '--silent']] : [process.execPath, ['src/main/start.ts']]
    this.child = spawn(command, args, {
      cwd: REPOSITORY,
      env: {
        ...systemEnvironment(),
        DATA_DIR: dataDir,
        TCP_HOST: '127.0.0.1',
        TCP_PORT: '0',
        HTTP_PORT: '0',
        SHARDS: '1',
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: isApart,
    })
    this.#exited = new Promise((resolve) => {
      // 128 + signal, as a shell would say
      this.child.once('exit', (code, signal) => resolve(code ?? (signal === 'SIGKILL' ? 137 : 143)))
    })
    this.child.stdout!.setEncoding('utf8').on('data', (chunk: string) => {
      const parts = (this.#rest + chunk).split('\n')
      this.#rest = parts.pop()!
      this.lines.push(...parts)
    })
    this.child.stderr!.setEncoding('utf8').on('data', (chunk: string) => {
      this.stderr += chunk
    })
    running.add(this)
  }

  /** Resolves when the first line is there: devices, API and metrics can be reached. */
  static async start(options: GatewayStart = {}): Promise<GatewayProcess> {
    const gateway = new GatewayProcess(options.dataDir ?? dataDirectory(), options)
    const until = performance.now() + START_MS_MAX
    while (gateway.lines.length === 0) {
      if (gateway.hasEnded || performance.now() > until) {
        const said = gateway.stderr + gateway.#rest
        await gateway.remove()
        throw new Error(`the gateway did not start within ${START_MS_MAX} ms: ${said}`)
      }
      await sleep(10)
    }
    gateway.started = JSON.parse(gateway.lines[0]!) as LogLine
    gateway.tcpPort = portOf(gateway.started['devices'])
    gateway.httpPort = portOf(gateway.started['api'])
    return gateway
  }

  get hasEnded(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null
  }

  /** Secret of the first admin key; only without API_KEYS. */
  get secret(): string {
    return readFileSync(String(this.started['api_key']), 'utf8').trim()
  }

  /** Every log line so far that parses. */
  get log(): readonly LogLine[] {
    return this.lines.flatMap((line) => {
      try {
        return [JSON.parse(line) as LogLine]
      } catch {
        return []
      }
    })
  }

  // ---- HTTP ----------------------------------------------------------------------------------------------------

  ask(method: string, path: string, { body, secret, headers = {} }: HttpAsk = {}): Promise<HttpReply> {
    const bytes = body === undefined ? undefined : body instanceof Uint8Array ? body : Buffer.from(JSON.stringify(body))
    const authorization =
      secret === null || 'x-api-key' in headers ? {} : { authorization: `Bearer ${secret ?? this.secret}` }
    return new Promise((resolve, reject) => {
      const asked = request(
        {
          host: '127.0.0.1',
          port: this.httpPort,
          method,
          path,
          agent: false,
          headers: {
            ...authorization,
            ...(bytes === undefined ? {} : { 'content-type': 'application/json', 'content-length': bytes.length }),
            ...headers,
          },
        },
        (response) => {
          let text = ''
          response.setEncoding('utf8')
          response.on('data', (chunk: string) => {
            text += chunk
          })
          response.on('error', reject)
          response.on('end', () =>
            resolve({ status: response.statusCode!, headers: response.headers, text, json: jsonOf(text) }),
          )
        },
      )
      asked.on('error', reject)
      asked.end(bytes)
    })
  }

  /** GET, 200 or a failed test. */
  // biome-ignore lint/suspicious/noExplicitAny: see HttpReply.json
  async get(path: string): Promise<any> {
    const { status, text, json } = await this.ask('GET', path)
    if (status !== 200) throw new Error(`GET ${path}: ${status} ${text}`)
    return json
  }

  /** Every sample of `GET /metrics`, by name and labels as they stand in the text. */
  async metrics(): Promise<ReadonlyMap<string, number>> {
    const { text } = await this.ask('GET', '/metrics', { secret: null })
    const samples = new Map<string, number>()
    for (const line of text.split('\n')) {
      const at = line.lastIndexOf(' ')
      if (line !== '' && !line.startsWith('#')) samples.set(line.slice(0, at), Number(line.slice(at + 1)))
    }
    return samples
  }

  // ---- the database -------------------------------------------------------------------------------------------

  /** A pool of two beside the gateway's own; stays usable over restarts of either. */
  get sql(): Sql {
    this.#sql ??= connect(this.#databaseUrl ?? this.#embeddedUrl(), { max: 2, applicationName: 'pilegate test' })
    return this.#sql
  }

  #embeddedUrl(): string {
    const { port, password } = JSON.parse(readFileSync(join(this.dataDir, 'postgres-18.json'), 'utf8')) as {
      port: number
      password: string
    }
    return `postgres://pilegate:${password}@127.0.0.1:${port}/pilegate`
  }

  /** The embedded server; undefined when there is none. */
  get postgresPid(): number | undefined {
    return postmasterOf(this.dataDir)
  }

  /** kill -9 of the server alone, as the kernel does when memory is short. */
  killPostgres(): void {
    process.kill(this.postgresPid!, 'SIGKILL')
  }

  /** The server and all its processes stand still; the returned function lets them go on. */
  freezePostgres(): () => void {
    const pids = familyOf(this.postgresPid!)
    for (const pid of pids) signal(pid, 'SIGSTOP')
    return () => {
      for (const pid of pids) signal(pid, 'SIGCONT')
    }
  }

  // ---- its end -------------------------------------------------------------------------------------------------

  /** Resolves with the exit code. @throws when it takes longer */
  async exit(withinMs = 20_000): Promise<number> {
    const code = await Promise.race([this.#exited, sleep(withinMs, undefined, { ref: false })])
    if (code === undefined) throw new Error(`still there after ${withinMs} ms`)
    return code
  }

  /** SIGTERM, as an operator's stop. */
  async stop(withinMs = 20_000): Promise<number> {
    if (!this.hasEnded) this.child.kill('SIGTERM')
    return await this.exit(withinMs)
  }

  /** kill -9 of the whole gateway; its database stays. */
  async kill(): Promise<void> {
    if (!this.hasEnded) this.child.kill('SIGKILL')
    await this.#exited
    await this.closeSql()
  }

  /** The test's own connections, so that they do not keep the server from a smart stop, nor the test process alive. */
  async closeSql(): Promise<void> {
    const sql = this.#sql
    this.#sql = undefined
    await sql?.end({ timeout: 1 }).catch(() => {})
  }

  /** Ends whatever is left and removes the directory. Call it in `after`. */
  async remove(): Promise<void> {
    await this.closeSql()
    if (!this.hasEnded) {
      this.child.kill('SIGTERM')
      await Promise.race([this.#exited, sleep(3_000, undefined, { ref: false })])
    }
    if (!this.hasEnded) this.child.kill('SIGKILL')
    await this.#exited
    await endPostgres(this.dataDir)
    running.delete(this)
    rmSync(this.dataDir, { recursive: true, force: true, maxRetries: 5 })
  }

  /** The test process ends: no time to wait. */
  abandon(): void {
    if (!this.hasEnded) this.child.kill('SIGKILL')
  }
}

/** A directory that also PostgreSQL's user may enter. */
export function dataDirectory(): string {
  const dir = mkdtempSync(join(tmpdir(), 'pilegate-e2e-'))
  chmodSync(dir, 0o755)
  directories.add(dir)
  return dir
}

function abandonDirectory(directory: string): void {
  const pid = postmasterOf(directory)
  if (pid !== undefined) for (const member of familyOf(pid)) signal(member, 'SIGKILL')
  try {
    rmSync(directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
  } catch {
    // a process that is just dying still writes there: what is left is in the temporary directory
  }
}

/** Asks until the answer is good. @throws with the last answer when it takes longer */
export async function eventually<T>(
  what: string,
  ask: () => T | Promise<T>,
  isGood: (answer: T) => boolean,
  withinMs = 5_000,
): Promise<T> {
  const until = performance.now() + withinMs
  for (;;) {
    let answer: T | undefined
    let failure: unknown
    try {
      answer = await ask()
      if (isGood(answer)) return answer
    } catch (error) {
      failure = error
    }
    if (performance.now() > until)
      throw new Error(`${what}: not within ${withinMs} ms; last: ${failure ?? JSON.stringify(answer)?.slice(0, 2_000)}`)
    await sleep(25)
  }
}

/** Nothing of the developer's own configuration may leak into the gateway under test. */
function systemEnvironment(): Record<string, string> {
  const kept = ['PATH', 'HOME', 'LANG', 'TMPDIR', 'USER', 'NODE_EXTRA_CA_CERTS']
  return Object.fromEntries(
    kept.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]!]])),
  )
}

function portOf(url: unknown): number {
  return Number(/:(\d+)(?:\/|$)/.exec(String(url).replace(/^\w+:\/\//, ''))?.[1])
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

// ---- processes, by id --------------------------------------------------------------------------------------------

function signal(pid: number, name: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, name)
  } catch {
    return false
  }
}

/** State letter and parent of a process; undefined: there is none. */
function statOf(pid: number | string): { state: string; parent: number } | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return { state: state!, parent: Number(parent) }
  } catch {
    return undefined
  }
}

/** True while the process runs; a dead one that nobody reaped does not. */
export function isRunning(pid: number): boolean {
  return /^[^ZX]/.test(statOf(pid)?.state ?? 'Z')
}

/** A process and its children, the parent first. */
export function familyOf(pid: number): number[] {
  const children = readdirSync('/proc').filter((name) => /^\d+$/.test(name) && statOf(name)?.parent === pid)
  return [pid, ...children.map(Number)]
}

function postmasterOf(dataDir: string): number | undefined {
  try {
    const pid = Number(readFileSync(join(dataDir, 'postgres-18', 'postmaster.pid'), 'utf8').split('\n')[0])
    const belongs = readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(dataDir)
    return belongs && isRunning(pid) ? pid : undefined
  } catch {
    return undefined
  }
}

/** Stops the server on this directory, if one is left. */
export async function endPostgres(dataDir: string): Promise<void> {
  const pid = postmasterOf(dataDir)
  if (pid === undefined) return
  const family = familyOf(pid)
  for (const member of family) signal(member, 'SIGCONT')
  signal(pid, 'SIGQUIT')
  const until = performance.now() + 5_000
  while (family.some(isRunning) && performance.now() < until) await sleep(20)
  for (const member of family) if (isRunning(member)) signal(member, 'SIGKILL')
  while (family.some(isRunning)) await sleep(20)
}
