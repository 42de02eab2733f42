/**
 * Claims: replies, results and facts follow the AP3000 document, sections 5 to 9: what is answered when and with which
 * bytes, what is never answered, what each report means in shared words and units. How: frames of the corpus and frames
 * built here, through the table as a session does it: decode, facts, then reply.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { Vector } from '../../codec/corpus-suite.ts'
import type { Fact } from '../../codec/facts.ts'
import { FieldError } from '../../codec/fields.ts'
import { type CardAnswer, type DeviceMemory, type Fields, PayloadError } from '../../codec/protocol.ts'
import { decodeCheckChunk, encodeCheckChunk } from './commands/firmware.ts'
import { ap3000, REFUSED } from './table.ts'

const vectors = JSON.parse(readFileSync(new URL('corpus/vectors.json', import.meta.url), 'utf8')) as readonly Vector[]
const NOW_MS = 1_750_923_215_987

interface Heard {
  readonly fields: Fields
  readonly facts: readonly Fact[]
  /** Data of the reply, or what the reply waits for. */
  readonly reply: string
  readonly when: string
}

/** What a session does with one uplink. */
function hear(code: number, data: Uint8Array, memory: DeviceMemory = ap3000.newMemory(), card?: CardAnswer): Heard {
  const command = ap3000.uplinks.get(code)
  assert.ok(command !== undefined)
  const fields = command.decode(data, 0, data.length)
  assert.ok(!(fields instanceof PayloadError), JSON.stringify(fields))
  const facts = command.facts?.(fields, memory) ?? []
  if (command.reply === 'none') return { fields, facts, reply: 'none', when: 'never' }
  const context = card === undefined ? { nowMs: NOW_MS, memory } : { nowMs: NOW_MS, memory, card }
  const answer = command.reply.fields(fields, context)
  const downlink = ap3000.downlinkByName.get(command.reply.with)
  assert.ok(downlink !== undefined)
  const reply = answer === undefined ? 'not now' : Buffer.from(downlink.encode(answer)).toString('hex')
  return { fields, facts, reply: `${downlink.code.toString(16)} ${reply}`, when: command.reply.when }
}
function hearVector(name: string, memory?: DeviceMemory): Heard {
  const { fields } = vectors.find((vector) => vector.name === name)!
  return hear(Number.parseInt(fields['cmd_hex'] as string, 16), hex(fields['data_hex'] as string), memory)
}
function hex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'))
}
function encode(name: string, fields: Fields): string {
  return Buffer.from(ap3000.downlinkByName.get(name)!.encode(fields)).toString('hex')
}

describe('replies', () => {
  test('register, heartbeat, old host: one byte 0, at once', () => {
    for (const [name, reply] of [
      ['20-cap-cd-0108', '20 00'],
      ['21-cap-f3-bc08', '21 00'],
      ['15-syn-host-upgrade-request', '15 00'],
    ] as const)
      assert.deepEqual([hearVector(name).reply, hearVector(name).when], [reply, 'decoded'])
  })

  test('time: seconds of the gateway’s clock', () => {
    assert.deepEqual(
      [hearVector('22-cap-cd-3b02').reply, hearVector('22-cap-cd-3b02').when],
      ['22 cff75c68', 'decoded'],
    )
    assert.equal(hearVector('12-cap-f3').reply, '12 cff75c68')
  })

  test('settlements and order confirmations: when durable', () => {
    for (const [name, reply] of [
      ['03-cap-f3-4300', '3 00'],
      ['23-syn-opaque', '23 00'],
      ['04-syn-order-confirm', '4 0100'],
    ] as const)
      assert.deepEqual([hearVector(name).reply, hearVector(name).when], [reply, 'durable'])
  })

  test('01 is answered only from who has sent it twice and never 21', () => {
    const old = ap3000.newMemory()
    const answers = () => hearVector('01-cap-cd-8008', old).reply
    assert.deepEqual([answers(), answers(), answers()], ['1 not now', '1 00', '1 00'])
    hearVector('21-cap-cd-f107', old)
    assert.deepEqual([answers(), answers()], ['1 not now', '1 not now'])
    const both = ap3000.newMemory()
    hearVector('21-cap-cd-f107', both)
    for (let count = 0; count < 5; count++) assert.equal(hearVector('01-cap-cd-8008', both).reply, '1 not now')
  })

  test('3B: command 3A with the asked frequency and the slaves last told', () => {
    const memory = ap3000.newMemory()
    assert.equal(hearVector('3b-syn-fsk-request', memory).reply, '3a d60100000000')
    hearVector('35-syn-two-types', memory)
    assert.equal(hearVector('3b-syn-fsk-request', memory).reply, '3a d601000000020101000402020004')
    hearVector('35-cap-f3', memory)
    assert.equal(hearVector('3b-syn-fsk-request', memory).reply, '3a d60100000001f36ca204')
  })

  test('02: account status, mode, balance or expiry, port as received', () => {
    const swipe = hex('a1b2c3d400ff0000231e5d6800')
    const card = (changes: Partial<CardAnswer>): CardAnswer => ({
      status: 'ok',
      rateMode: 'time',
      balanceFen: 35,
      expiresMs: null,
      ...changes,
    })
    const answer = (changes: Partial<CardAnswer>) => hear(0x02, swipe, ap3000.newMemory(), card(changes)).reply
    assert.equal(answer({}), '2 a1b2c3d4000023000000ff')
    assert.equal(answer({ status: 'unregistered' }), '2 a1b2c3d4010023000000ff')
    assert.equal(answer({ status: 'insufficient' }), '2 a1b2c3d4060023000000ff')
    assert.equal(answer({ status: 'expired' }), '2 a1b2c3d4070023000000ff')
    assert.equal(answer({ status: 'blocked' }), '2 a1b2c3d4010023000000ff')
    assert.equal(answer({ rateMode: 'energy', balanceFen: -5 }), '2 a1b2c3d4000200000000ff')
    assert.equal(answer({ rateMode: 'per_use', balanceFen: 1e12 }), '2 a1b2c3d40003ffffffffff')
    assert.equal(answer({ rateMode: 'monthly', expiresMs: 1_753_525_027_999 }), '2 a1b2c3d4000123ab8468ff')
    assert.equal(answer({ rateMode: 'monthly' }), '2 a1b2c3d40001ffffff7fff')
    const waiting = hear(0x02, swipe)
    assert.deepEqual([waiting.reply, waiting.when], ['2 not now', 'lookup'])
  })

  test('everything else is never answered, results above all', () => {
    const answered = [...ap3000.uplinks.values()].filter(({ reply }) => reply !== 'none').map(({ code }) => code)
    assert.deepEqual(answered, [0x01, 0x02, 0x03, 0x04, 0x12, 0x15, 0x20, 0x21, 0x22, 0x23, 0x3b])
  })
})

describe('results', () => {
  test('each awaited result is an uplink of the same code whose fact names its command', () => {
    for (const command of ap3000.downlinks.values()) {
      if (command.result === 'none') continue
      const uplink = ap3000.uplinkByName.get(command.result.by)
      assert.equal(uplink?.code, command.code, command.name)
      const size = 64
      const fields = uplink?.decode(new Uint8Array(size), 0, size) as Fields
      const result = uplink?.facts?.(fields, ap3000.newMemory()).find(({ fact }) => fact === 'result')
      assert.ok(result?.fact === 'result', command.name)
      assert.equal(result.downlink, command.name)
    }
  })

  test('waits and tries', () => {
    const of = (name: string) => {
      const { result } = ap3000.downlinkByName.get(name)!
      return result === 'none' ? 'none' : [result.withinMs, result.tries]
    }
    assert.deepEqual(of('startCharge'), [15_000, 2])
    assert.deepEqual(of('firmwareOldHost'), [30_000, 4])
    assert.deepEqual(of('reboot'), [15_000, 1], 'a lost result must not reboot twice')
    for (const name of [
      'askStatus',
      'heartbeatAck',
      'settlementAck',
      'cardAnswer',
      'unpublishedA2',
      'fetchOwnFirmware',
    ])
      assert.equal(of(name), 'none')
  })

  test('82: what started, what did not, and what the guide does not say', () => {
    const outcome = (code: string) => {
      const [fact] = hear(0x82, hex(`${code}${'00'.repeat(16)}010000`)).facts
      assert.ok(fact?.fact === 'result')
      return `${fact.ok} ${fact.executed} ${fact.reason} ${fact.port}`
    }
    assert.equal(outcome('00'), 'true yes ok 2')
    assert.equal(outcome('01'), 'false no no_charger 2')
    assert.equal(outcome('03'), 'true yes port_fault 2')
    assert.equal(outcome('08'), 'false unknown precheck_relay_or_fuse 2')
    assert.equal(outcome('09'), 'true yes precheck_relay_stuck 2')
    assert.equal(outcome('0e'), 'false unknown no_response 2')
    assert.equal(outcome('4d'), 'false unknown result_77 2')
  })

  test('8B: the bytes read are what its result says', () => {
    const [fact] = hear(0x8b, hex('00cafebabe')).facts
    assert.ok(fact?.fact === 'result')
    assert.deepEqual([fact.ok, fact.content], [true, { eepromHex: 'cafebabe' }])
  })

  test('8A: a limit that the rate mode does not have is refused, not dropped', () => {
    const change = { rateMode: 0, port: 0, durationS: 600 }
    assert.equal(encode('changeCharge', change), '00005802')
    assert.throws(() => encode('changeCharge', { ...change, energy10Wh: 100 }), { field: 'energy10Wh' })
    assert.throws(() => encode('changeCharge', { ...change, rateMode: 2, energy10Wh: 100 }), { field: 'durationS' })
  })

  test('chunk 0 asks for firmware', () => {
    assert.deepEqual(
      hearVector('fa-syn-request').facts.map(({ fact }) => fact),
      ['result', 'upgradeRequested'],
    )
    assert.deepEqual(
      hearVector('fa-syn-result').facts.map(({ fact }) => fact),
      ['result'],
    )
    assert.deepEqual(hearVector('05-syn-upgrade-request').facts, [{ fact: 'upgradeRequested', by: 'upgradeRequest' }])
  })
})

describe('facts', () => {
  test('settlement: captured', () => {
    assert.deepEqual(hearVector('03-cap-f3-4300').facts, [
      {
        fact: 'settlement',
        order: { socket: 0, port: 2, wireHex: '544553545f30344132364346335f3030' },
        origin: 'online',
        startModeRaw: 1,
        durationS: 5,
        energyWh: 0,
        energyRaw: 0,
        maxPowerW: 0,
        endReason: 'preset_time',
        endReasonRaw: 3,
        sentMs: 1_750_933_027_000,
      },
    ])
  })

  test('settlement: offline card, units, occupancy', () => {
    assert.deepEqual(hearVector('03-syn-offline-card-37-bytes').facts, [
      {
        fact: 'settlement',
        order: { socket: 0, port: 1, wireHex: '20250701093000a1b2c3d41354400030' },
        origin: 'card',
        cardId: 'a1b2c3d4',
        startModeRaw: 0,
        durationS: 7200,
        energyWh: 5120,
        energyRaw: 512,
        maxPowerW: 345.6,
        endReason: 'full',
        endReasonRaw: 1,
        sentMs: 1_750_933_027_000,
        occupancyMin: 45,
      },
    ])
  })

  test('settlement: every stop reason of the guide has a word, others are unknown', () => {
    const reasonOf = (raw: number) => {
      const data = new Uint8Array(29)
      data[12] = raw
      const [fact] = hear(0x03, data).facts
      assert.ok(fact?.fact === 'settlement')
      assert.equal(fact.endReasonRaw, raw)
      return fact.endReason
    }
    for (let raw = 0x01; raw <= 0x1c; raw++) assert.notEqual(reasonOf(raw), 'unknown', `reason ${raw}`)
    assert.deepEqual([0x00, 0x1d, 0xff].map(reasonOf), ['unknown', 'unknown', 'unknown'])
    assert.deepEqual([0x04, 0x05, 0x07, 0x09, 0x0d, 0x0f, 0x11, 0x16, 0x1b].map(reasonOf), [
      'preset_energy',
      'unplugged',
      'server_stop',
      'low_power',
      'unplugged',
      'relay_fault',
      'fire',
      'card_stop',
      'under_voltage',
    ])
  })

  test('progress: units, temperatures without sensor absent', () => {
    assert.deepEqual(hearVector('06-doc-power-heartbeat').facts, [
      {
        fact: 'progress',
        order: { socket: 0, port: 2, wireHex: '20190901180000130030380102030405' },
        origin: 'online',
        state: 'charging',
        stateRaw: 1,
        durationS: 3600,
        energyWh: 480,
        energyRaw: 48,
        powerW: 100,
        maxPowerW: 120,
        minPowerW: 80,
        avgPowerW: 100,
        peakPowerW: 100,
        voltageV: 220,
        currentA: 0.455,
        ambientC: 20,
      },
    ])
  })

  test('progress: state 0 is the last sample, states no guide names are ignored', () => {
    const sample = hex(vectors.find(({ name }) => name === '06-syn-45-bytes')!.fields['data_hex'] as string)
    const stateOf = (raw: number) => {
      sample[1] = raw
      const [fact] = hear(0x06, sample).facts
      return fact?.fact === 'progress' ? fact.state : 'ignored'
    }
    assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 255].map(stateOf), [
      'idle',
      'charging',
      'plugged',
      'full',
      'ignored',
      'float',
      'ignored',
      'ignored',
    ])
  })

  test('06: the hand-written form for 45 bytes is the general form', () => {
    const sample = hex(vectors.find(({ name }) => name === '06-syn-45-bytes')!.fields['data_hex'] as string)
    const exact = ap3000.uplinks.get(0x06)!.decode(sample, 0, 45)
    const longer = Uint8Array.from([...sample, 0x11])
    assert.deepEqual(ap3000.uplinks.get(0x06)!.decode(longer, 0, 46), exact)
    const record = hex(vectors.find(({ name }) => name === '03-test-35-bytes')!.fields['data_hex'] as string)
    assert.deepEqual(
      ap3000.uplinks.get(0x03)!.decode(Uint8Array.from([...record, 0x11]), 0, 36),
      ap3000.uplinks.get(0x03)!.decode(record, 0, 35),
    )
  })

  test('heartbeats: every published port state has a word', () => {
    const ports = hearVector('21-syn-sixteen-ports').facts.find(({ fact }) => fact === 'portStates')
    assert.ok(ports?.fact === 'portStates')
    assert.deepEqual(
      ports.ports.map(({ port, stateRaw, state, fault }) =>
        [port, stateRaw, fault === undefined ? state : `${state} ${fault}`].join(' '),
      ),
      [
        '1 0 idle',
        '2 1 charging',
        '3 2 plugged',
        '4 3 full',
        '5 4 fault metering',
        '6 5 float',
        '7 6 fault memory',
        '8 7 fault contact_spring_stuck',
        '9 8 fault contact_or_fuse',
        '10 9 fault relay_stuck',
        '11 10 fault hall_sensor',
        '12 11 fault precheck_relay_or_fuse',
        '13 13 fault precheck_load_short',
        '14 14 fault precheck_relay_stuck',
        '15 15 fault card_reader',
        '16 16 fault detection_circuit',
      ],
    )
    const odd = hear(0x21, hex('98080377ff0c0000')).facts.find(({ fact }) => fact === 'portStates')
    assert.ok(odd?.fact === 'portStates')
    assert.deepEqual(
      odd.ports.map(({ state, stateRaw }) => `${state} ${stateRaw}`),
      ['unknown 119', 'unknown 255', 'unknown 12'],
    )
  })

  test('01: captured', () => {
    assert.deepEqual(hearVector('01-cap-f3-bb08').facts, [
      { fact: 'heartbeat' },
      {
        fact: 'deviceInfo',
        firmware: '6.40',
        voltageV: 241.7,
        portCount: 2,
        deviceType: '31',
        virtualId: 10,
        signal: 0,
        workMode: 0,
        temperatureC: 35,
      },
      {
        fact: 'portStates',
        ports: [
          { socket: 0, port: 1, state: 'plugged', stateRaw: 2, powerW: 0, peakPowerW: 0 },
          { socket: 0, port: 2, state: 'idle', stateRaw: 0, powerW: 0, peakPowerW: 0 },
        ],
      },
    ])
  })

  test('01 and 21 without what v8.6 dropped or old firmware lacks', () => {
    const whole = hear(0x01, hex('8002240902000000000000000000001e00315e00')).fields
    const without = hear(0x01, hex('8002240902000000000000000000001e00315e')).fields
    assert.equal(whole['workModeHex'], '00')
    assert.deepEqual({ ...without, workModeHex: '00' }, whole)
    assert.deepEqual(hear(0x01, hex('800224090100010002000300').subarray(0, 10)).fields['portPeakPowerDw'], [2])
    assert.deepEqual(hear(0x21, hex('980801000a')).facts[1], {
      fact: 'deviceInfo',
      voltageV: 220,
      portCount: 1,
      signal: 10,
    })
    for (const [code, data, at] of [
      [0x01, '80', 'fwVersion'],
      [0x01, '800224', 'voltageDv'],
      [0x01, '80022409', 'ports'],
      [0x01, '80022409ff0000', 'portStates'],
      [0x21, '980802', 'portStates'],
      [0x06, '00', 'portState'],
    ] as const) {
      const command = ap3000.uplinks.get(code)!
      assert.deepEqual(command.decode(hex(data), 0, data.length / 2), new PayloadError('too_short', at))
    }
  })

  test('host status: identity, module, clock; signal 99 is none, above 100 is another scale', () => {
    const [, info, clock] = hearVector('11-cap-f3-a').facts
    assert.deepEqual(info, {
      fact: 'deviceInfo',
      firmware: '6.16',
      deviceType: '55',
      iccid: '898604D9162390488297',
      signal: 31,
      imei: '864452069762472',
      module: 'V1.0.00.000000.0616',
    })
    assert.deepEqual(clock, { fact: 'clock', deviceMs: 1_750_662_176_000 })
    const without = hearVector('11-syn-signal-99').facts
    assert.equal(without.length, 2, 'no clock fact without a clock')
    assert.ok(without[1]?.fact === 'deviceInfo' && without[1].signal === undefined)
    const other = hex(vectors.find(({ name }) => name === '11-syn-signal-99')!.fields['data_hex'] as string)
    other[7] = 197
    const scaled = hear(0x11, other).facts[1]
    assert.ok(scaled?.fact === 'deviceInfo' && scaled.signal === 31)
  })

  test('slaves of a host', () => {
    assert.deepEqual(hearVector('35-syn-two-types').facts, [
      {
        fact: 'slaveTypes',
        slaves: [
          { deviceNo: 0x04000101, deviceType: '21', firmware: '2.10' },
          { deviceNo: 0x04000202, deviceType: '25', firmware: '4.05' },
        ],
      },
    ])
    assert.deepEqual(ap3000.uplinks.get(0x35)!.decode(hex('02210000'), 0, 4), new PayloadError('inner_length', 'types'))
  })

  test('card: port from 1, 0 = only a balance query; a social security card is its identity', () => {
    assert.deepEqual(hearVector('02-doc-card-swipe').facts, [
      { fact: 'cardSwiped', cardId: '7a8d05dd', socket: 0, port: 2, cardKind: 0, balanceFen: 0 },
    ])
    assert.deepEqual(hearVector('02-syn-balance-query').facts, [
      { fact: 'cardSwiped', cardId: 'a1b2c3d4', socket: 0, port: 0, cardKind: 0, balanceFen: 0 },
    ])
    const [social] = hearVector('02-syn-social-security-card').facts
    assert.ok(social?.fact === 'cardSwiped')
    assert.equal(social.cardId, '34343033303031393930303130313158')
    const swipe = (card: string) => `${card}04ff000000000000${'10'}${'31'.repeat(16)}`
    const cardOf = (card: string) => hear(0x02, hex(swipe(card))).facts.map((fact) => 'cardId' in fact && fact.cardId)
    assert.deepEqual([cardOf('00000000'), cardOf('00000001')], [['31'.repeat(16)], ['00000001']])
    assert.deepEqual(
      ap3000.uplinks.get(0x02)!.decode(hex('a1b2c3d400ff0000231e5d6805aabb'), 0, 15),
      new PayloadError('inner_length', 'card2Hex'),
    )
  })

  test('alarms: port, sensor or nothing, by type', () => {
    const alarm = (data: string) => hear(0x42, hex(data)).facts[0]
    const shared = { fact: 'alarm', socket: 0 }
    assert.deepEqual(alarm('040305'), { ...shared, kind: 'smoke', kindRaw: 4, port: 0, trigger: 5, sensor: 3 })
    assert.deepEqual(alarm('030300'), { ...shared, kind: 'fire', kindRaw: 3, port: 4, trigger: 0 })
    assert.deepEqual(alarm('010300'), { ...shared, kind: 'power_cut', kindRaw: 1, port: 0, trigger: 0 })
    assert.deepEqual(alarm('630300'), { ...shared, kind: 'unknown', kindRaw: 99, port: 0, trigger: 0 })
    assert.deepEqual(hearVector('44-syn-door-not-closed').facts, [
      { ...shared, kind: 'door_not_closed', kindRaw: 1, port: 5 },
    ])
  })

  test('43 is progress, 04 confirms, 23 is kept as it came', () => {
    const [full] = hearVector('43-syn-full-not-settled').facts
    assert.ok(full?.fact === 'progress' && full.state === 'full' && full.energyWh === 7330)
    const [confirmed] = hearVector('04-syn-order-confirm').facts
    assert.ok(confirmed?.fact === 'orderConfirmed' && confirmed.order.port === 2 && confirmed.durationS === 12)
    const opaque = hearVector('23-syn-opaque')
    assert.deepEqual(opaque.facts, [{ fact: 'opaqueSettlement' }])
    assert.equal(opaque.fields['dataHex'], vectors.find(({ name }) => name === '23-syn-opaque')!.fields['data_hex'])
  })
})

describe('downlinks', () => {
  const order = { port: 0, command: 1, orderHex: '43445a32353037303130393330413031' }

  test('82 is 29, 37 or 38 bytes by what is given, and what is left out is zero', () => {
    assert.equal(
      encode('startCharge', { ...order, balanceFen: 1000, durationS: 60 }),
      `00e8030000${'0001'}3c00${order.orderHex}${'0000'}${'0000'}`,
    )
    assert.equal(
      encode('startCharge', { ...order, longCharge: 1 }),
      `0000000000${'0001'}0000${order.orderHex}${'00000000'}${'0001000002000000'}`,
    )
    const whole = encode('startCharge', { ...order, rateMode: 2, energy10Wh: 150, fullPowerMaxMin: 60 })
    assert.equal(whole.length / 2, 38)
    assert.equal(whole.slice(14, 18), '9600')
    assert.equal(encode('startCharge', { ...order, rateMode: 1, expiryS: 0x6884ab23 }).slice(0, 10), '0123ab8468')
    // the stop a caller writes: port, command, order
    assert.equal(encode('startCharge', { ...order, command: 0 }), `${'00'.repeat(9)}${order.orderHex}00000000`)
  })

  test('82 without port, command or order is refused with the field’s name', () => {
    for (const name of ['port', 'command', 'orderHex']) {
      const { [name]: _, ...others } = order as Record<string, unknown>
      assert.throws(
        () => encode('startCharge', others),
        (error) => error instanceof FieldError && error.field === name,
      )
    }
    assert.throws(() => encode('startCharge', { ...order, command: 2 }), FieldError)
    assert.throws(() => encode('startCharge', { ...order, durationS: 65_536 }), FieldError)
  })

  test('85 writes both voltages or none', () => {
    assert.equal(encode('setLimits', { maxChargeS: 36_000, overloadPowerDw: 20_000 }), 'a08c204e')
    assert.equal(
      encode('setLimits', { maxChargeS: 36_000, overloadPowerDw: 20_000, overVoltageDv: 2700 }),
      'a08c204e8c0ae803',
    )
  })

  test('every downlink describes its parameters, and the described names are what encode takes', () => {
    for (const command of ap3000.downlinks.values()) {
      assert.ok(command.parameters !== undefined, command.name)
      const names = command.parameters.map(({ name }) => name)
      assert.equal(new Set(names).size, names.length, command.name)
      for (const vector of vectors) {
        if (!vector.valid || vector.direction !== 'down' || vector.fields['payloadError'] !== undefined) continue
        if (Number.parseInt(vector.fields['cmd_hex'] as string, 16) !== command.code) continue
        const data = hex(vector.fields['data_hex'] as string)
        const fields = command.decode(data, 0, data.length)
        if (fields instanceof PayloadError) assert.fail(vector.name)
        // FA's empty trigger and the counts of 8C say nothing a caller has to give
        for (const name of Object.keys(fields))
          if (name !== 'trigger' && !(command.code === 0x8c && name === 'bytes'))
            assert.ok(names.includes(name), `${command.name}.${name}`)
      }
    }
  })

  test('text that must end in a zero keeps room for it', () => {
    const qr = { mainScreen: 1, reservedHex: '000000' }
    assert.equal(encode('setQrText', { ...qr, qrAscii: 'x'.repeat(71) }).slice(-4), '7800')
    assert.throws(() => encode('setQrText', { ...qr, qrAscii: 'x'.repeat(72) }), FieldError)
  })

  test('the check chunk', () => {
    const check = { sum: 98_765, deviceTypeHex: '21', fwVersion: 203 }
    assert.deepEqual(decodeCheckChunk(encodeCheckChunk(check)), check)
    assert.equal(encodeCheckChunk(check).length, 400)
    assert.equal(decodeCheckChunk('00'.repeat(200)), undefined)
  })

  test('lists and registers are checked', () => {
    assert.throws(() => encode('setFsk', { frequencyMhz: 470, slaves: ['04A26CF3'] }), FieldError)
    assert.throws(() => encode('setFsk', { frequencyMhz: 470 }), FieldError)
    assert.throws(() => encode('setFsk', { frequencyMhz: 470, slaves: Array(51).fill('04a26cf3') }), FieldError)
    assert.throws(() => encode('placeholderFd', { function: 1, registers: [1, 2, 3] }), FieldError)
  })
})

describe('table', () => {
  test('names are unique, and no code is lost to another', () => {
    assert.equal(ap3000.uplinkByName.size, ap3000.uplinks.size)
    assert.equal(ap3000.downlinkByName.size, ap3000.downlinks.size)
  })

  test('every code of the overview is in the table or refused with a reason', () => {
    const overview =
      '00 01 02 03 04 05 06 07 08 73 09 0A 11 12 15 17 20 21 22 23 26 35 3B 41 42 43 44 E0 FA 31 32 33 34 3A 72 81 82 83 84 85 86 87 88 89 8A 8B 8C 8D 8E 8F 90 91 92 93 94 95 96 97 98 A1 A2 A3 A4 A5 A6 19 1A E1 E2 E4 F8 F9 FD FE'
    for (const text of overview.split(' ')) {
      const code = Number.parseInt(text, 16)
      const isRefused = REFUSED.some((refused) => refused.code === code)
      assert.ok(ap3000.uplinks.has(code) || ap3000.downlinks.has(code) || isRefused, text)
    }
  })

  test('any data: no decoder and no facts throw, and what an uplink decodes it encodes to what decodes the same', () => {
    const uplinks = [...ap3000.uplinks.values()]
    const data = fc.oneof(fc.uint8Array({ maxLength: 60 }), fc.uint8Array({ maxLength: 60, max: 3 }))
    fc.assert(
      fc.property(fc.nat(uplinks.length - 1), data, (index, bytes) => {
        const command = uplinks[index]!
        const fields = command.decode(bytes, 0, bytes.length)
        if (fields instanceof PayloadError) return
        command.facts?.(fields, ap3000.newMemory())
        const encoded = command.encode(fields)
        // optional fields that go together may come back in company
        assert.partialDeepStrictEqual(command.decode(encoded, 0, encoded.length), fields, command.name)
      }),
      { numRuns: 5_000 },
    )
    for (const command of ap3000.downlinks.values())
      fc.assert(fc.property(data, (bytes) => void command.decode(bytes, 0, bytes.length)))
  })

  test('what is unpublished is raw in both directions', () => {
    for (const command of [...ap3000.uplinks.values(), ...ap3000.downlinks.values()]) {
      if (command.layout !== 'unpublished') continue
      assert.deepEqual(command.decode(hex('00ff10'), 0, 3), { dataHex: '00ff10' })
      assert.equal(Buffer.from(command.encode({ dataHex: '00ff10' })).toString('hex'), '00ff10')
    }
  })
})
