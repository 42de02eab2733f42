/**
 * Which downlinks a caller may give by name, and what they take: made from the command tables of the protocols, so that
 * a new command is there by itself.
 *
 * Outside, parameters are named as in the table but in snake_case with the unit they carry on the wire
 * (`unplug_power_dw`: 0.1 W); a port counts from 1 as on the sticker. Starts and stops have routes of their own, because
 * they move orders; answers to what a device said are not commands at all.
 */
import { FieldError, type ParameterDescription } from '../../codec/fields.ts'
import type { Downlink, Fields, Protocol } from '../../codec/protocol.ts'
import { HttpError } from '../../errors/errors.ts'
import { COMMAND_FIELDS_BYTES_MAX } from '../../rows/mail.ts'
import { PRIORITY } from '../../session/command-lane.ts'

export interface CatalogueEntry {
  readonly downlink: Downlink
  readonly priority: number
  /** By outside name. */
  readonly parameters: ReadonlyMap<string, ParameterDescription>
}

/** What a command is on its way to the device. */
export interface EncodedCommand {
  readonly fields: Fields
  /** 0 when the command names none. */
  readonly socket: number
  /** From 1; 0 when the command names none. */
  readonly port: number
}

/** `unplugPowerDw` -> `unplug_power_dw` */
export const snakeOf = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
/** The inverse of `snakeOf`. */
const camelOf = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())

const isStart = ({ name }: Downlink, protocol: Protocol) =>
  protocol.askAfterStart?.(name, { command: 1, on: 1 }) !== undefined

/**
 * Is this an answer to an uplink, and nothing else? What nobody answers and what stands beside an answered uplink of
 * the same code is one (`endAckEcho02`: sent unasked it would erase a settlement); so is what needs a card lookup.
 */
function isOnlyReply(downlink: Downlink, key: number, protocol: Protocol): boolean {
  for (const { reply } of protocol.uplinks.values())
    if (reply !== 'none' && reply.with === downlink.name && (downlink.result === 'none' || reply.when === 'lookup'))
      return true
  const uplink = protocol.uplinks.get(key)
  return downlink.result === 'none' && uplink !== undefined && uplink.reply !== 'none'
}

function priorityOf({ name }: Downlink): number {
  if (/^(?:stop)/.test(name)) return PRIORITY.stop
  if (/^(?:firmware|fetchOwnFirmware|startOta)/.test(name)) return PRIORITY.firmware
  // somebody stands before the device and waits
  if (/^(?:ask|query|read|change|run|locate)/.test(name)) return PRIORITY.start
  return PRIORITY.parameter
}

const BKV_PORTS = 2
const WIRE_PORT_MAX = 254

/** The table's description as callers see it. */
function outside(parameter: ParameterDescription, protocol: Protocol): ParameterDescription {
  if (parameter.type === 'integer' && parameter.name === 'port') {
    const max = protocol.name === 'bkv' ? BKV_PORTS : WIRE_PORT_MAX + 1
    return { ...parameter, min: 1, max, isOptional: false, about: 'as on the sticker, from 1' }
  }
  // a payload of entries may leave everything out, but then nobody knows which socket is meant
  if (protocol.name === 'bkv' && parameter.name === 'socket') return { ...parameter, isOptional: false }
  // bytes without a meaning are zeros unless somebody knows better
  if (parameter.name === 'reservedHex') return { ...parameter, isOptional: true, about: 'zeros unless given' }
  if (parameter.type === 'list' && parameter.about !== undefined)
    return { ...parameter, about: parameter.about.replace(/\b[a-z]+[A-Z]\w*/g, snakeOf) }
  return parameter
}

/** Made once per protocol. */
export function catalogueOf(protocol: Protocol): ReadonlyMap<string, CatalogueEntry> {
  const entries = new Map<string, CatalogueEntry>()
  for (const [key, downlink] of protocol.downlinks) {
    if (isStart(downlink, protocol) || isOnlyReply(downlink, key, protocol)) continue
    const parameters = new Map(
      (downlink.parameters ?? []).map((parameter) => [snakeOf(parameter.name), outside(parameter, protocol)]),
    )
    entries.set(downlink.name, { downlink, priority: priorityOf(downlink), parameters })
  }
  return entries
}

const catalogues = new Map<Protocol, ReadonlyMap<string, CatalogueEntry>>()

/**
 * The entry of a command.
 * @throws HttpError INVALID_ARGUMENT no such command, or none that is given by name; the message says why
 */
export function commandNamed(protocol: Protocol, name: string): CatalogueEntry {
  let catalogue = catalogues.get(protocol)
  if (catalogue === undefined) {
    catalogue = catalogueOf(protocol)
    catalogues.set(protocol, catalogue)
  }
  const entry = catalogue.get(name)
  if (entry !== undefined) return entry
  const downlink = protocol.downlinkByName.get(name)
  const why =
    downlink === undefined
      ? `no command of ${protocol.name}`
      : isStart(downlink, protocol)
        ? 'starts and stops go through /charge and /stop, which keep the order'
        : 'only ever an answer to what the device says'
  throw new HttpError('INVALID_ARGUMENT', `name: ${name.slice(0, 100)}: ${why}`, {
    field: 'name',
    protocol: protocol.name,
    names: [...catalogue.keys()],
  })
}

/**
 * Checks what a caller gave by the bounds of the table, and by encoding it into a frame of this device.
 * @param deviceNo of the device it is for
 * @throws HttpError INVALID_ARGUMENT with `details.field`
 */
export function encodeCommand(
  protocol: Protocol,
  entry: CatalogueEntry,
  deviceNo: number,
  params: Readonly<Record<string, unknown>>,
): EncodedCommand {
  const { downlink, parameters } = entry
  for (const name of Object.keys(params))
    if (!parameters.has(name))
      throw invalid(name, `${downlink.name} takes ${[...parameters.keys()].join(', ') || 'no parameters'}`)
  const isWithout = Object.values(params).every((value) => value === undefined)
  const fields: Record<string, unknown> = isWithout ? { ...downlink.withoutParameters } : {}
  for (const [name, description] of parameters) {
    const value = params[name]
    if (value !== undefined) fields[description.name] = wireValue(name, value, description)
    else if (description.name === 'reservedHex') fields['reservedHex'] = '00'.repeat(description.bytes)
    else if (!description.isOptional) throw invalid(name, 'is required')
    else if (description.group !== undefined && isGroupGiven(parameters, description.group, params))
      throw invalid(name, 'is required with what belongs to it')
  }
  assertEncodes(protocol, downlink, deviceNo, fields)
  const { socket, port } = fields as { socket?: number; port?: number }
  return { fields, socket: socket ?? 0, port: port === undefined ? 0 : port + 1 }
}

function isGroupGiven(
  parameters: CatalogueEntry['parameters'],
  group: number,
  params: Readonly<Record<string, unknown>>,
): boolean {
  return [...parameters].some(([name, one]) => one.group === group && params[name] !== undefined)
}

/** @throws HttpError INVALID_ARGUMENT the wire or the way to the session thread cannot carry it */
export function assertEncodes(protocol: Protocol, downlink: Downlink, deviceNo: number, fields: Fields): void {
  try {
    const frame = protocol.encodeFrame('downlink', downlink, deviceNo, 1, downlink.encode(fields))
    if (frame.length > protocol.frameBytesMax)
      throw new RangeError(`a frame has at most ${protocol.frameBytesMax} bytes, this one ${frame.length}`)
    // a row of the mailbox carries them to the session thread
    const fieldsBytes = Buffer.byteLength(JSON.stringify(fields))
    if (fieldsBytes > COMMAND_FIELDS_BYTES_MAX)
      throw new RangeError(`parameters have at most ${COMMAND_FIELDS_BYTES_MAX} bytes, these ${fieldsBytes}`)
  } catch (error) {
    if (error instanceof FieldError)
      throw invalid(snakeOf(error.field), error.message.slice(error.field.length + 2), error)
    // every value has the declared type by now: what is left is a value inside a list, or too much of them
    throw invalid(downlink.name, error instanceof Error ? error.message : String(error), error)
  }
}

function wireValue(name: string, value: unknown, description: ParameterDescription): unknown {
  const { type, bytes, isRest, min, max, not } = description
  switch (type) {
    case 'integer': {
      if (typeof value !== 'number' || !Number.isInteger(value)) throw invalid(name, 'needs an integer')
      if (not?.includes(value) === true) throw invalid(name, `must not be ${not.join(', ')}`)
      if ((min !== undefined && value < min) || (max !== undefined && value > max))
        throw invalid(name, `must lie within ${min ?? ''}..${max ?? ''}${unitText(description)}`)
      return description.name === 'port' ? value - 1 : value
    }
    case 'hex': {
      if (typeof value !== 'string' || !/^(?:[0-9a-fA-F]{2})*$/.test(value))
        throw invalid(name, 'needs an even count of hex digits')
      if (isRest ? value.length > 2 * bytes : value.length !== 2 * bytes)
        throw invalid(name, isRest ? `at most ${bytes} bytes` : `needs ${2 * bytes} hex digits`)
      return value.toLowerCase()
    }
    case 'ascii':
      if (typeof value !== 'string') throw invalid(name, 'needs text')
      if (value.length > (max ?? bytes)) throw invalid(name, `at most ${max ?? bytes} characters`)
      return value
    case 'bcd':
      if (typeof value !== 'string' || value.length !== 2 * bytes || !/^\d*$/.test(value))
        throw invalid(name, `needs ${2 * bytes} digits`)
      return value
    case 'list':
      if (!Array.isArray(value)) throw invalid(name, 'needs a list')
      return value.map((item) => listItem(name, item, description))
  }
}

/** Items are numbers, texts, or objects of such; deeper lists no command has. */
function listItem(name: string, item: unknown, { itemNames }: ParameterDescription): unknown {
  if (typeof item === 'number' || typeof item === 'string') return item
  if (typeof item !== 'object' || item === null || Array.isArray(item))
    throw invalid(name, 'items are integers, texts or objects')
  // the wire would leave them out, and the way there would carry them
  const unknown = Object.keys(item).find((key) => itemNames?.includes(camelOf(key)) !== true)
  if (unknown !== undefined)
    throw invalid(name, `items have ${itemNames?.map(snakeOf).join(', ') ?? 'no names'}, not ${unknown.slice(0, 64)}`)
  return Object.fromEntries(Object.entries(item).map(([key, value]) => [camelOf(key), value as unknown]))
}

const unitText = ({ unit }: ParameterDescription) => (unit === undefined ? '' : ` (${unit})`)

function invalid(field: string, problem: string, cause?: unknown): HttpError {
  return new HttpError('INVALID_ARGUMENT', `params.${field}: ${problem}`, { field: `params.${field}` }, cause)
}

// ---- for the OpenAPI document ----------------------------------------------------------------------------------

type Json = Record<string, unknown>

/** One JSON schema per command: its name and its parameters with units and bounds. */
export function commandSchemas(protocols: readonly Protocol[]): Json[] {
  return protocols.flatMap((protocol) =>
    [...catalogueOf(protocol)].map(([name, { downlink, parameters }]) => ({
      type: 'object',
      title: `${protocol.name} ${name}`,
      description: `${downlink.summary} (${protocol.name} document, ${downlink.section})`,
      properties: {
        name: { const: name },
        params: {
          type: 'object',
          properties: Object.fromEntries([...parameters].map(([outer, one]) => [outer, parameterSchema(one)])),
          required: [...parameters].filter(([, { isOptional }]) => !isOptional).map(([outer]) => outer),
          ...groupsSchema(parameters),
          additionalProperties: false,
        },
      },
      required: [...parameters.values()].every(({ isOptional }) => isOptional) ? ['name'] : ['name', 'params'],
    })),
  )
}

/** Of the parameters that are given together, or not at all. */
function groupsSchema(parameters: CatalogueEntry['parameters']): Json {
  const grouped = [...parameters].filter(([, { group }]) => group !== undefined)
  if (grouped.length === 0) return {}
  const others = ([name, { group }]: (typeof grouped)[number]) =>
    grouped.filter(([other, one]) => other !== name && one.group === group).map(([other]) => other)
  return { dependentRequired: Object.fromEntries(grouped.map((one) => [one[0], others(one)])) }
}

function parameterSchema(description: ParameterDescription): Json {
  const { type, bytes, isRest, min, max, not, unit, about } = description
  const text = [unit, about].filter((part) => part !== undefined).join('; ')
  const said = text === '' ? {} : { description: text }
  switch (type) {
    case 'integer':
      return {
        type: 'integer',
        ...(min === undefined ? {} : { minimum: min }),
        ...(max === undefined ? {} : { maximum: max }),
        ...(not === undefined ? {} : { not: { enum: not } }),
        ...said,
      }
    case 'hex':
      return { type: 'string', pattern: `^(?:[0-9a-fA-F]{2}){${isRest ? `${min ?? 0},${bytes}` : bytes}}$`, ...said }
    case 'ascii':
      return { type: 'string', minLength: min ?? 0, maxLength: max ?? bytes, pattern: '^[ -~]*$', ...said }
    case 'bcd':
      return { type: 'string', pattern: `^[0-9]{${2 * bytes}}$`, ...said }
    case 'list':
      return { type: 'array', ...said }
  }
}
