/**
 * A span of rows into the database: all of it in one transaction, all of it idempotent, so that a span which was
 * committed without our knowing is simply inserted again.
 *
 * Order of locks, the same in every writer: devices by id, then everything that hangs on them, then the event cursor.
 * Whoever holds a device's row is alone with its ports, sessions and orders among writers.
 */
import { createHash } from 'node:crypto'
import { databaseErrorCode, type Sql, type TransactionSql } from '../../src/main/database/connect.ts'
import {
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
import {
  decodeRows,
  type Field,
  ROW_HEADER_BYTES,
  type RowColumns,
  type RowKind,
  type RowOf,
  rowBytesAt,
} from '../../src/rows/row.ts'
import { type Columns, parameters, source } from './columns.ts'

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
  readonly rejected: RejectedRow[]
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
    rejected: [],
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
      const outcome = await sql.begin((tx) => insertGroups(tx, groups))
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

function addResult(to: SpanResult, from: Omit<SpanResult, 'rejected' | 'commitMs'>): void {
  for (const [table, counts] of Object.entries(from.tables)) {
    const sum = countsOf(to.tables, table)
    sum.inserted += counts.inserted
    sum.repeated += counts.repeated
    sum.fenced += counts.fenced
  }
  to.settlements.stored += from.settlements.stored
  to.settlements.repeated += from.settlements.repeated
  to.settlements.conflicting += from.settlements.conflicting
}

function countsOf(tables: Record<string, TableCounts>, table: string): TableCounts {
  tables[table] ??= { inserted: 0, repeated: 0, fenced: 0 }
  return tables[table]
}

// ---- one transaction ----

interface Known {
  readonly epoch: number
  readonly seq: number
}
/** What a step did to the rows it was given. */
interface Step {
  readonly table: string
  readonly counts: TableCounts
}

async function insertGroups(
  tx: TransactionSql,
  groups: readonly RowColumns[],
): Promise<Omit<SpanResult, 'rejected' | 'commitMs'>> {
  const span = {
    settlements: rowsOf(groups, settlementRow),
    opaque: rowsOf(groups, opaqueSettlementRow),
    starts: rowsOf(groups, orderStartRow),
    progress: rowsOf(groups, progressRow),
    devices: rowsOf(groups, deviceStateRow),
    ports: rowsOf(groups, portStateRow),
    sessions: rowsOf(groups, sessionRow),
  }
  const protocols = new Map<string, string>()
  for (const rows of [span.settlements, span.opaque, span.starts, span.progress, span.devices, span.sessions])
    for (const { deviceId, protocol } of rows) protocols.set(deviceId, protocol)
  const known = await lockDevices(tx, protocols, new Set([...protocols.keys(), ...span.ports.map((r) => r.deviceId)]))

  const settlements = { stored: 0, repeated: 0, conflicting: 0 }
  // Sent without waiting for one another; the server runs them in this order. Starts before progress before
  // settlements: so an order that lives within one span knows its start. Events last (see 0003_history.sql).
  const steps = await Promise.all([
    updateDevices(tx, span.devices, span.sessions, known),
    upsertPorts(tx, span.ports, known),
    upsertSockets(tx, span.ports, known),
    upsertSessions(tx, span.sessions),
    startOrders(tx, span.starts),
    progressOrders(tx, span.progress),
    settleOrders(tx, span.settlements, settlements),
    insertOpaque(tx, span.opaque),
    insertSamples(tx, columnsOf(groups, progressRow)),
    insertCommandLog(tx, columnsOf(groups, commandLogRow)),
    insertEvents(tx, columnsOf(groups, eventRow)),
  ])
  const tables: Record<string, TableCounts> = {}
  for (const step of steps) if (step !== null) countsOfStep(tables, step)
  return { tables, settlements }
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

async function run<T extends object = Record<string, unknown>>(tx: TransactionSql, text: string, values: string[]) {
  return await tx.unsafe<T[]>(text, values, { prepare: true })
}

/** One array per property of `rows`' mapping. */
function pick<R>(
  rows: readonly R[],
  mapping: Readonly<Record<string, (row: R) => unknown>>,
): Record<string, unknown[]> {
  return Object.fromEntries(Object.entries(mapping).map(([name, get]) => [name, rows.map(get)]))
}

const byText = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)

// ---- devices, ports, sockets, sessions ----

const KNOWN_DEVICES: Columns = { device_id: 'text', protocol: 'text' }
const ENSURE_DEVICES = `
  insert into devices (device_id, protocol) select device_id, protocol from ${source(KNOWN_DEVICES)}
  order by device_id on conflict (device_id) do nothing`
const LOCK_DEVICES = `
  select device_id, epoch, seq from devices where device_id = any($1::text[]) order by device_id for no key update`

async function lockDevices(
  tx: TransactionSql,
  protocols: ReadonlyMap<string, string>,
  ids: ReadonlySet<string>,
): Promise<ReadonlyMap<string, Known>> {
  if (ids.size === 0) return new Map()
  const list = parameters({ ids: 'text' }, { ids: [...ids] })
  const ensured = { device_id: [...protocols.keys()], protocol: [...protocols.values()] }
  const [, rows] = await Promise.all([
    run(tx, ENSURE_DEVICES, parameters(KNOWN_DEVICES, ensured)),
    run<{ device_id: string; epoch: number; seq: number }>(tx, LOCK_DEVICES, list),
  ])
  return new Map(rows.map(({ device_id, epoch, seq }) => [device_id, { epoch, seq }]))
}

const UNKNOWN: Known = { epoch: 0, seq: -1 }

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
const UPSERT_PORTS = `
  insert into ports (${PORT_NAMES.join(', ')}) select ${PORT_NAMES.join(', ')} from ${source(PORTS)}
  order by device_id, socket, port
  on conflict (device_id, socket, port) do update set
    ${PORT_NAMES.slice(3)
      .map((name) => `${name} = excluded.${name}`)
      .join(', ')}
  where (ports.epoch, ports.seq) < (excluded.epoch, excluded.seq)
  returning device_id, socket, port`

async function upsertPorts(
  tx: TransactionSql,
  rows: readonly PortRow[],
  known: ReadonlyMap<string, Known>,
): Promise<Step | null> {
  if (rows.length === 0) return null
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
  const written = await run<{ device_id: string; socket: number; port: number }>(
    tx,
    UPSERT_PORTS,
    parameters(PORTS, values),
  )
  for (const { device_id, socket, port } of written)
    counts.inserted += newest.get(`${device_id}/${socket}/${port}`)?.rows ?? 0
  counts.repeated = rows.length - counts.inserted - counts.fenced
  return { table: 'ports', counts }
}

function isFenced(row: { deviceId: string; epoch: number }, known: ReadonlyMap<string, Known>): boolean {
  return row.epoch < (known.get(row.deviceId) ?? UNKNOWN).epoch
}

const SOCKETS: Columns = { device_id: 'text', socket: 'int4', first_seen_at: 'time', last_seen_at: 'time' }
const UPSERT_SOCKETS = `
  insert into gateway_sockets (device_id, socket, first_seen_at, last_seen_at)
  select device_id, socket, first_seen_at, last_seen_at from ${source(SOCKETS)} order by device_id, socket
  on conflict (device_id, socket) do update set last_seen_at = excluded.last_seen_at
  where gateway_sockets.last_seen_at < excluded.last_seen_at`

/** Sockets are known through their ports; not counted as rows of their own. */
async function upsertSockets(
  tx: TransactionSql,
  rows: readonly PortRow[],
  known: ReadonlyMap<string, Known>,
): Promise<null> {
  const sockets = new Map<string, { deviceId: string; socket: number; firstMs: number; lastMs: number }>()
  for (const row of rows) {
    if (row.socket === 0 || isFenced(row, known)) continue
    const key = `${row.deviceId}/${row.socket}`
    const found = sockets.get(key)
    if (found === undefined)
      sockets.set(key, { deviceId: row.deviceId, socket: row.socket, firstMs: row.atMs, lastMs: row.atMs })
    else {
      found.firstMs = Math.min(found.firstMs, row.atMs)
      found.lastMs = Math.max(found.lastMs, row.atMs)
    }
  }
  if (sockets.size === 0) return null
  const values = pick([...sockets.values()], {
    device_id: (s) => s.deviceId,
    socket: (s) => s.socket,
    first_seen_at: (s) => s.firstMs,
    last_seen_at: (s) => s.lastMs,
  })
  await run(tx, UPSERT_SOCKETS, parameters(SOCKETS, values))
  return null
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

// ---- orders ----

interface OrderKey {
  readonly deviceId: string
  readonly socket: number
  readonly port: number
  readonly orderKey: string
  readonly orderNo: string
}
const keyOf = (row: OrderKey) => `${row.deviceId}/${row.socket}/${row.port}/${row.orderKey}`

/** Columns every statement about orders begins with; `no_1` .. `no_3`: see `orderNumbers`. */
const ORDER_KEY = {
  device_id: 'text',
  socket: 'int4',
  port: 'int4',
  order_key: 'text',
  no_1: 'text',
  no_2: 'text',
  no_3: 'text',
} as const satisfies Columns
const ORDER_KEY_NAMES = 'device_id, socket, port, order_key'
const SORTED_BY_KEY = 'order by i.device_id, i.socket, i.port, i.order_key'
/**
 * The first number nobody has; for an order that exists it finds its own number taken, which does no harm: then the
 * key conflicts and no number is set.
 */
const FREE_ORDER_NO = `coalesce(
  case when i.no_1 is not null and not exists (select from orders o where o.order_no = i.no_1) then i.no_1 end,
  case when i.no_2 is not null and not exists (select from orders o where o.order_no = i.no_2) then i.no_2 end,
  i.no_3)`
const TENANT = `coalesce((select d.tenant_id from devices d where d.device_id = i.device_id), 'default')`

/**
 * Order numbers to try per row. Devices choose their numbers without knowing of one another, so a number may be taken:
 * by the database (looked up in the statement) or by another row of this batch (looked up here, in key order, so that
 * the same batch always gives the same numbers). The third names the whole key, which nobody else has.
 */
function orderNumbers(rows: readonly OrderKey[]): { no_1: (string | null)[]; no_2: (string | null)[]; no_3: string[] } {
  const taken = new Set<string>()
  const numbers = new Map<OrderKey, readonly [string | null, string | null, string]>()
  for (const row of rows.toSorted((a, b) => byText(keyOf(a), keyOf(b)))) {
    const { orderNo, deviceId, socket, port, orderKey } = row
    const first = orderNo === '' ? null : orderNo
    const second = `${orderNo}.${deviceId}.${port}`
    const third = `${orderNo}.${deviceId}.${socket}.${port}.${orderKey}`
    numbers.set(row, [
      first === null || taken.has(first) ? null : first,
      orderNo === '' || taken.has(second) ? null : second,
      third,
    ])
    for (const number of [first, second, third]) if (number !== null) taken.add(number)
  }
  return {
    no_1: rows.map((row) => numbers.get(row)![0]),
    no_2: rows.map((row) => numbers.get(row)![1]),
    no_3: rows.map((row) => numbers.get(row)![2]),
  }
}

const orderKeyValues = (rows: readonly OrderKey[]) => ({
  ...pick(rows, {
    device_id: (r) => r.deviceId,
    socket: (r) => r.socket,
    port: (r) => r.port,
    order_key: (r) => r.orderKey,
  }),
  ...orderNumbers(rows),
})

type StartRow = RowOf<typeof orderStartRow.fields>

const STARTS = {
  ...ORDER_KEY,
  protocol: 'text',
  wire_hex: 'text',
  origin: 'text',
  card_id: 'text',
  started_at: 'time',
  epoch: 'int8',
} as const satisfies Columns
const START_ORDERS = `
  insert into orders (order_no, tenant_id, ${ORDER_KEY_NAMES}, protocol, wire_hex, state, origin, card_id, started_at, epoch)
  select ${FREE_ORDER_NO}, ${TENANT}, ${ORDER_KEY_NAMES}, protocol, wire_hex, 'charging', origin, card_id, started_at, epoch
  from ${source(STARTS)} ${SORTED_BY_KEY}
  on conflict (${ORDER_KEY_NAMES}) do update set
    state = 'charging',
    wire_hex = coalesce(orders.wire_hex, excluded.wire_hex),
    card_id = coalesce(orders.card_id, excluded.card_id),
    started_at = coalesce(orders.started_at, excluded.started_at),
    epoch = greatest(orders.epoch, excluded.epoch),
    version = orders.version + 1,
    updated_at = now()
  where orders.state in ('pending', 'starting')
  returning ${ORDER_KEY_NAMES}`

async function startOrders(tx: TransactionSql, rows: readonly StartRow[]): Promise<Step | null> {
  if (rows.length === 0) return null
  const first = new Map<string, StartRow>()
  for (const row of rows) if (!first.has(keyOf(row))) first.set(keyOf(row), row)
  const list = [...first.values()]
  const values = {
    ...orderKeyValues(list),
    ...pick(list, {
      protocol: (r) => r.protocol,
      wire_hex: (r) => r.wireHex,
      origin: (r) => r.origin,
      card_id: (r) => r.cardId,
      started_at: (r) => r.atMs,
      epoch: (r) => r.epoch,
    }),
  }
  const written = await run(tx, START_ORDERS, parameters(STARTS, values))
  return { table: 'orders', counts: { inserted: written.length, repeated: rows.length - written.length, fenced: 0 } }
}

type ProgressRow = RowOf<typeof progressRow.fields>

const PROGRESS = {
  ...ORDER_KEY,
  protocol: 'text',
  wire_hex: 'text',
  origin: 'text',
  card_id: 'text',
  at: 'time',
  started_at: 'time',
  duration_s: 'int4',
  energy_wh: 'float8',
  max_power_w: 'float8',
  epoch: 'int8',
} as const satisfies Columns
const RUNNING = `('pending', 'starting', 'charging', 'stopping')`
const PROGRESS_ORDERS = `
  with i as materialized (select * from ${source(PROGRESS)}),
  fenced as (
    select from i join orders o using (${ORDER_KEY_NAMES}) where o.epoch > i.epoch and o.state in ${RUNNING}
  ),
  written as (
    insert into orders (order_no, tenant_id, ${ORDER_KEY_NAMES}, protocol, wire_hex, state, origin, card_id,
      started_at, duration_s, energy_wh, max_power_w, last_progress_at, epoch)
    select ${FREE_ORDER_NO}, ${TENANT}, ${ORDER_KEY_NAMES}, protocol, wire_hex, 'charging', origin, card_id,
      started_at, duration_s, energy_wh, max_power_w, at, epoch
    from i ${SORTED_BY_KEY}
    on conflict (${ORDER_KEY_NAMES}) do update set
      state = case when orders.state in ('pending', 'starting') then 'charging' else orders.state end,
      wire_hex = coalesce(orders.wire_hex, excluded.wire_hex),
      card_id = coalesce(orders.card_id, excluded.card_id),
      started_at = coalesce(orders.started_at, excluded.started_at),
      duration_s = excluded.duration_s,
      energy_wh = coalesce(excluded.energy_wh, orders.energy_wh),
      max_power_w = greatest(orders.max_power_w, excluded.max_power_w),
      last_progress_at = excluded.last_progress_at,
      epoch = excluded.epoch,
      version = orders.version + 1,
      updated_at = now()
    where orders.state in ${RUNNING}
      and excluded.epoch >= orders.epoch
      and (orders.last_progress_at is null or excluded.last_progress_at > orders.last_progress_at)
  )
  select count(*) as fenced from fenced`

/** Orders so far. Counted under port_samples: `fenced` only, the samples count themselves. */
async function progressOrders(tx: TransactionSql, rows: readonly ProgressRow[]): Promise<Step | null> {
  const merged = new Map<string, ProgressRow & { peakW: number | null }>()
  // '' names no order: a reading of a port on which nothing was started.
  for (const row of rows) {
    if (row.orderKey === '') continue
    const found = merged.get(keyOf(row))
    const peakW = largest(found?.peakW ?? null, row.maxPowerW, row.peakPowerW, row.powerW)
    if (found === undefined) merged.set(keyOf(row), { ...row, peakW })
    else if (row.epoch > found.epoch || (row.epoch === found.epoch && row.atMs >= found.atMs))
      merged.set(keyOf(row), { ...row, energyWh: row.energyWh ?? found.energyWh, peakW })
    else merged.set(keyOf(row), { ...found, energyWh: found.energyWh ?? row.energyWh, peakW })
  }
  if (merged.size === 0) return null
  const list = [...merged.values()]
  const values = {
    ...orderKeyValues(list),
    ...pick(list, {
      protocol: (r) => r.protocol,
      wire_hex: (r) => r.wireHex,
      origin: (r) => r.origin,
      card_id: (r) => r.cardId,
      at: (r) => r.atMs,
      started_at: (r) => r.atMs - r.durationS * 1000,
      duration_s: (r) => r.durationS,
      energy_wh: (r) => r.energyWh,
      max_power_w: (r) => r.peakW,
      epoch: (r) => r.epoch,
    }),
  }
  const [row] = await run<{ fenced: number }>(tx, PROGRESS_ORDERS, parameters(PROGRESS, values))
  return { table: 'port_samples', counts: { inserted: 0, repeated: 0, fenced: row!.fenced } }
}

function largest(...values: readonly (number | null)[]): number | null {
  const given = values.filter((value) => value !== null)
  return given.length === 0 ? null : Math.max(...given)
}

type SettlementRow = RowOf<typeof settlementRow.fields>

const SETTLEMENTS = {
  ...ORDER_KEY,
  protocol: 'text',
  epoch: 'int8',
  seq: 'int8',
  wire_hex: 'text',
  device_order_no: 'text',
  origin: 'text',
  start_mode_raw: 'int4',
  card_id: 'text',
  duration_s: 'int4',
  energy_wh: 'float8',
  energy_raw: 'int8',
  max_power_w: 'float8',
  end_reason: 'text',
  end_reason_raw: 'int4',
  device_sent_at: 'time',
  device_ended_at: 'time',
  received_at: 'time',
  occupancy_min: 'int4',
  business_no: 'int4',
  device_amount_fen: 'int8',
  message_id: 'int8',
  frame: 'hex',
  started_at: 'time',
} as const satisfies Columns
const SETTLEMENT_NAMES = [
  ORDER_KEY_NAMES,
  ...Object.keys(SETTLEMENTS).filter((name) => !(name in ORDER_KEY) && name !== 'started_at'),
].join(', ')
const SETTLE_ORDERS = `
  with i as materialized (select *, ${TENANT} as tenant_id from ${source(SETTLEMENTS)}),
  stored as (
    insert into settlements (tenant_id, ${SETTLEMENT_NAMES}) select tenant_id, ${SETTLEMENT_NAMES} from i
    ${SORTED_BY_KEY}
    on conflict (${ORDER_KEY_NAMES}) do nothing
    returning ${ORDER_KEY_NAMES}
  ),
  settled as (
    insert into orders (order_no, tenant_id, ${ORDER_KEY_NAMES}, protocol, wire_hex, state, origin, card_id, business_no,
      started_at, ended_at, duration_s, energy_wh, max_power_w, amount_fen, end_reason, end_reason_raw, settled_at, epoch)
    select ${FREE_ORDER_NO}, i.tenant_id, ${ORDER_KEY_NAMES}, protocol, wire_hex, 'settled', origin, card_id, business_no,
      started_at, started_at + duration_s * interval '1 second', duration_s, energy_wh, max_power_w, device_amount_fen,
      end_reason, end_reason_raw, received_at, epoch
    from i join stored using (${ORDER_KEY_NAMES}) ${SORTED_BY_KEY}
    on conflict (${ORDER_KEY_NAMES}) do update set
      state = 'settled',
      wire_hex = coalesce(orders.wire_hex, excluded.wire_hex),
      card_id = coalesce(excluded.card_id, orders.card_id),
      business_no = coalesce(excluded.business_no, orders.business_no),
      started_at = coalesce(orders.started_at, excluded.started_at),
      ended_at = coalesce(orders.started_at, excluded.started_at) + excluded.duration_s * interval '1 second',
      duration_s = excluded.duration_s,
      energy_wh = excluded.energy_wh,
      max_power_w = coalesce(nullif(excluded.max_power_w, 0), orders.max_power_w, 0),
      amount_fen = case when orders.estimated then excluded.amount_fen
        else coalesce(orders.amount_fen, excluded.amount_fen) end,
      end_reason = excluded.end_reason,
      end_reason_raw = excluded.end_reason_raw,
      fail_reason = null,
      estimated = false,
      settled_at = excluded.settled_at,
      epoch = greatest(orders.epoch, excluded.epoch),
      version = orders.version + 1,
      updated_at = now()
  )
  select ${ORDER_KEY_NAMES} from stored`
const STORED_SETTLEMENTS = `
  select ${ORDER_KEY_NAMES}, s.duration_s, s.energy_raw
  from settlements s join ${source(ORDER_KEY)} using (${ORDER_KEY_NAMES})`

async function settleOrders(
  tx: TransactionSql,
  rows: readonly SettlementRow[],
  settlements: { stored: number; repeated: number; conflicting: number },
): Promise<Step | null> {
  if (rows.length === 0) return null
  const first = new Map<string, SettlementRow>()
  for (const row of rows) if (!first.has(keyOf(row))) first.set(keyOf(row), row)
  const list = [...first.values()]
  const values = {
    ...orderKeyValues(list),
    ...pick(list, {
      protocol: (r) => r.protocol,
      epoch: (r) => r.epoch,
      seq: (r) => r.seq,
      wire_hex: (r) => r.wireHex,
      device_order_no: (r) => r.orderNo,
      origin: (r) => r.origin,
      start_mode_raw: (r) => r.startModeRaw,
      card_id: (r) => r.cardId,
      duration_s: (r) => r.durationS,
      energy_wh: (r) => r.energyWh,
      energy_raw: (r) => r.energyRaw,
      max_power_w: (r) => r.maxPowerW,
      end_reason: (r) => r.endReason,
      end_reason_raw: (r) => r.endReasonRaw,
      device_sent_at: (r) => r.deviceSentMs,
      device_ended_at: (r) => r.deviceEndedMs,
      received_at: (r) => r.receivedMs,
      occupancy_min: (r) => r.occupancyMin,
      business_no: (r) => r.businessNo,
      device_amount_fen: (r) => r.deviceAmountFen,
      message_id: (r) => r.messageId,
      frame: (r) => r.frame,
      started_at: (r) => endedMs(r) - r.durationS * 1000,
    }),
  }
  const stored = await run<StoredKey>(tx, SETTLE_ORDERS, parameters(SETTLEMENTS, values))
  const storedKeys = new Set(stored.map(storedKey))
  const fresh = new Set(list.filter((row) => storedKeys.has(keyOf(row))))
  const repeats = rows.filter((row) => !fresh.has(row))
  const conflicting = repeats.length === 0 ? 0 : await keepConflicts(tx, repeats)
  settlements.stored = fresh.size
  settlements.conflicting = conflicting
  settlements.repeated = repeats.length - conflicting
  return { table: 'settlements', counts: { inserted: fresh.size, repeated: repeats.length, fenced: 0 } }
}

interface StoredKey {
  readonly device_id: string
  readonly socket: number
  readonly port: number
  readonly order_key: string
}
const storedKey = (row: StoredKey) => `${row.device_id}/${row.socket}/${row.port}/${row.order_key}`

const YEAR_2020_MS = Date.UTC(2020)
const DAY_MS = 86_400_000

/** When the charge ended: the device's word if its clock can be believed (many start in 1970), else when we heard of it. */
function endedMs({ deviceEndedMs, receivedMs }: SettlementRow): number {
  if (deviceEndedMs === null || deviceEndedMs < YEAR_2020_MS || deviceEndedMs > receivedMs + DAY_MS) return receivedMs
  return deviceEndedMs
}

/** Repeats that say something else: the order stays as it is, the frame is kept as evidence, once per content. */
async function keepConflicts(tx: TransactionSql, repeats: readonly SettlementRow[]): Promise<number> {
  const stored = await run<StoredKey & { duration_s: number; energy_raw: number }>(
    tx,
    STORED_SETTLEMENTS,
    parameters(ORDER_KEY, orderKeyValues([...new Map(repeats.map((row) => [keyOf(row), row])).values()])),
  )
  const content = new Map(stored.map((row) => [storedKey(row), row]))
  const conflicts = repeats.filter((row) => {
    const known = content.get(keyOf(row))
    return known !== undefined && (known.duration_s !== row.durationS || known.energy_raw !== row.energyRaw)
  })
  for (const row of conflicts) {
    const note = `order ${row.orderNo}: ${row.durationS} s and ${row.energyRaw} raw energy contradict the stored settlement`
    const digest = createHash('sha256')
      .update(`${keyOf(row)}/${row.durationS}/${row.energyRaw}`)
      .digest('hex')
    await tx`
      insert into quarantine (tenant_id, device_id, reason, bytes, note, digest)
      values (
        coalesce((select tenant_id from devices where device_id = ${row.deviceId}), 'default'),
        ${row.deviceId}, 'settlement_conflict', ${Buffer.from(row.frame)}, ${note}, ${`settlement:${digest}`})
      on conflict (digest) do nothing`
  }
  return conflicts.length
}

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
  readonly text: string
}

const SAMPLES: HistoryTable = (() => {
  const columns = {
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
  } as const satisfies Columns
  const names = Object.keys(columns).join(', ')
  return {
    table: progressRow.table,
    columns,
    fields: fieldsOf(columns),
    text: `insert into port_samples (${names}) select ${names} from ${source(columns)} on conflict do nothing`,
  }
})()

const COMMAND_LOG: HistoryTable = (() => {
  const columns = {
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
  } as const satisfies Columns
  const names = Object.keys(columns).join(', ')
  return {
    table: commandLogRow.table,
    columns,
    fields: fieldsOf(columns),
    text: `insert into cmd_log (${names}) select ${names} from ${source(columns)} on conflict do nothing`,
  }
})()

const EVENTS: HistoryTable = (() => {
  const columns = {
    event_id: 'text',
    event_type: 'text',
    device_id: 'text',
    epoch: 'int8',
    order_key: 'text',
    at: 'time',
    data: 'json',
  } as const satisfies Columns
  const names = Object.keys(columns).join(', ')
  return {
    table: eventRow.table,
    columns,
    fields: fieldsOf(columns),
    // by ordinal: the cursor follows the order in which things happened
    text: `insert into events (tenant_id, ${names}) select ${TENANT}, ${names} from ${source(columns)}
      order by i.ordinal on conflict (event_id) do nothing`,
  }
})()

/** Column `power_w` holds field `powerW`, `at` holds `atMs`. */
function fieldsOf(columns: Columns): Record<string, string> {
  return Object.fromEntries(
    Object.keys(columns).map((name) => [
      name,
      name === 'at' ? 'atMs' : name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()),
    ]),
  )
}

async function insertHistory(
  tx: TransactionSql,
  into: HistoryTable,
  group: RowColumns | undefined,
): Promise<Step | null> {
  if (group === undefined) return null
  const values = Object.fromEntries(Object.entries(into.fields).map(([name, field]) => [name, group.columns[field]!]))
  return counted(into.table, group.count, await run(tx, into.text, parameters(into.columns, values)))
}

const insertSamples = (tx: TransactionSql, group: RowColumns | undefined) => insertHistory(tx, SAMPLES, group)
const insertCommandLog = (tx: TransactionSql, group: RowColumns | undefined) => insertHistory(tx, COMMAND_LOG, group)
const insertEvents = (tx: TransactionSql, group: RowColumns | undefined) => insertHistory(tx, EVENTS, group)
