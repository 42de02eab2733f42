/**
 * Claim: a log line's `event` is found in the catalogue, and nothing stands in the catalogue that nobody says. Tried by
 * reading all sources for `event: '…'`.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { LOG_EVENTS } from './log-events.ts'

const root = new URL('../..', import.meta.url).pathname

function saidInSources(): Map<string, string> {
  const said = new Map<string, string>()
  for (const folder of ['src', 'workers'])
    for (const name of readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })) {
      if (!name.endsWith('.ts') || name.endsWith('.test.ts')) continue
      const path = join(folder, name)
      for (const [, event] of readFileSync(join(root, path), 'utf8').matchAll(/\bevent: '([^']+)'/g))
        said.set(event!, path)
    }
  return said
}

test('every event that is logged stands in the catalogue', () => {
  const unknown = [...saidInSources()].filter(([event]) => !Object.hasOwn(LOG_EVENTS, event))
  assert.deepEqual(unknown, [], 'add these to src/events/log-events.ts')
})

test('every event of the catalogue is logged somewhere', () => {
  const said = saidInSources()
  assert.deepEqual(
    Object.keys(LOG_EVENTS).filter((event) => !said.has(event)),
    [],
  )
})

test('events are noun.pastParticiple', () => {
  for (const event of Object.keys(LOG_EVENTS)) assert.match(event, /^[a-z][a-zA-Z]*\.(?:un)?[a-zA-Z]+$/)
})
