/**
 * The epoll driver passes the suite of all drivers, and does what only it must: take up what the acceptor put into its
 * epoll set, told with its facts; ignore an event of a connection that was closed earlier in the same batch, and keep
 * that descriptor's number until the batch is over; wake up for a message. It runs here on the thread that also plays
 * the devices, so it blocks for 1 ms instead of 10; the threads themselves are tried in src/main/epoll-seats.test.ts.
 */
import assert from 'node:assert/strict'
import { fstatSync, readdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Arrival, allocateSockets, Sockets } from '../../src/shared/sockets.ts'
import { SOCKET_STATE } from '../../src/shared/sockets-layout.ts'
import {
  accept,
  acceptedFrom,
  closeDescriptor,
  createEpollSet,
  createEventfd,
  EPOLLIN,
  isAcceptedFromV6,
  listenOn,
  netOnlyReason,
  watch,
} from '../libc.ts'
import { type EpollSeat, makeEpollDriver } from './epoll-driver.ts'
import { testSocketDriver } from './socket-driver.suite.ts'

const isEpoll = netOnlyReason() === undefined
if (isEpoll) testSocketDriver('epoll', (events, options) => makeEpollDriver(events, { ...options, waitMsMax: 1 }))

async function until(isTrue: () => boolean, what: string): Promise<void> {
  for (let round = 0; !isTrue(); round++) {
    if (round > 1_000) assert.fail(`not within 2 s: ${what}`)
    await sleep(2)
  }
}

/** What an acceptor does, step by step, on one set. */
function startBench(host: string) {
  const seat: EpollSeat = {
    sockets: allocateSockets(1, 1_024),
    doors: 1,
    door: 0,
    set: createEpollSet(),
    eventfd: createEventfd(),
  }
  const sockets = new Sockets(seat.sockets, 1)
  const listener = listenOn(host, 0, 16)
  const peers: Socket[] = []
  const dial = async () => {
    const peer = connect({ port: listener.port, host, noDelay: true })
    peer.on('error', () => {})
    peers.push(peer)
    await new Promise<void>((resolve) => peer.once('connect', () => resolve()))
    const descriptor = accept(listener.descriptor)
    const generation = sockets.begin(descriptor)
    sockets.setAddress(descriptor, acceptedFrom, isAcceptedFromV6())
    return { peer, descriptor, generation }
  }
  const hand = (descriptor: number, generation: number, shard: number) => {
    sockets.setState(descriptor, SOCKET_STATE.handed, shard)
    assert.ok(watch(seat.set, descriptor, generation, EPOLLIN))
  }
  const end = () => {
    for (const peer of peers) peer.destroy()
    for (const descriptor of [listener.descriptor, seat.set, seat.eventfd]) closeDescriptor(descriptor)
  }
  return { seat, sockets, dial, hand, end }
}

describe('epoll driver and acceptor', { skip: !isEpoll }, () => {
  for (const host of ['127.0.0.1', '::1'])
    it(`what was put into its set before it ran is told with its facts, then read (${host})`, async () => {
      const before = readdirSync('/proc/self/fd').length
      const { seat, sockets, dial, hand, end } = startBench(host)
      const [mine, stale] = [await dial(), await dial()]
      sockets.setFacts(mine.descriptor, 2, 2 ** 40 + 7)
      mine.peer.write('first bytes')
      stale.peer.write('not yet')
      hand(mine.descriptor, mine.generation, 3)
      // of an earlier connection with this number: not to be taken up
      hand(stale.descriptor, stale.generation - 1 || -1, 3)
      const told: (string | Arrival)[] = []
      const driver = makeEpollDriver(
        {
          readable: (_connection, chunk) => told.push(Buffer.from(chunk).toString()),
          writable: () => {},
          closed: (_connection, reason) => told.push(reason),
          batchEnd: () => {},
        },
        {
          outboundBytesMax: 1_024,
          seat,
          shard: 3,
          waitMsMax: 1,
          arrived: (_connection, arrival) => told.push(arrival),
        },
      )
      await until(() => told.length === 2, 'arrival and bytes')
      const remoteAddress = `${host}:${mine.peer.localPort}`
      assert.deepEqual(told, [{ protocol: 2, birth: 2 ** 40 + 7, remoteAddress }, 'first bytes'])
      assert.equal(driver.open, 1)
      assert.equal(sockets.state(mine.descriptor), SOCKET_STATE.adopted)
      mine.peer.end()
      await until(() => told.length === 3, 'the end')
      assert.equal(told[2], 'peer_closed')
      await until(() => sockets.state(mine.descriptor) === SOCKET_STATE.free, 'the table says so')
      await driver.stop(100)
      end()
      assert.equal(sockets.state(stale.descriptor), SOCKET_STATE.free, 'closed with the driver')
      await until(() => readdirSync('/proc/self/fd').length <= before, 'descriptors')
    })

  it('closed earlier in the same batch: its event is ignored, its number not given back before the end', async () => {
    const { seat, dial, end } = startBench('127.0.0.1')
    const told: number[] = []
    const ended: number[] = []
    let isHeldDuringBatch = false
    let isHeldAtBatchEnd: boolean | undefined
    const isOpen = (descriptor: number) => {
      try {
        return fstatSync(descriptor).isSocket()
      } catch {
        return false
      }
    }
    const [one, two] = [await dial(), await dial()]
    const driver = makeEpollDriver(
      {
        readable: (connection) => {
          told.push(connection)
          const other = connection === one.descriptor ? two.descriptor : one.descriptor
          driver.close(other)
          isHeldDuringBatch = isOpen(other)
        },
        writable: () => {},
        closed: (connection) => ended.push(connection),
        batchEnd: () => {
          if (told.length > 0) isHeldAtBatchEnd ??= isOpen(told[0] === one.descriptor ? two.descriptor : one.descriptor)
        },
      },
      { outboundBytesMax: 1_024, seat, waitMsMax: 1 },
    )
    driver.adopt(one.descriptor)
    driver.adopt(two.descriptor)
    one.peer.end('a')
    two.peer.end('b')
    // the thread does nothing until both are there: they come in one batch
    const until2 = performance.now() + 20
    while (performance.now() < until2);
    await until(() => ended.length > 0, 'the end of the first')
    await sleep(20)
    assert.equal(told.length, 1)
    assert.deepEqual(ended, told, 'nothing is told about the other')
    assert.equal(isHeldDuringBatch, true)
    assert.equal(isHeldAtBatchEnd, true)
    assert.equal(isOpen(told[0] === one.descriptor ? two.descriptor : one.descriptor), false)
    assert.equal(driver.open, 0)
    await driver.stop(100)
    end()
  })
})

describe('doors', () => {
  it('a thread does not sleep over a message, and owes its wake-up once', () => {
    const sockets = new Sockets(allocateSockets(2, 16), 2)
    const seen = sockets.posts(1)
    assert.equal(sockets.knock(1), false, 'awake: nobody owes anything')
    assert.equal(sockets.sleep(1, seen), false, 'posted since: no sleep')
    assert.equal(sockets.sleep(1, sockets.posts(1)), true)
    assert.equal(sockets.knock(1), true, 'asleep: owes a write')
    assert.equal(sockets.knock(1), false, 'only the first one does')
    assert.equal(sockets.sleep(0, sockets.posts(0)), true, 'doors are apart')
  })
})
