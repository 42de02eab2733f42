/**
 * The last frame of each session, where a second one of the same data says nothing new (`Uplink.isRepeatable`): a fleet at
 * rest sends little else. Typed arrays by the session's index; longer frames are not kept and decoded every time.
 */

/** A 21 of 16 ports has 21 bytes, a BKV heartbeat 29. */
const DATA_BYTES_MAX = 40
const NONE = -1

export class Repeats {
  /** Command key of the frame kept, NONE: no frame is. */
  #commandKeys = new Float64Array(64).fill(NONE)
  #dataBytes = new Uint8Array(64)
  #data = new Uint8Array(64 * DATA_BYTES_MAX)

  isRepeat(index: number, commandKey: number, bytes: Uint8Array, from: number, to: number): boolean {
    if (this.#commandKeys[index] !== commandKey || this.#dataBytes[index] !== to - from) return false
    const data = this.#data
    for (let at = from, kept = index * DATA_BYTES_MAX; at < to; at++, kept++) if (bytes[at] !== data[kept]) return false
    return true
  }

  /** The frame of a repeatable command was taken, with everything that follows from it. */
  remember(index: number, commandKey: number, bytes: Uint8Array, from: number, to: number): void {
    this.#grow(index)
    if (to - from > DATA_BYTES_MAX) {
      this.#commandKeys[index] = NONE
      return
    }
    this.#commandKeys[index] = commandKey
    this.#dataBytes[index] = to - from
    for (let at = from, kept = index * DATA_BYTES_MAX; at < to; at++, kept++) this.#data[kept] = bytes[at]!
  }

  /** Something else was heard, or what the frame means has changed. */
  forget(index: number): void {
    if (index >= 0 && index < this.#commandKeys.length) this.#commandKeys[index] = NONE
  }

  #grow(index: number): void {
    let count = this.#commandKeys.length
    if (index < count) return
    while (count <= index) count *= 2
    const commandKeys = new Float64Array(count).fill(NONE)
    commandKeys.set(this.#commandKeys)
    this.#commandKeys = commandKeys
    const dataBytes = new Uint8Array(count)
    dataBytes.set(this.#dataBytes)
    this.#dataBytes = dataBytes
    const data = new Uint8Array(count * DATA_BYTES_MAX)
    data.set(this.#data)
    this.#data = data
  }
}
