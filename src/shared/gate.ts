/** The only file that touches the memory of the gate: how many connections each shard was given, took up and ended. */
import { GATE, GATE_SHARD_BYTES } from './gate-layout.ts'

/** Zeroed. Thread: main, once. @param shards 1..256 */
export function allocateGate(shards: number): SharedArrayBuffer {
  return new SharedArrayBuffer(shards * GATE_SHARD_BYTES)
}

export class Gate {
  readonly #words: Int32Array
  readonly shards: number

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory)
    this.shards = memory.byteLength / GATE_SHARD_BYTES
  }

  #slot(shard: number, word: keyof typeof GATE): number {
    return (shard * GATE_SHARD_BYTES) / 4 + GATE[word].slot
  }

  /** Thread: acceptor for `handed`, session for the others; `endAll` is main's. */
  add(shard: number, word: keyof typeof GATE): void {
    Atomics.add(this.#words, this.#slot(shard, word), 1)
  }

  /** Mod 2^32. Thread: any. */
  count(shard: number, word: keyof typeof GATE): number {
    return Atomics.load(this.#words, this.#slot(shard, word)) >>> 0
  }

  /** Connections handed over and not ended, over all shards. Thread: any. */
  get open(): number {
    let open = 0
    for (let shard = 0; shard < this.shards; shard++)
      // a thread that died between closing and counting may have been counted twice: never below nothing
      open += Math.max(0, (this.count(shard, 'handed') - this.count(shard, 'ended')) | 0)
    return open
  }

  /**
   * A session thread died with everything it was given. Thread: main, while no thread serves this shard.
   * @param kept connections that were handed over, are open and wait for the next thread
   */
  endAll(shard: number, kept = 0): void {
    const handed = (this.count(shard, 'handed') - kept) | 0
    Atomics.store(this.#words, this.#slot(shard, 'adopted'), handed)
    Atomics.store(this.#words, this.#slot(shard, 'ended'), handed)
  }
}
