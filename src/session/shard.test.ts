/**
 * Session logic by its effects: these bytes at these moments, exactly these replies, rows and closes. Frames are the
 * vendor's or captured ones of the AP3000 corpus, or built by the codec. No socket, no clock, no database.
 */
import assert from 'node:assert/strict'
import { beforeEach, describe, test } from 'node:test'
import { deviceKey, type Fields } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import { allocateDirectory, Directory } from '../shared/directory.ts'
import { RecordingEffects } from '../testing/recording-effects.ts'
import { Allowlist } from './allowlist.ts'
import { COMMAND_STATUS, PRIORITY } from './command-lane.ts'
import type { Moment } from './effects.ts'
import { type ArrivedCommand, Shard, type ShardOptions } from './shard.ts'

const WALL_MS = Date.UTC(2026, 10, 21, 8, 0, 0)
const at = (monoMs: number): Moment => ({ wallMs: WALL_MS + monoMs, monoMs })
const PILE = 0x04ab373b
const SLAVE = 0x04a228cd

const options = (shard: number): ShardOptions => ({
  shard,
  idleTimeoutMs: 300_000,
  stateFlushMs: 1_000,
  seenFlushMs: 300_000,
  cardLookupTimeoutMs: 2_000,
  commands: { spacingMs: 500, ackTimeoutMs: 15_000, retries: 1 },
})

function uplink(name: string, fields: Fields, physId = PILE, messageId = 1): Buffer {
  const command = ap3000.uplinkByName.get(name)
  assert.ok(command, name)
  return Buffer.from(ap3000.encodeFrame('uplink', command, physId, messageId, command.encode(fields)))
}

/** The vendor's own frames (guide v8.6), device 04ab373b. */
const VENDOR = {
  register: '444e5913003b37ab04b900207e00021421000000e4009104',
  heartbeat: '444e5910003b37ab0401002198080200000905ee02',
  time: '444e5909003b37ab04b90022f002',
  settlement: '',
}
VENDOR.settlement = Buffer.from(
  ap3000.encodeFrame(
    'uplink',
    ap3000.uplinkByName.get('settlement')!,
    PILE,
    1,
    Buffer.from('100ee80330000101000000000120190901180000130030380102030405e803', 'hex'),
  ),
).toString('hex')

/** Two ports at rest. */
const ap3000Heartbeat = ap3000.uplinkByName
  .get('heartbeat')!
  .decode(Buffer.from('98080200000905', 'hex'), 0, 7) as Fields

const bytes = (hex: string) => Buffer.from(hex, 'hex')

class Bench {
  readonly directory = new Directory(allocateDirectory(1_024, 1))
  readonly effects: RecordingEffects[] = []
  readonly shards: Shard[] = []

  constructor(shards = 1) {
    for (let index = 0; index < shards; index++) {
      this.effects.push(new RecordingEffects())
      this.shards.push(new Shard(options(index), this.directory, this.effects[index]!, at(0)))
    }
  }

  open(connectionId: number, shard = 0, monoMs = 0): void {
    this.shards[shard]!.connectionOpened(
      { connectionId, protocol: ap3000, birth: this.directory.nextEpoch(), remoteAddress: '127.0.0.1:1' },
      at(monoMs),
    )
  }

  hear(connectionId: number, chunk: Buffer | string, monoMs = 0, shard = 0): void {
    this.shards[shard]!.chunkReceived(connectionId, typeof chunk === 'string' ? bytes(chunk) : chunk, at(monoMs))
  }

  get sent(): string[] {
    return this.effects[0]!.sent.map((frame) => frame.hex)
  }
}

let bench: Bench
beforeEach(() => {
  bench = new Bench()
})

describe('replies', () => {
  test('register, heartbeat and time are answered at once with the msgId they came with', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    bench.hear(1, VENDOR.heartbeat)
    bench.hear(1, VENDOR.time)
    assert.equal(bench.sent[0], '444e590a003b37ab04b9002000ef02')
    assert.equal(bench.sent[1], '444e590a003b37ab04010021003802')
    assert.equal(bench.sent.length, 3)
    const stamp = bytes(bench.sent[2]!).readUInt32LE(12)
    assert.equal(stamp, Math.floor(WALL_MS / 1000))
  })

  test('all in one chunk, cut anywhere, behind an ICCID, a link and noise', () => {
    const stream = Buffer.concat([
      Buffer.from('89860463112070319417'),
      bytes(VENDOR.register),
      Buffer.from('link'),
      bytes('000000000000010000'),
      bytes(VENDOR.heartbeat),
    ])
    for (let cut = 0; cut <= stream.length; cut++) {
      bench = new Bench()
      bench.open(1)
      bench.hear(1, stream.subarray(0, cut))
      bench.hear(1, stream.subarray(cut))
      assert.deepEqual(bench.sent, ['444e590a003b37ab04b9002000ef02', '444e590a003b37ab04010021003802'], `cut ${cut}`)
    }
  })

  test('an old heartbeat is answered from its second time on, and not once 21 has been heard', () => {
    const old = ap3000.uplinkByName.get('heartbeatOld')!
    const data = bytes('80022b09020000000000000000000a00315d00')
    const frame = Buffer.from(ap3000.encodeFrame('uplink', old, PILE, 7, data))
    bench.open(1)
    bench.hear(1, frame)
    assert.equal(bench.sent.length, 0)
    bench.hear(1, frame)
    assert.equal(bench.sent.length, 1)
    bench.hear(1, VENDOR.heartbeat)
    bench.hear(1, frame)
    assert.equal(bench.effects[0]!.sent.filter((sent) => sent.answers === 'heartbeatOld').length, 1)
  })

  test('an unknown command is kept and counted and closes nothing', () => {
    const strange = bytes(VENDOR.time)
    strange[11] = 0x6b
    strange.writeUInt16LE(strange.readUInt16LE(12) + 0x6b - 0x22, 12)
    bench.open(1)
    bench.hear(1, strange)
    bench.hear(1, VENDOR.heartbeat)
    const { counted, closed } = bench.effects[0]!
    assert.equal(counted['uplink unknown'], 1)
    assert.deepEqual(closed, [])
    assert.equal(bench.sent.length, 1)
    const [logged] = bench.effects[0]!.rowsOf('cmd_log')
    assert.equal(Buffer.from(logged!.values['frame'] as Uint8Array).toString('hex'), strange.toString('hex'))
  })

  test('a frame too short for its command, or with a bad sum, is counted and not answered', () => {
    const short = ap3000.encodeFrame('uplink', ap3000.uplinkByName.get('settlement')!, PILE, 3, bytes('100ee803'))
    bench.open(1)
    bench.hear(1, Buffer.from(short))
    const bad = bytes(VENDOR.heartbeat)
    bad[15]! ^= 1
    bench.hear(1, bad)
    bench.hear(1, VENDOR.heartbeat)
    const { counted } = bench.effects[0]!
    assert.equal(counted['error payload_error'], 1)
    assert.equal(counted['error checksum_mismatch'], 1)
    assert.equal(bench.sent.length, 1)
    assert.equal(bench.effects[0]!.rowsOf('settlements').length, 0)
  })

  test('a device that does not read loses its connection, nothing else', () => {
    bench.open(1)
    bench.open(2)
    bench.effects[0]!.stalled.add(1)
    bench.hear(1, VENDOR.register)
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'outbound_overflow' }])
    assert.equal(bench.shards[0]!.connections, 1)
  })
})

describe('settlements', () => {
  const ACK = '444e590a003b37ab04010003001a02'

  test('acknowledged when durable, not before', () => {
    bench.open(1)
    bench.hear(1, VENDOR.settlement)
    const [row] = bench.effects[0]!.rowsOf('settlements')
    assert.equal(row!.values['energyWh'], 480)
    assert.equal(row!.values['durationS'], 3600)
    assert.equal(row!.values['port'], 2)
    assert.equal(row!.values['endReason'], 'full')
    assert.deepEqual(bench.sent, [])
    bench.shards[0]!.durableReached(row!.position - 1, [], at(10))
    assert.deepEqual(bench.sent, [])
    bench.shards[0]!.durableReached(row!.position, [], at(20))
    assert.deepEqual(bench.sent, [ACK])
  })

  test('answered again when repeated, under the same key', () => {
    bench.open(1)
    bench.hear(1, VENDOR.settlement)
    bench.hear(1, VENDOR.settlement)
    bench.shards[0]!.durableReached(bench.effects[0]!.position, [], at(20))
    assert.deepEqual(bench.sent, [ACK, ACK])
    const keys = bench.effects[0]!.rowsOf('settlements').map((row) => row.values['orderKey'])
    assert.equal(new Set(keys).size, 1)
  })

  test('withheld when the ledger is full, or when the database would not take the row', () => {
    bench.open(1)
    bench.effects[0]!.full.add('ledger')
    bench.hear(1, VENDOR.settlement)
    bench.effects[0]!.full.clear()
    bench.hear(1, VENDOR.heartbeat)
    bench.hear(1, VENDOR.settlement)
    const [row] = bench.effects[0]!.rowsOf('settlements')
    bench.shards[0]!.durableReached(row!.position, [row!.position], at(20))
    assert.equal(bench.effects[0]!.counted['withheld'], 2)
    assert.deepEqual(
      bench.effects[0]!.sent.map((sent) => sent.answers),
      ['heartbeat'],
    )
  })

  test('a blank order number does not make two charges one, and a repeat of each stays one', () => {
    const blank = (duration: number, sentS: number) =>
      uplink('settlement', {
        durationS: duration,
        maxPowerDw: 900,
        energy10Wh: 20,
        port: 0,
        startMode: 0,
        cardOrCodeHex: '7a8d05dd',
        stopReason: 1,
        orderHex: '00'.repeat(16),
        secondMaxPowerDw: 900,
        timestampS: sentS,
      })
    bench.open(1)
    for (const frame of [blank(3600, 1), blank(3600, 1801), blank(1200, 9)]) bench.hear(1, frame)
    const rows = bench.effects[0]!.rowsOf('settlements').map((row) => row.values)
    assert.equal(rows.length, 3)
    assert.equal(rows[0]!['orderKey'], rows[1]!['orderKey'])
    assert.notEqual(rows[0]!['orderKey'], rows[2]!['orderKey'])
    assert.notEqual(rows[0]!['orderNo'], rows[2]!['orderNo'])
  })

  test('the ack of a connection that lost its device is not sent', () => {
    bench.open(1)
    bench.hear(1, VENDOR.settlement)
    bench.open(2)
    bench.hear(2, VENDOR.heartbeat)
    bench.shards[0]!.durableReached(bench.effects[0]!.position, [], at(20))
    assert.equal(bench.effects[0]!.counted['fenced ack'], 1)
    assert.equal(bench.effects[0]!.sent.filter((sent) => sent.answers === 'settlement').length, 0)
  })
})

describe('who speaks for a device', () => {
  test('a reconnect wins, the older connection is closed, its late close hurts nobody', () => {
    bench.open(1)
    bench.hear(1, VENDOR.heartbeat)
    bench.open(2, 0, 100)
    bench.hear(2, VENDOR.heartbeat, 100)
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'superseded' }])
    bench.shards[0]!.connectionClosed(1, 'peer_reset', at(200))
    const look = bench.directory.look(deviceKey(ap3000, PILE))!
    assert.equal(look.isOnline, true)
    bench.hear(2, VENDOR.heartbeat, 300)
    assert.equal(bench.effects[0]!.sent.at(-1)!.connectionId, 2)
    assert.equal(bench.effects[0]!.counted['devices'], 1)
  })

  test('across shards: the newer one wins, the older is told, refused and closed', () => {
    bench = new Bench(2)
    bench.open(1, 0)
    bench.hear(1, VENDOR.heartbeat, 0, 0)
    bench.open(1, 1)
    bench.hear(1, VENDOR.heartbeat, 10, 1)
    const [told] = bench.effects[1]!.superseded
    assert.equal(told!.shard, 0)
    // before the message arrives, the old side finds out by itself
    bench.hear(1, VENDOR.heartbeat, 20, 0)
    assert.equal(bench.effects[0]!.sent.length, 1)
    assert.equal(bench.effects[0]!.counted['fenced uplink'], 1)
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'superseded' }])
    bench.shards[0]!.superseded(told!.deviceKey, told!.epoch, at(30))
    assert.equal(bench.directory.look(deviceKey(ap3000, PILE))!.shard, 1)
    assert.equal(bench.effects[0]!.counted['fenced close'], 1)
  })

  test('an older connection that speaks up late is refused and closed', () => {
    bench.open(1)
    bench.open(2)
    bench.hear(2, VENDOR.heartbeat)
    bench.hear(1, VENDOR.heartbeat)
    assert.equal(bench.effects[0]!.counted['fenced claim'], 1)
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'superseded' }])
    assert.equal(bench.sent.length, 1)
  })

  test('a host and its slaves share a connection; a slave that moves leaves the others in place', () => {
    const beat = (physId: number) => uplink('heartbeat', ap3000HeartbeatFields, physId)
    bench.open(1)
    bench.hear(1, Buffer.concat([beat(PILE), beat(SLAVE)]))
    bench.open(2)
    bench.hear(2, beat(SLAVE))
    assert.deepEqual(bench.effects[0]!.closed, [])
    bench.hear(1, beat(PILE))
    bench.hear(2, beat(SLAVE))
    assert.deepEqual(
      bench.effects[0]!.sent.map((sent) => sent.connectionId),
      [1, 1, 2, 1, 2],
    )
    assert.equal(bench.effects[0]!.counted['devices'], 2)
  })

  test('boards that share a factory number are answered and merged with nobody', () => {
    const shared = 0x04000000 + 12_000_000
    bench.open(1)
    bench.open(2)
    const beat = uplink('heartbeat', ap3000HeartbeatFields, shared)
    bench.hear(1, beat)
    bench.hear(2, beat)
    bench.hear(1, beat)
    assert.deepEqual(bench.effects[0]!.closed, [])
    assert.equal(bench.sent.length, 3)
  })

  test('rows of a session carry its epoch, and epochs grow with every takeover', () => {
    for (let connection = 1; connection <= 5; connection++) {
      bench.open(connection)
      bench.hear(connection, VENDOR.register)
    }
    const epochs = bench.effects[0]!.rowsOf('sessions')
      .filter((row) => row.values['closedMs'] === null)
      .map((row) => row.values['epoch'] as number)
    assert.equal(epochs.length, 5)
    for (let index = 1; index < epochs.length; index++) assert.ok(epochs[index]! > epochs[index - 1]!)
  })
})

const ap3000HeartbeatFields: Fields = {
  voltageDv: 2200,
  ports: 2,
  portStates: [0, 0],
  signal: 9,
  envTempRaw: 85,
}

describe('who may connect', () => {
  const only = (pattern: string) => new Allowlist([{ kind: 'device', pattern }])
  const beat = (physId: number) => uplink('heartbeat', ap3000HeartbeatFields, physId)

  test('a device that is not listed gets no answer and no claim, and is closed; a listed one is served', () => {
    bench.shards[0]!.allowlistChanged(only(ap3000.formatDeviceId(SLAVE)), at(0))
    bench.open(1)
    bench.hear(1, beat(PILE))
    assert.deepEqual(bench.sent, [])
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'not_allowed' }])
    assert.deepEqual(bench.effects[0]!.devicesRefused, [ap3000.formatDeviceId(PILE)])
    assert.equal(bench.directory.look(deviceKey(ap3000, PILE)), undefined)
    assert.deepEqual(bench.effects[0]!.rows, [])
    bench.open(2)
    bench.hear(2, beat(SLAVE))
    assert.equal(bench.sent.length, 1)
  })

  test('behind a host that may, a slave that may not is left unanswered and the host is not', () => {
    bench.shards[0]!.allowlistChanged(only(ap3000.formatDeviceId(PILE)), at(0))
    bench.open(1)
    bench.hear(1, Buffer.concat([beat(PILE), beat(SLAVE), beat(PILE)]))
    assert.equal(bench.sent.length, 2)
    assert.deepEqual(bench.effects[0]!.closed, [])
    assert.equal(bench.directory.look(deviceKey(ap3000, SLAVE)), undefined)
  })

  test('whoever is taken off the list is closed, and may come back when everybody may', () => {
    bench.open(1)
    bench.hear(1, beat(PILE))
    bench.shards[0]!.allowlistChanged(only(ap3000.formatDeviceId(SLAVE)), at(10))
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'not_allowed' }])
    assert.equal(bench.directory.look(deviceKey(ap3000, PILE))!.isOnline, false)
    bench.shards[0]!.allowlistChanged(undefined, at(20))
    bench.open(2)
    bench.hear(2, beat(PILE))
    assert.equal(bench.sent.length, 2)
  })
})

describe('time', () => {
  test('a silent connection is closed, one with a link now and then is not', () => {
    bench.open(1)
    bench.open(2)
    bench.hear(1, uplink('heartbeat', ap3000HeartbeatFields, SLAVE))
    bench.hear(2, VENDOR.heartbeat)
    for (let monoMs = 0; monoMs <= 400_000; monoMs += 30_000) {
      bench.hear(2, Buffer.from('link'), monoMs)
      bench.shards[0]!.tick(at(monoMs))
    }
    assert.deepEqual(bench.effects[0]!.closed, [{ connectionId: 1, reason: 'idle' }])
  })

  test('half a frame is given up after 15 s and what it had swallowed is found', () => {
    bench.open(1)
    bench.hear(1, VENDOR.heartbeat)
    // a damaged length that wants 200 bytes, with a whole good frame inside
    const liar = bytes('444e59c800')
    bench.hear(1, Buffer.concat([liar, bytes(VENDOR.time)]), 1_000)
    assert.equal(bench.sent.length, 1)
    bench.shards[0]!.tick(at(15_900))
    assert.equal(bench.sent.length, 1)
    bench.shards[0]!.tick(at(16_100))
    assert.equal(bench.sent.length, 2)
    assert.equal(bench.effects[0]!.counted['error incomplete'], 1)
  })

  test('an unchanged heartbeat costs no row; a changed port state one, after the flush time', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    bench.hear(1, VENDOR.heartbeat)
    bench.shards[0]!.tick(at(1_100))
    const before = bench.effects[0]!.rows.length
    for (let count = 1; count <= 50; count++) {
      bench.hear(1, VENDOR.heartbeat, 1_100 + count * 3_000)
      bench.shards[0]!.tick(at(1_100 + count * 3_000 + 1_500))
    }
    assert.equal(bench.effects[0]!.rows.length, before)
    bench.hear(1, uplink('heartbeat', { ...ap3000HeartbeatFields, portStates: [1, 0] }), 200_000)
    bench.shards[0]!.tick(at(201_100))
    const ports = bench.effects[0]!.rowsOf('ports').slice(-1)
    assert.deepEqual([ports[0]!.values['port'], ports[0]!.values['state']], [1, 'charging'])
    assert.equal(bench.effects[0]!.rows.filter((row) => row.table === 'ports').length, 3)
  })

  test('a stop writes what was held back and ends every session', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    bench.shards[0]!.stop(at(50))
    assert.equal(bench.effects[0]!.rowsOf('devices').length, 1)
    const ended = bench.effects[0]!.rowsOf('sessions').at(-1)!
    assert.equal(ended.values['closeReason'], 'shutdown')
    assert.equal(bench.shards[0]!.connections, 0)
  })
})

describe('cards', () => {
  const swipe = '444e5911003b37ab040100027a8d05dd00010000'
  const swiped = () => {
    const data = bytes('7a8d05dd00010000')
    return Buffer.from(ap3000.encodeFrame('uplink', ap3000.uplinkByName.get('cardSwipe')!, PILE, 1, data))
  }

  test('answered from the cards table with the protocol code', () => {
    assert.ok(swiped().toString('hex').startsWith(swipe))
    bench.open(1)
    bench.hear(1, swiped())
    const [question] = bench.effects[0]!.questions
    assert.equal(question!.cardId, '7a8d05dd')
    assert.deepEqual(bench.sent, [])
    bench.shards[0]!.cardAnswered(
      question!.questionId,
      { status: 'unregistered', rateMode: 'time', balanceFen: 0, expiresMs: null },
      at(5),
    )
    const reply = bytes(bench.sent[0]!)
    assert.equal(reply.subarray(12, 16).toString('hex'), '7a8d05dd')
    assert.equal(reply[16], 1, 'unregistered')
    assert.equal(reply[22], 1, 'port as received')
  })

  test('not answered when nobody can ask the table, or after a takeover', () => {
    bench.open(1)
    bench.hear(1, swiped())
    bench.hear(1, swiped())
    bench.shards[0]!.tick(at(2_100))
    assert.equal(bench.effects[0]!.counted['card unavailable'], 2)
    bench.hear(1, swiped(), 3_000)
    bench.open(2)
    bench.hear(2, VENDOR.heartbeat, 3_010)
    const { questionId } = bench.effects[0]!.questions[2]!
    bench.shards[0]!.cardAnswered(
      questionId,
      { status: 'ok', rateMode: 'time', balanceFen: 500, expiresMs: null },
      at(3_020),
    )
    assert.equal(bench.effects[0]!.counted['fenced card_reply'], 1)
    assert.equal(bench.effects[0]!.sent.filter((sent) => sent.answers === 'cardSwipe').length, 0)
  })
})

test('a connection speaks for 1,024 devices and no more; those go on', () => {
  const roomy = new Directory(allocateDirectory(4_096, 1))
  const effects = new RecordingEffects()
  const shard = new Shard(options(0), roomy, effects, at(0))
  shard.connectionOpened(
    { connectionId: 1, protocol: ap3000, birth: roomy.nextEpoch(), remoteAddress: '127.0.0.1:1' },
    at(0),
  )
  const frame = (physId: number) => uplink('heartbeat', ap3000Heartbeat, physId)
  for (let physId = PILE; physId < PILE + 1_030; physId++) shard.chunkReceived(1, frame(physId), at(1))
  assert.equal(effects.sent.length, 1_024)
  assert.equal(effects.counted['error bad_device_id'], 6)
  shard.chunkReceived(1, frame(PILE + 1_023), at(2))
  assert.equal(effects.sent.length, 1_025)
  assert.deepEqual(effects.closed, [])
})

describe('commands', () => {
  const key = deviceKey(ap3000, PILE)
  const locate = (more: Partial<ArrivedCommand> = {}): ArrivedCommand => ({
    commandId: 'a',
    name: 'locate',
    epoch: bench.directory.look(key)?.epoch ?? 0,
    fields: { locateS: 5 },
    priority: PRIORITY.background,
    expiresMs: WALL_MS + 60_000,
    wireHex: '',
    socket: 0,
    port: 0,
    attempts: 0,
    messageId: undefined,
    ...more,
  })
  const locates = () => bench.sent.filter((hex) => hex.slice(22, 24) === '96')
  const rows = () =>
    bench.effects[0]!.rowsOf('outbound_queue').map(({ values }) => [values['status'], values['attempts']])

  test('leaves when its row is durable, and not within the pause after the session began', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    const [shard, effects] = [bench.shards[0]!, bench.effects[0]!]
    shard.commandArrived(key, locate(), 7, at(0))
    shard.tick(at(480))
    assert.deepEqual(rows(), [])
    shard.tick(at(520))
    assert.deepEqual(rows(), [[COMMAND_STATUS.sent, 1]])
    assert.deepEqual(locates(), [])
    shard.durableReached(effects.position, [], at(530))
    assert.equal(locates().length, 1)
    assert.deepEqual(effects.moved, [{ commandId: 'a', status: COMMAND_STATUS.sent }])
    assert.deepEqual(rows(), [[COMMAND_STATUS.sent, 1]], 'the row was there before the frame')
  })

  test('BKV: the heartbeat that opens a session tells its ICCID and registers the gateway; behind another frame it only registers', () => {
    const gatewayNo = 82_231_214_000_522
    const frame = (name: string, fields: Fields) => {
      const command = bkv.uplinkByName.get(name)!
      return Buffer.from(bkv.encodeFrame('uplink', command, gatewayNo, 0, command.encode(fields)))
    }
    const heartbeat = (iccidAscii: string) => frame('heartbeat', { iccidAscii, fwVersionAscii: '200.1.17', rssi: 17 })
    const notice = frame('connectNotice', { bkv: { subHex: '1013' } })
    const ICCID = '898608551024D1988196'
    for (const [frames, iccid, registered] of [
      [[heartbeat(ICCID), heartbeat(ICCID)], ICCID, 1],
      [[notice, heartbeat(ICCID)], null, 1],
      [[heartbeat(''), heartbeat('')], null, 1],
      [[notice], null, 0],
    ] as const) {
      bench = new Bench()
      bench.shards[0]!.connectionOpened(
        { connectionId: 1, protocol: bkv, birth: bench.directory.nextEpoch(), remoteAddress: '127.0.0.1:1' },
        at(0),
      )
      for (const one of frames) bench.hear(1, one)
      const [effects] = bench.effects
      assert.deepEqual(
        effects!.rowsOf('sessions').map(({ values }) => values['iccid']),
        [iccid],
      )
      const events = effects!.rowsOf('events').filter(({ values }) => values['eventType'] === 'device.registered')
      assert.equal(events.length, registered)
    }
  })

  test('a result too long for a row has its fate all the same, without what it says', () => {
    const shard = bench.shards[0]!
    const gatewayNo = 82_231_214_000_521
    const frame = (name: string, messageId: number, fields: Fields) => {
      const command = bkv.uplinkByName.get(name)!
      return Buffer.from(bkv.encodeFrame('uplink', command, gatewayNo, messageId, command.encode(fields)))
    }
    shard.connectionOpened(
      { connectionId: 1, protocol: bkv, birth: bench.directory.nextEpoch(), remoteAddress: '127.0.0.1:1' },
      at(0),
    )
    bench.hear(1, frame('connectNotice', 0, { bkv: { subHex: '1013' } }))
    const gateway = deviceKey(bkv, gatewayNo)
    const { epoch } = bench.directory.look(gateway)!
    shard.commandArrived(gateway, locate({ name: 'queryParameters', fields: { bkv: { socket: 1 } }, epoch }), 7, at(0))
    shard.tick(at(520))
    const [effects] = bench.effects
    shard.durableReached(effects!.position, [], at(530))
    const messageId = bytes(effects!.sent.at(-1)!.hex).readUInt32BE(6)
    // 3,700 bytes on the wire, 50,000 as JSON: each status byte is told bit by bit
    const ports = Array.from({ length: 330 }, () => ({ port: 1, statusHex: 'ff' }))
    bench.hear(1, frame('parameters', messageId, { bkv: { subHex: '1012', ack: 1, socket: 1, ports } }), 600)
    const { status, result } = effects!.rowsOf('outbound_queue').at(-1)!.values as { status: number; result: string }
    assert.equal(status, COMMAND_STATUS.acked)
    const { content, left_out_bytes: leftOut, ...rest } = JSON.parse(result) as Record<string, unknown>
    assert.equal(content, undefined)
    assert.ok(Number(leftOut) > 16_384)
    assert.deepEqual(rest, { raw: 1, reason: 'ok', socket: 1 })
  })

  test('a result right behind the registration is of a command that comes a moment later, and no longer', () => {
    for (const [heardMs, arrivedMs, status] of [
      [2, 5, COMMAND_STATUS.acked],
      [6, 5, COMMAND_STATUS.acked],
      [2, 2_003, COMMAND_STATUS.dead],
    ] as const) {
      bench = new Bench()
      bench.open(1)
      bench.hear(1, VENDOR.register)
      const shard = bench.shards[0]!
      const hear = () => bench.hear(1, uplink('locateResult', { result: 0 }, PILE, 77), heardMs)
      if (heardMs < arrivedMs) hear()
      for (let ms = heardMs; ms < arrivedMs; ms += 20) shard.tick(at(ms))
      shard.commandArrived(key, locate({ attempts: 2, messageId: 77 }), 77, at(arrivedMs))
      if (heardMs > arrivedMs) hear()
      for (let ms = arrivedMs + 20; ms < 60_000; ms += 20) shard.tick(at(ms))
      assert.deepEqual(rows(), [[status, 2]], `heard ${heardMs}, arrived ${arrivedMs}`)
      assert.deepEqual(locates(), [])
    }
  })

  test('an order seen right behind the registration confirms a start that comes a moment later', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    const [shard] = bench.shards
    const orderHex = '12345678123456781234567812345678'
    const started = { port: 0, startMode: 1, cardOrCodeHex: '00000000', durationS: 2, orderHex }
    bench.hear(1, uplink('orderConfirm', started), 2)
    const fields = {
      rateMode: 0,
      port: 0,
      command: 1,
      durationS: 600,
      orderHex,
      balanceFen: 0,
      maxChargeS: 0,
      overloadPowerDw: 0,
    }
    const start = { name: 'startCharge', fields, wireHex: orderHex, port: 1, priority: PRIORITY.start }
    shard!.commandArrived(key, locate({ ...start, attempts: 1, messageId: 77 }), 77, at(5))
    assert.deepEqual(rows(), [[COMMAND_STATUS.acked, 1]])
  })

  test('meant for an earlier session it goes back: what that one had comes first', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    const early = locate()
    bench.open(2)
    bench.hear(2, VENDOR.register)
    bench.shards[0]!.commandArrived(key, early, undefined, at(0))
    assert.deepEqual(bench.effects[0]!.returned, [
      { deviceKey: key, command: { commandId: 'a', attempts: 0, messageId: undefined } },
    ])
  })

  test('a device that does not read costs the connection, and no command', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    const [shard, effects] = [bench.shards[0]!, bench.effects[0]!]
    shard.commandArrived(key, locate(), undefined, at(0))
    shard.tick(at(520))
    effects.stalled.add(1)
    shard.durableReached(effects.position, [], at(530))
    assert.deepEqual(effects.closed, [{ connectionId: 1, reason: 'outbound_overflow' }])
    const [back] = effects.returned
    assert.deepEqual([back?.command.commandId, back?.command.attempts], ['a', 0])
    assert.equal(effects.counted['commands pending'], 0)
  })

  test('main hears of a fate with its row: the full ledger holds both back', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    const [shard, effects] = [bench.shards[0]!, bench.effects[0]!]
    shard.commandArrived(key, locate({ expiresMs: WALL_MS + 1_000 }), undefined, at(0))
    effects.full.add('ledger')
    shard.tick(at(1_500))
    assert.deepEqual(effects.moved, [])
    effects.full.delete('ledger')
    shard.tick(at(1_600))
    assert.deepEqual(rows(), [[COMMAND_STATUS.expired, 0]])
    assert.deepEqual(effects.moved, [{ commandId: 'a', status: COMMAND_STATUS.expired }])
  })

  test('cancelled while it waits it is main’s again, without a fate', () => {
    bench.open(1)
    bench.hear(1, VENDOR.register)
    const shard = bench.shards[0]!
    shard.commandArrived(key, locate(), undefined, at(0))
    assert.equal(shard.cancelCommand(key, 'a', at(10)), true)
    shard.tick(at(90_000))
    assert.deepEqual([rows(), locates()], [[], []])
    assert.equal(bench.effects[0]!.counted['commands pending'], 0)
  })
})
