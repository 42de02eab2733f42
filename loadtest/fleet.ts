/**
 * `npm run fleet -- …`: a fleet of simulated piles against a gateway. Contract section 8; options in `README.md`.
 * Ends by itself after --duration-s; SIGINT or SIGTERM ends it early with the same summary.
 * Exit code 0: no errors; 1: errors were counted; 2: bad options.
 */
import { parseArgs } from 'node:util'
import { Presets, SingleBar } from 'cli-progress'
import { CHAOS_LEVELS, type Chaos } from './device.ts'
import { checkFleetOptions, FLEET_DEFAULTS, type FleetOptions, type FleetProgress, runFleet } from './fleet-run.ts'
import type { FleetNotes, FleetSummary } from './tally.ts'

const USAGE = `npm run fleet -- [options]
  --host 127.0.0.1 --port 7000 --protocol ap3000|bkv|mix --devices 100 --ramp-per-s 200 --heartbeat-s 60
  --orders-per-s 1 --charge-s 30 --duration-s 60 --seed 1 --reply-loss 0 --json
  --chaos none|cuts|noise|resets --card-share 0.25 --time-scale 1 --ports 2 --host-every 20 --slaves-per-host 0
  --settle-repeat-s 30 --grace-s 5`

const LINE_MS = 5_000

function readOptions(args: readonly string[]): { options: FleetOptions; isJson: boolean } {
  const text = { type: 'string' } as const
  const { values } = parseArgs({
    args: [...args],
    options: {
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
      json: { type: 'boolean' },
      help: { type: 'boolean' },
    },
  })
  if (values.help) {
    process.stdout.write(`${USAGE}\n`)
    process.exit(0)
  }
  const number = (name: keyof typeof values, fallback: number): number => {
    const given = values[name]
    if (given === undefined) return fallback
    const value = Number(given)
    if (typeof given !== 'string' || given.trim() === '' || !Number.isFinite(value))
      throw new RangeError(`--${name} ${given}: not a number`)
    return value
  }
  const protocol = values.protocol ?? FLEET_DEFAULTS.protocol
  if (protocol !== 'ap3000' && protocol !== 'bkv' && protocol !== 'mix')
    throw new RangeError(`--protocol ${protocol}: ap3000, bkv or mix`)
  const chaos = values.chaos ?? FLEET_DEFAULTS.chaos
  const chaosName = CHAOS_LEVELS[Number(chaos)] ?? (chaos as Chaos)
  if (!CHAOS_LEVELS.includes(chaosName)) throw new RangeError(`--chaos ${chaos}: ${CHAOS_LEVELS.join(', ')}`)
  const options: FleetOptions = {
    host: values.host ?? FLEET_DEFAULTS.host,
    port: number('port', FLEET_DEFAULTS.port),
    protocol,
    devices: number('devices', FLEET_DEFAULTS.devices),
    rampPerS: number('ramp-per-s', FLEET_DEFAULTS.rampPerS),
    heartbeatS: number('heartbeat-s', FLEET_DEFAULTS.heartbeatS),
    ordersPerS: number('orders-per-s', FLEET_DEFAULTS.ordersPerS),
    chargeS: number('charge-s', FLEET_DEFAULTS.chargeS),
    durationS: number('duration-s', FLEET_DEFAULTS.durationS),
    seed: number('seed', FLEET_DEFAULTS.seed),
    replyLoss: number('reply-loss', FLEET_DEFAULTS.replyLoss),
    chaos: chaosName,
    cardShare: number('card-share', FLEET_DEFAULTS.cardShare),
    timeScale: number('time-scale', FLEET_DEFAULTS.timeScale),
    ports: number('ports', FLEET_DEFAULTS.ports),
    hostEvery: number('host-every', FLEET_DEFAULTS.hostEvery),
    slavesPerHost: number('slaves-per-host', FLEET_DEFAULTS.slavesPerHost),
    settleRepeatS: number('settle-repeat-s', FLEET_DEFAULTS.settleRepeatS),
    graceS: number('grace-s', FLEET_DEFAULTS.graceS),
  }
  checkFleetOptions(options)
  return { options, isJson: values.json === true }
}

/** A bar on a terminal, a line now and then elsewhere; both on stderr. */
function progressPrinter(options: FleetOptions): { show: (progress: FleetProgress) => void; stop: () => void } {
  const line = ({ connected, tally }: FleetProgress) =>
    `${connected}/${options.devices} connected, ${tally.uplinksSent} up, ${tally.repliesReceived} replies, ` +
    `${tally.settlementsAcked}/${tally.settlementsSent} settled, ${tally.commandsReceived} commands, ${tally.failures + tally.repliesMissed} errors`
  if (process.stderr.isTTY) {
    const bar = new SingleBar(
      { stream: process.stderr, format: '{bar} {value}/{total} s  {line}', hideCursor: true },
      Presets.shades_classic,
    )
    bar.start(options.durationS, 0, { line: '' })
    return {
      show: (progress) =>
        bar.update(Math.min(options.durationS, Math.floor(progress.elapsedS)), { line: line(progress) }),
      stop: () => bar.stop(),
    }
  }
  let nextMs = LINE_MS
  return {
    show: (progress) => {
      if (progress.elapsedS * 1_000 < nextMs) return
      nextMs += LINE_MS
      process.stderr.write(`${progress.elapsedS.toFixed(0)} s: ${line(progress)}\n`)
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
  let read: ReturnType<typeof readOptions>
  try {
    read = readOptions(process.argv.slice(2))
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${USAGE}\n`)
    return 2
  }
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
  const printer = progressPrinter(read.options)
  const { summary, notes } = await runFleet(read.options, stop.signal, printer.show)
  printer.stop()
  printNotes(summary, notes)
  if (read.isJson) process.stdout.write(`${JSON.stringify(summary)}\n`)
  else for (const [name, value] of Object.entries(summary)) process.stdout.write(`${name.padEnd(20)} ${value}\n`)
  return summary.errors === 0 ? 0 : 1
}

process.exitCode = await main()
