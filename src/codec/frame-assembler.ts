/**
 * Chunks to units, one assembler per connection that waits for the rest of a unit. A unit that lies whole in a chunk is visited where it lies; only what
 * a chunk cuts is copied, into a small buffer that exists while a cut unit waits for its rest.
 *
 * Thread: session. How long to wait for the rest is the caller's rule: see `pendingSinceMonoMs` and `giveUpPending`.
 */
import { type NoiseReason, type Protocol, UNIT, type UnitKind, type UnitMark } from './protocol.ts'

export interface UnitVisitor {
  /**
   * One unit, in stream order. `bytes` is looked at during the call only: it is the chunk, or a buffer that all
   * assemblers of this thread share. `reason` counts for noise alone. Must not push into an assembler.
   */
  unit(kind: UnitKind, bytes: Uint8Array, from: number, to: number, reason: NoiseReason): void
}

export class FrameAssembler {
  readonly #protocol: Protocol
  /** Starts with the partial unit; undefined while none waits. */
  #pending: Uint8Array | undefined
  #pendingBytes = 0
  #pendingSinceMonoMs = 0
  #frameBytesMax: number

  /** @param isLoggedIn true when a good frame of this connection was seen elsewhere (a hand-over, a test) */
  constructor(protocol: Protocol, isLoggedIn = false) {
    this.#protocol = protocol
    this.#frameBytesMax = isLoggedIn ? protocol.frameBytesMax : protocol.frameBytesMaxBeforeLogin
  }

  /** A good frame was seen. */
  get isLoggedIn(): boolean {
    return this.#frameBytesMax === this.#protocol.frameBytesMax
  }

  /** For another connection of the protocol. While nothing waits, this is all that an assembler knows of one. */
  serve(isLoggedIn: boolean): void {
    this.#frameBytesMax = isLoggedIn ? this.#protocol.frameBytesMax : this.#protocol.frameBytesMaxBeforeLogin
  }

  /** Bytes of the partial unit held here: 0..frameBytesMax - 1. */
  get pendingBytes(): number {
    return this.#pendingBytes
  }

  /** When the partial unit's first byte came; undefined when nothing waits. */
  get pendingSinceMonoMs(): number | undefined {
    return this.#pendingBytes === 0 ? undefined : this.#pendingSinceMonoMs
  }

  /** Cap for one frame now: small until the first good frame. */
  get frameBytesMax(): number {
    return this.#frameBytesMax
  }

  /** Visits every unit that ends in this chunk. Cost: no copy and no allocation when chunks end where frames end. */
  push(chunk: Uint8Array, monoMs: number, visitor: UnitVisitor): void {
    let at = 0
    if (this.#pendingBytes > 0) {
      at = this.#joined(chunk, monoMs, visitor)
      if (at < 0) return
    }
    const to = chunk.length
    while (at < to) {
      const next = this.#visitOne(chunk, at, to, visitor)
      if (next < 0) {
        this.#keep(chunk, at, to, monoMs)
        return
      }
      at = next
    }
  }

  /**
   * The rest did not come in time: the waiting header is noise (`incomplete`), and what it had swallowed is searched.
   * Afterwards another, shorter partial unit may wait, with a wait of its own.
   */
  giveUpPending(monoMs: number, visitor: UnitVisitor): void {
    const waiting = this.#pending
    if (waiting === undefined || this.#pendingBytes === 0) return
    const to = this.#pendingBytes
    const protocol = this.#protocol
    const bytes = scratchOf(to)
    bytes.set(waiting.subarray(0, to))
    this.#drop()

    // the noise right behind the header belongs to the same damage: one unit, counted once
    let at = 1
    while (at < to) {
      protocol.findFrame(bytes, at, to, this.#frameBytesMax, MARK)
      if (MARK.kind !== UNIT.noise) break
      at = MARK.to
    }
    visitor.unit(UNIT.noise, bytes, 0, at, 'incomplete')
    while (at < to) {
      const next = this.#visitOne(bytes, at, to, visitor)
      if (next < 0) {
        this.#keep(bytes, at, to, monoMs)
        return
      }
      at = next
    }
  }

  /**
   * Finishes what waits with the head of the chunk.
   * @returns where in the chunk to go on, or -1 when all of it was taken and still is not enough
   */
  #joined(chunk: Uint8Array, monoMs: number, visitor: UnitVisitor): number {
    const kept = this.#pendingBytes
    // a unit that begins among the kept bytes ends within one frame of them: more of the chunk is not needed here
    const taken = Math.min(chunk.length, Math.max(this.#protocol.frameBytesMax, kept))
    const bytes = scratchOf(kept + taken)
    bytes.set((this.#pending as Uint8Array).subarray(0, kept))
    bytes.set(taken === chunk.length ? chunk : chunk.subarray(0, taken), kept)
    const to = kept + taken
    const sinceMonoMs = this.#pendingSinceMonoMs
    let at = 0
    while (at < kept) {
      const next = this.#visitOne(bytes, at, to, visitor)
      if (next < 0) {
        this.#drop()
        this.#keep(bytes, at, to, at === 0 ? sinceMonoMs : monoMs)
        return -1
      }
      at = next
    }
    this.#drop()
    return at - kept
  }

  /** @returns the position behind the unit, or -1 when its rest is missing */
  #visitOne(bytes: Uint8Array, at: number, to: number, visitor: UnitVisitor): number {
    this.#protocol.findFrame(bytes, at, to, this.#frameBytesMax, MARK)
    // read out before the visit: the mark is shared
    const { kind, to: end } = MARK
    if (kind === UNIT.needMore) {
      if (to - at < this.#protocol.frameBytesMax) return -1
      // a finder that wants more than its own cap would make us hold without bound
      visitor.unit(UNIT.noise, bytes, at, at + 1, 'bad_length')
      return at + 1
    }
    if (kind === UNIT.frame) this.#frameBytesMax = this.#protocol.frameBytesMax
    visitor.unit(kind, bytes, MARK.from, end, MARK.reason)
    return end
  }

  #keep(bytes: Uint8Array, from: number, to: number, sinceMonoMs: number): void {
    const count = to - from
    this.#pending = takeBuffer(this.#protocol.frameBytesMax)
    this.#pending.set(from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to))
    this.#pendingBytes = count
    this.#pendingSinceMonoMs = sinceMonoMs
  }

  #drop(): void {
    if (this.#pending !== undefined) giveBuffer(this.#pending)
    this.#pending = undefined
    this.#pendingBytes = 0
  }
}

// ---- one per thread: a mark, a place to join, and buffers that wait for the next cut unit ------------------------

const MARK: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_header' }

let scratch = new Uint8Array(4_096)

function scratchOf(bytes: number): Uint8Array {
  if (scratch.length < bytes) scratch = new Uint8Array(2 * bytes)
  return scratch
}

/** Spare buffers by size; a few sizes exist, one per protocol. */
const SPARES = new Map<number, Uint8Array[]>()
const SPARES_MAX = 256

function takeBuffer(bytes: number): Uint8Array {
  return SPARES.get(bytes)?.pop() ?? new Uint8Array(bytes)
}

function giveBuffer(buffer: Uint8Array): void {
  const spares = SPARES.get(buffer.length)
  if (spares === undefined) SPARES.set(buffer.length, [buffer])
  else if (spares.length < SPARES_MAX) spares.push(buffer)
}
