/**
 * What differs between models and firmwares. AP3000 document, sections 5, 10 and 11. Facts and reply rules ask the
 * profile through the device's memory, which names it by its index; decoding never does.
 */
import type { ModelProfile } from '../../codec/profile.ts'
import type { DeviceMemory } from '../../codec/protocol.ts'

export interface Ap3000Profile extends ModelProfile {
  readonly settings: {
    /**
     * Section 5, heartbeat periods: after_second answers 01 from whoever has sent it twice and never 21; always answers
     * each 01, also beside 21; never answers none.
     */
    readonly answersOldHeartbeat: 'after_second' | 'always' | 'never'
    /** Temperature is raw minus this, degC; raw 0 is no sensor with either. Old firmware sends the plain value. */
    readonly temperatureOffset: 65 | 0
  }
}

const AP3000_V86: Ap3000Profile = {
  name: 'ap3000',
  protocol: 'ap3000',
  summary: 'the guides v8.6 and v2.9, and every captured device',
  energyWhPerRaw: 10,
  settings: { answersOldHeartbeat: 'after_second', temperatureOffset: 65 },
  chosenFor: [],
}

/** The index is kept in device memory: append, never reorder. */
export const AP3000_PROFILES: readonly Ap3000Profile[] = [
  AP3000_V86,
  {
    ...AP3000_V86,
    name: 'ap3000-plain-temperature',
    summary:
      'old firmware: temperatures are plain degC (section 5); that section 10 means these by old is an inference',
    settings: { ...AP3000_V86.settings, temperatureOffset: 0 },
    chosenFor: [
      { deviceType: '06', firmwareFrom: '2.00', firmwareBefore: '3.00' },
      { deviceType: '07', firmwareFrom: '3.00', firmwareBefore: '4.00' },
    ],
  },
  {
    ...AP3000_V86,
    name: 'ap3000-answer-01',
    summary: 'each 01 is answered: a device that gives up before its second',
    settings: { ...AP3000_V86.settings, answersOldHeartbeat: 'always' },
  },
  {
    ...AP3000_V86,
    name: 'ap3000-ignore-01',
    summary: '01 is never answered: a device that stops sending 21 once its 01 was',
    settings: { ...AP3000_V86.settings, answersOldHeartbeat: 'never' },
  },
]

/** @returns the profile of this device; the default when the memory names none or an unknown one. */
export function profileOf(memory: DeviceMemory): Ap3000Profile {
  return AP3000_PROFILES[memory['profile'] ?? 0] ?? AP3000_V86
}

/** Chooses a profile by name for one device. @returns false when there is no such profile: the memory is unchanged. */
export function useProfile(memory: DeviceMemory, name: string): boolean {
  const index = AP3000_PROFILES.findIndex((profile) => profile.name === name)
  if (index < 0) return false
  memory['profile'] = index
  return true
}
