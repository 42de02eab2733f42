/**
 * `node native-bench/rows.ts`: rows per second into PostgreSQL through the real writer pool (workers/writer, piscina,
 * spans of an outbox), beside the best that the same server reaches with a COPY written by hand into the same tables,
 * (from a file, by the server itself) in interleaved rounds; what batch size and writers change; and how long a settlement waits for its commit under load.
 *
 *   --rounds 5 --rows 20000    per workload and round
 *   --seconds 5                of each load in the latency table
 *   --only rows,grid,latency   parts
 *   --record                   writes results/rows-MACHINE.json
 *
 * Server: the embedded one with the gateway's own settings (fsync and synchronous_commit on) in a folder of its own.
 * Compared are the same rows: what the writer left in the tables is read out once as COPY text, the tables are emptied,
 * and the text goes in again. So COPY gets for nothing what the writer does besides: decoding, conflicts (`on conflict`),
 * locks of devices, the order's state and money, the events that follow. Both fill the same indexes, foreign keys and
 * triggers included. "One statement" is all rows in one COPY and one commit: the best there is. "In batches" commits as
 * often as the writer does.
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Piscina } from 'piscina'
import { cpuMsOf } from '../loadtest/process-use.ts'
import { oneOf, readOptions, wholeNumber } from '../src/config/command-line.ts'
import { connect, type Sql } from '../src/main/database/connect.ts'
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/main/database/embedded-postgres.ts'
import { migrate } from '../src/main/database/migrate.ts'
import { LanePump } from '../src/main/lane-pump.ts'
import { commandLogRow, progressRow, settlementRow } from '../src/rows/index.ts'
import { encodeRow } from '../src/rows/row.ts'
import { allocateOutbox, OUTBOX_FULL, OutboxConsumer, OutboxProducer, type Span } from '../src/shared/outbox.ts'
import { temporaryDirectory } from '../src/testing/temporary-directory.ts'
import type { WriterAnswer, WriterTask } from '../workers/writer/task.ts'
import { spreadOf } from './gate.ts'
import { machineClass, machineFacts } from './machine.ts'

const text = { type: 'string' } as const
const values = readOptions(
  'npm run bench:rows -- [--rounds 5] [--rows 20000] [--seconds 5] [--only rows,grid,latency] [--record]',
  {
    rounds: { ...text, default: '5' },
    rows: { ...text, default: '20000' },
    seconds: { ...text, default: '5' },
    only: { ...text, default: 'rows,grid,latency' },
    record: { type: 'boolean', default: false },
  },
)
const rounds = wholeNumber('rounds', values.rounds, 1)
// every COPY of a batch has rows
const rowCount = wholeNumber('rows', values.rows, 100, 1_000_000)
const seconds = wholeNumber('seconds', values.seconds, 1)
const parts = values.only.split(',').map((part) => oneOf('only', part, ['rows', 'grid', 'latency']))
const SPAN_BYTES_MAX = 1_048_576
const BATCH_ROWS = 1_000
const DEVICES = 2_000
const START_MS = Date.now() - 3_600_000

// ---- what is written -------------------------------------------------------------------------------------------------

interface Workload {
  readonly name: string
  /** Emptied before each measurement; COPY fills them in this order. */
  readonly tables: readonly string[]
  readonly compared: string
  row(index: number, round: number): Uint8Array
}

const deviceOf = (index: number) => (0x04000000 + (index % DEVICES)).toString(16).padStart(8, '0')
const FRAME = Uint8Array.from({ length: 49 }, (_, index) => index)

const WORKLOADS: readonly Workload[] = [
  {
    name: 'cmd_log',
    tables: ['cmd_log'],
    compared: 'one row of cmd_log each',
    row: (index, round) =>
      encodeRow(commandLogRow, {
        deviceId: deviceOf(index),
        epoch: round + 1,
        seq: index,
        atMs: START_MS + index,
        isUplink: true,
        command: 'settlement',
        code: 3,
        messageId: index & 0xffff,
        note: null,
        frame: FRAME,
      }),
  },
  {
    name: 'port_samples',
    tables: ['port_samples'],
    compared: 'one row of port_samples each; the writer also locks the device and looks for the order',
    row: (index, round) =>
      encodeRow(progressRow, {
        deviceId: deviceOf(index),
        protocol: 'ap3000',
        epoch: round + 1,
        seq: index,
        socket: 0,
        port: 1 + (index & 1),
        orderKey: '',
        wireHex: '',
        orderNo: '',
        origin: 'online',
        cardId: null,
        atMs: START_MS + index,
        state: 'charging',
        stateRaw: 1,
        durationS: 300,
        energyWh: 120,
        energyRaw: 12,
        powerW: 251.3,
        maxPowerW: 260,
        minPowerW: 240.1,
        avgPowerW: 250,
        peakPowerW: 260,
        voltageV: 229.7,
        currentA: 1.09,
        ambientC: 28,
        portC: 31,
      }),
  },
  {
    name: 'ledger',
    tables: ['orders', 'settlements', 'events'],
    compared: 'per settlement one row of settlements, one of orders and its events; COPY puts in the same three tables',
    row: (index, round) => {
      const key = `${round.toString(16).padStart(8, '0')}${index.toString(16).padStart(24, '0')}`
      return encodeRow(settlementRow, {
        deviceId: deviceOf(index),
        protocol: 'ap3000',
        epoch: round + 1,
        seq: index,
        socket: 0,
        port: 1 + (index & 1),
        orderKey: key,
        wireHex: key,
        orderNo: key,
        origin: 'offline',
        startModeRaw: 0,
        cardId: null,
        durationS: 3_600,
        energyWh: 450,
        energyRaw: 45,
        maxPowerW: 250,
        endReason: 'full',
        endReasonRaw: 1,
        deviceSentMs: null,
        deviceEndedMs: null,
        receivedMs: START_MS + 3_500_000 + index,
        occupancyMin: null,
        businessNo: null,
        deviceAmountFen: null,
        messageId: index & 0xffff,
        frame: FRAME,
      })
    },
  },
]

/** Rows back to back in an outbox large enough for all of them, as a session thread leaves them. */
function spansOf(workload: Workload, rows: number, round: number, batchRows: number): Span[] {
  const ringBytes = 2 ** Math.ceil(Math.log2(rows * 600))
  const memory = allocateOutbox(ringBytes)
  const producer = new OutboxProducer(memory)
  for (let index = 0; index < rows; index++)
    if (producer.append(workload.row(index, round)) === OUTBOX_FULL) throw new Error('the ring is full')
  producer.publish()
  const consumer = new OutboxConsumer(memory)
  const spans: Span[] = []
  for (
    let span = consumer.take(SPAN_BYTES_MAX, batchRows);
    span !== undefined;
    span = consumer.take(SPAN_BYTES_MAX, batchRows)
  )
    spans.push(span)
  return spans
}

// ---- who writes --------------------------------------------------------------------------------------------------------

interface Writers {
  insert(span: Span): Promise<void>
  close(): Promise<void>
}

function openWriters(databaseUrl: string, threads: number): Writers {
  const pool = new Piscina<WriterTask, WriterAnswer>({
    filename: new URL('../workers/writer/index.ts', import.meta.url).href,
    minThreads: threads,
    maxThreads: threads,
    idleTimeout: Number.POSITIVE_INFINITY,
    atomics: 'disabled',
    workerData: { databaseUrl },
  })
  return {
    async insert({ memory, fromIndex, toIndex, rows }) {
      const answer = await pool.run({ kind: 'insert', memory, byteOffset: 0, fromIndex, toIndex })
      if (!answer.ok) throw new Error(`${answer.code}: ${answer.message}`)
      const { rejected, tables } = answer.kind === 'inserted' ? answer.result : { rejected: [], tables: {} }
      const inserted = Object.values(tables).reduce((sum, counts) => sum + counts.inserted, 0)
      if (rejected.length > 0 || inserted < rows) throw new Error(`${inserted} of ${rows} rows went in`)
    },
    close: () => pool.close({ force: true }),
  }
}

/** As main does: as many spans under way as there are writers. */
async function writeAll(writers: Writers, spans: readonly Span[], threads: number): Promise<void> {
  let next = 0
  await Promise.all(
    Array.from({ length: threads }, async () => {
      for (let span = spans[next++]; span !== undefined; span = spans[next++]) await writers.insert(span)
    }),
  )
}

/** COPY text of what is in a table now, in lines. */
interface TableText {
  readonly table: string
  readonly columns: string
  readonly lines: readonly string[]
}

/** Columns that the server draws by itself (a cursor) are left to it. */
async function readOut(sql: Sql, table: string): Promise<TableText> {
  const names = await sql<{ name: string }[]>`
    select column_name as name from information_schema.columns
    where table_schema = 'public' and table_name = ${table} and coalesce(column_default, '') not like 'nextval%'
    order by ordinal_position`
  const columns = names.map(({ name }) => name).join(', ')
  const chunks: Buffer[] = []
  const stream = await sql.unsafe(`copy (select ${columns} from ${table}) to stdout`).readable()
  for await (const chunk of stream) chunks.push(chunk as Buffer)
  return { table, columns, lines: Buffer.concat(chunks).toString().split('\n').slice(0, -1) }
}

/**
 * Batches as files that the server reads by itself: no client is in the way, neither its CPU nor its driver.
 *
 * @returns the text of one transaction per batch, one COPY per table
 */
function prepareCopy(name: string, texts: readonly TableText[], batches: number): string[] {
  return Array.from({ length: batches }, (_, batch) => {
    const statements = texts.map(({ table, columns, lines }) => {
      const from = Math.floor((lines.length * batch) / batches)
      const to = Math.floor((lines.length * (batch + 1)) / batches)
      const path = join(dataDir, `${name}-${table}-${batches}-${batch}`)
      writeFileSync(path, `${lines.slice(from, to).join('\n')}\n`, { mode: 0o644 })
      return `copy ${table} (${columns}) from '${path}'`
    })
    return ['begin', ...statements, 'commit'].join(';')
  })
}

async function copyAll(transactions: readonly string[]): Promise<void> {
  // without parameters: one round trip per transaction
  for (const transaction of transactions) await sql.unsafe(transaction).simple()
}

// ---- measuring ---------------------------------------------------------------------------------------------------------

interface Reading {
  readonly rowsPerS: number
  /** CPU per row, us: the server's processes, and this one with its writer threads. */
  readonly serverUs: number
  readonly clientUs: number
}

async function timed(serverPid: number, rows: number, act: () => Promise<void>): Promise<Reading> {
  const cpu = process.cpuUsage()
  const serverMs = cpuMsOf(serverPid)
  const startMs = performance.now()
  await act()
  const wallMs = performance.now() - startMs
  const { user, system } = process.cpuUsage(cpu)
  return {
    rowsPerS: (rows / wallMs) * 1_000,
    serverUs: ((cpuMsOf(serverPid) - serverMs) * 1_000) / rows,
    clientUs: (user + system) / rows,
  }
}

async function empty(sql: Sql, tables: readonly string[]): Promise<void> {
  await sql.unsafe(`truncate ${tables.join(', ')} cascade`)
  // so that nobody pays for the WAL of the one before
  await sql.unsafe('checkpoint')
}

const three = (value: number) => Number(value.toPrecision(3))

const dataDir = temporaryDirectory()
const silent = { info: () => {}, warn: () => {}, error: () => {} }
const machine = machineFacts()
process.stdout.write(`${machine.cpu}, ${machine.cores} cores, node ${machine.node}, commit ${machine.commit}\n`)
let started: EmbeddedPostgres | undefined
const killed = () => {
  try {
    if (started !== undefined) process.kill(started.pid, 'SIGQUIT')
  } catch {
    // it has ended
  }
  rmSync(dataDir, { recursive: true, force: true })
}
process.once('exit', killed)
const starting = startEmbeddedPostgres({ dataDir, log: silent }).then((server) => {
  started = server
  return server
})
// while it starts there is no process to end yet
const ended = () => process.exit(130)
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => void starting.then(ended, ended))
const server = await starting
await migrate(server.url)
const sql = connect(server.url, { max: 1, statementTimeoutMs: 0 })
await sql`select ensure_day_partitions(current_date - 1, current_date + 1)`
// the devices are known already, as in a gateway that runs
await sql`
  insert into devices (device_id, protocol)
  select lpad(to_hex(67108864 + i), 8, '0'), 'ap3000' from generate_series(0, ${DEVICES - 1}) i`

type Row = Record<string, string | number>
const results: { rows: Row[]; grid: Row[]; latency: Row[] } = { rows: [], grid: [], latency: [] }

/** Rows per second and CPU beside COPY. */
async function partRows(): Promise<void> {
  for (const workload of WORKLOADS) {
    const readings = new Map<string, Reading[]>()
    const note = (name: string, reading: Reading) => readings.set(name, [...(readings.get(name) ?? []), reading])
    const writers = new Map([1, 2].map((threads) => [threads, openWriters(server.url, threads)]))
    // one round that does not count: statements are prepared, code is compiled, the text for COPY is made
    await empty(sql, workload.tables)
    const warmUp = spansOf(workload, rowCount, 0, BATCH_ROWS)
    await writeAll(writers.get(1) as Writers, warmUp.slice(0, warmUp.length >> 1), 1)
    await writeAll(writers.get(2) as Writers, warmUp.slice(warmUp.length >> 1), 2)
    const texts: TableText[] = []
    for (const table of workload.tables) texts.push(await readOut(sql, table))
    const whole = prepareCopy(workload.name, texts, 1)
    const batched = prepareCopy(workload.name, texts, Math.ceil(rowCount / BATCH_ROWS))
    const contestants: [string, (round: number) => Promise<Reading>][] = [
      ['COPY, one statement', () => timed(server.pid, rowCount, () => copyAll(whole))],
      [`COPY, ${BATCH_ROWS} per commit`, () => timed(server.pid, rowCount, () => copyAll(batched))],
      ...[1, 2].map((threads): [string, (round: number) => Promise<Reading>] => [
        `writer x${threads}, ${BATCH_ROWS} per commit`,
        (round) => {
          const spans = spansOf(workload, rowCount, round, BATCH_ROWS)
          return timed(server.pid, rowCount, () => writeAll(writers.get(threads) as Writers, spans, threads))
        },
      ]),
    ]
    for (let round = 1; round <= rounds; round++)
      for (let turn = 0; turn < contestants.length; turn++) {
        const [name, run] = contestants[(turn + round) % contestants.length] as (typeof contestants)[number]
        await empty(sql, workload.tables)
        note(name, await run(round))
      }
    for (const one of writers.values()) await one.close()
    const medianOf = (name: string, pick: (reading: Reading) => number) =>
      spreadOf((readings.get(name) ?? []).map(pick)).median
    const best = (readings.get('COPY, one statement') ?? []).map(({ rowsPerS }) => rowsPerS)
    const batches = (readings.get(`COPY, ${BATCH_ROWS} per commit`) ?? []).map(({ rowsPerS }) => rowsPerS)
    process.stdout.write(`\n${workload.name}: ${workload.compared}\n`)
    for (const [name] of contestants) {
      const own = (readings.get(name) ?? []).map(({ rowsPerS }) => rowsPerS)
      const toCopy = spreadOf(own.map((value, round) => value / (best[round] as number)))
      const toBatches = spreadOf(own.map((value, round) => value / (batches[round] as number)))
      results.rows.push({
        workload: workload.name,
        contestant: name,
        rows_per_s: Math.round(medianOf(name, ({ rowsPerS }) => rowsPerS)),
        to_copy_one_statement: three(toCopy.median),
        to_copy_in_batches: three(toBatches.median),
        server_cpu_us_per_row: three(medianOf(name, ({ serverUs }) => serverUs)),
        client_cpu_us_per_row: three(medianOf(name, ({ clientUs }) => clientUs)),
      })
    }
    print(results.rows.filter((row) => row['workload'] === workload.name))
  }
}

/** What batch size and writers change, one after the other within each round. */
async function partGrid(): Promise<void> {
  const rows = Math.min(rowCount, 10_000)
  for (const workload of WORKLOADS.filter(({ name }) => name !== 'port_samples'))
    for (const threads of [1, 2, 4]) {
      const writers = openWriters(server.url, threads)
      const sizes = [100, 500, 1_000, 2_000]
      const readings = new Map<number, Reading[]>(sizes.map((size) => [size, []]))
      await empty(sql, workload.tables)
      await writeAll(writers, spansOf(workload, rows, 1_000, 1_000), threads)
      for (let round = 0; round < Math.max(3, Math.floor(rounds / 2)); round++)
        for (const size of sizes) {
          const spans = spansOf(workload, rows, round, size)
          await empty(sql, workload.tables)
          readings.get(size)?.push(await timed(server.pid, rows, () => writeAll(writers, spans, threads)))
        }
      await writers.close()
      for (const [size, all] of readings)
        results.grid.push({
          workload: workload.name,
          writers: threads,
          batch_rows: size,
          rows_per_s: Math.round(spreadOf(all.map(({ rowsPerS }) => rowsPerS)).median),
          server_cpu_us_per_row: three(spreadOf(all.map(({ serverUs }) => serverUs)).median),
          client_cpu_us_per_row: three(spreadOf(all.map(({ clientUs }) => clientUs)).median),
        })
    }
  process.stdout.write('\nbatch size and writers\n')
  print(results.grid)
}

/** From append to durable, settlements at a steady rate through the lane pump of the main thread. */
async function partLatency(): Promise<void> {
  const workload = WORKLOADS.find(({ name }) => name === 'ledger') as Workload
  let round = 10_000
  for (const [perS, threads, batchRows, gatherMs] of [
    [200, 2, 1_000, 0],
    [500, 2, 1_000, 0],
    [1_000, 2, 1_000, 0],
    [2_000, 2, 1_000, 0],
    [3_000, 2, 1_000, 0],
    [1_000, 1, 1_000, 0],
    [1_000, 4, 1_000, 0],
    [1_000, 2, 100, 0],
    [1_000, 2, 1_000, 5],
    [1_000, 2, 1_000, 20],
  ] as const) {
    await empty(sql, workload.tables)
    const writers = openWriters(server.url, threads)
    await writeAll(writers, spansOf(workload, 2_000, round++, 500), threads)
    const memory = allocateOutbox(2 ** 26)
    const producer = new OutboxProducer(memory)
    /** Appended and not durable: where each ends, and when it was due. */
    const waiting: { position: number; dueMs: number }[] = []
    const delays: number[] = []
    let spans = 0
    let flown = 0
    const lanePump: LanePump = new LanePump({
      lane: 'ledger',
      consumer: new OutboxConsumer(memory),
      health: { isHere: true, awayMs: 0, lost: () => {}, onBack: () => {} },
      after: (ms, act) => void setTimeout(act, ms),
      spansInFlightMax: threads,
      batchRowsMax: batchRows,
      batchBytesMax: SPAN_BYTES_MAX,
      gatherMs,
      insert: async (span) => {
        spans++
        flown += span.rows
        await writers.insert(span)
        return { kind: 'stored', rejected: [] }
      },
      onDurable: (position) => {
        const nowMs = performance.now()
        while (waiting[0] !== undefined && waiting[0].position <= position)
          delays.push(nowMs - (waiting.shift() as { dueMs: number }).dueMs)
      },
    })
    const cpuMs = cpuMsOf(server.pid)
    const startMs = performance.now()
    const count = perS * seconds
    for (let index = 0; index < count; ) {
      const due = Math.min(count, Math.floor(((performance.now() - startMs) * perS) / 1_000))
      for (; index < due; index++)
        waiting.push({
          position: producer.append(workload.row(index, round)),
          dueMs: startMs + (index * 1_000) / perS,
        })
      if (producer.publish()) lanePump.pump()
      lanePump.pump()
      await sleep(1)
    }
    const untilMs = performance.now() + 30_000
    while (waiting.length > 0 && performance.now() < untilMs) await sleep(5)
    const wallMs = performance.now() - startMs
    round++
    await writers.close()
    delays.sort((a, b) => a - b)
    const at = (share: number) =>
      three(delays[Math.min(delays.length - 1, Math.floor(delays.length * share))] ?? Number.NaN)
    results.latency.push({
      offered_per_s: perS,
      writers: threads,
      batch_rows_max: batchRows,
      gather_ms: gatherMs,
      committed_per_s: Math.round((delays.length / wallMs) * 1_000),
      commit_ms_p50: at(0.5),
      commit_ms_p99: at(0.99),
      commit_ms_max: three(delays.at(-1) ?? Number.NaN),
      rows_per_commit: three(flown / Math.max(1, spans)),
      server_cpu_percent: three(((cpuMsOf(server.pid) - cpuMs) / wallMs) * 100),
    })
  }
  process.stdout.write('\nsettlements: from the moment in which one is due in the outbox to its durable position\n')
  print(results.latency)
}

function print(rows: readonly Row[]): void {
  const first = rows[0]
  if (first === undefined) return
  const names = Object.keys(first)
  const cells = [names, ...rows.map((row) => names.map((name) => String(row[name])))]
  const widths = names.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)))
  for (const row of cells)
    process.stdout.write(`  ${row.map((cell, column) => cell.padStart(widths[column] ?? 0)).join('  ')}\n`)
}

try {
  if (parts.includes('rows')) await partRows()
  if (parts.includes('grid')) await partGrid()
  if (parts.includes('latency')) await partLatency()
  if (values.record) {
    const path = join(import.meta.dirname, 'results', `rows-${machineClass(machine)}.json`)
    mkdirSync(join(import.meta.dirname, 'results'), { recursive: true })
    const settings = Object.fromEntries(
      (
        await sql<{ name: string; setting: string }[]>`
          select name, current_setting(name) as setting from pg_settings
          where name in ('fsync', 'synchronous_commit', 'shared_buffers', 'max_wal_size', 'server_version')`
      ).map(({ name, setting }) => [name, setting]),
    )
    const record = { machine, settings, rounds, rows_per_round: rowCount, seconds_per_load: seconds, ...results }
    writeFileSync(path, `${JSON.stringify(record, null, 2)}\n`)
    process.stdout.write(`\nrecorded ${path}\n`)
  }
} finally {
  await sql.end({ timeout: 2 })
  await server.stop()
  process.off('exit', killed)
  rmSync(dataDir, { recursive: true, force: true })
}
