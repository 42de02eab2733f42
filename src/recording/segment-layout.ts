/**
 * Recorded bytes on disk: `DATA_DIR/frames/<shard>-<opened ms>.seg`, append-only, and beside it `.idx` with one entry
 * per record, so that one device's minutes are found without reading everybody's.
 *
 * Record, little-endian: u32 bytes of the rest, u32 crc32 of the rest, then f64 device key, f64 at (ms since the
 * epoch), u8 flags, 7 bytes zero, the frame. Index entry: f64 device key, f64 at, f64 offset of the record, u32 bytes
 * of the whole record, u32 flags.
 */
export const RECORD = { headBytes: 8, factsBytes: 24 } as const
export const INDEX_ENTRY_BYTES = 32
export const FLAG = { uplink: 1, error: 2 } as const

/** A segment is closed at this size or age; whole segments are deleted, oldest first, above RECORD_BYTES_MAX. */
export const SEGMENT_BYTES_MAX = 67_108_864
export const SEGMENT_MS_MAX = 3_600_000
