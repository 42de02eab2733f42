/**
 * MAIN THREAD: the gateway from nothing to serving, from top to bottom; shutdown is the same list upwards.
 */

import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { FromSession } from '../../workers/session/messages.ts'
import { deviceKey } from '../codec/protocol.ts'
import { firstApiKey } from '../config/api-keys.ts'
import { type Config, loadConfig } from '../config/config.ts'
import { GatewayError } from '../errors/errors.ts'
import { PROTOCOLS, parseAnyDeviceId } from '../protocols/index.ts'
import { allocateCounters, openCounters } from '../shared/counters.ts'
import { allocateDirectory, Directory } from '../shared/directory.ts'
import { allocateGate, Gate } from '../shared/gate.ts'
import { allocateOutbox, OutboxConsumer, OutboxProducer } from '../shared/outbox.ts'
import { createAdmin } from './admin/admin.ts'
import { allowlistRoutes } from './admin/routes/allowlist.ts'
import { auditRoutes } from './admin/routes/audit.ts'
import { commandRoutes } from './admin/routes/commands.ts'
import type { LivePresence } from './admin/routes/devices.ts'
import { eventRoutes } from './admin/routes/events.ts'
import { evidenceRoutes } from './admin/routes/evidence.ts'
import { jobRoutes } from './admin/routes/jobs.ts'
import { webhookRoutes } from './admin/routes/webhooks.ts'
import { AllowlistKeeper } from './allowlist.ts'
import { askOrder } from './ask-order.ts'
import { answerCard } from './cards.ts'
import { CommandDesk } from './command-desk.ts'
import { SqlCommandStore } from './command-store.ts'
import { CommandService } from './commands/service.ts'
import { takeDataDir } from './data-dir.ts'
import { endGeneration, takeGeneration } from './database/boots.ts'
import { connect, databaseErrorCode, type Sql } from './database/connect.ts'
import { type EmbeddedPostgres, startEmbeddedPostgres } from './database/embedded-postgres.ts'
import { DatabaseHealth, DatabaseProbe } from './database/health.ts'
import { migrate } from './database/migrate.ts'
import { EvidenceKeeper } from './evidence.ts'
import { Jobs } from './jobs/jobs.ts'
import { JobRunner } from './jobs/runner.ts'
import { KafkaThread, kafkaProducerOptions } from './kafka-thread.ts'
import { LanePump } from './lane-pump.ts'
import { Limits } from './limits.ts'
import { closeLog, createLog, releaseLog } from './log.ts'
import { Maintenance } from './maintenance.ts'
import { ModelProfiles } from './model-profiles.ts'
import { createFigures } from './push/figures.ts'
import { PushHub } from './push/hub.ts'
import { EventStream } from './push/stream.ts'
import { Reconciler } from './reconciler.ts'
import { SqlReconcilerStore } from './reconciler-store.ts'
import { RelayThread } from './relay-thread.ts'
import { createScrape } from './scrape.ts'
import { settledWithin } from './settled-within.ts'
import { Spool } from './spool.ts'
import { Supervisor } from './supervisor.ts'
import { chargeByCard } from './swipes.ts'
import { metricsVocabulary } from './vocabulary.ts'
import { Writers } from './writers.ts'

const VERSION = (
  JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
).version
/** Bytes of one span: large enough for batchRowsMax ordinary rows, small enough for a short transaction. */
const SPAN_BYTES_MAX = 1_048_576
/** Room for about a thousand commands on their way to one session thread. */
const MAILBOX_BYTES = 262_144
/** Everything must be down within 15 s (contract 1); each step has its share. */
const DRAIN_MS = 4_000
const FLUSH_MS = 5_000
/** What the API shows of ports and sessions is this much older; measured: half of the CPU of a quiet fleet. */
const HISTORY_GATHER_MS = 100
/** Reports of charging ports come every five minutes; a limit should not wait for another one. */
const LIMITS_EVERY_MS = 5_000
/** A database that takes longer for nothing stands still. */
const PROBE_MS_MAX = 2_000
/** Events of other processes and of the spool, for webhooks and Kafka: main wakes them for its own. */
const STREAM_POLL_MS = 500
const STREAM_DRAIN_MS = 2_000
/** From the signal to the last moment the database may take to stop. */
const STOP_MS_MAX = 12_000

/** Of relay, Kafka, health, tools and whoever looks with psql. */
const OTHER_DATABASE_CONNECTIONS = 40

/** A gateway that serves. */
export interface Gateway {
  readonly tcpPort: number
  readonly httpPort: number
  readonly config: Config
  /** Once. @returns what was not flushed, in words; within STOP_MS_MAX and a little */
  stop(): Promise<readonly string[]>
}

/**
 * Thread: main. Resolves when devices and HTTP are served.
 * @throws whatever kept it from that (src/errors/errors.ts); what had been started is stopped again
 */
export async function startGateway(config: Config): Promise<Gateway> {
  // what a start that fails half-way must not leave behind, newest last
  const undo: (() => unknown)[] = []
  try {
    return await boot(config, undo)
  } catch (error) {
    for (const step of undo.reverse()) {
      try {
        await step()
      } catch {}
    }
    throw error
  }
}

async function boot(config: Config, undo: (() => unknown)[]): Promise<Gateway> {
  const dataDir = resolve(config.dataDir)
  const logOptions = { level: config.logLevel, serviceName: config.serviceName, env: config.env }
  const log = createLog({ ...logOptions, thread: 'main', isHeld: true })

  // the driver leaves a rejection to nobody when a connection breaks in its first moments (array types): not our end
  const ignoreBroken = (error: unknown): void => {
    if (databaseErrorCode(error) === undefined) throw error
    log.warn({ event: 'database.connectionBroken', err: error, msg: 'a database connection broke while it was opened' })
  }
  process.on('unhandledRejection', ignoreBroken)
  undo.push(() => process.off('unhandledRejection', ignoreBroken))

  // 1. a place of our own, and who may use the API
  const giveBackDataDir = takeDataDir(dataDir)
  undo.push(giveBackDataDir)
  const firstKey = config.apiKeys === null ? firstApiKey(dataDir) : undefined
  const apiKeys = config.apiKeys ?? [firstKey!.key]

  // 2. the database
  let embedded: EmbeddedPostgres | undefined
  if (config.databaseUrl === null) {
    const connections = config.dbMaxConns + config.writers + OTHER_DATABASE_CONNECTIONS
    embedded = await startEmbeddedPostgres({ dataDir, log, settings: { max_connections: String(connections) } })
  }
  undo.push(() => embedded?.stop())
  const databaseUrl = config.databaseUrl ?? embedded!.url
  const sql = connect(databaseUrl, { max: config.dbMaxConns, statementTimeoutMs: config.requestTimeoutMs })
  if (config.databaseUrl !== null) await reach(sql, config.databaseUrl)
  const { applied } = await migrate(sql)
  const generation = await takeGeneration(sql, { host: hostname(), pid: process.pid, release: VERSION })
  log.info({ event: 'database.ready', isEmbedded: embedded !== undefined, applied, generation, msg: 'database ready' })
  const maintenance = new Maintenance(sql, config, log, generation, (table, rows) =>
    counters.add(counters.counter('retention_rows_total', { table }), rows),
  )
  await maintenance.prepare()

  // 3. shared memory
  const sessions = Array.from({ length: config.shards }, (_, shard) => `session-${shard}`)
  const hasKafka = config.kafkaBrokers.length > 0
  const threads = ['main', 'acceptor', ...sessions, 'relay', ...(hasKafka ? ['kafka'] : [])]
  const countersMemory = allocateCounters(threads, metricsVocabulary(PROTOCOLS))
  const counters = openCounters(countersMemory, 0)
  const directoryMemory = allocateDirectory(config.devicesMax, generation)
  const directory = new Directory(directoryMemory)
  const gateMemory = allocateGate(config.shards)
  const gate = new Gate(gateMemory)

  // 4. writers, and the way of rows to them
  const probe = new DatabaseProbe(databaseUrl, PROBE_MS_MAX)
  const health = new DatabaseHealth({
    probe: () => probe.ask(),
    probeEveryMs: 250,
    watchEveryMs: 1_000,
    probeMsMax: PROBE_MS_MAX,
    onChange: (isHere) => {
      if (isHere) log.info({ event: 'database.returned', msg: 'database is back' })
      else
        log.error({ event: 'database.lost', msg: 'database is away: settlements are not acknowledged, history spools' })
    },
  })
  embedded?.onExit(() => health.lost())
  /** Whoever publishes events has something to look for. */
  const eventsCommitted = (): void => {
    stream.wake()
    webhooks.wake()
    kafka?.wake()
  }
  const writers = new Writers({
    threads: config.writers,
    data: { databaseUrl },
    log,
    counters,
    onEvents: () => eventsCommitted(),
  })
  const spool = new Spool({
    directory: join(dataDir, 'spool'),
    bytesMax: config.spoolBytesMax,
    health,
    tasks: {
      append: (path, span) => writers.spool(path, span),
      drain: (path, offset) => writers.drain(path, offset),
    },
    onDropped: (span) => {
      writers.dropped(span)
      log.error({ event: 'spool.dropped', rows: span.rows, msg: 'spool is full or unwritable: history dropped' })
    },
    onError: (path, error) => log.error({ event: 'spool.failed', path, err: error, msg: 'spool file trouble' }),
  })
  const lanes = Array.from({ length: config.shards }, (_, shard) => {
    const ledger = new OutboxConsumer(allocateOutbox(config.outboxBytes))
    const history = new OutboxConsumer(allocateOutbox(config.outboxBytes))
    const common = {
      health,
      after: (ms: number, act: () => void) => void setTimeout(act, ms),
      insert: (span: Parameters<Writers['insert']>[0]) => writers.insert(span),
      spansInFlightMax: config.writers,
      batchRowsMax: config.batchRowsMax,
      batchBytesMax: SPAN_BYTES_MAX,
    }
    const pumps = {
      ledger: new LanePump({
        ...common,
        lane: 'ledger',
        consumer: ledger,
        onDurable: (position, rejected) => supervisor.tellShard(shard, { kind: 'durable', position, rejected }),
      }),
      history: new LanePump({
        ...common,
        lane: 'history',
        consumer: history,
        gatherMs: HISTORY_GATHER_MS,
        onDurable: () => {},
        spill: (span) => spool.spill(shard, span, () => pumps.history.pump()),
        isSpooling: () => spool.isSpooling(shard),
      }),
    }
    return { ledger, history, pumps }
  })
  const wsSubscribers = counters.gauge('ws_subscribers')
  const wsDropped = counters.counter('ws_dropped_total')
  const stream: EventStream = new EventStream({
    sql,
    onEvents: (events) => hub.tell(events),
    onTrouble: (error) =>
      log.warn({ event: 'stream.failed', err: error, msg: 'events table could not be asked; subscribers wait' }),
  })
  const hub: PushHub = new PushHub({
    stream,
    figures: createFigures({
      counters: countersMemory,
      rowsPending: () =>
        lanes.reduce((sum, { pumps }) => sum + pumps.ledger.rowsPending + pumps.history.rowsPending, 0),
      monoNow: () => performance.now(),
    }),
    bufferedBytesMax: config.wsBackpressureBytesMax,
    subscribersMax: config.wsSubscribersMax,
    onSubscribers: (change) => counters.add(wsSubscribers, change),
    onDropped: (frames) => counters.add(wsDropped, frames),
    onCut: (keyId) => log.warn({ event: 'subscriber.cut', keyId, msg: 'a WebSocket subscriber could not keep up' }),
  })
  const guard = { allowPrivate: config.webhookAllowPrivate, allowedHosts: config.webhookAllowedHosts }
  // what this gateway held when it was killed is found again by whoever has its data
  const holderName = `${hostname()}:${dataDir}`
  const webhooks = new RelayThread(
    {
      name: holderName,
      databaseUrl,
      timeoutMs: config.webhookTimeoutMs,
      concurrency: config.webhookConcurrency,
      scheduleMs: config.webhookRetryScheduleS.map((seconds) => seconds * 1_000),
      disableAfterMs: config.webhookDisableAfterMs,
      retentionDays: config.retentionDaysDead,
      pollMs: STREAM_POLL_MS,
      guard,
      counters: countersMemory,
      countersThread: threads.indexOf('relay'),
      log: logOptions,
    },
    log,
  )
  const kafka = hasKafka
    ? new KafkaThread(
        {
          sink: { name: holderName, topic: config.kafkaTopic, from: config.kafkaFrom, pollMs: STREAM_POLL_MS },
          producer: kafkaProducerOptions(config),
          databaseUrl,
          counters: countersMemory,
          countersThread: threads.indexOf('kafka'),
          log: logOptions,
        },
        log,
      )
    : undefined
  spool.drainAll()
  const mailboxMemories = Array.from({ length: config.shards }, () => allocateOutbox(MAILBOX_BYTES))
  const mailboxes = mailboxMemories.map((memory) => new OutboxProducer(memory))
  const pending = counters.gauge('commands_pending')
  const desk: CommandDesk = new CommandDesk({
    store: new SqlCommandStore(sql),
    log,
    directory,
    mailboxes,
    wakeShard: (shard) => supervisor.tellShard(shard, { kind: 'mail' }),
    askCancel: (shard, questionId, key, commandId) =>
      supervisor.tellShard(shard, { kind: 'cancel', questionId, deviceKey: key, commandId }),
    commandsMax: config.commandsMax,
    commandsPerDeviceMax: config.commandsPerDeviceMax,
    now: Date.now,
    after: (ms, act) => void setTimeout(act, ms),
    onHeld: (change) => counters.add(pending, change),
    onEnded: (command, outcome) => counters.add(counters.counter('commands_total', { command, outcome })),
    onFinal: () => jobRunner.fateHeard(),
  })

  // 5. session threads, then the acceptor
  const profiles = new ModelProfiles(config.devicesMax, (key, name) => {
    for (let shard = 0; shard < config.shards; shard++)
      supervisor.tellShard(shard, { kind: 'profile', deviceKey: key, name })
  })
  const { left: profilesLeft } = await profiles.load(sql)
  if (profilesLeft > 0)
    log.warn({
      event: 'profiles.left',
      count: profilesLeft,
      msg: 'model profiles of no protocol, or more than DEVICES_MAX',
    })
  const allowlist = new AllowlistKeeper(sql, (entries) => {
    for (let shard = 0; shard < config.shards; shard++) supervisor.tellShard(shard, { kind: 'allowlist', entries })
  })
  if (config.allowlist === 'on') await allowlist.load()
  const evidence = new EvidenceKeeper(sql, (count) =>
    log.warn({ event: 'evidence.dropped', count, msg: 'evidence of refused connections dropped' }),
  )
  const heard = (shard: number, message: FromSession): void => {
    switch (message.kind) {
      case 'rows':
        lanes[shard]!.pumps[message.lane].pump()
        return
      case 'card': {
        const { questionId } = message.question
        answerCard(sql, message.question, Date.now())
          .catch((error: unknown) => {
            log.warn({ event: 'card.unanswered', err: error, msg: 'cards table could not be asked' })
            return undefined
          })
          .then((answer) => {
            supervisor.tellShard(shard, { kind: 'card', questionId, answer })
            if (answer !== undefined) void chargeByCard({ sql, log, commands }, message.question, answer)
          })
        return
      }
      case 'evidence':
        evidence.keep(message.items)
        return
      case 'supersede':
        supervisor.tellShard(message.shard, { kind: 'superseded', deviceKey: message.deviceKey, epoch: message.epoch })
        return
      case 'online':
        for (const key of message.deviceKeys) desk.deviceOnline(key)
        return
      case 'returned':
        desk.returned(message.command)
        return
      case 'moved':
        for (const { commandId, status } of message.commands) desk.moved(commandId, status)
        return
      case 'cancelled':
        desk.cancelAnswered(message.questionId, message.isCancelled)
        return
      default:
    }
  }
  const supervisor: Supervisor = new Supervisor({
    shards: config.shards,
    socketDriver: config.socketDriver,
    log,
    gate,
    sessionOptions: (shard) => ({
      shard,
      idleTimeoutMs: config.idleTimeoutMs,
      stateFlushMs: config.stateFlushMs,
      seenFlushMs: config.seenFlushMs,
      cardLookupTimeoutMs: config.cardLookupTimeoutMs,
      commands: {
        spacingMs: config.commandSpacingMs,
        ackTimeoutMs: config.ackTimeoutMs,
        retries: config.ackRetries,
      },
      mailbox: mailboxMemories[shard]!,
      mailboxPosition: mailboxes[shard]!.position,
      ledger: lanes[shard]!.ledger.memory,
      history: lanes[shard]!.history.memory,
      ledgerPosition: lanes[shard]!.ledger.written,
      historyPosition: lanes[shard]!.history.written,
      directory: directoryMemory,
      gate: gateMemory,
      counters: countersMemory,
      countersThread: 2 + shard,
      outboundBytesMax: config.outboundBytesMax,
      profiles: profiles.entries,
      allowlist: config.allowlist === 'on' ? allowlist.entries : undefined,
      record: config.record,
      recordDirectory: join(dataDir, 'frames'),
      recordBytesMax: Math.floor(config.recordBytesMax / config.shards),
      log: logOptions,
    }),
    acceptorOptions: {
      host: config.tcpHost,
      port: config.tcpPort,
      shards: config.shards,
      identifyTimeoutMs: config.identifyTimeoutMs,
      // one frame of the longest kind before login, and an ICCID before it
      identifyBytesMax: 1_024,
      evidenceBytesMax: config.evidenceBytesMax,
      connectionsMax: config.connectionsMax,
      gate: gateMemory,
      directory: directoryMemory,
      counters: countersMemory,
      countersThread: 1,
      log: logOptions,
    },
    onSessionMessage: heard,
    onEvidence: (message) => evidence.keep(message.items),
    onShardLost: (shard) => {
      const offline = directory.clearShard(shard)
      log.warn({ event: 'shard.cleared', shard, offline, msg: 'devices of a dead session thread are offline' })
      const { ledger } = lanes[shard]!
      const { written } = ledger
      desk.shardLost(shard, () => ledger.released >= written)
      // it may have died between taking main's sleep flag and telling us: nobody else would wake the lanes again
      lanes[shard]!.pumps.ledger.pump()
      lanes[shard]!.pumps.history.pump()
      const { written: historyWritten } = lanes[shard]!.history
      const isWritten = () => ledger.released >= written && lanes[shard]!.history.released >= historyWritten
      void maintenance.closeSessionsOf(shard, directory.nextEpoch(), isWritten)
    },
  })
  await supervisor.startShards()

  // 6. HTTP
  const readiness = (): string[] => {
    const reasons: string[] = []
    if (!health.isHere) reasons.push('database: away')
    for (const shard of supervisor.shardsDown) reasons.push(`shard ${shard}: down`)
    if (!supervisor.isListening) reasons.push('listener: down')
    if (isStopping) reasons.push('stopping')
    return reasons
  }
  const scrape = createScrape({
    counters: countersMemory,
    version: VERSION,
    gauges: {
      command_requests_pending: () => [{ labels: {}, value: commands.pendingRequests }],
      rows_pending: () =>
        lanes.map(({ pumps }, shard) => ({
          labels: { shard: String(shard) },
          value: pumps.ledger.rowsPending + pumps.history.rowsPending,
        })),
      spool_bytes: () => [{ labels: {}, value: spool.bytes }],
    },
  })
  const loopDelay = setInterval(
    () => counters.set(counters.gauge('event_loop_delay_seconds', { thread: 'main' }), counters.loopDelaySeconds()),
    1_000,
  )
  const commands = new CommandService({
    sql,
    log,
    desk,
    commandExpiryMs: config.commandExpiryMs,
    limits: {
      perKeyPerS: config.rateLimitPerKeyPerS,
      perDevicePerS: config.rateLimitPerDevicePerS,
      fleetPerS: config.rateLimitFleetPerS,
    },
    now: Date.now,
  })
  const presenceOf = (deviceId: string): LivePresence | undefined => {
    const found = parseAnyDeviceId(deviceId)
    const claim = found === undefined ? undefined : directory.look(deviceKey(found.protocol, found.deviceNo))
    if (claim === undefined) return undefined
    return { online: claim.isOnline, epoch: claim.epoch, shard: claim.shard, lastSeenMs: claim.lastSeenS * 1_000 }
  }
  const jobDevicesEnded = (outcome: string, devices: number): void =>
    counters.add(counters.counter('job_devices_total', { outcome }), devices)
  const jobRunner: JobRunner = new JobRunner({
    sql,
    log,
    commands,
    isOnline: (deviceId) => presenceOf(deviceId)?.online === true,
    now: Date.now,
    onEvents: () => eventsCommitted(),
    onEnded: jobDevicesEnded,
  })
  const admin = createAdmin({
    config,
    log,
    sql,
    apiKeys,
    readiness,
    presenceOf,
    protocolOf: (deviceId) => parseAnyDeviceId(deviceId)?.protocol.name,
    profileChanged: (deviceId, name) => profiles.changed(deviceId, name),
    isDatabaseHere: () => health.isHere,
    renderMetrics: () => scrape.render(),
    observeRequest: scrape.observeRequest,
    now: Date.now,
    nonceDirectory: join(dataDir, 'nonces'),
    push: hub,
    moreRoutes: [
      ...eventRoutes({ sql }),
      ...webhookRoutes({ sql, guard, wake: () => webhooks.wake() }),
      ...commandRoutes({ sql, commands }),
      ...jobRoutes({ sql, jobs: new Jobs({ sql, desk, runner: jobRunner, onEnded: jobDevicesEnded }) }),
      ...allowlistRoutes({
        sql,
        isDeviceId: (text) => parseAnyDeviceId(text) !== undefined,
        changed: async () => {
          if (config.allowlist === 'on') await allowlist.changed()
        },
      }),
      ...auditRoutes({ sql }),
      ...evidenceRoutes({ sql, framesDirectory: join(dataDir, 'frames'), now: Date.now }),
    ],
  })
  let isStopping = false
  // before anybody can store another one: what is stored while this looks would be taken over twice
  const waiting = await desk.load()
  await admin.listen()
  await supervisor.startAcceptor()
  maintenance.start()
  desk.start()
  const reconciler = new Reconciler({
    store: new SqlReconcilerStore(sql),
    log,
    reconcileAfterMs: config.reconcileAfterMs,
    now: Date.now,
    isOnline: (deviceId) => presenceOf(deviceId)?.online === true,
    ask: (order) => askOrder(commands, sql, order),
    onMoved: (counts, eventCursor) => {
      writers.tallyOrders(counts)
      if (eventCursor !== null) eventsCommitted()
    },
  })
  reconciler.start()
  const limits = new Limits({ sql, log, commands, everyMs: LIMITS_EVERY_MS })
  limits.start()
  jobRunner.start()
  webhooks.start()
  kafka?.start()
  if (waiting > 0) log.info({ event: 'commands.loaded', waiting, msg: 'commands of the last start are picked up' })

  const where = {
    devices: `tcp://${config.tcpHost}:${supervisor.tcpPort}`,
    api: `http://${config.httpHost}:${admin.port}/api/v1`,
    console: `http://${config.httpHost}:${admin.port}/`,
    metrics: `http://${config.httpHost}:${admin.port}/metrics`,
    api_key: firstKey?.path ?? 'API_KEYS',
  }
  // the first line of output (contract 1), whatever LOG_LEVEL: where everything is; then what was said while starting
  releaseLog(() =>
    log.child({}, { level: 'info' }).info({
      event: 'gateway.started',
      ...where,
      msg: `devices ${where.devices}  api ${where.api}  console ${where.console}  metrics ${where.metrics}  key ${where.api_key}`,
    }),
  )

  return {
    tcpPort: supervisor.tcpPort,
    httpPort: admin.port,
    config,
    async stop() {
      isStopping = true
      const stopByMonoMs = performance.now() + STOP_MS_MAX
      const unflushed: string[] = []
      log.info({ event: 'gateway.stopping', msg: 'stopping' })
      // nobody new; then what was read is answered, as far as the database lets it be
      await supervisor.stopAcceptor()
      // deliveries under way end while the rest is flushed; new events go out after the next start
      const streamsStopped = Promise.all([webhooks.stop(STREAM_DRAIN_MS), kafka?.stop(STREAM_DRAIN_MS)])
      await supervisor.askAll('drain', 1_000)
      if (health.isHere) await Promise.all(lanes.map(({ pumps }) => pumps.ledger.idle(DRAIN_MS)))
      await supervisor.askAll('stop', 2_000)
      // session ends and last states were written while stopping
      await Promise.all(
        lanes.flatMap(({ pumps }) => [pumps.ledger.idle(health.isHere ? FLUSH_MS : 0), pumps.history.idle(FLUSH_MS)]),
      )
      await settledWithin(evidence.flush(), 1_000)
      for (const [shard, { pumps }] of lanes.entries()) {
        if (!pumps.ledger.isIdle)
          unflushed.push(`shard ${shard}: ${pumps.ledger.rowsPending} settlements not stored and not acknowledged`)
        pumps.ledger.stop()
        pumps.history.stop()
        if (!pumps.history.isIdle) {
          // not stored, but kept: the spool is drained at the next start
          const rows = pumps.history.rowsPending
          if (!(await settledWithin(pumps.history.spillRest(), 2_000)))
            unflushed.push(`shard ${shard}: ${rows} history rows not stored`)
        }
      }
      health.stop()
      desk.stop()
      limits.stop()
      await settledWithin(Promise.all([reconciler.stop(), jobRunner.stop()]), 1_000)
      hub.close()
      stream.stop()
      await admin.close()
      clearInterval(loopDelay)
      maintenance.stop()
      await streamsStopped
      await settledWithin(writers.close(), health.isHere ? 2_000 : 0)
      if (health.isHere) await settledWithin(endGeneration(sql, generation), 1_000)
      await Promise.all([probe.close(), sql.end({ timeout: 1 })])
      if (embedded !== undefined && !(await settledWithin(embedded.stop(), stopByMonoMs - performance.now())))
        unflushed.push(`database: server ${embedded.pid} did not stop; told to, it ends when it can`)
      giveBackDataDir()
      process.off('unhandledRejection', ignoreBroken)
      for (const problem of unflushed) log.error({ event: 'gateway.unflushed', msg: problem })
      log.info({ event: 'gateway.stopped', msg: 'stopped' })
      await closeLog()
      return unflushed
    },
  }
}

/** @throws GW_DATABASE_UNREACHABLE in words that name the key and not its secret */
async function reach(sql: Sql, databaseUrl: string): Promise<void> {
  try {
    await sql`select 1`
  } catch (error) {
    const { host, pathname } = new URL(databaseUrl)
    const said = (error as Error).message
    throw new GatewayError('GW_DATABASE_UNREACHABLE', `DATABASE_URL: ${host}${pathname} cannot be used: ${said}`, {
      cause: error,
    })
  }
}

async function run(): Promise<void> {
  let config: Config
  try {
    config = loadConfig()
  } catch (error) {
    console.error((error as Error).message)
    process.exit(2)
  }
  let stopping = false
  let gateway: Gateway | undefined
  const stop = async (): Promise<void> => {
    if (stopping) return
    stopping = true
    // a stop that hangs must not outlive the 15 s that callers wait
    setTimeout(() => {
      console.error('stop took longer than 14 s, ending anyway')
      process.exit(3)
    }, 14_000).unref()
    const unflushed = gateway === undefined ? ['stopped before it had started'] : await gateway.stop()
    for (const problem of unflushed) console.error(`not flushed: ${problem}`)
    process.exit(unflushed.length === 0 ? 0 : 1)
  }
  process.on('SIGTERM', () => void stop())
  process.on('SIGINT', () => void stop())
  try {
    gateway = await startGateway(config)
  } catch (error) {
    releaseLog()
    // what has a code has a message for people; anything else is ours, and its stack is needed
    const said = error instanceof GatewayError ? `${error.code}: ${error.message}` : ((error as Error).stack ?? error)
    console.error(`cannot start: ${said}`)
    await closeLog()
    process.exit(1)
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await run()
