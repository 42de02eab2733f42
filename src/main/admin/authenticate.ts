/**
 * Who asks? A bearer secret, or a signature made with one.
 *
 * Every comparison takes the same time whatever is wrong, over digests of equal length; every refusal says the same
 * code. Nonces are remembered only after their signature was found good, so that only holders of a key can fill the
 * memory for them.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { ApiKey } from '../../config/api-keys.ts'
import { HttpError } from '../../errors/errors.ts'
import type { HttpRequest } from './http-server.ts'
import type { Nonces } from './nonces.ts'

/** How far a signed request's clock may be off, either way. */
export const SIGNATURE_WINDOW_S = 300
/** A timestamp may lie a window ahead: it stays acceptable for two windows. */
export const NONCE_PERIOD_MS = 2 * SIGNATURE_WINDOW_S * 1_000
const NONCE = /^[\x21-\x7e]{1,128}$/

const sha256 = (bytes: string | Uint8Array) => createHash('sha256').update(bytes).digest()

/** What is signed: method, path with query, timestamp, nonce and the body's digest, one per line. */
export function signatureOf(
  secret: string,
  request: { method: string; target: string; timestamp: string; nonce: string; body: Uint8Array | string },
): string {
  const { method, target, timestamp, nonce, body } = request
  const signed = [method, target, timestamp, nonce, sha256(body).toString('hex')].join('\n')
  return createHmac('sha256', secret).update(signed).digest('hex')
}

export class Authenticator {
  readonly #keys: readonly { readonly key: ApiKey; readonly digest: Buffer }[]
  readonly #nonces: Nonces
  readonly #now: () => number
  /** Signs for ids nobody has, so that an unknown id takes as long as a wrong signature. */
  readonly #decoy = randomBytes(32).toString('hex')

  /** @param now ms since the epoch */
  constructor(keys: readonly ApiKey[], nonces: Nonces, now: () => number) {
    this.#keys = keys.map((key) => ({ key, digest: sha256(key.secret) }))
    this.#now = now
    this.#nonces = nonces
  }

  /** @throws HttpError UNAUTHENTICATED; TOO_MANY_REQUESTS when no nonce can be remembered; what `body` throws */
  async identify(request: HttpRequest): Promise<ApiKey> {
    const { headers } = request
    if (headers.has('x-api-key') || headers.has('x-signature')) return this.#bySignature(request)
    const [, secret] = /^Bearer +([\x21-\x7e]{1,512})$/i.exec(headers.get('authorization') ?? '') ?? []
    if (secret === undefined)
      throw new HttpError('UNAUTHENTICATED', 'send Authorization: Bearer SECRET, or a signature with X-Api-Key')
    return this.#byBearer(secret)
  }

  #byBearer(secret: string): ApiKey {
    const digest = sha256(secret)
    let found: ApiKey | undefined
    // no early end: the time must not tell which key it was
    for (const known of this.#keys) if (timingSafeEqual(known.digest, digest)) found = known.key
    if (found === undefined) throw new HttpError('UNAUTHENTICATED', 'unknown key')
    if (found.isHmacOnly)
      throw new HttpError('UNAUTHENTICATED', 'this key is for signatures only (X-Api-Key, X-Signature)')
    return found
  }

  async #bySignature(request: HttpRequest): Promise<ApiKey> {
    const { method, path, query, headers } = request
    const id = headers.get('x-api-key') ?? ''
    const timestamp = headers.get('x-timestamp') ?? ''
    const nonce = headers.get('x-nonce') ?? ''
    const signature = headers.get('x-signature') ?? ''
    if (id === '' || timestamp === '' || nonce === '' || signature === '')
      throw new HttpError('UNAUTHENTICATED', 'a signature needs X-Api-Key, X-Timestamp, X-Nonce and X-Signature')
    if (!/^\d{1,12}$/.test(timestamp) || Math.abs(this.#now() / 1000 - Number(timestamp)) > SIGNATURE_WINDOW_S)
      throw new HttpError('UNAUTHENTICATED', `X-Timestamp is Unix seconds, at most ${SIGNATURE_WINDOW_S} s off`)
    if (!NONCE.test(nonce)) throw new HttpError('UNAUTHENTICATED', 'X-Nonce is 1 to 128 printable characters')

    const body = await request.body
    const key = this.#keys.find((known) => known.key.id === id)?.key
    const target = query === '' ? path : `${path}?${query}`
    const expected = signatureOf(key?.secret ?? this.#decoy, { method, target, timestamp, nonce, body })
    // digests have equal length, whatever was sent
    if (!timingSafeEqual(sha256(expected), sha256(signature)) || key === undefined)
      throw new HttpError('UNAUTHENTICATED', 'the signature does not fit key and request')
    const taken = this.#take(id, nonce)
    if (taken === 'seen') throw new HttpError('UNAUTHENTICATED', 'this nonce was used before')
    if (taken === 'full') throw new HttpError('TOO_MANY_REQUESTS', 'too many signed requests within ten minutes')
    return key
  }

  #take(keyId: string, nonce: string): ReturnType<Nonces['take']> {
    try {
      return this.#nonces.take(keyId, nonce, this.#now())
    } catch (error) {
      // served without being remembered it could be served again
      throw new HttpError('UNAVAILABLE', 'the nonce could not be stored', {}, error)
    }
  }
}
