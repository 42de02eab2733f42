/**
 * One firmware transfer as a dialogue that can be resumed: what the device has, and what to send next. AP3000 document,
 * section 8, "Firmware". Pure: results, silences and requests of the device come in, the next chunk or the end goes out.
 *
 * Each chunk is a command of its own on the lane, which repeats it after 30 s of silence and gives up after four sends;
 * this counts those sends together with the ones the device asks for. A device that asks for its upgrade (05, 15, FA or
 * E0 of chunk 0) has forgotten everything: the transfer starts again at chunk 1.
 */

export interface Transfer {
  readonly chunksTotal: number
  /** The device has chunks 1 to `acked`. */
  readonly acked: number
  /** The device must be brought into upgrade mode first. */
  readonly needsTrigger: boolean
  /** How often the frame that is next was sent already. */
  readonly sends: number
  /** How often it started again at chunk 1. */
  readonly restarts: number
}

/** `sends`: how often the lane had sent the frame this is about. */
export type TransferInput =
  /** Taken. @see chunk 0: upgrade mode is entered */
  | { readonly kind: 'next'; readonly chunk: number }
  | { readonly kind: 'resend'; readonly sends: number }
  | { readonly kind: 'timeout'; readonly sends: number }
  /** Sum error, wrong type ..: more of the same would not help. */
  | { readonly kind: 'refused'; readonly reason: string }
  /** The device asks for its upgrade from the beginning. */
  | { readonly kind: 'restart' }

export type TransferStep =
  /** 0: the frame that enters upgrade mode. */
  | { readonly kind: 'send'; readonly chunk: number }
  | { readonly kind: 'finished' }
  | { readonly kind: 'failed'; readonly reason: string; readonly isSilence: boolean }

/** Up to three resends. The lane may add the rest of its own tries to the last of them. */
export const SENDS_MAX = 4
/** A device that forgets everything so often has another trouble than the line. */
export const RESTARTS_MAX = 5

/** @param chunksTotal 1..65535, check chunk included */
export function newTransfer(chunksTotal: number, needsTrigger: boolean): Transfer {
  return { chunksTotal, acked: 0, needsTrigger, sends: 0, restarts: 0 }
}

/** What to send when nothing is under way: at the start, and after a restart of the gateway. */
export function nextChunk({ acked, needsTrigger }: Transfer): number {
  return needsTrigger ? 0 : acked + 1
}

/** 0..100, in steps of 5 rounded down. */
export function percentOf({ acked, chunksTotal }: Transfer): number {
  return Math.floor((20 * acked) / chunksTotal) * 5
}

/** @param input about the frame that `nextChunk(transfer)` names, except `restart` */
export function advance(transfer: Transfer, input: TransferInput): { transfer: Transfer; step: TransferStep } {
  switch (input.kind) {
    case 'next': {
      // a result for another chunk says that this one did not arrive where it belongs
      if (input.chunk !== nextChunk(transfer)) return again(transfer, transfer.sends + 1, 'wrong_chunk', false)
      const moved = transfer.needsTrigger
        ? { ...transfer, needsTrigger: false, sends: 0 }
        : { ...transfer, acked: transfer.acked + 1, sends: 0 }
      if (moved.acked === moved.chunksTotal) return { transfer: moved, step: { kind: 'finished' } }
      return { transfer: moved, step: { kind: 'send', chunk: nextChunk(moved) } }
    }
    case 'resend':
      return again(transfer, transfer.sends + input.sends, 'too_many_resends', false)
    case 'timeout':
      return again(transfer, transfer.sends + input.sends, 'no_result', true)
    case 'refused':
      return { transfer, step: { kind: 'failed', reason: input.reason, isSilence: false } }
    case 'restart': {
      const restarts = transfer.restarts + 1
      const moved = { ...transfer, acked: 0, needsTrigger: false, sends: 0, restarts }
      if (restarts > RESTARTS_MAX)
        return { transfer: moved, step: { kind: 'failed', reason: 'too_many_restarts', isSilence: false } }
      return { transfer: moved, step: { kind: 'send', chunk: 1 } }
    }
  }
}

function again(transfer: Transfer, sends: number, reason: string, isSilence: boolean) {
  const moved = { ...transfer, sends }
  const step: TransferStep =
    sends >= SENDS_MAX ? { kind: 'failed', reason, isSilence } : { kind: 'send', chunk: nextChunk(moved) }
  return { transfer: moved, step }
}
