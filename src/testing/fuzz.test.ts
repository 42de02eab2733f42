/**
 * Claims: 200,000 damaged frames of each protocol break none of the claims at the top of fuzz.ts; what the fuzzer once
 * found stays found and mended; and the fuzzer can fail: codecs broken on purpose are caught. Everything is seeded. A
 * failure prints its bytes and the command that replays it alone, `npm run fuzz -- --protocol P --seed S --only N`.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { PayloadError, type Protocol, UNIT, type UnitMark } from '../codec/protocol.ts'
import { FuzzRun, fuzz } from './fuzz.ts'
import { inputAround, inputOf, TARGETS, type Target } from './fuzz-input.ts'
import { Random } from './random.ts'

const FRAMES = 200_000
const SEED = 1

for (const protocol of ['ap3000', 'bkv'] as const) {
  test(`${FRAMES} damaged ${protocol} frames (seed ${SEED})`, (context) => {
    const { counts, commands, failures, seconds } = fuzz({ protocol, seed: SEED, frames: FRAMES })
    context.diagnostic(`${Math.round(counts.frames / seconds)} frames/s, ${JSON.stringify(counts)}`)
    assert.deepEqual(
      failures.map(({ what, hex, replay }) => `${what}\n${hex}\n${replay}`),
      [],
    )
    // a run that never got behind the sum, or never waited, would prove little
    assert.ok(counts.delivered > FRAMES / 4, `${counts.delivered} frames had a good sum`)
    assert.ok(counts.decoded > FRAMES / 4 && counts.refused > FRAMES / 20, `${counts.decoded} decoded`)
    assert.ok(counts.repliesEncoded > FRAMES / 40, `${counts.repliesEncoded} replies`)
    const { frameBytesMax } = TARGETS[protocol].protocol
    assert.ok(counts.delayedBytesMax > frameBytesMax / 2, `at most ${counts.delayedBytesMax} bytes waited`)
    assert.deepEqual(
      Object.keys(commands).filter((name) => commands[name]! < 10),
      [],
      'commands that were hardly decoded',
    )
  })
}

test('an input is decided by its seed and index', () => {
  for (const target of Object.values(TARGETS)) {
    assert.deepEqual(inputOf(target, 7, 123), inputOf(target, 7, 123))
    assert.notDeepEqual(inputOf(target, 7, 123), inputOf(target, 7, 124))
    assert.notDeepEqual(inputOf(target, 7, 123), inputOf(target, 8, 123))
  }
})

// ---- what was found ----------------------------------------------------------------------------------------------

const KEPT: readonly { readonly protocol: Protocol['name']; readonly name: string; readonly hex: string }[] = [
  {
    protocol: 'bkv',
    name: 'answer to feeControl with a business number of six bytes: its fact did not fit 32 bits',
    hex: 'fcff00a310006c493edd004535382954435904010110070a010270324550c6141732090103617250bb601f5e0301892f14014b27cb962add5baac3d30306e8fe948d469096040125cbc414010b163dd9111a02dc3bfdae02eb4f2720495b32040180d9c00a014e329a8bb2ba984cb20401572f2704010f7f580e0183d1b396fcdff46f301edb878c04010e72fc08010aab68f92977ff0401034db208012418c74415b310aafcee',
  },
  {
    protocol: 'bkv',
    name: 'answer to feeControl with an ack of four bytes: its fact did not fit 32 bits',
    hex: 'fcff007a1000215445a5008221022500052004010110070a010200000000215445a50901038221022500052003014a0106010fc00ab8b504010a391305010eefbab50e0147659ccc81ebd33a53bfa77b93030108000301130103011204030147010301f40204018800640301800103018901080183173b00320032f3fcee',
  },
  {
    protocol: 'bkv',
    name: 'status report with minutes of six bytes: the duration did not fit 32 bits',
    hex: 'fcfe01071000db505b6b011436477190205004010110170a0102ab7fa14eb60df4b9090103604f11ba388400060155a0627ff40a013efa97eedd905579820a0108e591dfefd36ecc4f14012ffbc27ff5b919e98ced62625d8b51da6e620f8128019403014a081e015b0301086a030109120501093f560f08010e32b15f9d0af5040195ab0d030105bc14014b7f6349d89f05fba4038991c5145081c179770801038a33df2cf70c600194030108b8030109be0a0153e236707027e8551b320194040101c856090109d6250e38d06d9a0301537b1401069ae1dd79c59660b9b4cef2b664bab2d2558b040188d49302018814010c59e6ad0b23b34124d2e1df9cac4bad6a9c4302010917fcee',
  },
  {
    protocol: 'bkv',
    name: 'fee end report with fees of four bytes: their sum did not fit 32 bits',
    hex: 'fcfe018c1000c83dac1b015064558117826504010110040a010259acfa9ce46688230901038d859c93561a4f060185e013bf1f0f0194050196a1e57306013e3290da3204010ad2a70a01d0c0f79b9cbb1b5d8904010410b00301484502015702019574015b03014aa83f019403010853030109620a0186ab52f1f24e57d6d506015b030156a50a010d6f4fa6a87b91f4e20e01957da9147439b56cba02ae767003010bea040198061804019632bc0a0107ff264ab6eaccb86604010bb7d814015b0301080f0301091309010cc8fb4a751d75d4030194b8040183afa803010202070194040107514e810d0194040196aeba0401bb58252a015b09010b4682a7f1871e211401473313f7c1f177a97753d6e3a707d0a38e3eaf03010a1b040109964f1e015b0301080d030109410401b7d068040183debd060168cc79428c020109360194030108a00301096f08010cc603c227380703010ad304019606a204010848fa140108c0df5c51425ee937e65876bf8d42f24ee2c40601580ed776df030108e40a01120d14dda21ab39a626efcee',
  },
]

for (const { protocol, name, hex } of KEPT) {
  test(`kept: ${protocol}, ${name}`, () => {
    const target = TARGETS[protocol]
    const damage = Uint8Array.from(Buffer.from(hex, 'hex'))
    for (let seed = 1; seed <= 20; seed++) {
      const run = new FuzzRun(target)
      assert.equal(run.tryInput(inputAround(target, damage, seed), new Random(seed)), undefined)
      assert.ok(run.counts.decoded > 0, 'the frame did not get as far as it once did')
    }
  })
}

test('the memory of one device stays bounded over a long conversation of nonsense', () => {
  for (const target of Object.values(TARGETS)) {
    const { protocol } = target
    const memory = protocol.newMemory()
    const head = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
    const mark: UnitMark = { kind: UNIT.needMore, from: 0, to: 0, reason: 'bad_header' }
    let factsSeen = 0
    for (let index = 0; index < 20_000; index++) {
      const { stream, goodAt } = inputOf(target, 3, index)
      protocol.findFrame(stream, 0, goodAt[0]!, protocol.frameBytesMax, mark)
      if (mark.kind !== UNIT.frame) continue
      protocol.readHead(stream, mark.from, mark.to, head)
      const command = protocol.uplinks.get(head.commandKey)
      const fields = command?.decode(stream, head.dataFrom, head.dataTo)
      if (fields === undefined || fields instanceof PayloadError) continue
      factsSeen += command?.facts?.(fields, memory).length ?? 0
    }
    assert.ok(factsSeen > 2_000, `${factsSeen} facts of ${protocol.name}`)
    assert.ok(Object.keys(memory).length <= 128, `${Object.keys(memory).length} numbers remembered by ${protocol.name}`)
  }
})

// ---- the fuzzer can fail -------------------------------------------------------------------------------------------

/** @returns what is found in a target whose protocol is changed, within so many inputs; undefined when nothing is */
function findingOf(target: Target, changed: Partial<Protocol>, inputs = 4_000): string | undefined {
  const run = new FuzzRun({ ...target, protocol: { ...target.protocol, ...changed } })
  for (let index = 0; index < inputs; index++) {
    const what = run.tryInput(inputOf(target, SEED, index), new Random(index))
    if (what !== undefined) return what
  }
  return undefined
}

describe('codecs broken on purpose are caught', () => {
  for (const target of Object.values(TARGETS)) {
    const { protocol, reference } = target
    const { findFrame } = protocol

    test(`${protocol.name}: unchanged, nothing is found`, () => {
      assert.equal(findingOf(target, {}), undefined)
    })

    test(`${protocol.name}: a bad sum skips what the length declares`, () => {
      const found = findingOf(target, {
        findFrame(bytes, from, to, cap, mark) {
          findFrame(bytes, from, to, cap, mark)
          if (mark.kind === UNIT.noise && mark.reason === 'checksum_mismatch') mark.to = to
        },
      })
      assert.match(found!, /unit \d+ is|good frame \d+/)
    })

    test(`${protocol.name}: the sum is not looked at`, () => {
      const found = findingOf(target, {
        findFrame(bytes, from, to, cap, mark) {
          findFrame(bytes, from, to, cap, mark)
          if (mark.kind === UNIT.noise && mark.reason === 'checksum_mismatch') {
            mark.kind = UNIT.frame
            mark.to = Math.min(to, from + reference.frameBytesMin)
          }
        },
      })
      assert.match(found!, /without a good sum|unit \d+ is/)
    })

    test(`${protocol.name}: the small cap before login is forgotten`, () => {
      const found = findingOf(target, {
        findFrame: (bytes, from, to, _cap, mark) => findFrame(bytes, from, to, protocol.frameBytesMax, mark),
      })
      assert.match(found!, /wait|unit \d+ is/)
    })

    test(`${protocol.name}: no progress at noise`, () => {
      const found = findingOf(target, {
        findFrame(bytes, from, to, cap, mark) {
          findFrame(bytes, from, to, cap, mark)
          if (mark.kind === UNIT.noise) mark.to = from
        },
      })
      assert.match(found!, /no progress|ends at/)
    })

    test(`${protocol.name}: looks beyond the bytes it was given`, () => {
      const found = findingOf(target, {
        findFrame: (bytes, from, to, cap, mark) => findFrame(bytes, from, Math.min(bytes.length, to + 1), cap, mark),
      })
      assert.ok(found !== undefined)
    })

    test(`${protocol.name}: a decoder throws, or writes`, () => {
      const { uplinks } = protocol
      const all = (change: (bytes: Uint8Array, from: number, to: number) => void) => ({
        uplinks: new Map(
          [...uplinks].map(([key, command]) => [
            key,
            {
              ...command,
              decode(bytes: Uint8Array, from: number, to: number) {
                change(bytes, from, to)
                return command.decode(bytes, from, to)
              },
            },
          ]),
        ),
      })
      const thrown = all((_bytes, from, to) => {
        if (to - from === 6) throw new TypeError('six bytes')
      })
      assert.match(findingOf(target, thrown)!, /threw TypeError: six bytes/)
      const written = all((bytes, from, to) => {
        if (to - from === 6) bytes[from]! ^= 1
      })
      assert.match(findingOf(target, written)!, /written to|in place|beyond the data/)
    })
  }
})
