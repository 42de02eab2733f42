/** What a settled order costs. Pure. */
import { type AmountLine, amountOf, isTariffProblem, parseTariff } from '../../src/orders/tariff.ts'

export interface Charged {
  readonly startedMs: number
  readonly durationS: number
  readonly energyWh: number
  readonly maxPowerW: number
  readonly mode: string | null
  /** Of the charge request, contract words. */
  readonly request: unknown
}
export interface Cost {
  /** Null: nobody can say. */
  readonly amountFen: number | null
  readonly lines: readonly AmountLine[] | null
  /** The tariff that was used, as JSON. */
  readonly tariff: unknown
}

/**
 * By our tariff where there is one: the order's, else the device's. Without any, the amount that the device computed.
 * A tariff that does not read, or figures that no tariff takes, make no amount; they never refuse a settlement.
 */
export function costOf(
  charged: Charged,
  orderTariff: unknown,
  deviceTariff: unknown,
  deviceAmountFen: number | null,
): Cost {
  for (const json of [orderTariff, deviceTariff]) {
    if (json === null || json === undefined) continue
    const tariff = parseTariff(json)
    if (isTariffProblem(tariff)) continue
    const { startedMs, durationS, energyWh, maxPowerW } = charged
    const prepaidFen = prepaidOf(charged)
    try {
      const { amountFen, lines } = amountOf(tariff, {
        startedMs,
        durationS,
        energyWh,
        maxPowerW,
        ...(prepaidFen !== undefined && { prepaidFen }),
      })
      return { amountFen, lines, tariff: json }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
    }
  }
  return { amountFen: deviceAmountFen, lines: null, tariff: orderTariff ?? null }
}

/** Modes budget and power are paid ahead: nobody pays more than that. */
function prepaidOf({ mode, request }: Charged): number | undefined {
  if (mode !== 'budget' && mode !== 'power') return undefined
  const amountFen = (request as { amount_fen?: unknown } | null)?.amount_fen
  return typeof amountFen === 'number' ? amountFen : undefined
}

/** As stored: contract words. */
export const linesOf = (lines: readonly AmountLine[]) =>
  lines.map(({ what, quantity, unit, amountFen, note }) => ({
    what,
    quantity,
    unit,
    amount_fen: amountFen,
    ...(note !== undefined && { note }),
  }))
