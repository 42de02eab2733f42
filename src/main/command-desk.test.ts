/**
 * Claims of the desk that only show when something goes wrong between it, a shard and the table: order of arrival
 * survives takeovers and a full mailbox, what a dead thread had done is read from the table before anything is done
 * again, and a cancel is durable or not said. Tried with the real desk, directory and mailbox ring and a table in
 * memory that answers when told to. The same desk runs in the simulation (src/testing/simulation.ts).
 */
import assert from 'node:assert/strict'
import { beforeEach, describe, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { deviceKey } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { commandMail } from '../rows/mail.ts'
import { readRows } from '../rows/row.ts'
import { COMMAND_STATUS, PRIORITY } from '../session/command-lane.ts'
import { allocateDirectory, type Claim, Directory } from '../shared/directory.ts'
import { allocateOutbox, OutboxConsumer, OutboxProducer } from '../shared/outbox.ts'
import { CommandDesk, type KnownMessageId, type StoredCommand } from './command-desk.ts'
import type { CommandProgress, CommandStore } from './command-store.ts'
import type { Log } from './log.ts'

const KEY = deviceKey(ap3000, 0x04ab373b)
const SHARDS = 2

class Bench {
  readonly directory = new Directory(allocateDirectory(64, 1))
  readonly memories = Array.from({ length: SHARDS }, () => allocateOutbox(1_024))
  readonly consumers = this.memories.map((memory) => new OutboxConsumer(memory))
  readonly asked: number[] = []
  readonly ended: { readonly commandId: string; readonly status: number }[] = []
  progress: CommandProgress[] = []
  progressAsked = 0
  /** Ends are carried out, and the answer is lost. */
  losesAnswers = false
  lastMessageIds = 0
  nowMs = 1_000
  later: (() => void)[] = []
  held = 0
  readonly desk: CommandDesk

  constructor() {
    const store: CommandStore = {
      lastMessageId: async () => {
        this.lastMessageIds++
        return 7
      },
      end: async (commandId, status) => {
        this.ended.push({ commandId, status })
        if (this.losesAnswers) throw new Error('cut')
        return true
      },
      waiting: async () => [],
      progress: async () => {
        this.progressAsked++
        return this.progress
      },
    }
    this.desk = new CommandDesk({
      store,
      log: { warn: () => {}, error: () => {} } as unknown as Log,
      directory: this.directory,
      mailboxes: this.memories.map((memory) => new OutboxProducer(memory)),
      wakeShard: () => {},
      askCancel: (_shard, questionId) => this.asked.push(questionId),
      commandsMax: 100,
      commandsPerDeviceMax: 100,
      now: () => this.nowMs,
      after: (_ms, act) => this.later.push(act),
      onHeld: (change) => {
        this.held += change
      },
      onEnded: () => {},
    })
  }

  connect(shard = 0): Claim {
    const answer = this.directory.claim(KEY, this.directory.nextEpoch(), shard)
    assert.equal(answer.kind, 'taken')
    this.desk.deviceOnline(KEY)
    return (answer as { claim: Claim }).claim
  }

  accept(commandId: string, more: Partial<StoredCommand> = {}, known?: KnownMessageId, isPaced = false): void {
    this.desk.accept(
      {
        commandId,
        deviceId: '04ab373b',
        name: 'locate',
        fields: { locateS: 5 },
        priority: PRIORITY.background,
        expiresMs: 60_000,
        wireHex: '',
        socket: 0,
        port: 0,
        ...more,
      },
      known,
      isPaced,
    )
  }

  /** What a shard finds in its mailbox. */
  async mail(shard = 0) {
    await turn()
    const found = []
    const consumer = this.consumers[shard]!
    for (let span = consumer.take(65_536, 256); span !== undefined; span = consumer.take(65_536, 256)) {
      found.push(...readRows(new Uint8Array(span.memory).slice(span.fromIndex, span.toIndex), commandMail))
      consumer.release(span.toPosition, span.rows)
    }
    return found
  }

  async mailed(shard = 0): Promise<string[]> {
    return (await this.mail(shard)).map(({ commandId }) => commandId)
  }
}

let bench: Bench
beforeEach(() => {
  bench = new Bench()
})

describe('order of arrival', () => {
  test('nothing overtakes what an older session has not given back', async () => {
    bench.connect(0)
    bench.accept('a')
    assert.deepEqual(await bench.mailed(0), ['a'])
    bench.connect(1)
    bench.accept('b')
    assert.deepEqual(await bench.mailed(1), [])
    bench.desk.returned({ commandId: 'a', attempts: 1, messageId: 9 })
    const mail = await bench.mail(1)
    assert.deepEqual(
      mail.map(({ commandId, attempts, messageId }) => [commandId, attempts, messageId]),
      [
        ['a', 1, 9],
        ['b', 0, null],
      ],
    )
  })

  test('nor what a full mailbox did not take', async () => {
    bench.connect()
    const all = Array.from({ length: 20 }, (_, index) => `c${index}`)
    for (const commandId of all) bench.accept(commandId)
    // the one that does not fit is large, those behind it would
    bench.accept('large', { fields: { locateS: 5, note: 'x'.repeat(300) } })
    bench.accept('small')
    const seen = await bench.mailed()
    assert.ok(seen.length < all.length, 'the ring takes fewer')
    while (seen.length < all.length + 2) {
      bench.desk.sweep()
      const more = await bench.mailed()
      assert.ok(more.length > 0)
      seen.push(...more)
    }
    assert.deepEqual(seen, [...all, 'large', 'small'])
  })

  test('what comes back with an id: no other command gets the same', async () => {
    bench.connect(0)
    bench.accept('a')
    bench.accept('b')
    await bench.mail(0)
    // b was written down under 8, and the table was asked before that was stored
    bench.connect(1)
    bench.desk.returned({ commandId: 'b', attempts: 0, messageId: 8 })
    bench.desk.returned({ commandId: 'a', attempts: 0, messageId: undefined })
    assert.deepEqual(
      (await bench.mail(1)).map(({ commandId, messageId, lastMessageId }) => [commandId, messageId, lastMessageId]),
      [
        ['a', null, 8],
        ['b', 8, 8],
      ],
    )
  })

  test('the latest message id is asked for once per session', async () => {
    bench.connect()
    bench.accept('a')
    bench.accept('b')
    assert.deepEqual(
      (await bench.mail()).map(({ lastMessageId }) => lastMessageId),
      [7, 7],
    )
    assert.equal(bench.lastMessageIds, 1)
    bench.connect()
    bench.desk.returned({ commandId: 'a', attempts: 0, messageId: undefined })
    await bench.mail()
    assert.equal(bench.lastMessageIds, 2)
  })
})

describe('what goes with a command', () => {
  test('the latest message id, read while the session was there, saves the question; of an older session it does not', async () => {
    const { epoch } = bench.connect()
    assert.equal(bench.desk.epochOf(KEY), epoch)
    bench.accept('a', {}, { epoch, messageId: 41 })
    assert.deepEqual(
      (await bench.mail()).map(({ lastMessageId }) => lastMessageId),
      [41],
    )
    assert.equal(bench.lastMessageIds, 0)
    bench.desk.moved('a', COMMAND_STATUS.acked)
    bench.connect()
    bench.accept('b', {}, { epoch, messageId: 41 })
    assert.deepEqual(
      (await bench.mail()).map(({ lastMessageId }) => lastMessageId),
      [7],
    )
    // the table's own answer stands, however old what came with the next one is
    bench.accept('c', {}, { epoch: bench.desk.epochOf(KEY)!, messageId: 3 })
    assert.deepEqual(
      (await bench.mail()).map(({ lastMessageId }) => lastMessageId),
      [7],
    )
    assert.equal(bench.lastMessageIds, 1)
  })
})

describe('on the way to a device', () => {
  test('the first command of a device that is there, until it is heard to be sent', async () => {
    bench.accept('waits')
    assert.equal(bench.desk.dispatchingCount, 0, 'its device is away')
    bench.connect()
    await bench.mail()
    bench.desk.moved('waits', COMMAND_STATUS.acked)
    bench.accept('a')
    bench.accept('b')
    assert.equal(bench.desk.dispatchingCount, 1, 'b waits for a, not for us')
    await bench.mail()
    assert.equal(bench.desk.dispatchingCount, 1)
    bench.desk.moved('a', COMMAND_STATUS.sent)
    assert.equal(bench.desk.dispatchingCount, 0)
    for (const id of ['a', 'b']) bench.desk.moved(id, COMMAND_STATUS.acked)
    bench.accept('of a job', {}, undefined, true)
    assert.equal(bench.desk.dispatchingCount, 0, 'it waits for the spacing')
  })

  test('one that comes back, or finds no way, is waiting again', async () => {
    const claim = bench.connect()
    bench.accept('a')
    await bench.mail()
    bench.desk.returned({ commandId: 'a', attempts: 0, messageId: undefined })
    assert.equal(bench.desk.dispatchingCount, 0)
    bench.desk.moved('a', COMMAND_STATUS.expired)
    bench.accept('b')
    assert.equal(bench.directory.giveBack(claim), true)
    await turn()
    bench.desk.sweep()
    assert.equal(bench.desk.dispatchingCount, 0)
  })
})

describe('a dead thread', () => {
  test('its commands wait until its rows are stored, then go on where the table says', async () => {
    bench.connect()
    bench.accept('sent')
    bench.accept('done')
    await bench.mail()
    let isTold = false
    bench.directory.clearShard(0)
    bench.desk.shardLost(0, () => isTold)
    bench.connect(1)
    bench.desk.sweep()
    assert.deepEqual(await bench.mailed(1), [])
    assert.equal(bench.progressAsked, 0)
    isTold = true
    bench.progress = [
      { commandId: 'sent', status: COMMAND_STATUS.sent, attempts: 1, messageId: 12 },
      { commandId: 'done', status: COMMAND_STATUS.acked, attempts: 1, messageId: 13 },
    ]
    bench.desk.sweep()
    const mail = await bench.mail(1)
    assert.deepEqual(
      mail.map(({ commandId, attempts, messageId }) => [commandId, attempts, messageId]),
      [['sent', 1, 12]],
    )
    assert.equal(bench.desk.count, 1)
    assert.equal(bench.held, 0)
  })
})

describe('cancel', () => {
  test('of a command that waits is in the table before it is said', async () => {
    bench.accept('a')
    assert.equal(await bench.desk.cancel('a'), 'cancelled')
    assert.deepEqual(bench.ended, [{ commandId: 'a', status: COMMAND_STATUS.cancelled }])
    assert.equal(bench.desk.count, 0)
  })

  test('whose answer was lost is looked up: what is cancelled is not sent', async () => {
    bench.losesAnswers = true
    bench.accept('a')
    assert.equal(await bench.desk.cancel('a'), 'too_late')
    bench.connect()
    assert.deepEqual(await bench.mailed(), [])
    bench.progress = [{ commandId: 'a', status: COMMAND_STATUS.cancelled, attempts: 0, messageId: null }]
    bench.desk.sweep()
    assert.deepEqual(await bench.mailed(), [])
    assert.equal(bench.desk.count, 0)
    assert.equal(bench.held, 0)
  })

  test('answered by the shard too late for its caller is carried out all the same', async () => {
    bench.connect()
    bench.accept('a')
    await bench.mail()
    const answer = bench.desk.cancel('a')
    for (const act of bench.later) act()
    assert.equal(await answer, 'too_late')
    bench.desk.cancelAnswered(bench.asked[0]!, true)
    await turn()
    assert.deepEqual(bench.ended, [{ commandId: 'a', status: COMMAND_STATUS.cancelled }])
    assert.equal(bench.desk.count, 0)
  })

  test('asked of a thread that dies is too late', async () => {
    bench.connect()
    bench.accept('a')
    await bench.mail()
    const answer = bench.desk.cancel('a')
    bench.desk.shardLost(0, () => true)
    assert.equal(await answer, 'too_late')
    assert.equal(bench.held, 1)
  })
})
