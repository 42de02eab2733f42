/**
 * Claims: every captured, documented and built AP3000 frame decodes to the fields noted beside it, encodes back to its
 * bytes, and is found again after doubling, noise, damage and cuts. How: `corpus/vectors.json` (a copy of the vectors of
 * the protocol reference) through src/codec/corpus-suite.ts; `node --test src/protocols/ap3000/corpus.test.ts`.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { type CorpusAdapter, corpusSuite, type Vector } from '../../codec/corpus-suite.ts'
import { type NoiseReason, UNIT } from '../../codec/protocol.ts'
import { decodeCheckChunk } from './commands/firmware.ts'
import { temperatureOf } from './fields.ts'
import { ap3000 } from './table.ts'

const vectors = JSON.parse(readFileSync(new URL('corpus/vectors.json', import.meta.url), 'utf8')) as readonly Vector[]

/** Fields of vectors that belong to the frame, not to the command. */
const OF_THE_FRAME = new Set([
  'kind',
  'length',
  'physId_hex',
  'recognitionCode_hex',
  'deviceNumber',
  'msgId',
  'cmd_hex',
  'checksum',
  'payloadError',
])

const KINDS: Readonly<Record<string, typeof UNIT.frame | typeof UNIT.identity | typeof UNIT.signOfLife>> = {
  frame: UNIT.frame,
  iccid: UNIT.identity,
  link: UNIT.signOfLife,
}

const REASONS: Readonly<Record<string, readonly NoiseReason[]>> = {
  checksum_mismatch: ['checksum_mismatch'],
  length_below_minimum: ['bad_length'],
  bad_header: ['bad_header'],
  // incomplete for ever, or a length above the cap, for which nobody waits
  incomplete: ['incomplete', 'bad_length'],
}

/** The vectors name the bits of the work mode (20); the gateway keeps its number. */
const workModeOf = (raw: number) => ({
  cardOnly: (raw & 1) !== 0,
  meterChip: (raw & 2) !== 0 ? 'BL0939' : 'RN8209',
  shortCircuitPrecheck: (raw & 4) !== 0,
  lampMode: (raw & 8) !== 0,
})

const adapter: CorpusAdapter = {
  kindOf: ({ fields }) => KINDS[fields['kind'] as string]!,
  headOf: ({ fields }) => ({
    deviceId: fields['physId_hex'] as string,
    messageId: fields['msgId'] as number,
    commandKey: Number.parseInt(fields['cmd_hex'] as string, 16),
  }),
  expected({ fields }, { layout }) {
    const belongs = ([name]: [string, unknown]) =>
      !OF_THE_FRAME.has(name) && (name !== 'data_hex' || layout === 'unpublished')
    return Object.fromEntries(Object.entries(fields).filter(belongs))
  },
  derived(fields) {
    const more: Record<string, unknown> = {}
    for (const [name, value] of Object.entries(fields)) {
      if (name.endsWith('TempRaw') || name === 'tempRaw')
        more[name.replace('Raw', 'C')] = temperatureOf(value as number, 65) ?? null
    }
    const { orderHex, cardIdHex, workModeHex, firmwareHex } = fields as Readonly<Record<string, string | undefined>>
    if (orderHex !== undefined) more['orderAscii'] = Buffer.from(orderHex, 'hex').toString('latin1')
    if (cardIdHex !== undefined) more['cardNumber'] = Number.parseInt(cardIdHex, 16)
    if (workModeHex !== undefined) more['workMode'] = workModeOf(Number.parseInt(workModeHex, 16))
    if (firmwareHex !== undefined) {
      more['firmwareBytes'] = firmwareHex.length / 2
      more['firmwareFirst8Hex'] = firmwareHex.slice(0, 16)
      more['checkPackage'] = decodeCheckChunk(firmwareHex)
    }
    return more
  },
  reasonsFor: ({ fields }) => REASONS[fields['error'] as string]!,
  strays: [
    // a server framework's own header, echoed by devices (section 3)
    hex('000000000000010000'),
    hex('ff'),
    hex('444e'),
    hex('6c696e'),
    hex('383938'),
    // headers whose frames never come: cut short, of a length that would swallow what follows, too short, too long
    hex('444e590900'),
    hex('444e59ff00cd28a204'),
    hex('444e590800'),
    hex('444e59ffff'),
  ],
  witness: '12-cap-f3',
}

function hex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'))
}

corpusSuite(ap3000, vectors, adapter)

test('the corpus holds a frame of every published command, but for those no document and no device has shown', () => {
  const seen = { up: new Set<number>(), down: new Set<number>() }
  for (const { valid, direction, fields } of vectors)
    if (valid && fields['kind'] === 'frame') seen[direction].add(Number.parseInt(fields['cmd_hex'] as string, 16))
  const missing = [
    ...[...ap3000.uplinks.values()].filter(({ code, layout }) => layout === 'published' && !seen.up.has(code)),
    ...[...ap3000.downlinks.values()].filter(({ code, layout }) => layout === 'published' && !seen.down.has(code)),
  ]
  assert.deepEqual(missing.map(({ name }) => name).sort(), ['firmwarePowerBoardResult', 'firmwareViaHostResult'])
})
