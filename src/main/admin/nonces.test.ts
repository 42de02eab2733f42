/**
 * Claims: a nonce is taken once, over turns, restarts, kills, full disks and clocks that go back; no key can take the room
 * of the others; a failure leaves no descriptor behind. Tried on real files; the clock is a number.
 */
import assert from 'node:assert/strict'
import { appendFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { temporaryDirectory } from '../../testing/temporary-directory.ts'
import { Nonces } from './nonces.ts'

const PERIOD_MS = 600_000
const START_MS = Date.UTC(2026, 10, 21)
const open = (directory: string, nowMs = START_MS) => new Nonces(directory, PERIOD_MS, nowMs)

test('once, for one period at least, also over restarts; and no longer than two', () => {
  const directory = temporaryDirectory()
  const times = [0, PERIOD_MS - 1, PERIOD_MS, 2 * PERIOD_MS - 1].map((ms) => START_MS + ms)
  let nonces = open(directory)
  assert.equal(nonces.take('k', 'n', START_MS), 'taken')
  for (const nowMs of times) {
    assert.equal(nonces.take('k', 'n', nowMs), 'seen', `${nowMs - START_MS}`)
    assert.equal(nonces.take('other', `n${nowMs}`, nowMs), 'taken')
    nonces.close()
    nonces = open(directory, nowMs)
    assert.equal(nonces.take('k', 'n', nowMs), 'seen', `${nowMs - START_MS} after a restart`)
  }
  assert.equal(nonces.take('k', 'n', START_MS + 2 * PERIOD_MS), 'taken')
  nonces.close()
  assert.throws(() => nonces.take('k', 'later', START_MS), /stops/)
})

test('a line that a kill cut short swallows no other', () => {
  const directory = temporaryDirectory()
  const first = open(directory)
  assert.equal(first.take('k', 'whole', START_MS), 'taken')
  appendFileSync(join(directory, 'current'), 'k cut-sh')
  const second = open(directory)
  assert.equal(second.take('k', 'next', START_MS), 'taken')
  const third = open(directory)
  for (const nonce of ['whole', 'next']) assert.equal(third.take('k', nonce, START_MS), 'seen', nonce)
  for (const one of [first, second, third]) one.close()
})

test('begun under a clock that was ahead, it ends all the same', () => {
  const directory = temporaryDirectory()
  const ahead = open(directory, START_MS + 9 * PERIOD_MS)
  assert.equal(ahead.take('k', 'n', START_MS + 9 * PERIOD_MS), 'taken')
  assert.equal(ahead.take('k', 'n', START_MS), 'seen', 'kept over the turn')
  assert.equal(ahead.take('k', 'm', START_MS), 'taken')
  assert.equal(ahead.take('k', 'n', START_MS + 2 * PERIOD_MS), 'taken')
  ahead.close()
})

test('a key that used up its room leaves the others theirs', () => {
  const directory = temporaryDirectory()
  const nonces = open(directory)
  let taken = 0
  while (nonces.take('greedy', `${taken}`, START_MS) === 'taken') taken++
  assert.equal(taken, 200_000)
  assert.equal(nonces.take('modest', '1', START_MS), 'taken')
  nonces.close()
  const again = open(directory)
  assert.equal(again.take('greedy', 'one more', START_MS), 'full')
  assert.equal(again.take('greedy', 'one more', START_MS + PERIOD_MS), 'taken')
  again.close()
})

test('a turn that fails takes nothing, forgets nothing and leaves no descriptor', () => {
  const directory = join(temporaryDirectory(), 'nonces')
  const nonces = open(directory)
  assert.equal(nonces.take('k', 'n', START_MS), 'taken')
  const kept = readFileSync(join(directory, 'current'))
  rmSync(directory, { recursive: true })
  writeFileSync(directory, 'no directory')
  const descriptors = readdirSync('/proc/self/fd').length
  const laterMs = START_MS + PERIOD_MS
  for (let tries = 0; tries < 20; tries++) assert.throws(() => nonces.take('k', `x${tries}`, laterMs))
  assert.equal(readdirSync('/proc/self/fd').length, descriptors)
  rmSync(directory)
  mkdirSync(directory)
  writeFileSync(join(directory, 'current'), kept)
  assert.equal(nonces.take('k', 'n', laterMs), 'seen')
  assert.equal(nonces.take('k', 'x0', laterMs), 'taken')
  nonces.close()
  const again = open(directory, laterMs)
  for (const nonce of ['n', 'x0']) assert.equal(again.take('k', nonce, laterMs), 'seen', nonce)
  again.close()
})
