/**
 * ACCEPTOR THREAD. Listens, looks until the first bytes say who is there, hashes that onto a shard, hands the socket
 * over. It keeps nothing of a connection after that.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { closeLog, createLog } from '../../src/main/log.ts'
import { openCounters } from '../../src/shared/counters.ts'
import { Directory } from '../../src/shared/directory.ts'
import { Gate } from '../../src/shared/gate.ts'
import type { Acceptor, AcceptorParts } from './acceptor.ts'
import { EpollAcceptor } from './epoll-acceptor.ts'
import type { AcceptorOptions, Evidence, FromAcceptor, ToAcceptor } from './messages.ts'
import { NetAcceptor } from './net-acceptor.ts'

const options = workerData as AcceptorOptions
const main = parentPort!
const log = createLog({ ...options.log, thread: 'acceptor' })
const directory = new Directory(options.directory)
const counters = openCounters(options.counters, options.countersThread)

const accepted = counters.counter('accepted_total')
const closedBy = (reason: string) => counters.counter('closed_total', { reason })
const failedBy = (reason: string) => counters.counter('identify_failures_total', { reason })

let evidence: Evidence[] = []
/** More than this many kept per second says nothing new. */
const EVIDENCE_PER_SECOND = 50
let evidenceLeft = EVIDENCE_PER_SECOND

function tell(message: FromAcceptor): void {
  main.postMessage(message)
}

const parts: AcceptorParts = {
  options,
  gate: new Gate(options.gate),
  log,
  nextBirth: () => directory.nextEpoch(),
  countAccepted: () => counters.add(accepted),
  countClosed: (reason) => counters.add(closedBy(reason)),
  refused: (remoteAddress, reason, bytes) => {
    counters.add(failedBy(reason))
    counters.add(closedBy(reason))
    if (evidenceLeft === 0) return
    evidenceLeft--
    evidence.push({
      atMs: Date.now(),
      remoteAddress,
      reason,
      // a copy of its own: what is posted must not take a driver's whole buffer along
      bytes: Uint8Array.from(bytes.subarray(0, options.evidenceBytesMax)),
    })
  },
}
const acceptor: Acceptor =
  options.epoll === undefined ? new NetAcceptor(parts) : new EpollAcceptor(parts, options.epoll)

const sweep = setInterval(() => acceptor.sweep(performance.now()), 100)
const second = setInterval(() => {
  evidenceLeft = EVIDENCE_PER_SECOND
  if (evidence.length > 0) tell({ kind: 'evidence', items: evidence })
  evidence = []
  counters.set(counters.gauge('event_loop_delay_seconds', { thread: 'acceptor' }), counters.loopDelaySeconds())
}, 1_000)

main.on('message', (message: ToAcceptor) => {
  switch (message.kind) {
    case 'shardUp':
      acceptor.shardUp(message.shard, message.port)
      break
    case 'shardDown':
      acceptor.shardDown(message.shard)
      break
    case 'stop':
      void stop()
      break
  }
})

async function stop(): Promise<void> {
  acceptor.stop()
  clearInterval(sweep)
  clearInterval(second)
  if (evidence.length > 0) tell({ kind: 'evidence', items: evidence })
  await closeLog()
  tell({ kind: 'stopped' })
  main.close()
}

acceptor.listen().then(
  (port) => tell({ kind: 'listening', port }),
  (error: Error) => tell({ kind: 'failed', message: error.message }),
)
