/**
 * The database as a model: tables are maps by natural key, a write commits at one moment and is answered at another, or
 * never. Beside it what main keeps of it: is it there (health), and the spool of history rows that wait for it.
 */

import type { StartRow } from '../../workers/writer/order-book.ts'
import type { Health, SpanOutcome } from '../main/lane-pump.ts'
import {
  type CommandFateRow,
  commandFateRow,
  commandLogRow,
  deviceStateRow,
  eventRow,
  orderStartRow,
  type ProgressRow,
  portStateRow,
  progressRow,
  ROW_KINDS,
  type SettlementRow,
  sessionRow,
  settlementRow,
} from '../rows/index.ts'
import { decodeRows, rowBytesAt } from '../rows/row.ts'
import type { Span } from '../shared/outbox.ts'
import { ROW_HEADER_BYTES } from '../shared/outbox-layout.ts'
import type { ModelOrders } from './sim-orders.ts'
import { type SeenSettlement, settlementKeyOf } from './sim-wire.ts'
import type { World } from './sim-world.ts'

type Values = Readonly<Record<string, unknown>>

/** What names a row for good (src/rows/index.ts). */
export function rowNameOf(kind: number, row: Values): string {
  switch (kind) {
    case eventRow.kind:
      return `${kind}/${row['eventId']}`
    case sessionRow.kind:
      return `${kind}/${row['deviceId']}/${row['epoch']}/${row['closedMs'] === null ? 'opened' : 'closed'}`
    case commandFateRow.kind:
      return `${kind}/${row['commandId']}/${row['epoch']}/${row['status']}/${row['attempts']}`
    default:
      return `${kind}/${row['deviceId']}/${row['epoch']}/${row['seq']}`
  }
}

/** What a settlement says, without what differs between repeats. */
export function contentOf(row: SettlementRow): string {
  const { durationS, maxPowerW, energyRaw, cardId, endReasonRaw } = row
  return `${durationS} s ${Math.round(maxPowerW * 10)} ${energyRaw} card ${cardId} end ${endReasonRaw}`
}

interface Versioned {
  epoch: number
  seq: number
  state: string
}

export class ModelDatabase {
  isUp = true
  readonly devices = new Map<string, Versioned>()
  readonly ports = new Map<string, Versioned>()
  /** Every row that ever came, by name, with a digest of its bytes. */
  readonly arrived = new Map<string, number>()
  readonly sessions = new Map<string, Values>()
  /** What the devices sent, by settlement key. */
  readonly truth: ReadonlyMap<string, SeenSettlement>
  /** Settlements that some next writes refuse as rows that can never be stored. */
  readonly poison = new Map<string, number>()
  readonly #world: World
  readonly #orders: ModelOrders

  constructor(world: World, truth: ReadonlyMap<string, SeenSettlement>, orders: ModelOrders) {
    this.#world = world
    this.truth = truth
    this.#orders = orders
  }

  /**
   * One transaction.
   * @param bytes whole rows, a copy
   * @param isAlive the writer that waits for the answer
   * @param done rejected: bytes from the start of `bytes` to just past the row
   */
  write(bytes: Uint8Array, isAlive: () => boolean, done: (outcome: SpanOutcome) => void): void {
    const world = this.#world
    const { time, random } = world
    const answer = (outcome: SpanOutcome, afterMs: number) => {
      time.after(afterMs, () => {
        if (isAlive()) done(outcome)
      })
    }
    let commitMs = random.between(1, 15)
    if (world.goesWrong(world.plan.slowWriterShare)) {
      commitMs = random.between(100, 3_000)
      world.covered('writer.slow')
    }
    if (world.goesWrong(world.plan.lostAnswerShare / 4)) {
      // the client gives up first, the commit comes later: a retry may be older than what it repeats
      answer({ kind: 'away' }, commitMs)
      time.after(commitMs + random.between(0, 4_000), () => {
        if (!this.isUp) return
        world.covered('commit.after_away')
        this.#commit(bytes)
      })
      return
    }
    time.after(commitMs, () => {
      if (!this.isUp) {
        answer({ kind: 'away' }, random.between(0, 2_000))
        return
      }
      if (!isAlive()) world.covered('commit.after_gateway_crash')
      const rejected = this.#commit(bytes)
      const isLost = world.goesWrong(world.plan.lostAnswerShare)
      if (isLost) world.covered('commit.answer_lost')
      answer(isLost ? { kind: 'away' } : { kind: 'stored', rejected }, random.between(0.2, 5))
    })
  }

  #commit(bytes: Uint8Array): number[] {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    const places = new Map<number, { readonly from: number; readonly to: number }[]>()
    // most rows are log lines, of which only the name counts here
    const others = new Uint8Array(bytes.length)
    let othersBytes = 0
    for (let from = 0; from < bytes.length; ) {
      const to = from + rowBytesAt(view, from)
      const kind = view.getUint16(from, true)
      if (kind === commandLogRow.kind) this.#keepLogLine(bytes, view, from, to)
      else {
        const list = places.get(kind)
        if (list === undefined) places.set(kind, [{ from, to }])
        else list.push({ from, to })
        others.set(bytes.subarray(from, to), othersBytes)
        othersBytes += to - from
      }
      from = to
    }
    const rejected: number[] = []
    const fates: CommandFateRow[] = []
    const starts: StartRow[] = []
    const progress: ProgressRow[] = []
    const settlements: SettlementRow[] = []
    for (const { row, count, columns } of decodeRows(others.subarray(0, othersBytes), ROW_KINDS)) {
      const names = Object.keys(row.fields)
      for (let index = 0; index < count; index++) {
        const values: Record<string, unknown> = {}
        for (const name of names) values[name] = (columns[name] as unknown[])[index]
        const { from, to } = places.get(row.kind)![index]!
        if (row.kind === settlementRow.kind) {
          if (this.#canStore(values as unknown as SettlementRow)) settlements.push(values as unknown as SettlementRow)
          else rejected.push(to)
        } else if (row.kind === commandFateRow.kind) fates.push(values as unknown as CommandFateRow)
        else if (row.kind === orderStartRow.kind) starts.push(values as unknown as StartRow)
        else {
          if (row.kind === progressRow.kind) progress.push(values as unknown as ProgressRow)
          this.#keep(row.kind, values, digestOf(bytes, from, to))
        }
      }
    }
    if (fates.length + starts.length + progress.length + settlements.length > 0)
      this.#orders.apply({ fates, starts, progress, settlements })
    return rejected.sort((one, other) => one - other)
  }

  /** @returns false: refused, the row was put aside */
  #canStore(row: SettlementRow): boolean {
    const world = this.#world
    const key = settlementKeyOf(row, row.wireHex)
    const refusals = this.poison.get(key) ?? 0
    if (refusals > 0) {
      this.poison.set(key, refusals - 1)
      world.covered('settlement.put_aside')
      return false
    }
    const content = contentOf(row)
    const sent = this.truth.get(key)?.content
    if (sent !== content)
      world.violated('none contradicting', `settlement ${key} is "${content}", the device sent "${sent}"`)
    return true
  }

  /** Device, epoch and sequence begin a log line. */
  #keepLogLine(bytes: Uint8Array, view: DataView, from: number, to: number): void {
    const textAt = from + ROW_HEADER_BYTES + 2
    const epochAt = textAt + view.getUint16(textAt - 2, true)
    const deviceId = String.fromCharCode(...bytes.subarray(textAt, epochAt))
    const values = { deviceId, epoch: view.getFloat64(epochAt, true), seq: view.getFloat64(epochAt + 8, true) }
    this.#arrive(commandLogRow.kind, values, digestOf(bytes, from, to))
  }

  #keep(kind: number, values: Values, digest: number): void {
    this.#arrive(kind, values, digest)
    const epoch = values['epoch'] as number
    const seq = values['seq'] as number
    if (kind === deviceStateRow.kind) this.#upsert(this.devices, String(values['deviceId']), { epoch, seq, state: '' })
    else if (kind === portStateRow.kind)
      this.#upsert(this.ports, `${values['deviceId']}/${values['socket']}/${values['port']}`, {
        epoch,
        seq,
        state: String(values['state']),
      })
  }

  #arrive(kind: number, values: Values, digest: number): void {
    const name = rowNameOf(kind, values)
    const known = this.arrived.get(name)
    // the close of a session and an event may be told again in other words; a row with a sequence may not
    if (known !== undefined && known !== digest && kind !== sessionRow.kind && kind !== eventRow.kind)
      this.#world.violated('no row contradicting', `two rows are named ${name}`)
    this.arrived.set(name, digest)
  }

  /** The writers' fence: an older (epoch, seq) changes nothing. */
  #upsert(table: Map<string, Versioned>, key: string, row: Versioned): void {
    const known = table.get(key)
    const isNewer = known === undefined || row.epoch > known.epoch || (row.epoch === known.epoch && row.seq > known.seq)
    if (isNewer || this.#world.mutant === 'stateUnfenced') table.set(key, row)
  }
}

function digestOf(bytes: Uint8Array, from: number, to: number): number {
  let hash = 0x811c9dc5
  for (let at = from; at < to; at++) hash = Math.imul(hash ^ (bytes[at] as number), 0x01000193)
  return hash
}

export function bytesOf(span: Span): Uint8Array {
  return new Uint8Array(span.memory).slice(span.fromIndex, span.toIndex)
}

/** As src/main/database/health.ts, on the virtual clock. */
export class ModelHealth implements Health {
  readonly #world: World
  readonly #database: ModelDatabase
  readonly #isAlive: () => boolean
  readonly #listeners: (() => void)[] = []
  #isHere = true
  #awaySinceMs = 0

  constructor(world: World, database: ModelDatabase, isAlive: () => boolean) {
    this.#world = world
    this.#database = database
    this.#isAlive = isAlive
    this.#watch()
  }

  get isHere(): boolean {
    return this.#isHere
  }

  get awayMs(): number {
    return this.#isHere ? 0 : this.#world.time.nowMs - this.#awaySinceMs
  }

  onBack(listener: () => void): void {
    this.#listeners.push(listener)
  }

  lost(): void {
    if (!this.#isHere) return
    this.#world.trace(() => 'main: database away')
    this.#isHere = false
    this.#awaySinceMs = this.#world.time.nowMs
    this.#probe()
  }

  /** A server that stands still fails nobody for long: main asks by itself, too. */
  #watch(): void {
    this.#world.time.after(1_000, () => {
      if (!this.#isAlive()) return
      if (!this.#database.isUp) this.lost()
      this.#watch()
    })
  }

  #probe(): void {
    this.#world.time.after(500, () => {
      if (!this.#isAlive()) return
      if (!this.#database.isUp) return this.#probe()
      this.#world.trace(() => 'main: database back')
      this.#isHere = true
      for (const listener of this.#listeners) listener()
    })
  }
}

interface SpoolFile {
  readonly records: Uint8Array[]
  appending: number
  isDraining: boolean
  onEmpty: () => void
}

/** Files on disk: they outlive the gateway. Same rules as src/main/spool.ts. */
export class ModelSpool {
  readonly #world: World
  readonly #database: ModelDatabase
  readonly #files = new Map<string, SpoolFile>()
  /** Names of rows that were dropped because the spool was full. */
  readonly dropped = new Set<string>()
  #bytes = 0
  #starts = 0
  #health: ModelHealth | undefined

  constructor(world: World, database: ModelDatabase) {
    this.#world = world
    this.#database = database
  }

  get isEmpty(): boolean {
    return this.#files.size === 0
  }

  /** A gateway starts: what an earlier one left keeps its rows and gives up its name. */
  opened(health: ModelHealth): void {
    this.#starts++
    this.#health = health
    for (const [name, file] of [...this.#files]) {
      this.#world.covered('spool.left_over')
      this.#files.delete(name)
      this.#files.set(name.startsWith('left') ? name : `left-${this.#starts}-${name}`, {
        records: file.records,
        appending: 0,
        isDraining: false,
        onEmpty: () => {},
      })
    }
    health.onBack(() => this.drainAll())
    this.drainAll()
  }

  isSpooling(shard: number): boolean {
    return this.#files.has(`shard-${shard}`)
  }

  /** Is there no room, or an append under way? Then a lane may rest. */
  isBusy(shard: number): boolean {
    return (this.#files.get(`shard-${shard}`)?.appending ?? 0) > 0
  }

  spill(shard: number, span: Span, isAlive: () => boolean, onEmpty: () => void): Promise<void> {
    const world = this.#world
    const name = `shard-${shard}`
    const file = this.#files.get(name) ?? { records: [], appending: 0, isDraining: false, onEmpty }
    this.#files.set(name, file)
    const bytes = bytesOf(span)
    if (this.#bytes + bytes.length > world.plan.spoolBytesMax) {
      world.covered('spool.full')
      for (const { row, count, columns } of decodeRows(bytes, ROW_KINDS))
        for (let index = 0; index < count; index++)
          this.dropped.add(
            rowNameOf(row.kind, Object.fromEntries(Object.entries(columns).map(([key, list]) => [key, list[index]]))),
          )
      world.owesTurn = true
      return Promise.resolve()
    }
    file.appending++
    return new Promise((resolve) => {
      world.time.after(world.random.between(0.5, 8), () => {
        // a crash before the sync: the record is torn, and its rows were not released
        if (!isAlive()) return
        world.covered('spool.used')
        file.appending--
        file.records.push(bytes)
        this.#bytes += bytes.length
        world.owesTurn = true
        resolve()
        if (this.#health?.isHere === true) this.#drain(name, file)
      })
    })
  }

  drainAll(): void {
    for (const [name, file] of this.#files) this.#drain(name, file)
  }

  #drain(name: string, file: SpoolFile): void {
    if (file.isDraining) return
    file.isDraining = true
    this.#drainFrom(name, file, 0, this.#starts)
  }

  #drainFrom(name: string, file: SpoolFile, index: number, start: number): void {
    const world = this.#world
    const health = this.#health as ModelHealth
    if (start !== this.#starts) return
    if (!health.isHere) {
      file.isDraining = false
      return
    }
    const record = file.records[index]
    if (record === undefined) {
      if (file.appending > 0) {
        world.time.after(1, () => this.#drainFrom(name, file, index, start))
        return
      }
      for (const { length } of file.records) this.#bytes -= length
      this.#files.delete(name)
      file.onEmpty()
      return
    }
    this.#database.write(
      record,
      () => start === this.#starts,
      (outcome) => {
        if (outcome.kind === 'stored') return this.#drainFrom(name, file, index + 1, start)
        world.covered('spool.drain_interrupted')
        file.isDraining = false
        if (world.mutant === 'spoolDropped') file.records.length = 0
        health.lost()
      },
    )
  }
}
