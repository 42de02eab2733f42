/** Outer command 1000: rows of entries. BKV document, section 7. The grammar and the keys are in entries.ts. */
import { type Body, downlink, uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import { describe, FieldError, type ParameterDescription } from '../../../codec/fields.ts'
import { type DeviceMemory, type Fields, PayloadError, RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import { decodePayload, encodePayload, KEY_BYTES, type PayloadShape } from '../entries.ts'
import { CODE_PAYLOAD } from '../frame.ts'
import { profileOf } from '../profile.ts'
import { factsOfSockets, isTwoBytes, numberOr, START_MODE_UNSAID, settlementOf } from '../readings.ts'
import { beijingMs, SOCKET } from '../shapes.ts'
import { faultOf, meteringBitOf, portStateOf } from '../status.ts'

/** A body whose `encode` refuses what names only the socket. */
function changing(body: Body): Body {
  return {
    ...body,
    encode: (fields) => {
      const given = Object.keys((fields['bkv'] ?? fields) as Fields).filter((name) => name in PARAMETER_UNITS)
      if (given.length === 0) throw new FieldError('socket', 'needs at least one parameter beside it')
      return body.encode(fields)
    },
  }
}

/** A payload needs the named keys, as numbers of the table's width, to be this command at all. */
function payloadBody(shape: PayloadShape, needs: readonly string[] = [], units: Units = {}): Body {
  return {
    decode: (bytes, from, to) => {
      const decoded = decodePayload(bytes, from, to)
      if (decoded instanceof PayloadError) return decoded
      const bkv = bkvOf(decoded)
      for (const name of needs) {
        const value = bkv[name]
        if (value === undefined) return new PayloadError('bad_entry', name)
        if (typeof value !== 'number' || value >= 256 ** KEY_BYTES.get(name)!)
          return new PayloadError('bad_value', name)
      }
      return decoded
    },
    encode: (fields) => encodePayload(fields, shape),
    parameters: (shape.order ?? []).map((name) => describeKey(name, units[name])),
  }
}

type Units = Readonly<Record<string, string>>

/** Every key of a payload may be left out, as far as the grammar goes. Bounds bind callers, not the echo in an ack. */
function describeKey(name: string, about: string | undefined): ParameterDescription {
  if (name === 'socket') return { ...describe(name, SOCKET), isOptional: true }
  const bytes = KEY_BYTES.get(name) ?? 0
  const isList = name === 'tiers'
  return {
    name,
    type: isList ? 'list' : 'integer',
    bytes: isList ? 6 * 8 : bytes,
    isOptional: true,
    isRest: isList,
    ...(isList ? {} : { min: 0, max: 256 ** bytes - 1 }),
    ...(about === undefined ? {} : { about }),
  }
}

function bkvOf(fields: Fields): Fields {
  return fields['bkv'] as Fields
}

export const statusReport = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1017,
  name: 'statusReport',
  section: '7',
  summary: 'all ports; every 5 min and on change',
  body: payloadBody({ sub: 0x1017 }),
  reply: { with: 'statusAck', when: 'decoded', fields: () => ({ bkv: { ack: 1 } }) },
  facts: (fields, memory) => factsOfSockets((bkvOf(fields)['sockets'] ?? []) as readonly Fields[], memory),
})

export const statusAck = downlink({
  code: CODE_PAYLOAD,
  sub: 0x1017,
  name: 'statusAck',
  section: '7',
  summary: 'answers statusReport',
  body: payloadBody({ sub: 0x1017, order: ['ack'] }),
  result: 'none',
})

/** Without port and business number the settlement would belong to no order, so that is a payload error. */
export const feeEndReport = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1004,
  name: 'feeEndReport',
  section: '7',
  summary: 'end of a charge in fee mode',
  body: payloadBody({ sub: 0x1004 }, ['port', 'businessNo']),
  reply: {
    with: 'feeEndAck',
    when: 'durable',
    fields: (uplink) => {
      const { socket, port } = bkvOf(uplink)
      return { bkv: { ack: 1, socket, port } }
    },
  },
  facts: (fields, memory) => [feeSettlement(bkvOf(fields), memory)],
})

function feeSettlement(bkv: Fields, memory: DeviceMemory): Fact {
  const endedMs = beijingMs(bkv['endTimeBcd'])
  const reasonRaw = bkv['endReason']
  const reason = typeof reasonRaw === 'number' ? profileOf(memory).settings.endReasonByKey2F[reasonRaw] : undefined
  const { electricityFeeFen, serviceFeeFen } = bkv
  const isPriced = isTwoBytes(electricityFeeFen) || isTwoBytes(serviceFeeFen)
  return settlementOf(bkv, memory, {
    startModeRaw: numberOr(bkv['mode'], START_MODE_UNSAID),
    ...(typeof reasonRaw === 'number' && reasonRaw <= 0xff ? { endReasonRaw: reasonRaw } : {}),
    ...(reason === undefined ? {} : { endReason: reason }),
    ...(endedMs === undefined ? {} : { endedMs }),
    ...(isPriced
      ? {
          deviceAmountFen:
            (isTwoBytes(electricityFeeFen) ? electricityFeeFen : 0) + (isTwoBytes(serviceFeeFen) ? serviceFeeFen : 0),
        }
      : {}),
  })
}

export const feeEndAck = downlink({
  code: CODE_PAYLOAD,
  sub: 0x1004,
  name: 'feeEndAck',
  section: '7',
  summary: 'answers feeEndReport',
  body: payloadBody({ sub: 0x1004, order: ['ack', 'socket', 'port'] }),
  result: 'none',
})

/**
 * The device's answer is unpublished, so none is awaited: the next statusReport of the port shows the order, with
 * status 90 and a new business number. Never repeated blindly.
 */
export const feeControl = downlink({
  code: CODE_PAYLOAD,
  sub: 0x1007,
  name: 'feeControl',
  section: '7',
  summary: 'start or stop in fee mode, or by time',
  body: payloadBody(
    {
      sub: 0x1007,
      order: [
        'socket',
        'port',
        'on',
        'mode',
        'controlType',
        'keyF4',
        'amountFen',
        'serviceFeeBasis',
        'tierCount',
        'tiers',
        'minutesLimitMin',
        'energyLimit',
      ],
    },
    [],
    {
      on: '1 start, 0 stop',
      mode: '1 time, 2 energy, 4 electricity fee + service fee',
      controlType: '1 in all samples',
      keyF4: 'unknown, 2 in the only sample',
      amountFen: 'paid, fen',
      serviceFeeBasis: '0 by time, 1 by energy',
      tiers: 'items: endHhMm, electricityPriceFenPerKwh, servicePriceFenPerKwh; the last ends 23:59',
      minutesLimitMin: 'time mode, min',
    },
  ),
  result: 'none',
})

/** Unpublished; if a device answers in the grammar with an ack (key 0F), the outcome is passed on. */
export const feeControlResult = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1007,
  name: 'feeControlResult',
  section: '7',
  summary: 'unpublished answer to feeControl',
  layout: 'unpublished',
  body: payloadBody({ sub: 0x1007 }),
  reply: 'none',
  facts: (fields) => ackFacts('feeControl', bkvOf(fields)),
})

/** Outcome of a 0x1000 command: key 0F, 1 ok, 0 error. Nothing is said without it. */
function ackFacts(downlinkName: string, bkv: Fields): Fact[] {
  const raw = numberOr(bkv['ack'], UNSAID)
  if (raw === UNSAID) return []
  // unpublished answers may carry any width: what is no byte or no business number is left out
  const said = (name: string, max: number) => {
    const value = numberOr(bkv[name], UNSAID)
    return value > max ? UNSAID : value
  }
  const socket = said('socket', 0xff)
  const port = said('port', 0xff)
  const businessNo = said('businessNo', 0xffff)
  return [
    {
      fact: 'result',
      downlink: downlinkName,
      raw,
      ok: raw === 1,
      reason: raw === 1 ? 'ok' : 'failed',
      ...(socket === UNSAID ? {} : { socket }),
      ...(port === UNSAID ? {} : { port: port + 1 }),
      ...(businessNo === UNSAID ? {} : { businessNo }),
    },
  ]
}

const UNSAID = -1

/** Reasons are unpublished (08 appears unexplained in the guide): raw values are passed on. */
export const exceptionReport = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1010,
  name: 'exceptionReport',
  section: '7',
  summary: 'something is wrong with a socket',
  body: payloadBody({ sub: 0x1010 }),
  reply: {
    with: 'exceptionAck',
    when: 'decoded',
    fields: (uplink) => ({ bkv: { socket: bkvOf(uplink)['socket'], ack: 1 } }),
  },
  facts: (fields, memory) => alarmsOf(bkvOf(fields), memory),
})

/** One alarm for the socket, one for each port that gives a reason or a state other than 0, and the ports' states. */
function alarmsOf(bkv: Fields, memory: DeviceMemory): Fact[] {
  const socket = numberOr(bkv['socket'], 0)
  const facts: Fact[] = [alarm('socket_event', socket, 0, bkv['socketEventReason'], bkv['socketEventState'])]
  for (const port of [1, 2]) {
    const reason = numberOr(bkv[`port${port}EventReason`], 0)
    const state = numberOr(bkv[`port${port}EventState`], 0)
    if (reason !== 0 || state !== 0) facts.push(alarm('port_event', socket, port, reason, state))
  }
  const meteringBit = meteringBitOf(profileOf(memory).settings)
  const ports = [1, 2].flatMap((port) => {
    const hex = bkv[`port${port}StatusHex`]
    if (typeof hex !== 'string') return []
    const stateRaw = Number.parseInt(hex, 16)
    const state = portStateOf(stateRaw, meteringBit)
    return [{ socket, port, state, stateRaw, ...(state === 'fault' ? { fault: faultOf(stateRaw, meteringBit) } : {}) }]
  })
  if (ports.length > 0) facts.push({ fact: 'portStates', ports })
  return facts
}

function alarm(kind: string, socket: number, port: number, reason: unknown, state: unknown): Fact {
  return { fact: 'alarm', kind, kindRaw: numberOr(reason, 0), socket, port, trigger: numberOr(state, 0) }
}

export const exceptionAck = downlink({
  code: CODE_PAYLOAD,
  sub: 0x1010,
  name: 'exceptionAck',
  section: '7',
  summary: 'answers exceptionReport',
  body: payloadBody({ sub: 0x1010, order: ['socket', 'ack'] }),
  result: 'none',
})

const PARAMETER_UNITS: Units = {
  fullChargeDelayS: 's',
  noLoadDelayS: 's',
  fullPowerDw: '0.1 W',
  noLoadPowerDw: '0.1 W',
  highTemp: 'degC',
  powerLimitDw: '0.1 W',
  maxChargeTimeMin: 'min',
  tricklePercent: '%',
  overCurrentMa: 'mA',
  keyBaseAmount: 'amount per key press, unit unknown',
  antiPulse: 'anti-pulse time, unit unknown',
}

/** Only the given parameters change. */
export const setParameters = downlink({
  code: CODE_PAYLOAD,
  sub: 0x1011,
  name: 'setParameters',
  section: '7',
  summary: 'changes the given parameters of a socket',
  body: changing(payloadBody({ sub: 0x1011, order: ['socket', ...Object.keys(PARAMETER_UNITS)] }, [], PARAMETER_UNITS)),
  result: { by: 'setParametersResult', withinMs: RESULT_WITHIN_MS, tries: 2 },
})

export const setParametersResult = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1011,
  name: 'setParametersResult',
  section: '7',
  summary: 'outcome of setParameters',
  body: payloadBody({ sub: 0x1011 }, ['ack']),
  reply: 'none',
  facts: (fields) => ackFacts('setParameters', bkvOf(fields)),
})

export const queryParameters = downlink({
  code: CODE_PAYLOAD,
  sub: 0x1012,
  name: 'queryParameters',
  section: '7',
  summary: 'asks a socket for its parameters',
  body: payloadBody({ sub: 0x1012, order: ['socket'] }),
  result: { by: 'parameters', withinMs: RESULT_WITHIN_MS, tries: 2 },
})

export const parameters = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1012,
  name: 'parameters',
  section: '7',
  summary: 'answer to queryParameters',
  body: payloadBody({ sub: 0x1012 }, ['ack']),
  reply: 'none',
  facts: (fields) => {
    const { subHex: _sub, bkvSeqHex: _sequence, bkvGatewayId: _gateway, ack: _ack, ...content } = bkvOf(fields)
    return ackFacts('queryParameters', bkvOf(fields)).map((fact) => ({ ...fact, content }))
  },
})

/** Undocumented, about 0.4 s after the first heartbeat of a connection: recorded, never answered. */
export const connectNotice = uplink({
  code: CODE_PAYLOAD,
  sub: 0x1013,
  name: 'connectNotice',
  section: '7',
  summary: 'undocumented notice after connecting',
  body: payloadBody({ sub: 0x1013 }),
  reply: 'none',
  facts: (fields) => {
    const deviceMs = beijingMs(bkvOf(fields)['timeBcd'])
    return deviceMs === undefined ? [] : [{ fact: 'clock', deviceMs }]
  },
})
