/**
 * Claims: every command gets exactly one fate, at the latest one ack timeout after its expiry; nothing is sent after
 * the expiry, nor before its row is durable; two sends are at least the spacing apart; a resend carries the same message id and is sent only where the
 * document allows it; a start in doubt is asked for, not failed. Tried by named histories and by random ones against
 * those rules (fast-check prints the seed), with the real command tables.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { Fields, Protocol } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import { COMMAND_STATUS, CommandLane, type Fate, type LaneCommand, type LaneWorld, PRIORITY } from './command-lane.ts'
import type { Moment } from './effects.ts'

const WALL_MS = Date.UTC(2026, 10, 21)
const at = (monoMs: number): Moment => ({ wallMs: WALL_MS + monoMs, monoMs })
const OPTIONS = { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 }
const WIRE = '12345678123456781234567812345678'

class Bench {
  readonly sends: {
    readonly name: string
    readonly commandId: string
    readonly messageId: number
    readonly monoMs: number
  }[] = []
  readonly fates = new Map<string, Fate & { readonly monoMs: number }>()
  readonly afterAll: [string, string][] = []
  readonly lane: CommandLane
  monoMs = 0
  #messageId = 100

  /** False: nothing becomes durable by itself. */
  isDatabaseHere = true
  readonly announced: { readonly commandId: string; readonly messageId: number }[] = []
  charge: string | null | undefined
  /** Called by the next send, which then fails. */
  onSend: (() => void) | undefined

  constructor(protocol: Protocol, options = OPTIONS, openedMonoMs = -options.spacingMs) {
    const world: LaneWorld = {
      announce: ({ commandId }, messageId) => {
        this.announced.push({ commandId, messageId })
        if (this.isDatabaseHere) this.lane.announced(commandId, true)
        return true
      },
      chargeBefore: () => this.charge,
      send: (command, messageId) => {
        if (this.onSend !== undefined) {
          this.onSend()
          return false
        }
        this.sends.push({ name: command.downlink.name, commandId: command.commandId, messageId, monoMs: this.monoMs })
        return true
      },
      sent: () => {},
      ended: (command, fate) => {
        assert.ok(!this.fates.has(command.commandId), `two fates for ${command.commandId}`)
        this.fates.set(command.commandId, { ...fate, monoMs: this.monoMs })
      },
      workedAfterAll: (command, fate) => this.afterAll.push([command.commandId, fate.reason]),
      nextMessageId: () => this.#messageId++,
    }
    this.lane = new CommandLane(protocol, options, world, openedMonoMs)
  }

  durable(commandId: string, isDurable = true): void {
    this.lane.announced(commandId, isDurable)
    this.lane.advance(at(this.monoMs))
  }

  runTo(monoMs: number): void {
    while (this.lane.dueMonoMs <= monoMs) {
      this.monoMs = Math.max(this.monoMs, this.lane.dueMonoMs)
      this.lane.advance(at(this.monoMs))
    }
    this.monoMs = monoMs
  }

  put(commandId: string, protocol: Protocol, name: string, fields: Fields, more: Partial<LaneCommand> = {}): void {
    this.lane.enqueue(
      {
        commandId,
        downlink: protocol.downlinkByName.get(name)!,
        fields,
        priority: PRIORITY.parameter,
        expiresMs: WALL_MS + this.monoMs + 60_000,
        wireHex: '',
        socket: 0,
        port: 0,
        attempts: 0,
        messageId: undefined,
        ...more,
      },
      at(this.monoMs),
    )
  }

  result(downlink: string, messageId: number, ok: boolean, more: object = {}): boolean {
    const fact = { fact: 'result' as const, downlink, raw: ok ? 0 : 1, ok, reason: ok ? 'ok' : 'no', ...more }
    return this.lane.resultReceived(fact, messageId, '', at(this.monoMs))
  }
}

const locate: Fields = { locateS: 5 }
const start = { priority: PRIORITY.start, wireHex: WIRE, port: 1 }
const startFields: Fields = {
  rateMode: 0,
  port: 0,
  command: 1,
  durationS: 600,
  orderHex: WIRE,
  balanceFen: 0,
  maxChargeS: 0,
  overloadPowerDw: 0,
}

describe('one fate', () => {
  test('acked by a result with our message id, and by no other', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'locate', locate)
    const [sent] = bench.sends
    assert.equal(bench.result('locate', sent!.messageId + 1, true), false)
    assert.equal(bench.result('reboot', sent!.messageId, true), false)
    assert.equal(bench.result('locate', sent!.messageId, true), true)
    assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.acked)
    assert.equal(bench.result('locate', sent!.messageId, true), false, 'a second result finds nobody')
  })

  test('sent again once with the same id, then dead', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'locate', locate)
    bench.runTo(29_999)
    assert.deepEqual(
      bench.sends.map((sent) => [sent.messageId, sent.monoMs]),
      [
        [100, 0],
        [100, 15_000],
      ],
    )
    assert.equal(bench.fates.size, 0)
    bench.runTo(30_000)
    assert.deepEqual([bench.fates.get('a')!.status, bench.fates.get('a')!.attempts], [COMMAND_STATUS.dead, 2])
    assert.equal(bench.result('locate', 100, true), false, 'late: evidence, not a second fate')
  })

  test('refused with the device’s own reason', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.result('startCharge', 100, false, { reason: 'no_charger', executed: 'no' })
    assert.deepEqual(
      [bench.fates.get('a')!.status, bench.fates.get('a')!.reason],
      [COMMAND_STATUS.refused, 'no_charger'],
    )
  })

  test('never sent after its expiry', () => {
    const bench = new Bench(ap3000, { ...OPTIONS, spacingMs: 5_000 })
    for (let index = 0; index < 5; index++)
      bench.put(`c${index}`, ap3000, 'locate', locate, { expiresMs: WALL_MS + 11_000 })
    bench.runTo(60_000)
    assert.deepEqual(
      bench.sends.map(({ commandId, monoMs }) => [commandId, monoMs]),
      [
        ['c0', 0],
        ['c1', 5_000],
        ['c2', 10_000],
      ],
    )
    assert.equal(bench.fates.get('c4')!.status, COMMAND_STATUS.expired)
    assert.equal(bench.fates.get('c2')!.status, COMMAND_STATUS.dead)
    for (const fate of bench.fates.values()) assert.ok(fate.monoMs <= 11_000 + OPTIONS.ackTimeoutMs)
  })

  test('let go while it waits, not once it is sent or written down as sent', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'locate', locate)
    bench.put('b', ap3000, 'locate', locate)
    bench.put('c', ap3000, 'locate', locate)
    assert.equal(bench.lane.letGo('a'), false)
    assert.equal(bench.lane.letGo('b'), true)
    bench.isDatabaseHere = false
    bench.runTo(500)
    assert.equal(bench.lane.letGo('c'), false)
    bench.runTo(100_000)
    assert.deepEqual([...bench.fates.keys()].toSorted(), ['a', 'c'], 'whoever let it go gives it its fate')
  })
})

describe('written down before it is sent', () => {
  test('nothing leaves before its row is durable, and never after the expiry', () => {
    const bench = new Bench(ap3000)
    bench.isDatabaseHere = false
    bench.put('a', ap3000, 'locate', locate)
    bench.put('b', ap3000, 'locate', locate, { expiresMs: WALL_MS + 5_000 })
    bench.runTo(10_000)
    assert.deepEqual(bench.sends, [])
    assert.equal(bench.fates.get('b')!.status, COMMAND_STATUS.expired)
    bench.durable('a')
    assert.deepEqual(
      bench.sends.map(({ commandId, messageId, monoMs }) => [commandId, messageId, monoMs]),
      [['a', 100, 10_000]],
    )
  })

  test('a row that was not stored is written again with the same id', () => {
    const bench = new Bench(ap3000)
    bench.isDatabaseHere = false
    bench.put('a', ap3000, 'locate', locate)
    bench.durable('a', false)
    bench.runTo(1_000)
    assert.deepEqual(
      bench.announced.map(({ messageId }) => messageId),
      [100, 100],
    )
  })

  test('what was written down and not sent goes back unsent, and keeps its id', () => {
    const bench = new Bench(ap3000)
    bench.isDatabaseHere = false
    bench.put('a', ap3000, 'locate', locate)
    assert.deepEqual(
      bench.lane.takeBack().map(({ attempts, messageId }) => [attempts, messageId]),
      [[0, 100]],
    )
  })

  test('what has an id goes back before what has none', () => {
    const bench = new Bench(ap3000)
    bench.put('flying', ap3000, 'locate', locate)
    bench.runTo(14_900)
    bench.isDatabaseHere = false
    bench.put('waiting', ap3000, 'locate', locate)
    // sent again, so that the next one has to wait
    bench.runTo(15_000)
    bench.put('urgent', ap3000, 'startCharge', startFields, start)
    assert.deepEqual(
      bench.lane.takeBack().map(({ commandId, messageId }) => [commandId, messageId]),
      [
        ['flying', 100],
        ['waiting', 101],
        ['urgent', undefined],
      ],
    )
  })

  test('an id that waits with its command is nobody else’s', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'locate', locate)
    bench.put('b', ap3000, 'locate', locate, { attempts: 1, messageId: 7 })
    assert.deepEqual([bench.lane.isTaken(100), bench.lane.isTaken(7), bench.lane.isTaken(8)], [true, true, false])
  })

  test('a first send that ends the session: the command goes back, unsent', () => {
    const bench = new Bench(ap3000)
    let back: readonly LaneCommand[] = []
    bench.onSend = () => {
      back = bench.lane.takeBack()
    }
    bench.put('a', ap3000, 'locate', locate)
    assert.deepEqual(
      back.map(({ commandId, attempts, messageId }) => [commandId, attempts, messageId]),
      [['a', 0, 100]],
    )
    assert.equal(bench.lane.count, 0)
  })

  test('a send that ends the session ends the lane: nothing of it gets a fate any more', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'locate', locate)
    bench.runTo(600)
    bench.put('b', ap3000, 'locate', locate)
    let back: readonly LaneCommand[] = []
    bench.onSend = () => {
      back = bench.lane.takeBack()
    }
    // both are due at once, as after a pause of the thread
    bench.monoMs = 40_000
    bench.lane.advance(at(40_000))
    bench.runTo(200_000)
    assert.deepEqual(back.map(({ commandId }) => commandId).toSorted(), ['a', 'b'])
    assert.equal(bench.fates.size, 0)
    assert.equal(bench.lane.count, 0)
  })
})

describe('order and pace', () => {
  test('a session begins with a pause: the one before it may have sent a moment ago', () => {
    const bench = new Bench(ap3000, OPTIONS, 0)
    bench.put('a', ap3000, 'locate', locate)
    bench.runTo(1_000)
    assert.deepEqual(
      bench.sends.map(({ monoMs }) => monoMs),
      [500],
    )
  })

  test('half a second apart, stop first', () => {
    const bench = new Bench(ap3000)
    bench.put('p', ap3000, 'locate', locate)
    bench.put('q', ap3000, 'locate', locate)
    bench.put('start', ap3000, 'startCharge', startFields, start)
    bench.put(
      'stop',
      ap3000,
      'startCharge',
      { port: 0, command: 0, orderHex: WIRE },
      { priority: PRIORITY.stop, port: 1 },
    )
    bench.runTo(2_000)
    assert.deepEqual(
      bench.sends.map(({ commandId, monoMs }) => [commandId, monoMs]),
      [
        ['p', 0],
        ['stop', 500],
        ['start', 1_000],
        ['q', 1_500],
      ],
    )
  })

  test('what was not finished goes back with its id and count, and is not sent oftener elsewhere', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'locate', locate)
    bench.runTo(15_000)
    const [back] = bench.lane.takeBack()
    assert.deepEqual([back!.attempts, back!.messageId], [2, 100])
    const other = new Bench(ap3000)
    other.put('a', ap3000, 'locate', locate, { attempts: back!.attempts, messageId: back!.messageId })
    other.runTo(40_000)
    assert.equal(other.sends.length, 0)
    assert.equal(other.fates.get('a')!.status, COMMAND_STATUS.dead)
  })
})

describe('sent by an earlier session', () => {
  test('sent again here, it is answered by what models say on their own', () => {
    for (const attempts of [0, 1]) {
      const bench = new Bench(bkv, OPTIONS, 0)
      const earlier = attempts === 0 ? {} : { attempts, messageId: 7 }
      bench.put('a', bkv, 'queryStatus', { socket: 2 }, { ...earlier, socket: 2, priority: PRIORITY.background })
      bench.runTo(1_000)
      assert.equal(bench.sends.length, 1)
      bench.lane.uplinkSeen('statusReport', [2], at(2_000))
      assert.equal(bench.fates.get('a')?.status, COMMAND_STATUS.acked)
    }
  })

  test('a stop goes before those that go again', () => {
    const bench = new Bench(ap3000, OPTIONS, 0)
    for (let n = 0; n < 20; n++)
      bench.put(`l${n}`, ap3000, 'locate', locate, { attempts: 1, messageId: 7 + n, priority: PRIORITY.background })
    bench.put('p', ap3000, 'locate', locate, { attempts: 1, messageId: 50, priority: PRIORITY.parameter })
    const stop = { ...startFields, command: 0 }
    bench.put('stop', ap3000, 'startCharge', stop, { priority: PRIORITY.stop, port: 1 })
    bench.runTo(3_000)
    assert.deepEqual(
      bench.sends.slice(0, 3).map(({ commandId, monoMs }) => [commandId, monoMs]),
      [
        ['stop', 500],
        ['p', 1_000],
        ['l0', 1_500],
      ],
    )
  })
})

describe('a start in doubt', () => {
  const stop = { priority: PRIORITY.stop, port: 1 }
  const stopFields: Fields = { port: 0, command: 0, orderHex: WIRE }
  const told = (bench: Bench) => bench.sends.map(({ name, messageId, monoMs }) => [name, messageId, monoMs])

  test('AP3000: asked before it goes again, once, with its id; then 81 asks, and 06 with our order makes it acked', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.runTo(30_500)
    assert.deepEqual(told(bench), [
      ['startCharge', 100, 0],
      ['askStatus', 101, 10_000],
      ['startCharge', 100, 15_000],
      ['askStatus', 102, 30_000],
    ])
    assert.equal(bench.fates.size, 0, 'unknown, not failed')
    bench.lane.chargeSeen(0, 1, 'ff'.repeat(16), 0, at(31_000))
    assert.equal(bench.fates.size, 0, 'another order on the port')
    bench.lane.chargeSeen(0, 1, WIRE, 0, at(32_000))
    assert.equal(bench.fates.get('a')!.reason, 'confirmed_by_report')
  })

  test('AP3000: a device that answers neither the start nor 81, and the second start: acked', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.runTo(16_000)
    bench.result('startCharge', 100, true)
    const { status, attempts } = bench.fates.get('a')!
    assert.deepEqual([status, attempts], [COMMAND_STATUS.acked, 2])
  })

  test('AP3000: any word of our order, also that it has ended, and it never goes again', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.runTo(5_000)
    bench.lane.orderSeen(0, 1, '11'.repeat(16), at(5_000))
    bench.lane.orderSeen(0, 2, WIRE, at(5_000))
    assert.equal(bench.fates.size, 0, 'another order, another port')
    bench.lane.orderSeen(0, 1, WIRE, at(5_000))
    bench.runTo(60_000)
    assert.deepEqual(told(bench), [['startCharge', 100, 0]])
    assert.deepEqual(
      [bench.fates.get('a')!.status, bench.fates.get('a')!.reason],
      [COMMAND_STATUS.acked, 'confirmed_by_report'],
    )
  })

  test('AP3000: not while a report says that the port charges', () => {
    for (const isCharging of [true, false]) {
      const bench = new Bench(ap3000)
      bench.put('a', ap3000, 'startCharge', startFields, start)
      bench.runTo(10_500)
      bench.lane.portSeen(0, 2, true)
      bench.lane.portSeen(0, 1, true)
      if (!isCharging) bench.lane.portSeen(0, 1, false)
      bench.runTo(15_100)
      assert.equal(bench.sends.filter(({ name }) => name === 'startCharge').length, isCharging ? 1 : 2)
      bench.runTo(80_000)
      assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.dead)
    }
  })

  test('AP3000: not behind another 82: the device knows only the last one again', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.put('stop', ap3000, 'startCharge', stopFields, stop)
    bench.runTo(14_000)
    bench.result('startCharge', 101, true)
    bench.runTo(80_000)
    assert.equal(bench.sends.filter(({ commandId }) => commandId === 'a').length, 1)
    assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.dead)
  })

  test('AP3000: not in another session: it is asked for, and evidence decides', () => {
    for (const isSeen of [true, false]) {
      const bench = new Bench(ap3000)
      bench.put('a', ap3000, 'startCharge', startFields, { ...start, attempts: 1, messageId: 7 })
      bench.runTo(5_000)
      if (isSeen) bench.lane.orderSeen(0, 1, WIRE, at(5_000))
      bench.runTo(60_000)
      assert.deepEqual(told(bench), [['askStatus', 100, 0]])
      const { status, reason, attempts } = bench.fates.get('a')!
      assert.deepEqual(
        [status, reason, attempts],
        isSeen ? [COMMAND_STATUS.acked, 'confirmed_by_report', 1] : [COMMAND_STATUS.dead, 'no_result', 1],
      )
    }
  })

  test('what another session sent: its result counts from the first moment, also when it came before the command did', () => {
    for (const isEarly of [true, false])
      for (const [name, fields] of [
        ['startCharge', startFields],
        ['reboot', {}],
      ] as const) {
        const bench = new Bench(ap3000, OPTIONS, 0)
        const more = { ...(name === 'startCharge' ? start : {}), attempts: 1, messageId: 7 }
        if (isEarly) assert.equal(bench.result(name, 7, true), false)
        bench.put('a', ap3000, name, fields, more)
        if (!isEarly) assert.equal(bench.result(name, 7, true), true)
        bench.runTo(60_000)
        assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.acked, name)
        assert.deepEqual(
          bench.sends.filter((sent) => sent.name === name),
          [],
          'it never goes again',
        )
      }
  })

  test('what another session sent: an order that the device named already has begun', () => {
    const bench = new Bench(ap3000, OPTIONS, 0)
    bench.lane.orderSeen(0, 1, WIRE, at(0))
    bench.put('a', ap3000, 'startCharge', startFields, { ...start, attempts: 1, messageId: 7 })
    assert.equal(bench.fates.get('a')!.reason, 'confirmed_by_report')
  })

  test('what another session sent as often as allowed waits for its result, and not for longer than it may', () => {
    const bench = new Bench(ap3000, OPTIONS, 0)
    bench.put('a', ap3000, 'locate', locate, { attempts: 2, messageId: 7 })
    bench.put('b', ap3000, 'locate', locate, { attempts: 2, messageId: 8, expiresMs: WALL_MS - 14_000 })
    bench.runTo(60_000)
    assert.deepEqual(bench.sends, [])
    assert.deepEqual(
      ['a', 'b'].map((id) => bench.fates.get(id)!.monoMs),
      [15_000, 1_000],
    )
  })

  test('AP3000: a stop may go again anywhere: it names its order', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', stopFields, { ...stop, attempts: 1, messageId: 7 })
    bench.runTo(60_000)
    assert.deepEqual(told(bench), [['startCharge', 7, 0]])
  })

  test('AP3000: without evidence it is dead in time', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.runTo(80_000)
    assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.dead)
    assert.ok(bench.fates.get('a')!.monoMs <= 75_000)
  })

  test('AP3000: a result that does not say whether it runs waits for a report, then is refused', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.result('startCharge', 100, false, { reason: 'smoke_alarm', executed: 'unknown' })
    assert.equal(bench.fates.size, 0)
    bench.runTo(20_000)
    assert.deepEqual(
      [bench.fates.get('a')!.status, bench.fates.get('a')!.reason],
      [COMMAND_STATUS.refused, 'smoke_alarm'],
    )
  })

  test('AP3000: "already so" after a resend is doubt: the first one may have worked, or another charge runs', () => {
    for (const isOurs of [true, false]) {
      const bench = new Bench(ap3000)
      bench.put('a', ap3000, 'startCharge', startFields, start)
      bench.runTo(15_000)
      bench.result('startCharge', 100, false, { reason: 'already_in_state', executed: 'no' })
      assert.equal(bench.fates.size, 0)
      bench.lane.chargeSeen(0, 1, isOurs ? WIRE : '11'.repeat(16), 0, at(16_000))
      bench.runTo(60_000)
      const { status, reason } = bench.fates.get('a')!
      assert.deepEqual(
        [status, reason],
        isOurs ? [COMMAND_STATUS.acked, 'confirmed_by_report'] : [COMMAND_STATUS.refused, 'already_in_state'],
      )
    }
  })

  test('AP3000: "already so" after a resend of a stop means that the first one worked', () => {
    const bench = new Bench(ap3000)
    const fields = { port: 0, command: 0, orderHex: WIRE }
    bench.put('a', ap3000, 'startCharge', fields, { priority: PRIORITY.stop, port: 1 })
    bench.runTo(15_000)
    bench.result('startCharge', 100, false, { reason: 'already_in_state', executed: 'no' })
    assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.acked)
  })

  test('BKV: a start is sent once; a new charge on the port confirms it and tells the business number', () => {
    const bench = new Bench(bkv)
    bench.charge = '0019'
    const fields = { socket: 2, port: 0, on: 1, mode: 1, minutesMin: 60, energyWh: 0 }
    bench.put('a', bkv, 'control', fields, { priority: PRIORITY.start, socket: 2, port: 1 })
    bench.runTo(15_500)
    assert.deepEqual(
      bench.sends.map((sent) => sent.name),
      ['control', 'queryStatus'],
    )
    bench.lane.chargeSeen(2, 1, '0019', 0, at(16_000))
    assert.equal(bench.fates.size, 0, 'the charge that was there before')
    bench.lane.chargeSeen(2, 1, '001a', 0, at(16_000))
    assert.deepEqual(bench.fates.get('a')!.result, { business_no: 26 })
  })

  describe('BKV: a stop, which names no order,', () => {
    const stop = { socket: 2, port: 0, on: 0, mode: 1, minutesMin: 0, energyWh: 0 }
    const place = { priority: PRIORITY.stop, socket: 2, port: 1 }
    const sent = (bench: Bench) => bench.sends.map(({ name, messageId }) => `${name} ${messageId}`)

    test('goes again under the same sequence, at most so often as ACK_RETRIES says', () => {
      for (const retries of [0, 1, 3]) {
        const bench = new Bench(bkv, { ...OPTIONS, retries })
        bench.charge = '0019'
        bench.put('a', bkv, 'control', stop, { ...place, expiresMs: WALL_MS + 600_000 })
        bench.lane.chargeSeen(2, 1, '0019', 0, at(5_000))
        bench.runTo(600_000)
        assert.deepEqual(sent(bench), Array(1 + retries).fill('control 100'))
        const { status, attempts } = bench.fates.get('a')!
        assert.deepEqual([status, attempts], [COMMAND_STATUS.dead, 1 + retries])
      }
    })

    test('is acked by the result of its second sending', () => {
      const bench = new Bench(bkv)
      bench.put('a', bkv, 'control', stop, place)
      bench.runTo(15_000)
      assert.ok(bench.result('control', 100, true, { socket: 2, port: 1 }))
      assert.deepEqual([bench.fates.get('a')!.status, bench.fates.get('a')!.attempts], [COMMAND_STATUS.acked, 2])
    })

    test('that another session sent goes again in this one', () => {
      const bench = new Bench(bkv)
      bench.put('a', bkv, 'control', stop, { ...place, attempts: 1, messageId: 7 })
      bench.runTo(1_000)
      assert.deepEqual(sent(bench), ['control 7'])
    })

    test('does not go again to a port that another charge may have by now', () => {
      const start = { ...stop, on: 1, minutesMin: 60 }
      const gone: [string, (bench: Bench) => void, sends: number][] = [
        ['idle', ({ lane }) => lane.portIdle(2, 1), 1],
        ['off the air, or at fault', ({ lane }) => lane.portSeen(2, 1, false), 2],
        ['another charge', ({ lane }) => lane.chargeSeen(2, 1, '001a', 0, at(5_000)), 1],
        ['a later start', (bench) => bench.put('b', bkv, 'control', start, { ...place, priority: PRIORITY.start }), 1],
        ['the other port', ({ lane }) => lane.portIdle(2, 2), 2],
        ['another socket', ({ lane }) => lane.portIdle(1, 1), 2],
        ['charging on', ({ lane }) => lane.portSeen(2, 1, true), 2],
      ]
      for (const [name, happens, sends] of gone) {
        const bench = new Bench(bkv)
        bench.charge = '0019'
        bench.put('a', bkv, 'control', stop, place)
        bench.runTo(5_000)
        happens(bench)
        bench.runTo(100_000)
        assert.equal(bench.sends.filter(({ commandId }) => commandId === 'a').length, sends, name)
      }
    })

    test('whose charge no report had named goes again when one does: it may be the one', () => {
      const bench = new Bench(bkv)
      bench.charge = null
      bench.put('a', bkv, 'control', stop, place)
      bench.lane.chargeSeen(2, 1, '0019', 0, at(5_000))
      bench.runTo(15_000)
      assert.equal(bench.sends.length, 2)
    })
  })

  test('BKV: a charge that was reported before the time was over confirms it then: its result said more, and never came', () => {
    const bench = new Bench(bkv)
    bench.charge = '0019'
    const fields = { socket: 2, port: 0, on: 1, mode: 1, minutesMin: 60, energyWh: 0 }
    bench.put('a', bkv, 'control', fields, { priority: PRIORITY.start, socket: 2, port: 1 })
    bench.lane.chargeSeen(2, 1, '001a', 0, at(5_000))
    bench.runTo(14_999)
    assert.equal(bench.fates.get('a'), undefined)
    bench.runTo(15_000)
    const { status, reason, result, monoMs } = bench.fates.get('a')!
    assert.deepEqual(
      [status, reason, result, monoMs],
      [COMMAND_STATUS.acked, 'confirmed_by_report', { business_no: 26 }, 15_000],
    )
  })

  test('BKV: where nobody knows what the port did before, a charge proves something when it began behind the start', () => {
    const fields = { socket: 2, port: 0, on: 1, mode: 1, minutesMin: 60, energyWh: 0 }
    const start = { priority: PRIORITY.start, socket: 2, port: 1 }
    for (const [minutes, isOurs, more] of [
      [1, true, {}],
      [2, false, {}],
      // who knows whether another session sent it at all
      [0, false, { attempts: 1, messageId: 7 }],
    ] as const) {
      const bench = new Bench(bkv)
      bench.put('a', bkv, 'control', fields, { ...start, ...more })
      bench.runTo(15_500)
      bench.lane.chargeSeen(2, 1, '001a', minutes * 60_000, at(16_000))
      bench.runTo(60_000)
      assert.equal(bench.fates.get('a')!.status, isOurs ? COMMAND_STATUS.acked : COMMAND_STATUS.dead, `${minutes} min`)
    }
  })

  test('a success that names another port or order is about something else', () => {
    const other = '11'.repeat(16)
    for (const [more, isOurs] of [
      [{ port: 1, wireHex: WIRE }, true],
      [{ port: 1, wireHex: '00'.repeat(16) }, true],
      [{ port: 2, wireHex: WIRE }, false],
      [{ port: 1, wireHex: other }, false],
    ] as const) {
      const bench = new Bench(ap3000)
      bench.put('a', ap3000, 'startCharge', startFields, start)
      assert.equal(bench.result('startCharge', 100, true, more), isOurs)
      assert.equal(bench.fates.has('a'), isOurs)
    }
  })

  test('a result behind the last timeout changes no fate, and is told once', () => {
    const bench = new Bench(ap3000)
    bench.put('a', ap3000, 'startCharge', startFields, start)
    bench.runTo(80_000)
    assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.dead)
    bench.result('startCharge', 100, false)
    bench.result('startCharge', 999, true)
    assert.deepEqual(bench.afterAll, [])
    assert.equal(bench.result('startCharge', 100, true), false)
    bench.result('startCharge', 100, true)
    assert.deepEqual(bench.afterAll, [['a', 'ok']])
  })

  test('AP3000: the port did not charge before and does now: dead, with what is known', () => {
    for (const [before, known] of [
      [null, { port_charging: true }],
      ['', {}],
      [undefined, { port_charging: true }],
    ] as const) {
      const bench = new Bench(ap3000)
      bench.charge = before
      bench.put('a', ap3000, 'startCharge', startFields, start)
      bench.lane.portSeen(0, 1, true)
      bench.runTo(80_000)
      const { status, result } = bench.fates.get('a')!
      assert.deepEqual([status, result], [COMMAND_STATUS.dead, known])
    }
  })

  test('AP3000: the same of a start that is refused without saying whether it was carried out, or because it runs', () => {
    for (const [more, isSecond] of [
      [{ executed: 'unknown' }, false],
      [{ reason: 'already_in_state' }, true],
    ] as const)
      for (const isCharging of [true, false]) {
        const bench = new Bench(ap3000)
        bench.charge = null
        bench.put('a', ap3000, 'startCharge', startFields, start)
        if (isSecond) bench.runTo(15_000)
        bench.result('startCharge', 100, false, more)
        bench.lane.portSeen(0, 1, isCharging)
        bench.runTo(80_000)
        const { status, result } = bench.fates.get('a')!
        assert.deepEqual([status, result], [COMMAND_STATUS.refused, isCharging ? { port_charging: true } : {}])
      }
  })

  test('AP3000: a stop that was not sent ends with the settlement of its order', () => {
    const bench = new Bench(ap3000, OPTIONS, 0)
    bench.put('other', ap3000, 'startCharge', { ...stopFields, orderHex: '11'.repeat(16) }, stop)
    bench.isDatabaseHere = false
    bench.put('a', ap3000, 'startCharge', stopFields, stop)
    bench.lane.orderSettled(WIRE)
    const { status, reason } = bench.fates.get('a')!
    assert.deepEqual([status, reason], [COMMAND_STATUS.cancelled, 'order_settled'])
    assert.equal(bench.fates.size, 1)
  })

  test('BKV: a report stands for the answer to a query of its own socket only', () => {
    const bench = new Bench(bkv)
    bench.put('a', bkv, 'queryStatus', { socket: 2 }, { socket: 2 })
    bench.lane.uplinkSeen('statusReport', [1, 3], at(100))
    assert.equal(bench.fates.size, 0)
    bench.lane.uplinkSeen('statusReport', [1, 2], at(200))
    assert.equal(bench.fates.get('a')!.status, COMMAND_STATUS.acked)
  })
})

test('random histories: one fate each, in time, spacing kept, nothing late', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          what: fc.constantFrom('put', 'put', 'result', 'wait', 'cancel', 'report'),
          kind: fc.constantFrom('locate', 'startCharge', 'reboot', 'askStatus'),
          ms: fc.nat(8_000),
          expiresInMs: fc.integer({ min: 0, max: 40_000 }),
          which: fc.nat(30),
          isOk: fc.boolean(),
        }),
        { maxLength: 60 },
      ),
      (history) => {
        const bench = new Bench(ap3000)
        const expiry = new Map<string, number>()
        let puts = 0
        for (const { what, kind, ms, expiresInMs, which, isOk } of history) {
          if (what === 'wait') bench.runTo(bench.monoMs + ms)
          else if (what === 'put') {
            const commandId = `c${puts++}`
            expiry.set(commandId, bench.monoMs + expiresInMs)
            const fields = kind === 'startCharge' ? startFields : kind === 'locate' ? locate : {}
            bench.put(commandId, ap3000, kind, fields, {
              expiresMs: WALL_MS + bench.monoMs + expiresInMs,
              ...(kind === 'startCharge' && start),
            })
          } else if (what === 'result') {
            const sent = bench.sends[which % Math.max(1, bench.sends.length)]
            if (sent !== undefined) bench.result(sent.name, sent.messageId, isOk)
          } else if (what === 'cancel') {
            if (bench.lane.letGo(`c${which}`)) expiry.delete(`c${which}`)
          } else if (isOk) bench.lane.chargeSeen(0, 1, WIRE, 0, at(bench.monoMs))
        }
        bench.runTo(bench.monoMs + 200_000)
        assert.equal(bench.lane.count, 0)
        assert.equal(bench.fates.size, expiry.size)
        for (const [commandId, fate] of bench.fates) {
          assert.ok(fate.monoMs <= expiry.get(commandId)! + OPTIONS.ackTimeoutMs + 1, `${commandId} at ${fate.monoMs}`)
        }
        for (const sent of bench.sends)
          if (sent.commandId !== '') assert.ok(sent.monoMs <= expiry.get(sent.commandId)!, 'sent after its expiry')
        for (let index = 1; index < bench.sends.length; index++) {
          const gap = bench.sends[index]!.monoMs - bench.sends[index - 1]!.monoMs
          assert.ok(gap >= OPTIONS.spacingMs, `gap ${gap}`)
        }
      },
    ),
    { numRuns: 1_000 },
  )
})

describe('a device that asks for its upgrade from the beginning', () => {
  const chunk = (number: number): Fields => ({ chunksTotal: 9, chunk: number, firmwareHex: '00'.repeat(200) })
  const request = (bench: Bench) => bench.lane.upgradeRequested(at(bench.monoMs))
  const fateOf = (bench: Bench, id: string) => {
    const fate = bench.fates.get(id)
    return fate === undefined ? undefined : [fate.status, fate.reason]
  }
  const DROPPED = [COMMAND_STATUS.dead, 'upgrade_requested']

  test('drops a later chunk, on its way or waiting, and every one until the first went out', () => {
    const bench = new Bench(ap3000)
    bench.put('flying', ap3000, 'firmwareSlave', chunk(5))
    bench.put('waiting', ap3000, 'firmwareSlave', chunk(6))
    request(bench)
    assert.deepEqual([fateOf(bench, 'flying'), fateOf(bench, 'waiting')], [DROPPED, DROPPED])
    bench.put('overtaken', ap3000, 'firmwareSlave', chunk(6))
    assert.deepEqual(fateOf(bench, 'overtaken'), DROPPED)
    bench.runTo(1_000)
    bench.put('first', ap3000, 'firmwareSlave', chunk(1))
    const { messageId } = bench.sends.at(-1)!
    assert.equal(bench.result('firmwareSlave', messageId, true, { chunk: 1 }), true)
    bench.put('second', ap3000, 'firmwareSlave', chunk(2))
    bench.runTo(2_000)
    assert.deepEqual(
      bench.sends.map(({ commandId }) => commandId),
      ['flying', 'first', 'second'],
    )
    assert.equal(fateOf(bench, 'second'), undefined)
  })

  test('keeps the first chunk that it has not answered, and takes a trigger for done', () => {
    const bench = new Bench(ap3000)
    bench.put('first', ap3000, 'firmwareSlave', chunk(1))
    request(bench)
    assert.equal(fateOf(bench, 'first'), undefined)
    assert.equal(bench.result('firmwareSlave', bench.sends[0]!.messageId, true, { chunk: 1 }), true)
    bench.put('second', ap3000, 'firmwareSlave', chunk(2))
    assert.equal(fateOf(bench, 'second'), undefined)
    const host = new Bench(ap3000)
    host.put('trigger', ap3000, 'firmwareHost', { trigger: true })
    request(host)
    assert.deepEqual(fateOf(host, 'trigger'), [COMMAND_STATUS.acked, 'upgrade_requested'])
  })

  test('other commands do not care', () => {
    const bench = new Bench(ap3000)
    bench.put('locate', ap3000, 'locate', locate)
    bench.put('reboot', ap3000, 'reboot', {})
    request(bench)
    assert.equal(bench.fates.size, 0)
    assert.equal(bench.lane.count, 2)
  })
})

test('what a read command found is part of its result, in the words of the contract', () => {
  const bench = new Bench(ap3000)
  bench.put('read', ap3000, 'readParameters1', {})
  const content = { unplugPowerDw: 3, heartbeatS: 180 }
  assert.equal(bench.result('readParameters1', bench.sends[0]!.messageId, true, { content }), true)
  assert.deepEqual(bench.fates.get('read')?.result, {
    raw: 0,
    reason: 'ok',
    content: { unplug_power_dw: 3, heartbeat_s: 180 },
  })
})
