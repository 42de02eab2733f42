/**
 * Acks that wait for the database, in the order of their rows.
 *
 * Acks with a group cannot be told apart by the device (BKV 6: the ack of an end report names the socket only). None of
 * a group is released before the rows of all of them are durable, and none at all when one of those rows was not
 * stored: the device repeats what it sees unanswered.
 */
export interface WaitingAck {
  /** Endless position of its row in the ledger lane. */
  readonly position: number
  readonly group: string | undefined
  /** Which fact it acknowledges: a repeat has the same. */
  readonly about: string
}

/** A report that was not stored comes again within this, or not on this connection any more (BKV 3: 10.5 s, 41 s). */
const REFUSED_FOR_MS = 60_000

interface Group {
  /** The last row any ack of the group waits for. */
  lastPosition: number
  waiting: number
  isSpoiled: boolean
}

export class PendingAcks<A extends WaitingAck> {
  readonly #queue: A[] = []
  #from = 0
  readonly #groups = new Map<string, Group>()
  /** Reports of a group that were not stored, and when. */
  readonly #refused = new Map<string, Map<string, number>>()
  /** Durable themselves, held back for others of their group. */
  #held: A[] = []

  get count(): number {
    return this.#queue.length - this.#from + this.#held.length
  }

  add(ack: A): void {
    this.#queue.push(ack)
    if (ack.group === undefined) return
    this.#refused.get(ack.group)?.delete(ack.about)
    const group = this.#groups.get(ack.group)
    if (group === undefined) this.#groups.set(ack.group, { lastPosition: ack.position, waiting: 1, isSpoiled: false })
    else {
      group.lastPosition = ack.position
      group.waiting++
    }
  }

  /** A report of this group was not stored: nobody of the group gets an ack until it has come again and is. */
  refuse(groupName: string, about: string, monoMs: number): void {
    const group = this.#groups.get(groupName)
    if (group !== undefined) group.isSpoiled = true
    const reports = this.#refused.get(groupName) ?? new Map<string, number>()
    this.#refused.set(groupName, reports.set(about, monoMs))
  }

  #isHeldBack(groupName: string, monoMs: number): boolean {
    const reports = this.#refused.get(groupName)
    if (reports === undefined) return false
    for (const [about, sinceMonoMs] of reports) if (monoMs - sinceMonoMs > REFUSED_FOR_MS) reports.delete(about)
    if (reports.size === 0) this.#refused.delete(groupName)
    return reports.size > 0
  }

  /**
   * Every row up to `position` is durable, except the ones in `rejected`.
   * @param release called in the order of rows
   * @returns how many are dropped without a release
   */
  reached(position: number, rejected: readonly number[], monoMs: number, release: (ack: A) => void): number {
    let withheld = 0
    const due: A[] = []
    while (this.#from < this.#queue.length) {
      const ack = this.#queue[this.#from]!
      if (ack.position > position) break
      this.#from++
      if (!rejected.includes(ack.position)) due.push(ack)
      else {
        withheld++
        if (ack.group !== undefined) {
          this.refuse(ack.group, ack.about, monoMs)
          this.#leave(ack.group)
        }
      }
    }
    // drop the answered part once it is the larger one: amortised constant, no shift per ack
    if (this.#from > 256 && this.#from * 2 > this.#queue.length) {
      this.#queue.splice(0, this.#from)
      this.#from = 0
    }
    const candidates = this.#held.length === 0 ? due : [...this.#held, ...due]
    this.#held = []
    for (const ack of candidates) {
      const group = ack.group === undefined ? undefined : this.#groups.get(ack.group)
      if (group === undefined) {
        release(ack)
        continue
      }
      if (group.lastPosition > position) {
        this.#held.push(ack)
        continue
      }
      if (group.isSpoiled || this.#isHeldBack(ack.group!, monoMs)) withheld++
      else release(ack)
      this.#leave(ack.group!)
    }
    return withheld
  }

  #leave(name: string): void {
    const group = this.#groups.get(name)
    if (group !== undefined && --group.waiting === 0) this.#groups.delete(name)
  }
}
