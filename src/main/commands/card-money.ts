/** What cards have left while their orders run. Thread: main. */
import { parameters } from '../../../workers/writer/columns.ts'
import { IN_DOUBT } from '../../../workers/writer/which-order.ts'
import { amountOf, isTariffProblem, parseTariff, type Tariff } from '../../orders/tariff.ts'
import { RATE_MODES } from '../../protocols/ap3000/rate-mode.ts'
import type { Sql, TransactionSql } from '../database/connect.ts'

const DOUBTS = parameters({ doubts: 'text' }, { doubts: [...IN_DOUBT] })

/**
 * What a card has and nobody else may still use up: its balance without the budgets of its orders that run, or may run. A
 * start whose result is missing may have worked (AP3000 7, 82): it counts for as long as a device takes to say that its
 * port charges, and while the port does.
 */
const leftOn = (doubts: string) => `
  c.balance_fen - coalesce((
    select sum((o.request ->> 'amount_fen')::bigint) from orders o
    where o.tenant_id = c.tenant_id and o.card_id = c.card_id
      and (o.state in ('pending', 'starting', 'charging', 'stopping')
        or o.state = 'failed' and o.fail_reason = any(${doubts}::text[]) and o.created_at > now() - interval '7 days'
          and (o.created_at > now() - interval '10 minutes' or exists (
            select from ports p
            where p.device_id = o.device_id and p.socket = o.socket and p.port = o.port and p.state = 'charging'
              and (p.wire_hex is null or p.wire_hex is not distinct from o.wire_hex))))), 0) as left_fen`
const LEFT_ON_CARD = `select ${leftOn('$3')} from cards c where c.tenant_id = $1 and c.card_id = $2`
/**
 * Orders that a device began by itself with a card that pays (BKV cards, AP3000 cards without network): no budget was agreed
 * with the device, so they are held against what is left on the card.
 */
const UNPROMISED = (doubts: string) => `
  select o.order_no, o.tenant_id, d.tenant_id as device_tenant, o.device_id, o.socket, o.port, o.card_id,
    coalesce(o.tariff, d.tariff) as tariff, o.started_at, o.duration_s, o.energy_wh, o.max_power_w, ${leftOn(doubts)}
  from orders o join devices d using (device_id) join cards c on c.tenant_id = o.tenant_id and c.card_id = o.card_id
  where o.state = 'charging' and o.started_at is not null and c.rate_mode <> ${RATE_MODES.monthly}
    and (o.request ->> 'amount_fen') is null`

/** An order that charges, with what its last report says. */
export interface ChargingOrder {
  readonly order_no: string
  readonly tenant_id: string
  /** An order may be older than its device's move to another tenant: it reaches its limits all the same. */
  readonly device_tenant: string
  readonly device_id: string
  readonly socket: number
  readonly port: number
  readonly tariff: unknown
  readonly started_at: Date
  readonly duration_s: number | null
  readonly energy_wh: number | null
  readonly max_power_w: number | null
}

/** An order that a device began by itself with a card that pays. */
export interface UnpromisedOrder extends ChargingOrder {
  readonly card_id: string
  /** Of its card, without what is promised to others. */
  readonly left_fen: number
}

/** @param ofCard undefined: of all cards */
export async function unpromisedOrders(
  sql: Sql | TransactionSql,
  ofCard?: { readonly tenant: string; readonly cardId: string },
): Promise<readonly UnpromisedOrder[]> {
  const [which, values] =
    ofCard === undefined ? ['', []] : ['and c.tenant_id = $2 and c.card_id = $3', [ofCard.tenant, ofCard.cardId]]
  return await sql.unsafe<UnpromisedOrder[]>(`${UNPROMISED('$1')} ${which}`, [...DOUBTS, ...values], { prepare: true })
}

/** What its last report costs, by its tariff. */
export function spentFen(order: UnpromisedOrder): number {
  const tariff = tariffOf(order)
  return tariff === undefined ? 0 : amountOf(tariff, usageOf(order)).amountFen
}

/** @returns undefined: it has none, or one that an older release took */
export function tariffOf({ tariff: json }: ChargingOrder): Tariff | undefined {
  const tariff = json === null ? undefined : parseTariff(json)
  return tariff === undefined || isTariffProblem(tariff) ? undefined : tariff
}

export const usageOf = (order: ChargingOrder) => ({
  startedMs: order.started_at.getTime(),
  durationS: order.duration_s ?? 0,
  energyWh: order.energy_wh ?? 0,
  maxPowerW: order.max_power_w ?? 0,
})

/** @returns fen that no running order may use up, or has used up; 0: no such card */
export async function leftOnCard(sql: Sql | TransactionSql, tenant: string, cardId: string): Promise<number> {
  const [card] = await sql.unsafe<{ left_fen: number }[]>(LEFT_ON_CARD, [tenant, cardId, ...DOUBTS], { prepare: true })
  const running = await unpromisedOrders(sql, { tenant, cardId })
  return Number(card?.left_fen ?? 0) - running.reduce((sum, order) => sum + spentFen(order), 0)
}
