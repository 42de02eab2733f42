/**
 * The WebSocket under load: what 500 subscribers feel at 200 events a second, and what one that stops reading does to
 * them. Server (HTTP, hub, stream, database) and subscribers are processes of their own; the subscribers are plain
 * sockets that only count frames and read the time of some, so that they are not what is measured.
 *
 *   node native-bench/push.ts [--subscribers 500] [--events-per-s 200] [--seconds 10] [--json FILE]
 *
 * A delay is from before the insert of an event to its arrival: commit, look, fan-out and socket. Figures of the two
 * phases belong together; those of another minute of a shared machine do not.
 */
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseApiKeys } from '../src/config/api-keys.ts'
import { exitOnSignals, readOptions, wholeNumber, writablePath } from '../src/config/command-line.ts'
import { createAdmin } from '../src/main/admin/admin.ts'
import { createLog } from '../src/main/log.ts'
import { PushHub } from '../src/main/push/hub.ts'
import { EventStream } from '../src/main/push/stream.ts'
import { openTestDatabase } from '../src/testing/database.ts'
import { temporaryDirectory } from '../src/testing/temporary-directory.ts'
import { machineFacts } from './machine.ts'

const USAGE = 'node native-bench/push.ts [--subscribers 500] [--events-per-s 200] [--seconds 10] [--json FILE]'
const SECRET = 'bench-secret'
const SUBSCRIBERS_MAX = 10_000
const BUFFERED_BYTES_MAX = 262_144
const CUT_S_MAX = 60
const INSERTS_PER_S = 40
/** Beside the envelope: about what a charging.progress carries. */
const PAD = 'x'.repeat(300)
const nowUs = () => Number(process.hrtime.bigint() / 1_000n)

// ---- the server ----------------------------------------------------------------------------------------------------

type ToServer =
  | { readonly kind: 'begin'; readonly eventsPerS: number }
  | { readonly kind: 'pause' }
  | { readonly kind: 'stop' }
type FromServer =
  | { readonly kind: 'ready'; readonly port: number }
  | { readonly kind: 'cut' }
  | {
      readonly kind: 'paused'
      readonly inserted: number
      readonly cpuMs: number
      readonly cuts: number
      readonly dropped: number
    }

async function serve(): Promise<void> {
  const tell = (message: FromServer) => process.send!(message)
  const opening = openTestDatabase()
  // Who asked is gone: the exit handler of the test database stops its server, once there is one.
  const orphaned = () =>
    void opening.then(
      () => process.exit(130),
      () => process.exit(130),
    )
  process.once('disconnect', orphaned)
  const database = await opening
  let cuts = 0
  let dropped = 0
  const stream: EventStream = new EventStream({ sql: database.sql, onEvents: (events) => hub.tell(events) })
  const hub: PushHub = new PushHub({
    stream,
    figures: () => ({}),
    bufferedBytesMax: BUFFERED_BYTES_MAX,
    // and the one that stalls
    subscribersMax: SUBSCRIBERS_MAX + 1,
    onSubscribers: () => {},
    onDropped: (frames) => {
      dropped += frames
    },
    onCut: () => {
      cuts++
      tell({ kind: 'cut' })
    },
  })
  const admin = createAdmin({
    config: { httpHost: '127.0.0.1', httpPort: 0, requestTimeoutMs: 10_000 },
    log: createLog({ level: 'silent', serviceName: 'pilegate', env: 'bench', thread: 'main' }),
    sql: database.sql,
    apiKeys: parseApiKeys(`bench:${SECRET}:viewer`).keys,
    readiness: () => [],
    presenceOf: () => undefined,
    protocolOf: () => undefined,
    renderMetrics: async () => '',
    observeRequest: () => {},
    now: Date.now,
    nonceDirectory: temporaryDirectory(),
    push: hub,
  })
  await admin.listen()
  let timer: NodeJS.Timeout | undefined
  let inserted = 0
  let underWay = 0
  let cpu = process.cpuUsage()

  async function insert(count: number): Promise<void> {
    underWay++
    const rows = Array.from({ length: count }, () => ({
      event_id: randomBytes(16).toString('hex'),
      event_type: 'charging.progress',
      tenant_id: 'default',
      device_id: '04ab373b',
      epoch: 1,
      at: new Date(),
      data: database.sql.json({ sent_us: String(nowUs()), pad: PAD }),
    }))
    await database.sql`insert into events ${database.sql(rows as never[])}`
    inserted += count
    underWay--
    stream.wake()
  }

  process.on('message', async (message: ToServer) => {
    if (message.kind === 'begin') {
      inserted = 0
      cpu = process.cpuUsage()
      const startMonoMs = performance.now()
      let due = 0
      // open loop: what a late timer missed is inserted with the next one
      timer = setInterval(() => {
        const wanted = Math.floor(((performance.now() - startMonoMs) / 1_000) * message.eventsPerS)
        if (wanted === due) return
        void insert(wanted - due)
        due = wanted
      }, 1_000 / INSERTS_PER_S)
    } else if (message.kind === 'pause') {
      clearInterval(timer)
      while (underWay > 0) await sleep(5)
      const { user, system } = process.cpuUsage(cpu)
      tell({ kind: 'paused', inserted, cpuMs: (user + system) / 1_000, cuts, dropped })
    } else {
      hub.close()
      stream.stop()
      await admin.close()
      await database.close()
      process.exit(0)
    }
  })
  tell({ kind: 'ready', port: admin.port })
}

// ---- a subscriber --------------------------------------------------------------------------------------------------

/** Frames of the server, as far as this needs them: unmasked, whole, 7 or 16 bits of length. */
class Subscriber {
  readonly socket: net.Socket
  readonly isSampling: boolean
  events = 0
  delaysUs: number[] = []
  #rest: Buffer = Buffer.alloc(0)
  #isUpgraded = false
  readonly subscribed: Promise<void>
  #onSubscribed: () => void = () => {}

  constructor(port: number, isSampling: boolean) {
    this.isSampling = isSampling
    this.socket = net.connect({ host: '127.0.0.1', port, noDelay: true })
    this.subscribed = new Promise((resolve, reject) => {
      this.#onSubscribed = resolve
      this.socket.once('error', reject)
    })
    const key = randomBytes(16).toString('base64')
    this.socket.write(
      `GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n` +
        `Sec-WebSocket-Key: ${key}\r\nAuthorization: Bearer ${SECRET}\r\n\r\n`,
    )
    this.socket.on('data', (chunk) => this.#received(chunk))
  }

  /** @param first byte: 0x81 text, 0x8a pong */
  #say(text: string, first = 0x81): void {
    const payload = Buffer.from(text)
    const mask = randomBytes(4)
    const frame = Buffer.alloc(6 + payload.length)
    frame[0] = first
    frame[1] = 0x80 | payload.length
    mask.copy(frame, 2)
    for (let index = 0; index < payload.length; index++) frame[6 + index] = payload[index]! ^ mask[index & 3]!
    this.socket.write(frame)
  }

  #received(chunk: Buffer): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    if (!this.#isUpgraded) {
      const end = bytes.indexOf('\r\n\r\n')
      if (end < 0) {
        this.#rest = bytes
        return
      }
      if (!bytes.subarray(0, 12).equals(Buffer.from('HTTP/1.1 101'))) throw new Error(bytes.toString('latin1', 0, 200))
      this.#isUpgraded = true
      bytes = bytes.subarray(end + 4)
      this.#say('{"op":"subscribe","topics":["device/*"]}')
    }
    let at = 0
    const nowAtUs = nowUs()
    while (bytes.length - at >= 4) {
      const short = bytes[at + 1]! & 0x7f
      const head = short === 126 ? 4 : 2
      const length = short === 126 ? bytes.readUInt16BE(at + 2) : short
      if (bytes.length - at < head + length) break
      const from = at + head
      // {"op":"e… or {"op":"s…
      if (bytes[at] === 0x81 && bytes[from + 7] === 0x65) {
        this.events++
        if (this.isSampling) {
          const mark = bytes.indexOf('"sent_us":"', from) + 11
          this.delaysUs.push(nowAtUs - Number(bytes.toString('latin1', mark, bytes.indexOf('"', mark))))
        }
      } else if (bytes[at] === 0x89) this.#say('', 0x8a)
      else if (bytes[from + 7] === 0x73) this.#onSubscribed()
      at = from + length
    }
    this.#rest = at === bytes.length ? Buffer.alloc(0) : Buffer.from(bytes.subarray(at))
  }
}

// ---- the run -------------------------------------------------------------------------------------------------------

const quantile = (sorted: readonly number[], share: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!

async function run(): Promise<void> {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    subscribers: { ...text, default: '500' },
    'events-per-s': { ...text, default: '200' },
    seconds: { ...text, default: '10' },
    json: text,
  })
  const count = wholeNumber('subscribers', values.subscribers, 1, SUBSCRIBERS_MAX)
  const eventsPerS = wholeNumber('events-per-s', values['events-per-s'], 1)
  const seconds = wholeNumber('seconds', values.seconds, 1)
  if (values.json !== undefined) writablePath('json', values.json)
  exitOnSignals()
  // Ctrl-C reaches us only: the server ends when we are gone, and takes its database with it
  const server = fork(new URL(import.meta.url), ['--serve'], { detached: true })
  const next = async <K extends FromServer['kind']>(kind: K) => {
    for (;;) {
      const [message] = (await once(server, 'message')) as [FromServer]
      if (message.kind === kind) return message as Extract<FromServer, { kind: K }>
    }
  }
  const ask = (message: ToServer) => server.send(message)
  const { port } = await next('ready')
  const subscribers: Subscriber[] = []
  // in groups: the listen queue is finite
  while (subscribers.length < count) {
    const group = Array.from(
      { length: Math.min(50, count - subscribers.length) },
      (_, index) => new Subscriber(port, (subscribers.length + index) % 10 === 0),
    )
    await Promise.all(group.map(({ subscribed }) => subscribed))
    subscribers.push(...group)
  }

  async function phase(name: string, until: () => Promise<void>) {
    for (const subscriber of subscribers) {
      subscriber.events = 0
      subscriber.delaysUs = []
    }
    const startMonoMs = performance.now()
    ask({ kind: 'begin', eventsPerS })
    await until()
    ask({ kind: 'pause' })
    const { inserted, cpuMs, cuts, dropped } = await next('paused')
    const ranS = (performance.now() - startMonoMs) / 1_000
    const untilMs = performance.now() + 5_000
    while (subscribers.some(({ events }) => events < inserted) && performance.now() < untilMs) await sleep(20)
    const delays = subscribers.flatMap(({ delaysUs }) => delaysUs).sort((a, b) => a - b)
    const ms = (share: number) => Math.round(quantile(delays, share) / 100) / 10
    const delivered = subscribers.reduce((sum, { events }) => sum + events, 0)
    const figures = {
      phase: name,
      seconds: Math.round(ranS * 10) / 10,
      events_offered_per_s: eventsPerS,
      events_inserted_per_s: Math.round(inserted / ranS),
      delivered_per_s: Math.round(delivered / ranS),
      missing: inserted * count - delivered,
      delay_ms_p50: ms(0.5),
      delay_ms_p99: ms(0.99),
      delay_ms_max: ms(1),
      server_cpu_us_per_delivery: Math.round((cpuMs * 10_000) / delivered) / 10,
      cuts,
      dropped,
    }
    console.log(JSON.stringify(figures))
    return figures
  }

  const load = readFileSync('/proc/loadavg', 'utf8').split(' ')[0]
  await phase('warm-up', () => sleep(3_000))
  const alone = await phase('all read', () => sleep(seconds * 1_000))
  const stalled = new Subscriber(port, false)
  await stalled.subscribed
  stalled.socket.pause()
  const cut = next('cut')
  const stalledMonoMs = performance.now()
  let cutAfterS: number | undefined
  void cut.then(() => {
    cutAfterS = Math.round((performance.now() - stalledMonoMs) / 100) / 10
  })
  // the kernel takes megabytes for a peer that does not read: until then it costs nobody anything but memory
  const beside = await phase('one does not read, up to its cut', () =>
    Promise.race([Promise.all([cut, sleep(seconds * 1_000)]).then(() => sleep(2_000)), sleep(CUT_S_MAX * 1_000)]),
  )
  const ended = once(stalled.socket, 'close')
  stalled.socket.resume()
  await Promise.race([ended, sleep(5_000)])
  const result = {
    machine: machineFacts(),
    load_before: Number(load),
    subscribers: count,
    alone,
    beside,
    stalled: { is_cut: beside.cuts > 0, cut_after_s: cutAfterS ?? null, events_heard_afterwards: stalled.events },
  }
  console.log(JSON.stringify(result.stalled))
  if (values.json !== undefined) writeFileSync(values.json, JSON.stringify(result, null, 2))
  for (const { socket } of [...subscribers, stalled]) socket.destroy()
  ask({ kind: 'stop' })
  await once(server, 'exit')
}

// asked by `fork`, not by people
if (process.send !== undefined && process.argv[2] === '--serve') await serve()
else await run()
