/**
 * `npm run replay -- --device ID [--from TIME] [--to TIME] [--to-host H --to-port P] [--speed N]`: lists recorded frames
 * of a device beside their decoding, or sends its uplinks to a gateway (a sandbox, not the one that recorded them) with
 * their original pauses, N times as fast.
 */
import { connect } from 'node:net'
import { join, resolve } from 'node:path'
import { deviceKey } from '../codec/protocol.ts'
import { readOptions } from '../config/command-line.ts'
import { loadConfig } from '../config/config.ts'
import { parseAnyDeviceId } from '../protocols/index.ts'
import { explain } from '../recording/explain.ts'
import { readRecorded } from '../recording/reader.ts'

const FRAMES_MAX = 100_000
const USAGE = 'npm run replay -- --device ID [--from RFC3339] [--to RFC3339] [--to-host H --to-port P] [--speed N]'

async function run(): Promise<number> {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    device: text,
    from: text,
    to: text,
    'to-host': text,
    'to-port': text,
    speed: text,
  })
  const found = values.device === undefined ? undefined : parseAnyDeviceId(values.device)
  const fromMs = values.from === undefined ? 0 : Date.parse(values.from)
  const toMs = values.to === undefined ? Date.now() : Date.parse(values.to)
  const speed = Number(values.speed ?? 1)
  if (found === undefined || Number.isNaN(fromMs) || Number.isNaN(toMs) || !(speed > 0)) {
    console.error(USAGE)
    return 2
  }
  const directory = join(resolve(loadConfig().dataDir), 'frames')
  const frames = await readRecorded(directory, deviceKey(found.protocol, found.deviceNo), fromMs, toMs, FRAMES_MAX)
  if (values['to-port'] === undefined) {
    for (const { atMs, isUplink, bytes } of frames) {
      const { command, fields } = explain(found.protocol, bytes, isUplink)
      const at = new Date(atMs).toISOString()
      console.log(`${at} ${isUplink ? '>' : '<'} ${command} ${bytes.toString('hex')} ${JSON.stringify(fields)}`)
    }
    console.error(`${frames.length} frames`)
    return frames.length > 0 ? 0 : 1
  }
  const uplinks = frames.filter(({ isUplink }) => isUplink)
  if (uplinks.length === 0) {
    console.error('no recorded uplinks in that window')
    return 1
  }
  const socket = connect({ host: values['to-host'] ?? '127.0.0.1', port: Number(values['to-port']), noDelay: true })
  let answers = 0
  socket.on('data', (chunk) => {
    answers += chunk.length
  })
  await new Promise<void>((done, failed) => socket.once('connect', done).once('error', failed))
  const startedMs = Date.now()
  for (const { atMs, bytes } of uplinks) {
    const dueMs = startedMs + (atMs - uplinks[0]!.atMs) / speed
    if (dueMs > Date.now()) await new Promise((done) => setTimeout(done, dueMs - Date.now()))
    socket.write(bytes)
  }
  await new Promise((done) => setTimeout(done, 1_000))
  socket.end()
  console.error(`${uplinks.length} uplinks sent, ${answers} bytes answered`)
  return 0
}

process.exitCode = await run()
