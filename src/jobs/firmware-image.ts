/**
 * A firmware image as the chunks of AP3000 document, section 8, "Firmware": which command carries which target, how long
 * a chunk is, the padding of the last one, and the optional check chunk behind it. Pure.
 */
import type { Fields } from '../codec/protocol.ts'
import { type CheckChunk, encodeCheckChunk } from '../protocols/ap3000/commands/firmware.ts'

export interface FirmwareTarget {
  /** Of the downlink table. */
  readonly command: string
  readonly chunkBytes: 200 | 256
  /** Upgrade mode is entered by an empty frame first. */
  readonly hasTrigger: boolean
}

/** What a transfer in chunks can be for, by the name callers use. */
export const FIRMWARE_TARGETS = {
  slave: { command: 'firmwareSlave', chunkBytes: 200, hasTrigger: false },
  power_board: { command: 'firmwarePowerBoard', chunkBytes: 200, hasTrigger: false },
  via_host: { command: 'firmwareViaHost', chunkBytes: 200, hasTrigger: false },
  old_device: { command: 'firmwareOldDevice', chunkBytes: 256, hasTrigger: false },
  old_host: { command: 'firmwareOldHost', chunkBytes: 256, hasTrigger: false },
  host: { command: 'firmwareHost', chunkBytes: 200, hasTrigger: true },
} as const satisfies Record<string, FirmwareTarget>
export type FirmwareTargetName = keyof typeof FIRMWARE_TARGETS

/** Only chunks of 200 bytes have a check chunk. */
export type Check = Omit<CheckChunk, 'sum'>

/** Of u16 `total`. */
export const CHUNKS_MAX = 65_535

/** @param imageBytes from 1 */
export function chunksTotalOf(target: FirmwareTarget, imageBytes: number, check: Check | undefined): number {
  return Math.ceil(imageBytes / target.chunkBytes) + (check === undefined ? 0 : 1)
}

/** What the padding of the last chunk is made of: erased flash. The document does not say. */
const PADDING = 0xff

/**
 * What the downlink's `encode` takes.
 * @param chunk from 1; 0: the frame that enters upgrade mode
 */
export function chunkFields(
  target: FirmwareTarget,
  image: Uint8Array,
  check: Check | undefined,
  chunk: number,
): Fields {
  if (chunk === 0) return { trigger: true }
  const chunksTotal = chunksTotalOf(target, image.length, check)
  if (chunk === chunksTotal && check !== undefined)
    return { chunksTotal, chunk, firmwareHex: encodeCheckChunk({ ...check, sum: sumOf(image) }) }
  const bytes = Buffer.alloc(target.chunkBytes, PADDING)
  bytes.set(image.subarray((chunk - 1) * target.chunkBytes, chunk * target.chunkBytes))
  return { chunksTotal, chunk, firmwareHex: bytes.toString('hex') }
}

/** Sum of all bytes, 32 bits; without the padding, which is no firmware. */
function sumOf(image: Uint8Array): number {
  let sum = 0
  for (const byte of image) sum = (sum + byte) >>> 0
  return sum
}
