/** Finds recorded frames of one device in a window of time. Any thread, any process; segments may still be growing. */
import { open, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { FLAG, INDEX_ENTRY_BYTES, RECORD, SEGMENT_MS_MAX } from './segment-layout.ts'

export interface RecordedFrame {
  readonly atMs: number
  readonly isUplink: boolean
  readonly isError: boolean
  readonly bytes: Buffer
}

/**
 * @param limit at most this many, the first of the window
 * @returns in order of time; records torn or damaged by a crash are left out
 */
export async function readRecorded(
  directory: string,
  deviceKey: number,
  fromMs: number,
  toMs: number,
  limit: number,
): Promise<RecordedFrame[]> {
  const found: RecordedFrame[] = []
  const names = await readdir(directory).catch(() => [] as string[])
  for (const name of names.filter((one) => one.endsWith('.idx')).sort()) {
    const openedMs = Number(/-(\d+)\.idx$/.exec(name)?.[1])
    // a segment holds what came from shortly before it was opened until it was closed
    if (!(openedMs - 60_000 <= toMs && openedMs + SEGMENT_MS_MAX + 60_000 >= fromMs)) continue
    const index = await readFile(join(directory, name))
    const wanted: { offset: number; bytes: number }[] = []
    for (let at = 0; at + INDEX_ENTRY_BYTES <= index.length; at += INDEX_ENTRY_BYTES) {
      if (index.readDoubleLE(at) !== deviceKey) continue
      const atMs = index.readDoubleLE(at + 8)
      if (atMs < fromMs || atMs > toMs) continue
      wanted.push({ offset: index.readDoubleLE(at + 16), bytes: index.readUInt32LE(at + 24) })
      if (wanted.length >= limit) break
    }
    if (wanted.length === 0) continue
    const segment = await open(join(directory, name.replace(/idx$/, 'seg')), 'r')
    try {
      for (const { offset, bytes } of wanted) {
        const record = Buffer.alloc(bytes)
        const { bytesRead } = await segment.read(record, 0, bytes, offset)
        if (bytesRead < bytes || record.readUInt32LE(0) !== bytes - RECORD.headBytes) continue
        if (record.readUInt32LE(4) !== crc32(record.subarray(RECORD.headBytes))) continue
        const flags = record[24]!
        found.push({
          atMs: record.readDoubleLE(16),
          isUplink: (flags & FLAG.uplink) !== 0,
          isError: (flags & FLAG.error) !== 0,
          bytes: record.subarray(RECORD.headBytes + RECORD.factsBytes),
        })
      }
    } finally {
      await segment.close()
    }
  }
  return found.sort((a, b) => a.atMs - b.atMs).slice(0, limit)
}
