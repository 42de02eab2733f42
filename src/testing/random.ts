/**
 * Randomness that a seed repeats: xoshiro128** over four 32-bit words, 16 bytes of state per generator, so that every
 * device of a fleet can own one. Not for secrets.
 */

/** @returns a 32-bit hash of `word` in which every input bit changes about half of the output bits (splitmix32). */
export function mixWord(word: number): number {
  let mixed = (word + 0x9e3779b9) | 0
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad)
  mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97)
  return (mixed ^ (mixed >>> 15)) >>> 0
}

export class Random {
  #a: number
  #b: number
  #c: number
  #d: number

  /**
   * @param seed any integer; its low 32 bits count
   * @param stream another sequence of the same seed (a device's index): any integer, its low 32 bits count
   */
  constructor(seed: number, stream = 0) {
    const start = mixWord(seed | 0) ^ Math.imul(stream | 0, 0x9e3779b1)
    this.#a = mixWord(start)
    this.#b = mixWord(this.#a)
    this.#c = mixWord(this.#b)
    // all four words zero would stay zero for ever
    this.#d = mixWord(this.#c) | 1
  }

  /** @returns 0..2^32-1 */
  u32(): number {
    const scrambled = Math.imul(this.#b, 5)
    const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9) >>> 0
    const shifted = this.#b << 9
    this.#c ^= this.#a
    this.#d ^= this.#b
    this.#b ^= this.#c
    this.#a ^= this.#d
    this.#c ^= shifted
    this.#d = (this.#d << 11) | (this.#d >>> 21)
    return result
  }

  /** @returns [0, 1) */
  unit(): number {
    return this.u32() / 2 ** 32
  }

  /** @returns an integer 0..count-1; count 1..2^32 */
  below(count: number): number {
    return Math.floor(this.unit() * count)
  }

  /** @returns [from, to), not rounded */
  between(from: number, to: number): number {
    return from + this.unit() * (to - from)
  }

  /** @returns true with the given probability 0..1; 0 and 1 draw nothing */
  chance(probability: number): boolean {
    if (probability <= 0) return false
    if (probability >= 1) return true
    return this.unit() < probability
  }

  /** @throws RangeError when there is nothing to pick from */
  pick<T>(items: readonly T[]): T {
    if (items.length === 0) throw new RangeError('nothing to pick from')
    return items[this.below(items.length)] as T
  }

  bytes(count: number): Uint8Array {
    const bytes = new Uint8Array(count)
    for (let index = 0; index < count; index++) bytes[index] = this.u32() >>> 24
    return bytes
  }

  /** In place (Fisher-Yates). */
  shuffle<T>(items: T[]): T[] {
    for (let last = items.length - 1; last > 0; last--) {
      const other = this.below(last + 1)
      const kept = items[last] as T
      items[last] = items[other] as T
      items[other] = kept
    }
    return items
  }

  /** A generator of its own, decided by this one: what it draws later does not disturb this one. */
  fork(): Random {
    return new Random(this.u32(), this.u32())
  }
}
