/** Recorded bytes beside their meaning; identity fields are masked for whoever may not see them. */
import { type FrameHead, PayloadError, type Protocol, UNIT, type UnitMark } from '../codec/protocol.ts'

export interface Explained {
  readonly command: string
  readonly messageId: number | null
  readonly fields: Readonly<Record<string, unknown>>
}

/** Decodes one recorded frame; bytes that are none are told as such. */
export function explain(protocol: Protocol, bytes: Uint8Array, isUplink: boolean): Explained {
  const mark: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_header' }
  protocol.findFrame(bytes, 0, bytes.length, protocol.frameBytesMax, mark)
  if (mark.kind !== UNIT.frame || mark.from !== 0 || mark.to !== bytes.length)
    return { command: 'noise', messageId: null, fields: {} }
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  protocol.readHead(bytes, 0, bytes.length, head)
  const command = (isUplink ? protocol.uplinks : protocol.downlinks).get(head.commandKey)
  if (command === undefined) return { command: 'unknown', messageId: head.messageId, fields: {} }
  const fields = command.decode(bytes, head.dataFrom, head.dataTo)
  return {
    command: command.name,
    messageId: head.messageId,
    fields: fields instanceof PayloadError ? { payload_error: fields.payloadError, at: fields.at } : fields,
  }
}

const IDENTITY = /iccid|imei|simid|cardid|cardorcode|card2/i
const ICCID_IN_TEXT = /8986[0-9a-f]{16}/gi

/** Keeps the last four characters of ICCID, IMEI and card numbers, at any depth. */
export function maskIdentity(value: unknown, name = ''): unknown {
  if (Array.isArray(value)) return value.map((one) => maskIdentity(one, name))
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, maskIdentity(one, key)]))
  if (typeof value !== 'string') return value
  if (IDENTITY.test(name)) return '*'.repeat(Math.max(0, value.length - 4)) + value.slice(-4)
  return value.replace(ICCID_IN_TEXT, (iccid) => `${'*'.repeat(16)}${iccid.slice(-4)}`)
}
