/** AP3000 document, sections 7 and 8: charging cabinets: 41, 44 and 72. */
import { downlink, uplink } from '../../../codec/command.ts'
import { limited, optional, u8, u32le } from '../../../codec/fields.ts'
import { RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import { port, portOf, result } from '../fields.ts'
import { orderHex } from './order.ts'
import { resultFact, TRIES } from './result.ts'

export const cabinetHeartbeat = uplink({
  code: 0x41,
  name: 'cabinetHeartbeat',
  section: '7, 41',
  summary: 'open doors and running fans, one bit per port',
  fields: { ports: u8, doorOpenMask: u32le, fanOnMask: u32le },
  frequent: true,
  facts: (fields) => [{ fact: 'heartbeat' }, { fact: 'deviceInfo', portCount: fields['ports'] as number }],
  reply: 'none',
})

const PUSH_DOOR_NOT_CLOSED = 1

export const portPush = uplink({
  code: 0x44,
  name: 'portPush',
  section: '7, 44',
  summary: 'something about a port and its order: 1 = door not closed',
  fields: { pushType: u8, port, orderHex },
  facts(fields) {
    const kindRaw = fields['pushType'] as number
    const kind = kindRaw === PUSH_DOOR_NOT_CLOSED ? 'door_not_closed' : 'unknown'
    return [{ fact: 'alarm', kind, kindRaw, socket: 0, port: portOf(fields['port'] as number) }]
  },
  reply: 'none',
})

export const stopCabinet = downlink({
  code: 0x72,
  name: 'stopCabinet',
  section: '8, 72',
  summary: 'stop an order and leave the door shut',
  fields: { port: limited(port, { about: 'port on the wire, from 0' }), orderHex },
  result: { by: 'stopCabinetResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})

export const stopCabinetResult = uplink({
  code: 0x72,
  name: 'stopCabinetResult',
  section: '8, 72',
  summary: 'result of 72, with the order',
  fields: { result, orderHex: optional(orderHex) },
  facts: (fields) => [resultFact('stopCabinet', fields)],
  reply: 'none',
})
