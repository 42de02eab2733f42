/**
 * Claim: every error code that is thrown or answered stands in the catalogue, and nothing stands in the catalogue that
 * nobody throws. Tried by reading all sources for quoted `GW_…`.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { ERRORS } from './errors.ts'

const root = new URL('../..', import.meta.url).pathname

function saidInSources(): Map<string, string> {
  const said = new Map<string, string>()
  for (const folder of ['src', 'workers'])
    for (const name of readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })) {
      if (!name.endsWith('.ts') || name.endsWith('.test.ts')) continue
      const path = join(folder, name)
      for (const [, code] of readFileSync(join(root, path), 'utf8').matchAll(/'(GW_[A-Z_]+)'/g)) said.set(code!, path)
    }
  return said
}

test('every code in the sources stands in the catalogue', () => {
  const said = saidInSources()
  assert.ok(said.size > 0)
  assert.deepEqual(
    [...said].filter(([code]) => !Object.hasOwn(ERRORS, code)),
    [],
    'add these to src/errors/errors.ts',
  )
})

test('every code of the catalogue is said somewhere', () => {
  const said = saidInSources()
  assert.deepEqual(
    Object.keys(ERRORS).filter((code) => !said.has(code)),
    [],
  )
})
