/**
 * Claim: whatever comes in over HTTP gets exactly one answer, with X-Request-ID, errors in the envelope, and counted;
 * keys, roles and signatures are as the contract says; the OpenAPI document describes what is served. Tried over real
 * sockets against the real server on a free port; routes that misbehave are added for it. The database of these tests
 * is a port where nobody listens: what needs it must say UNAVAILABLE, quickly.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { appendFileSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import * as z from 'zod'
import { type ApiKey, parseApiKeys } from '../../config/api-keys.ts'
import { HTTP_ERRORS, HttpError } from '../../errors/errors.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { connect } from '../database/connect.ts'
import { createLog } from '../log.ts'
import { Tickets } from '../push/tickets.ts'
import { type Admin, createAdmin } from './admin.ts'
import { signatureOf } from './authenticate.ts'
import { defineRoute } from './route.ts'
import { ticketRoutes } from './routes/tickets.ts'
import { zError } from './shapes.ts'

const { keys } = parseApiKeys(
  'view:viewer-secret:viewer,op:operator-secret:operator,root:admin-secret:admin,sign:signing-secret:admin:default:hmac',
)
const log = createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'main' })
const sql = connect('postgres://nobody:x@127.0.0.1:9/none', { max: 2 })
const observed: string[] = []
let reasons: string[] = []
let nowMs = Date.now()
let admin: Admin
let base = ''
let handled = 0

const routes = [
  defineRoute({
    method: 'POST',
    path: '/api/v1/echo/{word}',
    role: 'operator',
    summary: 'Says it again',
    params: z.strictObject({ word: z.string() }),
    query: z.strictObject({ times: z.string().optional() }),
    body: z.strictObject({ text: z.string() }),
    response: z.object({ word: z.string(), text: z.string(), key: z.string() }),
    handle: ({ params, body, key }) => {
      handled++
      return { word: params.word, text: body.text, key: key.id }
    },
  }),
  defineRoute({
    method: 'POST',
    path: '/ponders',
    role: 'public',
    summary: 'Takes its time for a body that came quickly',
    body: z.strictObject({}),
    response: z.object({}),
    handle: async () => {
      await sleep(300)
      return {}
    },
  }),
  defineRoute({
    method: 'GET',
    path: '/throws',
    role: 'public',
    summary: 'Throws at once',
    handle: () => {
      throw new Error('a detail nobody outside may read')
    },
  }),
  defineRoute({
    method: 'GET',
    path: '/rejects',
    role: 'public',
    summary: 'Throws later',
    handle: async () => {
      await sleep(60)
      throw new HttpError('CONFLICT', 'no', { why: 'test' })
    },
  }),
  defineRoute({
    method: 'GET',
    path: '/api/v1/hangs',
    role: 'viewer',
    summary: 'Waits for a database that stands still',
    handle: () => new Promise<never>(() => {}),
  }),
  defineRoute({
    method: 'GET',
    path: '/slow',
    role: 'public',
    summary: 'Takes longer than it may',
    handle: async () => {
      await sleep(600)
      throw new Error('said after the answer')
    },
  }),
]

const make = (
  apiKeys: readonly ApiKey[],
  isDatabaseHere?: () => boolean,
  nonceDirectory = temporaryDirectory(),
  bodyMsMax = 6_000,
) =>
  createAdmin({
    bodyMsMax,
    nonceDirectory,
    config: { httpHost: '127.0.0.1', httpPort: 0, requestTimeoutMs: 400 },
    log,
    sql,
    apiKeys,
    readiness: () => reasons,
    presenceOf: () => undefined,
    protocolOf: () => undefined,
    renderMetrics: async () => '# TYPE pilegate_up gauge\npilegate_up 1\n',
    observeRequest: (route, status) => observed.push(`${route} ${status}`),
    now: () => nowMs,
    moreRoutes: [...routes, ...ticketRoutes({ tickets: new Tickets(() => nowMs) })],
    ...(isDatabaseHere === undefined ? {} : { isDatabaseHere }),
  })

before(async () => {
  admin = make(keys)
  await admin.listen()
  base = `http://127.0.0.1:${admin.port}`
})
after(async () => {
  await admin.close()
  await sql.end({ timeout: 1 })
})

const bearer = (secret: string) => ({ Authorization: `Bearer ${secret}` })
async function expectError(response: Response, code: keyof typeof HTTP_ERRORS) {
  const { error } = zError.parse(await response.json())
  assert.equal(error.code, code, error.message)
  assert.equal(response.status, HTTP_ERRORS[code])
  assert.equal(response.headers.get('x-request-id'), error.request_id)
  assert.match(response.headers.get('content-type') ?? '', /application\/json/)
  return error
}

describe('public routes', () => {
  test('listening on port 0 tells the real port', () => assert.ok(admin.port > 0))

  test('alive, and ready when nothing is in the way', async () => {
    const health = await fetch(`${base}/healthz`)
    assert.equal(health.status, 200)
    assert.deepEqual(await health.json(), { status: 'alive' })
    const ready = await fetch(`${base}/readyz?verbose=1`)
    assert.equal(ready.status, 200)
  })

  test('not ready says why', async () => {
    reasons = ['database: away', 'listener: down']
    const error = await expectError(await fetch(`${base}/readyz`), 'UNAVAILABLE')
    assert.deepEqual(error.details['reasons'], reasons)
    assert.equal((await fetch(`${base}/healthz`)).status, 200)
    reasons = []
  })

  test('metrics and the page for people', async () => {
    const metrics = await fetch(`${base}/metrics`)
    assert.match(metrics.headers.get('content-type') ?? '', /text\/plain; version=0\.0\.4/)
    assert.match(await metrics.text(), /pilegate_up 1/)
    const page = await fetch(`${base}/`)
    assert.match(page.headers.get('content-type') ?? '', /text\/html/)
    assert.match(await page.text(), /openapi\.json/)
  })

  test('HEAD has the length and no body', async () => {
    const head = await fetch(`${base}/healthz`, { method: 'HEAD' })
    assert.equal(head.status, 200)
    assert.equal(head.headers.get('content-length'), '18')
    assert.equal(await head.text(), '')
  })

  test('every route is described, every reference leads somewhere', async () => {
    const text = await (await fetch(`${base}/openapi.json`)).text()
    const document = JSON.parse(text) as {
      openapi: string
      paths: Record<string, Record<string, { parameters: { name: string; in: string; schema: object }[] }>>
      components: { schemas: Record<string, object> }
    }
    assert.equal(document.openapi, '3.1.0')
    for (const path of ['/healthz', '/api/v1/devices/{device_id}', '/api/v1/orders', '/api/v1/cards/{card_id}'])
      assert.ok(document.paths[path], path)
    assert.ok(document.paths['/api/v1/devices/{device_id}']!['put'])
    for (const [, name] of text.matchAll(/"\$ref":"#\/components\/schemas\/([^"]+)"/g))
      assert.ok(document.components.schemas[name!], name)
    for (const { name, schema } of document.paths['/api/v1/orders']!['get']!.parameters)
      assert.ok(Object.keys(schema).length > 0, name)
    const limit = document.paths['/api/v1/orders']!['get']!.parameters.find(({ name }) => name === 'limit')
    assert.deepEqual(limit?.schema, { type: 'integer', minimum: 1, maximum: 500, default: 50 })
    const named = document.paths['/api/v1/orders']!['get']!.parameters.map(({ name }) => name)
    assert.deepEqual(named, ['limit', 'cursor', 'device_id', 'state', 'from', 'to'])
  })

  test('the document says what is answered: an upgrade, an object, and a parameter given twice', async () => {
    interface Responses {
      readonly responses: Record<string, { content?: Record<string, { schema: { type?: string } }> }>
    }
    const document = (await (await fetch(`${base}/openapi.json`)).json()) as {
      paths: Record<string, Record<string, Responses>>
    }
    const { responses } = document.paths['/ws']!['get']!
    assert.deepEqual(
      Object.keys(responses).filter((status) => Number(status) < 400),
      ['101'],
    )
    const ofDocument = document.paths['/openapi.json']!['get']!.responses['200']!
    assert.equal(ofDocument.content?.['application/json']?.schema.type, 'object')
    for (const [path, methods] of Object.entries(document.paths))
      for (const [method, operation] of Object.entries(methods))
        assert.ok(operation.responses['400'], `${method} ${path}`)
    for (const path of ['/healthz', '/readyz', '/metrics', '/openapi.json', '/', '/api/v1/me'])
      await expectError(await fetch(`${base}${path}?a=1&a=2`, { headers: bearer('viewer-secret') }), 'INVALID_ARGUMENT')
  })
})

/** Sends as given, and takes what comes until the other side ends the connection. */
async function exchange(port: number, ...parts: readonly (string | number)[]) {
  const startedMs = performance.now()
  const socket = net.connect(port, '127.0.0.1')
  let text = ''
  let answeredMs = Number.NaN
  socket.setEncoding('latin1').on('data', (piece: string) => {
    if (text === '') answeredMs = performance.now() - startedMs
    text += piece
  })
  const ended = once(socket, 'close')
  await once(socket, 'connect')
  for (const part of parts)
    if (typeof part === 'number') await sleep(part)
    else if (!socket.destroyed) socket.write(part, 'latin1')
  await ended
  const [head = '', body = ''] = text.split('\r\n\r\n')
  return { status: Number(head.split(' ')[1]), head, body, answeredMs }
}

describe('bodies that do not come', () => {
  const head = (path: string, bytes: number) =>
    `POST ${path} HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\nAuthorization: Bearer operator-secret\r\nContent-Length: ${bytes}\r\n\r\n`
  let quick: Admin
  before(async () => {
    quick = make(keys, undefined, temporaryDirectory(), 200)
    await quick.listen()
  })
  after(() => quick.close())

  test('one that stalls, trickles or never begins is TIMEOUT in time, and the connection ends', async () => {
    for (const parts of [
      [head('/api/v1/echo/a', 99), '{"text"'],
      [head('/api/v1/echo/a', 99)],
      [head('/api/v1/echo/a', 99), ...Array.from({ length: 8 }, () => ['x', 40]).flat()],
    ]) {
      const { status, head: answer, body, answeredMs } = await exchange(quick.port, ...parts)
      const { error } = zError.parse(JSON.parse(body))
      assert.deepEqual([status, error.code, error.request_id], [504, 'TIMEOUT', 'mine'])
      assert.match(error.message, /the body did not arrive within 200 ms/)
      assert.match(answer, /x-request-id: mine/i)
      assert.ok(answeredMs >= 190 && answeredMs < 350, `${answeredMs} ms`)
    }
  })

  test('the time of the body is not the time of the work', async () => {
    const response = await fetch(`http://127.0.0.1:${quick.port}/ponders`, { method: 'POST', body: '{}' })
    assert.equal(response.status, 200)
  })

  test('a request that may take less ends a body’s time sooner', async () => {
    const { status, body, answeredMs } = await exchange(admin.port, head('/api/v1/echo/a', 99), '{"text"')
    assert.deepEqual([status, zError.parse(JSON.parse(body)).error.code], [504, 'TIMEOUT'])
    assert.ok(answeredMs >= 390 && answeredMs < 550, `${answeredMs} ms`)
  })

  test('one that is said to be too long is refused before it is sent, and while it is', async () => {
    const socket = net.connect(admin.port, '127.0.0.1')
    socket.write(head('/api/v1/echo/a', 1_048_577))
    const startedMs = performance.now()
    const [answer] = (await once(socket, 'data')) as [Buffer]
    assert.ok(performance.now() - startedMs < 150, `${performance.now() - startedMs} ms`)
    const [lines = '', body = ''] = answer.toString('latin1').split('\r\n\r\n')
    assert.match(lines, /^HTTP\/1\.1 413 [\s\S]*\r\nConnection: close/)
    assert.deepEqual(zError.parse(JSON.parse(body)).error.details, { bytes_max: 1_048_576 })
    socket.destroy()
    for (let n = 0; n < 10; n++) {
      const body = new Uint8Array(8 * 1_048_576)
      const response = await fetch(`${base}/api/v1/echo/a`, {
        method: 'POST',
        body,
        headers: bearer('operator-secret'),
      })
      await expectError(response, 'PAYLOAD_TOO_LARGE')
    }
  })
})

describe('one answer, whatever happens', () => {
  test('no such path, no such method, odd escapes', async () => {
    for (const [method, path] of [
      ['GET', '/nowhere'],
      ['DELETE', '/healthz'],
      ['PATCH', '/api/v1/orders'],
      ['GET', '/api/v1/devices/%E0%A4%A'],
    ] as const)
      await expectError(await fetch(base + path, { method }), 'NOT_FOUND')
  })

  test('a route that throws tells the caller nothing of it', async () => {
    const error = await expectError(await fetch(`${base}/throws`), 'INTERNAL_ERROR')
    assert.doesNotMatch(JSON.stringify(error), /nobody outside/)
    const later = await expectError(await fetch(`${base}/rejects`), 'CONFLICT')
    assert.deepEqual(later.details, { why: 'test' })
  })

  test('a route that takes too long', async () => {
    const startedMs = performance.now()
    await expectError(await fetch(`${base}/slow`), 'TIMEOUT')
    assert.ok(performance.now() - startedMs < 590)
    // its own late failure must not surface
    await sleep(250)
    assert.equal((await fetch(`${base}/healthz`)).status, 200)
  })

  test('a caller that leaves before the answer', async () => {
    for (let i = 0; i < 20; i++) {
      const socket = net.connect(admin.port, '127.0.0.1')
      await once(socket, 'connect')
      socket.write('GET /rejects HTTP/1.1\r\nHost: x\r\n\r\n')
      await sleep(1)
      socket.destroy()
    }
    await sleep(90)
    assert.equal((await fetch(`${base}/healthz`)).status, 200)
  })

  test('a caller that leaves within its body', async () => {
    const socket = net.connect(admin.port, '127.0.0.1')
    await once(socket, 'connect')
    socket.write(
      'POST /api/v1/echo/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator-secret\r\nContent-Length: 99\r\n\r\n{"text"',
    )
    await sleep(20)
    socket.destroy()
    await sleep(20)
    assert.equal((await fetch(`${base}/healthz`)).status, 200)
  })

  test('the caller’s request id comes back if it is sane, else a new one', async () => {
    const idOf = async (id: string) =>
      (await fetch(`${base}/healthz`, { headers: { 'X-Request-ID': id } })).headers.get('x-request-id')
    assert.equal(await idOf('abc-123'), 'abc-123')
    assert.equal(await idOf('x'.repeat(128)), 'x'.repeat(128))
    assert.match((await idOf('x'.repeat(129)))!, /^[0-9a-f-]{36}$/)
    assert.match((await idOf('two words'))!, /^[0-9a-f-]{36}$/)
  })

  test('headers of 10,000 bytes are served, in one piece and in many; what the library answers itself is as documented', async () => {
    const long = 'x'.repeat(10_000)
    const response = await fetch(`${base}/healthz`, { headers: { 'X-Request-ID': 'long-one', 'X-Long': long } })
    assert.deepEqual([response.status, response.headers.get('x-request-id')], [200, 'long-one'])
    const start = 'GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: pieces\r\nX-Long: '
    const pieces = await exchange(admin.port, start, 10, long.slice(0, 6_000), 10, `${long.slice(6_000)}\r\n\r\n`)
    assert.deepEqual([pieces.status, zError.parse(JSON.parse(pieces.body)).error.request_id], [404, 'pieces'])
    for (const [status, text] of [
      [431, `GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ${'x'.repeat(17_000)}\r\n\r\n`],
      [505, 'GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n'],
      [400, 'POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n'],
    ] as const) {
      const answer = await exchange(admin.port, text)
      assert.equal(answer.status, status)
      assert.doesNotMatch(answer.body, /request_id/)
    }
  })

  test('requests are counted under their pattern', async () => {
    observed.length = 0
    await fetch(`${base}/nowhere/at/all`)
    await fetch(`${base}/api/v1/devices/04ab373b`)
    await fetch(`${base}/healthz`)
    assert.deepEqual(observed, ['unmatched 404', '/api/v1/devices/{device_id} 401', '/healthz 200'])
  })
})

describe('input', () => {
  const post = (path: string, body: string | Uint8Array<ArrayBuffer>) =>
    fetch(base + path, { method: 'POST', body, headers: bearer('operator-secret') })

  test('parameters, query and body reach the route', async () => {
    const response = await post('/api/v1/echo/a%20b?times=2', JSON.stringify({ text: 'é'.repeat(40_000) }))
    assert.deepEqual(await response.json(), { word: 'a b', text: 'é'.repeat(40_000), key: 'op' })
  })

  test('what is wrong is named', async () => {
    const error = await expectError(await post('/api/v1/echo/a?tims=2', '{"text":"x"}'), 'INVALID_ARGUMENT')
    assert.match(error.message, /query: .*tims/)
    assert.match(
      (await expectError(await post('/api/v1/echo/a', '{"text":1}'), 'INVALID_ARGUMENT')).message,
      /body\.text/,
    )
    await expectError(await post('/api/v1/echo/a', '{"text":'), 'INVALID_ARGUMENT')
    await expectError(await post('/api/v1/echo/a', ''), 'INVALID_ARGUMENT')
    await expectError(await post('/api/v1/echo/a', new Uint8Array([0x22, 0xff, 0x22])), 'INVALID_ARGUMENT')
    await expectError(await post('/api/v1/echo/a?times=1&times=2', '{"text":"x"}'), 'INVALID_ARGUMENT')
  })

  test('a body of more than 1 MiB, with and without its length said', async () => {
    const large = JSON.stringify({ text: 'x'.repeat(1_048_576) })
    await expectError(await post('/api/v1/echo/a', large), 'PAYLOAD_TOO_LARGE')
    const stream = new ReadableStream({
      start(controller) {
        for (let i = 0; i < 20; i++) controller.enqueue(new Uint8Array(65_536))
        controller.close()
      },
    })
    const init = { method: 'POST', body: stream, headers: bearer('operator-secret'), duplex: 'half' }
    await expectError(await fetch(`${base}/api/v1/echo/a`, init as RequestInit), 'PAYLOAD_TOO_LARGE')
  })

  test('lists refuse limits and cursors that are none', async () => {
    const get = (path: string) => fetch(base + path, { headers: bearer('viewer-secret') })
    for (const query of [
      'limit=0',
      'limit=501',
      'limit=ten',
      'cursor=abc',
      'from=yesterday',
      'state=eaten',
      'colour=red',
    ])
      await expectError(await get(`/api/v1/orders?${query}`), 'INVALID_ARGUMENT')
    const ofAnotherList = Buffer.from('["cards","01"]').toString('base64url')
    await expectError(await get(`/api/v1/devices?cursor=${ofAnotherList}`), 'INVALID_ARGUMENT')
  })
})

describe('keys', () => {
  const get = (path: string, headers: Record<string, string>) => fetch(base + path, { headers })

  test('nobody, somebody unknown, somebody misspelt', async () => {
    const response = await get('/api/v1/orders', {})
    assert.equal(response.headers.get('www-authenticate'), 'Bearer')
    await expectError(response, 'UNAUTHENTICATED')
    await expectError(await get('/api/v1/orders', bearer('wrong')), 'UNAUTHENTICATED')
    await expectError(await get('/api/v1/orders', { Authorization: 'Basic viewer-secret' }), 'UNAUTHENTICATED')
  })

  test('each role may what the ones below it may', async () => {
    const echo = (secret: string) =>
      fetch(`${base}/api/v1/echo/a`, { method: 'POST', body: '{"text":"x"}', headers: bearer(secret) })
    await expectError(await echo('viewer-secret'), 'FORBIDDEN')
    assert.equal((await echo('operator-secret')).status, 200)
    assert.equal((await echo('admin-secret')).status, 200)
    await expectError(await get('/api/v1/quarantine', bearer('operator-secret')), 'FORBIDDEN')
  })

  test('a key for signatures is refused as a bearer', async () => {
    const { message } = await expectError(await get('/api/v1/orders', bearer('signing-secret')), 'UNAUTHENTICATED')
    assert.match(message, /signatures only/)
  })

  let nonces = 0
  function signed(
    changes: Partial<Record<'id' | 'target' | 'timestamp' | 'nonce' | 'body' | 'method' | 'secret', string>> = {},
  ) {
    const timestamp = changes.timestamp ?? String(Math.floor(nowMs / 1000))
    const nonce = changes.nonce ?? `n${++nonces}`
    return {
      'X-Api-Key': changes.id ?? 'sign',
      'X-Timestamp': timestamp,
      'X-Nonce': nonce,
      'X-Signature': signatureOf(changes.secret ?? 'signing-secret', {
        method: changes.method ?? 'POST',
        target: changes.target ?? '/api/v1/echo/a%20b?times=2',
        timestamp,
        nonce,
        body: changes.body ?? '{"text":"x"}',
      }),
    }
  }
  const send = (headers: Record<string, string>) =>
    fetch(`${base}/api/v1/echo/a%20b?times=2`, { method: 'POST', body: '{"text":"x"}', headers })

  test('the signature of the contract, computed by hand', () => {
    const request = { method: 'GET', target: '/api/v1/orders?limit=1', timestamp: '1700000000', nonce: 'n', body: '' }
    // openssl: printf 'GET\n/api/v1/orders?limit=1\n1700000000\nn\n<sha256 of nothing>' | openssl dgst -sha256 -hmac k
    assert.equal(signatureOf('k', request), 'cd64db472bd3e5d5380e157dff1fdcf27df660b99b8493b0e4ccf62bc012de82')
  })

  test('a signed request is served, once', async () => {
    const headers = signed()
    const response = await send(headers)
    assert.deepEqual(await response.json(), { word: 'a b', text: 'x', key: 'sign' })
    assert.match((await expectError(await send(headers), 'UNAUTHENTICATED')).message, /nonce/)
  })

  test('a request without a body is signed over an empty one', async () => {
    const headers = signed({ method: 'GET', target: '/api/v1/orders?limit=0', body: '' })
    await expectError(await get('/api/v1/orders?limit=0', headers), 'INVALID_ARGUMENT')
  })

  test('an ordinary key may sign as well', async () => {
    assert.equal((await send(signed({ id: 'root', secret: 'admin-secret' }))).status, 200)
  })

  test('whatever is changed breaks it, and the route is not reached', async () => {
    const before = handled
    for (const changes of [
      { id: 'nobody' },
      { id: 'root' },
      { secret: 'wrong' },
      { method: 'PUT' },
      { target: '/api/v1/echo/a%20b' },
      { body: '{"text":"y"}' },
    ])
      assert.match((await expectError(await send(signed(changes)), 'UNAUTHENTICATED')).message, /does not fit/)
    const { 'X-Nonce': _, ...incomplete } = signed()
    await expectError(await send(incomplete), 'UNAUTHENTICATED')
    await expectError(await send({ ...signed(), 'X-Signature': 'A'.repeat(64) }), 'UNAUTHENTICATED')
    assert.equal(handled, before)
  })

  test('a wrong signature does not use up the nonce', async () => {
    await expectError(await send(signed({ nonce: 'once', secret: 'wrong' })), 'UNAUTHENTICATED')
    assert.equal((await send(signed({ nonce: 'once' }))).status, 200)
  })

  test('a nonce works once over starts and kills, also one that came last; and only as long as it could be sent again', async () => {
    const directory = temporaryDirectory()
    const started = async () => {
      const one = make(keys, undefined, directory)
      await one.listen()
      return one
    }
    const ask = (one: Admin, headers: Record<string, string>) =>
      fetch(`http://127.0.0.1:${one.port}/api/v1/echo/a%20b?times=2`, {
        method: 'POST',
        body: '{"text":"x"}',
        headers,
      })
    const first = await started()
    const used = signed({ nonce: 'before' })
    assert.equal((await ask(first, used)).status, 200)
    // nothing is closed: as after a kill, which cut the last line short
    appendFileSync(join(directory, 'current'), 'sign cut-sh')
    const second = await started()
    await first.close()
    const { message } = await expectError(await ask(second, used), 'UNAUTHENTICATED')
    assert.match(message, /used before/)
    assert.equal((await ask(second, signed({ nonce: 'since' }))).status, 200)
    await second.close()

    const startMs = nowMs
    for (const [laterMs, known] of [
      [601_000, ['before', 'since', 'later']],
      [1_202_000, ['later']],
      [2_500_000, []],
    ] as const) {
      nowMs = startMs + laterMs
      const one = await started()
      for (const nonce of laterMs === 601_000 ? ['later'] : [])
        assert.equal((await ask(one, signed({ nonce }))).status, 200)
      for (const nonce of known) await expectError(await ask(one, signed({ nonce })), 'UNAUTHENTICATED')
      assert.equal((await ask(one, signed({ nonce: `of ${laterMs}`.replace(' ', '-') }))).status, 200)
      await one.close()
    }
    nowMs = startMs
  })

  test('a nonce that cannot be stored is not served', async () => {
    const directory = temporaryDirectory()
    const one = make(keys, undefined, directory)
    await one.listen()
    // the next generation cannot begin
    rmSync(directory, { recursive: true })
    writeFileSync(directory, 'no directory')
    const startMs = nowMs
    nowMs += 601_000
    const url = `http://127.0.0.1:${one.port}/api/v1/echo/a%20b?times=2`
    const response = await fetch(url, { method: 'POST', body: '{"text":"x"}', headers: signed({}) })
    await expectError(response, 'UNAVAILABLE')
    // the cause is gone: it goes on by itself
    rmSync(directory)
    assert.equal((await fetch(url, { method: 'POST', body: '{"text":"x"}', headers: signed({}) })).status, 200)
    nowMs = startMs
    await one.close()
  })

  test('five minutes either way, and a nonce stays known for that long', async () => {
    const at = (offsetS: number) => String(Math.floor(nowMs / 1000) + offsetS)
    assert.equal((await send(signed({ timestamp: at(-299) }))).status, 200)
    const ahead = signed({ timestamp: at(299) })
    assert.equal((await send(ahead)).status, 200)
    for (const offsetS of [-302, 302, -86_400])
      assert.match(
        (await expectError(await send(signed({ timestamp: at(offsetS) })), 'UNAUTHENTICATED')).message,
        /X-Timestamp/,
      )
    await expectError(await send(signed({ timestamp: '1e9' })), 'UNAUTHENTICATED')
    // the one from ahead is acceptable by its time for ten minutes
    nowMs += 590_000
    assert.match((await expectError(await send(ahead), 'UNAUTHENTICATED')).message, /nonce/)
    nowMs += 590_000
    assert.match((await expectError(await send(ahead), 'UNAUTHENTICATED')).message, /X-Timestamp/)
  })
})

describe('the database is away', () => {
  test('what needs it says so at once, the rest goes on', async () => {
    for (const path of ['/api/v1/devices', '/api/v1/devices/04ab373b', '/api/v1/orders', '/api/v1/cards']) {
      const startedMs = performance.now()
      const response = await fetch(base + path, { headers: bearer('viewer-secret') })
      await expectError(response, 'UNAVAILABLE')
      assert.ok(performance.now() - startedMs < 350, path)
    }
    assert.equal((await fetch(`${base}/metrics`)).status, 200)
  })

  test('it is not even asked when it is known to be away', async () => {
    const other = make(keys, () => false)
    await other.listen()
    const response = await fetch(`http://127.0.0.1:${other.port}/api/v1/orders`, { headers: bearer('viewer-secret') })
    const { details } = await expectError(response, 'UNAVAILABLE')
    assert.deepEqual(details, {})
    // these are answered from memory
    const ask = async (method: string, path: string) =>
      (await fetch(`http://127.0.0.1:${other.port}/api/v1${path}`, { method, headers: bearer('viewer-secret') })).status
    assert.deepEqual(
      [await ask('GET', '/me'), await ask('GET', '/model-profiles'), await ask('POST', '/ws-tickets')],
      [200, 200, 201],
    )
    await other.close()
  })

  test('requests that wait when it is found to be away do not wait until their time is over', async () => {
    let isHere = true
    const other = make(keys, () => isHere)
    await other.listen()
    const hang = () => fetch(`http://127.0.0.1:${other.port}/api/v1/hangs`, { headers: bearer('viewer-secret') })
    const waiting = [hang(), hang()]
    await sleep(50)
    const startedMs = performance.now()
    isHere = false
    for (const response of await Promise.all(waiting)) await expectError(response, 'UNAVAILABLE')
    assert.ok(performance.now() - startedMs < 300, `${performance.now() - startedMs} ms`)
    // it is back: the next ones have all their time again
    isHere = true
    await expectError(await hang(), 'TIMEOUT')
    await other.close()
  })
})

describe('listening and closing', () => {
  test('a port that somebody has is refused', async () => {
    const other = createAdmin({
      nonceDirectory: temporaryDirectory(),
      config: { httpHost: '127.0.0.1', httpPort: admin.port, requestTimeoutMs: 400 },
      log,
      sql,
      apiKeys: keys,
      readiness: () => [],
      presenceOf: () => undefined,
      protocolOf: () => undefined,
      renderMetrics: async () => '',
      observeRequest: () => {},
      now: Date.now,
    })
    await assert.rejects(other.listen(), { code: 'GW_LISTEN_FAILED' })
    await other.close()
  })

  test('a request under way is answered before the server closes, then nobody is served', async () => {
    const other = make(keys)
    await other.listen()
    const url = `http://127.0.0.1:${other.port}`
    const response = fetch(`${url}/rejects`)
    await sleep(30)
    await other.close()
    assert.equal((await response).status, 409)
    await assert.rejects(fetch(`${url}/healthz`))
  })
})
