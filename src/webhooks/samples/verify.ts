/**
 * Verifying a webhook of the gateway in TypeScript. Copy the two functions; either is enough. Give them the body as it came,
 * before any JSON parser, and refuse what they refuse with 401.
 *
 * Afterwards: keep event_id and let the same one have its effect once; answer 2xx within the timeout.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** Header names in lower case. */
type Headers = Readonly<Record<string, string | undefined>>
const TOLERANCE_S = 300

/** X-Timestamp, X-Nonce, X-Signature. `target`: path with query as requested. Also remember nonces for 300 s. */
export function verifyOwn(
  secret: string,
  headers: Headers,
  target: string,
  body: string,
  nowS = Date.now() / 1000,
): boolean {
  const timestamp = headers['x-timestamp'] ?? ''
  if (!(Math.abs(nowS - Number(timestamp)) <= TOLERANCE_S)) return false
  const digest = createHash('sha256').update(body).digest('hex')
  const text = ['POST', target, timestamp, headers['x-nonce'] ?? '', digest].join('\n')
  return isSame(createHmac('sha256', secret).update(text).digest('hex'), headers['x-signature'] ?? '')
}

/** webhook-id, webhook-timestamp, webhook-signature (Standard Webhooks). */
export function verifyStandard(secret: string, headers: Headers, body: string, nowS = Date.now() / 1000): boolean {
  const timestamp = headers['webhook-timestamp'] ?? ''
  if (!(Math.abs(nowS - Number(timestamp)) <= TOLERANCE_S)) return false
  const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64')
  const text = `${headers['webhook-id'] ?? ''}.${timestamp}.${body}`
  const wanted = `v1,${createHmac('sha256', key).update(text).digest('base64')}`
  // several while a secret is being rotated
  return (headers['webhook-signature'] ?? '').split(' ').some((signature) => isSame(signature, wanted))
}

function isSame(a: string, b: string): boolean {
  return a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))
}

// `node verify.ts < request`: line 1 secret, line 2 target, then headers, an empty line, the body; prints both answers
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const input = readFileSync(0, 'utf8')
  const head = input.slice(0, input.indexOf('\n\n')).split('\n')
  const body = input.slice(input.indexOf('\n\n') + 2)
  const [secret = '', target = '', ...lines] = head
  const headers = Object.fromEntries(
    lines.map((line) => [line.split(': ')[0]!.toLowerCase(), line.split(': ')[1] ?? '']),
  )
  console.log(`own=${verifyOwn(secret, headers, target, body)} standard=${verifyStandard(secret, headers, body)}`)
}
