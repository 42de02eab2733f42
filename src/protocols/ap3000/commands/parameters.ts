/** AP3000 document, section 8: parameters, written by 83 to 86 and read back by 90 to 93. 94 is deleted. */
import { downlink } from '../../../codec/command.ts'
import { bytesHex, type Field, limited, optional, u8 } from '../../../codec/fields.ts'
import { type Downlink, RESULT_WITHIN_MS, type Uplink } from '../../../codec/protocol.ts'
import { flag, power16, seconds16, voltage16 } from '../fields.ts'
import { byteResult, contentResult, hexCode, TRIES } from './result.ts'

type Spec = Readonly<Record<string, Field>>

const basic: Spec = {
  unplugPowerDw: limited(power16, { about: 'default 3' }),
  unplugTimeS: limited(seconds16, { about: 'default 10' }),
  floatPercent: limited(u8, { max: 100, unit: '%', about: 'default 20' }),
  floatDetectS: limited(seconds16, { about: 'default 1800' }),
  floatTimeS: limited(seconds16, { about: 'default 3600' }),
  heartbeatS: limited(seconds16, { about: 'default 180' }),
}

const detailed: Spec = {
  dynOverloadPowerDw: limited(power16, { about: 'default 800' }),
  dynOverloadDetectS: limited(seconds16, { about: 'default 30' }),
  dynOverloadStartS: limited(seconds16, { about: 'default 1800' }),
  unplugNoisePowerDw: limited(u8, { unit: '0.1 W', about: 'default 10' }),
  unplugNoiseTimeS: limited(seconds16, { about: 'default 300' }),
  secondFloatPointS: limited(seconds16, { about: 'default 10800' }),
  secondFloatDetectS: limited(seconds16, { about: 'default 300' }),
  minPowerDw: limited(power16, { about: 'default 300' }),
  minPowerPointS: limited(seconds16, { about: 'default 1800' }),
  secondMaxPowerPointS: limited(seconds16, { about: 'default 300' }),
  envAlarmTempC: limited(u8, { unit: 'degC', about: 'default 80, no offset' }),
  portAlarmTempC: limited(u8, { unit: 'degC', about: 'default 80, no offset' }),
  unplugDetectOff: limited(flag, { about: 'default 0: on' }),
  qrLampOff: limited(flag, { about: 'default 1' }),
}

/**
 * Four bytes before 2024-08, eight since; the two voltages go together: for a caller a default for the one he did not name
 * would overwrite what was set.
 */
const VOLTAGES = 1
const limits: Spec = {
  maxChargeS: limited(seconds16, { about: 'default 36000' }),
  overloadPowerDw: limited(power16, { about: '20000 on dual and multi sockets, 35000 on high power' }),
  overVoltageDv: optional(limited(voltage16, { about: 'default 2700; both voltages or neither' }), 2700, VOLTAGES),
  underVoltageDv: optional(limited(voltage16, { about: 'default 1000; both voltages or neither' }), 1000, VOLTAGES),
}

const cardKeys: Spec = {
  cardSector: u8,
  cardPasswordHex: bytesHex(6),
  newCardPasswordHex: bytesHex(6),
}

const BAD = { 1: 'bad_parameter' }

export const parameterDownlinks: readonly Downlink[] = [
  write(0x83, 'setParameters1', 'parameters 1.1: unplug, float, heartbeat', basic),
  write(0x84, 'setParameters2', 'parameters 1.2: overload, noise, minimum power, alarms', detailed),
  write(0x85, 'setLimits', 'longest time, overload, voltages', limits),
  write(0x86, 'setCardKeys', 'sector and keys of M1 cards', cardKeys),
  read(0x90, 'readParameters1', 0x83),
  read(0x91, 'readParameters2', 0x84),
  read(0x92, 'readLimits', 0x85),
  read(0x93, 'readCardKeys', 0x86),
]

export const parameterUplinks: readonly Uplink[] = [
  byteResult(0x83, 'setParameters1', '8, 83', BAD),
  byteResult(0x84, 'setParameters2', '8, 84', BAD),
  byteResult(0x85, 'setLimits', '8, 85', { 1: 'beyond_device_limits' }),
  byteResult(0x86, 'setCardKeys', '8, 86', BAD),
  contentResult(0x90, 'readParameters1', '8, 83', 'what 83 has set', basic),
  contentResult(0x91, 'readParameters2', '8, 84', 'what 84 has set', detailed),
  contentResult(0x92, 'readLimits', '8, 85', 'what 85 has set', limits),
  contentResult(0x93, 'readCardKeys', '8, 86', 'what 86 has set', cardKeys),
]

function write(code: number, name: string, summary: string, fields: Spec): Downlink {
  return downlink({
    code,
    name,
    section: `8, ${hexCode(code)}`,
    summary,
    fields,
    result: { by: `${name}Result`, withinMs: RESULT_WITHIN_MS, tries: TRIES },
  })
}

function read(code: number, name: string, writtenBy: number): Downlink {
  return downlink({
    code,
    name,
    section: `8, ${hexCode(writtenBy)}`,
    summary: `read what ${hexCode(writtenBy)} has set`,
    fields: {},
    result: { by: `${name}Result`, withinMs: RESULT_WITHIN_MS, tries: TRIES },
  })
}
