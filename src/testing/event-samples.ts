/** What is told beside what integrators are shown: `src/webhooks/samples/events`. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'

type Json = Readonly<Record<string, unknown>>
const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null && !Array.isArray(value)

export function dataOfSample(type: string): Json {
  const file = new URL(`../webhooks/samples/events/${type}.json`, import.meta.url)
  return (JSON.parse(readFileSync(file, 'utf8')) as { data: Json }).data
}

/**
 * Same keys at every depth; values are not compared, and where one side has null or an empty list it says nothing about
 * the keys below.
 */
export function assertKeysOfSample(type: string, data: unknown): void {
  assertSameKeys(`${type}.data`, data, dataOfSample(type))
}

function assertSameKeys(where: string, told: unknown, shown: unknown): void {
  if (Array.isArray(told) && Array.isArray(shown)) {
    if (told.length > 0 && shown.length > 0) assertSameKeys(`${where}[0]`, told[0], shown[0])
    return
  }
  if (!isObject(told) || !isObject(shown)) return
  assert.deepEqual(Object.keys(told).sort(), Object.keys(shown).sort(), where)
  for (const key of Object.keys(told)) assertSameKeys(`${where}.${key}`, told[key], shown[key])
}
