/**
 * Claimed: parameters that the document does not name are refused with the field, and no others.
 *
 * Claimed: a command that is accepted fits into a shard's mailbox, and holds nothing that the wire would leave out. Names
 * that a list's items do not have are refused, so are parameters longer than a row, and the longest that the wire does carry
 * still goes. Tried on the two lists of objects there are, through the mailbox's own encoder.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Protocol } from '../../codec/protocol.ts'
import { HttpError } from '../../errors/errors.ts'
import { ap3000 } from '../../protocols/ap3000/table.ts'
import { bkv } from '../../protocols/bkv/table.ts'
import { commandMail } from '../../rows/mail.ts'
import { encodeRow, readRows } from '../../rows/row.ts'
import { assertEncodes, commandNamed, commandSchemas, encodeCommand } from './catalogue.ts'

type Params = Record<string, unknown>
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

const PILE_NO = 0x04ab0201
const chunk = { chunks_total: 3, chunk: 3, firmware_hex: 'ab'.repeat(200) }
const server = { server_port: 7000, module_type: 3, socket_b: 1, address_ascii: 'a.example.org' }
const limits = { max_charge_s: 36_000, overload_power_dw: 20_000 }
const ota = { target: 1, ftp_ip: '10.1.2.3', ftp_port: 21, file_name_ascii: 'cV.1r46.bin' }
const node = (socket: number) => ({ socket, mac_hex: 'aabbccddeeff' })

/** What the documents name, and beside it what they do not; the field that the caller is told. */
const BOUNDS: [Protocol, string, good: Params[], bad: [Params, field: string][]][] = [
  [
    bkv,
    'setVoice',
    [
      { ...voice, windows: [{ start: '00:00', end: '23:59' }] },
      { ...voice, socket: 254, windows: [] },
      { ...voice, socket: 0, windows: [] },
    ],
    [
      ...['24:00', '25:61', '23:60', '99:99', '-1:00', 'noon'].flatMap((time): [Params, string][] => [
        [{ ...voice, windows: [{ start: time, end: '23:59' }] }, 'windows'],
        [{ ...voice, windows: [{ start: '00:00', end: time }] }, 'windows'],
      ]),
      ...[251, 252, 253, 255].map((socket): [Params, string] => [{ ...voice, socket, windows: [] }, 'socket']),
    ],
  ],
  [
    bkv,
    'setParameters',
    [
      { socket: 250, high_temp: 80 },
      { socket: 0, high_temp: 80 },
    ],
    [
      [{ socket: 251, high_temp: 80 }, 'socket'],
      [{ socket: 1 }, 'socket'],
    ],
  ],
  [bkv, 'queryParameters', [{ socket: 250 }], [[{ socket: 255 }, 'socket']]],
  [
    bkv,
    'refreshNodes',
    [{ channel: 1, nodes: [node(1), node(2)] }],
    [[{ channel: 1, nodes: [node(1), node(2), node(1)] }, 'nodes']],
  ],
  [
    bkv,
    'startOta',
    [ota],
    [
      [{ ...ota, ftp_port: 0 }, 'ftp_port'],
      [{ ...ota, file_name_ascii: '' }, 'file_name_ascii'],
      [{ ...ota, file_name_ascii: 'ä.bin' }, 'file_name_ascii'],
    ],
  ],
  [
    ap3000,
    'setServer',
    [server, { ...server, address_ascii: 'a'.repeat(46) }],
    ['', 'ä', '例', 'a\n'].map((text): [Params, string] => [{ ...server, address_ascii: text }, 'address_ascii']),
  ],
  [
    ap3000,
    'setTcMode',
    [0, 1, 3, 4, 5, 6].map((mode) => ({ work_mode: mode })),
    [2, 7].map((mode): [Params, string] => [{ work_mode: mode }, 'work_mode']),
  ],
  [ap3000, 'setQrText', [{ main_screen: 1, qr_ascii: 'http://x' }], [[{ main_screen: 1, qr_ascii: 'ä' }, 'qr_ascii']]],
  [ap3000, 'showTemporaryQr', [{ qr_ascii: 'q'.repeat(200) }], [[{ qr_ascii: '二维码' }, 'qr_ascii']]],
  [ap3000, 'writeEeprom', [{ address: 0, eeprom_hex: 'aa' }], [[{ address: 0, eeprom_hex: '' }, 'eeprom_hex']]],
  [
    ap3000,
    'setLimits',
    [limits, { ...limits, over_voltage_dv: 2_600, under_voltage_dv: 900 }],
    [
      [{ ...limits, over_voltage_dv: 2_600 }, 'under_voltage_dv'],
      [{ ...limits, under_voltage_dv: 900 }, 'over_voltage_dv'],
    ],
  ],
  ...['firmwareSlave', 'firmwarePowerBoard', 'firmwareViaHost', 'firmwareHost'].map((name): (typeof BOUNDS)[number] => [
    ap3000,
    name,
    [chunk],
    [
      [{ ...chunk, chunk: 0 }, 'chunk'],
      [{ ...chunk, chunk: 4 }, 'chunk'],
      [{ ...chunk, chunks_total: 0 }, 'chunks_total'],
    ],
  ]),
]

for (const [protocol, name, good, bad] of BOUNDS)
  test(`${name}: what the document names is taken, nothing else, and the schema says so`, () => {
    const entry = commandNamed(protocol, name)
    const deviceNo = protocol === bkv ? GATEWAY_NO : PILE_NO
    for (const params of good)
      assert.doesNotThrow(() => encodeCommand(protocol, entry, deviceNo, params), String(params))
    for (const [params, field] of bad)
      assert.throws(
        () => encodeCommand(protocol, entry, deviceNo, params),
        (error) => isInvalid(error) && (error as HttpError).details?.['field'] === `params.${field}`,
        JSON.stringify(params).slice(0, 200),
      )
  })

test('firmwareHost: no chunk is upgrade mode, half a chunk is refused', () => {
  const entry = commandNamed(ap3000, 'firmwareHost')
  const data = ({ fields }: ReturnType<typeof encodeCommand>) => entry.downlink.encode(fields)
  assert.equal(data(encodeCommand(ap3000, entry, PILE_NO, {})).length, 0)
  assert.equal(data(encodeCommand(ap3000, entry, PILE_NO, chunk)).length, 204)
  for (const missing of Object.keys(chunk)) {
    const { [missing]: _, ...half } = chunk as Params
    assert.throws(() => encodeCommand(ap3000, entry, PILE_NO, half), isInvalid)
    assert.throws(() => encodeCommand(ap3000, entry, PILE_NO, { [missing]: (chunk as Params)[missing] }), isInvalid)
  }
  // only a host has that mode
  assert.throws(() => encodeCommand(ap3000, commandNamed(ap3000, 'firmwareSlave'), PILE_NO, {}), isInvalid)
  const [schema] = commandSchemas([ap3000]).filter(({ title }) => title === 'ap3000 firmwareHost')
  assert.deepEqual(schema!['required'], ['name'])
  assert.match(String(schema!['description']), /without parameters enter upgrade mode/)
})

test('the schema has the bounds that are no range', () => {
  const schemas = commandSchemas([ap3000, bkv]) as unknown as {
    title: string
    properties: { params: { properties: Record<string, unknown>; dependentRequired?: unknown } }
  }[]
  const of = (title: string) => schemas.find((schema) => schema.title === title)!.properties.params
  assert.deepEqual((of('ap3000 setTcMode').properties['work_mode'] as { not: unknown }).not, { enum: [2] })
  assert.deepEqual((of('bkv setVoice').properties['socket'] as { not: unknown }).not, { enum: [251, 252, 253] })
  assert.deepEqual(of('ap3000 setLimits').dependentRequired, {
    over_voltage_dv: ['under_voltage_dv'],
    under_voltage_dv: ['over_voltage_dv'],
  })
  assert.equal((of('bkv startOta').properties['file_name_ascii'] as { minLength: unknown }).minLength, 1)
  assert.equal(
    (of('ap3000 writeEeprom').properties['eeprom_hex'] as { pattern: unknown }).pattern,
    '^(?:[0-9a-fA-F]{2}){1,255}$',
  )
})
