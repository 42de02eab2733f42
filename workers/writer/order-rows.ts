/**
 * Rows about orders, carried out on an {@link OrderBook} and {@link CommandFates} in the order in which they happened.
 * Pure: writers run it inside a transaction, the simulation on its maps.
 */
import type { CommandFateRow, ProgressRow, SettlementRow } from '../../src/rows/index.ts'
import type { CommandFates } from './command-fates.ts'
import type { OrderBook, StartRow, Wants } from './order-book.ts'

export interface OrderRows {
  readonly fates: readonly CommandFateRow[]
  readonly starts: readonly StartRow[]
  readonly progress: readonly ProgressRow[]
  readonly settlements: readonly SettlementRow[]
}

/** What has to be known of orders before these rows are. */
export const wantsOf = ({ fates, starts, progress, settlements }: OrderRows): Wants => ({
  commandIds: [...new Set(fates.map(({ commandId }) => commandId))],
  commandWires: fates.flatMap(numberTold),
  starts,
  progress,
  settlements,
})

/** The business number in a result, for which there may be an order already. */
function numberTold({ commandId, result }: CommandFateRow): { commandId: string; wireHex: string }[] {
  const match = /"business_no":(\d{1,5})\b/.exec(result)
  return match === null ? [] : [{ commandId, wireHex: Number(match[1]).toString(16).padStart(4, '0') }]
}

interface Applied {
  /** By table. */
  readonly counts: Readonly<Record<string, { inserted: number; repeated: number; fenced: number }>>
  readonly settled: { stored: number; repeated: number; conflicting: number }
  /** Repeats that say something else. */
  readonly contradicting: readonly SettlementRow[]
}

/** A row at the same moment as another goes by its kind, so that an order that lives within one span knows its start. */
export function applyOrderRows(rows: OrderRows, fates: CommandFates, book: OrderBook): Applied {
  const none = () => ({ inserted: 0, repeated: 0, fenced: 0 })
  const counts = { outbound_queue: none(), orders: none(), port_samples: none(), settlements: none() }
  const settled = { stored: 0, repeated: 0, conflicting: 0 }
  const contradicting: SettlementRow[] = []
  const work = [
    ...rows.fates.map((row) => ({
      atMs: row.atMs,
      act: () => {
        const outcome = fates.apply(row, book)
        counts.outbound_queue[outcome === 'applied' ? 'inserted' : outcome]++
      },
    })),
    ...rows.starts.map((row) => ({
      atMs: row.atMs,
      act: () => {
        counts.orders[book.started(row) ? 'inserted' : 'repeated']++
      },
    })),
    ...rows.progress.map((row) => ({
      atMs: row.atMs,
      act: () => {
        // the samples count themselves
        if (book.progressed(row) === 'fenced') counts.port_samples.fenced++
      },
    })),
    ...rows.settlements.map((row) => ({
      atMs: row.receivedMs,
      act: () => {
        const known = book.settled(row)
        counts.settlements[known === undefined ? 'inserted' : 'repeated']++
        if (known === undefined) settled.stored++
        else if (known.durationS === row.durationS && known.energyRaw === row.energyRaw) settled.repeated++
        else {
          settled.conflicting++
          contradicting.push(row)
        }
      },
    })),
  ].sort((a, b) => a.atMs - b.atMs)
  for (const { act } of work) act()
  return { counts, settled, contradicting }
}
