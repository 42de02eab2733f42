/**
 * Claims: the verification samples take what our signer signs and refuse everything that was changed, in three languages;
 * there is a sample of every event type, in the shape that is sent. The samples run as a reader would run them; where an
 * interpreter is missing its test is skipped by name.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { EVENT_TYPES, type EventObject, eventObjectOf } from '../../events/event-object.ts'
import { makeSecret, signatureHeaders } from '../sign.ts'

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url))
const sample = (type: string) =>
  JSON.parse(readFileSync(here(`events/${type}.json`), 'utf8')) as Record<string, unknown>

test('a sample of every event type, and of the test, as it is sent', () => {
  const types = readdirSync(here('events')).map((name) => name.replace(/\.json$/, ''))
  assert.deepEqual(types.sort(), [...EVENT_TYPES, 'webhook.test'].sort())
  for (const type of types) {
    const { event_id, event_type, device_phy_id, timestamp, data } = sample(type) as unknown as EventObject
    const made = eventObjectOf({
      event_id,
      event_type,
      device_id: device_phy_id,
      at: new Date(timestamp * 1_000),
      data,
    })
    assert.deepEqual(sample(type), made)
    assert.equal(event_type, type)
  }
})

const current = makeSecret()
const previous = makeSecret()
const body = JSON.stringify({ ...sample('charging.ended'), data: { text: '充电 "quoted" \\ line\n\nbreak', n: 1.5 } })
const target = '/hooks/pilegate?site=1&x=%E5%85%85'
const nowS = Math.floor(Date.now() / 1_000)
const signed = (timestampS = nowS, secrets: [string, string?] = [current, previous]) =>
  signatureHeaders({ endpointId: 'wh_1', messageId: 'e1', secrets, target, body, timestampS, nonce: 'n1' })

interface Case {
  readonly name: string
  readonly wanted: string
  readonly secret?: string
  readonly headers?: Record<string, string>
  readonly target?: string
  readonly body?: string
}
const CASES: readonly Case[] = [
  { name: 'as sent', wanted: 'own=true standard=true' },
  { name: 'one secret only', wanted: 'own=true standard=true', headers: signed(nowS, [current]) },
  { name: 'previous secret', wanted: 'own=false standard=true', secret: previous },
  { name: 'another secret', wanted: 'own=false standard=false', secret: makeSecret() },
  { name: 'another body', wanted: 'own=false standard=false', body: `${body} ` },
  { name: 'another path', wanted: 'own=false standard=true', target: '/hooks' },
  { name: 'another id', wanted: 'own=true standard=false', headers: { ...signed(), 'webhook-id': 'e2' } },
  { name: 'another nonce', wanted: 'own=false standard=true', headers: { ...signed(), 'X-Nonce': 'n2' } },
  { name: 'ten minutes old', wanted: 'own=false standard=false', headers: signed(nowS - 600) },
  { name: 'ten minutes early', wanted: 'own=false standard=false', headers: signed(nowS + 600) },
  { name: 'no headers', wanted: 'own=false standard=false', headers: { accept: '*' } },
]

for (const [language, command, probe, args, cases] of [
  ['TypeScript', process.execPath, ['--version'], ['verify.ts'], CASES],
  ['Python', 'python3', ['-c', 'import sys; assert sys.version_info >= (3, 9)'], ['verify.py'], CASES],
  // a second for each start
  ['Java', 'java', ['-version'], ['Verify.java'], CASES.slice(0, 5)],
] as const)
  test(`the ${language} sample takes what we sign, and nothing else`, (context) => {
    if (spawnSync(command, [...probe], { stdio: 'ignore' }).status !== 0) return context.skip(`no ${command} here`)
    for (const one of cases) {
      const headers = Object.entries(one.headers ?? signed()).map(([name, value]) => `${name}: ${value}`)
      const input = `${[one.secret ?? current, one.target ?? target, ...headers].join('\n')}\n\n${one.body ?? body}`
      const said = execFileSync(command, [here(args[0])], { input, encoding: 'utf8' }).trim()
      assert.equal(said, one.wanted, one.name)
    }
  })
