/**
 * Claims, on real acceptor and session threads moved by epoll (no database): descriptors opened by FFI, which Node does
 * not close when a thread dies, are closed by main, so that devices notice at once and none stays open; connections of
 * the other shard go on; what was handed over while nobody served is not lost; a dead acceptor gives its port to the
 * next. And over 20,000 connections that come and go, with resets and takeovers on one shard and across two: no byte to
 * the wrong device, nobody cut short, no descriptor kept, memory flat (src/testing/churn.ts; 100,000 of them with
 * `node src/testing/churn.ts`). A thread dies here by an exception inside it, as a fault of ours would end it.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { connect } from 'node:net'
import { describe, it } from 'node:test'
import { deviceOptions, netOnlyReason } from '../../workers/libc.ts'
import { shardOf } from '../shared/rendezvous.ts'
import { churn } from '../testing/churn.ts'
import { closeClients, DeviceClient, dny, iccidHex } from '../testing/device-client.ts'
import { eventually } from '../testing/gateway-process.ts'
import { startSocketThreads } from '../testing/socket-threads.ts'

const SHARDS = 2
const descriptors = () => readdirSync('/proc/self/fd').length
const heartbeat = (device: number, messageId: number) => dny(device, messageId, 0x21, '9808020000fc00')

async function dial(port: number, shard: number, salt: number): Promise<DeviceClient> {
  let number = salt * 1_000
  const iccidOf = () => `898604${String(number).padStart(14, '0')}`
  while (shardOf(iccidOf(), SHARDS) !== shard) number++
  const client = await DeviceClient.connect(port)
  client.send(iccidHex(iccidOf()))
  return client
}
async function answers(client: DeviceClient, device: number, messageId: number): Promise<void> {
  assert.equal((await client.exchange(heartbeat(device, messageId))).hex, dny(device, messageId, 0x21, '00'))
}

const isEpoll = netOnlyReason() === undefined

describe('sockets by epoll over the death of threads', { skip: !isEpoll }, () => {
  it('a dead session thread leaves no descriptor, its devices come back, the other shard goes on', async () => {
    await (await startSocketThreads('epoll', 1)).stop()
    const before = descriptors()
    const threads = await startSocketThreads('epoll', SHARDS)
    const { supervisor, gate } = threads
    const others: DeviceClient[] = []
    for (let index = 0; index < 5; index++) {
      others.push(await dial(supervisor.tcpPort, 1, 500 + index))
      await answers(others[index]!, 0x0440_0500 + index, 1)
    }
    const idle = descriptors()
    for (let round = 0; round < 3; round++) {
      const clients: DeviceClient[] = []
      for (let index = 0; index < 40; index++) {
        clients.push(await dial(supervisor.tcpPort, 0, index + 1))
        await answers(clients[index]!, 0x0440_0000 + index, 1)
      }
      assert.equal(gate.open, 45)
      assert.equal(descriptors(), idle + 80)
      // no such message: the thread throws on it
      supervisor.tellShard(0, { kind: 'acceptor' } as never)
      for (const client of clients) await client.closedWithin(2_000)
      assert.equal(threads.shardsLost(), round + 1)
      await eventually('descriptors', descriptors, (count) => count <= idle)
      assert.equal(gate.open, 5)
      for (const [index, other] of others.entries()) await answers(other, 0x0440_0500 + index, 10 + round)
      await eventually(
        'served again',
        () => supervisor.shardsDown,
        (down) => down.length === 0,
      )
    }
    const again = await dial(supervisor.tcpPort, 0, 1)
    await answers(again, 0x0440_0000, 2)
    assert.equal(gate.open, 6)
    closeClients()
    await threads.stop()
    await eventually('descriptors', descriptors, (count) => count <= before)
  })

  it('what was handed over and not seen by the dead thread is served by the next one', async () => {
    const threads = await startSocketThreads('epoll', 1)
    const { supervisor, gate } = threads
    // the thread stands still inside one message while connections are put into its set, then it dies
    const clients: DeviceClient[] = []
    supervisor.tellShard(0, { kind: 'acceptor' } as never)
    for (let index = 0; index < 200; index++) {
      try {
        const client = await DeviceClient.connect(supervisor.tcpPort)
        client.send(`${iccidHex(`898604${String(index).padStart(14, '0')}`)}${heartbeat(0x0441_0000 + index, 1)}`)
        clients.push(client)
      } catch {}
    }
    await eventually(
      'served again',
      () => [threads.shardsLost(), ...supervisor.shardsDown],
      (list) => list.length === 1 && list[0] === 1,
    )
    // refused while nobody served, or answered, before the death too: none is left hanging
    const answered: DeviceClient[] = []
    for (const [index, client] of clients.entries()) {
      try {
        assert.equal((await client.next(3_000)).hex, dny(0x0441_0000 + index, 1, 0x21, '00'))
        answered.push(client)
      } catch {
        assert.ok(client.isClosed, `client ${index} is neither answered nor closed`)
      }
    }
    await eventually(
      'as many open as the gate counts',
      () => answered.filter((client) => !client.isClosed).length,
      (count) => count === gate.open,
    )
    closeClients()
    await threads.stop()
  })

  it('a device says nothing, half a frame, or leaves: closed in time, nothing kept', async () => {
    const threads = await startSocketThreads('epoll', 1, { identifyTimeoutMs: 300 })
    const { tcpPort } = threads.supervisor
    const idle = descriptors()
    const silent = await DeviceClient.connect(tcpPort)
    const half = await DeviceClient.connect(tcpPort)
    half.send(heartbeat(0x0442_0000, 1).slice(0, 14))
    const left = await DeviceClient.connect(tcpPort)
    left.destroy()
    const strange = await DeviceClient.connect(tcpPort)
    strange.send(Buffer.from('GET / HTTP/1.1\r\n\r\n'.repeat(80)).toString('hex'))
    await strange.closedWithin(1_000)
    // the others keep the acceptor waiting, and it does not spin: less than half of the time is CPU
    const [cpu, start] = [process.cpuUsage(), performance.now()]
    await silent.closedWithin(1_500)
    await half.closedWithin(1_500)
    const { user, system } = process.cpuUsage(cpu)
    assert.ok(user + system < (performance.now() - start) * 500 + 50_000, `${user + system} us of CPU while waiting`)
    await eventually('descriptors', descriptors, (count) => count <= idle)
    assert.equal(threads.gate.open, 0)
    await threads.stop()
  })

  it('a connection has TCP_NODELAY, keepalive and a user timeout from the listening socket', async () => {
    const threads = await startSocketThreads('epoll', 1)
    const client = await dial(threads.supervisor.tcpPort, 0, 1)
    await answers(client, 0x0443_0000, 1)
    // accepted sockets are the ones of this process whose options are all set: the client's own are not
    const withAll = readdirSync('/proc/self/fd')
      .map(Number)
      .filter((descriptor) => Object.values(deviceOptions(descriptor)).every(({ is, wanted }) => is === wanted))
    assert.equal(withAll.length, 2, 'the listening socket and the connection')
    closeClients()
    await threads.stop()
  })

  it('a port in use is said in words', async () => {
    const threads = await startSocketThreads('epoll', 1)
    await assert.rejects(startSocketThreads('epoll', 1, { port: threads.supervisor.tcpPort }), /EADDRINUSE/)
    const socket = connect({ port: threads.supervisor.tcpPort, host: '127.0.0.1' })
    await new Promise<void>((resolve) => socket.once('connect', () => resolve()))
    socket.destroy()
    await threads.stop()
  })

  it('20,000 connections come and go', async () => {
    const churned = await churn({ connections: 20_000, driver: 'epoll', slots: 200, seed: 7, resets: 0.3 })
    const told = JSON.stringify(churned)
    assert.equal(churned.connections >= 20_000, true, told)
    assert.equal(churned.mismatches, 0, told)
    assert.equal(churned.cutShort, 0, told)
    assert.ok(churned.takenOver > 1_000, told)
    assert.ok(churned.resets > 1_000, told)
    assert.equal(churned.openAtTheEnd, 20, told)
    assert.equal(new Set(churned.descriptors.whileIdle).size, 1, told)
    assert.ok(churned.descriptors.after <= churned.descriptors.before, told)
    const [, half, end] = churned.rssMiB
    // a heap that has not been collected yet moves by 20 MiB; 6 KiB kept of each connection would be more than this
    assert.ok(end! - half! < 64, told)
  })
})
