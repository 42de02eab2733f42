/**
 * `npm run fleet -- …`: a fleet of simulated piles against a gateway. Contract section 8; options in `README.md`.
 * Ends by itself after --duration-s; SIGINT or SIGTERM ends it early with the same summary.
 * Exit code 0: no errors; 1: errors were counted; 2: bad options.
 */
import { writeFileSync } from 'node:fs'
import { MultiBar, Presets } from 'cli-progress'
import { machineFacts } from '../native-bench/machine.ts'
import { readOptions, refuse, writablePath } from '../src/config/command-line.ts'
import { CHAOS_LEVELS, type Chaos } from './device.ts'
import { checkFleetOptions, FLEET_DEFAULTS, type FleetOptions, type FleetProgress, runFleet } from './fleet-run.ts'
import type { OwnGateway } from './own-gateway.ts'
import { phasesOf, readScenario, type Scenario } from './scenario.ts'
import type { FleetNotes, FleetSummary } from './tally.ts'

const USAGE = `npm run fleet -- [options]
  --host 127.0.0.1 --port 7000 --protocol ap3000|bkv|mix --devices 100 --ramp-per-s 200 --heartbeat-s 60
  --orders-per-s 1 --charge-s 30 --duration-s 60 --seed 1 --reply-loss 0 --json
  --chaos none|cuts|noise|resets --card-share 0.25 --time-scale 1 --ports 2 --host-every 20 --slaves-per-host 0
  --settle-repeat-s 30 --grace-s 5
  --scenario steady|storm|morning-peak|FILE.yaml --report FILE.html --own-gateway
  --gateway-pid PID --metrics http://127.0.0.1:8080/metrics`

const LINE_MS = 5_000

interface Order {
  readonly options: FleetOptions
  readonly scenario: Scenario | undefined
  readonly isJson: boolean
  readonly report: string | undefined
  readonly hasOwnGateway: boolean
}

/** @throws RangeError a sentence for the user */
function readOrder(): Order {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    host: text,
    port: text,
    protocol: text,
    devices: text,
    'ramp-per-s': text,
    'heartbeat-s': text,
    'orders-per-s': text,
    'charge-s': text,
    'duration-s': text,
    seed: text,
    'reply-loss': text,
    chaos: text,
    'card-share': text,
    'time-scale': text,
    ports: text,
    'host-every': text,
    'slaves-per-host': text,
    'settle-repeat-s': text,
    'grace-s': text,
    scenario: text,
    report: text,
    'own-gateway': { type: 'boolean' },
    'gateway-pid': text,
    metrics: text,
    json: { type: 'boolean' },
  })
  const number = (name: keyof typeof values, fallback: number): number => {
    const given = values[name]
    if (given === undefined) return fallback
    const value = Number(given)
    if (typeof given !== 'string' || given.trim() === '' || !Number.isFinite(value))
      throw new RangeError(`--${name} ${given}: not a number`)
    return value
  }
  const scenario = values.scenario === undefined ? undefined : readScenario(values.scenario)
  if (scenario !== undefined && values['orders-per-s'] !== undefined)
    throw new RangeError('--orders-per-s: the phases of a scenario say how many')
  const seconds = values['duration-s'] === undefined ? undefined : number('duration-s', 0)
  if (seconds !== undefined && !(seconds > 0)) throw new RangeError('--duration-s must be greater than 0')
  const phases = scenario && phasesOf(scenario, seconds)
  const defaults: FleetOptions = { ...FLEET_DEFAULTS, ...withoutUndefined(scenario?.options ?? {}) }
  const protocol = values.protocol ?? defaults.protocol
  if (protocol !== 'ap3000' && protocol !== 'bkv' && protocol !== 'mix')
    throw new RangeError(`--protocol ${protocol}: ap3000, bkv or mix`)
  const chaos = values.chaos ?? defaults.chaos
  const chaosName = CHAOS_LEVELS[Number(chaos)] ?? (chaos as Chaos)
  if (!CHAOS_LEVELS.includes(chaosName)) throw new RangeError(`--chaos ${chaos}: ${CHAOS_LEVELS.join(', ')}`)
  if (values.metrics !== undefined && !URL.canParse(values.metrics))
    throw new RangeError(`--metrics ${values.metrics}: not an address`)
  const pid = values['gateway-pid'] === undefined ? undefined : number('gateway-pid', 0)
  const options: FleetOptions = {
    host: values.host ?? defaults.host,
    port: number('port', defaults.port),
    protocol,
    devices: number('devices', defaults.devices),
    rampPerS: number('ramp-per-s', defaults.rampPerS),
    heartbeatS: number('heartbeat-s', defaults.heartbeatS),
    ordersPerS: number('orders-per-s', defaults.ordersPerS),
    chargeS: number('charge-s', defaults.chargeS),
    durationS: phases?.at(-1)?.toS ?? number('duration-s', defaults.durationS),
    seed: number('seed', defaults.seed),
    replyLoss: number('reply-loss', defaults.replyLoss),
    chaos: chaosName,
    cardShare: number('card-share', defaults.cardShare),
    timeScale: number('time-scale', defaults.timeScale),
    ports: number('ports', defaults.ports),
    hostEvery: number('host-every', defaults.hostEvery),
    slavesPerHost: number('slaves-per-host', defaults.slavesPerHost),
    settleRepeatS: number('settle-repeat-s', defaults.settleRepeatS),
    graceS: number('grace-s', defaults.graceS),
    watched: {
      ...(pid === undefined ? {} : { pid }),
      ...(values.metrics === undefined ? {} : { metricsUrl: values.metrics }),
    },
    ...(phases === undefined ? {} : { phases }),
  }
  const hasOwnGateway = values['own-gateway'] === true
  if (hasOwnGateway && (values.host ?? values.port ?? values['gateway-pid'] ?? values.metrics) !== undefined)
    throw new RangeError('--own-gateway takes a port of its own: leave out --host, --port, --gateway-pid and --metrics')
  checkFleetOptions(options)
  return { options, scenario, isJson: values.json === true, report: values.report, hasOwnGateway }
}

/** What a file leaves out stays at its default: a property that is undefined would cover it. */
function withoutUndefined<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>
  }
}

/** Bars on a terminal, a line now and then elsewhere; both on stderr. */
function progressPrinter(options: FleetOptions): { show: (progress: FleetProgress) => void; stop: () => void } {
  const counts = ({ tally }: FleetProgress) =>
    `${tally.uplinksSent} up, ${tally.repliesReceived} replies, ` +
    `${tally.settlementsAcked}/${tally.settlementsSent} settled, ${tally.commandsReceived} commands, ${tally.failures + tally.repliesMissed} errors`
  if (process.stderr.isTTY) {
    const bars = new MultiBar(
      {
        stream: process.stderr,
        hideCursor: true,
        barsize: 24,
        emptyOnZero: true,
        format: '{name} {bar} {value}/{total} {line}',
      },
      Presets.shades_classic,
    )
    const time = bars.create(Math.ceil(options.durationS), 0, { name: 's        ', line: '' })
    const connections = bars.create(options.devices, 0, { name: 'connected', line: '' })
    const settled = bars.create(1, 0, { name: 'settled  ', line: '' })
    return {
      show: (progress) => {
        const { elapsedS, connected, tally, phase, sample } = progress
        time.update(Math.min(Math.ceil(options.durationS), Math.floor(elapsedS)), { line: phase })
        const rates =
          sample === undefined
            ? ''
            : `${sample.achievedPerS} of ${sample.offeredPerS}/s, p50 ${sample.replyMsP50 ?? '–'} p99 ${sample.replyMsP99 ?? '–'} ms`
        connections.update(connected, { line: rates })
        settled.setTotal(Math.max(1, tally.settlementsSent))
        settled.update(tally.settlementsAcked, {
          line: `${tally.ordersStarted} orders, ${tally.failures + tally.repliesMissed} errors`,
        })
      },
      stop: () => bars.stop(),
    }
  }
  let nextMs = LINE_MS
  return {
    show: (progress) => {
      if (progress.elapsedS * 1_000 < nextMs) return
      nextMs += LINE_MS
      const { elapsedS, connected, phase } = progress
      process.stderr.write(
        `${elapsedS.toFixed(0)} s${phase && ` ${phase}`}: ${connected}/${options.devices} connected, ${counts(progress)}\n`,
      )
    },
    stop: () => {},
  }
}

function printNotes(summary: FleetSummary, notes: FleetNotes): void {
  const lines = [
    `ran ${notes.durationS} s: offered ${summary.offered_per_s}/s, achieved ${summary.achieved_per_s}/s, generator late p99 ${notes.latenessMsP99} ms`,
    `replies p50 ${summary.reply_ms_p50} ms, p99 ${summary.reply_ms_p99} ms; settlements p50 ${notes.settlementMsP50} ms, p99 ${notes.settlementMsP99} ms`,
    `orders ${notes.ordersStarted} started, ${notes.ordersWithoutPort} found no port; settlements ${summary.settlements_sent} sent, ${summary.settlements_acked} acked, ${notes.settlementRepeats} repeats, ${notes.unacked} unacked`,
    `replies ignored on purpose ${notes.repliesIgnored}, missed ${notes.repliesMissed}; failures ${JSON.stringify(notes.failures)}`,
    ...notes.firstFailures.map((failure) => `  ${failure}`),
  ]
  process.stderr.write(`${lines.join('\n')}\n`)
}

async function main(): Promise<number> {
  let read: Order
  try {
    read = readOrder()
  } catch (error) {
    if (error instanceof RangeError) return refuse(error.message)
    throw error
  }
  if (read.report !== undefined) writablePath('report', read.report)
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
  const { scenario, report, hasOwnGateway } = read
  let gateway: OwnGateway | undefined
  if (hasOwnGateway) {
    // what only some runs need is loaded by them
    const { startGateway } = await import('./own-gateway.ts')
    try {
      gateway = await startGateway()
    } catch (error) {
      process.stderr.write(`fleet: ${(error as Error).message}\n`)
      return 1
    }
  }
  const options: FleetOptions =
    gateway === undefined
      ? read.options
      : { ...read.options, port: gateway.port, watched: { pid: gateway.pid, metricsUrl: gateway.metrics } }
  const printer = progressPrinter(options)
  const result = await runFleet(options, stop.signal, printer.show).finally(async () => {
    printer.stop()
    await gateway?.stop()
  })
  const { summary, notes } = result
  if (report !== undefined) {
    const { renderReport } = await import('./report.ts')
    const command = `npm run fleet -- ${process.argv.slice(2).join(' ')}`
    const { title, about } = scenario ?? { title: 'Fleet', about: '' }
    writeFileSync(report, renderReport({ title, about, command, options, machine: machineFacts(), result }))
    process.stderr.write(`report: ${report}\n`)
  }
  printNotes(summary, notes)
  if (read.isJson) process.stdout.write(`${JSON.stringify(summary)}\n`)
  else for (const [name, value] of Object.entries(summary)) process.stdout.write(`${name.padEnd(20)} ${value}\n`)
  return summary.errors === 0 ? 0 : 1
}

process.exitCode = await main()
