/**
 * ACCEPTOR THREAD. Listens, reads until the first bytes say who is there, hashes that onto a shard, hands the socket
 * over. It keeps nothing of a connection after that.
 */
import { createServer, type Socket } from 'node:net'
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { closeLog, createLog } from '../../src/main/log.ts'
import { openCounters } from '../../src/shared/counters.ts'
import { Directory } from '../../src/shared/directory.ts'
import { Gate } from '../../src/shared/gate.ts'
import { shardOf } from '../../src/shared/rendezvous.ts'
import { PROTOCOLS } from '../../src/protocols/index.ts'
import { closeDetached, detach } from './handoff.ts'
import { identify } from './identify.ts'
import type { AcceptorOptions, Evidence, FromAcceptor, Handoff, ToAcceptor } from './messages.ts'

const options = workerData as AcceptorOptions
const main = parentPort!
const log = createLog({ ...options.log, thread: 'acceptor' })
const gate = new Gate(options.gate)
const directory = new Directory(options.directory)
const counters = openCounters(options.counters, options.countersThread)

const accepted = counters.counter('accepted_total')
const closedBy = (reason: string) => counters.counter('closed_total', { reason })
const failedBy = (reason: string) => counters.counter('identify_failures_total', { reason })

interface Stranger {
  readonly socket: Socket
  readonly birth: number
  readonly remoteAddress: string
  readonly dueMonoMs: number
  bytes: Uint8Array
}

/** Connections that have not said who they are, oldest first: they time out in this order. */
const strangers = new Set<Stranger>()

interface ShardDoor {
  port: MessagePort | undefined
  /** Handoffs whose adoption has not been seen yet, in order; needed to close descriptors of a thread that died. */
  readonly sent: { readonly descriptor: number; readonly count: number }[]
}
const doors: ShardDoor[] = Array.from({ length: options.shards }, () => ({ port: undefined, sent: [] }))

let evidence: Evidence[] = []
/** More than this many kept per second says nothing new. */
const EVIDENCE_PER_SECOND = 50
let evidenceLeft = EVIDENCE_PER_SECOND

function tell(message: FromAcceptor): void {
  main.postMessage(message)
}

function refuse(stranger: Stranger, reason: 'identify_timeout' | 'unknown_protocol'): void {
  strangers.delete(stranger)
  counters.add(failedBy(reason))
  counters.add(closedBy(reason))
  if (evidenceLeft > 0) {
    evidenceLeft--
    evidence.push({
      atMs: Date.now(),
      remoteAddress: stranger.remoteAddress,
      reason,
      bytes: stranger.bytes.slice(0, options.evidenceBytesMax),
    })
  }
  stranger.socket.destroy()
}

function heard(stranger: Stranger, chunk: Uint8Array): void {
  // the chunk is a view of the socket's own buffer: what is handed over or kept must be a copy
  const bytes = new Uint8Array(stranger.bytes.length + chunk.length)
  bytes.set(stranger.bytes)
  bytes.set(chunk, stranger.bytes.length)
  stranger.bytes = bytes
  const identity = identify(PROTOCOLS, bytes, options.identifyBytesMax)
  if (identity.kind === 'needMore') return
  if (identity.kind === 'foreign') {
    refuse(stranger, 'unknown_protocol')
    return
  }
  strangers.delete(stranger)
  const shard = shardOf(identity.routingKey, options.shards)
  const door = doors[shard]!
  if (door.port === undefined) {
    // its thread is being replaced: the device comes back in a moment, by then somebody is there
    counters.add(closedBy('shard_lost'))
    stranger.socket.destroy()
    return
  }
  const descriptor = detach(stranger.socket)
  if (descriptor < 0) {
    counters.add(closedBy('handoff_failed'))
    log.error({ event: 'handoff.failed', remoteAddress: stranger.remoteAddress, msg: 'no descriptor for the handover' })
    return
  }
  gate.add(shard, 'handed')
  noteAdopted(shard)
  door.sent.push({ descriptor, count: gate.count(shard, 'handed') })
  const handoff: Handoff = {
    descriptor,
    bytes,
    protocol: identity.protocol.index,
    birth: stranger.birth,
    remoteAddress: stranger.remoteAddress,
  }
  door.port.postMessage(handoff, [bytes.buffer])
}

/** Forgets the handoffs that the session thread has taken up. */
function noteAdopted(shard: number): void {
  const adopted = gate.count(shard, 'adopted')
  const { sent } = doors[shard]!
  let done = 0
  while (done < sent.length && ((adopted - sent[done]!.count) | 0) >= 0) done++
  if (done > 0) sent.splice(0, done)
}

const server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 }, (socket) => {
  counters.add(accepted)
  const remoteAddress = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`
  socket.on('error', () => socket.destroy())
  if (gate.open + strangers.size >= options.connectionsMax) {
    counters.add(closedBy('too_many_connections'))
    socket.destroy()
    return
  }
  const stranger: Stranger = {
    socket,
    birth: directory.nextEpoch(),
    remoteAddress,
    dueMonoMs: performance.now() + options.identifyTimeoutMs,
    bytes: new Uint8Array(0),
  }
  strangers.add(stranger)
  socket.on('data', (chunk) => heard(stranger, chunk))
  socket.on('close', () => {
    // gone before it said who it is; after a handover it is no stranger any more
    if (strangers.delete(stranger)) counters.add(closedBy('peer_closed'))
  })
})

const sweep = setInterval(() => {
  const nowMonoMs = performance.now()
  for (const stranger of strangers) {
    if (stranger.dueMonoMs > nowMonoMs) break
    refuse(stranger, 'identify_timeout')
  }
  for (let shard = 0; shard < doors.length; shard++) noteAdopted(shard)
}, 100)
const second = setInterval(() => {
  evidenceLeft = EVIDENCE_PER_SECOND
  if (evidence.length > 0) tell({ kind: 'evidence', items: evidence })
  evidence = []
  counters.set(counters.gauge('event_loop_delay_seconds', { thread: 'acceptor' }), counters.loopDelaySeconds())
}, 1_000)

main.on('message', (message: ToAcceptor) => {
  switch (message.kind) {
    case 'shardUp':
      doors[message.shard]!.port = message.port
      break
    case 'shardDown': {
      const door = doors[message.shard]!
      door.port?.close()
      door.port = undefined
      noteAdopted(message.shard)
      for (const { descriptor } of door.sent.splice(0)) closeDetached(descriptor)
      break
    }
    case 'stop':
      void stop()
      break
  }
})

async function stop(): Promise<void> {
  server.close()
  for (const stranger of strangers) stranger.socket.destroy()
  strangers.clear()
  clearInterval(sweep)
  clearInterval(second)
  if (evidence.length > 0) tell({ kind: 'evidence', items: evidence })
  for (const door of doors) door.port?.close()
  await closeLog()
  tell({ kind: 'stopped' })
  main.close()
}

server.on('error', (error) => {
  tell({ kind: 'failed', message: error.message })
})
// the kernel's queue of accepted connections: a storm of 10,000 arrives in about a second
server.listen({ host: options.host, port: options.port, backlog: 4096 }, () => {
  const address = server.address()
  tell({ kind: 'listening', port: typeof address === 'object' && address !== null ? address.port : options.port })
})
