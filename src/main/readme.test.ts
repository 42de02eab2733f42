/**
 * Claim: the tables of the README are the ones the code would print, and the scripts it names exist. Mended with
 * `UPDATE_README=1 node --test src/main/readme.test.ts`.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { configTable } from '../config/config.ts'
import { metricsTable } from '../metrics/catalogue.ts'

const README = new URL('../../README.md', import.meta.url)
const PACKAGE = new URL('../../package.json', import.meta.url)

function withSection(text: string, name: string, content: string): string {
  const from = `<!-- ${name} -->`
  const to = `<!-- /${name} -->`
  const start = text.indexOf(from)
  const end = text.indexOf(to)
  assert.ok(start >= 0 && end > start, `README has no section ${name}`)
  return `${text.slice(0, start + from.length)}\n${content}\n${text.slice(end)}`
}

for (const [name, table] of [
  ['config', configTable()],
  ['metrics', metricsTable()],
] as const) {
  test(`the ${name} table is the code's`, () => {
    const text = readFileSync(README, 'utf8')
    const wanted = withSection(text, name, table)
    if (process.env['UPDATE_README'] === '1') writeFileSync(README, wanted)
    else assert.equal(text, wanted)
  })
}

test('every npm script the README names is there, and every dependency has its reason', () => {
  const text = readFileSync(README, 'utf8')
  const { scripts, dependencies, devDependencies } = JSON.parse(readFileSync(PACKAGE, 'utf8')) as {
    scripts: Record<string, string>
    dependencies: Record<string, string>
    devDependencies: Record<string, string>
  }
  for (const [, script] of text.matchAll(/npm run ([a-z0-9:]+)/g))
    assert.ok(scripts[script!] !== undefined, `script ${script}`)
  for (const name of Object.keys(dependencies)) assert.ok(text.includes(`\`${name}\``), `no reason for ${name}`)
  for (const name of Object.keys(devDependencies).filter((one) => !one.startsWith('@types/')))
    assert.ok(text.includes(`\`${name}\``), `no reason for ${name}`)
})
