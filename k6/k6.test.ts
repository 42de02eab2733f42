/**
 * Claim: every k6 script says when it has failed (thresholds), `npm run k6` knows what each needs, and says what is
 * missing instead of trying: an unknown script ends with 2, an option that k6 does not have too, before a gateway is
 * started for it, a machine without k6 and Go with 127 and what to do. k6 itself does not run here; results/ holds what it
 * said.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

const HERE = import.meta.dirname
const scripts = readdirSync(HERE).filter((name) => name.endsWith('.js'))

function runner(args: readonly string[], env: NodeJS.ProcessEnv): { status: number | null; stderr: string } {
  const { status, stderr } = spawnSync(process.execPath, [join(HERE, 'run.ts'), ...args], { encoding: 'utf8', env })
  return { status, stderr }
}

test('every script has thresholds, and the runner has a line for it', () => {
  assert.ok(scripts.length >= 4)
  const needs = readFileSync(join(HERE, 'run.ts'), 'utf8')
  for (const script of scripts) {
    assert.match(readFileSync(join(HERE, script), 'utf8'), /thresholds: \{/, script)
    assert.ok(needs.includes(`'${script.replace(/\.js$/, '')}': {`), `NEEDS of run.ts lacks ${script}`)
  }
})

test('an unknown script: 2, and which there are', () => {
  const { status, stderr } = runner(['nothing'], process.env)
  assert.equal(status, 2)
  for (const script of scripts) assert.ok(stderr.includes(script.replace(/\.js$/, '')))
})

test('an option that k6 does not have: 2, and nothing is started', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pilegate-k6-help-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const k6 = join(folder, 'k6')
  // what `k6 run --help` looks like; a run of it would say what it was given
  writeFileSync(
    k6,
    `#!/bin/sh
case "$*" in
  version) echo k6 ;;
  *--help) printf '  -d, --duration duration   limit\\n      --no-setup    none\\n' ;;
  *) echo "ran $*" >&2 ;;
esac
`,
    { mode: 0o755 },
  )
  // with an address it starts no gateway either
  const env = { ...process.env, K6: k6, API: 'http://127.0.0.1:1' }
  for (const option of ['--nope', '--nope=1', '-x', '--durations']) {
    const { status, stderr } = runner(['api-read', option], env)
    assert.equal(status, 2, option)
    assert.ok(stderr.startsWith(`${option}: `), stderr)
    assert.ok(!stderr.includes('ran '))
  }
  for (const given of [['--duration', '3s'], ['-d3s'], ['--no-setup', '--duration=3s']]) {
    const { status, stderr } = runner(['api-read', ...given], env)
    assert.equal(status, 0, stderr)
    assert.ok(stderr.includes(` ${given.join(' ')} `), stderr)
  }
})

test('no k6 and no Go: 127, and what to install', (t) => {
  const cache = mkdtempSync(join(tmpdir(), 'pilegate-no-k6-'))
  t.after(() => rmSync(cache, { recursive: true }))
  const { K6: _, ...env } = process.env
  const { status, stderr } = runner(['tcp-devices'], { ...env, PATH: cache, XDG_CACHE_HOME: cache })
  assert.equal(status, 127)
  assert.match(stderr, /k6\/x\/tcp/)
  assert.match(stderr, /Go 1\.25/)
})
