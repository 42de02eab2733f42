/** What a fact of a decoded frame leads to: the device's record, news for its commands, rows. */
import type { Fact, OrderRef } from '../codec/facts.ts'
import type { Protocol, Uplink } from '../codec/protocol.ts'
import { eventIdOf } from '../events/event-id.ts'
import { opaqueSettlementRow, orderStartRow, progressRow, settlementRow } from '../rows/index.ts'
import type { DeviceRecord } from './device-record.ts'
import { isBlankOrder, orderKeyOf, orderNoOf, wireKeyOf } from './order-key.ts'
import type { SessionCommands } from './session-commands.ts'
import type { SessionRows } from './session-rows.ts'
import { NO_CLAIM, type Session, type ShardWorld } from './shard-world.ts'

/** A card that was shown to a socket. */
export type Swipe = Extract<Fact, { fact: 'cardSwiped' }>

const replyNames = new Map<Protocol, Set<string>>()

/** Sent as an answer only, so that what the device says to it (BKV 0f to 0b) is no result of a command. */
function isReply(protocol: Protocol, downlinkName: string): boolean {
  let names = replyNames.get(protocol)
  if (names === undefined) {
    names = new Set([...protocol.uplinks.values()].flatMap(({ reply }) => (reply === 'none' ? [] : [reply.with])))
    replyNames.set(protocol, names)
  }
  return names.has(downlinkName)
}

/** AP3000 5: a repeated frame comes within seconds. */
const REPEAT_MS = 30_000

/**
 * What a repeated frame shares with the first one and no other: its message id, or the time, where the device numbers
 * nothing that it sends on its own (BKV 2: sequence 0).
 */
const repeatKeyOf = (messageId: number, nowMs: number) =>
  messageId === 0 ? `at ${Math.floor(nowMs / REPEAT_MS)}` : messageId

export class SessionFacts {
  readonly #world: ShardWorld
  readonly #rows: SessionRows
  readonly #commands: SessionCommands
  /** Sockets whose ports the frame in hand reports. */
  readonly socketsSeen: number[] = []
  /** The swipe of the frame in hand. */
  swipe: Swipe | undefined

  constructor(world: ShardWorld, rows: SessionRows, commands: SessionCommands) {
    this.#world = world
    this.#rows = rows
    this.#commands = commands
  }

  /** @returns position of a ledger row when the fact left one */
  apply(
    session: Session,
    command: Uplink,
    fact: Fact,
    messageId: number,
    bytes: Uint8Array,
    from: number,
    to: number,
  ): number | undefined {
    const { record } = session
    const nowMs = this.#world.now.wallMs
    const { deviceId } = record
    const base = { deviceId, protocol: record.protocol.name, epoch: session.epoch }
    switch (fact.fact) {
      case 'deviceInfo': {
        const wasRegistered = record.isRegistered
        record.noteInfo(fact, nowMs)
        if (record.isRegistered && !wasRegistered)
          this.#rows.event(session, 'device.registered', eventIdOf('device.registered', deviceId), null, {
            firmware: fact.firmware ?? null,
            device_type: fact.deviceType ?? null,
            port_count: fact.portCount ?? null,
          })
        return undefined
      }
      case 'portStates':
        for (const reading of fact.ports) {
          record.notePort(reading)
          record.noteCharge(reading.socket, reading.port, reading.state === 'charging', undefined)
          session.lane?.portSeen(reading.socket, reading.port, reading.state === 'charging')
          if (reading.state === 'idle') session.lane?.portIdle(reading.socket, reading.port)
          this.socketsSeen.push(reading.socket)
        }
        return undefined
      case 'clock':
        record.noteClock(fact.deviceMs, nowMs)
        return undefined
      case 'progress': {
        const { order } = fact
        const isCharging = fact.state === 'charging'
        if (isCharging && session.lane !== undefined)
          session.lane.chargeSeen(order.socket, order.port, order.wireHex, fact.durationS * 1_000, this.#world.now)
        else this.#commands.orderSeen(session, order.socket, order.port, order.wireHex)
        record.noteCharge(order.socket, order.port, isCharging, order.wireHex)
        record.notePort(
          {
            socket: order.socket,
            port: order.port,
            state: fact.state,
            stateRaw: fact.stateRaw,
            ...(fact.powerW !== undefined && { powerW: fact.powerW }),
            ...(fact.voltageV !== undefined && { voltageV: fact.voltageV }),
            ...(fact.currentA !== undefined && { currentA: fact.currentA }),
            ...(fact.energyWh !== undefined && { energyWh: fact.energyWh }),
            ...(fact.portC !== undefined && { temperatureC: fact.portC }),
          },
          fact.state === 'idle' ? null : order.wireHex,
        )
        this.#world.effects.appendRow(progressRow, {
          ...base,
          ...this.#orderColumns(order, record),
          seq: this.#world.nextSeq(),
          origin: fact.origin,
          cardId: fact.cardId ?? null,
          atMs: nowMs,
          state: fact.state,
          stateRaw: fact.stateRaw,
          durationS: fact.durationS,
          energyWh: fact.energyWh ?? null,
          energyRaw: fact.energyRaw ?? null,
          powerW: fact.powerW ?? null,
          maxPowerW: fact.maxPowerW ?? null,
          minPowerW: fact.minPowerW ?? null,
          avgPowerW: fact.avgPowerW ?? null,
          peakPowerW: fact.peakPowerW ?? null,
          voltageV: fact.voltageV ?? null,
          currentA: fact.currentA ?? null,
          ambientC: fact.ambientC ?? null,
          portC: fact.portC ?? null,
        })
        return undefined
      }
      case 'orderConfirmed':
        this.#commands.orderSeen(session, fact.order.socket, fact.order.port, fact.order.wireHex)
        return this.#world.effects.appendRow(orderStartRow, {
          ...base,
          ...this.#orderColumns(fact.order, record),
          origin: fact.origin,
          cardId: fact.cardId ?? null,
          durationS: fact.durationS,
          atMs: nowMs,
        })
      case 'settlement': {
        const orderKey = orderKeyOf(fact, record.protocol)
        this.#commands.orderSeen(session, fact.order.socket, fact.order.port, fact.order.wireHex)
        session.lane?.orderSettled(fact.order.wireHex)
        return this.#world.effects.appendRow(settlementRow, {
          ...base,
          seq: this.#world.nextSeq(),
          socket: fact.order.socket,
          port: fact.order.port,
          orderKey,
          wireHex: fact.order.wireHex,
          orderNo: orderNoOf(fact.order, orderKey, deviceId),
          origin: fact.origin,
          startModeRaw: fact.startModeRaw,
          cardId: fact.cardId ?? null,
          durationS: fact.durationS,
          energyWh: fact.energyWh,
          energyRaw: fact.energyRaw,
          maxPowerW: fact.maxPowerW,
          endReason: fact.endReason,
          endReasonRaw: fact.endReasonRaw,
          deviceSentMs: fact.sentMs ?? null,
          deviceEndedMs: fact.endedMs ?? null,
          receivedMs: nowMs,
          occupancyMin: fact.occupancyMin ?? null,
          businessNo: fact.businessNo ?? null,
          deviceAmountFen: fact.deviceAmountFen ?? null,
          messageId,
          frame: bytes.subarray(from, to),
        })
      }
      case 'opaqueSettlement': {
        const { dataFrom, dataTo } = this.#world.head
        return this.#world.effects.appendRow(opaqueSettlementRow, {
          ...base,
          command: command.name,
          digest: eventIdOf(Buffer.from(bytes.subarray(dataFrom, dataTo)).toString('hex')),
          receivedMs: nowMs,
          frame: bytes.subarray(from, to),
        })
      }
      case 'alarm':
        this.#rows.event(
          session,
          'device.alarm',
          eventIdOf(
            'device.alarm',
            deviceId,
            session.epoch,
            repeatKeyOf(messageId, nowMs),
            fact.kindRaw,
            fact.port,
            fact.trigger ?? 0,
          ),
          null,
          {
            kind: fact.kind,
            kind_raw: fact.kindRaw,
            socket: fact.socket,
            port: fact.port,
            trigger: fact.trigger ?? null,
          },
        )
        return undefined
      case 'cardSwiped': {
        const { cardId, socket, port } = fact
        const which = fact.businessNo ?? repeatKeyOf(messageId, nowMs)
        const type = 'card.swiped'
        this.#rows.event(session, type, eventIdOf(type, deviceId, session.epoch, which, cardId, socket, port), null, {
          card_id: cardId,
          socket,
          // without a port only the balance is asked for
          port: port === 0 ? null : port,
        })
        this.swipe = fact
        return undefined
      }
      // seen, logged with its bytes and counted; nothing else follows from these yet
      case 'heartbeat':
        return undefined
      case 'slaveTypes': {
        const nodes = fact.slaves.map((slave) => ({
          device_phy_id: record.protocol.formatDeviceId(slave.deviceNo),
          device_type: slave.deviceType,
          firmware: slave.firmware,
        }))
        // told again in the same session it is the same list
        const id = eventIdOf('device.network_topology', deviceId, session.epoch, JSON.stringify(nodes))
        this.#rows.event(session, 'device.network_topology', id, null, { cause: 'slaves_told', nodes })
        return undefined
      }
      case 'upgradeRequested':
        this.#rows.event(
          session,
          'ota.progress_update',
          eventIdOf('ota.progress_update', deviceId, session.epoch, messageId, fact.by),
          null,
          { state: 'requested', by: fact.by },
        )
        // an id that many boards share gets no commands, so it has no lane
        if (session.slot !== NO_CLAIM) this.#commands.laneOf(session).upgradeRequested(this.#world.now)
        return undefined
      case 'result': {
        if (this.#commands.resultReceived(session, fact, messageId, command.name)) return undefined
        // its command has its fate already, or was never ours: the frame in cmd_log is the evidence
        const downlink = record.protocol.downlinkByName.get(fact.downlink)
        if (downlink !== undefined && !isReply(record.protocol, fact.downlink))
          this.#world.effects.counts.command(downlink, 'late')
        return undefined
      }
    }
  }

  /** A blank order number leaves the key empty: a sample is kept, no order can be told from it. */
  #orderColumns(order: OrderRef, record: DeviceRecord) {
    const orderKey = isBlankOrder(order.wireHex) ? '' : wireKeyOf(order, record.protocol)
    return {
      socket: order.socket,
      port: order.port,
      orderKey,
      wireHex: order.wireHex,
      orderNo: orderKey === '' ? '' : orderNoOf(order, orderKey, record.deviceId),
    }
  }
}
