/**
 * Claim: what JSON.parse takes is returned as it says, except where an object has one key twice, in whatever spelling and
 * depth, or where it nests deeper than any route takes, however deep. Tried with generated values written out, and with one key repeated in them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { HttpError } from '../../errors/errors.ts'
import { JSON_DEPTH_MAX, parseJson } from './json.ts'

const parse = (text: string) => parseJson(Buffer.from(text))
const refused = (text: string | Uint8Array, says: RegExp) =>
  assert.throws(
    () => parseJson(Buffer.from(text)),
    (error) => error instanceof HttpError && error.code === 'INVALID_ARGUMENT' && says.test(error.message),
  )

test('any JSON comes back', () => {
  fc.assert(
    fc.property(fc.json({ maxDepth: 6 }), fc.constantFrom(0, 2), (text, spaces) => {
      const value: unknown = JSON.parse(text)
      assert.deepEqual(parse(JSON.stringify(value, null, spaces)), value)
    }),
  )
})

test('a key given twice in one object is refused', () => {
  for (const text of [
    '{"port":1,"port":2}',
    '{"a":{"port":1,"x":[1,{"y":"}"}],"port":1}}',
    '[[],{"a":1,"b":{},"\\u0061":2}]',
    '{"":0,"":0}',
    '{"a\\"":0,"b":"a\\"","a\\"":0}',
  ])
    refused(text, /is given twice/)
})

test('the same key in different objects, or as a value, is no repetition', () => {
  const text = '{"a":{"a":["a","a",{"a":"a"}]},"b":[{"a":1},{"a":2}],"c":"a","d":"{\\"a\\":1,\\"a\\":2}"}'
  assert.deepEqual(parse(text), JSON.parse(text))
})

test('deeper than the bound is refused, up to what a body has room for', () => {
  const array = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)
  const object = (depth: number) => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`
  for (const nested of [array, object]) {
    assert.deepEqual(parse(nested(JSON_DEPTH_MAX)), JSON.parse(nested(JSON_DEPTH_MAX)))
    for (const depth of [JSON_DEPTH_MAX + 1, 2_000, 150_000]) refused(nested(depth), /at most 32 levels/)
  }
  refused(array(524_288), /at most 32 levels/)
  // wide is not deep, and brackets in texts are none
  assert.equal((parse(`[${'[[]],'.repeat(100)}"${'['.repeat(100)}"]`) as unknown[]).length, 101)
})

test('what is no JSON in UTF-8 is refused', () => {
  for (const text of ['', '{', '{"a":1,}', "{'a':1}", 'NaN', '\ufeff\ufeff{}']) refused(text, /not JSON/)
  refused(new Uint8Array([0x22, 0xff, 0x22]), /not JSON/)
})
