/** What a route declares. One declaration serves the router, the checks of input, and the OpenAPI document. */
import type * as z from 'zod'
import type { ApiKey, Role } from '../../config/api-keys.ts'
import type { HttpErrorCode } from '../../errors/errors.ts'

export type Method = 'GET' | 'PUT' | 'POST' | 'PATCH' | 'DELETE'

export interface RouteContext<P, Q, B> {
  /** Checked by the schemas of the route. */
  readonly params: P
  readonly query: Q
  readonly body: B
  /** Who asks; on public routes nobody, and `key` must not be read. */
  readonly key: ApiKey
  readonly requestId: string
  readonly remoteAddress: string
  /** Only on routes that take bytes; empty on others. */
  readonly bytes: Uint8Array
  /** Only on routes that take one; undefined: the caller sent none. */
  readonly idempotencyKey: string | undefined
  /** Header If-None-Match. */
  readonly ifNoneMatch: string | undefined
  /** Another status than the declared one, for example 201. */
  setStatus(status: number): void
}

/** An answer that is no JSON. */
export interface RawBody {
  readonly contentType: string
  readonly body: string
  readonly headers?: readonly (readonly [name: string, value: string])[]
}

export interface RouteDeclaration<P extends z.ZodType, Q extends z.ZodType, B extends z.ZodType, R extends z.ZodType> {
  readonly method: Method
  /** Segments in braces are parameters; the text is the label of the metrics and the path in OpenAPI. */
  readonly path: string
  /** The least role, or nobody needed. */
  readonly role: Role | 'public'
  readonly summary: string
  readonly description?: string
  /** Strict objects of strings, as they come. */
  readonly params?: P
  readonly query?: Q
  readonly body?: B
  /** Without a body it is `{}`, which `body` must take. */
  readonly bodyIsOptional?: true
  /** The body is bytes and no JSON; `handle` gets them as they came, at most 1 MiB. */
  readonly takesBytes?: true
  /** JSON; absent: `handle` returns a RawBody of `contentType`. */
  readonly response?: R
  readonly contentType?: string
  /** Status of success, default 200. */
  readonly status?: number
  /** Statuses of success beside it. */
  readonly statuses?: readonly number[]
  /** The header Idempotency-Key is read. */
  readonly takesIdempotencyKey?: true
  /** Answered from memory, so also while the database is away. Public routes never need it. */
  readonly needsDatabase?: false
  /** Errors worth telling apart, beside those every route may answer with. */
  readonly errors?: readonly HttpErrorCode[]
  /** @throws HttpError to answer with it; anything else becomes INTERNAL_ERROR, a lost database UNAVAILABLE */
  handle(
    context: RouteContext<z.output<P>, z.output<Q>, z.output<B>>,
  ): Promise<z.input<R> | RawBody> | z.input<R> | RawBody
}

/** A route whose types are checked already. */
export interface Route {
  readonly method: Method
  readonly path: string
  readonly role: Role | 'public'
  readonly summary: string
  readonly description?: string
  readonly params?: z.ZodType
  readonly query?: z.ZodType
  readonly body?: z.ZodType
  readonly bodyIsOptional?: true
  readonly takesBytes?: true
  readonly response?: z.ZodType
  readonly contentType?: string
  readonly status?: number
  readonly statuses?: readonly number[]
  readonly takesIdempotencyKey?: true
  readonly needsDatabase?: false
  readonly errors?: readonly HttpErrorCode[]
  handle(context: RouteContext<unknown, unknown, unknown>): unknown
}

export function defineRoute<
  P extends z.ZodType = z.ZodUndefined,
  Q extends z.ZodType = z.ZodUndefined,
  B extends z.ZodType = z.ZodUndefined,
  R extends z.ZodType = z.ZodType<RawBody>,
>(declaration: RouteDeclaration<P, Q, B, R>): Route {
  return declaration as unknown as Route
}

/** Finds routes by method and path. Literal segments win over parameters. */
export class Router {
  readonly #routes: readonly { readonly route: Route; readonly segments: readonly string[] }[]

  constructor(routes: readonly Route[]) {
    const parametersOf = (path: string) => path.split('{').length
    this.#routes = routes
      .map((route) => ({ route, segments: route.path.split('/') }))
      .sort((a, b) => parametersOf(a.route.path) - parametersOf(b.route.path))
  }

  /** @returns undefined: no such path, or not with this method */
  find(method: string, path: string): { route: Route; params: Record<string, string> } | undefined {
    const segments = path.split('/')
    const wanted = method === 'HEAD' ? 'GET' : method
    for (const { route, segments: pattern } of this.#routes) {
      if (route.method !== wanted || pattern.length !== segments.length) continue
      const params = match(pattern, segments)
      if (params !== undefined) return { route, params }
    }
    return undefined
  }
}

function match(pattern: readonly string[], segments: readonly string[]): Record<string, string> | undefined {
  const params: Record<string, string> = {}
  for (const [index, expected] of pattern.entries()) {
    const segment = segments[index]!
    if (!expected.startsWith('{')) {
      if (expected !== segment) return undefined
      continue
    }
    try {
      params[expected.slice(1, -1)] = decodeURIComponent(segment)
    } catch {
      return undefined
    }
  }
  return params
}
