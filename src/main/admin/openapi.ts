/** OpenAPI 3.1, generated from the same declarations that check the requests. */
import * as z from 'zod'
import { HTTP_ERRORS, type HttpErrorCode } from '../../errors/errors.ts'
import type { Route } from './route.ts'
import { zError } from './shapes.ts'

/** Schemas that get a name of their own in the document. */
export type NamedSchemas = Readonly<Record<string, z.ZodType>>

type Json = Record<string, unknown>
const ref = (name: string) => ({ $ref: `#/components/schemas/${name}` })

/** `GET /api/v1/devices/{device_id}` -> `getDevicesDeviceId`. */
function operationId({ method, path }: Route): string {
  const words = path
    .replace('/api/v1', '')
    .split(/[^A-Za-z0-9]+/)
    .filter((word) => word !== '')
  return method.toLowerCase() + words.map((word) => word[0]!.toUpperCase() + word.slice(1)).join('')
}

/** @param named schemas of answers; a schema used in a route by identity becomes a reference to its name */
export function openApiDocument(routes: readonly Route[], named: NamedSchemas, version: string): Json {
  const answers = z.registry<{ id: string }>()
  const bodies = z.registry<{ id: string }>()
  answers.add(zError, { id: 'Error' })
  for (const [id, schema] of Object.entries(named)) answers.add(schema, { id })
  for (const route of routes) {
    const id = operationId(route)
    if (route.response !== undefined && !answers.has(route.response)) answers.add(route.response, { id: `${id}Answer` })
    if (route.body !== undefined) bodies.add(route.body, { id: `${id}Body` })
  }
  const uri = (id: string) => `#/components/schemas/${id}`
  const target = 'draft-2020-12'
  const schemas = {
    ...z.toJSONSchema(answers, { uri, target, io: 'output' }).schemas,
    ...z.toJSONSchema(bodies, { uri, target, io: 'input', unrepresentable: 'any' }).schemas,
  }
  // names of the document's own parts, not addresses of schemas
  for (const schema of Object.values(schemas) as Json[]) {
    delete schema['$id']
    delete schema['$schema']
  }

  const paths: Record<string, Json> = {}
  for (const route of routes) {
    paths[route.path] ??= {}
    paths[route.path]![route.method.toLowerCase()] = operation(route, (schema) => ref(answers.get(schema)!.id))
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Pilegate',
      version,
      description:
        'Gateway for charging piles. Times are RFC 3339 UTC with milliseconds, money is integer fen, energy Wh, power W, ' +
        'voltage V, current A, durations s. Ports count from 1. Every answer carries X-Request-ID. A request that takes ' +
        'longer than REQUEST_TIMEOUT_MS (default 10 s) is answered with TIMEOUT. So is a body that has not arrived whole ' +
        'within that time, or within 6 s where that is less; the connection is closed then. A Content-Length of more than ' +
        '1 MiB is answered with PAYLOAD_TOO_LARGE at once. What is no request to the HTTP library is answered by it, ' +
        'without X-Request-ID and envelope: 400 (a bad Content-Length, header line or chunk), 431 (headers of more than 16,384 ' +
        'bytes, or more than 98 of them), 505 (HTTP/1.0).',
    },
    security: [{ bearer: [] }, { signatureKey: [], signatureTimestamp: [], signatureNonce: [], signature: [] }],
    paths,
    components: {
      schemas,
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer', description: 'The secret of a key that is not marked hmac.' },
        signatureKey: { type: 'apiKey', in: 'header', name: 'X-Api-Key', description: 'Id of the key.' },
        signatureTimestamp: {
          type: 'apiKey',
          in: 'header',
          name: 'X-Timestamp',
          description: 'Unix seconds, at most 300 s off.',
        },
        signatureNonce: { type: 'apiKey', in: 'header', name: 'X-Nonce', description: 'Works once.' },
        signature: {
          type: 'apiKey',
          in: 'header',
          name: 'X-Signature',
          description:
            'Lower-case hex HMAC-SHA256(secret, METHOD \\n path with query \\n timestamp \\n nonce \\n hex SHA-256 of the body).',
        },
      },
    },
  }
}

const SUCCESSES: Readonly<Record<number, string>> = {
  101: 'Switching protocols: a WebSocket from here on',
  201: 'Made',
  202: 'Accepted: stored, its fate follows',
}
const RETRY_AFTER = { 'Retry-After': { schema: { type: 'integer' }, description: 'Seconds' } }
const IDEMPOTENCY_KEY = {
  name: 'Idempotency-Key',
  in: 'header',
  required: false,
  description: 'A repeat with the same key and body gets the first answer; with another body CONFLICT.',
  schema: { type: 'string', minLength: 1, maxLength: 255 },
}

function operation(route: Route, answerRef: (schema: z.ZodType) => Json): Json {
  const requestId = { 'X-Request-ID': { schema: { type: 'string' }, description: "The caller's, or a new one." } }
  const contentType = route.contentType ?? 'text/plain'
  const content =
    route.response === undefined
      ? { [contentType]: { schema: { type: contentType === 'application/json' ? 'object' : 'string' } } }
      : { 'application/json': { schema: answerRef(route.response) } }
  const responses: Record<string, Json> = {}
  for (const status of [route.status ?? 200, ...(route.statuses ?? [])])
    responses[status] =
      // the server's own answer to an upgrade: no body, no headers of ours
      status === 101
        ? { description: SUCCESSES[status] }
        : { description: SUCCESSES[status] ?? 'Done', headers: requestId, content }
  for (const [status, codes] of errorsOf(route))
    responses[status] = {
      description: codes.join(' or '),
      headers: codes.includes('TOO_MANY_REQUESTS') ? { ...requestId, ...RETRY_AFTER } : requestId,
      content: { 'application/json': { schema: ref('Error') } },
    }
  return {
    operationId: operationId(route),
    summary: route.summary,
    ...(route.description === undefined ? {} : { description: route.description }),
    ...(route.role === 'public' ? { security: [] } : { 'x-role': route.role }),
    parameters: [
      ...parametersOf(route.params, 'path'),
      ...parametersOf(route.query, 'query'),
      ...(route.takesIdempotencyKey === true ? [IDEMPOTENCY_KEY] : []),
    ],
    ...(route.body === undefined
      ? {}
      : {
          requestBody: {
            required: route.bodyIsOptional !== true,
            content: { 'application/json': { schema: ref(`${operationId(route)}Body`) } },
          },
        }),
    ...(route.takesBytes === true
      ? {
          requestBody: {
            required: true,
            content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
          },
        }
      : {}),
    responses,
  }
}

function errorsOf(route: Route): [string, HttpErrorCode[]][] {
  // whatever a route takes: a query parameter that is given twice
  const codes = new Set<HttpErrorCode>([...(route.errors ?? []), 'INVALID_ARGUMENT'])
  if (route.body !== undefined || route.takesBytes === true) codes.add('PAYLOAD_TOO_LARGE')
  if (route.role !== 'public')
    for (const code of ['UNAUTHENTICATED', 'FORBIDDEN', 'TOO_MANY_REQUESTS', 'UNAVAILABLE'] as const) codes.add(code)
  codes.add('INTERNAL_ERROR')
  codes.add('TIMEOUT')
  const byStatus = Map.groupBy([...codes], (code) => String(HTTP_ERRORS[code]))
  return [...byStatus].sort(([a], [b]) => a.localeCompare(b))
}

function parametersOf(schema: z.ZodType | undefined, where: 'path' | 'query'): Json[] {
  if (schema === undefined) return []
  const { properties = {}, required = [] } = z.toJSONSchema(schema, {
    target: 'draft-2020-12',
    io: 'input',
    unrepresentable: 'any',
  }) as { properties?: Record<string, Json>; required?: string[] }
  return Object.entries(properties).map(([name, { description, ...property }]) => ({
    name,
    in: where,
    required: where === 'path' || required.includes(name),
    ...(description === undefined ? {} : { description }),
    schema: property,
  }))
}
