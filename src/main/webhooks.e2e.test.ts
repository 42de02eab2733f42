/**
 * Claimed: an order's end reaches a webhook without anybody polling, signed; kill -9 of the gateway in the middle of
 * deliveries loses none of them, and a receiver that knows events by their id has each effect once (field-notes D8, F1).
 *
 * Tried on the gateway as a process with a simulated pile and a real HTTP receiver; endpoints are made over the API.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventIdOf } from '../events/event-id.ts'
import { closeClients, DeviceClient, dny, le, settlementData } from '../testing/device-client.ts'
import { eventually, GatewayProcess } from '../testing/gateway-process.ts'
import { openReceiver } from '../testing/webhook-receiver.ts'

const PILE = 0x04700001
const ENV = {
  WEBHOOK_ALLOWED_HOSTS: '127.0.0.1',
  WEBHOOK_RETRY_SCHEDULE_S: '0.05,0.05,0.2,0.2,0.5,0.5,1,1,1',
  WEBHOOK_TIMEOUT_MS: '2000',
}
const gateways: GatewayProcess[] = []
const secrets: string[] = []
const receivers = [await openReceiver({ secrets: () => secrets }), await openReceiver({ secrets: () => secrets })]
after(async () => {
  closeClients()
  for (const receiver of receivers) await receiver.close()
  for (const gateway of gateways) await gateway.remove()
})

async function start(dataDir?: string): Promise<GatewayProcess> {
  const gateway = await GatewayProcess.start({ env: ENV, ...(dataDir === undefined ? {} : { dataDir }) })
  gateways.push(gateway)
  return gateway
}

test('webhooks of a gateway that lives, is killed, and stops', async () => {
  const [bills, all] = [receivers[0]!, receivers[1]!]
  let gateway = await start()
  const refused = await gateway.ask('POST', '/api/v1/webhooks', { body: { url: 'http://127.0.0.2/' } })
  assert.equal(refused.status, 400)
  const ids: string[] = []
  for (const body of [{ url: bills.url, event_types: ['charging.ended'] }, { url: all.url }]) {
    const made = await gateway.ask('POST', '/api/v1/webhooks', { body })
    assert.equal(made.status, 201, made.text)
    secrets.push(made.json.secret)
    ids.push(made.json.id)
  }

  // a pile comes, settles, and repeats itself
  const pile = await DeviceClient.connect(gateway.tcpPort)
  await pile.exchange(dny(PILE, 1, 0x20, `${le(126, 2)}02002100`))
  for (const messageId of [2, 3])
    await pile.exchange(
      dny(PILE, messageId, 0x03, settlementData({ orderHex: Buffer.from('WEBHOOK---------').toString('hex') })),
    )
  await eventually(
    'the bill',
    () => bills.effects.length,
    (count) => count === 1,
  )
  await sleep(300)
  assert.equal(bills.received.length, 1, 'one charging.ended for one order, however often the device says it')
  const [bill] = bills.received
  assert.equal(bill!.event.device_phy_id, '04700001')
  assert.equal(bill!.event.event_type, 'charging.ended')
  assert.equal(bill!.own, secrets[0])
  assert.deepEqual(bill!.standard, [secrets[0]])
  // pull says the same
  const stream = (await gateway.get('/api/v1/events?type=charging.ended')).items
  const { cursor: _, ...pulled } = stream[0]
  assert.deepEqual([stream.length, pulled], [1, JSON.parse(bill!.body)])
  const { items: deliveries } = await gateway.get(`/api/v1/webhooks/${ids[0]}/deliveries`)
  assert.deepEqual(
    [deliveries.length, deliveries[0].status, deliveries[0].attempt_log[0].status],
    [1, 'delivered', 200],
  )
  const metrics = await gateway.metrics()
  assert.ok(metrics.get('pilegate_webhook_deliveries_total{result="delivered"}')! >= 2)
  assert.ok(metrics.get('pilegate_webhook_seconds_count')! >= 2)
  const tested = await gateway.ask('POST', `/api/v1/webhooks/${ids[0]}/test`)
  assert.equal(tested.status, 202)
  await eventually(
    'the test delivery',
    () => bills.received.length,
    (count) => count === 2,
  )

  // many events for a receiver that now and then fails or takes its time; the gateway dies in the middle, three times
  let asked = 0
  all.behave = (_, response) => {
    asked++
    if (asked % 11 === 0) return 503
    if (asked % 7 !== 0) return 200
    setTimeout(() => response.socket?.destroy(), 30)
    return undefined
  }
  const before = all.effects.length
  const rows = Array.from({ length: 600 }, (_, n) => ({
    event_id: eventIdOf('kill', n),
    event_type: 'device.alarm',
    tenant_id: 'default',
    device_id: `0000${String(n % 60).padStart(4, '0')}`,
    order_key: null,
    epoch: 1,
    at: new Date(),
    data: { n },
  }))
  await gateway.sql`insert into events ${gateway.sql(rows.map((row) => ({ ...row, data: gateway.sql.json(row.data) })) as never)}`
  for (const share of [0.2, 0.5, 0.8]) {
    await eventually(
      `${share} of them`,
      () => all.effects.length - before,
      (count) => count >= 600 * share,
      15_000,
    )
    const { dataDir } = gateway
    await gateway.kill()
    gateway = await start(dataDir)
  }
  await eventually(
    'all of them',
    () => all.effects.filter(({ data }) => 'n' in data).length,
    (count) => count === 600,
    20_000,
  )
  // exactly once where it counts: no effect twice, none missing, and each device's in order
  const numbers = new Map<string, number[]>()
  for (const event of all.effects)
    if ('n' in event.data)
      numbers.set(event.device_phy_id, [...(numbers.get(event.device_phy_id) ?? []), Number(event.data['n'])])
  assert.equal(numbers.size, 60)
  for (const [device, list] of numbers)
    assert.deepEqual(
      list,
      [...list].sort((a, b) => a - b),
      device,
    )
  assert.ok(all.received.every(({ own }) => own === secrets[1]))
  await eventually(
    'nothing is pending',
    async () =>
      (await gateway.sql`select count(*)::int as n from webhook_deliveries where status = 'pending'`)[0]!['n'],
    (count) => count === 0,
  )

  // SIGTERM with a delivery under way: it ends, and nothing is unflushed
  all.behave = (_, response) => {
    setTimeout(() => response.writeHead(200).end(), 400)
    return undefined
  }
  const count = all.received.length
  await gateway.ask('POST', `/api/v1/webhooks/${ids[1]}/test`)
  await eventually(
    'it is under way',
    () => all.received.length,
    (now) => now > count,
  )
  assert.equal(await gateway.stop(), 0)
})
