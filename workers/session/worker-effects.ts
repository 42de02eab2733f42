/** Carries out what session logic asks, on real sockets and shared memory. */
import type { Uplink } from '../../src/codec/protocol.ts'
import { isRecorded, type Recorder } from '../../src/recording/recorder.ts'
import { encodeRow, type Field, type RowKind, type RowOf } from '../../src/rows/row.ts'
import type { CardQuestion, CloseReason, Effects, ReturnedCommand, SessionCounts } from '../../src/session/effects.ts'
import { ROW_REFUSED } from '../../src/session/effects.ts'
import type { ThreadCounters } from '../../src/shared/counters.ts'
import { OUTBOX_FULL, type OutboxProducer } from '../../src/shared/outbox.ts'
import type { SocketDriver } from './socket-driver.ts'

export interface WorkerEffectsParts {
  readonly counters: ThreadCounters
  readonly counts: SessionCounts
  readonly driver: SocketDriver
  readonly ledger: OutboxProducer
  readonly history: OutboxProducer
  readonly onClosed: (connectionId: number) => void
  readonly askCard: (question: CardQuestion) => void
  readonly supersede: (shard: number, deviceKey: number, epoch: number) => void
  readonly deviceOnline: (deviceKey: number) => void
  readonly deviceRefused: (deviceId: string, remoteAddress: string) => void
  readonly returnCommand: (deviceKey: number, command: ReturnedCommand) => void
  readonly commandMoved: (commandId: string, status: number) => void
  /** Undefined: recording is off. */
  readonly recorder: Recorder | undefined
  readonly recordMode: 'all' | 'errors' | 'off'
}

export class WorkerEffects implements Effects {
  readonly counts: SessionCounts
  readonly #parts: WorkerEffectsParts
  readonly #replySeconds = new Map<Uplink, number>()
  // Replies of this batch that are not written yet: to which command, since when, how many in a row. Of a fleet at rest a
  // batch has one entry.
  readonly #answers: Uplink[] = []
  readonly #receivedMonoMs: number[] = []
  readonly #replies: number[] = []

  constructor(parts: WorkerEffectsParts) {
    this.#parts = parts
    this.counts = parts.counts
  }

  send(connectionId: number, frame: Uint8Array, answers: Uplink | undefined, receivedMonoMs: number): boolean {
    if (!this.#parts.driver.send(connectionId, frame)) return false
    if (answers === undefined) return true
    const last = this.#answers.length - 1
    if (last >= 0 && this.#answers[last] === answers && this.#receivedMonoMs[last] === receivedMonoMs) {
      this.#replies[last]!++
      return true
    }
    this.#answers.push(answers)
    this.#receivedMonoMs.push(receivedMonoMs)
    this.#replies.push(1)
    return true
  }

  record(deviceKey: number, flags: number, bytes: Uint8Array, from: number, to: number): void {
    if (!isRecorded(this.#parts.recordMode, flags)) return
    this.#parts.recorder?.record(deviceKey, Date.now(), flags, bytes, from, to)
  }

  /** Thread: session, at the end of a batch, when the driver has written what was queued. */
  observeReplies(): void {
    if (this.#answers.length === 0) return
    const nowMonoMs = performance.now()
    for (let index = 0; index < this.#answers.length; index++) {
      const answers = this.#answers[index]!
      let slot = this.#replySeconds.get(answers)
      if (slot === undefined) {
        slot = this.#parts.counters.histogram('uplink_reply_seconds', { command: answers.name })
        this.#replySeconds.set(answers, slot)
      }
      this.#parts.counters.observe(slot, (nowMonoMs - this.#receivedMonoMs[index]!) / 1_000, this.#replies[index]!)
    }
    this.#answers.length = 0
    this.#receivedMonoMs.length = 0
    this.#replies.length = 0
  }

  close(connectionId: number, _reason: CloseReason): void {
    this.#parts.driver.close(connectionId)
    this.#parts.onClosed(connectionId)
  }

  appendRow<F extends Record<string, Field>>(row: RowKind<F>, values: RowOf<F>): number {
    const position = this.#parts[row.lane].append(encodeRow(row, values))
    if (position !== OUTBOX_FULL) return position
    this.counts.rowRefused(row.lane)
    return ROW_REFUSED
  }

  askCard(question: CardQuestion): void {
    this.#parts.askCard(question)
  }

  deviceOnline(deviceKey: number): void {
    this.#parts.deviceOnline(deviceKey)
  }

  deviceRefused(deviceId: string, remoteAddress: string): void {
    this.#parts.deviceRefused(deviceId, remoteAddress)
  }

  returnCommand(deviceKey: number, command: ReturnedCommand): void {
    this.#parts.returnCommand(deviceKey, command)
  }

  commandMoved(commandId: string, status: number): void {
    this.#parts.commandMoved(commandId, status)
  }

  supersede(shard: number, deviceKey: number, epoch: number): void {
    this.#parts.supersede(shard, deviceKey, epoch)
  }
}
