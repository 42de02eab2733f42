/**
 * What the threads that move sockets by epoll share (workers/session/epoll-driver.ts, workers/acceptor/epoll-acceptor.ts
 * and the supervisor): a door per thread, then one record per descriptor of the process, found by its number.
 *
 * A door wakes its thread out of epoll_wait. Int32 slots; `posts` and `isAsleep` on lines of their own.
 */
export const DOOR = {
  /** Messages posted to the thread, mod 2^32: it does not sleep over one it has not seen. */
  posts: { slot: 0, unit: 'count', writer: 'any' },
  /** 1: the thread blocks, or is about to; whoever takes the flag down owes it a write to its eventfd. */
  isAsleep: { slot: 16, unit: 'flag', writer: 'any' },
  /** 1: a session thread serves this door's shard. */
  isServed: { slot: 17, unit: 'flag', writer: 'main' },
} as const
export const DOOR_BYTES = 128

/**
 * One descriptor of a device's connection. Only the thread named by `state` writes: the acceptor until it has handed the
 * connection over, then the session thread of the shard, then, when that thread is dead, main.
 */
export const SOCKET = {
  /** SOCKET_STATE in the low 8 bits, the shard above. Set to `free` before the descriptor is closed, never after. */
  state: { slot: 0, unit: 'state' },
  /** Counts the connections that had this descriptor; upper half of the epoll event data. */
  generation: { slot: 1, unit: 'count' },
  /** Index of the protocol. */
  protocol: { slot: 2, unit: 'index' },
  /** 4 or 6, 0 when nobody knows, and the port of the device above bit 16. */
  familyAndPort: { slot: 3, unit: 'number' },
  /** Float64: epoch taken at accept. */
  birth: { slot: 4, unit: 'epoch' },
  /** 4 or 16 bytes, in network order. */
  address: { slot: 6, unit: 'bytes' },
} as const
export const SOCKET_BYTES = 64

export const SOCKET_STATE = {
  /** Not a connection of a device, as far as this table knows. */
  free: 0,
  /** With the acceptor: it has not said who it is. */
  stranger: 1,
  /** In the epoll set of its shard, which has not seen it. */
  handed: 2,
  /** With the session thread. */
  adopted: 3,
  /** Let go by the session thread, which closes it at the end of its batch. */
  closing: 4,
} as const
export type SocketState = (typeof SOCKET_STATE)[keyof typeof SOCKET_STATE]
