/** The HTTP API with the key of this tab, who that key is, and what this server's commands take. */

const KEY = 'pilegate.key'
let secret = sessionStorage.getItem(KEY)
let openApi
const hooks = { signedOut: () => {}, trouble: () => {} }

/** Who is signed in, as `GET /api/v1/me` says it; undefined until `whoAmI` has answered. */
export let me

export const isSignedIn = () => secret !== null
/** @param act told why: `asked`, or `refused` when the key is good no longer */
export const whenSignedOut = (act) => {
  hooks.signedOut = act
}
/** @param act told `database` or `gateway`, which is away */
export const whenInTrouble = (act) => {
  hooks.trouble = act
}

const ROLES = ['viewer', 'operator', 'admin']
export const may = (role) => ROLES.indexOf(me?.role) >= ROLES.indexOf(role)

export class ApiError extends Error {
  constructor(status, code, message, requestId) {
    super(message)
    this.status = status
    this.code = code
    this.requestId = requestId
  }

  /** Nothing is wrong with what was asked: asking again may help. */
  get isPassing() {
    return this.status === 0 || this.status === 503 || this.status === 504
  }
}

/** @throws ApiError the key is not good */
export async function signIn(given) {
  me = await request('GET', '/api/v1/me', undefined, given)
  secret = given
  sessionStorage.setItem(KEY, given)
}

export async function whoAmI() {
  me ??= await api('GET', '/api/v1/me')
  return me
}

export function signOut(why = 'asked') {
  secret = null
  me = undefined
  sessionStorage.removeItem(KEY)
  hooks.signedOut(why)
}

async function request(method, path, body, bearer, idempotencyKey) {
  let response
  const isBytes = body instanceof Blob
  try {
    response = await fetch(path, {
      method,
      headers: {
        Authorization: `Bearer ${bearer}`,
        ...(idempotencyKey === undefined ? {} : { 'Idempotency-Key': idempotencyKey }),
        ...(body === undefined ? {} : { 'Content-Type': isBytes ? 'application/octet-stream' : 'application/json' }),
      },
      ...(body === undefined ? {} : { body: isBytes ? body : JSON.stringify(body) }),
    })
  } catch {
    throw new ApiError(0, 'UNREACHABLE', 'the gateway cannot be reached')
  }
  const answer = await response.json().catch(() => ({}))
  if (response.ok) return answer
  const { code = 'UNKNOWN', message = response.statusText, request_id: requestId } = answer.error ?? {}
  throw new ApiError(response.status, code, message, requestId)
}

export async function api(method, path, body, idempotencyKey) {
  const asked = secret
  try {
    return await request(method, path, body, asked, idempotencyKey)
  } catch (error) {
    // an answer to a key that was left meanwhile says nothing about the present one
    if (error.status === 401 && secret !== null && secret === asked) signOut('refused')
    else if (error.status === 0) hooks.trouble('gateway')
    else if (error.status === 503 || error.status === 504) hooks.trouble('database')
    throw error
  }
}

export const get = (path, query = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== '')
  const text = new URLSearchParams(given).toString()
  return api('GET', text === '' ? path : `${path}?${text}`)
}
export const post = (path, body) => api('POST', path, body)

/**
 * A POST that a person may repeat when nobody knows whether it arrived: the same body again has the same
 * Idempotency-Key and gets the first answer, instead of switching on a port twice. One per dialog.
 */
export function repeatablePost() {
  let last
  return async (path, body) => {
    const text = JSON.stringify([path, body])
    if (last?.text !== text) last = { text, key: randomKey() }
    try {
      return await api('POST', path, body, last.key)
    } catch (error) {
      // a refusal is an answer: who asks again after it means it anew
      if (!error.isPassing) last = undefined
      throw error
    }
  }
}
/** `crypto.randomUUID` is only there over HTTPS. */
const randomKey = () =>
  `console-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`

export const put = (path, body) => api('PUT', path, body)
export const patch = (path, body) => api('PATCH', path, body)
export const remove = (path) => api('DELETE', path)

/** @returns does the gateway serve again? */
export const isReady = () =>
  fetch('/readyz').then(
    (response) => response.ok,
    () => false,
  )

/** Commands a device takes by name: `[{ protocol, text, name, params }]`, `params` being a JSON schema. */
export async function commandCatalogue(protocol) {
  openApi ??= fetch('/openapi.json').then((response) => response.json())
  let described
  try {
    described = await openApi
  } catch {
    openApi = undefined
    throw new ApiError(0, 'UNREACHABLE', 'the gateway cannot be reached')
  }
  const { paths, components } = described
  const body = paths['/api/v1/devices/{device_id}/commands'].post.requestBody.content['application/json'].schema
  const name = body.$ref?.split('/').at(-1)
  const schema = name === undefined ? body : components.schemas[name]
  return (schema.anyOf ?? [])
    .map(({ title = '', description: text, properties }) => ({
      protocol: title.split(' ')[0],
      text,
      name: properties.name.const,
      params: properties.params,
    }))
    .filter((one) => protocol === null || protocol === undefined || one.protocol === protocol)
}
