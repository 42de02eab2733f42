/**
 * What differs between models, or is not certain enough to be written into the decoder. BKV document, section 8.
 *
 * Decoding never asks a profile: it keeps raw integers. Only facts do, through the device's memory, which names the
 * profile by its index; the session layer sets that once, from the device's `model_profile`, with {@link useProfile}.
 */
import type { EndReason } from '../../codec/facts.ts'
import type { DeviceMemory } from '../../codec/protocol.ts'

export interface BkvProfile {
  readonly name: string
  /**
   * Wh per raw count of energy in reports. The guide says 1, twice; existing projects charge as if it were 10, and no
   * capture shows a non-zero energy: bench-test a model with a known load before another profile is chosen for it.
   */
  readonly energyWhPerRaw: number
  /** Status byte of an end report that means "preset time reached": B0 in all captures. */
  readonly presetTimeStatus: number
  /** Key 2F of 1000/1004. Its table is unpublished; 08 is known from one project's field notes only. */
  readonly endReasonByKey2F: Readonly<Record<number, EndReason>>
  /** The longest charge that a card may start, minutes; 900 is the guide's bound for 0015/07. */
  readonly cardMinutesMax: number
}

const BKV_V17: BkvProfile = {
  name: 'bkv',
  energyWhPerRaw: 1,
  presetTimeStatus: 0xb0,
  endReasonByKey2F: { 8: 'no_load' },
  cardMinutesMax: 900,
}

/** The index is kept in device memory: append, never reorder. */
export const BKV_PROFILES: readonly BkvProfile[] = [
  BKV_V17,
  { ...BKV_V17, name: 'bkv-energy-10wh', energyWhPerRaw: 10 },
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
