/**
 * Connections that come and go, on real threads: SLOTS at a time, each one ICCID, a first frame in two segments with a
 * second one right behind, sometimes a third, then an end in one of three ways; every fifth comes as a device that is
 * still connected elsewhere, so that the older connection is taken over, on the same shard or on the other. Bystanders
 * stay connected all along and exchange heartbeats. The gateway's threads run in a process of their own, so that its
 * memory and descriptors are not those of the clients.
 *
 *   node src/testing/churn.ts [--connections 100000] [--driver epoll|net] [--slots 200] [--seed 1] [--resets 0.3]
 *
 * prints what `Churned` holds; the exit code is 1 when a byte went to the wrong device or a descriptor stayed open.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { anyNumber, oneOf, readOptions, wholeNumber } from '../config/command-line.ts'
import { dny } from './device-client.ts'
import { startSocketThreads } from './socket-threads.ts'

const USAGE =
  'node src/testing/churn.ts [--connections 100000] [--driver epoll|net] [--slots 200] [--seed 1] [--resets 0.3]'
const SHARDS = 2
const BYSTANDERS = 20
/** Fewer devices than cycles: what the gateway remembers of devices is bounded by them. */
const DEVICES = 2_000
const FIRST_DEVICE = 0x0431_0000
const FIRST_BYSTANDER = 0x0432_0000
/** A frame that does not come within this is missing. */
const REPLY_MS_MAX = 20_000

export interface Churned {
  readonly connections: number
  readonly replies: number
  /** Replies to another device or message, or frames that are none. */
  readonly mismatches: number
  /** Connections that ended without all their replies, though nobody took their device over. */
  readonly cutShort: number
  readonly takenOver: number
  readonly resets: number
  readonly seconds: number
  /** Of the gateway's process after a tenth, after half, and at the end. */
  readonly rssMiB: readonly number[]
  /** Open in the gateway's process before its threads started, while only bystanders were connected, after they ended. */
  readonly descriptors: { readonly before: number; readonly whileIdle: readonly number[]; readonly after: number }
  /** What the gate says is open when only the bystanders are left. */
  readonly openAtTheEnd: number
}

export interface ChurnOptions {
  readonly connections: number
  readonly driver: 'epoll' | 'net'
  readonly slots: number
  readonly seed: number
  /** Share of connections that end by a reset; the rest ends in order. */
  readonly resets: number
}

interface Served {
  readonly port: number
  readonly open: number
  readonly descriptors: number
  readonly rssMiB: number
}

/** The gateway's side: answers every message with how it stands, ends its threads on `stop`. */
async function serve(driver: 'epoll' | 'net'): Promise<void> {
  const descriptors = () => readdirSync('/proc/self/fd').length
  // what Node opens once for threads and sockets, and keeps
  await (await startSocketThreads(driver, 1)).stop()
  process.send!({ port: 0, open: 0, descriptors: descriptors(), rssMiB: 0 } satisfies Served)
  const threads = await startSocketThreads(driver, SHARDS)
  const tell = () =>
    process.send!({
      port: threads.supervisor.tcpPort,
      open: threads.gate.open,
      descriptors: descriptors(),
      rssMiB: Math.round(process.memoryUsage.rss() / 1_048_576),
    } satisfies Served)
  // who asked is gone: nobody else ends this
  const orphaned = () => process.exit(1)
  process.once('disconnect', orphaned)
  process.on('message', async (message) => {
    if (message === 'stop') {
      await threads.stop()
      await sleep(50)
      tell()
      // that it ends by itself from here is part of the claim
      process.off('disconnect', orphaned)
      process.disconnect()
    } else tell()
  })
  tell()
}

const beat = (device: number, messageId: number) => Buffer.from(dny(device, messageId, 0x21, '9808020000fc00'), 'hex')
const reply = (device: number, messageId: number) => Buffer.from(dny(device, messageId, 0x21, '00'), 'hex')

export async function churn({ connections, driver, slots, seed, resets: resetShare }: ChurnOptions): Promise<Churned> {
  const gateway = fork(fileURLToPath(import.meta.url), ['--serve', driver])
  // both may come while this process is busy: what is awaited later has been heard all the same
  const exited = once(gateway, 'exit')
  const heard: Served[] = []
  let isGone = false
  let wake = () => {}
  gateway.on('message', (message) => {
    heard.push(message as Served)
    wake()
  })
  gateway.once('disconnect', () => {
    isGone = true
    wake()
  })
  const told = async () => {
    while (heard.length === 0) {
      if (isGone) throw new Error("the gateway's process ended by itself")
      await new Promise<void>((resolve) => {
        wake = resolve
      })
    }
    return heard.shift()!
  }
  const ask = async (question: 'how' | 'stop') => {
    gateway.send(question)
    return await told()
  }
  const before = (await told()).descriptors
  const { port } = await told()
  let random = seed
  const chance = () => {
    random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0
    return random / 2 ** 32
  }
  let [started, replies, mismatches, cutShort, takenOver, resets] = [0, 0, 0, 0, 0, 0]
  /** Devices connected now, and by which connection last. */
  const holders = new Map<number, number>()
  const rss: number[] = []

  /** Resolves when all replies were heard, or the connection ended before. */
  const converse = (socket: Socket, device: number, messageIds: readonly number[]): Promise<boolean> =>
    new Promise((resolve) => {
      const expected = Buffer.concat(messageIds.map((messageId) => reply(device, messageId)))
      let heard = 0
      const late = setTimeout(() => end(false), REPLY_MS_MAX)
      const onClose = () => end(false)
      const end = (isWhole: boolean) => {
        clearTimeout(late)
        socket.off('close', onClose)
        socket.off('data', onData)
        resolve(isWhole)
      }
      const onData = (chunk: Buffer) => {
        if (expected.compare(chunk, 0, chunk.length, heard, Math.min(heard + chunk.length, expected.length)) !== 0)
          mismatches++
        const frames = (heard % 15) + chunk.length
        replies += Math.floor(frames / 15)
        heard += chunk.length
        if (heard >= expected.length) end(true)
      }
      socket.on('data', onData)
      socket.on('close', onClose)
    })

  async function cycle(): Promise<void> {
    const number = ++started
    const taken = chance() < 0.2 ? [...holders.keys()][Math.floor(chance() * holders.size)] : undefined
    const device = taken ?? FIRST_DEVICE + Math.floor(chance() * DEVICES)
    holders.set(device, number)
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    socket.on('error', () => {})
    const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()))
    // the ICCID decides the shard: the same device may come to the other one
    const iccid = `898604${String(Math.floor(chance() * 1e12)).padStart(14, '0')}`
    const [first, second] = [beat(device, 1), beat(device, 2)]
    const cut = 1 + Math.floor(chance() * (first.length - 1))
    const isLong = chance() < 0.3
    const [cutIccid, isReset] = [chance() < 0.3, chance() < resetShare]
    const whole = converse(socket, device, [1, 2])
    if (cutIccid) {
      socket.write(iccid.slice(0, 7))
      await sleep(1)
      socket.write(iccid.slice(7))
    } else socket.write(iccid)
    socket.write(first.subarray(0, cut))
    await sleep(0)
    socket.write(Buffer.concat([first.subarray(cut), second]))
    let isWhole = await whole
    if (isWhole && isLong) {
      const third = converse(socket, device, [3])
      socket.write(beat(device, 3))
      isWhole = await third
    }
    if (holders.get(device) === number) {
      if (!isWhole) cutShort++
      holders.delete(device)
    } else takenOver++
    if (isReset && !socket.destroyed) {
      resets++
      socket.resetAndDestroy()
    } else {
      socket.resume()
      socket.end()
    }
    await ended
  }

  // ---- bystanders ----------------------------------------------------------------------------------------------
  let isOver = false
  let beats = 0
  const bystanders = Array.from({ length: BYSTANDERS }, (_, index) => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    socket.on('error', () => {})
    socket.write(`898604${String(index).padStart(14, '0')}`)
    const device = FIRST_BYSTANDER + index
    const beating = (async () => {
      for (let messageId = 1; !isOver; messageId = (messageId % 60_000) + 1) {
        const whole = converse(socket, device, [messageId])
        socket.write(beat(device, messageId))
        if (!(await whole)) {
          cutShort++
          return
        }
        beats++
        await sleep(50)
      }
    })()
    return { socket, beating }
  })

  const whileIdle: number[] = []
  const startedMs = performance.now()
  for (const upTo of [0.1, 0.5, 1]) {
    const share = Math.round(connections * upTo)
    await Promise.all(
      Array.from({ length: slots }, async () => {
        while (started < share) await cycle()
      }),
    )
    for (let round = 0; round < 100 && (await ask('how')).open > BYSTANDERS; round++) await sleep(20)
    await sleep(50)
    const { rssMiB, descriptors } = await ask('how')
    rss.push(rssMiB)
    whileIdle.push(descriptors)
  }
  const seconds = (performance.now() - startedMs) / 1_000
  const openAtTheEnd = (await ask('how')).open
  isOver = true
  await Promise.all(bystanders.map(({ beating }) => beating))
  if (beats === 0) cutShort++
  for (const { socket } of bystanders) socket.destroy()
  const { descriptors: after } = await ask('stop')
  await exited
  return {
    connections: started,
    replies,
    mismatches,
    cutShort,
    takenOver,
    resets,
    seconds: Math.round(seconds * 10) / 10,
    rssMiB: rss,
    descriptors: { before, whileIdle, after },
    openAtTheEnd,
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // asked by `fork`, not by people
  const served = process.send !== undefined && process.argv[2] === '--serve' ? process.argv[3] : undefined
  if (served !== undefined) await serve(served === 'net' ? 'net' : 'epoll')
  else await run()
}

async function run(): Promise<void> {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    connections: { ...text, default: '100000' },
    driver: { ...text, default: 'epoll' },
    slots: { ...text, default: '200' },
    seed: { ...text, default: '1' },
    resets: { ...text, default: '0.3' },
  })
  const churned = await churn({
    connections: wholeNumber('connections', values.connections, 1),
    driver: oneOf('driver', values.driver, ['epoll', 'net']),
    slots: wholeNumber('slots', values.slots, 1, 10_000),
    seed: wholeNumber('seed', values.seed),
    resets: anyNumber('resets', values.resets, 0, 1),
  })
  console.log(JSON.stringify(churned))
  const isClean = churned.mismatches + churned.cutShort === 0 && churned.descriptors.after <= churned.descriptors.before
  process.exit(isClean ? 0 : 1)
}
