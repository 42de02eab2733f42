/**
 * One event as everybody outside sees it (contract 4): webhook, WebSocket and pull carry this object. Every field
 * follows from the stored row, so that the same fact looks the same on every way and at every repetition.
 */
import { createHash } from 'node:crypto'

export const EVENT_TYPES = [
  'device.registered',
  'device.online',
  'device.offline',
  'device.alarm',
  'port.state_changed',
  'charging.started',
  'charging.progress',
  'charging.ended',
  'order.corrected',
  'order.failed',
  'card.swiped',
  'command.finished',
  'device.param_result',
  'device.network_topology',
  'ota.progress_update',
  'webhook.disabled',
] as const
export type EventType = (typeof EVENT_TYPES)[number]

export interface EventObject {
  readonly event_id: string
  readonly event_type: string
  /** As in the API: 8 hex digits (AP3000) or 14 digits (BKV); empty: about no device (webhook.disabled). */
  readonly device_phy_id: string
  /** Unix s */
  readonly timestamp: number
  /** 16 hex digits, the same at every repetition; a request of ours has a nonce of its own in its header. */
  readonly nonce: string
  readonly data: Readonly<Record<string, unknown>>
}

/** Columns of `events` that make the object. */
export interface EventColumns {
  readonly event_id: string
  readonly event_type: string
  readonly device_id: string
  readonly at: Date
  readonly data: Readonly<Record<string, unknown>>
}

/** Pure. */
export function eventObjectOf({ event_id, event_type, device_id, at, data }: EventColumns): EventObject {
  return {
    event_id,
    event_type,
    device_phy_id: device_id,
    timestamp: Math.floor(at.getTime() / 1_000),
    nonce: createHash('sha256').update(`nonce\u001f${event_id}`).digest('hex').slice(0, 16),
    data,
  }
}
