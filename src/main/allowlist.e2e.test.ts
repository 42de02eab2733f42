/**
 * Claims: with ALLOWLIST on a device gets a session only while its id or the network it comes from is listed, at once when
 * the list changes and after a restart too; who was refused can be read. With ALLOWLIST off the list is kept and nobody
 * refused. A tenant sees and takes away its own entries only. Tried over real sockets and HTTP.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { closeClients, DeviceClient, dny, le } from '../testing/device-client.ts'
import { dataDirectory, eventually, GatewayProcess } from '../testing/gateway-process.ts'

const KEYS = 'root:root-secret:admin,north:north-secret:admin:north,op:op-secret:operator'
const started: GatewayProcess[] = []
async function start(env: Record<string, string>, dataDir = dataDirectory()): Promise<GatewayProcess> {
  const gateway = await GatewayProcess.start({ dataDir, env: { API_KEYS: KEYS, ...env } })
  started.push(gateway)
  return gateway
}
after(async () => {
  closeClients()
  for (const gateway of started) await gateway.kill()
  for (const gateway of started) await gateway.remove()
})

const LISTED = 0x04500001
const UNLISTED = 0x04500002
const beat = (physId: number, messageId: number) => dny(physId, messageId, 0x21, `${le(2_200, 2)}0200000000`)
const ack = (physId: number, messageId: number) => dny(physId, messageId, 0x21, '00')

/** @returns whether the device was answered; if not, its connection was closed */
async function isServed(gateway: GatewayProcess, physId: number): Promise<boolean> {
  const client = await DeviceClient.connect(gateway.tcpPort)
  client.send(beat(physId, 1))
  await eventually(
    'answered or closed',
    () => client.isClosed || client.heardHex === ack(physId, 1),
    (isDone) => isDone,
  )
  const served = client.heardHex !== ''
  client.destroy()
  return served
}

test('only who is listed is served; a change counts at once, and after a restart', async () => {
  const dataDir = dataDirectory()
  let gateway = await start({ ALLOWLIST: 'on' }, dataDir)
  const ask = (method: string, path: string, secret = 'root-secret', body?: unknown) =>
    gateway.ask(method, `/api/v1/allowlist${path}`, { secret, ...(body === undefined ? {} : { body }) })
  assert.equal(await isServed(gateway, LISTED), false)

  assert.equal((await ask('PUT', '/device/04500001', 'root-secret', { note: 'first pile' })).status, 201)
  assert.equal((await ask('PUT', '/device/04500001', 'root-secret', {})).status, 200)
  assert.equal(await isServed(gateway, LISTED), true)
  assert.equal(await isServed(gateway, UNLISTED), false)
  const refusedIds = async (): Promise<(string | null)[]> => {
    const { json } = await gateway.ask('GET', '/api/v1/quarantine', { secret: 'root-secret' })
    return (json.items as { reason: string; device_id: string | null }[])
      .filter(({ reason }) => reason === 'not_allowed')
      .map(({ device_id }) => device_id)
  }
  await eventually('evidence', refusedIds, (ids) => ids.includes('04500001') && ids.includes('04500002'))
  assert.ok(((await gateway.metrics()).get('pilegate_closed_total{reason="not_allowed"}') ?? 0) >= 2)

  // a network admits whoever comes from it, and a session ends when nothing admits it any more
  assert.equal((await ask('PUT', '/network/127.0.0.0%2F8', 'north-secret', {})).status, 201)
  const client = await DeviceClient.connect(gateway.tcpPort)
  assert.equal((await client.exchange(beat(UNLISTED, 2))).hex, ack(UNLISTED, 2))
  assert.equal((await ask('DELETE', '/network/127.0.0.0%2F8')).status, 404)
  assert.equal((await ask('DELETE', '/network/127.0.0.0%2F8', 'north-secret')).status, 200)
  await eventually(
    'closed',
    () => client.isClosed,
    (isClosed) => isClosed,
  )

  const { json } = await ask('GET', '?kind=device')
  assert.deepEqual(
    json.items.map(({ created_at: _, ...entry }: { created_at: string }) => entry),
    [{ kind: 'device', pattern: '04500001', note: 'first pile', created_by: 'root' }],
  )
  for (const [path, body] of [
    ['/device/nonsense', {}],
    ['/network/10.0.0.0%2F33', {}],
    ['/planet/earth', {}],
    ['/device/04500001', { color: 'red' }],
  ] as const)
    assert.equal((await ask('PUT', path, 'root-secret', body)).json.error.code, 'INVALID_ARGUMENT', path)
  assert.equal((await ask('PUT', '/device/04500002', 'op-secret', {})).json.error.code, 'FORBIDDEN')

  assert.equal(await gateway.stop(), 0, gateway.stderr)
  gateway = await start({ ALLOWLIST: 'on' }, dataDir)
  assert.equal(await isServed(gateway, LISTED), true)
  assert.equal(await isServed(gateway, UNLISTED), false)
  assert.equal(await gateway.stop(), 0, gateway.stderr)
})

test('off: the list is kept, nobody is refused', async () => {
  const gateway = await start({})
  const { status } = await gateway.ask('PUT', '/api/v1/allowlist/device/04500001', { secret: 'root-secret', body: {} })
  assert.equal(status, 201)
  assert.equal(await isServed(gateway, UNLISTED), true)
  assert.equal(await gateway.stop(), 0, gateway.stderr)
})
