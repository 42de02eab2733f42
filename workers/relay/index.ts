/**
 * RELAY THREAD: webhooks. Owns its connections to the database and to receivers; the loop is relay.ts. Away from main,
 * so that signing and slow receivers never delay an answer of the API.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { connect } from '../../src/main/database/connect.ts'
import { closeLog, createLog } from '../../src/main/log.ts'
import { openCounters } from '../../src/shared/counters.ts'
import { giveWay } from '../priority.ts'
import type { FromRelay, RelayThreadOptions, ToRelay } from './messages.ts'
import { Relay } from './relay.ts'
import { RELAY_SETTINGS } from './store.ts'

giveWay()
const options = workerData as RelayThreadOptions
const main = parentPort!
const log = createLog({ ...options.log, thread: 'relay' })
const tell = (message: FromRelay) => main.postMessage(message)

const counters = openCounters(options.counters, options.countersThread)
const attempts = counters.histogram('webhook_seconds')
const delay = counters.histogram('webhook_delay_seconds')
const pending = counters.gauge('webhook_pending')
const loopDelay = counters.gauge('event_loop_delay_seconds', { thread: 'relay' })

const sql = connect(options.databaseUrl, { max: 4, applicationName: 'pilegate relay', settings: RELAY_SETTINGS })
const relay = new Relay(options, {
  sql,
  log,
  onAttempt: (result, seconds) => {
    counters.add(counters.counter('webhook_deliveries_total', { result }))
    counters.observe(attempts, seconds)
  },
  onDelivered: (seconds) => counters.observe(delay, seconds),
  onPending: (count) => counters.set(pending, count),
})
const second = setInterval(() => counters.set(loopDelay, counters.loopDelaySeconds()), 1_000)

main.on('message', async (message: ToRelay) => {
  if (message.kind === 'wake') return relay.wake()
  clearInterval(second)
  await relay.stop(message.withinMs)
  await sql.end({ timeout: 1 })
  tell({ kind: 'stopped' })
  await closeLog()
  main.close()
})
relay.start()
tell({ kind: 'ready' })
