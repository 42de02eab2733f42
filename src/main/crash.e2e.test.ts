/**
 * Claim: a settlement that was acked is stored, once, whatever dies. Twenty devices settle without pause and keep what is not
 * acked, as real ones do; the gateway is killed (-9) at random moments, in every other round its database too.
 *
 * After each start nothing acked may be missing and nothing may be there twice; in the end everything unacked has been
 * repeated (new message id, new sending time) and is acked. The seed is printed; TEST_SEED repeats it.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { closeClients, DeviceClient, dny, iccidHex, settlementData } from '../testing/device-client.ts'
import { dataDirectory, endPostgres, eventually, GatewayProcess } from '../testing/gateway-process.ts'
import { Random } from '../testing/random.ts'

const DEVICES = 20
const ROUNDS = 4
/** Of its own orders a device has this many on their way. */
const IN_FLIGHT = 4
const seed = Number(process.env['TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31))

/** A pile that forgets a settlement when it is acked, and not before. */
class Pile {
  readonly physId: number
  readonly iccid: string
  readonly acked = new Set<string>()
  readonly unacked = new Map<string, string>()
  orders = 0
  #messageId = 0
  readonly #sentAs = new Map<number, string>()
  mayStart = true

  constructor(index: number) {
    this.physId = 0x04200000 + index
    this.iccid = `898604${String(7_000 + index).padStart(14, '0')}`
  }

  /** One connection, until it ends. */
  async run(port: number): Promise<void> {
    let client: DeviceClient
    try {
      client = await DeviceClient.connect(port)
    } catch {
      return
    }
    client.send(iccidHex(this.iccid))
    this.#sentAs.clear()
    for (const orderHex of this.unacked.keys()) this.#send(client, orderHex)
    try {
      for (;;) {
        while (this.mayStart && this.unacked.size < IN_FLIGHT) {
          const orderHex = Buffer.from(
            `${this.physId.toString(16)}.${String(this.orders++).padStart(8, '0')}`,
          ).toString('hex')
          this.unacked.set(orderHex, settlementData({ orderHex, durationS: this.orders & 0xffff }))
          this.#send(client, orderHex)
        }
        if (this.unacked.size === 0) break
        const { command, messageId, dataHex } = await client.next(20_000)
        assert.deepEqual([command, dataHex], [0x03, '00'])
        const orderHex = this.#sentAs.get(messageId)
        assert.ok(orderHex !== undefined, `ack of ${messageId}, which this connection never sent`)
        this.unacked.delete(orderHex)
        this.acked.add(orderHex)
      }
    } catch (error) {
      if (error instanceof assert.AssertionError) throw error
    } finally {
      client.destroy()
    }
  }

  #send(client: DeviceClient, orderHex: string): void {
    this.#messageId = (this.#messageId + 1) & 0xffff
    this.#sentAs.set(this.#messageId, orderHex)
    // a repeat has a new sending time: the last four bytes
    const data = this.unacked.get(orderHex)!.slice(0, -8) + Math.floor(Date.now()).toString(16).slice(-8)
    client.send(dny(this.physId, this.#messageId, 0x03, data))
  }
}

const dataDir = dataDirectory()
let gateway: GatewayProcess | undefined
after(async () => {
  closeClients()
  await gateway?.remove()
})

test(`kill -9 in a stream of settlements, ${ROUNDS} rounds, seed ${seed}`, async (context) => {
  context.diagnostic(`seed ${seed}; repeat with TEST_SEED=${seed}`)
  const random = new Random(seed)
  const piles = Array.from({ length: DEVICES }, (_, index) => new Pile(index))
  const env = { SHARDS: '2', BATCH_ROWS_MAX: '50' }
  let ackedBefore = 0

  for (let round = 0; round <= ROUNDS; round++) {
    gateway = await GatewayProcess.start({ dataDir, env })
    const rows = await gateway.sql`select wire_hex from settlements`
    const found = new Set(rows.map((row) => String(row['wire_hex'])))
    assert.equal(found.size, rows.length, `round ${round}: twice`)
    const missing = piles.flatMap((pile) => [...pile.acked].filter((orderHex) => !found.has(orderHex)))
    assert.deepEqual(missing, [], `round ${round}: acked and lost`)
    if (round === ROUNDS) break

    const { tcpPort } = gateway
    const isKilled = { yes: false }
    const runs = piles.map(async (pile) => {
      while (!isKilled.yes) {
        await pile.run(tcpPort)
        await sleep(5)
      }
    })
    const aliveMs = 150 + random.below(900)
    await sleep(aliveMs)
    await gateway.kill()
    isKilled.yes = true
    if (round % 2 === 1) await endPostgres(dataDir)
    await Promise.all(runs)
    const acked = piles.reduce((sum, pile) => sum + pile.acked.size, 0)
    context.diagnostic(`round ${round}: ${aliveMs} ms, ${acked - ackedBefore} acked, then killed`)
    ackedBefore = acked
  }

  const last = gateway!
  for (const pile of piles) pile.mayStart = false
  await Promise.all(
    piles.map((pile) =>
      eventually(
        `pile ${pile.physId.toString(16)} is rid of its records`,
        () => pile.run(last.tcpPort),
        () => pile.unacked.size === 0,
        15_000,
      ),
    ),
  )
  const orders = piles.reduce((sum, pile) => sum + pile.orders, 0)
  assert.ok(orders > DEVICES * ROUNDS, `${orders} orders`)
  const [counts] = await last.sql`
    select (select count(*)::int from settlements) as settlements, (select count(*)::int from orders) as orders,
      (select count(*)::int from orders where state <> 'settled') as unsettled,
      (select count(*)::int from quarantine) as put_aside`
  assert.deepEqual({ ...counts }, { settlements: orders, orders, unsettled: 0, put_aside: 0 })
  assert.equal(await last.stop(), 0, last.stderr)
})

test('a stored command that cannot be sent any more ends dead at the start, and takes nobody along', async () => {
  const physId = 0x04200100
  const unusable = [
    {
      command_id: 'unusable-fields',
      device_id: '04200100',
      name: 'locate',
      wire: { fields: { locateS: 'long' }, wire_hex: '', socket: 0, port: 0 },
    },
    {
      command_id: 'unusable-name',
      device_id: '04200100',
      name: 'danceAround',
      wire: { fields: {}, wire_hex: '', socket: 0, port: 0 },
    },
    {
      command_id: 'unusable-length',
      device_id: '04200100',
      name: 'locate',
      wire: { fields: { locateS: 5, more: 'x'.repeat(20_000) }, wire_hex: '', socket: 0, port: 0 },
    },
    { command_id: 'unusable-wire', device_id: '04200100', name: 'locate', wire: {} },
    {
      command_id: 'unusable-device',
      device_id: 'nobody',
      name: 'locate',
      wire: { fields: { locateS: 5 }, wire_hex: '', socket: 0, port: 0 },
    },
    {
      command_id: 'usable',
      device_id: '04200100',
      name: 'locate',
      wire: { fields: { locateS: 7 }, wire_hex: '', socket: 0, port: 0 },
    },
  ]
  const first = await GatewayProcess.start({ dataDir })
  gateway = first
  for (const { command_id, device_id, name, wire } of unusable)
    await first.sql`insert into outbound_queue (command_id, device_id, name, wire, expires_at)
      values (${command_id}, ${device_id}, ${name}, ${first.sql.json(wire as never)}, now() + interval '1 minute')`
  await first.kill()

  gateway = await GatewayProcess.start({ dataDir })
  const client = await DeviceClient.connect(gateway.tcpPort)
  assert.equal((await client.exchange(dny(physId, 1, 0x21, '98080200000000'))).command, 0x21)
  const command = await client.next()
  assert.deepEqual([command.command, command.dataHex], [0x96, '07'])
  client.send(dny(physId, command.messageId, 0x96, '00'))
  const { sql } = gateway
  const fates = await eventually(
    'fates',
    () => sql`select command_id, status from outbound_queue order by command_id`,
    (rows) => rows.every((row) => row['status'] >= 2),
  )
  assert.deepEqual(Object.fromEntries(fates.map((row) => [row['command_id'], row['status']])), {
    usable: 2,
    'unusable-device': 3,
    'unusable-fields': 3,
    'unusable-length': 3,
    'unusable-name': 3,
    'unusable-wire': 3,
  })
  assert.equal(client.isClosed, false)
  assert.equal(await gateway.stop(), 0, gateway.stderr)
})
