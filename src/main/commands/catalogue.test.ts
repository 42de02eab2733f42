/**
 * Claimed: a command that is accepted fits into a shard's mailbox, and holds nothing that the wire would leave out. Names
 * that a list's items do not have are refused, so are parameters longer than a row, and the longest that the wire does carry
 * still goes. Tried on the two lists of objects there are, through the mailbox's own encoder.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { HttpError } from '../../errors/errors.ts'
import { bkv } from '../../protocols/bkv/table.ts'
import { commandMail } from '../../rows/mail.ts'
import { encodeRow, readRows } from '../../rows/row.ts'
import { assertEncodes, commandNamed, encodeCommand } from './catalogue.ts'

const GATEWAY_NO = 82_231_214_000_520

const encoded = (name: string, params: Record<string, unknown>) =>
  encodeCommand(bkv, commandNamed(bkv, name), GATEWAY_NO, params)

const isInvalid = (error: unknown) => error instanceof HttpError && error.code === 'INVALID_ARGUMENT'
const voice = { socket: 1, port: 1, buzzer: 1, voice: 1 }
const window = { start: '08:00', end: '20:00' }

test('a name that the items of a list do not have is refused', () => {
  assert.equal(encoded('setVoice', { ...voice, windows: [window] }).socket, 1)
  for (const more of [{ junk: '' }, { junk: 'x'.repeat(200_000) }, { start_: '' }])
    assert.throws(() => encoded('setVoice', { ...voice, windows: [{ ...window, ...more }] }), isInvalid)
  const nodes = [{ socket: 1, mac_hex: 'aabbccddeeff', junk: 1 }]
  assert.throws(() => encoded('refreshNodes', { channel: 1, nodes }), isInvalid)
})

test('parameters that the mailbox could not take are refused', () => {
  const downlink = bkv.downlinkByName.get('setVoice')!
  const fields = { ...voice, port: 0, windows: [window] }
  assert.doesNotThrow(() => assertEncodes(bkv, downlink, GATEWAY_NO, fields))
  // in UTF-8: a text of half as many characters is as long
  for (const more of ['x'.repeat(16_000), 'é'.repeat(8_000)])
    assert.throws(() => assertEncodes(bkv, downlink, GATEWAY_NO, { ...fields, more }), isInvalid)
})

test('a node list of 250 sockets goes, with every other field at its longest', () => {
  const nodes = Array.from({ length: 250 }, (_, index) => ({ socket: index + 1, mac_hex: 'aabbccddeeff' }))
  const { fields } = encoded('refreshNodes', { channel: 1, nodes })
  const row = encodeRow(commandMail, {
    commandId: 'a'.repeat(36),
    deviceKey: 2 ** 52,
    epoch: 2 ** 52,
    name: 'n'.repeat(64),
    fields: JSON.stringify(fields),
    priority: 1,
    expiresMs: 2 ** 52,
    wireHex: 'f'.repeat(32),
    socket: 250,
    port: 2,
    attempts: 2,
    messageId: 2 ** 32,
    lastMessageId: 2 ** 32,
  })
  const [read] = [...readRows(row, commandMail)]
  assert.deepEqual(JSON.parse(read!.fields), fields)
})
