/**
 * What differs between models, or is not certain enough to be written into the decoder. BKV document, sections 8 and 10.
 *
 * Decoding never asks a profile: it keeps raw integers. Only facts do, through the device's memory, which names the
 * profile by its index; the session layer sets that with {@link useProfile}.
 */
import type { EndReason } from '../../codec/facts.ts'
import type { ModelProfile } from '../../codec/profile.ts'
import type { DeviceMemory } from '../../codec/protocol.ts'

/** What one of the two unnamed status bits means: nothing we know, or a metering fault when it is set. */
export type OpenBit = 'unnamed' | 'metering_fault'

export interface BkvProfile extends ModelProfile {
  /**
   * The guide says 1, twice; existing projects charge as if it were 10, and no capture shows a non-zero energy:
   * bench-test a model with a known load before another profile is chosen for it.
   */
  readonly energyWhPerRaw: number
  readonly settings: {
    readonly bit5: OpenBit
    readonly bit6: OpenBit
    /** How the reason of an end report without a known reason byte is told: from its status byte, or not at all. */
    readonly endReasonRule: 'status_byte' | 'unknown'
    /** Status byte of an end report that means "preset time reached": B0 in all captures. */
    readonly presetTimeStatus: number
    /** Key 2F of 1000/1004. Its table is unpublished; 08 is known from one project's field notes only. */
    readonly endReasonByKey2F: Readonly<Record<string, EndReason>>
    /** The longest charge that a card may start, minutes; 900 is the guide's bound for 0015/07. */
    readonly cardMinutesMax: number
  }
}

const BKV_V17: BkvProfile = {
  name: 'bkv',
  protocol: 'bkv',
  summary: 'the guide V1.7: 1 Wh per count, neither open status bit judged',
  energyWhPerRaw: 1,
  settings: {
    bit5: 'unnamed',
    bit6: 'unnamed',
    endReasonRule: 'status_byte',
    presetTimeStatus: 0xb0,
    endReasonByKey2F: { 8: 'no_load' },
    cardMinutesMax: 900,
  },
  chosenFor: [],
}

/** The index is kept in device memory: append, never reorder. */
export const BKV_PROFILES: readonly BkvProfile[] = [
  BKV_V17,
  {
    ...BKV_V17,
    name: 'bkv-energy-10wh',
    summary: 'energy counts 0.01 kWh, as other projects charge; after a bench test with a known load',
    energyWhPerRaw: 10,
  },
  {
    ...BKV_V17,
    name: 'bkv-metering-bit6',
    summary:
      'bit 6 of the status is the metering fault; after a fault was seen live (bit 5 cannot be: normal ends set it)',
    settings: { ...BKV_V17.settings, bit6: 'metering_fault' },
  },
  {
    ...BKV_V17,
    name: 'bkv-reasons-unknown',
    summary: 'end reasons are not derived from the status byte: a model whose status says something else',
    settings: { ...BKV_V17.settings, endReasonRule: 'unknown' },
  },
]

/** Where a device's memory keeps the index of its profile; absent means the first. */
export const PROFILE_MEMORY_KEY = 'profile'

/** @returns the profile of this device; the default when the memory names none or an unknown one. */
export function profileOf(memory: DeviceMemory): BkvProfile {
  return BKV_PROFILES[memory[PROFILE_MEMORY_KEY] ?? 0] ?? BKV_V17
}

/** Chooses a profile by name for one device. @returns false when there is no such profile: the memory is unchanged. */
export function useProfile(memory: DeviceMemory, name: string): boolean {
  const index = BKV_PROFILES.findIndex((profile) => profile.name === name)
  if (index < 0) return false
  memory[PROFILE_MEMORY_KEY] = index
  return true
}
