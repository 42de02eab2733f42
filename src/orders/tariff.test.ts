/**
 * Claims: amounts are whole fen, computed as README.md says, and their lines add up exactly; no amount is negative,
 * more energy never costs less, longer never costs less (without windows of different prices: there energy may move to a
 * cheaper one), minimum, cap and prepaid amount hold. How: worked examples, then random tariffs and charges (fast-check
 * prints the counterexample and its seed). Tariffs that are none are named with the place.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import { amountOf, isTariffProblem, LINE_KINDS, parseTariff, type Tariff, type Usage } from './tariff.ts'

function tariffOf(json: unknown): Tariff {
  const found = parseTariff(json)
  if (isTariffProblem(found)) assert.fail(`${found.at}: ${found.problem}`)
  return found
}
/** 2025-06-19 00:00 in Beijing. */
const MIDNIGHT_MS = Date.UTC(2025, 5, 18, 16)
const HOUR_MS = 3_600_000

function amount(json: unknown, usage: Partial<Usage>): number {
  const given = { startedMs: MIDNIGHT_MS, durationS: 3600, energyWh: 0, maxPowerW: 0, ...usage }
  return amountOf(tariffOf(json), given).amountFen
}

test('time: started steps count whole', () => {
  const json = { time: { price_fen: 50, step_minutes: 60 } }
  const expected = [
    [1, 50],
    [3600, 50],
    [3601, 100],
    [7200, 100],
    [0, 0],
  ] as const
  for (const [durationS, fen] of expected) assert.equal(amount(json, { durationS }), fen, `${durationS} s`)
})

test('energy: half a fen is rounded up, once', () => {
  const json = { energy: { price_fen_per_kwh: 125 } }
  const expected = [
    [3, 0],
    [4, 1],
    [12, 2],
    [1000, 125],
    [655_350, 81_919],
  ] as const
  for (const [energyWh, fen] of expected) assert.equal(amount(json, { energyWh }), fen, `${energyWh} Wh`)
  // the classic drift of floats: 1.005 * 100
  assert.equal(amount({ energy: { price_fen_per_kwh: 100 } }, { energyWh: 1005 }), 101)
})

test('power: the highest power picks the tier, bounds belong to their tier, above the last is the last', () => {
  const tiers = [
    { max_power_w: 200, price_fen: 25, minutes: 60 },
    { max_power_w: 400, price_fen: 50, minutes: 60 },
    { max_power_w: 2000, price_fen: 500, minutes: 120 },
  ]
  const expected = [
    [0, 25],
    [200, 25],
    [200.1, 50],
    [400, 50],
    [2000, 500],
    [3500, 500],
  ] as const
  for (const [maxPowerW, fen] of expected)
    assert.equal(amount({ power: { tiers } }, { maxPowerW }), fen, `${maxPowerW} W`)
  assert.equal(amount({ power: { tiers } }, { maxPowerW: 100, durationS: 3 * 3600 + 1 }), 100)
  assert.equal(amount({ power: { tiers } }, { maxPowerW: 500, durationS: 3 * 3600 }), 1000)
})

const PERIODS = {
  periods: {
    windows: [
      { end: '08:00', electricity_fen_per_kwh: 30, service_fen_per_kwh: 20 },
      { end: '22:00', electricity_fen_per_kwh: 100, service_fen_per_kwh: 40 },
      { end: '24:00', electricity_fen_per_kwh: 50, service_fen_per_kwh: 20 },
    ],
  },
}

test('periods: energy is spread by time over the windows of the Beijing day', () => {
  const lines = (startHour: number, hours: number, energyWh: number) =>
    amountOf(tariffOf(PERIODS), {
      startedMs: MIDNIGHT_MS + startHour * HOUR_MS,
      durationS: hours * 3600,
      energyWh,
      maxPowerW: 0,
    })
  // one window
  assert.equal(lines(1, 2, 1000).amountFen, 30 + 20)
  // half in each
  assert.equal(lines(7, 2, 1000).amountFen, 65 + 30)
  // over midnight: one hour at 50 and 20, one at 30 and 20
  assert.equal(lines(23, 2, 2000).amountFen, 80 + 40)
  // a whole day is its own average, whenever it begins
  const day = lines(0, 24, 24_000).amountFen
  assert.equal(day, 8 * 50 + 14 * 140 + 2 * 70)
  for (const start of [5, 13, 23]) assert.equal(lines(start, 24, 24_000).amountFen, day)
  assert.equal(lines(5, 48, 48_000).amountFen, 2 * day)
  // no duration: the window it began in
  assert.equal(lines(9, 0, 1000).amountFen, 140)
  // what cannot be split evenly goes to the last window
  const { lines: found, amountFen } = lines(7, 2, 1001)
  assert.deepEqual(found, [
    { what: 'electricity', quantity: 500, unit: 'Wh', amountFen: 15, note: 'until 08:00' },
    { what: 'electricity', quantity: 501, unit: 'Wh', amountFen: 50, note: 'until 22:00' },
    { what: 'service', quantity: 500, unit: 'Wh', amountFen: 10, note: 'until 08:00' },
    { what: 'service', quantity: 501, unit: 'Wh', amountFen: 20, note: 'until 22:00' },
  ])
  assert.equal(amountFen, 95)
})

test('minimum, cap, prepaid amount, free minutes', () => {
  const json = { time: { price_fen: 50, step_minutes: 60 }, min_fen: 80, cap_fen: 120, free_minutes: 5 }
  assert.equal(amount(json, { durationS: 300 }), 0)
  assert.equal(amount(json, { durationS: 301 }), 80)
  assert.equal(amount(json, { durationS: 300 + 3600 }), 80)
  assert.equal(amount(json, { durationS: 300 + 3601 }), 100)
  assert.equal(amount(json, { durationS: 36_000 }), 120)
  assert.equal(amount(json, { durationS: 36_000, prepaidFen: 110 }), 110)
  // nobody pays more than he paid ahead, not even the minimum
  assert.equal(amount(json, { durationS: 400, prepaidFen: 10 }), 10)
  // nothing used, nothing paid
  assert.equal(amount({ ...json, free_minutes: 0 }, { durationS: 0 }), 0)
  const { lines } = amountOf(tariffOf(json), {
    startedMs: 0,
    durationS: 36_000,
    energyWh: 0,
    maxPowerW: 0,
    prepaidFen: 110,
  })
  assert.deepEqual(
    lines.map(({ what, amountFen }) => [what, amountFen]),
    [
      ['time', 500],
      ['cap', -380],
      ['prepaid', -10],
    ],
  )
})

test('what is no tariff is named with its place', () => {
  const tier = { max_power_w: 200, price_fen: 25, minutes: 60 }
  const window = { end: '24:00', electricity_fen_per_kwh: 1 }
  const cases: readonly [unknown, string][] = [
    [null, 'tariff'],
    [[], 'tariff'],
    [{}, 'tariff'],
    [{ time: { price_fen: 1, step_minutes: 1 }, tax: 1 }, 'tariff.tax'],
    [{ time: { price_fen: 1.5, step_minutes: 1 } }, 'time.price_fen'],
    [{ time: { price_fen: '1', step_minutes: 1 } }, 'time.price_fen'],
    [{ time: { price_fen: 1, step_minutes: 0 } }, 'time.step_minutes'],
    [{ time: { price_fen: 1 } }, 'time.step_minutes'],
    [{ energy: { price_fen_per_kwh: -1 } }, 'energy.price_fen_per_kwh'],
    [{ energy: { price_fen_per_kwh: Number.NaN } }, 'energy.price_fen_per_kwh'],
    [{ power: { tiers: [] } }, 'power.tiers'],
    [{ power: { tiers: Array.from({ length: 11 }, () => tier) } }, 'power.tiers'],
    [{ power: { tiers: [tier, tier] } }, 'power.tiers[1].max_power_w'],
    [{ periods: { windows: [{ ...window, end: '22:00' }] } }, 'periods.windows[0].end'],
    [{ periods: { windows: [window, window] } }, 'periods.windows[0].end'],
    [{ periods: { windows: [{ ...window, end: '25:00' }] } }, 'periods.windows[0].end'],
    [
      { periods: { windows: [{ ...window, end: '09:00' }, { ...window, end: '08:00' }, window] } },
      'periods.windows[1].end',
    ],
    [{ energy: { price_fen_per_kwh: 1 }, min_fen: 2, cap_fen: 1 }, 'cap_fen'],
    [{ energy: { price_fen_per_kwh: 1 }, name: 7 }, 'name'],
  ]
  for (const [json, at] of cases) {
    const found = parseTariff(json)
    assert.ok(isTariffProblem(found), JSON.stringify(json))
    assert.equal(found.at, at, JSON.stringify(json))
  }
  const lastOf = (end: string) => tariffOf({ periods: { windows: [{ ...window, end }] } }).periods?.[0]?.endMin
  assert.deepEqual([lastOf('23:59'), lastOf('24:00')], [1440, 1440])
})

test('a figure that cannot be is a defect of the caller', () => {
  const tariff = tariffOf({ energy: { price_fen_per_kwh: 1 } })
  for (const wrong of [{ energyWh: -1 }, { durationS: Number.NaN }, { energyWh: 2e9 }, { maxPowerW: -0.1 }])
    assert.throws(
      () => amountOf(tariff, { startedMs: 0, durationS: 1, energyWh: 1, maxPowerW: 1, ...wrong }),
      RangeError,
    )
})

const price = fc.integer({ min: 0, max: 2_000 })
const tiers = fc
  .uniqueArray(
    fc.record({
      max_power_w: fc.integer({ min: 1, max: 3_000 }),
      price_fen: price,
      minutes: fc.integer({ min: 1, max: 240 }),
    }),
    {
      minLength: 1,
      maxLength: 5,
      selector: (tier) => tier.max_power_w,
    },
  )
  .map((list) => ({ tiers: list.sort((a, b) => a.max_power_w - b.max_power_w) }))
const periods = fc
  .tuple(
    fc.uniqueArray(fc.integer({ min: 1, max: 1438 }), { maxLength: 5 }),
    fc.array(fc.tuple(price, price), { minLength: 6, maxLength: 6 }),
  )
  .map(([ends, prices]) => ({
    windows: [...ends.sort((a, b) => a - b), 1440].map((end, index) => ({
      end: `${String(Math.floor(end / 60)).padStart(2, '0')}:${String(end % 60).padStart(2, '0')}`,
      electricity_fen_per_kwh: prices[index]![0],
      service_fen_per_kwh: prices[index]![1],
    })),
  }))
const parts = {
  time: fc.record({ price_fen: price, step_minutes: fc.integer({ min: 1, max: 240 }) }),
  energy: fc.record({ price_fen_per_kwh: price }),
  power: tiers,
  min_fen: fc.integer({ min: 0, max: 300 }),
  cap_fen: fc.integer({ min: 300, max: 3_000 }),
  free_minutes: fc.integer({ min: 0, max: 30 }),
}
const hasComponent = (json: object) => ['time', 'energy', 'power', 'periods'].some((key) => key in json)
const anyTariff = fc
  .record({ ...parts, periods }, { requiredKeys: [] })
  .filter(hasComponent)
  .map(tariffOf)
const flatTariff = fc.record(parts, { requiredKeys: [] }).filter(hasComponent).map(tariffOf)
const usage = fc.record(
  {
    startedMs: fc.integer({ min: MIDNIGHT_MS, max: MIDNIGHT_MS + 100 * HOUR_MS }),
    durationS: fc.integer({ min: 0, max: 200_000 }),
    energyWh: fc.integer({ min: 0, max: 700_000 }),
    maxPowerW: fc.integer({ min: 0, max: 40_000 }).map((dw) => dw / 10),
    prepaidFen: fc.integer({ min: 0, max: 5_000 }),
  },
  { requiredKeys: ['startedMs', 'durationS', 'energyWh', 'maxPowerW'] },
)
const RUNS = { numRuns: 1_500 }

test('any tariff, any charge: whole fen, not negative, lines add up, bounds hold', () => {
  fc.assert(
    fc.property(anyTariff, usage, (tariff, charge) => {
      const { amountFen, lines } = amountOf(tariff, charge)
      assert.ok(Number.isSafeInteger(amountFen) && amountFen >= 0)
      assert.equal(
        lines.reduce((sum, line) => sum + line.amountFen, 0),
        amountFen,
      )
      for (const { what, amountFen: part, quantity } of lines) {
        assert.ok(LINE_KINDS.includes(what) && Number.isSafeInteger(part) && quantity >= 0)
        assert.ok(part >= 0 || what === 'cap' || what === 'prepaid', what)
      }
      const prepaidFen = charge.prepaidFen ?? Number.POSITIVE_INFINITY
      assert.ok(amountFen <= Math.min(tariff.capFen ?? Number.POSITIVE_INFINITY, prepaidFen))
      const isFree =
        (charge.durationS === 0 && charge.energyWh === 0) ||
        (tariff.freeMinutes > 0 && charge.durationS <= tariff.freeMinutes * 60)
      if (isFree) assert.equal(amountFen, 0)
      else assert.ok(amountFen >= Math.min(tariff.minFen, prepaidFen))
      const wattHours = (kind: string) =>
        lines.filter(({ what }) => what === kind).reduce((sum, line) => sum + line.quantity, 0)
      if (tariff.periods !== null && !isFree) assert.equal(wattHours('electricity'), charge.energyWh)
    }),
    RUNS,
  )
})

test('any tariff: a component is within half a fen of the exact value', () => {
  fc.assert(
    fc.property(periods, usage, (json, charge) => {
      const tariff = tariffOf({ periods: json })
      const { lines } = amountOf(tariff, charge)
      // second by second, the slow way
      const durationS = Math.min(charge.durationS, 5_000)
      const short = { ...charge, durationS }
      delete short.prepaidFen
      let fenPerKwhS = 0
      for (let s = 0; s < durationS; s++) {
        const minute = Math.floor(((charge.startedMs + s * 1000 + 8 * HOUR_MS) % (24 * HOUR_MS)) / 60_000)
        fenPerKwhS += tariff.periods!.find(({ endMin }) => minute < endMin)!.electricityFenPerKwh
      }
      if (durationS === 0) return
      const exact = (charge.energyWh * fenPerKwhS) / durationS / 1000
      const found = amountOf(tariff, short).lines.filter(({ what }) => what === 'electricity')
      const sum = found.reduce((total, line) => total + line.amountFen, 0)
      // a start between two seconds puts less than one second of the charge into another window
      const slack = (charge.energyWh * 2_000 * found.length) / durationS / 1000
      assert.ok(Math.abs(sum - exact) <= 0.5 + slack, `${sum} for ${exact}`)
      assert.ok(lines.length <= 2 * json.windows.length + 1)
    }),
    { numRuns: 200 },
  )
})

test('more energy never costs less, with any tariff', () => {
  fc.assert(
    fc.property(anyTariff, usage, fc.integer({ min: 1, max: 5_000 }), (tariff, charge, moreWh) => {
      const more = amountOf(tariff, { ...charge, energyWh: charge.energyWh + moreWh })
      assert.ok(more.amountFen >= amountOf(tariff, charge).amountFen)
    }),
    RUNS,
  )
})

test('longer never costs less, without windows', () => {
  fc.assert(
    fc.property(flatTariff, usage, fc.integer({ min: 1, max: 20_000 }), (tariff, charge, moreS) => {
      const more = amountOf(tariff, { ...charge, durationS: charge.durationS + moreS })
      assert.ok(more.amountFen >= amountOf(tariff, charge).amountFen)
    }),
    RUNS,
  )
})

test('the examples of README.md are tariffs', () => {
  const readme = readFileSync(new URL('README.md', import.meta.url), 'utf8')
  const examples = [...readme.matchAll(/```json\n([\s\S]*?)```/g)].map(([, text]) => JSON.parse(text!) as unknown)
  assert.ok(examples.length >= 4)
  for (const example of examples) tariffOf(example)
})
