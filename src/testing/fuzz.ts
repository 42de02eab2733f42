/**
 * The codec fuzzer: claims, for any bytes a peer may send, that
 *
 * - no function of a codec throws, and nothing is written into the bytes it is shown;
 * - units and noise tile the stream: every byte is accounted for once, in order, and every look makes progress;
 * - what waits for its rest is smaller than one frame, so that a lying length delays at most that many good bytes;
 * - what is delivered, in chunks or in one piece, is what a second implementation finds in the whole stream
 *   (fuzz-reference.ts), so every delivered frame has a good sum by that one as well;
 * - a good frame behind the damage is lost only when damage and good bytes together happen to be a unit themselves, which
 *   costs less than one frame; the good frame behind that is always found;
 * - decoding looks at nothing beyond the data, and what was decoded, encoded and decoded again is the same;
 * - facts are finite numbers that fit their columns; a reply is always there when it must be, can always be encoded, and
 *   is a good frame; what `recognise` once knew stays known when more bytes come.
 *
 * How: fuzz-input.ts makes one input from seed and index. Replay one: `npm run fuzz -- --protocol P --seed S --only N`.
 */
import { identify } from '../../workers/acceptor/identify.ts'
import type { Fact } from '../codec/facts.ts'
import { FieldError } from '../codec/fields.ts'
import { FrameAssembler, type UnitVisitor } from '../codec/frame-assembler.ts'
import {
  type CardAnswer,
  type DeviceMemory,
  type Downlink,
  type Fields,
  type FrameHead,
  PayloadError,
  type Protocol,
  type Reply,
  UNIT,
  type UnitMark,
  type Uplink,
} from '../codec/protocol.ts'
import { PROTOCOLS } from '../protocols/index.ts'
import { type FuzzInput, inputOf, TARGETS, type Target } from './fuzz-input.ts'
import { referenceUnits, type Unit } from './fuzz-reference.ts'
import { Random } from './random.ts'

/** What was tried; the larger, the less a clean run is an accident. */
export interface FuzzCounts {
  /** Inputs: each one damaged frame in its surroundings. */
  frames: number
  streamBytes: number
  /** Frames delivered out of damage. */
  delivered: number
  /** Of these, data that was decoded as some command. */
  decoded: number
  refused: number
  /** Decoded values that no encoder writes, because limits bind encoding only. */
  outsideLimits: number
  repliesEncoded: number
  /** Good frames swallowed by a unit that damage and good bytes formed by chance. */
  collisions: number
  /** The most good bytes one input lost that way. */
  lostBytesMax: number
  /** The most good bytes that waited behind a lying length. */
  delayedBytesMax: number
}

export interface FuzzFailure {
  readonly index: number
  readonly what: string
  /** Prints and tries this input alone. */
  readonly replay: string
  /** The whole stream; good frames begin at `goodFrom`. */
  readonly hex: string
  readonly goodFrom: number
}

export interface FuzzReport {
  readonly protocol: Protocol['name']
  readonly seed: number
  readonly counts: FuzzCounts
  /** By name: how often each command was decoded. */
  readonly commands: Readonly<Record<string, number>>
  readonly failures: readonly FuzzFailure[]
  readonly seconds: number
}

export interface FuzzOptions {
  readonly protocol: Protocol['name']
  readonly seed: number
  readonly frames: number
  /** This input alone. */
  readonly only?: number
  /** So many failures end the run; 10 unless told. */
  readonly failuresMax?: number
  /** So much time ends the run; endless unless told. */
  readonly secondsMax?: number
}

/** @returns what was tried, and the inputs that failed; cost: one core for as long as it takes */
export function fuzz({
  protocol,
  seed,
  frames,
  only,
  failuresMax = 10,
  secondsMax = Infinity,
}: FuzzOptions): FuzzReport {
  const run = new FuzzRun(TARGETS[protocol])
  const startedMs = performance.now()
  const failures: FuzzFailure[] = []
  const from = only ?? 0
  const to = only === undefined ? frames : only + 1
  for (let index = from; index < to && failures.length < failuresMax; index++) {
    if (index % LOOKS_AT_CLOCK === 0 && performance.now() - startedMs > 1_000 * secondsMax) break
    const input = inputOf(TARGETS[protocol], seed, index)
    const what = run.tryInput(input, new Random(~seed, index))
    if (what === undefined) continue
    failures.push({
      index,
      what,
      replay: `npm run fuzz -- --protocol ${protocol} --seed ${seed} --only ${index}`,
      hex: Buffer.from(input.stream).toString('hex'),
      goodFrom: input.goodAt[0]!,
    })
  }
  const seconds = (performance.now() - startedMs) / 1_000
  return { protocol, seed, counts: run.counts, commands: run.commands, failures, seconds }
}

/** A claim that an input broke. */
class Finding extends Error {
  override readonly name = 'Finding'
}

/** @param what words, or who makes them: most claims hold, so most words are never needed */
function claim(isTrue: boolean, what: string | (() => string)): asserts isTrue {
  if (!isTrue) throw new Finding(typeof what === 'string' ? what : what())
}

const LOOKS_AT_CLOCK = 1_024
const NOW_MS = Date.UTC(2026, 10, 21, 3)
/** Noise more than all streams together can hold never comes; a loop that needs more turns makes no progress. */
const GIVE_UPS_MAX = 20_000
const MEMORY_KEYS_MAX = 256
const I32_MAX = 2 ** 31 - 1

export class FuzzRun {
  readonly counts: FuzzCounts = {
    frames: 0,
    streamBytes: 0,
    delivered: 0,
    decoded: 0,
    refused: 0,
    outsideLimits: 0,
    repliesEncoded: 0,
    collisions: 0,
    lostBytesMax: 0,
    delayedBytesMax: 0,
  }
  readonly commands: Record<string, number> = {}
  readonly #target: Target
  readonly #head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }

  constructor(target: Target) {
    this.#target = target
    for (const { command } of target.commands) this.commands[labelOf(command)] = 0
  }

  /** @returns what was wrong, undefined when every claim holds */
  tryInput(input: FuzzInput, random: Random): string | undefined {
    this.counts.frames++
    this.counts.streamBytes += input.stream.length
    try {
      this.#tryStream(input, random)
      return undefined
    } catch (error) {
      if (error instanceof Finding) return error.message
      const { stack = String(error) } = error as Error
      return `threw ${stack.split('\n').slice(0, 4).join(' < ')}`
    }
  }

  #tryStream(input: FuzzInput, random: Random): void {
    const { protocol, reference } = this.#target
    const { stream, isLoggedIn } = input
    const capAtFirst = isLoggedIn ? protocol.frameBytesMax : protocol.frameBytesMaxBeforeLogin
    const before = checksumOf(stream)
    const expected = referenceUnits(reference, stream, capAtFirst, protocol.frameBytesMax)

    const memory = protocol.newMemory()
    const goodFrom = input.goodAt[0]!
    // what the good frames mean has been tried often enough; now and then they are looked at all the same
    const readTo = random.chance(0.02) ? stream.length : goodFrom
    const cut = this.#assemble(input, input.cuts, (bytes, from, to, streamFrom) => {
      if (streamFrom < readTo) this.#tryFrame(bytes, from, to, memory, random)
    })
    assertSameUnits(cut.units, expected, stream, 'in chunks')
    assertSameUnits(this.#assemble(input, [], () => undefined).units, expected, stream, 'in one piece')
    this.#assertGoodFrames(input, cut.units, cut.delayedBytesMax)
    this.#tryWindow(stream, random)
    tryRecognise(stream, random)
    claim(checksumOf(stream) === before, 'the stream was written to')
    claim(Object.keys(memory).length <= MEMORY_KEYS_MAX, 'the memory of one device has grown without bound')
  }

  /** Pushes the stream, then gives up what waits until nothing does: what a session sees in the end. */
  #assemble(
    { stream, isLoggedIn, goodAt }: FuzzInput,
    cuts: readonly number[],
    frame: (bytes: Uint8Array, from: number, to: number, streamFrom: number) => void,
  ): { units: Unit[]; delayedBytesMax: number } {
    const { protocol } = this.#target
    const assembler = new FrameAssembler(protocol, isLoggedIn)
    const units: Unit[] = []
    let at = 0
    const visitor: UnitVisitor = {
      unit(kind, bytes, from, to, reason) {
        claim(to > from, () => `a unit of ${to - from} bytes, no progress`)
        claim(at + to - from <= stream.length, 'more bytes delivered than were pushed')
        const ahead = at - from
        for (let index = from; index < to; index++)
          if (bytes[index] !== stream[index + ahead]) throw new Finding(`byte ${index + ahead} came changed`)
        claim(kind !== UNIT.needMore, 'needMore was delivered as a unit')
        if (kind === UNIT.noise) claim(typeof reason === 'string', 'noise without a reason')
        else units.push({ kind, from: at, to: at + to - from })
        const streamFrom = at
        at += to - from
        if (kind === UNIT.frame) frame(bytes, from, to, streamFrom)
      },
    }
    const goodFrom = goodAt[0]!
    let delayedBytesMax = 0
    let pushed = 0
    for (const end of [...cuts, stream.length]) {
      assembler.push(stream.subarray(pushed, end), pushed, visitor)
      pushed = end
      claim(
        at + assembler.pendingBytes === pushed,
        () => `${pushed} bytes pushed, ${at} delivered, ${assembler.pendingBytes} wait`,
      )
      claim(
        assembler.pendingBytes < assembler.frameBytesMax,
        () => `${assembler.pendingBytes} bytes wait, a frame is smaller`,
      )
      // only what waits behind a header in the damage is delayed by it
      if (at < goodFrom && pushed - goodFrom > delayedBytesMax) delayedBytesMax = pushed - goodFrom
    }
    for (let times = 0; assembler.pendingBytes > 0; times++) {
      const waiting = assembler.pendingBytes
      assembler.giveUpPending(pushed, visitor)
      claim(assembler.pendingBytes < waiting, 'giving up made no progress')
      claim(times < GIVE_UPS_MAX, 'giving up never ends')
    }
    claim(at === stream.length, () => `${stream.length - at} bytes were never delivered`)
    return { units, delayedBytesMax }
  }

  /** Behind the damage every good frame is there, but for what the damage has taken into a unit of its own. */
  #assertGoodFrames({ goodAt }: FuzzInput, units: readonly Unit[], delayedBytes: number): void {
    const { counts } = this
    const goodFrom = goodAt[0]!
    claim(
      delayedBytes < this.#target.protocol.frameBytesMax,
      () => `${delayedBytes} good bytes wait behind a lying length`,
    )
    if (delayedBytes > counts.delayedBytesMax) counts.delayedBytesMax = delayedBytes
    // a unit that begins in the damage and ends among the good frames: its sum fits, so nobody can tell
    const swallowedTo = units.find(({ from, to }) => from < goodFrom && to > goodFrom)?.to ?? goodFrom
    const found = new Set(units.map(({ from, to }) => from * 65_536 + to - from))
    let lostBytes = 0
    for (let index = 0; index + 1 < goodAt.length; index++) {
      const from = goodAt[index]!
      const count = goodAt[index + 1]! - from
      if (found.has(from * 65_536 + count)) continue
      claim(from < swallowedTo, () => `good frame ${index} at byte ${from} is lost, though nothing has swallowed it`)
      lostBytes += count
      counts.collisions++
    }
    claim(
      swallowedTo - goodFrom < this.#target.protocol.frameBytesMax,
      () => `a unit of damage has swallowed ${swallowedTo - goodFrom} good bytes`,
    )
    if (lostBytes > counts.lostBytesMax) counts.lostBytesMax = lostBytes
  }

  /** What is found in a part of the bytes depends on that part alone. */
  #tryWindow(stream: Uint8Array, random: Random): void {
    const { protocol } = this.#target
    const from = random.below(stream.length)
    const to = from + random.below(Math.min(stream.length - from, protocol.frameBytesMax) + 1)
    const cap = random.chance(0.5) ? protocol.frameBytesMax : protocol.frameBytesMaxBeforeLogin
    const inPlace: UnitMark = { kind: UNIT.frame, from: -1, to: -1, reason: 'bad_header' }
    const alone: UnitMark = { kind: UNIT.frame, from: -1, to: -1, reason: 'bad_header' }
    protocol.findFrame(stream, from, to, cap, inPlace)
    protocol.findFrame(stream.slice(from, to), 0, to - from, cap, alone)
    claim(
      inPlace.kind === alone.kind && inPlace.from === alone.from + from && inPlace.to === alone.to + from,
      () =>
        `findFrame(${from}, ${to}) says ${inPlace.kind} ${inPlace.from}..${inPlace.to}, alone ${alone.kind} ..${alone.to}`,
    )
    if (from === to) claim(inPlace.kind === UNIT.needMore, 'something was found in no bytes')
    else if (inPlace.kind !== UNIT.needMore)
      claim(inPlace.to > from && inPlace.to <= to, () => `findFrame(${from}, ${to}) ends at ${inPlace.to}`)
  }

  // ---- one frame with a good sum -----------------------------------------------------------------------------------

  #tryFrame(bytes: Uint8Array, from: number, to: number, memory: DeviceMemory, random: Random): void {
    const { protocol, reference } = this.#target
    const head = this.#head
    this.counts.delivered++
    claim(reference.unitBytesAt(bytes, from, to, protocol.frameBytesMax) === to - from, 'delivered without a good sum')
    protocol.readHead(bytes, from, to, head)
    const { deviceNo, messageId, dataFrom, dataTo } = head
    claim(
      dataFrom === from + reference.dataAt && dataTo === to - reference.tailBytes,
      () => `data at ${dataFrom}..${dataTo}`,
    )
    claim(
      Number.isInteger(messageId) && messageId >= 0 && messageId < 2 ** protocol.messageIdBits,
      () => `id ${messageId}`,
    )
    claim(Number.isSafeInteger(deviceNo) && deviceNo >= -1 && deviceNo < 2 ** 47, () => `device ${deviceNo}`)
    if (deviceNo >= 0) {
      const id = protocol.formatDeviceId(deviceNo)
      claim(protocol.parseDeviceId(id) === deviceNo, () => `device ${deviceNo} is called ${id}`)
      protocol.isSharedDefaultId(deviceNo)
    }
    const nextId = protocol.nextMessageId(messageId, NOW_MS)
    claim(Number.isInteger(nextId) && nextId > 0 && nextId < 2 ** protocol.messageIdBits, () => `next id ${nextId}`)

    const { commandKey } = head
    const uplink = protocol.uplinks.get(commandKey)
    const downlink = protocol.downlinks.get(commandKey)
    const sum = checksumOf(bytes.subarray(from, to))
    if (uplink !== undefined) {
      const fields = this.#tryCommand(uplink, bytes, dataFrom, dataTo)
      if (fields !== undefined) this.#tryUplink(uplink, fields, deviceNo, messageId, memory, random)
    }
    if (downlink !== undefined) this.#tryCommand(downlink, bytes, dataFrom, dataTo)
    claim(checksumOf(bytes.subarray(from, to)) === sum, 'the frame was written to')
  }

  /** @returns what was decoded in place; undefined when the data was refused */
  #tryCommand(command: Uplink | Downlink, bytes: Uint8Array, from: number, to: number): Fields | undefined {
    const { counts } = this
    const inPlace = command.decode(bytes, from, to)
    const alone = command.decode(bytes.slice(from, to), 0, to - from)
    const where = labelOf(command)
    if (inPlace instanceof PayloadError || alone instanceof PayloadError) {
      claim(isSame(inPlace, alone), () => `${where}: refused in place or alone, but not both`)
      counts.refused++
      return undefined
    }
    claim(isSame(withoutHeadFlags(inPlace), alone), () => `${where}: decoding looked beyond the data`)
    assertPlain(inPlace, where)
    counts.decoded++
    this.commands[where]!++
    try {
      const again = reencoded(command, alone)
      // encoding may add what a device left out: fallbacks of one group, heads of a payload; nothing may be lost
      claim(
        isWithin(alone, again),
        () => `${where}: decoded ${textOfFields(alone)}, encoded and again ${textOfFields(again)}`,
      )
      if (isSame(again, alone)) return inPlace
      const oncemore = reencoded(command, again as Fields)
      claim(
        isSame(oncemore, again),
        () => `${where}: encoded twice ${textOfFields(again)}, then ${textOfFields(oncemore)}`,
      )
    } catch (error) {
      // limits bind encoding only: a device may send what no document knows yet
      if (!(error instanceof FieldError)) throw error
      counts.outsideLimits++
    }
    return inPlace
  }

  #tryUplink(
    command: Uplink,
    fields: Fields,
    deviceNo: number,
    messageId: number,
    memory: DeviceMemory,
    random: Random,
  ): void {
    const facts = command.facts?.(fields, memory) ?? []
    for (const fact of facts) assertFact(fact, command.name)
    const { reply } = command
    if (reply === 'none') return
    if (reply.when === 'durable') {
      claim(facts.some(isStored), () => `${command.name}: a reply waits for a row, but no fact has one`)
      if (reply.group !== undefined) claim(typeof reply.group(fields) === 'string', () => `${command.name}: no group`)
    }
    const isLookup = reply.when === 'lookup'
    claim(!isLookup || typeof fields['cardIdHex'] === 'string', () => `${command.name}: whose card?`)
    const context = { nowMs: NOW_MS, memory, ...(isLookup && { card: cardAnswer(random) }) }
    this.#tryReply(command, reply, fields, deviceNo, messageId, context)
  }

  #tryReply(
    { name }: Uplink,
    reply: Exclude<Reply, 'none'>,
    uplink: Fields,
    deviceNo: number,
    messageId: number,
    context: Parameters<Exclude<Reply, 'none'>['fields']>[1],
  ): void {
    const { protocol, reference } = this.#target
    const fields = reply.fields(uplink, context)
    if (fields === undefined) return
    const downlink = protocol.downlinkByName.get(reply.with)
    claim(downlink !== undefined, () => `${name} is answered with ${reply.with}, which does not exist`)
    const data = downlink.encode(fields)
    const frame = protocol.encodeFrame('downlink', downlink, Math.max(0, deviceNo), messageId, data)
    claim(
      reference.unitBytesAt(frame, 0, frame.length, protocol.frameBytesMax) === frame.length,
      () => `${name}: the reply ${reply.with} is no good frame`,
    )
    const decoded = downlink.decode(data, 0, data.length)
    claim(!(decoded instanceof PayloadError), () => `${name}: the reply ${reply.with} cannot be decoded`)
    this.counts.repliesEncoded++
  }
}

// ---- claims about values -----------------------------------------------------------------------------------------

function labelOf({ name, direction }: Uplink | Downlink): string {
  return `${direction} ${name}`
}

function assertSameUnits(found: readonly Unit[], expected: readonly Unit[], stream: Uint8Array, how: string): void {
  for (let index = 0; index < Math.max(found.length, expected.length); index++) {
    const one = found[index]
    const other = expected[index]
    if (one?.kind === other?.kind && one?.from === other?.from && one?.to === other?.to) continue
    throw new Finding(`${how}, unit ${index} is ${textOf(one, stream)}, expected ${textOf(other, stream)}`)
  }
}

function textOf(unit: Unit | undefined, stream: Uint8Array): string {
  if (unit === undefined) return 'missing'
  return `kind ${unit.kind} ${unit.from}..${unit.to} ${Buffer.from(stream.subarray(unit.from, unit.to)).toString('hex')}`
}

/** What one prefix of a stream was recognised as stays so, whatever follows. */
function tryRecognise(stream: Uint8Array, random: Random): void {
  const count = random.below(Math.min(stream.length, 600)) + 1
  const few = stream.subarray(0, random.below(count))
  const more = stream.subarray(0, count)
  for (const protocol of PROTOCOLS) {
    const known = protocol.recognise(few, 0, few.length)
    const later = protocol.recognise(more, 0, more.length)
    if (known.kind !== 'known') continue
    claim(
      later.kind === 'known' && later.routingKey === known.routingKey && later.by === known.by,
      () => `${protocol.name}: ${few.length} bytes are ${known.routingKey}, ${count} bytes are not`,
    )
  }
  identify(PROTOCOLS, more, 512)
}

/** Derived from the frame around the data (BKV 1000), so absent when there is none. */
function withoutHeadFlags(fields: Fields): Fields {
  const bkv = fields['bkv'] as Fields | undefined
  if (bkv === undefined) return fields
  const { isSequenceMismatch: _sequence, isGatewayIdMismatch: _gateway, ...others } = bkv
  return { ...fields, bkv: others }
}

/** Numbers, text, booleans, lists and records of them: what JSON and rows can carry. */
function assertPlain(value: unknown, where: string): void {
  if (typeof value === 'number') claim(Number.isFinite(value), () => `${where} holds ${value}`)
  else if (typeof value === 'object' && value !== null)
    for (const name in value) assertPlain((value as Record<string, unknown>)[name], `${where}.${name}`)
  else claim(typeof value === 'string' || typeof value === 'boolean', () => `${where} is ${String(value)}`)
}

/** Columns of whole numbers are 32 bits wide; times, devices and measured values have 64-bit floats. */
/** @param isJson the values go into a JSON column only, where any safe integer fits */
function assertFact(fact: unknown, where: string, isJson = false): void {
  if (typeof fact !== 'object' || fact === null) return
  for (const name in fact) {
    const value = (fact as Record<string, unknown>)[name]
    if (typeof value === 'number') {
      const max = isJson || IS_FLOAT.test(name) ? Number.MAX_SAFE_INTEGER : I32_MAX
      claim(Math.abs(value) <= max, () => `${where}: ${name} is ${value}`)
    } else if (value === undefined) claim(false, () => `${where}: ${name} is undefined`)
    else assertFact(value, `${where}.${name}`, isJson || name === 'content')
  }
}

const IS_FLOAT = /^deviceNo$|Ms$|W$|Wh$|V$|A$|C$/

function isStored({ fact }: Fact): boolean {
  return fact === 'settlement' || fact === 'opaqueSettlement' || fact === 'orderConfirmed'
}

const CARD_STATUS = ['ok', 'unregistered', 'insufficient', 'expired', 'blocked'] as const
const RATE_MODES = ['time', 'monthly', 'energy', 'per_use'] as const

function cardAnswer(random: Random): CardAnswer {
  return {
    status: random.pick(CARD_STATUS),
    rateMode: random.pick(RATE_MODES),
    balanceFen: random.pick([0, 1, -5, 1_000, 70_000, 2 ** 31, 2 ** 40]),
    expiresMs: random.pick([null, 0, NOW_MS, 8.64e15]),
  }
}

function isSame(one: unknown, other: unknown): boolean {
  if (one === other) return true
  if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) return false
  if (Array.isArray(one) !== Array.isArray(other)) return false
  const names = Object.keys(one)
  if (names.length !== Object.keys(other).length) return false
  return names.every((name) => isSame((one as Record<string, unknown>)[name], (other as Record<string, unknown>)[name]))
}

/** Everything `part` says, `whole` says too; lists are equally long. */
function isWithin(part: unknown, whole: unknown): boolean {
  if (part === whole) return true
  if (typeof part !== 'object' || typeof whole !== 'object' || part === null || whole === null) return false
  if (Array.isArray(part) && (!Array.isArray(whole) || part.length !== whole.length)) return false
  return Object.keys(part).every((name) =>
    isWithin((part as Record<string, unknown>)[name], (whole as Record<string, unknown>)[name]),
  )
}

function reencoded(command: Uplink | Downlink, fields: Fields): Fields | PayloadError {
  const data = command.encode(fields)
  return command.decode(data, 0, data.length)
}

const textOfFields = (fields: Fields | PayloadError): string => JSON.stringify(fields).slice(0, 600)

/** FNV-1a: tells whether anybody wrote. */
function checksumOf(bytes: Uint8Array): number {
  let hash = 0x811c9dc5
  for (let index = 0; index < bytes.length; index++) hash = Math.imul(hash ^ (bytes[index] as number), 0x01000193)
  return hash
}
