/**
 * What every protocol's corpus must withstand. Each frame is decoded and compared field by field, encoded back to the
 * same bytes, doubled, preceded by noise, damaged byte by byte, and cut at every place; data is shortened and lengthened;
 * what is marked invalid is refused with a fitting reason. Called from a protocol's `corpus.test.ts`.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { FrameAssembler, type UnitVisitor } from './frame-assembler.ts'
import {
  type Downlink,
  type Fields,
  type FrameHead,
  type NoiseReason,
  PayloadError,
  type Protocol,
  UNIT,
  type UnitKind,
  type Uplink,
} from './protocol.ts'

export interface Vector {
  readonly name: string
  readonly direction: 'up' | 'down'
  readonly hex: string
  /** Framing only: header, length, checksum. */
  readonly valid: boolean
  readonly fields: Readonly<Record<string, unknown>>
  readonly note: string
  readonly source: string
}

export interface CorpusAdapter {
  /** What findFrame calls a valid vector's unit. */
  kindOf(vector: Vector): UnitKind
  /** The head of a valid frame. */
  headOf(vector: Vector): { readonly deviceId: string; readonly messageId: number; readonly commandKey: number }
  /** Those fields of the vector that belong to the command. Names are compared in lower case without `_`. */
  expected(vector: Vector, command: Uplink | Downlink): Readonly<Record<string, unknown>>
  /** Fields of vectors that follow from decoded ones (`order_ascii` from `orderHex`). */
  derived(fields: Fields): Readonly<Record<string, unknown>>
  /** The first reason with which an invalid vector may be refused. */
  reasonsFor(vector: Vector): readonly NoiseReason[]
  /** Put in front of frames. */
  readonly strays: readonly Uint8Array[]
  /** Name of the frame that must be found behind every damage. */
  readonly witness: string
  /** Positions in a frame that no sum covers, so that damage there can pass. */
  uncheckedPositions?(vector: Vector): readonly number[]
}

interface Seen {
  readonly units: string[]
  readonly reasons: NoiseReason[]
}

export function corpusSuite(protocol: Protocol, vectors: readonly Vector[], adapter: CorpusAdapter): void {
  const valid = vectors.filter((vector) => vector.valid)
  const isFrame = (vector: Vector) => adapter.kindOf(vector) === UNIT.frame
  const witness = vectors.find(({ name }) => name === adapter.witness)
  assert.ok(witness?.valid === true, `witness ${adapter.witness}`)
  const witnessBytes = bytesOf(witness)
  const witnessUnit = unitOf(witness)

  describe(`${protocol.name} corpus`, () => {
    test('names are unique', () => {
      assert.equal(new Set(vectors.map(({ name }) => name)).size, vectors.length)
    })

    for (const vector of valid) {
      test(`${vector.name} decodes to its fields and encodes back`, () => decodesAndEncodes(vector))
      test(`${vector.name} survives doubling, strays and every cut`, () => {
        doubled(vector)
        strayed(vector)
        cut(vector)
      })
      if (isFrame(vector)) test(`${vector.name} damaged at any byte is never taken for good`, () => damaged(vector))
    }

    for (const vector of vectors.filter(({ valid: isValid }) => !isValid))
      test(`${vector.name} is refused, and the next frame is found`, () => refused(vector))

    test('all of them in one stream, cut at random (seeds 1 to 20)', () => {
      const stream = Buffer.concat(valid.map(bytesOf))
      const units = valid.map(unitOf)
      for (let seed = 1; seed <= 20; seed++) {
        const random = randomOf(seed)
        const chunks: Uint8Array[] = []
        for (let at = 0; at < stream.length; ) {
          const size = 1 + Math.floor(random() ** 3 * 1_500)
          chunks.push(stream.subarray(at, at + size))
          at += size
        }
        assert.deepEqual(assemble(chunks), { units, reasons: [] }, `seed ${seed}`)
      }
    })
  })

  function decodesAndEncodes(vector: Vector): void {
    const bytes = bytesOf(vector)
    assert.deepEqual(assemble([bytes]), { units: [unitOf(vector)], reasons: [] })
    if (!isFrame(vector)) return
    const { head, command } = readAll(vector)
    const { deviceId, messageId, commandKey } = adapter.headOf(vector)
    assert.deepEqual(
      [protocol.formatDeviceId(head.deviceNo), head.messageId, head.commandKey],
      [deviceId, messageId, commandKey],
    )
    assert.equal(protocol.parseDeviceId(deviceId), head.deviceNo)

    const fields = command.decode(bytes, head.dataFrom, head.dataTo)
    if (typeof vector.fields['payloadError'] === 'string') {
      assert.ok(fields instanceof PayloadError, 'decoded data that is no such command')
      assert.equal(fields.payloadError, vector.fields['payloadError'])
      return
    }
    assert.ok(!(fields instanceof PayloadError), `refused: ${JSON.stringify(fields)}`)
    const actual = normalised({ ...fields, ...adapter.derived(fields) }) as Record<string, unknown>
    for (const [name, value] of Object.entries(normalised(adapter.expected(vector, command)) as object))
      assertHolds(actual[name], value, name)
    const direction = vector.direction === 'up' ? 'uplink' : 'downlink'
    const again = protocol.encodeFrame(direction, command, head.deviceNo, head.messageId, command.encode(fields))
    assert.equal(Buffer.from(again).toString('hex'), vector.hex)
    staysInside(bytes, head, command)
    grows(bytes, head, command, fields)
  }

  /** Data cut short is decoded or refused, and never by looking beyond its end. */
  function staysInside(bytes: Uint8Array, head: FrameHead, command: Uplink | Downlink): void {
    for (let to = head.dataFrom; to < head.dataTo; to++) {
      const inPlace = command.decode(bytes, head.dataFrom, to)
      const alone = command.decode(bytes.slice(head.dataFrom, to), 0, to - head.dataFrom)
      assert.deepEqual(inPlace, alone, `${to - head.dataFrom} bytes`)
    }
  }

  /** Fields appended by newer firmware change none of those before. */
  function grows(bytes: Uint8Array, head: FrameHead, command: Uplink | Downlink, fields: Fields): void {
    const isRest = new Set(command.parameters?.filter((one) => one.isRest).map(({ name }) => name))
    if (head.dataTo === head.dataFrom) return
    const longer = Buffer.concat([bytes.subarray(head.dataFrom, head.dataTo), Buffer.alloc(16)])
    const decoded = command.decode(longer, 0, longer.length)
    if (decoded instanceof PayloadError) {
      assert.equal(protocol.name, 'bkv', 'only a protocol with inner lengths may refuse longer data')
      return
    }
    for (const [name, value] of Object.entries(fields))
      if (!isRest.has(name)) assert.deepEqual(decoded[name], value, name)
  }

  function doubled(vector: Vector): void {
    const bytes = bytesOf(vector)
    const unit = unitOf(vector)
    assert.deepEqual(assemble([Buffer.concat([bytes, bytes])]), { units: [unit, unit], reasons: [] })
  }

  function strayed(vector: Vector): void {
    for (const stray of adapter.strays) {
      const { units, reasons } = assemble([stray, bytesOf(vector)])
      assert.deepEqual(units, [unitOf(vector)], Buffer.from(stray).toString('hex'))
      assert.ok(reasons.length > 0, 'noise was not counted')
    }
  }

  function cut(vector: Vector): void {
    const bytes = bytesOf(vector)
    const stream = Buffer.concat([bytes, witnessBytes])
    const units = [unitOf(vector), witnessUnit]
    for (let at = 1; at < stream.length; at++) {
      assert.deepEqual(assemble([stream.subarray(0, at), stream.subarray(at)]), { units, reasons: [] }, `cut at ${at}`)
    }
    const singles = Array.from(stream, (_, index) => stream.subarray(index, index + 1))
    assert.deepEqual(assemble(singles), { units, reasons: [] }, 'byte by byte')
  }

  function damaged(vector: Vector): void {
    const unchecked = new Set(adapter.uncheckedPositions?.(vector) ?? [])
    const bytes = bytesOf(vector)
    for (let at = 0; at < bytes.length; at++) {
      if (unchecked.has(at)) continue
      for (const flip of [0x01, 0x80, 0xff]) {
        const broken = Uint8Array.from(bytes)
        broken[at]! ^= flip
        const { units, reasons } = assemble([Buffer.concat([broken, witnessBytes])])
        assert.deepEqual(framesOf(units), [witnessUnit], `byte ${at} flipped by ${flip}`)
        assert.ok(reasons.length > 0, 'damage was not counted')
      }
    }
  }

  function refused(vector: Vector): void {
    const bytes = bytesOf(vector)
    const alone = assemble([bytes])
    assert.deepEqual(framesOf(alone.units), [])
    assert.ok(adapter.reasonsFor(vector).includes(alone.reasons[0]!), `refused as ${alone.reasons}`)
    const followed = assemble([bytes, witnessBytes])
    assert.deepEqual(framesOf(followed.units), [witnessUnit])
  }

  function readAll(vector: Vector): { head: FrameHead; command: Uplink | Downlink } {
    const bytes = bytesOf(vector)
    const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
    protocol.readHead(bytes, 0, bytes.length, head)
    const command = (vector.direction === 'up' ? protocol.uplinks : protocol.downlinks).get(head.commandKey)
    assert.ok(command !== undefined, `no ${vector.direction}link for key ${head.commandKey}`)
    return { head, command }
  }

  /** Pushes chunks, then waits as long as anything waits: what a session sees in the end. */
  function assemble(chunks: readonly Uint8Array[]): Seen {
    const seen: Seen = { units: [], reasons: [] }
    const visitor: UnitVisitor = {
      unit(kind, bytes, from, to, reason) {
        if (kind === UNIT.noise) seen.reasons.push(reason)
        else seen.units.push(`${kind} ${Buffer.from(bytes.subarray(from, to)).toString('hex')}`)
      },
    }
    // downlink frames may be longer than what a stranger may send
    const assembler = new FrameAssembler(protocol, true)
    for (const chunk of chunks) assembler.push(chunk, 0, visitor)
    while (assembler.pendingBytes > 0) assembler.giveUpPending(0, visitor)
    return seen
  }

  /** Units without a sum (a bare identity inside the data of a damaged frame) are found where a frame was lost. */
  function framesOf(units: readonly string[]): string[] {
    return units.filter((unit) => unit.startsWith(`${UNIT.frame} `))
  }

  function unitOf(vector: Vector): string {
    return `${adapter.kindOf(vector)} ${vector.hex}`
  }
}

function bytesOf(vector: Vector): Uint8Array {
  return Uint8Array.from(Buffer.from(vector.hex, 'hex'))
}

/** Names in lower case without `_`, at every depth. */
function normalised(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(normalised)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value).map(([name, inner]) => [name.toLowerCase().replaceAll('_', ''), normalised(inner)]),
  )
}

/** Everything the vector says holds; what is decoded may say more. */
function assertHolds(actual: unknown, expected: unknown, at: string): void {
  if (Array.isArray(expected)) {
    assert.ok(Array.isArray(actual), `${at} is no list`)
    assert.equal(actual.length, expected.length, `${at}: length`)
    expected.forEach((value, index) => {
      assertHolds(actual[index], value, `${at}[${index}]`)
    })
  } else if (typeof expected === 'object' && expected !== null) {
    assert.ok(typeof actual === 'object' && actual !== null, `${at} is no object`)
    for (const [name, value] of Object.entries(expected))
      assertHolds((actual as Record<string, unknown>)[name], value, `${at}.${name}`)
  } else assert.equal(actual, expected, at)
}

/** Mulberry32: the same numbers for the same seed, 0 <= n < 1. */
function randomOf(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}
