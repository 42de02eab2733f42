/**
 * What the fuzzer feeds to a codec: one damaged frame in its surroundings, decided by a seed and an index alone.
 *
 * A frame begins as one of the corpus or as one made from the command table; then its structure is damaged and sealed
 * again (so that the damage reaches the decoders), its bytes are damaged (so that it does not), and noise, pieces and
 * frames of the other protocol are put around it.
 */
import { readFileSync } from 'node:fs'
import type { Vector } from '../codec/corpus-suite.ts'
import type { ParameterDescription } from '../codec/fields.ts'
import type { Downlink, Fields, Protocol, Uplink } from '../codec/protocol.ts'
import { ap3000 } from '../protocols/ap3000/table.ts'
import { bkv } from '../protocols/bkv/table.ts'
import { AP3000_REFERENCE, BKV_REFERENCE, type Reference } from './fuzz-reference.ts'
import { Random } from './random.ts'

export interface Target {
  readonly protocol: Protocol
  readonly reference: Reference
  readonly commands: readonly Source[]
  /** Every vector's bytes, valid or not. */
  readonly corpus: readonly Uint8Array[]
  /** Whole uplink frames of the corpus, small enough for a connection that has not logged in. */
  readonly goodFrames: readonly Uint8Array[]
}

/** A command and what its data may look like. */
interface Source {
  readonly command: Uplink | Downlink
  /** Data of its frames in the corpus. */
  readonly samples: readonly Uint8Array[]
}

export interface FuzzInput {
  /** Damage, then good frames. */
  readonly stream: Uint8Array
  /** Where the good frames begin in `stream`, and one more entry: its end. */
  readonly goodAt: readonly number[]
  /** Whether a good frame of this connection was seen before. */
  readonly isLoggedIn: boolean
  /** Where the stream is cut: ascending positions within it. */
  readonly cuts: readonly number[]
}

const GOOD_FRAME_BYTES_MAX = 200
const GOOD_FRAMES = 3
/** So seldom is the stream so long that whatever waits must be decided without giving up. */
const LONG_TAIL_CHANCE = 1 / 48
/** Length fields at the edges of every bound there is, and of one and two bytes. */
const LENGTHS = [0, 1, 8, 9, 16, 17, 255, 256, 257, 511, 512, 513, 4_096, 4_097, 65_535] as const

export const TARGETS: Readonly<Record<Protocol['name'], Target>> = {
  ap3000: targetOf(ap3000, AP3000_REFERENCE),
  bkv: targetOf(bkv, BKV_REFERENCE),
}

function targetOf(protocol: Protocol, reference: Reference): Target {
  const path = new URL(`../protocols/${protocol.name}/corpus/vectors.json`, import.meta.url)
  const vectors = JSON.parse(readFileSync(path, 'utf8')) as readonly Vector[]
  const bytesOf = ({ hex }: Vector) => Uint8Array.from(Buffer.from(hex, 'hex'))
  const isFrame = ({ valid, fields }: Vector) => valid && fields['kind'] === 'frame'
  const samples = new Map<Uplink | Downlink, Uint8Array[]>()
  const head = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
  for (const vector of vectors.filter(isFrame)) {
    const bytes = bytesOf(vector)
    protocol.readHead(bytes, 0, bytes.length, head)
    const command = (vector.direction === 'up' ? protocol.uplinks : protocol.downlinks).get(head.commandKey)
    if (command === undefined) continue
    samples.set(command, [...(samples.get(command) ?? []), bytes.slice(head.dataFrom, head.dataTo)])
  }
  const commands = new Set([...protocol.uplinks.values(), ...protocol.downlinks.values()])
  return {
    protocol,
    reference,
    commands: [...commands].map((command) => ({ command, samples: samples.get(command) ?? [] })),
    corpus: vectors.map(bytesOf),
    goodFrames: vectors
      .filter((vector) => isFrame(vector) && vector.direction === 'up')
      .map(bytesOf)
      .filter((bytes) => bytes.length <= GOOD_FRAME_BYTES_MAX),
  }
}

/** Input number `index` of a seed: the same bytes, cuts and caps whenever and wherever it is asked for. */
export function inputOf(target: Target, seed: number, index: number): FuzzInput {
  const random = new Random(seed, index)
  const parts = [damagedFrame(target, random)]
  if (random.chance(0.25)) parts.unshift(surroundings(target, random))
  if (random.chance(0.25)) parts.push(surroundings(target, random))
  return around(target, join(parts), random)
}

/** The same bytes of damage in front of good frames: how a kept finding is tried again. */
export function inputAround(target: Target, damage: Uint8Array, seed: number): FuzzInput {
  return around(target, damage, new Random(seed))
}

function around(target: Target, damage: Uint8Array, random: Random): FuzzInput {
  const { frameBytesMax } = target.protocol
  const parts = [damage]
  const goodAt = [damage.length]
  const bytesMin = random.chance(LONG_TAIL_CHANCE) ? frameBytesMax + GOOD_FRAME_BYTES_MAX : 0
  for (let end = damage.length; goodAt.length <= GOOD_FRAMES || end < damage.length + bytesMin; goodAt.push(end)) {
    const frame = random.pick(target.goodFrames)
    parts.push(frame)
    end += frame.length
  }
  const stream = join(parts)
  return { stream, goodAt, isLoggedIn: random.chance(0.5), cuts: cutsOf(damage.length, stream.length, random) }
}

/** So far behind the damage the cuts are as close as in it; then they are far apart, as nothing new can happen. */
const CLOSE_CUTS_BYTES = 48
const FAR_CUTS_BYTES = 700

/** Nowhere, everywhere, or at random places with every scale of distance. */
function cutsOf(damageBytes: number, streamBytes: number, random: Random): number[] {
  const cuts: number[] = []
  const style = random.below(16)
  if (style === 0) return cuts
  const distanceMax = style === 1 && damageBytes <= 512 ? 1 : 1 + random.below(style < 6 ? 24 : 300)
  for (let at = 0; ; ) {
    at += 1 + random.below(at < damageBytes + CLOSE_CUTS_BYTES ? distanceMax : FAR_CUTS_BYTES)
    if (at >= streamBytes) return cuts
    cuts.push(at)
  }
}

// ---- one frame ---------------------------------------------------------------------------------------------------

function damagedFrame(target: Target, random: Random): Uint8Array {
  let frame = random.chance(0.35) ? random.pick(target.corpus).slice() : frameOfTable(target, random)
  // behind the seal stands what the sum protects: only now and then a frame stays whole
  for (let times = random.below(3); times > 0; times--) frame = damageStructure(target, frame, random)
  const isSealed = random.chance(0.7)
  if (isSealed) target.reference.seal(frame)
  if (!isSealed || random.chance(0.35))
    for (let times = 1 + random.below(2); times > 0; times--) frame = damageBytes(target, frame, random)
  return frame
}

function frameOfTable(target: Target, random: Random): Uint8Array {
  const { protocol, reference } = target
  const source = random.pick(target.commands)
  const { command } = source
  const isUplink = command.direction === 'uplink'
  const data = dataOf(protocol, source, random).subarray(0, protocol.frameBytesMax - 64)
  return reference.frameOf(isUplink, command.code, idOf(protocol, random), random.u32(), data)
}

function idOf({ name }: Protocol, random: Random): Uint8Array {
  if (name === 'ap3000') {
    // the factory numbers of boards with damaged memory are among them (AP3000 4)
    if (random.chance(0.1)) return Uint8Array.from([0x00, 0x1b, 0xb7, random.pick([0x03, 0x04, 0x0a])])
    return random.bytes(4)
  }
  const isDecimal = random.chance(0.9)
  return Uint8Array.from({ length: 7 }, () =>
    isDecimal ? 16 * random.below(10) + random.below(10) : random.below(256),
  )
}

function dataOf(protocol: Protocol, source: Source, random: Random): Uint8Array {
  const way = random.below(10)
  if (way < 4 && source.samples.length > 0) return random.pick(source.samples).slice()
  if (way < 8) {
    const encoded = encodedData(source.command, random)
    if (encoded !== undefined) return encoded
  }
  return structuredData(protocol, source.command, random)
}

/** Random values for every parameter, within its limits; undefined where a list or a relation makes that impossible. */
function encodedData(command: Uplink | Downlink, random: Random): Uint8Array | undefined {
  const { code, sub, parameters = [] } = command
  if (parameters.some(({ type }) => type === 'list')) return undefined
  // a payload without parameters would be three keys and nothing else
  if (sub !== undefined && code === 0x1000 && parameters.length === 0) return undefined
  const fields: Record<string, unknown> = {}
  for (const parameter of parameters)
    if (!parameter.isOptional || random.chance(0.7)) fields[parameter.name] = randomValue(parameter, random)
  try {
    return command.encode(fields as Fields)
  } catch (error) {
    // parameters that exclude each other: another way is taken
    if (error instanceof RangeError) return undefined
    throw error
  }
}

function randomValue(parameter: ParameterDescription, random: Random): unknown {
  const { type, bytes, isRest, min = 0, max = 256 ** bytes - 1 } = parameter
  const count = isRest ? random.below(bytes + 1) : bytes
  switch (type) {
    case 'integer':
      return random.chance(0.3) ? random.pick([min, max]) : Math.floor(random.between(min, max + 1))
    case 'bcd':
      return Array.from({ length: 2 * count }, () => random.below(10)).join('')
    case 'ascii':
      return String.fromCharCode(...Array.from({ length: random.below(count + 1) }, () => 0x20 + random.below(0x5f)))
    default:
      return Buffer.from(random.bytes(count)).toString('hex')
  }
}

function structuredData(protocol: Protocol, command: Uplink | Downlink, random: Random): Uint8Array {
  const { code, sub = 0, parameters = [] } = command
  if (protocol.name === 'bkv' && code === 0x1000) {
    return join([
      Uint8Array.from([4, 1, 1, sub >> 8, sub & 0xff]),
      Uint8Array.from([10, 1, 2, ...random.bytes(8)]),
      Uint8Array.from([9, 1, 3, ...random.bytes(7)]),
      ...entriesOf(random, 0),
    ])
  }
  const size = parameters.reduce((sum, { bytes, isRest }) => sum + (isRest ? 0 : bytes), 0)
  const count = random.chance(0.3) ? random.below(120) : size + random.below(24)
  // small numbers are counts, states, modes and results: what decoders decide by
  const body = Uint8Array.from({ length: count }, () => (random.chance(0.5) ? random.below(8) : random.below(256)))
  if (protocol.name === 'ap3000' || command.sub === undefined) return body
  return join([Uint8Array.from([count >> 8, count & 0xff, sub]), body])
}

/** Keys that the document names, and now and then any other. BKV 7. */
const KEYS = [
  0x01, 0x02, 0x03, 0x94, 0x5b, 0x4a, 0x08, 0x09, 0x0a, 0x95, 0x0b, 0x0c, 0x0d, 0x0e, 0x3e, 0x07, 0x96, 0x0f, 0x13,
  0x12, 0x47, 0x14, 0x15, 0x88, 0x80, 0x89, 0x83, 0xf4, 0x84, 0x85, 0x86, 0x2e, 0x2f, 0x06, 0x21, 0x22, 0x23, 0x24,
  0x25, 0x11, 0x59, 0x60, 0x10, 0x68, 0x93, 0x98, 0x54, 0x4b, 0x55, 0x4c, 0x56, 0x4d, 0x4e, 0x4f, 0x50, 0x51, 0x52,
  0x53, 0x57, 0x58, 0x5a, 0x04, 0x05, 0x48,
] as const
const VALUE_BYTES = [0, 1, 1, 1, 2, 2, 2, 2, 3, 4, 6, 7, 8, 12, 18] as const
const DEPTH_MAX = 4

/** What each container holds first when it is a real one: socket; port and status. */
const HEAD_KEYS = [[], [0x4a], [0x08, 0x09], [], []] as const
/** What the documents put at each depth: reports and parameters, sockets, ports. */
const PORT_KEYS = [0x08, 0x09, 0x0a, 0x95, 0x0b, 0x0c, 0x0d, 0x0e] as const
const USUAL_KEYS = [
  [0x4a, 0x0f, 0x07, 0x2e, 0x2f, 0x12, 0x85, 0x86, 0x54, 0x4b, 0x57, 0x06, ...PORT_KEYS],
  [0x4a, 0x3e, 0x07, 0x96],
  PORT_KEYS,
  PORT_KEYS,
  PORT_KEYS,
] as const
const CONTAINER_KEYS = [0x94, 0x5b] as const
/** At depth 0 (payload) to 4: how often an entry is a container. */
const CONTAINER_CHANCE = [0.15, 0.3, 0.1, 0.1, 0.05] as const

function entriesOf(random: Random, depth: number): Uint8Array[] {
  const heads = random.chance(0.7) ? HEAD_KEYS[depth]! : []
  const others = Array.from({ length: 1 + random.below(depth === 0 ? 16 : 6) }, () => {
    const key = random.chance(CONTAINER_CHANCE[depth]!)
      ? random.pick(CONTAINER_KEYS)
      : random.chance(0.9)
        ? random.pick(random.chance(0.5) ? USUAL_KEYS[depth]! : KEYS)
        : random.below(256)
    const isContainer = (key === 0x94 || key === 0x5b) && depth < DEPTH_MAX && random.chance(0.9)
    const value = isContainer ? join(entriesOf(random, depth + 1)) : random.bytes(random.pick(VALUE_BYTES))
    return entryOf([1, key], value)
  })
  return [...heads.map((key) => entryOf([1, key], random.bytes(1))), ...others]
}

function entryOf(head: readonly number[], value: Uint8Array): Uint8Array {
  return join([varint(head.length + value.length), Uint8Array.from(head), value])
}

function varint(value: number): Uint8Array {
  const groups = [value & 0x7f]
  for (let left = value >> 7; left > 0; left >>= 7) groups.unshift(0x80 | (left & 0x7f))
  return Uint8Array.from(groups)
}

// ---- damage that a seal may follow -------------------------------------------------------------------------------

function damageStructure(target: Target, frame: Uint8Array, random: Random): Uint8Array {
  const { protocol, reference } = target
  const { dataAt, tailBytes, frameBytesMin } = reference
  if (frame.length < frameBytesMin) return damageBytes(target, frame, random)
  const isBkv = protocol.name === 'bkv'
  const dataTo = frame.length - tailBytes
  const dataBytes = dataTo - dataAt
  const dataPosition = () => dataAt + random.below(dataBytes + 1)
  switch (random.below(isBkv ? 15 : 10)) {
    case 0: // device id
      frame.set(idOf(protocol, random), isBkv ? 11 : 5)
      return frame
    case 1: // command
      if (isBkv)
        frame.set(
          random.pick([
            [0, 0],
            [0, 5],
            [0, 7],
            [0, 0x15],
            [0x10, 0],
            [random.below(256), 1],
          ]),
          4,
        )
      else frame[11] = random.below(256)
      return frame
    case 2: // message id, and direction where the header has one
      frame.set(random.bytes(isBkv ? 4 : 2), isBkv ? 6 : 9)
      if (isBkv) {
        frame[10] = random.below(3)
        frame[1] = random.pick([0xfe, 0xff])
      }
      return frame
    case 3: // a frame grown by newer firmware
      return splice(frame, dataTo, 0, random.bytes(1 + random.below(random.chance(0.1) ? 400 : 24)))
    case 4: {
      // cut short
      const count = random.below(dataBytes + 1)
      return splice(frame, dataTo - count, count, EMPTY)
    }
    case 5:
    case 6: // counts, states, modes and inner lengths stand early
      if (dataBytes > 0) frame[dataAt + random.below(Math.min(dataBytes, 24))] = interestingByte(random)
      return frame
    case 7:
      for (let times = 1 + random.below(4); times > 0 && dataBytes > 0; times--)
        frame[dataAt + random.below(dataBytes)] = random.below(256)
      return frame
    case 8: {
      // a piece twice
      const from = dataPosition()
      const piece = frame.slice(from, from + random.below(dataTo - from + 1))
      return splice(frame, from, 0, piece)
    }
    case 9: // the sign of a new frame inside data, which must not end this one
      return splice(frame, dataPosition(), 0, random.pick(HEADS))
    case 10: // inner length of 0005 and 0015
      if (dataBytes >= 2) {
        const length = random.chance(0.5) ? random.pick(LENGTHS) : dataBytes - 3 + random.below(5) - 2
        frame[dataAt] = length >> 8
        frame[dataAt + 1] = length & 0xff
      }
      return frame
    case 11: // sub-command
      if (dataBytes >= 5) frame[dataAt + (frame[4] === 0x10 ? 4 : 2)] = random.below(0x20)
      return frame
    default: {
      // entries of 1000
      let data: Uint8Array = frame.slice(dataAt, dataTo)
      for (let times = 1 + random.below(4); times > 0; times--) data = damageEntries(data, random)
      return splice(frame, dataAt, dataBytes, data)
    }
  }
}

const INTERESTING_BYTES = [0, 1, 2, 3, 4, 5, 8, 0x0f, 0x10, 0x32, 0x33, 0x64, 0x65, 0x7f, 0x80, 0xfe, 0xff] as const
const interestingByte = (random: Random): number => random.pick(INTERESTING_BYTES)

/** Takes a row of entries apart, damages one or what is inside it, and puts them together again. */
function damageEntries(data: Uint8Array, random: Random): Uint8Array {
  const entries: Uint8Array[] = []
  let at = 0
  for (let end = entryEnd(data, 0); end > at; end = entryEnd(data, at)) {
    entries.push(data.slice(at, end))
    at = end
  }
  const rest = data.slice(at)
  if (entries.length === 0) {
    if (rest.length > 0) rest[random.below(Math.min(4, rest.length))] = interestingByte(random)
    return rest
  }
  const index = random.chance(0.3) ? random.below(Math.min(3, entries.length)) : random.below(entries.length)
  const entry = entries[index]!
  const headerAt = entry[0]! < 0x80 ? 1 : 2
  const key = entry[headerAt + 1]!
  if ((key === 0x94 || key === 0x5b) && random.chance(0.8)) {
    entries[index] = entryOf([1, key], damageEntries(entry.slice(headerAt + 2), random))
    return join([...entries, rest])
  }
  switch (random.below(12)) {
    case 0: // a length that lies
      entry[0] = interestingByte(random)
      break
    case 1: // a length of more bytes than needed, up to more than are allowed
      entries[index] = join([Uint8Array.from({ length: 1 + random.below(5) }, () => 0x80), entry])
      break
    case 2: // a length far beyond the data
      entries[index] = join([
        Uint8Array.from([0xff, 0xff, 0xff, 0x7f]).subarray(random.below(4)),
        entry.subarray(headerAt),
      ])
      break
    case 3: // key header: no key, a text, a key beyond the entry
      if (entry.length > headerAt) entry[headerAt] = random.pick([0, 1, 2, 3, 0x7f, 0x80, 0x81, 0x82, 0xff])
      break
    case 4:
      if (entry.length > headerAt + 1) entry[headerAt + 1] = random.chance(0.8) ? random.pick(KEYS) : random.below(256)
      break
    case 5: // twice, or not at all
      entries.splice(index, 1, ...(random.chance(0.5) ? [entry, entry] : []))
      break
    case 6: {
      // nested deeper than anything documented
      let nested = entry
      for (let depth = 1 + random.below(random.chance(0.1) ? 400 : 8); depth > 0 && nested.length < 3_000; depth--)
        nested = entryOf([1, random.pick([0x94, 0x5b])], nested)
      entries[index] = nested
      break
    }
    case 7:
      entries.splice(index, 0, ...entriesOf(random, random.below(3)))
      break
    default: // a value of another size, which the grammar allows
      entries[index] = entryOf(
        [...entry.subarray(headerAt, headerAt + 2)],
        join([entry.subarray(headerAt + 2, headerAt + 2 + random.below(4)), random.bytes(random.pick(VALUE_BYTES))]),
      )
  }
  return join([...entries, rest])
}

/** @returns where the well-formed entry at `at` ends (lengths of one and two bytes), or `at` when there is none */
function entryEnd(data: Uint8Array, at: number): number {
  const [first = 0, second = 0x80] = data.subarray(at, at + 2)
  if (first >= 0x80 && second >= 0x80) return at
  const end = first < 0x80 ? at + 1 + first : at + 2 + ((first & 0x7f) << 7) + second
  return first === 0 || end > data.length ? at : end
}

// ---- damage that the sum should catch ----------------------------------------------------------------------------

function damageBytes(target: Target, frame: Uint8Array, random: Random): Uint8Array {
  const { reference } = target
  if (frame.length === 0) return random.bytes(1 + random.below(8))
  const position = () => random.below(frame.length)
  switch (random.below(10)) {
    case 0:
    case 1: // the length, at every edge and around what it was
      if (frame.length < 5) return frame
      if (random.chance(0.5)) reference.writeLength(frame, random.pick(LENGTHS))
      else reference.writeLength(frame, Math.max(0, frame.length - 12 + random.below(24)))
      return frame
    case 2: // the sum or the tail
      frame[frame.length - 1 - random.below(Math.min(4, frame.length))] = random.below(256)
      return frame
    case 3:
      frame[position()]! ^= 1 << random.below(8)
      return frame
    case 4: {
      const from = position()
      return splice(frame, from, 0, frame.slice(from, from + 1 + random.below(6)))
    }
    case 5:
      return splice(frame, position(), 1 + random.below(6), EMPTY)
    case 6:
      return splice(frame, position(), 0, random.bytes(1 + random.below(6)))
    case 7:
      return frame.slice(0, position())
    case 8: // a header that promises as much as is ever waited for, its body never coming
      return splice(frame, position(), 0, lyingHead(target, random))
    default:
      return join([frame, random.bytes(1 + random.below(40))])
  }
}

function lyingHead({ protocol, reference }: Target, random: Random): Uint8Array {
  const head = Uint8Array.from(protocol.name === 'bkv' ? [0xfc, 0xfe, 0, 0] : [0x44, 0x4e, 0x59, 0, 0])
  const before = protocol.name === 'bkv' ? 4 : 5
  const length = random.chance(0.3)
    ? random.pick(LENGTHS)
    : random.below((random.chance(0.5) ? protocol.frameBytesMax : protocol.frameBytesMaxBeforeLogin) - before + 2)
  reference.writeLength(head, length)
  return head
}

// ---- what stands around it ---------------------------------------------------------------------------------------

/** Beginnings and ends of units of both protocols; the nine bytes are real noise (AP3000 3). */
const HEADS: readonly Uint8Array[] = [
  '444e59',
  '444e',
  '44',
  '444e590900',
  '444e59ff00',
  '6c696e6b',
  '6c69',
  '38393836',
  '3839383630344439313632333930343838323937',
  'fcfe',
  'fcff',
  'fc',
  'fcee',
  'fcfe0011',
  'fcfe0fff',
  'fcfe0200',
  '000000000000010000',
].map((text) => Uint8Array.from(Buffer.from(text, 'hex')))

function surroundings(target: Target, random: Random): Uint8Array {
  const other = target === TARGETS.bkv ? TARGETS.ap3000 : TARGETS.bkv
  switch (random.below(5)) {
    case 0:
      return random.bytes(1 + random.below(64))
    case 1:
      return random.pick(HEADS)
    case 2: // the other protocol's frames, glued on
      return random.pick(other.corpus)
    case 3: {
      const frame = random.pick(random.chance(0.5) ? target.corpus : other.corpus)
      const from = random.below(frame.length)
      return frame.slice(from, from + random.below(frame.length - from + 1))
    }
    default:
      return damagedFrame(target, random)
  }
}

// ---- bytes -------------------------------------------------------------------------------------------------------

const EMPTY = new Uint8Array(0)

function join(parts: readonly Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0]!
  const joined = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    joined.set(part, at)
    at += part.length
  }
  return joined
}

function splice(bytes: Uint8Array, at: number, removedCount: number, inserted: Uint8Array): Uint8Array {
  return join([bytes.subarray(0, at), inserted, bytes.subarray(at + removedCount)])
}
