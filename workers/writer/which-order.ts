/**
 * Which order a device means by a number that comes round again (BKV 9: 16 bits, made by the device, known to us from the
 * 07 result or the next report only; it repeats after wrap or memory loss). Pure: the orders and settlements of one
 * port come in.
 *
 * Reports give only a duration in whole minutes, so every beginning told by a report may be up to a minute late, and an
 * end report may be days late: its beginning is an upper bound, unless the device says when the charge ended.
 */
import type { OrderOrigin } from '../../src/codec/facts.ts'
import type { OrderState } from '../../src/orders/state.ts'

/** An order of the port in question. */
export interface PortOrder {
  readonly orderKey: string | null
  readonly wireHex: string | null
  readonly state: OrderState
  readonly origin: string
  readonly isEstimated: boolean
  readonly failReason: string | null
  readonly createdMs: number
  readonly startedMs: number | null
  readonly endedMs: number | null
  readonly durationS: number | null
  readonly lastProgressMs: number | null
  /** Of its start command: first send, fate. */
  readonly sentMs: number | null
  readonly finishedMs: number | null
}
export interface PortSettlement {
  readonly wireHex: string
  readonly durationS: number
  readonly energyRaw: number
  readonly receivedMs: number
  readonly deviceEndedMs: number | null
}

/** Whole minutes, the way to us, and clocks. */
const SLACK_MS = 120_000
/** Longer than a device keeps repeating; 65,536 charges of one port take longer. */
const REPEAT_MS_MAX = 30 * 86_400_000
/** A start without result, an end report that comes late: longer is no answer to it any more. */
const WAITING_MS_MAX = 7 * 86_400_000
/** A device clock before this was never set. */
export const YEAR_2020_MS = Date.UTC(2020)
const CERTAIN_REPEAT_MS = 86_400_000
/** The start whose result is missing may have worked. */
export const IN_DOUBT: ReadonlySet<string> = new Set(['no_result', 'connection_lost', 'timed_out'])
export const isInDoubt = ({ state, failReason }: Pick<PortOrder, 'state' | 'failReason'>) =>
  state === 'failed' && IN_DOUBT.has(failReason ?? '')

const beganMs = (order: PortOrder) => order.startedMs ?? order.sentMs ?? order.createdMs
const isOpen = ({ state }: PortOrder) =>
  state === 'pending' || state === 'starting' || state === 'charging' || state === 'stopping'
const isSettledByDevice = ({ state, isEstimated }: PortOrder) => state === 'settled' && !isEstimated

function newestWith<O extends PortOrder>(orders: readonly O[], wireHex: string): O[] {
  return orders
    .filter((order) => order.orderKey !== null && order.wireHex === wireHex)
    .sort((a, b) => beganMs(b) - beganMs(a))
}

/**
 * Online orders of ours that wait for their number, newest first.
 * @param fromMs the charge began then at the latest
 * @param heardMs when the device spoke of it: what it said before our start was sent is about another charge
 */
function waiting<O extends PortOrder>(
  orders: readonly O[],
  origin: OrderOrigin | string,
  fromMs: number,
  heardMs: number,
): O[] {
  return orders
    .filter((order) => {
      if (order.orderKey !== null || order.origin !== origin) return false
      if (order.sentMs !== null && heardMs < order.sentMs) return false
      const sinceMs = fromMs - (order.sentMs ?? order.createdMs)
      if (sinceMs < -SLACK_MS || sinceMs > WAITING_MS_MAX) return false
      // stopping: it was sent and a stop as well, before anybody told its number
      if (order.state === 'starting' || order.state === 'stopping') return true
      // that a start is sent is stored before it leaves: what was not sent cannot be what charges (simulation, seed 3)
      if (order.state === 'pending') return order.sentMs !== null
      // timed out here says nothing of whether it had left (simulation, seed 107100)
      return isInDoubt(order) && (order.sentMs !== null || order.failReason !== 'timed_out')
    })
    .sort((a, b) => beganMs(b) - beganMs(a))
}

export interface NumberedProgress {
  readonly wireHex: string
  readonly origin: string
  readonly atMs: number
  readonly durationS: number
}

/** @returns the order a report is about; `late`: of one that is settled; `new`: of none we know */
export function orderOfProgress<O extends PortOrder>(
  orders: readonly O[],
  report: NumberedProgress,
): O | 'late' | 'new' {
  const startMs = report.atMs - report.durationS * 1_000
  const numbered = newestWith(orders, report.wireHex)
  for (const order of numbered.filter(isOpen)) {
    // the counter went back and the charge began behind the last report: another one, whose predecessor never ended
    const isAnother =
      order.durationS !== null &&
      report.durationS < order.durationS &&
      order.lastProgressMs !== null &&
      startMs - SLACK_MS > order.lastProgressMs
    if (!isAnother) return order
  }
  const last = numbered.find((order) => !isOpen(order))
  if (last !== undefined && last.state === 'settled') {
    const endMs = last.endedMs ?? last.lastProgressMs ?? last.createdMs
    if (startMs - SLACK_MS <= endMs) return 'late'
  }
  if (last !== undefined && last.state !== 'settled' && startMs >= beganMs(last) - SLACK_MS) return last
  const bound = waiting(orders, report.origin, startMs, report.atMs).find(
    ({ state, finishedMs }) => state !== 'failed' || finishedMs === null || startMs <= finishedMs + SLACK_MS,
  )
  return bound ?? 'new'
}

export interface NumberedSettlement {
  readonly wireHex: string
  readonly origin: string
  readonly durationS: number
  readonly energyRaw: number
  readonly receivedMs: number
  /** Undefined unless the device says it, by a clock that can be believed. */
  readonly deviceEndedMs: number | undefined
}

/** @returns the order an end report is about; a stored settlement: it repeats that; `new`: of none we know */
export function orderOfSettlement<O extends PortOrder, S extends PortSettlement>(
  orders: readonly O[],
  settlements: readonly S[],
  report: NumberedSettlement,
): { readonly order: O } | { readonly repeats: S } | 'new' {
  const startMs = (report.deviceEndedMs ?? report.receivedMs) - report.durationS * 1_000
  const stored = settlements
    .filter(
      (known) =>
        known.wireHex === report.wireHex &&
        report.receivedMs - known.receivedMs < REPEAT_MS_MAX &&
        !isOtherCharge(known, report, startMs),
    )
    .sort((a, b) => b.receivedMs - a.receivedMs)
  const same = stored.find((known) => known.durationS === report.durationS && known.energyRaw === report.energyRaw)
  const numbered = newestWith(orders, report.wireHex)
  const unsettled: O[] = []
  for (const order of numbered) {
    // older ones are not asked for: what was settled last under this number is what a device repeats
    if (isSettledByDevice(order)) break
    unsettled.push(order)
  }
  const canBe = (order: O) =>
    startMs >= beganMs(order) - SLACK_MS && report.durationS >= (order.durationS ?? 0) - SLACK_MS / 1_000
  const plausible = unsettled.find(canBe)
  if (plausible !== undefined) return { order: plausible }
  // what it says began before that order, and was said before: a copy that was under way
  if (same !== undefined) return { repeats: same }
  if (unsettled.length > 0) return { order: unsettled.at(-1)! }

  const last = stored[0]
  // within a day a number comes round again only when the memory was lost, and repeats are far more frequent
  if (last !== undefined && report.receivedMs - last.receivedMs < CERTAIN_REPEAT_MS) return { repeats: last }
  const bound = waiting(orders, report.origin, startMs, report.receivedMs)[0]
  if (bound !== undefined) return { order: bound }
  return last !== undefined ? { repeats: last } : 'new'
}

/** The device's own clock says that this charge began after the stored one had ended. */
function isOtherCharge(stored: PortSettlement, report: NumberedSettlement, startMs: number): boolean {
  if (report.deviceEndedMs === undefined || stored.deviceEndedMs === null) return false
  // a clock that was never set says nothing
  if (stored.deviceEndedMs < YEAR_2020_MS) return false
  return report.deviceEndedMs - stored.deviceEndedMs > SLACK_MS && startMs >= stored.deviceEndedMs - SLACK_MS
}
