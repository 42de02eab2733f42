/**
 * Claim: every AP3000 uplink is answered as the document demands (sections 5 to 7), byte for byte, and nothing else is
 * ever answered; what the device said can then be read over HTTP.
 *
 * Tried on a real gateway with its real database: frames are written by hand from the document, not by the codec; an
 * ack of 03 is caught in the moment it arrives, and at that moment the row must be in PostgreSQL.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { closeClients, DeviceClient, type Dny, dny, iccidHex, le, settlementData } from '../testing/device-client.ts'
import { eventually, GatewayProcess } from '../testing/gateway-process.ts'

const PILE = 0x04ab373b
const PILE_ID = '04ab373b'
const HOST = 0x09a26cf3
const HOST_ID = '09a26cf3'
const ICCID = '898604D9162390488297'

let gateway: GatewayProcess
let pile: DeviceClient
let host: DeviceClient

before(async () => {
  gateway = await GatewayProcess.start({ env: { STATE_FLUSH_MS: '50' } })
  pile = await DeviceClient.connect(gateway.tcpPort)
  pile.send(iccidHex(ICCID))
  host = await DeviceClient.connect(gateway.tcpPort)
})
after(async () => {
  closeClients()
  await gateway.remove()
})

/** Commands of the gateway's own, which may come between answers: an 82 follows an accepted card. */
const commands: Dny[] = []
async function nextAnswer(client: DeviceClient): Promise<Dny> {
  for (;;) {
    const frame = await client.next()
    if (frame.command !== 0x82) return frame
    commands.push(frame)
  }
}

/** The whole answer: same physId, same msgId, same command unless told otherwise. */
async function answered(
  client: DeviceClient,
  physId: number,
  messageId: number,
  command: number,
  up: string,
  down: string,
  by = command,
) {
  client.send(dny(physId, messageId, command, up))
  const { hex } = await nextAnswer(client)
  assert.equal(hex, dny(physId, messageId, by, down), `answer of ${command.toString(16)}`)
}

/** Frames nobody asked for within the time. */
async function unasked(client: DeviceClient, ms: number): Promise<readonly Dny[]> {
  const frames = await client.silence(ms)
  commands.push(...frames.filter(({ command }) => command === 0x82))
  return frames.filter(({ command }) => command !== 0x82)
}

const device = (id: string) => gateway.get(`/api/v1/devices/${id}`)

test('20 is answered with result 0, and firmware, type and ports are known', async () => {
  // V1.26, 2 ports, virtual id 0, type 21, networked
  await answered(pile, PILE, 0x0102, 0x20, `${le(126, 2)}02002100`, '00')
  const known = await eventually(
    'registered',
    () => device(PILE_ID),
    ({ firmware }) => firmware !== null,
  )
  assert.equal(known.protocol, 'ap3000')
  assert.equal(known.firmware, '1.26')
  assert.equal(known.port_count, 2)
  assert.equal(known.iccid, ICCID)
  assert.ok(known.registered_at)
  assert.equal(known.presence.online, true)
  assert.deepEqual(known.presence.reasons, ['tcp_connected', 'heard_recently'])
  const { items } = await gateway.get('/api/v1/devices?limit=500')
  assert.ok(items.some((item: { device_id: string }) => item.device_id === PILE_ID))
})

test('20 of the larger documented size is answered as well', async () => {
  await answered(pile, PILE, 0x0103, 0x20, `${le(126, 2)}02002100${le(7, 2)}e400`, '00')
})

test('21 is answered with result 0, and ports, voltage and temperature are known', async () => {
  // 234.7 V, port 1 charging, port 2 with its relay stuck, signal 20, 28 degrees
  await answered(pile, PILE, 0xffff, 0x21, `${le(2347, 2)}02010914${le(93, 1)}`, '00')
  const known = await eventually(
    'ports and voltage, which are rows of their own',
    () => device(PILE_ID),
    ({ ports, voltage_v }) => ports.length === 2 && voltage_v !== null,
  )
  assert.deepEqual(
    known.ports.map(({ port, state, state_raw }: { port: number; state: string; state_raw: number }) => [
      port,
      state,
      state_raw,
    ]),
    [
      [1, 'charging', 1],
      [2, 'fault', 9],
    ],
  )
  assert.equal(known.voltage_v, 234.7)
  assert.equal(known.temperature_c, 28)
})

test('22 and 12 are answered with the time as four bytes', async () => {
  for (const [client, physId, command] of [
    [pile, PILE, 0x22],
    [host, HOST, 0x12],
  ] as const) {
    const before = Math.floor(Date.now() / 1_000)
    client.send(dny(physId, 7, command))
    const answer = await nextAnswer(client)
    const said = Buffer.from(answer.dataHex, 'hex').readUInt32LE()
    assert.equal(answer.hex, dny(physId, 7, command, le(said, 4)))
    assert.ok(said >= before && said <= Math.floor(Date.now() / 1_000), `${said} is now`)
  }
})

test('02: an unknown card hears 01, a known one its money; ff stays ff; a blocked one is refused', async () => {
  const swipe = (cardHex: string, portHex: string) => `${cardHex}01${portHex}${le(0, 2)}${le(1, 4)}`
  await answered(pile, PILE, 20, 0x02, swipe('a1b2c3d4', '01'), `a1b2c3d40100${le(0, 4)}01`)

  const made = await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', {
    body: { rate_mode: 'energy', balance_fen: 12_345 },
  })
  assert.equal(made.status, 201, made.text)
  await answered(pile, PILE, 21, 0x02, swipe('a1b2c3d4', '01'), `a1b2c3d40002${le(12_345, 4)}01`)
  await answered(pile, PILE, 22, 0x02, swipe('a1b2c3d4', 'ff'), `a1b2c3d40002${le(12_345, 4)}ff`)
  // status 00 alone starts nothing: an 82 start on the device's port follows, once; a balance query starts nothing
  assert.deepEqual(await unasked(pile, 300), [])
  assert.deepEqual(
    commands.map(({ physId, dataHex }) => [physId, dataHex.slice(10, 14)]),
    [[PILE, '0101']],
  )

  await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { body: { balance_fen: 0 } })
  await answered(pile, PILE, 23, 0x02, swipe('a1b2c3d4', '00'), `a1b2c3d40602${le(0, 4)}00`)

  const expires = '2020-01-01T00:00:00.000Z'
  await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { body: { rate_mode: 'monthly', expires_at: expires } })
  await answered(pile, PILE, 24, 0x02, swipe('a1b2c3d4', '00'), `a1b2c3d40701${le(Date.parse(expires) / 1_000, 4)}00`)

  await gateway.ask('PUT', '/api/v1/cards/a1b2c3d4', { body: { status: 'blocked', expires_at: null } })
  pile.send(dny(PILE, 25, 0x02, swipe('a1b2c3d4', '00')))
  const { dataHex } = await nextAnswer(pile)
  assert.notEqual(dataHex.slice(8, 10), '00', 'a blocked card never hears ok')
})

test('02 with a social security card of counted length is answered for its first number', async () => {
  await answered(
    pile,
    PILE,
    26,
    0x02,
    `0000000104ff${le(0, 2)}${le(1, 4)}10${'31'.repeat(16)}`,
    `000000010100${le(0, 4)}ff`,
  )
})

test('03 is acked only when its row is in PostgreSQL; repeats change nothing and are acked again', async () => {
  const ack = async (messageId: number, data: string) => {
    pile.send(dny(PILE, messageId, 0x03, data))
    const { hex } = await nextAnswer(pile)
    assert.equal(hex, dny(PILE, messageId, 0x03, '00'))
  }
  for (let round = 0; round < 20; round++) {
    const orderHex = Buffer.from(`ONLINE-ORDER-${String(round).padStart(3, '0')}`).toString('hex')
    await ack(1_000 + round, settlementData({ orderHex, port: round % 2 }))
    // asked with the ack just read from the socket: nothing may still be on its way
    const rows = await gateway.sql`select state from orders join settlements using (device_id, socket, port, order_key)
      where settlements.wire_hex = ${orderHex}`
    assert.deepEqual(
      rows.map(({ state }) => state),
      ['settled'],
      `round ${round}`,
    )
  }
  const orderHex = Buffer.from('ONLINE-ORDER-000').toString('hex')
  const before = await gateway.get('/api/v1/orders/ONLINE-ORDER-000')
  await ack(2_000, settlementData({ orderHex, sentS: 77 }))
  await ack(2_001, settlementData({ orderHex, energy10Wh: 999 }))
  assert.deepEqual(await gateway.get('/api/v1/orders/ONLINE-ORDER-000'), before)
  const [{ count } = { count: -1 }] = await gateway.sql`
    select count(*)::int as count from settlements where wire_hex = ${orderHex}`
  assert.equal(count, 1)
  const put = await gateway.get('/api/v1/quarantine')
  assert.ok(
    put.items.some((item: { reason: string }) => item.reason === 'settlement_conflict'),
    'the contradicting repeat is kept as evidence',
  )
})

test('03 of each origin is an order of that origin, with figures in the units of the contract', async () => {
  const cases = [
    { startMode: 1, cardHex: '00000000', origin: 'online', orderHex: Buffer.from('CHARGE-1-ONLINE!').toString('hex') },
    { startMode: 0, cardHex: '0a0b0c0d', origin: 'card', orderHex: `20190901180000${'0a0b0c0d'}0102030435` },
    { startMode: 3, cardHex: '00123456', origin: 'code', orderHex: `20190901190000${'00123456'}0102030475` },
  ]
  for (const [index, { startMode, cardHex, origin, orderHex }] of cases.entries()) {
    const data = settlementData({
      ...{ orderHex, startMode, cardHex, port: 1 },
      ...{ durationS: 3_661, maxPowerDw: 2_345, energy10Wh: 57, stopReason: 5 },
    })
    await answered(pile, PILE, 3_000 + index, 0x03, data, '00')
    const { items } = await gateway.get(`/api/v1/orders?device_id=${PILE_ID}&limit=500`)
    const [row] = await gateway.sql`select order_no from orders where wire_hex = ${orderHex}`
    const order = items.find((item: { order_no: string }) => item.order_no === row?.['order_no'])
    assert.ok(order, `${origin} is listed`)
    const { port, state, duration_s, energy_wh, max_power_w, end_reason, end_reason_raw, estimated } = order
    assert.deepEqual(
      { origin: order.origin, port, state, duration_s, energy_wh, max_power_w, end_reason, end_reason_raw, estimated },
      {
        origin,
        port: 2,
        state: 'settled',
        duration_s: 3_661,
        energy_wh: 570,
        max_power_w: 234.5,
        end_reason: 'unplugged',
        end_reason_raw: 5,
        estimated: false,
      },
    )
    assert.ok(order.settled_at && order.ended_at && order.started_at)
  }
})

test('03 without an order number (old models): repeats are one, different charges are two', async () => {
  const blank = '00'.repeat(16)
  const first = settlementData({ orderHex: blank, startMode: 0, cardHex: '11223344', durationS: 100 })
  const second = settlementData({ orderHex: blank, startMode: 0, cardHex: '11223344', durationS: 200 })
  for (const [index, data] of [first, second, first].entries())
    await answered(pile, PILE, 3_100 + index, 0x03, data, '00')
  const rows = await gateway.sql`select duration_s from orders where device_id = ${PILE_ID} and card_id = '11223344'`
  assert.deepEqual(rows.map((row) => row['duration_s']).sort(), [100, 200])
})

test('03 of the older 31 and the newer 37 bytes, and with one byte too few', async () => {
  const order = (name: string) => Buffer.from(name.padEnd(16, '.')).toString('hex')
  const old = settlementData({ orderHex: order('older-guide') }).slice(0, 62)
  await answered(pile, PILE, 3_200, 0x03, old, '00')
  await answered(pile, PILE, 3_201, 0x03, `${settlementData({ orderHex: order('cabinet') })}${le(15, 2)}`, '00')
  const [row] = await gateway.sql`select occupancy_min from settlements where wire_hex = ${order('cabinet')}`
  assert.equal(row?.['occupancy_min'], 15)
  // 28 bytes hold no whole order number: reported, never acted on, never answered
  pile.send(dny(PILE, 3_202, 0x03, settlementData({ orderHex: order('cut off') }).slice(0, 56)))
  assert.deepEqual(await unasked(pile, 300), [])
})

test('04 is answered with port and result, and the order runs', async () => {
  const orderHex = Buffer.from('CONFIRMED-ORDER1').toString('hex')
  await answered(pile, PILE, 40, 0x04, `0101${'00'.repeat(4)}${le(60, 2)}${orderHex}`, '0100')
  const order = await gateway.get('/api/v1/orders/CONFIRMED-ORDER1')
  assert.deepEqual([order.state, order.port, order.origin], ['charging', 2, 'online'])
})

test('23 is kept byte for byte before it is acked', async () => {
  const dataHex = 'deadbeef'.repeat(10)
  await answered(pile, PILE, 50, 0x23, dataHex, '00')
  const rows =
    await gateway.sql`select encode(frame, 'hex') as hex from opaque_settlements where device_id = ${PILE_ID}`
  assert.deepEqual(
    rows.map(({ hex }) => hex),
    [dny(PILE, 50, 0x23, dataHex)],
  )
})

test('15 is answered with one byte, 3B with command 3A and the slaves that 35 named', async () => {
  await answered(host, HOST, 60, 0x15, '', '00')
  const slave = le(0x04a228cd, 4)
  host.send(dny(HOST, 61, 0x35, `013100${le(640, 2)}${slave}`))
  await answered(host, HOST, 62, 0x3b, le(433, 2), `${le(433, 2)}00000001${slave}`, 0x3a)
})

test('01 is answered from the second one of a device that never sends 21, and not beside 21', async () => {
  const OLD = 0x04000001
  const client = await DeviceClient.connect(gateway.tcpPort)
  // captured: V6.40, 234.7 V, two idle ports, virtual id 10, type 31, 28 degrees
  const data = '80022b0902000000000000000000000a00315d00'
  client.send(dny(OLD, 1, 0x01, data))
  assert.deepEqual(await unasked(client, 200), [])
  await answered(client, OLD, 2, 0x01, data, '00')
  await answered(client, OLD, 3, 0x21, `${le(2200, 2)}0200000000`, '00')
  client.send(dny(OLD, 4, 0x01, data))
  assert.deepEqual(await unasked(client, 200), [])
  const known = await eventually(
    'old device',
    () => device('04000001'),
    ({ firmware }) => firmware !== null,
  )
  assert.equal(known.firmware, '6.40')
  assert.equal(known.temperature_c, 28)
})

test('06: no answer; order, live readings and a sample', async () => {
  const orderHex = Buffer.from('RUNNING-ORDER-06').toString('hex')
  const data =
    `0101${le(600, 2)}${le(3, 2)}01${le(1_805, 2)}${le(1_900, 2)}${le(1_700, 2)}${le(1_800, 2)}${orderHex}` +
    `${le(0, 2)}${le(2_000, 2)}${le(2_301, 2)}${le(784, 2)}${le(90, 1)}${le(95, 1)}${le(1, 4)}`
  assert.equal(data.length / 2, 45)
  pile.send(dny(PILE, 70, 0x06, data))
  assert.deepEqual(await unasked(pile, 300), [])
  const order = await eventually(
    'order',
    () => gateway.ask('GET', '/api/v1/orders/RUNNING-ORDER-06'),
    ({ status }) => status === 200,
  )
  assert.deepEqual(
    [order.json.state, order.json.origin, order.json.duration_s, order.json.energy_wh, order.json.port],
    ['charging', 'online', 600, 30, 2],
  )
  const [sample] = await eventually(
    'sample',
    () => gateway.sql`select * from port_samples where device_id = ${PILE_ID}`,
    (rows) => rows.length === 1,
  )
  assert.deepEqual(
    [
      sample!['power_w'],
      sample!['max_power_w'],
      sample!['min_power_w'],
      sample!['avg_power_w'],
      sample!['voltage_v'],
      sample!['current_a'],
      sample!['ambient_c'],
      sample!['port_c'],
    ],
    [180.5, 190, 170, 180, 230.1, 0.784, 25, 30],
  )
  const known = await eventually(
    'port',
    () => device(PILE_ID),
    ({ ports }) => ports[1].power_w === 180.5,
  )
  assert.equal(known.ports[1].order_no, 'RUNNING-ORDER-06')
  // 03 turns the running order into a settled one
  await answered(pile, PILE, 71, 0x03, settlementData({ orderHex, port: 1 }), '00')
  assert.equal((await gateway.get('/api/v1/orders/RUNNING-ORDER-06')).state, 'settled')
})

test('11 and 17: no answer; the host tells ICCID, IMEI and module', async () => {
  const text = (value: string, bytes: number) => Buffer.from(value.padEnd(bytes, '\0'), 'latin1').toString('hex')
  host.send(
    dny(
      HOST,
      80,
      0x11,
      `${le(286, 2)}00${le(0, 4)}1406${text('898604D9162390488111', 20)}55${le(480, 2)}${text('868822041234567', 15)}${text('GM5_V1', 24)}`,
    ),
    dny(HOST, 81, 0x17, `0141${le(2_300, 2)}${le(1_234, 2)}${le(10_000, 4)}${le(0, 2)}${le(0, 4)}00010000000000`),
  )
  assert.deepEqual(await unasked(host, 300), [])
  const known = await eventually(
    'host',
    () => device(HOST_ID),
    ({ imei, iccid }) => imei !== null && iccid !== null,
  )
  assert.deepEqual([known.iccid, known.imei, known.firmware], ['898604D9162390488111', '868822041234567', '2.86'])
})

test('42: no answer, one event', async () => {
  pile.send(dny(PILE, 90, 0x42, '030101'))
  assert.deepEqual(await unasked(pile, 300), [])
  const [event] = await eventually(
    'alarm',
    () => gateway.sql`select * from events where event_type = 'device.alarm' and device_id = ${PILE_ID}`,
    (rows) => rows.length > 0,
  )
  assert.equal(event!['data'].kind, 'fire')
  assert.equal(event!['data'].port, 2)
})

test('nothing else is ever answered: pushes, results, echoes, unknown commands', async () => {
  const order = '41'.repeat(16)
  const silent: [number, string][] = [
    [0x05, `21${le(126, 2)}${le(1, 4)}`],
    [0x26, 'aabbcc'],
    [0x41, `02${le(1, 4)}${le(0, 4)}`],
    [0x43, settlementData({ orderHex: order }).slice(0, 58)],
    [0x44, `0100${order}`],
    // results of commands, asked for or not: a server that answers them makes the device repeat them for ever
    [0x82, `00${order}00${le(0, 2)}`],
    [0x8a, '00'],
    ...[
      0x31, 0x32, 0x33, 0x34, 0x3a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8c, 0x8d, 0x8e, 0x8f, 0x95, 0x96, 0x97,
      0x98,
    ].map((command): [number, string] => [command, '00']),
    [0x8b, '0000'],
    [0x90, '00'.repeat(11)],
    [0x91, '00'.repeat(23)],
    [0x92, '00'.repeat(8)],
    [0x93, '00'.repeat(13)],
    [0x72, `00${order}`],
    ...[0xe0, 0xe1, 0xe2, 0xf8, 0xf9, 0xfa].map((command): [number, string] => [command, '000100']),
    [0xfd, '0100'],
    // named without a layout, internal, and known to nobody
    ...[0x07, 0x08, 0x73, 0x19, 0x1a, 0xa1, 0xa2, 0xa6, 0x00, 0x09, 0x0a, 0x5a, 0x77, 0xc0, 0xee, 0xff].map(
      (command): [number, string] => [command, '0102'],
    ),
  ]
  pile.send(...silent.map(([command, data], index) => dny(PILE, 5_000 + index, command, data)))
  pile.send(Buffer.from('link').toString('hex'), iccidHex(ICCID))
  // a good frame with a wrong sum is not answered, and the next good one is
  const damaged = Buffer.from(dny(PILE, 5_999, 0x21, `${le(2_200, 2)}0200000000`), 'hex')
  damaged[damaged.length - 1]! ^= 1
  pile.send(damaged.toString('hex'))
  assert.deepEqual(await unasked(pile, 700), [])
  await answered(pile, PILE, 6_000, 0x21, `${le(2_200, 2)}0200000000`, '00')

  const logged = await eventually(
    'unknown commands are logged with their bytes',
    () => gateway.sql`select code, note, encode(frame, 'hex') as hex from cmd_log
      where device_id = ${PILE_ID} and command = 'unknown' order by code`,
    (rows) => rows.length >= 5,
  )
  assert.deepEqual(
    logged.map(({ code }) => code),
    [0x5a, 0x77, 0xc0, 0xee, 0xff],
  )
  const sent = new Set(silent.map(([command, data], index) => dny(PILE, 5_000 + index, command, data)))
  assert.ok(logged.every(({ hex }) => sent.has(String(hex))))
})

test('cmd_log has uplinks and replies that are worth a row, with their bytes', async () => {
  const rows = await eventually(
    'cmd_log',
    () => gateway.sql`select command, is_uplink, message_id, encode(frame, 'hex') as hex from cmd_log
      where device_id = ${PILE_ID} order by at, seq`,
    (found) => found.some(({ command }) => command === 'cardAnswer'),
  )
  const names = new Set(rows.map(({ command }) => command))
  for (const name of ['register', 'cardSwipe', 'cardAnswer', 'settlement', 'orderConfirm', 'alarm', 'unknown'])
    assert.ok(names.has(name), `${name} in ${[...names].join(', ')}`)
  for (const name of ['heartbeat', 'powerHeartbeat']) assert.ok(!names.has(name), `${name} is not worth a row`)
  const registered = rows.find(({ command }) => command === 'register')!
  assert.deepEqual(
    [registered['is_uplink'], registered['hex']],
    [true, dny(PILE, 0x0102, 0x20, `${le(126, 2)}02002100`)],
  )
})

test('a host and its slaves share one connection: each is answered under its own id, in order', async () => {
  const slaves = Array.from({ length: 50 }, (_, index) => 0x04b00000 + index)
  const client = await DeviceClient.connect(gateway.tcpPort)
  client.send(...slaves.map((physId, index) => dny(physId, index + 1, 0x21, `${le(2_200, 2)}0200000000`)))
  for (const [index, physId] of slaves.entries())
    assert.equal((await client.next()).hex, dny(physId, index + 1, 0x21, '00'))
  const { items } = await eventually(
    'slaves',
    () => gateway.get('/api/v1/devices?limit=500&q=04b000'),
    (page) => page.items.length === 50,
  )
  assert.ok(items.every((item: { presence: { online: boolean } }) => item.presence.online))
})

test('a factory number that many boards share is answered on every connection, and closes nobody', async () => {
  const FACTORY = 0x04000000 + 12_000_000
  const [one, two] = [await DeviceClient.connect(gateway.tcpPort), await DeviceClient.connect(gateway.tcpPort)]
  for (let round = 0; round < 3; round++)
    for (const client of [one, two]) await answered(client, FACTORY, round + 1, 0x21, `${le(2_200, 2)}0200000000`, '00')
  assert.deepEqual([one.isClosed, two.isClosed], [false, false])
})
