/** The simulation's clock and its messages between threads. Nothing here waits; everything is decided by the seed. */
import type { Random } from './random.ts'

interface Entry {
  readonly atMs: number
  /** Among equal times the earlier insertion runs first. */
  readonly order: number
  readonly run: () => void
}

/** A clock that stands still while an event runs and jumps to the next one: a binary heap by (time, insertion). */
export class VirtualTime {
  nowMs = 0
  readonly #heap: Entry[] = []
  #inserted = 0

  /** @param atMs ms since the start of the run; the past means now */
  at(atMs: number, run: () => void): void {
    const entry: Entry = { atMs: Math.max(atMs, this.nowMs), order: this.#inserted++, run }
    const heap = this.#heap
    let place = heap.length
    heap.push(entry)
    while (place > 0) {
      const parent = (place - 1) >> 1
      if (!isEarlier(entry, heap[parent] as Entry)) break
      heap[place] = heap[parent] as Entry
      place = parent
    }
    heap[place] = entry
  }

  after(ms: number, run: () => void): void {
    this.at(this.nowMs + ms, run)
  }

  /** Runs the next event. @returns false: there is none, or it lies behind `untilMs` */
  step(untilMs: number): boolean {
    const first = this.#heap[0]
    if (first === undefined || first.atMs > untilMs) return false
    this.#removeFirst()
    this.nowMs = first.atMs
    first.run()
    return true
  }

  #removeFirst(): void {
    const heap = this.#heap
    const last = heap.pop() as Entry
    if (heap.length === 0) return
    let place = 0
    for (;;) {
      let child = 2 * place + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && isEarlier(heap[child + 1] as Entry, heap[child] as Entry)) child++
      if (!isEarlier(heap[child] as Entry, last)) break
      heap[place] = heap[child] as Entry
      place = child
    }
    heap[place] = last
  }
}

const isEarlier = (one: Entry, other: Entry): boolean =>
  one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order)

/** One direction of a MessagePort: every message has a delay of its own, none overtakes another. */
export class Channel {
  readonly #time: VirtualTime
  readonly #random: Random
  readonly #busyShare: number
  #lastMs = 0
  /** Its far end, or the messages on their way, are gone. */
  isCut = false

  /** @param busyShare how often the receiving thread has something else to do first */
  constructor(time: VirtualTime, random: Random, busyShare: number) {
    this.#time = time
    this.#random = random
    this.#busyShare = busyShare
  }

  post(deliver: () => void): void {
    const isBusy = this.#random.chance(this.#busyShare)
    const delayMs = isBusy ? this.#random.between(10, 1_500) : this.#random.between(0, 3)
    this.#lastMs = Math.max(this.#lastMs, this.#time.nowMs + delayMs)
    this.#time.at(this.#lastMs, () => {
      if (!this.isCut) deliver()
    })
  }
}
