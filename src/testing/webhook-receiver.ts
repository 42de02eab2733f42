/**
 * A webhook receiver as its owner would write it: checks both signatures on its own account, refuses a nonce it has seen,
 * and lets each event have its effect once. What it answers is decided per request, so that it can play every fault.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import { createServer as createHttp, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import { createServer as createHttps } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { EventObject } from '../events/event-object.ts'

export interface Received {
  readonly event: EventObject
  readonly headers: IncomingMessage['headers']
  readonly target: string
  readonly body: string
  readonly atMonoMs: number
  /** Which of the secrets proved it, by convention; undefined: none did. */
  readonly own: string | undefined
  readonly standard: readonly string[]
}

/** Answers one request; a number is a status. Nothing: it is answered some other way, or never. */
export type Behaviour = (received: Received, response: ServerResponse) => number | undefined

export interface Receiver {
  readonly url: string
  readonly port: number
  /** Every request, in the order of arrival. */
  readonly received: readonly Received[]
  /** Events whose request was answered with 2xx, first time only: what happened on the receiver's side. */
  readonly effects: readonly EventObject[]
  readonly nonces: ReadonlySet<string>
  behave: Behaviour
  close(): Promise<void>
}

export interface ReceiverOptions {
  readonly secrets?: () => readonly string[]
  readonly behave?: Behaviour
  readonly path?: string
  readonly port?: number
  readonly tls?: { readonly key: string; readonly cert: string }
}

export async function openReceiver(options: ReceiverOptions = {}): Promise<Receiver> {
  const { secrets = () => [], path = '/hook', tls } = options
  const received: Received[] = []
  const effects: EventObject[] = []
  const nonces = new Set<string>()
  const known = new Set<string>()
  const listener: RequestListener = (request, response) => {
    const chunks: Buffer[] = []
    request.on('error', () => {})
    response.on('error', () => {})
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const body = Buffer.concat(chunks).toString('utf8')
      const { headers, url: target = '' } = request
      const one: Received = {
        event: JSON.parse(body) as EventObject,
        headers,
        target,
        body,
        atMonoMs: performance.now(),
        own: secrets().find((secret) => isOwn(secret, request, body)),
        standard: secrets().filter((secret) => isStandard(secret, request, body)),
      }
      received.push(one)
      nonces.add(String(headers['x-nonce']))
      const status = receiver.behave(one, response)
      if (status === undefined) return
      // the effect is there before the answer leaves: whoever dies in between hears of it a second time
      if (status >= 200 && status < 300 && !known.has(one.event.event_id)) {
        known.add(one.event.event_id)
        effects.push(one.event)
      }
      response.writeHead(status).end(status === 200 ? 'thanks' : `no: ${status}`)
    })
  }
  const server = tls === undefined ? createHttp(listener) : createHttps(tls, listener)
  await new Promise<void>((resolve) => server.listen(options.port ?? 0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const receiver: Receiver = {
    url: `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${port}${path}`,
    port,
    received,
    effects,
    nonces,
    behave: options.behave ?? (() => 200),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return receiver
}

const equal = (a: string, b: string) => a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))

function isOwn(secret: string, { headers, url }: IncomingMessage, body: string): boolean {
  const digest = createHash('sha256').update(body).digest('hex')
  const text = `POST\n${url}\n${headers['x-timestamp']}\n${headers['x-nonce']}\n${digest}`
  return equal(createHmac('sha256', secret).update(text).digest('hex'), String(headers['x-signature']))
}

function isStandard(secret: string, { headers }: IncomingMessage, body: string): boolean {
  const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64')
  const text = `${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`
  const wanted = `v1,${createHmac('sha256', key).update(text).digest('base64')}`
  return String(headers['webhook-signature'])
    .split(' ')
    .some((signature) => equal(signature, wanted))
}
