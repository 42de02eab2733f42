/**
 * What the fate of one command of a job means for its device: the next command, or the device's outcome. Pure.
 */
import { COMMAND_STATUS } from '../session/command-lane.ts'
import { advance, type Transfer, type TransferInput } from './firmware-transfer.ts'
import { compareParameters, type Params } from './parameter-proof.ts'
import type { Outcome } from './waves.ts'

/** As `outbound_queue` has it. */
export interface Fate {
  /** One of the final `COMMAND_STATUS`. */
  readonly status: number
  readonly reason: string
  readonly attempts: number
  /** Of a firmware result. */
  readonly chunk?: number | undefined
  /** Of a read command: what the device holds. */
  readonly content?: Params | undefined
}

export interface Ended {
  readonly kind: 'ended'
  readonly outcome: Outcome
  readonly reason: string
  readonly detail: Readonly<Record<string, unknown>>
}

/** Reason a lane gives to the chunk it drops because the device asks for its upgrade from the beginning. */
export const UPGRADE_REQUESTED = 'upgrade_requested'

const ended = (outcome: Outcome, reason: string, detail: Ended['detail'] = {}): Ended => ({
  kind: 'ended',
  outcome,
  reason,
  detail,
})

/** The outcome of a device whose command did not get through. */
function outcomeOf(status: number): Outcome {
  switch (status) {
    case COMMAND_STATUS.refused:
      return 'refused'
    case COMMAND_STATUS.expired:
      return 'expired'
    case COMMAND_STATUS.cancelled:
      return 'cancelled'
    default:
      return 'dead'
  }
}

/**
 * After the write command.
 * @param canVerify it is to be read back
 */
export function afterWrite(fate: Fate, canVerify: boolean): { readonly kind: 'read' } | Ended {
  if (fate.status !== COMMAND_STATUS.acked) return ended(outcomeOf(fate.status), fate.reason)
  return canVerify ? { kind: 'read' } : ended('ok', fate.reason)
}

/** After the read command. Written is not proven: without an answer the outcome is the fate of the question. */
export function afterRead(fate: Fate, wanted: Params): Ended {
  if (fate.status !== COMMAND_STATUS.acked) return ended(outcomeOf(fate.status), `read_back_${fate.reason}`)
  const { content } = fate
  if (content === undefined) return ended('mismatch', 'read_back_empty')
  const { mismatches, unproven } = compareParameters(wanted, content)
  const detail = { content, ...(unproven.length > 0 && { unproven }) }
  if (mismatches.length > 0) return ended('mismatch', 'read_back_differs', { ...detail, mismatches })
  return ended('ok', 'proven', detail)
}

/** After the one command of an OTA by FTP: what the device does with it is not published. */
export function afterOta(fate: Fate): Ended {
  return fate.status === COMMAND_STATUS.acked ? ended('sent', 'sent') : ended(outcomeOf(fate.status), fate.reason)
}

export interface SendChunk {
  readonly kind: 'send'
  readonly chunk: number
  readonly transfer: Transfer
}

/**
 * After a chunk.
 * @param isCancelled nobody wants the rest any more
 */
export function afterChunk(
  transfer: Transfer,
  fate: Fate,
  isCancelled: boolean,
): SendChunk | (Ended & { readonly transfer: Transfer }) {
  const input = inputOf(fate)
  if (input === undefined) return { ...ended(outcomeOf(fate.status), fate.reason), transfer }
  const { transfer: moved, step } = advance(transfer, input)
  if (step.kind === 'finished') return { ...ended('ok', 'transferred'), transfer: moved }
  if (step.kind === 'failed') return { ...ended(step.isSilence ? 'dead' : 'refused', step.reason), transfer: moved }
  if (isCancelled) return { ...ended('cancelled', 'cancelled'), transfer: moved }
  return { kind: 'send', chunk: step.chunk, transfer: moved }
}

/** @returns undefined: the command never got to the device, and its time is over */
function inputOf({ status, reason, attempts, chunk }: Fate): TransferInput | undefined {
  switch (status) {
    case COMMAND_STATUS.acked:
      // a device that only confirms upgrade mode in its own words names no chunk
      return { kind: 'next', chunk: chunk ?? 0 }
    case COMMAND_STATUS.refused:
      return reason === 'resend' ? { kind: 'resend', sends: attempts } : { kind: 'refused', reason }
    case COMMAND_STATUS.dead:
      return reason === UPGRADE_REQUESTED ? { kind: 'restart' } : { kind: 'timeout', sends: attempts }
    default:
      return undefined
  }
}
