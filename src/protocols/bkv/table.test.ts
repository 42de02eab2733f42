/**
 * Claim: every uplink is answered as the document demands, says the right facts, and nothing a device can send makes a
 * reply or a fact fail. Tried with the corpus, with frames made from it, and with random data from a fixed seed
 * (replay: the seed is in the test).
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { withCommandTable } from '../../codec/command-table.ts'
import type { Fact } from '../../codec/facts.ts'
import {
  type CardAnswer,
  type DeviceMemory,
  type Fields,
  type FrameHead,
  PayloadError,
  type Uplink,
} from '../../codec/protocol.ts'
import { BKV_PROFILES, useProfile } from './profile.ts'
import { ALIASES, bkv } from './table.ts'

const vectors = JSON.parse(readFileSync(new URL('corpus/vectors.json', import.meta.url), 'utf8')) as {
  name: string
  hex: string
}[]
/** 2025-11-24 11:24:58 in Beijing: the captured time reply `0000-live-time-reply-27`. */
const NOW_MS = Date.UTC(2025, 10, 24, 3, 24, 58)
const GOOD_CARD: CardAnswer = { status: 'ok', rateMode: 'time', balanceFen: 5001, expiresMs: null }

interface Received {
  readonly command: Uplink
  readonly fields: Fields
  readonly head: FrameHead
}

function receive(name: string): Received {
  const vector = vectors.find((candidate) => candidate.name === name)
  assert.ok(vector, name)
  const bytes = Uint8Array.from(Buffer.from(vector.hex, 'hex'))
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  bkv.readHead(bytes, 0, bytes.length, head)
  const command = bkv.uplinks.get(head.commandKey)
  assert.ok(command, name)
  const fields = command.decode(bytes, head.dataFrom, head.dataTo)
  assert.ok(!(fields instanceof PayloadError))
  return { command, fields, head }
}

function factsOf(name: string, memory: DeviceMemory = {}): readonly Fact[] {
  const { command, fields } = receive(name)
  return command.facts?.(fields, memory) ?? []
}

/** The whole reply frame as hex; `sequence` as the session would choose it. */
function replyTo(name: string, card?: CardAnswer, sequence?: number): string | undefined {
  const { command, fields, head } = receive(name)
  const { reply } = command
  if (reply === 'none') return undefined
  const values = reply.fields(fields, { nowMs: NOW_MS, memory: {}, ...(card === undefined ? {} : { card }) })
  assert.ok(values)
  const downlink = bkv.downlinkByName.get(reply.with)
  assert.ok(downlink)
  assert.equal(reply.freshSequence === true, sequence !== undefined, 'who opens a dialogue')
  const frame = bkv.encodeFrame(
    'downlink',
    downlink,
    head.deviceNo,
    sequence ?? head.messageId,
    downlink.encode(values),
  )
  return Buffer.from(frame).toString('hex')
}

const whenOf = (name: string): string => {
  const reply = bkv.uplinkByName.get(name)!.reply
  return reply === 'none' ? 'none' : reply.when
}

test('the time reply is the captured one', () => {
  // The capture's gateway and second; its data byte for byte.
  assert.equal(replyTo('0000-cap-hb-rssi17'), vectors.find((vector) => vector.name === '0000-live-time-reply-27')!.hex)
})

test('acks are the documented frames', () => {
  const hexOf = (name: string) => vectors.find((vector) => vector.name === name)!.hex
  assert.equal(replyTo('1000-1017-cap-idle'), hexOf('1000-1017-cap-ack'))
  assert.equal(replyTo('1000-1004-doc-end'), hexOf('1000-1004-doc-reply'))
  assert.equal(replyTo('1000-1010-doc-exception'), hexOf('1000-1010-doc-reply'))
  assert.equal(replyTo('0015-0c-doc-card-end'), hexOf('0015-0c-doc-reply'))
  // Section 6: a live server sent 0002 0c socket 01 with sequence 0, and the device stopped repeating its 02.
  assert.equal(replyTo('0015-02-cap-end-time-up')?.slice(36, 46), '00020c0101')
  assert.equal(replyTo('0015-02-syn-normal-end-1')?.slice(36, 46), '00020c0201')
  assert.equal(replyTo('0015-18-doc-end-by-power')?.slice(36, 46), '00020c0101')
  assert.equal(replyTo('0015-02-cap-end-time-up')?.slice(12, 20), '00000000', 'sequence 0 is copied')
  assert.equal(replyTo('0015-0f-doc-order-confirm')?.slice(12, 20), '0028373f', 'so is that of a dialogue')
  assert.equal(replyTo('0015-0f-doc-order-confirm')?.slice(36, 44), '00010f01')
})

test('when replies may go out', () => {
  assert.deepEqual(Object.fromEntries([...bkv.uplinkByName.keys()].map((name) => [name, whenOf(name)])), {
    heartbeat: 'decoded',
    refreshNodesResult: 'none',
    addNodeResult: 'none',
    deleteNodeResult: 'none',
    otaReport: 'none',
    socketStatus: 'none',
    controlResult: 'none',
    endReport: 'durable',
    startByPowerResult: 'none',
    powerEndReport: 'durable',
    cardSwiped: 'lookup',
    cardOrderConfirm: 'decoded',
    cardEndReport: 'durable',
    cardBalanceQuery: 'lookup',
    setVoiceResult: 'none',
    statusReport: 'decoded',
    feeEndReport: 'durable',
    feeControlResult: 'none',
    exceptionReport: 'decoded',
    setParametersResult: 'none',
    parameters: 'none',
    connectNotice: 'none',
  })
})

test('a swiped card charges by time, or is refused at once', () => {
  const head = (sequence: string) => `fcff001e0015${sequence}0086004459453005000a0b0100001a`
  assert.equal(replyTo('0015-0b-doc-swipe', GOOD_CARD, 0x28373f)?.slice(0, 62), `${head('0028373f')}010103840000`)
  for (const status of ['unregistered', 'insufficient', 'expired', 'blocked', 'port_unusable'] as const) {
    const refused = replyTo('0015-0b-doc-swipe', { ...GOOD_CARD, status }, 7)
    assert.equal(refused?.slice(0, 62), `${head('00000007')}000100000000`, status)
  }
  assert.equal(replyTo('0015-0b-doc-swipe', undefined, 7)?.slice(50, 52), '00', 'no answer of the lookup refuses too')
})

test('a balance is told in fen, within u32', () => {
  const balanceHex = (balanceFen: number) =>
    replyTo('0015-1a-doc-balance', { ...GOOD_CARD, balanceFen }, 0x1f699c66)?.slice(36 + 22, 36 + 30)
  assert.equal(balanceHex(5001), '00001389')
  assert.equal(balanceHex(-3), '00000000')
  assert.equal(balanceHex(2 ** 40), 'ffffffff')
  assert.equal(replyTo('0015-1a-doc-balance', undefined, 1)?.slice(58, 66), '00000000')
})

test('facts of a heartbeat', () => {
  assert.deepEqual(factsOf('0000-cap-hb-rssi17'), [
    { fact: 'heartbeat' },
    { fact: 'deviceInfo', iccid: '898608551024D1988196', firmware: '200.1.17', signal: 17, registered: true },
  ])
})

test('facts of a status report: every port, and progress of those that charge', () => {
  const [states, progress, ...others] = factsOf('1000-1017-syn-varint-three-ports')
  assert.ok(states?.fact === 'portStates' && progress?.fact === 'progress')
  assert.deepEqual(
    states.ports.map((port) => [port.socket, port.port, port.state, port.stateRaw, port.businessNo]),
    [
      [1, 1, 'charging', 0x90, 5],
      [1, 2, 'idle', 0x80, 0],
      [1, 3, 'charging', 0x98, 7],
    ],
  )
  assert.deepEqual(progress, {
    fact: 'progress',
    order: { socket: 1, port: 1, wireHex: '0005' },
    origin: 'online',
    state: 'charging',
    stateRaw: 0x90,
    durationS: 900,
    energyWh: 30,
    energyRaw: 30,
    powerW: 120,
    voltageV: 229,
    currentA: 0.56,
  })
  assert.equal(others.length, 1)
  const [offline, ...nothing] = factsOf('1000-1017-public-offline')
  assert.ok(offline?.fact === 'portStates')
  assert.deepEqual(
    offline.ports.map((port) => port.state),
    ['offline', 'offline'],
  )
  assert.deepEqual(nothing, [])
  assert.deepEqual(factsOf('1000-1017-syn-unknown-key'), [], 'a socket without ports says nothing')
})

test('a status answer under 1d or 1c is the result of the query, and readings', () => {
  for (const name of ['0015-1d-doc-reply', '0015-1d-syn-reply-2port']) {
    const [result, states] = factsOf(name)
    assert.deepEqual(result, { fact: 'result', downlink: 'queryStatus', raw: 1, ok: true, reason: 'ok', socket: 1 })
    assert.ok(states?.fact === 'portStates' && states.ports.length === 2)
  }
})

test('facts of the four end reports', () => {
  assert.deepEqual(factsOf('0015-02-cap-end-time-up'), [
    {
      fact: 'settlement',
      order: { socket: 1, port: 1, wireHex: '0009' },
      origin: 'online',
      startModeRaw: -1,
      durationS: 60,
      energyWh: 0,
      energyRaw: 0,
      maxPowerW: 40.4,
      endReason: 'preset_time',
      endReasonRaw: 0xb0,
      businessNo: 9,
    },
  ])
  assert.deepEqual(factsOf('0015-18-doc-end-by-power'), [
    {
      fact: 'settlement',
      order: { socket: 1, port: 1, wireHex: '0017' },
      origin: 'online',
      startModeRaw: 3,
      durationS: 2160,
      energyWh: 1,
      energyRaw: 1,
      maxPowerW: 0,
      endReason: 'no_load',
      endReasonRaw: 2,
      businessNo: 23,
      endedMs: Date.UTC(2020, 5, 8, 6, 21, 7),
      deviceAmountFen: 15,
    },
  ])
  assert.deepEqual(factsOf('0015-0c-doc-card-end'), [
    {
      fact: 'settlement',
      order: { socket: 1, port: 1, wireHex: '001a' },
      origin: 'card',
      cardId: '000000000002',
      startModeRaw: 1,
      durationS: 1860,
      energyWh: 2,
      energyRaw: 2,
      maxPowerW: 0,
      endReason: 'no_load',
      endReasonRaw: 0x98,
      businessNo: 26,
      deviceAmountFen: 0,
    },
  ])
  assert.deepEqual(factsOf('1000-1004-doc-end'), [
    {
      fact: 'settlement',
      order: { socket: 1, port: 1, wireHex: '0033' },
      origin: 'online',
      startModeRaw: 4,
      durationS: 60,
      energyWh: 0,
      energyRaw: 0,
      maxPowerW: 0,
      endReason: 'no_load',
      endReasonRaw: 8,
      businessNo: 51,
      endedMs: Date.UTC(2024, 7, 23, 2, 17, 29),
      deviceAmountFen: 0,
    },
  ])
  const [biggest] = factsOf('0015-02-syn-normal-end-1')
  assert.ok(biggest?.fact === 'settlement')
  assert.deepEqual(
    [biggest.order, biggest.energyRaw, biggest.durationS, biggest.endReason],
    [{ socket: 2, port: 2, wireHex: '1234' }, 65_535, 54_000, 'unknown'],
  )
})

test("the energy unit is the profile's, the raw count stays", () => {
  const memory = bkv.newMemory()
  assert.equal(useProfile(memory, 'bkv-energy-10wh'), true)
  assert.equal(useProfile(memory, 'no such model'), false)
  const [settlement] = factsOf('0015-02-doc-end', memory)
  assert.ok(settlement?.fact === 'settlement')
  assert.deepEqual([settlement.energyRaw, settlement.energyWh], [80, 800])
  const [byDefault] = factsOf('0015-02-doc-end')
  assert.ok(byDefault?.fact === 'settlement')
  assert.equal(byDefault.energyWh, 80, 'the guide: 0x0050 means 0.08 kWh')
  assert.equal(new Set(BKV_PROFILES.map((profile) => profile.name)).size, BKV_PROFILES.length)
})

test('a card order is known as one until its end', () => {
  const memory = bkv.newMemory()
  assert.deepEqual(factsOf('0015-0b-doc-swipe', memory), [
    { fact: 'cardSwiped', cardId: '000000000002', socket: 1, port: 1, cardKind: 0, businessNo: 26 },
  ])
  assert.deepEqual(factsOf('0015-0f-doc-order-confirm', memory), [
    { fact: 'result', downlink: 'cardOrder', raw: 1, ok: true, reason: 'ok', socket: 1, port: 1, businessNo: 26 },
    {
      fact: 'orderConfirmed',
      order: { socket: 1, port: 1, wireHex: '001a' },
      origin: 'card',
      cardId: '000000000002',
      durationS: 0,
    },
  ])
  assert.deepEqual(
    factsOf('0015-0f-doc-order-confirm').map((fact) => fact.fact),
    ['result'],
    'without the swipe the business number is unknown',
  )
  const { command, fields } = receive('1000-1017-cap-charging')
  const progressOrigin = (businessNo: number) => {
    const sockets = (fields['bkv'] as Fields)['sockets'] as Fields[]
    const ports = (sockets[0]!['ports'] as Fields[]).map((port) => ({ ...port, businessNo }))
    const progress = command.facts!({ bkv: { sockets: [{ ...sockets[0], ports }] } }, memory).find(
      (fact) => fact.fact === 'progress',
    )
    return progress?.fact === 'progress' ? [progress.origin, progress.cardId] : undefined
  }
  assert.deepEqual(
    [progressOrigin(26), progressOrigin(27)],
    [
      ['card', '000000000002'],
      ['online', undefined],
    ],
  )
  assert.deepEqual(factsOf('0015-1a-doc-balance'), [
    { fact: 'cardSwiped', cardId: '000000298352', socket: 2, port: 0, cardKind: 0 },
  ])
})

test('results name their command, port and business number', () => {
  assert.deepEqual(factsOf('0015-07-cap-start-result'), [
    { fact: 'result', downlink: 'control', raw: 1, ok: true, reason: 'ok', businessNo: 9, socket: 1, port: 1 },
  ])
  assert.deepEqual(factsOf('0015-17-syn-result'), [
    { fact: 'result', downlink: 'startByPower', raw: 1, ok: true, reason: 'ok', businessNo: 16, socket: 1, port: 2 },
  ])
  assert.deepEqual(factsOf('0005-0a-syn-result'), [
    { fact: 'result', downlink: 'deleteNode', raw: 0, ok: false, reason: 'failed' },
  ])
  assert.deepEqual(factsOf('1000-1011-doc-result'), [
    { fact: 'result', downlink: 'setParameters', raw: 1, ok: true, reason: 'ok', socket: 2 },
  ])
})

test('exceptions are alarms with raw reasons, and states', () => {
  assert.deepEqual(factsOf('1000-1010-syn-overvoltage'), [
    { fact: 'alarm', kind: 'socket_event', kindRaw: 1, socket: 3, port: 0, trigger: 1 },
    {
      fact: 'portStates',
      ports: [
        { socket: 3, port: 1, state: 'charging', stateRaw: 0x90 },
        { socket: 3, port: 2, state: 'idle', stateRaw: 0x80 },
      ],
    },
  ])
})

test('the device clock is Beijing time, and an impossible one is none', () => {
  assert.deepEqual(factsOf('1000-1013-cap-a'), [{ fact: 'clock', deviceMs: Date.UTC(2025, 10, 24, 3, 23, 25) }])
  const notice = bkv.uplinkByName.get('connectNotice')!
  for (const timeBcd of ['00000000000000', '20250231000000', '2025ff01000000', '2025']) {
    assert.deepEqual(notice.facts!({ bkv: { timeBcd } }, {}), [], timeBcd)
  }
})

test('an end report of fee mode without port or business number is a payload error, never acked', () => {
  const feeEnd = bkv.uplinkByName.get('feeEndReport')!
  for (const missing of ['port', 'businessNo']) {
    const { fields } = receive('1000-1004-doc-end')
    const { [missing]: _gone, ...rest } = fields['bkv'] as Record<string, unknown>
    const data = feeEnd.encode({ bkv: rest })
    const decoded = feeEnd.decode(data, 0, data.length)
    assert.ok(decoded instanceof PayloadError && decoded.at === missing)
  }
})

test('random data of every uplink: refused, or facts and reply without a throw', () => {
  let seed = 7
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0
    return (seed >>> 8) % below
  }
  const samples = vectors
    .map((vector) => Uint8Array.from(Buffer.from(vector.hex, 'hex')))
    .filter((bytes) => bytes.length > 21 && bytes[1] === 0xfe)
  const memory = bkv.newMemory()
  let acted = 0
  for (const command of new Set(bkv.uplinks.values())) {
    for (let round = 0; round < 2_000; round++) {
      // A real data part of any command, mutated; the inner length is repaired so that the fields are reached.
      const sample = samples[random(samples.length)]!
      const data = sample.slice(18, sample.length - 3)
      for (let changes = random(4); changes > 0 && data.length > 0; changes--) data[random(data.length)] = random(256)
      if (command.code !== 0x1000 && data.length >= 3 && random(4) > 0) {
        data[0] = (data.length - 3) >> 8
        data[1] = (data.length - 3) & 0xff
      }
      const fields = command.decode(data, 0, data.length)
      if (fields instanceof PayloadError) continue
      acted++
      for (const fact of command.facts?.(fields, memory) ?? []) {
        if (fact.fact === 'settlement') {
          assert.match(fact.order.wireHex, /^[0-9a-f]{4}$/)
          assert.ok(Number.isSafeInteger(fact.energyWh) && fact.startModeRaw <= 0x7fff_ffff)
        }
      }
      if (command.reply === 'none') continue
      const values = command.reply.fields(fields, { nowMs: NOW_MS, memory, card: GOOD_CARD })
      if (values === undefined) continue
      const downlink = bkv.downlinkByName.get(command.reply.with)!
      bkv.encodeFrame('downlink', downlink, 1, 2, downlink.encode(values))
    }
  }
  assert.ok(acted > 5_000, `${acted} decodable`)
  assert.ok(Object.keys(memory).length <= 128, 'a device cannot fill its memory')
})

test('operators are told what a command takes, and bounds are kept', () => {
  const control = bkv.downlinkByName.get('control')!
  assert.deepEqual(
    control.parameters?.map((parameter) => parameter.name),
    ['socket', 'port', 'on', 'mode', 'minutesMin', 'energyWh'],
  )
  const start = { socket: 1, port: 0, on: 1, mode: 1, minutesMin: 900, energyWh: 0 }
  assert.equal(Buffer.from(control.encode(start)).toString('hex'), '000807' + '0100010103840000')
  for (const wrong of [{ minutesMin: 901 }, { socket: 251 }, { on: 2 }, { mode: 2 }, { minutesMin: undefined }]) {
    assert.throws(() => control.encode({ ...start, ...wrong }), RangeError, JSON.stringify(wrong))
  }
  const set = bkv.downlinkByName.get('setParameters')!
  const flat = { noLoadDelayS: 120, socket: 2 }
  assert.deepEqual(set.encode(flat), set.encode({ bkv: flat }), 'keys may be given flat, in any order')
  for (const downlink of bkv.downlinks.values()) assert.ok(downlink.parameters !== undefined, downlink.name)
})

test('aliases are read, and every named partner exists', () => {
  for (const { code, sub, of } of ALIASES) {
    const table = of.direction === 'uplink' ? bkv.uplinks : bkv.downlinks
    assert.equal(table.get(bkv.commandKey(code, sub)), of)
  }
  for (const { reply, name } of bkv.uplinks.values()) {
    if (reply !== 'none') assert.ok(bkv.downlinkByName.has(reply.with), name)
  }
  for (const { result, name } of bkv.downlinks.values()) {
    if (result === 'none') continue
    assert.ok(bkv.uplinkByName.has(result.by), name)
    if (result.orBy !== undefined) assert.ok(bkv.uplinkByName.has(result.orBy), name)
  }
  assert.equal(new Set(bkv.uplinks.values()).size, bkv.uplinkByName.size)
  assert.equal(new Set(bkv.downlinks.values()).size, bkv.downlinkByName.size)
})

test('the command table in the README is that of the code (make it anew: see the test)', () => {
  const path = new URL('README.md', import.meta.url)
  const readme = readFileSync(path, 'utf8')
  const fresh = withCommandTable(readme, bkv)
  if (process.env['WRITE_README'] === '1') writeFileSync(path, fresh)
  else assert.equal(readme, fresh, 'run this test once with WRITE_README=1')
})
