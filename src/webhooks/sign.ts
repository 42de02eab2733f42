/**
 * Signatures of a webhook request, both conventions on each one: ours (contract 3, as the API is asked) and Standard
 * Webhooks. Pure: time and nonce are passed in.
 */
import { createHash, createHmac, randomBytes } from 'node:crypto'

const SECRET_PREFIX = 'whsec_'
const SECRET_BYTES = 32

/** A new secret: `whsec_` and 32 random bytes in base64. */
export function makeSecret(): string {
  return SECRET_PREFIX + randomBytes(SECRET_BYTES).toString('base64')
}

export interface Signing {
  /** Id of the endpoint: `X-Api-Key`. */
  readonly endpointId: string
  /** Id of the event: `webhook-id`, the same at every attempt. */
  readonly messageId: string
  /** The current secret first; a second one while secrets are being rotated. */
  readonly secrets: readonly [current: string, previous?: string]
  /** Path with query, as in the request line. */
  readonly target: string
  readonly body: string
  /** Unix s of the attempt. */
  readonly timestampS: number
  /** New for each attempt, so that a receiver may refuse one it has seen. */
  readonly nonce: string
}

/**
 * Headers that prove a request.
 *
 * `X-Signature`: lower-case hex HMAC-SHA256, key: the secret as it was shown, prefix included; over POST, target,
 * timestamp, nonce and hex SHA-256 of the body, joined by line feeds. While secrets rotate the old one signs in
 * `X-Signature-Previous`. `webhook-signature`: `v1,` and base64 HMAC-SHA256, key: the bytes behind the prefix; over
 * `id.timestamp.body`; one per secret, separated by a space.
 */
export function signatureHeaders(signing: Signing): Record<string, string> {
  const { endpointId, messageId, timestampS, nonce, secrets } = signing
  const [current, previous] = secrets
  const own = (secret: string) => ownSignature({ ...signing, secret })
  const standard = secrets.filter((secret) => secret !== undefined).map((secret) => standardSignature(signing, secret))
  return {
    'X-Api-Key': endpointId,
    'X-Timestamp': String(timestampS),
    'X-Nonce': nonce,
    'X-Signature': own(current),
    ...(previous === undefined ? {} : { 'X-Signature-Previous': own(previous) }),
    'webhook-id': messageId,
    'webhook-timestamp': String(timestampS),
    'webhook-signature': standard.join(' '),
  }
}

function ownSignature(signing: Pick<Signing, 'target' | 'timestampS' | 'nonce' | 'body'> & { secret: string }): string {
  const { target, timestampS, nonce, body, secret } = signing
  const digest = createHash('sha256').update(body).digest('hex')
  return createHmac('sha256', secret).update(['POST', target, timestampS, nonce, digest].join('\n')).digest('hex')
}

function standardSignature({ messageId, timestampS, body }: Signing, secret: string): string {
  const key = Buffer.from(secret.startsWith(SECRET_PREFIX) ? secret.slice(SECRET_PREFIX.length) : secret, 'base64')
  return `v1,${createHmac('sha256', key).update(`${messageId}.${timestampS}.${body}`).digest('base64')}`
}
