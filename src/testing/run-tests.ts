/**
 * `npm test`: every test of the repository. Unit tests first, two files at a time; then the end-to-end tests one file
 * after the other, because they kill, freeze and measure, and neighbours would disturb that. The last lines are the totals
 * of both runs. Words behind `--` choose the files whose path contains one of them.
 */
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const FOLDERS = ['src', 'workers', 'loadtest', 'native-bench', 'k6']
/** A test that hangs ends here, with its name, instead of stopping CI. */
const TEST_MS_MAX = 180_000
const TOTALS = ['tests', 'suites', 'pass', 'fail', 'cancelled', 'skipped', 'todo'] as const

function testFiles(): string[] {
  return FOLDERS.flatMap((folder) => {
    try {
      return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name.endsWith('.test.ts'))
        .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)))
        .filter((path) => !path.includes('node_modules'))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
      throw error
    }
  }).sort()
}

const totals = new Map<string, number>(TOTALS.map((name) => [name, 0]))

async function run(title: string, files: readonly string[], concurrency: number): Promise<boolean> {
  if (files.length === 0) return true
  console.log(`\n${title}: ${files.length} files\n`)
  const child = spawn(
    process.execPath,
    [
      '--test',
      `--test-concurrency=${concurrency}`,
      `--test-timeout=${TEST_MS_MAX}`,
      '--test-reporter=spec',
      '--test-reporter-destination=stdout',
      ...files,
    ],
    { cwd: ROOT, stdio: ['ignore', 'pipe', 'inherit'] },
  )
  let rest = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    process.stdout.write(chunk)
    const lines = (rest + chunk).split('\n')
    rest = lines.pop()!
    for (const line of lines) {
      // a test's own diagnostics are indented, the totals are not
      const [, name, count] = /^ℹ (\w+) (\d+)$/.exec(line) ?? []
      if (name !== undefined && totals.has(name)) totals.set(name, totals.get(name)! + Number(count))
    }
  })
  const stop = (signal: NodeJS.Signals) => child.kill(signal)
  process.once('SIGINT', stop)
  process.once('SIGTERM', stop)
  const exitCode = await new Promise<number | null>((resolve) => child.once('close', resolve))
  return exitCode === 0
}

const words = process.argv.slice(2)
const files = testFiles().filter((path) => words.length === 0 || words.some((word) => path.includes(word)))
const isEndToEnd = (path: string) => path.endsWith('.e2e.test.ts')
const startedMonoMs = performance.now()
let isGood = await run(
  'unit tests',
  files.filter((path) => !isEndToEnd(path)),
  2,
)
isGood = (await run('end-to-end tests', files.filter(isEndToEnd), 1)) && isGood
console.log('')
for (const [name, count] of totals) console.log(`# ${name} ${count}`)
console.log(`# duration_s ${((performance.now() - startedMonoMs) / 1_000).toFixed(1)}`)
// a run in which nothing ran proves nothing
if (totals.get('tests') === 0) isGood = false
process.exitCode = isGood ? 0 : 1
