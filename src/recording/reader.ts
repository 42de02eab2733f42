/** Finds recorded frames of one device in a window of time. Any thread, any process; segments may still be growing. */
import { type FileHandle, open, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { FLAG, INDEX_ENTRY_BYTES, RECORD, SEGMENT_MS_MAX } from './segment-layout.ts'

/** Where a record stands among all records of its device: no two have the same, and none ever changes. */
export interface RecordedPlace {
  readonly atMs: number
  /** Of its segment, as `shard` is. */
  readonly openedMs: number
  readonly shard: number
  readonly offset: number
}

export interface RecordedFrame extends RecordedPlace {
  readonly isUplink: boolean
  readonly isError: boolean
  readonly bytes: Buffer
}

interface IndexEntry extends RecordedPlace {
  /** Of the whole record. */
  readonly bytes: number
}

/** A segment holds what came from at most this long before it was opened. */
const GATHERED_MS_MAX = 60_000

const byPlace = (a: RecordedPlace, b: RecordedPlace): number =>
  a.atMs - b.atMs || a.openedMs - b.openedMs || a.shard - b.shard || a.offset - b.offset

/**
 * @param limit at most this many, the first of the window
 * @param after only what stands behind it
 * @returns in order of time; records torn or damaged by a crash are left out
 */
export async function readRecorded(
  directory: string,
  deviceKey: number,
  fromMs: number,
  toMs: number,
  limit: number,
  after?: RecordedPlace,
): Promise<RecordedFrame[]> {
  const firstMs = Math.max(fromMs, after?.atMs ?? fromMs)
  const found: RecordedFrame[] = []
  /** Entries of the segments looked at; a later segment may still hold earlier ones. */
  let waiting: IndexEntry[] = []
  const segment = new OpenSegment(directory)
  /** Reads what is older than anything a further segment can hold. */
  async function read(beforeMs: number): Promise<void> {
    waiting.sort(byPlace)
    let count = 0
    for (const entry of waiting) {
      if (entry.atMs >= beforeMs || found.length >= limit) break
      count++
      const frame = await segment.read(entry)
      if (frame !== undefined) found.push(frame)
    }
    waiting = waiting.slice(count)
  }
  try {
    for (const { shard, openedMs } of await segmentsOf(directory)) {
      if (openedMs - GATHERED_MS_MAX > toMs || openedMs + SEGMENT_MS_MAX + GATHERED_MS_MAX < firstMs) continue
      await read(openedMs - GATHERED_MS_MAX)
      if (found.length >= limit) return found
      const index = await readFile(join(directory, `${shard}-${openedMs}.idx`))
      for (let at = 0; at + INDEX_ENTRY_BYTES <= index.length; at += INDEX_ENTRY_BYTES) {
        if (index.readDoubleLE(at) !== deviceKey) continue
        const atMs = index.readDoubleLE(at + 8)
        if (atMs < firstMs || atMs > toMs) continue
        const offset = index.readDoubleLE(at + 16)
        const entry = { atMs, openedMs, shard, offset, bytes: index.readUInt32LE(at + 24) }
        if (after === undefined || byPlace(entry, after) > 0) waiting.push(entry)
      }
    }
    await read(Number.POSITIVE_INFINITY)
    return found
  } finally {
    await segment.close()
  }
}

/** The oldest first. */
async function segmentsOf(directory: string): Promise<{ readonly shard: number; readonly openedMs: number }[]> {
  const names = await readdir(directory).catch(() => [] as string[])
  return names
    .flatMap((name) => {
      const [, shard, openedMs] = /^(\d+)-(\d+)\.idx$/.exec(name) ?? []
      return openedMs === undefined ? [] : [{ shard: Number(shard), openedMs: Number(openedMs) }]
    })
    .sort((a, b) => a.openedMs - b.openedMs || a.shard - b.shard)
}

/** Records of one segment after another: the next is mostly in the same. */
class OpenSegment {
  readonly #directory: string
  #name = ''
  #file: FileHandle | undefined

  constructor(directory: string) {
    this.#directory = directory
  }

  /** @returns undefined: torn or damaged */
  async read({ bytes, ...place }: IndexEntry): Promise<RecordedFrame | undefined> {
    const file = await this.#open(`${place.shard}-${place.openedMs}.seg`)
    const record = Buffer.alloc(bytes)
    const { bytesRead } = await file.read(record, 0, bytes, place.offset)
    if (bytesRead < bytes || record.readUInt32LE(0) !== bytes - RECORD.headBytes) return undefined
    if (record.readUInt32LE(4) !== crc32(record.subarray(RECORD.headBytes))) return undefined
    const flags = record[24]!
    return {
      ...place,
      isUplink: (flags & FLAG.uplink) !== 0,
      isError: (flags & FLAG.error) !== 0,
      bytes: record.subarray(RECORD.headBytes + RECORD.factsBytes),
    }
  }

  async #open(name: string): Promise<FileHandle> {
    if (this.#file !== undefined && this.#name === name) return this.#file
    await this.close()
    this.#file = await open(join(this.#directory, name), 'r')
    this.#name = name
    return this.#file
  }

  async close(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    await file?.close()
  }
}
