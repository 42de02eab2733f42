/**
 * An HTTP client that costs its machine little: requests over a few kept connections, one at a time on each. With
 * `fetch` the generator of a burst took more CPU than the gateway it measured.
 */
import net from 'node:net'

export interface ApiReply {
  readonly status: number
  readonly text: string
}

interface Ask {
  readonly bytes: string
  readonly resolve: (reply: ApiReply) => void
  readonly reject: (error: Error) => void
}

const HEAD_END = '\r\n\r\n'

export class ApiClient {
  readonly #url: URL
  readonly #secret: string
  readonly #waiting: Ask[] = []
  readonly #connections: Connection[]

  /** @param url of the gateway's HTTP, without a path. @param connections 1..1000 */
  constructor(url: string, secret: string, connections: number) {
    this.#url = new URL(url)
    this.#secret = secret
    this.#connections = Array.from(
      { length: connections },
      () => new Connection(Number(this.#url.port || 80), this.#url.hostname, this.#waiting),
    )
  }

  /** @throws when the connection breaks before the answer is whole */
  ask(method: 'GET' | 'POST', path: string, body?: unknown, headers = ''): Promise<ApiReply> {
    const text = body === undefined ? '' : JSON.stringify(body)
    const bytes =
      `${method} ${path} HTTP/1.1\r\nhost: ${this.#url.host}\r\nauthorization: Bearer ${this.#secret}\r\n${headers}` +
      `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}${HEAD_END}${text}`
    return new Promise((resolve, reject) => {
      this.#waiting.push({ bytes, resolve, reject })
      this.#connections.find(({ isIdle }) => isIdle)?.next()
    })
  }

  /** Sum of one series of `GET /metrics` over its labels that match. */
  async metric(name: string, labels: RegExp = /./): Promise<number> {
    const { text } = await this.ask('GET', '/metrics')
    return text
      .split('\n')
      .filter((line) => line.startsWith(name) && labels.test(line))
      .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
  }

  close(): void {
    for (const connection of this.#connections) connection.close()
  }
}

class Connection {
  readonly #port: number
  readonly #host: string
  readonly #waiting: Ask[]
  #socket: net.Socket | undefined
  #ask: Ask | undefined
  #text = ''

  constructor(port: number, host: string, waiting: Ask[]) {
    this.#port = port
    this.#host = host
    this.#waiting = waiting
  }

  get isIdle(): boolean {
    return this.#ask === undefined
  }

  next(): void {
    this.#ask = this.#waiting.shift()
    if (this.#ask === undefined) return
    this.#socket ??= this.#open()
    this.#socket.write(this.#ask.bytes)
  }

  #open(): net.Socket {
    const socket = net.connect({ port: this.#port, host: this.#host, noDelay: true })
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.#heard(text))
    // `close` follows
    socket.on('error', () => {})
    socket.on('close', () => {
      if (this.#socket !== socket) return
      this.#socket = undefined
      this.#text = ''
      const ask = this.#ask
      this.#ask = undefined
      ask?.reject(new Error('the connection broke before the answer was whole'))
      this.next()
    })
    return socket
  }

  #heard(text: string): void {
    this.#text += text
    const headEnd = this.#text.indexOf(HEAD_END)
    if (headEnd < 0) return
    const head = this.#text.slice(0, headEnd)
    const body = this.#text.slice(headEnd + HEAD_END.length)
    const bodyBytes = Number(/\r\ncontent-length: *(\d+)/i.exec(head)?.[1] ?? 0)
    if (Buffer.byteLength(body) < bodyBytes) return
    this.#text = ''
    const { resolve } = this.#ask!
    this.#ask = undefined
    resolve({ status: Number(head.slice(9, 12)), text: body })
    this.next()
  }

  close(): void {
    const socket = this.#socket
    this.#socket = undefined
    socket?.destroy()
  }
}
