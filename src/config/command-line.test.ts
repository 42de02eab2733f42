/**
 * Claim: a tool that is asked wrongly says how it is to be asked and ends with 2, `--help` with 0, and neither does
 * anything else. Tried on a tool as a process.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const TOOL = fileURLToPath(new URL('../testing/sim-cli.ts', import.meta.url))
const ask = (...args: readonly string[]) => spawnSync(process.execPath, [TOOL, ...args], { encoding: 'utf8' })

test('--help says the usage, and nothing is run', () => {
  const { status, stdout, stderr } = ask('--help')
  assert.equal(status, 0)
  assert.match(stdout, /^npm run sim -- .*--seeds N.*\n$/)
  assert.equal(stderr, '')
})

test('an option nobody knows: its name and the usage', () => {
  const { status, stdout, stderr } = ask('--sedes', '5')
  assert.equal(status, 2)
  assert.equal(stdout, '')
  assert.match(stderr, /--sedes.*\nnpm run sim -- /)
})

test('what is no whole number is named', () => {
  for (const text of ['x', '', '1.5', '9007199254740992']) {
    const { status, stderr } = ask('--seeds', text)
    assert.equal(status, 2, text)
    assert.equal(stderr, `--seeds ${text}: not a whole number\n`)
  }
})
