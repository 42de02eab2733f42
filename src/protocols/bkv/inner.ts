/**
 * The inner frame of outer commands 0005 and 0015: `[length 2][sub 1][parameters]`, where the length counts the
 * parameters only. BKV document, section 4.
 *
 * A body is a head of fixed fields, then at most one list; both are read by length. What stands behind them is kept as
 * `trailingHex`, so that frames may grow.
 */
import type { Body } from '../../codec/command.ts'
import {
  type Field,
  FieldError,
  fields,
  hexOf,
  type ParameterDescription,
  readU16be,
  writeBe,
  writeHex,
} from '../../codec/fields.ts'
import { type Fields, PayloadError } from '../../codec/protocol.ts'
import { STATUS_BITS } from './status.ts'

/** Length and sub. */
const INNER_HEAD_BYTES = 3

export interface ListSpec {
  readonly name: string
  /** How many items: said by one byte before them, so many always, or as many as there is room. */
  readonly count: 'u8' | number | 'toEnd'
  readonly itemBytes: number
  /** `at + itemBytes` lies within the data. */
  readonly read: (bytes: Uint8Array, at: number) => unknown
  /** @throws FieldError the item cannot be written */
  readonly write: (into: Uint8Array, at: number, item: unknown) => void
  /** Binds `encode` only. */
  readonly countMax: number
  readonly about?: string
  /** Where items are objects: the names they may have. */
  readonly itemNames?: readonly string[]
  /** No two items have the same of this name. Binds `encode` only. */
  readonly isUniqueBy?: string
}

/** A list whose items are fixed fields. */
export function listOf(
  name: string,
  count: ListSpec['count'],
  countMax: number,
  spec: Readonly<Record<string, Field>>,
): ListSpec {
  const codec = fields(spec)
  const itemBytes = bytesOf(spec)
  const hasStatus = 'statusHex' in spec
  return {
    name,
    count,
    countMax,
    itemBytes,
    read: (bytes, at) => {
      const item = codec.decode(bytes, at, at + itemBytes)
      if (hasStatus) addStatus(item as Record<string, unknown>)
      return item
    },
    write: (into, at, item) => into.set(codec.encode(item as Fields), at),
    about: `items: ${codec.parameters.map((parameter) => parameter.name).join(', ')}`,
    itemNames: Object.keys(spec),
  }
}

/** Items are bare u16. */
export function listOfU16(name: string, count: ListSpec['count'], countMax: number): ListSpec {
  return {
    name,
    count,
    countMax,
    itemBytes: 2,
    read: readU16be,
    write: (into, at, item) => {
      if (!Number.isInteger(item) || (item as number) < 0 || (item as number) > 0xffff) {
        throw new FieldError(name, 'items must lie within 0..65535')
      }
      writeBe(into, at, 2, item as number)
    },
  }
}

export function bytesOf(spec: Readonly<Record<string, Field>>): number {
  return Object.values(spec).reduce((sum, field) => sum + field.bytes, 0)
}

/** One status byte is shown twice: as it came, and as bits. */
function addStatus(decoded: Record<string, unknown>): void {
  decoded['status'] = STATUS_BITS[Number.parseInt(decoded['statusHex'] as string, 16)]
}

/**
 * A body of outer command 0005 or 0015.
 *
 * Decoded: the fields, the list, `subHex`, `innerLength`, and `trailingHex` when there is more.
 * Encoded: `subHex`, if given, stands for the sub (a socket answers 1d under 1c).
 *
 * @param sub as the table has it
 */
export function innerBody(sub: number, spec: Readonly<Record<string, Field>>, list?: ListSpec): Body {
  const head = fields(spec)
  const headBytes = bytesOf(spec)
  const hasStatus = 'statusHex' in spec
  const ownSubHex = sub.toString(16).padStart(2, '0')

  function decode(bytes: Uint8Array, from: number, to: number): Fields | PayloadError {
    if (to - from < INNER_HEAD_BYTES) return new PayloadError('too_short', 'innerLength')
    const innerLength = readU16be(bytes, from)
    const paramsFrom = from + INNER_HEAD_BYTES
    if (innerLength !== to - paramsFrom) return new PayloadError('inner_length', 'innerLength')
    const decoded = head.decode(bytes, paramsFrom, to)
    if (decoded instanceof PayloadError) return decoded
    const whole = decoded as Record<string, unknown>
    let at = paramsFrom + headBytes
    if (list !== undefined) {
      let count: number
      if (list.count === 'u8') {
        if (at >= to) return new PayloadError('too_short', list.name)
        count = bytes[at++]!
      } else if (list.count === 'toEnd') {
        count = Math.floor((to - at) / list.itemBytes)
      } else {
        count = list.count
      }
      if (at + count * list.itemBytes > to) return new PayloadError('too_short', list.name)
      const items: unknown[] = []
      for (let index = 0; index < count; index++, at += list.itemBytes) items.push(list.read(bytes, at))
      whole[list.name] = items
    }
    if (hasStatus) addStatus(whole)
    const gotSub = bytes[from + 2]!
    whole['subHex'] = gotSub === sub ? ownSubHex : hexOf(bytes, from + 2, from + 3)
    whole['innerLength'] = innerLength
    if (at < to) whole['trailingHex'] = hexOf(bytes, at, to)
    return whole
  }

  function encode(values: Fields): Uint8Array {
    const items = list === undefined ? [] : itemsOf(list, values)
    const headData = head.encode(values)
    const countBytes = list?.count === 'u8' ? 1 : 0
    const trailing = (values['trailingHex'] ?? '') as string
    const listAt = INNER_HEAD_BYTES + headData.length + countBytes
    const itemBytes = list?.itemBytes ?? 0
    const trailingAt = listAt + items.length * itemBytes
    const data = new Uint8Array(trailingAt + trailing.length / 2)
    writeBe(data, 0, 2, data.length - INNER_HEAD_BYTES)
    data[2] = values['subHex'] === undefined ? sub : Number.parseInt(values['subHex'] as string, 16)
    data.set(headData, INNER_HEAD_BYTES)
    if (countBytes > 0) data[listAt - 1] = items.length
    items.forEach((item, index) => {
      list?.write(data, listAt + index * itemBytes, item)
    })
    writeHex(data, trailingAt, trailing)
    return data
  }

  const parameters = list === undefined ? head.parameters : [...head.parameters, describeList(list)]
  return { decode, encode, parameters }
}

function itemsOf(list: ListSpec, values: Fields): readonly unknown[] {
  const items = values[list.name]
  if (!Array.isArray(items)) throw new FieldError(list.name, 'needs a list')
  if (typeof list.count === 'number' && items.length !== list.count) {
    throw new FieldError(list.name, `needs ${list.count} items`)
  }
  if (items.length > list.countMax) throw new FieldError(list.name, `at most ${list.countMax} items`)
  const { isUniqueBy } = list
  if (isUniqueBy !== undefined && new Set(items.map((item) => (item as Fields)[isUniqueBy])).size < items.length)
    throw new FieldError(list.name, `each ${isUniqueBy} once`)
  return items
}

function describeList(list: ListSpec): ParameterDescription {
  return {
    name: list.name,
    type: 'list',
    bytes: list.itemBytes * list.countMax,
    isOptional: false,
    isRest: true,
    ...(list.about === undefined ? {} : { about: list.about }),
    ...(list.itemNames === undefined ? {} : { itemNames: list.itemNames }),
  }
}
