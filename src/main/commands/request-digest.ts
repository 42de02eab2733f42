/** What tells a repeat of a request from another one under the same name (Idempotency-Key, order_no). */
import { createHash } from 'node:crypto'

/** The same for the same request, whatever the order of its keys. `scope`: a device id, or ''. */
export function digestOf(route: string, scope: string, body: object): string {
  return createHash('sha256')
    .update(`${route}\n${scope}\n${canonical(body)}`)
    .digest('hex')
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null'
  const entries = Object.entries(value).filter(([, item]) => item !== undefined)
  entries.sort(([one], [other]) => (one < other ? -1 : 1))
  return `{${entries.map(([name, item]) => `${JSON.stringify(name)}:${canonical(item)}`).join(',')}}`
}
