/** AP3000 document, section 8, "Small ones": 87 to 89, 8B to 8F, 95 to 98, and the placeholders FD and FE. */
import { type Body, downlink, rawBody, uplink } from '../../../codec/command.ts'
import {
  ascii,
  bytesHex,
  type Field,
  FieldError,
  fields as fieldsOf,
  hexOf,
  hexSize,
  limited,
  optional,
  printable,
  restHex,
  u8,
  u16le,
  u32le,
  writeHex,
} from '../../../codec/fields.ts'
import { type Downlink, PayloadError, RESULT_WITHIN_MS, type Uplink } from '../../../codec/protocol.ts'
import { flag, port, result } from '../fields.ts'
import { DATA_BYTES_MAX } from '../frame.ts'
import { byteResult, hexCode, resultFact, TRIES } from './result.ts'

/** A result that was lost in the reboot it announces must not lead to a second reboot. */
const REBOOT_TRIES = 1
const EEPROM_BYTES_MAX = 32

/** Text that ends in a zero even when it is full. */
function zeroEnded(count: number): Field {
  const field = printable(ascii(count))
  return {
    ...field,
    limits: { max: count - 1, about: `at most ${count - 1} characters` },
    write(into, at, value, name) {
      if (typeof value === 'string' && value.length >= count)
        throw new FieldError(name, `at most ${count - 1} characters`)
      field.write(into, at, value, name)
    },
  }
}

/** Fields, and behind them bytes whose count is their last field. */
function countedHex(
  fixedSpec: Readonly<Record<string, Field>>,
  count: string | undefined,
  name: string,
  bytesMin = 0,
): Body {
  const countName = count ?? 'count'
  const head = fieldsOf({ ...fixedSpec, [countName]: u8 })
  const headBytes = head.parameters.reduce((sum, { bytes }) => sum + bytes, 0)
  return {
    decode(bytes, from, to) {
      const decoded = head.decode(bytes, from, to)
      if (decoded instanceof PayloadError) return decoded
      const { [countName]: size, ...others } = decoded
      const at = from + headBytes
      const end = at + (size as number)
      if (end > to) return new PayloadError('inner_length', name)
      return { ...(count === undefined ? others : decoded), [name]: hexOf(bytes, at, end) }
    },
    encode(fields) {
      const size = hexSize(fields[name], name)
      if (size < bytesMin) throw new FieldError(name, `at least ${bytesMin} bytes`)
      if (size > 0xff) throw new FieldError(name, 'at most 255 bytes')
      const data = new Uint8Array(headBytes + size)
      data.set(head.encode({ ...fields, [countName]: size }))
      writeHex(data, headBytes, fields[name] as string)
      return data
    },
    parameters: [
      ...head.parameters.filter(({ name: other }) => other !== countName),
      ...fieldsOf({ [name]: restHex(0xff, bytesMin) }).parameters,
    ],
  }
}

const noFields: Body = fieldsOf({})

/** FD and FE: registers of four bytes, meaning unpublished. */
function registersBody(leading: Readonly<Record<string, Field>>, count: number): Body {
  const registers = Array.from({ length: count }, (_, index) => `r${index + 1}`)
  const whole = fieldsOf({ ...leading, ...Object.fromEntries(registers.map((name) => [name, u32le])) })
  return {
    decode(bytes, from, to) {
      const decoded = whole.decode(bytes, from, to)
      if (decoded instanceof PayloadError) return decoded
      const kept = Object.fromEntries(Object.keys(leading).map((name) => [name, decoded[name]]))
      return { ...kept, registers: registers.map((name) => decoded[name]) }
    },
    encode(fields) {
      const values = fields['registers']
      if (!Array.isArray(values) || values.length !== count)
        throw new FieldError('registers', `needs ${count} integers`)
      return whole.encode({ ...fields, ...Object.fromEntries(registers.map((name, index) => [name, values[index]])) })
    },
    parameters: [
      ...fieldsOf(leading).parameters,
      {
        name: 'registers',
        type: 'list',
        bytes: 4 * count,
        isOptional: false,
        isRest: false,
        about: `${count} integers of 32 bits`,
      },
    ],
  }
}

export const smallDownlinks: readonly Downlink[] = [
  small(0x87, 'reboot', 'reboot; the result may be lost', noFields, REBOOT_TRIES),
  small(0x88, 'clearMemory', 'clear memory, ids stay', noFields),
  small(0x89, 'playVoice', 'play voices (reserved)', countedHex({ interrupt: flag }, undefined, 'voicesHex')),
  small(
    0x8b,
    'readEeprom',
    'read EEPROM, at most 32 bytes',
    fieldsOf({ address: u16le, bytes: limited(u8, { min: 1, max: EEPROM_BYTES_MAX }) }),
  ),
  small(0x8c, 'writeEeprom', 'write EEPROM', countedHex({ address: u16le }, 'bytes', 'eepromHex', 1)),
  small(0x8d, 'setWorkMode', '0 networked, 1 card only', fieldsOf({ workMode: flag })),
  small(
    0x8e,
    'setQrText',
    'main screen and QR text',
    fieldsOf({
      mainScreen: limited(flag, { about: '0 port states, 1 QR' }),
      reservedHex: bytesHex(3),
      qrAscii: zeroEnded(72),
    }),
  ),
  small(
    0x8f,
    'setTcMode',
    'TC card mode',
    fieldsOf({
      workMode: limited(u8, { max: 6, not: [2], about: '0 time, 1 per use, 3 energy, 4 fixed, 5 home, 6 free' }),
    }),
  ),
  small(0x95, 'showTemporaryQr', 'temporary QR text', fieldsOf({ qrAscii: printable(ascii(200)) })),
  small(0x96, 'locate', 'sound and light', fieldsOf({ locateS: limited(u8, { unit: 's' }) })),
  small(0x97, 'setSilent', 'parameters 1.3: silent mode', fieldsOf({ silent: flag })),
  small(
    0x98,
    'runFunction',
    'functions: 0 = force the cabinet open',
    fieldsOf({ function: limited(u8, { about: '0 = force the cabinet open' }), port }),
  ),
  small(0xfd, 'placeholderFd', 'placeholder: function and four registers', registersBody({ function: u8 }, 4)),
  downlink({
    code: 0xfe,
    name: 'placeholderFe',
    section: '8, FE',
    summary: 'placeholder: three registers; its result is unpublished',
    body: registersBody({}, 3),
    result: 'none',
  }),
]

export const smallUplinks: readonly Uplink[] = [
  byteResult(0x87, 'reboot', '8, 87'),
  byteResult(0x88, 'clearMemory', '8, 88'),
  byteResult(0x89, 'playVoice', '8, 89'),
  uplink({
    code: 0x8b,
    name: 'readEepromResult',
    section: '8, 8B',
    summary: 'result of 8B: 0 ok, and the bytes read',
    fields: { result, eepromHex: optional(restHex(DATA_BYTES_MAX)) },
    facts: (fields) => {
      const { result: _, ...content } = fields
      return [{ ...resultFact('readEeprom', fields), content }]
    },
    reply: 'none',
  }),
  byteResult(0x8c, 'writeEeprom', '8, 8C'),
  byteResult(0x8d, 'setWorkMode', '8, 8D', { 1: 'unsupported' }),
  byteResult(0x8e, 'setQrText', '8, 8E'),
  byteResult(0x8f, 'setTcMode', '8, 8F'),
  byteResult(0x95, 'showTemporaryQr', '8, 95'),
  byteResult(0x96, 'locate', '8, 96'),
  byteResult(0x97, 'setSilent', '8, 97'),
  byteResult(0x98, 'runFunction', '8, 98'),
  uplink({
    code: 0xfd,
    name: 'placeholderFdResult',
    section: '8, FD',
    summary: 'result of FD: function and result',
    fields: { function: u8, result },
    facts: (fields) => [resultFact('placeholderFd', fields)],
    reply: 'none',
  }),
  uplink({
    code: 0xfe,
    name: 'placeholderFeResult',
    section: '8, FE',
    summary: 'result of FE, kept byte for byte',
    layout: 'unpublished',
    body: rawBody(DATA_BYTES_MAX),
    reply: 'none',
  }),
]

function small(code: number, name: string, summary: string, body: Body, tries = TRIES): Downlink {
  return downlink({
    code,
    name,
    section: `8, ${hexCode(code)}`,
    summary,
    body,
    result: { by: `${name}Result`, withinMs: RESULT_WITHIN_MS, tries },
  })
}
