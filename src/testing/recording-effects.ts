/** Effects kept in lists, for tests of session logic: what was sent, stored, closed, asked, in order. */
import type { Uplink } from '../codec/protocol.ts'
import { ROW_KINDS } from '../rows/index.ts'
import { decodeRows, encodeRow, type Field, type RowKind, type RowOf } from '../rows/row.ts'
import type { CardQuestion, CloseReason, Effects, ReturnedCommand, SessionCounts } from '../session/effects.ts'
import { ROW_REFUSED } from '../session/effects.ts'

export interface SentFrame {
  readonly connectionId: number
  readonly hex: string
  readonly answers: string
}

export interface KeptRow {
  readonly table: string
  readonly position: number
  readonly values: Record<string, unknown>
}

export class RecordingEffects implements Effects {
  readonly sent: SentFrame[] = []
  readonly closed: { readonly connectionId: number; readonly reason: CloseReason }[] = []
  readonly rows: KeptRow[] = []
  readonly questions: CardQuestion[] = []
  readonly superseded: { readonly shard: number; readonly deviceKey: number; readonly epoch: number }[] = []
  readonly devicesRefused: string[] = []
  readonly counted: Record<string, number> = {}
  /** Lanes that refuse rows. */
  readonly full = new Set<string>()
  /** Connections whose peers do not read. */
  readonly stalled = new Set<number>()
  #position = 0

  readonly counts: SessionCounts = {
    uplink: (_, command) => this.#count(`uplink ${command?.name ?? 'unknown'}`),
    downlink: (_, command) => this.#count(`downlink ${command.name}`),
    frameError: (_, reason) => this.#count(`error ${reason}`),
    connections: (_, change) => this.#count('connections', change),
    devices: (_, change) => this.#count('devices', change),
    closed: (reason) => this.#count(`closed ${reason}`),
    takeover: () => this.#count('takeover'),
    fenced: (what) => this.#count(`fenced ${what}`),
    ackWithheld: () => this.#count('withheld'),
    rowRefused: (lane) => this.#count(`refused ${lane}`),
    cardLookup: (result) => this.#count(`card ${result}`),
    command: (command, outcome) => this.#count(`command ${command.name} ${outcome}`),
    commandSeconds: () => this.#count('command seconds'),
    commandResent: (command) => this.#count(`resent ${command.name}`),
    commandsPending: (change) => this.#count('commands pending', change),
  }

  #count(what: string, n = 1): void {
    this.counted[what] = (this.counted[what] ?? 0) + n
  }

  send(connectionId: number, frame: Uint8Array, answers: Uplink | undefined): boolean {
    if (this.stalled.has(connectionId)) return false
    this.sent.push({ connectionId, hex: Buffer.from(frame).toString('hex'), answers: answers?.name ?? '' })
    return true
  }

  record(): void {}

  close(connectionId: number, reason: CloseReason): void {
    this.closed.push({ connectionId, reason })
  }

  appendRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): number {
    if (this.full.has(row.lane)) {
      this.counts.rowRefused(row.lane)
      return ROW_REFUSED
    }
    // through the real bytes: what cannot be encoded fails here as it would in the worker
    const bytes = encodeRow(row, values)
    const [decoded] = decodeRows(bytes, ROW_KINDS)
    this.#position += bytes.length
    const read = Object.fromEntries(Object.entries(decoded!.columns).map(([name, column]) => [name, column[0]]))
    this.rows.push({ table: row.table, position: this.#position, values: read })
    return this.#position
  }

  askCard(question: CardQuestion): void {
    this.questions.push(question)
  }

  readonly online: number[] = []
  readonly returned: { readonly deviceKey: number; readonly command: ReturnedCommand }[] = []
  readonly moved: { readonly commandId: string; readonly status: number }[] = []

  deviceOnline(deviceKey: number): void {
    this.online.push(deviceKey)
  }

  deviceRefused(deviceId: string): void {
    this.devicesRefused.push(deviceId)
  }

  returnCommand(deviceKey: number, command: ReturnedCommand): void {
    this.returned.push({ deviceKey, command })
  }

  commandMoved(commandId: string, status: number): void {
    this.moved.push({ commandId, status })
  }

  supersede(shard: number, deviceKey: number, epoch: number): void {
    this.superseded.push({ shard, deviceKey, epoch })
  }

  rowsOf(table: string): KeptRow[] {
    return this.rows.filter((row) => row.table === table)
  }

  /** Position just past the last row. */
  get position(): number {
    return this.#position
  }
}
