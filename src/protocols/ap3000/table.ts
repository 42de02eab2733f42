/** The AP3000 codec: frame finder and command table together. Which code has which meaning is decided here alone. */
import type { Downlink, Protocol, Uplink } from '../../codec/protocol.ts'
import * as alarm from './commands/alarm.ts'
import * as cabinet from './commands/cabinet.ts'
import * as card from './commands/card.ts'
import * as charging from './commands/charging.ts'
import { firmwareDownlinks, firmwareUplinks } from './commands/firmware.ts'
import * as heartbeat from './commands/heartbeat.ts'
import * as host from './commands/host.ts'
import { parameterDownlinks, parameterUplinks } from './commands/parameters.ts'
import * as register from './commands/register.ts'
import * as settlement from './commands/settlement.ts'
import { smallDownlinks, smallUplinks } from './commands/small.ts'
import * as time from './commands/time.ts'
import { unpublishedDownlinks, unpublishedUplinks } from './commands/unpublished.ts'
import {
  encodeFrame,
  FRAME_BYTES_MAX,
  FRAME_BYTES_MAX_BEFORE_LOGIN,
  findFrame,
  formatPhysId,
  isSharedDefaultId,
  parsePhysId,
  readHead,
  recognise,
  writeFrame,
} from './frame.ts'
import { AP3000_PROFILES, useProfile } from './profile.ts'

const uplinks: readonly Uplink[] = [
  register.busPoll,
  heartbeat.heartbeatOld,
  card.cardSwipe,
  settlement.settlement,
  settlement.orderConfirm,
  register.upgradeRequest,
  heartbeat.powerHeartbeat,
  alarm.overTemperatureAlarm,
  alarm.unnamed08,
  register.slaveTest,
  register.moduleSetting,
  host.hostStatus,
  time.hostTimeRequest,
  host.hostUpgradeRequest,
  host.hostElectrical,
  register.register,
  heartbeat.heartbeat,
  time.timeRequest,
  settlement.timeOfUseSettlement,
  settlement.timeOfUsePowerHeartbeat,
  host.rebootHostResult,
  host.rebootModuleResult,
  host.clearSlaveUpgradeResult,
  host.setServerResult,
  host.slaveTypes,
  host.setFskResult,
  host.fskRequest,
  cabinet.cabinetHeartbeat,
  alarm.alarm,
  settlement.fullNotSettled,
  cabinet.portPush,
  cabinet.stopCabinetResult,
  alarm.unnamed73,
  charging.startChargeResult,
  charging.changeChargeResult,
  ...parameterUplinks,
  ...smallUplinks,
  ...firmwareUplinks,
  ...unpublishedUplinks,
]

const downlinks: readonly Downlink[] = [
  heartbeat.heartbeatOldAck,
  card.cardAnswer,
  settlement.settlementAck,
  settlement.orderConfirmAck,
  time.hostTimeAnswer,
  host.hostUpgradeAck,
  register.registerAck,
  heartbeat.heartbeatAck,
  time.timeAnswer,
  settlement.timeOfUseSettlementAck,
  host.rebootHost,
  host.rebootModule,
  host.clearSlaveUpgrade,
  host.setServer,
  host.setFsk,
  cabinet.stopCabinet,
  charging.askStatus,
  charging.startCharge,
  charging.changeCharge,
  ...parameterDownlinks,
  ...smallDownlinks,
  ...firmwareDownlinks,
  ...unpublishedDownlinks,
]

/** Codes the guides name and we refuse. Everything else that is not in the table is unknown: logged, never answered. */
export const REFUSED: readonly { readonly code: number; readonly direction: 'downlink'; readonly why: string }[] = [
  { code: 0x94, direction: 'downlink', why: 'deleted from the guide' },
]

function byKey<C extends Uplink | Downlink>(commands: readonly C[]): ReadonlyMap<number, C> {
  return new Map(commands.toSorted((one, other) => one.code - other.code).map((command) => [command.code, command]))
}

function byName<C extends Uplink | Downlink>(commands: readonly C[]): ReadonlyMap<string, C> {
  return new Map(commands.map((command) => [command.name, command]))
}

export const ap3000: Protocol = {
  name: 'ap3000',
  index: 0,
  frameBytesMaxBeforeLogin: FRAME_BYTES_MAX_BEFORE_LOGIN,
  frameBytesMax: FRAME_BYTES_MAX,
  uplinks: byKey(uplinks),
  downlinks: byKey(downlinks),
  uplinkByName: byName(uplinks),
  downlinkByName: byName(downlinks),
  commandKey: (code) => code,
  recognise,
  findFrame,
  readHead,
  // the bytes do not say their direction
  encodeFrame: (_direction, command, deviceNo, messageId, data) => encodeFrame(command.code, deviceNo, messageId, data),
  writeFrame: (into, _direction, command, deviceNo, messageId, data) =>
    writeFrame(into, command.code, deviceNo, messageId, data),
  formatDeviceId: formatPhysId,
  parseDeviceId: parsePhysId,
  isSharedDefaultId,
  // 01 and 21 seen (reply rule of 01), slaves last told by 35 (reply to 3B); more keys appear as slaves do
  messageIdBits: 16,
  newMemory: () => ({ heartbeats01: 0, heartbeats21: 0, slaves: 0, profile: 0 }),
  profiles: AP3000_PROFILES,
  useProfile,
  // 16 bits at half a second each come round after nine hours: nothing is in flight that long
  nextMessageId: (last) => ((last ?? 0) + 1) & 0xffff || 1,
  startsCardByCommand: true,
  // 8, 82: after a time-out the charge may run; 81 makes the device tell
  askAfterStart: (name, fields) =>
    name === 'startCharge' && fields['command'] === 1 ? { name: 'askStatus', fields: {} } : undefined,
}
