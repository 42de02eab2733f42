/** AP3000 document, section 7: 22 (device) and 12 (host) ask for the time. No data, answered with a Unix timestamp. */
import { downlink, uplink } from '../../../codec/command.ts'
import type { Reply } from '../../../codec/protocol.ts'
import { timestamp32 } from '../fields.ts'

export const timeRequest = uplink({
  code: 0x22,
  name: 'timeRequest',
  section: '7, 22',
  summary: 'device asks for the time, at power-up until answered, then every 12 h',
  fields: {},
  reply: answerTime('timeAnswer'),
})

export const timeAnswer = downlink({
  code: 0x22,
  name: 'timeAnswer',
  section: '7, 22',
  summary: 'Unix seconds',
  fields: { timestampS: timestamp32 },
  result: 'none',
})

export const hostTimeRequest = uplink({
  code: 0x12,
  name: 'hostTimeRequest',
  section: '7, 12',
  summary: 'host asks for the time; hosts without a clock never do',
  fields: {},
  reply: answerTime('hostTimeAnswer'),
})

export const hostTimeAnswer = downlink({
  code: 0x12,
  name: 'hostTimeAnswer',
  section: '7, 12',
  summary: 'Unix seconds',
  fields: { timestampS: timestamp32 },
  result: 'none',
})

function answerTime(name: string): Reply {
  return { with: name, when: 'decoded', fields: (_, { nowMs }) => ({ timestampS: Math.floor(nowMs / 1000) }) }
}
