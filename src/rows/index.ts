/**
 * Every kind of row that leaves a session thread. `epoch` is the session epoch (fencing token), `seq` counts rows of
 * one shard incarnation: (deviceId, epoch, seq) names a row for good, so that a span can be inserted twice.
 * `atMs` and all `…Ms` are server time unless the name says device. `socket` is 0 where a protocol has none; ports
 * count from 1.
 */
import {
  bool,
  bytes,
  defineRow,
  type Field,
  f64,
  f64OrNull,
  i32,
  i32OrNull,
  type RowKind,
  type RowOf,
  text,
  textOrNull,
} from './row.ts'

/** The last word on an order. Natural key: device, socket, port, orderKey. */
export const settlementRow = defineRow(1, 'settlements', 'ledger', {
  deviceId: text,
  protocol: text,
  epoch: f64,
  seq: f64,
  socket: i32,
  port: i32,
  /** What repeats share: the wire order number, or a digest of the content where the device sent none. */
  orderKey: text,
  /** The device's own order number, hex. */
  wireHex: text,
  /** Our order number should this order be unknown: printable text of the wire number, else its hex. */
  orderNo: text,
  origin: text,
  startModeRaw: i32,
  cardId: textOrNull,
  durationS: i32,
  energyWh: f64,
  energyRaw: i32,
  maxPowerW: f64,
  endReason: text,
  endReasonRaw: i32OrNull,
  deviceSentMs: f64OrNull,
  deviceEndedMs: f64OrNull,
  receivedMs: f64,
  occupancyMin: i32OrNull,
  businessNo: i32OrNull,
  deviceAmountFen: i32OrNull,
  messageId: f64,
  /** The whole frame as received. */
  frame: bytes,
})

/** A settlement of unpublished layout (AP3000 23): kept byte for byte. Natural key: device, digest of the data. */
export const opaqueSettlementRow = defineRow(2, 'opaque_settlements', 'ledger', {
  deviceId: text,
  protocol: text,
  epoch: f64,
  command: text,
  digest: text,
  receivedMs: f64,
  frame: bytes,
})

/** The device says that an order runs (AP3000 04): answered when stored. */
export const orderStartRow = defineRow(3, 'orders', 'ledger', {
  deviceId: text,
  protocol: text,
  epoch: f64,
  socket: i32,
  port: i32,
  orderKey: text,
  wireHex: text,
  orderNo: text,
  origin: text,
  cardId: textOrNull,
  durationS: i32,
  atMs: f64,
})

/** Progress of an order: one port_samples row, and the order's energy so far. */
export const progressRow = defineRow(4, 'port_samples', 'history', {
  deviceId: text,
  protocol: text,
  epoch: f64,
  seq: f64,
  socket: i32,
  port: i32,
  orderKey: text,
  wireHex: text,
  orderNo: text,
  origin: text,
  cardId: textOrNull,
  atMs: f64,
  state: text,
  stateRaw: i32,
  durationS: i32,
  energyWh: f64OrNull,
  energyRaw: i32OrNull,
  powerW: f64OrNull,
  maxPowerW: f64OrNull,
  minPowerW: f64OrNull,
  avgPowerW: f64OrNull,
  peakPowerW: f64OrNull,
  voltageV: f64OrNull,
  currentA: f64OrNull,
  ambientC: f64OrNull,
  portC: f64OrNull,
})

/** Latest state of a device, coalesced per device; null means: as it was. Natural key: device; newest (epoch, seq) wins. */
export const deviceStateRow = defineRow(5, 'devices', 'history', {
  deviceId: text,
  protocol: text,
  epoch: f64,
  seq: f64,
  lastSeenMs: f64,
  registeredMs: f64OrNull,
  firmware: textOrNull,
  deviceType: textOrNull,
  portCount: i32OrNull,
  iccid: textOrNull,
  imei: textOrNull,
  module: textOrNull,
  signal: i32OrNull,
  voltageV: f64OrNull,
  temperatureC: f64OrNull,
  virtualId: i32OrNull,
  workMode: i32OrNull,
  clockOffsetMs: f64OrNull,
})

/** Latest state of a port, coalesced per port. Natural key: device, socket, port; newest (epoch, seq) wins. */
export const portStateRow = defineRow(6, 'ports', 'history', {
  deviceId: text,
  epoch: f64,
  seq: f64,
  socket: i32,
  port: i32,
  atMs: f64,
  state: text,
  stateRaw: i32,
  fault: textOrNull,
  powerW: f64OrNull,
  voltageV: f64OrNull,
  currentA: f64OrNull,
  energyWh: f64OrNull,
  temperatureC: f64OrNull,
  wireHex: textOrNull,
})

/** One device's conversation on one connection. Natural key: device, epoch; written when it opens and when it ends. */
export const sessionRow = defineRow(7, 'sessions', 'history', {
  deviceId: text,
  protocol: text,
  epoch: f64,
  shard: i32,
  connectionId: f64,
  remoteAddress: text,
  iccid: textOrNull,
  openedMs: f64,
  closedMs: f64OrNull,
  closeReason: textOrNull,
})

/** A fact for the event stream. Natural key: eventId, a function of what happened. */
export const eventRow = defineRow(8, 'events', 'history', {
  eventId: text,
  eventType: text,
  deviceId: text,
  epoch: f64,
  orderKey: textOrNull,
  atMs: f64,
  /** JSON object. */
  data: text,
})

/** One command of either direction as bytes (heartbeats excepted). Natural key: device, epoch, seq. */
export const commandLogRow = defineRow(9, 'cmd_log', 'history', {
  deviceId: text,
  epoch: f64,
  seq: f64,
  atMs: f64,
  isUplink: bool,
  command: text,
  code: i32,
  messageId: f64,
  note: textOrNull,
  frame: bytes,
})

/** What became of a command, or that it was sent. Natural key: commandId; a final status stands, a newer epoch wins. */
export const commandFateRow = defineRow(10, 'outbound_queue', 'ledger', {
  commandId: text,
  deviceId: text,
  epoch: f64,
  status: i32,
  attempts: i32,
  messageId: f64OrNull,
  atMs: f64,
  reason: text,
  /** JSON object: what the device said. */
  result: text,
})

const all: readonly RowKind<Record<string, Field>>[] = [
  settlementRow,
  opaqueSettlementRow,
  orderStartRow,
  progressRow,
  deviceStateRow,
  portStateRow,
  sessionRow,
  eventRow,
  commandLogRow,
  commandFateRow,
] as unknown as RowKind<Record<string, Field>>[]

export const ROW_KINDS: ReadonlyMap<number, RowKind> = new Map(all.map((row) => [row.kind, row]))
/** One name per kind, in the same order; a name may come twice. */
export const ROW_TABLES: readonly string[] = all.map((row) => row.table)

export type SettlementRow = RowOf<typeof settlementRow.fields>
export type ProgressRow = RowOf<typeof progressRow.fields>
export type SessionRow = RowOf<typeof sessionRow.fields>
export type EventRow = RowOf<typeof eventRow.fields>
export type CommandFateRow = RowOf<typeof commandFateRow.fields>
