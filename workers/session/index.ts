/**
 * SESSION THREAD, one per shard. Owns its sockets and timers; carries bytes from the driver to the shard's logic and
 * carries out what that asks. All decisions are in src/session.
 */
import { parentPort, workerData } from 'node:worker_threads'
import type { Fields } from '../../src/codec/protocol.ts'
import { closeLog, createLog } from '../../src/main/log.ts'
import { PROTOCOLS } from '../../src/protocols/index.ts'
import { Recorder } from '../../src/recording/recorder.ts'
import { commandMail } from '../../src/rows/mail.ts'
import { readRows } from '../../src/rows/row.ts'
import { Allowlist } from '../../src/session/allowlist.ts'
import type { Moment } from '../../src/session/effects.ts'
import { Shard } from '../../src/session/shard.ts'
import { openCounters } from '../../src/shared/counters.ts'
import { Directory } from '../../src/shared/directory.ts'
import { Gate } from '../../src/shared/gate.ts'
import { OutboxConsumer, OutboxProducer } from '../../src/shared/outbox.ts'
import type { Arrival } from '../../src/shared/sockets.ts'
import { closeDetached } from '../acceptor/handoff.ts'
import type { Evidence, Handoff } from '../acceptor/messages.ts'
import { makeCounts } from './counts.ts'
import { makeEpollDriver } from './epoll-driver.ts'
import type { FromSession, MovedCommand, SessionThreadOptions, ToSession } from './messages.ts'
import { makeNetDriver } from './net-driver.ts'
import type { SocketDriver, SocketEvents } from './socket-driver.ts'
import { WorkerEffects } from './worker-effects.ts'

const options = workerData as SessionThreadOptions
const main = parentPort!
const log = createLog({ ...options.log, thread: `session-${options.shard}` })
const tell = (message: FromSession) => main.postMessage(message)

const gate = new Gate(options.gate)
const directory = new Directory(options.directory)
const counters = openCounters(options.counters, options.countersThread)
const counts = makeCounts(counters, PROTOCOLS)
const ledger = new OutboxProducer(options.ledger, options.ledgerPosition)
const history = new OutboxProducer(options.history, options.historyPosition)
const mailbox = new OutboxConsumer(options.mailbox, options.mailboxPosition)
const protocolByIndex = new Map(PROTOCOLS.map((protocol) => [protocol.index, protocol]))

const now = (): Moment => ({ wallMs: Date.now(), monoMs: performance.now() })
/** Of everything a driver tells in one batch: the clocks are read once, when its first chunk is told. */
let batchMoment: Moment | undefined
function batchNow(): Moment {
  batchMoment ??= now()
  return batchMoment
}

/** Commands sent or ended since the last batch; main is told once per batch. */
let moved: MovedCommand[] = []
/** Devices that have a session since the last tick: in a storm a message per batch would cost as much as the login. */
let online: number[] = []
function tellOnline(): void {
  if (online.length === 0) return
  tell({ kind: 'online', deviceKeys: online })
  online = []
}

/** Rows of the whole batch become visible together: one wake-up, one larger insert. */
function publish(): void {
  if (moved.length > 0) {
    tell({ kind: 'moved', commands: moved })
    moved = []
  }
  if (ledger.publish()) tell({ kind: 'rows', lane: 'ledger' })
  if (history.publish()) tell({ kind: 'rows', lane: 'history' })
}

const socketEvents: SocketEvents = {
  readable: (connection, chunk) => shard.chunkReceived(connection, chunk, batchNow()),
  writable: () => {},
  closed: (connection, reason) => {
    gate.add(options.shard, 'ended')
    shard.connectionClosed(connection, reason, batchNow())
  },
  batchEnd: () => {
    batchMoment = undefined
    publish()
    effects.observeReplies()
  },
}
const { outboundBytesMax } = options
const driver: SocketDriver =
  options.epoll === undefined
    ? makeNetDriver(socketEvents, { outboundBytesMax })
    : makeEpollDriver(socketEvents, {
        outboundBytesMax,
        seat: options.epoll,
        shard: options.shard,
        arrived: (connectionId, arrival) => {
          gate.add(options.shard, 'adopted')
          opened(connectionId, arrival, batchNow())
        },
      })

const recorder =
  options.record === 'off'
    ? undefined
    : new Recorder({
        directory: options.recordDirectory,
        shard: options.shard,
        bytesMax: options.recordBytesMax,
        onError: (error) => log.error({ event: 'recording.failed', err: error, msg: 'frames could not be recorded' }),
      })
const effects = new WorkerEffects({
  recorder,
  recordMode: options.record,
  counters,
  counts,
  driver,
  ledger,
  history,
  onClosed: () => gate.add(options.shard, 'ended'),
  askCard: (question) => tell({ kind: 'card', question }),
  deviceOnline: (deviceKey) => online.push(deviceKey),
  deviceRefused: noteRefused,
  returnCommand: (deviceKey, command) => tell({ kind: 'returned', deviceKey, command }),
  commandMoved: (commandId, status) => moved.push({ commandId, status }),
  supersede: (shardIndex, deviceKey, epoch) => tell({ kind: 'supersede', shard: shardIndex, deviceKey, epoch }),
})
const shard = new Shard(options, directory, effects, now())
for (const [deviceKey, name] of options.profiles) shard.profileChosen(deviceKey, name)
if (options.allowlist !== undefined) shard.allowlistChanged(new Allowlist(options.allowlist), now())

/** Kept per second; who is refused comes back every few seconds. */
const EVIDENCE_PER_SECOND = 50
let evidence: Evidence[] = []
function noteRefused(deviceId: string, remoteAddress: string): void {
  if (evidence.length < EVIDENCE_PER_SECOND)
    evidence.push({ atMs: Date.now(), remoteAddress, deviceId, reason: 'not_allowed', bytes: new Uint8Array(0) })
}

/** Takes everything out of the mailbox; main wakes us once for as many commands as it has put in. */
function readMail(): void {
  do {
    for (let span = mailbox.take(65_536, 256); span !== undefined; span = mailbox.take(65_536, 256)) {
      const bytes = new Uint8Array(span.memory).slice(span.fromIndex, span.toIndex)
      mailbox.release(span.toPosition, span.rows)
      for (const mail of readRows(bytes, commandMail)) {
        const { deviceKey, lastMessageId, fields, messageId, ...rest } = mail
        shard.commandArrived(
          deviceKey,
          { ...rest, fields: JSON.parse(fields) as Fields, messageId: messageId ?? undefined },
          lastMessageId ?? undefined,
          now(),
        )
      }
    }
  } while (!mailbox.sleep())
}

function opened(connectionId: number, { protocol: index, birth, remoteAddress }: Arrival, moment: Moment): void {
  const protocol = protocolByIndex.get(index)!
  shard.connectionOpened({ connectionId, protocol, birth, remoteAddress }, moment)
}

function adopt(handoff: Handoff): void {
  gate.add(options.shard, 'adopted')
  let connectionId: number
  try {
    connectionId = driver.adopt(handoff.descriptor)
  } catch (error) {
    closeDetached(handoff.descriptor)
    gate.add(options.shard, 'ended')
    counts.closed('handoff_failed')
    log.warn({ event: 'handoff.failed', err: error, msg: 'descriptor refused' })
    return
  }
  const moment = now()
  opened(connectionId, handoff, moment)
  shard.chunkReceived(connectionId, handoff.bytes, moment)
  scheduleFlush()
}

// What happens outside a driver batch (handoffs, acks, ticks) is published at the end of the same turn.
let isFlushScheduled = false
function scheduleFlush(): void {
  if (isFlushScheduled) return
  isFlushScheduled = true
  setImmediate(() => {
    isFlushScheduled = false
    publish()
    effects.observeReplies()
  })
}

const timer = setInterval(() => {
  shard.tick(now())
  publish()
  tellOnline()
}, 20)
const second = setInterval(() => {
  recorder?.flush(Date.now())
  if (evidence.length > 0) tell({ kind: 'evidence', items: evidence })
  evidence = []
  counters.set(
    counters.gauge('event_loop_delay_seconds', { thread: `session-${options.shard}` }),
    counters.loopDelaySeconds(),
  )
}, 1_000)

main.on('message', (message: ToSession) => {
  switch (message.kind) {
    case 'acceptor':
      message.port.on('message', adopt)
      break
    case 'durable':
      shard.durableReached(message.position, message.rejected, now())
      break
    case 'card':
      shard.cardAnswered(message.questionId, message.answer, now())
      break
    case 'superseded':
      shard.superseded(message.deviceKey, message.epoch, now())
      break
    case 'profile':
      shard.profileChosen(message.deviceKey, message.name)
      return
    case 'allowlist':
      shard.allowlistChanged(new Allowlist(message.entries), now())
      break
    case 'mail':
      readMail()
      break
    case 'cancel': {
      const { deviceKey, commandId, questionId } = message
      tell({ kind: 'cancelled', questionId, isCancelled: shard.cancelCommand(deviceKey, commandId, now()) })
      break
    }
    case 'drain':
      driver.stopReadingAll()
      shard.flush(now())
      publish()
      tell({ kind: 'drained' })
      return
    case 'stop':
      void stop()
      return
  }
  scheduleFlush()
})

async function stop(): Promise<void> {
  clearInterval(timer)
  clearInterval(second)
  shard.stop(now())
  publish()
  await driver.stop(1_000)
  recorder?.close(Date.now())
  await closeLog()
  tell({ kind: 'stopped' })
  main.close()
}

readMail()
tell({ kind: 'ready' })
