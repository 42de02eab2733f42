/** Rows for the writer's tests: plausible ones, changed field by field. */
import * as kinds from '../../src/rows/index.ts'
import { encodeRow, type RowOf } from '../../src/rows/row.ts'

export const AT_MS = Date.UTC(2026, 0, 31, 12)
const DEVICE = '04ab373b'
const ORDER = { socket: 0, port: 1, orderKey: 'k1', wireHex: 'aa01', orderNo: 'N1', cardId: null }

type Some<F extends Parameters<typeof encodeRow>[0]['fields']> = Partial<RowOf<F>>

export const settlement = (change: Some<typeof kinds.settlementRow.fields> = {}) =>
  encodeRow(kinds.settlementRow, {
    deviceId: DEVICE,
    protocol: 'ap3000',
    epoch: 7,
    seq: 100,
    ...ORDER,
    origin: 'online',
    startModeRaw: 1,
    durationS: 3600,
    energyWh: 450,
    energyRaw: 45,
    maxPowerW: 250,
    endReason: 'full',
    endReasonRaw: 1,
    deviceSentMs: null,
    deviceEndedMs: null,
    receivedMs: AT_MS,
    occupancyMin: null,
    businessNo: null,
    deviceAmountFen: null,
    messageId: 3,
    frame: Uint8Array.of(1, 2, 3),
    ...change,
  }).slice()

export const opaque = (change: Some<typeof kinds.opaqueSettlementRow.fields> = {}) =>
  encodeRow(kinds.opaqueSettlementRow, {
    deviceId: DEVICE,
    protocol: 'ap3000',
    epoch: 7,
    command: '23',
    digest: 'd1',
    receivedMs: AT_MS,
    frame: Uint8Array.of(9, 9),
    ...change,
  }).slice()

export const orderStart = (change: Some<typeof kinds.orderStartRow.fields> = {}) =>
  encodeRow(kinds.orderStartRow, {
    deviceId: DEVICE,
    protocol: 'ap3000',
    epoch: 7,
    ...ORDER,
    origin: 'online',
    durationS: 0,
    atMs: AT_MS - 3_000_000,
    ...change,
  }).slice()

export const progress = (change: Some<typeof kinds.progressRow.fields> = {}) =>
  encodeRow(kinds.progressRow, {
    deviceId: DEVICE,
    protocol: 'ap3000',
    epoch: 7,
    seq: 50,
    ...ORDER,
    origin: 'online',
    atMs: AT_MS - 60_000,
    state: 'charging',
    stateRaw: 1,
    durationS: 600,
    energyWh: 100,
    energyRaw: 10,
    powerW: 200,
    maxPowerW: 210,
    minPowerW: null,
    avgPowerW: null,
    peakPowerW: null,
    voltageV: 221.5,
    currentA: 0.9,
    ambientC: null,
    portC: null,
    ...change,
  }).slice()

export const deviceState = (change: Some<typeof kinds.deviceStateRow.fields> = {}) =>
  encodeRow(kinds.deviceStateRow, {
    deviceId: DEVICE,
    protocol: 'ap3000',
    epoch: 7,
    seq: 10,
    lastSeenMs: AT_MS,
    registeredMs: null,
    firmware: null,
    deviceType: null,
    portCount: null,
    iccid: null,
    imei: null,
    module: null,
    signal: null,
    voltageV: null,
    temperatureC: null,
    virtualId: null,
    workMode: null,
    clockOffsetMs: null,
    ...change,
  }).slice()

export const portState = (change: Some<typeof kinds.portStateRow.fields> = {}) =>
  encodeRow(kinds.portStateRow, {
    deviceId: DEVICE,
    epoch: 7,
    seq: 11,
    socket: 0,
    port: 1,
    atMs: AT_MS,
    state: 'idle',
    stateRaw: 0,
    fault: null,
    powerW: null,
    voltageV: null,
    currentA: null,
    energyWh: null,
    temperatureC: null,
    wireHex: null,
    ...change,
  }).slice()

export const session = (change: Some<typeof kinds.sessionRow.fields> = {}) =>
  encodeRow(kinds.sessionRow, {
    deviceId: DEVICE,
    protocol: 'ap3000',
    epoch: 7,
    shard: 0,
    connectionId: 12,
    remoteAddress: '10.0.0.1:4242',
    iccid: null,
    openedMs: AT_MS - 7_200_000,
    closedMs: null,
    closeReason: null,
    ...change,
  }).slice()

export const event = (change: Some<typeof kinds.eventRow.fields> = {}) =>
  encodeRow(kinds.eventRow, {
    eventId: 'e1',
    eventType: 'device.online',
    deviceId: DEVICE,
    epoch: 7,
    orderKey: null,
    atMs: AT_MS,
    data: '{"text":"a \\"b\\" \\\\ c"}',
    ...change,
  }).slice()

export const commandLog = (change: Some<typeof kinds.commandLogRow.fields> = {}) =>
  encodeRow(kinds.commandLogRow, {
    deviceId: DEVICE,
    epoch: 7,
    seq: 12,
    atMs: AT_MS,
    isUplink: true,
    command: 'portStates',
    code: 0x01,
    messageId: 4,
    note: null,
    frame: Uint8Array.of(0x44, 0x4e, 0x59),
    ...change,
  }).slice()

export const fate = (change: Some<typeof kinds.commandFateRow.fields> = {}) =>
  encodeRow(kinds.commandFateRow, {
    commandId: 'c1',
    deviceId: DEVICE,
    epoch: 7,
    status: 2,
    attempts: 1,
    messageId: 77,
    atMs: AT_MS,
    reason: 'ok',
    result: '{}',
    ...change,
  }).slice()

/** Rows back to back, as in an outbox. */
export function spanOf(...rows: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(rows))
}
