/** What main and the relay thread say to one another. */
import type { RelayOptions } from './relay.ts'

export interface RelayThreadOptions extends RelayOptions {
  readonly databaseUrl: string
  readonly counters: SharedArrayBuffer
  readonly countersThread: number
  readonly log: { readonly level: string; readonly serviceName: string; readonly env: string }
}

export type ToRelay =
  /** Events were stored, or an endpoint or delivery was changed. */
  | { readonly kind: 'wake' }
  /** Nothing new; what is under way has this long, then it is cut off and sent again after the next start. */
  | { readonly kind: 'stop'; readonly withinMs: number }

export type FromRelay = { readonly kind: 'ready' } | { readonly kind: 'stopped' }
