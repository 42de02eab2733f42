/**
 * Claim: the AP3000 double speaks as section 7 to 9 of the document say, byte for byte readable by the gateway's codec,
 * and keeps its records until they are acked. Tried on a stage without sockets: time is moved by hand and the other end
 * decodes with `src/protocols/ap3000`, whose code the double does not share.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Ap3000Options, DeviceAp3000, dny, hexOf, iccidOf } from './device-ap3000.ts'
import { GOOD_CARD, NO_CARD, type Script } from './scripted-server.ts'
import { Stage } from './stage.ts'

const DEVICE_NO = 0x04ab373b

function stageOf(options: Partial<Ap3000Options> = {}, script: Partial<Script> = {}): Stage<DeviceAp3000> {
  const stage = new Stage(
    (world, observer) =>
      new DeviceAp3000({ deviceNo: DEVICE_NO, iccid: iccidOf(1234), chargeMs: 600_000, ...options }, world, observer),
    { card: NO_CARD, ...script },
  )
  stage.device.powerOn(stage.nowMs)
  return stage
}

const names = (stage: Stage<DeviceAp3000>) => stage.peer.seen.map((uplink) => uplink.name)

test('the worked example of section 2', () => {
  assert.equal(hexOf(dny(0x04a26cf3, 2, 0x12, new Uint8Array(0))), '444e590900f36ca2040200120d03')
})

test('after connect: ICCID, register, time, heartbeat; then a beat per period and links between', () => {
  const stage = stageOf({ heartbeatMs: 180_000 })
  stage.run(1_000)
  assert.deepEqual(stage.peer.identities, ['89860400000000001234'])
  assert.deepEqual(names(stage), ['register', 'timeRequest', 'heartbeat'])
  const register = stage.peer.of('register')[0]?.fields as Record<string, unknown>
  assert.equal(register['portCount'] ?? register['ports'], 2)
  stage.run(3_600_000)
  const beats = stage.peer.of('heartbeat').length
  assert.ok(beats >= 20 && beats <= 21, `${beats} heartbeats in an hour`)
  assert.ok(stage.peer.links >= 119 && stage.peer.links <= 121, `${stage.peer.links} links in an hour`)
  assert.equal(stage.peer.of('register').length, 1)
  assert.deepEqual(stage.peer.complaints, [])
  assert.deepEqual(stage.notebook.failures, [])
  assert.deepEqual(stage.notebook.missed, [])
})

test('register is repeated with its message id until answered', () => {
  const stage = stageOf(
    { heartbeatMs: 60_000 },
    { isSilent: (name, nowMs) => name === 'register' && nowMs < silentUntilMs },
  )
  const silentUntilMs = stage.nowMs + 150_000
  stage.run(400_000)
  const registers = stage.peer.of('register')
  assert.ok(registers.length >= 4 && registers.length <= 5, `${registers.length} registers`)
  assert.equal(new Set(registers.map((register) => register.messageId)).size, 1)
  assert.ok(stage.notebook.missed.length > 0 && stage.notebook.missed.every((name) => name === '20'))
})

test('an offline order: 06 after 10 s, every 5 min and at the end, 03 two seconds later, once', () => {
  const stage = stageOf()
  stage.run(1_000)
  const startMs = stage.nowMs
  assert.equal(stage.device.startOrder(stage.nowMs, false), true)
  stage.run(700_000)
  const progress = stage.peer.of('powerHeartbeat')
  assert.deepEqual(
    progress.map((uplink) => Math.round((uplink.atMs - startMs) / 1000)),
    [10, 310, 600],
  )
  const settlements = stage.peer.of('settlement')
  assert.equal(settlements.length, 1)
  assert.equal(Math.round(((settlements[0]?.atMs ?? 0) - startMs) / 1000), 602)
  const order = settlements[0]?.fields['orderHex'] as string
  // 7 BCD time in UTC+8, 4 card, 4 BCD number under the QR code, 1 BCD port + 30
  assert.match(order, /^20260101080001[0-9a-f]{8}11220795(30|31)$/)
  assert.equal(progress[0]?.fields['orderHex'], order)
  assert.equal(settlements[0]?.fields['durationS'], 600)
  assert.deepEqual(stage.notebook.settlementsAcked, [order])
  assert.equal(stage.device.outstanding, 0)
  assert.deepEqual(stage.peer.complaints, [])
})

test('an unacked settlement repeats with a new message id, survives reconnects, and is dropped once acked', () => {
  let isDatabaseUp = false
  const stage = stageOf(
    { chargeMs: 20_000, settleRepeatMs: 30_000 },
    { isSilent: (name) => name === 'settlement' && !isDatabaseUp },
  )
  stage.run(1_000)
  stage.device.startOrder(stage.nowMs, false)
  stage.device.startOrder(stage.nowMs, false)
  stage.run(100_000)
  const sendings = stage.peer.of('settlement')
  assert.equal(sendings.length, 3)
  assert.equal(new Set(sendings.map((sending) => sending.messageId)).size, 3)
  assert.equal(
    new Set(sendings.map((sending) => sending.fields['orderHex'])).size,
    1,
    'one stored record after another',
  )
  stage.cut('by the server')
  stage.run(10_000)
  assert.equal(stage.peers.length, 2)
  assert.equal(stage.device.unackedOrders.length, 2)
  isDatabaseUp = true
  stage.run(60_000)
  assert.equal(stage.device.outstanding, 0)
  assert.equal(new Set(stage.notebook.settlementsAcked).size, 2)
  assert.equal(stage.notebook.settlementsSent.filter(({ isRepeat }) => !isRepeat).length, 2)
  assert.deepEqual(
    stage.notebook.failures.map(({ kind }) => kind),
    ['connection.closed'],
  )
})

test('an ignored ack is as good as none: the record comes again', () => {
  const stage = stageOf({ chargeMs: 20_000, replyLoss: 0.5, seed: 3 })
  stage.run(1_000)
  for (let order = 0; order < 20; order++) {
    stage.device.startOrder(stage.nowMs, false)
    stage.run(120_000)
  }
  stage.run(600_000)
  const repeats = stage.notebook.settlementsSent.filter(({ isRepeat }) => isRepeat).length
  assert.ok(repeats >= 5, `${repeats} repeats`)
  assert.equal(stage.notebook.settlementsAcked.length, 20)
  assert.equal(stage.notebook.ignored.filter((name) => name === '03').length, repeats)
})

const START = { rateMode: 0, balanceFen: 0, port: 1, action: 1, orderHex: 'aa'.repeat(16) }

/** An 82 as servers in the field send it, 37 bytes. */
function startData(port: number, isStart: boolean, value: number, orderHex: string): Uint8Array {
  const data = new Uint8Array(37)
  data[5] = port
  data[6] = isStart ? 1 : 0
  data[7] = value & 0xff
  data[8] = value >> 8
  data.set(Buffer.from(orderHex, 'hex'), 9)
  return data
}

test('82: start, a retransmission, a busy port, a wrong stop, the stop; then 06 and 03 with reason 07', () => {
  const stage = stageOf({ resultMs: 300 })
  stage.run(1_000)
  const send = (messageId: number, data: Uint8Array) => {
    stage.device.received(dny(DEVICE_NO, messageId, 0x82, data), stage.nowMs)
    stage.run(1_000)
    return stage.peer.of('startChargeResult').at(-1)
  }
  const first = send(1, startData(1, true, 0, START.orderHex))
  assert.equal(first?.fields['result'], 0)
  assert.equal(first?.fields['orderHex'], START.orderHex)
  assert.equal(first?.messageId, 1)
  assert.equal(send(1, startData(1, true, 0, START.orderHex))?.fields['result'], 0, 'same message id, same answer')
  assert.equal(send(2, startData(1, true, 0, 'bb'.repeat(16)))?.fields['result'], 2)
  assert.equal(send(3, startData(7, true, 0, 'cc'.repeat(16)))?.fields['result'], 4)
  assert.equal(send(4, startData(1, false, 0, 'bb'.repeat(16)))?.fields['result'], 2)
  stage.run(20_000)
  assert.equal(send(5, startData(1, false, 0, START.orderHex))?.fields['result'], 0)
  stage.run(5_000)
  const settlement = stage.peer.of('settlement')
  assert.equal(settlement.length, 1)
  assert.equal(settlement[0]?.fields['orderHex'], START.orderHex)
  assert.equal(settlement[0]?.fields['stopReason'], 7)
  assert.equal(settlement[0]?.fields['startMode'], 1)
  assert.equal(stage.device.runningOrders.length, 0)
  assert.deepEqual(stage.peer.complaints, [])
})

test('a preset time ends with reason 03 and an unplugged one with 05', () => {
  const stage = stageOf()
  stage.run(1_000)
  stage.device.received(dny(DEVICE_NO, 1, 0x82, startData(0, true, 120, 'aa'.repeat(16))), stage.nowMs)
  stage.device.received(dny(DEVICE_NO, 2, 0x82, startData(1, true, 3_600, 'bb'.repeat(16))), stage.nowMs)
  stage.run(800_000)
  const ends = stage.peer.of('settlement').map(({ fields }) => [fields['durationS'], fields['stopReason']])
  assert.deepEqual(ends, [
    [120, 3],
    [600, 5],
  ])
})

test('a card that the server starts is an online order; a refused one goes offline by itself', () => {
  for (const isKnown of [true, false]) {
    const stage = stageOf(
      { chargeMs: 30_000 },
      {
        card: isKnown ? GOOD_CARD : NO_CARD,
        onUplink: (uplink) => {
          if (uplink.name !== 'cardSwipe' || !isKnown) return
          const data = startData(uplink.fields['port'] as number, true, 0, START.orderHex)
          stage.device.received(dny(DEVICE_NO, 9, 0x82, data), stage.nowMs + 500)
        },
      },
    )
    stage.run(1_000)
    stage.device.startOrder(stage.nowMs, true)
    stage.run(60_000)
    const settlements = stage.peer.of('settlement')
    assert.equal(settlements.length, 1)
    assert.equal(settlements[0]?.fields['startMode'], isKnown ? 1 : 0)
    assert.equal(settlements[0]?.fields['orderHex'] === START.orderHex, isKnown)
    assert.deepEqual(stage.notebook.failures, [])
  }
})

test('every other command is answered as section 8 says', () => {
  const stage = stageOf()
  stage.run(1_000)
  const hexBytes = (hex: string) => new Uint8Array(Buffer.from(hex.replace(' ', ''), 'hex'))
  const cases: [command: number, data: string, result: string][] = [
    [0x90, '', '03000a0014080710 0eb400'],
    [0x85, 'a08c204e', '00'],
    [0x92, '', 'a08c204e'],
    [0x83, '04000b0015090711100e2c0a', '00'],
    [0x90, '', '04000b0015090711100e2c0a'],
    [0x8b, '000010', `00${'ff'.repeat(16)}`],
    [0x8c, '0200020102', '00'],
    [0x8b, '010004', '00ff0102ff'],
    [0x8b, '000040', '01'],
    [0x8d, '02', '01'],
    [0x96, '05', '00'],
    [0x88, '', '00'],
    [0xe0, `05000100${'aa'.repeat(200)}`, '000100'],
    [0xe0, `05000300${'aa'.repeat(200)}`, '010300'],
    [0xf8, `05000100${'aa'.repeat(256)}`, '000100'],
    [0xfa, '', '000000'],
    [0x8a, '01000a00', '01'],
    [0x8a, '01090a00', '03'],
  ]
  for (const [command, data, expected] of cases) {
    stage.chunks.length = 0
    stage.device.received(dny(DEVICE_NO, 77, command, hexBytes(data)), stage.nowMs)
    stage.run(1_000)
    assert.deepEqual(stage.chunks.map(hexOf), [hexOf(dny(DEVICE_NO, 77, command, hexBytes(expected)))])
  }
  stage.device.received(dny(DEVICE_NO, 78, 0x83, hexBytes('0300')), stage.nowMs)
  stage.device.received(dny(DEVICE_NO, 79, 0x82, hexBytes('00')), stage.nowMs)
  assert.deepEqual(
    stage.notebook.failures.map(({ kind }) => kind),
    ['command.malformed', 'command.malformed'],
  )
  const before = stage.peer.of('register').length
  stage.device.received(dny(DEVICE_NO, 80, 0x81, hexBytes('')), stage.nowMs)
  stage.run(1_000)
  assert.equal(stage.peer.of('register').length, before + 1)
  stage.device.received(dny(DEVICE_NO, 81, 0x87, hexBytes('')), stage.nowMs)
  stage.run(10_000)
  assert.equal(stage.peers.length, 2, 'a reboot comes back on a new connection')
})

test('firmware is taken chunk by chunk in order; the first one begins anew', () => {
  const stage = stageOf({ chunkResendShare: 0.3 })
  stage.run(1_000)
  const piece = (chunk: number) => new Uint8Array(200).fill(chunk)
  const give = (chunk: number): number => {
    const data = Uint8Array.of(3, 0, chunk, 0, ...piece(chunk))
    stage.chunks.length = 0
    stage.device.received(dny(DEVICE_NO, 77, 0xe0, data), stage.nowMs)
    stage.run(1_000)
    // a heartbeat may have come between
    const result = stage.chunks.find((bytes) => bytes[11] === 0xe0)
    assert.deepEqual([...result!.subarray(13, 15)], [chunk, 0])
    return result![12]!
  }
  const giveUntilTaken = (chunk: number): number => {
    for (let sends = 1; ; sends++) if (give(chunk) === 0) return sends
  }
  giveUntilTaken(1)
  assert.equal(give(3), 1, 'the second one is missing')
  giveUntilTaken(2)
  assert.equal(stage.device.firmware, undefined)
  let sends = 0
  for (let round = 0; round < 10; round++) for (const chunk of [1, 2, 3]) sends += giveUntilTaken(chunk)
  assert.deepEqual(stage.device.firmware, Uint8Array.from([1, 2, 3].flatMap((chunk) => [...piece(chunk)])))
  assert.ok(sends > 31, `${sends} sends of 30 chunks: some were asked for again`)
})

test('a host reports itself and its slaves, which register and settle through its connection', () => {
  const slave = 0x04a228cd
  const stage = stageOf({ isHost: true, slaves: [slave], chargeMs: 20_000 })
  stage.run(1_000)
  assert.deepEqual(
    new Set(names(stage)),
    new Set(['register', 'hostTimeRequest', 'heartbeat', 'hostStatus', 'slaveTypes', 'timeRequest']),
  )
  assert.equal(stage.device.freePorts, 4)
  for (let order = 0; order < 4; order++) stage.device.startOrder(stage.nowMs, false)
  assert.equal(stage.device.startOrder(stage.nowMs, false), false)
  stage.run(60_000)
  assert.deepEqual(new Set(stage.peer.of('settlement').map(({ deviceNo }) => deviceNo)), new Set([DEVICE_NO, slave]))
  assert.equal(stage.device.outstanding, 0)
  assert.deepEqual(stage.peer.complaints, [])
})

test('wrong bytes and wrong replies from the server are counted, never followed', () => {
  const stage = stageOf()
  stage.run(1_000)
  const badSum = dny(DEVICE_NO, 5, 0x81, new Uint8Array(0))
  badSum[12] = (badSum[12] as number) ^ 1
  stage.device.received(badSum, stage.nowMs)
  stage.device.received(dny(DEVICE_NO + 1, 5, 0x81, new Uint8Array(0)), stage.nowMs)
  stage.device.received(dny(DEVICE_NO, 999, 0x21, Uint8Array.of(0)), stage.nowMs)
  stage.device.received(dny(DEVICE_NO, 999, 0x70, Uint8Array.of(0)), stage.nowMs)
  stage.device.received(Uint8Array.of(1, 2, 3, 4, 5, 6), stage.nowMs)
  assert.deepEqual(
    stage.notebook.failures.map(({ kind }) => kind),
    ['bytes.unexpected', 'bytes.unexpected', 'reply.unexpected', 'command.unknown', 'bytes.unexpected'],
  )
})

test('replies cut anywhere and glued together are still read', () => {
  const stage = stageOf()
  stage.run(1_000)
  const two = Buffer.concat([dny(DEVICE_NO, 5, 0x96, Uint8Array.of(5)), dny(DEVICE_NO, 6, 0x96, Uint8Array.of(5))])
  for (let cut = 1; cut < two.length; cut++) {
    stage.device.received(new Uint8Array(two.subarray(0, cut)), stage.nowMs)
    stage.device.received(new Uint8Array(two.subarray(cut)), stage.nowMs)
  }
  assert.equal(stage.notebook.commands.length, 2 * (two.length - 1))
  assert.deepEqual(stage.notebook.failures, [])
})

test('a rough wire: cut, glued and dirty, and still every frame arrives in order', () => {
  const stage = stageOf({ chaos: 'noise', chargeMs: 20_000, heartbeatMs: 10_000, seed: 11 })
  stage.run(1_000)
  stage.device.startOrder(stage.nowMs, false)
  stage.run(600_000)
  assert.ok(stage.peer.of('heartbeat').length >= 58)
  assert.equal(stage.notebook.settlementsAcked.length, 1)
  assert.ok(stage.chunks.length > stage.notebook.sent.length, 'some frames went in pieces')
  assert.ok(stage.peer.complaints.length > 0, 'noise was seen')
  assert.deepEqual(stage.notebook.missed, [])
  assert.equal(stage.notebook.replies.length, stage.notebook.sent.filter((name) => !['06'].includes(name)).length)
})

test('the same seed does the same', () => {
  const run = (seed: number) => {
    const stage = stageOf({ seed, chaos: 'resets', chargeMs: 30_000, heartbeatMs: 20_000, replyLoss: 0.1 })
    stage.run(1_000)
    for (let order = 0; order < 10; order++) {
      stage.device.startOrder(stage.nowMs, order % 2 === 0)
      stage.run(40_000)
    }
    return { chunks: stage.chunks.map(hexOf), acked: stage.notebook.settlementsAcked, peers: stage.peers.length }
  }
  const first = run(5)
  assert.deepEqual(run(5), first)
  assert.notDeepEqual(run(6).chunks, first.chunks)
  assert.ok(first.peers > 1, 'resets happened')
})
