/**
 * Writes frames of both directions to segment files. Thread: session, one recorder each. Records gather in memory and
 * leave in one write per flush; a crash loses at most what gathered since (evidence, never a settlement).
 */
import { closeSync, mkdirSync, openSync, readdirSync, rmSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { FLAG, INDEX_ENTRY_BYTES, RECORD, SEGMENT_BYTES_MAX, SEGMENT_MS_MAX } from './segment-layout.ts'

export interface RecorderOptions {
  readonly directory: string
  readonly shard: number
  /** Over all segments of this shard. */
  readonly bytesMax: number
  readonly onError: (error: unknown) => void
}

/** Gathered this much, it is written without waiting for the next flush. */
const GATHER_BYTES = 262_144

export class Recorder {
  readonly #options: RecorderOptions
  readonly #records = Buffer.allocUnsafeSlow(GATHER_BYTES + 8_192)
  #recordsBytes = 0
  readonly #index = Buffer.allocUnsafeSlow(((GATHER_BYTES + 8_192) / 32) * INDEX_ENTRY_BYTES)
  #indexBytes = 0
  #segment = -1
  #segmentIndex = -1
  #offset = 0
  #openedMs = 0

  constructor(options: RecorderOptions) {
    this.#options = options
    mkdirSync(options.directory, { recursive: true })
  }

  /** @param bytes `from..to` is one frame or a run of noise, at most 4,100 bytes of it are kept */
  record(deviceKey: number, nowMs: number, flags: number, bytes: Uint8Array, from: number, to: number): void {
    const frameBytes = Math.min(to - from, 4_100)
    const whole = RECORD.headBytes + RECORD.factsBytes + frameBytes
    if (this.#recordsBytes + whole > this.#records.length) this.flush(nowMs)
    const at = this.#recordsBytes
    const records = this.#records
    records.writeUInt32LE(whole - RECORD.headBytes, at)
    records.writeDoubleLE(deviceKey, at + 8)
    records.writeDoubleLE(nowMs, at + 16)
    records.fill(0, at + 24, at + 32)
    records[at + 24] = flags
    records.set(bytes.subarray(from, from + frameBytes), at + 32)
    records.writeUInt32LE(crc32(records.subarray(at + 8, at + whole)), at + 4)
    const entry = this.#indexBytes
    this.#index.writeDoubleLE(deviceKey, entry)
    this.#index.writeDoubleLE(nowMs, entry + 8)
    this.#index.writeDoubleLE(this.#offset + at, entry + 16)
    this.#index.writeUInt32LE(whole, entry + 24)
    this.#index.writeUInt32LE(flags, entry + 28)
    this.#recordsBytes += whole
    this.#indexBytes += INDEX_ENTRY_BYTES
    if (this.#recordsBytes >= GATHER_BYTES) this.flush(nowMs)
  }

  /** Writes what gathered. Call it about once a second. */
  flush(nowMs: number): void {
    if (this.#recordsBytes === 0) return
    try {
      if (this.#segment < 0) this.#open(nowMs)
      writeSync(this.#segment, this.#records, 0, this.#recordsBytes)
      // the record is there before an index entry points at it
      writeSync(this.#segmentIndex, this.#index, 0, this.#indexBytes)
    } catch (error) {
      this.#options.onError(error)
    }
    this.#offset += this.#recordsBytes
    this.#recordsBytes = 0
    this.#indexBytes = 0
    if (this.#offset >= SEGMENT_BYTES_MAX || nowMs - this.#openedMs >= SEGMENT_MS_MAX) this.#closeSegment()
  }

  #open(nowMs: number): void {
    const { directory, shard, bytesMax } = this.#options
    const mine = new RegExp(`^${shard}-\\d+\\.seg$`)
    const segments = readdirSync(directory)
      .filter((name) => mine.test(name))
      .sort()
    let bytes = segments.reduce((sum, name) => sum + statSync(join(directory, name)).size, 0)
    while (segments.length > 0 && bytes + SEGMENT_BYTES_MAX > bytesMax) {
      const oldest = join(directory, segments.shift()!)
      bytes -= statSync(oldest).size
      rmSync(oldest, { force: true })
      rmSync(oldest.replace(/seg$/, 'idx'), { force: true })
    }
    // thirteen digits sort as they count until the year 2286
    const path = join(directory, `${shard}-${nowMs}`)
    this.#segment = openSync(`${path}.seg`, 'a')
    this.#segmentIndex = openSync(`${path}.idx`, 'a')
    this.#openedMs = nowMs
    // records gathered before the segment was opened carry offsets from its start
  }

  #closeSegment(): void {
    if (this.#segment < 0) return
    closeSync(this.#segment)
    closeSync(this.#segmentIndex)
    this.#segment = -1
    this.#segmentIndex = -1
    this.#offset = 0
  }

  close(nowMs: number): void {
    this.flush(nowMs)
    this.#closeSegment()
  }
}

/** `all`: every frame. `errors`: what could not be understood, and its neighbourhood is not kept. */
export function isRecorded(mode: 'all' | 'errors' | 'off', flags: number): boolean {
  return mode === 'all' || (mode === 'errors' && (flags & FLAG.error) !== 0)
}
