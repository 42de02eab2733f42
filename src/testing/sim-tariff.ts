/**
 * What a charge costs, computed a second time: written from the table of src/orders/README.md, shares no code with
 * tariff.ts. Exact fractions, rounded half up once per component.
 */

export interface Charge {
  readonly startedMs: number
  readonly durationS: number
  readonly energyWh: number
  readonly maxPowerW: number
  readonly prepaidFen: number | undefined
}

/** The JSON shape of src/orders/README.md, as far as the simulation uses it. */
export interface TariffJson {
  readonly time?: { readonly price_fen: number; readonly step_minutes: number }
  readonly energy?: { readonly price_fen_per_kwh: number }
  readonly power?: { readonly tiers: readonly { max_power_w: number; price_fen: number; minutes: number }[] }
  readonly periods?: {
    readonly windows: readonly { end: string; electricity_fen_per_kwh: number; service_fen_per_kwh?: number }[]
  }
  readonly min_fen?: number
  readonly cap_fen?: number
  readonly free_minutes?: number
}

const DAY_MS = 86_400_000
const BEIJING_MS = 8 * 3_600_000

const rounded = (numerator: bigint, denominator: bigint): number => {
  const whole = numerator / denominator
  return Number(whole) + (2n * (numerator - whole * denominator) >= denominator ? 1 : 0)
}

export function referenceFen(tariff: TariffJson, charge: Charge): number {
  const { durationS, energyWh, maxPowerW, prepaidFen } = charge
  const freeS = 60 * (tariff.free_minutes ?? 0)
  if ((durationS === 0 && energyWh === 0) || (freeS > 0 && durationS <= freeS)) return 0
  const paidS = durationS - freeS
  const stepsOf = (minutes: number) => Math.floor((paidS + 60 * minutes - 1) / (60 * minutes))
  let fen = 0
  if (tariff.time) fen += stepsOf(tariff.time.step_minutes) * tariff.time.price_fen
  if (tariff.energy) fen += rounded(BigInt(energyWh) * BigInt(tariff.energy.price_fen_per_kwh), 1000n)
  if (tariff.power) {
    const { tiers } = tariff.power
    let tier = tiers[tiers.length - 1]!
    for (let index = tiers.length - 1; index >= 0; index--)
      if (maxPowerW <= tiers[index]!.max_power_w) tier = tiers[index]!
    fen += stepsOf(tier.minutes) * tier.price_fen
  }
  if (tariff.periods) fen += periodsFen(tariff.periods.windows, charge)
  fen = Math.max(fen, tariff.min_fen ?? 0)
  fen = Math.min(fen, tariff.cap_fen ?? fen)
  return Math.min(fen, prepaidFen ?? fen)
}

/** Walks along the clock from one end of a window to the next. */
function periodsFen(windows: NonNullable<TariffJson['periods']>['windows'], charge: Charge): number {
  const endMsOf = (end: string) =>
    end === '23:59' || end === '24:00' ? DAY_MS : (Number(end.slice(0, 2)) * 60 + Number(end.slice(3))) * 60_000
  const totalMs = Math.max(1, 1_000 * charge.durationS)
  let clockMs = (Math.floor(charge.startedMs) + BEIJING_MS) % DAY_MS
  let leftMs = totalMs
  let electricity = 0n
  let service = 0n
  while (leftMs > 0) {
    const window = windows.find(({ end }) => clockMs < endMsOf(end))!
    const inItMs = Math.min(leftMs, endMsOf(window.end) - clockMs)
    electricity += BigInt(inItMs) * BigInt(window.electricity_fen_per_kwh)
    service += BigInt(inItMs) * BigInt(window.service_fen_per_kwh ?? 0)
    leftMs -= inItMs
    clockMs = (clockMs + inItMs) % DAY_MS
  }
  const denominator = BigInt(totalMs) * 1000n
  const energy = BigInt(charge.energyWh)
  return rounded(energy * electricity, denominator) + rounded(energy * service, denominator)
}
