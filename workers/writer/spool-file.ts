/**
 * Spool files: rows that wait on disk while the database is away. A record is `u32 length, u32 CRC-32 of the bytes`
 * (little-endian), then the bytes: whole rows as they lay in the outbox. Thread: writer, synchronous on purpose: the
 * thread has nothing else to do, and its answer says that the bytes are on disk.
 */
import { closeSync, fdatasyncSync, fstatSync, ftruncateSync, openSync, readSync, writevSync } from 'node:fs'
import { crc32 } from 'node:zlib'

const RECORD_HEADER_BYTES = 8
/** Far above any span; a larger length is not a length of ours. */
const RECORD_BYTES_MAX = 64 * 1024 * 1024

/**
 * Appends one record and syncs it. After an error the file is as it was, as far as the disk still takes orders.
 *
 * @param bytes 1..64 Mi bytes
 * @returns where the record starts and ends
 * @throws system errors (ENOSPC, EIO ..)
 */
export function appendRecord(path: string, bytes: Uint8Array): { from: number; to: number } {
  if (bytes.length === 0 || bytes.length > RECORD_BYTES_MAX)
    throw new RangeError(`spool record of ${bytes.length} bytes: allowed are 1 to ${RECORD_BYTES_MAX}`)
  const header = Buffer.alloc(RECORD_HEADER_BYTES)
  header.writeUInt32LE(bytes.length, 0)
  header.writeUInt32LE(crc32(bytes), 4)
  const fd = openSync(path, 'a', 0o600)
  try {
    const from = fstatSync(fd).size
    try {
      const wanted = RECORD_HEADER_BYTES + bytes.length
      const written = writevSync(fd, [header, bytes])
      // A disk that fills up takes a part and says so only the next time.
      if (written !== wanted) throw Object.assign(new Error(`${written} of ${wanted} bytes`), { code: 'ENOSPC' })
      fdatasyncSync(fd)
      return { from, to: from + wanted }
    } catch (error) {
      try {
        ftruncateSync(fd, from)
      } catch {
        // The disk's first complaint is the one to report; a torn tail is told from records when draining.
      }
      throw error
    }
  } finally {
    closeSync(fd)
  }
}

export type SpoolRecord =
  | { readonly state: 'whole' | 'corrupt'; readonly bytes: Uint8Array; readonly next: number }
  /** Nothing behind `from`. */
  | { readonly state: 'end' }
  /** Something behind `from` that is no whole record. */
  | { readonly state: 'torn' }

/** Reads the record that starts at `from`. @throws system errors */
export function readRecord(path: string, from: number): SpoolRecord {
  const fd = openSync(path, 'r')
  try {
    const left = fstatSync(fd).size - from
    if (left <= 0) return { state: 'end' }
    const header = Buffer.alloc(RECORD_HEADER_BYTES)
    if (left < RECORD_HEADER_BYTES || readSync(fd, header, 0, RECORD_HEADER_BYTES, from) < RECORD_HEADER_BYTES)
      return { state: 'torn' }
    const length = header.readUInt32LE(0)
    // Zeros are what a crash leaves where the size was written and the data was not.
    if (length === 0 || length > RECORD_BYTES_MAX || RECORD_HEADER_BYTES + length > left) return { state: 'torn' }
    const bytes = new Uint8Array(length)
    let filled = 0
    while (filled < length) {
      const count = readSync(fd, bytes, filled, length - filled, from + RECORD_HEADER_BYTES + filled)
      if (count === 0) return { state: 'torn' }
      filled += count
    }
    const isWhole = crc32(bytes) === header.readUInt32LE(4)
    return { state: isWhole ? 'whole' : 'corrupt', bytes, next: from + RECORD_HEADER_BYTES + length }
  } finally {
    closeSync(fd)
  }
}
