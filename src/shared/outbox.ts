/**
 * The only file that touches the memory of an outbox. One producer (the session thread of the shard), one consumer
 * (main), bytes read a third time by the writer that inserts them.
 */
import { OUTBOX, OUTBOX_CONTROL_BYTES, PADDING_KIND, ROW_HEADER_BYTES } from './outbox-layout.ts'

const WORD = 2 ** 32

/**
 * @param ringBytes a power of two, at least four of the largest rows
 * @param position where its stream of bytes begins, a multiple of 8
 */
export function allocateOutbox(ringBytes: number, position = 0): SharedArrayBuffer {
  if (ringBytes < 1024 || (ringBytes & (ringBytes - 1)) !== 0)
    throw new RangeError(`outbox of ${ringBytes} bytes: not a power of two`)
  const memory = new SharedArrayBuffer(OUTBOX_CONTROL_BYTES + ringBytes)
  const words = new Int32Array(memory, 0, OUTBOX_CONTROL_BYTES / 4)
  Atomics.store(words, OUTBOX.isMainAsleep.slot, 1)
  Atomics.store(words, OUTBOX.written.slot, (position % WORD) | 0)
  Atomics.store(words, OUTBOX.released.slot, (position % WORD) | 0)
  return memory
}

/** What `append` answers when the ring has no room: an answer, never a wait. */
export const OUTBOX_FULL = -1

export class OutboxProducer {
  readonly #words: Int32Array
  readonly #ring: Uint8Array
  readonly #view: DataView
  readonly #ringBytes: number
  /** Endless position just past the last appended row; ahead of the shared word until `publish`. */
  #written: number
  #published: number
  #rows = 0

  /**
   * Thread: session.
   * @param position where the stream stands: 0 for a new outbox, main's answer when a dead shard is replaced
   */
  constructor(memory: SharedArrayBuffer, position = 0) {
    this.#words = new Int32Array(memory, 0, OUTBOX_CONTROL_BYTES / 4)
    this.#ring = new Uint8Array(memory, OUTBOX_CONTROL_BYTES)
    this.#view = new DataView(memory, OUTBOX_CONTROL_BYTES)
    this.#ringBytes = this.#ring.length
    this.#written = position
    this.#published = position
  }

  /**
   * Appends one encoded row. Not visible to main before `publish`.
   *
   * Thread: session (sole producer). Cost: one copy, no allocation.
   * @param row whole row as built by `encodeRow`, a multiple of 8 bytes
   * @returns position just past the row, which is durable once main says so, or OUTBOX_FULL: nothing was written
   */
  append(row: Uint8Array): number {
    const index = this.#written % this.#ringBytes
    const left = this.#ringBytes - index
    const padding = row.length <= left ? 0 : left
    const used = (this.#written - Atomics.load(this.#words, OUTBOX.released.slot)) >>> 0
    if (used > this.#ringBytes) throw new Error(`outbox invariant: ${used} bytes used of ${this.#ringBytes}`)
    if (used + padding + row.length > this.#ringBytes) return OUTBOX_FULL
    if (padding > 0) {
      this.#view.setUint16(index, PADDING_KIND, true)
      this.#view.setUint32(index + 4, padding - ROW_HEADER_BYTES, true)
      this.#written += padding
    }
    this.#ring.set(row, this.#written % this.#ringBytes)
    this.#written += row.length
    this.#rows++
    return this.#written
  }

  /**
   * Makes everything appended so far visible to main. Once per batch of chunks.
   *
   * Thread: session.
   * @returns true when main sleeps and must be told; the flag is taken, so exactly one message is owed
   */
  publish(): boolean {
    if (this.#published === this.#written) return false
    this.#published = this.#written
    Atomics.add(this.#words, OUTBOX.rowsWritten.slot, this.#rows)
    this.#rows = 0
    // publishes the rows: main reads `written` before it reads the ring
    Atomics.store(this.#words, OUTBOX.written.slot, (this.#written % WORD) | 0)
    return Atomics.exchange(this.#words, OUTBOX.isMainAsleep.slot, 0) === 1
  }

  /** Endless position just past the last appended row, published or not. */
  get position(): number {
    return this.#written
  }
}

/** A run of whole rows, contiguous in memory, without padding. Indexes count from the start of `memory`. */
export interface Span {
  readonly memory: SharedArrayBuffer
  readonly fromIndex: number
  readonly toIndex: number
  /** Endless positions of the same bytes; `toPosition` includes padding that follows. */
  readonly fromPosition: number
  readonly toPosition: number
  readonly rows: number
}

export class OutboxConsumer {
  readonly memory: SharedArrayBuffer
  readonly #words: Int32Array
  readonly #view: DataView
  readonly #ringBytes: number
  #taken: number
  #released: number
  #rowsReleased = 0

  /**
   * Thread: main; of a mailbox the session thread.
   * @param position where to begin: 0, or what the producer had published when this one takes over from a dead one
   */
  constructor(memory: SharedArrayBuffer, position = 0) {
    this.#taken = position
    this.#released = position
    this.memory = memory
    this.#words = new Int32Array(memory, 0, OUTBOX_CONTROL_BYTES / 4)
    this.#view = new DataView(memory, OUTBOX_CONTROL_BYTES)
    this.#ringBytes = memory.byteLength - OUTBOX_CONTROL_BYTES
    // a consumer that replaces a dead one begins behind what that one left unread
    Atomics.store(this.#words, OUTBOX.released.slot, (position % WORD) | 0)
    this.#rowsReleased = Atomics.load(this.#words, OUTBOX.rowsWritten.slot) >>> 0
  }

  /** Endless position of the last whole row the producer published. */
  get written(): number {
    const word = Atomics.load(this.#words, OUTBOX.written.slot) >>> 0
    return this.#taken + ((word - (this.#taken % WORD)) >>> 0)
  }

  /** Endless position just past the last span handed out by `take`. */
  get taken(): number {
    return this.#taken
  }

  /** Endless position before which all space was given back. */
  get released(): number {
    return this.#released
  }

  /** Rows written and not released. */
  get rowsPending(): number {
    return (Atomics.load(this.#words, OUTBOX.rowsWritten.slot) - this.#rowsReleased) >>> 0
  }

  /** Bytes published and not released, padding included. */
  get bytesPending(): number {
    return this.written - this.#released
  }

  /**
   * Takes the next rows that lie together, in order.
   *
   * Thread: main.
   * @param bytesMax stop before this many bytes, but take at least one row
   * @returns undefined when everything published is taken
   */
  take(bytesMax: number, rowsMax: number): Span | undefined {
    const written = this.written
    let at = this.#taken
    const index = (position: number) => position % this.#ringBytes
    const isPadding = (position: number) => this.#view.getUint16(index(position), true) === PADDING_KIND
    const unitBytes = (position: number) => ROW_HEADER_BYTES + this.#view.getUint32(index(position) + 4, true)
    if (at < written && isPadding(at)) at += unitBytes(at)
    if (at === written) {
      // padding alone cannot be the last thing written: a row always follows it
      return undefined
    }
    const from = at
    let rows = 0
    while (at < written && rows < rowsMax && !isPadding(at)) {
      const next = at + unitBytes(at)
      if (rows > 0 && next - from > bytesMax) break
      at = next
      rows++
      if (index(at) === 0) break
    }
    if (at > written) throw new Error(`outbox invariant: row ends at ${at}, written ${written}`)
    this.#taken = at
    const fromIndex = OUTBOX_CONTROL_BYTES + index(from)
    return {
      memory: this.memory,
      fromIndex,
      toIndex: fromIndex + (at - from),
      fromPosition: from,
      toPosition: at,
      rows,
    }
  }

  /** Goes back to the first unreleased row: what a dead writer had taken is taken again. Thread: main. */
  rewind(): void {
    this.#taken = this.#released
  }

  /**
   * Gives the space before `position` back to the producer. Thread: main; positions only grow.
   * @param rows rows between the last release and this one
   */
  release(position: number, rows: number): void {
    if (position < this.#released || position > this.#taken)
      throw new Error(`outbox invariant: release ${position} outside ${this.#released}..${this.#taken}`)
    this.#released = position
    this.#rowsReleased = (this.#rowsReleased + rows) >>> 0
    // publishes free space: the producer reads it before it overwrites
    Atomics.store(this.#words, OUTBOX.released.slot, (position % WORD) | 0)
  }

  /**
   * Says that main has nothing to do, then looks once more. Thread: main.
   * @returns false when rows came in between: main must look again (the flag is down)
   */
  sleep(): boolean {
    Atomics.store(this.#words, OUTBOX.isMainAsleep.slot, 1)
    if (this.written === this.#taken) return true
    return Atomics.exchange(this.#words, OUTBOX.isMainAsleep.slot, 0) === 0
  }
}
