/**
 * How sure we are that a device is there, in words and as a number from 0 to 100.
 *
 * Two independent signs add up. The connection is worth 60: TCP may look alive for minutes after a device lost power.
 * Having been heard is worth 40 within one and a half heartbeat periods, 20 within three (one lost heartbeat is
 * ordinary, two are not), nothing later. Without a connection the last word alone counts half: it may be reconnecting.
 * `online` follows the connection alone, because only a connected device can be commanded.
 */

export const PRESENCE_REASONS = [
  'tcp_connected',
  'tcp_absent',
  'heard_recently',
  'heard_late',
  'silent',
  'never_seen',
] as const
export type PresenceReason = (typeof PRESENCE_REASONS)[number]

export interface Presence {
  readonly online: boolean
  /** 0..100 */
  readonly score: number
  readonly reasons: readonly PresenceReason[]
}

/** AP3000 7: heartbeats 01 and 21 every 180 s unless 83 changed it. BKV 3: 0000 every 60 s. */
export const HEARTBEAT_MS: Readonly<Record<string, number>> = { ap3000: 180_000, bkv: 60_000 }
const HEARTBEAT_MS_UNKNOWN = 180_000

export interface PresenceSigns {
  /** A session of this gateway holds the claim of the device. */
  readonly isConnected: boolean
  /** Undefined: no frame of it was ever seen. */
  readonly lastSeenMs: number | undefined
  /** Name of the protocol; null: registered ahead and never seen. */
  readonly protocol: string | null
}

/** Pure. A last frame in the future (a clock was set back) counts as just now. */
export function presenceFrom({ isConnected, lastSeenMs, protocol }: PresenceSigns, nowMs: number): Presence {
  const heartbeatMs = HEARTBEAT_MS[protocol ?? ''] ?? HEARTBEAT_MS_UNKNOWN
  const reasons: PresenceReason[] = [isConnected ? 'tcp_connected' : 'tcp_absent']
  let heard = 0
  if (lastSeenMs === undefined) reasons.push('never_seen')
  else {
    const silentMs = nowMs - lastSeenMs
    if (silentMs <= 1.5 * heartbeatMs) {
      heard = 40
      reasons.push('heard_recently')
    } else if (silentMs <= 3 * heartbeatMs) {
      heard = 20
      reasons.push('heard_late')
    } else reasons.push('silent')
  }
  return { online: isConnected, score: isConnected ? 60 + heard : heard / 2, reasons }
}
