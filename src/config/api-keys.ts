/** API keys: how they are written in `API_KEYS`, and the first one that a fresh gateway makes for itself. */
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { GatewayError } from '../errors/errors.ts'

/** Each role may do everything the ones before it may. */
export const ROLES = ['viewer', 'operator', 'admin'] as const
export type Role = (typeof ROLES)[number]

export const TENANT_DEFAULT = 'default'

export interface ApiKey {
  readonly id: string
  readonly secret: string
  readonly role: Role
  /** The only tenant whose devices, orders and cards this key sees. */
  readonly tenant: string
  /** The secret never travels: requests must carry a signature. */
  readonly isHmacOnly: boolean
}

const NAME = /^[A-Za-z0-9_.-]{1,64}$/
/** Printable ASCII without the two separators. */
const SECRET = /^[!-+\--9;-~]{1,256}$/
const isRole = (text: string): text is Role => (ROLES as readonly string[]).includes(text)

/**
 * @param text comma list of `id:secret:role[:tenant[:hmac]]`
 * @returns the keys, or what is wrong, one sentence per entry; no sentence contains a secret
 */
export function parseApiKeys(text: string): { readonly keys: readonly ApiKey[]; readonly problems: readonly string[] } {
  const keys: ApiKey[] = []
  const problems: string[] = []
  const entries = text.split(',').map((entry) => entry.trim())
  for (const [index, entry] of entries.entries()) {
    const name = `entry ${index + 1}`
    const [id = '', secret = '', role = '', tenant = '', hmac = '', ...rest] = entry.split(':')
    if (rest.length > 0) problems.push(`${name}: more than id:secret:role:tenant:hmac (a secret holds no ":" or ",")`)
    else if (!NAME.test(id)) problems.push(`${name}: id is 1 to 64 letters, digits, "_", "." or "-"`)
    else if (!SECRET.test(secret)) problems.push(`${name} (${id}): secret is 1 to 256 printable characters without ":"`)
    else if (!isRole(role)) problems.push(`${name} (${id}): role is one of ${ROLES.join(', ')}`)
    else if (tenant !== '' && !NAME.test(tenant))
      problems.push(`${name} (${id}): tenant is 1 to 64 letters, digits, "_", "." or "-"`)
    else if (hmac !== '' && hmac !== 'hmac') problems.push(`${name} (${id}): the fifth part is "hmac" or left out`)
    else if (keys.some((key) => key.id === id)) problems.push(`${name} (${id}): this id is given twice`)
    else if (keys.some((key) => key.secret === secret))
      problems.push(`${name} (${id}): another key has the same secret, a bearer could be either`)
    else keys.push({ id, secret, role, tenant: tenant === '' ? TENANT_DEFAULT : tenant, isHmacOnly: hmac === 'hmac' })
  }
  return { keys, problems }
}

/**
 * The admin key of a gateway that was given none: made at the first start, kept in `DATA_DIR/api-key` (mode 0600). The
 * file holds the secret alone, so that `Bearer $(cat .data/api-key)` works.
 *
 * @param dataDir made when missing, mode 0755: the embedded database runs as another user and must get through
 * @throws GW_DATA_DIR_UNUSABLE do not start
 */
export function firstApiKey(dataDir: string): { readonly key: ApiKey; readonly path: string; readonly isNew: boolean } {
  const path = resolve(join(dataDir, 'api-key'))
  try {
    if (mkdirSync(dataDir, { recursive: true }) !== undefined) chmodSync(dataDir, 0o755)
    let secret = readSecret(path)
    const isNew = secret === undefined
    if (secret === undefined) {
      secret = randomBytes(32).toString('base64url')
      // renamed into place whole: a start that is killed here leaves no empty key behind
      const draft = `${path}.${process.pid}`
      writeFileSync(draft, `${secret}\n`, { mode: 0o600 })
      renameSync(draft, path)
    } else if ((statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o600)
    return { key: { id: 'admin', secret, role: 'admin', tenant: TENANT_DEFAULT, isHmacOnly: false }, path, isNew }
  } catch (cause) {
    throw new GatewayError('GW_DATA_DIR_UNUSABLE', `the first API key cannot be kept in ${path}`, { cause })
  }
}

function readSecret(path: string): string | undefined {
  let text: string
  try {
    text = readFileSync(path, 'utf8').trim()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  if (!SECRET.test(text)) throw new Error('the file holds no key: remove it to get a new one')
  return text
}
