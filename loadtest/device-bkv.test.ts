/**
 * Claim: the BKV double speaks as sections 5 to 9 of the document say, readable by the gateway's codec; it gives up a
 * connection whose heartbeat or end report nobody answers, and keeps end reports until they are acked. Tried on a stage
 * without sockets, the other end decoding with `src/protocols/bkv`, whose code the double does not share.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hexOf, iccidOf } from './device-ap3000.ts'
import { type BkvOptions, DeviceBkv } from './device-bkv.ts'
import { GOOD_CARD, NO_CARD, type Script } from './scripted-server.ts'
import { Stage } from './stage.ts'

const GATEWAY_NO = 82_241_218_000_382

function stageOf(options: Partial<BkvOptions> = {}, script: Partial<Script> = {}): Stage<DeviceBkv> {
  const stage = new Stage(
    (world, observer) =>
      new DeviceBkv({ gatewayNo: GATEWAY_NO, iccid: iccidOf(1234), chargeMs: 600_000, ...options }, world, observer),
    { card: NO_CARD, ...script },
  )
  stage.device.powerOn(stage.nowMs)
  return stage
}

/** A downlink frame written by hand, so that device and codec are not compared through the codec alone. */
function fcff(outer: string, sequence: string, data: string): Uint8Array {
  const body = `${(17 + data.length / 2).toString(16).padStart(4, '0')}${outer}${sequence}0082241218000382${data}`
  const sum = Buffer.from(body, 'hex').reduce((total, byte) => total + byte, 0) & 0xff
  return new Uint8Array(Buffer.from(`fcff${body}${sum.toString(16).padStart(2, '0')}fcee`, 'hex'))
}

test('the captured start command is what this test writes', () => {
  assert.equal(
    hexOf(fcff('0015', '6921c2bc', '0008070100010100010001')),
    'fcff001c00156921c2bc00822412180003820008070100010100010001a2fcee',
  )
})

test('heartbeat first, a notice, a status report; then on time', () => {
  const stage = stageOf({ heartbeatMs: 60_000 })
  stage.run(2_000)
  assert.deepEqual(
    stage.peer.seen.map((uplink) => uplink.name),
    ['heartbeat', 'connectNotice', 'statusReport'],
  )
  // byte for byte the captured heartbeat but for ICCID and RSSI
  const heartbeat = hexOf(stage.chunks[0] as Uint8Array)
  assert.match(
    heartbeat,
    /^fcfe002e00000000000001822412180003823839383630343[0-9a-f]+3230302e312e313714[0-9a-f]{2}fcee$/,
  )
  stage.run(3_600_000)
  const beats = stage.peer.of('heartbeat').length
  const reports = stage.peer.of('statusReport').length
  assert.ok(beats >= 60 && beats <= 62, `${beats} heartbeats in an hour`)
  assert.ok(reports >= 12 && reports <= 13, `${reports} reports in an hour`)
  assert.deepEqual(stage.peer.complaints, [])
  assert.deepEqual(stage.notebook.failures, [])
  assert.deepEqual(stage.notebook.missed, [])
})

test('a heartbeat without an answer costs the connection', () => {
  const stage = stageOf({}, { isSilent: (name) => name === 'heartbeat' })
  stage.run(70_000)
  assert.equal(stage.peers.length, 2)
  assert.deepEqual(stage.notebook.failures, [], 'it hung up itself: nobody else broke anything')
})

test('07 start: result with a business number, status 90, end report B0 after the minutes bought, then idle', () => {
  const stage = stageOf()
  stage.run(2_000)
  stage.device.received(fcff('0015', '6921c2bc', '0008070100010100010001'), stage.nowMs)
  const startMs = stage.nowMs
  stage.run(70_000)
  const result = stage.peer.of('controlResult')[0]
  assert.equal(result?.messageId, 0x6921c2bc)
  assert.equal(result?.fields['result'], 1)
  const businessNo = result?.fields['businessNo'] as number
  assert.ok(businessNo > 0)
  const end = stage.peer.seen.find(
    (uplink) => uplink.name !== 'controlResult' && uplink.fields['businessNo'] === businessNo,
  )
  const { online, bit5, charging, noLoad } = (end?.fields['status'] ?? {}) as Record<string, boolean>
  assert.deepEqual({ online, bit5, charging, noLoad }, { online: true, bit5: true, charging: true, noLoad: false })
  assert.ok(Math.abs((end?.atMs ?? 0) - startMs - 60_000) < 1_000)
  assert.equal(stage.notebook.settlementsAcked.length, 1)
  const statuses = stage.peer.of('statusReport').map((uplink) => JSON.stringify(uplink.fields))
  assert.ok(
    statuses.some((text) => text.includes(String(businessNo))),
    'a report named the running order',
  )
  assert.ok(!statuses.at(-1)?.includes(`:${businessNo}`), 'the last report is idle again')
  assert.deepEqual(stage.peer.complaints, [])
})

test('a busy port and an unknown one refuse, a stop ends with a report', () => {
  const stage = stageOf()
  stage.run(2_000)
  const send = (sequence: string, parameters: string) => {
    stage.device.received(fcff('0015', sequence, `000807${parameters}`), stage.nowMs)
    stage.run(2_000)
    return stage.peer.of('controlResult').at(-1)?.fields['result']
  }
  assert.equal(send('00000001', '0100010100f00000'), 1)
  assert.equal(send('00000002', '0100010100f00000'), 0)
  assert.equal(send('00000003', '0900010100f00000'), 0)
  assert.equal(send('00000004', '0100000100000000'), 1)
  stage.run(2_000)
  assert.equal(stage.notebook.settlementsAcked.length, 1)
  assert.equal(send('00000005', '0100000100000000'), 0)
})

test('an unacked end report repeats three times, costs the connection, and comes again', () => {
  let isDatabaseUp = false
  const stage = stageOf(
    { chargeMs: 20_000 },
    { isSilent: (name) => name !== 'heartbeat' && name !== 'statusReport' && !isDatabaseUp },
  )
  stage.run(2_000)
  stage.device.startOrder(stage.nowMs, false)
  stage.run(20_000 + 4 * 10_500 + 2_000)
  assert.equal(stage.notebook.settlementsSent.length, 4)
  stage.run(10_000)
  assert.equal(stage.peers.length, 2)
  assert.equal(stage.device.unackedOrders.length, 1)
  isDatabaseUp = true
  stage.run(60_000)
  assert.equal(stage.device.outstanding, 0)
  assert.equal(stage.notebook.settlementsAcked.length, 1)
  assert.equal(stage.notebook.settlementsSent.filter(({ isRepeat }) => !isRepeat).length, 1)
})

test('a card that is allowed ends with 0c, a refused one is paid at the socket', () => {
  for (const card of [GOOD_CARD, NO_CARD]) {
    const stage = stageOf({ chargeMs: 20_000 }, { card })
    stage.run(2_000)
    stage.device.startOrder(stage.nowMs, true)
    stage.run(200_000)
    assert.equal(stage.notebook.settlementsAcked.length, 1, JSON.stringify(stage.notebook))
    assert.deepEqual(stage.notebook.failures, [])
    assert.deepEqual(stage.peer.complaints, [])
    const sent = stage.notebook.sent.filter((name) => name === '0015/0c' || name === '0015/02' || name === '0015/0f')
    assert.deepEqual(sent, card === GOOD_CARD ? ['0015/0f', '0015/0c'] : ['0015/0f', '0015/02'])
  }
})

test('fee mode (1007) ends with 1004, tiers (17) with 18', () => {
  const stage = stageOf({ chargeMs: 20_000 })
  stage.run(2_000)
  const payload =
    '04010110070a010200000000215445a50901038224121800038203014a010301080003011301030112040301470104018800640301800103018901080183173b00320032'
  stage.device.received(fcff('1000', '215445a5', payload), stage.nowMs)
  stage.device.received(fcff('0015', '00000009', '000c17010101006401' + '07d000640' + '03c'), stage.nowMs)
  stage.run(60_000)
  const ends = stage.notebook.sent.filter((name) => name === '1000/1004' || name === '0015/18').sort()
  assert.deepEqual(ends, ['0015/18', '1000/1004'])
  assert.equal(stage.notebook.settlementsAcked.length, 2)
  assert.deepEqual(stage.peer.complaints, [])
  assert.deepEqual(stage.notebook.failures, [])
})

test('queries, lists, parameters and voice are answered with their sequence', () => {
  const stage = stageOf()
  stage.run(2_000)
  const before = stage.peer.seen.length
  for (const [outer, data] of [
    ['0015', '00011d01'],
    ['0005', '00080801018541218008'.concat('89')],
    ['0015', '00091b01010000010000173b'],
    ['1000', '04010110110a0102000000000000000709010382241218000382' + '03014a0104012200' + '78'],
    ['1000', '04010110120a0102000000000000000709010382241218000382' + '03014a01'],
  ] as const)
    stage.device.received(fcff(outer, '00000007', data), stage.nowMs)
  stage.run(2_000)
  const answers = stage.peer.seen.slice(before).filter((uplink) => uplink.messageId === 7)
  assert.equal(answers.length, 4)
  assert.deepEqual(stage.notebook.commands, ['0015/1d', '0005/08', '0015/1b', '1000/1011', '1000/1012'])
  assert.deepEqual(stage.peer.complaints, [])
  assert.deepEqual(stage.notebook.failures, [])
})

test('wrong bytes are counted, never followed', () => {
  const stage = stageOf()
  stage.run(2_000)
  const badSum = fcff('0015', '00000001', '0008070100010100f00000')
  badSum[20] = (badSum[20] as number) ^ 1
  stage.device.received(badSum, stage.nowMs)
  stage.device.received(fcff('0015', '00000001', '0009070100010100f00000'), stage.nowMs)
  stage.device.received(fcff('0099', '00000001', ''), stage.nowMs)
  stage.device.received(fcff('0015', '00000000', '00020c0101'), stage.nowMs)
  assert.deepEqual(
    stage.notebook.failures.map(({ kind }) => kind),
    ['bytes.unexpected', 'command.malformed', 'command.unknown', 'reply.unexpected'],
  )
  assert.equal(stage.device.freePorts, 2)
})

/** Two charges that end a second apart; the first sending of the first report is not answered, its repeat is. */
function stageWithRepeat(second: '0015/02' | '0015/18'): Stage<DeviceBkv> {
  let endReports = 0
  const stage: Stage<DeviceBkv> = stageOf(
    { chargeMs: 20_000 },
    { isSilent: (name) => !['heartbeat', 'statusReport'].includes(name) && ++endReports === 1 },
  )
  stage.run(2_000)
  stage.device.startOrder(stage.nowMs, false)
  stage.run(1_000)
  const port = stage.notebook.started[0]?.startsWith('1/0/') ? '01' : '00'
  if (second === '0015/02') stage.device.startOrder(stage.nowMs, false)
  else stage.device.received(fcff('0015', '00000009', `000c1701${port}0100640107d0006403c0`), stage.nowMs)
  stage.run(100)
  assert.equal(stage.notebook.started.length, 2)
  for (let steps = 0; stage.notebook.settlementsAcked.length === 0 && steps < 4_000; steps++) stage.run(10)
  assert.equal(stage.notebook.settlementsSent.length, 2, 'the report and its repeat')
  return stage
}

test('a sending that was never answered does not take the ack of the next report', () => {
  const stage = stageWithRepeat('0015/02')
  stage.run(2_000)
  assert.equal(stage.notebook.settlementsAcked.length, 2)
  assert.equal(stage.notebook.settlementsSent.length, 3, 'the second report was sent once')
  assert.deepEqual(stage.notebook.failures, [])
})

test('a second ack of a report that was sent twice is expected, whatever report comes next', () => {
  const stage = stageWithRepeat('0015/18')
  stage.device.received(fcff('0015', '00000000', '00020c0101'), stage.nowMs)
  assert.equal(stage.notebook.settlementsAcked.length, 1, 'it says nothing about the report that was not sent yet')
  stage.run(2_000)
  assert.equal(stage.notebook.settlementsAcked.length, 2)
  assert.deepEqual(stage.notebook.failures, [])
})
