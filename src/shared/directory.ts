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

const ONLINE = 1n

const pack = (epoch: number, shard: number, isRenewed: boolean, isOnline: boolean) =>
  (BigInt(epoch) << EPOCH_SHIFT) | (isRenewed ? RENEWED : 0n) | (BigInt(shard) << 1n) | (isOnline ? ONLINE : 0n)

/** A claim as `isStanding` compares it: its slot, and both halves of its word while it stands, as Int32. */
export interface StandingWords {
  readonly slot: number
  readonly low: number
  readonly high: number
}

/** A claim, unpacked. */
export interface Claim extends StandingWords {
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
 * @param devicesMax how many devices fit
 * @param generation number of this start of the gateway, from the database: grows with every start
 */
export function allocateDirectory(devicesMax: number, generation: number): SharedArrayBuffer {
  const slots = Math.max(devicesMax, SLOTS_MIN)
  let places = 2
  while (places < slots * 2) places *= 2
  const memory = new SharedArrayBuffer(DIRECTORY.headBytes + slots * DIRECTORY.slotBytes + places * 4)
  const words = new Int32Array(memory)
  words[DIRECTORY.slots.slot32] = slots
  words[DIRECTORY.places.slot32] = places
  Atomics.store(
    new BigInt64Array(memory),
    DIRECTORY.nextEpoch.slot64,
    BigInt(generation) * BigInt(EPOCHS_PER_GENERATION) + 1n,
  )
  return memory
}

const SLOTS_MIN = 512

export class Directory {
  readonly #words64: BigInt64Array
  readonly #words32: Int32Array
  readonly #slots: number
  readonly #places: number
  /** Of the index, in `#words32`. */
  readonly #indexAt: number

  constructor(memory: SharedArrayBuffer) {
    this.#words64 = new BigInt64Array(memory)
    this.#words32 = new Int32Array(memory)
    this.#slots = this.#words32[DIRECTORY.slots.slot32]!
    this.#places = this.#words32[DIRECTORY.places.slot32]!
    this.#indexAt = (DIRECTORY.headBytes + this.#slots * DIRECTORY.slotBytes) / 4
  }

  /** A number greater than every epoch given before, over all threads and all starts. Thread: any. */
  nextEpoch(): number {
    return Number(Atomics.add(this.#words64, DIRECTORY.nextEpoch.slot64, 1n))
  }

  /** Devices that ever claimed since the start. */
  get devices(): number {
    return Math.min(Number(Atomics.load(this.#words64, DIRECTORY.devices.slot64)), this.#slots)
  }

  #at64(slot: number): number {
    return (DIRECTORY.headBytes + slot * DIRECTORY.slotBytes) / 8
  }

  #at32(slot: number): number {
    return (DIRECTORY.headBytes + slot * DIRECTORY.slotBytes) / 4
  }

  #unpack(slot: number, word: bigint): Claim {
    const standing = word | ONLINE
    return {
      slot,
      low: Number(BigInt.asIntN(32, standing)),
      high: Number(BigInt.asIntN(32, standing >> 32n)),
      epoch: Number(word >> EPOCH_SHIFT),
      shard: Number((word >> 1n) & SHARD_MASK),
      isOnline: (word & 1n) === 1n,
      isRenewed: (word & RENEWED) !== 0n,
    }
  }

  /** @returns the slot of a device, or -1: unknown and `make` is false, or no room */
  #find(deviceKey: number, make: boolean): number {
    const key = BigInt(deviceKey)
    // Fibonacci hashing of both halves: device numbers of one batch are consecutive
    const hash = Math.imul(deviceKey >>> 0, 0x9e3779b1) ^ Math.imul(Math.floor(deviceKey / 2 ** 32), 0x85ebca6b)
    const mask = this.#places - 1
    let taken = -1
    for (let place = (hash ^ (hash >>> 15)) & mask; ; place = (place + 1) & mask) {
      const at = this.#indexAt + place
      let seen = Atomics.load(this.#words32, at)
      if (seen === 0) {
        if (!make) return -1
        if (taken < 0) {
          taken = this.#takeSlot(key)
          if (taken < 0) return -1
        }
        // publishes the key: who finds the slot by the index reads it. Whoever loses this race to the same device leaves an
        // empty slot behind, once per such race
        seen = Atomics.compareExchange(this.#words32, at, 0, taken + 1)
        if (seen === 0) return taken
      }
      if (Atomics.load(this.#words64, this.#at64(seen - 1) + DIRECTORY.key.offset64) === key) return seen - 1
    }
  }

  /** @returns -1: no room */
  #takeSlot(key: bigint): number {
    if (this.devices >= this.#slots) return -1
    const slot = Number(Atomics.add(this.#words64, DIRECTORY.devices.slot64, 1n))
    if (slot >= this.#slots) return -1
    Atomics.store(this.#words64, this.#at64(slot) + DIRECTORY.key.offset64, key)
    return slot
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
      const taken = pack(epoch, shard, isRenewed, true)
      if (Atomics.compareExchange(this.#words64, at, word, taken) !== word) continue
      return {
        kind: 'taken',
        claim: this.#unpack(slot, taken),
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

  /**
   * The connection is gone: offline, if it still had the word.
   * @returns false when a newer claim stands; nothing was changed (a stale close never hurts)
   */
  giveBack(claim: StandingWords): boolean {
    const at = this.#at64(claim.slot) + DIRECTORY.claim.offset64
    const mine = (BigInt(claim.high) << 32n) | BigInt(claim.low >>> 0)
    return Atomics.compareExchange(this.#words64, at, mine, mine ^ ONLINE) === mine
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
    for (let slot = 0; slot < this.devices; slot++) {
      const at = this.#at64(slot) + DIRECTORY.claim.offset64
      for (;;) {
        const word = Atomics.load(this.#words64, at)
        const standing = this.#unpack(slot, word)
        if (word === 0n || !standing.isOnline || standing.shard !== shard) break
        if (Atomics.compareExchange(this.#words64, at, word, word ^ ONLINE) === word) {
          cleared++
          break
        }
      }
    }
    return cleared
  }
}
