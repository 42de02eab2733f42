/** What the reconciler asks of `orders` and `outbound_queue`, and its transactions. Thread: main. */
import { insertDerivedEvents } from '../../workers/writer/insert.ts'
import type { OrderBook, Wants } from '../../workers/writer/order-book.ts'
import { loadOrders, writeOrders } from '../../workers/writer/order-tables.ts'
import type { Sql } from './database/connect.ts'
import { CHARGE_MS_MAX, type DoubtedOrder, type ReconcilerStore, type UndecidedStart } from './reconciler.ts'

const ORDERS_PER_ROUND = 500

export class SqlReconcilerStore implements ReconcilerStore {
  readonly #sql: Sql

  constructor(sql: Sql) {
    this.#sql = sql
  }

  async silentOrders(sinceMs: number): Promise<DoubtedOrder[]> {
    const rows = await this.#sql<
      {
        order_no: string
        device_id: string
        socket: number
        port: number
        wire_hex: string | null
        created_at: Date
        started_at: Date | null
        last_progress_at: Date | null
        port_charged_at: Date | null
        doubted_at: Date | null
        request: { duration_s?: number; max_duration_s?: number } | null
      }[]
    >`
      select o.order_no, o.device_id, o.socket, o.port, o.wire_hex, o.created_at, o.started_at, o.last_progress_at,
        p.at as port_charged_at, o.doubted_at, o.request
      from orders o left join ports p on p.device_id = o.device_id and p.socket = o.socket and p.port = o.port
        and p.state = 'charging' and coalesce(p.wire_hex, '') in ('', o.wire_hex)
        and not exists (select from orders n where n.device_id = o.device_id and n.socket = o.socket and n.port = o.port
          and n.created_at > o.created_at and n.state not in ('failed', 'cancelled'))
      where o.state in ('charging', 'stopping')
        and coalesce(greatest(o.last_progress_at, o.started_at), o.created_at) < ${new Date(sinceMs)}
        and (p.at is null or p.at < ${new Date(sinceMs)} or coalesce(o.started_at, o.created_at) < ${new Date(sinceMs - CHARGE_MS_MAX)})
        -- those that may be silent for their whole preset must not fill the round and keep the others waiting
        and coalesce(o.started_at, o.created_at)
          + coalesce((o.request ->> 'duration_s')::float8, (o.request ->> 'max_duration_s')::float8, 0) * interval '1 second'
          < now()
      order by coalesce(greatest(o.last_progress_at, o.started_at), o.created_at), o.order_no limit ${ORDERS_PER_ROUND}`
    return rows.map((row) => ({
      orderNo: row.order_no,
      deviceId: row.device_id,
      socket: row.socket,
      port: row.port,
      wireHex: row.wire_hex,
      createdMs: row.created_at.getTime(),
      startedMs: row.started_at?.getTime() ?? null,
      lastProgressMs: row.last_progress_at?.getTime() ?? null,
      portChargedMs: row.port_charged_at?.getTime() ?? null,
      presetS: row.request?.duration_s ?? row.request?.max_duration_s ?? null,
      doubtedMs: row.doubted_at?.getTime() ?? null,
    }))
  }

  async doubt(orderNo: string, atMs: number): Promise<void> {
    await this.#sql`update orders set doubted_at = ${new Date(atMs)} where order_no = ${orderNo}`
  }

  async undecidedStarts(decidedBeforeMs: number, overdueBeforeMs: number): Promise<UndecidedStart[]> {
    const overdueBefore = new Date(overdueBeforeMs)
    const rows = await this.#sql<
      {
        order_no: string
        device_id: string
        command_id: string | null
        status: number | null
        result: UndecidedStart['result']
        finished_at: Date | null
        epoch: number | null
        wire_hex: string | null
      }[]
    >`
      select o.order_no, o.device_id, q.command_id, q.status, q.result, q.finished_at, q.epoch,
        q.wire->>'wire_hex' as wire_hex
      from orders o left join outbound_queue q on q.command_id = o.command_id
      where o.state in ('pending', 'starting')
        and (q.finished_at < ${new Date(decidedBeforeMs)}
            and (q.result->'port_charging' is distinct from 'true' or q.finished_at < ${overdueBefore})
          or (q.status < 2 and q.expires_at < ${overdueBefore})
          or (q.command_id is null and o.created_at < ${overdueBefore}))
      order by o.created_at, o.order_no limit ${ORDERS_PER_ROUND}`
    return rows.map((row) => ({
      orderNo: row.order_no,
      deviceId: row.device_id,
      commandId: row.command_id,
      status: row.status,
      result: row.result,
      finishedMs: row.finished_at?.getTime() ?? null,
      epoch: row.epoch,
      wireHex: row.wire_hex,
    }))
  }

  async within(deviceId: string, wants: Wants, act: (book: OrderBook) => boolean) {
    return await this.#sql.begin(async (tx) => {
      const [device] = await tx<{ tenant_id: string }[]>`
        select tenant_id from devices where device_id = ${deviceId} for no key update`
      const book = await loadOrders(tx, new Map([[deviceId, device?.tenant_id ?? 'default']]), wants)
      if (!act(book)) return undefined
      await writeOrders(tx, book)
      return { eventCursor: await insertDerivedEvents(tx, book.events), counts: book.counts }
    })
  }
}
