/**
 * One start of the gateway: acceptor, session threads, pumps and the messages between them, carried out on the virtual
 * clock. Decisions are the real code; what is here does what workers/acceptor/index.ts, workers/session/index.ts,
 * src/main/supervisor.ts and src/main/start.ts do on real threads, in the same order.
 */
import { identify } from '../../workers/acceptor/identify.ts'
import {
  type CardAnswer,
  deviceKey as deviceKeyOf,
  type Fields,
  type Protocol,
  type Uplink,
} from '../codec/protocol.ts'
import { CommandDesk, SWEEP_MS } from '../main/command-desk.ts'
import type { CommandStore } from '../main/command-store.ts'
import { LanePump, type SpanOutcome } from '../main/lane-pump.ts'
import type { Log } from '../main/log.ts'
import { type DoubtedOrder, Reconciler, type ReconcilerStore } from '../main/reconciler.ts'
import { PROTOCOLS, parseAnyDeviceId } from '../protocols/index.ts'
import { type CommandFateRow, commandFateRow, commandLogRow, settlementRow } from '../rows/index.ts'
import { commandMail } from '../rows/mail.ts'
import { encodeRow, type Field, LANES, type Lane, type RowKind, type RowOf, readRows } from '../rows/row.ts'
import { COMMAND_STATUS } from '../session/command-lane.ts'
import type { CardQuestion, CloseReason, Effects, ReturnedCommand, SessionCounts } from '../session/effects.ts'
import { ROW_REFUSED } from '../session/effects.ts'
import { Shard, type ShardOptions } from '../session/shard.ts'
import { allocateDirectory, type Claim, type ClaimAnswer, Directory, type StandingWords } from '../shared/directory.ts'
import { allocateOutbox, OUTBOX_FULL, OutboxConsumer, OutboxProducer, type Span } from '../shared/outbox.ts'
import { shardOf } from '../shared/rendezvous.ts'
import { bytesOf, type ModelDatabase, ModelHealth, type ModelSpool, rowNameOf } from './sim-database.ts'
import type { Line, ServerEnd } from './sim-network.ts'
import { Channel } from './sim-time.ts'
import type { Mutant, World } from './sim-world.ts'

/** The start of every run: what devices and rows call the time. */
export const WALL_MS = Date.UTC(2026, 10, 21, 8)
const IDENTIFY_TIMEOUT_MS = 15_000
const TICK_MS = 200
const RECONCILE_EVERY_MS = 4_000
export const IDLE_TIMEOUT_MS = 45_000

export const SPACING_MS = 500
export const ACK_TIMEOUT_MS = 15_000

const shardOptions = (shard: number, mutant: Mutant | undefined): ShardOptions => ({
  shard,
  idleTimeoutMs: IDLE_TIMEOUT_MS,
  stateFlushMs: 1_000,
  seenFlushMs: 40_000,
  cardLookupTimeoutMs: 2_000,
  commands: { spacingMs: mutant === 'noSpacing' ? 20 : SPACING_MS, ackTimeoutMs: ACK_TIMEOUT_MS, retries: 1 },
})

/** What the gateway does that somebody outside checks. */
export interface Watch {
  /** A session thread decides to send. */
  speaks(line: Line, frame: Uint8Array): void
  /** The same for a command; '' is a question of its lane. */
  commands(line: Line, frame: Uint8Array, commandId: string): void
  /** A session thread writes down what became of a command. */
  decides(fate: CommandFateRow): void
  /** The row of a fate is where the death of the thread does not reach it. */
  decided(commandId: string): void
  /** A session thread has heard a settlement and wants it stored. */
  heardSettlement(deviceId: string, socket: number, port: number, wireHex: string): void
  closes(line: Line, reason: CloseReason): void
  /** The server sees that a device's end of a connection is gone. */
  peerEnded(line: Line): void
  claimed(birth: number, deviceKey: number, answer: ClaimAnswer): void
  /** Rows of the history lane whose ring space is free again: stored, spooled or dropped. */
  released(names: readonly string[]): void
  /** Unacked settlements of this device are known to its shard. */
  hasUnacked(deviceKey: number): boolean
  /** What a card is found to be; the reply goes to the shard after it. */
  cardAnswer(question: CardQuestion): CardAnswer
  /** The same, told: a good card may begin a charge. */
  cardAnswered(question: CardQuestion, answer: CardAnswer): void
  /** An order is silent. */
  asks(order: DoubtedOrder): void
  /** Limits that devices cannot keep are due to be looked at. */
  keepsLimits(): void
  /** Something that fates of commands have to wait for. */
  troubleBegan(): void
  troubleOver(): void
}

const SILENT = { info: () => {}, warn: () => {}, error: () => {} } as unknown as Log

/** The real directory, watched; mutants break it here. */
class WatchedDirectory extends Directory {
  readonly #world: World
  readonly #watch: Watch
  readonly #keys = new Map<number, number>()

  constructor(memory: SharedArrayBuffer, world: World, watch: Watch) {
    super(memory)
    this.#world = world
    this.#watch = watch
  }

  override claim(deviceKey: number, birth: number, shard: number): ClaimAnswer {
    const isMutant = this.#world.mutant === 'olderMayClaim'
    const answer = super.claim(deviceKey, isMutant ? this.nextEpoch() : birth, shard)
    if (answer.kind === 'taken') this.#keys.set(answer.claim.slot, deviceKey)
    this.#watch.claimed(birth, deviceKey, answer)
    return answer
  }

  override isStanding(claim: StandingWords): boolean {
    return super.isStanding(claim) || this.#world.mutant === 'noFence'
  }

  override giveBack(claim: Claim): boolean {
    if (this.#world.mutant === 'claimKept') return true
    if (super.giveBack(claim)) return true
    this.#world.covered('close.stale')
    const key = this.#keys.get(claim.slot)
    const standing = key === undefined ? undefined : this.look(key)
    if (this.#world.mutant === 'staleCloseUnbinds' && standing?.isOnline === true) super.giveBack(standing)
    return false
  }
}

/** Room is short while a fault lasts. */
class WatchedProducer extends OutboxProducer {
  readonly #world: World

  constructor(memory: SharedArrayBuffer, world: World) {
    super(memory)
    this.#world = world
  }

  override append(row: Uint8Array): number {
    const position = super.append(row)
    if (position === OUTBOX_FULL) this.#world.covered('mailbox.full')
    return position
  }
}

/** The real consumer; an assertion of it fails the run instead of a promise that nobody awaits. */
class WatchedConsumer extends OutboxConsumer {
  readonly #world: World
  readonly #onRelease: (position: number) => void
  #isBroken = false

  constructor(memory: SharedArrayBuffer, position: number, world: World, onRelease: (position: number) => void) {
    super(memory, position)
    this.#world = world
    this.#onRelease = onRelease
  }

  override take(bytesMax: number, rowsMax: number): Span | undefined {
    try {
      return super.take(bytesMax, rowsMax)
    } catch (error) {
      this.#world.violated('outbox', String(error))
      this.#isBroken = true
      return undefined
    }
  }

  /** Whoever empties a ring goes on until it sleeps: this one never will be empty again. */
  override sleep(): boolean {
    return this.#isBroken || super.sleep()
  }

  override release(position: number, rows: number): void {
    try {
      super.release(position, rows)
    } catch (error) {
      this.#world.violated('outbox', String(error))
    }
    this.#onRelease(position)
  }
}

interface KeptRow {
  readonly position: number
  readonly name: string
}

/** What main keeps of one shard; survives its session thread. */
class ShardLanes {
  readonly memory: Record<Lane, SharedArrayBuffer>
  readonly consumer: Record<Lane, OutboxConsumer>
  readonly pumps: Record<Lane, LanePump>
  /** Published and not released, in order: names of history rows. */
  inRing: KeptRow[] = []
  /** When the history lane last moved. */
  historyMovedMs: number
  spansInFlight = 0

  constructor(gateway: Gateway, world: World, shard: number) {
    const { plan } = world
    const { streamPosition } = plan
    this.historyMovedMs = world.time.nowMs
    this.memory = {
      ledger: allocateOutbox(plan.ledgerRingBytes, streamPosition),
      history: allocateOutbox(plan.historyRingBytes, streamPosition),
    }
    this.consumer = {
      ledger: new WatchedConsumer(this.memory.ledger, streamPosition, world, () => {}),
      history: new WatchedConsumer(this.memory.history, streamPosition, world, (position) => {
        this.historyMovedMs = world.time.nowMs
        let count = 0
        while (count < this.inRing.length && this.inRing[count]!.position <= position) count++
        gateway.watch.released(this.inRing.splice(0, count).map(({ name }) => name))
      }),
    }
    const common = {
      health: gateway.health,
      after: (ms: number, act: () => void) => world.time.after(ms, () => gateway.isAlive && act()),
      spansInFlightMax: 3,
      batchRowsMax: 20,
      batchBytesMax: 8_192,
    }
    const insert = (span: Span, lane: Lane) => this.#insert(gateway, world, shard, span, lane)
    this.pumps = {
      ledger: new LanePump({
        ...common,
        lane: 'ledger',
        consumer: this.consumer.ledger,
        insert: (span) => insert(span, 'ledger'),
        onDurable: (position, rejected) => {
          const told = world.mutant === 'ackOfPutAside' ? [] : rejected
          gateway.tellDurable(shard, position, told)
        },
      }),
      history: new LanePump({
        ...common,
        lane: 'history',
        consumer: this.consumer.history,
        insert: (span) => insert(span, 'history'),
        onDurable: () => {},
        spill: (span) =>
          gateway.spool.spill(
            shard,
            span,
            () => gateway.isAlive,
            () => this.pumps.history.pump(),
          ),
        isSpooling: () => gateway.spool.isSpooling(shard),
      }),
    }
  }

  #insert(gateway: Gateway, world: World, shard: number, span: Span, lane: Lane): Promise<SpanOutcome> {
    const isLedger = lane === 'ledger'
    if (isLedger && world.mutant === 'ackBeforeDurable') gateway.tellDurable(shard, span.toPosition, [])
    this.spansInFlight++
    const flight = { position: span.toPosition, isDone: false }
    this.#flights.push(flight)
    return new Promise((resolve) => {
      // the writer reads the ring when its turn comes, not when main asks
      world.time.after(world.random.between(0, 2), () => {
        if (!gateway.isAlive) return
        gateway.database.write(
          bytesOf(span),
          () => gateway.isAlive,
          (outcome) => {
            this.spansInFlight--
            this.#flights = this.#flights.filter((other) => other !== flight)
            if (
              isLedger &&
              outcome.kind === 'stored' &&
              this.#flights.some((other) => other.position < flight.position)
            ) {
              world.covered('writers.out_of_order')
              if (world.mutant === 'durableOutOfOrder') gateway.tellDurable(shard, span.toPosition, [])
            }
            world.owesTurn = true
            if (outcome.kind === 'away') {
              if (isLedger && world.mutant === 'forgetRetry') resolve({ kind: 'stored', rejected: [] })
              // the answer that main gets for ever when its retry is broken
              else if (isLedger && world.mutant === 'deafPump') return
              else resolve(outcome)
            } else resolve({ kind: 'stored', rejected: outcome.rejected.map((end) => span.fromPosition + end) })
          },
        )
      })
    })
  }

  #flights: { readonly position: number }[] = []
}

export class Gateway implements ServerEnd {
  isAlive = true
  readonly world: World
  readonly watch: Watch
  readonly database: ModelDatabase
  readonly spool: ModelSpool
  readonly health: ModelHealth
  readonly directory: Directory
  readonly lanes: ShardLanes[]
  /** The session thread of each shard, as main knows it. */
  readonly threads: (SessionThread | undefined)[]
  readonly desk: CommandDesk
  readonly reconciler: Reconciler
  readonly mailboxMemories: readonly SharedArrayBuffer[]
  readonly mailboxes: readonly OutboxProducer[]
  /** The desk knows what an earlier start left: devices and operators may come. */
  isServing = false
  #heldCount = 0
  readonly #toAcceptor: Channel
  /** The same, as the acceptor knows it: it hears of a death a little later. */
  readonly #doors: (SessionThread | undefined)[]
  readonly #strangers = new Map<Line, { bytes: Uint8Array; readonly dueMs: number }>()

  constructor(
    world: World,
    watch: Watch,
    database: ModelDatabase,
    store: CommandStore,
    reconcilerStore: ReconcilerStore,
    spool: ModelSpool,
    generation: number,
  ) {
    this.world = world
    this.watch = watch
    this.database = database
    this.spool = spool
    this.health = new ModelHealth(world, database, () => this.isAlive)
    spool.opened(this.health)
    this.directory = new WatchedDirectory(allocateDirectory(64, generation), world, watch)
    const shards = Array.from({ length: world.plan.shards }, (_, shard) => shard)
    this.lanes = shards.map((shard) => new ShardLanes(this, world, shard))
    this.mailboxMemories = shards.map(() => allocateOutbox(world.plan.mailboxBytes))
    this.mailboxes = this.mailboxMemories.map((memory) => new WatchedProducer(memory, world))
    this.threads = shards.map((shard) => new SessionThread(this, shard))
    this.desk = this.#openDesk(store)
    this.reconciler = this.#openReconciler(reconcilerStore)
    this.#toAcceptor = new Channel(world.time, world.random, world.plan.busyShare)
    this.#doors = [...this.threads]
    this.#tick()
  }

  get acksPending(): number {
    return this.threads.reduce((sum, thread) => sum + (thread?.shard.acksPending ?? 0), 0)
  }

  #openDesk(store: CommandStore): CommandDesk {
    const { world } = this
    const desk = new CommandDesk({
      store,
      log: SILENT,
      directory: this.directory,
      mailboxes: this.mailboxes,
      wakeShard: (shard) => this.threads[shard]?.mail(),
      askCancel: (shard, questionId, deviceKey, commandId) =>
        this.threads[shard]?.cancel(questionId, deviceKey, commandId),
      commandsMax: 1_000,
      commandsPerDeviceMax: 100,
      now: () => WALL_MS + world.time.nowMs,
      after: (ms, act) => world.time.after(ms, () => this.isAlive && act()),
      onHeld: (change) => {
        this.#heldCount += change
      },
      onEnded: () => {},
    })
    const load = () => {
      if (!this.isAlive) return
      desk.load().then(
        () => {
          this.isServing = true
        },
        () => world.time.after(300, load),
      )
    }
    load()
    const sweep = () =>
      world.time.after(SWEEP_MS, () => {
        if (!this.isAlive) return
        desk.sweep()
        sweep()
      })
    sweep()
    return desk
  }

  #openReconciler(store: ReconcilerStore): Reconciler {
    const { world, watch } = this
    const reconciler = new Reconciler({
      store,
      log: SILENT,
      reconcileAfterMs: world.plan.reconcileAfterMs,
      now: () => WALL_MS + world.time.nowMs + world.laterMs,
      isOnline: (deviceId) => {
        const found = parseAnyDeviceId(deviceId)
        return (
          found !== undefined && this.directory.look(deviceKeyOf(found.protocol, found.deviceNo))?.isOnline === true
        )
      },
      ask: async (order) => watch.asks(order),
      onMoved: () => {},
    })
    let isBusy = false
    const round = () =>
      world.time.after(RECONCILE_EVERY_MS, () => {
        if (!this.isAlive) return
        watch.keepsLimits()
        if (!isBusy) {
          isBusy = true
          const done = () => {
            isBusy = false
          }
          // the database is away: next time
          reconciler.round().then(done, done)
        }
        round()
      })
    round()
    return reconciler
  }

  /** The gauge of that name. */
  get commandsPending(): number {
    return this.threads.reduce((sum, thread) => sum + (thread?.commandsPending ?? 0), this.#heldCount)
  }

  /** Commands that a session has without a fate, by thread. */
  get commandsWithShards(): number {
    return this.threads.reduce((sum, thread) => sum + (thread?.commandsPending ?? 0), 0)
  }

  get isIdle(): boolean {
    return this.lanes.every(({ pumps }) => LANES.every((lane) => pumps[lane].isIdle && pumps[lane].rowsPending === 0))
  }

  // ---- the acceptor ----------------------------------------------------------------------------------------------

  accept(line: Line): void {
    line.birth = this.directory.nextEpoch()
    line.isServerOpen = true
    line.server = this
    line.heardMs = this.world.time.nowMs
    this.#strangers.set(line, { bytes: new Uint8Array(0), dueMs: this.world.time.nowMs + IDENTIFY_TIMEOUT_MS })
  }

  received(line: Line, chunk: Uint8Array): void {
    const stranger = this.#strangers.get(line)
    if (stranger === undefined) return
    const bytes = new Uint8Array(stranger.bytes.length + chunk.length)
    bytes.set(stranger.bytes)
    bytes.set(chunk, stranger.bytes.length)
    stranger.bytes = bytes
    const identity = identify(PROTOCOLS, bytes, 1_024)
    if (identity.kind === 'needMore') return
    this.#strangers.delete(line)
    if (identity.kind === 'foreign') {
      this.world.violated('a device is no stranger', `${line.name}: ${Buffer.from(bytes).toString('hex')}`)
      return
    }
    const thread = this.#doors[shardOf(identity.routingKey, this.world.plan.shards)]
    if (thread === undefined) {
      this.world.covered('handoff.to_dead_shard')
      line.letGo(this.world.random.between(1, 60))
      return
    }
    thread.handOver(line, bytes, identity.protocol)
  }

  ended(line: Line): void {
    this.#strangers.delete(line)
  }

  #tick(): void {
    this.world.time.after(TICK_MS, () => {
      if (!this.isAlive) return
      const nowMs = this.world.time.nowMs
      for (const [line, { dueMs }] of this.#strangers) {
        if (dueMs > nowMs) break
        this.#strangers.delete(line)
        line.letGo(this.world.random.between(1, 60))
      }
      this.#checkHistoryMoves(nowMs)
      this.#tick()
    })
  }

  /** The database away is no reason for the history lane to rest: that is what the spool is for. */
  #checkHistoryMoves(nowMs: number): void {
    for (const [shard, lanes] of this.lanes.entries()) {
      if (lanes.inRing.length === 0 || this.spool.isBusy(shard)) lanes.historyMovedMs = nowMs
      else if (nowMs - lanes.historyMovedMs > 15_000) {
        this.world.violated(
          'rows move',
          `shard ${shard}: ${lanes.inRing.length} history rows rest in the ring for 15 s`,
        )
        lanes.historyMovedMs = nowMs
      }
    }
  }

  // ---- main ------------------------------------------------------------------------------------------------------

  tellDurable(shard: number, position: number, rejected: readonly number[]): void {
    this.threads[shard]?.durable(position, rejected)
  }

  answerCard(shard: number, question: CardQuestion): void {
    const { time, random } = this.world
    const isSlow = this.world.goesWrong(0.4)
    time.after(isSlow ? random.between(500, 8_000) : random.between(1, 20), () => {
      if (!this.isAlive) return
      const answer = this.database.isUp ? this.watch.cardAnswer(question) : undefined
      this.threads[shard]?.card(question.questionId, answer)
      if (answer !== undefined) this.watch.cardAnswered(question, answer)
    })
  }

  /** @param isMidway in the turn that appends its next row, before that is published */
  crashShardSoon(shard: number, isMidway: boolean): void {
    const thread = this.threads[shard]
    if (thread !== undefined && isMidway) thread.onNextRow = () => this.crashShard(shard)
    else this.crashShard(shard)
  }

  /** One session thread ends without a word; the supervisor notices, cleans up, starts another. */
  crashShard(shard: number): void {
    const thread = this.threads[shard]
    if (thread === undefined || !thread.isAlive) return
    const { world } = this
    const { time, random } = world
    world.covered('shard.crash')
    if (thread.shard.acksPending > 0) world.covered('shard.crash_with_ack_pending')
    if (thread.hasUnpublished) world.covered('shard.crash_with_unpublished_rows')
    if (!this.database.isUp) world.covered('shard.crash_during_outage')
    if (this.lanes[shard]!.spansInFlight > 0) world.covered('shard.crash_with_span_in_flight')
    if (thread.hasCardQuestion) world.covered('shard.crash_with_card_question')
    if (thread.commandsInFlight > 0) world.covered('command.shard_crash_in_flight')
    if (thread.hasMail) world.covered('command.shard_crash_in_mailbox')
    thread.die()
    this.watch.troubleBegan()
    // main hears of it at once, unless it is busy, and behind everything that the thread told
    const isBusy = random.chance(0.3)
    time.after(isBusy ? random.between(40, 2_500) : random.between(1, 40), () =>
      thread.afterMessages(() => {
        if (!this.isAlive) return this.watch.troubleOver()
        this.threads[shard] = undefined
        this.#toAcceptor.post(() => {
          this.#doors[shard] = undefined
        })
        this.directory.clearShard(shard)
        // its word that there are rows may have died with it, and the flag says that main was told
        for (const lane of LANES) this.lanes[shard]!.pumps[lane].pump()
        const { ledger } = this.lanes[shard]!.consumer
        const { written } = ledger
        this.desk.shardLost(shard, () => world.mutant === 'deskTrustsTheDead' || ledger.released >= written)
        time.after(random.between(100, 3_000), () => {
          this.watch.troubleOver()
          if (!this.isAlive) return
          const replacement = new SessionThread(this, shard)
          this.threads[shard] = replacement
          this.#toAcceptor.post(() => {
            this.#doors[shard] = replacement
          })
        })
      }),
    )
  }

  /** Everything in memory is gone. */
  crash(): void {
    const { world } = this
    world.covered('gateway.crash')
    if (this.acksPending > 0) world.covered('gateway.crash_with_ack_pending')
    if (this.lanes.some(({ consumer }) => LANES.some((lane) => consumer[lane].bytesPending > 0)))
      world.covered('gateway.crash_with_unreleased_rows')
    if (!this.database.isUp) world.covered('gateway.crash_during_outage')
    if (!this.spool.isEmpty) world.covered('gateway.crash_with_spool')
    if (this.threads.some((thread) => thread !== undefined && thread.commandsInFlight > 0))
      world.covered('command.gateway_crash_in_flight')
    this.isAlive = false
    for (const { pumps } of this.lanes) for (const lane of LANES) pumps[lane].stop()
    for (const line of this.#strangers.keys()) line.letGo(world.random.between(1, 20_000))
    for (const thread of this.threads) thread?.die()
  }
}

/** workers/session/index.ts with worker-effects.ts and the socket driver's bookkeeping. */
class SessionThread implements Effects, ServerEnd {
  isAlive = true
  readonly shard: Shard
  readonly counts: SessionCounts
  readonly #gateway: Gateway
  readonly #world: World
  readonly #index: number
  readonly #lanes: ShardLanes
  readonly #producer: Record<Lane, OutboxProducer>
  readonly #toMain: Channel
  readonly #fromMain: Channel
  readonly #fromAcceptor: Channel
  readonly #handedOver = new Map<Line, Uint8Array[]>()
  readonly #endedEarly = new Set<Line>()
  readonly #lines: (Line | undefined)[] = []
  /** As the socket driver: the number freed last is used first. */
  readonly #freeIds: number[] = []
  #unpublished: KeptRow[] = []
  readonly #mailbox: OutboxConsumer
  /** Commands without a fate here. */
  commandsPending = 0
  /** Commands sent and without a fate, by id. */
  readonly #flying = new Set<string>()
  #decided: string[] = []
  #moved: { readonly commandId: string; readonly status: number }[] = []
  /** Which command the next frame carries: the lane logs it, then sends it. */
  #sending = ''
  #isFlushScheduled = false
  onNextRow: (() => void) | undefined
  readonly #questions = new Set<number>()

  constructor(gateway: Gateway, index: number) {
    this.#gateway = gateway
    this.#world = gateway.world
    this.#index = index
    const { time, random, plan } = this.#world
    const { busyShare } = plan
    this.#lanes = gateway.lanes[index]!
    const { memory, consumer } = this.#lanes
    const isForgetful = this.#world.mutant === 'shardForgetsPosition'
    const positionOf = (lane: Lane) => (isForgetful ? consumer[lane].released : consumer[lane].written)
    this.#producer = {
      ledger: new OutboxProducer(memory.ledger, positionOf('ledger')),
      history: new OutboxProducer(memory.history, positionOf('history')),
    }
    this.#toMain = new Channel(time, random, busyShare)
    this.#fromMain = new Channel(time, random, busyShare)
    this.#fromAcceptor = new Channel(time, random, busyShare)
    const covered = this.#world.covered.bind(this.#world)
    this.counts = {
      uplink: () => {},
      downlink: () => {},
      frameError: () => {},
      connections: () => {},
      devices: () => {},
      closed: () => {},
      takeover: () => {},
      fenced: (what) => {
        if (what !== 'close') covered(`fenced.${what}`)
      },
      ackWithheld: () => covered('ack.withheld'),
      rowRefused: (lane) => covered(lane === 'ledger' ? 'ring.full_ledger' : 'ring.full_history'),
      cardLookup: (result) => {
        if (result === 'unavailable') covered('card.unanswered')
      },
      command: (_, outcome) => {
        if (outcome === 'late') covered('result.of_nobody')
      },
      commandSeconds: () => {},
      commandResent: () => {},
      commandsPending: (change) => {
        this.commandsPending += change
      },
    }
    this.shard = new Shard(shardOptions(index, this.#world.mutant), gateway.directory, this, this.#now())
    this.#mailbox = new OutboxConsumer(gateway.mailboxMemories[index]!, gateway.mailboxes[index]!.position)
    this.#readMail()
    this.#tick()
  }

  #now() {
    const { nowMs } = this.#world.time
    return { wallMs: WALL_MS + nowMs, monoMs: nowMs }
  }

  get hasUnpublished(): boolean {
    return this.#unpublished.length > 0
  }

  get commandsInFlight(): number {
    return this.#flying.size
  }

  get hasMail(): boolean {
    return this.#mailbox.bytesPending > 0
  }

  get hasCardQuestion(): boolean {
    return this.#questions.size > 0
  }

  #tick(): void {
    this.#world.time.after(TICK_MS, () => {
      if (!this.isAlive) return
      this.shard.tick(this.#now())
      this.#flush()
      this.#tick()
    })
  }

  die(): void {
    this.isAlive = false
    const { random } = this.#world
    // what it had told main may have been told too late
    this.#toMain.isCut = random.chance(0.3)
    this.#fromMain.isCut = true
    for (const line of [...this.#lines, ...this.#handedOver.keys()])
      line?.letGo(random.chance(0.8) ? random.between(1, 500) : random.between(1_000, 30_000))
  }

  /** What it told before its end comes first. */
  afterMessages(act: () => void): void {
    if (this.#toMain.isCut) act()
    else this.#toMain.post(act)
  }

  // ---- messages ----------------------------------------------------------------------------------------------------

  handOver(line: Line, bytes: Uint8Array, protocol: Protocol): void {
    const unread: Uint8Array[] = []
    this.#handedOver.set(line, unread)
    // between the two threads the kernel keeps what comes
    line.server = this
    if (!this.isAlive) {
      this.#world.covered('handoff.to_dead_shard')
      line.letGo(this.#world.random.between(1, 100))
      return
    }
    this.#fromAcceptor.post(() => {
      if (!this.isAlive || !this.#handedOver.delete(line)) return
      const id = this.#freeIds.pop() ?? this.#lines.length
      line.connectionId = id
      this.#lines[id] = line
      this.shard.connectionOpened(
        { connectionId: id, protocol, birth: line.birth, remoteAddress: `192.0.2.1:${line.number}` },
        this.#now(),
      )
      this.#hear(line, bytes)
      for (const chunk of unread) this.#hear(line, chunk)
      if (this.#endedEarly.delete(line)) this.#peerClosed(line, 'peer_closed')
      this.#scheduleFlush()
    })
  }

  durable(position: number, rejected: readonly number[]): void {
    this.#fromMain.post(() => {
      this.shard.durableReached(position, rejected, this.#now())
      this.#scheduleFlush()
    })
  }

  mail(): void {
    this.#fromMain.post(() => {
      this.#readMail()
      this.#scheduleFlush()
    })
  }

  #readMail(): void {
    const mailbox = this.#mailbox
    const { mutant } = this.#world
    do {
      for (let span = mailbox.take(65_536, 256); span !== undefined; span = mailbox.take(65_536, 256)) {
        const bytes = bytesOf(span)
        mailbox.release(span.toPosition, span.rows)
        for (const mail of readRows(bytes, commandMail)) {
          const { deviceKey, lastMessageId, fields, messageId, attempts, expiresMs, ...rest } = mail
          const leftMs = expiresMs - this.#now().wallMs
          const forgotten = mutant === 'startRepeatedBlindly' ? 'control' : 'startCharge'
          const isMutant = mutant === 'startRepeatedBlindly' || mutant === 'startRanTwice'
          const isForgotten = isMutant && mail.name === forgotten && leftMs > 8_000
          this.shard.commandArrived(
            deviceKey,
            {
              ...rest,
              fields: JSON.parse(fields) as Fields,
              messageId: mutant === 'newIdOnResend' ? undefined : (messageId ?? undefined),
              attempts: isForgotten ? 0 : attempts,
              expiresMs: mutant === 'sendAfterExpiry' ? expiresMs + 30_000 : expiresMs,
            },
            lastMessageId ?? undefined,
            this.#now(),
          )
        }
      }
    } while (!mailbox.sleep())
  }

  cancel(questionId: number, deviceKey: number, commandId: string): void {
    this.#fromMain.post(() => {
      const isCancelled = this.shard.cancelCommand(deviceKey, commandId, this.#now())
      this.#toMain.post(() => this.#gateway.isAlive && this.#gateway.desk.cancelAnswered(questionId, isCancelled))
      this.#scheduleFlush()
    })
  }

  card(questionId: number, answer: CardAnswer | undefined): void {
    this.#fromMain.post(() => {
      this.#questions.delete(questionId)
      this.shard.cardAnswered(questionId, answer, this.#now())
      this.#scheduleFlush()
    })
  }

  // ---- sockets -----------------------------------------------------------------------------------------------------

  received(line: Line, bytes: Uint8Array): void {
    const unread = this.#handedOver.get(line)
    if (unread !== undefined) unread.push(bytes)
    else this.#hear(line, bytes)
    this.#scheduleFlush()
  }

  #hear(line: Line, bytes: Uint8Array): void {
    if (this.#lines[line.connectionId] !== line) return
    // the driver reads into one buffer that the next read overwrites: nothing may keep a view of it
    const chunk = bytes.slice()
    this.shard.chunkReceived(line.connectionId, chunk, this.#now())
    chunk.fill(0xee)
  }

  ended(line: Line, isReset: boolean): void {
    if (this.#handedOver.has(line)) this.#endedEarly.add(line)
    else this.#peerClosed(line, isReset ? 'peer_reset' : 'peer_closed')
    this.#scheduleFlush()
  }

  #peerClosed(line: Line, reason: CloseReason): void {
    const id = line.connectionId
    if (this.#lines[id] !== line) return
    this.#lines[id] = undefined
    this.#freeIds.push(id)
    line.isServerOpen = false
    this.#gateway.watch.peerEnded(line)
    this.shard.connectionClosed(id, reason, this.#now())
  }

  /** What was done in this turn becomes visible at its end: rows to main, frames to devices. */
  #scheduleFlush(): void {
    if (this.#isFlushScheduled) return
    this.#isFlushScheduled = true
    const { time, random } = this.#world
    time.after(random.between(0, 2), () => {
      this.#isFlushScheduled = false
      if (this.isAlive) this.#flush()
    })
  }

  #flush(): void {
    for (const row of this.#unpublished) this.#lanes.inRing.push(row)
    this.#unpublished = []
    for (const commandId of this.#decided.splice(0)) this.#gateway.watch.decided(commandId)
    const moved = this.#moved
    this.#moved = []
    if (moved.length > 0)
      this.#toMain.post(() => {
        if (!this.#gateway.isAlive) return
        for (const { commandId, status } of moved) this.#gateway.desk.moved(commandId, status)
      })
    for (const lane of LANES)
      if (this.#producer[lane].publish())
        this.#toMain.post(() => {
          if (this.#gateway.isAlive) this.#lanes.pumps[lane].pump()
        })
    for (const line of this.#lines) if (line !== undefined && line.queued.length > 0) this.#write(line)
  }

  #write(line: Line): void {
    for (const frame of line.queued) line.down.send(frame)
    line.queued = []
  }

  // ---- effects -----------------------------------------------------------------------------------------------------

  send(connectionId: number, frame: Uint8Array, answers: Uplink | undefined): boolean {
    const line = this.#lines[connectionId]
    if (line === undefined) return true
    if (line.isFull && !this.#world.isCalm) return false
    if (answers === undefined) this.#gateway.watch.commands(line, frame, this.#sending)
    this.#gateway.watch.speaks(line, frame)
    line.queued.push(Uint8Array.from(frame))
    if (this.#world.mutant === 'answerTwice' && this.#world.random.chance(0.02)) this.#gateway.watch.speaks(line, frame)
    this.#scheduleFlush()
    return true
  }

  record(): void {}

  close(connectionId: number, reason: CloseReason): void {
    const line = this.#lines[connectionId]
    if (line === undefined) return
    this.#gateway.watch.closes(line, reason)
    this.#write(line)
    this.#lines[connectionId] = undefined
    this.#freeIds.push(connectionId)
    line.letGo(this.#world.random.between(1, 100))
  }

  appendRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): number {
    const { watch } = this.#gateway
    let given: RowOf<F> = values
    if (row.kind === commandFateRow.kind) {
      const fate = values as unknown as CommandFateRow
      if (fate.status === COMMAND_STATUS.dead && this.#world.mutant === 'ackWithoutResult')
        given = { ...values, status: COMMAND_STATUS.acked }
      watch.decides(given as unknown as CommandFateRow)
    } else if (row.kind === commandLogRow.kind && values['isUplink'] === false) this.#sending = String(values['note'])
    else if (row.kind === settlementRow.kind)
      watch.heardSettlement(
        String(values['deviceId']),
        Number(values['socket']),
        Number(values['port']),
        String(values['wireHex']),
      )
    const bytes = encodeRow(row, given)
    const producer = this.#producer[row.lane]
    const before = producer.position
    const position = producer.append(bytes)
    if (position === OUTBOX_FULL) {
      this.counts.rowRefused(row.lane)
      return ROW_REFUSED
    }
    if (row.kind === commandFateRow.kind && Number(values['status']) >= COMMAND_STATUS.acked)
      this.#decided.push(String(values['commandId']))
    if (position - before !== bytes.length) this.#world.covered('ring.wrapped')
    if (before < 2 ** 32 && position >= 2 ** 32) this.#world.covered('position.wrapped')
    if (row.lane === 'history') this.#unpublished.push({ position, name: rowNameOf(row.kind, values) })
    if (this.onNextRow !== undefined) {
      this.#world.time.after(0, this.onNextRow)
      this.onNextRow = undefined
    }
    // every commit of the ledger is taken for the one that the command waits for
    if (row.kind === commandFateRow.kind && this.#world.mutant === 'sendBeforeDurable') return 0
    return position
  }

  askCard(question: CardQuestion): void {
    this.#questions.add(question.questionId)
    this.#toMain.post(() => {
      if (this.#gateway.isAlive) this.#gateway.answerCard(this.#index, question)
    })
  }

  supersede(shard: number, deviceKey: number, epoch: number): void {
    this.#toMain.post(() => this.#gateway.threads[shard]?.superseded(deviceKey, epoch))
  }

  superseded(deviceKey: number, epoch: number): void {
    this.#fromMain.post(() => {
      const connections = this.shard.connections
      this.shard.superseded(deviceKey, epoch, this.#now())
      if (this.shard.connections === connections) this.#world.covered('superseded.late')
      this.#scheduleFlush()
    })
  }

  deviceOnline(deviceKey: number): void {
    this.#toMain.post(() => this.#gateway.isAlive && this.#gateway.desk.deviceOnline(deviceKey))
  }

  deviceRefused(deviceId: string): void {
    throw new Error(`${deviceId} was refused without an allowlist`)
  }

  returnCommand(_deviceKey: number, command: ReturnedCommand): void {
    this.#world.trace(
      () => `command ${command.commandId} comes back, ${command.attempts} sent, id ${command.messageId}`,
    )
    this.#world.covered('command.returned')
    this.#world.covered(
      this.#flying.delete(command.commandId) ? 'command.returned_in_flight' : 'command.returned_unsent',
    )
    if (this.#world.mutant === 'forgetReturned') return
    this.#toMain.post(() => this.#gateway.isAlive && this.#gateway.desk.returned(command))
  }

  commandMoved(commandId: string, status: number): void {
    if (status === COMMAND_STATUS.sent) this.#flying.add(commandId)
    else this.#flying.delete(commandId)
    this.#moved.push({ commandId, status })
  }
}
