/** Bodies of requests as JSON, without room for two readings. */
import { HttpError } from '../../errors/errors.ts'

/** Objects and arrays within one another; no route takes more than a handful. */
export const JSON_DEPTH_MAX = 32

/**
 * @param bytes bounded by the HTTP server
 * @throws HttpError INVALID_ARGUMENT no JSON in UTF-8; deeper than JSON_DEPTH_MAX, so that whoever walks a value by
 *   recursion (schemas, digests, `JSON.stringify`) has stack for it; or a key given twice in one object: which of the two a caller
 *   means cannot be known, and whoever looked at the body before us may have taken the other
 */
export function parseJson(bytes: Uint8Array): unknown {
  let text: string
  let value: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    value = JSON.parse(text)
  } catch {
    throw new HttpError('INVALID_ARGUMENT', 'body: not JSON in UTF-8')
  }
  const twice = repeatedKey(text)
  if (twice !== undefined)
    throw new HttpError('INVALID_ARGUMENT', `body: ${JSON.stringify(twice.slice(0, 100))} is given twice in one object`)
  return value
}

/**
 * Both checks in one walk, without recursion.
 *
 * @param text is JSON, so brackets match and strings end
 * @returns a key that is given twice in one object
 * @throws HttpError INVALID_ARGUMENT too deep
 */
function repeatedKey(text: string): string | undefined {
  /** One for each open bracket; undefined: an array. */
  const open: (Set<string> | undefined)[] = []
  let isKeyNext = false
  for (let index = 0; index < text.length; index++) {
    if (open.length > JSON_DEPTH_MAX)
      throw new HttpError('INVALID_ARGUMENT', `body: at most ${JSON_DEPTH_MAX} levels of objects and arrays`)
    switch (text[index]) {
      case '{':
        open.push(new Set())
        isKeyNext = true
        break
      case '[':
        open.push(undefined)
        isKeyNext = false
        break
      case '}':
      case ']':
        open.pop()
        break
      case ',':
        isKeyNext = open.at(-1) !== undefined
        break
      case ':':
        isKeyNext = false
        break
      case '"': {
        const from = index++
        while (text[index] !== '"') index += text[index] === '\\' ? 2 : 1
        if (!isKeyNext) break
        // parsed: "a" and "\u0061" are one key
        const key = JSON.parse(text.slice(from, index + 1)) as string
        const keys = open.at(-1)!
        if (keys.has(key)) return key
        keys.add(key)
        break
      }
    }
  }
  return undefined
}
