/**
 * What acceptor, session threads and main share about connections on their way: Int32 slots per shard, one 64-byte line
 * for each shard and word, counts mod 2^32.
 */
export const GATE = {
  /** Connections handed over by the acceptor, in order. */
  handed: { slot: 0, unit: 'count', writer: 'acceptor' },
  /** Of those, taken up by the session thread, in order; stored just before it takes the descriptor. */
  adopted: { slot: 16, unit: 'count', writer: 'session; main for a dead one' },
  /** Connections that have ended. */
  ended: { slot: 32, unit: 'count', writer: 'session; main for a dead one' },
} as const

export const GATE_SHARD_BYTES = 256
