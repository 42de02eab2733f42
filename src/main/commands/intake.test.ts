/**
 * Claim: requests wait before their transaction while too many commands are on their way to devices that are there; they
 * go as soon as those have left, and after HOLD_MS_MAX whatever happens. Tried on the real schema; the desk is a number,
 * and so is the clock.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseApiKeys } from '../../config/api-keys.ts'
import { HttpError } from '../../errors/errors.ts'
import { parseAnyDeviceId } from '../../protocols/index.ts'
import { PRIORITY } from '../../session/command-lane.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import type { KnownMessageId, StoredCommand } from '../command-desk.ts'
import { HOLD_MS_MAX, Intake, type IntakeRequest, type Planned, ROOM_MIN, UNDER_WAY_MAX } from './intake.ts'

const DEVICE_ID = '04000001'
const target = { deviceId: DEVICE_ID, ...parseAnyDeviceId(DEVICE_ID)! }
const [key] = parseApiKeys('op:op-secret:operator').keys.values()
let database: TestDatabase
let intake: Intake
before(async () => {
  database = await openTestDatabase()
  const { sql } = database
  await sql`insert into devices (device_id) values (${DEVICE_ID})`
  await sql`insert into outbound_queue ${sql({
    command_id: 'earlier',
    device_id: DEVICE_ID,
    name: 'locate',
    expires_at: new Date(),
    message_id: 41,
    sent_at: new Date(),
    attempts: 1,
    status: 2,
    finished_at: new Date(),
  })}`
  intake = new Intake({
    sql,
    desk,
    takeDeviceToken: () => {},
    onDoubt: () => {},
    now: Date.now,
    nowMonoMs: () => nowMonoMs,
  })
})
after(() => database.close())

class Desk {
  dispatchingCount = 0
  epoch: number | undefined = 3
  readonly accepted: [StoredCommand, KnownMessageId | undefined][] = []
  epochOf = () => this.epoch
  admit = () => {}
  newCommandId = () => `c${this.accepted.length}-${Math.random()}`
  accept = (command: StoredCommand, known?: KnownMessageId) => void this.accepted.push([command, known])
}

const desk = new Desk()
let nowMonoMs = 1_000_000
const planned: Planned = {
  kind: 'other',
  name: 'locate',
  fields: { locateS: 5 },
  params: {},
  priority: PRIORITY.background,
  expiresMs: Date.now() + 60_000,
  wireHex: '',
  socket: 0,
  port: 0,
  orderNo: null,
}
const request = (): IntakeRequest => ({
  caller: { key: key!, requestId: 'r', remoteAddress: '127.0.0.1', idempotencyKey: undefined },
  target,
  route: 'command',
  digest: '',
  orderNo: undefined,
  about: undefined,
  plan: async () => planned,
})

test('what the table knew goes with a command of a device that is there, and only then', async () => {
  await intake.store(request())
  desk.epoch = undefined
  await intake.store(request())
  desk.epoch = 3
  assert.deepEqual(
    desk.accepted.map(([, known]) => known),
    [{ epoch: 3, messageId: 41 }, undefined],
  )
})

test('held while too many are on their way, until they have left', async () => {
  desk.dispatchingCount = UNDER_WAY_MAX - ROOM_MIN + 1
  let isStored = false
  const stored = intake.store(request()).then(() => {
    isStored = true
  })
  await sleep(60)
  assert.equal(isStored, false)
  desk.dispatchingCount--
  await stored
  desk.dispatchingCount = 0
})

test('what is in transactions counts as well; those that wait follow, each once', async () => {
  const count = 3 * UNDER_WAY_MAX
  const ids = Array.from({ length: count }, (_, index) => (0x05000000 + index).toString(16).padStart(8, '0'))
  await database.sql`insert into devices (device_id) select unnest(${ids}::text[])`
  const acceptedBefore = desk.accepted.length
  let plannedCount = 0
  let most = 0
  const plan = async () => {
    plannedCount++
    most = Math.max(most, plannedCount - (desk.accepted.length - acceptedBefore))
    return planned
  }
  await Promise.all(
    ids.map((deviceId) => intake.store({ ...request(), target: { deviceId, ...parseAnyDeviceId(deviceId)! }, plan })),
  )
  assert.ok(most > ROOM_MIN && most <= UNDER_WAY_MAX, `${most} at once`)
  const stored = desk.accepted.slice(acceptedBefore).map(([{ deviceId }]) => deviceId)
  assert.deepEqual(stored.sort(), ids)
})

test('held for so long and no longer, each from its own beginning, and then some at a time', async () => {
  const count = 3 * ROOM_MIN
  const ids = Array.from({ length: count }, (_, index) => (0x06000000 + index).toString(16).padStart(8, '0'))
  await database.sql`insert into devices (device_id) select unnest(${ids}::text[])`
  desk.dispatchingCount = UNDER_WAY_MAX
  const acceptedBefore = desk.accepted.length
  const stored = () => desk.accepted.length - acceptedBefore
  const store = (deviceId: string) =>
    intake.store({ ...request(), target: { deviceId, ...parseAnyDeviceId(deviceId)! } })
  const early = ids.slice(0, ROOM_MIN + 1).map(store)
  nowMonoMs += HOLD_MS_MAX - 1
  await sleep(60)
  assert.equal(stored(), 0)
  const late = ids.slice(ROOM_MIN + 1).map(store)
  nowMonoMs += 1
  await Promise.all(early)
  await sleep(60)
  // the last of the early ones took a transaction of its own, filled up with late ones
  assert.equal(stored(), 2 * ROOM_MIN)
  nowMonoMs += HOLD_MS_MAX
  await Promise.all(late)
  assert.equal(stored(), count)
  desk.dispatchingCount = 0
})

test('what expired before it could be stored is not stored', async () => {
  const count = async () => (await database.sql`select from outbound_queue`).count
  const before = await count()
  const late = { ...request(), plan: async () => ({ ...planned, expiresMs: Date.now() - 1 }) }
  await assert.rejects(intake.store(late), { code: 'TIMEOUT' })
  assert.equal(await count(), before)
})

test('a refusal is heard at once when nothing holds', async () => {
  const refused: IntakeRequest = {
    ...request(),
    plan: () => Promise.reject(new HttpError('FAILED_PRECONDITION', 'no')),
  }
  await assert.rejects(intake.store(refused), { code: 'FAILED_PRECONDITION' })
})
