/** One order as the order book, the tables and the simulation hold it. */
import type { OrderState } from '../../src/orders/state.ts'

export interface Order {
  readonly orderNo: string
  readonly tenantId: string
  readonly deviceId: string
  readonly protocol: string
  readonly socket: number
  readonly port: number
  readonly mode: string | null
  readonly request: unknown
  readonly commandId: string | null
  orderKey: string | null
  wireHex: string | null
  state: OrderState
  origin: string
  cardId: string | null
  businessNo: number | null
  tariff: unknown
  startedMs: number | null
  endedMs: number | null
  durationS: number | null
  energyWh: number | null
  maxPowerW: number | null
  amountFen: number | null
  amountLines: unknown
  cardFen: number | null
  endReason: string | null
  endReasonRaw: number | null
  failReason: string | null
  isEstimated: boolean
  settledMs: number | null
  lastProgressMs: number | null
  epoch: number
  /** As it will be when written. */
  version: number
  readonly createdMs: number
  /** Of its start command. */
  readonly sentMs: number | null
  readonly finishedMs: number | null
  isNew: boolean
  isChanged: boolean
}

/** What an order says of its charge and its money before the first report came. */
export const NEVER_CHARGED = {
  businessNo: null,
  tariff: null,
  startedMs: null,
  endedMs: null,
  durationS: null,
  energyWh: null,
  maxPowerW: null,
  amountFen: null,
  amountLines: null,
  cardFen: null,
  endReason: null,
  endReasonRaw: null,
  failReason: null,
  isEstimated: false,
  settledMs: null,
  lastProgressMs: null,
  epoch: 0,
  version: 1,
} as const
