/**
 * The tests that README.md names for the defects of the field can fail: each defect is put back into a copy of the
 * sources, by one change of their text, and the named test must fail there. Without the change it passes: that is the run
 * of the test itself. Defects that only show when several parts meet are mutants of the simulation (simulation.test.ts).
 *
 * A change whose text is not found, or found twice, is an error here: say the defect anew in the words of the code.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

interface Mutation {
  readonly defect: string
  readonly file: string
  readonly from: string
  readonly to: string
  /** Fails with the change. */
  readonly caughtBy: { readonly file: string; readonly test: string }
}

const MUTATIONS: readonly Mutation[] = [
  {
    defect: 'D1: what nobody answered counts as done',
    file: 'src/session/command-lane.ts',
    from: "this.#watch(flying, { status: COMMAND_STATUS.dead, reason: 'no_result' }, now)",
    to: "this.#watch(flying, { status: COMMAND_STATUS.acked, reason: 'no_result' }, now)",
    caughtBy: { file: 'src/testing/field-notes.test.ts', test: 'D1:' },
  },
  {
    defect: 'D11: order numbers are folded onto 16 bits',
    file: 'src/orders/order-number.ts',
    from: ".toString('hex')\n        .padEnd(",
    to: ".toString('hex')\n        .slice(-4)\n        .padEnd(",
    caughtBy: { file: 'src/testing/field-notes.test.ts', test: 'D11:' },
  },
  {
    defect: 'D12: an id in flight is given again when the numbers come round',
    file: 'src/session/command-lane.ts',
    from: 'this.#flying.some((flying) => flying.messageId === messageId) ||',
    to: '',
    caughtBy: { file: 'src/testing/field-notes.test.ts', test: 'D12:' },
  },
  {
    defect: 'D14: the charging bit wins over a fault',
    file: 'src/protocols/bkv/status.ts',
    from: "  if (raw & (PROTECTION | meteringBit)) return 'fault'\n  return raw & CHARGING ? 'charging' : 'idle'",
    to: "  if (raw & CHARGING) return 'charging'\n  return raw & (PROTECTION | meteringBit) ? 'fault' : 'idle'",
    caughtBy: { file: 'src/protocols/bkv/status.test.ts', test: 'all 256 states' },
  },
  {
    defect: 'D16: an order whose end is never reported charges for ever',
    file: 'src/main/reconciler.ts',
    from: "? 'settle' : 'ask'",
    to: "? 'ask' : 'ask'",
    caughtBy: { file: 'src/main/reconciler.test.ts', test: 'decide:' },
  },
  {
    defect: 'D18: a BKV end report is acked before it is stored',
    file: 'src/protocols/bkv/commands/socket.ts',
    from: "when: 'durable'",
    to: "when: 'decoded'",
    caughtBy: { file: 'src/protocols/bkv/table.test.ts', test: 'when replies may go out' },
  },
  {
    defect: 'D18: an AP3000 settlement is acked before it is stored',
    file: 'src/protocols/ap3000/commands/settlement.ts',
    from: "with: 'settlementAck', when: 'durable'",
    to: "with: 'settlementAck', when: 'decoded'",
    caughtBy: { file: 'src/session/shard.test.ts', test: 'acknowledged when durable, not before' },
  },
  {
    defect: 'D19: energy is sent as minutes, one by default',
    file: 'src/orders/charge-plan.ts',
    from: 'return control(ENERGY, 0, wh, durationLimit)',
    to: 'return control(TIME, 1, 0, durationLimit)',
    caughtBy: { file: 'src/orders/charge-plan.test.ts', test: 'BKV time, energy, stop' },
  },
  {
    defect: 'an AP3000 start goes again blindly, in its session',
    file: 'src/session/command-lane.ts',
    from: 'return !isPortCharging && this.#lastSent.get(command.downlink) === messageId',
    to: 'return messageId >= 0 || isPortCharging',
    caughtBy: { file: 'src/session/command-lane.test.ts', test: 'AP3000: not' },
  },
  {
    defect: 'an AP3000 start goes again blindly, in another session',
    file: 'src/session/command-lane.ts',
    from: 'else if (this.#isAskable(command)) this.#lastTryOver(flying, now)',
    to: '',
    caughtBy: { file: 'src/session/command-lane.test.ts', test: 'AP3000: not in another session' },
  },
  {
    defect: 'a stop of another charge revives an order that was refused',
    file: 'workers/writer/order-book.ts',
    from: "    if (order.state === 'failed' && !isInDoubt(order)) return false\n",
    to: '',
    caughtBy: { file: 'workers/writer/command-fates.test.ts', test: 'a stop of a port' },
  },
]

const ROOT = join(import.meta.dirname, '../..')
let copy: string
before(() => {
  copy = mkdtempSync(join(tmpdir(), 'pilegate-mutations-'))
  for (const name of ['src', 'workers', 'loadtest', 'migrations', 'package.json'])
    cpSync(join(ROOT, name), join(copy, name), { recursive: true })
  symlinkSync(join(ROOT, 'node_modules'), join(copy, 'node_modules'))
})
after(() => rmSync(copy, { recursive: true, force: true }))

for (const { defect, file, from, to, caughtBy } of MUTATIONS)
  test(`${defect}: caught by ${caughtBy.file}`, async () => {
    const place = join(copy, file)
    const source = readFileSync(join(ROOT, file), 'utf8')
    assert.equal(source.split(from).length, 2, `${file} has once: ${from}`)
    writeFileSync(place, source.replace(from, to))
    const { exitCode, output } = await runTest(caughtBy.file, caughtBy.test)
    writeFileSync(place, source)
    assert.equal(exitCode, 1, output)
    // failed by what it asserts, not because the change does not even load
    assert.match(output, /^# fail [1-9]/m, output)
    assert.match(output, /ERR_ASSERTION/, output)
  })

function runTest(file: string, name: string): Promise<{ exitCode: number | null; output: string }> {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env
  const child = spawn(process.execPath, ['--test', '--test-reporter=tap', `--test-name-pattern=${name}`, file], {
    cwd: copy,
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    output += chunk
  })
  return new Promise((resolve) => child.once('close', (exitCode) => resolve({ exitCode, output })))
}
