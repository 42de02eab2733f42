/**
 * Drives thousands of device doubles over real sockets in one thread: one heap and one timer for all of them, one read
 * buffer for all sockets. Open loop: what is due is sent whether or not earlier answers came, and reply times count
 * from the time a frame was due.
 */
import { readFileSync } from 'node:fs'
import net from 'node:net'
import { Random } from '../src/testing/random.ts'
import { WakeHeap } from './agenda.ts'
import type { Chaos, Device, DeviceWorld } from './device.ts'
import { ap3000DeviceNo, DeviceAp3000, iccidOf } from './device-ap3000.ts'
import { bkvGatewayNo, DeviceBkv } from './device-bkv.ts'
import { nextOrderS, onePhase, type Phase } from './scenario.ts'
import { type FleetNotes, type FleetSummary, FleetTally } from './tally.ts'
import { type PhaseSummary, type Sample, Timeline, type Watched } from './timeline.ts'

export interface FleetOptions {
  readonly host: string
  readonly port: number
  /** `mix`: every other device. */
  readonly protocol: 'ap3000' | 'bkv' | 'mix'
  /** Connections. */
  readonly devices: number
  readonly rampPerS: number
  readonly heartbeatS: number
  /** Over the whole fleet, started at the devices. */
  readonly ordersPerS: number
  readonly chargeS: number
  readonly durationS: number
  readonly seed: number
  readonly replyLoss: number
  readonly chaos: Chaos
  /** Of the orders: begun by swiping a card, which asks the server. */
  readonly cardShare: number
  readonly timeScale: number
  /** Ports of an AP3000 pile. */
  readonly ports: number
  /** Every n-th AP3000 device is a host (11, 12, 35); 0: none. */
  readonly hostEvery: number
  /** AP3000 piles behind each host, on the host's connection. */
  readonly slavesPerHost: number
  readonly settleRepeatS: number
  /** How long to wait at the end for what is still unanswered. */
  readonly graceS: number
  /** What the run is made of, back to back; left out: `ordersPerS` for `durationS`, which phases stand above. */
  readonly phases?: readonly Phase[]
  /** The gateway, for the timeline. */
  readonly watched?: Watched
  /** First wait before a device dials again; left out: as real ones do, 3 to 4 s. */
  readonly reconnectMs?: number
  /** Looks at the bytes of every device. */
  readonly wiretap?: Wiretap
}

export interface Wiretap {
  /** Read from the socket just now, before the device has seen them; not kept. */
  received(deviceId: string, bytes: Uint8Array): void
  /** @returns false: the device believes it sent them, and they are lost */
  mayPass(deviceId: string, bytes: Uint8Array): boolean
}

export const FLEET_DEFAULTS: FleetOptions = {
  host: '127.0.0.1',
  port: 7000,
  protocol: 'ap3000',
  devices: 100,
  rampPerS: 200,
  heartbeatS: 60,
  ordersPerS: 1,
  chargeS: 30,
  durationS: 60,
  seed: 1,
  replyLoss: 0,
  chaos: 'none',
  cardShare: 0.25,
  timeScale: 1,
  ports: 2,
  hostEvery: 20,
  slavesPerHost: 0,
  settleRepeatS: 30,
  graceS: 5,
}

/** One process may hold 20,000 descriptors where this was written; the rest is for itself. */
export const DEVICES_MAX = 19_500
/** Device numbers one seed has. */
const NUMBERS_MAX = 100_000

export interface FleetResult {
  readonly summary: FleetSummary
  readonly notes: FleetNotes
  /** About one per second. */
  readonly samples: readonly Sample[]
  readonly phases: readonly PhaseSummary[]
}

export interface FleetProgress {
  readonly elapsedS: number
  readonly connected: number
  readonly tally: FleetTally
  /** '' without a scenario. */
  readonly phase: string
  /** The last of the timeline; undefined in the first second. */
  readonly sample: Sample | undefined
}

/** @throws RangeError with a sentence for the user */
export function checkFleetOptions(options: FleetOptions): void {
  const mustBe = (isSo: boolean, text: string) => {
    if (!isSo) throw new RangeError(text)
  }
  const descriptors = descriptorsMax() - 500
  const devicesMax = Math.min(DEVICES_MAX, descriptors)
  mustBe(Number.isInteger(options.devices) && options.devices >= 1, '--devices must be a whole number from 1')
  mustBe(
    options.devices <= devicesMax,
    `--devices ${options.devices}: one process holds at most ${devicesMax} connections here (descriptor limit); start several with different --seed`,
  )
  mustBe(
    options.devices * (1 + options.slavesPerHost) <= NUMBERS_MAX,
    `--slaves-per-host: more than ${NUMBERS_MAX} device ids`,
  )
  mustBe(options.port >= 1 && options.port <= 65_535, '--port must be 1..65535')
  mustBe(options.ports >= 1 && options.ports <= 16, '--ports must be 1..16')
  mustBe(options.slavesPerHost >= 0 && options.slavesPerHost <= 50, '--slaves-per-host must be 0..50')
  for (const [name, value] of Object.entries({
    'ramp-per-s': options.rampPerS,
    'heartbeat-s': options.heartbeatS,
    'charge-s': options.chargeS,
    'duration-s': options.durationS,
    'time-scale': options.timeScale,
    'settle-repeat-s': options.settleRepeatS,
  }))
    mustBe(value > 0, `--${name} must be greater than 0`)
  mustBe(options.ordersPerS >= 0 && options.graceS >= 0, '--orders-per-s and --grace-s must not be negative')
  for (const [name, value] of Object.entries({ 'reply-loss': options.replyLoss, 'card-share': options.cardShare }))
    mustBe(value >= 0 && value <= 1, `--${name} must be 0..1`)
}

/**
 * Runs a fleet to its end.
 *
 * @param signal ends the run early, with its summary
 * @param onProgress called a few times per second
 * @throws RangeError when the options make no sense; what devices meet is counted, never thrown
 */
export async function runFleet(
  options: FleetOptions,
  signal?: AbortSignal,
  onProgress?: (progress: FleetProgress) => void,
): Promise<FleetResult> {
  checkFleetOptions(options)
  return await new Fleet(options).run(signal, onProgress)
}

const now = (() => {
  // monotonic, yet comparable with device clocks and server times
  const startMs = Date.now() - performance.now()
  return () => startMs + performance.now()
})()

/** At most this long between two looks at the heap: appointments made by arriving bytes are seen without more timers. */
const TICK_MS_MAX = 5
const PROGRESS_MS = 250
const SAMPLE_MS = 1_000
const ORDER_TRIES = 8
const READ_BUFFER = new Uint8Array(65_536)

class Fleet {
  readonly #options: FleetOptions
  readonly #tally = new FleetTally()
  readonly #members: Member[] = []
  /** One slot per device and one for the order clock. */
  readonly #heap: WakeHeap
  readonly #random: Random
  readonly #phases: readonly Phase[]
  #phase = 0
  #startMs = 0
  #orderAtMs = Number.POSITIVE_INFINITY

  constructor(options: FleetOptions) {
    this.#options = options
    this.#phases = options.phases ?? onePhase(options)
    this.#heap = new WakeHeap(options.devices + 1)
    this.#random = new Random(options.seed, -1)
    for (let index = 0; index < options.devices; index++)
      this.#members.push(new Member(index, options, this.#tally, this.#heap))
  }

  async run(signal?: AbortSignal, onProgress?: (progress: FleetProgress) => void): Promise<FleetResult> {
    const { devices, rampPerS, graceS } = this.#options
    const startMs = now()
    this.#startMs = startMs
    for (const [index, { device }] of this.#members.entries()) {
      device.powerOn(startMs + (index * 1_000) / rampPerS)
      this.#heap.set(index, device.nextWakeMs)
    }
    this.#planOrder(startMs)
    const endMs = startMs + (this.#phases.at(-1)?.toS ?? 0) * 1_000
    const timeline = new Timeline(this.#phases, this.#options.watched ?? {}, this.#tally, startMs)
    let progressAtMs = startMs
    let sampleAtMs = startMs + SAMPLE_MS
    const goOn = (isOver: () => boolean) =>
      this.#loop(() => {
        const nowMs = now()
        this.#enterPhase(nowMs)
        if (nowMs >= sampleAtMs) {
          sampleAtMs += SAMPLE_MS
          timeline.take(this.#tally, this.#connected(), this.#phase, nowMs)
        }
        if (nowMs >= progressAtMs) {
          progressAtMs = nowMs + PROGRESS_MS
          onProgress?.({
            elapsedS: (nowMs - startMs) / 1_000,
            connected: this.#connected(),
            tally: this.#tally,
            phase: this.#phases[this.#phase]?.name ?? '',
            sample: timeline.samples.at(-1),
          })
        }
        return isOver()
      })

    await goOn(() => signal?.aborted === true || now() >= endMs)
    const ranS = (now() - startMs) / 1_000
    this.#heap.set(devices, Number.POSITIVE_INFINITY)
    this.#tally.runEnded()
    for (const { device } of this.#members) device.quiet()

    const graceEndMs = now() + graceS * 1_000
    let lookAtMs = 0
    await goOn(() => {
      const nowMs = now()
      if (nowMs >= graceEndMs) return true
      if (nowMs < lookAtMs) return false
      lookAtMs = nowMs + 50
      return this.#members.every(({ device }) => device.outstanding === 0)
    })

    const connected = this.#connected()
    timeline.take(this.#tally, connected, this.#phase, now())
    timeline.end()
    const unacked = this.#tally.settlementsSent - this.#tally.settlementsAcked
    await Promise.all(this.#members.map((member) => member.end()))
    // a reply lost on purpose, and a connection cut on purpose, leave records for the next run
    const isUnackedAnError = this.#options.replyLoss === 0 && this.#options.chaos !== 'resets'
    return {
      summary: this.#tally.summary(devices, connected, ranS, unacked, isUnackedAnError),
      notes: this.#tally.notes(ranS, unacked),
      samples: timeline.samples,
      phases: timeline.phases,
    }
  }

  /** The phase that `nowMs` lies in, and what happens at its beginning. */
  #enterPhase(nowMs: number): void {
    for (;;) {
      const next = this.#phases[this.#phase + 1]
      if (next === undefined || nowMs < this.#startMs + next.fromS * 1_000) return
      this.#phase++
      if (next.cutShare > 0)
        for (const member of this.#members)
          if (member.device.isConnected && this.#random.chance(next.cutShare)) member.close(true)
    }
  }

  /** Wakes who is due, until `isOver`. */
  #loop(isOver: () => boolean): Promise<void> {
    const { devices } = this.#options
    return new Promise((resolve) => {
      const tick = () => {
        const nowMs = now()
        while (this.#heap.nextMs <= nowMs) {
          const index = this.#heap.first
          if (index === devices) {
            this.#startOrder(nowMs)
            continue
          }
          const { device } = this.#members[index] as Member
          this.#tally.late(nowMs - this.#heap.nextMs)
          device.wake(nowMs)
          this.#heap.set(index, device.nextWakeMs)
        }
        if (isOver()) return resolve()
        setTimeout(tick, Math.max(1, Math.min(TICK_MS_MAX, Math.ceil(this.#heap.nextMs - now()))))
      }
      tick()
    })
  }

  #startOrder(nowMs: number): void {
    const isByCard = this.#random.chance(this.#options.cardShare)
    let isStarted = false
    for (let tries = 0; tries < ORDER_TRIES && !isStarted; tries++) {
      const index = this.#random.below(this.#members.length)
      const { device } = this.#members[index] as Member
      if (!device.isConnected) continue
      isStarted = device.startOrder(nowMs, isByCard)
      this.#heap.set(index, device.nextWakeMs)
    }
    if (!isStarted) this.#tally.ordersWithoutPort++
    this.#planOrder(this.#orderAtMs)
  }

  #planOrder(afterMs: number): void {
    this.#orderAtMs = this.#startMs + nextOrderS(this.#phases, (afterMs - this.#startMs) / 1_000) * 1_000
    this.#heap.set(this.#options.devices, this.#orderAtMs)
  }

  #connected(): number {
    let count = 0
    for (const { device } of this.#members) if (device.isConnected) count++
    return count
  }
}

/** One device and its socket. */
class Member implements DeviceWorld {
  readonly device: Device
  readonly #index: number
  readonly #options: FleetOptions
  readonly #heap: WakeHeap
  #socket: net.Socket | undefined
  #isClosedByUs = false

  constructor(index: number, options: FleetOptions, tally: FleetTally, heap: WakeHeap) {
    this.#index = index
    this.#options = options
    this.#heap = heap
    const isBkv = options.protocol === 'bkv' || (options.protocol === 'mix' && index % 2 === 1)
    this.device = isBkv ? this.#newBkv(index, tally) : this.#newAp3000(index, tally)
  }

  connect(): void {
    this.#isClosedByUs = false
    let why = ''
    const socket = net.connect({
      host: this.#options.host,
      port: this.#options.port,
      noDelay: true,
      onread: {
        buffer: READ_BUFFER,
        callback: (bytesRead, buffer) => {
          if (this.#socket === socket && !this.#isClosedByUs) {
            this.#options.wiretap?.received(this.device.deviceId, buffer.subarray(0, bytesRead))
            this.device.received(buffer.subarray(0, bytesRead), now())
            this.#replan()
          }
          return true
        },
      },
    })
    this.#socket = socket
    socket.on('connect', () => {
      if (this.#isClosedByUs) return
      this.device.connected(now())
      this.#replan()
    })
    socket.on('error', (error) => {
      why = error.message
    })
    socket.on('close', () => {
      if (this.#socket !== socket) return
      this.#socket = undefined
      this.device.disconnected(now(), this.#isClosedByUs ? '' : `${this.device.deviceId} ${why || 'by the server'}`)
      this.#replan()
    })
  }

  send(bytes: Uint8Array): void {
    if (this.#isClosedByUs || this.#options.wiretap?.mayPass(this.device.deviceId, bytes) === false) return
    this.#socket?.write(bytes)
  }

  /** Also from outside, as if the power failed: the device hears of it like of a close it asked for. */
  close(isAbrupt: boolean): void {
    this.#isClosedByUs = true
    if (isAbrupt) this.#socket?.resetAndDestroy()
    else this.#socket?.destroy()
  }

  /** For good: nothing is told to the device any more. */
  end(): Promise<void> {
    const socket = this.#socket
    this.#socket = undefined
    this.#isClosedByUs = true
    if (socket === undefined || socket.closed) return Promise.resolve()
    return new Promise((resolve) => {
      socket.on('close', () => resolve())
      socket.destroy()
    })
  }

  #replan(): void {
    this.#heap.set(this.#index, this.device.nextWakeMs)
  }

  #newAp3000(index: number, tally: FleetTally): Device {
    const { seed, hostEvery, slavesPerHost, devices, ports, heartbeatS, chargeS } = this.#options
    const isHost = hostEvery > 0 && index % hostEvery === 0
    const slaves = isHost
      ? Array.from({ length: slavesPerHost }, (_, slave) =>
          ap3000DeviceNo(seed, devices + index * slavesPerHost + slave),
        )
      : []
    const deviceNo = ap3000DeviceNo(seed, index)
    return new DeviceAp3000(
      {
        deviceNo,
        iccid: iccidOf(deviceNo),
        seed,
        portCount: ports,
        isHost,
        slaves,
        sendsOldHeartbeat: index % 8 === 1,
        heartbeatMs: heartbeatS * 1_000,
        chargeMs: chargeS * 1_000,
        timeScale: this.#options.timeScale,
        settleRepeatMs: this.#options.settleRepeatS * 1_000,
        replyLoss: this.#options.replyLoss,
        chaos: this.#options.chaos,
        ...(this.#options.reconnectMs !== undefined && { reconnectMs: this.#options.reconnectMs }),
      },
      this,
      tally,
    )
  }

  #newBkv(index: number, tally: FleetTally): Device {
    const { seed, heartbeatS, chargeS } = this.#options
    const gatewayNo = bkvGatewayNo(seed, index)
    return new DeviceBkv(
      {
        gatewayNo,
        iccid: iccidOf(gatewayNo),
        seed,
        heartbeatMs: heartbeatS * 1_000,
        heartbeatReplyMs: Math.max(60, heartbeatS) * 1_000,
        chargeMs: chargeS * 1_000,
        timeScale: this.#options.timeScale,
        replyLoss: this.#options.replyLoss,
        chaos: this.#options.chaos,
        ...(this.#options.reconnectMs !== undefined && { reconnectMs: this.#options.reconnectMs }),
      },
      this,
      tally,
    )
  }
}

/** Open files this process may hold; where the system does not say, enough. */
function descriptorsMax(): number {
  try {
    const line = readFileSync('/proc/self/limits', 'utf8').match(/^Max open files\s+(\d+)/m)
    return line?.[1] === undefined ? 20_000 : Number(line[1])
  } catch {
    return 20_000
  }
}
