/**
 * The only file that touches the memory of the directory: taking, losing and giving back the right to speak for a
 * device. A claim is one compare-and-swap, so that a takeover is decided in one instant for all threads, without a
 * message, and the older side sees it at its next look.
 *
 * The rule: the newest connection wins. A connection's `birth` is an epoch taken when it was accepted. A claim with an
 * older birth than the connection of a standing claim is refused; once that connection is gone, an older one may claim
 * again and gets a fresh epoch, so that epochs only grow. Such a claim is renewed: its epoch is newer than its birth,
 * and a connection born in between still wins over it.
 */
import { DIRECTORY, EPOCHS_PER_GENERATION, SHARD_BITS, SHARDS_MAX } from './directory-layout.ts'

const SHARD_MASK = (1n << SHARD_BITS) - 1n
const RENEWED = 1n << (SHARD_BITS + 1n)
const EPOCH_SHIFT = SHARD_BITS + 2n

const pack = ({ epoch, shard, isRenewed }: Omit<Claim, 'slot' | 'isOnline'>, isOnline: boolean) =>
  (BigInt(epoch) << EPOCH_SHIFT) | (isRenewed ? RENEWED : 0n) | (BigInt(shard) << 1n) | (isOnline ? 1n : 0n)

/** A standing claim, unpacked. */
export interface Claim {
  readonly slot: number
  readonly epoch: number
  readonly shard: number
  readonly isOnline: boolean
  /** Its connection is older than its epoch says. */
  readonly isRenewed: boolean
}

export type ClaimAnswer =
  | { readonly kind: 'taken'; readonly claim: Claim; readonly previous: Claim | undefined }
  /** A newer connection speaks for the device. */
  | { readonly kind: 'refused'; readonly by: Claim }
  /** The table has no room for another device. */
  | { readonly kind: 'full' }

/**
 * @param devicesMax how many devices fit; the table has twice as many slots
 * @param generation number of this start of the gateway, from the database: grows with every start
 */
export function allocateDirectory(devicesMax: number, generation: number): SharedArrayBuffer {
  let slots = 1024
  while (slots < devicesMax * 2) slots *= 2
  const memory = new SharedArrayBuffer(DIRECTORY.headBytes + slots * DIRECTORY.slotBytes)
  Atomics.store(
    new BigInt64Array(memory),
    DIRECTORY.nextEpoch.slot64,
    BigInt(generation) * BigInt(EPOCHS_PER_GENERATION) + 1n,
  )
  return memory
}

export class Directory {
  readonly #words64: BigInt64Array
  readonly #words32: Int32Array
  readonly #slots: number
  readonly #devicesMax: number

  constructor(memory: SharedArrayBuffer) {
    this.#words64 = new BigInt64Array(memory)
    this.#words32 = new Int32Array(memory)
    this.#slots = (memory.byteLength - DIRECTORY.headBytes) / DIRECTORY.slotBytes
    this.#devicesMax = this.#slots / 2
  }

  /** A number greater than every epoch given before, over all threads and all starts. Thread: any. */
  nextEpoch(): number {
    return Number(Atomics.add(this.#words64, DIRECTORY.nextEpoch.slot64, 1n))
  }

  /** Devices that ever claimed since the start. */
  get devices(): number {
    return Number(Atomics.load(this.#words64, DIRECTORY.devices.slot64))
  }

  #at64(slot: number): number {
    return (DIRECTORY.headBytes + slot * DIRECTORY.slotBytes) / 8
  }

  #at32(slot: number): number {
    return (DIRECTORY.headBytes + slot * DIRECTORY.slotBytes) / 4
  }

  #unpack(slot: number, word: bigint): Claim {
    return {
      slot,
      epoch: Number(word >> EPOCH_SHIFT),
      shard: Number((word >> 1n) & SHARD_MASK),
      isOnline: (word & 1n) === 1n,
      isRenewed: (word & RENEWED) !== 0n,
    }
  }

  /** @returns the slot of a device, or -1: unknown and `make` is false, or no room */
  #find(deviceKey: number, make: boolean): number {
    const key = BigInt(deviceKey) + 1n
    // Fibonacci hashing of both halves: device numbers of one batch are consecutive
    let slot = (Math.imul(deviceKey >>> 0, 0x9e3779b1) ^ Math.imul(Math.floor(deviceKey / 2 ** 32), 0x85ebca6b)) >>> 0
    slot %= this.#slots
    for (let probe = 0; probe < this.#slots; probe++) {
      const at = this.#at64(slot) + DIRECTORY.key.offset64
      let seen = Atomics.load(this.#words64, at)
      if (seen === 0n) {
        if (!make || this.devices >= this.#devicesMax) return -1
        seen = Atomics.compareExchange(this.#words64, at, 0n, key)
        if (seen === 0n) {
          Atomics.add(this.#words64, DIRECTORY.devices.slot64, 1n)
          return slot
        }
      }
      if (seen === key) return slot
      slot = (slot + 1) % this.#slots
    }
    return -1
  }

  /**
   * Takes the right to speak for a device.
   *
   * Thread: session. Once per device and connection, not per frame.
   * @param birth epoch of the connection, from `nextEpoch` when it was accepted
   */
  claim(deviceKey: number, birth: number, shard: number): ClaimAnswer {
    if (shard >= SHARDS_MAX) throw new RangeError(`shard ${shard}`)
    const slot = this.#find(deviceKey, true)
    if (slot < 0) return { kind: 'full' }
    const at = this.#at64(slot) + DIRECTORY.claim.offset64
    for (;;) {
      const word = Atomics.load(this.#words64, at)
      const standing = this.#unpack(slot, word)
      const birthAt = this.#at64(slot) + DIRECTORY.birth.offset64
      const standingBirth = standing.isRenewed ? Number(Atomics.load(this.#words64, birthAt)) : standing.epoch
      if (standing.isOnline && standingBirth >= birth) return { kind: 'refused', by: standing }
      // an older connection that returns after the newer one is gone must not make the epoch go back
      const isRenewed = birth <= standing.epoch
      const epoch = isRenewed ? this.nextEpoch() : birth
      // before the claim it belongs to. Two that renew in the same instant may leave the loser's: a third connection is
      // then measured against the wrong one of two that are both older than it
      if (isRenewed) Atomics.store(this.#words64, birthAt, BigInt(birth))
      const claim: Claim = { slot, epoch, shard, isOnline: true, isRenewed }
      if (Atomics.compareExchange(this.#words64, at, word, pack(claim, true)) !== word) continue
      return {
        kind: 'taken',
        claim,
        previous: word === 0n ? undefined : standing,
      }
    }
  }

  /**
   * Is this still the standing claim? Two plain reads, no BigInt: asked for every frame.
   *
   * A reader may see the claim a moment late; what it then does is as if done just before the takeover.
   */
  isStanding(claim: StandingWords): boolean {
    const at = this.#at32(claim.slot) + DIRECTORY.claim.offset64 * 2
    return this.#words32[at] === claim.low && this.#words32[at + 1] === claim.high
  }

  /** The two halves that `isStanding` compares; kept by whoever holds the claim. */
  standingWords(claim: Claim): StandingWords {
    const word = pack(claim, true)
    return { slot: claim.slot, low: Number(BigInt.asIntN(32, word)), high: Number(word >> 32n) }
  }

  /**
   * The connection is gone: offline, if it still had the word.
   * @returns false when a newer claim stands; nothing was changed (a stale close never hurts)
   */
  giveBack(claim: Claim): boolean {
    const at = this.#at64(claim.slot) + DIRECTORY.claim.offset64
    const mine = pack(claim, true)
    return Atomics.compareExchange(this.#words64, at, mine, pack(claim, false)) === mine
  }

  /** The device was heard. Thread: session that holds the claim. @param seenS seconds since the epoch */
  touch(slot: number, seenS: number): void {
    this.#words32[this.#at32(slot) + DIRECTORY.lastSeenS.offset32] = seenS
  }

  /** Who speaks for a device, or spoke last. Thread: any. @returns undefined: nobody did since this start */
  look(deviceKey: number): (Claim & { readonly lastSeenS: number }) | undefined {
    const slot = this.#find(deviceKey, false)
    if (slot < 0) return undefined
    const word = Atomics.load(this.#words64, this.#at64(slot) + DIRECTORY.claim.offset64)
    if (word === 0n) return undefined
    return { ...this.#unpack(slot, word), lastSeenS: this.#words32[this.#at32(slot) + DIRECTORY.lastSeenS.offset32]! }
  }

  /**
   * A shard died with its sockets: its devices are offline until they come back. Thread: main.
   * @returns how many devices went offline
   */
  clearShard(shard: number): number {
    let cleared = 0
    for (let slot = 0; slot < this.#slots; slot++) {
      const at = this.#at64(slot) + DIRECTORY.claim.offset64
      for (;;) {
        const word = Atomics.load(this.#words64, at)
        const standing = this.#unpack(slot, word)
        if (word === 0n || !standing.isOnline || standing.shard !== shard) break
        if (Atomics.compareExchange(this.#words64, at, word, pack(standing, false)) === word) {
          cleared++
          break
        }
      }
    }
    return cleared
  }
}

/** A claim as `isStanding` compares it: its slot, and both halves of its word as Int32. */
export interface StandingWords {
  readonly slot: number
  readonly low: number
  readonly high: number
}
