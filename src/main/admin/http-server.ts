/**
 * The HTTP server as the rest of the admin endpoint sees it, and the only file that knows uWebSockets.js: `node:http`
 * could stand behind the same interface.
 *
 * uWebSockets.js ends the process when a handler throws, when a handler returns without an answer and without
 * `onAborted`, and when a response is touched after its abort. So there is one handler here, for every route: it
 * attaches `onAborted` and `onData` first, catches everything, and answers exactly once, inside `cork`.
 */
import { App, type HttpResponse, us_listen_socket_close, us_socket_local_port } from 'uWebSockets.js'
import { GatewayError, HttpError } from '../../errors/errors.ts'

export interface HttpRequest {
  /** Upper case. */
  readonly method: string
  /** As sent, not decoded, without the query. */
  readonly path: string
  /** As sent, without `?`; empty when there is none. */
  readonly query: string
  /** By lower-case name; of a repeated header the last. */
  readonly headers: ReadonlyMap<string, string>
  readonly remoteAddress: string
  /** @throws HttpError PAYLOAD_TOO_LARGE more than bodyBytesMax; the rest is not kept */
  readonly body: Promise<Uint8Array>
}

export interface HttpAnswer {
  readonly status: number
  readonly headers: readonly (readonly [name: string, value: string])[]
  readonly body: string | Uint8Array
  /** The connection is not used again: what else comes on it is not wanted. */
  readonly closesConnection?: boolean
}

export interface HttpServer {
  /**
   * @param port 0 takes a free one
   * @returns the port
   * @throws GW_LISTEN_FAILED somebody else has it
   */
  listen(host: string, port: number): Promise<number>
  /** Accepts nothing more, waits at most `withinMs` for requests under way, then closes every connection. */
  close(withinMs: number): Promise<void>
}

export interface HttpServerOptions {
  readonly bodyBytesMax: number
  /** Never rejects, by contract; if it does all the same, the caller gets a bare 500. */
  readonly answer: (request: HttpRequest) => Promise<HttpAnswer>
}

/** Without it two gateways could share one port, each seeing half of the requests. */
const LISTEN_EXCLUSIVELY = 1

const REASONS: Readonly<Record<number, string>> = {
  200: 'OK',
  201: 'Created',
  202: 'Accepted',
  204: 'No Content',
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  409: 'Conflict',
  412: 'Precondition Failed',
  413: 'Payload Too Large',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
}

/** The typings lack the form with a host and options. */
interface ExclusiveListen {
  listen(
    host: string,
    port: number,
    options: number,
    callback: (socket: Parameters<typeof us_listen_socket_close>[0] | false) => void,
  ): void
}

/** Thread: main only; a worker that holds an app cannot be terminated without ending the process. */
export function createHttpServer(options: HttpServerOptions): HttpServer {
  const app = App()
  let listening: Parameters<typeof us_listen_socket_close>[0] | undefined
  let underWay = 0
  let isClosing = false
  let onIdle: (() => void) | undefined

  app.any('/*', (response, raw) => {
    let isAborted = false
    const chunks: Buffer[] = []
    let bytes = 0
    // the executor runs at once: both handlers are attached before anything here can throw
    const body = new Promise<Uint8Array>((resolve, reject) => {
      response.onAborted(() => {
        isAborted = true
        reject(new HttpError('INVALID_ARGUMENT', 'the connection ended before the body did'))
      })
      response.onData((chunk, isLast) => {
        bytes += chunk.byteLength
        if (bytes > options.bodyBytesMax) {
          chunks.length = 0
          reject(
            new HttpError('PAYLOAD_TOO_LARGE', `a body has at most ${options.bodyBytesMax} bytes`, {
              bytes_max: options.bodyBytesMax,
            }),
          )
          return
        }
        // the memory belongs to the server and is taken back when this returns
        if (chunk.byteLength > 0) chunks.push(Buffer.from(new Uint8Array(chunk)))
        if (isLast) resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks))
      })
    })
    // a route that wants no body leaves it unread
    body.catch(() => {})

    underWay++
    const finish = (answer: HttpAnswer) => {
      underWay--
      if (underWay === 0) onIdle?.()
      if (isAborted) return
      // set before writing: an abort during the write must not lead to a second answer
      isAborted = true
      try {
        response.cork(() => write(response, answer, method === 'HEAD', isClosing))
      } catch {
        // never out of here: this runs behind a promise, and the process would end
        try {
          response.close()
        } catch {}
      }
    }
    let method = ''
    try {
      method = raw.getCaseSensitiveMethod().toUpperCase()
      const headers = new Map<string, string>()
      raw.forEach((name, value) => {
        headers.set(name, value)
      })
      const request: HttpRequest = {
        method,
        path: raw.getUrl(),
        query: raw.getQuery() ?? '',
        headers,
        remoteAddress: Buffer.from(response.getRemoteAddressAsText()).toString('latin1'),
        body,
      }
      options.answer(request).then(finish, () => finish(BARE_ERROR))
    } catch {
      finish(BARE_ERROR)
    }
  })

  return {
    listen: (host, port) =>
      new Promise((resolve, reject) => {
        const exclusive = app as unknown as ExclusiveListen
        exclusive.listen(host, port, LISTEN_EXCLUSIVELY, (socket) => {
          if (socket === false) {
            reject(new GatewayError('GW_LISTEN_FAILED', `HTTP cannot listen on ${host}:${port}`))
            return
          }
          listening = socket
          resolve(us_socket_local_port(socket as unknown as Parameters<typeof us_socket_local_port>[0]))
        })
      }),
    close: async (withinMs) => {
      if (isClosing) return
      isClosing = true
      if (listening !== undefined) us_listen_socket_close(listening)
      listening = undefined
      if (underWay > 0)
        await new Promise<void>((resolve) => {
          const limit = setTimeout(resolve, withinMs)
          onIdle = () => {
            clearTimeout(limit)
            // the last answer is written by whoever called this; let it leave first
            setImmediate(resolve)
          }
        })
      app.close()
    },
  }
}

const BARE_ERROR: HttpAnswer = {
  status: 500,
  headers: [['Content-Type', 'application/json']],
  body: '{"error":{"code":"INTERNAL_ERROR","message":"the gateway failed","request_id":"","details":{}}}',
}

function write(response: HttpResponse, answer: HttpAnswer, isHead: boolean, isClosing: boolean): void {
  response.writeStatus(`${answer.status} ${REASONS[answer.status] ?? 'Unknown'}`)
  for (const [name, value] of answer.headers) response.writeHeader(name, value)
  const closesConnection = isClosing || answer.closesConnection === true
  if (isHead) response.endWithoutBody(Buffer.byteLength(answer.body), closesConnection)
  else response.end(answer.body, closesConnection)
}
