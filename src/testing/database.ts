/**
 * PostgreSQL for tests: one server per test process in a temporary directory, or the one of TEST_DATABASE_URL, and a
 * fresh migrated database for whoever asks. Never Debian's, never a mock.
 */
import { createHash, randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import { connect, type Sql } from '../main/database/connect.ts'
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../main/database/embedded-postgres.ts'
import { MIGRATIONS_DIR, migrate, readMigrations } from '../main/database/migrate.ts'
import { temporaryDirectory } from './temporary-directory.ts'

export interface TestDatabase {
  readonly url: string
  /** A pool of 4 on it. */
  readonly sql: Sql
  /** Drops the database; the server stops with the last one. Call it in `after`. */
  readonly close: () => Promise<void>
}

/** Durability is not what these tests are about, and the machine is shared. */
export const TEST_SETTINGS: Readonly<Record<string, string>> = {
  fsync: 'off',
  full_page_writes: 'off',
  shared_buffers: '32MB',
  max_wal_size: '256MB',
  autovacuum: 'off',
}

const silent = { info: () => {}, warn: () => {}, error: () => {} }

interface Server {
  readonly url: string
  readonly stop: () => Promise<void>
}
let server: Promise<Server> | null = null
let users = 0

/**
 * A database of its own, with all migrations applied unless `empty`.
 *
 * 1-2 s for the first one of a process without TEST_DATABASE_URL, about 50 ms for the others.
 */
export async function openTestDatabase(options: { readonly empty?: boolean } = {}): Promise<TestDatabase> {
  users++
  server ??= startServer()
  const { url, stop } = await server
  const name = `test_${process.pid}_${randomBytes(4).toString('hex')}`
  const admin = connect(url, { max: 1 })
  if (options.empty) await admin.unsafe(`create database ${name}`)
  else {
    const template = await ensureTemplate(url, admin)
    await admin.unsafe(`create database ${name} template ${template}`)
  }
  const own = withDatabase(url, name)
  const sql = connect(own, { max: 4 })
  return {
    url: own,
    sql,
    async close() {
      await sql.end({ timeout: 2 })
      await admin.unsafe(`drop database ${name} with (force)`)
      await admin.end({ timeout: 2 })
      if (--users > 0) return
      server = null
      await stop()
    },
  }
}

/** The same server, another database. */
export function withDatabase(url: string, name: string): string {
  const changed = new URL(url)
  changed.pathname = `/${name}`
  return changed.href
}

async function startServer(): Promise<Server> {
  const given = process.env['TEST_DATABASE_URL']
  if (given) return { url: given, stop: async () => {} }
  const dataDir = temporaryDirectory()
  const postgres: EmbeddedPostgres = await startEmbeddedPostgres({ dataDir, log: silent, settings: TEST_SETTINGS })
  // A test process that ends without `close` (a failure in `before`) must not leave a server behind.
  const abandon = () => {
    try {
      process.kill(postgres.pid, 'SIGQUIT')
    } catch {
      // already gone
    }
    rmSync(dataDir, { recursive: true, force: true })
  }
  process.once('exit', abandon)
  return {
    url: postgres.url,
    async stop() {
      await postgres.stop()
      process.off('exit', abandon)
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
}

/** Migrated once per server and content of migrations/; several test processes may share the server. */
async function ensureTemplate(url: string, admin: Sql): Promise<string> {
  const digest = createHash('sha256')
  for (const { checksum } of await readMigrations(MIGRATIONS_DIR)) digest.update(checksum)
  const name = `template_${digest.digest('hex').slice(0, 12)}`
  const draft = `${name}_draft`
  await admin`select pg_advisory_lock(hashtext(${name}))`
  try {
    const found = await admin`select from pg_database where datname = ${name}`
    if (found.count > 0) return name
    await admin.unsafe(`drop database if exists ${draft} with (force)`)
    await admin.unsafe(`create database ${draft}`)
    await migrate(withDatabase(url, draft))
    // Under its name only when it is complete.
    await admin.unsafe(`alter database ${draft} rename to ${name}`)
    return name
  } finally {
    await admin`select pg_advisory_unlock(hashtext(${name}))`
  }
}
