/**
 * Claims: rows come out of the ring whole, once and in order, whatever their sizes, however often it wraps or is full;
 * a full ring refuses and nothing is half written; nothing published is overwritten before it is released. Tried
 * against a queue as a model (fast-check prints the seed) and with producer and consumer in two threads.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { allocateOutbox, OUTBOX_FULL, OutboxConsumer, OutboxProducer, type Span } from './outbox.ts'

/** A row of kind 9 with `words` 8-byte words behind its header, filled with its number. */
function rowOf(number: number, words: number): Uint8Array {
  const row = new Uint8Array(8 + words * 8)
  const view = new DataView(row.buffer)
  view.setUint16(0, 9, true)
  view.setUint32(4, words * 8, true)
  for (let at = 8; at < row.length; at += 8) view.setFloat64(at, number, true)
  return row
}

function numbersIn(span: Span): number[] {
  const bytes = new Uint8Array(span.memory).slice(span.fromIndex, span.toIndex)
  const view = new DataView(bytes.buffer)
  const numbers: number[] = []
  for (let at = 0; at < bytes.length; ) {
    assert.equal(view.getUint16(at, true), 9, 'padding or foreign bytes inside a span')
    const body = view.getUint32(at + 4, true)
    const number = view.getFloat64(at + 8, true)
    for (let word = at + 8; word < at + 8 + body; word += 8) assert.equal(view.getFloat64(word, true), number)
    numbers.push(number)
    at += 8 + body
  }
  assert.equal(numbers.length, span.rows)
  return numbers
}

test('any mix of append, publish, take and release agrees with a queue', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.oneof(
          {
            weight: 6,
            arbitrary: fc.record({ what: fc.constant('append' as const), words: fc.integer({ min: 1, max: 30 }) }),
          },
          { weight: 2, arbitrary: fc.record({ what: fc.constant('publish' as const), words: fc.constant(0) }) },
          {
            weight: 2,
            arbitrary: fc.record({ what: fc.constant('take' as const), words: fc.integer({ min: 1, max: 64 }) }),
          },
          { weight: 2, arbitrary: fc.record({ what: fc.constant('release' as const), words: fc.constant(0) }) },
          { weight: 1, arbitrary: fc.record({ what: fc.constant('rewind' as const), words: fc.constant(0) }) },
        ),
        { maxLength: 400 },
      ),
      (steps) => {
        const memory = allocateOutbox(1024)
        const producer = new OutboxProducer(memory)
        const consumer = new OutboxConsumer(memory)
        const appended: number[] = []
        let published = 0
        const taken: { span: Span; numbers: number[] }[] = []
        let released = 0
        let takenCount = 0
        let next = 1
        for (const { what, words } of steps) {
          if (what === 'append') {
            const before = producer.position
            const position = producer.append(rowOf(next, words))
            if (position === OUTBOX_FULL) {
              assert.equal(producer.position, before, 'a refused row moved the position')
              continue
            }
            assert.ok(position > before)
            appended.push(next++)
          } else if (what === 'publish') {
            producer.publish()
            published = appended.length
          } else if (what === 'take') {
            const span = consumer.take(words * 8, 5)
            if (span === undefined) {
              assert.equal(takenCount, published)
              continue
            }
            const numbers = numbersIn(span)
            assert.deepEqual(numbers, appended.slice(takenCount, takenCount + numbers.length))
            takenCount += numbers.length
            assert.ok(takenCount <= published)
            taken.push({ span, numbers })
          } else if (what === 'release') {
            const head = taken.shift()
            if (head === undefined) continue
            // still intact when it is given back
            assert.deepEqual(numbersIn(head.span), head.numbers)
            consumer.release(head.span.toPosition, head.span.rows)
            released += head.numbers.length
          } else {
            consumer.rewind()
            taken.length = 0
            takenCount = released
          }
          assert.equal(consumer.rowsPending, published - released)
        }
      },
    ),
    { numRuns: 1000 },
  )
})

test('positions go on past 2^32, where the shared words wrap', () => {
  const start = 2 ** 32 - 2048
  const memory = allocateOutbox(1024, start)
  const consumer = new OutboxConsumer(memory, start)
  const producer = new OutboxProducer(memory, start)
  let expected = 0
  for (let number = 1; number <= 200; number++) {
    assert.notEqual(producer.append(rowOf(number, 5)), OUTBOX_FULL)
    producer.publish()
    for (let span = consumer.take(4096, 10); span !== undefined; span = consumer.take(4096, 10)) {
      for (const seen of numbersIn(span)) assert.equal(seen, ++expected)
      consumer.release(span.toPosition, span.rows)
    }
  }
  assert.equal(expected, 200)
  assert.ok(consumer.released > 2 ** 32 && consumer.released === producer.position)
})

test('the consumer is woken once per sleep, and never sleeps over rows', () => {
  const memory = allocateOutbox(4096)
  const producer = new OutboxProducer(memory)
  const consumer = new OutboxConsumer(memory)
  producer.append(rowOf(1, 1))
  assert.equal(producer.publish(), true, 'the first row wakes main')
  producer.append(rowOf(2, 1))
  assert.equal(producer.publish(), false, 'main is awake already')
  assert.equal(consumer.sleep(), false, 'rows are waiting')
  const span = consumer.take(4096, 10)!
  assert.deepEqual(numbersIn(span), [1, 2])
  assert.equal(consumer.sleep(), true)
  producer.append(rowOf(3, 1))
  assert.equal(producer.publish(), true)
})

test('a replaced producer goes on where main stands', () => {
  const memory = allocateOutbox(1024)
  const consumer = new OutboxConsumer(memory)
  const first = new OutboxProducer(memory)
  first.append(rowOf(1, 4))
  first.publish()
  // appended but not published: the thread dies before the end of its batch
  first.append(rowOf(2, 4))
  const second = new OutboxProducer(memory, consumer.written)
  second.append(rowOf(3, 4))
  second.publish()
  const span = consumer.take(4096, 10)!
  assert.deepEqual(numbersIn(span), [1, 3])
})

test('two threads: 200,000 rows of random sizes arrive whole, once and in order', async () => {
  const memory = allocateOutbox(16_384)
  const rows = 200_000
  const source = `
    import { workerData } from 'node:worker_threads'
    import { OutboxProducer } from ${JSON.stringify(new URL('./outbox.ts', import.meta.url).href)}
    const producer = new OutboxProducer(workerData.memory)
    let seed = 42
    const random = () => { seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; return seed / 2 ** 32 }
    const pause = new Int32Array(new SharedArrayBuffer(4))
    for (let number = 1; number <= workerData.rows; ) {
      const words = 1 + Math.floor(random() * 40)
      const row = new Uint8Array(8 + words * 8)
      const view = new DataView(row.buffer)
      view.setUint16(0, 9, true)
      view.setUint32(4, words * 8, true)
      for (let at = 8; at < row.length; at += 8) view.setFloat64(at, number, true)
      if (producer.append(row) === -1) { producer.publish(); Atomics.wait(pause, 0, 0, 0.01); continue }
      if (random() < 0.1) producer.publish()
      number++
    }
    producer.publish()
  `
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    workerData: { memory, rows },
  })
  const failed = new Promise<never>((_, reject) => worker.on('error', reject))
  const consumer = new OutboxConsumer(memory)
  let seen = 0
  const consume = async () => {
    while (seen < rows) {
      const span = consumer.take(2048, 64)
      if (span === undefined) {
        await new Promise((resolve) => setImmediate(resolve))
        continue
      }
      for (const number of numbersIn(span)) assert.equal(number, ++seen)
      consumer.release(span.toPosition, span.rows)
    }
  }
  await Promise.race([consume(), failed])
  assert.equal(consumer.rowsPending, 0)
  await worker.terminate()
})
