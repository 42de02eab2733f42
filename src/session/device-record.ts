/**
 * What a shard remembers of a device between frames and between connections: protocol memory, and the latest state
 * that is not yet written. Changes are coalesced here, so that a heartbeat costs no row.
 */
import type { Fact, PortReading } from '../codec/facts.ts'
import { chooseProfile } from '../codec/profile.ts'
import type { DeviceMemory, Protocol } from '../codec/protocol.ts'
import { type DeviceStateRow, deviceStateRow, type PortStateRow, portStateRow } from '../rows/index.ts'
import { type LaneCommand, portKeyOf } from './command-lane.ts'
import type { Effects } from './effects.ts'
import { ROW_REFUSED } from './effects.ts'

type DeviceInfo = Extract<Fact, { fact: 'deviceInfo' }>
type PendingInfo = { -readonly [K in keyof DeviceStateRow]?: DeviceStateRow[K] }

interface PortMemory {
  reading: PortReading
  wireHex: string | null
  isDirty: boolean
}

/** Power and voltage wander with every report; only a step this large is worth a row of its own. */
const POWER_STEP_W = 5
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
  lastSeenMs = 0
  isRegistered = false
  #writtenSeenMs = 0
  #lastMessageId: number | undefined
  /** The value last written, per column: a repeated fact is no change. */
  #written: PendingInfo = {}
  #pending: PendingInfo = {}
  #hasPending = false
  readonly #ports = new Map<number, PortMemory>()
  /** By port, in this session: wire number of the charge last reported, '' when it came without one, null when the port rested. */
  readonly #charges = new Map<number, string | null>()
  /** The same at the first send of a start, by command: a start in doubt outlives its session. */
  readonly #chargesBefore = new Map<string, string | null | undefined>()
  #hasDirtyPort = false
  /** `devices.model_profile`, as far as main has said it. */
  #profileName: string | null = null
  #model: { readonly deviceType: string | undefined; readonly firmware: string | undefined } = {
    deviceType: undefined,
    firmware: undefined,
  }

  /** @param profileName `devices.model_profile` */
  constructor(protocol: Protocol, deviceKey: number, deviceNo: number, profileName: string | null = null) {
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
    const before = this.#model
    const model = { deviceType: deviceType ?? before.deviceType, firmware: firmware ?? before.firmware }
    if (model.deviceType === before.deviceType && model.firmware === before.firmware) return
    this.#model = model
    this.#chooseProfile()
  }

  #chooseProfile(): void {
    const { profiles } = this.protocol
    this.protocol.useProfile(this.memory, chooseProfile(profiles, this.#profileName, this.#model).name)
  }

  /**
   * A new session begins: what another shard or an earlier connection wrote meanwhile is not known here, so the next
   * report of everything is written again.
   */
  forgetWritten(): void {
    this.#written = {}
    this.#ports.clear()
    this.#charges.clear()
    this.#hasDirtyPort = false
  }

  /** The device, the database or we used this message id: ours go on behind it. */
  noteMessageId(messageId: number): void {
    const last = this.#lastMessageId
    const span = 2 ** this.protocol.messageIdBits
    // serial arithmetic: after a wrap a large number is an old one, and ours must not go back to it
    if (last === undefined || (((messageId - last) % span) + span) % span < span / 2) this.#lastMessageId = messageId
  }

  /** A message id of ours for this device, unique among commands in flight, never 0, also after a restart. */
  nextMessageId(nowMs: number): number {
    this.#lastMessageId = this.protocol.nextMessageId(this.#lastMessageId, nowMs)
    return this.#lastMessageId
  }

  /** @param wireHex undefined when the report names no order */
  noteCharge(portKey: number, isCharging: boolean, wireHex: string | undefined): void {
    if (!isCharging) this.#charges.set(portKey, null)
    else if (wireHex !== undefined) this.#charges.set(portKey, wireHex)
    else if (typeof this.#charges.get(portKey) !== 'string') this.#charges.set(portKey, '')
  }

  /** What the port of a command did when that was sent first; undefined: nobody here knows. */
  chargeBefore({ commandId, socket, port, attempts }: LaneCommand): string | null | undefined {
    if (attempts > 0 || this.#chargesBefore.has(commandId)) return this.#chargesBefore.get(commandId)
    const charge = this.#charges.get(portKeyOf(socket, port))
    // a fate that another shard gives leaves its entry here
    if (this.#chargesBefore.size >= STARTS_MAX)
      for (const oldest of this.#chargesBefore.keys()) {
        this.#chargesBefore.delete(oldest)
        break
      }
    this.#chargesBefore.set(commandId, charge)
    return charge
  }

  forgetChargeBefore(commandId: string): void {
    this.#chargesBefore.delete(commandId)
  }

  /** Something changed that should be written soon. */
  get isDirty(): boolean {
    return this.#hasPending || this.#hasDirtyPort
  }

  /** Only the time of the last frame is newer than what is written. */
  isSeenStale(nowMs: number, seenFlushMs: number): boolean {
    return this.lastSeenMs > this.#writtenSeenMs && nowMs - this.#writtenSeenMs >= seenFlushMs
  }

  #note<K extends keyof DeviceStateRow>(column: K, value: DeviceStateRow[K] | undefined): void {
    if (value === undefined || this.#written[column] === value) return
    this.#written[column] = value
    this.#pending[column] = value
    this.#hasPending = true
  }

  noteInfo(info: DeviceInfo, nowMs: number): void {
    if (info.firmware !== undefined || info.deviceType !== undefined) this.#noteModel(info.deviceType, info.firmware)
    this.#note('firmware', info.firmware)
    this.#note('deviceType', info.deviceType)
    this.#note('portCount', info.portCount)
    this.#note('iccid', info.iccid)
    this.#note('imei', info.imei)
    this.#note('module', info.module)
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
    const written = this.#written[column]
    if (typeof written === 'number' && Math.abs(written - value) < step) {
      // rides along with the next row, makes none of its own
      if (written !== value) this.#pending[column] = value
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
    const written = this.#written.clockOffsetMs
    if (typeof written === 'number' && Math.abs(written - offset) < 5_000) return
    this.#note('clockOffsetMs', offset)
  }

  /** @param wireHex order that runs on the port, null when none, undefined when the report does not say */
  notePort(reading: PortReading, wireHex?: string | null): void {
    const key = reading.socket * 256 + reading.port
    const known = this.#ports.get(key)
    if (known === undefined) {
      this.#ports.set(key, { reading, wireHex: wireHex ?? null, isDirty: true })
      this.#hasDirtyPort = true
      return
    }
    const before = known.reading
    const stepped = (was: number | undefined, is: number | undefined, step: number) =>
      is !== undefined && Math.abs(is - (was ?? 0)) >= step
    const isChange =
      before.stateRaw !== reading.stateRaw ||
      before.state !== reading.state ||
      before.fault !== reading.fault ||
      stepped(before.powerW, reading.powerW, POWER_STEP_W) ||
      stepped(before.voltageV, reading.voltageV, VOLTAGE_STEP_V) ||
      (reading.energyWh !== undefined && reading.energyWh !== before.energyWh) ||
      (wireHex !== undefined && wireHex !== known.wireHex)
    if (!isChange) return
    known.reading = { ...before, ...reading }
    if (reading.fault === undefined && known.reading.fault !== undefined) {
      const { fault: _, ...rest } = known.reading
      known.reading = rest
    }
    if (wireHex !== undefined) known.wireHex = wireHex
    known.isDirty = true
    this.#hasDirtyPort = true
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
        registeredMs: pending.registeredMs ?? null,
        firmware: pending.firmware ?? null,
        deviceType: pending.deviceType ?? null,
        portCount: pending.portCount ?? null,
        iccid: pending.iccid ?? null,
        imei: pending.imei ?? null,
        module: pending.module ?? null,
        signal: pending.signal ?? null,
        voltageV: pending.voltageV ?? null,
        temperatureC: pending.temperatureC ?? null,
        virtualId: pending.virtualId ?? null,
        workMode: pending.workMode ?? null,
        clockOffsetMs: pending.clockOffsetMs ?? null,
      })
      if (position === ROW_REFUSED) return false
      this.#pending = {}
      this.#hasPending = false
      this.#writtenSeenMs = this.lastSeenMs
    }
    if (!this.#hasDirtyPort) return true
    for (const port of this.#ports.values()) {
      if (!port.isDirty) continue
      if (effects.appendRow(portStateRow, this.#portRow(port, epoch, nextSeq(), nowMs)) === ROW_REFUSED) return false
      port.isDirty = false
    }
    this.#hasDirtyPort = false
    return true
  }

  #portRow(port: PortMemory, epoch: number, seq: number, nowMs: number): PortStateRow {
    const reading = port.reading
    return {
      deviceId: this.deviceId,
      epoch,
      seq,
      socket: reading.socket,
      port: reading.port,
      atMs: nowMs,
      state: reading.state,
      stateRaw: reading.stateRaw,
      fault: reading.fault ?? null,
      powerW: reading.powerW ?? null,
      voltageV: reading.voltageV ?? null,
      currentA: reading.currentA ?? null,
      energyWh: reading.energyWh ?? null,
      temperatureC: reading.temperatureC ?? null,
      wireHex: port.wireHex,
    }
  }
}
