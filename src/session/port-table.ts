/**
 * What a shard remembers of every port of its devices, in typed arrays: tens of bytes for a port at rest where an object
 * of its own took four hundred. Ports of one device form a chain in the order of their first report; a device keeps the
 * head. Measured values have a place of their own, taken with the first one; order numbers and faults are rare and lie in
 * a map.
 */
import { PORT_STATES, type PortReading, type PortState } from '../codec/facts.ts'

/** End of a chain, and: no values. */
export const NO_PORT = -1
const NO_VALUES = -1

/** Columns of `#values`; NaN: not reported. */
const MEASURED = ['powerW', 'voltageV', 'currentA', 'energyWh', 'temperatureC'] as const
const POWER = 0
const VOLTAGE = 1
const CURRENT = 2
const ENERGY = 3

/** Power and voltage wander with every report; only a step this large is worth a row of its own. */
const POWER_STEP_W = 5
const VOLTAGE_STEP_V = 5

const STATE_INDEX = new Map<PortState, number>(PORT_STATES.map((state, index) => [state, index]))

const DIRTY = 1
/** A state was reported, not only a charge. */
const REPORTED = 2
/** The next report is an answer and is written whatever it says: when a port was last heard of is read from its row. */
const ASKED = 4

/** What is known of the charge of a port in this session: `undefined`, null, '' and a number, in this order. */
const CHARGE = { unknown: 0, resting: 1, unnumbered: 2, numbered: 3 } as const

/** Text that few ports have. */
interface PortTexts {
  fault: string | undefined
  /** Of the order that runs on the port, as its state is written. */
  wireHex: string | null
  /** Of the charge last reported. */
  charge: string
}

export interface PortValues {
  readonly socket: number
  readonly port: number
  readonly state: PortState
  readonly stateRaw: number
  readonly fault: string | null
  readonly powerW: number | null
  readonly voltageV: number | null
  readonly currentA: number | null
  readonly energyWh: number | null
  readonly temperatureC: number | null
  readonly wireHex: string | null
}

export class PortTable {
  #next = new Int32Array(64)
  #socket = new Uint8Array(64)
  /** 256 occurs: BKV counts from 0 up to 255. */
  #port = new Uint16Array(64)
  #state = new Uint8Array(64)
  #stateRaw = new Int32Array(64)
  #flags = new Uint8Array(64)
  #charge = new Uint8Array(64)
  #valuesAt = new Int32Array(64)
  #values = new Float64Array(64 * MEASURED.length)
  #valuesCount = 0
  #ports = 0
  readonly #freePorts: number[] = []
  readonly #freeValues: number[] = []
  readonly #texts = new Map<number, PortTexts>()

  /** Ports that have a place. */
  get count(): number {
    return this.#ports - this.#freePorts.length
  }

  /** @returns the place of a port, NO_PORT: not in this chain */
  find(head: number, socket: number, port: number): number {
    for (let at = head; at !== NO_PORT; at = this.#next[at]!)
      if (this.#port[at] === port && this.#socket[at] === socket) return at
    return NO_PORT
  }

  next(at: number): number {
    return this.#next[at]!
  }

  /** Appends a port to a chain. @returns its place; it is the head where `head` was NO_PORT */
  add(head: number, socket: number, port: number): number {
    const at = this.#freePorts.pop() ?? this.#ports++
    if (at >= this.#next.length) this.#growPorts()
    this.#next[at] = NO_PORT
    this.#socket[at] = socket
    this.#port[at] = port
    this.#flags[at] = 0
    this.#charge[at] = CHARGE.unknown
    this.#valuesAt[at] = NO_VALUES
    if (head === NO_PORT) return at
    let last = head
    while (this.#next[last] !== NO_PORT) last = this.#next[last]!
    this.#next[last] = at
    return at
  }

  /** Gives a whole chain back. */
  free(head: number): void {
    for (let at = head; at !== NO_PORT; ) {
      const next = this.#next[at]!
      if (this.#valuesAt[at] !== NO_VALUES) this.#freeValues.push(this.#valuesAt[at]!)
      this.#texts.delete(at)
      this.#freePorts.push(at)
      at = next
    }
  }

  /**
   * Takes a report.
   * @param wireHex order that runs on the port, null when none, undefined when the report does not say
   * @returns true: it differs enough to be written, and is marked so
   */
  report(at: number, reading: PortReading, wireHex: string | null | undefined): boolean {
    const isFirst = (this.#flags[at]! & REPORTED) === 0
    const texts = this.#texts.get(at)
    const isChange =
      isFirst ||
      (this.#flags[at]! & ASKED) !== 0 ||
      this.#stateRaw[at] !== reading.stateRaw ||
      this.#state[at] !== STATE_INDEX.get(reading.state) ||
      texts?.fault !== reading.fault ||
      this.#hasStepped(at, POWER, reading.powerW, POWER_STEP_W) ||
      this.#hasStepped(at, VOLTAGE, reading.voltageV, VOLTAGE_STEP_V) ||
      (reading.energyWh !== undefined && reading.energyWh !== this.#value(at, ENERGY)) ||
      (wireHex !== undefined && wireHex !== (texts?.wireHex ?? null))
    if (!isChange) return false
    this.#stateRaw[at] = reading.stateRaw
    this.#state[at] = STATE_INDEX.get(reading.state)!
    for (let column = 0; column < MEASURED.length; column++) this.#setValue(at, column, reading[MEASURED[column]!])
    if (reading.state === 'idle' || reading.state === 'plugged') this.#forgetCharge(at, reading)
    this.#setTexts(at, texts, {
      fault: reading.fault,
      wireHex: wireHex === undefined ? (texts?.wireHex ?? null) : wireHex,
      charge: texts?.charge ?? '',
    })
    this.#flags[at] = REPORTED | DIRTY
    return true
  }

  /** The device was asked about this port. */
  asked(at: number): void {
    this.#flags[at]! |= ASKED
  }

  socketOf(at: number): number {
    return this.#socket[at]!
  }

  isDirty(at: number): boolean {
    return (this.#flags[at]! & DIRTY) !== 0
  }

  written(at: number): void {
    this.#flags[at]! &= ~DIRTY
  }

  /** What is to be written. */
  values(at: number): PortValues {
    const measured = (column: number) => this.#value(at, column) ?? null
    const texts = this.#texts.get(at)
    return {
      socket: this.#socket[at]!,
      port: this.#port[at]!,
      state: PORT_STATES[this.#state[at]!]!,
      stateRaw: this.#stateRaw[at]!,
      fault: texts?.fault ?? null,
      powerW: measured(POWER),
      voltageV: measured(VOLTAGE),
      currentA: measured(CURRENT),
      energyWh: measured(ENERGY),
      temperatureC: measured(4),
      wireHex: texts?.wireHex ?? null,
    }
  }

  /** Wire number of the charge last reported, '' when it came without one, null: the port rested, undefined: no report. */
  charge(at: number): string | null | undefined {
    switch (this.#charge[at]) {
      case CHARGE.resting:
        return null
      case CHARGE.unnumbered:
        return ''
      case CHARGE.numbered:
        return this.#texts.get(at)!.charge
      default:
        return undefined
    }
  }

  setCharge(at: number, charge: string | null): void {
    const kind = charge === null ? CHARGE.resting : charge === '' ? CHARGE.unnumbered : CHARGE.numbered
    if (kind === this.#charge[at] && kind !== CHARGE.numbered) return
    this.#charge[at] = kind
    const texts = this.#texts.get(at)
    if (texts === undefined && kind !== CHARGE.numbered) return
    this.#setTexts(at, texts, { fault: texts?.fault, wireHex: texts?.wireHex ?? null, charge: charge ?? '' })
  }

  #setTexts(at: number, texts: PortTexts | undefined, { fault, wireHex, charge }: PortTexts): void {
    if (fault === undefined && wireHex === null && charge === '') {
      if (texts !== undefined) this.#texts.delete(at)
    } else if (texts === undefined) this.#texts.set(at, { fault, wireHex, charge })
    else {
      texts.fault = fault
      texts.wireHex = wireHex
      texts.charge = charge
    }
  }

  #hasStepped(at: number, column: number, is: number | undefined, step: number): boolean {
    return is !== undefined && Math.abs(is - (this.#value(at, column) ?? 0)) >= step
  }

  #value(at: number, column: number): number | undefined {
    const valuesAt = this.#valuesAt[at]!
    if (valuesAt === NO_VALUES) return undefined
    const value = this.#values[valuesAt * MEASURED.length + column]!
    return Number.isNaN(value) ? undefined : value
  }

  /** What a report does not say stays as it was. */
  #setValue(at: number, column: number, value: number | undefined): void {
    if (value === undefined) return
    let valuesAt = this.#valuesAt[at]!
    if (valuesAt === NO_VALUES) {
      valuesAt = this.#freeValues.pop() ?? this.#valuesCount++
      if ((valuesAt + 1) * MEASURED.length > this.#values.length) {
        const larger = new Float64Array(this.#values.length * 2)
        larger.set(this.#values)
        this.#values = larger
      }
      this.#values.fill(Number.NaN, valuesAt * MEASURED.length, (valuesAt + 1) * MEASURED.length)
      this.#valuesAt[at] = valuesAt
    }
    this.#values[valuesAt * MEASURED.length + column] = value
  }

  /** What was measured of a charge is over with it, where the report of its end says nothing of it. */
  #forgetCharge(at: number, reading: PortReading): void {
    const valuesAt = this.#valuesAt[at]!
    if (valuesAt === NO_VALUES) return
    for (const column of [POWER, CURRENT, ENERGY])
      if (reading[MEASURED[column]!] === undefined) this.#values[valuesAt * MEASURED.length + column] = Number.NaN
  }

  #growPorts(): void {
    const count = this.#next.length * 2
    const words = (from: Int32Array) => {
      const to = new Int32Array(count)
      to.set(from)
      return to
    }
    const ports = new Uint16Array(count)
    ports.set(this.#port)
    this.#port = ports
    const bytes = (from: Uint8Array) => {
      const to = new Uint8Array(count)
      to.set(from)
      return to
    }
    this.#next = words(this.#next)
    this.#stateRaw = words(this.#stateRaw)
    this.#valuesAt = words(this.#valuesAt)
    this.#socket = bytes(this.#socket)
    this.#state = bytes(this.#state)
    this.#flags = bytes(this.#flags)
    this.#charge = bytes(this.#charge)
  }
}
