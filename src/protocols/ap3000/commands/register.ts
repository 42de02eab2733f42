/** AP3000 document, section 7: 20 and 05, what a device says about itself; 00, 09, 0A never reach a server. */
import { downlink, rawBody, uplink } from '../../../codec/command.ts'
import { bytesHex, limited, optional, u8, u16le, u32le } from '../../../codec/fields.ts'
import { firmwareOf, result } from '../fields.ts'
import { DATA_BYTES_MAX } from '../frame.ts'

interface Register {
  readonly fwVersion: number
  readonly ports: number
  readonly virtualId: number
  readonly deviceTypeHex: string
  readonly workModeHex: string
}

export const register = uplink({
  code: 0x20,
  name: 'register',
  section: '7, 20',
  summary: 'model and firmware, at power-up and after a change; no login: other commands may come first',
  fields: {
    fwVersion: limited(u16le, { about: '126 = 1.26' }),
    ports: u8,
    virtualId: u8,
    deviceTypeHex: bytesHex(1),
    // bit 0 cards only, 1 meter BL0939 (else RN8209), 2 looks for short circuits first, 3 lamp
    workModeHex: bytesHex(1),
    powerBoardVersion: optional(u16le),
    // in one documented frame only (e4 00); time-billing flag and TC mode, says another project
    trailingHex: optional(bytesHex(2)),
  },
  facts(fields) {
    const { fwVersion, ports, virtualId, deviceTypeHex, workModeHex } = fields as unknown as Register
    return [
      {
        fact: 'deviceInfo',
        firmware: firmwareOf(fwVersion),
        deviceType: deviceTypeHex,
        portCount: ports,
        virtualId,
        workMode: Number.parseInt(workModeHex, 16),
        registered: true,
      },
    ]
  },
  reply: { with: 'registerAck', when: 'decoded', fields: () => ({ result: 0 }), sameFor: 'ever' },
})

export const registerAck = downlink({
  code: 0x20,
  name: 'registerAck',
  section: '7, 20',
  summary: 'ack of 20, 0 ok',
  fields: { result },
  result: 'none',
})

export const busPoll = uplink({
  code: 0x00,
  name: 'busPoll',
  section: '6, 00',
  summary: 'host polls a slave on RS485',
  layout: 'internal',
  fields: { virtualId: u8 },
  frequent: true,
  reply: 'none',
})

export const slaveTest = uplink({
  code: 0x09,
  name: 'slaveTest',
  section: '6, 09',
  summary: 'slave test between host and slave',
  layout: 'internal',
  body: rawBody(DATA_BYTES_MAX),
  reply: 'none',
})

export const moduleSetting = uplink({
  code: 0x0a,
  name: 'moduleSetting',
  section: '6, 0A',
  summary: 'module setting between host and module',
  layout: 'internal',
  body: rawBody(DATA_BYTES_MAX),
  reply: 'none',
})

export const upgradeRequest = uplink({
  code: 0x05,
  name: 'upgradeRequest',
  section: '7, 05',
  summary: 'device asks for firmware (F8 or E0 types); the server starts at chunk 1',
  fields: { deviceTypeHex: bytesHex(1), fwVersion: u16le, packageType: u32le },
  facts: () => [{ fact: 'upgradeRequested', by: 'upgradeRequest' }],
  reply: 'none',
})
