/**
 * What an order costs: tariffs as JSON, and the amount of a charge in integer fen.
 *
 * Rounding, for all tariffs: a component (electricity of all windows is one) is computed exactly and rounded half up to
 * fen once, at its end. Minimum, cap and prepaid amount are applied to the sum of components, in this order: nobody pays
 * more than he paid ahead. Started steps count whole. Energy is taken in whole Wh (half up), power as it is.
 *
 * A charge without any time and energy costs nothing, also where there is a minimum; so does one no longer than the free
 * minutes. After them only the time that follows counts for `time` and `power`; energy counts from its start.
 */

/** Beijing, always: windows of the day are read on the clock of the device (BKV 3). */
const DAY_OFFSET_MS = 8 * 3_600_000
const DAY_MIN = 24 * 60
const DAY_MS = DAY_MIN * 60_000

export interface PowerTier {
  /** Upper bound, inclusive; a higher power than the last tier's takes the last tier. */
  readonly maxPowerW: number
  readonly priceFen: number
  /** The price is for so many minutes started. */
  readonly minutes: number
}
export interface PriceWindow {
  /** Minutes since midnight, Beijing, exclusive; the last is 1440. A window begins where the one before ends. */
  readonly endMin: number
  readonly electricityFenPerKwh: number
  readonly serviceFenPerKwh: number
}
export interface Tariff {
  readonly name: string | null
  readonly freeMinutes: number
  readonly time: { readonly priceFen: number; readonly stepMinutes: number } | null
  readonly energy: { readonly priceFenPerKwh: number } | null
  /** 1..10, ascending. */
  readonly power: readonly PowerTier[] | null
  /** 1..24, ascending, the whole day. */
  readonly periods: readonly PriceWindow[] | null
  readonly minFen: number
  readonly capFen: number | null
}
/** What is wrong with a tariff, and where: `power.tiers[1].minutes`. */
export interface TariffProblem {
  readonly problem: string
  readonly at: string
}

export interface Usage {
  /** When the charge began, ms since the epoch: decides the windows of the day. */
  readonly startedMs: number
  /** 0..2^31, s. */
  readonly durationS: number
  /** 0..10^9, Wh. */
  readonly energyWh: number
  /** The settlement power: the highest of the charge. */
  readonly maxPowerW: number
  /** Paid ahead (mode budget or power): the amount never exceeds it. */
  readonly prepaidFen?: number
}
export const LINE_KINDS = [
  'free',
  'time',
  'energy',
  'power',
  'electricity',
  'service',
  'minimum',
  'cap',
  'prepaid',
] as const
export interface AmountLine {
  readonly what: (typeof LINE_KINDS)[number]
  readonly quantity: number
  readonly unit: 'min' | 'step' | 'Wh' | 'fen'
  /** Negative for `cap` and `prepaid` only. */
  readonly amountFen: number
  /** Windows: until when, `08:00`. Power: the tier's bound. */
  readonly note?: string
}
export interface Amount {
  /** Integer, never negative; the sum of the lines, exactly. */
  readonly amountFen: number
  readonly lines: readonly AmountLine[]
}

const PRICE_FEN_MAX = 1_000_000
const AMOUNT_FEN_MAX = 100_000_000
const TIERS_MAX = 10
const WINDOWS_MAX = 24
const DURATION_S_MAX = 2 ** 31
const ENERGY_WH_MAX = 1e9

// ---- reading ----------------------------------------------------------------------------------------------------

class Bad extends Error {
  readonly found: TariffProblem
  constructor(at: string, problem: string) {
    super(problem)
    this.found = { at, problem }
  }
}

/** Reads the JSON shape of README.md. Strict: an unknown key is a problem. Never throws. */
export function parseTariff(json: unknown): Tariff | TariffProblem {
  try {
    return read(json)
  } catch (error) {
    if (error instanceof Bad) return error.found
    throw error
  }
}

export const isTariffProblem = (found: Tariff | TariffProblem): found is TariffProblem => 'problem' in found

type Json = Readonly<Record<string, unknown>>

function read(json: unknown): Tariff {
  const top = objectOf(json, 'tariff', [
    'name',
    'free_minutes',
    'time',
    'energy',
    'power',
    'periods',
    'min_fen',
    'cap_fen',
  ])
  const { name = null } = top
  if (name !== null && (typeof name !== 'string' || name.length > 100))
    throw new Bad('name', 'needs at most 100 characters')
  const tariff: Tariff = {
    name,
    freeMinutes: top['free_minutes'] === undefined ? 0 : integer(top['free_minutes'], 'free_minutes', 0, DAY_MIN),
    time: top['time'] === undefined ? null : readTime(top['time']),
    energy: top['energy'] === undefined ? null : readEnergy(top['energy']),
    power: top['power'] === undefined ? null : readTiers(top['power']),
    periods: top['periods'] === undefined ? null : readWindows(top['periods']),
    minFen: top['min_fen'] === undefined ? 0 : integer(top['min_fen'], 'min_fen', 0, AMOUNT_FEN_MAX),
    capFen: top['cap_fen'] === undefined ? null : integer(top['cap_fen'], 'cap_fen', 0, AMOUNT_FEN_MAX),
  }
  const { time, energy, power, periods, minFen, capFen } = tariff
  if (time === null && energy === null && power === null && periods === null)
    throw new Bad('tariff', 'needs at least one of time, energy, power, periods')
  if (capFen !== null && capFen < minFen) throw new Bad('cap_fen', 'is below min_fen')
  return tariff
}

function readTime(json: unknown): NonNullable<Tariff['time']> {
  const time = objectOf(json, 'time', ['price_fen', 'step_minutes'])
  return {
    priceFen: integer(time['price_fen'], 'time.price_fen', 0, PRICE_FEN_MAX),
    stepMinutes: integer(time['step_minutes'], 'time.step_minutes', 1, DAY_MIN),
  }
}

function readEnergy(json: unknown): NonNullable<Tariff['energy']> {
  const energy = objectOf(json, 'energy', ['price_fen_per_kwh'])
  return { priceFenPerKwh: integer(energy['price_fen_per_kwh'], 'energy.price_fen_per_kwh', 0, PRICE_FEN_MAX) }
}

function readTiers(json: unknown): readonly PowerTier[] {
  const power = objectOf(json, 'power', ['tiers'])
  let below = 0
  return listOf(power['tiers'], 'power.tiers', TIERS_MAX).map((item, index) => {
    const at = `power.tiers[${index}]`
    const tier = objectOf(item, at, ['max_power_w', 'price_fen', 'minutes'])
    const maxPowerW = integer(tier['max_power_w'], `${at}.max_power_w`, 1, 1_000_000)
    if (maxPowerW <= below) throw new Bad(`${at}.max_power_w`, 'needs more than the tier before')
    below = maxPowerW
    return {
      maxPowerW,
      priceFen: integer(tier['price_fen'], `${at}.price_fen`, 0, PRICE_FEN_MAX),
      minutes: integer(tier['minutes'], `${at}.minutes`, 1, DAY_MIN),
    }
  })
}

function readWindows(json: unknown): readonly PriceWindow[] {
  const periods = objectOf(json, 'periods', ['windows'])
  const list = listOf(periods['windows'], 'periods.windows', WINDOWS_MAX)
  let before = 0
  return list.map((item, index) => {
    const at = `periods.windows[${index}]`
    const window = objectOf(item, at, ['end', 'electricity_fen_per_kwh', 'service_fen_per_kwh'])
    const isLast = index === list.length - 1
    const endMin = readEnd(window['end'], `${at}.end`, isLast)
    if (endMin <= before) throw new Bad(`${at}.end`, 'needs to be later than the window before')
    before = endMin
    return {
      endMin,
      electricityFenPerKwh: integer(
        window['electricity_fen_per_kwh'],
        `${at}.electricity_fen_per_kwh`,
        0,
        PRICE_FEN_MAX,
      ),
      serviceFenPerKwh:
        window['service_fen_per_kwh'] === undefined
          ? 0
          : integer(window['service_fen_per_kwh'], `${at}.service_fen_per_kwh`, 0, PRICE_FEN_MAX),
    }
  })
}

/** The last window runs to midnight; devices write that as 23:59 (BKV 7, key 83). */
function readEnd(value: unknown, at: string, isLast: boolean): number {
  const match = typeof value === 'string' ? /^(\d\d):([0-5]\d)$/.exec(value) : null
  const minute = match === null ? -1 : Number(match[1]) * 60 + Number(match[2])
  if (minute < 1 || minute > DAY_MIN) throw new Bad(at, 'needs hh:mm, 00:01..24:00')
  if (!isLast) {
    if (minute >= DAY_MIN - 1) throw new Bad(at, 'only the last window ends the day')
    return minute
  }
  if (minute < DAY_MIN - 1) throw new Bad(at, 'the last window needs to end 24:00 or 23:59')
  return DAY_MIN
}

function objectOf(json: unknown, at: string, keys: readonly string[]): Json {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw new Bad(at, 'needs an object')
  for (const key of Object.keys(json)) if (!keys.includes(key)) throw new Bad(`${at}.${key}`, 'is not known')
  return json as Json
}

function listOf(json: unknown, at: string, countMax: number): readonly unknown[] {
  if (!Array.isArray(json) || json.length < 1 || json.length > countMax) throw new Bad(at, `needs 1..${countMax} items`)
  return json
}

function integer(value: unknown, at: string, min: number, max: number): number {
  if (!Number.isInteger(value) || (value as number) < min || (value as number) > max)
    throw new Bad(at, `needs an integer, ${min}..${max}`)
  return value as number
}

// ---- computing --------------------------------------------------------------------------------------------------

/**
 * @throws RangeError a figure of the usage is negative, no number or beyond its bound: a defect of the caller
 */
export function amountOf(tariff: Tariff, usage: Usage): Amount {
  const durationS = figure(usage.durationS, 'durationS', DURATION_S_MAX)
  const energyWh = Math.round(figure(usage.energyWh, 'energyWh', ENERGY_WH_MAX))
  const maxPowerW = figure(usage.maxPowerW, 'maxPowerW', Number.MAX_SAFE_INTEGER)
  const startedMs = Math.floor(figure(usage.startedMs, 'startedMs', 8.64e15))
  const prepaidFen =
    usage.prepaidFen === undefined
      ? undefined
      : Math.floor(figure(usage.prepaidFen, 'prepaidFen', Number.MAX_SAFE_INTEGER))
  const freeS = tariff.freeMinutes * 60
  if (durationS === 0 && energyWh === 0) return { amountFen: 0, lines: [] }
  if (freeS > 0 && durationS <= freeS) {
    return { amountFen: 0, lines: [{ what: 'free', quantity: tariff.freeMinutes, unit: 'min', amountFen: 0 }] }
  }

  const lines: AmountLine[] = []
  const countedS = durationS - freeS
  if (tariff.time !== null) {
    const steps = Math.ceil(countedS / (tariff.time.stepMinutes * 60))
    lines.push({ what: 'time', quantity: steps, unit: 'step', amountFen: steps * tariff.time.priceFen })
  }
  if (tariff.energy !== null) {
    const amountFen = Number(halfUp(BigInt(energyWh) * BigInt(tariff.energy.priceFenPerKwh), 1000n))
    lines.push({ what: 'energy', quantity: energyWh, unit: 'Wh', amountFen })
  }
  if (tariff.power !== null) {
    const tier = tierOf(tariff.power, maxPowerW)
    const steps = Math.ceil(countedS / (tier.minutes * 60))
    const note = `${tier.maxPowerW} W`
    lines.push({ what: 'power', quantity: steps, unit: 'step', amountFen: steps * tier.priceFen, note })
  }
  if (tariff.periods !== null) lines.push(...windowLines(tariff.periods, startedMs, durationS, energyWh))

  let amountFen = lines.reduce((sum, line) => sum + line.amountFen, 0)
  const bring = (what: 'minimum' | 'cap' | 'prepaid', toFen: number) => {
    lines.push({ what, quantity: toFen, unit: 'fen', amountFen: toFen - amountFen })
    amountFen = toFen
  }
  if (amountFen < tariff.minFen) bring('minimum', tariff.minFen)
  if (tariff.capFen !== null && amountFen > tariff.capFen) bring('cap', tariff.capFen)
  if (prepaidFen !== undefined && amountFen > prepaidFen) bring('prepaid', prepaidFen)
  return { amountFen, lines }
}

function figure(value: number, name: string, max: number): number {
  if (!(value >= 0 && value <= max)) throw new RangeError(`${name}: needs 0..${max}, is ${value}`)
  return value
}

/** The tier a power belongs to. */
function tierOf(tiers: readonly PowerTier[], powerW: number): PowerTier {
  return tiers.find((tier) => powerW <= tier.maxPowerW) ?? (tiers.at(-1) as PowerTier)
}

/** `numerator / denominator`, both not negative, rounded half up. */
function halfUp(numerator: bigint, denominator: bigint): bigint {
  return (2n * numerator + denominator) / (2n * denominator)
}

/**
 * Only totals are known, so energy is spread over the windows by time. Money is summed exactly and rounded once for
 * electricity and once for service; each window's line is what the rounded running sum grows by, so that the lines add
 * up, none is negative, and more energy never costs less. Energy per window likewise: the remainder goes to the last.
 */
function windowLines(
  windows: readonly PriceWindow[],
  startedMs: number,
  durationS: number,
  energyWh: number,
): AmountLine[] {
  const sharesMs = sharesOf(windows, startedMs, durationS)
  const totalMs = sharesMs.reduce((sum, share) => sum + share, 0n)
  const energy = BigInt(energyWh)
  const lines: AmountLine[] = []
  for (const what of ['electricity', 'service'] as const) {
    if (what === 'service' && windows.every((window) => window.serviceFenPerKwh === 0)) continue
    let runningMs = 0n
    let runningCost = 0n
    let givenWh = 0n
    let givenFen = 0n
    for (const [index, window] of windows.entries()) {
      const shareMs = sharesMs[index]!
      if (shareMs === 0n) continue
      const price = BigInt(what === 'electricity' ? window.electricityFenPerKwh : window.serviceFenPerKwh)
      runningMs += shareMs
      runningCost += shareMs * price
      const untilWh = (energy * runningMs) / totalMs
      const untilFen = halfUp(energy * runningCost, totalMs * 1000n)
      lines.push({
        what,
        quantity: Number(untilWh - givenWh),
        unit: 'Wh',
        amountFen: Number(untilFen - givenFen),
        note: `until ${clockOf(window.endMin)}`,
      })
      givenWh = untilWh
      givenFen = untilFen
    }
  }
  return lines
}

/** How long the charge lay in each window, ms; a charge without duration lies in the window it began in, for 1. */
function sharesOf(windows: readonly PriceWindow[], startedMs: number, durationS: number): bigint[] {
  const fromMs = (startedMs + DAY_OFFSET_MS) % DAY_MS
  const durationMs = Math.round(durationS * 1000)
  const wholeDays = Math.floor(durationMs / DAY_MS)
  const toMs = fromMs + (durationMs === 0 ? 1 : durationMs - wholeDays * DAY_MS)
  let windowFromMs = 0
  return windows.map(({ endMin }) => {
    const windowToMs = endMin * 60_000
    // today, and the part that reaches into the next day
    const today = overlap(fromMs, toMs, windowFromMs, windowToMs)
    const tomorrow = overlap(fromMs, toMs, windowFromMs + DAY_MS, windowToMs + DAY_MS)
    const share = today + tomorrow + wholeDays * (windowToMs - windowFromMs)
    windowFromMs = windowToMs
    return BigInt(share)
  })
}

function overlap(from: number, to: number, windowFrom: number, windowTo: number): number {
  return Math.max(0, Math.min(to, windowTo) - Math.max(from, windowFrom))
}

/** `08:00`; the end of the day as `24:00`. */
export function clockOf(minute: number): string {
  return `${String(Math.floor(minute / 60)).padStart(2, '0')}:${String(minute % 60).padStart(2, '0')}`
}
