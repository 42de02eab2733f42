/** AP3000 document, section 8: 82 start and stop, 8A change the running order, 81 ask for status. */
import { type Body, downlink, uplink } from '../../../codec/command.ts'
import { FieldError, fields as fieldsOf, limited, optional, u8, u16le, u32le } from '../../../codec/fields.ts'
import { type Fields, RESULT_WITHIN_MS } from '../../../codec/protocol.ts'
import { energy16, flag, port, portOf, power16, result, seconds16, timestamp32 } from '../fields.ts'
import { RATE_MODES } from '../rate-mode.ts'
import { orderHex } from './order.ts'
import { byteResult, TRIES } from './result.ts'

export const askStatus = downlink({
  code: 0x81,
  name: 'askStatus',
  section: '8, 81',
  summary: 'no direct result: 20, 01 and 21 follow in the device’s own time',
  fields: {},
  result: 'none',
  asksPorts: true,
})

// ---- 82 --------------------------------------------------------------------------------------------------------

const rateMode = limited(u8, { min: 0, max: 3, about: '0 time, 1 monthly, 2 energy, 3 per use' })
const balanceFen = limited(u32le, { unit: 'fen', about: 'spoken only' })
const expiryS = limited(timestamp32, { about: 'monthly mode: in place of the balance' })
const durationS = limited(seconds16, { about: '0 = until full' })
const energy10Wh = limited(energy16, { about: 'energy mode: in place of the duration; 0 = until full' })
const command = limited(flag, { about: '0 stop, 1 start' })

/** 29 bytes end behind the overload power. Servers in the field send 37 or 38, so these eight bytes go together. */
const TO_37 = 1
const TO_38 = 2
const grown = {
  maxChargeS: limited(seconds16, { about: '0 = device setting' }),
  overloadPowerDw: limited(power16, { about: '0 = device setting' }),
  qrLampOff: optional(flag, 0, TO_37),
  longCharge: optional(u8, 0, TO_37),
  extraFloatS: optional(limited(u16le, { unit: 's', about: '65535 = no float' }), 0, TO_37),
  // 2 is the normal check: who says nothing gets it
  shortCircuitCheck: optional(limited(u8, { min: 0, max: 2, about: '0 or 1 skip, 2 normal' }), 2, TO_37),
  ignoreUnplug: optional(u8, 0, TO_37),
  forceFullStop: optional(u8, 0, TO_37),
  fullPowerW: optional(limited(u8, { unit: 'W', about: '0 or 255 off' }), 0, TO_37),
  fullPowerMaxMin: optional(limited(u8, { unit: 'min' }), 0, TO_38),
}
const byTime = fieldsOf({ rateMode, balanceFen, port, command, durationS, orderHex, ...grown })
const byMonth = fieldsOf({ rateMode, expiryS, port, command, durationS, orderHex, ...grown })
const byEnergy = fieldsOf({ rateMode, balanceFen, port, command, energy10Wh, orderHex, ...grown })

function startOf(mode: unknown): typeof byTime {
  return mode === RATE_MODES.monthly ? byMonth : mode === RATE_MODES.energy ? byEnergy : byTime
}

/** What a caller may leave out: a stop needs port, command 0 and the running order, and zeros for the rest. */
const LEFT_OUT: Fields = {
  rateMode: 0,
  balanceFen: 0,
  expiryS: 0,
  durationS: 0,
  energy10Wh: 0,
  maxChargeS: 0,
  overloadPowerDw: 0,
}

/** Bytes 1..4 and 7..8 mean what the rate mode says. Encoded: 29, 37 or 38 bytes, by the last field given. */
const body82: Body = {
  decode: (bytes, from, to) => startOf(from < to ? bytes[from] : undefined).decode(bytes, from, to),
  encode(fields) {
    const whole = { ...LEFT_OUT, ...fields }
    return startOf(whole.rateMode).encode(whole)
  },
  parameters: fieldsOf({
    rateMode,
    balanceFen,
    expiryS,
    port,
    command,
    durationS,
    energy10Wh,
    orderHex,
    ...grown,
  }).parameters.map((parameter) => (parameter.name in LEFT_OUT ? { ...parameter, isOptional: true } : parameter)),
}

export const startCharge = downlink({
  code: 0x82,
  name: 'startCharge',
  section: '8, 82',
  summary: 'start (command 1) or stop (command 0) an order',
  body: body82,
  result: { by: 'startChargeResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})

interface ResultWords {
  readonly reason: string
  /** Column "started?" of the guide; `unknown` is its "not said": 06, 03 and the port state of 21 will tell. */
  readonly executed: 'yes' | 'no' | 'unknown'
}
const START_RESULTS: readonly ResultWords[] = [
  { reason: 'ok', executed: 'yes' },
  { reason: 'no_charger', executed: 'no' },
  { reason: 'already_in_state', executed: 'no' },
  { reason: 'port_fault', executed: 'yes' },
  { reason: 'no_such_port', executed: 'no' },
  { reason: 'several_ports_wait', executed: 'no' },
  { reason: 'device_over_power', executed: 'no' },
  { reason: 'memory_damaged', executed: 'unknown' },
  { reason: 'precheck_relay_or_fuse', executed: 'unknown' },
  { reason: 'precheck_relay_stuck', executed: 'yes' },
  { reason: 'precheck_load_short', executed: 'unknown' },
  { reason: 'smoke_alarm', executed: 'unknown' },
  { reason: 'over_voltage', executed: 'unknown' },
  { reason: 'under_voltage', executed: 'unknown' },
  { reason: 'no_response', executed: 'unknown' },
]

/** Never to be answered, and never with an 82: the device would take the echo for a new command, every 5 s. */
export const startChargeResult = uplink({
  code: 0x82,
  name: 'startChargeResult',
  section: '8, 82',
  summary: 'result of 82: started or why not; waiting ports for result 5',
  fields: { result, orderHex, port, waitingPortsMask: optional(u16le) },
  facts(fields) {
    const raw = fields['result'] as number
    const { reason, executed } = START_RESULTS[raw] ?? { reason: `result_${raw}`, executed: 'unknown' }
    return [
      {
        fact: 'result',
        downlink: 'startCharge',
        raw,
        ok: executed === 'yes',
        reason,
        executed,
        socket: 0,
        port: portOf(fields['port'] as number),
        wireHex: fields['orderHex'] as string,
      },
    ]
  },
  reply: 'none',
})

// ---- 8A --------------------------------------------------------------------------------------------------------

const changeMode = limited(u8, {
  min: 0,
  max: 2,
  about: '0 time without, 1 time with, 2 energy with stop when full',
})
const changeTime = fieldsOf({ rateMode: changeMode, port, durationS: seconds16 })
const changeEnergy = fieldsOf({ rateMode: changeMode, port, energy10Wh: energy16 })
const CHANGE_ENERGY = 2

const body8A: Body = {
  decode: (bytes, from, to) =>
    (from < to && bytes[from] === CHANGE_ENERGY ? changeEnergy : changeTime).decode(bytes, from, to),
  encode: (fields) => {
    const isEnergy = fields['rateMode'] === CHANGE_ENERGY
    const other = isEnergy ? 'durationS' : 'energy10Wh'
    if (fields[other] !== undefined) throw new FieldError(other, 'the rate mode has another limit')
    return (isEnergy ? changeEnergy : changeTime).encode(fields)
  },
  parameters: [
    ...changeTime.parameters.map((one) => (one.name === 'durationS' ? { ...one, isOptional: true } : one)),
    ...changeEnergy.parameters.filter(({ name }) => name === 'energy10Wh').map((one) => ({ ...one, isOptional: true })),
  ],
}

export const changeCharge = downlink({
  code: 0x8a,
  name: 'changeCharge',
  section: '8, 8A',
  summary: 'change duration or energy of the running order; a value already exceeded stops it',
  body: body8A,
  result: { by: 'changeChargeResult', withinMs: RESULT_WITHIN_MS, tries: TRIES },
})

export const changeChargeResult = byteResult(0x8a, 'changeCharge', '8, 8A', {
  1: 'not_charging',
  2: 'below_already_run',
  3: 'bad_mode_or_port',
})
