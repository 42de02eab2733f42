/**
 * A recorded frame for whoever may not see identities (contract 3, frames): what is hidden in the decoded fields is hidden
 * in the bytes as well, or the bytes would tell it. Pure.
 */
import { type FrameHead, type Protocol, UNIT, type UnitMark } from '../../codec/protocol.ts'
import { type Explained, maskIdentity } from '../../recording/explain.ts'

export interface Shown {
  /** As on the wire; a hidden byte is `2a`, an asterisk. */
  readonly hex: string
  readonly fields: Readonly<Record<string, unknown>>
}

const HIDDEN = 0x2a
/** Of an identity that stands alone on the wire, as many as its field would show. */
const SHOWN_AT_END = 4

/**
 * Hides each identity that the fields name wherever its bytes stand in the data. Where that cannot be (the bytes are not
 * found, or nobody knows what they mean) all of the data is hidden.
 *
 * @param explained what `explain` makes of the bytes
 */
export function maskFrame(protocol: Protocol, bytes: Uint8Array, isUplink: boolean, explained: Explained): Shown {
  const shown = Buffer.from(bytes)
  const mark: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_header' }
  protocol.findFrame(bytes, 0, bytes.length, protocol.frameBytesMax, mark)
  const isWhole = mark.from === 0 && mark.to === bytes.length
  if (!isWhole || mark.kind !== UNIT.frame) {
    // noise may hold half a frame; a sign of life is the same from everybody
    const isIdentity = isWhole && mark.kind === UNIT.identity
    if (!isWhole || mark.kind !== UNIT.signOfLife)
      shown.fill(HIDDEN, 0, isIdentity ? bytes.length - SHOWN_AT_END : bytes.length)
    return { hex: shown.toString('hex'), fields: explained.fields }
  }
  const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  protocol.readHead(bytes, 0, bytes.length, head)
  const data = shown.subarray(head.dataFrom, head.dataTo)
  const command = (isUplink ? protocol.uplinks : protocol.downlinks).get(head.commandKey)
  if (command === undefined || command.layout !== 'published') {
    data.fill(HIDDEN)
    return { hex: shown.toString('hex'), fields: withoutTexts(explained.fields) as Shown['fields'] }
  }
  const wire = Buffer.from(data)
  const identities = identitiesIn(explained.fields)
  const isHidden = !('payload_error' in explained.fields) && identities.every((identity) => hide(identity, wire, data))
  if (isHidden) hideIccids(wire, data)
  else data.fill(HIDDEN)
  return { hex: shown.toString('hex'), fields: maskFields(explained.fields, identities) as Shown['fields'] }
}

interface Identity {
  readonly text: string
  /** As the fields show it: `****05dd`. */
  readonly masked: string
}

/** Every text of the fields that is shown otherwise. */
function identitiesIn(fields: unknown): Identity[] {
  const found: Identity[] = []
  const compare = (value: unknown, masked: unknown): void => {
    if (typeof value === 'string') {
      // a blank number is nobody's, and zeros stand everywhere
      if (value !== masked && !/^(?:0+|f+)$/i.test(value)) found.push({ text: value, masked: masked as string })
    } else if (typeof value === 'object' && value !== null)
      for (const [name, one] of Object.entries(value)) compare(one, (masked as Record<string, unknown>)[name])
  }
  compare(fields, hidden(fields))
  return found
}

/** As `maskIdentity`; and keys of cards, which the API tells nobody (src/main/commands/service.ts), without their end. */
function hidden(fields: unknown): unknown {
  const keysHidden = (value: unknown, name: string): unknown => {
    if (Array.isArray(value)) return value.map((one) => keysHidden(one, name))
    if (typeof value === 'object' && value !== null)
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, keysHidden(one, key)]))
    return typeof value === 'string' && /password/i.test(name) ? '*'.repeat(value.length) : value
  }
  return keysHidden(maskIdentity(fields), '')
}

/** @param wire as it came; what is found in it is hidden in `data`. @returns false: it stands nowhere, in no form we know */
function hide({ text, masked }: Identity, wire: Buffer, data: Buffer): boolean {
  const isHiddenAt = (index: number) => masked[index] !== text[index]
  let isFound = false
  const forms: [Buffer, (byte: number) => boolean][] = [
    [Buffer.from(text, 'latin1'), isHiddenAt],
    [Buffer.from(text.toUpperCase(), 'latin1'), isHiddenAt],
    [Buffer.from(text.toLowerCase(), 'latin1'), isHiddenAt],
  ]
  if (/^(?:[0-9a-f]{2})+$/i.test(text))
    forms.push([Buffer.from(text, 'hex'), (byte) => isHiddenAt(2 * byte) || isHiddenAt(2 * byte + 1)])
  for (const [form, isHiddenByte] of forms)
    for (let at = wire.indexOf(form); at >= 0; at = wire.indexOf(form, at + 1)) {
      isFound = true
      for (let byte = 0; byte < form.length; byte++) if (isHiddenByte(byte)) data[at + byte] = HIDDEN
    }
  return isFound
}

/** What no field names: keys of unknown meaning, bytes behind the last field. */
function hideIccids(wire: Buffer, data: Buffer): void {
  for (const { index, 0: iccid } of wire.toString('latin1').matchAll(/8986[0-9a-f]{16}/gi))
    data.fill(HIDDEN, index, index + iccid.length - SHOWN_AT_END)
}

/** ICCIDs as the hex of their text. */
const ICCID_AS_HEX = /38393836(?:3[0-9]|[46][1-6]){16}/gi

/** As `hidden`, and the same identities where other fields repeat them (raw bytes, unknown keys). */
function maskFields(fields: unknown, identities: readonly Identity[]): unknown {
  const repeats = identities.flatMap(({ text, masked }): [string, string][] => {
    const [asHex, maskedHex] = [text, masked].map((one) => Buffer.from(one, 'latin1').toString('hex'))
    return [
      [text.toLowerCase(), masked.toLowerCase()],
      [asHex!, maskedHex!],
    ]
  })
  const repeatsHidden = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(repeatsHidden)
    if (typeof value === 'object' && value !== null)
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, repeatsHidden(one)]))
    if (typeof value !== 'string') return value
    let shown = value.replace(ICCID_AS_HEX, (iccid) => '2a'.repeat(16) + iccid.slice(-8))
    for (const [text, masked] of repeats) {
      for (let at = shown.toLowerCase().indexOf(text); at >= 0; at = shown.toLowerCase().indexOf(text, at + 1))
        shown = shown.slice(0, at) + masked + shown.slice(at + text.length)
    }
    return shown
  }
  return repeatsHidden(hidden(fields))
}

function withoutTexts(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutTexts)
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, withoutTexts(one)]))
  return typeof value === 'string' ? '*'.repeat(value.length) : value
}
