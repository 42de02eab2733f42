/**
 * A BKV gateway with its sockets as a pure double: heartbeat and its time, status reports, the starts of the server,
 * card orders, end reports that repeat and cost the connection when nobody acks them. BKV document, sections 1 to 9.
 *
 * As in `device-ap3000.ts` the bytes are built and read here from the document, independent of `src/protocols/bkv`.
 * End reports go out one after another: the ack names the socket only (section 6), so two in flight could not be told
 * apart, and a double must know which of its records the server has.
 */
import { Random } from '../src/testing/random.ts'
import { Agenda, type Appointment } from './agenda.ts'
import {
  bcdTimeOf,
  type Chaos,
  type Device,
  type DeviceObserver,
  type DeviceWorld,
  fleetNumber,
  REPLY_WITHIN_MS,
  RoughWire,
} from './device.ts'
import { hexOf } from './device-ap3000.ts'
import { FrameStream } from './frame-stream.ts'

export interface BkvOptions {
  /** The 14 digits read as a decimal number. */
  readonly gatewayNo: number
  /** 20 characters that start 8986. */
  readonly iccid: string
  readonly seed: number
  /** Sockets 1..n, two ports each; 1..250. */
  readonly socketCount: number
  readonly heartbeatMs: number
  /** Without an answer to a heartbeat for this long the connection is dropped. */
  readonly heartbeatReplyMs: number
  readonly statusMs: number
  readonly chargeMs: number
  /** Seconds of device life per real second while it charges. */
  readonly timeScale: number
  readonly endRepeatMs: number
  /**
   * Every ack is for the oldest sending of its socket that has none: a late second ack never erases another report, as it
   * does where a device takes it for the report that waits (section 6: the ack names the socket only).
   */
  readonly acksInOrder: boolean
  /** Repeats of an end report before the connection is closed. */
  readonly endRepeats: number
  readonly resultMs: number
  readonly reconnectMs: number
  /** Cards that users swipe, six bytes each; empty: a new one each time. */
  readonly cards: readonly Uint8Array[]
  readonly replyLoss: number
  readonly chaos: Chaos
}

export const BKV_DEFAULTS = {
  seed: 1,
  socketCount: 1,
  heartbeatMs: 60_000,
  heartbeatReplyMs: 60_000,
  statusMs: 300_000,
  chargeMs: 3_600_000,
  timeScale: 1,
  endRepeatMs: 10_500,
  endRepeats: 3,
  acksInOrder: false,
  resultMs: 1_000,
  reconnectMs: 4_000,
  cards: [],
  replyLoss: 0,
  chaos: 'none',
} as const satisfies Partial<BkvOptions>

/** A gateway of a fleet: 822005 and eight digits. @param index 0..99,999 */
export function bkvGatewayNo(seed: number, index: number): number {
  return 82_200_500_000_000 + 20_000_000 + fleetNumber(seed, index)
}

/** How an order was started decides how its end is reported. */
type Kind = '0015/02' | '0015/18' | '0015/0c' | '1000/1004'

interface Order {
  readonly kind: Kind
  readonly businessNo: number
  readonly startedMs: number
  readonly powerDw: number
  /** Price tiers of 17 and 0b. */
  readonly tiers: number
  readonly amountFen: number
  readonly card: Uint8Array
  end: Appointment
}

interface Port {
  readonly socket: number
  readonly port: number
  order: Order | undefined
  /** Waits for the server's word on a card. */
  swipe: Appointment | undefined
}

interface Report {
  readonly kind: Kind
  readonly port: Port
  readonly businessNo: number
  readonly outer: number
  readonly data: Uint8Array
  sends: number
  sendsOfConnection: number
}

interface Awaited {
  readonly name: string
  /** Where two of one name may wait (two users with cards): is this answer about it? Default: yes. */
  readonly isMeant?: (data: Uint8Array) => boolean
  readonly intendedMs: number
  readonly report?: Report
  readonly onReply?: (data: Uint8Array, nowMs: number, sequence: number) => void
}

/** Bits of the status byte (section 8). */
const STATUS = { idle: 0x80, charging: 0x90, noLoad: 0x98, timeUp: 0xb0 } as const

export class DeviceBkv implements Device {
  readonly deviceId: string
  readonly #options: BkvOptions
  readonly #id: Uint8Array
  readonly #world: DeviceWorld
  readonly #observer: DeviceObserver
  readonly #random: Random
  readonly #agenda = new Agenda()
  readonly #wire: RoughWire
  readonly #ports: Port[] = []
  /** Ended and not acked, oldest first. */
  readonly #reports: Report[] = []
  #reporting: Appointment | undefined
  #hangUp: Appointment | undefined
  #awaited: Awaited[] = []
  /** Section 1: `fcff`, length of what follows, .., sum, `fcee`. */
  readonly #stream = new FrameStream({
    headBytes: 4,
    frameBytesAt: (view, at) => {
      const length = readU16(view, at + 2)
      return view[at] === 0xfc && view[at + 1] === 0xff && length >= 17 && length <= 4_096 ? 4 + length : 0
    },
    noFrame: (view, from) => this.#observer.failed('bytes.unexpected', hexOf(view.subarray(from, from + 64))),
    frame: (view, from, to, nowMs) => {
      const isWhole = view[to - 2] === 0xfc && view[to - 1] === 0xee && sumOf(view, from + 2, to - 3) === view[to - 3]
      const isOurs = this.#id.every((byte, index) => view[from + 11 + index] === byte)
      if (isWhole && isOurs && view[from + 10] === 0)
        this.#frame(readU16(view, from + 4), readU32(view, from + 6), view.slice(from + 18, to - 3), nowMs)
      else this.#observer.failed('bytes.unexpected', hexOf(view.subarray(from, to)))
      return this.#isConnected
    },
  })
  #businessNo: number
  #isConnected = false
  #isQuiet = false
  #redialMs: number

  constructor(
    options: Partial<BkvOptions> & Pick<BkvOptions, 'gatewayNo' | 'iccid'>,
    world: DeviceWorld,
    observer: DeviceObserver,
  ) {
    this.#options = { ...BKV_DEFAULTS, ...options }
    this.deviceId = String(this.#options.gatewayNo).padStart(14, '0')
    this.#id = new Uint8Array(Buffer.from(this.deviceId, 'hex'))
    this.#world = world
    this.#observer = observer
    this.#random = new Random(this.#options.seed, this.#options.gatewayNo)
    this.#wire = new RoughWire(world, this.#agenda, this.#random, this.#options.chaos, noiseOf)
    this.#redialMs = this.#options.reconnectMs
    this.#businessNo = this.#random.below(65_536)
    for (let socket = 1; socket <= this.#options.socketCount; socket++)
      for (const port of [0, 1]) this.#ports.push({ socket, port, order: undefined, swipe: undefined })
  }

  get nextWakeMs(): number {
    return this.#agenda.nextMs
  }

  get isConnected(): boolean {
    return this.#isConnected
  }

  get outstanding(): number {
    const questions = this.#awaited.reduce((sum, entry) => sum + (entry.report === undefined ? 1 : 0), 0)
    return questions + this.#reports.length
  }

  get freePorts(): number {
    return this.#ports.reduce((count, port) => count + (isFree(port) ? 1 : 0), 0)
  }

  /** Ended and not acked, oldest first: business numbers. */
  get unackedOrders(): number[] {
    return this.#reports.map((report) => report.businessNo)
  }

  powerOn(atMs: number): void {
    this.#agenda.at(atMs, () => this.#world.connect())
  }

  wake(nowMs: number): void {
    this.#agenda.runDue(nowMs)
  }

  quiet(): void {
    this.#isQuiet = true
    this.#wire.calm()
  }

  /** By card: 0b and the server's word; refused or without an answer, and without a card: the socket's own key. */
  startOrder(nowMs: number, isByCard: boolean): boolean {
    const free = this.#ports.filter(isFree)
    if (free.length === 0) return false
    const port = this.#random.pick(free)
    if (isByCard && this.#isConnected) this.#swipe(port, nowMs)
    else this.#startCharge(port, '0015/02', this.#options.chargeMs, STATUS.noLoad, nowMs)
    return true
  }

  // ---- the connection ------------------------------------------------------------------------------------------------

  connected(nowMs: number): void {
    this.#isConnected = true
    this.#redialMs = this.#options.reconnectMs
    this.#wire.opened(nowMs)
    // the first frame tells the device: at once
    this.#heartbeat(nowMs)
    this.#everyHeartbeat(nowMs + this.#random.between(0.2, 1) * this.#options.heartbeatMs)
    this.#agenda.whileConnected(nowMs + 400, (_, atMs) => this.#connectNotice(atMs))
    for (let socket = 1; socket <= this.#options.socketCount; socket++)
      this.#everyStatus(socket, nowMs + this.#random.between(500, 1_500))
    for (const report of this.#reports) report.sendsOfConnection = 0
    this.#planReport(nowMs + this.#random.between(50, 600))
  }

  disconnected(nowMs: number, why: string): void {
    const wasConnected = this.#isConnected
    this.#isConnected = false
    this.#agenda.forgetConnection()
    this.#awaited = []
    this.#stream.forget()
    this.#reporting = undefined
    this.#hangUp = undefined
    if (why !== '') this.#observer.failed(wasConnected ? 'connection.closed' : 'connection.failed', why)
    if (this.#isQuiet) return
    this.#agenda.at(nowMs + this.#redialMs * this.#random.between(0.8, 1.2), () => this.#world.connect())
    this.#redialMs = Math.min(this.#redialMs * 2, 15 * this.#options.reconnectMs)
  }

  received(bytes: Uint8Array, nowMs: number): void {
    this.#stream.received(bytes, nowMs)
  }

  // ---- what it says by itself ----------------------------------------------------------------------------------------

  #everyHeartbeat(atMs: number): void {
    this.#agenda.whileConnected(atMs, (nowMs) => {
      if (this.#isQuiet) return
      this.#missLate(nowMs)
      this.#heartbeat(atMs)
      this.#everyHeartbeat(atMs + this.#options.heartbeatMs)
    })
  }

  /** 0000: ICCID, firmware name, RSSI. Unanswered it costs the connection (section 3). */
  #heartbeat(atMs: number): void {
    const data = new Uint8Array(29)
    data.set(ascii(this.#options.iccid))
    data.set(ascii('200.1.17'), 20)
    data[28] = 20
    this.#hangUp ??= this.#agenda.whileConnected(atMs + this.#options.heartbeatReplyMs, () => this.#world.close(false))
    this.#ask('0000', 0x0000, data, atMs, (reply, nowMs) => {
      this.#agenda.cancel(this.#hangUp)
      this.#hangUp = undefined
      const isTime = reply.length >= 7 && Math.abs(msOfBcdTime(reply) - nowMs) <= 30_000
      if (!isTime) this.#observer.failed('reply.wrong', `time ${hexOf(reply)} at ${nowMs}`)
    })
  }

  #connectNotice(atMs: number): void {
    const entries = [entry(0x4a, 1), entry(0x08, 0x7f), entryBytes(0x06, bcdTimeOf(atMs)), entry(0x5a, 0x3111, 2)]
    this.#tell('1000/1013', 0x1000, this.#payload(0x1013, 0, entries), atMs)
  }

  #everyStatus(socket: number, atMs: number): void {
    this.#agenda.whileConnected(atMs, () => {
      if (this.#isQuiet) return
      this.#status(socket, atMs)
      this.#everyStatus(socket, atMs + this.#options.statusMs)
    })
  }

  /** 1017 with one socket in container 94 and its two ports in 5B. */
  #status(socket: number, atMs: number): void {
    const ports = this.#ports.filter((port) => port.socket === socket)
    const container = [entry(0x4a, socket), entry(0x3e, 0xffff, 2), entry(0x07, 29), entry(0x96, 30)]
    for (const port of ports) {
      const { order } = port
      const meter = this.#meterOf(order, atMs)
      container.push(
        entryBytes(
          0x5b,
          concat([
            entry(0x08, port.port),
            entry(0x09, order === undefined ? STATUS.idle : STATUS.charging),
            entry(0x0a, order?.businessNo ?? 0, 2),
            entry(0x95, 2_297, 2),
            entry(0x0b, meter.powerDw, 2),
            entry(0x0c, meter.currentMa, 2),
            entry(0x0d, meter.energyWh, 2),
            entry(0x0e, meter.minutes, 2),
          ]),
        ),
      )
    }
    const data = this.#payload(0x1017, 0, [entryBytes(0x94, concat(container))])
    this.#ask('1000/1017', 0x1000, data, atMs, (reply) => this.#expectAck('1017', reply))
  }

  #expectAck(name: string, reply: Uint8Array): boolean {
    const isOk = entriesOf(reply).get(0x0f)?.[0] === 1
    if (!isOk) this.#observer.failed('reply.wrong', `${name} ${hexOf(reply)}`)
    return isOk
  }

  // ---- charging ------------------------------------------------------------------------------------------------------

  #swipe(port: Port, nowMs: number): void {
    const { cards } = this.#options
    const card = cards.length > 0 ? this.#random.pick(cards) : Uint8Array.of(0, 0, ...this.#random.bytes(4))
    const businessNo = this.#nextBusinessNo()
    const byKey = (atMs: number) => {
      port.swipe = undefined
      if (port.order !== undefined || this.#isQuiet) return
      this.#startCharge(port, '0015/02', this.#options.chargeMs, STATUS.noLoad, atMs)
    }
    port.swipe = this.#agenda.at(nowMs + REPLY_WITHIN_MS, (_, atMs) => byKey(atMs))
    const data = concat([
      Uint8Array.of(port.socket, port.port, businessNo >> 8, businessNo & 0xff, STATUS.charging),
      card,
      new Uint8Array(20),
    ])
    const isMeant = (reply: Uint8Array) =>
      reply.length >= 13 && reply[3] === port.socket && reply[4] === port.port && readU16(reply, 5) === businessNo
    const replied: Awaited['onReply'] = (reply, repliedMs, sequence) => {
      if (port.swipe === undefined) return
      this.#agenda.cancel(port.swipe)
      port.swipe = undefined
      const isOn = reply[7] === 1
      const result = Uint8Array.of(port.socket, port.port, isOn ? 1 : 0)
      this.#tell('0015/0f', 0x0015, inner(0x0f, result), repliedMs, sequence)
      if (!isOn) {
        port.swipe = this.#agenda.at(repliedMs + this.#options.resultMs, (_, atMs) => byKey(atMs))
        return
      }
      const minutes = readU16(reply, 9)
      const tiers = reply[8] === 3 && reply.length >= 16 ? (reply[15] as number) : 0
      const amountFen = tiers > 0 ? readU16(reply, 13) : 0
      const { runMs, status } = this.#planRun(reply[8] === 1, minutes, reply[8] === 2 ? readU16(reply, 11) : 0)
      this.#startCharge(port, '0015/0c', runMs, status, repliedMs, { card, tiers, amountFen, businessNo })
    }
    this.#ask('0015/0b', 0x0015, inner(0x0b, data), nowMs, replied, { isMeant })
  }

  /** Time bought, energy bought (for a mean load of 250 W), or the battery after chargeMs. */
  #planRun(isByTime: boolean, minutes: number, energyWh: number): { runMs: number; status: number } {
    const { chargeMs, timeScale } = this.#options
    const boughtMs = isByTime
      ? minutes * 60_000
      : energyWh > 0
        ? (energyWh / 250) * 3_600_000
        : Number.POSITIVE_INFINITY
    if (boughtMs / timeScale > chargeMs) return { runMs: chargeMs, status: STATUS.noLoad }
    return { runMs: boughtMs / timeScale, status: isByTime ? STATUS.timeUp : STATUS.idle }
  }

  #startCharge(
    port: Port,
    kind: Kind,
    runMs: number,
    endStatus: number,
    nowMs: number,
    more: { card?: Uint8Array; tiers?: number; amountFen?: number; businessNo?: number } = {},
  ): Order {
    this.#agenda.cancel(port.swipe)
    port.swipe = undefined
    const order: Order = {
      kind,
      businessNo: more.businessNo ?? this.#nextBusinessNo(),
      startedMs: nowMs,
      powerDw: 800 + this.#random.below(3_500),
      tiers: more.tiers ?? 0,
      amountFen: more.amountFen ?? 0,
      card: more.card ?? new Uint8Array(6),
      end: this.#agenda.at(nowMs + runMs, (_, atMs) => {
        if (!this.#isQuiet) this.#endOrder(port, endStatus, atMs)
      }),
    }
    port.order = order
    this.#observer.orderStarted(this.deviceId, port.port, orderName(port, order.businessNo))
    this.#statusSoon(port, nowMs)
    return order
  }

  #statusSoon(port: Port, nowMs: number): void {
    this.#agenda.whileConnected(nowMs + 500, (_, atMs) => this.#status(port.socket, atMs))
  }

  #endOrder(port: Port, status: number, atMs: number): void {
    const { order } = port
    if (order === undefined) return
    this.#agenda.cancel(order.end)
    port.order = undefined
    const { outer, data } = this.#endReport(port, order, status, atMs)
    const report = { kind: order.kind, port, businessNo: order.businessNo, outer, data, sends: 0, sendsOfConnection: 0 }
    this.#reports.push(report)
    this.#statusSoon(port, atMs)
    if (this.#reports.length === 1) this.#planReport(atMs + 200)
  }

  #endReport(port: Port, order: Order, status: number, atMs: number): { outer: number; data: Uint8Array } {
    const meter = this.#meterOf(order, atMs)
    if (order.kind === '1000/1004') {
      const entries = [
        entry(0x07, 29),
        entry(0x4a, port.socket),
        entry(0x08, port.port),
        entry(0x09, status),
        entry(0x0a, order.businessNo, 2),
        entry(0x0b, meter.powerDw, 2),
        entry(0x0c, meter.currentMa, 2),
        entry(0x0d, meter.energyWh, 2),
        entry(0x0e, meter.minutes, 2),
        entryBytes(0x2e, bcdTimeOf(atMs)),
        entry(0x2f, status === STATUS.noLoad ? 8 : 1),
        entry(0x12, 4),
        entry(0x85, 0, 2),
        entry(0x86, 0, 2),
        entry(0x89, 1),
        entryBytes(0x84, new Uint8Array(6)),
      ]
      return { outer: 0x1000, data: this.#payload(0x1004, 0, entries) }
    }
    const head = new Uint8Array(17)
    head[0] = port.socket
    writeU16(head, 1, 0xffff)
    head[3] = 29
    head[4] = 30
    head[5] = port.port
    head[6] = status
    writeU16(head, 7, order.businessNo)
    writeU16(head, 9, meter.powerDw)
    writeU16(head, 11, meter.currentMa)
    writeU16(head, 13, meter.energyWh)
    writeU16(head, 15, meter.minutes)
    if (order.kind === '0015/02') return { outer: 0x0015, data: inner(0x02, head) }
    const money = new Uint8Array(5 + 2 * order.tiers)
    writeU16(money, 0, order.amountFen)
    writeU16(money, 2, order.powerDw)
    money[4] = order.tiers
    for (let tier = 0; tier < order.tiers; tier++) writeU16(money, 5 + 2 * tier, tier === 0 ? meter.minutes : 0)
    if (order.kind === '0015/0c')
      return {
        outer: 0x0015,
        data: inner(0x0c, concat([head, order.card, Uint8Array.of(0, order.tiers > 0 ? 3 : 1), money])),
      }
    const ended = new Date(atMs + 8 * 3_600_000)
    const time = new Uint8Array(8)
    writeU16(time, 0, ended.getUTCFullYear())
    time[2] = ended.getUTCMonth() + 1
    time[3] = ended.getUTCDate()
    time[4] = ended.getUTCHours()
    time[5] = ended.getUTCMinutes()
    time[6] = ended.getUTCSeconds()
    time[7] = status === STATUS.noLoad ? 8 : 1
    return { outer: 0x0015, data: inner(0x18, concat([head, time, money])) }
  }

  #planReport(atMs: number): void {
    if (!this.#isConnected || this.#reporting !== undefined || this.#reports.length === 0) return
    this.#reporting = this.#agenda.whileConnected(atMs, (_, dueMs) => {
      this.#reporting = undefined
      this.#sendReport(dueMs)
    })
  }

  /** Repeated every 10.5 s; after the third repeat the connection is given up, and the next one begins again. */
  #sendReport(atMs: number): void {
    const report = this.#reports[0]
    if (report === undefined) return
    if (report.sendsOfConnection > this.#options.endRepeats) {
      this.#world.close(false)
      return
    }
    const name = orderName(report.port, report.businessNo)
    this.#observer.settlementSent(this.deviceId, report.port.port, name, report.sends > 0)
    report.sends++
    report.sendsOfConnection++
    const acked = (reply: Uint8Array, nowMs: number) => {
      if (this.#reports[0] !== report) return
      const isGood =
        report.kind === '1000/1004'
          ? this.#expectAck('1004', reply)
          : reply[3] === report.port.socket && (reply[4] as number) === 1
      if (!isGood) return this.#observer.failed('settlement.refused', `${name} ${hexOf(reply)}`)
      this.#reports.shift()
      this.#observer.settlementAcked(this.deviceId, report.port.port, name)
      this.#agenda.cancel(this.#reporting)
      this.#reporting = undefined
      this.#planReport(nowMs + 500)
    }
    this.#ask(report.kind, report.outer, report.data, atMs, acked, { report })
    this.#planReport(atMs + this.#options.endRepeatMs)
  }

  /** Energy counts 1 Wh (section 8, the guide's reading). */
  #meterOf(
    order: Order | undefined,
    atMs: number,
  ): { powerDw: number; currentMa: number; energyWh: number; minutes: number } {
    if (order === undefined) return { powerDw: 0, currentMa: 0, energyWh: 0, minutes: 0 }
    const elapsedS = Math.max(0, ((atMs - order.startedMs) / 1000) * this.#options.timeScale)
    return {
      powerDw: order.powerDw,
      currentMa: Math.round((order.powerDw / 2_297) * 1_000),
      energyWh: Math.min(65_535, Math.floor(((order.powerDw / 10) * elapsedS) / 3_600)),
      minutes: Math.min(65_535, Math.ceil(elapsedS / 60)),
    }
  }

  #nextBusinessNo(): number {
    // 0 says "no order" in a status report
    this.#businessNo = (this.#businessNo % 65_535) + 1
    return this.#businessNo
  }

  // ---- out -----------------------------------------------------------------------------------------------------------

  #ask(
    name: string,
    outer: number,
    data: Uint8Array,
    atMs: number,
    onReply: Awaited['onReply'],
    more: Pick<Awaited, 'report' | 'isMeant'> = {},
  ): void {
    if (!this.#isConnected) return
    this.#awaited.push({ name, intendedMs: atMs, ...(onReply && { onReply }), ...more })
    this.#observer.uplinkSent(name, true)
    this.#wire.send(this.#fcfe(outer, 0, data), atMs)
  }

  #tell(name: string, outer: number, data: Uint8Array, atMs: number, sequence = 0): void {
    if (!this.#isConnected) return
    this.#observer.uplinkSent(name, false)
    this.#wire.send(this.#fcfe(outer, sequence, data), atMs)
  }

  /** A whole frame (section 1). */
  #fcfe(outer: number, sequence: number, data: Uint8Array): Uint8Array {
    const frame = new Uint8Array(21 + data.length)
    frame[0] = 0xfc
    frame[1] = 0xfe
    writeU16(frame, 2, 17 + data.length)
    writeU16(frame, 4, outer)
    writeU16(frame, 6, sequence >>> 16)
    writeU16(frame, 8, sequence)
    frame[10] = 1
    frame.set(this.#id, 11)
    frame.set(data, 18)
    const end = 18 + data.length
    frame[end] = sumOf(frame, 2, end)
    frame[end + 1] = 0xfc
    frame[end + 2] = 0xee
    return frame
  }

  /** Keys 01, 02 and 03 begin every payload (section 7). */
  #payload(sub: number, sequence: number, entries: readonly Uint8Array[]): Uint8Array {
    const repeated = new Uint8Array(8)
    writeU16(repeated, 4, sequence >>> 16)
    writeU16(repeated, 6, sequence)
    return concat([entry(0x01, sub, 2), entryBytes(0x02, repeated), entryBytes(0x03, this.#id), ...entries])
  }

  // ---- in ------------------------------------------------------------------------------------------------------------

  #frame(outer: number, sequence: number, data: Uint8Array, nowMs: number): void {
    if (outer === 0x0000) {
      this.#reply('0000', data, nowMs, sequence)
      return
    }
    if (outer === 0x1000) {
      const keys = entriesOf(data)
      const sub = keys.get(0x01)
      if (sub === undefined || sub.length !== 2) {
        this.#malformed('1000', data)
        return
      }
      this.#payloadCommand(readU16(sub, 0), sequence, keys, data, nowMs)
      return
    }
    if (outer === 0x0007) {
      this.#observer.commandReceived('0007')
      return
    }
    const name = outer.toString(16).padStart(4, '0')
    if (outer !== 0x0015 && outer !== 0x0005) {
      this.#observer.failed('command.unknown', `${name} ${hexOf(data)}`)
      return
    }
    if (data.length < 3 || readU16(data, 0) !== data.length - 3) {
      this.#malformed(name, data)
      return
    }
    const sub = data[2] as number
    if (outer === 0x0005) {
      this.#network(sub, sequence, nowMs)
      return
    }
    this.#socketCommand(sub, sequence, data, nowMs)
  }

  /** The oldest question of that name; the sequence of our own frames is 0 and tells nothing. */
  #reply(name: string, data: Uint8Array, nowMs: number, sequence: number): void {
    this.#take(
      this.#awaited.findIndex((entry) => entry.name === name && entry.isMeant?.(data) !== false),
      name,
      data,
      nowMs,
      sequence,
    )
  }

  /**
   * The sending that the ack of an end report belongs to. A report that was sent twice is done with its first ack; its
   * second sending stays, since a second ack may come, but it must not take the ack of the report that is waiting now.
   * @param socket that the ack names; undefined: it names none
   */
  #indexOfReport(isOfKind: (entry: Awaited) => boolean, socket: number | undefined): number {
    const isOfSocket = ({ report }: Awaited) => socket === undefined || report?.port.socket === socket
    const sendings = this.#awaited.filter((entry) => entry.report !== undefined && isOfKind(entry))
    if (this.#options.acksInOrder) return this.#awaited.indexOf(sendings.find(isOfSocket) as Awaited)
    const found =
      sendings.find((entry) => entry.report === this.#reports[0] && isOfSocket(entry)) ??
      sendings.find(isOfSocket) ??
      sendings[0]
    return found === undefined ? -1 : this.#awaited.indexOf(found)
  }

  /** @param index of what was asked; -1: nobody asked */
  #take(index: number, name: string, data: Uint8Array, nowMs: number, sequence: number): void {
    const entry = this.#awaited[index]
    if (entry === undefined) {
      this.#observer.failed('reply.unexpected', `${name} ${hexOf(data)}`)
      return
    }
    this.#awaited.splice(index, 1)
    if (this.#random.chance(this.#options.replyLoss)) {
      this.#observer.replyIgnored(entry.name)
      return
    }
    this.#observer.replyReceived(entry.name, nowMs - entry.intendedMs)
    entry.onReply?.(data, nowMs, sequence)
  }

  #missLate(nowMs: number): void {
    let kept = 0
    for (const entry of this.#awaited) {
      const isLate = nowMs - entry.intendedMs > REPLY_WITHIN_MS
      // an end report may wait for the database: its ack still has to find it
      // in order, its ack is still on its way: taken as that of a later report it would erase one that is not stored
      const isOpenReport =
        entry.report !== undefined && (this.#options.acksInOrder || this.#reports.includes(entry.report))
      if (!isLate || isOpenReport) this.#awaited[kept++] = entry
      else if (entry.report === undefined) this.#observer.replyMissed(entry.name)
    }
    this.#awaited.length = kept
  }

  #malformed(name: string, data: Uint8Array): void {
    this.#observer.failed('command.malformed', `${name} ${hexOf(data)}`)
  }

  #answer(name: string, outer: number, sequence: number, data: Uint8Array, nowMs: number): void {
    this.#agenda.whileConnected(nowMs + this.#options.resultMs, (_, atMs) =>
      this.#tell(name, outer, data, atMs, sequence),
    )
  }

  #network(sub: number, sequence: number, nowMs: number): void {
    const name = `0005/${hexByte(sub)}`
    if (sub < 0x08 || sub > 0x0a) {
      this.#observer.failed('command.unknown', name)
      return
    }
    this.#observer.commandReceived(name)
    this.#answer(name, 0x0005, sequence, inner(sub, Uint8Array.of(1)), nowMs)
  }

  /** @param data whole inner frame: length 2, sub 1, parameters */
  #socketCommand(sub: number, sequence: number, data: Uint8Array, nowMs: number): void {
    const name = `0015/${hexByte(sub)}`
    switch (sub) {
      case 0x0b:
        this.#reply('0015/0b', data, nowMs, sequence)
        return
      case 0x0f:
        // optional ack of the card order: nothing waits for it
        return
      case 0x0c:
      case 0x02:
      case 0x18: {
        // the proven ack is 0c for all end reports of 0015; an echo of 02 or 18 is plausible (section 6)
        const index = this.#indexOfReport((entry) => entry.name.startsWith('0015/'), data[3])
        this.#take(index, name, data, nowMs, sequence)
        return
      }
      case 0x1d:
        // the live socket answers with a 1017 report
        this.#observer.commandReceived(name)
        if (data.length < 4) {
          this.#malformed(name, data)
          return
        }
        this.#agenda.whileConnected(nowMs + this.#options.resultMs, (_, atMs) => this.#status(data[3] as number, atMs))
        return
      case 0x07:
      case 0x17: {
        this.#observer.commandReceived(name)
        const bytesMin = sub === 0x07 ? 11 : 9
        if (data.length < bytesMin || (sub === 0x17 && data.length < 9 + 6 * (data[8] as number))) {
          this.#malformed(name, data)
          return
        }
        const port = this.#portOf(data[3] as number, data[4] as number)
        const businessNo = this.#startOrStop(sub, port, data, nowMs)
        const result = Uint8Array.of(businessNo < 0 ? 0 : 1, data[3] as number, data[4] as number, 0, 0)
        if (businessNo > 0) writeU16(result, 3, businessNo)
        this.#answer(name, 0x0015, sequence, inner(sub, result), nowMs)
        return
      }
      case 0x1b:
        this.#observer.commandReceived(name)
        if (data.length < 7) {
          this.#malformed(name, data)
          return
        }
        this.#answer(name, 0x0015, sequence, inner(0x1b, Uint8Array.of(data[3] as number, data[4] as number, 1)), nowMs)
        return
      default:
        this.#observer.failed('command.unknown', `${name} ${hexOf(data)}`)
    }
  }

  /** @returns the business number, or -1 when it could not be done */
  #startOrStop(sub: number, port: Port | undefined, data: Uint8Array, nowMs: number): number {
    if (port === undefined) return -1
    if (data[5] !== 1) {
      const { order } = port
      if (order === undefined) return -1
      this.#agenda.at(nowMs + this.#options.resultMs + 200, (_, atMs) => this.#endOrder(port, STATUS.idle, atMs))
      return order.businessNo
    }
    if (port.order !== undefined) return -1
    if (sub === 0x17) {
      const more = { amountFen: readU16(data, 6), tiers: data[8] as number }
      return this.#startCharge(port, '0015/18', this.#options.chargeMs, STATUS.noLoad, nowMs, more).businessNo
    }
    const { runMs, status } = this.#planRun(data[6] === 1, readU16(data, 7), readU16(data, 9))
    return this.#startCharge(port, '0015/02', runMs, status, nowMs).businessNo
  }

  #payloadCommand(
    sub: number,
    sequence: number,
    keys: ReadonlyMap<number, Uint8Array>,
    data: Uint8Array,
    nowMs: number,
  ): void {
    const name = `1000/${sub.toString(16)}`
    const socket = keys.get(0x4a)?.[0] ?? 0
    switch (sub) {
      case 0x1004:
        this.#take(
          this.#indexOfReport((entry) => entry.name === name, keys.get(0x4a)?.[0]),
          name,
          data,
          nowMs,
          sequence,
        )
        return
      case 0x1017:
      case 0x1010:
        this.#reply(name, data, nowMs, sequence)
        return
      case 0x1007: {
        // its result is unpublished: the next 1017 tells
        this.#observer.commandReceived(name)
        const port = this.#portOf(socket, keys.get(0x08)?.[0] ?? 0)
        if (port === undefined) return
        const isOn = keys.get(0x13)?.[0] === 1
        if (!isOn) this.#agenda.at(nowMs + 200, (_, atMs) => this.#endOrder(port, STATUS.idle, atMs))
        else if (port.order === undefined) {
          const minutes = keys.get(0x14)
          const isByTime = keys.get(0x12)?.[0] === 1 && minutes?.length === 2
          const { runMs, status } = this.#planRun(isByTime, isByTime ? readU16(minutes as Uint8Array, 0) : 0, 0)
          this.#startCharge(port, '1000/1004', runMs, status, nowMs, { amountFen: numberOf(keys.get(0x88)) })
        } else this.#statusSoon(port, nowMs)
        return
      }
      case 0x1011: {
        this.#observer.commandReceived(name)
        const result = this.#payload(sub, sequence, [entry(0x4a, socket), entry(0x0f, 1)])
        this.#answer(name, 0x1000, sequence, result, nowMs)
        return
      }
      case 0x1012: {
        this.#observer.commandReceived(name)
        const result = this.#payload(sub, sequence, [
          entry(0x4a, socket),
          entry(0x0f, 1),
          entry(0x23, 100, 2),
          entry(0x60, 10),
          entry(0x21, 7_200, 2),
          entry(0x24, 8, 2),
          entry(0x22, 120, 2),
          entry(0x59, 600, 2),
          entry(0x25, 85),
          entry(0x11, 7_000, 2),
          entry(0x10, 5_000, 2),
        ])
        this.#answer(name, 0x1000, sequence, result, nowMs)
        return
      }
      default:
        this.#observer.failed('command.unknown', `${name} ${hexOf(data)}`)
    }
  }

  #portOf(socket: number, port: number): Port | undefined {
    return this.#ports.find((candidate) => candidate.socket === socket && candidate.port === port)
  }
}

// ---- bytes ---------------------------------------------------------------------------------------------------------

const isFree = (port: Port): boolean => port.order === undefined && port.swipe === undefined

/** What the observer calls an order: socket, port and the device's business number. */
const orderName = (port: Port, businessNo: number): string =>
  `${port.socket}/${port.port}/${businessNo.toString(16).padStart(4, '0')}`

/** Inner frame of 0005 and 0015: the length counts the parameters only. */
function inner(sub: number, parameters: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(3 + parameters.length)
  writeU16(bytes, 0, parameters.length)
  bytes[2] = sub
  bytes.set(parameters, 3)
  return bytes
}

function entry(key: number, value: number, bytes: 1 | 2 = 1): Uint8Array {
  return entryBytes(key, bytes === 1 ? Uint8Array.of(value) : Uint8Array.of(value >> 8, value & 0xff))
}

/** Section 7: length (base 128, most significant group first), key header 01, key, value. */
function entryBytes(key: number, value: Uint8Array): Uint8Array {
  const length = 2 + value.length
  const head = length < 128 ? [length] : [0x80 | (length >> 7), length & 0x7f]
  return concat([Uint8Array.of(...head, 1, key), value])
}

/** Top-level keys; of a repeated key the last. */
function entriesOf(data: Uint8Array): Map<number, Uint8Array> {
  const found = new Map<number, Uint8Array>()
  let at = 0
  while (at < data.length) {
    let length = 0
    let byte = 0x80
    while (byte & 0x80 && at < data.length) {
      byte = data[at++] as number
      length = length * 128 + (byte & 0x7f)
    }
    const end = at + length
    if (length < 2 || end > data.length) break
    const keyBytes = (data[at] as number) & 0x7f
    if (keyBytes === 1) found.set(data[at + 1] as number, data.slice(at + 2, end))
    at = end
  }
  return found
}

function numberOf(bytes: Uint8Array | undefined): number {
  return bytes?.reduce((value, byte) => value * 256 + byte, 0) ?? 0
}

function msOfBcdTime(bytes: Uint8Array): number {
  const digits = hexOf(bytes.subarray(0, 7))
  const part = (from: number, to: number) => Number(digits.slice(from, to))
  const utc = Date.UTC(part(0, 4), part(4, 6) - 1, part(6, 8), part(8, 10), part(10, 12), part(12, 14))
  return utc - 8 * 3_600_000
}

/** Anything without the header's first byte. */
function noiseOf(random: Random): Uint8Array {
  return random.bytes(1 + random.below(12)).map((byte) => (byte === 0xfc ? 0 : byte))
}

const hexByte = (value: number): string => value.toString(16).padStart(2, '0')

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

/** The checksum is the sum's low byte. */
function sumOf(bytes: Uint8Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += bytes[at] as number
  return sum & 0xff
}

function readU16(bytes: Uint8Array, at: number): number {
  return ((bytes[at] as number) << 8) | (bytes[at + 1] as number)
}

function readU32(bytes: Uint8Array, at: number): number {
  return readU16(bytes, at) * 65_536 + readU16(bytes, at + 2)
}

function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8
  bytes[at + 1] = value
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0))
}
