/**
 * The log of one thread: pino, one JSON object per line on standard output, with the fields ts, level, service, env,
 * thread, event (src/events/log-events.ts), msg and, inside a request, request_id.
 *
 * Each thread writes by itself: lines are collected to 4 KB and written whole, which keeps lines of several threads
 * apart on one pipe or append-mode file. pino's own exit hooks exist on the main thread only, so every thread must
 * `await closeLog()` before it ends, or its last lines are lost.
 */
import { writeSync } from 'node:fs'
import { type DestinationStream, destination, type Logger, pino } from 'pino'

export type Log = Logger

export interface LogOptions {
  readonly level: string
  readonly serviceName: string
  readonly env: string
  /** `main`, `acceptor`, `session-0`, `writer` .. */
  readonly thread: string
  /** File or descriptor; standard output by default. A file is opened for appending. */
  readonly to?: string | number
  /** Lines wait until `releaseLog`: at most HELD_LINES_MAX, then they go out. */
  readonly isHeld?: boolean
}

/** Paths are listed one by one: a wildcard matches one level only and costs more than the whole line. */
const SECRET_PATHS = [
  'secret',
  'password',
  'authorization',
  'apiKey',
  'apiKeys',
  'databaseUrl',
  'config.apiKeys',
  'config.databaseUrl',
  'headers.authorization',
  'headers["x-signature"]',
]
const WRITE_BYTES_MIN = 4_096
const FLUSH_MS = 1_000

interface OpenLog {
  readonly sink: ReturnType<typeof destination>
  readonly timer: NodeJS.Timeout
  isClosed: boolean
  /** Lines waiting for `releaseLog`; undefined when nothing is held. */
  held: string[] | undefined
}
const HELD_LINES_MAX = 1_000
const openLogs = new Set<OpenLog>()

/** Thread: any; one call per thread, children for everything finer. */
export function createLog({ level, serviceName, env, thread, to = 1, isHeld = false }: LogOptions): Log {
  const sink = destination({ dest: to, sync: false, minLength: WRITE_BYTES_MIN, append: true })
  // a reader that went away must not take the gateway along
  sink.on('error', () => {})
  const timer = setInterval(() => sink.flush(), FLUSH_MS)
  timer.unref()
  const open: OpenLog = { sink, timer, isClosed: false, held: isHeld ? [] : undefined }
  openLogs.add(open)
  const stream: DestinationStream & { flush(done: () => void): void; flushSync(): void } = {
    write(line) {
      if (open.held !== undefined) {
        open.held.push(line)
        if (open.held.length > HELD_LINES_MAX) releaseLog()
      } else if (!open.isClosed) sink.write(line)
      else if (typeof to === 'number') writeLate(to, line)
    },
    flush(done) {
      if (open.isClosed) done()
      else sink.flush(done)
    },
    // after fatal(); throws while the file is not open yet, and then nothing better can be done
    flushSync() {
      try {
        if (!open.isClosed) sink.flushSync()
      } catch {}
    },
  }
  return pino(
    {
      level,
      base: { service: serviceName, env, thread },
      timestamp: () => `,"ts":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      messageKey: 'msg',
      redact: { paths: SECRET_PATHS, censor: '***' },
    },
    stream,
  )
}

/**
 * Ends the holding of lines: what `first` logs comes before them. The gateway's first line says where it can be reached,
 * which is known only when everything else has been started and logged.
 */
export function releaseLog(first: () => void = () => {}): void {
  const holding = [...openLogs].filter(({ held }) => held !== undefined)
  const lines = holding.map((open) => ({ open, held: open.held! }))
  for (const { open } of lines) open.held = undefined
  first()
  for (const { open, held } of lines) {
    for (const line of held) open.sink.write(line)
    open.sink.flush()
  }
}

/** Said after closeLog by whoever was still busy: better out of order than an exception in the shutdown. */
function writeLate(descriptor: number, line: string): void {
  try {
    writeSync(descriptor, line)
  } catch {}
}

/**
 * Writes everything that was logged in this thread and closes it. Resolves when the last line is with the system, at
 * the latest after 2 s: a reader that does not read cannot hold the shutdown.
 */
export async function closeLog(): Promise<void> {
  await Promise.all([...openLogs].map(close))
}

async function close(open: OpenLog): Promise<void> {
  if (open.held !== undefined) releaseLog()
  openLogs.delete(open)
  clearInterval(open.timer)
  open.isClosed = true
  await new Promise<void>((resolve) => {
    const limit = setTimeout(resolve, 2_000)
    const done = () => {
      clearTimeout(limit)
      resolve()
    }
    open.sink.once('finish', done)
    open.sink.once('close', done)
    // one flush during a running write would return before the last partial buffer is written; end() does not
    open.sink.end()
  })
}
