/**
 * What a shard remembers of a device between frames and between connections: protocol memory, and the latest state
 * that is not yet written. Changes are coalesced here, so that a heartbeat costs no row.
 */
import type { Fact, PortReading } from '../codec/facts.ts'
import { chooseProfile } from '../codec/profile.ts'
import type { DeviceMemory, Protocol } from '../codec/protocol.ts'
import { deviceStateRow, portStateRow } from '../rows/index.ts'
import type { LaneCommand } from './command-lane.ts'
import type { Effects } from './effects.ts'
import { ROW_REFUSED } from './effects.ts'
import { NO_PORT, type PortTable } from './port-table.ts'
import type { Session } from './shard-world.ts'

type DeviceInfo = Extract<Fact, { fact: 'deviceInfo' }>

/** Columns of a device's row: one shape for all devices. */
class InfoMemory {
  registeredMs: number | null | undefined
  firmware: string | null | undefined
  deviceType: string | null | undefined
  portCount: number | null | undefined
  iccid: string | null | undefined
  imei: string | null | undefined
  module: string | null | undefined
  signal: number | null | undefined
  voltageV: number | null | undefined
  temperatureC: number | null | undefined
  virtualId: number | null | undefined
  workMode: number | null | undefined
  clockOffsetMs: number | null | undefined
}
/** Few firmwares and models exist: each text is kept once. */
const texts = new Map<string, string>()
const TEXTS_MAX = 4_096
function shared(text: string | undefined): string | undefined {
  if (text === undefined) return undefined
  const known = texts.get(text)
  if (known !== undefined) return known
  if (texts.size < TEXTS_MAX) texts.set(text, text)
  return text
}

const VOLTAGE_STEP_V = 5
/** Commands in doubt that one device's record remembers. */
const STARTS_MAX = 64
/** A device clock before this is one that was never set (AP3000 7: it starts at 1970). */
const CLOCK_SET_MS = Date.UTC(2015, 0, 1)

export class DeviceRecord {
  readonly deviceKey: number
  readonly deviceNo: number
  readonly deviceId: string
  readonly protocol: Protocol
  readonly memory: DeviceMemory
  /** That holds the claim of the device on this shard. */
  session: Session | undefined
  lastSeenMs = 0
  isRegistered = false
  #writtenSeenMs = 0
  #lastMessageId: number | undefined
  /** The value last written, per column: a repeated fact is no change. */
  #written: InfoMemory | undefined
  #pending: InfoMemory | undefined
  #hasPending = false
  readonly #ports: PortTable
  #firstPort = NO_PORT
  /** What the port did at the first send of a start, by command: a start in doubt outlives its session. */
  #chargesBefore: Map<string, string | null | undefined> | undefined
  #hasDirtyPort = false
  /** `devices.model_profile`, as far as main has said it. */
  #profileName: string | null = null
  #deviceType: string | undefined
  #firmware: string | undefined

  /**
   * @param ports of the shard
   * @param profileName `devices.model_profile`
   */
  constructor(
    protocol: Protocol,
    deviceKey: number,
    deviceNo: number,
    ports: PortTable,
    profileName: string | null = null,
  ) {
    this.#ports = ports
    this.protocol = protocol
    this.deviceKey = deviceKey
    this.deviceNo = deviceNo
    this.deviceId = protocol.formatDeviceId(deviceNo)
    this.memory = protocol.newMemory()
    if (profileName !== null) this.useProfile(profileName)
  }

  /** @param name of a model profile; null, or one of another protocol: what the device says about itself decides */
  useProfile(name: string | null): void {
    this.#profileName = name
    this.#chooseProfile()
  }

  #noteModel(deviceType: string | undefined, firmware: string | undefined): void {
    if ((deviceType ?? this.#deviceType) === this.#deviceType && (firmware ?? this.#firmware) === this.#firmware) return
    this.#deviceType = deviceType ?? this.#deviceType
    this.#firmware = firmware ?? this.#firmware
    this.#chooseProfile()
  }

  #chooseProfile(): void {
    const { profiles } = this.protocol
    const model = { deviceType: this.#deviceType, firmware: this.#firmware }
    this.protocol.useProfile(this.memory, chooseProfile(profiles, this.#profileName, model).name)
  }

  /**
   * A new session begins: what another shard or an earlier connection wrote meanwhile is not known here, so the next
   * report of everything is written again.
   */
  forgetWritten(): void {
    this.#written = undefined
    this.#ports.free(this.#firstPort)
    this.#firstPort = NO_PORT
    this.#hasDirtyPort = false
  }

  /** The device, the database or we used this message id: ours go on behind it. */
  noteMessageId(messageId: number): void {
    const last = this.#lastMessageId
    // serial arithmetic: after a wrap a large number is an old one, and ours must not go back to it
    const ahead = last === undefined ? 0 : (messageId - last) << (32 - this.protocol.messageIdBits)
    if (ahead >= 0) this.#lastMessageId = messageId
  }

  /** A message id of ours for this device, unique among commands in flight, never 0, also after a restart. */
  nextMessageId(nowMs: number): number {
    this.#lastMessageId = this.protocol.nextMessageId(this.#lastMessageId, nowMs)
    return this.#lastMessageId
  }

  #portAt(socket: number, port: number): number {
    const known = this.#ports.find(this.#firstPort, socket, port)
    if (known !== NO_PORT) return known
    const at = this.#ports.add(this.#firstPort, socket, port)
    if (this.#firstPort === NO_PORT) this.#firstPort = at
    return at
  }

  /** @param wireHex undefined when the report names no order */
  noteCharge(socket: number, port: number, isCharging: boolean, wireHex: string | undefined): void {
    const at = this.#portAt(socket, port)
    if (!isCharging) this.#ports.setCharge(at, null)
    else if (wireHex !== undefined) this.#ports.setCharge(at, wireHex)
    else if (typeof this.#ports.charge(at) !== 'string') this.#ports.setCharge(at, '')
  }

  /** What the port of a command did when that was sent first; undefined: nobody here knows. */
  chargeBefore({ commandId, socket, port, attempts }: LaneCommand): string | null | undefined {
    const before = this.#chargesBefore ?? new Map<string, string | null | undefined>()
    if (attempts > 0 || before.has(commandId)) return before.get(commandId)
    const at = this.#ports.find(this.#firstPort, socket, port)
    const charge = at === NO_PORT ? undefined : this.#ports.charge(at)
    // a fate that another shard gives leaves its entry here
    if (before.size >= STARTS_MAX)
      for (const oldest of before.keys()) {
        before.delete(oldest)
        break
      }
    this.#chargesBefore = before.set(commandId, charge)
    return charge
  }

  forgetChargeBefore(commandId: string): void {
    this.#chargesBefore?.delete(commandId)
  }

  /** Something changed that should be written soon. */
  get isDirty(): boolean {
    return this.#hasPending || this.#hasDirtyPort
  }

  /** Only the time of the last frame is newer than what is written. */
  isSeenStale(nowMs: number, seenFlushMs: number): boolean {
    return this.lastSeenMs > this.#writtenSeenMs && nowMs - this.#writtenSeenMs >= seenFlushMs
  }

  #note<K extends keyof InfoMemory>(column: K, value: InfoMemory[K]): void {
    if (value === undefined || this.#written?.[column] === value) return
    this.#written ??= new InfoMemory()
    this.#written[column] = value
    this.#pending ??= new InfoMemory()
    this.#pending[column] = value
    this.#hasPending = true
  }

  noteInfo(info: DeviceInfo, nowMs: number): void {
    if (info.firmware !== undefined || info.deviceType !== undefined)
      this.#noteModel(shared(info.deviceType), shared(info.firmware))
    this.#note('firmware', shared(info.firmware))
    this.#note('deviceType', shared(info.deviceType))
    this.#note('portCount', info.portCount)
    this.#note('iccid', info.iccid)
    this.#note('imei', info.imei)
    this.#note('module', shared(info.module))
    this.#note('virtualId', info.virtualId)
    this.#note('workMode', info.workMode)
    this.#noteMeasured('signal', info.signal, 5)
    this.#noteMeasured('voltageV', info.voltageV, VOLTAGE_STEP_V)
    this.#noteMeasured('temperatureC', info.temperatureC, 3)
    if (info.registered === true && !this.isRegistered) {
      this.isRegistered = true
      this.#note('registeredMs', nowMs)
    }
  }

  #noteMeasured(column: 'signal' | 'voltageV' | 'temperatureC', value: number | undefined, step: number): void {
    if (value === undefined) return
    const written = this.#written?.[column]
    if (typeof written === 'number' && Math.abs(written - value) < step) {
      // rides along with the next row, makes none of its own
      if (written === value) return
      this.#pending ??= new InfoMemory()
      this.#pending[column] = value
      return
    }
    this.#note(column, value)
  }

  noteIccid(iccid: string): void {
    this.#note('iccid', iccid)
  }

  noteClock(deviceMs: number, nowMs: number): void {
    if (deviceMs < CLOCK_SET_MS) return
    const offset = deviceMs - nowMs
    const written = this.#written?.clockOffsetMs
    if (typeof written === 'number' && Math.abs(written - offset) < 5_000) return
    this.#note('clockOffsetMs', offset)
  }

  /** What the ports report next is written. @param socket undefined: all of them */
  askedPorts(socket: number | undefined): void {
    for (let at = this.#firstPort; at !== NO_PORT; at = this.#ports.next(at))
      if (socket === undefined || this.#ports.socketOf(at) === socket) this.#ports.asked(at)
  }

  /** @param wireHex order that runs on the port, null when none, undefined when the report does not say */
  notePort(reading: PortReading, wireHex?: string | null): void {
    const at = this.#portAt(reading.socket, reading.port)
    if (this.#ports.report(at, reading, wireHex)) this.#hasDirtyPort = true
  }

  /**
   * Writes what is pending. What the lane refuses stays pending.
   * @param seenFlushMs the time last heard makes a row of its own only when what is written is older than this
   * @returns false when the history lane is full
   */
  flush(effects: Effects, epoch: number, nextSeq: () => number, nowMs: number, seenFlushMs: number): boolean {
    if (this.#hasPending || this.isSeenStale(nowMs, seenFlushMs)) {
      const pending = this.#pending
      const position = effects.appendRow(deviceStateRow, {
        deviceId: this.deviceId,
        protocol: this.protocol.name,
        epoch,
        seq: nextSeq(),
        lastSeenMs: this.lastSeenMs,
        registeredMs: pending?.registeredMs ?? null,
        firmware: pending?.firmware ?? null,
        deviceType: pending?.deviceType ?? null,
        portCount: pending?.portCount ?? null,
        iccid: pending?.iccid ?? null,
        imei: pending?.imei ?? null,
        module: pending?.module ?? null,
        signal: pending?.signal ?? null,
        voltageV: pending?.voltageV ?? null,
        temperatureC: pending?.temperatureC ?? null,
        virtualId: pending?.virtualId ?? null,
        workMode: pending?.workMode ?? null,
        clockOffsetMs: pending?.clockOffsetMs ?? null,
      })
      if (position === ROW_REFUSED) return false
      this.#pending = undefined
      this.#hasPending = false
      this.#writtenSeenMs = this.lastSeenMs
    }
    if (!this.#hasDirtyPort) return true
    for (let at = this.#firstPort; at !== NO_PORT; at = this.#ports.next(at)) {
      if (!this.#ports.isDirty(at)) continue
      const row = { deviceId: this.deviceId, epoch, seq: nextSeq(), atMs: nowMs, ...this.#ports.values(at) }
      if (effects.appendRow(portStateRow, row) === ROW_REFUSED) return false
      this.#ports.written(at)
    }
    this.#hasDirtyPort = false
    return true
  }
}
