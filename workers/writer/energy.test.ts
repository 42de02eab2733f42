/**
 * Claim: what is stored and priced is the raw count by the profile that `devices.model_profile` names in the moment of
 * storing, whatever the session knew: also for the first frame of a login, and after the profile was changed or cleared while
 * rows waited. Tried on a real PostgreSQL with rows converted by the other factor.
 */
import assert from 'node:assert/strict'
import { after, before, beforeEach, test } from 'node:test'
import { openTestDatabase, type TestDatabase } from '../../src/testing/database.ts'
import { insertSpan } from './insert.ts'
import { AT_MS, progress, settlement, spanOf } from './row-samples.ts'

let database: TestDatabase
before(async () => {
  database = await openTestDatabase()
})
after(async () => await database.close())
beforeEach(async () => {
  await database.sql`truncate devices, orders, settlements, port_samples, events, cards cascade`
})

const BKV = '82200520004869'
const WIRE = { deviceId: BKV, protocol: 'bkv', socket: 4, wireHex: '001a', orderKey: '~001a', orderNo: 'B1' }
const PER_KWH = { name: 'kWh', energy: { price_fen_per_kwh: 1000 } }

async function device(profile: string | null): Promise<void> {
  const { sql } = database
  await sql`insert into devices (device_id, protocol, tariff, model_profile)
    values (${BKV}, 'bkv', ${sql.json(PER_KWH)}, ${profile})`
}
async function stored() {
  const { sql } = database
  const [row] = await sql`
    select s.energy_raw, s.energy_wh, o.energy_wh as order_wh, o.amount_fen, s.amount_fen as settled_fen,
      (select data->'energy_wh' from events where event_type = 'charging.ended') as told_wh
    from settlements s join orders o using (device_id, socket, port, order_key)`
  return { ...row }
}

test('a session that does not know the profile yet: stored, priced and told with 10 Wh per count', async () => {
  await device('bkv-energy-10wh')
  const row = settlement({ ...WIRE, energyRaw: 80, energyWh: 80 })
  for (let copy = 0; copy < 2; copy++) await insertSpan(database.sql, spanOf(row))
  const expected = { energy_raw: 80, energy_wh: 800, order_wh: 800, amount_fen: 800, settled_fen: 800, told_wh: 800 }
  assert.deepEqual(await stored(), expected)
})

test('a session that still knows a profile that was cleared, or has another name: the default again', async () => {
  for (const profile of [null, 'bkv', 'three-port']) {
    await database.sql`truncate devices, orders, settlements, events cascade`
    await device(profile)
    await insertSpan(database.sql, spanOf(settlement({ ...WIRE, energyRaw: 80, energyWh: 800 })))
    const { energy_wh, amount_fen } = (await stored()) as Record<string, unknown>
    assert.deepEqual([energy_wh, amount_fen], [80, 80], String(profile))
  }
})

test('progress, from which an estimate would be made, and its sample; a report without energy stays without', async () => {
  await device('bkv-energy-10wh')
  const at = (minutes: number) => ({ ...WIRE, seq: minutes, atMs: AT_MS + minutes * 60_000, durationS: minutes * 60 })
  await insertSpan(
    database.sql,
    spanOf(
      progress({ ...at(5), energyRaw: 7, energyWh: 7 }),
      progress({ ...at(10), energyRaw: null, energyWh: null }),
      progress({ deviceId: '04ab373b', orderKey: 'k9', orderNo: 'A1', energyRaw: 3, energyWh: 30 }),
    ),
  )
  const orders = await database.sql`select order_no, energy_wh from orders order by order_no`
  assert.deepEqual(
    [...orders],
    [
      { order_no: 'A1', energy_wh: 30 },
      { order_no: 'B1', energy_wh: 70 },
    ],
  )
  const samples = await database.sql`select energy_wh from port_samples order by device_id, at`
  assert.deepEqual(
    samples.map(({ energy_wh }) => energy_wh),
    [30, 70, null],
  )
})
