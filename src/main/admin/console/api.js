/** The HTTP API with the key of this tab, and what this server offers. */

const KEY = 'pilegate.key'
let secret = sessionStorage.getItem(KEY)
let onSignedOut = () => {}
let openApi

export const isSignedIn = () => secret !== null
export const whenSignedOut = (act) => {
  onSignedOut = act
}

export class ApiError extends Error {
  constructor(status, code, message, requestId) {
    super(message)
    this.status = status
    this.code = code
    this.requestId = requestId
  }
}

/** @throws ApiError the key is not good */
export async function signIn(given) {
  await request('GET', '/api/v1/devices?limit=1', undefined, given)
  secret = given
  sessionStorage.setItem(KEY, given)
}

export function signOut() {
  secret = null
  sessionStorage.removeItem(KEY)
  onSignedOut()
}

async function request(method, path, body, bearer) {
  let response
  try {
    response = await fetch(path, {
      method,
      headers: {
        Authorization: `Bearer ${bearer}`,
        ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  } catch {
    throw new ApiError(0, 'UNREACHABLE', 'the gateway cannot be reached')
  }
  const answer = await response.json().catch(() => ({}))
  if (response.ok) return answer
  const { code = 'UNKNOWN', message = response.statusText, request_id: requestId } = answer.error ?? {}
  throw new ApiError(response.status, code, message, requestId)
}

export async function api(method, path, body) {
  try {
    return await request(method, path, body, secret)
  } catch (error) {
    if (error.status === 401 && secret !== null) signOut()
    throw error
  }
}

export const get = (path, query = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== '')
  const text = new URLSearchParams(given).toString()
  return api('GET', text === '' ? path : `${path}?${text}`)
}
export const post = (path, body) => api('POST', path, body)

/** The API's description, asked once. */
export async function description() {
  openApi ??= fetch('/openapi.json').then((response) => response.json())
  return await openApi
}

/** @returns is there such a route on this server? */
export async function offers(method, path) {
  return (await description()).paths?.[path]?.[method.toLowerCase()] !== undefined
}

/** Commands a device takes by name: `[{ title, description, name, params }]`, `params` being a JSON schema. */
export async function commandCatalogue(protocol) {
  const { paths, components } = await description()
  const body = paths?.['/api/v1/devices/{device_id}/commands']?.post?.requestBody?.content['application/json'].schema
  const name = body?.$ref?.split('/').at(-1)
  const schema = name === undefined ? body : components.schemas[name]
  return (schema?.anyOf ?? [])
    .filter(({ title = '' }) => protocol === null || title.startsWith(`${protocol} `))
    .map(({ description: text, properties }) => ({ text, name: properties.name.const, params: properties.params }))
}
