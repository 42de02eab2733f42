/**
 * Webhooks under load: how long after its commit an event is at its receiver, and what a receiver that hangs does to the
 * others. The whole gateway as a process, on its embedded PostgreSQL with fsync; events come the real way: devices on real
 * sockets send alarms (AP3000 42), each of which a session decodes, a writer commits and the relay delivers. The receiver is
 * a process of its own and answers after 5 ms; one that takes no part answers never.
 *
 *   node native-bench/webhooks.ts [--events-per-s 1000] [--seconds 30] [--rounds 3] [--round-s 10] [--devices 200]
 *     [--concurrency N] [--json FILE]
 *
 * First a run alone, then rounds of a run alone and a run beside the dead receiver, in turning order; medians of each kind.
 * A delay is from `events.stored_at` (the clock of the insert, before the commit's fsync) to the arrival of the request's
 * body, both clocks of this machine. Every event must arrive; order per device is checked; what comes twice is counted.
 */
import { fork } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { cpuMsOf } from '../loadtest/process-use.ts'
import { exitOnSignals, readOptions, wholeNumber, writablePath } from '../src/config/command-line.ts'
import { dny, le } from '../src/testing/device-client.ts'
import { GatewayProcess } from '../src/testing/gateway-process.ts'
import { machineFacts, median } from './machine.ts'

const USAGE = `npm run bench:webhooks -- [options]
  --events-per-s 1000 --seconds 30 --rounds 3 --round-s 10 --devices 200 --concurrency N --json FILE`
const ANSWER_MS = 5
/** Connections that CONNECTIONS_MAX lets in. */
const DEVICES_MAX = 19_000
const FIRST_DEVICE = 0x04b00000
/** What was sent has arrived, or the run has failed. */
const DRAIN_MS_MAX = 120_000
const nowMs = () => performance.timeOrigin + performance.now()

// ---- the receiver --------------------------------------------------------------------------------------------------

type ToReceiver = { readonly kind: 'take' }
type FromReceiver =
  | { readonly kind: 'ready'; readonly port: number; readonly deadPort: number }
  /** `arrivals`: event id and ms since the epoch, in the order of arrival, since the last take. */
  | { readonly kind: 'taken'; readonly arrivals: readonly (readonly [string, number])[]; readonly connections: number }

async function receive(): Promise<void> {
  let arrivals: [string, number][] = []
  let connections = 0
  const server = createServer((request, response) => {
    request.resume()
    request.on('end', () => {
      arrivals.push([String(request.headers['webhook-id']), nowMs()])
      setTimeout(() => response.writeHead(204).end(), ANSWER_MS)
    })
  })
  server.on('connection', () => connections++)
  server.keepAliveTimeout = 60_000
  const dead = net.createServer((socket) => void socket.on('error', () => {}).resume())
  const portOf = async (of: net.Server) => {
    await new Promise<void>((resolve) => of.listen(0, '127.0.0.1', resolve))
    return (of.address() as net.AddressInfo).port
  }
  const tell = (message: FromReceiver) => process.send!(message)
  process.on('message', ({ kind }: ToReceiver) => {
    if (kind !== 'take') return
    tell({ kind: 'taken', arrivals, connections })
    arrivals = []
  })
  process.on('disconnect', () => process.exit(0))
  tell({ kind: 'ready', port: await portOf(server), deadPort: await portOf(dead) })
}

// ---- the devices ---------------------------------------------------------------------------------------------------

type ToDevices = { readonly kind: 'run'; readonly eventsPerS: number; readonly seconds: number }
type FromDevices = { readonly kind: 'connected' } | { readonly kind: 'ran'; readonly sent: number; readonly ms: number }

async function beDevices(port: number, count: number): Promise<void> {
  process.on('disconnect', () => process.exit(0))
  const tell = (message: FromDevices) => process.send!(message)
  const devices = await Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const socket = net.createConnection({ host: '127.0.0.1', port, noDelay: true })
      await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
      const device = { socket, physId: FIRST_DEVICE + index, messageId: 1 }
      socket.write(Buffer.from(dny(device.physId, 1, 0x21, `${le(2_200, 2)}0200000000`), 'hex'))
      await new Promise((resolve) => socket.once('data', resolve))
      return device
    }),
  )
  for (const { socket } of devices) socket.resume().on('close', () => process.exit(1))
  process.on('message', ({ eventsPerS, seconds }: ToDevices) => {
    const startMonoMs = performance.now()
    let sent = 0
    // open loop: what a late timer missed is sent with the next one
    const timer = setInterval(() => {
      const elapsedMs = performance.now() - startMonoMs
      const wanted = Math.min(Math.floor((elapsedMs / 1_000) * eventsPerS), eventsPerS * seconds)
      for (; sent < wanted; sent++) {
        const device = devices[sent % count]!
        device.messageId = (device.messageId % 65_535) + 1
        device.socket.write(Buffer.from(dny(device.physId, device.messageId, 0x42, '030101'), 'hex'))
      }
      if (sent < eventsPerS * seconds) return
      clearInterval(timer)
      tell({ kind: 'ran', sent, ms: performance.now() - startMonoMs })
    }, 4)
  })
  tell({ kind: 'connected' })
}

// ---- one run -------------------------------------------------------------------------------------------------------

interface Reading {
  readonly beside: 'nobody' | 'dead'
  readonly events: number
  readonly per_s: number
  readonly p50_ms: number
  readonly p99_ms: number
  readonly p999_ms: number
  readonly max_ms: number
  readonly twice: number
  /** Gateway and database, of one core. */
  readonly gateway_cpu: number
  readonly database_cpu: number
}

interface Child<In, Out> {
  ask(message: In): void
  /** The next message; they come one at a time. */
  next(): Promise<Out>
  end(): void
}

function childOf<In, Out>(...args: string[]): Child<In, Out> {
  const child = fork(import.meta.filename, args, { stdio: 'inherit' })
  const heard: Out[] = []
  let wake: () => void = () => {}
  let code: number | null | undefined
  child.on('message', (message) => {
    heard.push(message as Out)
    wake()
  })
  child.on('exit', (with_) => {
    code = with_
    wake()
  })
  return {
    ask: (message) => child.send(message as object),
    async next() {
      while (heard.length === 0) {
        if (code !== undefined) throw new Error(`${args[0]} ended with ${code}`)
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
      return heard.shift()!
    },
    end: () => child.disconnect(),
  }
}

/** CPU so far, ms; the database is a child of the gateway. */
function cpuOf(gateway: GatewayProcess): { readonly gatewayMs: number; readonly databaseMs: number } {
  const databaseMs = cpuMsOf(gateway.postgresPid!)
  return { gatewayMs: cpuMsOf(gateway.child.pid!) - databaseMs, databaseMs }
}

interface Stage {
  readonly gateway: GatewayProcess
  readonly receiver: Child<ToReceiver, FromReceiver>
  readonly devices: Child<ToDevices, FromDevices>
  readonly deadUrl: string
}

async function run(
  { gateway, receiver, devices, deadUrl }: Stage,
  beside: Reading['beside'],
  eventsPerS: number,
  seconds: number,
): Promise<Reading> {
  let deadId: string | undefined
  if (beside === 'dead') {
    const made = await gateway.ask('POST', '/api/v1/webhooks', {
      body: { url: deadUrl, event_types: ['device.alarm'] },
    })
    deadId = made.json.id
  }
  const { sql } = gateway
  const [start] = await sql<{ cursor: number }[]>`select coalesce(max(cursor), 0)::int8 as cursor from events`
  const before = cpuOf(gateway)
  const startMonoMs = performance.now()
  devices.ask({ kind: 'run', eventsPerS, seconds })
  const ran = await devices.next()
  if (ran.kind !== 'ran') throw new Error(`devices said ${ran.kind}`)
  const arrivals = new Map<string, number>()
  let twice = 0
  for (const until = performance.now() + DRAIN_MS_MAX; arrivals.size < ran.sent; ) {
    if (performance.now() > until) throw new Error(`${arrivals.size} of ${ran.sent} arrived`)
    await sleep(250)
    receiver.ask({ kind: 'take' })
    const taken = await receiver.next()
    if (taken.kind !== 'taken') throw new Error(`the receiver said ${taken.kind}`)
    for (const [id, atMs] of taken.arrivals)
      if (arrivals.has(id)) twice++
      else arrivals.set(id, atMs)
  }
  const elapsedMs = performance.now() - startMonoMs
  const after = cpuOf(gateway)
  const events = await sql<{ event_id: string; device_id: string; stored_ms: number }[]>`
    select event_id, device_id, extract(epoch from stored_at)::float8 * 1000 as stored_ms from events
    where cursor > ${start!.cursor} and event_type = 'device.alarm' order by cursor`
  if (events.length !== ran.sent) throw new Error(`${events.length} events of ${ran.sent} alarms`)
  const lastOf = new Map<string, number>()
  const delays: number[] = []
  for (const { event_id: id, device_id: device, stored_ms: storedMs } of events) {
    const atMs = arrivals.get(id)
    if (atMs === undefined) throw new Error(`event ${id} did not arrive`)
    if (atMs < (lastOf.get(device) ?? 0)) throw new Error(`events of ${device} arrived in another order`)
    lastOf.set(device, atMs)
    delays.push(atMs - storedMs)
  }
  delays.sort((a, b) => a - b)
  const at = (part: number) => round(delays[Math.min(delays.length - 1, Math.floor(part * delays.length))]!)
  if (deadId !== undefined) await gateway.ask('DELETE', `/api/v1/webhooks/${deadId}`)
  const spanMs = Math.max(...arrivals.values()) - events[0]!.stored_ms
  return {
    beside,
    events: events.length,
    per_s: round((events.length / spanMs) * 1_000),
    p50_ms: at(0.5),
    p99_ms: at(0.99),
    p999_ms: at(0.999),
    max_ms: at(1),
    twice,
    gateway_cpu: round((after.gatewayMs - before.gatewayMs) / elapsedMs),
    database_cpu: round((after.databaseMs - before.databaseMs) / elapsedMs),
  }
}

const round = (value: number) => Math.round(value * 100) / 100

// ---- all of it -----------------------------------------------------------------------------------------------------

async function main(): Promise<void> {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    'events-per-s': { ...text, default: '1000' },
    seconds: { ...text, default: '30' },
    rounds: { ...text, default: '3' },
    'round-s': { ...text, default: '10' },
    devices: { ...text, default: '200' },
    concurrency: text,
    json: text,
  })
  const eventsPerS = wholeNumber('events-per-s', values['events-per-s'], 1)
  const seconds = wholeNumber('seconds', values.seconds, 1)
  const roundCount = wholeNumber('rounds', values.rounds, 1)
  const roundS = wholeNumber('round-s', values['round-s'], 1)
  const deviceCount = wholeNumber('devices', values.devices, 1, DEVICES_MAX)
  const concurrency = values.concurrency === undefined ? null : wholeNumber('concurrency', values.concurrency, 1, 256)
  if (values.json !== undefined) writablePath('json', values.json)
  exitOnSignals()
  const say = (line: string) => console.error(line)
  const machine = machineFacts()
  say(`${machine.cpu}, ${machine.cores} cores, node ${machine.node}, commit ${machine.commit}`)
  const gateway = await GatewayProcess.start({ env: { WEBHOOK_ALLOWED_HOSTS: '127.0.0.1' } })
  const receiver = childOf<ToReceiver, FromReceiver>('receiver')
  const ready = await receiver.next()
  if (ready.kind !== 'ready') throw new Error(`the receiver said ${ready.kind}`)
  const devices = childOf<ToDevices, FromDevices>('devices', String(gateway.tcpPort), String(deviceCount))
  try {
    await devices.next()
    const url = `http://127.0.0.1:${ready.port}/hook`
    const made = await gateway.ask('POST', '/api/v1/webhooks', {
      body: { url, event_types: ['device.alarm'], concurrency },
    })
    if (made.status !== 201) throw new Error(made.text)
    const stage: Stage = { gateway, receiver, devices, deadUrl: `http://127.0.0.1:${ready.deadPort}/hook` }
    const show = (name: string, { p50_ms, p99_ms, p999_ms, max_ms, per_s, twice, ...rest }: Reading) =>
      say(
        `${name}: ${per_s}/s  p50 ${p50_ms} ms  p99 ${p99_ms} ms  p99.9 ${p999_ms} ms  max ${max_ms} ms  twice ${twice}  ` +
          `cores: gateway ${rest.gateway_cpu}, database ${rest.database_cpu}`,
      )
    await run(stage, 'nobody', eventsPerS, 2)
    const whole = await run(stage, 'nobody', eventsPerS, seconds)
    show(`alone, ${seconds} s`, whole)
    const rounds: Reading[] = []
    for (let round = 0; round < roundCount; round++) {
      const order = ['nobody', 'dead'] as const
      for (const beside of round % 2 === 0 ? order : order.toReversed()) {
        const reading = await run(stage, beside, eventsPerS, roundS)
        show(`round ${round + 1}, beside ${beside}`, reading)
        rounds.push(reading)
      }
    }
    const of = (beside: Reading['beside'], field: 'p50_ms' | 'p99_ms' | 'p999_ms') =>
      median(rounds.flatMap((reading) => (reading.beside === beside ? [reading[field]] : [])))
    const added = Object.fromEntries(
      (['p50_ms', 'p99_ms', 'p999_ms'] as const).map((field) => {
        const [alone, beside] = [of('nobody', field), of('dead', field)]
        say(`${field}, median of rounds: alone ${alone}, beside a dead receiver ${beside}: ${percent(beside / alone)}`)
        return [field, { alone, beside, added_percent: round((beside / alone - 1) * 100) }]
      }),
    )
    const result = { machine, events_per_s: eventsPerS, whole, rounds, added }
    if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(result, null, 2)}\n`)
  } finally {
    devices.end()
    receiver.end()
    await gateway.remove()
  }
}

const percent = (ratio: number) => `${ratio >= 1 ? '+' : ''}${round((ratio - 1) * 100)} %`

// asked by `fork`, not by people
const [role, ...rest] = process.send === undefined ? [] : process.argv.slice(2)
if (role === 'receiver') await receive()
else if (role === 'devices') await beDevices(Number(rest[0]), Number(rest[1]))
else await main()
