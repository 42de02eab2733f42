/**
 * Forward-only migrations: numbered SQL files, each applied once, in order, in its own transaction, under one advisory
 * lock so that several gateways may start at the same moment.
 */
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { GatewayError } from '../../errors/errors.ts'
import { connect, type Sql } from './connect.ts'

/** `migrations/` of this repository. */
export const MIGRATIONS_DIR = fileURLToPath(new URL('../../../migrations', import.meta.url))

export interface MigrationFile {
  /** From 1, without gaps. */
  readonly version: number
  /** File name. */
  readonly name: string
  readonly text: string
  /** SHA-256 of the file, 64 hex digits. */
  readonly checksum: string
}

export interface MigrationOutcome {
  /** Names applied by this call. */
  readonly applied: readonly string[]
  /** How many had been applied before. */
  readonly known: number
}

/** Any fixed number that nobody else locks: 'PILE'. */
const MIGRATION_LOCK = 0x50_49_4c_45

/**
 * Brings the schema up to the newest file of `dir`.
 *
 * Waits for as long as another migrator holds the lock. Works on PostgreSQL 15 and newer.
 * @param database a URL, or a pool of which one connection is taken for the duration
 * @throws GatewayError GW_MIGRATION_*, or the driver's error when the database is away
 */
export async function migrate(database: Sql | string, dir: string = MIGRATIONS_DIR): Promise<MigrationOutcome> {
  const files = await readMigrations(dir)
  if (typeof database !== 'string') return await migrateOn(database, files)
  const sql = connect(database, { max: 1, applicationName: 'pilegate migrate', statementTimeoutMs: 0 })
  try {
    return await migrateOn(sql, files)
  } finally {
    await sql.end({ timeout: 5 })
  }
}

/** The files of `dir` in order. @throws GatewayError GW_MIGRATION_NAME */
export async function readMigrations(dir: string): Promise<MigrationFile[]> {
  const names = (await readdir(dir)).filter((name) => name.endsWith('.sql')).sort()
  return await Promise.all(
    names.map(async (name, index) => {
      const version = Number(/^(\d{4})_[a-z0-9_]+\.sql$/.exec(name)?.[1])
      if (version !== index + 1)
        throw new GatewayError(
          'GW_MIGRATION_NAME',
          `${join(dir, name)}: expected number ${String(index + 1).padStart(4, '0')} and a name like 0001_words.sql`,
        )
      const text = await readFile(join(dir, name), 'utf8')
      return { version, name, text, checksum: createHash('sha256').update(text).digest('hex') }
    }),
  )
}

async function migrateOn(pool: Sql, files: readonly MigrationFile[]): Promise<MigrationOutcome> {
  // One session for lock and work: an advisory lock belongs to its session.
  const sql = await pool.reserve()
  try {
    // The pool's own timeout would cut a migrator that waits for another one.
    await sql`set statement_timeout = 0`
    await sql`select pg_advisory_lock(${MIGRATION_LOCK})`
    try {
      await sql`
        create table if not exists schema_migrations (
          version integer primary key,
          name text not null,
          checksum text not null,
          applied_at timestamptz not null default now(),
          duration_ms double precision not null
        )`
      const known = await sql<{ version: number; name: string; checksum: string }[]>`
        select version, name, checksum from schema_migrations order by version`
      for (const row of known) refuseChanged(row, files[row.version - 1])
      const applied: string[] = []
      for (const file of files.slice(known.length)) {
        const startedMonoMs = performance.now()
        try {
          await sql.unsafe('begin')
          await sql.unsafe(file.text)
          await sql`
            insert into schema_migrations (version, name, checksum, duration_ms)
            values (${file.version}, ${file.name}, ${file.checksum}, ${performance.now() - startedMonoMs})`
          await sql.unsafe('commit')
        } catch (cause) {
          await sql.unsafe('rollback').catch(() => {})
          const reason = cause instanceof Error ? cause.message : String(cause)
          throw new GatewayError('GW_MIGRATION_FAILED', `${file.name}: ${reason}`, { cause })
        }
        applied.push(file.name)
      }
      return { applied, known: known.length }
    } finally {
      // A lost connection has released the lock already.
      await sql`select pg_advisory_unlock(${MIGRATION_LOCK})`.catch(() => {})
      await sql`reset statement_timeout`.catch(() => {})
    }
  } finally {
    sql.release()
  }
}

function refuseChanged(
  row: { version: number; name: string; checksum: string },
  file: MigrationFile | undefined,
): asserts file {
  if (file === undefined)
    throw new GatewayError('GW_MIGRATION_UNKNOWN', `the database has ${row.name}, which this release does not know`)
  if (file.checksum !== row.checksum)
    throw new GatewayError(
      'GW_MIGRATION_EDITED',
      `${file.name} was edited after it was applied (SHA-256 ${row.checksum.slice(0, 12)} then, ${file.checksum.slice(0, 12)} now)`,
    )
}
