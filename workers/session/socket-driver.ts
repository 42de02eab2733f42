/**
 * What a session thread needs of sockets, and nothing of how they are moved. Two drivers stand behind it: `net`
 * (net-driver.ts, portable) and `epoll` (issue "At the machine's limit"). socket-driver.suite.ts tests any driver.
 *
 * Thread: one driver per session thread; all calls and all events on that thread. Events come in batches: some
 * `readable`, `writable`, `closed`, then one `batchEnd`, at which the caller flushes what it holds.
 */

/** Small integer, unique among the open connections of this driver; used again after `closed` or `close`. */
export type ConnectionId = number

export interface SocketEvents {
  /**
   * Bytes came in.
   * @param chunk a view of the driver's own buffer, good during this call only; 1..65,536 bytes
   */
  readable(connection: ConnectionId, chunk: Uint8Array): void
  /** Everything queued for this connection has gone out after it had been pending. */
  writable(connection: ConnectionId): void
  /** The other side ended or broke the connection. Not told for connections closed by `close`. */
  closed(connection: ConnectionId, reason: 'peer_closed' | 'peer_reset'): void
  /** Everything that was ready has been told. */
  batchEnd(): void
}

export interface SocketDriver {
  /**
   * Takes over a connected, non-blocking TCP descriptor; from now on the driver closes it.
   * @throws when the descriptor is no usable socket; it stays with the caller
   */
  adopt(descriptor: number): ConnectionId
  /**
   * Queues bytes; they leave with everything else of this batch in one write. They are looked at during the call only.
   * Reading stops by itself while much is pending, so that a device that does not read cannot fill our memory.
   * @returns false when more than outboundBytesMax would wait: nothing was queued, the caller closes
   */
  send(connection: ConnectionId, bytes: Uint8Array): boolean
  /** No `readable` for this connection until `resumeReading`. Idempotent. */
  stopReading(connection: ConnectionId): void
  resumeReading(connection: ConnectionId): void
  /** The gateway stops: nothing is read any more, pending output still goes out. */
  stopReadingAll(): void
  /** Bytes queued or written and not yet taken by the kernel. */
  pendingBytes(connection: ConnectionId): number
  /** Writes what is queued as far as the kernel takes it now, then closes. No event follows. Idempotent. */
  close(connection: ConnectionId): void
  /** Connections open now. */
  readonly open: number
  /** Closes everything; resolves when every descriptor is given back, after at most `withinMs` for pending bytes. */
  stop(withinMs: number): Promise<void>
}

export interface SocketDriverOptions {
  /** Bytes that may wait for one connection. */
  readonly outboundBytesMax: number
}

export type MakeSocketDriver = (events: SocketEvents, options: SocketDriverOptions) => SocketDriver
