/**
 * Claims: both languages of the console say the same things, and every word its pages ask for is there. Tried by
 * comparing the two lists with one another and with what stands in the scripts as `t('…')`.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { EVENT_TYPES } from '../../../events/event-object.ts'

async function words(language: 'en' | 'zh'): Promise<Record<string, string>> {
  const module = await import(new URL(`words-${language}.js`, import.meta.url).href)
  return module[language.toUpperCase()]
}
const [en, zh] = [await words('en'), await words('zh')]
const holes = (text: string) => (text.match(/\{\w+\}/g) ?? []).sort()

test('both languages have the same words with the same places to fill in', () => {
  assert.deepEqual(Object.keys(zh), Object.keys(en))
  for (const [key, text] of Object.entries(en)) {
    assert.notEqual(zh[key], '', key)
    assert.deepEqual(holes(zh[key]!), holes(text), key)
  }
})

test('every type of event can be chosen and has its words', async () => {
  const page = readFileSync(new URL('./webhooks-page.js', import.meta.url), 'utf8')
  const [, list = ''] = /const EVENT_TYPES = \[([^\]]*)\]/.exec(page) ?? []
  assert.deepEqual(
    [...list.matchAll(/'([^']+)'/g)].map(([, type]) => type),
    EVENT_TYPES,
  )
  assert.deepEqual(
    EVENT_TYPES.filter((type) => en[`event.${type}`] === undefined),
    [],
  )
})

test('every word that a page asks for by name is there', () => {
  const folder = new URL('./', import.meta.url)
  const scripts = readdirSync(folder).filter((name) => name.endsWith('.js') && !name.startsWith('words-'))
  const asked = scripts.flatMap((name) => {
    const text = readFileSync(new URL(name, folder), 'utf8')
    return [...text.matchAll(/\bt\('([^']+)'/g)].map(([, key]) => `${name}: ${key}`)
  })
  assert.ok(asked.length > 200)
  assert.deepEqual(
    asked.filter((one) => en[one.split(': ')[1]!] === undefined),
    [],
  )
})
