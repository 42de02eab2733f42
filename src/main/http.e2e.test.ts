/**
 * Claims: HTTP keeps its contract on the running gateway: one envelope for every error, X-Request-ID on every answer, roles,
 * tenants that see nothing of each other, signatures that work once, lists whose cursors walk everything once, and an
 * OpenAPI document that names every route it serves.
 *
 * Tried over real HTTP with keys of two tenants and all roles; signatures are made by the test from the contract's words.
 */
import assert from 'node:assert/strict'
import { createHash, createHmac, randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { closeClients, DeviceClient, dny, le, settlementData } from '../testing/device-client.ts'
import { eventually, GatewayProcess, type HttpReply } from '../testing/gateway-process.ts'

const API_KEYS = [
  'root:root-secret:admin',
  'viewer:viewer-secret:viewer',
  'operator:operator-secret:operator',
  'other:other-secret:admin:other',
  'signer:signer-secret:admin:default:hmac',
].join(',')
const root = { secret: 'root-secret' }
const other = { secret: 'other-secret' }
const viewer = { secret: 'viewer-secret' }
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

let gateway: GatewayProcess
before(async () => {
  gateway = await GatewayProcess.start({ env: { API_KEYS, STATE_FLUSH_MS: '50' } })
})
after(async () => {
  closeClients()
  await gateway.remove()
})

function isError(reply: HttpReply, status: number, code: string): void {
  assert.equal(reply.status, status, reply.text)
  const { error, ...rest } = reply.json
  assert.deepEqual(rest, {})
  assert.deepEqual(Object.keys(error).sort(), ['code', 'details', 'message', 'request_id'])
  assert.equal(error.code, code)
  assert.ok(error.message.length > 0)
  assert.equal(error.request_id, reply.headers['x-request-id'])
  assert.equal(typeof error.details, 'object')
  assert.match(String(reply.headers['content-type']), /^application\/json/)
}

test('every error has the one envelope', async () => {
  isError(await gateway.ask('GET', '/api/v1/orders?limit=0', root), 400, 'INVALID_ARGUMENT')
  isError(await gateway.ask('GET', '/api/v1/orders?limit=501', root), 400, 'INVALID_ARGUMENT')
  isError(await gateway.ask('GET', '/api/v1/orders?cursor=nonsense', root), 400, 'INVALID_ARGUMENT')
  isError(await gateway.ask('GET', '/api/v1/orders?state=unheard', root), 400, 'INVALID_ARGUMENT')
  isError(await gateway.ask('GET', '/api/v1/devices/NOT-AN-ID', root), 400, 'INVALID_ARGUMENT')
  isError(
    await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { ...root, body: Buffer.from('{"half') }),
    400,
    'INVALID_ARGUMENT',
  )
  isError(
    await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { ...root, body: { unknown_field: 1 } }),
    400,
    'INVALID_ARGUMENT',
  )
  isError(
    await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { ...root, body: { balance_fen: 1.5 } }),
    400,
    'INVALID_ARGUMENT',
  )
  isError(await gateway.ask('GET', '/api/v1/devices', { secret: null }), 401, 'UNAUTHENTICATED')
  isError(await gateway.ask('GET', '/api/v1/devices', { secret: 'wrong' }), 401, 'UNAUTHENTICATED')
  isError(await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { ...viewer, body: {} }), 403, 'FORBIDDEN')
  isError(await gateway.ask('GET', '/api/v1/devices/04999999', root), 404, 'NOT_FOUND')
  isError(await gateway.ask('GET', '/api/v1/nothing', root), 404, 'NOT_FOUND')
  isError(await gateway.ask('GET', '/nothing', { secret: null }), 404, 'NOT_FOUND')
  isError(await gateway.ask('DELETE', '/api/v1/devices', root), 404, 'NOT_FOUND')
  const giant = { holder: 'x'.repeat(2_000_000) }
  isError(await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { ...root, body: giant }), 413, 'PAYLOAD_TOO_LARGE')
  const deep = Buffer.from(`{"holder":${'['.repeat(50_000)}${']'.repeat(50_000)}}`)
  isError(await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { ...root, body: deep }), 400, 'INVALID_ARGUMENT')
})

test('a body that nests deeper than any route takes is the caller’s mistake', async () => {
  const nested = (depth: number) => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`
  const device = '/api/v1/devices/04ceaa7f'
  for (const [path, body] of [
    [`${device}/charge`, `{"port":1,"mode":"full","tariff":${nested(2_000)}}`],
    [`${device}/commands`, `{"name":"reboot","params":${nested(5_000)}}`],
    ['/api/v1/jobs', `{"kind":"params","params":${nested(3_000)},"devices":${nested(3_000)}}`],
    ['/api/v1/webhooks', nested(100_000)],
  ] as const) {
    const reply = await gateway.ask('POST', path, { ...root, body: Buffer.from(body) })
    isError(reply, 400, 'INVALID_ARGUMENT')
    assert.match(reply.json.error.message, /at most 32 levels/)
  }
})

test('X-Request-ID: the caller’s when it is usable, else a new one; on every answer', async () => {
  for (const path of ['/healthz', '/readyz', '/metrics', '/openapi.json', '/', '/api/v1/devices', '/nothing']) {
    const given = await gateway.ask('GET', path, { ...root, headers: { 'x-request-id': 'mine-42' } })
    assert.equal(given.headers['x-request-id'], 'mine-42', path)
    const made = await gateway.ask('GET', path, root)
    assert.match(String(made.headers['x-request-id']), UUID, path)
  }
  const unusable = await gateway.ask('GET', '/healthz', { secret: null, headers: { 'x-request-id': 'x'.repeat(500) } })
  assert.match(String(unusable.headers['x-request-id']), UUID)
})

test('roles: a viewer reads, only an admin changes, sees quarantine, and registers', async () => {
  for (const path of ['/api/v1/devices', '/api/v1/orders', '/api/v1/cards'])
    for (const secret of ['viewer-secret', 'operator-secret', 'root-secret'])
      assert.equal((await gateway.ask('GET', path, { secret })).status, 200, `${secret} ${path}`)
  for (const secret of ['viewer-secret', 'operator-secret']) {
    isError(await gateway.ask('GET', '/api/v1/quarantine', { secret }), 403, 'FORBIDDEN')
    isError(await gateway.ask('PUT', '/api/v1/devices/04500001', { secret, body: {} }), 403, 'FORBIDDEN')
  }
  assert.equal((await gateway.ask('GET', '/api/v1/quarantine', root)).status, 200)
  isError(await gateway.ask('GET', '/api/v1/devices', { secret: 'signer-secret' }), 401, 'UNAUTHENTICATED')
})

test('tenants see nothing of each other: devices, orders, cards', async () => {
  const given = await gateway.ask('PUT', '/api/v1/devices/04500010', {
    ...root,
    body: { tenant: 'other', name: 'theirs' },
  })
  assert.equal(given.status, 201, given.text)
  await gateway.ask('PUT', '/api/v1/devices/04500011', { ...root, body: { name: 'ours' } })
  const client = await DeviceClient.connect(gateway.tcpPort)
  for (const [physId, name] of [
    [0x04500010, 'ORDER-OF-OTHER-1'],
    [0x04500011, 'ORDER-OF-DEFAULT'],
  ] as const)
    await client.exchange(dny(physId, 1, 0x03, settlementData({ orderHex: Buffer.from(name).toString('hex') })))

  const cases = [
    { key: root, sees: '04500011', order: 'ORDER-OF-DEFAULT', not: '04500010', notOrder: 'ORDER-OF-OTHER-1' },
    { key: other, sees: '04500010', order: 'ORDER-OF-OTHER-1', not: '04500011', notOrder: 'ORDER-OF-DEFAULT' },
  ]
  for (const { key, sees, order, not, notOrder } of cases) {
    assert.equal((await gateway.ask('GET', `/api/v1/devices/${sees}`, key)).status, 200)
    assert.equal((await gateway.ask('GET', `/api/v1/orders/${order}`, key)).status, 200)
    isError(await gateway.ask('GET', `/api/v1/devices/${not}`, key), 404, 'NOT_FOUND')
    isError(await gateway.ask('GET', `/api/v1/orders/${notOrder}`, key), 404, 'NOT_FOUND')
    const { json: orders } = await gateway.ask('GET', `/api/v1/orders?device_id=${not}`, key)
    assert.deepEqual(orders.items, [])
    const { json: devices } = await gateway.ask('GET', '/api/v1/devices?limit=500', key)
    const ids = devices.items.map((item: { device_id: string }) => item.device_id)
    assert.ok(ids.includes(sees) && !ids.includes(not), ids.join())
  }
  isError(
    await gateway.ask('PUT', '/api/v1/devices/04500011', { ...other, body: { name: 'stolen' } }),
    404,
    'NOT_FOUND',
  )
  isError(
    await gateway.ask('PUT', '/api/v1/devices/04500011', { ...other, body: { tenant: 'default' } }),
    403,
    'FORBIDDEN',
  )

  // one card number, two cards; a device asks for its own tenant's
  await gateway.ask('PUT', '/api/v1/cards/c0ffee01', { ...root, body: { balance_fen: 100 } })
  await gateway.ask('PUT', '/api/v1/cards/c0ffee01', { ...other, body: { balance_fen: 900 } })
  // port ff: a balance query, which starts nothing
  const swipe = `c0ffee0101ff${le(0, 2)}${le(1, 4)}`
  assert.equal((await client.exchange(dny(0x04500010, 9, 0x02, swipe))).dataHex, `c0ffee010000${le(900, 4)}ff`)
  assert.equal((await client.exchange(dny(0x04500011, 9, 0x02, swipe))).dataHex, `c0ffee010000${le(100, 4)}ff`)
})

test('a device that is given away takes no history along; its order stays, and so does what is told of it', async () => {
  const id = '04500020'
  const orderNo = 'MOVED-ORDER-0001'
  const wireHex = Buffer.from(orderNo).toString('hex')
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(dny(0x04500020, 1, 0x20, `${le(126, 2)}02002100`))
  await eventually(
    'registered',
    () => gateway.ask('GET', `/api/v1/devices/${id}/timeline`, root),
    ({ json }) => json.items?.some(({ kind }: { kind: string }) => kind === 'frame'),
  )
  await gateway.sql`
    insert into orders (order_no, tenant_id, device_id, protocol, socket, port, order_key, wire_hex, mode, state, origin,
      started_at)
    values (${orderNo}, 'default', ${id}, 'ap3000', 0, 1, ${wireHex}, ${wireHex}, 'full', 'charging', 'online', now())`
  assert.equal((await gateway.ask('PUT', `/api/v1/devices/${id}`, { ...root, body: { tenant: 'other' } })).status, 200)
  const seen = async (key: { secret: string }) => ({
    timeline: (await gateway.ask('GET', `/api/v1/devices/${id}/timeline`, key)).json.items,
    frames: (await gateway.ask('GET', `/api/v1/devices/${id}/frames`, key)).json.items,
  })
  assert.deepEqual(await seen(other), { timeline: [], frames: [] })
  isError(await gateway.ask('GET', `/api/v1/devices/${id}/timeline`, root), 404, 'NOT_FOUND')

  await client.exchange(dny(0x04500020, 2, 0x03, settlementData({ orderHex: wireHex })))
  const ended = async (key: { secret: string }) =>
    (await gateway.ask('GET', `/api/v1/events?type=charging.ended&device_id=${id}`, key)).json.items.map(
      ({ data }: { data: { order_no: string } }) => data.order_no,
    )
  assert.deepEqual([await ended(root), await ended(other)], [[orderNo], []])
  assert.equal((await gateway.ask('GET', `/api/v1/orders/${orderNo}`, root)).json.state, 'settled')
  isError(await gateway.ask('GET', `/api/v1/orders/${orderNo}`, other), 404, 'NOT_FOUND')
  const { timeline } = await eventually(
    'frames of its time',
    () => seen(other),
    ({ frames }) => frames.length > 0,
  )
  assert.ok(!JSON.stringify(timeline).includes(orderNo), JSON.stringify(timeline))
})

interface Signed {
  readonly id?: string
  readonly secret?: string
  readonly method?: string
  readonly target?: string
  readonly timestamp?: string
  readonly nonce?: string
  readonly body?: string
}

/** METHOD, path with query, timestamp, nonce, hex SHA-256 of the body, one per line; HMAC-SHA256 (contract 3). */
function signatureHeaders({
  id = 'signer',
  secret = 'signer-secret',
  method = 'GET',
  target = '/api/v1/devices',
  timestamp,
  nonce,
  body = '',
}: Signed) {
  const at = timestamp ?? String(Math.floor(Date.now() / 1_000))
  const once = nonce ?? randomUUID()
  const digest = createHash('sha256').update(body).digest('hex')
  const signature = createHmac('sha256', secret).update([method, target, at, once, digest].join('\n')).digest('hex')
  return { 'x-api-key': id, 'x-timestamp': at, 'x-nonce': once, 'x-signature': signature }
}

test('a signature: good, replayed, expired, of another path, query, body or secret', async () => {
  const target = '/api/v1/devices?limit=1'
  const good = signatureHeaders({ target })
  const ask = (path: string, headers: Record<string, string>) => gateway.ask('GET', path, { headers })
  assert.equal((await ask(target, good)).status, 200)
  isError(await ask(target, good), 401, 'UNAUTHENTICATED')
  const now = Math.floor(Date.now() / 1_000)
  for (const offS of [-290, 290])
    assert.equal((await ask(target, signatureHeaders({ target, timestamp: String(now + offS) }))).status, 200)
  for (const offS of [-310, 310])
    isError(await ask(target, signatureHeaders({ target, timestamp: String(now + offS) })), 401, 'UNAUTHENTICATED')
  isError(await ask('/api/v1/devices?limit=2', signatureHeaders({ target })), 401, 'UNAUTHENTICATED')
  isError(await ask('/api/v1/orders', signatureHeaders({ target: '/api/v1/devices' })), 401, 'UNAUTHENTICATED')
  isError(await ask(target, signatureHeaders({ target, secret: 'guessed' })), 401, 'UNAUTHENTICATED')
  isError(await ask(target, signatureHeaders({ target, id: 'nobody' })), 401, 'UNAUTHENTICATED')
  isError(await ask(target, { ...signatureHeaders({ target }), 'x-signature': 'short' }), 401, 'UNAUTHENTICATED')
  // any key may sign, also one that may send its secret
  assert.equal((await ask(target, signatureHeaders({ target, id: 'viewer', secret: 'viewer-secret' }))).status, 200)

  const path = '/api/v1/cards/c0ffee02'
  const text = JSON.stringify({ balance_fen: 7 })
  const put = (headers: Record<string, string>, body: string) =>
    gateway.ask('PUT', path, { headers, body: Buffer.from(body) })
  assert.equal((await put(signatureHeaders({ method: 'PUT', target: path, body: text }), text)).status, 201)
  isError(
    await put(signatureHeaders({ method: 'PUT', target: path, body: text }), text.replace('7', '9')),
    401,
    'UNAUTHENTICATED',
  )
})

test('cursors walk every list once, whatever the limit; the default is 50', async () => {
  const client = await DeviceClient.connect(gateway.tcpPort)
  const devices = 60
  const physIds = Array.from({ length: devices }, (_, index) => 0x04510000 + index)
  client.send(
    ...physIds.map((physId, index) =>
      dny(
        physId,
        1,
        0x03,
        settlementData({ orderHex: Buffer.from(`WALK-${String(index).padStart(11, '0')}`).toString('hex') }),
      ),
    ),
  )
  for (const _ of physIds) await client.next()
  for (let index = 0; index < 60; index++)
    await gateway.ask('PUT', `/api/v1/cards/dd${String(index).padStart(6, '0')}`, { ...root, body: {} })
  await Promise.all(
    Array.from({ length: 12 }, async () => {
      const stranger = await DeviceClient.connect(gateway.tcpPort)
      stranger.send('ff'.repeat(200))
      await stranger.closedWithin(3_000)
    }),
  )
  await eventually(
    'evidence',
    () => gateway.ask('GET', '/api/v1/quarantine', root),
    ({ json }) => json.items.length >= 12,
  )

  for (const [path, idOf] of [
    ['/api/v1/devices', (item: Record<string, unknown>) => item['device_id']],
    ['/api/v1/orders', (item: Record<string, unknown>) => item['order_no']],
    ['/api/v1/orders?from=2020-01-01T00:00:00Z', (item: Record<string, unknown>) => item['order_no']],
    ['/api/v1/cards', (item: Record<string, unknown>) => item['card_id']],
    ['/api/v1/quarantine', (item: Record<string, unknown>) => item['id']],
  ] as const) {
    const and = path.includes('?') ? '&' : '?'
    const whole = (await gateway.ask('GET', `${path}${and}limit=500`, root)).json
    assert.equal(whole.next_cursor, null)
    const all = whole.items.map(idOf)
    assert.equal(new Set(all).size, all.length)
    assert.ok(all.length >= 12, `${path}: ${all.length}`)
    for (const limit of [1, 7, 50]) {
      const walked: unknown[] = []
      let cursor: string | null = null
      do {
        const page: HttpReply = await gateway.ask(
          'GET',
          `${path}${and}limit=${limit}${cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`}`,
          root,
        )
        assert.equal(page.status, 200, page.text)
        assert.ok(page.json.items.length <= limit)
        walked.push(...page.json.items.map(idOf))
        cursor = page.json.next_cursor
      } while (cursor !== null)
      assert.deepEqual(walked, all, `${path} by ${limit}`)
    }
    if (all.length > 50) assert.equal((await gateway.ask('GET', path, root)).json.items.length, 50)
  }
})

test('/openapi.json names every route it serves, with its parameters, and refers to nothing that is missing', async () => {
  const { status, json: document, text } = await gateway.ask('GET', '/openapi.json', { secret: null })
  assert.equal(status, 200)
  assert.match(document.openapi, /^3\.1\./)
  for (const [path, method] of [
    ['/healthz', 'get'],
    ['/readyz', 'get'],
    ['/metrics', 'get'],
    ['/openapi.json', 'get'],
    ['/', 'get'],
    ['/api/v1/devices', 'get'],
    ['/api/v1/devices/{device_id}', 'get'],
    ['/api/v1/devices/{device_id}', 'put'],
    ['/api/v1/orders', 'get'],
    ['/api/v1/orders/{order_no}', 'get'],
    ['/api/v1/cards', 'get'],
    ['/api/v1/cards/{card_id}', 'put'],
    ['/api/v1/quarantine', 'get'],
  ])
    assert.ok(document.paths[path!]?.[method!], `${method} ${path}`)
  const operationIds: string[] = []
  for (const [path, methods] of Object.entries<Record<string, Record<string, never>>>(document.paths))
    for (const [method, operation] of Object.entries<{
      operationId: string
      summary: string
      parameters?: { name: string; in: string }[]
      responses: Record<string, unknown>
    }>(methods as never)) {
      operationIds.push(operation.operationId)
      assert.ok(operation.summary, `${method} ${path}`)
      const wanted = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name)
      const given = (operation.parameters ?? []).filter((parameter) => parameter.in === 'path').map(({ name }) => name)
      assert.deepEqual(given.sort(), wanted.sort(), `${method} ${path}`)
      assert.ok(
        Object.keys(operation.responses).some((code) => /^(?:2..|101)$/.test(code)),
        `${method} ${path}`,
      )
      // any route refuses a parameter that is given twice
      assert.ok(operation.responses['400'], `400 of ${method} ${path}`)
      // the document does not promise what is not there
      const real = path.replace(/\{device_id\}/, '04500011').replace(/\{\w+\}/g, 'c0ffee01')
      const reply = await gateway.ask(method.toUpperCase(), real, { secret: null })
      assert.ok(
        reply.status !== 404 || !/^no [A-Z]+ \//.test(reply.json?.error.message),
        `${method} ${path}: ${reply.text}`,
      )
    }
  for (const [method, path] of [
    ['delete', '/api/v1/allowlist/{kind}/{pattern}'],
    ['get', '/api/v1/devices/{device_id}/frames'],
    ['get', '/api/v1/devices/{device_id}/timeline'],
  ] as const)
    assert.ok(document.paths[path][method].responses['404'], `404 of ${method} ${path}`)
  const statuses = Object.keys(document.paths['/ws'].get.responses)
  assert.deepEqual([statuses.includes('101'), statuses.includes('200')], [true, false])
  const { content } = document.paths['/openapi.json'].get.responses['200']
  assert.equal(content['application/json'].schema.type, 'object')
  assert.equal(new Set(operationIds).size, operationIds.length)
  for (const [, name] of text.matchAll(/"#\/components\/schemas\/([^"]+)"/g))
    assert.ok(document.components.schemas[name!], `${name} is defined`)
})

test('HEAD, probes and the front page', async () => {
  const head = await gateway.ask('HEAD', '/healthz', { secret: null })
  assert.deepEqual([head.status, head.text], [200, ''])
  const ready = await gateway.ask('GET', '/readyz', { secret: null })
  assert.deepEqual([ready.status, ready.json.status], [200, 'ready'])
  const page = await gateway.ask('GET', '/', { secret: null })
  assert.match(String(page.headers['content-type']), /^text\/html/)
  const metrics = await gateway.ask('GET', '/metrics', { secret: null })
  assert.match(String(metrics.headers['content-type']), /^text\/plain; version=0\.0\.4/)
})

test('a signed request is not served again by the next start, after a kill', async () => {
  const headers = signatureHeaders({})
  assert.equal((await gateway.ask('GET', '/api/v1/devices', { headers })).status, 200)
  await gateway.kill()
  const { dataDir } = gateway
  gateway = await GatewayProcess.start({ dataDir, env: { API_KEYS, STATE_FLUSH_MS: '50' } })
  const again = await gateway.ask('GET', '/api/v1/devices', { headers })
  assert.equal(again.status, 401)
  assert.match(again.json.error.message, /used before/)
  assert.equal((await gateway.ask('GET', '/api/v1/devices', { headers: signatureHeaders({}) })).status, 200)
})

test('no secret was ever logged', () => {
  const said = gateway.lines.join('\n') + gateway.stderr
  for (const secret of ['root-secret', 'viewer-secret', 'operator-secret', 'other-secret', 'signer-secret'])
    assert.ok(!said.includes(secret), secret)
  assert.ok(!/postgres:\/\/[^*\s]+:[^*\s]+@/.test(said), 'no database URL with its password')
})
