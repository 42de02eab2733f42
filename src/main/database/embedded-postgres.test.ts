/**
 * Claimed: the embedded database comes up cold and warm, keeps what was committed, survives a kill -9 of itself on the
 * same port and a kill -9 of its gateway, stops in order, and says which directory is in the way. Tried with real
 * servers in temporary directories; the killed gateway is a child process of this test.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { TEST_SETTINGS } from '../../testing/database.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { connect } from './connect.ts'
import { type EmbeddedPostgres, linkLibraries, startEmbeddedPostgres } from './embedded-postgres.ts'

const root = temporaryDirectory()
const dataDir = join(root, 'data')
const events: string[] = []
const note = (fields: object) => events.push((fields as { event: string }).event)
const log = { info: note, warn: note, error: note }
// Kills are the point here: what was committed has to be there, so fsync stays on.
const settings = { shared_buffers: TEST_SETTINGS['shared_buffers']! }
const start = () => startEmbeddedPostgres({ dataDir, log, settings })
let running: EmbeddedPostgres | null = null
after(async () => {
  await running?.stop()
  rmSync(root, { recursive: true, force: true })
})

async function within<T>(ms: number, attempt: () => Promise<T>): Promise<T> {
  const deadlineMonoMs = performance.now() + ms
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      if (performance.now() > deadlineMonoMs) throw error
      await sleep(50)
    }
  }
}

test('cold start: a cluster with a password of its own, on loopback only, private files', async () => {
  running = await start()
  assert.equal(running.origin, 'created')
  assert.ok(running.port < 32_768)
  const secrets = join(dataDir, 'postgres-18.json')
  assert.equal(statSync(secrets).mode & 0o777, 0o600)
  assert.equal(existsSync(join(dataDir, 'postgres-18.new.pw')), false)
  const sql = connect(running.url, { max: 1 })
  const [row] = await sql`
    select current_setting('listen_addresses') as listen, current_setting('unix_socket_directories') as sockets,
      current_setting('fsync') as fsync, current_setting('synchronous_commit') as commit, current_database() as name`
  assert.deepEqual({ ...row }, { listen: '127.0.0.1', sockets: '', fsync: 'on', commit: 'on', name: 'pilegate' })
  await sql`create table kept (id int primary key)`
  await sql`insert into kept values (1)`
  await sql.end({ timeout: 1 })
  const wrong = connect(running.url.replace(/:[^:@]+@/, ':wrong@'), { max: 1 })
  await assert.rejects(
    wrong`select 1`.then(() => {}),
    { code: '28P01' },
  )
  await wrong.end({ timeout: 1 })
})

test('stop removes the lock; a warm start keeps port, password and data', async () => {
  const before = running!
  await before.stop()
  assert.equal(existsSync(join(dataDir, 'postgres-18', 'postmaster.pid')), false)
  running = await start()
  assert.equal(running.origin, 'started')
  assert.equal(running.url, before.url)
  await expectKept(running, 1)
})

test('kill -9 of the server: restarted by itself on the same port, committed rows are there', async () => {
  let exits = 0
  running!.onExit(() => exits++)
  const sql = connect(running!.url, { max: 1 })
  await sql`insert into kept values (2)`
  for (const round of [1, 2]) {
    const { pid } = running!
    process.kill(pid, 'SIGKILL')
    await within(15_000, async () => {
      assert.equal(exits, round)
      assert.notEqual(running!.pid, pid)
      assert.equal((await sql`select from kept`).count, 2)
    })
  }
  assert.deepEqual(
    events.filter((event) => /died|restarted/.test(event)),
    ['database.died', 'database.restarted', 'database.died', 'database.restarted'],
  )
  await sql.end({ timeout: 1 })
})

test('kill -9 of the gateway: the server stays, the next start adopts it, watches it and can stop it', async () => {
  await running!.stop()
  const script = `
    const { startEmbeddedPostgres } = await import(${JSON.stringify(new URL('./embedded-postgres.ts', import.meta.url).href)})
    const log = { info() {}, warn() {}, error() {} }
    const postgres = await startEmbeddedPostgres({ dataDir: ${JSON.stringify(dataDir)}, log, settings: ${JSON.stringify(settings)} })
    console.log(postgres.pid)
    setInterval(() => {}, 1000)`
  const gateway = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const serverPid = await new Promise<number>((answer) => gateway.stdout.once('data', (chunk) => answer(Number(chunk))))
  gateway.kill('SIGKILL')
  await new Promise((answer) => gateway.once('exit', answer))

  running = await start()
  assert.equal(running.origin, 'adopted')
  assert.equal(running.pid, serverPid)
  await expectKept(running, 2)

  // Not our child: its death is seen by looking, and its lock may stay for ever where nobody reaps it.
  process.kill(serverPid, 'SIGKILL')
  await within(20_000, async () => {
    assert.notEqual(running!.pid, serverPid)
    await expectKept(running!, 2)
  })
  await running.stop()
  assert.equal(existsSync(join(dataDir, 'postgres-18', 'postmaster.pid')), false)
  running = null
})

test('an initdb that was killed halfway is started over', async () => {
  const dir = join(root, 'half')
  mkdirSync(join(dir, 'postgres-18.new', 'base'), { recursive: true })
  const postgres = await startEmbeddedPostgres({ dataDir: dir, log, settings: TEST_SETTINGS })
  assert.equal(postgres.origin, 'created')
  await postgres.stop()
  // The password is gone: nothing is guessed, nothing is deleted.
  rmSync(join(dir, 'postgres-18.json'))
  await assert.rejects(startEmbeddedPostgres({ dataDir: dir, log }), { code: 'GW_POSTGRES_PASSWORD_LOST' })
  assert.ok(existsSync(join(dir, 'postgres-18', 'PG_VERSION')))
})

test('below a directory closed to the server’s user it runs all the same, where the system lets it', {
  skip: process.getuid?.() !== 0 && 'not root',
}, async () => {
  const home = join(root, 'private')
  mkdirSync(home)
  chmodSync(home, 0o700)
  try {
    const postgres = await startEmbeddedPostgres({ dataDir: join(home, 'data'), log })
    assert.equal(postgres.origin, 'created')
    assert.equal(statSync(home).mode & 0o777, 0o700, 'nothing was opened for others')
    await postgres.stop()
  } catch (error) {
    // no setpriv, or a container without the capability: then the directory is named
    assert.equal((error as { code?: string }).code, 'GW_POSTGRES_UNREACHABLE')
    assert.ok((error as Error).message.includes(`enter ${home} `), (error as Error).message)
  }
})

test('library links that npm left out are made, those that are there stay', () => {
  const native = join(root, 'package', 'native')
  mkdirSync(join(native, 'lib'), { recursive: true })
  writeFileSync(join(native, 'lib', 'libx.so.1.2'), 'x')
  writeFileSync(join(native, 'lib', 'liby.so'), 'own')
  const link = (target: string) => ({ source: 'native/lib/libx.so.1.2', target: `native/lib/${target}` })
  writeFileSync(join(native, 'pg-symlinks.json'), JSON.stringify([link('libx.so'), link('libx.so.1'), link('liby.so')]))
  for (let again = 0; again < 2; again++) linkLibraries(native)
  assert.equal(readlinkSync(join(native, 'lib', 'libx.so')), 'libx.so.1.2')
  assert.equal(readFileSync(join(native, 'lib', 'libx.so.1'), 'utf8'), 'x')
  assert.equal(readFileSync(join(native, 'lib', 'liby.so'), 'utf8'), 'own')
})

test('what the server says goes to a private file', () => {
  const path = join(dataDir, 'postgres-18.log')
  assert.equal(statSync(path).mode & 0o777, 0o600)
  assert.match(readFileSync(path, 'utf8'), /LOG|FATAL|WARNING/)
})

async function expectKept(postgres: EmbeddedPostgres, count: number): Promise<void> {
  const sql = connect(postgres.url, { max: 1 })
  try {
    assert.equal((await sql`select from kept`).count, count)
  } finally {
    await sql.end({ timeout: 1 })
  }
}
