/**
 * Defects of running gateways that no single module's test shows (README.md has the whole list): a fleet's commands that
 * wait for one another (D1), message ids that come round onto commands in flight (D12), orders that are taken for one
 * another because their numbers are (D11), states that no document names (D14). Each is tried in the size in which it was found, on the real session and order
 * code, with lists for effects. And: every test that README.md names is there.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { NEVER_CHARGED, type Order } from '../../workers/writer/order.ts'
import { type FoundSettlement, OrderBook, type OrderChanges } from '../../workers/writer/order-book.ts'
import type { Fact } from '../codec/facts.ts'
import { deviceKey, type Fields, PayloadError } from '../codec/protocol.ts'
import { newOrderNo, wireOrderNumber } from '../orders/order-number.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { commandFateRow, type SettlementRow } from '../rows/index.ts'
import type { Field, RowKind, RowOf } from '../rows/row.ts'
import { COMMAND_STATUS, PRIORITY } from '../session/command-lane.ts'
import type { Moment } from '../session/effects.ts'
import { Shard } from '../session/shard.ts'
import { allocateDirectory, Directory } from '../shared/directory.ts'
import { Random } from './random.ts'
import { RecordingEffects } from './recording-effects.ts'

const WALL_MS = Date.UTC(2026, 10, 21, 8)
const at = (monoMs: number): Moment => ({ wallMs: WALL_MS + monoMs, monoMs })

/** Keeps fates only: there are very many rows. */
class FateEffects extends RecordingEffects {
  readonly fates = new Map<string, { readonly status: number; readonly attempts: number }>()
  #rowsAppended = 0

  override appendRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): number {
    const { commandId, status, attempts } = values as unknown as { commandId: string; status: number; attempts: number }
    if (row.kind === commandFateRow.kind) this.fates.set(commandId, { status, attempts })
    return ++this.#rowsAppended
  }

  override get position(): number {
    return this.#rowsAppended
  }
}

class Fleet {
  readonly directory: Directory
  readonly effects = new FateEffects()
  readonly shard: Shard

  constructor(devices: number, commands: { spacingMs: number; ackTimeoutMs: number; retries: number }) {
    this.directory = new Directory(allocateDirectory(2 * devices, 1))
    const timeouts = { idleTimeoutMs: 1e9, stateFlushMs: 1e9, seenFlushMs: 1e9, cardLookupTimeoutMs: 1e9 }
    this.shard = new Shard({ shard: 0, ...timeouts, commands }, this.directory, this.effects, at(0))
    for (let index = 0; index < devices; index++) {
      const birth = this.directory.nextEpoch()
      this.shard.connectionOpened({ connectionId: index, protocol: ap3000, birth, remoteAddress: '192.0.2.1:1' }, at(0))
      this.hear(index, 'timeRequest', {}, 0)
    }
  }

  hear(index: number, name: string, fields: Fields, monoMs: number, messageId = 1): void {
    const command = ap3000.uplinkByName.get(name)
    assert.ok(command, name)
    const frame = ap3000.encodeFrame('uplink', command, pileOf(index), messageId, command.encode(fields))
    this.shard.chunkReceived(index, frame, at(monoMs))
  }

  locate(index: number, commandId: string, monoMs: number, expiresInMs = 60_000): void {
    const key = deviceKey(ap3000, pileOf(index))
    const { epoch } = this.directory.look(key)!
    const where = { wireHex: '', socket: 0, port: 0, attempts: 0, messageId: undefined }
    const expiresMs = WALL_MS + monoMs + expiresInMs
    const priority = PRIORITY.background
    const arrived = { commandId, name: 'locate', fields: { locateS: 5 }, priority, expiresMs, epoch, ...where }
    this.shard.commandArrived(key, arrived, undefined, at(monoMs))
  }

  /** Everything appended so far is committed. */
  commit(monoMs: number): void {
    this.shard.durableReached(this.effects.position, [], at(monoMs))
  }
}
const pileOf = (index: number) => 0x04100000 + index
const LOCATE = 0x96
const messageIdOf = (hex: string) => Number.parseInt(hex.slice(20, 22) + hex.slice(18, 20), 16)

test('D1: 2,000 commands to 2,000 devices leave together, and who stays silent is dead, never done', () => {
  const devices = 2_000
  const silent = 1_234
  const fleet = new Fleet(devices, { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 })
  for (let index = 0; index < devices; index++) fleet.locate(index, `c${index}`, 1_000)
  fleet.effects.sent.length = 0
  fleet.commit(1_000)
  // in one turn of the thread: nobody waits for anybody
  const ids = new Map(fleet.effects.sent.map(({ connectionId, hex }) => [connectionId, messageIdOf(hex)]))
  assert.equal(ids.size, devices)
  for (const { hex } of fleet.effects.sent) assert.equal(Number.parseInt(hex.slice(22, 24), 16), LOCATE)
  for (const [index, messageId] of ids)
    if (index !== silent) fleet.hear(index, 'locateResult', { result: 0 }, 1_100, messageId)
  for (let monoMs = 1_200; monoMs <= 32_000; monoMs += 20) fleet.shard.tick(at(monoMs))
  for (let index = 0; index < devices; index++) {
    const expected =
      index === silent ? { status: COMMAND_STATUS.dead, attempts: 2 } : { status: COMMAND_STATUS.acked, attempts: 1 }
    assert.deepEqual(fleet.effects.fates.get(`c${index}`), expected, `device ${index}`)
  }
})

test('D12: 70,000 commands of one device, some in flight all the while: no id is given twice at a time, nor is 0', () => {
  const fleet = new Fleet(1, { spacingMs: 0, ackTimeoutMs: 1e9, retries: 0 })
  const inFlight = new Set<number>()
  let given = 0
  for (let count = 0; count < 70_000; count++) {
    const monoMs = 1_000 + count
    fleet.locate(0, `c${count}`, monoMs, 1e9)
    fleet.effects.sent.length = 0
    fleet.commit(monoMs)
    const [frame] = fleet.effects.sent
    assert.ok(frame, `command ${count} left`)
    const messageId = messageIdOf(frame.hex)
    assert.ok(messageId !== 0 && !inFlight.has(messageId), `command ${count}: ${messageId}`)
    given++
    // one of 997 is never answered; they stay over the wrap, where their ids come round
    if (count % 997 === 0) inFlight.add(messageId)
    else fleet.hear(0, 'locateResult', { result: 0 }, monoMs, messageId)
  }
  assert.equal(given, 70_000)
  assert.equal(inFlight.size, Math.ceil(70_000 / 997))
})

/** A start that left, as the table has it. */
function startOf(protocol: 'ap3000' | 'bkv', orderNo: string, port: number, sentMs: number, wireHex: string): Order {
  return {
    ...NEVER_CHARGED,
    orderNo,
    tenantId: 'default',
    deviceId: protocol,
    protocol,
    socket: protocol === 'bkv' ? 1 : 0,
    port,
    mode: 'full',
    request: null,
    commandId: `start ${orderNo}`,
    orderKey: wireHex === '' ? null : wireHex,
    wireHex: wireHex === '' ? null : wireHex,
    state: 'starting',
    origin: 'online',
    cardId: null,
    epoch: 1,
    createdMs: sentMs - 10,
    sentMs,
    finishedMs: null,
    isNew: false,
    isChanged: false,
  }
}

function endOf({ deviceId, protocol, socket, port }: Order, wireHex: string, energyRaw: number, receivedMs: number) {
  const isBkv = protocol === 'bkv'
  const row: SettlementRow = {
    deviceId,
    protocol,
    epoch: 1,
    seq: energyRaw,
    socket,
    port,
    orderKey: isBkv ? `~${wireHex}` : wireHex,
    wireHex,
    orderNo: '',
    origin: 'online',
    startModeRaw: 1,
    cardId: null,
    durationS: 600,
    energyWh: energyRaw,
    energyRaw,
    maxPowerW: 100,
    endReason: 'full',
    endReasonRaw: 1,
    deviceSentMs: null,
    deviceEndedMs: null,
    receivedMs,
    occupancyMin: null,
    businessNo: isBkv ? Number.parseInt(wireHex, 16) : null,
    deviceAmountFen: null,
    messageId: 1,
    frame: new Uint8Array(0),
  }
  return row
}

test('D11: 100,000 orders of two ports are settled by their own charges, none by another’s', () => {
  const random = new Random(20_261_121)
  for (const protocol of ['ap3000', 'bkv'] as const) {
    // what a transaction reads: the newest few orders and settlements of the port
    let orders: Order[] = []
    let settlements: FoundSettlement[] = []
    const wires = new Set<string>()
    for (let count = 1; count <= 50_000; count++) {
      const sentMs = WALL_MS + count * 1_200_000
      const orderNo = newOrderNo(random.bytes(10))
      const number = wireOrderNumber(orderNo)
      assert.ok('wireHex' in number)
      // BKV counts up to 65,535 and comes round; here it begins shortly before
      const wireHex =
        protocol === 'bkv' ? (((count + 40_000) % 65_535) + 1).toString(16).padStart(4, '0') : number.wireHex
      if (protocol === 'ap3000') assert.equal(wires.size, wires.add(wireHex).size - 1, 'bytes of its own')
      const start = startOf(protocol, orderNo, 1, sentMs, protocol === 'bkv' ? '' : wireHex)
      const found = { orders: [...orders, start], settlements, taken: [], tariffs: new Map() }
      const book = new OrderBook(new Map(), found)
      // one result in three is lost: then the end report alone says whose it is
      if (protocol === 'bkv' && count % 3 !== 0) {
        const result = { business_no: Number.parseInt(wireHex, 16) }
        book.startMoved(start, 'start_acked', { atMs: sentMs + 1_000, epoch: 1, reason: 'ok', wireHex: '', result })
      }
      const row = endOf(start, wireHex, count, sentMs + 605_000)
      assert.equal(book.settled(row), undefined)
      const { fresh, settlements: written }: OrderChanges = book.changes()
      assert.equal(fresh.length, 0, `charge ${count}: an order beside ours`)
      assert.equal(written.length, 1)
      const { order } = written[0]!
      assert.deepEqual([order.orderNo, order.energyWh, order.state], [orderNo, count, 'settled'])
      const { deviceId, socket, port, durationS, energyRaw, receivedMs, deviceEndedMs } = row
      const place = { deviceId, socket, port, orderKey: order.orderKey as string, wireHex }
      settlements = [...settlements.slice(-2), { ...place, durationS, energyRaw, receivedMs, deviceEndedMs }]
      orders = [...orders.slice(-2), { ...order, isNew: false, isChanged: false }]
    }
  }
})

/** AP3000 7, 21; written out here. What is missing is `unknown`, and nothing but 1 charges. */
const AP3000_STATES: Readonly<Record<number, string>> = {
  0: 'idle',
  1: 'charging',
  2: 'plugged',
  3: 'full',
  5: 'float',
  ...Object.fromEntries([4, 6, 7, 8, 9, 0x0a, 0x0b, 0x0d, 0x0e, 0x0f, 0x10].map((raw) => [raw, 'fault'])),
}

test('D14: all 256 port states of AP3000, kept raw beside their word', () => {
  const heartbeat = ap3000.uplinks.get(0x21)
  assert.ok(heartbeat?.facts)
  for (let first = 0; first < 256; first += 16) {
    const states = Uint8Array.from({ length: 16 }, (_, index) => first + index)
    const data = Uint8Array.of(0x98, 0x08, 16, ...states, 0, 93)
    const fields = heartbeat.decode(data, 0, data.length)
    assert.ok(!(fields instanceof PayloadError))
    const facts: readonly Fact[] = [...heartbeat.facts(fields, ap3000.newMemory())]
    const told = facts.find(({ fact }) => fact === 'portStates')
    assert.ok(told?.fact === 'portStates')
    assert.deepEqual(
      told.ports.map(({ port, stateRaw, state }) => [port, stateRaw, state]),
      [...states].map((raw, index) => [index + 1, raw, AP3000_STATES[raw] ?? 'unknown']),
    )
  }
})

test('every test that README.md names is there', () => {
  const root = join(import.meta.dirname, '../..')
  const readme = readFileSync(join(import.meta.dirname, 'README.md'), 'utf8')
  const table = readme.slice(readme.indexOf('## Field notes'))
  const named = [...table.matchAll(/`([\w/.-]+\.test\.ts)`: ([^;|]+)/g)]
  assert.ok(named.length >= 20, `only ${named.length} named`)
  for (const [, path, name] of named) {
    const source = readFileSync(join(root, path as string), 'utf8')
    assert.ok(source.includes((name as string).trim()), `${path}: ${name}`)
  }
})
