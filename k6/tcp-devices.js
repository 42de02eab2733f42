// Raw TCP piles (AP3000): each VU is one connection that registers, beats, and settles a charge every few beats, and
// compares every reply byte for byte. Needs k6 with `k6/x/tcp`: npm run k6 builds one (k6/tcp), or use the official
// extension; both have the few names that are used here. The fleet simulator (npm run fleet) is the tool for thousands
// of piles with a life of their own; this is for who has k6 in his pipelines.
//   TCP=127.0.0.1:7000 npm run k6 -- tcp-devices
import { check } from 'k6'
import exec from 'k6/execution'
import { Counter, Rate, Trend } from 'k6/metrics'
import tcp from 'k6/x/tcp'

const [HOST, PORT] = (__ENV.TCP || '127.0.0.1:7000').split(':')
const PILES = Number(__ENV.PILES || 300)
const RUN_MS = Number(__ENV.RUN_S || 20) * 1000
const BEAT_MS = 1_000
/** Every n-th beat is a settlement. */
const SETTLE_EVERY = 5
const GRACE_MS = 5_000

export const options = {
  scenarios: {
    piles: {
      executor: 'per-vu-iterations',
      vus: PILES,
      iterations: 1,
      maxDuration: `${(RUN_MS + GRACE_MS) / 1000 + 30}s`,
    },
  },
  thresholds: {
    // from the time at which a frame was due: what k6 itself is late counts
    reply_ms: ['p(50)<50', 'p(99)<1000'],
    settlement_ack_ms: ['p(99)<2000'],
    replies_good: ['rate==1'],
    settlements_acked: ['rate==1'],
    checks: ['rate==1'],
  },
}

const sent = new Counter('frames_sent')
const replyMs = new Trend('reply_ms', true)
const ackMs = new Trend('settlement_ack_ms', true)
const good = new Rate('replies_good')
const acked = new Rate('settlements_acked')

/** `DNY`, length, id, message id, command, data, sum: all least significant byte first. */
function dny(id, messageId, command, data) {
  const bytes = new Uint8Array(14 + data.length)
  const view = new DataView(bytes.buffer)
  bytes.set([0x44, 0x4e, 0x59])
  view.setUint16(3, 9 + data.length, true)
  view.setUint32(5, id, true)
  view.setUint16(9, messageId, true)
  bytes[11] = command
  bytes.set(data, 12)
  view.setUint16(12 + data.length, sumOf(bytes, 0, 12 + data.length), true)
  return bytes
}

function sumOf(bytes, from, to) {
  let sum = 0
  for (let at = from; at < to; at++) sum += bytes[at]
  return sum & 0xffff
}

/** 35 bytes of an offline order that ended; its number is of this pile, this run and this settlement alone. */
function settlement(id, nowS, count) {
  const data = new Uint8Array(35)
  const view = new DataView(data.buffer)
  view.setUint16(0, 1_800, true)
  view.setUint16(2, 2_000, true)
  view.setUint16(4, 10, true)
  data[6] = count % 2
  data[12] = 1
  view.setUint32(13, nowS, true)
  view.setUint32(17, id, true)
  view.setUint32(21, count, true)
  data[28] = 0x30
  view.setUint16(29, 2_000, true)
  view.setUint32(31, nowS, true)
  return data
}

export default async function () {
  // recognition code 04; numbers the fleet simulator does not use
  const id = 0x04f00000 + exec.vu.idInTest
  const socket = new tcp.Socket()
  const awaited = new Map()
  let messageId = 0
  let rest = new Uint8Array(0)
  let isOurs = false
  let why = ''
  let settlements = 0
  let settled = 0

  const frame = (bytes) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    const command = bytes[11]
    // what the gateway asks by itself (parameters, a query) is no reply and waits for nothing
    if (command >= 0x30) return
    const key = command * 65_536 + view.getUint16(9, true)
    const asked = awaited.get(key)
    awaited.delete(key)
    const isSound =
      view.getUint32(5, true) === id && sumOf(bytes, 0, bytes.length - 2) === view.getUint16(bytes.length - 2, true)
    // 20, 21 and 03 are answered by one byte 0, 22 by the time
    const isAnswer =
      command === 0x22
        ? bytes.length === 18 && Math.abs(view.getUint32(12, true) - Date.now() / 1000) < 30
        : bytes.length === 15 && bytes[12] === 0
    good.add(asked !== undefined && isSound && isAnswer)
    if (asked === undefined) return
    if (command === 0x03) {
      settled++
      ackMs.add(Date.now() - asked)
    } else replyMs.add(Date.now() - asked)
  }

  const ask = (command, data, dueMs) => {
    messageId = (messageId % 65_535) + 1
    // whole ms, as the clock that the answer is timed with
    awaited.set(command * 65_536 + messageId, Math.floor(dueMs))
    sent.add(1)
    socket.write(dny(id, messageId, command, data).buffer).catch((error) => {
      why = `${error}`
    })
  }

  socket.on('data', (data) => {
    const chunk = new Uint8Array(data)
    const bytes = new Uint8Array(rest.length + chunk.length)
    bytes.set(rest)
    bytes.set(chunk, rest.length)
    let at = 0
    while (bytes.length - at >= 5) {
      const frameBytes = 5 + bytes[at + 3] + 256 * bytes[at + 4]
      if (bytes.length - at < frameBytes) break
      frame(bytes.subarray(at, at + frameBytes))
      at += frameBytes
    }
    rest = bytes.slice(at)
  })
  socket.on('error', (error) => {
    why = `${error}`
  })
  const closed = new Promise((resolve) => socket.on('close', resolve))
  try {
    await socket.connect(Number(PORT), HOST)
  } catch {
    check(null, { connected: () => false })
    return
  }
  await socket.write(`898604${String(id).padStart(14, '0')}`)
  ask(0x20, [0x80, 0x02, 2, 0, 0x1f, 0], Date.now())
  ask(0x22, [], Date.now())

  const startMs = Date.now()
  const phaseMs = Math.random() * BEAT_MS
  let beats = 0
  const beat = () => {
    const dueMs = startMs + phaseMs + beats * BEAT_MS
    if (dueMs - startMs > RUN_MS) return finish(dueMs + GRACE_MS)
    beats++
    if (beats % SETTLE_EVERY === 0) {
      settlements++
      ask(0x03, settlement(id, Math.floor(Date.now() / 1000), beats), dueMs)
    } else ask(0x21, [0x98, 0x08, 2, 0, 0, 0, 93], dueMs)
    // open loop: the next beat is due whatever this one took
    setTimeout(beat, Math.max(0, startMs + phaseMs + beats * BEAT_MS - Date.now()))
  }
  const finish = (untilMs) => {
    if (awaited.size > 0 && Date.now() < untilMs && why === '') {
      setTimeout(() => finish(untilMs), 50)
      return
    }
    isOurs = true
    socket.destroy()
  }
  setTimeout(beat, phaseMs)
  await closed
  for (let index = 0; index < settlements; index++) acked.add(index < settled)
  check(null, {
    connected: () => true,
    'closed by us': () => isOurs,
    'every question answered': () => awaited.size === 0,
    'no error': () => why === '',
  })
}
