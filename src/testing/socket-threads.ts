/**
 * Acceptor and session threads as the gateway runs them, without a database: rows are taken out of the outboxes and
 * dropped, settlements count as stored. For tests of how sockets move.
 */
import { createLog, type Log } from '../main/log.ts'
import { Supervisor } from '../main/supervisor.ts'
import { metricsVocabulary } from '../main/vocabulary.ts'
import { PROTOCOLS } from '../protocols/index.ts'
import { allocateCounters } from '../shared/counters.ts'
import { allocateDirectory, Directory } from '../shared/directory.ts'
import { allocateGate, Gate } from '../shared/gate.ts'
import { allocateOutbox, OutboxConsumer } from '../shared/outbox.ts'

export interface SocketThreads {
  readonly supervisor: Supervisor
  readonly gate: Gate
  readonly log: Log
  readonly shardsLost: () => number
  stop(): Promise<void>
}

export async function startSocketThreads(
  socketDriver: 'epoll' | 'net',
  shards: number,
  { identifyTimeoutMs = 10_000, port = 0 } = {},
): Promise<SocketThreads> {
  const log = createLog({ level: 'silent', serviceName: 'test', env: 'test', thread: 'main' })
  const threads = ['main', 'acceptor', ...Array.from({ length: shards }, (_, shard) => `session-${shard}`)]
  const counters = allocateCounters(threads, metricsVocabulary(PROTOCOLS))
  const directoryMemory = allocateDirectory(131_072, 1)
  const directory = new Directory(directoryMemory)
  const gateMemory = allocateGate(shards)
  const gate = new Gate(gateMemory)
  const lanes = Array.from({ length: shards }, () => ({
    ledger: new OutboxConsumer(allocateOutbox(1_048_576)),
    history: new OutboxConsumer(allocateOutbox(1_048_576)),
    mailbox: allocateOutbox(65_536),
  }))
  const logOptions = { level: 'silent', serviceName: 'test', env: 'test' }
  let shardsLost = 0
  const drop = (shard: number, lane: 'ledger' | 'history') => {
    const consumer = lanes[shard]![lane]
    do {
      for (let span = consumer.take(1_048_576, 100_000); span; span = consumer.take(1_048_576, 100_000)) {
        consumer.release(span.toPosition, span.rows)
        if (lane === 'ledger') supervisor.tellShard(shard, { kind: 'durable', position: span.toPosition, rejected: [] })
      }
    } while (!consumer.sleep())
  }
  const supervisor: Supervisor = new Supervisor({
    shards,
    socketDriver,
    log,
    gate,
    sessionOptions: (shard) => ({
      shard,
      idleTimeoutMs: 300_000,
      stateFlushMs: 1_000,
      seenFlushMs: 300_000,
      cardLookupTimeoutMs: 2_000,
      commands: { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 },
      mailbox: lanes[shard]!.mailbox,
      mailboxPosition: 0,
      ledger: lanes[shard]!.ledger.memory,
      history: lanes[shard]!.history.memory,
      ledgerPosition: lanes[shard]!.ledger.written,
      historyPosition: lanes[shard]!.history.written,
      directory: directoryMemory,
      gate: gateMemory,
      counters,
      countersThread: 2 + shard,
      profiles: [],
      allowlist: undefined,
      outboundBytesMax: 65_536,
      record: 'off',
      recordDirectory: '/nonexistent',
      recordBytesMax: 0,
      log: logOptions,
    }),
    acceptorOptions: {
      host: '127.0.0.1',
      port,
      shards,
      identifyTimeoutMs,
      identifyBytesMax: 1_024,
      evidenceBytesMax: 256,
      connectionsMax: 19_000,
      gate: gateMemory,
      directory: directoryMemory,
      counters,
      countersThread: 1,
      log: logOptions,
    },
    onSessionMessage: (shard, message) => {
      if (message.kind === 'rows') drop(shard, message.lane)
      else if (message.kind === 'supersede')
        supervisor.tellShard(message.shard, {
          kind: 'superseded',
          deviceKey: message.deviceKey,
          epoch: message.epoch,
        })
    },
    onEvidence: () => {},
    onShardLost: (shard) => {
      shardsLost++
      directory.clearShard(shard)
      drop(shard, 'ledger')
      drop(shard, 'history')
    },
  })
  const stop = async () => {
    await supervisor.stopAcceptor()
    await supervisor.askAll('drain', 1_000)
    await supervisor.askAll('stop', 3_000)
  }
  await supervisor.startShards()
  try {
    await supervisor.startAcceptor()
  } catch (error) {
    await stop()
    throw error
  }
  return {
    supervisor,
    gate,
    log,
    shardsLost: () => shardsLost,
    stop,
  }
}
