/**
 * The BKV protocol: every command its document names, in both directions. What is not here is unknown: it is counted
 * and kept raw by whoever reads frames.
 */
import { type Downlink, type Fields, PayloadError, type Protocol, type Uplink } from '../../codec/protocol.ts'
import * as card from './commands/card.ts'
import * as network from './commands/network.ts'
import * as payload from './commands/payload.ts'
import * as socket from './commands/socket.ts'
import { odditiesOf } from './entries.ts'
import {
  CODE_NETWORK,
  CODE_SOCKET,
  commandKey,
  DEVICE_NO_MAX,
  encodeFrame,
  FRAME_BYTES_MAX,
  FRAME_BYTES_MAX_BEFORE_LOGIN,
  findFrame,
  formatDeviceId,
  parseDeviceId,
  readHead,
  recognise,
  writeFrame,
} from './frame.ts'
import { BKV_PROFILES, useProfile } from './profile.ts'

const UPLINKS: readonly Uplink[] = [
  network.heartbeat,
  network.refreshNodesResult,
  network.addNodeResult,
  network.deleteNodeResult,
  network.otaReport,
  socket.socketStatus,
  socket.controlResult,
  socket.endReport,
  socket.startByPowerResult,
  socket.powerEndReport,
  card.cardSwiped,
  card.cardOrderConfirm,
  card.cardEndReport,
  card.cardBalanceQuery,
  socket.setVoiceResult,
  payload.statusReport,
  payload.feeEndReport,
  payload.feeControlResult,
  payload.exceptionReport,
  payload.setParametersResult,
  payload.parameters,
  payload.connectNotice,
]

const DOWNLINKS: readonly Downlink[] = [
  network.timeReply,
  network.refreshNodes,
  network.addNode,
  network.deleteNode,
  network.startOta,
  socket.queryStatus,
  socket.control,
  socket.endAck,
  socket.endAckEcho02,
  socket.endAckEcho18,
  socket.startByPower,
  card.cardOrder,
  card.cardOrderAck,
  card.cardBalance,
  socket.setVoice,
  payload.statusAck,
  payload.feeEndAck,
  payload.feeControl,
  payload.exceptionAck,
  payload.setParameters,
  payload.queryParameters,
]

/** The same command under another number: read, never sent. */
export const ALIASES: readonly {
  readonly code: number
  readonly sub: number
  readonly of: Uplink | Downlink
  readonly why: string
}[] = [
  { code: CODE_SOCKET, sub: 0x1c, of: socket.socketStatus, why: 'the guide prints 1c in the answer to 1d' },
  { code: CODE_NETWORK, sub: 0x17, of: socket.startByPower, why: 'the guide prints outer command 0005' },
  { code: CODE_NETWORK, sub: 0x17, of: socket.startByPowerResult, why: 'by the same misprint' },
]

function tableOf<C extends Uplink | Downlink>(commands: readonly C[]): ReadonlyMap<number, C> {
  const table = new Map(commands.map((command) => [commandKey(command.code, command.sub), command]))
  for (const { code, sub, of } of ALIASES) {
    const command = commands.find((candidate) => candidate === of)
    if (command !== undefined) table.set(commandKey(code, sub), command)
  }
  return table
}

const byName = <C extends Uplink | Downlink>(commands: readonly C[]): ReadonlyMap<string, C> =>
  new Map(commands.map((command) => [command.name, command]))

const HEARTBEAT_KEY = commandKey(network.heartbeat.code)

export const bkv: Protocol = {
  name: 'bkv',
  index: 1,
  frameBytesMaxBeforeLogin: FRAME_BYTES_MAX_BEFORE_LOGIN,
  frameBytesMax: FRAME_BYTES_MAX,
  uplinks: tableOf(UPLINKS),
  downlinks: tableOf(DOWNLINKS),
  uplinkByName: byName(UPLINKS),
  downlinkByName: byName(DOWNLINKS),
  commandKey,
  recognise,
  findFrame,
  readHead,
  encodeFrame,
  writeFrame,
  formatDeviceId,
  parseDeviceId,
  iccidIn: (bytes, { commandKey: key, dataFrom, dataTo }) => {
    if (key !== HEARTBEAT_KEY) return undefined
    const fields = network.heartbeat.decode(bytes, dataFrom, dataTo)
    // '': a module that does not know it
    return fields instanceof PayloadError ? undefined : (fields['iccidAscii'] as string) || undefined
  },
  // No default id is documented or seen; erased memory reads as all zeros or, in BCD, as all nines.
  isSharedDefaultId: (deviceNo) => deviceNo <= 0 || deviceNo === DEVICE_NO_MAX,
  messageIdBits: 32,
  newMemory: () => ({ profile: 0 }),
  profiles: BKV_PROFILES,
  useProfile,
  oddities: odditiesOf,
  // 2: in practice a Unix time; counting on from it keeps sequences apart also after a restart
  nextMessageId: (last, nowMs) => Math.max((last ?? 0) + 1, Math.floor(nowMs / 1000)) % 2 ** 32 || 1,
  // 3 and 9: a start is not repeated blindly, its state is asked
  askAfterStart: (name, fields) => {
    const { on, socket } = (fields['bkv'] ?? fields) as Fields
    const isStart = (name === 'control' || name === 'startByPower' || name === 'feeControl') && on === 1
    return isStart ? { name: 'queryStatus', fields: { socket } } : undefined
  },
  // business numbers have 16 bits and start over with a replaced board (BKV 9)
  reusesOrderNumbers: true,
  endsWithLastPower: true,
}
