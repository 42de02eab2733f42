/**
 * `npm run migrate`: brings the schema up to date and ends; on the database of the configuration, else on the embedded
 * one, also beside a running gateway.
 */
import { resolve } from 'node:path'
import { fail, readConfig, readOptions } from '../config/command-line.ts'

const USAGE =
  'npm run migrate, without options\n' +
  'on the database of DATABASE_URL, else on the embedded one in DATA_DIR (CONFIG_PATH too, as for npm start)'
const say = (fields: object) => process.stderr.write(`${JSON.stringify(fields)}\n`)

async function run(): Promise<void> {
  readOptions(USAGE, {})
  const { databaseUrl, dataDir } = await readConfig()
  const { migrate } = await import('./database/migrate.ts')
  if (databaseUrl !== null) return report(await migrate(databaseUrl))
  const { startEmbeddedPostgres } = await import('./database/embedded-postgres.ts')
  const log = { info: () => {}, warn: say, error: say }
  const postgres = await startEmbeddedPostgres({ dataDir: resolve(dataDir), log })
  try {
    report(await migrate(postgres.url))
  } finally {
    // One that was running belongs to a gateway: it stays.
    if (postgres.origin !== 'adopted') await postgres.stop()
  }
}

function report({ applied, known }: { applied: readonly string[]; known: number }): void {
  for (const name of applied) process.stdout.write(`applied ${name}\n`)
  process.stdout.write(`${known + applied.length} migrations in place, ${applied.length} of them new\n`)
}

await run().catch((error: unknown) => fail('migrate', error))
