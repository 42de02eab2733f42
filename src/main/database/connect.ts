/** How every thread opens its connections to PostgreSQL. */
import net from 'node:net'
import postgres from 'postgres'

/** bigint columns arrive as numbers while they are safe integers, else as bigint. */
export type Sql = postgres.Sql<{ bigint: number | bigint }>
/** The same inside `sql.begin`. */
export type TransactionSql = postgres.TransactionSql<{ bigint: number | bigint }>

export interface ConnectOptions {
  /** Connections at most, 1..200. */
  readonly max: number
  /** Seen in pg_stat_activity; default `pilegate`. */
  readonly applicationName?: string
  /** The server cancels (57014) a statement that runs longer; 0 = never; default 30,000. */
  readonly statementTimeoutMs?: number
  /** A connection attempt that takes longer is given up; default 10,000. */
  readonly connectTimeoutMs?: number
  /** Settings of the server for each of these connections, such as `synchronous_commit`. */
  readonly settings?: Readonly<Record<string, string>>
}

interface SocketOptions {
  readonly host: readonly string[]
  readonly port: readonly number[]
  readonly path: string | false
}

/**
 * Opens a pool; no connection is made before the first query, and lost ones are replaced by themselves.
 *
 * Thread: any. Queries while the server is away reject within milliseconds (`ECONNREFUSED`); the first query after a
 * restart may still reject with `57P01`, and a rejected write may have been committed: write idempotently and retry.
 * Always close with `sql.end({ timeout })`: without a timeout it may wait for long.
 */
export function connect(url: string, options: ConnectOptions): Sql {
  const writes: PendingWrites = { mayBe: true }
  const settings = {
    max: options.max,
    // A connection that ends by itself after half an hour would end inside a writer's batch.
    max_lifetime: null,
    connect_timeout: (options.connectTimeoutMs ?? 10_000) / 1000,
    // The driver's own back-off grows to 20 s; a gateway whose acks wait for commits has to be back sooner. Constant,
    // because the driver counts attempts by an argument that `openSocket` has to withhold.
    backoff: () => 0.05,
    onnotice: () => {},
    types: { bigint: { to: 20, from: [20], serialize: String, parse: safeInteger } },
    connection: {
      application_name: options.applicationName ?? 'pilegate',
      statement_timeout: options.statementTimeoutMs ?? 30_000,
      TimeZone: 'UTC',
      ...options.settings,
    },
    socket: (socketOptions: SocketOptions) => openSocket(socketOptions, writes),
    // The driver calls this before it buffers a query; see PendingWrites.
    debug: () => {
      writes.mayBe = true
    },
  }
  const sql = postgres(url, settings) as unknown as Sql
  return Object.assign(sql, { begin: beginWithoutLateRollback(sql.begin as unknown as Begin) }) as Sql
}

type Work = (tx: TransactionSql) => Promise<unknown>
type Begin = (...args: [Work] | [string, Work]) => Promise<unknown>

/**
 * Driver 3.4.9 answers a transaction whose connection has closed with a rollback on that connection, whose socket is
 * null by then: an uncaught TypeError out of `setImmediate`, which ends the thread. So such a failure is kept from it:
 * the driver's own race rejects the transaction when it sees the close, with the same error.
 */
function beginWithoutLateRollback(begin: Begin): Begin {
  return (...args) => {
    const work = args.pop() as Work
    const guarded: Work = async (tx) => {
      try {
        const result = work(tx)
        return await (Array.isArray(result) ? Promise.all(result) : result)
      } catch (error) {
        if (databaseErrorCode(error) === 'CONNECTION_CLOSED') return await new Promise<never>(() => {})
        throw error
      }
    }
    return begin(...([...args, guarded] as unknown as [Work]))
  }
}

function safeInteger(digits: string): number | bigint {
  const value = Number(digits)
  return Number.isSafeInteger(value) ? value : BigInt(digits)
}

/**
 * Whether the driver may hold bytes that it writes at the next `setImmediate`.
 *
 * When a socket closes in between, driver 3.4.9 cancels that write but still counts it as pending: the next connection
 * would never send its first byte (read in its `closed` and `write`). So `close` waits until that write has run.
 */
interface PendingWrites {
  mayBe: boolean
}

/**
 * The driver never sets noDelay, which costs up to 88 ms for a small batch (Nagle against delayed ack).
 *
 * The socket is returned before it connects: the driver attaches its handlers one microtask later, and an attempt that
 * fails at once would otherwise raise an unhandled error, or leave the driver waiting for a close it never sees.
 */
function openSocket({ host, port, path }: SocketOptions, writes: PendingWrites): net.Socket {
  const socket = new net.Socket()
  writes.mayBe = true
  // Answers make the driver write too (authentication).
  socket.on('data', () => {
    writes.mayBe = true
  })
  const emit = socket.emit.bind(socket) as (name: string | symbol, ...args: unknown[]) => boolean
  socket.emit = (name: string | symbol, ...args: unknown[]): boolean => {
    if (name !== 'close') return emit(name, ...args)
    // `false`, whatever happened: told of an error, driver 3.4.9 takes every query for rejected already, and one that
    // was sent between `error` and `close` would wait for ever (every other time when a connection was cut).
    if (!writes.mayBe) return emit('close', false)
    writes.mayBe = false
    setImmediate(() => socket.emit('close', false))
    return true
  }
  // Read by the driver for the server name of TLS.
  Object.assign(socket, { host: host[0], port: port[0] })
  setImmediate(() => {
    if (socket.destroyed) return
    try {
      if (path) socket.connect({ path })
      else socket.connect({ host: host[0] ?? '127.0.0.1', port: port[0] ?? 5432, noDelay: true })
    } catch (error) {
      // A port that is none throws here, where nobody would catch it.
      socket.destroy(error as Error)
    }
  })
  return socket
}

/**
 * Did the server refuse (SQLSTATE)? Then nothing was committed; of a connection that broke nobody knows. Codes of the
 * driver and of sockets are words: EPIPE has five letters too, and no digit.
 */
export const isServerError = (error: unknown) => /^(?=.*\d)[0-9A-Z]{5}$/.test(databaseErrorCode(error) ?? '')

/** SQLSTATE (`57P01`), system (`ECONNREFUSED`) or driver (`CONNECTION_CLOSED`) code of a rejected query, else undefined. */
export function databaseErrorCode(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : undefined
}
