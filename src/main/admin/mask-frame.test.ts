/**
 * Claims: below admin no identity that a frame's fields hide can be read from its bytes, in whatever form it stands there;
 * what is no identity stays as it was; a frame that cannot be understood shows no data at all. Tried with both protocols'
 * corpora, both directions, with random identities (a failure prints seed and path for `fc.assert`), and with odd frames.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import fc from 'fast-check'
import type { Protocol } from '../../codec/protocol.ts'
import { PROTOCOLS } from '../../protocols/index.ts'
import { explain } from '../../recording/explain.ts'
import { maskFrame } from './mask-frame.ts'

const [ap3000, bkv] = ['ap3000', 'bkv'].map((name) => PROTOCOLS.find((one) => one.name === name)) as [
  Protocol,
  Protocol,
]
const corpusOf = ({ name }: Protocol) =>
  JSON.parse(readFileSync(new URL(`../../protocols/${name}/corpus/vectors.json`, import.meta.url), 'utf8')) as {
    name: string
    direction: 'up' | 'down'
    hex: string
    valid: boolean
    fields: Record<string, unknown>
  }[]

function show(protocol: Protocol, hex: string, direction: 'up' | 'down') {
  const bytes = Buffer.from(hex, 'hex')
  const isUplink = direction === 'up'
  const explained = explain(protocol, bytes, isUplink)
  const before = Buffer.from(bytes)
  const shown = maskFrame(protocol, bytes, isUplink, explained)
  assert.deepEqual(bytes, before, 'the given bytes stay')
  assert.equal(shown.hex.length, hex.length)
  return { ...shown, command: explained.command }
}
const ascii = (text: string) => Buffer.from(text, 'latin1').toString('hex')
/** Frames of random values, as a device or we would send them. */
function frameOf(protocol: Protocol, direction: 'up' | 'down', name: string, fields: Record<string, unknown>): string {
  const command = (direction === 'up' ? protocol.uplinkByName : protocol.downlinkByName).get(name)
  assert.ok(command, name)
  const way = direction === 'up' ? 'uplink' : 'downlink'
  return Buffer.from(protocol.encodeFrame(way, command, 0x04ab373b, 7, command.encode(fields))).toString('hex')
}

test('documented and captured frames of both protocols tell no identity, and the rest of them as it was', () => {
  let identities = 0
  for (const protocol of [ap3000, bkv])
    for (const { name, direction, hex, valid, fields } of corpusOf(protocol)) {
      const shown = show(protocol, hex, direction)
      if (!valid) {
        assert.match(shown.hex, /^(?:2a)*$/, name)
        continue
      }
      const secrets = Object.entries(fields).flatMap(([field, value]) =>
        /iccid|imei|simid|cardid_|cardorcode_|card2|password/i.test(field) && typeof value === 'string' ? [value] : [],
      )
      for (const secret of secrets) {
        if (secret.length <= 4 || /^(?:0+|f+)$/.test(secret)) continue
        identities++
        for (const form of [secret, ascii(secret)]) {
          assert.ok(!shown.hex.includes(form), `${name} ${secret}`)
          assert.ok(!JSON.stringify(shown.fields).includes(form), `${name} ${secret}`)
        }
      }
      if (secrets.length === 0 && !['unknown', 'noise'].includes(shown.command) && shown.hex !== hex)
        assert.match(shown.hex.slice(2 * 18, -8), /^(?:2a)*$/, `${name}: only what is unpublished is hidden whole`)
    }
  assert.ok(identities >= 20, `${identities} identities`)
})

test('what stays: the last four digits, as in the fields', () => {
  const of = (protocol: Protocol, name: string) => {
    const { hex, direction } = corpusOf(protocol).find((vector) => vector.name === name)!
    return { hex, shown: show(protocol, hex, direction) }
  }
  const swipe = of(ap3000, '02-doc-card-swipe')
  assert.equal(swipe.shown.hex, swipe.hex.replace('7a8d05dd', '2a2a05dd'))
  assert.equal(swipe.shown.fields['cardIdHex'], '****05dd')
  const reply = of(ap3000, '02-doc-card-reply')
  assert.equal(reply.shown.hex, reply.hex.replace('7a8d05dd', '2a2a05dd'))
  const host = of(ap3000, '11-cap-f3-a')
  assert.equal(
    host.shown.hex,
    host.hex
      .replace(ascii('898604D9162390488297'), `${'2a'.repeat(16)}${ascii('8297')}`)
      .replace(ascii('864452069762472'), `${'2a'.repeat(11)}${ascii('2472')}`),
  )
  const heartbeat = of(bkv, '0000-doc-heartbeat')
  assert.equal(
    heartbeat.shown.hex,
    heartbeat.hex.replace(ascii('89860463112070319417'), `${'2a'.repeat(16)}${ascii('9417')}`),
  )
  const balance = of(bkv, '0015-1a-doc-balance-reply')
  assert.equal(balance.shown.hex, balance.hex.replace('000000298352', '2a2a2a2a8352'))
  // nobody's number: zeros stay, and so do all the others of the frame
  const online = of(ap3000, '03-doc-settlement')
  assert.equal(online.shown.hex, online.hex)
  const module = of(ap3000, 'module-iccid-hex-letters')
  assert.equal(module.shown.hex, `${'2a'.repeat(16)}${ascii('8297')}`)
  const link = of(ap3000, 'module-link')
  assert.equal(link.shown.hex, link.hex)
})

test('random cards, in uplinks and replies of both protocols', () => {
  const card = (bytes: number) =>
    // no zeros: beside those of other fields they would be found by accident
    fc
      .array(fc.integer({ min: 0x11, max: 0xfe }), { minLength: bytes, maxLength: bytes })
      .map((value) => Buffer.from(value).toString('hex'))
  const sources = [
    [ap3000, '02-syn-social-security-card', 4],
    [ap3000, '02-doc-card-reply', 4],
    [ap3000, '02-syn-reply-monthly', 4],
    [bkv, '0015-0b-doc-swipe', 6],
    [bkv, '0015-0c-doc-card-end', 6],
    [bkv, '0015-1a-doc-balance', 6],
    [bkv, '0015-1a-doc-balance-reply', 6],
  ] as const
  for (const [protocol, name, bytes] of sources) {
    const { hex, direction } = corpusOf(protocol).find((vector) => vector.name === name)!
    const { command, fields } = explain(protocol, Buffer.from(hex, 'hex'), direction === 'up')
    fc.assert(
      fc.property(card(bytes), card(16), (cardIdHex, card2Hex) => {
        const given = { ...fields, cardIdHex, ...('card2Hex' in fields ? { card2Hex } : {}) }
        const shown = show(protocol, frameOf(protocol, direction, command, given), direction)
        for (const secret of [cardIdHex, card2Hex]) assert.ok(!shown.hex.includes(secret), `${name} ${shown.hex}`)
        assert.ok(shown.hex.includes(cardIdHex.slice(-4)), `${name} ${shown.hex}`)
      }),
      { numRuns: 50 },
    )
  }
})

test('an identity that other bytes repeat is hidden there too', () => {
  const { hex } = corpusOf(bkv).find(({ name }) => name === '0015-0b-doc-swipe')!
  const bytes = Buffer.from(hex, 'hex')
  const command = bkv.uplinkByName.get('cardSwiped')!
  const { fields } = explain(bkv, bytes, true)
  const cardIdHex = '112233445566'
  const again = { ...fields, cardIdHex, offlineHex: `aa${cardIdHex}${ascii(cardIdHex)}00` }
  const shown = show(bkv, frameOf(bkv, 'up', command.name, again), 'up')
  assert.ok(!shown.hex.includes(cardIdHex) && !shown.hex.includes(ascii(cardIdHex)), shown.hex)
  assert.ok(!JSON.stringify(shown.fields).includes(cardIdHex), JSON.stringify(shown.fields))
  assert.ok(!JSON.stringify(shown.fields).includes(ascii(cardIdHex)), JSON.stringify(shown.fields))
})

test('what cannot be understood shows no data: another form, a bad payload, no layout, no frame', () => {
  const vectors = corpusOf(ap3000)
  const { hex } = vectors.find(({ name }) => name === '11-cap-f3-a')!
  const bytes = Buffer.from(hex, 'hex')
  const explained = explain(ap3000, bytes, true)
  const dataHidden = `${hex.slice(0, 24)}${'2a'.repeat(bytes.length - 14)}${hex.slice(-4)}`
  // as if the number stood there in BCD: the fields know it, the bytes do not show where
  const inBcd = { ...explained, fields: { ...explained.fields, imeiAscii: '123456789012345' } }
  assert.equal(maskFrame(ap3000, bytes, true, inBcd).hex, dataHidden)
  const bad = { ...explained, fields: { payload_error: 'too_short', at: 'imeiAscii' } }
  assert.equal(maskFrame(ap3000, bytes, true, bad).hex, dataHidden)

  const unpublished = frameOf(ap3000, 'up', 'unpublishedA1Result', { dataHex: '7a8d05dd01' })
  const shown = show(ap3000, unpublished, 'up')
  assert.equal(shown.hex, unpublished.replace('7a8d05dd01', '2a2a2a2a2a'))
  assert.deepEqual(shown.fields, { dataHex: '*'.repeat(10) })

  const damaged = `${hex.slice(0, -2)}00`
  assert.match(show(ap3000, damaged, 'up').hex, /^(?:2a)+$/)
  assert.match(show(ap3000, hex.slice(2), 'up').hex, /^(?:2a)+$/)
  assert.match(show(ap3000, '7a8d05dd', 'up').hex, /^(?:2a)+$/)
})
