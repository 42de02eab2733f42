/**
 * Claims: every mode becomes the bytes of the vendor documents, on both protocols; what neither device nor gateway can
 * do is refused with its reason; limits the device cannot keep are handed to the gateway (D19 of the field: every mode
 * was sent as minutes, amounts were ignored). How: plans are encoded by the real codecs and compared with
 * `corpus/vectors.json` of both protocols; random requests (fast-check, which prints the seed of a failure) never give
 * a plan that cannot be encoded, nor one whose bytes lose what was asked for.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import { type CardAnswer, type FrameHead, PayloadError, type Protocol } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import {
  CHARGE_MODES,
  type ChargePlan,
  type ChargeRequest,
  chargePlan,
  isRefusal,
  limitReached,
  type Refusal,
  stopPlan,
} from './charge-plan.ts'
import { isTariffProblem, parseTariff, type Tariff } from './tariff.ts'

const PROTOCOLS = { ap3000, bkv } as const

interface Vector {
  readonly name: string
  readonly hex: string
}
function vectorOf(protocol: Protocol, name: string): Uint8Array {
  const place = new URL(`../protocols/${protocol.name}/corpus/vectors.json`, import.meta.url)
  const found = (JSON.parse(readFileSync(place, 'utf8')) as Vector[]).find((vector) => vector.name === name)
  assert.ok(found, name)
  return Uint8Array.from(Buffer.from(found.hex, 'hex'))
}

function headOf(protocol: Protocol, bytes: Uint8Array): FrameHead {
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  protocol.readHead(bytes, 0, bytes.length, head)
  return head
}
const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

function dataOf(protocol: Protocol, { name, fields }: Pick<ChargePlan, 'name' | 'fields'>): Uint8Array {
  const downlink = protocol.downlinkByName.get(name)
  assert.ok(downlink, name)
  return downlink.encode(fields)
}

/** The plan as a whole frame to the device and with the message id of the vector. */
function frameLike(protocol: Protocol, plan: Pick<ChargePlan, 'name' | 'fields'>, vector: Uint8Array): string {
  const { deviceNo, messageId } = headOf(protocol, vector)
  const downlink = protocol.downlinkByName.get(plan.name)!
  return hexOf(protocol.encodeFrame('downlink', downlink, deviceNo, messageId, dataOf(protocol, plan)))
}

function decoded(protocol: Protocol, plan: Pick<ChargePlan, 'name' | 'fields'>): Record<string, unknown> {
  const data = dataOf(protocol, plan)
  const fields = protocol.downlinkByName.get(plan.name)!.decode(data, 0, data.length)
  assert.ok(!(fields instanceof PayloadError))
  return fields as Record<string, unknown>
}

function planned(protocol: Protocol, request: Partial<ChargeRequest>): ChargePlan {
  const found = chargePlan(protocol.name, { mode: 'full', port: 1, orderNo: 'ORDER_1', ...request })
  if (isRefusal(found)) assert.fail(`${found.reason}: ${found.message}`)
  return found
}
function refused(protocol: Protocol, request: Partial<ChargeRequest>): string {
  const found = chargePlan(protocol.name, { mode: 'full', port: 1, orderNo: 'ORDER_1', ...request })
  assert.ok(isRefusal(found), JSON.stringify(found))
  assert.ok(found.message.length > 10)
  return `${found.code} ${found.reason}`
}
function tariffOf(json: unknown): Tariff {
  const found = parseTariff(json)
  if (isTariffProblem(found)) assert.fail(`${found.at}: ${found.problem}`)
  return found
}

const BY_TIME = tariffOf({ time: { price_fen: 50, step_minutes: 60 } })
const BY_ENERGY = tariffOf({ energy: { price_fen_per_kwh: 120 } })
const TIERS = [
  [200, 25, 60],
  [400, 50, 60],
  [600, 100, 60],
  [800, 150, 60],
  [2000, 500, 120],
].map(([max_power_w, price_fen, minutes]) => ({ max_power_w, price_fen, minutes }))
const BY_POWER = tariffOf({ power: { tiers: TIERS } })
const window = (end: string, electricity_fen_per_kwh: number, service_fen_per_kwh: number) => ({
  end,
  electricity_fen_per_kwh,
  service_fen_per_kwh,
})
const BY_PERIOD = tariffOf({ periods: { windows: [window('08:00', 50, 50), window('24:00', 100, 50)] } })

// ---- AP3000 -----------------------------------------------------------------------------------------------------

test('AP3000 time: the captured start, to the byte', () => {
  const vector = vectorOf(ap3000, '82-live-start-37-bytes')
  const plan = planned(ap3000, { mode: 'time', port: 2, durationS: 60, orderNo: 'ORDER_2025061900', balanceFen: 1000 })
  assert.equal(frameLike(ap3000, plan, vector), hexOf(vector))
  assert.equal(plan.wireHex, '4f524445525f32303235303631393030')
  assert.equal(plan.gatewayLimits, null)
  const other = vectorOf(ap3000, '82-test-start-37-bytes')
  const first = planned(ap3000, { mode: 'time', port: 1, durationS: 60, orderNo: 'ORDER_2025061909', balanceFen: 1010 })
  assert.equal(frameLike(ap3000, first, other), hexOf(other))
})

test('AP3000 energy: rate mode 2, 0.01 kWh rounded up; the vector has one byte more', () => {
  const vector = vectorOf(ap3000, '82-syn-start-energy')
  const { dataFrom } = headOf(ap3000, vector)
  const request = {
    mode: 'energy',
    orderNo: 'CDZ2507010930A01',
    maxDurationS: 36_000,
    maxPowerW: 800,
    balanceFen: 5000,
  } as const
  for (const energyWh of [1500, 1491])
    assert.equal(
      hexOf(dataOf(ap3000, planned(ap3000, { ...request, energyWh }))),
      hexOf(vector.slice(dataFrom, dataFrom + 37)),
    )
  // never 0, which would be until full
  assert.equal(planned(ap3000, { mode: 'energy', energyWh: 0.5 }).fields['energy10Wh'], 1)
  assert.equal(planned(ap3000, { mode: 'energy', energyWh: Number.MIN_VALUE }).fields['energy10Wh'], 1)
})

test('AP3000 full: rate mode 0 with 0 seconds, limits as in the guide’s example', () => {
  const vector = vectorOf(ap3000, '82-doc-start')
  const { dataFrom, dataTo } = headOf(ap3000, vector)
  const plan = planned(ap3000, {
    port: 2,
    orderNo: '12345678123456781234567812345678',
    balanceFen: 356,
    maxDurationS: 28_800,
    maxPowerW: 500,
  })
  const expected = hexOf(vector.slice(dataFrom, dataTo))
  assert.equal(hexOf(dataOf(ap3000, plan)).slice(0, 58), expected)
  assert.equal(dataOf(ap3000, plan).length, 37)
})

test('AP3000 budget and power: until full, and the gateway counts the money', () => {
  for (const [mode, tariff] of [
    ['budget', BY_ENERGY],
    ['budget', BY_PERIOD],
    ['power', BY_POWER],
  ] as const) {
    const plan = planned(ap3000, { mode, amountFen: 300, tariff, maxDurationS: 7200 })
    const { rateMode, durationS, maxChargeS, command, balanceFen } = decoded(ap3000, plan)
    assert.deepEqual([rateMode, durationS, maxChargeS, command, balanceFen], [0, 0, 7200, 1, 300])
    assert.deepEqual(plan.gatewayLimits, { amountFen: 300 })
  }
  assert.equal(planned(ap3000, { mode: 'power', tariff: BY_POWER }).gatewayLimits, null)
  assert.equal(refused(ap3000, { mode: 'budget', amountFen: 300 }), 'FAILED_PRECONDITION tariff_missing')
  assert.equal(refused(ap3000, { mode: 'power', amountFen: 300 }), 'FAILED_PRECONDITION power_tiers_missing')
  assert.equal(
    refused(ap3000, { mode: 'power', amountFen: 300, tariff: BY_TIME }),
    'FAILED_PRECONDITION power_tiers_missing',
  )
})

test('AP3000: what does not fit the frame is refused, wire port ff is never sent', () => {
  const cases: readonly [Partial<ChargeRequest>, string][] = [
    [{ mode: 'time', durationS: 65_536 }, 'duration_s_range'],
    [{ mode: 'energy', energyWh: 655_351 }, 'energy_wh_range'],
    [{ maxPowerW: 6_554 }, 'max_power_w_range'],
    [{ port: 0 }, 'port_range'],
    [{ port: 256 }, 'port_range'],
    [{ port: 1.5 }, 'port_range'],
    [{ socket: 1 }, 'socket_unused'],
    [{ orderNo: 'seventeen-letters' }, 'order_no_form'],
    [{ orderNo: 'f'.repeat(32) }, 'order_no_blank'],
  ]
  for (const [request, reason] of cases) assert.equal(refused(ap3000, request), `INVALID_ARGUMENT ${reason}`)
  assert.equal(planned(ap3000, { port: 255 }).fields['port'], 254)
  assert.equal(planned(ap3000, { maxDurationS: 100_000 }).fields['maxChargeS'], 65_535)
  assert.equal(planned(ap3000, { maxDurationS: 0.4, maxPowerW: 0.01 }).fields['maxChargeS'], 1)
})

test('AP3000 stop: zeros but for port and the running order', () => {
  const vector = vectorOf(ap3000, '82-syn-stop')
  const { dataFrom } = headOf(ap3000, vector)
  const plan = stopPlan('ap3000', 2, 0, '43445a32353037303130393330413031')
  assert.ok(!isRefusal(plan))
  assert.equal(hexOf(dataOf(ap3000, plan)), hexOf(vector.slice(dataFrom, dataFrom + 37)))
  assert.equal((stopPlan('ap3000', 2, 0, '') as Refusal).reason, 'order_unknown')
  assert.equal((stopPlan('ap3000', 256, 0, '43445a32353037303130393330413031') as Refusal).reason, 'port_range')
})

// ---- BKV --------------------------------------------------------------------------------------------------------

test('BKV time, energy, stop: the vectors, to the byte', () => {
  const time = vectorOf(bkv, '0015-07-test-control-corrected')
  assert.equal(frameLike(bkv, planned(bkv, { mode: 'time', socket: 2, durationS: 240 * 60 }), time), hexOf(time))
  // a minute begun is a minute
  assert.equal(frameLike(bkv, planned(bkv, { mode: 'time', socket: 2, durationS: 239 * 60 + 1 }), time), hexOf(time))
  const single = vectorOf(bkv, '0015-07-syn-single-unit')
  assert.equal(frameLike(bkv, planned(bkv, { mode: 'time', durationS: 3600 }), single), hexOf(single))
  // the captured start: the energy field, ignored in time mode, was 1 there
  const captured = vectorOf(bkv, '0015-07-cap-start')
  const start = planned(bkv, { mode: 'time', socket: 1, durationS: 60 })
  const asCaptured = { ...start, fields: { ...start.fields, energyWh: 1 } }
  assert.equal(frameLike(bkv, asCaptured, captured), hexOf(captured))
  const energy = vectorOf(bkv, '0015-07-syn-start-energy')
  assert.equal(
    frameLike(bkv, planned(bkv, { mode: 'energy', socket: 1, port: 2, energyWh: 1000 }), energy),
    hexOf(energy),
  )
  const stop = vectorOf(bkv, '0015-07-syn-stop')
  const plan = stopPlan('bkv', 1, 1, '')
  assert.ok(!isRefusal(plan))
  assert.equal(frameLike(bkv, plan, stop), hexOf(stop))
})

test('BKV full: 900 minutes, or less where a maximum is given', () => {
  assert.deepEqual(planned(bkv, { socket: 3 }).fields, {
    socket: 3,
    port: 0,
    on: 1,
    mode: 1,
    minutesMin: 900,
    energyWh: 0,
  })
  assert.equal(planned(bkv, { maxDurationS: 3_659 }).fields['minutesMin'], 60)
  assert.equal(planned(bkv, { maxDurationS: 10 }).fields['minutesMin'], 1)
  assert.equal(planned(bkv, { mode: 'time', durationS: 7_200, maxDurationS: 3_600 }).fields['minutesMin'], 60)
})

test('BKV power: the guide’s start by power tiers (which prints outer command 0005; 0015 is sent)', () => {
  const vector = vectorOf(bkv, '0005-17-doc-start-by-power')
  const { dataFrom, dataTo } = headOf(bkv, vector)
  for (const mode of ['power', 'budget'] as const) {
    const plan = planned(bkv, { mode, socket: 1, amountFen: 100, tariff: BY_POWER })
    assert.equal(plan.name, 'startByPower')
    assert.equal(hexOf(dataOf(bkv, plan)), hexOf(vector.slice(dataFrom, dataTo)))
    assert.equal(frameLike(bkv, plan, vector).slice(8, 12), '0015')
    assert.equal(plan.gatewayLimits, null)
  }
  assert.equal(refused(bkv, { mode: 'power', tariff: BY_POWER }), 'INVALID_ARGUMENT amount_fen_missing')
  assert.equal(refused(bkv, { mode: 'power', amountFen: 100 }), 'FAILED_PRECONDITION power_tiers_missing')
})

test('BKV budget: the guide’s start with price windows, to the byte', () => {
  const vector = vectorOf(bkv, '1000-1007-test-start-fees')
  const tariff = tariffOf({ periods: { windows: [window('23:59', 50, 50)] } })
  const plan = planned(bkv, { mode: 'budget', socket: 1, amountFen: 100, tariff })
  assert.equal(frameLike(bkv, plan, vector), hexOf(vector))
  // two windows; the vector leaves out the unknown key F4
  const two = vectorOf(bkv, '1000-1007-syn-two-tiers')
  const other = planned(bkv, { mode: 'budget', socket: 2, port: 2, amountFen: 5000, tariff: BY_PERIOD })
  const { keyF4, ...withoutF4 } = other.fields['bkv'] as Record<string, unknown>
  assert.equal(keyF4, 2)
  assert.equal(frameLike(bkv, { ...other, fields: { bkv: withoutF4 } }, two), hexOf(two))
  // a flat energy price is one window
  const flat = planned(bkv, { mode: 'budget', amountFen: 500, tariff: BY_ENERGY }).fields['bkv'] as Record<
    string,
    unknown
  >
  assert.deepEqual(flat['tiers'], [{ endHhMm: '23:59', electricityPriceFenPerKwh: 120, servicePriceFenPerKwh: 0 }])
})

test('BKV: a tariff the device cannot be told is counted by the gateway', () => {
  const json = { power: { tiers: TIERS } }
  const more = [...TIERS, { max_power_w: 3000, price_fen: 600, minutes: 60 }]
  const unsayable = [
    BY_TIME,
    tariffOf({ ...json, free_minutes: 5 }),
    tariffOf({ ...json, cap_fen: 50 }),
    tariffOf({ ...json, energy: { price_fen_per_kwh: 10 } }),
    tariffOf({ power: { tiers: more } }),
    tariffOf({ power: { tiers: [{ max_power_w: 7000, price_fen: 1, minutes: 1 }] } }),
    tariffOf({ energy: { price_fen_per_kwh: 70_000 } }),
  ]
  for (const tariff of unsayable) {
    const plan = planned(bkv, { mode: 'budget', amountFen: 100, tariff, maxDurationS: 36_000 })
    assert.deepEqual(plan.fields, { socket: 0, port: 0, on: 1, mode: 1, minutesMin: 600, energyWh: 0 })
    assert.deepEqual(plan.gatewayLimits, { amountFen: 100 })
  }
  assert.deepEqual(planned(bkv, { mode: 'budget', amountFen: 70_000, tariff: BY_POWER }).gatewayLimits, {
    amountFen: 70_000,
  })
  // a cap that is never reached leaves nothing out
  assert.equal(
    planned(bkv, { mode: 'budget', amountFen: 100, tariff: tariffOf({ ...json, cap_fen: 100 }) }).name,
    'startByPower',
  )
})

test('BKV: what a downlink has no field for is the gateway’s, or refused', () => {
  for (const request of [
    { mode: 'energy', energyWh: 1000 },
    { mode: 'budget', amountFen: 100, tariff: BY_PERIOD },
    { mode: 'power', amountFen: 100, tariff: BY_POWER },
  ] as const)
    assert.deepEqual(planned(bkv, { ...request, maxDurationS: 3600 }).gatewayLimits, { durationS: 3600 })
  const cases: readonly [Partial<ChargeRequest>, string][] = [
    [{ maxPowerW: 300 }, 'FAILED_PRECONDITION max_power_unsupported'],
    [{ mode: 'time', durationS: 54_001 }, 'INVALID_ARGUMENT duration_s_range'],
    [{ mode: 'energy', energyWh: 65_536 }, 'INVALID_ARGUMENT energy_wh_range'],
    [{ port: 3 }, 'INVALID_ARGUMENT port_range'],
    [{ socket: 251 }, 'INVALID_ARGUMENT socket_range'],
  ]
  for (const [request, expected] of cases) assert.equal(refused(bkv, request), expected)
})

// ---- both -------------------------------------------------------------------------------------------------------

test('a quantity that the mode would ignore is refused, one that it needs is demanded', () => {
  for (const protocol of [ap3000, bkv]) {
    const cases: readonly [Partial<ChargeRequest>, string][] = [
      [{ mode: 'full', durationS: 60 }, 'duration_s_unused'],
      [{ mode: 'full', amountFen: 60 }, 'amount_fen_unused'],
      [{ mode: 'time', durationS: 60, energyWh: 1 }, 'energy_wh_unused'],
      [{ mode: 'time', durationS: 60, amountFen: 1 }, 'amount_fen_unused'],
      [{ mode: 'budget', durationS: 60, amountFen: 1 }, 'duration_s_unused'],
      [{ mode: 'time' }, 'duration_s_missing'],
      [{ mode: 'energy' }, 'energy_wh_missing'],
      [{ mode: 'budget', tariff: BY_ENERGY }, 'amount_fen_missing'],
      [{ mode: 'time', durationS: 0 }, 'duration_s_range'],
      [{ mode: 'energy', energyWh: Number.NaN }, 'energy_wh_range'],
      [{ mode: 'budget', amountFen: 1.5, tariff: BY_ENERGY }, 'amount_fen_range'],
      [{ maxPowerW: 0 }, 'max_power_w_range'],
      [{ maxDurationS: -1 }, 'max_duration_s_range'],
      [{ balanceFen: -1 }, 'balance_fen_range'],
    ]
    for (const [request, reason] of cases) assert.equal(refused(protocol, request), `INVALID_ARGUMENT ${reason}`)
  }
})

test('limitReached: a paid step may be used to its end, a duration is over when it is over', () => {
  const usage = (durationS: number, energyWh = 0) => ({ startedMs: 0, durationS, energyWh, maxPowerW: 0 })
  assert.equal(limitReached({ amountFen: 100 }, usage(7_200), BY_TIME), null)
  assert.equal(limitReached({ amountFen: 100 }, usage(7_201), BY_TIME), 'amount')
  assert.equal(limitReached({ amountFen: 120 }, usage(60, 1_000), BY_ENERGY), null)
  assert.equal(limitReached({ amountFen: 120 }, usage(60, 1_010), BY_ENERGY), 'amount')
  assert.equal(limitReached({ durationS: 60 }, usage(59), undefined), null)
  assert.equal(limitReached({ durationS: 60 }, usage(60), undefined), 'duration')
})

test('any request: a plan is encodable and keeps what was asked, or there is a refusal', () => {
  const option = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: undefined, freq: 2 })
  const request = fc.record({
    mode: fc.constantFrom(...CHARGE_MODES),
    port: fc.integer({ min: -1, max: 300 }),
    socket: option(fc.integer({ min: -1, max: 300 })),
    orderNo: fc.string({ maxLength: 33 }),
    durationS: option(fc.integer({ min: 0, max: 100_000 })),
    energyWh: option(fc.double({ min: 0, max: 700_000, noNaN: true })),
    amountFen: option(fc.integer({ min: 0, max: 200_000 })),
    maxPowerW: option(fc.double({ min: 0, max: 8_000, noNaN: true })),
    maxDurationS: option(fc.double({ min: 0, max: 100_000, noNaN: true })),
    tariff: option(fc.constantFrom(BY_TIME, BY_ENERGY, BY_POWER, BY_PERIOD)),
    balanceFen: option(fc.integer({ min: 0, max: 2 ** 40 })),
  })
  let plans = 0
  fc.assert(
    fc.property(fc.constantFrom('ap3000' as const, 'bkv' as const), request, (name, drawn) => {
      // half of them with exactly what their mode takes, so that most are plans
      const given = drawn.port % 2 === 0 ? drawn : fitting(drawn)
      const found = chargePlan(name, definedOf(given) as unknown as ChargeRequest)
      if (isRefusal(found)) {
        assert.ok(found.reason !== '' && found.message !== '')
        return
      }
      plans++
      const protocol = PROTOCOLS[name]
      const wire = decoded(protocol, found)
      const on = name === 'ap3000' ? wire['command'] : ((wire['bkv'] ?? wire) as Record<string, unknown>)['on']
      assert.equal(on, 1)
      const { mode, durationS, energyWh, amountFen, maxDurationS } = given
      if (mode === 'time' && maxDurationS === undefined) {
        const seconds = name === 'ap3000' ? (wire['durationS'] as number) : 60 * (wire['minutesMin'] as number)
        assert.ok(seconds >= durationS! && seconds < durationS! + 60)
      }
      if (mode === 'energy') {
        const wattHours = name === 'ap3000' ? 10 * (wire['energy10Wh'] as number) : (wire['energyWh'] as number)
        assert.ok(wattHours > 0 && wattHours >= energyWh! && wattHours < Math.ceil(energyWh!) + 10)
      }
      if ((mode === 'budget' || mode === 'power') && amountFen !== undefined) {
        const told = ((wire['bkv'] ?? wire) as Record<string, unknown>)['amountFen']
        assert.equal(told ?? found.gatewayLimits?.amountFen, amountFen)
      }
    }),
    { numRuns: 3_000 },
  )
  assert.ok(plans > 300, `only ${plans} plans`)
})

type Drawn = { [K in keyof ChargeRequest]?: ChargeRequest[K] | undefined }

function fitting<D extends Drawn>(drawn: D): D {
  const { mode } = drawn
  return {
    ...drawn,
    port: 1,
    socket: 0,
    orderNo: 'ORDER_1',
    maxPowerW: undefined,
    durationS: mode === 'time' ? drawn.durationS : undefined,
    energyWh: mode === 'energy' ? drawn.energyWh : undefined,
    amountFen: mode === 'budget' || mode === 'power' ? drawn.amountFen : undefined,
  }
}

function definedOf(drawn: Drawn): object {
  return Object.fromEntries(Object.entries(drawn).filter(([, value]) => value !== undefined))
}

test('AP3000: an 82 says how the card that was shown is charged, and when its month ends', () => {
  const start = (rateMode: CardAnswer['rateMode'], expiresMs: number | null = null) => {
    const plan = chargePlan('ap3000', { mode: 'full', port: 2, orderNo: 'a', account: { rateMode, expiresMs } })
    assert.ok(!isRefusal(plan))
    const downlink = ap3000.downlinkByName.get(plan.name)!
    return Buffer.from(downlink.encode(plan.fields)).toString('hex', 0, 9)
  }
  assert.equal(start('time'), '000000000001010000')
  assert.equal(start('monthly', 0x6a000000 * 1_000), '010000006a01010000')
  assert.equal(start('monthly'), '01ffffff7f01010000')
  assert.equal(start('energy'), '020000000001010000')
  assert.equal(start('per_use'), '030000000001010000')
})
