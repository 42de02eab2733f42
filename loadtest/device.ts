/**
 * What every device double shares: the world it acts on, what it tells about itself, how it treats the wire. A double
 * is pure: time and bytes come in by calls, everything it does goes out through its {@link DeviceWorld}; it owns no
 * socket, no timer and no clock, so that a fleet, the end-to-end tests and the simulation drive the same code.
 */
import type { Random } from '../src/testing/random.ts'
import type { Agenda } from './agenda.ts'

/** Carried out by the driver. A call may come from within any call into the double. */
export interface DeviceWorld {
  /** Dial; answer later with `connected` or `disconnected`. */
  connect(): void
  /** The double never touches `bytes` again. */
  send(bytes: Uint8Array): void
  /** Answer later with `disconnected`. `isAbrupt`: as if power failed (reset), not a polite end. */
  close(isAbrupt: boolean): void
}

/** What a double tells while it acts. Names are the commands' codes as the documents print them (`21`, `0015/02`). */
export interface DeviceObserver {
  /** One uplink frame went out. @param isAnswerDue the document demands an answer */
  uplinkSent(name: string, isAnswerDue: boolean): void
  /** @param latencyMs from the time the frame should have gone out, not from when it did */
  replyReceived(name: string, latencyMs: number): void
  /** Seeded loss: the reply came, and the device behaves as if it had not. */
  replyIgnored(name: string): void
  /** The document demanded an answer and none came in time. */
  replyMissed(name: string): void
  commandReceived(name: string): void
  orderStarted(deviceId: string, port: number, order: string): void
  /** @param isRepeat the same record again, after silence */
  settlementSent(deviceId: string, port: number, order: string, isRepeat: boolean): void
  settlementAcked(deviceId: string, port: number, order: string): void
  /** The server broke the protocol or the connection. `kind` is one of few words, `detail` names bytes or ids. */
  failed(kind: FailureKind, detail: string): void
}

export type FailureKind =
  | 'bytes.unexpected'
  | 'reply.unexpected'
  | 'reply.wrong'
  | 'command.unknown'
  | 'command.malformed'
  | 'connection.closed'
  | 'connection.failed'
  | 'settlement.refused'

/** What a driver needs of any double. Times are ms since the epoch, fractions welcome, never going back. */
export interface Device {
  readonly deviceId: string
  /** When to call `wake`; Infinity while nothing is planned. Look again after every call. */
  readonly nextWakeMs: number
  readonly isConnected: boolean
  /** Orders that ended and are not acked, plus replies still awaited. */
  readonly outstanding: number
  /** Ports that could start a charge by themselves now. */
  readonly freePorts: number
  powerOn(atMs: number): void
  wake(nowMs: number): void
  connected(nowMs: number): void
  received(bytes: Uint8Array, nowMs: number): void
  /** @param why empty when the double asked for it */
  disconnected(nowMs: number, why: string): void
  /** A user starts a charge at the device. @returns false when no port is free */
  startOrder(nowMs: number, isByCard: boolean): boolean
  /** No new heartbeats, orders, ends or dials: running charges rest; what is due to be acked is still sent and awaited. */
  quiet(): void
}

/** How roughly a double treats the wire: each level adds to the one before. */
export const CHAOS_LEVELS = ['none', 'cuts', 'noise', 'resets'] as const
export type Chaos = (typeof CHAOS_LEVELS)[number]

/** How long the server may take to answer before the double counts the answer as missed. */
export const REPLY_WITHIN_MS = 15_000

const CUT_SHARE = 0.3
const NOISE_SHARE = 0.1
/** Mean time between resets of one device at level `resets`. */
const RESET_EVERY_MS = 60_000

/** A device's outgoing side: passes frames on, or cuts, glues and dirties them. Order is kept. */
export class RoughWire {
  readonly #world: DeviceWorld
  readonly #agenda: Agenda
  readonly #random: Random
  #level: number
  readonly #noise: (random: Random) => Uint8Array
  /** Held back; while not empty everything else queues behind. */
  #held: Uint8Array[] = []

  /** @param noise bytes that cannot begin a unit of the protocol */
  constructor(world: DeviceWorld, agenda: Agenda, random: Random, chaos: Chaos, noise: (random: Random) => Uint8Array) {
    this.#world = world
    this.#agenda = agenda
    this.#random = random
    this.#level = CHAOS_LEVELS.indexOf(chaos)
    this.#noise = noise
  }

  /** Call once per connection. */
  opened(nowMs: number): void {
    this.#held = []
    if (this.#level < 3) return
    const waitMs = -Math.log(1 - this.#random.unit()) * RESET_EVERY_MS
    this.#agenda.whileConnected(nowMs + waitMs, () => {
      if (this.#level >= 3) this.#world.close(true)
    })
  }

  /** No more roughness; what is held back still goes out. */
  calm(): void {
    this.#level = 0
  }

  send(frame: Uint8Array, nowMs: number): void {
    if (this.#held.length > 0) {
      this.#held.push(frame)
      return
    }
    if (this.#level === 0) {
      this.#world.send(frame)
      return
    }
    const random = this.#random
    if (this.#level >= 2 && random.chance(NOISE_SHARE)) this.#world.send(this.#noise(random))
    if (!random.chance(CUT_SHARE)) {
      this.#world.send(frame)
      return
    }
    // a cut at 0 holds the whole frame, and the next one is glued to it
    const cut = random.below(frame.length)
    if (cut > 0) this.#world.send(frame.slice(0, cut))
    this.#held.push(frame.subarray(cut))
    this.#agenda.whileConnected(nowMs + random.between(5, 60), () => this.#release())
  }

  #release(): void {
    const held = this.#held
    this.#held = []
    const bytes = new Uint8Array(held.reduce((sum, part) => sum + part.length, 0))
    let at = 0
    for (const part of held) {
      bytes.set(part, at)
      at += part.length
    }
    this.#world.send(bytes)
  }
}

/** Two BCD digits. */
export const bcd = (value: number): number => Math.floor(value / 10) * 16 + (value % 10)

/** `yyyyMMddHHmmss` in UTC+8 as seven BCD bytes: what devices of both protocols print. */
export function bcdTimeOf(ms: number): Uint8Array {
  const local = new Date(ms + 8 * 3_600_000)
  const year = local.getUTCFullYear()
  return Uint8Array.of(
    bcd(Math.floor(year / 100)),
    bcd(year % 100),
    bcd(local.getUTCMonth() + 1),
    bcd(local.getUTCDate()),
    bcd(local.getUTCHours()),
    bcd(local.getUTCMinutes()),
    bcd(local.getUTCSeconds()),
  )
}

/**
 * The number part of a fleet's device ids: one seed always means the same devices, neighbouring seeds mean others, and
 * none is a factory number that many boards share.
 * @param index 0..99,999
 */
export function fleetNumber(seed: number, index: number): number {
  return 1_000_000 + (((seed % 80) + 80) % 80) * 100_000 + index
}
