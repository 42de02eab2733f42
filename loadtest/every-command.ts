/**
 * `node loadtest/every-command.ts --devices 5000 --duration-s 60 --port 7000 --api http://127.0.0.1:8080`: a mixed fleet,
 * and beside it two connections, a pile and a gateway, that send every uplink of both command tables once: the vendor's
 * or captured frame where the corpus has one, else the least body. Ends with one line per uplink command: how often the
 * running gateway has counted it. Exit code 1 when one was never seen, or the fleet had errors.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import type { FrameHead, Protocol, Uplink } from '../src/codec/protocol.ts'
import { readOptions, refuse, wholeNumber } from '../src/config/command-line.ts'
import { PROTOCOLS } from '../src/protocols/index.ts'
import { checkFleetOptions, FLEET_DEFAULTS, type FleetOptions, runFleet } from './fleet-run.ts'
import { apiAddress, gatewayMustBeThere } from './gateway-there.ts'

const text = { type: 'string' } as const
const values = readOptions(
  'node loadtest/every-command.ts [--devices 5000] [--duration-s 60] [--host 127.0.0.1] [--port 7000]\n' +
    '  [--api http://127.0.0.1:8080]',
  {
    devices: { ...text, default: '5000' },
    'duration-s': { ...text, default: '60' },
    host: { ...text, default: '127.0.0.1' },
    port: { ...text, default: '7000' },
    api: { ...text, default: 'http://127.0.0.1:8080' },
  },
)
const { host } = values
const port = wholeNumber('port', values.port, 1, 65_535)
const api = apiAddress(values.api)
const fleetOptions: FleetOptions = {
  ...FLEET_DEFAULTS,
  host,
  port,
  protocol: 'mix',
  devices: wholeNumber('devices', values.devices, 1),
  rampPerS: 1_000,
  durationS: wholeNumber('duration-s', values['duration-s'], 1, 86_400),
  ordersPerS: 20,
  chargeS: 15,
  seed: 41,
}
try {
  checkFleetOptions(fleetOptions)
} catch (error) {
  refuse((error as Error).message)
}
await gatewayMustBeThere('every-command', api, host, port)

interface Vector {
  readonly direction: string
  readonly hex: string
  readonly valid: boolean
  readonly fields: { readonly payloadError?: string }
}

/** One body per uplink of the table. */
function bodiesOf(protocol: Protocol): Map<Uplink, Uint8Array> {
  const path = new URL(`../src/protocols/${protocol.name}/corpus/vectors.json`, import.meta.url)
  const bodies = new Map<Uplink, Uint8Array>()
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  for (const { direction, hex, valid, fields } of JSON.parse(readFileSync(path, 'utf8')) as Vector[]) {
    const bytes = Buffer.from(hex, 'hex')
    const isFrame = bytes.length > 13 && valid && direction === 'up' && fields.payloadError === undefined
    if (!isFrame || bytes[0] === 0x38 || bytes[0] === 0x6c) continue
    protocol.readHead(bytes, 0, bytes.length, head)
    const command = protocol.uplinks.get(head.commandKey)
    if (command !== undefined && !bodies.has(command)) bodies.set(command, bytes.subarray(head.dataFrom, head.dataTo))
  }
  for (const command of protocol.uplinks.values()) if (!bodies.has(command)) bodies.set(command, inventedBody(command))
  return bodies
}

/** Nobody has published this one: an ack in a 1000 payload, a byte elsewhere. */
function inventedBody(command: Uplink): Uint8Array {
  try {
    return command.code === 0x1000 ? command.encode({ bkv: { ack: 1 } }) : Uint8Array.of(1)
  } catch {
    return Uint8Array.of(1)
  }
}

/** How often each uplink was counted, by `protocol command`. */
async function counted(): Promise<Map<string, number>> {
  const page = await (await fetch(`${api}/metrics`)).text()
  const seen = new Map<string, number>()
  for (const line of page.split('\n')) {
    const [, protocol, command, count] =
      /^pilegate_frames_total\{protocol="(\w+)",direction="uplink",command="(\w+)"\} (\d+)/.exec(line) ?? []
    if (protocol !== undefined) seen.set(`${protocol} ${command}`, Number(count))
  }
  return seen
}

const fleet = runFleet(fleetOptions)

for (const protocol of PROTOCOLS) {
  const deviceNo = protocol.name === 'bkv' ? 82_999_999_000_001 : 0x04fedc01
  const socket = connect({ host, port, noDelay: true })
  await once(socket, 'connect')
  socket.resume()
  let messageId = 1
  for (const [command, body] of bodiesOf(protocol)) {
    socket.write(protocol.encodeFrame('uplink', command, deviceNo, messageId++, body))
    // a session thread reads them one by one: no command hides another in one chunk
    await new Promise((done) => setTimeout(done, 20))
  }
  socket.end()
}

const { summary } = await fleet
await new Promise((done) => setTimeout(done, 500))
const seen = await counted()
let missing = 0
for (const protocol of PROTOCOLS)
  for (const command of protocol.uplinks.values()) {
    const count = seen.get(`${protocol.name} ${command.name}`) ?? 0
    if (count === 0) missing++
    const code = command.code.toString(16).padStart(protocol.name === 'bkv' ? 4 : 2, '0')
    const sub = command.sub === undefined ? '' : `/${command.sub.toString(16).padStart(2, '0')}`
    console.log(`${protocol.name.padEnd(7)} ${(code + sub).padEnd(10)} ${command.name.padEnd(28)} ${count}`)
  }
console.log(
  JSON.stringify({
    ...summary,
    uplink_commands: [...PROTOCOLS].reduce((sum, { uplinks }) => sum + uplinks.size, 0),
    never_seen: missing,
  }),
)
process.exit(missing === 0 && summary.errors === 0 ? 0 : 1)
