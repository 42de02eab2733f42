/**
 * The HTTP server as the rest of the admin endpoint sees it, and the only file that knows uWebSockets.js: `node:http`
 * could stand behind the same interface.
 *
 * uWebSockets.js ends the process when a handler throws, when a handler returns without an answer and without
 * `onAborted`, and when a response is touched after its abort. So there is one handler here, for every route: it
 * attaches `onAborted` and `onData` first, catches everything, and answers exactly once, inside `cork`.
 */
// first: what is imported is run in this order
import './header-limit.ts'
import {
  App,
  type HttpResponse,
  type HttpRequest as RawRequest,
  us_listen_socket_close,
  us_socket_local_port,
  type WebSocket,
} from 'uWebSockets.js'
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
  /**
   * @throws HttpError PAYLOAD_TOO_LARGE more than bodyBytesMax, said or sent; TIMEOUT not whole within bodyWithinMs. The
   *   rest is not kept, and the connection ends with the answer or when the caller has read it
   */
  readonly body: Promise<Uint8Array>
}

export interface HttpAnswer {
  readonly status: number
  readonly headers: readonly (readonly [name: string, value: string])[]
  readonly body: string | Uint8Array
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

/** One WebSocket as the rest of the gateway sees it. Every call after `closed` does nothing. */
export interface PushSocket {
  /**
   * @param text UTF-8, not kept
   * @returns bytes that wait for the subscriber afterwards; -1: not sent, more than `bufferedBytesMax` waited
   */
  send(text: string | Uint8Array): number
  /** What is sent within leaves with one system call. */
  cork(act: () => void): void
  readonly bufferedBytes: number
  /** Says why and ends; what waits is still delivered to whoever reads. */
  end(code: number, reason: string): void
}

/** Called on the main thread. None may throw; if one does all the same, the socket is closed with 1011. */
export interface SocketHandler {
  opened(socket: PushSocket): void
  received(text: string): void
  /** Fewer bytes wait than before. */
  drained(): void
  closed(): void
}

export interface WebSocketOptions {
  readonly path: string
  /** A longer message closes the socket. */
  readonly payloadBytesMax: number
  /** Hard bound of what waits for one subscriber. */
  readonly bufferedBytesMax: number
  /** Without a sign of life, pings included; 8 to 960. */
  readonly idleTimeoutS: number
  /** Never rejects, by contract. A handler accepts; an answer refuses. */
  readonly authorize: (request: HttpRequest) => Promise<HttpAnswer | { readonly handler: SocketHandler }>
}

export interface HttpServerOptions {
  readonly bodyBytesMax: number
  /** From a request's headers to the last byte of its body. uWebSockets.js cuts who stalls for 8 s, without an answer. */
  readonly bodyWithinMs: number
  /** Never rejects, by contract; if it does all the same, the caller gets a bare 500. */
  readonly answer: (request: HttpRequest) => Promise<HttpAnswer>
  readonly webSockets?: WebSocketOptions
}

/** Without it two gateways could share one port, each seeing half of the requests. */
const LISTEN_EXCLUSIVELY = 1

/**
 * Of a body that is said to be too long so much is still taken and dropped: who has begun to send it would find the
 * connection broken before he reads the answer.
 */
const READ_OUT_BYTES_MAX = 67_108_864

const REASONS: Readonly<Record<number, string>> = {
  200: 'OK',
  201: 'Created',
  202: 'Accepted',
  204: 'No Content',
  304: 'Not Modified',
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
  if (options.webSockets !== undefined) serveWebSockets(app, options.webSockets, () => isClosing)

  app.any('/*', (response, raw) => {
    let isAborted = false
    let isWhole = false
    let saidBytes = Number.POSITIVE_INFINITY
    const chunks: Buffer[] = []
    let bytes = 0
    const { promise: body, resolve, reject } = Promise.withResolvers<Uint8Array>()
    // a route that wants no body leaves it unread
    body.catch(() => {})
    const { bodyBytesMax, bodyWithinMs } = options
    const tooLarge = () => {
      chunks.length = 0
      reject(
        new HttpError('PAYLOAD_TOO_LARGE', `a body has at most ${bodyBytesMax} bytes`, { bytes_max: bodyBytesMax }),
      )
    }
    // both handlers are attached before anything here can throw
    response.onAborted(() => {
      isAborted = true
      clearTimeout(bodyTimer)
      reject(new HttpError('INVALID_ARGUMENT', 'the connection ended before the body did'))
    })
    response.onData((chunk, isLast) => {
      bytes += chunk.byteLength
      if (isLast) {
        isWhole = true
        clearTimeout(bodyTimer)
      }
      // answered already: nothing of what still comes is kept
      if (isAborted) return
      if (bytes > bodyBytesMax) return tooLarge()
      // the memory belongs to the server and is taken back when this returns
      if (chunk.byteLength > 0) chunks.push(Buffer.from(new Uint8Array(chunk)))
      if (isLast) resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks))
    })
    const bodyTimer = setTimeout(() => {
      reject(new HttpError('TIMEOUT', `the body did not arrive within ${bodyWithinMs} ms`))
    }, bodyWithinMs)

    underWay++
    const finish = (answer: HttpAnswer) => {
      underWay--
      clearTimeout(bodyTimer)
      if (underWay === 0) onIdle?.()
      if (isAborted) return
      // set before writing: an abort during the write must not lead to a second answer
      isAborted = true
      try {
        // the rest of a body that is too long or too slow is not wanted
        const isCutShort = !isWhole && (answer.status === 413 || answer.status === 504)
        const isReadOut = isCutShort && answer.status === 413 && saidBytes <= READ_OUT_BYTES_MAX
        response.cork(() => {
          write(response, answer, method === 'HEAD', isReadOut ? 'caller' : isClosing || isCutShort ? 'us' : undefined)
        })
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
      const request = requestOf(raw, response, method, body)
      // said to be too long: nobody has to send it to hear that
      const length = request.headers.get('content-length')
      if (length !== undefined) saidBytes = Number(length)
      if (length !== undefined && saidBytes > bodyBytesMax) tooLarge()
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

function requestOf(raw: RawRequest, response: HttpResponse, method: string, body: Promise<Uint8Array>): HttpRequest {
  const headers = new Map<string, string>()
  raw.forEach((name, value) => {
    headers.set(name, value)
  })
  return {
    method,
    path: raw.getUrl(),
    query: raw.getQuery() ?? '',
    headers,
    remoteAddress: Buffer.from(response.getRemoteAddressAsText()).toString('latin1'),
    body,
  }
}

/** What uWebSockets.js keeps with a socket. */
interface SocketData {
  readonly handler: SocketHandler
  closeNow: () => void
}

function serveWebSockets(app: ReturnType<typeof App>, options: WebSocketOptions, isClosing: () => boolean): void {
  const { path, payloadBytesMax, bufferedBytesMax, idleTimeoutS, authorize } = options
  /** What to call when one closes. */
  const sockets = new Map<WebSocket<SocketData>, () => void>()
  /** Nothing may be thrown into the server: the process would end. */
  const guarded = (socket: WebSocket<SocketData>, act: (handler: SocketHandler) => void) => {
    const data = socket.getUserData()
    try {
      act(data.handler)
    } catch {
      data.closeNow()
    }
  }
  app.ws<SocketData>(path, {
    maxPayloadLength: payloadBytesMax,
    // the hub counts and cuts by itself; this is the bound behind it
    maxBackpressure: bufferedBytesMax,
    idleTimeout: idleTimeoutS,
    sendPingsAutomatically: true,
    upgrade: (response, raw, context) => {
      let isAborted = false
      response.onAborted(() => {
        isAborted = true
      })
      const refuse = (answer: HttpAnswer) => {
        if (isAborted) return
        isAborted = true
        try {
          response.cork(() => write(response, answer, false, 'us'))
        } catch {
          try {
            response.close()
          } catch {}
        }
      }
      try {
        // the request is gone after this returns: everything is read now
        const key = raw.getHeader('sec-websocket-key')
        const protocol = raw.getHeader('sec-websocket-protocol')
        const extensions = raw.getHeader('sec-websocket-extensions')
        const request = requestOf(raw, response, 'GET', Promise.resolve(new Uint8Array()))
        authorize(request).then(
          (outcome) => {
            if (!('handler' in outcome)) return refuse(outcome)
            // not opened: whoever accepted it must know
            if (isAborted || isClosing()) {
              outcome.handler.closed()
              if (!isAborted) refuse(BARE_ERROR)
              return
            }
            isAborted = true
            const data: SocketData = { handler: outcome.handler, closeNow: () => {} }
            try {
              response.cork(() => response.upgrade(data, key, protocol, extensions, context))
            } catch {
              outcome.handler.closed()
            }
          },
          () => refuse(BARE_ERROR),
        )
      } catch {
        refuse(BARE_ERROR)
      }
    },
    open: (raw) => {
      const { socket, closeNow, closed } = pushSocket(raw)
      const data = raw.getUserData()
      data.closeNow = closeNow
      sockets.set(raw, closed)
      guarded(raw, (handler) => handler.opened(socket))
    },
    message: (raw, message) => {
      // a copy: the memory is taken back when this returns
      const text = Buffer.from(message).toString('utf8')
      guarded(raw, (handler) => handler.received(text))
    },
    drain: (raw) => guarded(raw, (handler) => handler.drained()),
    close: (raw) => {
      sockets.get(raw)?.()
      sockets.delete(raw)
      guarded(raw, (handler) => handler.closed())
    },
  })
}

function pushSocket(raw: WebSocket<SocketData>) {
  // a call on a closed socket throws; after `end` the close handler has run already
  let isOpen = true
  const socket: PushSocket = {
    send(text) {
      if (!isOpen) return 0
      // 2: dropped, nothing was written
      return raw.send(text, false) === 2 ? -1 : raw.getBufferedAmount()
    },
    cork(act) {
      if (isOpen) raw.cork(act)
    },
    get bufferedBytes() {
      return isOpen ? raw.getBufferedAmount() : 0
    },
    end(code, reason) {
      if (!isOpen) return
      isOpen = false
      raw.end(code, reason)
    },
  }
  return {
    socket,
    closeNow: () => socket.end(1011, 'the gateway failed'),
    closed: () => {
      isOpen = false
    },
  }
}

const BARE_ERROR: HttpAnswer = {
  status: 500,
  headers: [['Content-Type', 'application/json']],
  body: '{"error":{"code":"INTERNAL_ERROR","message":"the gateway failed","request_id":"","details":{}}}',
}

/** @param closer who ends the connection afterwards, and is told so */
function write(response: HttpResponse, answer: HttpAnswer, isHead: boolean, closer: 'us' | 'caller' | undefined): void {
  response.writeStatus(`${answer.status} ${REASONS[answer.status] ?? 'Unknown'}`)
  for (const [name, value] of answer.headers) response.writeHeader(name, value)
  if (closer === 'caller') response.writeHeader('Connection', 'close')
  const closesConnection = closer === 'us'
  if (answer.status === 304) {
    response.endWithoutBody(undefined, closesConnection)
    return
  }
  if (isHead) response.endWithoutBody(Buffer.byteLength(answer.body), closesConnection)
  else response.end(answer.body, closesConnection)
}
