/**
 * Columns of many rows as parameters of one statement: typed arrays for `unnest`, written as PostgreSQL array literals.
 *
 * One statement text per table, whatever the number of rows: it is prepared once per connection. Literals are built
 * here because the driver types an array after its first element, and escapes every number like a text.
 */

/** `time`: ms since the epoch into timestamptz; `hex`: bytes into bytea; `json`: text into jsonb. */
export type ColumnType = 'text' | 'int4' | 'int8' | 'float8' | 'bool' | 'time' | 'hex' | 'json'
/** SQL column names and their types, in parameter order. */
export type Columns = Readonly<Record<string, ColumnType>>

const WIRE: Readonly<Record<ColumnType, string>> = {
  text: 'text',
  int4: 'int4',
  int8: 'int8',
  float8: 'float8',
  bool: 'bool',
  time: 'float8',
  hex: 'text',
  json: 'text',
}

/** The rows as a table expression named `i`; column `ordinal` counts them from 1. */
export function source(columns: Columns): string {
  const names = Object.keys(columns)
  const arrays = names.map((name, index) => `$${index + 1}::${WIRE[columns[name]!]}[]`)
  const values = names.map((name) => {
    if (columns[name] === 'time') return `to_timestamp(u.${name} / 1000.0) as ${name}`
    if (columns[name] === 'hex') return `decode(u.${name}, 'hex') as ${name}`
    if (columns[name] === 'json') return `u.${name}::jsonb as ${name}`
    return `u.${name}`
  })
  return `(select ${values.join(', ')}, u.ordinal from unnest(${arrays.join(', ')}) with ordinality as u(${names.join(', ')}, ordinal)) as i`
}

/** Parameters for `source(columns)`. @param values one array per column, all of one length; undefined is null */
export function parameters(columns: Columns, values: Readonly<Record<string, readonly unknown[]>>): string[] {
  return Object.keys(columns).map((name) => literal(columns[name]!, values[name]!))
}

function literal(type: ColumnType, values: readonly unknown[]): string {
  let text = '{'
  for (let index = 0; index < values.length; index++) {
    if (index > 0) text += ','
    const value = values[index]
    if (value === null || value === undefined) text += 'NULL'
    else if (type === 'text' || type === 'json') text += quoted(value as string)
    else if (type === 'hex') text += `"${hex(value as Uint8Array)}"`
    else text += value
  }
  return `${text}}`
}

function quoted(text: string): string {
  return /["\\]/.test(text) ? `"${text.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"` : `"${text}"`
}

function hex(bytes: Uint8Array): string {
  const buffer = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return buffer.toString('hex')
}
