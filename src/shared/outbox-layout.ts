/**
 * One outbox: the ring in which a session thread leaves rows of one lane for the database. Each shard has two, `ledger`
 * and `history` (src/rows/row.ts says which rows go where).
 *
 * A mailbox is the same ring the other way round: main produces, the session thread consumes.
 *
 * Control words are Int32 slots, one per 64-byte line so that the two threads do not share a cache line. Positions are
 * bytes (multiples of 8, so that a padding header always fits before the end) in an endless stream, kept mod 2^32 in
 * shared memory. Invariant, asserted at both ends: `(written - released) >>> 0 <= ringBytes`.
 */
export const OUTBOX = {
  /** Just past the last whole row. */
  written: { slot: 0, unit: 'position', writer: 'session' },
  /** Every byte before it is committed, spooled or put aside, without gaps: its space may be used again. */
  released: { slot: 16, unit: 'position', writer: 'main' },
  /** Rows ever written, mod 2^32. */
  rowsWritten: { slot: 32, unit: 'count', writer: 'session' },
  /** 1: main has seen everything and wants a message for the next row; 0: main is looking anyway. */
  isMainAsleep: { slot: 48, unit: 'flag', writer: 'both' },
} as const

export const OUTBOX_CONTROL_BYTES = 256

/** Every row begins with u16 kind, u16 reserved, u32 bytes that follow: all that the ring itself knows of a row. */
export const ROW_HEADER_BYTES = 8

/** Kind of a row that only fills the ring up to its end. */
export const PADDING_KIND = 0
