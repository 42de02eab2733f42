/** Who speaks for a device: claims taken at a first frame, lost to a newer connection, given back at a close. */
import { deviceKey as deviceKeyOf } from '../codec/protocol.ts'
import type { Allowlist } from './allowlist.ts'
import { DeviceRecord } from './device-record.ts'
import type { CloseReason, Moment } from './effects.ts'
import { PortTable } from './port-table.ts'
import type { SessionCommands } from './session-commands.ts'
import type { SessionRows } from './session-rows.ts'
import { type Connection, NO_CLAIM, type Session, type ShardWorld } from './shard-world.ts'

/** Devices on one connection: a host relays up to 50 (AP3000 4), and every frame walks over them. */
const SESSIONS_MAX = 1_024

function join(connection: Connection, session: Session): void {
  let last = connection.first
  if (last === undefined) {
    connection.first = session
    return
  }
  while (last.next !== undefined) last = last.next
  last.next = session
}

function part(connection: Connection, session: Session): void {
  if (connection.first === session) connection.first = session.next
  else
    for (let before = connection.first; before !== undefined; before = before.next)
      if (before.next === session) before.next = session.next
}

export class SessionClaims {
  readonly #world: ShardWorld
  readonly #rows: SessionRows
  readonly #commands: SessionCommands
  /** Every device this shard has heard since its start, by device key; bounded by the directory. */
  readonly #records = new Map<number, DeviceRecord>()
  /** Of all of them. */
  readonly #ports = new PortTable()
  /** Model profiles chosen by name, by device key: known before a device says its first word. Bounded by who tells. */
  readonly #profiles = new Map<number, string>()
  /** Sessions with a claim, by their index. */
  readonly #sessions: (Session | undefined)[] = []
  readonly #freeIndexes: number[] = []
  #allowlist: Allowlist | undefined
  /** Sessions whose device has state to write. */
  readonly #dirty = new Set<Session>()

  constructor(world: ShardWorld, rows: SessionRows, commands: SessionCommands) {
    this.#world = world
    this.#rows = rows
    this.#commands = commands
  }

  /** The session that holds the claim of a device here. */
  holder(deviceKey: number): Session | undefined {
    return this.#records.get(deviceKey)?.session
  }

  /**
   * `devices.model_profile` of a device, wherever it lives: at the start of this shard, and when it changes.
   * @param name null: none is chosen any more
   */
  profileChosen(deviceKey: number, name: string | null): void {
    if (name === null) this.#profiles.delete(deviceKey)
    else this.#profiles.set(deviceKey, name)
    const record = this.#records.get(deviceKey)
    if (record === undefined) return
    record.useProfile(name)
    // the same bytes may mean something else from now on
    if (record.session !== undefined) this.#world.repeats.forget(record.session.index)
  }

  /** The session of this device on this connection; made at its first frame. Undefined: it may not speak here. */
  sessionOf(connection: Connection, deviceNo: number): Session | undefined {
    let sessions = 0
    for (let session = connection.first; session !== undefined; session = session.next) {
      sessions++
      if (session.record.deviceNo !== deviceNo) continue
      if (this.#world.isStanding(session)) return session
      this.#world.effects.counts.fenced('uplink')
      this.lose(session, this.#world.now)
      return undefined
    }
    if (sessions >= SESSIONS_MAX) {
      this.#world.effects.counts.frameError(connection.protocol, 'bad_device_id')
      return undefined
    }
    return this.#login(connection, deviceNo)
  }

  #login(connection: Connection, deviceNo: number): Session | undefined {
    const { protocol } = connection
    const now = this.#world.now
    if (!this.#isAllowed(connection, protocol.formatDeviceId(deviceNo))) return undefined
    const key = deviceKeyOf(protocol, deviceNo)
    if (protocol.isSharedDefaultId(deviceNo)) {
      const record = new DeviceRecord(protocol, key, deviceNo, this.#ports)
      const session: Session = {
        record,
        connection,
        next: undefined,
        slot: NO_CLAIM,
        low: 0,
        high: 0,
        index: NO_CLAIM,
        epoch: connection.birth,
        openedMs: now.wallMs,
        openedMonoMs: now.monoMs,
        lane: undefined,
      }
      join(connection, session)
      return session
    }
    const answer = this.#world.directory.claim(key, connection.birth, this.#world.options.shard)
    if (answer.kind === 'full') {
      this.#world.close(connection, 'directory_full', now)
      return undefined
    }
    if (answer.kind === 'refused') {
      this.#world.effects.counts.fenced('claim')
      // nobody else speaks here: the device, if it lives behind this socket, comes back as the newest
      if (connection.first === undefined) this.#world.close(connection, 'superseded', now)
      return undefined
    }
    const { claim, previous } = answer
    if (previous?.isOnline === true) {
      this.#world.effects.counts.takeover()
      if (previous.shard !== this.#world.options.shard)
        this.#world.effects.supersede(previous.shard, key, previous.epoch)
    }
    let record = this.#records.get(key)
    if (record?.session !== undefined) this.lose(record.session, now)
    if (record === undefined) {
      record = new DeviceRecord(protocol, key, deviceNo, this.#ports, this.#profiles.get(key) ?? null)
      this.#records.set(key, record)
    } else record.forgetWritten()
    const session: Session = {
      record,
      connection,
      next: undefined,
      slot: claim.slot,
      low: claim.low,
      high: claim.high,
      index: this.#freeIndexes.pop() ?? this.#sessions.length,
      epoch: claim.epoch,
      openedMs: now.wallMs,
      openedMonoMs: now.monoMs,
      lane: undefined,
    }
    join(connection, session)
    this.#sessions[session.index] = session
    record.session = session
    this.#world.effects.counts.devices(protocol, 1)
    record.lastSeenMs = now.wallMs
    this.noteIccid(session)
    this.#dirty.add(session)
    this.#rows.session(session, null, now)
    this.#world.effects.deviceOnline(key)
    return session
  }

  /** Who may connect has changed: whoever may not any more is closed. @param allowlist undefined: everybody may */
  allowlistChanged(
    allowlist: Allowlist | undefined,
    connections: readonly (Connection | undefined)[],
    now: Moment,
  ): void {
    this.#allowlist = allowlist
    if (allowlist === undefined) return
    for (const connection of [...connections])
      for (let session = connection?.first; session !== undefined; ) {
        // read first: it may be closed with the session
        const { next, record } = session
        if (!allowlist.admits(record.deviceId, session.connection.remoteAddress)) this.#end(session, 'not_allowed', now)
        session = next
      }
  }

  #isAllowed(connection: Connection, deviceId: string): boolean {
    if (this.#allowlist?.admits(deviceId, connection.remoteAddress) !== false) return true
    this.#world.effects.deviceRefused(deviceId, connection.remoteAddress)
    // others may relay through the same connection (AP3000 4)
    if (connection.first === undefined) this.#world.close(connection, 'not_allowed', this.#world.now)
    return false
  }

  noteIccid(session: Session): void {
    if (session.connection.iccid === null) return
    session.record.noteIccid(session.connection.iccid)
    this.#dirty.add(session)
  }

  /** A newer connection speaks for this device: unbind it here, and close the connection if nobody is left on it. */
  lose(session: Session, now: Moment): void {
    this.#end(session, 'superseded', now)
  }

  #end(session: Session, reason: CloseReason, now: Moment): void {
    const { connection } = session
    this.unbind(session, reason, now)
    if (connection.first === undefined) this.#world.close(connection, reason, now)
  }

  unbind(session: Session, reason: CloseReason, now: Moment): void {
    const { connection, record } = session
    part(connection, session)
    this.#dirty.delete(session)
    if (session.slot === NO_CLAIM) {
      // its record ends with it
      record.forgetWritten()
      return
    }
    if (record.session === session) record.session = undefined
    this.#sessions[session.index] = undefined
    this.#freeIndexes.push(session.index)
    this.#world.repeats.forget(session.index)
    this.#commands.ended(session)
    this.#world.effects.counts.devices(record.protocol, -1)
    if (this.#world.directory.giveBack(session)) this.#flushSession(session, now, 0)
    else this.#world.effects.counts.fenced('close')
    this.#rows.session(session, reason, now)
  }

  /** The device has state to write; it is written with others. */
  noteDirty(session: Session): void {
    this.#dirty.add(session)
  }

  /** Devices whose time last heard is due to be written. */
  noteSeenStale(now: Moment): void {
    const { seenFlushMs } = this.#world.options
    for (const session of this.#sessions)
      if (session?.record.isSeenStale(now.wallMs, seenFlushMs)) this.#dirty.add(session)
  }

  /** Writes every state that was held back. */
  flushAll(now: Moment): void {
    this.flushDirty(now, Number.POSITIVE_INFINITY)
    for (const session of this.#sessions) if (session !== undefined) this.#flushSession(session, now, 0)
  }

  /** @returns false: there are more of them, for the next turn */
  flushDirty(now: Moment, sessionsMax: number): boolean {
    let count = 0
    for (const session of this.#dirty) {
      if (count++ === sessionsMax) return false
      // the lane is full: not before the next period
      if (!this.#flushSession(session, now)) return true
      this.#dirty.delete(session)
    }
    return true
  }

  #flushSession(session: Session, now: Moment, seenFlushMs = this.#world.options.seenFlushMs): boolean {
    return session.record.flush(
      this.#world.effects,
      session.epoch,
      () => this.#world.nextSeq(),
      now.wallMs,
      seenFlushMs,
    )
  }
}
