/**
 * The HTTP endpoint: every request goes through `answer` below, whatever its route. It names the request, finds the
 * route, learns who asks, checks input, bounds the time, turns whatever happens into one answer, and counts it.
 *
 * Thread: main.
 */
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type * as z from 'zod'
import { type ApiKey, ROLES, type Role } from '../../config/api-keys.ts'
import type { Config } from '../../config/config.ts'
import { HttpError } from '../../errors/errors.ts'
import { databaseErrorCode, type Sql } from '../database/connect.ts'
import type { Log } from '../log.ts'
import { PUSH_PAYLOAD_BYTES_MAX, type PushHub } from '../push/hub.ts'
import { Tickets } from '../push/tickets.ts'
import { Authenticator, NONCE_PERIOD_MS } from './authenticate.ts'
import { createHttpServer, type HttpAnswer, type HttpRequest } from './http-server.ts'
import { parseJson } from './json.ts'
import { Nonces } from './nonces.ts'
import { openApiDocument } from './openapi.ts'
import { type RawBody, type Route, Router } from './route.ts'
import { cardRoutes, zCard } from './routes/cards.ts'
import { zCommand } from './routes/commands.ts'
import { consoleRoutes } from './routes/console.ts'
import { deviceRoutes, type LivePresence, zDevice, zPort } from './routes/devices.ts'
import { meRoutes } from './routes/me.ts'
import { orderRoutes, zOrder } from './routes/orders.ts'
import { quarantineRoutes, zQuarantineItem } from './routes/quarantine.ts'
import { systemRoutes } from './routes/system.ts'
import { ticketRoutes } from './routes/tickets.ts'

export interface AdminOptions {
  readonly config: Pick<Config, 'httpHost' | 'httpPort' | 'requestTimeoutMs'> &
    Partial<Pick<Config, 'record' | 'allowlist'>>
  readonly log: Log
  /** Own pool of the main thread; its statement timeout should not exceed requestTimeoutMs. */
  readonly sql: Sql
  readonly apiKeys: readonly ApiKey[]
  /** What keeps the gateway from serving; empty: nothing. */
  readonly readiness: () => readonly string[]
  /** From shared memory; undefined: not heard since the start. */
  readonly presenceOf: (deviceId: string) => LivePresence | undefined
  /** Name of the protocol whose device ids look like this; undefined: no protocol's. */
  readonly protocolOf: (deviceId: string) => string | undefined
  /** The row of a device has another `model_profile` now, and is committed. */
  readonly profileChanged?: (deviceId: string, name: string | null) => void
  /** False: routes that need the database answer UNAVAILABLE without asking it, also where they wait for it already. */
  readonly isDatabaseHere?: () => boolean
  readonly renderMetrics: () => Promise<string>
  readonly observeRequest: (route: string, status: number, seconds: number) => void
  /** ms since the epoch */
  readonly now: () => number
  /** Where nonces of signed requests are kept over a restart; a directory of its own. */
  readonly nonceDirectory: string
  /** Takes WebSocket subscribers; left out: there is no `/ws`. */
  readonly push?: PushHub
  /** A body that has not arrived by then is TIMEOUT, however long the request may take; default 6,000. */
  readonly bodyMsMax?: number
  /** Routes of other parts of the gateway. */
  readonly moreRoutes?: readonly Route[]
}

export interface Admin {
  /** @throws GW_LISTEN_FAILED */
  listen(): Promise<void>
  /** Waits at most `withinMs` (default 2,000) for requests under way. */
  close(withinMs?: number): Promise<void>
  /** The real one, after `listen`. */
  readonly port: number
}

const BODY_BYTES_MAX = 1_048_576
/** Before the HTTP library cuts who sends nothing, which it does after 8 to 12 s and without an answer. */
const BODY_MS_MAX = 6_000
const VERSION = (
  JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as { version: string }
).version
/** The caller's own request id, if it is short and printable. */
const REQUEST_ID = /^[\x21-\x7e]{1,128}$/

export function createAdmin(options: AdminOptions): Admin {
  const { config, log, sql, apiKeys, renderMetrics, readiness, observeRequest, now, push } = options
  const tickets = new Tickets(now)
  let openApiText: string | undefined
  const routes: readonly Route[] = [
    ...systemRoutes({ readiness, renderMetrics, openApi: () => openApi() }),
    ...consoleRoutes(),
    ...meRoutes({
      sql,
      version: VERSION,
      gateway: { record: config.record ?? 'off', allowlist: config.allowlist ?? 'off' },
    }),
    ...deviceRoutes(options),
    ...orderRoutes({ sql }),
    ...cardRoutes({ sql }),
    ...quarantineRoutes({ sql }),
    ...(push === undefined ? [] : ticketRoutes({ tickets })),
    ...(options.moreRoutes ?? []),
  ]
  // made when first asked for: it costs some 20 ms of the start
  const openApi = () => {
    openApiText ??= JSON.stringify(
      openApiDocument(
        routes,
        {
          Device: zDevice,
          Port: zPort,
          Order: zOrder,
          Card: zCard,
          Command: zCommand,
          QuarantineItem: zQuarantineItem,
        },
        VERSION,
      ),
    )
    return openApiText
  }
  const router = new Router(routes)
  const outage = new OutageWatch(options.isDatabaseHere ?? (() => true))
  const nonces = new Nonces(options.nonceDirectory, NONCE_PERIOD_MS, now())
  const authenticator = new Authenticator(apiKeys, nonces, now)

  async function serve(request: HttpRequest, route: Route, params: unknown, requestId: string): Promise<HttpAnswer> {
    let key: ApiKey | undefined
    const needsDatabase = route.role !== 'public' && route.needsDatabase !== false
    if (route.role !== 'public') {
      key = await authenticator.identify(request)
      if (!mayUse(key.role, route.role))
        throw new HttpError('FORBIDDEN', `this needs the role ${route.role}, the key has ${key.role}`)
      if (needsDatabase && options.isDatabaseHere?.() === false) throw databaseAway()
    }
    let status = route.status ?? 200
    const context = {
      params: checked('path', route.params, params),
      query: checked('query', route.query, queryOf(request.query)),
      body: route.body === undefined ? undefined : checked('body', route.body, bodyOf(route, await request.body)),
      bytes: route.takesBytes === true ? await request.body : NO_BYTES,
      // public routes have no key in their declared context; reading it there is a mistake that must show
      key: key as ApiKey,
      requestId,
      remoteAddress: request.remoteAddress,
      idempotencyKey: route.takesIdempotencyKey === true ? idempotencyKeyOf(request) : undefined,
      ifNoneMatch: request.headers.get('if-none-match'),
      setStatus: (changed: number) => {
        status = changed
      },
    }
    const result = await (needsDatabase ? outage.orGivenUp(route.handle(context)) : route.handle(context))
    if (route.response === undefined) {
      const { contentType, body, headers = [] } = result as RawBody
      return { status, headers: [['Content-Type', contentType], ...headers], body }
    }
    return { status, headers: [JSON_TYPE], body: JSON.stringify(result) }
  }

  async function answer(request: HttpRequest): Promise<HttpAnswer> {
    const startedMonoMs = performance.now()
    const given = request.headers.get('x-request-id')
    const requestId = given !== undefined && REQUEST_ID.test(given) ? given : randomUUID()
    const found = router.find(request.method, request.path)
    const pattern = found?.route.path ?? 'unmatched'
    let result: HttpAnswer
    try {
      if (found === undefined) throw new HttpError('NOT_FOUND', `no ${request.method} ${request.path.slice(0, 200)}`)
      result = await withinTime(serve(request, found.route, found.params, requestId), config.requestTimeoutMs)
    } catch (error) {
      const httpError = asHttpError(error)
      // UNAVAILABLE and TIMEOUT are said by many requests at once; only what we did wrong is worth its stack
      if (httpError.code === 'INTERNAL_ERROR')
        log.error({ event: 'request.failed', request_id: requestId, route: pattern, err: error, msg: 'request failed' })
      result = errorAnswer(httpError, requestId)
    }
    const seconds = (performance.now() - startedMonoMs) / 1000
    observeRequest(pattern, result.status, seconds)
    log[found === undefined || found.route.role === 'public' ? 'debug' : 'info']({
      event: 'request.finished',
      request_id: requestId,
      method: request.method,
      route: pattern,
      status: result.status,
      ms: Math.round(seconds * 1e6) / 1e3,
      remoteAddress: request.remoteAddress,
    })
    return { ...result, headers: [...result.headers, ['X-Request-ID', requestId]] }
  }

  /** Who may have a WebSocket: the holder of a ticket, or of a key. */
  async function authorize(hub: PushHub, request: HttpRequest) {
    const startedMonoMs = performance.now()
    const given = request.headers.get('x-request-id')
    const requestId = given !== undefined && REQUEST_ID.test(given) ? given : randomUUID()
    let status = 101
    try {
      const { ticket } = queryOf(request.query)
      const key = ticket === undefined ? await authenticator.identify(request) : tickets.take(ticket)
      if (key === undefined) throw new HttpError('UNAUTHENTICATED', 'the ticket is unknown, used or too old')
      return { handler: hub.accept(key) }
    } catch (error) {
      const httpError = asHttpError(error)
      status = httpError.status
      if (httpError.code === 'INTERNAL_ERROR')
        log.error({ event: 'request.failed', request_id: requestId, route: '/ws', err: error, msg: 'request failed' })
      const refused = errorAnswer(httpError, requestId)
      return { ...refused, headers: [...refused.headers, ['X-Request-ID', requestId] as const] }
    } finally {
      observeRequest('/ws', status, (performance.now() - startedMonoMs) / 1000)
    }
  }

  const server = createHttpServer({
    bodyBytesMax: BODY_BYTES_MAX,
    bodyWithinMs: Math.min(config.requestTimeoutMs, options.bodyMsMax ?? BODY_MS_MAX),
    answer,
    ...(push === undefined
      ? {}
      : {
          webSockets: {
            path: '/ws',
            payloadBytesMax: PUSH_PAYLOAD_BYTES_MAX,
            bufferedBytesMax: push.bufferedBytesHardMax,
            idleTimeoutS: 60,
            authorize: (request: HttpRequest) => authorize(push, request),
          },
        }),
  })
  let port = 0
  return {
    async listen() {
      port = await server.listen(config.httpHost, config.httpPort)
    },
    async close(withinMs = 2_000) {
      await server.close(withinMs)
      nonces.close()
    },
    get port() {
      return port
    },
  }
}

const NO_BYTES = new Uint8Array(0)
const JSON_TYPE = ['Content-Type', 'application/json'] as const
const mayUse = (has: Role, needs: Role) => ROLES.indexOf(has) >= ROLES.indexOf(needs)

const databaseAway = () => new HttpError('UNAVAILABLE', 'the database is away')
/** How soon a request that waits for a database which stands still hears that it is away. */
const OUTAGE_LOOK_MS = 100

/**
 * Work that waits for the database while it is found to be away: a server that stands still refuses nothing, and each such
 * request would wait until its time is over. As after a connection that broke, what was asked for may be done all the same.
 */
class OutageWatch {
  readonly #isDatabaseHere: () => boolean
  readonly #waiting = new Set<() => void>()
  #timer: NodeJS.Timeout | undefined

  constructor(isDatabaseHere: () => boolean) {
    this.#isDatabaseHere = isDatabaseHere
  }

  /** @throws HttpError UNAVAILABLE, or what the work throws */
  async orGivenUp<T>(work: T | Promise<T>): Promise<T> {
    if (!(work instanceof Promise)) return work
    const { promise: away, reject } = Promise.withResolvers<never>()
    const giveUp = () => reject(databaseAway())
    this.#waiting.add(giveUp)
    this.#timer ??= setInterval(() => this.#look(), OUTAGE_LOOK_MS).unref()
    try {
      return await Promise.race([work, away])
    } finally {
      this.#waiting.delete(giveUp)
    }
  }

  #look(): void {
    if (!this.#isDatabaseHere()) for (const giveUp of this.#waiting) giveUp()
    if (this.#waiting.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}

/** Rejects with TIMEOUT when the work takes too long; what it does then is not waited for. */
async function withinTime<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new HttpError('TIMEOUT', `no answer within ${ms} ms`)), ms)
  })
  // a late failure has nobody to tell
  work.catch(() => {})
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

function queryOf(text: string): Record<string, string> {
  const values: Record<string, string> = {}
  for (const [name, value] of new URLSearchParams(text)) {
    if (Object.hasOwn(values, name)) throw new HttpError('INVALID_ARGUMENT', `query: ${name} is given twice`)
    values[name] = value
  }
  return values
}

const bodyOf = ({ bodyIsOptional }: Route, bytes: Uint8Array): unknown =>
  bodyIsOptional === true && bytes.length === 0 ? {} : parseJson(bytes)

/** Printable ASCII, as a caller would log it. */
const IDEMPOTENCY_KEY = /^[\x20-\x7e]{1,255}$/

function idempotencyKeyOf({ headers }: HttpRequest): string | undefined {
  const key = headers.get('idempotency-key')
  if (key !== undefined && !IDEMPOTENCY_KEY.test(key))
    throw new HttpError('INVALID_ARGUMENT', 'Idempotency-Key: 1 to 255 printable ASCII characters')
  return key
}

function checked(where: 'path' | 'query' | 'body', schema: z.ZodType | undefined, value: unknown): unknown {
  // a route without a query schema ignores what is asked: probes and browsers add things of their own
  if (schema === undefined) return undefined
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const problems = parsed.error.issues.map((issue) => ({
    field: [where, ...issue.path.map(String)].join('.'),
    rule: issue.message,
  }))
  throw new HttpError('INVALID_ARGUMENT', problems.map(({ field, rule }) => `${field}: ${rule}`).join('; '), {
    problems,
  })
}

/** System and driver codes that mean: nobody there. SQLSTATE classes 08 (connection), 53 (resources), 57P (stopping). */
const AWAY =
  /^(?:ECONN[A-Z]+|EPIPE|ETIMEDOUT|EHOSTUNREACH|ENOTFOUND|EAI_AGAIN|CONNECT_TIMEOUT|CONNECTION_[A-Z_]+|08...|53...|57P0.)$/
/** The server's own limit for a statement. */
const CANCELLED = '57014'
/** Values that pass our schemas and not the database: a NUL in a text, a cursor with the 31st of February. */
const BAD_VALUE = /^22...$/

function asHttpError(error: unknown): HttpError {
  if (error instanceof HttpError) return error
  const code = databaseErrorCode(error)
  if (code !== undefined && AWAY.test(code))
    return new HttpError('UNAVAILABLE', 'the database is away', { code }, error)
  if (code === CANCELLED) return new HttpError('TIMEOUT', 'the database took too long', {}, error)
  if (code !== undefined && BAD_VALUE.test(code))
    return new HttpError('INVALID_ARGUMENT', 'the database does not take one of the values', { code }, error)
  return new HttpError('INTERNAL_ERROR', 'the gateway failed; its log tells more under this request_id', {}, error)
}

function errorAnswer({ code, status, message, details }: HttpError, requestId: string): HttpAnswer {
  return {
    status,
    headers: [
      JSON_TYPE,
      ...(status === 401 ? ([['WWW-Authenticate', 'Bearer']] as const) : []),
      // whoever does not know better says a second
      ...(status === 429 ? ([['Retry-After', String(details['retry_after_s'] ?? 1)]] as const) : []),
    ],
    body: JSON.stringify({ error: { code, message, request_id: requestId, details } }),
  }
}
