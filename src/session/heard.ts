/**
 * What a device said about commands that nobody here waited for (yet): a command that an earlier session sent may still be
 * on its way here from main when its result comes. Pure, bounded.
 */
import type { Fact } from '../codec/facts.ts'

/** Of each so many are remembered. */
export const REMEMBERED_MAX = 8
/** What a device says right behind its registration may be about a command that is still on its way here from main. */
export const UNCLAIMED_MS = 2_000

export type ResultFact = Extract<Fact, { fact: 'result' }>

export interface UnclaimedResult {
  readonly fact: ResultFact
  readonly messageId: number
  readonly uplinkName: string
  readonly monoMs: number
}

export interface OrderSeen {
  readonly socket: number
  readonly port: number
  readonly wireHex: string
}

export class Heard {
  readonly results: UnclaimedResult[] = []
  readonly orders: OrderSeen[] = []
}

export function remember<T>(list: T[], item: T): void {
  if (list.length >= REMEMBERED_MAX) list.shift()
  list.push(item)
}
