/**
 * The C library by FFI (koffi): the few calls that sockets need beyond node:net. Linux only; `netOnlyReason` says why
 * epoll cannot be used here, after trying it. Nobody builds logic on errno (io-design 8.4): between the call and the
 * question something else may have set it; it only goes into messages.
 *
 * Addresses of buffers are passed as numbers, which saves an allocation per call: the caller keeps the buffer alive and
 * off the JavaScript heap (`Buffer.allocUnsafeSlow`), where it does not move.
 */
import { readFileSync } from 'node:fs'
import { endianness } from 'node:os'
import { getSystemErrorName } from 'node:util'
import koffi from 'koffi'

export const EPOLLIN = 0x1
export const EPOLLOUT = 0x4
export const EPOLLERR = 0x8
export const EPOLLHUP = 0x10
export const EPOLLRDHUP = 0x2000
export const EPOLLET = 0x8000_0000

const EPOLL_CTL_ADD = 1
const EPOLL_CTL_DEL = 2
const EPOLL_CTL_MOD = 3
const EPOLL_CLOEXEC = 0x80000
const EFD_CLOEXEC_NONBLOCK = 0x80800
const F_DUPFD_CLOEXEC = 1030

const AF_INET = 2
const AF_INET6 = 10
const SOCK_STREAM_CLOEXEC_NONBLOCK = 1 | 0x80000 | 0x800
const SOL_SOCKET = 1
const SO_REUSEADDR = 2
const SO_KEEPALIVE = 9
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const TCP_KEEPIDLE = 4
const TCP_KEEPINTVL = 5
const TCP_KEEPCNT = 6
const TCP_USER_TIMEOUT = 18
const MSG_PEEK = 0x2
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000

/** A device that answers nothing for this long is gone: probes after 60 s of silence, every 15 s, four of them. */
const KEEPALIVE_IDLE_S = 60
const KEEPALIVE_INTERVAL_S = 15
const KEEPALIVE_PROBES = 4
/** The same for bytes that stay unacknowledged. */
const USER_TIMEOUT_MS = 120_000

// glibc and musl differ in the name; the first that loads is this machine's
function loadLibc() {
  const names = ['libc.so.6', `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`, 'libc.so']
  for (const name of names) {
    try {
      return koffi.load(name)
    } catch {}
  }
  throw new Error(`no C library among ${names.join(', ')}: sockets cannot change threads on this system`)
}

const library = loadLibc()
// lazy: where epoll does not exist, looking for it must not keep the net driver from loading
function lazily<F extends (...args: never[]) => number>(definition: string): F {
  let found: F | undefined
  return ((...args: Parameters<F>) => {
    found ??= library.func(definition) as unknown as F
    return found(...args)
  }) as F
}

const fcntl = library.func('int fcntl(int fd, int command, ...)') as (
  fd: number,
  command: number,
  ...rest: unknown[]
) => number
/** @returns a second descriptor of the same file, from 3; -1: none can be had */
export const duplicate = (fd: number): number => fcntl(fd, F_DUPFD_CLOEXEC, 'int', 3)
export const closeDescriptor = library.func('int close(int fd)') as (fd: number) => number

const epollCreate1 = lazily<(flags: number) => number>('int epoll_create1(int flags)')
const epollCtlCall = lazily<(set: number, operation: number, fd: number, event: number) => number>(
  'int epoll_ctl(int set, int operation, int fd, uintptr_t event)',
)
const eventfdCall = lazily<(initial: number, flags: number) => number>('int eventfd(unsigned int initial, int flags)')
const eventfdWrite = lazily<(fd: number, value: number) => number>('int eventfd_write(int fd, uint64_t value)')
const socketCall = lazily<(domain: number, type: number, protocol: number) => number>(
  'int socket(int domain, int type, int protocol)',
)
const bindCall = lazily<(fd: number, address: Buffer, bytes: number) => number>(
  'int bind(int fd, void *address, unsigned int bytes)',
)
const listenCall = lazily<(fd: number, backlog: number) => number>('int listen(int fd, int backlog)')
const getsocknameCall = lazily<(fd: number, address: Buffer, bytes: Buffer) => number>(
  'int getsockname(int fd, void *address, void *bytes)',
)
const accept4Call = lazily<(fd: number, address: Buffer, bytes: Buffer, flags: number) => number>(
  'int accept4(int fd, void *address, void *bytes, int flags)',
)
const setsockoptCall = lazily<(fd: number, level: number, name: number, value: Buffer, bytes: number) => number>(
  'int setsockopt(int fd, int level, int name, void *value, unsigned int bytes)',
)
const getsockoptCall = lazily<(fd: number, level: number, name: number, value: Buffer, bytes: Buffer) => number>(
  'int getsockopt(int fd, int level, int name, void *value, void *bytes)',
)

// The hot three are bound once and called without a wrapper.
const hot = process.platform === 'linux' ? library : undefined
const epollWaitCall = hot?.func('int epoll_wait(int set, uintptr_t events, int count, int timeout)') as
  | ((set: number, events: number, count: number, timeout: number) => number)
  | undefined
const recvCall = hot?.func('long recv(int fd, uintptr_t bytes, unsigned long count, int flags)') as
  | ((fd: number, bytes: number, count: number, flags: number) => number)
  | undefined
const sendCall = hot?.func('long send(int fd, uintptr_t bytes, unsigned long count, int flags)') as
  | ((fd: number, bytes: number, count: number, flags: number) => number)
  | undefined

/** Address of an off-heap buffer, to be passed to the calls below while the buffer is kept. */
export const addressOf = (buffer: Buffer): number => Number(koffi.address(buffer))

/** What the last failed call said, for messages only. */
const lastError = (): string => {
  const errno = koffi.errno()
  return errno > 0 ? getSystemErrorName(-errno) : 'unknown error'
}

// ---- epoll -------------------------------------------------------------------------------------------------------

/**
 * `struct epoll_event` is packed on x64 (12 bytes) and aligned elsewhere (16 bytes): 32-bit words per event, and where
 * the data begins. The events themselves are word 0.
 */
const EVENT_WORDS = process.arch === 'x64' ? 3 : 4
const DATA_WORD = process.arch === 'x64' ? 1 : 2

/** @throws when the process has no descriptor left */
export function createEpollSet(): number {
  const set = epollCreate1(EPOLL_CLOEXEC)
  if (set < 0) throw new Error(`epoll_create1: ${lastError()}`)
  return set
}

const ctlEvent = Buffer.allocUnsafeSlow(16)
const ctlWords = new Int32Array(ctlEvent.buffer, ctlEvent.byteOffset, 4)
const ctlAddress = addressOf(ctlEvent)

function epollCtl(operation: number, set: number, fd: number, generation: number, events: number): boolean {
  ctlWords[0] = events
  ctlWords[DATA_WORD] = fd
  ctlWords[DATA_WORD + 1] = generation
  return epollCtlCall(set, operation, fd, ctlAddress) === 0
}

/**
 * Every descriptor is watched under its number and a generation, which `EpollEvents` gives back.
 * @returns false: it is not open, cannot be watched or is in the set already
 */
export const watch = (set: number, fd: number, generation: number, events: number): boolean =>
  epollCtl(EPOLL_CTL_ADD, set, fd, generation, events)
export const rewatch = (set: number, fd: number, generation: number, events: number): boolean =>
  epollCtl(EPOLL_CTL_MOD, set, fd, generation, events)
export const unwatch = (set: number, fd: number): boolean => epollCtl(EPOLL_CTL_DEL, set, fd, 0, 0)

/** A static array of events, filled by `wait`, read by index without allocating. */
export class EpollEvents {
  readonly #buffer: Buffer
  readonly #words: Int32Array
  readonly #address: number
  readonly #count: number

  constructor(count: number) {
    this.#buffer = Buffer.allocUnsafeSlow(count * EVENT_WORDS * 4)
    this.#words = new Int32Array(this.#buffer.buffer, this.#buffer.byteOffset, count * EVENT_WORDS)
    this.#address = addressOf(this.#buffer)
    this.#count = count
  }

  /** Blocks the calling thread. @returns events that are ready; 0 after `timeoutMs` or an interruption */
  wait(set: number, timeoutMs: number): number {
    const ready = epollWaitCall!(set, this.#address, this.#count, timeoutMs)
    return Math.max(ready, 0)
  }

  events(index: number): number {
    return this.#words[index * EVENT_WORDS]!
  }

  descriptor(index: number): number {
    return this.#words[index * EVENT_WORDS + DATA_WORD]!
  }

  generation(index: number): number {
    return this.#words[index * EVENT_WORDS + DATA_WORD + 1]!
  }
}

/** @throws when the process has no descriptor left */
export function createEventfd(): number {
  const fd = eventfdCall(0, EFD_CLOEXEC_NONBLOCK)
  if (fd < 0) throw new Error(`eventfd: ${lastError()}`)
  return fd
}

/** Makes an eventfd readable. */
export const ring = (eventfd: number): void => {
  eventfdWrite(eventfd, 1)
}

// ---- bytes -------------------------------------------------------------------------------------------------------

/** @returns bytes read, 0 when the other side ended, negative when there is nothing now or the socket is broken */
export const receive = (fd: number, address: number, bytesMax: number): number =>
  recvCall!(fd, address, bytesMax, MSG_DONTWAIT)
/** The same; the bytes stay in the kernel. */
export const peek = (fd: number, address: number, bytesMax: number): number =>
  recvCall!(fd, address, bytesMax, MSG_PEEK | MSG_DONTWAIT)
/** @returns bytes taken by the kernel; negative when it takes none now or the socket is broken */
export const transmit = (fd: number, address: number, bytes: number): number =>
  sendCall!(fd, address, bytes, MSG_DONTWAIT | MSG_NOSIGNAL)

// ---- sockets -----------------------------------------------------------------------------------------------------

const optionValue = Buffer.allocUnsafeSlow(4)
const optionBytes = Buffer.allocUnsafeSlow(4)

function setOption(fd: number, level: number, name: number, value: number): boolean {
  optionValue.writeInt32LE(value)
  return setsockoptCall(fd, level, name, optionValue, 4) === 0
}

const DEVICE_OPTIONS = {
  noDelay: [IPPROTO_TCP, TCP_NODELAY, 1],
  keepAlive: [SOL_SOCKET, SO_KEEPALIVE, 1],
  keepAliveIdleS: [IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S],
  keepAliveIntervalS: [IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S],
  keepAliveProbes: [IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES],
  userTimeoutMs: [IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS],
} as const

/**
 * No Nagle, and a peer that vanished is noticed. On a listening socket all connections accepted from it inherit that.
 * @returns false: no TCP socket
 */
export function setDeviceOptions(fd: number): boolean {
  for (const [level, name, value] of Object.values(DEVICE_OPTIONS)) if (!setOption(fd, level, name, value)) return false
  return true
}

/** What `setDeviceOptions` sets, as the kernel has it; for tests. */
export function deviceOptions(fd: number): Record<keyof typeof DEVICE_OPTIONS, { is: number; wanted: number }> {
  return Object.fromEntries(
    Object.entries(DEVICE_OPTIONS).map(([key, [level, name, wanted]]) => {
      optionBytes.writeInt32LE(4)
      const isRead = getsockoptCall(fd, level, name, optionValue, optionBytes) === 0
      return [key, { is: isRead ? optionValue.readInt32LE() : -1, wanted }]
    }),
  ) as Record<keyof typeof DEVICE_OPTIONS, { is: number; wanted: number }>
}

const SOCKADDR_BYTES = 28
const sockaddr = Buffer.allocUnsafeSlow(SOCKADDR_BYTES)
const sockaddrBytes = Buffer.allocUnsafeSlow(4)

/**
 * @param address IPv4 or IPv6, no name
 * @returns the listening descriptor and its port
 * @throws with the system's word for what is wrong (EADDRINUSE)
 */
export function listenOn(address: string, port: number, backlog: number): { descriptor: number; port: number } {
  const isV6 = address.includes(':')
  const fd = socketCall(isV6 ? AF_INET6 : AF_INET, SOCK_STREAM_CLOEXEC_NONBLOCK, 0)
  if (fd < 0) throw new Error(`socket ${lastError()}`)
  const fail = (call: string): never => {
    const error = new Error(`${call} ${lastError()}: ${address}:${port}`)
    closeDescriptor(fd)
    throw error
  }
  sockaddr.fill(0)
  sockaddr.writeUInt16LE(isV6 ? AF_INET6 : AF_INET, 0)
  sockaddr.writeUInt16BE(port, 2)
  for (const [index, byte] of addressBytes(address).entries()) sockaddr[(isV6 ? 8 : 4) + index] = byte
  setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1)
  setDeviceOptions(fd)
  if (bindCall(fd, sockaddr, isV6 ? 28 : 16) !== 0) fail('bind')
  if (listenCall(fd, backlog) !== 0) fail('listen')
  sockaddrBytes.writeInt32LE(SOCKADDR_BYTES)
  if (getsocknameCall(fd, sockaddr, sockaddrBytes) !== 0) fail('getsockname')
  return { descriptor: fd, port: sockaddr.readUInt16BE(2) }
}

function addressBytes(address: string): Uint8Array {
  if (!address.includes(':')) return Uint8Array.from(address.split('.'), Number)
  // the URL parser writes eight groups of at most four digits, one run of zeros as ::
  const canonical = new URL(`http://[${address}]/`).hostname.slice(1, -1)
  const [head = '', tail] = canonical.split('::')
  const groups = (part: string) => (part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16)))
  const [before, after] = [groups(head), groups(tail ?? '')]
  const all = [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after]
  return Uint8Array.from(all.flatMap((group) => [group >> 8, group & 0xff]))
}

/** Where `accept` leaves the address of the other side: struct sockaddr_in or _in6. */
export const acceptedFrom: Uint8Array = sockaddr
export const isAcceptedFromV6 = (): boolean => sockaddr.readUInt16LE(0) === AF_INET6

/** @returns a connected, non-blocking descriptor; negative when nobody waits or none can be had */
export function accept(listener: number): number {
  sockaddrBytes.writeInt32LE(SOCKADDR_BYTES)
  return accept4Call(listener, sockaddr, sockaddrBytes, SOCK_STREAM_CLOEXEC_NONBLOCK & ~1)
}

// ---- may this machine? -------------------------------------------------------------------------------------------

/** Descriptors this process may have; undefined: not known. */
export function descriptorsMax(): number | undefined {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1]
    return soft === undefined ? undefined : Number(soft)
  } catch {
    return undefined
  }
}

/**
 * Tries epoll with two eventfds: do the calls exist, and is the event laid out as this file says?
 * @returns undefined: epoll can be used; otherwise why not
 */
export function netOnlyReason(): string | undefined {
  if (process.platform !== 'linux') return `no epoll on ${process.platform}`
  if ((process.arch !== 'x64' && process.arch !== 'arm64') || endianness() !== 'LE')
    return `layout of epoll events not known on ${process.arch}`
  const opened: number[] = []
  try {
    const set = createEpollSet()
    opened.push(set)
    const events = new EpollEvents(4)
    for (const generation of [0x1234_5678, -2]) {
      const fd = createEventfd()
      opened.push(fd)
      if (!watch(set, fd, generation, EPOLLIN)) return `epoll_ctl: ${lastError()}`
      ring(fd)
    }
    const ready = events.wait(set, 100)
    const told = Array.from({ length: ready }, (_, at) => [
      events.descriptor(at),
      events.generation(at),
      events.events(at),
    ])
    const wanted = [
      [opened[1], 0x1234_5678, EPOLLIN],
      [opened[2], -2, EPOLLIN],
    ]
    const inOrder = (rows: (number | undefined)[][]) => JSON.stringify(rows.sort(([a], [b]) => a! - b!))
    if (inOrder(told) !== inOrder(wanted)) return `epoll events are laid out in another way: ${JSON.stringify(told)}`
    return undefined
  } catch (error) {
    return (error as Error).message
  } finally {
    for (const fd of opened) closeDescriptor(fd)
  }
}
