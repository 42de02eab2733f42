/**
 * Claim: a tool that is asked wrongly says how it is to be asked and ends with 2, `--help` with 0, what cannot be reached
 * with 1 and a line, and none of them does anything else. Tried on every file that reads options, as a process in an empty
 * folder; a new one is found by itself, and an npm script that reads none fails here.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const ENDS_WITHIN_MS = 60_000
const empty = mkdtempSync(join(tmpdir(), 'pilegate-asked-'))
// every tool loads the same files, again and again
const compiled = mkdtempSync(join(tmpdir(), 'pilegate-compiled-'))
after(() => {
  for (const folder of [empty, compiled]) rmSync(folder, { recursive: true })
})

const SCRIPTS = new Map(
  Object.entries(
    (JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { scripts: Record<string, string> }).scripts,
  ).flatMap(([name, line]): [string, string][] => {
    const file = /^exec node (\S+\.ts)$/.exec(line)?.[1]
    return file === undefined ? [] : [[file, name]]
  }),
)

/** Files that read options, from the root. `k6/run.ts` hands its own on. */
function toolsOf(): string[] {
  const tools = ['k6/run.ts']
  for (const folder of ['src', 'loadtest', 'native-bench'])
    for (const name of readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })) {
      if (!name.endsWith('.ts') || name.endsWith('.test.ts')) continue
      const source = readFileSync(join(ROOT, folder, name), 'utf8')
      if (/import \{[^}]*\breadOptions\b[^}]*\} from '.*command-line\.ts'/.test(source)) tools.push(join(folder, name))
    }
  return tools
}
const TOOLS = toolsOf()

interface Answer {
  readonly status: number | string | null | undefined
  readonly stdout: string
  readonly stderr: string
}

/** @param line arguments between spaces; '' in it is an empty one */
function ask(tool: string, line: string, env: Readonly<Record<string, string>> = {}): Promise<Answer> {
  const args = line === '' ? [] : line.split(' ').map((word) => (word === "''" ? '' : word))
  const { PATH, HOME } = process.env
  return new Promise((resolve) => {
    const options = { cwd: empty, timeout: ENDS_WITHIN_MS, env: { PATH, HOME, NODE_COMPILE_CACHE: compiled, ...env } }
    execFile(process.execPath, [join(ROOT, tool), ...args], options, (error, stdout, stderr) =>
      resolve({ status: error === null ? 0 : (error.code ?? error.signal), stdout, stderr }),
    )
  })
}

/** `npm run sim` or `node native-bench/push.ts`: what the usage begins with. */
const nameOf = (tool: string) => (SCRIPTS.has(tool) ? `npm run ${SCRIPTS.get(tool)}` : `node ${tool}`)

test('every npm script reads its options', () => {
  // the gateway is configured, not asked; the tests take names of files
  const others = new Set(['src/main/start.ts', 'src/testing/run-tests.ts'])
  assert.deepEqual(
    [...SCRIPTS.keys()].filter((file) => !TOOLS.includes(file) && !others.has(file)),
    [],
  )
})

// processes, most of which only load
describe('asked wrongly', { concurrency: availableParallelism() }, () => {
  for (const tool of TOOLS) {
    test(`${tool} --help: the usage`, async () => {
      const { status, stdout, stderr } = await ask(tool, '--help')
      assert.equal(status, 0, stderr)
      assert.equal(stderr, '')
      assert.ok(stdout.startsWith(nameOf(tool)), stdout)
    })

    test(`${tool} --nope: its name and the usage`, async () => {
      const { status, stdout, stderr } = await ask(tool, '--nope')
      assert.equal(status, 2, stderr)
      assert.equal(stdout, '')
      assert.match(stderr, /--nope/)
      assert.ok(stderr.includes(`\n${nameOf(tool)}`), stderr)
    })
  }

  for (const [tool, line] of [
    ['src/main/migrate-cli.ts', 'now'],
    ['loadtest/demo.ts', 'fast'],
    ['src/main/replay-cli.ts', '--device 04ab373b --to-host sandbox'],
    ['src/main/recompute-cli.ts', '--apply'],
  ] as const)
    test(`${tool} ${line}: the usage`, async () => {
      const { status, stdout, stderr } = await ask(tool, line)
      assert.equal(status, 2, stderr)
      assert.equal(stdout, '')
      assert.ok(stderr.includes(`\n${nameOf(tool)}`), stderr)
    })

  for (const [tool, line, said] of [
    ['native-bench/plain-net-server.ts', '--port x', '--port x: not a whole number'],
    ['native-bench/plain-net-server.ts', "--port ''", '--port : not a whole number'],
    ['native-bench/plain-net-server.ts', '--port 1.5', '--port 1.5: not a whole number'],
    ['src/testing/sim-cli.ts', '--seeds 9007199254740992', '--seeds 9007199254740992: not a whole number'],
    ['src/testing/churn.ts', '--driver nope', '--driver nope: one of epoll net'],
    ['src/testing/churn.ts', '--resets 2', '--resets 2: at most 1'],
    ['src/main/replay-cli.ts', '--device 04ab373b --to-port x', '--to-port x: not a whole number'],
    ['src/main/recompute-cli.ts', '--device 04ab373b --from then', '--from then: not a time (RFC 3339)'],
    ['loadtest/commands.ts', '--kind nope', '--kind nope: one of locate charge'],
    ['loadtest/commands.ts', '--api nowhere', '--api nowhere: not an address like http://127.0.0.1:8080'],
    ['loadtest/every-command.ts', '--port 0', '--port 0: at least 1'],
    ['native-bench/run.ts', '--tolerance x', '--tolerance x: not a number'],
    ['native-bench/net.ts', '--connections 1000,x', '--connections x: not a whole number'],
    ['native-bench/rows.ts', '--only nope', '--only nope: one of rows grid latency'],
    ['native-bench/webhooks.ts', '--seconds 0', '--seconds 0: at least 1'],
    ['native-bench/push.ts', '--subscribers x', '--subscribers x: not a whole number'],
    ['native-bench/plain-net-server.ts', '--port 65536', '--port 65536: at most 65535'],
  ] as const)
    test(`${tool} ${line}: one line`, async () => {
      assert.deepEqual(await ask(tool, line), { status: 2, stdout: '', stderr: `${said}\n` })
    })

  test('a report that could not be written is refused before the run', async () => {
    const { status, stderr } = await ask('loadtest/fleet.ts', '--report /no/x.html --devices 1 --duration-s 600')
    assert.equal(status, 2)
    assert.match(stderr, /^--report \/no\/x\.html: .*ENOENT.*\n$/)
  })

  test('a broken file of CONFIG_PATH: the problem, and nothing is begun', async () => {
    const path = join(empty, 'broken.yaml')
    writeFileSync(path, 'tcpPort: seven\n')
    for (const [tool, line] of [
      ['src/main/migrate-cli.ts', ''],
      ['src/main/recompute-cli.ts', '--device 04ab373b'],
      ['src/main/replay-cli.ts', '--device 04ab373b'],
    ] as const) {
      const { status, stderr } = await ask(tool, line, { CONFIG_PATH: path })
      assert.equal(status, 2, tool)
      assert.match(stderr, /^configuration: tcpPort = "seven": .*\n$/)
    }
  })

  test('nobody there: one line and 1', async () => {
    const databaseUrl = 'postgres://u:secret@127.0.0.1:1/d'
    writeFileSync(join(empty, 'key'), 'k')
    const folder = join(empty, 'none')
    for (const [tool, line, env, said] of [
      ['src/main/migrate-cli.ts', '', { DATABASE_URL: databaseUrl }, /^migrate: .*ECONNREFUSED.*\n$/],
      ['src/main/recompute-cli.ts', '--device 04ab373b', { DATABASE_URL: databaseUrl }, /^recompute: .*ECONNREF.*\n$/],
      [
        'src/main/recompute-cli.ts',
        '--device 04ab373b',
        { DATA_DIR: folder },
        new RegExp(`^recompute: no database in ${folder}; set DATABASE_URL or DATA_DIR\n$`),
      ],
      ['src/main/replay-cli.ts', '--device 04ab373b', {}, /^0 frames \(RECORD is off, or nothing in that window\)\n$/],
      ['loadtest/commands.ts', '--key-file key --api http://127.0.0.1:1', {}, /^commands: no gateway at http.*\n$/],
      ['loadtest/every-command.ts', '--api http://127.0.0.1:1', {}, /^every-command: no gateway at http.*\n$/],
    ] as const) {
      const { status, stdout, stderr } = await ask(tool, line, env)
      assert.equal(status, 1, `${tool}: ${stderr}`)
      assert.equal(stdout, '')
      assert.match(stderr, said)
      assert.ok(!stderr.includes('secret'))
    }
    assert.ok(!readdirSync(empty).includes('none'), 'no cluster was made')
  })
})
