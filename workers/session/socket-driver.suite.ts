/**
 * What any socket driver must do, on real loopback sockets: bytes through in order, one write per batch, bounded
 * output, reading stopped and resumed, ends told exactly once, ids safe to use again, no descriptor kept. Each driver's
 * test file calls `testSocketDriver`.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { after, before, describe, it } from 'node:test'
import { closeDetached, detach } from '../acceptor/handoff.ts'
import type { ConnectionId, MakeSocketDriver, SocketDriver } from './socket-driver.ts'

interface Told {
  readonly chunks: Map<ConnectionId, Buffer[]>
  readonly closed: { connection: ConnectionId; reason: string }[]
  readonly writable: ConnectionId[]
  batches: number
}

const OUTBOUND_BYTES_MAX = 65_536

async function until(isTrue: () => boolean, what: string, ms = 5_000): Promise<void> {
  const due = performance.now() + ms
  while (!isTrue()) {
    if (performance.now() > due) assert.fail(`not within ${ms} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

const openDescriptors = () => readdirSync('/proc/self/fd').length

export function testSocketDriver(name: string, make: MakeSocketDriver): void {
  describe(`${name} driver`, () => {
    let server: Server
    let port = 0
    const descriptors: number[] = []
    const peers: Socket[] = []
    let driver: SocketDriver
    let told: Told
    let onChunk: ((connection: ConnectionId, chunk: Uint8Array) => void) | undefined

    before(async () => {
      server = createServer({ noDelay: true, pauseOnConnect: true }, (socket) => {
        socket.on('error', () => {})
        descriptors.push(detach(socket))
      })
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
      port = (server.address() as { port: number }).port
    })
    after(() => new Promise<void>((resolve) => server.close(() => resolve())))

    function start(): void {
      told = { chunks: new Map(), closed: [], writable: [], batches: 0 }
      onChunk = undefined
      driver = make(
        {
          readable: (connection, chunk) => {
            told.chunks.set(connection, [...(told.chunks.get(connection) ?? []), Buffer.from(chunk)])
            onChunk?.(connection, chunk)
          },
          writable: (connection) => told.writable.push(connection),
          closed: (connection, reason) => told.closed.push({ connection, reason }),
          batchEnd: () => {
            told.batches++
          },
        },
        { outboundBytesMax: OUTBOUND_BYTES_MAX },
      )
    }

    async function pair(): Promise<{ peer: Socket; received: () => Buffer; connection: ConnectionId }> {
      const peer = connect({ port, host: '127.0.0.1', noDelay: true })
      const chunks: Buffer[] = []
      peer.on('data', (chunk) => chunks.push(chunk))
      peer.on('error', () => {})
      peers.push(peer)
      await until(() => descriptors.length > 0, 'connection accepted')
      const connection = driver.adopt(descriptors.shift()!)
      return { peer, received: () => Buffer.concat(chunks), connection }
    }

    async function finish(): Promise<void> {
      await driver.stop(500)
      for (const peer of peers.splice(0)) peer.destroy()
      assert.equal(driver.open, 0)
    }

    const check = (title: string, body: () => Promise<void>) =>
      it(title, async () => {
        start()
        try {
          await body()
        } finally {
          await finish()
        }
      })

    const bytesOf = (connection: ConnectionId) => Buffer.concat(told.chunks.get(connection) ?? [])

    check('carries bytes both ways, in order, and ends each batch', async () => {
      const { peer, received, connection } = await pair()
      onChunk = (id, chunk) => {
        driver.send(id, Buffer.from(chunk))
        driver.send(id, Buffer.from('|'))
      }
      for (let round = 0; round < 50; round++) {
        peer.write(`frame ${round};`)
        await until(() => bytesOf(connection).toString().endsWith(`frame ${round};`), 'chunk read')
      }
      await until(
        () => received().length > 0 && received().toString().replaceAll('|', '') === bytesOf(connection).toString(),
        'echo',
      )
      assert.ok(told.batches > 0)
      assert.deepEqual(told.closed, [])
    })

    check('keeps connections apart', async () => {
      const all = []
      for (let index = 0; index < 50; index++) all.push(await pair())
      onChunk = (id, chunk) => driver.send(id, Buffer.from(chunk))
      for (const [index, { peer }] of all.entries()) peer.write(`I am ${index}.`)
      for (const [index, { received }] of all.entries())
        await until(() => received().toString() === `I am ${index}.`, `echo to ${index}`)
      assert.equal(driver.open, 50)
    })

    check('reads nothing between stopReading and resumeReading, and loses nothing', async () => {
      const { peer, connection } = await pair()
      peer.write('a')
      await until(() => bytesOf(connection).length === 1, 'first byte')
      driver.stopReading(connection)
      driver.stopReading(connection)
      await new Promise((resolve) => setTimeout(resolve, 20))
      const before = bytesOf(connection).length
      peer.write('bcd')
      await new Promise((resolve) => setTimeout(resolve, 50))
      assert.equal(bytesOf(connection).length, before)
      driver.resumeReading(connection)
      await until(() => bytesOf(connection).toString() === 'abcd', 'the rest')
    })

    check('tells an orderly end and a reset apart, once each', async () => {
      const ended = await pair()
      const reset = await pair()
      ended.peer.end()
      reset.peer.resetAndDestroy()
      await until(() => told.closed.length === 2, 'both ends told')
      await new Promise((resolve) => setTimeout(resolve, 30))
      const byId = new Map(told.closed.map(({ connection, reason }) => [connection, reason]))
      assert.equal(byId.get(ended.connection), 'peer_closed')
      assert.equal(byId.get(reset.connection), 'peer_reset')
      assert.equal(told.closed.length, 2)
      assert.equal(driver.open, 0)
    })

    check('close sends what is queued, then ends, and tells nothing', async () => {
      const { peer, received, connection } = await pair()
      const ended = new Promise<void>((resolve) => peer.on('close', () => resolve()))
      driver.send(connection, Buffer.from('last words'))
      driver.close(connection)
      driver.close(connection)
      await ended
      assert.equal(received().toString(), 'last words')
      assert.equal(driver.open, 0)
      assert.deepEqual(told.closed, [])
    })

    check('an id may be used again, and what comes late for the old one does not reach the new one', async () => {
      const first = await pair()
      driver.send(first.connection, Buffer.from('bye'))
      first.peer.write('late')
      driver.close(first.connection)
      const second = await pair()
      second.peer.write('hello')
      await until(() => bytesOf(second.connection).length >= 5, 'bytes of the second')
      await new Promise((resolve) => setTimeout(resolve, 30))
      assert.equal(bytesOf(second.connection).toString(), 'hello')
      assert.deepEqual(told.closed, [])
      assert.equal(first.received().toString(), 'bye')
    })

    check('bounds what waits for a peer that does not read; others do not notice', async () => {
      const stalled = await pair()
      const other = await pair()
      stalled.peer.pause()
      const frame = Buffer.alloc(4_096, 'x')
      let refused = false
      let sent = 0
      for (let round = 0; round < 20_000 && !refused; round++) {
        refused = !driver.send(stalled.connection, frame)
        if (!refused) sent += frame.length
        assert.ok(driver.pendingBytes(stalled.connection) <= OUTBOUND_BYTES_MAX)
        if (round % 8 === 0) await new Promise((resolve) => setImmediate(resolve))
      }
      assert.ok(refused, 'never refused')
      onChunk = (id, chunk) => driver.send(id, Buffer.from(chunk))
      other.peer.write('still here?')
      await until(() => other.received().toString() === 'still here?', 'echo beside a stalled peer')
      // pending output stops reading: what the stalled peer says is not taken in
      stalled.peer.write('more')
      await new Promise((resolve) => setTimeout(resolve, 30))
      assert.equal(bytesOf(stalled.connection).length, 0)
      stalled.peer.resume()
      await until(() => stalled.received().length >= sent, 'all that was accepted arrives')
      await until(() => told.writable.includes(stalled.connection), 'writable told')
      await until(() => bytesOf(stalled.connection).toString() === 'more', 'reading goes on')
    })

    check('a peer that breaks off while output waits, or before it is written, is told once', async () => {
      const stalled = await pair()
      stalled.peer.pause()
      for (let round = 0; round < 20_000 && driver.send(stalled.connection, Buffer.alloc(4_096)); round++)
        if (round % 8 === 0) await new Promise((resolve) => setImmediate(resolve))
      stalled.peer.resetAndDestroy()
      await until(
        () => told.closed.some(({ connection }) => connection === stalled.connection),
        'reset while output waits',
      )
      // says something, breaks off, and only then the answer is written
      const all = []
      for (let index = 0; index < 30; index++) all.push(await pair())
      onChunk = (id) => driver.send(id, Buffer.alloc(2_048))
      for (const [index, { peer }] of all.entries()) {
        peer.write('x')
        if (index % 2 === 0) peer.resetAndDestroy()
        else peer.destroy()
      }
      await until(() => driver.open === 0, 'all ended')
      assert.equal(told.closed.length, 31)
    })

    check('refuses what is no socket and leaves it to the caller', async () => {
      assert.throws(() => driver.adopt(19_999))
      assert.equal(driver.open, 0)
    })

    it('gives every descriptor back over 300 connections that end in every way', async () => {
      await new Promise((resolve) => setTimeout(resolve, 50))
      const before = openDescriptors()
      start()
      for (let index = 0; index < 300; index++) {
        const { peer, connection } = await pair()
        if (index % 4 === 0) peer.resetAndDestroy()
        else if (index % 4 === 1) peer.end()
        else if (index % 4 === 2) driver.close(connection)
      }
      await finish()
      await until(() => openDescriptors() <= before, `descriptors back to ${before}`)
    })

    it('a detached descriptor that nobody takes can be closed', async () => {
      const peer = connect({ port, host: '127.0.0.1' })
      const ended = new Promise<void>((resolve) => peer.on('close', () => resolve()))
      await until(() => descriptors.length > 0, 'connection accepted')
      closeDetached(descriptors.shift()!)
      peer.resume()
      await ended
    })
  })
}
