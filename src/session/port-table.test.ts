/**
 * Claim: the table remembers of every port what a map of objects would, says the same about what is worth a row, and gives
 * places back. Tried with random reports and charges of several devices against such a map.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import type { PortReading } from '../codec/facts.ts'
import { NO_PORT, PortTable } from './port-table.ts'

interface Plain {
  isAsked: boolean
  reading: PortReading | undefined
  wireHex: string | null
  isDirty: boolean
  charge: string | null | undefined
}

const MEASURED = ['powerW', 'voltageV', 'currentA', 'energyWh', 'temperatureC'] as const

/** The rules in words: a step of 5 W or 5 V, any other energy, state, fault or order, the answer to a question. */
function isChange(
  { reading: before, wireHex: known, isAsked }: Plain,
  reading: PortReading,
  wireHex: string | null | undefined,
) {
  if (before === undefined || isAsked) return true
  const stepped = (was = 0, is: number | undefined) => is !== undefined && Math.abs(is - was) >= 5
  return (
    before.state !== reading.state ||
    before.stateRaw !== reading.stateRaw ||
    before.fault !== reading.fault ||
    stepped(before.powerW, reading.powerW) ||
    stepped(before.voltageV, reading.voltageV) ||
    (reading.energyWh !== undefined && reading.energyWh !== before.energyWh) ||
    (wireHex !== undefined && wireHex !== known)
  )
}

const maybe = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: undefined })
const step = fc.record({
  what: fc.constantFrom('report', 'report', 'report', 'charge', 'flush', 'ask', 'forget'),
  device: fc.nat(3),
  socket: fc.constantFrom(0, 1, 250),
  port: fc.constantFrom(0, 1, 2, 256),
  state: fc.constantFrom('idle', 'charging', 'fault', 'unknown') as fc.Arbitrary<PortReading['state']>,
  stateRaw: fc.constantFrom(0, 1, 65_535),
  fault: maybe(fc.constantFrom('relay_stuck', 'metering')),
  measured: fc.tuple(...MEASURED.map(() => maybe(fc.constantFrom(0, 3, 4.9, 5, 220.5)))),
  wireHex: fc.constantFrom(undefined, null, '11220795', 'aa'),
  charge: fc.constantFrom(null, '', '11220795', 'bb'),
})

test('random reports agree with a map of objects', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (history) => {
      const table = new PortTable()
      const heads = [NO_PORT, NO_PORT, NO_PORT, NO_PORT]
      const model = heads.map(() => new Map<string, Plain>())
      for (const { what, device, socket, port, state, stateRaw, fault, measured, wireHex, charge } of history) {
        const plain = model[device]!
        if (what === 'forget') {
          table.free(heads[device]!)
          heads[device] = NO_PORT
          plain.clear()
        } else if (what === 'flush') {
          for (let at = heads[device]!; at !== NO_PORT; at = table.next(at)) table.written(at)
          for (const one of plain.values()) one.isDirty = false
        } else if (what === 'ask') {
          for (let at = heads[device]!; at !== NO_PORT; at = table.next(at)) table.asked(at)
          for (const one of plain.values()) one.isAsked = true
        } else {
          let at = table.find(heads[device]!, socket, port)
          assert.equal(at === NO_PORT, !plain.has(`${socket} ${port}`))
          if (at === NO_PORT) {
            at = table.add(heads[device]!, socket, port)
            if (heads[device] === NO_PORT) heads[device] = at
            plain.set(`${socket} ${port}`, {
              isAsked: false,
              reading: undefined,
              wireHex: null,
              isDirty: false,
              charge: undefined,
            })
          }
          const known = plain.get(`${socket} ${port}`)!
          if (what === 'charge') {
            table.setCharge(at, charge)
            known.charge = charge
          } else {
            const values = Object.fromEntries(
              MEASURED.flatMap((name, column) => (measured[column] === undefined ? [] : [[name, measured[column]]])),
            )
            const reading: PortReading = {
              socket,
              port,
              state,
              stateRaw,
              ...values,
              ...(fault !== undefined && { fault }),
            }
            const isNew = isChange(known, reading, wireHex)
            assert.equal(table.report(at, reading, wireHex), isNew)
            if (isNew) {
              const { fault: _, ...before } = known.reading ?? {}
              // a charge that is over leaves no power behind
              const { powerW: _w, currentA: _a, energyWh: _e, ...rest } = before as Partial<PortReading>
              known.reading = { ...(state === 'idle' ? rest : before), ...reading }
              if (wireHex !== undefined) known.wireHex = wireHex
              known.isDirty = true
              known.isAsked = false
            }
          }
        }
        assert.equal(
          table.count,
          model.reduce((sum, of) => sum + of.size, 0),
        )
        for (const [name, one] of plain) {
          const [ofSocket, ofPort] = name.split(' ').map(Number) as [number, number]
          const at = table.find(heads[device]!, ofSocket, ofPort)
          assert.deepEqual(table.charge(at), one.charge)
          assert.equal(table.isDirty(at), one.isDirty)
          if (one.reading === undefined) continue
          assert.deepEqual(table.values(at), {
            socket: ofSocket,
            port: ofPort,
            state: one.reading.state,
            stateRaw: one.reading.stateRaw,
            fault: one.reading.fault ?? null,
            ...Object.fromEntries(MEASURED.map((column) => [column, one.reading![column] ?? null])),
            wireHex: one.wireHex,
          })
        }
      }
    }),
    { numRuns: 400 },
  )
})

test('a table grows, keeps what it has, and uses places again', () => {
  const table = new PortTable()
  const heads: number[] = []
  for (let device = 0; device < 300; device++) {
    let head = NO_PORT
    for (let port = 1; port <= 10; port++) {
      const at = table.add(head, 0, port)
      if (head === NO_PORT) head = at
      table.report(at, { socket: 0, port, state: 'charging', stateRaw: 1, powerW: device * 10 + port }, null)
    }
    heads.push(head)
  }
  assert.equal(table.count, 3_000)
  for (let device = 0; device < 300; device++)
    for (let port = 1; port <= 10; port++)
      assert.equal(table.values(table.find(heads[device]!, 0, port)).powerW, device * 10 + port)
  table.free(heads[7]!)
  assert.equal(table.count, 2_990)
  const again = table.add(NO_PORT, 0, 1)
  assert.ok(again < 3_000)
  // nothing of the port that had the place before
  table.report(again, { socket: 0, port: 1, state: 'idle', stateRaw: 0 }, undefined)
  assert.deepEqual(
    [table.values(again).powerW, table.charge(again), table.values(again).wireHex],
    [null, undefined, null],
  )
})
