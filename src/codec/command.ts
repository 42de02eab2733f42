/**
 * Table entries from their short form: `fields` stands for decode, encode and parameters at once. A body that `fields`
 * cannot say gives `body`, a hand-written codec.
 */

import { type Field, type FieldsCodec, fields, type ParameterDescription, restHex } from './fields.ts'
import type { Downlink, Fields, PayloadError, Uplink } from './protocol.ts'

export interface Body {
  readonly decode: (bytes: Uint8Array, from: number, to: number) => Fields | PayloadError
  readonly encode: (fields: Fields) => Uint8Array
  readonly parameters?: readonly ParameterDescription[]
}

type Short<C> = Omit<C, 'decode' | 'encode' | 'parameters' | 'direction' | 'layout'> & {
  readonly layout?: Uplink['layout']
} & ({ readonly fields: Readonly<Record<string, Field>> } | { readonly body: Body })

export function uplink(entry: Short<Uplink>): Uplink {
  return { layout: 'published', ...expand(entry), direction: 'uplink' } as Uplink
}

export function downlink(entry: Short<Downlink>): Downlink {
  return { layout: 'published', ...expand(entry), direction: 'downlink' } as Downlink
}

/** A body nobody published: kept byte for byte, lower-case hex. */
export function rawBody(bytesMax: number): FieldsCodec {
  return fields({ dataHex: restHex(bytesMax) })
}

function expand<C>(entry: Short<C>): object {
  if ('fields' in entry) {
    const { fields: spec, ...others } = entry
    const { decode, encode, parameters } = fields(spec)
    return { ...others, decode, encode, parameters }
  }
  const { body, ...others } = entry
  const { decode, encode, parameters = [] } = body
  return { ...others, decode, encode, parameters }
}
