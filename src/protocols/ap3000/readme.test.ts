/**
 * Claims: the table of commands in this folder's README is the table in the code. How: it is generated and compared;
 * `UPDATE_README=1 node --test src/protocols/ap3000/readme.test.ts` writes it anew.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { commandTable, withCommandTable } from '../../codec/command-table.ts'
import { ap3000, REFUSED } from './table.ts'

const place = new URL('README.md', import.meta.url)

test('README.md lists the commands of table.ts', () => {
  const readme = readFileSync(place, 'utf8')
  const made = withCommandTable(readme, ap3000)
  if (process.env['UPDATE_README'] === '1') writeFileSync(place, made)
  else assert.equal(readme, made)
})

test('the table has a line for each command, and cells hold no bars', () => {
  const lines = commandTable(ap3000).split('\n')
  assert.equal(lines.length, 2 + ap3000.uplinks.size + ap3000.downlinks.size)
  for (const line of lines) assert.equal(line.split('|').length, 9, line)
})

test('refused codes are named', () => {
  const readme = readFileSync(place, 'utf8')
  for (const { code } of REFUSED) assert.match(readme, new RegExp(`Refused: .*\\b${code.toString(16)}\\b`))
})
