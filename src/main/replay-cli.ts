/**
 * `npm run replay -- --device ID [--from TIME] [--to TIME] [--to-host H --to-port P] [--speed N]`: lists recorded frames
 * of a device beside their decoding, or sends its uplinks to a gateway (a sandbox, not the one that recorded them) with
 * their original pauses, N times as fast. Ends with 1 when nothing was recorded, or nobody takes it.
 */
import { once } from 'node:events'
import { connect } from 'node:net'
import { join, resolve } from 'node:path'
import { deviceKey, type Protocol } from '../codec/protocol.ts'
import { anyNumber, fail, readConfig, readOptions, refuse, time, wholeNumber } from '../config/command-line.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import { explain } from '../recording/explain.ts'
import { type RecordedFrame, readRecorded } from '../recording/reader.ts'

const FRAMES_MAX = 100_000
/** For answers to the last uplinks. */
const LISTEN_MS = 1_000
const NOTHING = '(RECORD is off, or nothing in that window)'
const USAGE = 'npm run replay -- --device ID [--from RFC3339] [--to RFC3339] [--to-host H --to-port P] [--speed N]'

async function run(): Promise<number> {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    device: text,
    from: text,
    to: text,
    'to-host': text,
    'to-port': text,
    speed: { ...text, default: '1' },
  })
  if (values.device === undefined) return refuse('--device is missing', USAGE)
  const found = parseAnyDeviceId(values.device) ?? refuse(`--device ${values.device}: not a device id`)
  const fromMs = values.from === undefined ? 0 : time('from', values.from)
  const toMs = values.to === undefined ? Date.now() : time('to', values.to)
  const speed = anyNumber('speed', values.speed, 0.001)
  const port = values['to-port'] === undefined ? undefined : wholeNumber('to-port', values['to-port'], 1, 65_535)
  // a listing was not what was meant
  if (port === undefined && values['to-host'] !== undefined) return refuse('--to-host needs --to-port', USAGE)
  const { dataDir } = await readConfig()
  const key = deviceKey(found.protocol, found.deviceNo)
  const frames = await readRecorded(join(resolve(dataDir), 'frames'), key, fromMs, toMs, FRAMES_MAX)
  if (port === undefined) return list(found.protocol, frames)
  const uplinks = frames.filter(({ isUplink }) => isUplink)
  if (uplinks.length === 0) {
    console.error(`no recorded uplinks ${NOTHING}`)
    return 1
  }
  return await send(uplinks, values['to-host'] ?? '127.0.0.1', port, speed)
}

function list(protocol: Protocol, frames: readonly RecordedFrame[]): number {
  for (const { atMs, isUplink, bytes } of frames) {
    const { command, fields } = explain(protocol, bytes, isUplink)
    const at = new Date(atMs).toISOString()
    console.log(`${at} ${isUplink ? '>' : '<'} ${command} ${bytes.toString('hex')} ${JSON.stringify(fields)}`)
  }
  console.error(frames.length > 0 ? `${frames.length} frames` : `0 frames ${NOTHING}`)
  return frames.length > 0 ? 0 : 1
}

/** @throws the system's error when nobody listens */
async function send(uplinks: readonly RecordedFrame[], host: string, port: number, speed: number): Promise<number> {
  const socket = connect({ host, port, noDelay: true })
  let answers = 0
  socket.on('data', (chunk) => {
    answers += chunk.length
  })
  await once(socket, 'connect')
  // `close` follows
  socket.on('error', () => {})
  const startedMs = Date.now()
  let sent = 0
  for (const { atMs, bytes } of uplinks) {
    const dueMs = startedMs + (atMs - uplinks[0]!.atMs) / speed
    if (dueMs > Date.now()) await new Promise((done) => setTimeout(done, dueMs - Date.now()))
    if (!socket.writable) break
    socket.write(bytes)
    sent++
  }
  await new Promise((done) => setTimeout(done, LISTEN_MS))
  socket.end()
  if (sent < uplinks.length) console.error('replay: the other end closed the connection')
  console.error(`${sent} of ${uplinks.length} uplinks sent, ${answers} bytes answered`)
  return sent < uplinks.length ? 1 : 0
}

try {
  process.exitCode = await run()
} catch (error) {
  fail('replay', error)
}
