/** `npm run migrate`: brings the schema up to date and ends; on the embedded database unless DATABASE_URL is set. */
import { startEmbeddedPostgres } from './database/embedded-postgres.ts'
import { migrate } from './database/migrate.ts'

const say = (fields: object) => process.stderr.write(`${JSON.stringify(fields)}\n`)

async function main(): Promise<void> {
  const given = process.env['DATABASE_URL']
  if (given) return report(await migrate(given))
  const dataDir = process.env['DATA_DIR'] || '.data'
  const postgres = await startEmbeddedPostgres({ dataDir, log: { info: () => {}, warn: say, error: say } })
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

try {
  await main()
} catch (error) {
  const code = (error as { code?: unknown }).code
  process.stderr.write(`migrate: ${typeof code === 'string' ? `${code}: ` : ''}${(error as Error).message}\n`)
  process.exitCode = 1
}
