/** Tariffs that come in over HTTP, and what a caller is told of one that is none. */
import { HttpError } from '../../errors/errors.ts'
import { isTariffProblem, parseTariff, type Tariff } from '../../orders/tariff.ts'

/**
 * @param isGiven with the request; else it is the device's
 * @throws HttpError INVALID_ARGUMENT, of the device's FAILED_PRECONDITION
 */
export function readTariff(json: unknown, isGiven: boolean): Tariff {
  const tariff = parseTariff(json)
  if (!isTariffProblem(tariff)) return tariff
  const { at, problem } = tariff
  const details = { reason: 'tariff_invalid', field: at.startsWith('tariff') ? at : `tariff.${at}`, problem }
  throw isGiven
    ? new HttpError('INVALID_ARGUMENT', `tariff: ${at}: ${problem}`, details)
    : new HttpError('FAILED_PRECONDITION', `tariff of the device: ${at}: ${problem}`, details)
}
