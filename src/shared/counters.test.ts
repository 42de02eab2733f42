/**
 * Claim: what threads add in shared memory is what the reader sums, per name and labels, and no name or label is taken
 * that the catalogue does not declare; the hot calls allocate nothing; the text of /metrics carries it. Tried with real
 * worker threads and the real registry.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { after, describe, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { createScrape } from '../main/scrape.ts'
import { METRIC_PREFIX, METRICS, metricsTable, type Vocabulary } from '../metrics/catalogue.ts'
import { allocateCounters, CountersReader, openCounters, type ThreadCounters } from './counters.ts'

const vocabulary: Vocabulary = {
  protocols: [
    { name: 'plover', uplinks: ['heartbeat', 'settle'], downlinks: ['heartbeatReply'] },
    { name: 'dunlin', uplinks: ['heartbeat'], downlinks: [] },
  ],
  noiseReasons: ['bad_header'],
  closeReasons: ['idle', 'peer_closed'],
  commandOutcomes: ['acked', 'dead'],
  jobOutcomes: ['ok', 'dead'],
  fencedActions: ['ack'],
  lanes: ['ledger', 'history'],
  tables: ['orders', 'port_samples', 'orders'],
}
const make = (threads = ['main', 'session-0', 'session-1']) => allocateCounters(threads, vocabulary)

describe('counters', () => {
  test('threads are summed', () => {
    const memory = make()
    const [a, b] = [openCounters(memory, 1), openCounters(memory, 2)]
    const labels = { protocol: 'plover', direction: 'uplink', command: 'settle' }
    a.add(a.counter('frames_total', labels))
    b.add(b.counter('frames_total', labels), 41)
    const sample = new CountersReader(memory)
      .samples('frames_total')
      .find(({ labels: { command } }) => command === 'settle')
    assert.deepEqual(sample, { labels, value: 42 })
  })

  test('every series has slots of its own', () => {
    const memory = make(['main'])
    const main = openCounters(memory, 0)
    const reader = new CountersReader(memory)
    main.add(main.counter('closed_total', { reason: 'peer_closed' }), 3)
    main.observe(main.histogram('row_commit_seconds'), 0.002)
    assert.equal(reader.samples('closed_total').find(({ labels }) => labels['reason'] === 'idle')?.value, 0)
    assert.equal(reader.samples('accepted_total')[0]?.value, 0)
    assert.equal(
      reader.samples('orders_total').reduce((sum, { value }) => sum + value, 0),
      0,
    )
  })

  test('buckets hold what is at most their bound', () => {
    const memory = make()
    const thread = openCounters(memory, 1)
    const handle = thread.histogram('uplink_reply_seconds', { command: 'settle' })
    assert.equal(thread.histogram('uplink_reply_seconds', { command: 'settle' }), handle)
    for (const seconds of [0.0001, 0.0005, 0.0006, 99]) thread.observe(handle, seconds)
    const [sample] = new CountersReader(memory)
      .histograms('uplink_reply_seconds')
      .filter(({ labels }) => labels['command'] === 'settle')
    assert.deepEqual(sample!.cumulated.slice(0, 3), [2, 3, 3])
    assert.equal(sample!.cumulated.at(-1), 4)
    assert.equal(sample!.cumulated.at(-2), 3)
    assert.ok(Math.abs(sample!.sumS - 99.0012) < 1e-9)
  })

  test('names and labels that are not declared throw at start', () => {
    const thread = openCounters(make(), 1)
    assert.throws(() => thread.counter('closed_total', { reason: 'boredom' }), /closed_total/)
    assert.throws(() => thread.counter('closed_total'), /closed_total/)
    assert.throws(() => thread.counter('accepted_total', { reason: 'idle' }), /accepted_total/)
    assert.throws(() => openCounters(make(), 3), RangeError)
    assert.throws(() => openCounters(new SharedArrayBuffer(1_024), 0), /no counters/)
  })

  test('a thread that replaces a dead one keeps its counters and drops its gauges', () => {
    const memory = make()
    const dead = openCounters(memory, 1)
    dead.add(dead.counter('accepted_total'), 5)
    dead.add(dead.gauge('connections', { protocol: 'plover' }), 5)
    openCounters(memory, 1)
    const reader = new CountersReader(memory)
    assert.equal(reader.samples('accepted_total')[0]?.value, 5)
    assert.equal(reader.samples('connections')[0]?.value, 0)
  })

  test('a worker thread needs the memory and its number only', async () => {
    const memory = make()
    const worker = new Worker(
      `import { workerData } from 'node:worker_threads'
       const { openCounters } = await import(workerData.module)
       const counters = openCounters(workerData.memory, 2)
       const accepted = counters.counter('accepted_total')
       for (let i = 0; i < 1000; i++) counters.add(accepted)`,
      { eval: true, workerData: { memory, module: new URL('./counters.ts', import.meta.url).href } },
    )
    const [code] = await once(worker, 'exit')
    assert.equal(code, 0)
    assert.equal(new CountersReader(memory).samples('accepted_total')[0]?.value, 1_000)
  })

  test('the loop delay is near nothing when idle and shows a block', async () => {
    const thread = openCounters(make(), 1)
    assert.equal(thread.loopDelaySeconds(), 0)
    await new Promise((resolve) => setTimeout(resolve, 60))
    const until = performance.now() + 150
    while (performance.now() < until);
    await new Promise((resolve) => setTimeout(resolve, 60))
    assert.ok(thread.loopDelaySeconds() > 0.08)
    assert.equal(thread.loopDelaySeconds(), 0)
  })
})

describe('scrape', () => {
  const memory = make()
  const main: ThreadCounters = openCounters(memory, 0)
  const scrape = createScrape({
    counters: memory,
    version: '1.2.3',
    gauges: {
      command_requests_pending: () => [],
      rows_pending: () => [{ labels: { shard: '0' }, value: 3 }],
      spool_bytes: () => {
        throw new Error('the folder is gone')
      },
    },
  })
  after(() => main.loopDelaySeconds())

  test('every series of the catalogue is there, with its type', async () => {
    scrape.observeRequest('/api/v1/devices', 200, 0.003)
    const text = await scrape.render()
    for (const [name, { type }] of Object.entries(METRICS))
      assert.match(text, new RegExp(`^# TYPE ${METRIC_PREFIX}${name} ${type}$`, 'm'))
    assert.match(text, /^pilegate_connections\{protocol="plover"\} 0$/m)
    assert.match(text, /^pilegate_build_info\{version="1\.2\.3",node="[\d.]+"\} 1$/m)
    assert.match(
      text,
      /^pilegate_http_request_seconds_bucket\{le="0\.005",route="\/api\/v1\/devices",status="200"\} 1$/m,
    )
    assert.match(text, /^process_resident_memory_bytes /m)
  })

  test('a gauge that cannot be asked leaves the others standing', async () => {
    const text = await scrape.render()
    assert.doesNotMatch(text, /^pilegate_spool_bytes /m)
    assert.match(text, /^pilegate_rows_pending\{shard="0"\} 3$/m)
  })

  test('sparse series appear when they move', async () => {
    const line = /^pilegate_frames_total\{protocol="plover",direction="uplink",command="unknown"\} 1$/m
    assert.doesNotMatch(await scrape.render(), line)
    main.add(main.counter('frames_total', { protocol: 'plover', direction: 'uplink', command: 'unknown' }))
    main.observe(main.histogram('uplink_reply_seconds', { command: 'heartbeat' }), 0.3)
    const text = await scrape.render()
    assert.match(text, line)
    assert.match(text, /^pilegate_uplink_reply_seconds_bucket\{command="heartbeat",le="0\.25"\} 0$/m)
    assert.match(text, /^pilegate_uplink_reply_seconds_bucket\{command="heartbeat",le="\+Inf"\} 1$/m)
    assert.match(text, /^pilegate_uplink_reply_seconds_sum\{command="heartbeat"\} 0\.3$/m)
    assert.match(text, /^pilegate_uplink_reply_seconds_count\{command="heartbeat"\} 1$/m)
  })

  test('no series has a device id for a label', () => {
    for (const [name, { labels }] of Object.entries(METRICS))
      for (const label of labels) assert.doesNotMatch(label, /device|phy|order/, name)
  })

  test('the table has one row per series', () => {
    assert.equal(metricsTable().split('\n').length, 2 + Object.keys(METRICS).length)
  })
})
