/**
 * A span of rows into the database: all of it in one transaction, all of it idempotent, so that a span which was
 * committed without our knowing is simply inserted again.
 *
 * Order of locks, the same in every writer: devices by id, then everything that hangs on them, then the event cursor.
 * Whoever holds a device's row is alone with its ports, sessions and orders among writers.
 */
import { createHash } from 'node:crypto'
import { eventIdOf } from '../../src/events/event-id.ts'
import { databaseErrorCode, type Sql, type TransactionSql } from '../../src/main/database/connect.ts'
import { energyWhPerRaw } from '../../src/protocols/index.ts'
import {
  commandFateRow,
  commandLogRow,
  deviceStateRow,
  eventRow,
  opaqueSettlementRow,
  orderStartRow,
  portStateRow,
  progressRow,
  ROW_KINDS,
  sessionRow,
  settlementRow,
} from '../../src/rows/index.ts'
import { decodeRows, type Field, type RowColumns, type RowKind, type RowOf, rowBytesAt } from '../../src/rows/row.ts'
import { ROW_HEADER_BYTES } from '../../src/shared/outbox-layout.ts'
import { type Columns, parameters, source } from './columns.ts'
import { type CommandFates, loadFates, writeFates } from './command-fates.ts'
import { type DerivedEvent, noOrderCounts, type OrderBook, type OrderCounts } from './order-book.ts'
import { applyOrderRows, type OrderRows, wantsOf } from './order-rows.ts'
import { loadOrders, writeOrders } from './order-tables.ts'
import { all, fieldOf, pick, run } from './statements.ts'

/**
 * What became of the rows of one table. The three add up to its rows in the span, rejected ones excepted; only in
 * port_samples is `fenced` beside the sum: the sample is kept, its order belongs to a newer session and stays.
 */
export interface TableCounts {
  /** Changed the database, alone or merged with other rows of the span. */
  inserted: number
  /** Changed nothing: known already, or older than what is known. */
  repeated: number
  /** Refused because a newer session speaks for the device. */
  fenced: number
}

/** A row the database would not take; its bytes are in `quarantine`. */
export interface RejectedRow {
  /** Place in the span, bytes. */
  readonly fromByte: number
  readonly toByte: number
  /** '' when the bytes are no row of ours. */
  readonly table: string
  /** SQLSTATE, or GW_ROW_UNREADABLE. */
  readonly code: string
  readonly reason: string
}

export interface SpanResult {
  /** By `RowKind.table`; tables without rows are absent. */
  readonly tables: Record<string, TableCounts>
  /** conflicting: same key, other duration or energy; the first stays, the frame of the other goes to quarantine. */
  readonly settlements: { stored: number; repeated: number; conflicting: number }
  readonly orders: OrderCounts
  readonly rejected: RejectedRow[]
  /** The highest cursor of an event that this span added, those derived from rows included; null: it added none. */
  eventCursor: number | null
  /** From decoding to the answer of the last commit. */
  commitMs: number
}

/** The span is not in the database, or we do not know: insert it again later. Rows the database refuses never throw. */
export class WriteFailure extends Error {
  override readonly name = 'WriteFailure'
  /** SQLSTATE, system or driver code; GW_WRITER_UNKNOWN when the error had none. */
  readonly code: string
  readonly retryable = true
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/**
 * Inserts all rows of a span.
 *
 * Thread: writer. A row with bad data is found by halving the span; the rest is inserted, the row goes to quarantine.
 * @param bytes whole rows back to back, no padding, not shared memory
 * @throws WriteFailure connection lost, server stopping, lock timeout, disk full, schema missing: keep the span
 */
export async function insertSpan(sql: Sql, bytes: Uint8Array): Promise<SpanResult> {
  const startedMonoMs = performance.now()
  const result: SpanResult = {
    tables: {},
    settlements: { stored: 0, repeated: 0, conflicting: 0 },
    orders: noOrderCounts(),
    rejected: [],
    eventCursor: null,
    commitMs: 0,
  }
  if (bytes.length > 0) await insertRange(sql, bytes, 0, bytes.length, result)
  result.commitMs = performance.now() - startedMonoMs
  return result
}

/** Tries of what may pass at once before it counts as failure. */
const TRIES = 5
/**
 * Contention (serialization, deadlock, a unique key taken at the same moment), and a connection that was cut: the next
 * query opens another, but up to three may still read the old connection's end (ECONNRESET, CLOSED, 57P01). When the server is
 * really away the next try says so within milliseconds.
 */
const PASSING = new Set(['40001', '40P01', '23505', '57P01', 'CONNECTION_CLOSED', 'ECONNRESET', 'EPIPE'])

async function insertRange(sql: Sql, bytes: Uint8Array, from: number, to: number, result: SpanResult): Promise<void> {
  let failure: Failure | null = null
  for (let tries = 0; tries < TRIES; tries++) {
    try {
      const groups = decodeRows(bytes.subarray(from, to), ROW_KINDS)
      const outcome = await sql.begin((tx) => insertGroups(tx, groups, tries > 0))
      addResult(result, outcome)
      return
    } catch (error) {
      failure = classify(error)
      if (!failure.isPassing) break
    }
  }
  const { code, isPoison, message, cause } = failure!
  if (!isPoison) throw new WriteFailure(code, message, { cause })
  const middle = middleRow(bytes, from, to)
  if (middle === to) {
    const table = tableAt(bytes, from)
    await quarantineRow(sql, bytes.subarray(from, to), `${table} ${code}: ${message}`)
    result.rejected.push({ fromByte: from, toByte: to, table, code, reason: message })
    return
  }
  await insertRange(sql, bytes, from, middle, result)
  await insertRange(sql, bytes, middle, to, result)
}

interface Failure {
  readonly code: string
  /** The data is at fault: it fails again however often it is tried. */
  readonly isPoison: boolean
  readonly isPassing: boolean
  readonly message: string
  readonly cause: unknown
}

/**
 * Classes of SQLSTATE: 21 cardinality, 22 data, 23 constraint and 54 limits are the row's fault, and so is an error
 * without any code, which is ours about this row. Everything else is the world's and may pass: 08 connection, 25
 * read-only, 40 rollback, 42 schema not migrated, 53 resources, 55 locks, 57 stopping, 58 system, XX corruption.
 */
function classify(error: unknown): Failure {
  const message = error instanceof Error ? error.message : String(error)
  const code = databaseErrorCode(error)
  if (code === undefined) return { code: 'GW_ROW_UNREADABLE', isPoison: true, isPassing: false, message, cause: error }
  return {
    code,
    isPoison: /^(21|22|23|54)...$/.test(code),
    isPassing: PASSING.has(code),
    message,
    cause: error,
  }
}

/** The row boundary nearest behind the middle of from..to; `to` when there is one row, or bytes that are no rows. */
function middleRow(bytes: Uint8Array, from: number, to: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let at = from
  while (at + ROW_HEADER_BYTES <= to) {
    const end = at + rowBytesAt(view, at)
    // A declared length that leads outside: what lies before it is good, the rest is one piece.
    if (end > to) return at > from ? at : to
    if (end === to) return at > from ? at : to
    at = end
    if (at - from >= (to - from) / 2) return at
  }
  return at > from && at < to ? at : to
}

function tableAt(bytes: Uint8Array, at: number): string {
  if (at + ROW_HEADER_BYTES > bytes.length) return ''
  return ROW_KINDS.get(bytes[at]! | (bytes[at + 1]! << 8))?.table ?? ''
}

/** Evidence is kept once, however often the span comes. */
async function quarantineRow(sql: Sql, bytes: Uint8Array, note: string): Promise<void> {
  const digest = `row:${createHash('sha256').update(bytes).digest('hex')}`
  try {
    await sql`
      insert into quarantine (reason, bytes, note, digest)
      values ('row_rejected', ${Buffer.from(bytes)}, ${note.replaceAll('\0', '').slice(0, 2_000)}, ${digest})
      on conflict (digest) do nothing`
  } catch (error) {
    const { code, message } = classify(error)
    throw new WriteFailure(code, message, { cause: error })
  }
}

type Outcome = Omit<SpanResult, 'rejected' | 'commitMs'>

function addResult(to: SpanResult, from: Outcome): void {
  for (const [table, counts] of Object.entries(from.tables)) {
    const sum = countsOf(to.tables, table)
    sum.inserted += counts.inserted
    sum.repeated += counts.repeated
    sum.fenced += counts.fenced
  }
  to.settlements.stored += from.settlements.stored
  to.settlements.repeated += from.settlements.repeated
  to.settlements.conflicting += from.settlements.conflicting
  const { illegal, ...counts } = from.orders
  for (const name of Object.keys(counts) as (keyof typeof counts)[]) to.orders[name] += counts[name]
  for (const [name, count] of Object.entries(illegal)) to.orders.illegal[name] = (to.orders.illegal[name] ?? 0) + count
  if (from.eventCursor !== null) to.eventCursor = Math.max(to.eventCursor ?? 0, from.eventCursor)
}

function countsOf(tables: Record<string, TableCounts>, table: string): TableCounts {
  tables[table] ??= { inserted: 0, repeated: 0, fenced: 0 }
  return tables[table]
}

// ---- one transaction ----

interface Known {
  readonly epoch: number
  readonly seq: number
  readonly tenantId: string
  /** What people chose; null: nothing. */
  readonly modelProfile: string | null
}
/** What a step did to the rows it was given. */
interface Step {
  readonly table: string
  readonly counts: TableCounts
}

/** @param mayRepeat rows of the history may be in the database already */
async function insertGroups(tx: TransactionSql, groups: readonly RowColumns[], mayRepeat: boolean): Promise<Outcome> {
  const span = {
    settlements: rowsOf(groups, settlementRow),
    opaque: rowsOf(groups, opaqueSettlementRow),
    starts: rowsOf(groups, orderStartRow),
    progress: rowsOf(groups, progressRow),
    fates: rowsOf(groups, commandFateRow),
    devices: rowsOf(groups, deviceStateRow),
    ports: rowsOf(groups, portStateRow),
    sessions: rowsOf(groups, sessionRow),
    events: rowsOf(groups, eventRow),
  }
  const protocols = new Map<string, string>()
  for (const rows of [span.settlements, span.opaque, span.starts, span.progress, span.devices, span.sessions])
    for (const { deviceId, protocol } of rows) protocols.set(deviceId, protocol)
  const ids = new Set(protocols.keys())
  for (const rows of [span.ports, span.fates]) for (const { deviceId } of rows) ids.add(deviceId)
  const known = await lockDevices(tx, protocols, ids)
  const progress = columnsOf(groups, progressRow)
  convertEnergy(span.settlements, span.progress, progress, known)
  const tenants = new Map([...known].map(([deviceId, { tenantId }]) => [deviceId, tenantId]))

  const settlements = { stored: 0, repeated: 0, conflicting: 0 }
  // Sent without waiting for one another; the server runs them in this order. Events last (see 0003_history.sql).
  const [orders, ports, sockets, ...others] = await all([
    moveOrders(tx, span, tenants, settlements),
    upsertPorts(tx, span.ports, known),
    upsertSockets(tx, span.ports, known),
    updateDevices(tx, span.devices, span.sessions, known),
    upsertSessions(tx, span.sessions),
    insertOpaque(tx, span.opaque),
    insertHistory(tx, SAMPLES, progress, mayRepeat),
    insertHistory(tx, COMMAND_LOG, columnsOf(groups, commandLogRow), mayRepeat),
  ])
  const { opened, closed } = sessionEvents(span.sessions, known)
  const events = await insertEvents(tx, span.events, {
    before: opened,
    beside: [...orders.fates.events, ...orders.book.events, ...sockets, ...ports.events],
    behind: closed,
  })
  const tables: Record<string, TableCounts> = {}
  for (const step of [...orders.steps, ports.step, ...others, events.step])
    if (step !== null) countsOfStep(tables, step)
  return { tables, settlements, orders: orders.book.counts, eventCursor: events.cursor }
}

function countsOfStep(tables: Record<string, TableCounts>, { table, counts }: Step): void {
  const sum = countsOf(tables, table)
  sum.inserted += counts.inserted
  sum.repeated += counts.repeated
  sum.fenced += counts.fenced
}

function columnsOf(groups: readonly RowColumns[], row: { readonly kind: number }): RowColumns | undefined {
  return groups.find((group) => group.row.kind === row.kind)
}

/** The rows of one kind as objects, in the order they were appended. */
function rowsOf<F extends Record<string, Field>>(groups: readonly RowColumns[], row: RowKind<F>): RowOf<F>[] {
  const group = columnsOf(groups, row)
  if (group === undefined) return []
  const names = Object.keys(row.fields)
  return Array.from({ length: group.count }, (_, index) => {
    const object: Record<string, unknown> = {}
    for (const name of names) object[name] = group.columns[name]![index]
    return object as RowOf<F>
  })
}

// ---- what a raw count of energy is worth ----

/**
 * Energy by the profile that the table names now, whatever the session knew when the report came: the row may have waited
 * for the database, or the profile been changed a moment ago. The device's row is locked: no price is made of a factor
 * that is being replaced. Rows of a span are objects and columns of this call alone, and are changed in place.
 */
function convertEnergy(
  settlements: readonly EnergyRow[],
  progress: readonly EnergyRow[],
  samples: RowColumns | undefined,
  known: ReadonlyMap<string, Known>,
): void {
  const factorOf = ({ deviceId, protocol }: EnergyRow) =>
    energyWhPerRaw(protocol, (known.get(deviceId) ?? UNKNOWN).modelProfile)
  for (const rows of [settlements, progress])
    for (const row of rows) {
      const factor = factorOf(row)
      // a report without energy stays without
      if (factor !== undefined && row.energyRaw !== null && row.energyWh !== null) row.energyWh = row.energyRaw * factor
    }
  const column = samples?.columns['energyWh'] as (number | null)[] | undefined
  if (column !== undefined) for (const [index, { energyWh }] of progress.entries()) column[index] = energyWh
}

interface EnergyRow {
  readonly deviceId: string
  readonly protocol: string
  readonly energyRaw: number | null
  energyWh: number | null
}

// ---- devices, ports, sockets, sessions ----

const KNOWN_DEVICES: Columns = { device_id: 'text', protocol: 'text' }
const ENSURE_DEVICES = `
  insert into devices (device_id, protocol) select device_id, protocol from ${source(KNOWN_DEVICES)}
  order by device_id on conflict (device_id) do nothing`
const LOCK_DEVICES = `
  select device_id, epoch, seq, tenant_id, model_profile from devices where device_id = any($1::text[])
  order by device_id for no key update`

interface KnownRow {
  readonly device_id: string
  readonly epoch: number
  readonly seq: number
  readonly tenant_id: string
  readonly model_profile: string | null
}

/**
 * Nearly always all of them are there: making the missing ones first would cost the server more than the locks do (3 us
 * per device against 2). Where one is missing, and another span of the same moment brings it too, the two may have to be
 * told apart by the server (40P01); that passes.
 */
async function lockDevices(
  tx: TransactionSql,
  protocols: ReadonlyMap<string, string>,
  ids: ReadonlySet<string>,
): Promise<ReadonlyMap<string, Known>> {
  if (ids.size === 0) return new Map()
  const list = parameters({ ids: 'text' }, { ids: [...ids] })
  const lock = () => run<KnownRow>(tx, LOCK_DEVICES, list)
  let rows = await lock()
  // ports and fates alone make no device: who has no row stays without
  const found = new Set(rows.map(({ device_id }) => device_id))
  const missing = [...protocols].filter(([deviceId]) => !found.has(deviceId))
  if (missing.length > 0) {
    const values = { device_id: missing.map(([deviceId]) => deviceId), protocol: missing.map(([, name]) => name) }
    ;[, rows] = await all([run(tx, ENSURE_DEVICES, parameters(KNOWN_DEVICES, values)), lock()])
  }
  return new Map(
    rows.map(({ device_id, epoch, seq, tenant_id, model_profile }) => [
      device_id,
      { epoch, seq, tenantId: tenant_id, modelProfile: model_profile },
    ]),
  )
}

const UNKNOWN: Known = { epoch: 0, seq: -1, tenantId: 'default', modelProfile: null }

const DEVICES = {
  device_id: 'text',
  protocol: 'text',
  epoch: 'int8',
  seq: 'int8',
  last_seen_at: 'time',
  registered_at: 'time',
  firmware: 'text',
  device_type: 'text',
  port_count: 'int4',
  iccid: 'text',
  imei: 'text',
  module: 'text',
  signal: 'int4',
  voltage_v: 'float8',
  temperature_c: 'float8',
  virtual_id: 'int4',
  work_mode: 'int4',
  clock_offset_ms: 'float8',
} as const satisfies Columns
/** What a device says about itself: null in a row means that it stays. */
const DEVICE_FIELDS = {
  registered_at: 'registeredMs',
  firmware: 'firmware',
  device_type: 'deviceType',
  port_count: 'portCount',
  iccid: 'iccid',
  imei: 'imei',
  module: 'module',
  signal: 'signal',
  voltage_v: 'voltageV',
  temperature_c: 'temperatureC',
  virtual_id: 'virtualId',
  work_mode: 'workMode',
  clock_offset_ms: 'clockOffsetMs',
} as const satisfies Record<string, keyof RowOf<typeof deviceStateRow.fields>>
const UPDATE_DEVICES = `
  update devices d set
    protocol = coalesce(d.protocol, i.protocol),
    seq = case when i.epoch > d.epoch then i.seq when i.epoch = d.epoch then greatest(d.seq, i.seq) else d.seq end,
    epoch = greatest(d.epoch, i.epoch),
    last_seen_at = greatest(d.last_seen_at, i.last_seen_at),
    ${Object.keys(DEVICE_FIELDS)
      .map((name) => `${name} = coalesce(i.${name}, d.${name})`)
      .join(', ')},
    updated_at = now()
  from ${source(DEVICES)}
  where d.device_id = i.device_id
    and ((i.epoch, i.seq) > (d.epoch, d.seq) or i.last_seen_at > coalesce(d.last_seen_at, '-infinity'))`

interface DeviceChange {
  device_id: string
  protocol: string
  epoch: number
  seq: number
  last_seen_at: number
  fields: Record<string, unknown>
}

async function updateDevices(
  tx: TransactionSql,
  rows: readonly RowOf<typeof deviceStateRow.fields>[],
  sessions: readonly RowOf<typeof sessionRow.fields>[],
  known: ReadonlyMap<string, Known>,
): Promise<Step | null> {
  if (rows.length === 0 && sessions.length === 0) return null
  const counts: TableCounts = { inserted: 0, repeated: 0, fenced: 0 }
  const changes = new Map<string, DeviceChange>()
  const changeOf = (deviceId: string, protocol: string): DeviceChange => {
    let change = changes.get(deviceId)
    if (change === undefined) {
      const { epoch, seq } = known.get(deviceId) ?? UNKNOWN
      change = { device_id: deviceId, protocol, epoch, seq, last_seen_at: Number.NEGATIVE_INFINITY, fields: {} }
      changes.set(deviceId, change)
    }
    return change
  }
  // In the order in which they were said, so that the newest word on each field wins.
  for (const row of rows.toSorted((a, b) => a.epoch - b.epoch || a.seq - b.seq)) {
    const change = changeOf(row.deviceId, row.protocol)
    change.last_seen_at = Math.max(change.last_seen_at, row.lastSeenMs)
    if (row.epoch < change.epoch) counts.fenced++
    else if (row.epoch === change.epoch && row.seq <= change.seq) counts.repeated++
    else {
      counts.inserted++
      change.epoch = row.epoch
      change.seq = row.seq
      for (const [name, field] of Object.entries(DEVICE_FIELDS))
        if (row[field] !== null) change.fields[name] = row[field]
    }
  }
  // A session that opens is the newer speaker from its first moment, before the device says anything about itself.
  for (const row of sessions) {
    const change = changeOf(row.deviceId, row.protocol)
    change.last_seen_at = Math.max(change.last_seen_at, row.openedMs)
    if (row.epoch > change.epoch) Object.assign(change, { epoch: row.epoch, seq: -1 })
  }
  const list = [...changes.values()]
  const mapping: Record<string, (change: DeviceChange) => unknown> = {
    device_id: (c) => c.device_id,
    protocol: (c) => c.protocol,
    epoch: (c) => c.epoch,
    seq: (c) => c.seq,
    last_seen_at: (c) => c.last_seen_at,
  }
  for (const name of Object.keys(DEVICE_FIELDS)) mapping[name] = (c) => c.fields[name]
  await run(tx, UPDATE_DEVICES, parameters(DEVICES, pick(list, mapping)))
  return { table: 'devices', counts }
}

type PortRow = RowOf<typeof portStateRow.fields>

const PORTS = {
  device_id: 'text',
  socket: 'int4',
  port: 'int4',
  state: 'text',
  state_raw: 'int4',
  fault: 'text',
  power_w: 'float8',
  voltage_v: 'float8',
  current_a: 'float8',
  energy_wh: 'float8',
  temperature_c: 'float8',
  wire_hex: 'text',
  at: 'time',
  epoch: 'int8',
  seq: 'int8',
} as const satisfies Columns
const PORT_NAMES = Object.keys(PORTS)
/** `before_…`: the snapshot the statement began with, so what was there before it. */
const UPSERT_PORTS = `
  with written as (
  insert into ports (${PORT_NAMES.join(', ')}) select ${PORT_NAMES.join(', ')} from ${source(PORTS)}
  order by device_id, socket, port
  on conflict (device_id, socket, port) do update set
    ${PORT_NAMES.slice(3)
      .map((name) => `${name} = excluded.${name}`)
      .join(', ')}
  where (ports.epoch, ports.seq) < (excluded.epoch, excluded.seq)
  returning device_id, socket, port)
  select w.device_id, w.socket, w.port, b.state as before_state, b.fault as before_fault
  from written w left join ports b using (device_id, socket, port)`

async function upsertPorts(
  tx: TransactionSql,
  rows: readonly PortRow[],
  known: ReadonlyMap<string, Known>,
): Promise<{ step: Step | null; events: DerivedEvent[] }> {
  const events: DerivedEvent[] = []
  if (rows.length === 0) return { step: null, events }
  const counts: TableCounts = { inserted: 0, repeated: 0, fenced: 0 }
  const newest = new Map<string, { row: PortRow; rows: number }>()
  for (const row of rows) {
    if (isFenced(row, known)) {
      counts.fenced++
      continue
    }
    const key = `${row.deviceId}/${row.socket}/${row.port}`
    const found = newest.get(key)
    if (found === undefined) newest.set(key, { row, rows: 1 })
    else {
      found.rows++
      if (row.epoch > found.row.epoch || (row.epoch === found.row.epoch && row.seq > found.row.seq)) found.row = row
    }
  }
  const values = pick(
    [...newest.values()].map(({ row }) => row),
    {
      device_id: (r) => r.deviceId,
      socket: (r) => r.socket,
      port: (r) => r.port,
      state: (r) => r.state,
      state_raw: (r) => r.stateRaw,
      fault: (r) => r.fault,
      power_w: (r) => r.powerW,
      voltage_v: (r) => r.voltageV,
      current_a: (r) => r.currentA,
      energy_wh: (r) => r.energyWh,
      temperature_c: (r) => r.temperatureC,
      wire_hex: (r) => r.wireHex,
      at: (r) => r.atMs,
      epoch: (r) => r.epoch,
      seq: (r) => r.seq,
    },
  )
  const written = await run<WrittenPort>(tx, UPSERT_PORTS, parameters(PORTS, values))
  for (const port of written) {
    const found = newest.get(`${port.device_id}/${port.socket}/${port.port}`)
    if (found === undefined) continue
    counts.inserted += found.rows
    const event = portEvent(found.row, port)
    if (event !== null) events.push(event)
  }
  counts.repeated = rows.length - counts.inserted - counts.fenced
  return { step: { table: 'ports', counts }, events }
}

interface WrittenPort {
  readonly device_id: string
  readonly socket: number
  readonly port: number
  readonly before_state: string | null
  readonly before_fault: string | null
}
/** What a port is found in without anything having happened. */
const AT_REST = new Set(['idle', 'plugged', 'offline', 'unknown'])

/** When the state or the fault changed; a port seen for the first time only when it is not at rest. */
function portEvent(row: PortRow, { before_state, before_fault }: WrittenPort): DerivedEvent | null {
  const { deviceId, epoch, seq, socket, port, atMs, state, stateRaw, fault, powerW } = row
  if (before_state === null ? AT_REST.has(state) : before_state === state && before_fault === fault) return null
  const eventType = 'port.state_changed'
  const eventId = eventIdOf(eventType, deviceId, socket, port, epoch, seq)
  const data = { socket, port, state, state_raw: stateRaw, fault, previous_state: before_state, power_w: powerW }
  return { eventId, eventType, deviceId, epoch, orderKey: null, atMs, data }
}

function isFenced(row: { deviceId: string; epoch: number }, known: ReadonlyMap<string, Known>): boolean {
  return row.epoch < (known.get(row.deviceId) ?? UNKNOWN).epoch
}

const SOCKETS: Columns = { device_id: 'text', socket: 'int4', first_seen_at: 'time', last_seen_at: 'time' }
const UPSERT_SOCKETS = `
  insert into gateway_sockets (device_id, socket, first_seen_at, last_seen_at)
  select device_id, socket, first_seen_at, last_seen_at from ${source(SOCKETS)} order by device_id, socket
  on conflict (device_id, socket) do update set last_seen_at = excluded.last_seen_at
  where gateway_sockets.last_seen_at < excluded.last_seen_at
  returning device_id, socket, xmax = 0 as is_new`
const READ_SOCKETS = `select device_id, socket from gateway_sockets where device_id = any($1::text[]) order by device_id, socket`

/**
 * Sockets are known through their ports; not counted as rows of their own.
 *
 * @returns for each gateway with a socket that was never seen before: all it has by now
 */
async function upsertSockets(
  tx: TransactionSql,
  rows: readonly PortRow[],
  known: ReadonlyMap<string, Known>,
): Promise<readonly DerivedEvent[]> {
  const sockets = new Map<string, SeenSocket>()
  for (const row of rows) {
    if (row.socket === 0 || isFenced(row, known)) continue
    const key = `${row.deviceId}/${row.socket}`
    const found = sockets.get(key)
    if (found === undefined)
      sockets.set(key, {
        deviceId: row.deviceId,
        epoch: row.epoch,
        socket: row.socket,
        firstMs: row.atMs,
        lastMs: row.atMs,
      })
    else {
      found.firstMs = Math.min(found.firstMs, row.atMs)
      found.lastMs = Math.max(found.lastMs, row.atMs)
    }
  }
  if (sockets.size === 0) return []
  const values = pick([...sockets.values()], {
    device_id: (s) => s.deviceId,
    socket: (s) => s.socket,
    first_seen_at: (s) => s.firstMs,
    last_seen_at: (s) => s.lastMs,
  })
  const written = await run<{ device_id: string; socket: number; is_new: boolean }>(
    tx,
    UPSERT_SOCKETS,
    parameters(SOCKETS, values),
  )
  const added = written.filter(({ is_new }) => is_new)
  if (added.length === 0) return []
  const ids = [...new Set(added.map(({ device_id }) => device_id))]
  const all = await run<{ device_id: string; socket: number }>(tx, READ_SOCKETS, parameters({ ids: 'text' }, { ids }))
  const socketsOf = (rows: readonly { device_id: string; socket: number }[], id: string) =>
    rows.flatMap(({ device_id, socket }) => (device_id === id ? [socket] : []))
  return ids.map((deviceId) => {
    const news = socketsOf(added, deviceId).sort((a, b) => a - b)
    const { epoch, firstMs } = sockets.get(`${deviceId}/${news[0]}`)!
    const nodes = socketsOf(all, deviceId).map((socket) => ({ socket }))
    const eventType = 'device.network_topology'
    // a socket is new once
    const eventId = eventIdOf(eventType, deviceId, ...news)
    const data = { cause: 'sockets_seen', nodes, added: news }
    return { eventId, eventType, deviceId, epoch, orderKey: null, atMs: firstMs, data }
  })
}

interface SeenSocket {
  readonly deviceId: string
  readonly epoch: number
  readonly socket: number
  firstMs: number
  lastMs: number
}

type SessionRow = RowOf<typeof sessionRow.fields>

const SESSIONS = {
  device_id: 'text',
  epoch: 'int8',
  protocol: 'text',
  shard: 'int4',
  connection_id: 'int8',
  remote_address: 'text',
  iccid: 'text',
  opened_at: 'time',
  closed_at: 'time',
  close_reason: 'text',
} as const satisfies Columns
const SESSION_NAMES = Object.keys(SESSIONS).join(', ')
const UPSERT_SESSIONS = `
  insert into sessions (${SESSION_NAMES}) select ${SESSION_NAMES} from ${source(SESSIONS)}
  order by device_id, epoch
  on conflict (device_id, epoch) do update set
    iccid = coalesce(excluded.iccid, sessions.iccid),
    closed_at = coalesce(sessions.closed_at, excluded.closed_at),
    close_reason = coalesce(sessions.close_reason, excluded.close_reason)
  where (sessions.closed_at is null and excluded.closed_at is not null)
    or (sessions.iccid is null and excluded.iccid is not null)
  returning device_id, epoch`

async function upsertSessions(tx: TransactionSql, rows: readonly SessionRow[]): Promise<Step | null> {
  if (rows.length === 0) return null
  const merged = new Map<string, { row: SessionRow; rows: number }>()
  for (const row of rows) {
    const key = `${row.deviceId}/${row.epoch}`
    const found = merged.get(key)
    if (found === undefined) merged.set(key, { row, rows: 1 })
    else {
      found.rows++
      const { closedMs, closeReason } = found.row.closedMs === null ? row : found.row
      found.row = { ...found.row, iccid: found.row.iccid ?? row.iccid, closedMs, closeReason }
    }
  }
  const values = pick(
    [...merged.values()].map(({ row }) => row),
    {
      device_id: (r) => r.deviceId,
      epoch: (r) => r.epoch,
      protocol: (r) => r.protocol,
      shard: (r) => r.shard,
      connection_id: (r) => r.connectionId,
      remote_address: (r) => r.remoteAddress,
      iccid: (r) => r.iccid,
      opened_at: (r) => r.openedMs,
      closed_at: (r) => r.closedMs,
      close_reason: (r) => r.closeReason,
    },
  )
  const written = await run<{ device_id: string; epoch: number }>(tx, UPSERT_SESSIONS, parameters(SESSIONS, values))
  let inserted = 0
  for (const { device_id, epoch } of written) inserted += merged.get(`${device_id}/${epoch}`)?.rows ?? 0
  return { table: 'sessions', counts: { inserted, repeated: rows.length - inserted, fenced: 0 } }
}

/** Who comes and goes, as far as nobody newer speaks for the device: a takeover is no way of going offline. */
function sessionEvents(rows: readonly SessionRow[], known: ReadonlyMap<string, Known>) {
  const opened: DerivedEvent[] = []
  const closed: DerivedEvent[] = []
  const newest = new Map<string, number>()
  for (const { deviceId, epoch } of rows)
    newest.set(deviceId, Math.max(epoch, newest.get(deviceId) ?? (known.get(deviceId) ?? UNKNOWN).epoch))
  for (const { deviceId, protocol, epoch, iccid, openedMs, closedMs, closeReason } of rows) {
    if (epoch < newest.get(deviceId)!) continue
    const tell = (eventType: string, atMs: number, data: Record<string, unknown>): DerivedEvent => {
      const eventId = eventIdOf(eventType, deviceId, epoch)
      return { eventId, eventType, deviceId, epoch, orderKey: null, atMs, data }
    }
    opened.push(tell('device.online', openedMs, { protocol, iccid }))
    if (closedMs !== null) {
      const data = { protocol, reason: closeReason, online_s: Math.max(0, Math.round((closedMs - openedMs) / 1_000)) }
      closed.push(tell('device.offline', closedMs, data))
    }
  }
  return { opened, closed }
}

// ---- orders ----

type SettlementRow = RowOf<typeof settlementRow.fields>

/** Read under lock, decided in memory (order-rows.ts), written. */
async function moveOrders(
  tx: TransactionSql,
  rows: OrderRows,
  tenants: ReadonlyMap<string, string>,
  settlements: { stored: number; repeated: number; conflicting: number },
): Promise<{ steps: Step[]; book: OrderBook; fates: CommandFates }> {
  const [fates, book] = await all([loadFates(tx, rows.fates), loadOrders(tx, tenants, wantsOf(rows))])
  const { counts, settled, contradicting } = applyOrderRows(rows, fates, book)
  Object.assign(settlements, settled)
  await all([writeFates(tx, fates), writeOrders(tx, book), ...contradicting.map((row) => keepContradiction(tx, row))])
  const steps = Object.entries(counts).flatMap(([table, sum]) =>
    sum.inserted + sum.repeated + sum.fenced > 0 ? [{ table, counts: sum }] : [],
  )
  return { steps, book, fates }
}

/** A repeat that says something else: the order stays as it is, the frame is kept as evidence, once per content. */
async function keepContradiction(tx: TransactionSql, row: SettlementRow): Promise<void> {
  const { deviceId, socket, port, orderKey, orderNo, durationS, energyRaw } = row
  const note = `order ${orderNo}: ${durationS} s and ${energyRaw} raw energy contradict the stored settlement`
  const digest = createHash('sha256')
    .update(`${deviceId}/${socket}/${port}/${orderKey}/${durationS}/${energyRaw}`)
    .digest('hex')
  await tx`
    insert into quarantine (tenant_id, device_id, reason, bytes, note, digest)
    values (
      coalesce(
        (select tenant_id from settlements
          where device_id = ${deviceId} and socket = ${socket} and port = ${port} and order_key = ${orderKey}),
        (select tenant_id from devices where device_id = ${deviceId}), 'default'),
      ${deviceId}, 'settlement_conflict', ${Buffer.from(row.frame)}, ${note}, ${`settlement:${digest}`})
    on conflict (digest) do nothing`
}

const TENANT = `coalesce((select d.tenant_id from devices d where d.device_id = i.device_id), 'default')`
const OPAQUE = {
  device_id: 'text',
  digest: 'text',
  protocol: 'text',
  epoch: 'int8',
  command: 'text',
  received_at: 'time',
  frame: 'hex',
} as const satisfies Columns
const OPAQUE_NAMES = Object.keys(OPAQUE).join(', ')
const INSERT_OPAQUE = `
  insert into opaque_settlements (tenant_id, ${OPAQUE_NAMES}) select ${TENANT}, ${OPAQUE_NAMES} from ${source(OPAQUE)}
  order by i.device_id, i.digest on conflict do nothing`

async function insertOpaque(
  tx: TransactionSql,
  rows: readonly RowOf<typeof opaqueSettlementRow.fields>[],
): Promise<Step | null> {
  if (rows.length === 0) return null
  const values = pick(rows, {
    device_id: (r) => r.deviceId,
    digest: (r) => r.digest,
    protocol: (r) => r.protocol,
    epoch: (r) => r.epoch,
    command: (r) => r.command,
    received_at: (r) => r.receivedMs,
    frame: (r) => r.frame,
  })
  return counted(opaqueSettlementRow.table, rows.length, await run(tx, INSERT_OPAQUE, parameters(OPAQUE, values)))
}

// ---- history: what happened, never changed ----

function counted(table: string, rows: number, { count }: { count: number }): Step {
  return { table, counts: { inserted: count, repeated: rows - count, fenced: 0 } }
}

/** Fields of a row kind in the order of the columns of its table. */
interface HistoryTable {
  readonly table: string
  readonly columns: Columns
  readonly fields: Readonly<Record<string, string>>
  /** Fails (23505) when a row is there already. */
  readonly insert: string
  /** A row that is there already changes nothing. */
  readonly insertMissing: string
}

/**
 * A table that rows are only ever added to. Only a span that comes again has rows that are there already, and `on
 * conflict` costs the server a third of all it does for a new row (6 us against 9, native-bench/rows.ts): so the first
 * try goes without, and its 23505 makes the second one.
 */
function historyTable(table: string, columns: Columns): HistoryTable {
  const names = Object.keys(columns).join(', ')
  const insert = `insert into ${table} (${names}) select ${names} from ${source(columns)}`
  return { table, columns, fields: fieldsOf(columns), insert, insertMissing: `${insert} on conflict do nothing` }
}

const SAMPLES = historyTable(progressRow.table, {
  device_id: 'text',
  at: 'time',
  epoch: 'int8',
  seq: 'int8',
  socket: 'int4',
  port: 'int4',
  order_key: 'text',
  state: 'text',
  state_raw: 'int4',
  duration_s: 'int4',
  energy_wh: 'float8',
  energy_raw: 'int8',
  power_w: 'float8',
  max_power_w: 'float8',
  min_power_w: 'float8',
  avg_power_w: 'float8',
  peak_power_w: 'float8',
  voltage_v: 'float8',
  current_a: 'float8',
  ambient_c: 'float8',
  port_c: 'float8',
})

const COMMAND_LOG = historyTable(commandLogRow.table, {
  device_id: 'text',
  at: 'time',
  epoch: 'int8',
  seq: 'int8',
  is_uplink: 'bool',
  command: 'text',
  code: 'int4',
  message_id: 'int8',
  note: 'text',
  frame: 'hex',
})

const EVENTS = {
  event_id: 'text',
  event_type: 'text',
  device_id: 'text',
  epoch: 'int8',
  order_key: 'text',
  at: 'time',
  data: 'json',
} as const satisfies Columns
const EVENT_NAMES = Object.keys(EVENTS).join(', ')
/** Whose an event is: the order's it tells of, else the command's, else the device's. */
const EVENT_OWNERS = { ...EVENTS, order_tenant: 'text', command_id: 'text' } as const satisfies Columns
/** By ordinal: the cursor follows the order in which things happened. */
const INSERT_EVENTS = `
  insert into events (tenant_id, ${EVENT_NAMES})
  select coalesce(i.order_tenant, (select q.tenant_id from outbound_queue q where q.command_id = i.command_id), ${TENANT}),
    ${EVENT_NAMES} from ${source(EVENT_OWNERS)}
  order by i.ordinal on conflict (event_id) do nothing returning event_id, cursor`

/** An event with whom it may belong to; of both absent, it is the device's tenant's. */
interface OwnedEvent extends RowOf<typeof eventRow.fields> {
  readonly tenantId?: string
  readonly commandId?: string | undefined
}

interface DerivedEvents {
  /** Sessions that open: nothing else of the same moment came before. */
  readonly before: readonly DerivedEvent[]
  readonly beside: readonly DerivedEvent[]
  readonly behind: readonly DerivedEvent[]
}

/** The rows' own events and what follows from other rows, in the order of time. Counted are the rows only. */
async function insertEvents(
  tx: TransactionSql,
  rows: readonly RowOf<typeof eventRow.fields>[],
  { before, beside, behind }: DerivedEvents,
): Promise<{ step: Step | null; cursor: number | null }> {
  const texts = (events: readonly DerivedEvent[]): OwnedEvent[] =>
    events.map((event) => ({
      ...event,
      commandId: event.data['command_id'] as string | undefined,
      data: JSON.stringify(event.data),
    }))
  // what a device says of itself is its tenant's
  const said: readonly OwnedEvent[] = rows
  const all = [...texts(before), ...said, ...texts(beside), ...texts(behind)].sort((a, b) => a.atMs - b.atMs)
  if (all.length === 0) return { step: null, cursor: null }
  const values = pick(all, {
    event_id: (e) => e.eventId,
    event_type: (e) => e.eventType,
    device_id: (e) => e.deviceId,
    epoch: (e) => e.epoch,
    order_key: (e) => e.orderKey,
    at: (e) => e.atMs,
    data: (e) => e.data,
    order_tenant: (e) => e.tenantId,
    command_id: (e) => e.commandId,
  })
  const written = await run<{ event_id: string; cursor: number }>(tx, INSERT_EVENTS, parameters(EVENT_OWNERS, values))
  let cursor: number | null = null
  for (const row of written) cursor = Math.max(cursor ?? 0, row.cursor)
  if (rows.length === 0) return { step: null, cursor }
  const ids = new Set(written.map(({ event_id }) => event_id))
  // the same id twice in one span is one fact
  const inserted = new Set(rows.map(({ eventId }) => eventId).filter((id) => ids.has(id))).size
  return { step: { table: 'events', counts: { inserted, repeated: rows.length - inserted, fenced: 0 } }, cursor }
}

/** For whoever moves orders outside of a span: last in its transaction. @returns the highest cursor added */
export async function insertDerivedEvents(tx: TransactionSql, events: readonly DerivedEvent[]): Promise<number | null> {
  return (await insertEvents(tx, [], { before: [], beside: events, behind: [] })).cursor
}

/** Column `power_w` holds field `powerW`, `at` holds `atMs`. */
function fieldsOf(columns: Columns): Record<string, string> {
  return Object.fromEntries(Object.keys(columns).map((name) => [name, name === 'at' ? 'atMs' : fieldOf(name)]))
}

async function insertHistory(
  tx: TransactionSql,
  into: HistoryTable,
  group: RowColumns | undefined,
  mayRepeat: boolean,
): Promise<Step | null> {
  if (group === undefined) return null
  const values = Object.fromEntries(Object.entries(into.fields).map(([name, field]) => [name, group.columns[field]!]))
  const text = mayRepeat ? into.insertMissing : into.insert
  return counted(into.table, group.count, await run(tx, text, parameters(into.columns, values)))
}
