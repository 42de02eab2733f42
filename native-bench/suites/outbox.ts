/** A row from its values into the shard's ring and out again, main's part included, the database's not. */
import { ROW_KINDS } from '../../src/rows/index.ts'
import { decodeRows, defineRow, encodeRow, f64, i32, i32OrNull, text } from '../../src/rows/row.ts'
import { allocateOutbox, OUTBOX_FULL, OutboxConsumer, OutboxProducer } from '../../src/shared/outbox.ts'
import { keep, type Suite } from '../suite.ts'

const ROWS = 1_000
// shaped like a progress sample; the kind is this file's own and reaches no database
const sample = defineRow(60_000, 'bench_samples', 'history', {
  deviceId: text,
  epoch: f64,
  atMs: f64,
  port: i32,
  state: i32,
  powerW: f64,
  energyWh: i32OrNull,
})
const kinds = new Map([...ROW_KINDS, [sample.kind, sample]])
const values = {
  deviceId: '04ab373b',
  epoch: 41,
  atMs: 1_767_225_600_000,
  port: 1,
  state: 1,
  powerW: 251.3,
  energyWh: null,
}

function encodeOnly(): void {
  for (let row = 0; row < ROWS; row++) keep(encodeRow(sample, values))
}

const memory = allocateOutbox(1_048_576)
const producer = new OutboxProducer(memory)
const consumer = new OutboxConsumer(memory)

function through(isDecoded: boolean): void {
  for (let row = 0; row < ROWS; row++)
    if (producer.append(encodeRow(sample, values)) === OUTBOX_FULL) throw new Error('the ring is full')
  producer.publish()
  let rows = 0
  for (let span = consumer.take(65_536, 1_000); span !== undefined; span = consumer.take(65_536, 1_000)) {
    if (isDecoded) keep(decodeRows(new Uint8Array(span.memory, span.fromIndex, span.toIndex - span.fromIndex), kinds))
    rows += span.rows
    consumer.release(span.toPosition, span.rows)
  }
  if (rows !== ROWS) throw new Error(`${rows} rows of ${ROWS}`)
}

export const suite: Suite = {
  name: 'a row through the outbox, per row',
  baseline: 'encode, append, take, release',
  cases: [
    { name: 'encode alone', operations: ROWS, run: encodeOnly },
    { name: 'encode, append, take, release', operations: ROWS, run: () => through(false) },
    { name: 'the same and decode to columns', operations: ROWS, run: () => through(true) },
  ],
}
