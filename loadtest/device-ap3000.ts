/**
 * An AP3000 pile as a pure double: a communication module with its ICCID, one unit (and, for a host, slaves behind it),
 * ports that charge, records that wait for their ack. AP3000 document, sections 1 to 10.
 *
 * The byte builders and the frame reader in here are written from the document and share nothing with
 * `src/protocols/ap3000` on purpose: what the gateway's codec misreads, a double with the same codec would misread too.
 */
import { Random } from '../src/testing/random.ts'
import { Agenda, type Appointment } from './agenda.ts'
import {
  bcd,
  bcdTimeOf,
  type Chaos,
  type Device,
  type DeviceObserver,
  type DeviceWorld,
  fleetNumber,
  REPLY_WITHIN_MS,
  RoughWire,
} from './device.ts'
import { FrameStream } from './frame-stream.ts'

export interface Ap3000Options {
  /** physId as read little-endian: 0x04ab373b. */
  readonly deviceNo: number
  /** 20 characters that start 8986. */
  readonly iccid: string
  readonly seed: number
  /** 1..16; default 2. */
  readonly portCount: number
  /** Sends 11, 12 and 35 as well. */
  readonly isHost: boolean
  /** physIds that talk through this connection, each a pile of its own. Only behind a host. */
  readonly slaves: readonly number[]
  /** Sends the old heartbeat 01 beside 21 until a 21 was answered. */
  readonly sendsOldHeartbeat: boolean
  readonly heartbeatMs: number
  readonly linkMs: number
  /** How long a battery takes, real time. */
  readonly chargeMs: number
  /** Seconds of device life per real second while it charges: durations, energy and the intervals of 06. */
  readonly timeScale: number
  /** An unanswered 03 is sent again after this, with a new message id (section 7: 30 min on real devices). */
  readonly settleRepeatMs: number
  /** Between an ack and the next stored record (60 s on real devices). */
  readonly nextRecordMs: number
  /** How long a pile takes to carry out a command (2.7 s live). */
  readonly resultMs: number
  readonly reconnectMs: number
  /** Cards that users swipe, as numbers; empty: a new one each time. */
  readonly cards: readonly number[]
  /** Probability that a reply is treated as if it had not come. */
  readonly replyLoss: number
  /** Probability that an 82 start finds no charger plugged (result 01). */
  readonly unpluggedShare: number
  /** Probability that a chunk of firmware is asked for again. */
  readonly chunkResendShare: number
  readonly chaos: Chaos
}

export const AP3000_DEFAULTS = {
  seed: 1,
  portCount: 2,
  isHost: false,
  slaves: [],
  sendsOldHeartbeat: false,
  heartbeatMs: 180_000,
  linkMs: 30_000,
  chargeMs: 3_600_000,
  timeScale: 1,
  settleRepeatMs: 30_000,
  nextRecordMs: 1_000,
  resultMs: 300,
  reconnectMs: 3_000,
  cards: [],
  replyLoss: 0,
  unpluggedShare: 0,
  chunkResendShare: 0,
  chaos: 'none',
} as const satisfies Partial<Ap3000Options>

/** A pile of a fleet: recognition code 04. @param index 0..99,999 */
export function ap3000DeviceNo(seed: number, index: number): number {
  return 0x04000000 + fleetNumber(seed, index)
}

/** @returns 20 digits, one card per number */
export function iccidOf(number: number): string {
  return `898604${String(number).padStart(14, '0')}`
}

// ---- what a pile knows ---------------------------------------------------------------------------------------------

/** Start mode of 03 and 06. */
const MODE = { offlineCard: 0, online: 1, code: 3 } as const
const STOP = { full: 0x01, maxTime: 0x02, presetTime: 0x03, presetEnergy: 0x04, unplugged: 0x05, server: 0x07 } as const
const MAX_DURATION_S = 36_000

interface Order {
  readonly orderNo: Uint8Array
  readonly startMode: number
  readonly card: number
  readonly startedMs: number
  readonly powerDw: number
  /** Rate mode of the 82, or 0. */
  readonly mode: number
  end: Appointment
  progress: Appointment
}

interface Record {
  readonly port: number
  readonly durationS: number
  readonly maxPowerDw: number
  readonly energy10Wh: number
  readonly startMode: number
  readonly card: number
  readonly stopReason: number
  readonly orderNo: Uint8Array
  sends: number
  isAcked: boolean
}

interface Awaited {
  readonly pile: Pile
  readonly command: number
  readonly messageId: number
  readonly intendedMs: number
  readonly record?: Record
  readonly onReply?: (data: Uint8Array, nowMs: number) => void
}

/** One physId: its ports and its memory, which outlive connections. */
interface Pile {
  readonly deviceNo: number
  readonly deviceId: string
  readonly isHost: boolean
  readonly virtualId: number
  readonly orders: (Order | undefined)[]
  /** Ports that wait for the server's word on a swiped card. */
  readonly swipes: (Appointment | undefined)[]
  /** Ended and not acked, oldest first: the EEPROM. */
  readonly records: Record[]
  /** What 83 to 86 wrote; undefined entries read as the factory values. */
  readonly settings: Map<number, Uint8Array>
  readonly eeprom: Map<number, number>
  /** Chunks so far of the transfer under way. */
  flash: { readonly command: number; readonly total: number; readonly chunks: Uint8Array[] } | undefined
  /** The last transfer that came to its end, padding and check chunk included. */
  firmware: Uint8Array | undefined
  settling: Appointment | undefined
  messageId: number
  registerMessageId: number
  isRegistered: boolean
  isHeartbeatAnswered: boolean
  /** The last 82 and its result: a retransmission gets the same answer, anything else is a new command. */
  lastStart: { messageId: number; data: Uint8Array; result: Uint8Array } | undefined
}

/** Factory values of what 90..93 read, by the command that writes them (83..86). */
const FACTORY = new Map<number, Uint8Array>([
  [0x83, hex('0300 0a00 14 0807 100e b400')],
  [0x84, hex('2003 1e00 0807 0a 2c01 302a 2c01 2c01 0807 2c01 50 50 00 01')],
  [0x85, hex('a08c 204e 8c0a e803')],
  [0x86, hex('01 ffffffffffff ffffffffffff')],
])

export class DeviceAp3000 implements Device {
  readonly deviceId: string
  readonly #options: Ap3000Options
  readonly #world: DeviceWorld
  readonly #observer: DeviceObserver
  readonly #random: Random
  readonly #agenda = new Agenda()
  readonly #wire: RoughWire
  readonly #piles: Pile[]
  #awaited: Awaited[] = []
  /** Section 1: `DNY`, length of what follows, .., sum of all bytes before it. */
  readonly #stream = new FrameStream({
    headBytes: 5,
    frameBytesAt: (view, at) => {
      const length = readU16(view, at + 3)
      const isHead = view[at] === 0x44 && view[at + 1] === 0x4e && view[at + 2] === 0x59
      return isHead && length >= 9 && length <= 512 ? 5 + length : 0
    },
    noFrame: (view, from) => this.#observer.failed('bytes.unexpected', hexOf(view.subarray(from, from + 64))),
    frame: (view, from, to, nowMs) => {
      if (sumOf(view, from, to - 2) === readU16(view, to - 2)) this.#frame(view, from, to - 2, nowMs)
      else this.#observer.failed('bytes.unexpected', `checksum ${hexOf(view.subarray(from, to))}`)
      // a frame may have made us hang up
      return this.#isConnected
    },
  })
  #isConnected = false
  #isQuiet = false
  /** Dial again this long after the end of the connection. */
  #redialMs: number

  constructor(
    options: Partial<Ap3000Options> & Pick<Ap3000Options, 'deviceNo' | 'iccid'>,
    world: DeviceWorld,
    observer: DeviceObserver,
  ) {
    this.#options = { ...AP3000_DEFAULTS, ...options }
    this.#world = world
    this.#observer = observer
    this.#random = new Random(this.#options.seed, this.#options.deviceNo)
    this.#wire = new RoughWire(world, this.#agenda, this.#random, this.#options.chaos, noiseOf)
    this.#redialMs = this.#options.reconnectMs
    this.#piles = [
      this.#newPile(this.#options.deviceNo, this.#options.isHost, 0),
      ...this.#options.slaves.map((slave, index) => this.#newPile(slave, false, index + 1)),
    ]
    this.deviceId = (this.#piles[0] as Pile).deviceId
  }

  get nextWakeMs(): number {
    return this.#agenda.nextMs
  }

  get isConnected(): boolean {
    return this.#isConnected
  }

  get outstanding(): number {
    // an earlier sending of a record may be answered late, or never: the record alone counts
    let count = this.#awaited.reduce((sum, entry) => sum + (entry.record === undefined ? 1 : 0), 0)
    for (const pile of this.#piles) count += pile.records.length
    return count
  }

  /** Ended orders not acked, oldest first, as hex. */
  get unackedOrders(): string[] {
    return this.#piles.flatMap((pile) => pile.records.map((record) => hexOf(record.orderNo)))
  }

  /** Running orders as hex. */
  get runningOrders(): string[] {
    return this.#piles.flatMap((pile) => pile.orders.flatMap((order) => (order ? [hexOf(order.orderNo)] : [])))
  }

  /** What the unit itself got by E0 to E2, F8, F9 or FA; undefined: no transfer has come to its end. */
  get firmware(): Uint8Array | undefined {
    return this.#piles[0]?.firmware
  }

  get freePorts(): number {
    let count = 0
    for (const pile of this.#piles)
      for (let port = 0; port < this.#options.portCount; port++) if (isFree(pile, port)) count++
    return count
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

  /** Pulls the plug of a port (0-based): a running order ends with reason 05. */
  unplug(port: number, nowMs: number, pileIndex = 0): void {
    const pile = this.#piles[pileIndex]
    if (pile?.orders[port] !== undefined) this.#endOrder(pile, port, STOP.unplugged, nowMs)
  }

  startOrder(nowMs: number, isByCard: boolean): boolean {
    const free: { pile: Pile; port: number }[] = []
    for (const pile of this.#piles)
      for (let port = 0; port < this.#options.portCount; port++) if (isFree(pile, port)) free.push({ pile, port })
    if (free.length === 0) return false
    const { pile, port } = this.#random.pick(free)
    const { cards } = this.#options
    const card = cards.length > 0 ? this.#random.pick(cards) : 0x10000000 + this.#random.below(0x60000000)
    if (isByCard && this.#isConnected) this.swipe(pile.deviceNo, port, card, nowMs)
    else this.#startOffline(pile, port, card, nowMs)
    return true
  }

  /**
   * Section 7, 02: asks the server about a card. Its 82 starts the charge; when the server says no, or says yes and
   * sends no 82 in time, the card's own money is used and the order is an offline one.
   * @param card the M1 UID as a number, most significant byte first
   */
  swipe(deviceNo: number, port: number, card: number, nowMs: number): void {
    const pile = this.#piles.find((candidate) => candidate.deviceNo === deviceNo)
    if (pile === undefined || !isFree(pile, port)) return
    const goOffline = (atMs: number) => {
      pile.swipes[port] = undefined
      if (pile.orders[port] === undefined && !this.#isQuiet) this.#startOffline(pile, port, card, atMs)
    }
    pile.swipes[port] = this.#agenda.at(nowMs + REPLY_WITHIN_MS, goOffline)
    const data = new Uint8Array(13)
    writeCard(data, 0, card)
    data[4] = 1
    data[5] = port
    writeU16(data, 6, 5_000)
    writeU32(data, 8, Math.floor(nowMs / 1000))
    this.#ask(pile, 0x02, data, nowMs, nowMs, (reply, repliedMs) => {
      if (reply.length < 11 || cardOf(reply, 0) !== card || reply[10] !== port)
        return this.#observer.failed('reply.wrong', `02 ${hexOf(reply)}`)
      if (pile.swipes[port] === undefined) return
      this.#agenda.cancel(pile.swipes[port])
      const patienceMs = reply[4] === 0 ? REPLY_WITHIN_MS : this.#options.resultMs
      pile.swipes[port] = this.#agenda.at(repliedMs + patienceMs, goOffline)
    })
  }

  // ---- the connection ------------------------------------------------------------------------------------------------

  connected(nowMs: number): void {
    this.#isConnected = true
    this.#redialMs = this.#options.reconnectMs
    this.#wire.opened(nowMs)
    this.#wire.send(ascii(this.#options.iccid), nowMs)
    this.#everyLink(nowMs + this.#options.linkMs)
    for (const pile of this.#piles) {
      pile.isRegistered = false
      pile.isHeartbeatAnswered = false
      pile.registerMessageId = -1
      const firstMs = nowMs + this.#random.between(10, 200)
      this.#agenda.whileConnected(firstMs, (_, atMs) => {
        this.#register(pile, atMs)
        this.#clock(pile, atMs)
        this.#heartbeat(pile, atMs)
        if (pile.isHost) this.#hostReport(pile, atMs)
      })
      // a phase of its own, or a fleet that connects at once would beat at once for ever
      this.#everyHeartbeat(pile, firstMs + this.#random.between(0.2, 1) * this.#options.heartbeatMs)
      if (pile.records.length > 0) this.#planSettlement(pile, nowMs + this.#random.between(500, 1_500))
    }
  }

  disconnected(nowMs: number, why: string): void {
    const wasConnected = this.#isConnected
    this.#isConnected = false
    this.#agenda.forgetConnection()
    this.#awaited = []
    this.#stream.forget()
    for (const pile of this.#piles) pile.settling = undefined
    if (why !== '') this.#observer.failed(wasConnected ? 'connection.closed' : 'connection.failed', why)
    if (this.#isQuiet) return
    this.#agenda.at(nowMs + this.#redialMs * this.#random.between(0.8, 1.2), () => this.#world.connect())
    // 3 s, 6 s, .. 60 s while nobody answers
    this.#redialMs = Math.min(this.#redialMs * 2, 20 * this.#options.reconnectMs)
  }

  received(bytes: Uint8Array, nowMs: number): void {
    this.#stream.received(bytes, nowMs)
  }

  #frame(view: Uint8Array, at: number, sumAt: number, nowMs: number): void {
    const deviceNo = readU32(view, at + 5)
    const messageId = readU16(view, at + 9)
    const command = view[at + 11] as number
    const data = view.slice(at + 12, sumAt)
    const pile = this.#piles.find((candidate) => candidate.deviceNo === deviceNo)
    if (pile === undefined) {
      this.#observer.failed('bytes.unexpected', `for another device ${hexOf(view.subarray(at, sumAt))}`)
    } else if (command < 0x30) {
      this.#reply(pile, command, messageId, data, nowMs)
    } else {
      this.#command(pile, command, messageId, data, nowMs)
    }
  }

  // ---- what it says by itself ----------------------------------------------------------------------------------------

  #everyLink(atMs: number): void {
    this.#agenda.whileConnected(atMs, (nowMs) => {
      if (this.#isQuiet) return
      this.#wire.send(ascii('link'), nowMs)
      this.#missLate(nowMs)
      this.#everyLink(atMs + this.#options.linkMs)
    })
  }

  #everyHeartbeat(pile: Pile, atMs: number): void {
    this.#agenda.whileConnected(atMs, (nowMs) => {
      if (this.#isQuiet) return
      this.#missLate(nowMs)
      this.#heartbeat(pile, atMs)
      if (!pile.isRegistered) this.#register(pile, atMs)
      // the beat keeps its place in time however late this one was
      this.#everyHeartbeat(pile, atMs + this.#options.heartbeatMs)
    })
  }

  /** 20: firmware V6.40, ports, virtual id, type, work mode. Repeated with its message id until answered. */
  #register(pile: Pile, atMs: number): void {
    if (pile.registerMessageId < 0) pile.registerMessageId = nextMessageId(pile)
    const data = Uint8Array.of(0x80, 0x02, this.#options.portCount, pile.virtualId, pile.isHost ? 0x15 : 0x1f, 0)
    this.#ask(
      pile,
      0x20,
      data,
      atMs,
      atMs,
      isOk(this.#observer, '20', () => (pile.isRegistered = true)),
      pile.registerMessageId,
    )
  }

  #clock(pile: Pile, atMs: number): void {
    const command = pile.isHost ? 0x12 : 0x22
    this.#ask(pile, command, NOTHING, atMs, atMs, (reply, nowMs) => {
      if (reply.length < 4 || Math.abs(readU32(reply, 0) * 1000 - nowMs) > 30_000)
        this.#observer.failed('reply.wrong', `time ${hexOf(reply)} at ${nowMs}`)
    })
  }

  #heartbeat(pile: Pile, atMs: number): void {
    const ports = this.#options.portCount
    const data = new Uint8Array(5 + ports)
    writeU16(data, 0, this.#voltageDv())
    data[2] = ports
    for (let port = 0; port < ports; port++) data[3 + port] = pile.orders[port] === undefined ? 0 : 1
    data[3 + ports] = pile.virtualId === 0 ? 0 : 60
    data[4 + ports] = 93
    this.#ask(
      pile,
      0x21,
      data,
      atMs,
      atMs,
      isOk(this.#observer, '21', () => (pile.isHeartbeatAnswered = true)),
    )
    if (this.#options.sendsOldHeartbeat && !pile.isHeartbeatAnswered)
      this.#tell(pile, 0x01, this.#oldHeartbeat(pile), atMs)
  }

  #oldHeartbeat(pile: Pile): Uint8Array {
    const ports = this.#options.portCount
    const data = new Uint8Array(10 + 5 * ports)
    writeU16(data, 0, 640)
    writeU16(data, 2, this.#voltageDv())
    data[4] = ports
    for (let port = 0; port < ports; port++) {
      const order = pile.orders[port]
      data[5 + port] = order === undefined ? 0 : 1
      writeU16(data, 5 + ports + 2 * port, order?.powerDw ?? 0)
      writeU16(data, 5 + 3 * ports + 2 * port, order?.powerDw ?? 0)
    }
    data[5 + 5 * ports] = pile.virtualId
    data[7 + 5 * ports] = 0x1f
    data[8 + 5 * ports] = 93
    return data
  }

  /** 11 (71 bytes) and, for a host with slaves, 35. */
  #hostReport(pile: Pile, atMs: number): void {
    const status = new Uint8Array(71)
    writeU16(status, 0, 209)
    status[2] = 1
    writeU32(status, 3, Math.floor(atMs / 1000))
    status[7] = 26
    status[8] = 7
    status.set(ascii(this.#options.iccid), 9)
    status[29] = 0x32
    status.set(ascii(`86${String(pile.deviceNo % 1e13).padStart(13, '0')}`), 32)
    status.set(ascii('GM5_OPEN_V1.07'), 47)
    this.#tell(pile, 0x11, status, atMs)
    const slaves = this.#piles.slice(1)
    if (slaves.length > 0) {
      const types = new Uint8Array(1 + 8 * slaves.length)
      types[0] = slaves.length
      for (const [index, slave] of slaves.entries()) {
        types[1 + 8 * index] = 0x1f
        writeU16(types, 3 + 8 * index, 640)
        writeU32(types, 5 + 8 * index, slave.deviceNo)
      }
      this.#tell(pile, 0x35, types, atMs)
    }
    this.#agenda.whileConnected(atMs + 1_800_000, (_, againMs) => this.#hostReport(pile, againMs))
  }

  // ---- charging ------------------------------------------------------------------------------------------------------

  /** The device makes the order number: 7 BCD time, 4 card, 4 BCD device number, 1 BCD port + 30 (section 7, 03). */
  #startOffline(pile: Pile, port: number, card: number, nowMs: number): void {
    const orderNo = new Uint8Array(16)
    orderNo.set(bcdTimeOf(nowMs))
    writeCard(orderNo, 7, card)
    const printed = String(pile.deviceNo & 0xffffff).padStart(8, '0')
    for (let index = 0; index < 4; index++)
      orderNo[11 + index] = Number.parseInt(printed.slice(2 * index, 2 * index + 2), 16)
    orderNo[15] = bcd(port + 30)
    this.#startCharge(pile, port, orderNo, MODE.offlineCard, card, 0, this.#options.chargeMs, STOP.full, nowMs)
  }

  #startCharge(
    pile: Pile,
    port: number,
    orderNo: Uint8Array,
    startMode: number,
    card: number,
    mode: number,
    runMs: number,
    stopReason: number,
    nowMs: number,
  ): void {
    this.#agenda.cancel(pile.swipes[port])
    pile.swipes[port] = undefined
    const firstMs = nowMs + 10_000 / this.#options.timeScale
    const order: Order = {
      orderNo,
      startMode,
      card,
      mode,
      startedMs: nowMs,
      powerDw: 800 + this.#random.below(3_500),
      end: this.#planEnd(pile, port, stopReason, nowMs + runMs),
      progress: this.#agenda.at(firstMs, (_, atMs) => this.#everyProgress(pile, port, order, atMs)),
    }
    pile.orders[port] = order
    this.#observer.orderStarted(pile.deviceId, port, hexOf(orderNo))
  }

  #planEnd(pile: Pile, port: number, stopReason: number, endMs: number): Appointment {
    return this.#agenda.at(endMs, (_, atMs) => {
      if (!this.#isQuiet) this.#endOrder(pile, port, stopReason, atMs)
    })
  }

  #everyProgress(pile: Pile, port: number, order: Order, atMs: number): void {
    if (this.#isQuiet) return
    this.#progress(pile, port, order, 1, atMs)
    const againMs = atMs + 300_000 / this.#options.timeScale
    order.progress = this.#agenda.at(againMs, (_, nextMs) => this.#everyProgress(pile, port, order, nextMs))
  }

  /** 06, 45 bytes as live devices send it. Lost when there is no connection. */
  #progress(pile: Pile, port: number, order: Order, state: number, atMs: number): void {
    const data = new Uint8Array(45)
    data[0] = port
    data[1] = state
    writeU16(data, 2, this.#durationS(order, atMs))
    writeU16(data, 4, this.#energy10Wh(order, atMs))
    data[6] = order.startMode
    const powerDw = state === 1 ? order.powerDw : 0
    writeU16(data, 7, powerDw)
    writeU16(data, 9, order.powerDw)
    writeU16(data, 11, powerDw)
    writeU16(data, 13, powerDw)
    data.set(order.orderNo, 15)
    writeU16(data, 33, order.powerDw)
    const voltageDv = this.#voltageDv()
    writeU16(data, 35, voltageDv)
    writeU16(data, 37, Math.round((powerDw / voltageDv) * 1_000))
    data[39] = 93
    data[40] = 96
    writeU32(data, 41, Math.floor(atMs / 1000))
    this.#tell(pile, 0x06, data, atMs)
  }

  #endOrder(pile: Pile, port: number, stopReason: number, atMs: number): void {
    const order = pile.orders[port]
    if (order === undefined) return
    this.#agenda.cancel(order.end)
    this.#agenda.cancel(order.progress)
    pile.orders[port] = undefined
    this.#progress(pile, port, order, 0, atMs)
    pile.records.push({
      port,
      durationS: this.#durationS(order, atMs),
      maxPowerDw: order.powerDw,
      energy10Wh: this.#energy10Wh(order, atMs),
      startMode: order.startMode,
      card: order.card,
      stopReason,
      orderNo: order.orderNo,
      sends: 0,
      isAcked: false,
    })
    if (pile.records.length === 1) this.#planSettlement(pile, atMs + 2_000 / this.#options.timeScale)
  }

  #planSettlement(pile: Pile, atMs: number): void {
    if (!this.#isConnected || pile.settling !== undefined) return
    pile.settling = this.#agenda.whileConnected(atMs, (_, dueMs) => {
      pile.settling = undefined
      this.#settle(pile, dueMs)
    })
  }

  /** 03 for the oldest record, 35 bytes; each sending has a new message id and time. */
  #settle(pile: Pile, atMs: number): void {
    const record = pile.records[0]
    if (record === undefined) return
    const data = new Uint8Array(35)
    writeU16(data, 0, record.durationS)
    writeU16(data, 2, record.maxPowerDw)
    writeU16(data, 4, record.energy10Wh)
    data[6] = record.port
    data[7] = record.startMode
    if (record.startMode !== MODE.online) writeCard(data, 8, record.card)
    data[12] = record.stopReason
    data.set(record.orderNo, 13)
    writeU16(data, 29, record.maxPowerDw)
    writeU32(data, 31, Math.floor(atMs / 1000))
    const order = hexOf(record.orderNo)
    this.#observer.settlementSent(pile.deviceId, record.port, order, record.sends > 0)
    record.sends++
    const acked = (reply: Uint8Array, nowMs: number) => {
      if (record.isAcked) return
      if (reply.length < 1 || reply[0] !== 0)
        return this.#observer.failed('settlement.refused', `${order} ${hexOf(reply)}`)
      record.isAcked = true
      pile.records.shift()
      this.#observer.settlementAcked(pile.deviceId, record.port, order)
      this.#agenda.cancel(pile.settling)
      pile.settling = undefined
      if (pile.records.length > 0) this.#planSettlement(pile, nowMs + this.#options.nextRecordMs)
    }
    this.#ask(pile, 0x03, data, atMs, atMs, acked, undefined, record)
    this.#planSettlement(pile, atMs + this.#options.settleRepeatMs)
  }

  #durationS(order: Order, atMs: number): number {
    return Math.min(65_535, Math.round(((atMs - order.startedMs) / 1000) * this.#options.timeScale))
  }

  #energy10Wh(order: Order, atMs: number): number {
    return Math.min(65_535, Math.floor(((order.powerDw / 10) * this.#durationS(order, atMs)) / 36_000))
  }

  #voltageDv(): number {
    return 2_200 + this.#random.below(200)
  }

  // ---- replies -------------------------------------------------------------------------------------------------------

  #ask(
    pile: Pile,
    command: number,
    data: Uint8Array,
    nowMs: number,
    intendedMs: number,
    onReply: (data: Uint8Array, nowMs: number) => void,
    messageId = nextMessageId(pile),
    record?: Record,
  ): void {
    if (!this.#isConnected) return
    this.#awaited.push({ pile, command, messageId, intendedMs, onReply, ...(record && { record }) })
    this.#observer.uplinkSent(nameOf(command), true)
    this.#wire.send(dny(pile.deviceNo, messageId, command, data), nowMs)
  }

  #tell(pile: Pile, command: number, data: Uint8Array, nowMs: number, messageId = nextMessageId(pile)): void {
    if (!this.#isConnected) return
    this.#observer.uplinkSent(nameOf(command), false)
    this.#wire.send(dny(pile.deviceNo, messageId, command, data), nowMs)
  }

  #reply(pile: Pile, command: number, messageId: number, data: Uint8Array, nowMs: number): void {
    const index = this.#awaited.findIndex(
      (entry) => entry.pile === pile && entry.command === command && entry.messageId === messageId,
    )
    const name = nameOf(command)
    const entry = this.#awaited[index]
    if (entry === undefined) {
      // 01 is answered only by servers that think they never saw 21: legal, and nothing waits for it
      if (command !== 0x01) this.#observer.failed('reply.unexpected', `${name} ${messageId} ${hexOf(data)}`)
      return
    }
    this.#awaited.splice(index, 1)
    if (this.#random.chance(this.#options.replyLoss)) {
      this.#observer.replyIgnored(name)
      return
    }
    this.#observer.replyReceived(name, nowMs - entry.intendedMs)
    entry.onReply?.(data, nowMs)
  }

  /** Forgets what was not answered in time. An unacked settlement is no failure of the moment: the record stays. */
  #missLate(nowMs: number): void {
    let kept = 0
    for (const entry of this.#awaited) {
      const isLate = nowMs - entry.intendedMs > REPLY_WITHIN_MS
      if (!isLate || (entry.record !== undefined && !entry.record.isAcked)) this.#awaited[kept++] = entry
      else if (entry.record === undefined) this.#observer.replyMissed(nameOf(entry.command))
    }
    this.#awaited.length = kept
  }

  // ---- commands of the server (section 8) ----------------------------------------------------------------------------

  #command(pile: Pile, command: number, messageId: number, data: Uint8Array, nowMs: number): void {
    this.#observer.commandReceived(nameOf(command))
    const answer = (result: Uint8Array, afterMs = this.#options.resultMs, then?: (atMs: number) => void) => {
      this.#agenda.whileConnected(nowMs + afterMs, (_, atMs) => {
        this.#tell(pile, command, result, atMs, messageId)
        then?.(atMs)
      })
    }
    const need = (count: number): boolean => {
      if (data.length >= count) return true
      this.#observer.failed('command.malformed', `${nameOf(command)} ${hexOf(data)}`)
      return false
    }
    switch (command) {
      case 0x81:
        this.#agenda.whileConnected(nowMs + this.#options.resultMs, (_, atMs) => {
          pile.registerMessageId = -1
          this.#register(pile, atMs)
          this.#heartbeat(pile, atMs)
        })
        return
      case 0x82:
        if (need(29)) this.#startOrStop(pile, messageId, data, nowMs, answer)
        return
      case 0x8a:
        if (need(4)) answer(Uint8Array.of(this.#change(pile, data, nowMs)))
        return
      case 0x72: {
        if (!need(17)) return
        const port = data[0] as number
        const order = pile.orders[port]
        const isRunning = order !== undefined && isSame(order.orderNo, data.subarray(1, 17))
        const result = new Uint8Array(17)
        result[0] = isRunning ? 0 : 2
        result.set(data.subarray(1, 17), 1)
        answer(result, undefined, (atMs) => isRunning && this.#endOrder(pile, port, STOP.server, atMs))
        return
      }
      case 0x83:
      case 0x84:
      case 0x85:
      case 0x86: {
        const bytesMin = command === 0x85 ? 4 : (FACTORY.get(command) as Uint8Array).length
        if (!need(bytesMin)) return
        pile.settings.set(command, data)
        answer(OK)
        return
      }
      case 0x90:
      case 0x91:
      case 0x92:
      case 0x93: {
        const writer = command - 0x90 + 0x83
        answer(pile.settings.get(writer) ?? (FACTORY.get(writer) as Uint8Array))
        return
      }
      case 0x8b: {
        if (!need(3)) return
        const from = readU16(data, 0)
        const count = data[2] as number
        if (count > 32) {
          answer(Uint8Array.of(1))
          return
        }
        const result = new Uint8Array(1 + count)
        for (let index = 0; index < count; index++) result[1 + index] = pile.eeprom.get(from + index) ?? 0xff
        answer(result)
        return
      }
      case 0x8c: {
        if (!need(3) || !need(3 + (data[2] as number))) return
        const from = readU16(data, 0)
        for (let index = 0; index < (data[2] as number); index++)
          pile.eeprom.set(from + index, data[3 + index] as number)
        answer(OK)
        return
      }
      case 0x8d:
        if (need(1)) answer(Uint8Array.of((data[0] as number) <= 1 ? 0 : 1))
        return
      case 0x31:
      case 0x32:
      case 0x34:
      case 0x87:
        // the module restarts: the answer first, then silence, then a new connection
        answer(OK, undefined, () => this.#world.close(false))
        return
      case 0x33:
      case 0x3a:
      case 0x88:
      case 0x89:
      case 0x8e:
      case 0x8f:
      case 0x95:
      case 0x96:
      case 0x97:
      case 0x98:
        answer(OK)
        return
      case 0xe0:
      case 0xe1:
      case 0xe2:
      case 0xf8:
      case 0xf9:
      case 0xfa:
        if (command === 0xfa && data.length === 0) answer(Uint8Array.of(0, 0, 0))
        else if (need(command === 0xf8 || command === 0xf9 ? 260 : 204)) {
          const result = this.#takeChunk(pile, command, data)
          answer(Uint8Array.of(result, data[2] as number, data[3] as number))
        }
        return
      case 0xfd:
        if (need(1)) answer(Uint8Array.of(data[0] as number, 0))
        return
      case 0xe4:
      case 0xfe:
        return
      default:
        this.#observer.failed('command.unknown', `${nameOf(command)} ${hexOf(data)}`)
    }
  }

  /** Section 8, Firmware: 0 next, 1 resend. Chunks come in order, the first one begins anew, the last one may repeat. */
  #takeChunk(pile: Pile, command: number, data: Uint8Array): number {
    const total = readU16(data, 0)
    const chunk = readU16(data, 2)
    if (chunk === 1 || pile.flash === undefined || pile.flash.command !== command) {
      pile.flash = { command, total, chunks: [] }
      if (chunk === 1) pile.firmware = undefined
    }
    const { chunks } = pile.flash
    if (chunk === 0 || chunk > total || chunk > chunks.length + 1) return 1
    if (this.#random.chance(this.#options.chunkResendShare)) return 1
    chunks[chunk - 1] = data.slice(4)
    if (chunk === total) pile.firmware = new Uint8Array(Buffer.concat(chunks))
    return 0
  }

  #startOrStop(
    pile: Pile,
    messageId: number,
    data: Uint8Array,
    nowMs: number,
    answer: (result: Uint8Array, afterMs?: number, then?: (atMs: number) => void) => void,
  ): void {
    const last = pile.lastStart
    if (last?.messageId === messageId && isSame(last.data, data)) {
      answer(last.result)
      return
    }
    const ports = this.#options.portCount
    const isStart = data[6] === 1
    let port = data[5] as number
    const orderNo = data.slice(9, 25)
    const result = new Uint8Array(20)
    result.set(orderNo, 1)
    if (port === 0xff) {
      const waiting = Array.from({ length: ports }, (_, index) => index).filter((index) => isFree(pile, index))
      if (waiting.length === 1) port = waiting[0] as number
      else
        writeU16(
          result,
          18,
          waiting.reduce((mask, index) => mask | (1 << index), 0),
        )
    }
    result[17] = port
    const order = pile.orders[port]
    let then: ((atMs: number) => void) | undefined
    if (port === 0xff) result[0] = 0x05
    else if (port >= ports) result[0] = 0x04
    else if (!isStart) {
      if (order === undefined || !isSame(order.orderNo, orderNo)) result[0] = 0x02
      else then = (atMs) => this.#endOrder(pile, port, STOP.server, atMs)
    } else if (order !== undefined) result[0] = 0x02
    else if (this.#random.chance(this.#options.unpluggedShare)) result[0] = 0x01
    else {
      // taken now, so that a second start for this port is refused while the first result is on its way
      const { runMs, stopReason } = this.#planRun(data)
      this.#startCharge(pile, port, orderNo, MODE.online, 0, data[0] as number, runMs, stopReason, nowMs)
    }
    pile.lastStart = { messageId, data, result }
    answer(result, undefined, then)
  }

  /** Which end comes first: what was bought, the longest time allowed, or the battery (or its owner) after chargeMs. */
  #planRun(data: Uint8Array): { runMs: number; stopReason: number } {
    const { chargeMs, timeScale } = this.#options
    const mode = data[0] as number
    const value = readU16(data, 7)
    const maxS = readU16(data, 25) || MAX_DURATION_S
    let runMs = chargeMs
    // with a preset time a full battery does not end the charge: its owner does
    let stopReason: number = mode === 0 && value > 0 ? STOP.unplugged : STOP.full
    const shorten = (byMs: number, reason: number) => {
      if (byMs <= runMs) [runMs, stopReason] = [byMs, reason]
    }
    shorten((maxS * 1_000) / timeScale, STOP.maxTime)
    if (mode === 0 && value > 0) shorten((value * 1_000) / timeScale, STOP.presetTime)
    // energy is bought for a mean load of 250 W: when exactly it is used up is the double's own affair
    if (mode === 2 && value > 0) shorten((value * 10 * 3_600_000) / 250 / timeScale, STOP.presetEnergy)
    return { runMs, stopReason }
  }

  /** 8A: 0 changed, 1 not charging, 2 below what has run, 3 bad mode or port. */
  #change(pile: Pile, data: Uint8Array, nowMs: number): number {
    const mode = data[0] as number
    const port = data[1] as number
    const value = readU16(data, 2)
    if (mode > 2 || port >= this.#options.portCount) return 3
    const order = pile.orders[port]
    if (order === undefined) return 1
    const runMs = mode === 2 ? (value * 10 * 3_600_000) / 250 : value * 1_000
    const endMs = order.startedMs + runMs / this.#options.timeScale
    if (endMs <= nowMs) return 2
    this.#agenda.cancel(order.end)
    const stopReason = mode === 2 ? STOP.presetEnergy : STOP.presetTime
    order.end = this.#planEnd(pile, port, stopReason, endMs)
    return 0
  }

  #newPile(deviceNo: number, isHost: boolean, virtualId: number): Pile {
    return {
      deviceNo,
      deviceId: deviceNo.toString(16).padStart(8, '0'),
      isHost,
      virtualId,
      orders: [],
      swipes: [],
      records: [],
      settings: new Map(),
      eeprom: new Map(),
      flash: undefined,
      firmware: undefined,
      settling: undefined,
      messageId: this.#random.below(65_536),
      registerMessageId: -1,
      isRegistered: false,
      isHeartbeatAnswered: false,
      lastStart: undefined,
    }
  }
}

// ---- bytes ---------------------------------------------------------------------------------------------------------

const NOTHING = new Uint8Array(0)
const OK = Uint8Array.of(0)

/** A whole frame (section 2). */
export function dny(deviceNo: number, messageId: number, command: number, data: Uint8Array): Uint8Array {
  const frame = new Uint8Array(14 + data.length)
  frame[0] = 0x44
  frame[1] = 0x4e
  frame[2] = 0x59
  writeU16(frame, 3, 9 + data.length)
  writeU32(frame, 5, deviceNo)
  writeU16(frame, 9, messageId)
  frame[11] = command
  frame.set(data, 12)
  writeU16(frame, 12 + data.length, sumOf(frame, 0, 12 + data.length))
  return frame
}

const isFree = (pile: Pile, port: number): boolean => pile.orders[port] === undefined && pile.swipes[port] === undefined

function isOk(observer: DeviceObserver, name: string, then: () => void): (data: Uint8Array) => void {
  return (data) => {
    if (data[0] === 0) then()
    else observer.failed('reply.wrong', `${name} ${hexOf(data)}`)
  }
}

function nextMessageId(pile: Pile): number {
  pile.messageId = (pile.messageId + 1) & 0xffff
  return pile.messageId
}

/** Bytes that begin neither ICCID, `link` nor `DNY`; among them the nine stray bytes of a live server (section 3). */
function noiseOf(random: Random): Uint8Array {
  if (random.chance(0.3)) return hex('000000000000010000')
  return random.bytes(1 + random.below(12)).map((byte) => (byte === 0x38 || byte === 0x44 || byte === 0x6c ? 0 : byte))
}

const nameOf = (command: number): string => command.toString(16).toUpperCase().padStart(2, '0')

function sumOf(bytes: Uint8Array, from: number, to: number): number {
  let sum = 0
  for (let at = from; at < to; at++) sum += bytes[at] as number
  return sum & 0xffff
}

function readU16(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) | ((bytes[at + 1] as number) << 8)
}

function readU32(bytes: Uint8Array, at: number): number {
  return (readU16(bytes, at) | (readU16(bytes, at + 2) << 16)) >>> 0
}

function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value
  bytes[at + 1] = value >>> 8
}

function writeU32(bytes: Uint8Array, at: number, value: number): void {
  writeU16(bytes, at, value)
  writeU16(bytes, at + 2, value >>> 16)
}

/** Card ids are the only numbers with the most significant byte first. */
function writeCard(bytes: Uint8Array, at: number, card: number): void {
  for (let index = 0; index < 4; index++) bytes[at + index] = card >>> (24 - 8 * index)
}

function cardOf(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0
}

function isSame(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, index) => byte === other[index])
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0))
}

function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'))
}

export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')
}
