/**
 * `npm run demo`: the gateway with a small mixed fleet that charges and settles, until Ctrl-C. Its data are in a folder of
 * its own, whatever DATA_DIR, DATABASE_URL, CONFIG_PATH and KAFKA_* say: a demo never touches real data. Other settings
 * are taken from the environment, addresses and keys too.
 */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { readOptions } from '../src/config/command-line.ts'

const { 'data-dir': dataDir } = readOptions('npm run demo -- [--data-dir .data/demo]', {
  'data-dir': { type: 'string', default: '.data/demo' },
})
const { ownEnvironment } = await import('./own-gateway.ts')
const start = fileURLToPath(new URL('../src/main/start.ts', import.meta.url))
const fleet = fileURLToPath(new URL('fleet.ts', import.meta.url))
const gateway = spawn(process.execPath, [start], {
  // without nothing: addresses and keys are the caller's choice
  env: { LOG_LEVEL: 'info', ...ownEnvironment(/^$/), DATA_DIR: dataDir },
  stdio: ['ignore', 'pipe', 'inherit'],
})
let piles: ReturnType<typeof spawn> | undefined
let isEnding = false

createInterface({ input: gateway.stdout }).on('line', (line) => {
  let entry: {
    event?: string
    level?: string
    devices?: string
    console?: string
    api?: string
    metrics?: string
    api_key?: string
  }
  try {
    entry = JSON.parse(line)
  } catch {
    console.log(line)
    return
  }
  if (entry.level === 'error' || entry.level === 'warn') console.log(line)
  if (entry.event !== 'gateway.started') return
  console.log(
    `console ${entry.console}\nAPI     ${entry.api}\nmetrics ${entry.metrics}\nkey     ${entry.api_key}\ndevices ${entry.devices}\nCtrl-C ends the demo.`,
  )
  const port = entry.devices!.split(':').at(-1)!
  piles = spawn(
    process.execPath,
    [
      fleet,
      '--port',
      port,
      '--protocol',
      'mix',
      '--devices',
      '60',
      '--ramp-per-s',
      '20',
      '--heartbeat-s',
      '20',
      '--orders-per-s',
      '1',
      '--charge-s',
      '40',
      '--duration-s',
      '86400',
    ],
    { stdio: 'inherit' },
  )
})

function end(): void {
  if (isEnding) return
  isEnding = true
  piles?.kill('SIGINT')
  gateway.kill('SIGTERM')
}
process.on('SIGINT', end)
process.on('SIGTERM', end)
gateway.on('exit', (code) => {
  piles?.kill('SIGINT')
  process.exitCode = code ?? 1
})
