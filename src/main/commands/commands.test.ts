/**
 * Claim: a command is in the tables, with its order and its line in the audit log, before its caller hears 202; the same
 * request gets the same answer however often and however parallel it comes; what cannot be is refused with its reason
 * and leaves nothing behind; what reaches the shard's mailbox encodes to the vendors' bytes. Tried over HTTP, with the
 * real desk, directory and mailbox ring, on the real schema in a real PostgreSQL; only the shard is missing: the test
 * reads the mailbox in its place.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, beforeEach, describe, test } from 'node:test'
import type * as z from 'zod'
import { deviceKey, type Fields } from '../../codec/protocol.ts'
import { parseApiKeys } from '../../config/api-keys.ts'
import { HTTP_ERRORS } from '../../errors/errors.ts'
import { parseAnyDeviceId } from '../../protocols/index.ts'
import { type CommandMail, commandMail } from '../../rows/mail.ts'
import { readRows } from '../../rows/row.ts'
import { allocateDirectory, Directory } from '../../shared/directory.ts'
import { allocateOutbox, OutboxConsumer, OutboxProducer } from '../../shared/outbox.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { type Admin, createAdmin } from '../admin/admin.ts'
import { commandRoutes, zCommand } from '../admin/routes/commands.ts'
import { zOrder } from '../admin/routes/orders.ts'
import { zError, zPage } from '../admin/shapes.ts'
import { answerCard } from '../cards.ts'
import { CommandDesk } from '../command-desk.ts'
import { SqlCommandStore } from '../command-store.ts'
import { Limits } from '../limits.ts'
import { createLog } from '../log.ts'
import { type Accepted, CommandService } from './service.ts'

const { keys } = parseApiKeys('op:op-secret:operator,view:view-secret:viewer,north:north-secret:operator:north')
const log = createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'main' })
const PER_DEVICE_MAX = 30
/** High enough for the tests that are not about it. */
const RATE_PER_DEVICE = 50
let database: TestDatabase
let admin: Admin
let commands: CommandService
let desk: CommandDesk
let directory: Directory
let mailbox: OutboxConsumer
let isDatabaseHere = true
/** What the shard is asked to cancel, and what it answers. */
let shardCancels: boolean

before(async () => {
  database = await openTestDatabase()
  const { sql } = database
  directory = new Directory(allocateDirectory(1_024, 1))
  const memory = allocateOutbox(262_144)
  mailbox = new OutboxConsumer(memory)
  desk = new CommandDesk({
    store: new SqlCommandStore(sql),
    log,
    directory,
    mailboxes: [new OutboxProducer(memory)],
    wakeShard: () => {},
    askCancel: (_shard, questionId) => setImmediate(() => desk.cancelAnswered(questionId, shardCancels)),
    commandsMax: 1_000,
    commandsPerDeviceMax: PER_DEVICE_MAX,
    now: Date.now,
    after: (ms, act) => void setTimeout(act, ms).unref(),
    onHeld: () => {},
    onEnded: () => {},
  })
  commands = new CommandService({
    sql,
    log,
    desk,
    commandExpiryMs: 60_000,
    limits: { perKeyPerS: 10_000, perDevicePerS: RATE_PER_DEVICE, fleetPerS: 10_000 },
    now: Date.now,
  })
  admin = createAdmin({
    nonceDirectory: temporaryDirectory(),
    config: { httpHost: '127.0.0.1', httpPort: 0, requestTimeoutMs: 5_000 },
    log,
    sql,
    apiKeys: keys,
    readiness: () => [],
    presenceOf: () => undefined,
    protocolOf: (deviceId) => parseAnyDeviceId(deviceId)?.protocol.name,
    isDatabaseHere: () => isDatabaseHere,
    renderMetrics: async () => '',
    observeRequest: () => {},
    now: Date.now,
    moreRoutes: commandRoutes({ sql, commands }),
  })
  await admin.listen()
  await sql`insert into tenants (tenant_id, name) values ('north', 'North')`
})
after(async () => {
  desk.stop()
  await admin.close()
  await database.close()
})
beforeEach(() => {
  isDatabaseHere = true
  shardCancels = true
})

let devices = 0
/** A fresh device that the database knows. */
async function newDevice(
  row: { tenant?: string; portCount?: number; tariff?: object; bkv?: boolean; id?: string } = {},
) {
  devices++
  const fresh = row.bkv === true ? String(82_000_000_000_000 + devices) : devices.toString(16).padStart(8, '0')
  const deviceId = row.id ?? fresh
  const { sql } = database
  await sql`
    insert into devices (device_id, tenant_id, port_count, tariff)
    values (${deviceId}, ${row.tenant ?? 'default'}, ${row.portCount ?? null},
      ${row.tariff === undefined ? null : sql.json(row.tariff as never)}) on conflict do nothing`
  return deviceId
}

/** Gives the device a session on shard 0. */
function connect(deviceId: string): void {
  const { protocol, deviceNo } = parseAnyDeviceId(deviceId)!
  const key = deviceKey(protocol, deviceNo)
  assert.equal(directory.claim(key, directory.nextEpoch(), 0).kind, 'taken')
  desk.deviceOnline(key)
}

/** What a shard would find in its mailbox. */
async function mail(count: number): Promise<CommandMail[]> {
  const mails: CommandMail[] = []
  for (let look = 0; look < 100 && mails.length < count; look++) {
    for (let span = mailbox.take(65_536, 256); span !== undefined; span = mailbox.take(65_536, 256)) {
      const bytes = new Uint8Array(mailbox.memory).slice(span.fromIndex, span.toIndex)
      mailbox.release(span.toPosition, span.rows)
      mails.push(...readRows(bytes, commandMail))
    }
    if (mails.length < count) await new Promise((resolve) => setTimeout(resolve, 10))
  }
  assert.equal(mails.length, count)
  return mails
}

interface Asked {
  readonly secret?: string
  readonly key?: string
}
function ask(method: string, path: string, body?: unknown, { secret = 'op-secret', key }: Asked = {}) {
  return fetch(`http://127.0.0.1:${admin.port}/api/v1${path}`, {
    method,
    headers: { Authorization: `Bearer ${secret}`, ...(key === undefined ? {} : { 'Idempotency-Key': key }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
}
async function accepted(response: Promise<Response>): Promise<Accepted> {
  const answer = await response
  const json = (await answer.json()) as Accepted
  assert.equal(answer.status, 202, JSON.stringify(json))
  return json
}
async function refused(response: Promise<Response>, code: keyof typeof HTTP_ERRORS) {
  const answer = await response
  const { error } = zError.parse(await answer.json())
  assert.equal(error.code, code, error.message)
  assert.equal(answer.status, HTTP_ERRORS[code])
  return { ...error, retryAfter: answer.headers.get('retry-after') }
}
async function get<S extends z.ZodType>(shape: S, path: string, secret = 'view-secret'): Promise<z.output<S>> {
  const response = await ask('GET', path, undefined, { secret })
  const json: unknown = await response.json()
  assert.equal(response.status, 200, JSON.stringify(json))
  return shape.parse(json)
}
const charge = (deviceId: string, body: object, asked?: Asked) =>
  ask('POST', `/devices/${deviceId}/charge`, body, asked)
const stop = (deviceId: string, body: object, asked?: Asked) => ask('POST', `/devices/${deviceId}/stop`, body, asked)
const send = (deviceId: string, name: string, params?: object, asked?: Asked) =>
  ask('POST', `/devices/${deviceId}/commands`, { name, ...(params === undefined ? {} : { params }) }, asked)
async function rowsOf(deviceId: string) {
  const { sql } = database
  const [queue, orders, audit] = await Promise.all([
    sql`select * from outbound_queue where device_id = ${deviceId} order by created_at`,
    sql`select * from orders where device_id = ${deviceId} order by created_at`,
    sql`select * from audit_logs where target = ${deviceId} order by id`,
  ])
  return { queue, orders, audit }
}

describe('charge', () => {
  test('order, command and audit line are there when 202 comes', async () => {
    const deviceId = await newDevice({ portCount: 4, tariff: { energy: { price_fen_per_kwh: 120 } } })
    const body = { port: 2, mode: 'time', duration_s: 600, order_no: 'ORDER-1', expires_in_s: 30 }
    const answer = await accepted(charge(deviceId, body))
    assert.deepEqual(answer, { command_id: answer.command_id, order_no: 'ORDER-1', state: 'queued' })
    const { queue, orders, audit } = await rowsOf(deviceId)
    const [command] = queue
    const wire = `${Buffer.from('ORDER-1').toString('hex')}000000000000000000`
    assert.equal(command!['command_id'], answer.command_id)
    assert.deepEqual(
      [command!['kind'], command!['status'], command!['name'], command!['priority'], command!['requested_by']],
      ['start', 0, 'startCharge', 1, 'op'],
    )
    assert.deepEqual(command!['wire'].wire_hex, wire)
    assert.deepEqual([command!['wire'].socket, command!['wire'].port], [0, 2])
    const livesMs = command!['expires_at'].getTime() - command!['created_at'].getTime()
    assert.ok(livesMs > 29_000 && livesMs < 31_000, String(livesMs))
    const [order] = orders
    assert.deepEqual(
      ['state', 'origin', 'mode', 'order_key', 'wire_hex', 'command_id', 'port', 'protocol'].map(
        (name) => order![name],
      ),
      ['pending', 'online', 'time', wire, wire, answer.command_id, 2, 'ap3000'],
    )
    assert.deepEqual(order!['tariff'], { energy: { price_fen_per_kwh: 120 } })
    assert.equal(order!['request'].duration_s, 600)
    assert.equal(order!['request'].gateway_limits, null)
    assert.deepEqual(
      audit.map(({ action, actor }) => `${action} by ${actor}`),
      ['charge.requested by op'],
    )
    assert.equal((await get(zOrder, '/orders/ORDER-1')).state, 'pending')
  })

  test('twenty at once with one key are one command and one order', async () => {
    const deviceId = await newDevice()
    const body = { port: 1, mode: 'full' }
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => accepted(charge(deviceId, body, { key: `burst-${deviceId}` }))),
    )
    assert.equal(new Set(answers.map(({ command_id }) => command_id)).size, 1)
    assert.equal(new Set(answers.map(({ order_no }) => order_no)).size, 1)
    const { queue, orders, audit } = await rowsOf(deviceId)
    assert.deepEqual([queue.length, orders.length, audit.length], [1, 1, 1])
  })

  test('twenty at once with one order_no and no key, too', async () => {
    const deviceId = await newDevice()
    const body = { port: 1, mode: 'full', order_no: `N${deviceId}` }
    const answers = await Promise.all(Array.from({ length: 20 }, () => accepted(charge(deviceId, body))))
    assert.equal(new Set(answers.map(({ command_id }) => command_id)).size, 1)
    assert.equal((await rowsOf(deviceId)).queue.length, 1)
  })

  test('twenty different ones for one port: one runs, the others are told which', async () => {
    const deviceId = await newDevice()
    const responses = await Promise.all(
      Array.from({ length: 20 }, (_, index) => charge(deviceId, { port: 1, mode: 'time', duration_s: 60 + index })),
    )
    const taken = responses.filter(({ status }) => status === 202)
    assert.equal(taken.length, 1)
    const { order_no } = (await taken[0]!.json()) as Accepted
    for (const response of responses)
      if (response !== taken[0])
        assert.equal((await refused(Promise.resolve(response), 'CONFLICT')).details['order_no'], order_no)
    assert.equal((await rowsOf(deviceId)).orders.length, 1)
  })

  test('what is stored in one transaction has an outcome each: taken, repeated, refused, or wrong', async () => {
    const ids = await Promise.all(Array.from({ length: 12 }, () => newDevice()))
    const body = { port: 1, mode: 'full' }
    const first = await accepted(charge(ids[0]!, body, { key: `mix-${ids[0]}` }))
    await accepted(charge(ids[1]!, body))
    // nothing runs there, and this one charges under a number that nobody gave: outcomes of other kinds beside them
    const [repeat, busy, idle, unknown, invalid, nul, ...taken] = await Promise.all([
      charge(ids[0]!, body, { key: `mix-${ids[0]}` }),
      charge(ids[1]!, body),
      stop(ids[2]!, { port: 1 }),
      charge('0fffffff', body),
      send(ids[3]!, 'locate', { locate_s: 'a' }),
      // no JSON of the database's: the whole transaction fails, and each is tried by itself
      ask('POST', `/devices/${ids[4]}/charge`, { ...body, tariff: { energy: { price_fen_per_kwh: 1 }, name: '\0' } }),
      ...ids.slice(5).map((id) => charge(id, body)),
    ])
    assert.equal((await accepted(Promise.resolve(repeat))).command_id, first.command_id)
    await refused(Promise.resolve(busy), 'CONFLICT')
    await refused(Promise.resolve(idle), 'FAILED_PRECONDITION')
    await refused(Promise.resolve(unknown), 'NOT_FOUND')
    await refused(Promise.resolve(invalid), 'INVALID_ARGUMENT')
    await refused(Promise.resolve(nul), 'INVALID_ARGUMENT')
    for (const [index, response] of taken.entries()) {
      const { command_id } = await accepted(Promise.resolve(response))
      const { queue, orders, audit } = await rowsOf(ids[5 + index]!)
      assert.deepEqual([queue.map((row) => row['command_id']), orders.length, audit.length], [[command_id], 1, 1])
    }
    for (const id of [ids[2]!, ids[3]!, ids[4]!]) {
      const { queue, orders, audit } = await rowsOf(id)
      assert.deepEqual([queue.length, orders.length, audit.length], [0, 0, 0])
    }
  })

  test('one key at the same moment for many devices: one gets it, the others are told', async () => {
    const ids = await Promise.all(Array.from({ length: 6 }, () => newDevice()))
    const responses = await Promise.all(
      ids.map((id) => charge(id, { port: 1, mode: 'full' }, { key: `same-${ids[0]}` })),
    )
    assert.deepEqual(responses.map(({ status }) => status).sort(), [202, 409, 409, 409, 409, 409])
    const rows = await Promise.all(ids.map(rowsOf))
    assert.equal(rows.flatMap(({ queue }) => queue).length, 1)
    assert.equal(rows.flatMap(({ orders }) => orders).length, 1)
  })

  test('two gateways on one database', async () => {
    const { sql } = database
    const gateways = [0, 1].map(
      () =>
        new CommandService({
          sql,
          log,
          desk,
          commandExpiryMs: 60_000,
          limits: { perKeyPerS: 1_000, perDevicePerS: 1_000, fleetPerS: 1_000 },
          now: Date.now,
        }),
    )
    const [one, other] = [await newDevice(), await newDevice()]
    const caller = { key: keys[0]!, requestId: 'r', remoteAddress: '-', idempotencyKey: `two-${one}` }
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, index) => gateways[index % 2]!.charge(caller, one, { port: 1, mode: 'full' })),
    )
    assert.equal(new Set(answers.map(({ command_id }) => command_id)).size, 1)
    // one key for two devices at the same moment: the index decides, and the loser is told
    for (let round = 0; round < 5; round++) {
      const keyed = { ...caller, idempotencyKey: `race-${one}-${round}` }
      const both = await Promise.allSettled(
        [one, other].map((id, index) => gateways[index]!.send(keyed, id, { name: 'reboot', params: {} })),
      )
      const lost = both.filter((result) => result.status === 'rejected')
      assert.equal(lost.length, 1)
      assert.equal((lost[0]!.reason as { code: string }).code, 'CONFLICT')
    }
    // one order_no for two devices
    const orders = await Promise.allSettled(
      [one, other].map((id, index) =>
        gateways[index]!.charge({ ...caller, idempotencyKey: undefined }, id, {
          port: 2,
          mode: 'full',
          order_no: `X${one}`,
        }),
      ),
    )
    assert.equal(orders.filter(({ status }) => status === 'fulfilled').length, 1)
  })

  test('the same key or order_no with another body', async () => {
    const [deviceId, other] = [await newDevice(), await newDevice()]
    const body = { port: 1, mode: 'time', duration_s: 60, order_no: `K${deviceId}` }
    const key = `key-${deviceId}`
    const first = await accepted(charge(deviceId, body, { key }))
    // other spelling, same request
    const { order_no, ...rest } = body
    assert.deepEqual(await accepted(charge(deviceId, { order_no, ...rest }, { key })), first)
    assert.deepEqual(await accepted(charge(deviceId, body)), first)
    await refused(charge(deviceId, { ...body, duration_s: 61 }, { key }), 'CONFLICT')
    await refused(charge(deviceId, { ...body, duration_s: 61 }), 'CONFLICT')
    await refused(charge(other, body, { key }), 'CONFLICT')
    await refused(charge(other, body), 'CONFLICT')
    await refused(send(deviceId, 'reboot', {}, { key }), 'CONFLICT')
    assert.equal((await rowsOf(other)).orders.length, 0)
    // what became of the first changes nothing about its answer
    await database.sql`update outbound_queue set status = 2, finished_at = now() where command_id = ${first.command_id}`
    await database.sql`update orders set state = 'charging' where order_no = ${body.order_no}`
    assert.deepEqual(await accepted(charge(deviceId, body, { key })), first)
  })

  test('another tenant may use the same key, and has no way to our devices or order numbers', async () => {
    const [ours, theirs] = [await newDevice(), await newDevice({ tenant: 'north' })]
    const body = { port: 1, mode: 'full', order_no: `T${ours}` }
    await accepted(charge(ours, body, { key: 'shared' }))
    const other = await accepted(charge(theirs, { port: 1, mode: 'full' }, { key: 'shared', secret: 'north-secret' }))
    assert.notEqual(other.order_no, body.order_no)
    await refused(charge(ours, { port: 2, mode: 'full' }, { secret: 'north-secret' }), 'NOT_FOUND')
    await refused(stop(ours, { port: 1 }, { secret: 'north-secret' }), 'NOT_FOUND')
    await refused(send(ours, 'reboot', {}, { secret: 'north-secret' }), 'NOT_FOUND')
    const taken = await refused(charge(theirs, { ...body, port: 2 }, { secret: 'north-secret' }), 'CONFLICT')
    assert.equal(taken.details['command_id'], undefined)
    // above all, nothing was cancelled
    assert.deepEqual(
      (await rowsOf(ours)).queue.map(({ status }) => status),
      [0],
    )
  })

  test('what is refused leaves nothing behind', async () => {
    const deviceId = await newDevice({ portCount: 2 })
    const bkv = await newDevice({ bkv: true })
    const cases: readonly [string, object, keyof typeof HTTP_ERRORS][] = [
      [deviceId, { port: 3, mode: 'full' }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 0, mode: 'full' }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'full', socket: 1 }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'time' }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'time', duration_s: 60, energy_wh: 5 }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'time', duration_s: 70_000 }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'hourly' }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'full', duration: 5 }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'full', order_no: 'seventeen-chars-x' }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'full', tariff: { per_day: 3 } }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'full', expires_in_s: 0 }, 'INVALID_ARGUMENT'],
      [deviceId, { port: 1, mode: 'budget', amount_fen: 100 }, 'FAILED_PRECONDITION'],
      [bkv, { port: 1, mode: 'full' }, 'INVALID_ARGUMENT'],
      [bkv, { port: 3, socket: 1, mode: 'full' }, 'INVALID_ARGUMENT'],
      [bkv, { port: 1, socket: 1, mode: 'full', max_power_w: 300 }, 'FAILED_PRECONDITION'],
      ['0000dead', { port: 1, mode: 'full' }, 'NOT_FOUND'],
      ['nonsense', { port: 1, mode: 'full' }, 'NOT_FOUND'],
    ]
    for (const [id, body, code] of cases) await refused(charge(id, body), code)
    await refused(charge(deviceId, { port: 1, mode: 'full' }, { secret: 'view-secret' }), 'FORBIDDEN')
    for (const id of [deviceId, bkv]) {
      const { queue, orders, audit } = await rowsOf(id)
      assert.deepEqual([queue.length, orders.length, audit.length], [0, 0, 0])
    }
  })

  test('a device whose tariff cannot be read, and one whose gateway has to watch the money', async () => {
    const bad = await newDevice({ tariff: { fen: 1 } })
    const { details } = await refused(charge(bad, { port: 1, mode: 'full' }), 'FAILED_PRECONDITION')
    assert.equal(details['reason'], 'tariff_invalid')
    const good = await newDevice({ tariff: { energy: { price_fen_per_kwh: 100 } } })
    await accepted(charge(good, { port: 1, mode: 'budget', amount_fen: 250 }))
    const { orders } = await rowsOf(good)
    assert.deepEqual(orders[0]!['request'].gateway_limits, { duration_s: null, amount_fen: 250 })
  })

  test('a card order in the way, and one that the port has outlived', async () => {
    const deviceId = await newDevice()
    const { sql } = database
    await sql`
      insert into orders (order_no, device_id, protocol, socket, port, order_key, wire_hex, state, origin)
      values (${`c${deviceId}`}, ${deviceId}, 'ap3000', 0, 1, 'aa', 'aa', 'charging', 'card')`
    const state = (text: string) => sql`
      insert into ports (device_id, socket, port, state, state_raw, wire_hex, at, epoch, seq)
      values (${deviceId}, 0, 1, ${text}, 1, 'aa', now(), 1, 1)
      on conflict (device_id, socket, port) do update set state = excluded.state`
    await state('charging')
    await refused(charge(deviceId, { port: 1, mode: 'full' }), 'CONFLICT')
    await state('idle')
    await accepted(charge(deviceId, { port: 1, mode: 'full' }))
  })

  test('nothing is accepted while the database is away', async () => {
    const deviceId = await newDevice()
    isDatabaseHere = false
    await refused(charge(deviceId, { port: 1, mode: 'full' }), 'UNAVAILABLE')
    isDatabaseHere = true
    assert.equal((await rowsOf(deviceId)).queue.length, 0)
  })
})

describe('stop', () => {
  async function chargingOrder(deviceId: string, wire: string, socket = 0, orderNo = `r-${deviceId}`) {
    const { sql } = database
    await sql`
      insert into orders (order_no, device_id, protocol, socket, port, order_key, wire_hex, state, origin)
      values (${orderNo}, ${deviceId}, 'ap3000', ${socket}, 1, ${wire}, ${wire}, 'charging', 'online')`
    return orderNo
  }

  test('names the running order, found in the database alone', async () => {
    const deviceId = await newDevice()
    connect(deviceId)
    const wire = '43445a32353037303130393330413031'
    const orderNo = await chargingOrder(deviceId, wire)
    const answer = await accepted(stop(deviceId, { port: 1 }))
    assert.deepEqual([answer.order_no, answer.state], [orderNo, 'queued'])
    const [given] = await mail(1)
    const fields = JSON.parse(given!.fields) as Fields
    assert.deepEqual([fields['command'], fields['orderHex'], fields['port']], [0, wire, 0])
    assert.deepEqual([given!.priority, given!.name], [0, 'startCharge'])
    const { queue, orders } = await rowsOf(deviceId)
    assert.deepEqual([queue[0]!['kind'], orders[0]!['state']], ['stop', 'charging'])
    assert.equal((await accepted(stop(deviceId, { port: 1, order_no: orderNo }))).order_no, orderNo)
    await mail(1)
  })

  test('a charge that no order is known of is stopped by the number the port reports', async () => {
    const deviceId = await newDevice()
    connect(deviceId)
    const wire = '00112233445566778899aabbccddeeff'
    await refused(stop(deviceId, { port: 1 }), 'FAILED_PRECONDITION')
    await database.sql`
      insert into ports (device_id, socket, port, state, state_raw, wire_hex, at, epoch, seq)
      values (${deviceId}, 0, 1, 'charging', 1, ${wire}, now(), 1, 1)`
    assert.equal((await accepted(stop(deviceId, { port: 1 }))).order_no, null)
    const [given] = await mail(1)
    assert.equal((JSON.parse(given!.fields) as Fields)['orderHex'], wire)
    await database.sql`update ports set state = 'idle' where device_id = ${deviceId}`
    const { details } = await refused(stop(deviceId, { port: 1 }), 'FAILED_PRECONDITION')
    assert.equal(details['reason'], 'not_charging')
  })

  test('an order of another port, one that has ended, one that never was', async () => {
    const deviceId = await newDevice()
    const orderNo = await chargingOrder(deviceId, 'aa'.repeat(16))
    const elsewhere = await refused(stop(deviceId, { port: 2, order_no: orderNo }), 'FAILED_PRECONDITION')
    assert.deepEqual([elsewhere.details['reason'], elsewhere.details['port']], ['other_port', 1])
    await database.sql`update orders set state = 'settled' where order_no = ${orderNo}`
    const over = await refused(stop(deviceId, { port: 1, order_no: orderNo }), 'FAILED_PRECONDITION')
    assert.equal(over.details['state'], 'settled')
    await refused(stop(deviceId, { port: 1, order_no: 'never' }), 'NOT_FOUND')
  })

  test('a start that still waits is cancelled instead of being overtaken', async () => {
    const deviceId = await newDevice()
    const start = await accepted(charge(deviceId, { port: 1, mode: 'full' }))
    const key = `stop-${deviceId}`
    const answer = await accepted(stop(deviceId, { port: 1 }, { key }))
    assert.deepEqual([answer.order_no, answer.state], [start.order_no, 'acked'])
    assert.equal((await get(zCommand, `/commands/${start.command_id}`)).state, 'cancelled')
    assert.equal((await get(zOrder, `/orders/${start.order_no}`)).state, 'cancelled')
    const stored = await get(zCommand, `/commands/${answer.command_id}`)
    assert.deepEqual([stored.state, stored.reason, stored.attempts], ['acked', 'start_cancelled', 0])
    assert.deepEqual(await accepted(stop(deviceId, { port: 1 }, { key })), answer)
    // the device comes back, and there is nothing for it
    connect(deviceId)
    await new Promise((resolve) => setTimeout(resolve, 50))
    await mail(0)
  })

  test('a start that has just left is followed by a stop', async () => {
    const deviceId = await newDevice()
    connect(deviceId)
    await accepted(charge(deviceId, { port: 1, mode: 'full' }))
    await mail(1)
    shardCancels = false
    assert.equal((await accepted(stop(deviceId, { port: 1 }))).state, 'queued')
    const [given] = await mail(1)
    assert.equal((JSON.parse(given!.fields) as Fields)['command'], 0)
  })

  test('BKV: by port, without a number', async () => {
    const deviceId = await newDevice({ bkv: true })
    connect(deviceId)
    const { order_no: orderNo } = await accepted(charge(deviceId, { port: 2, socket: 7, mode: 'time', duration_s: 60 }))
    const { orders } = await rowsOf(deviceId)
    assert.deepEqual([orders[0]!['order_key'], orders[0]!['wire_hex'], orders[0]!['socket']], [null, null, 7])
    await mail(1)
    await database.sql`update outbound_queue set status = 2, finished_at = now() where device_id = ${deviceId}`
    await database.sql`update orders set state = 'charging' where device_id = ${deviceId}`
    assert.equal((await accepted(stop(deviceId, { port: 2, socket: 7 }))).order_no, orderNo)
    const [given] = await mail(1)
    assert.equal((JSON.parse(given!.fields) as Fields)['on'], 0)
    await refused(stop(deviceId, { port: 2 }), 'INVALID_ARGUMENT')
  })
})

describe('other commands', () => {
  test('checked by the table, refused with the field', async () => {
    const deviceId = await newDevice()
    const bkv = await newDevice({ bkv: true })
    const field = async (id: string, name: string, params: object) =>
      (await refused(send(id, name, params), 'INVALID_ARGUMENT')).details['field']
    assert.equal(await field(deviceId, 'heartbeatAck', { result: 0 }), 'name')
    assert.equal(await field(deviceId, 'settlementAck', { result: 0 }), 'name')
    assert.equal(await field(deviceId, 'startCharge', { port: 1, command: 1 }), 'name')
    assert.equal(await field(deviceId, 'setParameters', { socket: 1 }), 'name')
    assert.equal(await field(deviceId, 'toString', {}), 'name')
    for (const name of ['endAck', 'endAckEcho02', 'cardOrder', 'control', 'feeControl', 'statusAck'])
      assert.equal(await field(bkv, name, {}), 'name')
    assert.equal(await field(deviceId, 'locate', {}), 'params.locate_s')
    assert.equal(await field(deviceId, 'locate', { locate_s: 256 }), 'params.locate_s')
    assert.equal(await field(deviceId, 'locate', { locate_s: '5' }), 'params.locate_s')
    assert.equal(await field(deviceId, 'locate', { locateS: 5 }), 'params.locateS')
    assert.equal(await field(deviceId, 'reboot', { now: true }), 'params.now')
    assert.equal(
      await field(deviceId, 'setCardKeys', { card_sector: 1, card_password_hex: 'ff' }),
      'params.card_password_hex',
    )
    assert.equal(await field(deviceId, 'stopCabinet', { port: 0, order_hex: '00'.repeat(16) }), 'params.port')
    assert.equal(await field(deviceId, 'setQrText', { main_screen: 1, qr_ascii: 'x'.repeat(72) }), 'params.qr_ascii')
    assert.equal(await field(deviceId, 'setFsk', { frequency_mhz: 433, slaves: ['xyz'] }), 'params.slaves')
    assert.equal(await field(bkv, 'queryParameters', {}), 'params.socket')
    assert.equal(
      await field(bkv, 'refreshNodes', { channel: 1, nodes: [{ socket: 300, mac_hex: '00' }] }),
      'params.socket',
    )
    assert.equal(await field(bkv, 'refreshNodes', { channel: 1, nodes: [null] }), 'params.nodes')
    assert.equal(await field(bkv, 'setVoice', { socket: 1, port: 3, buzzer: 0, voice: 0, windows: [] }), 'params.port')
    for (const id of [deviceId, bkv]) assert.equal((await rowsOf(id)).queue.length, 0)
  })

  test('a device that is away gets them in order when it returns', async () => {
    const deviceId = await newDevice()
    const names = ['setSilent', 'reboot', 'locate']
    const ids = []
    for (const [index, name] of names.entries()) {
      const params = [{ silent: 1 }, {}, { locate_s: 5 }][index]!
      ids.push((await accepted(send(deviceId, name, params))).command_id)
    }
    connect(deviceId)
    const given = await mail(3)
    assert.deepEqual(
      given.map(({ commandId }) => commandId),
      ids,
    )
    assert.deepEqual(
      (await rowsOf(deviceId)).queue.map(({ kind, order_no }) => [kind, order_no]),
      names.map(() => ['other', null]),
    )
  })

  test('keys of cards are shown to nobody, and reach the device', async () => {
    const deviceId = await newDevice()
    connect(deviceId)
    const params = { card_sector: 2, card_password_hex: 'a1a2a3a4a5a6', new_card_password_hex: 'b1b2b3b4b5b6' }
    const { command_id } = await accepted(send(deviceId, 'setCardKeys', params))
    const { params: shown } = await get(zCommand, `/commands/${command_id}`)
    assert.deepEqual(shown, { card_sector: 2, card_password_hex: '***', new_card_password_hex: '***' })
    const { audit } = await rowsOf(deviceId)
    assert.doesNotMatch(JSON.stringify(audit), /a1a2a3a4a5a6/)
    const [given] = await mail(1)
    assert.match(given!.fields, /a1a2a3a4a5a6/)
  })

  test('a change of the running charge names its order', async () => {
    const deviceId = await newDevice()
    const { order_no: orderNo } = await accepted(charge(deviceId, { port: 1, mode: 'full' }))
    await accepted(send(deviceId, 'changeCharge', { rate_mode: 0, port: 1, duration_s: 60 }))
    const { queue } = await rowsOf(deviceId)
    assert.deepEqual([queue[1]!['kind'], queue[1]!['order_no']], ['change', orderNo])
    assert.equal(queue[1]!['wire'].fields.port, 0)
  })
})

describe('looked up and cancelled', () => {
  test('shown, listed, cancelled while queued', async () => {
    const deviceId = await newDevice()
    const { command_id: id } = await accepted(send(deviceId, 'reboot'))
    const command = await get(zCommand, `/commands/${id}`)
    assert.deepEqual(
      [
        command.device_id,
        command.name,
        command.state,
        command.attempts,
        command.sent_at,
        command.reason,
        command.result,
      ],
      [deviceId, 'reboot', 'queued', 0, null, null, null],
    )
    await refused(ask('GET', `/commands/${id}`, undefined, { secret: 'north-secret' }), 'NOT_FOUND')
    await refused(ask('DELETE', `/commands/${id}`, undefined, { secret: 'north-secret' }), 'NOT_FOUND')
    await refused(ask('DELETE', `/commands/${id}`, undefined, { secret: 'view-secret' }), 'FORBIDDEN')
    await refused(ask('DELETE', '/commands/none'), 'NOT_FOUND')
    const gone = await ask('DELETE', `/commands/${id}`)
    assert.equal(gone.status, 200)
    const cancelled = zCommand.parse(await gone.json())
    assert.deepEqual([cancelled.state, cancelled.reason], ['cancelled', 'cancelled'])
    assert.notEqual(cancelled.finished_at, null)
    assert.equal((await refused(ask('DELETE', `/commands/${id}`), 'CONFLICT')).details['state'], 'cancelled')
    const audit = await database.sql`select action from audit_logs where target = ${id}`
    assert.deepEqual(
      audit.map(({ action }) => action as string),
      ['command.cancelled'],
    )
  })

  test('too late when the shard has sent it', async () => {
    const deviceId = await newDevice()
    connect(deviceId)
    const { command_id: id } = await accepted(send(deviceId, 'reboot'))
    await mail(1)
    desk.moved(id, 1)
    assert.equal((await refused(ask('DELETE', `/commands/${id}`), 'CONFLICT')).details['state'], 'sent')
    await database.sql`
      update outbound_queue set status = 4, finished_at = now(), attempts = 1, message_id = 77, sent_at = now(),
        result = ${database.sql.json({ reason: 'no_charger', raw: 1 })} where command_id = ${id}`
    const command = await get(zCommand, `/commands/${id}`)
    assert.deepEqual(
      [command.state, command.reason, command.message_id, command.result],
      ['refused', 'no_charger', 77, { reason: 'no_charger', raw: 1 }],
    )
  })

  test('pages by device and state', async () => {
    const deviceId = await newDevice()
    const ids = []
    for (let index = 0; index < 5; index++) ids.push((await accepted(send(deviceId, 'reboot'))).command_id)
    await ask('DELETE', `/commands/${ids[0]}`)
    const seen: string[] = []
    for (let cursor: string | null = ''; cursor !== null; ) {
      const page: { items: { command_id: string }[]; next_cursor: string | null } = await get(
        zPage(zCommand),
        `/commands?device_id=${deviceId}&state=queued&limit=2${cursor === '' ? '' : `&cursor=${cursor}`}`,
      )
      seen.push(...page.items.map(({ command_id }) => command_id))
      cursor = page.next_cursor
    }
    assert.deepEqual(seen, ids.slice(1).reverse())
    await refused(ask('GET', '/commands?state=lost'), 'INVALID_ARGUMENT')
    await refused(ask('GET', '/commands?cursor=abc'), 'INVALID_ARGUMENT')
  })
})

describe('bounds', () => {
  test('a device that is away keeps so many commands and no more', async () => {
    const deviceId = await newDevice()
    const responses = await Promise.all(Array.from({ length: PER_DEVICE_MAX + 10 }, () => send(deviceId, 'reboot')))
    const refusals = responses.filter(({ status }) => status === 429)
    assert.equal(responses.filter(({ status }) => status === 202).length, PER_DEVICE_MAX)
    assert.equal(refusals.length, 10)
    assert.equal(refusals[0]!.headers.get('retry-after'), '1')
    assert.equal((await rowsOf(deviceId)).queue.length, PER_DEVICE_MAX)
  })

  test('a stop has room and a turn where nothing else has', async () => {
    const deviceId = await newDevice()
    const { order_no: orderNo } = await accepted(charge(deviceId, { port: 1, mode: 'full' }))
    await database.sql`update orders set state = 'charging' where order_no = ${orderNo}`
    for (let index = 1; index < PER_DEVICE_MAX; index++) await accepted(send(deviceId, 'reboot'))
    await refused(send(deviceId, 'reboot'), 'TOO_MANY_REQUESTS')
    await accepted(stop(deviceId, { port: 1 }))
  })

  test('so many new commands per second and device; repeats are no new commands', async () => {
    const { sql } = database
    const commands = new CommandService({
      sql,
      log,
      desk,
      commandExpiryMs: 60_000,
      limits: { perKeyPerS: 20, perDevicePerS: 1, fleetPerS: 1_000 },
      now: Date.now,
    })
    const deviceId = await newDevice()
    const caller = { key: keys[0]!, requestId: 'r', remoteAddress: '-', idempotencyKey: undefined }
    const reboot = { name: 'reboot', params: {} }
    const keyed = { ...caller, idempotencyKey: `rate-${deviceId}` }
    const first = await commands.send(keyed, deviceId, reboot)
    await commands.send(caller, deviceId, reboot)
    await database.sql`insert into orders (order_no, device_id, protocol, socket, port, order_key, wire_hex, mode, state, origin)
      values (${`R${deviceId}`}, ${deviceId}, 'ap3000', 0, 1, ${'ab'.repeat(16)}, ${'ab'.repeat(16)}, 'full', 'charging', 'online')`
    await assert.rejects(commands.send(caller, deviceId, reboot), (error: unknown) => {
      const { code, details } = error as { code: string; details: Record<string, unknown> }
      assert.deepEqual([code, details['limit'], details['retry_after_s']], ['TOO_MANY_REQUESTS', 'device', 1])
      return true
    })
    assert.equal((await commands.stop(caller, deviceId, { port: 1 })).state, 'queued')
    for (let repeat = 0; repeat < 20; repeat++) assert.deepEqual(await commands.send(keyed, deviceId, reboot), first)
    // 23 requests, and a key gets 40 at once
    const rest = await Promise.allSettled(Array.from({ length: 40 }, () => commands.send(keyed, deviceId, reboot)))
    const limited = rest
      .filter((one) => one.status === 'rejected')
      .map(({ reason }) => (reason as { details: object }).details)
    assert.ok(limited.length >= 10, String(limited.length))
    assert.deepEqual(limited[0], { limit: 'key', retry_after_s: 1 })
  })
})

describe('a commit whose answer was lost', () => {
  test('the command is found in the table and gets its fate all the same', async () => {
    const { sql } = database
    const deviceId = await newDevice()
    const cut = Object.assign(new Error('cut'), { code: 'CONNECTION_CLOSED' })
    // commits, and then says that the connection broke
    const begin = async (work: Parameters<typeof sql.begin>[1]) => {
      await sql.begin(work as never)
      throw cut
    }
    const broken = new Proxy(sql, { get: (target, name) => (name === 'begin' ? begin : Reflect.get(target, name)) })
    const commands = new CommandService({
      sql: broken,
      log,
      desk,
      commandExpiryMs: 60_000,
      limits: { perKeyPerS: 100, perDevicePerS: 100, fleetPerS: 100 },
      now: Date.now,
    })
    const caller = { key: keys[0]!, requestId: 'r', remoteAddress: '-', idempotencyKey: 'lost' }
    connect(deviceId)
    await assert.rejects(commands.send(caller, deviceId, { name: 'reboot', params: {} }), cut)
    const [given] = await mail(1)
    const again = await accepted(send(deviceId, 'reboot', {}, { key: 'lost' }))
    assert.equal(again.command_id, given!.commandId)
  })
})

describe('bytes', () => {
  interface Vector {
    readonly name: string
    readonly hex: string
  }
  const vectors = new Map(
    ['ap3000', 'bkv'].flatMap((protocol) => {
      const path = new URL(`../../protocols/${protocol}/corpus/vectors.json`, import.meta.url)
      const json = JSON.parse(readFileSync(path, 'utf8')) as Vector[] | { vectors: Vector[] }
      return (Array.isArray(json) ? json : json.vectors).map(
        ({ name, hex }) => [`${protocol} ${name}` as string, hex] as const,
      )
    }),
  )
  /** The next mail as the frame that the shard would send under this message id. */
  async function frame(messageId: number): Promise<string> {
    const [given] = await mail(1)
    const key = given!.deviceKey
    const device = await deviceOf(key)
    const { protocol, deviceNo } = parseAnyDeviceId(device)!
    const downlink = protocol.downlinkByName.get(given!.name)!
    const data = downlink.encode(JSON.parse(given!.fields) as Fields)
    return Buffer.from(protocol.encodeFrame('downlink', downlink, deviceNo, messageId, data)).toString('hex')
  }
  async function deviceOf(key: number): Promise<string> {
    const rows = await database.sql<{ device_id: string }[]>`select device_id from devices`
    return rows
      .map(({ device_id }) => device_id)
      .find((id) => {
        const { protocol, deviceNo } = parseAnyDeviceId(id)!
        return deviceKey(protocol, deviceNo) === key
      })!
  }
  const connected = new Set<string>()
  async function known(id: string): Promise<string> {
    await newDevice({ id })
    if (!connected.has(id)) connect(id)
    connected.add(id)
    return id
  }

  const COMMANDS: readonly [vector: string, device: string, messageId: number, name: string, params: object][] = [
    ['ap3000 85-doc-max-time-power', '04ab373b', 2, 'setLimits', { max_charge_s: 36_000, overload_power_dw: 20_000 }],
    [
      'ap3000 34-doc-set-server',
      '76be0870',
      0,
      'setServer',
      { server_port: 8888, module_type: 3, socket_b: 1, address_ascii: 'baidu.com' },
    ],
    ['ap3000 33-syn-clear-upgrade', '09d62684', 130, 'clearSlaveUpgrade', {}],
    ['ap3000 fd-syn', '04ceaa40', 362, 'placeholderFd', { function: 1, registers: [1, 2, 3, 4] }],
    ['bkv 1000-1011-syn-set-one', '82241218000382', 0x1f6f7900, 'setParameters', { socket: 1, full_power_dw: 50 }],
    ['bkv 1000-1012-doc-query', '82220420000552', 0x1f6ac867, 'queryParameters', { socket: 2 }],
    ['bkv 0015-1d-doc-query', '86004459453005', 0x001c91ee, 'queryStatus', { socket: 1 }],
    ['bkv 0005-09-doc-add', '86004459453005', 0x001c979c, 'addNode', { socket: 3, mac_hex: '350030701247' }],
    [
      'bkv 0005-08-cap-refresh',
      '82241218000382',
      0x6921c2b8,
      'refreshNodes',
      { channel: 1, nodes: [{ socket: 1, mac_hex: '854121800889' }] },
    ],
    [
      'bkv 0015-1b-doc-voice',
      '82220420000552',
      0x1f6a921f,
      'setVoice',
      { socket: 1, port: 2, buzzer: 0, voice: 0, windows: [{ start: '00:00', end: '23:59' }] },
    ],
    [
      'bkv 0007-doc-ota',
      '82210806000413',
      0x15c187ad,
      'startOta',
      { target: 1, ftp_ip: '101.37.145.162', ftp_port: 21, file_name_ascii: 'GV.8r12.OTA' },
    ],
  ]
  for (const [vector, device, messageId, name, params] of COMMANDS)
    test(vector, async () => {
      await known(device)
      await accepted(send(device, name, params))
      assert.equal(await frame(messageId), vectors.get(vector))
    })

  const BKV = '82241218000382'
  const STARTS: readonly [vector: string, device: string, messageId: number, body: object][] = [
    [
      'bkv 0015-07-test-control-corrected',
      '86004459453005',
      0x001c9a51,
      { port: 1, socket: 2, mode: 'time', duration_s: 14_400 },
    ],
    ['bkv 0015-07-syn-start-energy', BKV, 0x6921c2d1, { port: 2, socket: 1, mode: 'energy', energy_wh: 1_000 }],
    [
      'bkv 0015-17-syn-start-one-tier',
      BKV,
      0x282be000,
      {
        port: 2,
        socket: 2,
        mode: 'power',
        amount_fen: 500,
        tariff: { power: { tiers: [{ max_power_w: 500, price_fen: 100, minutes: 60 }] } },
      },
    ],
  ]
  for (const [vector, device, messageId, body] of STARTS)
    test(vector, async () => {
      await known(device)
      await accepted(charge(device, body))
      const expected = vectors.get(vector)!
      const made = await frame(messageId)
      if (vector !== 'bkv 0015-17-syn-start-one-tier') return assert.equal(made, expected)
      // socket 2 here, because port 2 of socket 1 charges since the test before: one more in one byte, one more in the sum
      assert.equal(made, expected.replace('0c170101', '0c170201').replace(/14fcee$/, '15fcee'))
    })

  test('AP3000 start by time: the 37 bytes of a live server, no balance to speak of', async () => {
    const device = await known('04a228cd')
    await accepted(charge(device, { port: 1, mode: 'time', duration_s: 60, order_no: 'ORDER_2025061909' }))
    // balance f203 becomes 0000: the sum is less by f2 + 03
    const expected = vectors
      .get('ap3000 82-test-start-37-bytes')!
      .replace('8200f203', '82000000')
      .replace(/4908$/, '5407')
    assert.equal(await frame(2), expected)
  })

  test('BKV stop', async () => {
    const device = await known(BKV)
    await database.sql`
      insert into ports (device_id, socket, port, state, state_raw, wire_hex, at, epoch, seq)
      values (${device}, 1, 1, 'charging', 144, '0009', now(), 1, 1)`
    await accepted(stop(device, { port: 1, socket: 1 }))
    assert.equal(await frame(0x6921c2d0), vectors.get('bkv 0015-07-syn-stop'))
  })
})

test('the OpenAPI document names every command with its parameters', async () => {
  const document = (await (await fetch(`http://127.0.0.1:${admin.port}/openapi.json`)).json()) as {
    components: { schemas: Record<string, { anyOf?: { properties: { name: { const: string }; params: object } }[] }> }
    paths: Record<string, { post?: { responses: object; parameters: { name: string }[] } }>
  }
  const { anyOf } = document.components.schemas['postDevicesDeviceIdCommandsBody']!
  const byName = new Map(anyOf!.map(({ properties }) => [properties.name.const, properties.params]))
  assert.deepEqual(byName.get('locate'), {
    type: 'object',
    properties: { locate_s: { type: 'integer', minimum: 0, maximum: 255, description: 's' } },
    required: ['locate_s'],
    additionalProperties: false,
  })
  assert.ok(byName.has('queryStatus') && !byName.has('startCharge') && !byName.has('endAckEcho02'))
  const { post } = document.paths['/api/v1/devices/{device_id}/charge']!
  assert.ok('202' in post!.responses && !('200' in post!.responses))
  assert.ok(post!.parameters.some(({ name }) => name === 'Idempotency-Key'))
})

test('a limit that the gateway keeps stops its order, also one that is older than its device’s move', async () => {
  const { sql } = database
  const limits = new Limits({ sql, log, commands, everyMs: 5_000 })
  for (const isMoved of [false, true]) {
    const deviceId = await newDevice({ tariff: { energy: { price_fen_per_kwh: 100 } } })
    const { order_no: orderNo } = await accepted(charge(deviceId, { port: 1, mode: 'budget', amount_fen: 50 }))
    await sql`
      update orders set state = 'charging', started_at = now() - interval '1 hour', duration_s = 3600, energy_wh = 5000
      where order_no = ${orderNo}`
    if (isMoved) await sql`update devices set tenant_id = 'north' where device_id = ${deviceId}`
    assert.deepEqual(await limits.look(), [orderNo])
    const [stop] = await sql`
      select kind, order_no, tenant_id from outbound_queue where device_id = ${deviceId} and kind = 'stop'`
    assert.deepEqual(stop, { kind: 'stop', order_no: orderNo, tenant_id: 'default' })
    await sql`update orders set state = 'settled' where order_no = ${orderNo}`
  }
})

test('a charge that a device began for a card ends when the card is used up, and nothing more starts with it', async () => {
  const { sql } = database
  const limits = new Limits({ sql, log, commands, everyMs: 5_000 })
  const deviceId = await newDevice({ tariff: { energy: { price_fen_per_kwh: 100 } }, bkv: true })
  const cardId = 'c0ffee000001'
  const card = { deviceId, cardId, socket: 3, port: 2 }
  await sql`insert into cards (card_id, balance_fen) values (${cardId}, 100)`
  const orderNos = [1, 2].map((port) => `${deviceId}-3-${port}`)
  for (const [index, orderNo] of orderNos.entries())
    await sql`insert into orders (order_no, device_id, protocol, socket, port, order_key, wire_hex, mode, state, origin, card_id,
        started_at, duration_s, energy_wh)
      values (${orderNo}, ${deviceId}, 'bkv', 3, ${index + 1}, ${orderNo}, '001a', 'full', 'charging', 'card', ${cardId},
        now() - interval '1 hour', 3600, 500)`
  // 50 fen each: as much as there is may be used
  assert.deepEqual(await limits.look(), [])
  await sql`update orders set state = 'settled' where order_no = ${orderNos[1]!}`
  assert.equal((await answerCard(sql, card, Date.now())).status, 'ok')
  await sql`update orders set state = 'charging' where order_no = ${orderNos[1]!}`
  assert.equal((await answerCard(sql, { ...card, socket: 4 }, Date.now())).status, 'insufficient')
  await sql`update orders set energy_wh = 510 where order_no = ${orderNos[1]!}`
  assert.deepEqual((await limits.look()).toSorted(), orderNos)
  await sql`update cards set rate_mode = 1 where card_id = ${cardId}`
  assert.deepEqual(await limits.look(), [])
  await sql`update orders set state = 'settled' where device_id = ${deviceId}`
})

test('an order that was begun before its device came to this tenant is none of its own', async () => {
  const { sql } = database
  const deviceId = await newDevice({ portCount: 2 })
  const caller = (key: (typeof keys)[number]) => ({
    key,
    requestId: 'r',
    remoteAddress: '127.0.0.1',
    idempotencyKey: undefined,
  })
  const [own, , north] = keys
  const { order_no: orderNo } = await commands.charge(caller(own!), deviceId, { port: 1, mode: 'full' })
  await sql`update orders set state = 'charging' where order_no = ${orderNo}`
  await sql`update devices set tenant_id = 'north' where device_id = ${deviceId}`
  await assert.rejects(commands.charge(caller(north!), deviceId, { port: 1, mode: 'full' }), {
    code: 'CONFLICT',
    details: {},
  })
  const isUnknown = { code: 'FAILED_PRECONDITION', details: { reason: 'not_charging' } }
  await assert.rejects(commands.stop(caller(north!), deviceId, { port: 1 }), isUnknown)
  await assert.rejects(commands.stop(caller(north!), deviceId, { port: 1, order_no: orderNo! }), { code: 'NOT_FOUND' })
})

test('a command names no port that the device does not have', async () => {
  const deviceId = await newDevice({ portCount: 2 })
  const caller = { key: keys[0]!, requestId: 'r', remoteAddress: '127.0.0.1', idempotencyKey: undefined }
  const params = { rate_mode: 0, port: 3, duration_s: 60 }
  await assert.rejects(commands.send(caller, deviceId, { name: 'changeCharge', params }), { code: 'INVALID_ARGUMENT' })
})

describe('a swipe', () => {
  const TARIFF = { energy: { price_fen_per_kwh: 120 } }
  let swipes = 0
  const swipe = (deviceId: string, cardId: string, more: { messageId?: number; isMonthly?: boolean } = {}) => {
    const key = `swipe-${deviceId}-${cardId}-${more.messageId ?? ++swipes}`
    const caller = { key: keys[0]!, requestId: key, remoteAddress: 'device', idempotencyKey: key }
    const card = {
      cardId,
      rateMode: more.isMonthly === true ? ('monthly' as const) : ('time' as const),
      expiresMs: null,
    }
    return commands.chargeByCard(caller, deviceId, { port: 1, socket: 0 }, card)
  }
  let cards = 0
  const newCard = async (balanceFen: number) => {
    const cardId = `c0${(++cards).toString(16).padStart(6, '0')}`
    await database.sql`insert into cards (card_id, balance_fen) values (${cardId}, ${balanceFen})`
    return cardId
  }
  const promisedFen = async (cardId: string) =>
    (await database.sql`select request from orders where card_id = ${cardId} order by created_at`).map(
      (row) => row['request'].amount_fen,
    )

  test('at many devices at once: what the card has is promised once', async () => {
    const cardId = await newCard(500)
    const piles = await Promise.all(Array.from({ length: 6 }, () => newDevice({ tariff: TARIFF })))
    const answers = await Promise.allSettled(piles.map((deviceId) => swipe(deviceId, cardId)))
    assert.equal(answers.filter(({ status }) => status === 'fulfilled').length, 1)
    for (const answer of answers)
      if (answer.status === 'rejected')
        assert.deepEqual([answer.reason.code, answer.reason.details.reason], ['FAILED_PRECONDITION', 'card_promised'])
    assert.deepEqual(await promisedFen(cardId), [500])
  })

  test('hears what can be: nothing left, no such port, a busy one; the same swipe hears the same again', async () => {
    const { sql } = database
    const [cardId, otherId] = [await newCard(500), await newCard(500)]
    const piles = [await newDevice({ tariff: TARIFF, portCount: 2 }), await newDevice({ tariff: TARIFF })]
    const heard = async (deviceId: string, card: string, port: number) =>
      (await answerCard(sql, { deviceId, cardId: card, socket: 0, port }, Date.now())).status
    assert.equal(await heard(piles[0]!, cardId, 1), 'ok')
    await swipe(piles[0]!, cardId)
    assert.deepEqual(
      [
        await heard(piles[0]!, cardId, 1),
        await heard(piles[0]!, otherId, 1),
        await heard(piles[0]!, otherId, 2),
        await heard(piles[0]!, otherId, 3),
        await heard(piles[1]!, cardId, 1),
        await heard(piles[1]!, cardId, 0),
      ],
      ['ok', 'port_unusable', 'ok', 'port_unusable', 'insufficient', 'ok'],
    )
  })

  test('BKV: a port that a gateway order or another card’s charge has is refused, its neighbours are not', async () => {
    const { sql } = database
    const [cardId, otherId] = [await newCard(500), await newCard(500)]
    const deviceId = await newDevice({ bkv: true, tariff: TARIFF })
    const heard = async (card: string, socket: number, port: number) =>
      (await answerCard(sql, { deviceId, cardId: card, socket, port }, Date.now())).status
    await accepted(charge(deviceId, { port: 1, socket: 7, mode: 'full' }))
    for (const state of ['pending', 'starting', 'charging', 'stopping']) {
      await sql`update orders set state = ${state} where device_id = ${deviceId}`
      assert.deepEqual(
        [await heard(cardId, 7, 1), await heard(cardId, 7, 2), await heard(cardId, 8, 1), await heard(cardId, 7, 0)],
        ['port_unusable', 'ok', 'ok', 'ok'],
        state,
      )
    }
    // what the device began by a card may have ended without our hearing of it: then its port says so
    await sql`update orders set origin = 'card', command_id = null, card_id = ${otherId}, state = 'charging'
      where device_id = ${deviceId}`
    await sql`insert into ports (device_id, socket, port, state, state_raw, at, epoch, seq)
      values (${deviceId}, 7, 1, 'charging', 144, now(), 1, 1)`
    assert.deepEqual([await heard(cardId, 7, 1), await heard(otherId, 7, 1)], ['port_unusable', 'ok'])
    await sql`update ports set state = 'idle' where device_id = ${deviceId}`
    assert.equal(await heard(cardId, 7, 1), 'ok')
  })

  test('a start whose result is missing may have worked: its promise stands until the port says otherwise', async () => {
    const { sql } = database
    const cardId = await newCard(500)
    const one = await newDevice({ tariff: TARIFF })
    const other = await newDevice({ tariff: TARIFF })
    const { order_no: orderNo } = await swipe(one, cardId)
    const fail = (reason: string, age: string) => sql`
      update orders set state = 'failed', fail_reason = ${reason}, created_at = now() - ${age}::interval
      where order_no = ${orderNo}`
    const isPromised = { code: 'FAILED_PRECONDITION' }
    await fail('no_result', '5 minutes')
    await assert.rejects(swipe(other, cardId), isPromised)
    await fail('no_result', '11 minutes')
    await sql`insert into ports (device_id, socket, port, state, state_raw, at, epoch, seq)
      values (${one}, 0, 1, 'charging', 1, now(), 1, 1)`
    await assert.rejects(swipe(other, cardId), isPromised)
    await sql`update ports set state = 'idle' where device_id = ${one}`
    await swipe(other, cardId)
    assert.deepEqual(await promisedFen(cardId), [500, 500])
  })

  test('a refused start promises nothing; the same swipe again is the same order; a month has no balance to watch', async () => {
    const { sql } = database
    const cardId = await newCard(500)
    const pile = await newDevice({ tariff: TARIFF })
    const first = await swipe(pile, cardId, { messageId: 900_001 })
    assert.deepEqual(await swipe(pile, cardId, { messageId: 900_001 }), first)
    await sql`update orders set state = 'failed', fail_reason = 'port_faulty' where order_no = ${first.order_no}`
    const next = await swipe(pile, cardId)
    assert.notEqual(next.order_no, first.order_no)
    const month = await newDevice({ tariff: TARIFF })
    await swipe(month, cardId, { isMonthly: true })
    assert.deepEqual(await promisedFen(cardId), [500, 500, undefined])
  })
})
