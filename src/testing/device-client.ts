/**
 * A scripted device: a TCP client that sends what the test wrote by hand and waits for frames. It frames what it hears
 * by the documents (AP3000 2, BKV 2) and shares nothing with `src/protocols`: what the gateway's codec misreads, a
 * client with the same codec would misread too.
 */
import { createConnection, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

const REPLY_WITHIN_MS = 5_000

/** One DNY frame as heard. */
export interface Dny {
  readonly hex: string
  readonly physId: number
  readonly messageId: number
  readonly command: number
  readonly dataHex: string
}

/** AP3000 2: `DNY`, length, physId, msgId, cmd, data, sum; little-endian. */
export function dny(physId: number, messageId: number, command: number, dataHex = ''): string {
  const data = Buffer.from(dataHex, 'hex')
  const frame = Buffer.alloc(14 + data.length)
  frame.write('DNY', 0, 'latin1')
  frame.writeUInt16LE(9 + data.length, 3)
  frame.writeUInt32LE(physId, 5)
  frame.writeUInt16LE(messageId, 9)
  frame[11] = command
  data.copy(frame, 12)
  let sum = 0
  for (const byte of frame.subarray(0, 12 + data.length)) sum += byte
  frame.writeUInt16LE(sum & 0xffff, 12 + data.length)
  return frame.toString('hex')
}

/** Unsigned little-endian, as hex. */
export const le = (value: number, bytes: 1 | 2 | 4): string => {
  const out = Buffer.alloc(bytes)
  out.writeUIntLE(value, 0, bytes)
  return out.toString('hex')
}

/** AP3000 7, 03 in its live size of 35 bytes; figures in the units of the wire. */
export function settlementData(order: {
  readonly orderHex: string
  readonly durationS?: number
  readonly maxPowerDw?: number
  readonly energy10Wh?: number
  /** From 0. */
  readonly port?: number
  readonly startMode?: number
  readonly cardHex?: string
  readonly stopReason?: number
  readonly sentS?: number
}): string {
  return (
    le(order.durationS ?? 3_600, 2) +
    le(order.maxPowerDw ?? 2_000, 2) +
    le(order.energy10Wh ?? 20, 2) +
    le(order.port ?? 0, 1) +
    le(order.startMode ?? 1, 1) +
    (order.cardHex ?? '00000000') +
    le(order.stopReason ?? 1, 1) +
    order.orderHex +
    le(1_900, 2) +
    le(order.sentS ?? Math.floor(Date.now() / 1_000), 4)
  )
}

/** 20 ASCII characters as hex (AP3000 1). */
export const iccidHex = (iccid: string): string => Buffer.from(iccid, 'latin1').toString('hex')

const open = new Set<DeviceClient>()

/** Ends every client of this test file: call it in `after`. */
export function closeClients(): void {
  for (const client of open) client.destroy()
}

export class DeviceClient {
  readonly socket: Socket
  readonly frames: Dny[] = []
  /** Everything heard, as it came. */
  heardHex = ''
  /** Resolves when the connection is over, with why: `end`, or the error's code. */
  readonly closed: Promise<string>
  isClosed = false
  #unread = Buffer.alloc(0)
  #taken = 0
  #wake: () => void = () => {}

  private constructor(socket: Socket) {
    this.socket = socket
    open.add(this)
    let why = 'end'
    socket.on('error', (error: NodeJS.ErrnoException) => {
      why = error.code ?? error.message
    })
    socket.on('data', (chunk) => this.#heard(chunk))
    this.closed = new Promise((resolve) => {
      socket.on('close', () => {
        this.isClosed = true
        open.delete(this)
        this.#wake()
        resolve(why)
      })
    })
  }

  static async connect(port: number): Promise<DeviceClient> {
    const socket = createConnection({ host: '127.0.0.1', port, noDelay: true })
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    return new DeviceClient(socket)
  }

  send(...hex: string[]): void {
    this.socket.write(Buffer.from(hex.join(''), 'hex'))
  }

  #heard(chunk: Buffer): void {
    this.heardHex += chunk.toString('hex')
    this.#unread = Buffer.concat([this.#unread, chunk])
    for (;;) {
      const at = this.#unread.indexOf('DNY', 0, 'latin1')
      if (at < 0 || this.#unread.length < at + 5) break
      const end = at + 5 + this.#unread.readUInt16LE(at + 3)
      if (this.#unread.length < end) break
      const frame = this.#unread.subarray(at, end)
      this.frames.push({
        hex: frame.toString('hex'),
        physId: frame.readUInt32LE(5),
        messageId: frame.readUInt16LE(9),
        command: frame[11]!,
        dataHex: frame.toString('hex', 12, frame.length - 2),
      })
      this.#unread = this.#unread.subarray(end)
    }
    this.#wake()
  }

  /** The next frame that nobody has taken yet. @throws when none comes in time or the connection ends */
  async next(withinMs = REPLY_WITHIN_MS): Promise<Dny> {
    const until = performance.now() + withinMs
    for (;;) {
      const frame = this.frames[this.#taken]
      if (frame !== undefined) {
        this.#taken++
        return frame
      }
      const leftMs = until - performance.now()
      if (this.isClosed) throw new Error('the connection ended, no frame came')
      if (leftMs <= 0) throw new Error(`no frame within ${withinMs} ms; heard ${this.heardHex || 'nothing'}`)
      await this.#change(leftMs)
    }
  }

  /** Sends and takes the answer. */
  async exchange(hex: string, withinMs = REPLY_WITHIN_MS): Promise<Dny> {
    this.send(hex)
    return await this.next(withinMs)
  }

  /** @returns frames that came within the time and that nobody expected */
  async silence(ms: number): Promise<readonly Dny[]> {
    await sleep(ms)
    const unexpected = this.frames.slice(this.#taken)
    this.#taken = this.frames.length
    return unexpected
  }

  /** @throws when the gateway does not close the connection in time */
  async closedWithin(ms: number): Promise<string> {
    const why = await Promise.race([this.closed, sleep(ms, undefined, { ref: false })])
    if (why === undefined) throw new Error(`the connection is still open after ${ms} ms`)
    return why
  }

  #change(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  /** A polite end, as a device that reboots in order. */
  async end(): Promise<void> {
    this.socket.end()
    await this.closed
  }

  destroy(): void {
    this.socket.destroy()
  }
}
