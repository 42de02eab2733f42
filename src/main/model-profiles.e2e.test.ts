/**
 * Claims: a profile given over HTTP holds for the settlement that is the very first frame of a device, and reaches a session
 * that is open; `npm run recompute` puts orders right beside a running gateway, and shows what it would do before.
 *
 * Tried on a real gateway with its real database; frames are the guide's, and one made from it by hand.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { closeClients, DeviceClient } from '../testing/device-client.ts'
import { eventually, GatewayProcess, REPOSITORY } from '../testing/gateway-process.ts'

const ID = '86004459453005'
const DEVICE = `/api/v1/devices/${ID}`

/** The no-load end of the guide (V1.7, raw energy 80) with another business number. */
function endReport(businessNo: number): string {
  const frame = Buffer.from('fcfe00250015000000000186004459453005001102025036302000980068000000010050002d41fcee', 'hex')
  frame.writeUInt16BE(businessNo, 28)
  let sum = 0
  for (const byte of frame.subarray(2, -3)) sum += byte
  frame.writeUInt8(sum & 0xff, frame.length - 3)
  return frame.toString('hex')
}

let gateway: GatewayProcess
before(async () => {
  gateway = await GatewayProcess.start({ env: { STATE_FLUSH_MS: '50' } })
})
after(async () => {
  closeClients()
  await gateway.remove()
})

/** Business number, energy, amount of every order, in order of the number. */
async function orders(count: number): Promise<unknown[]> {
  const { items } = await eventually(
    `${count} orders`,
    () => gateway.get(`/api/v1/orders?device_id=${ID}`),
    ({ items }) => items.length === count,
  )
  return items
    .map((order: Record<string, unknown>) => [order['business_no'], order['energy_wh'], order['amount_fen']])
    .sort((a: number[], b: number[]) => a[0]! - b[0]!)
}

async function recompute(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('npm', ['run', '--silent', 'recompute', '--', ...args], {
    cwd: REPOSITORY,
    env: { ...process.env, DATA_DIR: gateway.dataDir, DATABASE_URL: '' },
    timeout: 30_000,
  })
  return stdout
}

test('from the first frame on, while a session is open, and for what was settled before', async () => {
  const profiles = await gateway.get('/api/v1/model-profiles')
  assert.ok(profiles.items.some(({ name }: { name: string }) => name === 'bkv-energy-10wh'))
  const tariff = { name: 'kWh', energy: { price_fen_per_kwh: 1000 } }
  const put = (body: object) => gateway.ask('PUT', DEVICE, { body })
  assert.equal((await put({ tariff, model_profile: 'bkv-energy-10wh' })).status, 201)
  const refused = await put({ model_profile: 'ap3000' })
  assert.deepEqual([refused.status, refused.json.error.code], [400, 'INVALID_ARGUMENT'])

  const client = await DeviceClient.connect(gateway.tcpPort)
  client.send(endReport(0x0068))
  assert.deepEqual(await orders(1), [[0x68, 800, 800]])
  await eventually(
    'the ack of section 6',
    () => client.heardHex,
    (heard) => /^fcff.*00020c0201/.test(heard),
  )

  // the same session hears of the change
  assert.equal((await put({ model_profile: null })).status, 200)
  client.send(endReport(0x0069))
  assert.deepEqual((await orders(2))[1], [0x69, 80, 80])

  const dry = await recompute('--device', ID)
  assert.match(dry, /800 > 80\t800 > 80/)
  assert.match(dry, /1 orders differ: energy -720 Wh, amount -720 fen/)
  assert.match(dry, /nothing was changed/)
  assert.deepEqual((await orders(2))[0], [0x68, 800, 800])
  assert.match(await recompute('--device', ID, '--apply'), /\napplied\n/)
  assert.deepEqual(await orders(2), [
    [0x68, 80, 80],
    [0x69, 80, 80],
  ])
  assert.match(await recompute('--device', ID, '--apply'), /\b0 orders differ/)
  const told = await gateway.sql`select from events where event_type = 'order.corrected'`
  assert.equal(told.count, 1)
})
