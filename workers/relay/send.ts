/**
 * One attempt: a POST over node:http or node:https, bounded in time, bytes and reach. Thread: relay.
 *
 * A name is resolved once per connection and only to addresses the guard lets pass; connections are kept and used again.
 * Redirects are not followed: an address that answers with one is no receiver.
 */
import type { LookupAddress } from 'node:dns'
import { lookup as systemLookup } from 'node:dns/promises'
import http from 'node:http'
import https from 'node:https'
import type { LookupFunction } from 'node:net'
import { allowedAddresses, type GuardOptions, hostOf, refusalOf } from '../../src/webhooks/address-guard.ts'
import type { Attempt } from '../../src/webhooks/outcome.ts'

export interface SenderOptions {
  readonly guard: GuardOptions
  /** Every address of a name; the system's resolver by default. */
  readonly resolve?: (host: string) => Promise<readonly LookupAddress[]>
}

export interface Request {
  readonly address: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** From the start to the status line, everything included. */
  readonly timeoutMs: number
}

export interface SentAttempt extends Attempt {
  readonly durationMs: number
  /** First bytes of the answer's body, printable. */
  readonly answer: string
}

const ANSWER_BYTES_KEPT = 256
/** A body that goes on behind this is cut off, and its connection with it. */
const ANSWER_BYTES_READ = 65_536
/** The status decides; the body may take this much longer. */
const ANSWER_MS_MAX = 1_000
const IDLE_MS_MAX = 30_000
const USER_AGENT = 'pilegate-webhooks/1'

export class Sender {
  readonly #options: SenderOptions
  readonly #agents = {
    http: new http.Agent({ keepAlive: true, maxFreeSockets: 16, timeout: IDLE_MS_MAX }),
    https: new https.Agent({ keepAlive: true, maxFreeSockets: 16, timeout: IDLE_MS_MAX }),
  }
  /** Names being resolved: the resolver has few threads, and a name that hangs takes only one of them. */
  readonly #resolving = new Map<string, Promise<readonly LookupAddress[]>>()
  readonly #underWay = new Set<(error: string) => void>()

  constructor(options: SenderOptions) {
    this.#options = options
  }

  /** Never rejects: whatever happens is an attempt with a status or an error. */
  async send(request: Request): Promise<SentAttempt> {
    const startedMonoMs = performance.now()
    const first = await this.#try(request, startedMonoMs)
    // a kept connection that the receiver closed at this moment: it has not read the request
    return first === 'stale' ? ((await this.#try(request, startedMonoMs, true)) as SentAttempt) : first
  }

  /** Cuts off everything under way. */
  abort(): void {
    for (const end of [...this.#underWay]) end('aborted')
  }

  close(): void {
    this.#agents.http.destroy()
    this.#agents.https.destroy()
  }

  #try(
    { address, headers, body, timeoutMs }: Request,
    startedMonoMs: number,
    isFresh = false,
  ): Promise<SentAttempt | 'stale'> {
    return new Promise((resolve) => {
      let status: number | undefined
      let retryAfter: string | undefined
      let bytes = 0
      const kept: Buffer[] = []
      let isDone = false
      let timer: NodeJS.Timeout | undefined
      let request: http.ClientRequest | undefined
      const end = (error?: string) => {
        if (isDone) return
        isDone = true
        clearTimeout(timer)
        this.#underWay.delete(end)
        if (error !== undefined) request?.destroy()
        const durationMs = performance.now() - startedMonoMs
        const answer = printable(Buffer.concat(kept).subarray(0, ANSWER_BYTES_KEPT))
        resolve({ status, error: status === undefined ? error : undefined, retryAfter, durationMs, answer })
      }
      this.#underWay.add(end)
      const leftMs = () => Math.max(1, timeoutMs - (performance.now() - startedMonoMs))
      timer = setTimeout(() => end('timeout'), leftMs())

      if (refusalOf(address, this.#options.guard) !== undefined) return end('address_refused')
      const url = new URL(address)
      const isTls = url.protocol === 'https:'
      try {
        request = (isTls ? https : http).request(url, {
          method: 'POST',
          agent: isFresh ? false : isTls ? this.#agents.https : this.#agents.http,
          lookup: this.#lookup(hostOf(url)),
          headers: {
            'content-type': 'application/json',
            'content-length': Buffer.byteLength(body),
            'user-agent': USER_AGENT,
            ...headers,
          },
        })
      } catch (error) {
        return end(codeOf(error))
      }
      request.on('response', (response) => {
        status = response.statusCode
        retryAfter = response.headers['retry-after']
        clearTimeout(timer)
        timer = setTimeout(() => end('slow answer'), Math.min(ANSWER_MS_MAX, leftMs()))
        response.on('data', (chunk: Buffer) => {
          if (bytes < ANSWER_BYTES_KEPT) kept.push(chunk)
          bytes += chunk.length
          if (bytes > ANSWER_BYTES_READ) end('long answer')
        })
        response.on('end', () => end())
        response.on('error', (error) => end(codeOf(error)))
      })
      request.on('error', (error) => {
        const isStale =
          !isDone && status === undefined && request?.reusedSocket === true && codeOf(error) === 'ECONNRESET'
        if (!isStale) return end(codeOf(error))
        isDone = true
        clearTimeout(timer)
        this.#underWay.delete(end)
        resolve('stale')
      })
      // whatever ends a request without a word, such as a switch of protocols
      request.on('close', () => end('closed'))
      request.end(body)
    })
  }

  #lookup(host: string): LookupFunction {
    return (_name, options, callback) => {
      this.#resolve(host).then(
        (resolved) => {
          const allowed = allowedAddresses(host, resolved, this.#options.guard)
          const first = allowed[0]
          if (first === undefined) {
            const refused = Object.assign(new Error(`${host} leads to no address of the public internet`), {
              code: resolved.length === 0 ? 'ENOTFOUND' : 'address_refused',
            })
            callback(refused, '', 4)
          } else if (options.all === true) callback(null, [...allowed])
          else callback(null, first.address, first.family)
        },
        (error: NodeJS.ErrnoException) => callback(error, '', 4),
      )
    }
  }

  #resolve(host: string): Promise<readonly LookupAddress[]> {
    const known = this.#resolving.get(host)
    if (known !== undefined) return known
    const resolve = this.#options.resolve ?? ((name: string) => systemLookup(name, { all: true }))
    const answer = resolve(host).finally(() => this.#resolving.delete(host))
    this.#resolving.set(host, answer)
    return answer
  }
}

function codeOf(error: unknown): string {
  const { code, message } = error as { code?: unknown; message?: unknown }
  // several addresses were tried: the first one's reason
  if (error instanceof AggregateError && error.errors.length > 0) return codeOf(error.errors[0])
  return String(code ?? message ?? error).slice(0, 200)
}

/** As text that JSON, the database and a terminal take. */
function printable(bytes: Buffer): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is replaced
  return bytes.toString('utf8').replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '\ufffd')
}
