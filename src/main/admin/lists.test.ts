/**
 * Claim: timeline, frames of both sources, firmware and model profiles are answered page by page without gap or repeat,
 * also where many entries share their moment, the clock goes on and segments are deleted between two pages; a cursor that
 * was made up is refused and leads nowhere else; a window that ends before it begins is refused; a body that may be `{}`
 * may be left out. Tried over HTTP on a real PostgreSQL and real segments.
 */
import assert from 'node:assert/strict'
import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import * as z from 'zod'
import { deviceKey } from '../../codec/protocol.ts'
import { parseApiKeys } from '../../config/api-keys.ts'
import { HTTP_ERRORS } from '../../errors/errors.ts'
import { MODEL_PROFILES, PROTOCOLS } from '../../protocols/index.ts'
import { Recorder } from '../../recording/recorder.ts'
import { FLAG } from '../../recording/segment-layout.ts'
import { openTestDatabase, type TestDatabase } from '../../testing/database.ts'
import { quietAdmin } from '../../testing/quiet-admin.ts'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { type Admin, createAdmin } from './admin.ts'
import { allowlistRoutes } from './routes/allowlist.ts'
import { evidenceRoutes } from './routes/evidence.ts'
import { jobRoutes } from './routes/jobs.ts'
import { encodeCursor, zError, zPage } from './shapes.ts'

const NOW = Date.UTC(2026, 0, 31, 12)
const { keys } = parseApiKeys('root:root-secret:admin,north:north-secret:admin:north')
const ap3000 = PROTOCOLS.find(({ name }) => name === 'ap3000')!
const frames = temporaryDirectory()
let nowMs = NOW
let database: TestDatabase
let admin: Admin

before(async () => {
  database = await openTestDatabase()
  const { sql } = database
  admin = createAdmin({
    ...quietAdmin(sql, keys),
    protocolOf: () => 'ap3000',
    now: () => nowMs,
    moreRoutes: [
      ...evidenceRoutes({ sql, framesDirectory: frames, now: () => nowMs }),
      // only asked for lists
      ...jobRoutes({ sql, jobs: {} as never }),
      ...allowlistRoutes({ sql, isDeviceId: () => true, changed: async () => {} }),
    ],
  })
  await admin.listen()
  await sql`insert into tenants (tenant_id, name) values ('north', 'North')`
  await sql`
    insert into devices (device_id, tenant_id, protocol)
    values ('04500077', 'default', 'ap3000'), ('04500078', 'default', 'ap3000'), ('04500079', 'default', 'ap3000'),
      ('0450007a', 'default', 'ap3000')`
})
after(async () => {
  await admin.close()
  await database.close()
})

async function ask(method: string, path: string, body?: unknown, secret = 'root-secret'): Promise<Response> {
  return await fetch(`http://127.0.0.1:${admin.port}${path.startsWith('/openapi') ? '' : '/api/v1'}${path}`, {
    method,
    headers: { Authorization: `Bearer ${secret}` },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
}
async function refused(response: Response, code: keyof typeof HTTP_ERRORS, message?: RegExp): Promise<void> {
  const { error } = zError.parse(await response.json())
  assert.equal(error.code, code, error.message)
  assert.equal(response.status, HTTP_ERRORS[code])
  if (message !== undefined) assert.match(error.message, message)
}
const zItem = z.looseObject({})
async function page(path: string): Promise<{ items: Record<string, unknown>[]; next_cursor: string | null }> {
  const response = await ask('GET', path)
  const json: unknown = await response.json()
  assert.equal(response.status, 200, JSON.stringify(json))
  return zPage(zItem).parse(json)
}
/** @param between what happens before each further page */
async function pages(path: string, between = () => {}): Promise<Record<string, unknown>[][]> {
  const all: Record<string, unknown>[][] = []
  for (let cursor: string | null = ''; cursor !== null; ) {
    const one = await page(`${path}${path.includes('?') ? '&' : '?'}${cursor === '' ? '' : `cursor=${cursor}`}`)
    all.push(one.items)
    cursor = one.next_cursor
    assert.ok(all.length < 1_000)
    between()
  }
  return all
}
const rfc = (ms: number) => new Date(ms).toISOString()
const forged = (...values: unknown[]) => Buffer.from(JSON.stringify(values)).toString('base64url')

describe('timeline', () => {
  const path = '/devices/04500077/timeline'
  before(async () => {
    const { sql } = database
    // nine moments a microsecond apart, each with two of every kind
    const moment = sql`timestamptz '2026-01-31T11:00:00.000001Z' + i / 2 * interval '1 microsecond'`
    await sql`
      insert into orders (order_no, device_id, protocol, socket, port, order_key, state, origin, started_at)
      select 'o' || i, '04500077', 'ap3000', 0, 1, i::text, 'settled', 'card', ${moment} from generate_series(0, 17) as i`
    await sql`
      insert into outbound_queue (command_id, device_id, name, created_at, expires_at)
      select 'Ä_' || i, '04500077', 'c' || i, ${moment}, now() from generate_series(0, 17) as i`
    await sql`
      insert into events (event_id, event_type, tenant_id, device_id, epoch, at, data)
      select 'e' || i, 'e' || i, 'default', '04500077', 1, ${moment}, '{}' from generate_series(0, 17) as i`
    // opened and closed in the same moment
    await sql`
      insert into sessions (device_id, epoch, protocol, shard, connection_id, remote_address, opened_at, closed_at)
      select '04500077', 9007199254740900 + i, 'ap3000', 0, 1, 's' || i, ${moment}, ${moment} from generate_series(0, 17) as i`
    await sql`
      insert into cmd_log (device_id, at, epoch, seq, is_uplink, command, code, message_id, frame)
      select '04500077', ${moment}, 7, i, true, 'f' || i, 2, 1, '' from generate_series(0, 17) as i`
  })
  const count = 18 * 6
  const nameOf = ({ kind, what, details }: Record<string, unknown>) => JSON.stringify([kind, what, details])

  test('pages have every entry once, each older than the one before; the first is what is told without cursors', async () => {
    const whole = await page(`${path}?limit=500`)
    assert.equal(whole.next_cursor, null)
    const expected = whole.items.map(nameOf)
    assert.equal(new Set(expected).size, count)
    for (const limit of [1, 2, 3, 50, count, 500]) {
      const shown = await pages(`${path}?limit=${limit}`)
      assert.deepEqual(shown.toReversed().flat().map(nameOf), expected)
      assert.equal(shown.length, Math.ceil(count / limit))
      assert.ok(shown.slice(0, -1).every(({ length }) => length === limit))
    }
    // of one session: opened, then closed
    for (const epoch of [9007199254740900, 9007199254740917]) {
      const of = whole.items.filter(({ details }) => (details as { epoch?: number }).epoch === epoch)
      assert.deepEqual(
        of.map(({ what }) => what),
        ['opened', 'closed'],
      )
    }
  })

  test('within a window that was given, and within that of the first page while the clock goes on', async () => {
    const window = `from=${rfc(NOW - 3_600_000)}&to=${rfc(NOW)}`
    for (const limit of [1, 7]) assert.equal((await pages(`${path}?${window}&limit=${limit}`)).flat().length, count)
    assert.deepEqual(await pages(`${path}?from=${rfc(NOW - 3_599_999)}&to=${rfc(NOW)}&limit=1`), [[]])
    // what happened 23 hours ago is told to the end
    nowMs = NOW + 22 * 3_600_000
    const shown = await pages(`${path}?limit=10`, () => {
      nowMs += 3_600_000
    })
    assert.equal(shown.flat().length, count)
    nowMs = NOW
  })

  test('a cursor that was made up is refused, and leads no further than the own entries', async () => {
    for (const cursor of [
      'x',
      'bnVsbA',
      forged(),
      forged('timeline'),
      forged('timeline', 'yesterday', 'x', '0'),
      forged('timeline', '2026-01-31T11:00:00+00:00', '\0', '0'),
      forged('timeline', '2026-01-31T11:00:00+00:00', 'x', '-1'),
      forged('timeline', '2026-01-31T11:00:00+00:00', 'x', 0),
      forged('orders created_at', '2026-01-31T11:00:00+00:00', 'x'),
    ])
      await refused(await ask('GET', `${path}?cursor=${cursor}`), 'INVALID_ARGUMENT')
    const cursor = encodeCursor('timeline', ['2026-02-01T00:00:00+00:00', '', '0'])
    await refused(await ask('GET', `${path}?cursor=${cursor}`, undefined, 'north-secret'), 'NOT_FOUND')
    await database.sql`update devices set tenant_id = 'north', tenant_since = ${new Date(NOW)} where device_id = '04500077'`
    const theirs = await ask('GET', `${path}?cursor=${cursor}`, undefined, 'north-secret')
    assert.deepEqual(await theirs.json(), { items: [], next_cursor: null })
    await database.sql`update devices set tenant_id = 'default', tenant_since = null where device_id = '04500077'`
  })
})

describe('frames', () => {
  const heartbeat = (messageId: number, deviceNo: number) =>
    Buffer.from(
      ap3000.encodeFrame('uplink', ap3000.uplinkByName.get('heartbeat')!, deviceNo, messageId, Buffer.alloc(20)),
    )
  const idsOf = (shown: Record<string, unknown>[][]) => shown.flat().map((frame) => frame['message_id'])
  const sourcesOf = (items: Record<string, unknown>[]) => [...new Set(items.map(({ source }) => source))]
  const upTo = (count: number) => Array.from({ length: count }, (_, index) => index)
  async function log(id: string, count: number) {
    for (const index of upTo(count))
      await database.sql`
        insert into cmd_log (device_id, at, epoch, seq, is_uplink, command, code, message_id, frame)
        values (${id}, timestamptz '2026-01-31T11:00:00.000001Z' + ${Math.floor(index / 6)} * interval '1 microsecond',
          ${9007199254740900 + Math.floor(index / 3)}, ${index % 3}, true, 'heartbeat', 1, 1, ${heartbeat(index, Number.parseInt(id, 16))})`
  }
  function record(
    shard: number,
    deviceNo: number,
    openedMs: number,
    list: readonly (readonly [id: number, ms: number])[],
  ) {
    const recorder = new Recorder({
      directory: frames,
      shard,
      bytesMax: 2 ** 40,
      onError: (error) => assert.fail(`${error}`),
    })
    for (const [messageId, atMs] of list) {
      const bytes = heartbeat(messageId, deviceNo)
      recorder.record(deviceKey(ap3000, deviceNo), atMs, FLAG.uplink, bytes, 0, bytes.length)
    }
    recorder.close(openedMs)
  }

  test('of cmd_log: every one once, those that follow behind a cursor', async () => {
    await log('04500078', 20)
    const path = '/devices/04500078/frames'
    for (const limit of [1, 2, 3, 7, 20, 500]) {
      const shown = await pages(`${path}?limit=${limit}`)
      assert.deepEqual(idsOf(shown), upTo(20))
      assert.equal(shown.length, Math.ceil(20 / limit))
    }
    const window = `from=${rfc(NOW - 3_600_000)}&to=${rfc(NOW)}`
    assert.deepEqual(idsOf(await pages(`${path}?${window}&limit=3`)), upTo(20))
    for (const values of [
      ['frames cmd_log', '2026-01-31T11:00:00+00:00', 'x', '0', '0'],
      ['frames cmd_log', '2026-01-31T11:00:00+00:00', '1', '9'.repeat(19), '0'],
      ['frames cmd_log', '1', '1', '1', '1'],
      ['frames cmd_log'],
      ['timeline', '2026-01-31T11:00:00+00:00', 'x', '0'],
      [],
    ])
      await refused(await ask('GET', `${path}?cursor=${forged(...values)}`), 'INVALID_ARGUMENT')
  })

  test('recorded: every one once over shards and segments, at one moment too, and from the same source to the end', async () => {
    const path = '/devices/04500079/frames'
    const startMs = NOW - 3_600_000
    // by time, at one moment by when its segment was opened, then by shard: 10 is written before 2, and sorts behind it
    record(10, 0x04500079, startMs + 1_000, [
      [0, startMs],
      [1, startMs],
      [4, startMs + 500],
      [5, startMs + 500],
      [6, startMs + 500],
    ])
    record(2, 0x04500079, startMs + 1_001, [
      [2, startMs],
      [3, startMs],
      [7, startMs + 500],
      [8, startMs + 501],
    ])
    record(2, 0x04500079, startMs + 600_000, [
      [9, startMs + 590_000],
      [10, startMs + 590_000],
      [11, startMs + 590_000],
    ])
    await log('04500079', 5)
    for (const limit of [1, 2, 3, 5, 12, 500]) {
      const shown = await pages(`${path}?limit=${limit}`)
      assert.deepEqual(idsOf(shown), upTo(12))
      assert.equal(shown.length, Math.ceil(12 / limit))
      assert.deepEqual(sourcesOf(shown.flat()), ['recording'])
    }
    const window = `from=${rfc(startMs + 500)}&to=${rfc(startMs + 590_000)}`
    assert.deepEqual(idsOf(await pages(`${path}?${window}&limit=2`)), [4, 5, 6, 7, 8, 9, 10, 11])
    // what comes while somebody turns pages is behind their window
    let added = 12
    const shown = await pages(`${path}?limit=5`, () => {
      nowMs += 1_000
      record(2, 0x04500079, nowMs, [[added++, nowMs]])
    })
    assert.deepEqual(idsOf(shown), upTo(12))
    nowMs = NOW
  })

  test('recorded: a segment that is deleted between two pages moves nothing', async () => {
    const path = '/devices/0450007a/frames'
    const startMs = NOW - 3_600_000
    record(4, 0x0450007a, startMs + 1_000, [
      [0, startMs],
      [1, startMs],
    ])
    record(5, 0x0450007a, startMs + 1_001, [
      [2, startMs],
      [3, startMs],
      [4, startMs],
    ])
    await log('0450007a', 5)
    const deleteSegments = (shard: number) => {
      for (const name of readdirSync(frames).filter((one) => one.startsWith(`${shard}-`))) rmSync(join(frames, name))
    }
    let turned = 0
    // one page of each segment, then the first is deleted
    const shown = await pages(`${path}?limit=3`, () => turned++ === 0 && deleteSegments(4))
    assert.deepEqual(idsOf(shown), upTo(5))
    // nothing of the recording is left: the same frames do not begin again from cmd_log
    const { next_cursor: cursor } = await page(`${path}?limit=1`)
    deleteSegments(5)
    assert.deepEqual(await page(`${path}?cursor=${cursor}`), { items: [], next_cursor: null })
    assert.deepEqual(sourcesOf((await page(path)).items), ['cmd_log'])
  })

  test('a cursor of recorded frames that was made up is refused', async () => {
    for (const values of [
      ['frames recording', '1', '1', '1', '1'],
      ['frames recording', '1', '1', '1', '-1', '1'],
      ['frames recording', '1', '1', '1', 'x', '1'],
      ['frames recording', 1, 1, 1, 1, 1],
      ['frames'],
    ])
      await refused(await ask('GET', `/devices/04500079/frames?cursor=${forged(...values)}`), 'INVALID_ARGUMENT')
  })
})

describe('firmware and model profiles', () => {
  test('images, the newest first, every one once, nothing of another tenant', async () => {
    await database.sql`
      insert into firmware_images (image_id, tenant_id, name, sha256, bytes, content, created_by, created_at)
      select 'i' || lpad(i::text, 2, '0'), case when i < 20 then 'default' else 'north' end, 'n' || i, i::text, 1, 'x', 'root',
        timestamptz '2026-01-31T11:00:00.000001Z' + i / 7 * interval '1 microsecond' from generate_series(0, 22) as i`
    const expected = Array.from({ length: 20 }, (_, index) => `i${String(19 - index).padStart(2, '0')}`)
    for (const limit of [1, 2, 3, 20, 500]) {
      const shown = await pages(`/firmware?limit=${limit}`)
      assert.deepEqual(
        shown.flat().map((image) => image['image_id']),
        expected,
      )
      assert.equal(shown.length, Math.ceil(20 / limit))
    }
    assert.deepEqual(Object.keys((await page('/firmware?limit=1')).items[0]!).sort(), [
      'bytes',
      'created_at',
      'created_by',
      'image_id',
      'name',
      'sha256',
    ])
    for (const query of [`cursor=${forged('firmware', 'now', 'x')}`, 'limit=501', 'limit=0', 'nonsense=1'])
      await refused(await ask('GET', `/firmware?${query}`), 'INVALID_ARGUMENT')
  })

  test('profiles, in the order that tells the default, every one once', async () => {
    const expected = MODEL_PROFILES.map(({ name }) => name)
    assert.equal(new Set(expected).size, expected.length)
    for (const limit of [1, 2, 3, expected.length, 500]) {
      const shown = await pages(`/model-profiles?limit=${limit}`)
      assert.deepEqual(
        shown.flat().map(({ name }) => name),
        expected,
      )
      assert.equal(shown.length, Math.ceil(expected.length / limit))
    }
    for (const cursor of [
      'x',
      forged('model-profiles', 'none'),
      forged('model-profiles'),
      forged('firmware', 'ap3000'),
    ])
      await refused(await ask('GET', `/model-profiles?cursor=${cursor}`), 'INVALID_ARGUMENT')
  })
})

test('a window that ends before it begins is refused; one of no length is not', async () => {
  for (const path of ['/orders', '/devices/04500077/timeline', '/devices/04500078/frames']) {
    const backwards = `${path}?from=${rfc(NOW)}&to=${rfc(NOW - 1)}`
    await refused(await ask('GET', backwards), 'INVALID_ARGUMENT', /^query\.from: is later than to$/)
    assert.deepEqual((await page(`${path}?from=${rfc(NOW)}&to=${rfc(NOW)}`)).items, [])
  }
})

test('a body that may be {} may be left out, and the document says so', async () => {
  const { paths, components } = (await (await ask('GET', '/openapi.json')).json()) as {
    paths: Record<
      string,
      Record<string, { requestBody?: { required: boolean; content: Record<string, { schema: object }> } }>
    >
    components: { schemas: Record<string, { required?: string[] }> }
  }
  const optional: string[] = []
  for (const [path, methods] of Object.entries(paths))
    for (const [method, { requestBody }] of Object.entries(methods)) {
      if (requestBody?.required !== false) continue
      optional.push(`${method} ${path}`)
      const { $ref } = requestBody.content['application/json']!.schema as { $ref: string }
      assert.equal(components.schemas[$ref.split('/').at(-1)!]!.required, undefined)
    }
  assert.deepEqual(optional.sort(), [
    'put /api/v1/allowlist/{kind}/{pattern}',
    'put /api/v1/cards/{card_id}',
    'put /api/v1/devices/{device_id}',
  ])
  assert.equal(paths['/api/v1/jobs']!['post']!.requestBody!.required, true)
  for (const path of ['/devices/0450007b', '/cards/aabb', '/allowlist/device/0450007b']) {
    assert.equal((await ask('PUT', path)).status, 201)
    assert.equal((await ask('PUT', path)).status, 200)
  }
  await refused(await ask('POST', '/jobs'), 'INVALID_ARGUMENT', /not JSON/)
})
