/**
 * The whole gateway killed (-9) at random moments while orders are started, stopped and settled. A small fleet of both
 * protocols on real sockets charges, settles and repeats what is not acked; a client posts commands with
 * Idempotency-Keys, cancels some, and repeats after the restart whatever it got no answer to. At some points the
 * database dies with the gateway.
 *
 * In the end, when every command has its fate and every charge is settled, the tables are held against what went over
 * the wires; `problems` says in words what does not fit. The seed repeats points, devices and requests; how far the
 * gateway was at a point depends on the machine.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { ap3000DeviceNo } from '../../loadtest/device-ap3000.ts'
import { bkvGatewayNo } from '../../loadtest/device-bkv.ts'
import { FLEET_DEFAULTS, type FleetOptions, runFleet } from '../../loadtest/fleet-run.ts'
import { dataDirectory, endPostgres, GatewayProcess } from './gateway-process.ts'
import { Random } from './random.ts'
import { readFrame, type SeenFrame, settlementIn, settlementKeyOf } from './sim-wire.ts'

export interface KillPointsOptions {
  readonly points: number
  readonly seed: number
  /** Half of them of each protocol; default 12. */
  readonly devices?: number
  /** At every so-manieth point the database dies too; default 5. */
  readonly databaseKillEvery?: number
  readonly say?: (line: string) => void
}

export interface KillPointsReport {
  readonly kills: number
  readonly databaseKills: number
  /** Commands that the client heard 202 for, and repeats of theirs. */
  readonly accepted: number
  readonly repeats: number
  /** Commands by their fate. */
  readonly fates: Readonly<Record<string, number>>
  readonly settlements: number
  readonly settlementRepeats: number
  readonly commandFrames: number
  readonly amountFen: number
  /** Empty: everything holds. */
  readonly problems: readonly string[]
}

const ACK_TIMEOUT_MS = 2_000
const SPACING_MS = 50
const ENV = {
  SHARDS: '2',
  STATE_FLUSH_MS: '50',
  COMMAND_SPACING_MS: String(SPACING_MS),
  ACK_TIMEOUT_MS: String(ACK_TIMEOUT_MS),
  RATE_LIMIT_PER_DEVICE_PER_S: '1000',
}
const CHARGE_MS = 2_500
const RUN_S_MAX = 3_600
const UPTIME_MS_MAX = 1_600
const EARLY_SHARE = 0.25
/** Devices that were refused for long dial less often. */
const BACK_MS_MAX = 10_000
const ORDERS_PER_S = 6
const POSTERS = 4
/** A frame that left in time may be read a little later: the kernel has it, and this process is busy. */
const READ_LATE_MS = 500
/** Beyond the ack timeout, of the time in which there was a gateway: on a busy machine nothing comes at once. */
const FATE_LATE_MS = 5_000
const QUIET_WITHIN_MS = 60_000
const TARIFF = { energy: { price_fen_per_kwh: 120 }, min_fen: 50 }

/** One request of the client, repeated until it has an answer of the gateway's. */
interface Post {
  readonly key: string
  readonly path: string
  readonly body: object
  commandId: string | undefined
  isRefused: boolean
}

interface Settled {
  readonly content: string
  readonly energyWh: number
  readonly durationS: number
  isAcked: boolean
}

/** @throws when the gateway does not start; what does not fit is in the report */
export async function killPoints(options: KillPointsOptions): Promise<KillPointsReport> {
  const world = new World(options)
  try {
    return await world.run()
  } finally {
    await world.end()
  }
}

class World {
  readonly #options: KillPointsOptions
  readonly #random: Random
  readonly #problems: string[] = []
  readonly #posts: Post[] = []
  readonly #cancelled = new Set<string>()
  /** By place and wire number. */
  readonly #settled = new Map<string, Settled>()
  /** What the last settlement under a question was: an ack answers that one. */
  readonly #asked = new Map<string, string>()
  /** Commands as devices read them. */
  readonly #frames: { readonly frame: SeenFrame; readonly readMs: number }[] = []
  /** Devices that this start of the gateway has answered. */
  readonly #heard = new Set<string>()
  /** When there was a gateway. */
  readonly #uptimes: { readonly fromMs: number; toMs: number }[] = []
  #settlementRepeats = 0
  #repeats = 0
  #databaseKills = 0
  #gateway!: GatewayProcess
  readonly #dataDir = dataDirectory()
  readonly #fleetDone = new AbortController()
  #fleet: Promise<unknown> = Promise.resolve()
  #isOver = false
  /** The client posts nothing new. */
  #isQuiet = false

  constructor(options: KillPointsOptions) {
    this.#options = options
    this.#random = new Random(options.seed)
  }

  async run(): Promise<KillPointsReport> {
    const { points, databaseKillEvery = 5, say = () => {} } = this.#options
    await this.#start()
    const admin = this.#gateway
    this.#fleet = runFleet(this.#fleetOptions(), this.#fleetDone.signal)
    await this.#registered(admin)
    const posters = Array.from({ length: POSTERS }, (_, index) => this.#post(new Random(this.#options.seed, 1 + index)))
    for (let point = 0; point < points; point++) {
      const uptimeMs = this.#random.between(20, UPTIME_MS_MAX)
      // mostly in the middle of things, sometimes while everybody comes back
      const isEarly = this.#random.chance(EARLY_SHARE)
      for (const until = performance.now() + BACK_MS_MAX; !isEarly && performance.now() < until; await sleep(20))
        if (this.#heard.size >= this.#devices / 2) break
      await sleep(uptimeMs)
      const isWithDatabase = point % databaseKillEvery === databaseKillEvery - 1
      if (isWithDatabase) {
        this.#gateway.killPostgres()
        this.#databaseKills++
        await sleep(this.#random.between(0, 50))
      }
      await this.#gateway.kill()
      this.#uptimes.at(-1)!.toMs = Date.now()
      say(
        `${point + 1}/${points}: killed after ${Math.round(uptimeMs)} ms${isEarly ? ' from the start' : ''}${isWithDatabase ? ', the database too' : ''}`,
      )
      await this.#start()
    }
    this.#isQuiet = true
    await Promise.all(posters)
    await this.#rest()
    return await this.#look()
  }

  async #start(): Promise<void> {
    this.#heard.clear()
    const gateway = await GatewayProcess.start({ dataDir: this.#dataDir, env: ENV })
    // the fleet dials whatever port stands here
    if (!Number.isInteger(gateway.tcpPort)) throw new Error(`the first line is ${gateway.lines[0]}; ${gateway.stderr}`)
    this.#gateway = gateway
    this.#uptimes.push({ fromMs: Date.now(), toMs: Number.POSITIVE_INFINITY })
  }

  async end(): Promise<void> {
    this.#isOver = true
    this.#fleetDone.abort()
    await this.#fleet
    await this.#gateway?.remove()
    await endPostgres(this.#dataDir)
  }

  // ---- devices ---------------------------------------------------------------------------------------------------

  #fleetOptions(): FleetOptions {
    const port = () => this.#gateway.tcpPort
    const rate = () => (this.#isQuiet ? 0 : ORDERS_PER_S)
    return {
      ...FLEET_DEFAULTS,
      host: '127.0.0.1',
      get port() {
        return port()
      },
      phases: [
        {
          name: '',
          fromS: 0,
          toS: RUN_S_MAX,
          cutShare: 0,
          get rateFrom() {
            return rate()
          },
          get rateTo() {
            return rate()
          },
        },
      ],
      protocol: 'mix',
      devices: this.#devices,
      rampPerS: 200,
      heartbeatS: 5,
      chargeS: CHARGE_MS / 1_000,
      timeScale: 1,
      durationS: RUN_S_MAX,
      seed: this.#options.seed,
      cardShare: 0,
      hostEvery: 0,
      settleRepeatS: 2,
      reconnectMs: 200,
      graceS: 0,
      wiretap: {
        received: (deviceId, bytes) => this.#received(deviceId, bytes),
        mayPass: (_, bytes) => {
          this.#sent(bytes)
          return true
        },
      },
    }
  }

  get #devices(): number {
    return this.#options.devices ?? 12
  }

  /** Every device has a row, and a price. */
  async #registered(gateway: GatewayProcess): Promise<void> {
    await this.#until('every device is stored', async () => {
      const [row] = await gateway.sql<{ count: number }[]>`select count(*)::int as count from devices`
      return row!.count >= this.#devices
    })
    for (let index = 0; index < this.#devices; index++) {
      const path = `/api/v1/devices/${this.#deviceId(index)}`
      const { status, text } = await gateway.ask('PUT', path, { body: { tariff: TARIFF } })
      if (status !== 200) throw new Error(`PUT ${path}: ${status} ${text}`)
    }
  }

  #isBkv(index: number): boolean {
    return index % 2 === 1
  }

  #deviceId(index: number): string {
    const { seed } = this.#options
    if (this.#isBkv(index)) return String(bkvGatewayNo(seed, index)).padStart(14, '0')
    return ap3000DeviceNo(seed, index).toString(16).padStart(8, '0')
  }

  #sent(bytes: Uint8Array): void {
    for (const frame of framesIn(bytes)) {
      const settlement = settlementIn(frame)
      if (settlement === undefined) continue
      const key = settlementKeyOf(settlement, settlement.wireHex)
      this.#asked.set(frame.question, key)
      const before = this.#settled.get(key)
      const { content, energyWh, durationS } = settlement
      if (before === undefined) this.#settled.set(key, { content, energyWh, durationS, isAcked: false })
      else {
        this.#settlementRepeats++
        // a double that used a number twice would prove nothing
        if (before.content !== content) this.#problems.push(`double: ${key} says ${before.content}, then ${content}`)
      }
    }
  }

  #received(deviceId: string, bytes: Uint8Array): void {
    this.#heard.add(deviceId)
    for (const frame of framesIn(bytes)) {
      if (frame.deviceId !== deviceId) this.#problems.push(`${deviceId} received a frame of ${frame.deviceId}`)
      const settled = this.#settled.get(this.#asked.get(frame.question) ?? '')
      if (settled !== undefined) settled.isAcked = true
      else if (frame.isOfCommand) this.#frames.push({ frame, readMs: Date.now() })
    }
  }

  // ---- the client --------------------------------------------------------------------------------------------------

  /** One request after the other; what got no answer is repeated with the same key, also after the end of the kills. */
  async #post(random: Random): Promise<void> {
    let count = 0
    while (!this.#isQuiet && !this.#isOver) {
      const post = this.#newPost(random, `${this.#options.seed}-${this.#posts.length}-${count++}`)
      this.#posts.push(post)
      await this.#deliver(post)
      if (post.commandId !== undefined && random.chance(0.15)) await this.#cancel(post.commandId)
      if (random.chance(0.2)) {
        // somebody who has an answer asks again
        this.#repeats++
        await this.#deliver(post)
      }
      await sleep(random.between(0, 60))
    }
  }

  #newPost(random: Random, key: string): Post {
    const index = random.below(this.#devices)
    const place = this.#isBkv(index) ? { socket: 1, port: 1 + random.below(2) } : { port: 1 + random.below(2) }
    const expires = { expires_in_s: [1, 3, 20][random.below(3)]! }
    const choice = random.unit()
    const [route, body] =
      choice < 0.5
        ? ['charge', { ...place, mode: 'time', duration_s: 3_600, ...expires }]
        : choice < 0.7
          ? ['stop', place]
          : this.#isBkv(index)
            ? ['commands', { name: 'queryStatus', params: { socket: 1 }, ...expires }]
            : ['commands', { name: 'locate', params: { locate_s: 1 }, ...expires }]
    const path = `/api/v1/devices/${this.#deviceId(index)}/${route}`
    return { key, path, body: body as object, commandId: undefined, isRefused: false }
  }

  async #deliver(post: Post): Promise<void> {
    const { path, body, key } = post
    for (const until = Date.now() + QUIET_WITHIN_MS; !this.#isOver; ) {
      try {
        const { status, json, text } = await this.#gateway.ask('POST', path, {
          body,
          headers: { 'idempotency-key': key },
        })
        if (status === 202) {
          const { command_id: commandId } = json as { command_id: string }
          if (post.commandId !== undefined && post.commandId !== commandId)
            this.#problems.push(`${key} is ${post.commandId}, then ${commandId}`)
          if (post.isRefused) post.isRefused = false
          post.commandId = commandId
          return
        }
        // a port with an order, nothing to stop: an answer, unless it was accepted before
        if (status < 500 && status !== 429) {
          if (post.commandId !== undefined)
            this.#problems.push(`${key} ${path} was accepted as ${post.commandId}, then ${status} ${text}`)
          post.isRefused = true
          return
        }
      } catch {
        // dead, or dying: nobody knows whether it is stored
      }
      if (Date.now() > until) throw new Error(`${path}: no answer`)
      await sleep(50)
    }
  }

  async #cancel(commandId: string): Promise<void> {
    try {
      const { status } = await this.#gateway.ask('DELETE', `/api/v1/commands/${commandId}`)
      if (status === 200) this.#cancelled.add(commandId)
    } catch {}
  }

  // ---- the end -----------------------------------------------------------------------------------------------------

  /** What does not come to rest is a problem like others, which may say why. */
  async #rest(): Promise<void> {
    try {
      await this.#comeToRest()
    } catch (error) {
      this.#problems.push((error as Error).message)
    }
  }

  async #comeToRest(): Promise<void> {
    const { sql } = this.#gateway
    await this.#until('every command has its fate', async () => {
      const [row] = await sql<{ count: number }[]>`select count(*)::int as count from outbound_queue where status < 2`
      return row!.count === 0
    })
    await this.#until('every settlement is acked', async () => {
      const [row] = await sql<{ count: number }[]>`
        select count(*)::int as count from orders where state in ('charging', 'stopping')`
      return row!.count === 0 && [...this.#settled.values()].every(({ isAcked }) => isAcked)
    })
    // a charge that began a moment ago, and rows on their way
    await sleep(CHARGE_MS + 1_000)
    await this.#until('every settlement is acked', () => [...this.#settled.values()].every(({ isAcked }) => isAcked))
  }

  async #until(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
    for (const until = performance.now() + QUIET_WITHIN_MS; performance.now() < until; await sleep(100))
      if (await isSo()) return
    const unacked = [...this.#settled].filter(([, { isAcked }]) => !isAcked).map(([key]) => key)
    const orders = await this.#gateway.sql<{ order_no: string; device_id: string; port: number; state: string }[]>`
      select order_no, device_id, port, state from orders where state in ('starting', 'charging', 'stopping')`
    throw new Error(
      `not within ${QUIET_WITHIN_MS} ms: ${what}; unacked: ${unacked.join(' ')}; running: ${JSON.stringify(orders)}`,
    )
  }

  /** How long there was a gateway within this time. */
  #upMs(fromMs: number, toMs: number): number {
    return this.#uptimes.reduce(
      (sum, up) => sum + Math.max(0, Math.min(up.toMs, toMs) - Math.max(up.fromMs, fromMs)),
      0,
    )
  }

  async #look(): Promise<KillPointsReport> {
    const commands = await this.#lookAtCommands()
    const { settlements, amountFen } = await this.#lookAtMoney()
    const fates: Record<string, number> = {}
    for (const { status } of commands) fates[STATES[status]!] = (fates[STATES[status]!] ?? 0) + 1
    return {
      kills: this.#options.points,
      databaseKills: this.#databaseKills,
      accepted: this.#posts.filter(({ commandId }) => commandId !== undefined).length,
      repeats: this.#repeats,
      fates,
      settlements,
      settlementRepeats: this.#settlementRepeats,
      commandFrames: this.#frames.length,
      amountFen,
      problems: this.#problems,
    }
  }

  async #lookAtCommands(): Promise<readonly CommandRow[]> {
    const { sql } = this.#gateway
    const say = (problem: string) => this.#problems.push(problem)
    const commands = await sql<CommandRow[]>`
      select q.command_id, q.device_id, q.name, q.kind, q.status, q.attempts, q.message_id, q.idempotency_key, q.order_no,
        q.expires_at, q.finished_at, o.state as order_state,
        (select count(*)::int from events e where e.event_type = 'command.finished'
          and e.data ->> 'command_id' = q.command_id) as events,
        (select count(*)::int from audit_logs a where a.details ->> 'command_id' = q.command_id) as audit_lines
      from outbound_queue q left join orders o on o.order_no = q.order_no`
    const byId = new Map(commands.map((row) => [row.command_id, row]))
    for (const { key, commandId } of this.#posts) {
      if (commandId === undefined) continue
      const row = byId.get(commandId)
      if (row === undefined) say(`${key}: ${commandId} was accepted and is not stored`)
      else if (row.idempotency_key !== key) say(`${key}: ${commandId} is stored under ${row.idempotency_key}`)
    }
    for (const { key, commandId } of this.#posts)
      if (commandId === undefined && commands.some(({ idempotency_key }) => idempotency_key === key))
        say(`${key} was refused and is stored`)
    for (const row of commands) {
      const what = `command ${row.command_id} (${row.name} to ${row.device_id})`
      const state = STATES[row.status]!
      if (row.status < 2) say(`${what} is ${state}`)
      // a stop of a start that was cancelled is stored with its fate and tells nothing
      const isDone = row.kind === 'stop' && state === 'acked' && row.attempts === 0
      if (row.events !== (isDone ? 0 : 1)) say(`${what}, ${state}: ${row.events} command.finished`)
      if (row.audit_lines !== 1) say(`${what}: ${row.audit_lines} audit lines`)
      const lateMs = this.#upMs(row.expires_at.getTime(), row.finished_at?.getTime() ?? Date.now())
      if (lateMs > ACK_TIMEOUT_MS + FATE_LATE_MS) say(`${what}: ${lateMs} ms between its expiry and its fate`)
      if (this.#cancelled.has(row.command_id) && state !== 'cancelled') say(`${what} was cancelled and is ${state}`)
    }
    const byFrame = new Map(commands.map((row) => [`${row.device_id} ${row.message_id}`, row]))
    for (const { frame, readMs } of this.#frames) {
      const row = byFrame.get(`${frame.deviceId} ${frame.messageId}`)
      const what = `${frame.name} ${frame.messageId} to ${frame.deviceId}`
      if (row === undefined) {
        if (isOrderFrame(frame)) say(`${what}: a device got it, and no command has its id`)
        continue
      }
      const state = STATES[row.status]!
      if (state === 'cancelled' || state === 'expired') say(`${what}: its command is ${state}`)
      if (readMs > row.expires_at.getTime() + READ_LATE_MS) say(`${what}: after its deadline`)
      if (readMs > (row.finished_at?.getTime() ?? Number.POSITIVE_INFINITY) + READ_LATE_MS)
        say(`${what}: after its fate`)
    }
    return commands
  }

  async #lookAtMoney(): Promise<{ readonly settlements: number; readonly amountFen: number }> {
    const { sql } = this.#gateway
    const say = (problem: string) => this.#problems.push(problem)
    const rows = await sql<SettlementRow[]>`
      select s.device_id, s.socket, s.port, s.wire_hex, s.energy_wh, s.duration_s, s.amount_fen, o.order_no, o.state,
        o.amount_fen as order_amount_fen, o.energy_wh as order_energy_wh, o.estimated
      from settlements s left join orders o using (device_id, socket, port, order_key)`
    const stored = new Map<string, SettlementRow>()
    for (const row of rows) {
      const key = settlementKeyOf({ deviceId: row.device_id, socket: row.socket, port: row.port }, row.wire_hex)
      if (stored.has(key)) say(`settlement ${key} is stored twice`)
      stored.set(key, row)
      if (row.state !== 'settled') say(`settlement ${key}: its order ${row.order_no} is ${row.state}`)
      if (row.amount_fen !== row.order_amount_fen || row.energy_wh !== row.order_energy_wh || row.estimated)
        say(
          `settlement ${key}: ${row.amount_fen} fen ${row.energy_wh} Wh, order ${row.order_amount_fen} ${row.order_energy_wh}`,
        )
    }
    for (const [key, { isAcked, energyWh, durationS }] of this.#settled) {
      const row = stored.get(key)
      if (row === undefined) say(`settlement ${key} is ${isAcked ? 'acked' : 'sent'} and not stored`)
      else if (row.energy_wh !== energyWh || row.duration_s !== durationS)
        say(`settlement ${key}: sent ${energyWh} Wh ${durationS} s, stored ${row.energy_wh} ${row.duration_s}`)
    }
    for (const key of stored.keys()) if (!this.#settled.has(key)) say(`settlement ${key} was never sent`)
    const orders = await sql<OrderRow[]>`
      select o.order_no, o.state, o.amount_fen, q.status as start_status,
        (select count(*)::int from events e where e.event_type = 'charging.ended'
          and e.data ->> 'order_no' = o.order_no) as ended,
        (select min((e.data ->> 'amount_fen')::bigint) from events e where e.event_type = 'charging.ended'
          and e.data ->> 'order_no' = o.order_no) as told_fen
      from orders o left join outbound_queue q on q.command_id = o.command_id`
    for (const { order_no, state, amount_fen, ended, told_fen, start_status } of orders) {
      const isSettled = state === 'settled'
      if (ended !== (isSettled ? 1 : 0)) say(`order ${order_no} is ${state}: ${ended} charging.ended`)
      if (isSettled && told_fen !== amount_fen) say(`order ${order_no}: ${amount_fen} fen, told ${told_fen}`)
      if (start_status !== null && STATES[start_status] === 'acked' && !isSettled)
        say(`order ${order_no} was started and is ${state}`)
    }
    const sum = (list: readonly (number | null)[]) => list.reduce<number>((total, fen) => total + (fen ?? 0), 0)
    const amountFen = sum(rows.map((row) => row.amount_fen))
    const ordersFen = sum(orders.map((row) => (row.state === 'settled' ? row.amount_fen : 0)))
    if (amountFen !== ordersFen) say(`settlements sum up to ${amountFen} fen, orders to ${ordersFen}`)
    return { settlements: rows.length, amountFen }
  }
}

const STATES = ['queued', 'sent', 'acked', 'dead', 'refused', 'expired', 'cancelled'] as const

interface CommandRow {
  readonly command_id: string
  readonly device_id: string
  readonly name: string
  readonly kind: string
  readonly status: number
  readonly attempts: number
  readonly message_id: number | null
  readonly idempotency_key: string | null
  readonly order_no: string | null
  readonly order_state: string | null
  readonly expires_at: Date
  readonly finished_at: Date | null
  readonly events: number
  readonly audit_lines: number
}

interface SettlementRow {
  readonly device_id: string
  readonly socket: number
  readonly port: number
  readonly wire_hex: string
  readonly energy_wh: number
  readonly duration_s: number
  readonly amount_fen: number | null
  readonly order_no: string | null
  readonly state: string | null
  readonly order_amount_fen: number | null
  readonly order_energy_wh: number | null
  readonly estimated: boolean | null
}

interface OrderRow {
  readonly order_no: string
  readonly state: string
  readonly amount_fen: number | null
  readonly start_status: number | null
  readonly ended: number
  readonly told_fen: number | null
}

/** Starts and stops: nobody but a stored command may send one. */
const isOrderFrame = ({ name }: SeenFrame) => name === '82' || name === '0015/07'

/** Both sides send whole frames, and over loopback they come whole. */
function* framesIn(bytes: Uint8Array): Generator<SeenFrame> {
  for (let at = 0; at + 4 <= bytes.length; ) {
    const frameBytes =
      bytes[at] === 0x44 ? 5 + (bytes[at + 3]! | (bytes[at + 4]! << 8)) : 4 + ((bytes[at + 2]! << 8) | bytes[at + 3]!)
    const frame = bytes[at] === 0x44 || bytes[at] === 0xfc ? readFrame(bytes.slice(at, at + frameBytes)) : undefined
    // the ICCID, or a link: no frames
    if (frame === undefined) return
    yield frame
    at += frameBytes
  }
}
