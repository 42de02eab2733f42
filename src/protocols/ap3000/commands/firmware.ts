/** AP3000 document, section 8, "Firmware": E0 to E2, F8 to FA, and E4. */
import { type Body, downlink, rawBody, uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import {
  bytesHex,
  FieldError,
  fields as fieldsOf,
  limited,
  readU16le,
  readU32le,
  u16le,
  writeLe,
} from '../../../codec/fields.ts'
import type { Downlink, Fields, Uplink } from '../../../codec/protocol.ts'
import { byteHex, result } from '../fields.ts'
import { DATA_BYTES_MAX } from '../frame.ts'
import { hexCode, resultFact } from './result.ts'

/** Server: 30 s timeout, up to three resends. */
const CHUNK_WITHIN_MS = 30_000
const CHUNK_TRIES = 4
const CHUNK_BYTES = 200
const OLD_CHUNK_BYTES = 256

const RESEND = { 1: 'resend' }
const REASONS = {
  ...RESEND,
  2: 'sum_error',
  3: 'wrong_type',
  4: 'no_check_chunk',
  5: 'wrong_type_in_chunk_0',
}

/** Chunks count from 1; each is full, the sender pads the last. */
function chunkBody(bytes: number): Body {
  const fromOne = limited(u16le, { min: 1 })
  const { decode, encode, parameters } = fieldsOf({
    chunksTotal: fromOne,
    chunk: limited(fromOne, { about: 'from 1, at most chunksTotal' }),
    firmwareHex: bytesHex(bytes),
  })
  return {
    decode,
    encode: (fields) => {
      const data = encode(fields)
      const { chunk, chunksTotal } = fields as { chunk: number; chunksTotal: number }
      if (chunk > chunksTotal) throw new FieldError('chunk', `must be at most ${chunksTotal}, the total`)
      return data
    },
    parameters,
  }
}

const chunk200 = chunkBody(CHUNK_BYTES)
/** A whole chunk, or nothing of it: that is upgrade mode. */
const CHUNK = 1
const TRIGGER = { trigger: true }
const bodyFA: Body = {
  decode: (bytes, from, to) => (from === to ? TRIGGER : chunk200.decode(bytes, from, to)),
  encode: (fields) => (fields['trigger'] === true ? new Uint8Array(0) : chunk200.encode(fields)),
  parameters: (chunk200.parameters ?? []).map((one) => ({ ...one, isOptional: true, group: CHUNK })),
}

export const firmwareDownlinks: readonly Downlink[] = [
  firmware(0xe0, 'firmwareSlave', 'firmware of a device, chunks of 200', chunk200),
  firmware(0xe1, 'firmwarePowerBoard', 'firmware of a power board, chunks of 200', chunk200),
  firmware(0xe2, 'firmwareViaHost', 'firmware of slaves through their host, chunks of 200', chunk200),
  firmware(0xf8, 'firmwareOldDevice', 'firmware of an old device, chunks of 256', chunkBody(OLD_CHUNK_BYTES)),
  firmware(0xf9, 'firmwareOldHost', 'firmware of an old host, chunks of 256', chunkBody(OLD_CHUNK_BYTES)),
  firmware(
    0xfa,
    'firmwareHost',
    'firmware of a host: without parameters enter upgrade mode, then chunks of 200',
    bodyFA,
    TRIGGER,
  ),
  downlink({
    code: 0xe4,
    name: 'fetchOwnFirmware',
    section: '6, E4',
    summary: 'AP632: fetch your own firmware; no result documented',
    fields: {},
    result: 'none',
  }),
]

export const firmwareUplinks: readonly Uplink[] = [
  firmwareResult(0xe0, 'firmwareSlave', REASONS, true),
  firmwareResult(0xe1, 'firmwarePowerBoard', REASONS, false),
  firmwareResult(0xe2, 'firmwareViaHost', REASONS, false),
  firmwareResult(0xf8, 'firmwareOldDevice', RESEND, false),
  firmwareResult(0xf9, 'firmwareOldHost', RESEND, false),
  firmwareResult(0xfa, 'firmwareHost', RESEND, true),
  uplink({
    code: 0xe4,
    name: 'fetchOwnFirmwareResult',
    section: '6, E4',
    summary: 'should AP632 answer E4: kept byte for byte',
    layout: 'unpublished',
    body: rawBody(DATA_BYTES_MAX),
    reply: 'none',
  }),
]

function firmware(code: number, name: string, summary: string, body: Body, withoutParameters?: Fields): Downlink {
  return downlink({
    code,
    name,
    section: '8, Firmware',
    summary,
    body,
    ...(withoutParameters === undefined ? {} : { withoutParameters }),
    result: { by: `${name}Result`, withinMs: CHUNK_WITHIN_MS, tries: CHUNK_TRIES },
  })
}

/**
 * @param isRequest chunk 0 is an upgrade request as well, asked (trigger of FA) or unasked: both times the server goes
 *   on at chunk 1
 */
function firmwareResult(
  code: number,
  name: string,
  reasons: Readonly<Record<number, string>>,
  isRequest: boolean,
): Uplink {
  return uplink({
    code,
    name: `${name}Result`,
    section: '8, Firmware',
    summary: `result of a chunk of ${hexCode(code)}${isRequest ? '; chunk 0: the device asks for firmware' : ''}`,
    fields: { result, chunk: u16le },
    facts(fields: Fields) {
      const chunk = fields['chunk'] as number
      const facts: Fact[] = [{ ...resultFact(name, fields, reasons), chunk }]
      if (isRequest && chunk === 0) facts.push({ fact: 'upgradeRequested', by: `${name}Result` })
      return facts
    },
    reply: 'none',
  })
}

// ---- the optional check chunk, behind the last and counted in the total ----------------------------------------

export interface CheckChunk {
  /** Sum of all firmware bytes, 32 bits. */
  readonly sum: number
  readonly deviceTypeHex: string
  readonly fwVersion: number
}
const CHECK_MAGIC = 'a1a2a3a4a5a6a7a8'

/** @returns `firmwareHex` of a check chunk of 200 bytes */
export function encodeCheckChunk({ sum, deviceTypeHex, fwVersion }: CheckChunk): string {
  const numbers = new Uint8Array(4 + 1 + 2)
  writeLe(numbers, 0, 4, sum)
  numbers[4] = Number.parseInt(deviceTypeHex, 16)
  writeLe(numbers, 5, 2, fwVersion)
  return (CHECK_MAGIC + Buffer.from(numbers).toString('hex')).padEnd(2 * CHUNK_BYTES, '0')
}

/** @returns undefined for a chunk of firmware */
export function decodeCheckChunk(firmwareHex: string): CheckChunk | undefined {
  if (!firmwareHex.startsWith(CHECK_MAGIC)) return undefined
  const bytes = Buffer.from(firmwareHex, 'hex')
  return { sum: readU32le(bytes, 8), deviceTypeHex: byteHex(bytes[12] as number), fwVersion: readU16le(bytes, 13) }
}
