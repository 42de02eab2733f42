/**
 * What uplinks say in words that all protocols share. The session layer acts on facts only, so that a new protocol is
 * one folder. Units as in the HTTP contract: Wh, W, V, A, s, degC, ms since the epoch; ports count from 1 as on the
 * sticker; `socket` is 0 where a protocol has no sockets.
 */

/** One dictionary of port states for all protocols; the raw value travels beside it. */
export const PORT_STATES = ['idle', 'plugged', 'charging', 'full', 'float', 'fault', 'offline', 'unknown'] as const
export type PortState = (typeof PORT_STATES)[number]

/** One dictionary of end reasons for all protocols; the raw value travels beside it. */
export const END_REASONS = [
  'full',
  'max_time',
  'preset_time',
  'preset_energy',
  'unplugged',
  'overload',
  'server_stop',
  'dynamic_overload',
  'low_power',
  'ambient_overheat',
  'port_overheat',
  'over_current',
  'no_power',
  'relay_fault',
  'water',
  'fire',
  'fire_other_port',
  'door_password',
  'door_open',
  'external',
  'card_stop',
  'server_forced',
  'fire_system',
  'memory_error',
  'over_voltage',
  'under_voltage',
  'no_load',
  'protection',
  'unknown',
] as const
export type EndReason = (typeof END_REASONS)[number]

export const ORDER_ORIGINS = ['online', 'card', 'code', 'offline'] as const
export type OrderOrigin = (typeof ORDER_ORIGINS)[number]

/** The device's own name for an order. `wireHex`: AP3000 16 bytes (32 hex digits), BKV business number (4 hex digits). */
export interface OrderRef {
  readonly socket: number
  readonly port: number
  readonly wireHex: string
}

export interface PortReading {
  readonly socket: number
  readonly port: number
  readonly state: PortState
  readonly stateRaw: number
  /** For state `fault`: which (for example `relay_stuck`). */
  readonly fault?: string
  readonly powerW?: number
  readonly peakPowerW?: number
  readonly voltageV?: number
  readonly currentA?: number
  readonly energyWh?: number
  readonly energyRaw?: number
  readonly businessNo?: number
  readonly durationS?: number
  readonly temperatureC?: number
}

export type Fact =
  | { readonly fact: 'heartbeat' }
  | {
      readonly fact: 'deviceInfo'
      readonly firmware?: string
      readonly deviceType?: string
      readonly portCount?: number
      readonly iccid?: string
      readonly imei?: string
      readonly module?: string
      readonly signal?: number
      readonly voltageV?: number
      readonly temperatureC?: number
      readonly virtualId?: number
      readonly workMode?: number
      /** AP3000 20, BKV 0000: the first one a device is heard to send registers it. */
      readonly registered?: boolean
    }
  | { readonly fact: 'portStates'; readonly ports: readonly PortReading[] }
  | {
      readonly fact: 'progress'
      readonly order: OrderRef
      readonly origin: OrderOrigin
      readonly cardId?: string
      readonly state: PortState
      readonly stateRaw: number
      readonly durationS: number
      readonly energyWh?: number
      readonly energyRaw?: number
      readonly powerW?: number
      readonly maxPowerW?: number
      readonly minPowerW?: number
      readonly avgPowerW?: number
      readonly peakPowerW?: number
      readonly voltageV?: number
      readonly currentA?: number
      readonly ambientC?: number
      readonly portC?: number
    }
  | {
      readonly fact: 'settlement'
      readonly order: OrderRef
      readonly origin: OrderOrigin
      readonly startModeRaw: number
      readonly cardId?: string
      readonly durationS: number
      readonly energyWh: number
      readonly energyRaw: number
      readonly maxPowerW: number
      readonly endReason: EndReason
      readonly endReasonRaw: number | null
      /** Device clock when the record was sent, if it says so. */
      readonly sentMs?: number
      /** Device clock when the charge ended, if it says so (BKV). */
      readonly endedMs?: number
      readonly occupancyMin?: number
      readonly businessNo?: number
      /** Money the device itself computed (BKV 18, 0c, 1004). */
      readonly deviceAmountFen?: number
    }
  /** A settlement whose layout is unpublished: kept byte for byte, answered when durable. */
  | { readonly fact: 'opaqueSettlement' }
  /** An order runs (AP3000 04). */
  | {
      readonly fact: 'orderConfirmed'
      readonly order: OrderRef
      readonly origin: OrderOrigin
      readonly cardId?: string
      readonly durationS: number
    }
  | {
      readonly fact: 'cardSwiped'
      readonly cardId: string
      readonly socket: number
      /** 0: only a balance query. */
      readonly port: number
      readonly cardKind: number
      /** BKV: of the order that the swipe asks for; tells one swipe from the next, as its frames have no number. */
      readonly businessNo?: number
      readonly balanceFen?: number
    }
  | {
      readonly fact: 'alarm'
      readonly kind: string
      readonly kindRaw: number
      readonly socket: number
      readonly port: number
      readonly trigger?: number
      /** Address of the sensor on the local bus, 0 = the device's own. */
      readonly sensor?: number
    }
  /** The device's own clock; `deviceMs` may be 1970. */
  | { readonly fact: 'clock'; readonly deviceMs: number }
  | {
      readonly fact: 'slaveTypes'
      readonly slaves: readonly { readonly deviceNo: number; readonly deviceType: string; readonly firmware: string }[]
    }
  /** The device asks for firmware. */
  | { readonly fact: 'upgradeRequested'; readonly by: string }
  /** Outcome of a downlink command, matched by command and message id. */
  | {
      readonly fact: 'result'
      readonly downlink: string
      readonly raw: number
      readonly ok: boolean
      readonly reason: string
      /** Whether the asked effect took place all the same; absent: as `ok` says. `unknown`: later reports will tell. */
      readonly executed?: 'yes' | 'no' | 'unknown'
      readonly chunk?: number
      readonly businessNo?: number
      readonly socket?: number
      readonly port?: number
      /** Of the order that the result names (AP3000 82). */
      readonly wireHex?: string
      /** What was asked for, under the names and in the units of the wire; without keys of cards. */
      readonly content?: Readonly<Record<string, unknown>>
    }
