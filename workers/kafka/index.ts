/**
 * KAFKA THREAD: the event stream into a topic. Started only when KAFKA_BROKERS is set, and the only thread that loads
 * the client library (0.7 s, tens of MB). The loop is sink.ts.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { connect } from '../../src/main/database/connect.ts'
import { closeLog, createLog } from '../../src/main/log.ts'
import { openCounters } from '../../src/shared/counters.ts'
import type { FromKafka, KafkaThreadOptions, ToKafka } from './messages.ts'
import { createProducer } from './producer.ts'
import { KafkaSink } from './sink.ts'

const options = workerData as KafkaThreadOptions
const main = parentPort!
const log = createLog({ ...options.log, thread: 'kafka' })
const tell = (message: FromKafka) => main.postMessage(message)

const counters = openCounters(options.counters, options.countersThread)
const lagEvents = counters.gauge('kafka_lag_events')
const lagSeconds = counters.gauge('kafka_lag_seconds')
const gaps = counters.counter('kafka_gaps_total')
const loopDelay = counters.gauge('event_loop_delay_seconds', { thread: 'kafka' })

const sql = connect(options.databaseUrl, { max: 2, applicationName: 'pilegate kafka' })
const sink = new KafkaSink(options.sink, {
  sql,
  log,
  createProducer: () => createProducer(options.producer),
  onEvents: (result, count) => counters.add(counters.counter('kafka_events_total', { result }), count),
  onFailure: (reason) => counters.add(counters.counter('kafka_failures_total', { reason })),
  onGap: () => counters.add(gaps),
  onLag: ({ events, seconds }) => {
    counters.set(lagEvents, events)
    counters.set(lagSeconds, seconds)
  },
})
const second = setInterval(() => counters.set(loopDelay, counters.loopDelaySeconds()), 1_000)

main.on('message', async (message: ToKafka) => {
  if (message.kind === 'wake') return sink.wake()
  clearInterval(second)
  await sink.stop(message.withinMs)
  await sql.end({ timeout: 1 })
  tell({ kind: 'stopped' })
  await closeLog()
  main.close()
})
sink.start()
tell({ kind: 'ready' })
