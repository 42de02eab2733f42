/**
 * What one device has in front of it, and whose turn it is among thousands of devices. No timers in here: the owner
 * says how late it is.
 */

export interface Appointment {
  /** Intended time, ms since the epoch: what happens late is measured from here. */
  readonly atMs: number
  readonly run: (nowMs: number, atMs: number) => void
  /** Ends with the connection. */
  readonly isOfConnection: boolean
}

/** A device's few appointments (about ten), the next one last. */
export class Agenda {
  readonly #entries: Appointment[] = []

  /** When to call `runDue`; Infinity when nothing is planned. */
  get nextMs(): number {
    return this.#entries[this.#entries.length - 1]?.atMs ?? Number.POSITIVE_INFINITY
  }

  /** Plans something that outlives a connection. Of equal times, what was planned first runs first. */
  at(atMs: number, run: Appointment['run']): Appointment {
    return this.#insert({ atMs, run, isOfConnection: false })
  }

  /** Plans something that `forgetConnection` drops. */
  whileConnected(atMs: number, run: Appointment['run']): Appointment {
    return this.#insert({ atMs, run, isOfConnection: true })
  }

  cancel(appointment: Appointment | undefined): void {
    if (appointment === undefined) return
    const index = this.#entries.indexOf(appointment)
    if (index >= 0) this.#entries.splice(index, 1)
  }

  forgetConnection(): void {
    let kept = 0
    for (const entry of this.#entries) if (!entry.isOfConnection) this.#entries[kept++] = entry
    this.#entries.length = kept
  }

  clear(): void {
    this.#entries.length = 0
  }

  runDue(nowMs: number): void {
    for (;;) {
      const next = this.#entries[this.#entries.length - 1]
      if (next === undefined || next.atMs > nowMs) return
      this.#entries.pop()
      next.run(nowMs, next.atMs)
    }
  }

  #insert(entry: Appointment): Appointment {
    const entries = this.#entries
    let index = entries.length
    while (index > 0 && (entries[index - 1] as Appointment).atMs <= entry.atMs) index--
    entries.splice(index, 0, entry)
    return entry
  }
}

/** Which of many members is due next: a binary heap that knows where each member stands. 20 bytes per member. */
export class WakeHeap {
  readonly #atMs: Float64Array
  readonly #heap: Int32Array
  /** Place of a member in the heap, -1 while it has no time. */
  readonly #place: Int32Array
  #count = 0

  /** @param members 0..members-1 are the names */
  constructor(members: number) {
    this.#atMs = new Float64Array(members)
    this.#heap = new Int32Array(members)
    this.#place = new Int32Array(members).fill(-1)
  }

  /** Earliest time; Infinity when nobody waits. */
  get nextMs(): number {
    return this.#count === 0 ? Number.POSITIVE_INFINITY : (this.#atMs[this.#heap[0] as number] as number)
  }

  /** The member with the earliest time, which stays until its time is set anew; -1 when nobody waits. */
  get first(): number {
    return this.#count === 0 ? -1 : (this.#heap[0] as number)
  }

  /** @param atMs Infinity takes the member out */
  set(member: number, atMs: number): void {
    let place = this.#place[member] as number
    if (atMs === Number.POSITIVE_INFINITY) {
      if (place >= 0) this.#remove(place)
      return
    }
    if (place < 0) {
      place = this.#count++
      this.#put(place, member)
    } else if (this.#atMs[member] === atMs) return
    this.#atMs[member] = atMs
    this.#settle(place)
  }

  #remove(place: number): void {
    this.#place[this.#heap[place] as number] = -1
    this.#count--
    if (place === this.#count) return
    this.#put(place, this.#heap[this.#count] as number)
    this.#settle(place)
  }

  #settle(from: number): void {
    const member = this.#heap[from] as number
    const atMs = this.#atMs[member] as number
    let place = from
    while (place > 0) {
      const parent = (place - 1) >> 1
      const other = this.#heap[parent] as number
      if ((this.#atMs[other] as number) <= atMs) break
      this.#put(place, other)
      place = parent
    }
    for (;;) {
      let child = 2 * place + 1
      if (child >= this.#count) break
      if (child + 1 < this.#count && this.#timeAt(child + 1) < this.#timeAt(child)) child++
      if (this.#timeAt(child) >= atMs) break
      this.#put(place, this.#heap[child] as number)
      place = child
    }
    this.#put(place, member)
  }

  #timeAt(place: number): number {
    return this.#atMs[this.#heap[place] as number] as number
  }

  #put(place: number, member: number): void {
    this.#heap[place] = member
    this.#place[member] = place
  }
}
