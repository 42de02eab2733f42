/**
 * Claimed: the position moves only behind what the brokers acknowledged, and never backwards, whoever tries; each event
 * is acknowledged at least once and in order; brokers that fail are asked again with growing waits and said to fail once;
 * an event that is too large is left out alone; what retention dropped is told; a stop ends in time whatever hangs.
 *
 * Tried on PostgreSQL with brokers that are a list and fail by plan. The real ones are in src/main/kafka.e2e.test.ts.
 */
import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { eventIdOf } from '../../src/events/event-id.ts'
import type { Log } from '../../src/main/log.ts'
import { openTestDatabase } from '../../src/testing/database.ts'
import { eventually as eventuallyWithin } from '../../src/testing/gateway-process.ts'
import type { Envelope } from './envelope.ts'
import { faultOf, KafkaFault } from './fault.ts'
import {
  BATCH_BYTES_MAX,
  type EventProducer,
  KafkaSink,
  PAGE_EVENTS_MAX,
  type SinkOptions,
  type SinkParts,
} from './sink.ts'
import { movePosition, takePosition } from './store.ts'

const database = await openTestDatabase()
const { sql } = database
const sinks: KafkaSink[] = []
after(async () => {
  for (const sink of sinks) await sink.stop(0)
  await database.close()
})

/** With room for a machine that is busy with something else. */
const eventually = <T>(what: string, ask: () => T | Promise<T>, isGood: (answer: T) => boolean) =>
  eventuallyWithin(what, ask, isGood, 20_000)

let inserted = 0
async function insertEvents(count: number, padding = ''): Promise<readonly string[]> {
  const ids = Array.from({ length: count }, () => eventIdOf('sink', ++inserted))
  const rows = ids.map((event_id) => ({
    event_id,
    event_type: 'device.alarm',
    tenant_id: 'default',
    device_id: '04ab373b',
    epoch: 1,
    at: new Date(),
    data: sql.json({ padding }),
  }))
  await sql`insert into events ${sql(rows as never)}`
  return ids
}

const idOf = ({ headers }: Envelope) =>
  String([...headers].find(([name]) => name.toString() === 'event_id')![1].toString())

class Brokers {
  /** Acknowledged, in order. */
  readonly taken: string[] = []
  readonly batchSizes: number[] = []
  connects = 0
  open = 0
  /** Decides about each attempt; nothing: acknowledged. */
  plan: (batch: readonly Envelope[]) => Promise<void> | void = () => {}
  planConnect: () => void = () => {}

  producer(): EventProducer {
    this.open++
    return {
      connect: async () => {
        this.connects++
        this.planConnect()
      },
      send: async (batch) => {
        this.batchSizes.push(batch.length)
        await this.plan(batch)
        this.taken.push(...batch.map(idOf))
      },
      close: () => {
        this.open--
      },
    }
  }
}

let topics = 0
/** On a topic of its own, from now on, unless told otherwise. */
function sinkOf(brokers: Brokers, options: Partial<SinkOptions> = {}, parts: Partial<SinkParts> = {}) {
  const said: Record<string, unknown>[] = []
  const note = (line: Record<string, unknown>) => said.push(line)
  const counts = { produced: 0, refused: 0, gaps: 0, failures: [] as string[] }
  const log = { info: note, warn: note, error: note } as unknown as Log
  const topic = options.topic ?? `topic-${++topics}`
  const sink = new KafkaSink(
    { name: 'one', from: 'new', pollMs: 20, ...options, topic },
    {
      sql,
      log,
      createProducer: () => brokers.producer(),
      onEvents: (result, count) => {
        counts[result] += count
      },
      onFailure: (reason) => counts.failures.push(reason),
      onGap: () => counts.gaps++,
      onLag: () => {},
      backoffMs: { min: 5, max: 40 },
      ...parts,
    },
  )
  sinks.push(sink)
  const ready = () =>
    eventually(
      'a position',
      async () => (await sql`select from kafka_positions where topic = ${topic}`).count,
      (count) => count === 1,
    )
  return { sink, topic, said, counts, ready }
}

const cursorOf = async (topic: string) =>
  (await sql<{ cursor: number }[]>`select cursor from kafka_positions where topic = ${topic}`)[0]?.cursor
const all = (brokers: Brokers, ids: readonly string[]) =>
  eventually(
    'all of them',
    () => new Set(brokers.taken).size,
    (count) => count >= ids.length,
  )
const firstsOf = (list: readonly string[]) => [...new Set(list)]

describe('the way of a batch', () => {
  test('in order, in pages, and the position behind it', async () => {
    const brokers = new Brokers()
    const { sink, topic, counts, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    const ids = await insertEvents(2 * PAGE_EVENTS_MAX + 7)
    sink.wake()
    await all(brokers, ids)
    assert.deepEqual(brokers.taken, ids)
    assert.ok(Math.max(...brokers.batchSizes) <= PAGE_EVENTS_MAX)
    const [last] = await sql<{ cursor: number }[]>`select max(cursor) as cursor from events`
    await eventually(
      'the position',
      () => cursorOf(topic),
      (cursor) => cursor === last!.cursor,
    )
    assert.equal(counts.produced, ids.length)
  })

  test('batches are bounded in bytes', async () => {
    const brokers = new Brokers()
    let bytesMax = 0
    brokers.plan = (batch) => {
      bytesMax = Math.max(
        bytesMax,
        batch.reduce((sum, { value }) => sum + value.length, 0),
      )
    }
    const { sink, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    await all(brokers, await insertEvents(100, 'x'.repeat(10_000)))
    assert.ok(bytesMax <= BATCH_BYTES_MAX && bytesMax > BATCH_BYTES_MAX / 2, String(bytesMax))
  })

  test('oldest: what was there before; new: only what comes', async () => {
    const before = await insertEvents(3)
    const [oldest, fresh] = [new Brokers(), new Brokers()]
    const first = sinkOf(oldest, { from: 'oldest' })
    const second = sinkOf(fresh)
    first.sink.start()
    second.sink.start()
    await second.ready()
    const later = await insertEvents(2)
    await eventually(
      'the last of all',
      () => oldest.taken,
      (taken) => taken.includes(later[1]!),
    )
    assert.deepEqual(oldest.taken.slice(-5), [...before, ...later])
    await all(fresh, later)
    assert.deepEqual(fresh.taken, later)
  })

  test('brokers that fail: nothing is lost, said once per state, asked seldom however often it is woken', async () => {
    const brokers = new Brokers()
    const { sink, topic, said, counts, ready } = sinkOf(
      brokers,
      {},
      { backoffMs: { min: 200, max: 200 }, random: () => 1 },
    )
    sink.start()
    await ready()
    const from = await cursorOf(topic)
    brokers.plan = () => {
      throw new KafkaFault('unreachable', 'away')
    }
    const startedMonoMs = performance.now()
    const ids = await insertEvents(10)
    await eventually(
      'four attempts',
      () => {
        sink.wake()
        return counts.failures.length
      },
      (failures) => failures >= 4,
    )
    assert.ok(performance.now() - startedMonoMs >= 3 * 190, 'a wake does not shorten the wait')
    assert.equal(await cursorOf(topic), from)
    brokers.plan = () => {
      throw new KafkaFault('access', 'not allowed')
    }
    await eventually(
      'another reason',
      () => counts.failures,
      (failures) => failures.filter((reason) => reason === 'access').length >= 2,
    )
    brokers.plan = () => {}
    await all(brokers, ids)
    assert.deepEqual(brokers.taken, ids)
    const states = said.map(({ event, reason }) => `${event} ${reason ?? ''}`)
    assert.deepEqual(states, ['kafka.brokerLost unreachable', 'kafka.brokerLost access', 'kafka.brokerReturned '])
    assert.equal(brokers.open, 1, 'each failed producer was closed')
  })

  test('a batch that was taken in part is sent again; first appearances stay in order', async () => {
    const brokers = new Brokers()
    const { sink, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    let fails = 3
    brokers.plan = (batch) => {
      if (fails-- <= 0) return
      brokers.taken.push(...batch.slice(0, 4).map(idOf))
      throw new KafkaFault('unreachable', 'the answer was lost')
    }
    const ids = await insertEvents(10)
    await all(brokers, ids)
    assert.equal(brokers.taken.length, 10 + 3 * 4)
    assert.deepEqual(firstsOf(brokers.taken), ids)
  })

  test('one that is too large is left out, alone, and said', async () => {
    const brokers = new Brokers()
    const { sink, said, counts, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    brokers.plan = (batch) => {
      if (batch.some(({ value }) => value.includes('"large"'))) throw new KafkaFault('record', 'MESSAGE_TOO_LARGE')
    }
    await insertEvents(100)
    const [bad] = await insertEvents(1, 'large')
    await insertEvents(50)
    sink.wake()
    await eventually(
      'it is refused',
      () => [counts.refused, counts.produced],
      ([refused, produced]) => refused === 1 && produced === 150,
    )
    assert.ok(!brokers.taken.includes(bad!))
    assert.deepEqual(
      said.map(({ event, eventId }) => [event, eventId]),
      [['kafka.eventRefused', bad]],
    )
  })

  test('what retention dropped before it was produced is told, once', async () => {
    const brokers = new Brokers()
    const first = sinkOf(brokers)
    first.sink.start()
    await first.ready()
    await first.sink.stop(1_000)
    await insertEvents(5)
    const gone = await sql<{ cursor: number }[]>`
      delete from events where cursor > ${(await cursorOf(first.topic))!} returning cursor`
    const droppedCursor = Math.max(...gone.map(({ cursor }) => cursor))
    await sql`
      insert into event_horizons (tenant_id, dropped_cursor) values ('default', ${droppedCursor})
      on conflict (tenant_id) do update set dropped_cursor = excluded.dropped_cursor`
    const ids = await insertEvents(3)
    const { sink, said, counts } = sinkOf(brokers, { topic: first.topic })
    sink.start()
    await all(brokers, ids)
    await insertEvents(1)
    await eventually(
      'one more',
      () => brokers.taken.length,
      (count) => count === 4,
    )
    assert.deepEqual([counts.gaps, said.map(({ event }) => event)], [1, ['kafka.eventsMissed']])
    await sql`delete from event_horizons`
  })
})

describe('who may move the position', () => {
  const holder = { topic: 'fenced', name: 'one', from: 'new', leaseMs: 60_000 } as const

  test('an older hold moves nothing, a newer one nothing backwards', async () => {
    const old = (await takePosition(sql, holder))!
    const young = (await takePosition(sql, holder))!
    assert.equal(young.epoch, old.epoch + 1)
    assert.equal(await movePosition(sql, holder, young, young.cursor + 10), true)
    assert.equal(await movePosition(sql, holder, old, young.cursor + 20), false)
    assert.equal(await movePosition(sql, holder, young, young.cursor + 5), false)
    assert.equal(await cursorOf('fenced'), young.cursor + 10)
  })

  test('another gateway waits for the end of the hold', async () => {
    assert.equal(await takePosition(sql, { ...holder, name: 'two' }), undefined)
    await sql`update kafka_positions set held_until = now() - interval '1 s' where topic = 'fenced'`
    assert.ok((await takePosition(sql, { ...holder, name: 'two' })) !== undefined)
    assert.equal(await takePosition(sql, holder), undefined)
  })

  test('two gateways: one produces; when its brokers fail, or it stops, the other does', async () => {
    const [here, there] = [new Brokers(), new Brokers()]
    const one = sinkOf(here, {}, { leaseMs: 8_000 })
    one.sink.start()
    await one.ready()
    const two = sinkOf(there, { topic: one.topic, name: 'two' }, { leaseMs: 8_000 })
    two.sink.start()
    await eventually(
      'the second stands by',
      () => two.said.map(({ event }) => event),
      (events) => events.includes('kafka.fenced'),
    )
    // idle: the hold is renewed all the same
    const heldUntil = async () =>
      (await sql<{ held_until: Date }[]>`select held_until from kafka_positions where topic = ${one.topic}`)[0]!
        .held_until
    const until = await heldUntil()
    await eventually('a renewal', heldUntil, (now) => now > until)
    const ids = [...(await insertEvents(20))]
    await all(here, ids)
    assert.deepEqual(there.taken, [])
    here.plan = () => {
      throw new KafkaFault('unreachable', 'away')
    }
    ids.push(...(await insertEvents(20)))
    const failures = () => one.counts.failures.length
    await eventually('a failure', failures, (count) => count >= 1)
    const unrenewed = await heldUntil()
    await eventually('more of them', failures, (count) => count >= 20)
    assert.deepEqual(await heldUntil(), unrenewed, 'who does not get through does not hold on')
    await sql`update kafka_positions set held_until = now() where topic = ${one.topic}`
    await all(there, ids.slice(20))
    assert.deepEqual(there.taken, ids.slice(20))
    here.plan = () => {}
    await eventually(
      'the first stands by now',
      () => one.said.map(({ event }) => event),
      (events) => events.includes('kafka.fenced'),
    )
    await two.sink.stop(1_000)
    ids.push(...(await insertEvents(20)))
    await eventually(
      'the last of all',
      () => here.taken,
      (taken) => taken.includes(ids.at(-1)!),
    )
    assert.deepEqual(firstsOf([...here.taken.slice(0, 20), ...there.taken, ...here.taken.slice(-20)]), ids)
  })

  test('a hold that is lost while the brokers think: their answer moves nothing', async () => {
    const brokers = new Brokers()
    const { sink, topic, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    let answer = () => {}
    brokers.plan = () =>
      new Promise<void>((resolve) => {
        answer = resolve
      })
    await insertEvents(3)
    await eventually(
      'a batch under way',
      () => brokers.batchSizes.length,
      (count) => count === 1,
    )
    const stolen = await sql<{ cursor: number }[]>`
      update kafka_positions set epoch = epoch + 1, holder = 'two', held_until = now() + interval '1 h'
      where topic = ${topic} returning cursor`
    answer()
    await eventually(
      'it was acknowledged',
      () => brokers.taken.length,
      (count) => count === 3,
    )
    await new Promise((resolve) => setTimeout(resolve, 100))
    assert.equal(await cursorOf(topic), stolen[0]!.cursor)
  })
})

describe('the stop', () => {
  test('a batch under way ends, and another gateway need not wait', async () => {
    const brokers = new Brokers()
    const { sink, topic, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    brokers.plan = () => new Promise((resolve) => setTimeout(resolve, 200))
    const ids = await insertEvents(3)
    await eventually(
      'a batch under way',
      () => brokers.batchSizes.length,
      (count) => count === 1,
    )
    await sink.stop(5_000)
    assert.deepEqual(brokers.taken, ids)
    assert.equal(brokers.open, 0)
    const [row] = await sql`select holder from kafka_positions where topic = ${topic}`
    assert.equal(row!['holder'], null)
  })

  test('brokers that never answer do not hold it up', async () => {
    const brokers = new Brokers()
    const { sink, ready } = sinkOf(brokers)
    sink.start()
    await ready()
    brokers.plan = () => new Promise(() => {})
    await insertEvents(3)
    await eventually(
      'a batch under way',
      () => brokers.batchSizes.length,
      (count) => count === 1,
    )
    const startedMonoMs = performance.now()
    await sink.stop(50)
    assert.ok(performance.now() - startedMonoMs < 5_000)
    assert.equal(brokers.open, 0)
  })

  test('nor does a long wait for the next attempt', async () => {
    const brokers = new Brokers()
    brokers.planConnect = () => {
      throw new KafkaFault('unreachable', 'away')
    }
    const { sink, counts } = sinkOf(brokers, {}, { backoffMs: { min: 60_000, max: 60_000 } })
    sink.start()
    await eventually(
      'a failure',
      () => counts.failures.length,
      (count) => count === 1,
    )
    const startedMonoMs = performance.now()
    await sink.stop(10_000)
    assert.ok(performance.now() - startedMonoMs < 5_000)
  })
})

test('errors of the client library: the reason, the words, and no secret', () => {
  const of = (error: unknown) => {
    const { reason, message } = faultOf(error, ['hunter2'])
    return [reason, message]
  }
  const wrapped = (inner: object) =>
    Object.assign(new AggregateError([inner], 'produce failed 3 times.'), { code: 'PLT_KFK_MULTIPLE' })
  assert.deepEqual(of(wrapped({ message: 'Too large.', code: 'PLT_KFK_PROTOCOL', apiId: 'MESSAGE_TOO_LARGE' })), [
    'record',
    'produce failed 3 times.: Too large.',
  ])
  assert.equal(of(wrapped({ message: 'x', apiId: 'TOPIC_AUTHORIZATION_FAILED' }))[0], 'access')
  assert.equal(of(new Error('x', { cause: { message: 'y', code: 'DEPTH_ZERO_SELF_SIGNED_CERT' } }))[0], 'access')
  assert.equal(of(Object.assign(new Error('connect'), { code: 'ECONNREFUSED' }))[0], 'unreachable')
  assert.equal(of(wrapped({ message: 'Unknown topic t.', code: 'PLT_KFK_USER' }))[0], 'topic')
  assert.deepEqual(of(new Error('login as u:hunter2 failed')), ['other', 'login as u:*** failed'])
  assert.deepEqual(of('text'), ['other', 'text'])
  assert.ok(of(new Error('x'.repeat(10_000)))[1]!.length < 500)
})
