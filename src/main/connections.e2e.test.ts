/**
 * Claims: a connection says who it is by its first unit, however it is cut, and a stranger is refused with a reason that
 * can be read later. A reconnect always wins, over shards and over restarts, and a stale close never hurts.
 *
 * Tried on a gateway with two session threads: bytes cut at every place; the same device on two connections whose ICCIDs
 * lie on different shards (picked with the gateway's own hash); a restart on the same data.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { shardOf } from '../shared/rendezvous.ts'
import { closeClients, DeviceClient, dny, iccidHex, le } from '../testing/device-client.ts'
import { dataDirectory, eventually, GatewayProcess } from '../testing/gateway-process.ts'

const SHARDS = 2
const env = { SHARDS: String(SHARDS), IDENTIFY_TIMEOUT_MS: '400', STATE_FLUSH_MS: '50' }
const dataDir = dataDirectory()
let gateway: GatewayProcess

before(async () => {
  gateway = await GatewayProcess.start({ dataDir, env })
})
after(async () => {
  closeClients()
  await gateway.remove()
})

const dial = () => DeviceClient.connect(gateway.tcpPort)
const heartbeat = (physId: number, messageId: number) => dny(physId, messageId, 0x21, `${le(2_200, 2)}0200000000`)
const ack = (physId: number, messageId: number) => dny(physId, messageId, 0x21, '00')
async function answers(client: DeviceClient, physId: number, messageId: number): Promise<void> {
  assert.equal((await client.exchange(heartbeat(physId, messageId))).hex, ack(physId, messageId))
}
const idOf = (physId: number) => physId.toString(16).padStart(8, '0')
/** A device is known a moment after its first answer: its row is not waited for. */
const device = (physId: number) =>
  eventually(
    'device',
    () => gateway.get(`/api/v1/devices/${idOf(physId)}`),
    () => true,
  )
const count = async (series: string) => (await gateway.metrics()).get(series) ?? 0

/** ICCIDs by the shard that serves them. */
function iccidOn(shard: number, salt: number): string {
  for (let number = salt * 1_000; ; number++) {
    const iccid = `898604${String(number).padStart(14, '0')}`
    if (shardOf(iccid, SHARDS) === shard) return iccid
  }
}

// ---- who is there -------------------------------------------------------------------------------------------------

test('ICCID and first frame cut at every byte are one device', async () => {
  const hex = iccidHex('898604D9162390488297') + heartbeat(0x04000100, 1)
  await Promise.all(
    Array.from({ length: hex.length / 2 - 1 }, async (_, index) => {
      const physId = 0x04000100 + index
      const bytes = iccidHex(iccidOn(index % SHARDS, index + 1)) + heartbeat(physId, index + 1)
      const cut = 2 * (index + 1)
      const client = await dial()
      client.send(bytes.slice(0, cut))
      await sleep(20)
      client.send(bytes.slice(cut))
      assert.equal((await client.next()).hex, ack(physId, index + 1), `cut behind byte ${index + 1}`)
    }),
  )
})

test('byte by byte, with link in front and between', async () => {
  const client = await dial()
  const link = Buffer.from('link').toString('hex')
  const bytes = link + link + iccidHex('898604D9162390488297') + link + heartbeat(0x04000200, 9) + link
  for (let at = 0; at < bytes.length; at += 2) {
    client.send(bytes.slice(at, at + 2))
    await sleep(1)
  }
  assert.equal((await client.next()).hex, ack(0x04000200, 9))
})

test('without an ICCID the first frame says who it is; the ICCID may come later', async () => {
  const client = await dial()
  await answers(client, 0x04000201, 1)
  client.send(iccidHex('898604D9162390488299'))
  await answers(client, 0x04000201, 2)
  await eventually(
    'iccid',
    () => device(0x04000201),
    ({ iccid }) => iccid === '898604D9162390488299',
  )
})

test('a BKV gateway is answered in its own words, on the same port', async () => {
  // the guide's own example, 0000: ICCID, firmware, RSSI
  const up = 'fcfe002e0000000000000182200520004869383938363034363331313230373033313934313763562e31723436001fcafcee'
  for (const cut of [2, 4, 22, 40, up.length]) {
    const client = await dial()
    client.send(up.slice(0, cut))
    await sleep(10)
    client.send(up.slice(cut))
    await eventually(
      'time',
      () => client.heardHex,
      (hex) => hex.length >= 56,
    )
    const answer = client.heardHex
    // fcff, length 0018, command 0000, sequence 0, down, the id, seven BCD bytes of time, sum, tail
    assert.match(answer, /^fcff0018000000000000008220052000486920\d{12}..fcee$/)
    const sum =
      Buffer.from(answer, 'hex')
        .subarray(2, 25)
        .reduce((total, byte) => total + byte, 0) & 0xff
    assert.equal(Number.parseInt(answer.slice(50, 52), 16), sum)
    client.destroy()
  }
  const known = await eventually(
    'bkv device',
    () => gateway.get('/api/v1/devices/82200520004869'),
    ({ iccid }) => iccid !== null,
  )
  assert.deepEqual([known.protocol, known.iccid], ['bkv', '89860463112070319417'])
})

test('noise in front of the first frame is skipped, as far as it is seen in the field', async () => {
  const client = await dial()
  client.send('000000000000010000', heartbeat(0x04000202, 3))
  assert.equal((await client.next()).hex, ack(0x04000202, 3))
})

test('a stranger is closed, counted, and its bytes are kept with the reason', async () => {
  const before = await count('pilegate_identify_failures_total{reason="unknown_protocol"}')
  const request = Buffer.from(`GET /${'x'.repeat(300)} HTTP/1.1\r\n\r\n`).toString('hex')
  const client = await dial()
  client.send(request)
  await client.closedWithin(2_000)
  assert.equal(await count('pilegate_identify_failures_total{reason="unknown_protocol"}'), before + 1)
  const kept = await eventually(
    'evidence',
    () => gateway.get('/api/v1/quarantine'),
    ({ items }) => items.some((item: { reason: string }) => item.reason === 'unknown_protocol'),
  )
  const item = kept.items.find((one: { reason: string }) => one.reason === 'unknown_protocol')
  assert.equal(item.bytes_hex, request.slice(0, 512), 'EVIDENCE_BYTES_MAX bytes')
  assert.match(item.remote_address, /^(?:::ffff:)?127\.0\.0\.1/)
})

test('a frame with a wrong sum is no identity', async () => {
  const client = await dial()
  client.send(`${heartbeat(0x04000203, 1).slice(0, -4)}0000`)
  await client.closedWithin(3_000)
  assert.equal(client.heardHex, '')
  assert.equal((await gateway.ask('GET', `/api/v1/devices/${idOf(0x04000203)}`)).status, 404)
})

test('silent, or never complete: closed after IDENTIFY_TIMEOUT_MS, counted and kept', async () => {
  const series = 'pilegate_identify_failures_total{reason="identify_timeout"}'
  const before = await count(series)
  const [silent, half, linking] = [await dial(), await dial(), await dial()]
  half.send('444e590900')
  const startedMonoMs = performance.now()
  const beat = setInterval(() => linking.isClosed || linking.send(Buffer.from('link').toString('hex')), 50)
  await Promise.all([silent, half, linking].map((client) => client.closedWithin(2_000)))
  clearInterval(beat)
  const tookMs = performance.now() - startedMonoMs
  assert.ok(tookMs > 250 && tookMs < 1_500, `${tookMs} ms`)
  assert.equal(await count(series), before + 3)
  const kept = await eventually(
    'evidence',
    () => gateway.get('/api/v1/quarantine'),
    ({ items }) => items.filter((item: { reason: string }) => item.reason === 'identify_timeout').length >= 3,
  )
  assert.ok(kept.items.some((item: { bytes_hex: string }) => item.bytes_hex === '444e590900'))
})

test('a device that leaves is offline at once, with the reason in its session', async () => {
  const client = await dial()
  await answers(client, 0x04000204, 1)
  await client.end()
  const gone = await eventually(
    'offline',
    () => device(0x04000204),
    ({ presence }) => !presence.online,
  )
  assert.equal(gone.session, null)
  const rows = await eventually(
    'session',
    () => gateway.sql`select close_reason from sessions where device_id = ${idOf(0x04000204)}`,
    (found) => found[0]?.['close_reason'] != null,
  )
  assert.deepEqual(
    rows.map((row) => row['close_reason']),
    ['peer_closed'],
  )
})

// ---- a reconnect wins ---------------------------------------------------------------------------------------------

for (const [where, olderShard, newerShard] of [
  ['on one shard', 0, 0],
  ['from shard 0 to shard 1', 0, 1],
  ['from shard 1 to shard 0', 1, 0],
] as const)
  test(`takeover ${where}: the newer is answered, the older closed, its close harmless`, async () => {
    const physId = 0x04000300 + olderShard * 16 + newerShard
    const older = await dial()
    older.send(iccidHex(iccidOn(olderShard, 500)))
    await answers(older, physId, 1)
    const before = await eventually(
      'the older one',
      () => device(physId),
      ({ session }) => session !== null,
    )
    assert.equal(before.session.shard, olderShard)
    const takeovers = await count('pilegate_takeovers_total')

    const newer = await dial()
    newer.send(iccidHex(iccidOn(newerShard, 900)))
    await answers(newer, physId, 2)
    // the older one is told by its end, without having to speak first
    await older.closedWithin(2_000)
    assert.equal(await count('pilegate_takeovers_total'), takeovers + 1)

    const now = await device(physId)
    assert.equal(now.presence.online, true)
    assert.equal(now.session.shard, newerShard)
    assert.ok(now.session.epoch > before.session.epoch, 'the epoch grows')
    await answers(newer, physId, 3)

    const sessions = await eventually(
      'sessions',
      () =>
        gateway.sql`select epoch, closed_at, close_reason from sessions where device_id = ${idOf(physId)} order by epoch`,
      (rows) => rows.length === 2 && rows[0]!['closed_at'] !== null,
    )
    assert.deepEqual(
      sessions.map((row) => row['close_reason']),
      ['superseded', null],
    )
    assert.equal((await device(physId)).presence.online, true)
  })

test('twenty connections of one device at once: one stays, it is answered, the device is online', async () => {
  const physId = 0x04000400
  const clients = await Promise.all(
    Array.from({ length: 20 }, async (_, index) => {
      const client = await dial()
      client.send(iccidHex(iccidOn(index % SHARDS, 2_000 + index)), heartbeat(physId, index + 1))
      return client
    }),
  )
  const open = await eventually(
    'one is left',
    () => clients.filter((client) => !client.isClosed),
    ({ length }) => length === 1,
  )
  // its first answer, which nobody has taken
  await open[0]!.silence(100)
  await answers(open[0]!, physId, 100)
  const known = await device(physId)
  assert.equal(known.presence.online, true)
  const stored = await eventually(
    'sessions closed',
    () => gateway.sql`select epoch from sessions where device_id = ${idOf(physId)} and closed_at is null`,
    ({ length }) => length === 1,
  )
  assert.equal(stored[0]!['epoch'], known.session.epoch)
})

test('a slave that moves leaves its host connection to the others', async () => {
  const [hostId, slaveId] = [0x09000500, 0x04000501]
  const host = await dial()
  await answers(host, hostId, 1)
  await answers(host, slaveId, 2)
  const other = await dial()
  await answers(other, slaveId, 3)
  await answers(host, hostId, 4)
  assert.equal(host.isClosed, false)
  assert.equal((await device(hostId)).presence.online, true)
  // the old host relays the slave once more: an outdated word is not answered, the new place keeps it
  host.send(heartbeat(slaveId, 5))
  assert.deepEqual(await host.silence(200), [])
  await answers(other, slaveId, 6)
})

test('over a restart on the same data: devices are known, epochs grow, presence starts from nothing', async () => {
  const physId = 0x04000600
  const client = await dial()
  await answers(client, physId, 1)
  const before = await eventually(
    'stored',
    () => device(physId),
    ({ session }) => session?.opened_at != null,
  )
  assert.equal(await gateway.stop(), 0)
  await client.closed
  await gateway.closeSql()

  gateway = await GatewayProcess.start({ dataDir, env })
  const between = await device(physId)
  assert.equal(between.presence.online, false)
  assert.equal(between.presence.reasons[0], 'tcp_absent')
  const again = await dial()
  await answers(again, physId, 2)
  const now = await device(physId)
  assert.ok(now.session.epoch > before.session.epoch, `${now.session.epoch} > ${before.session.epoch}`)
  assert.ok(Number.isSafeInteger(now.session.epoch))
  const [row] = await gateway.sql`
    select close_reason from sessions where device_id = ${idOf(physId)} and epoch = ${before.session.epoch}`
  assert.equal(row?.['close_reason'], 'shutdown')
})
