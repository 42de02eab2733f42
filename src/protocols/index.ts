/** Every protocol this gateway speaks, one line each; nothing else names them. Order is the order of recognition. */
import { chooseProfile, type ModelProfile } from '../codec/profile.ts'
import type { Protocol } from '../codec/protocol.ts'
import { ap3000 } from './ap3000/table.ts'
import { bkv } from './bkv/table.ts'

export const PROTOCOLS: readonly Protocol[] = [ap3000, bkv]

/** Whose id is this? Every protocol's ids look different, so the text decides. */
export function parseAnyDeviceId(text: string): { readonly protocol: Protocol; readonly deviceNo: number } | undefined {
  for (const protocol of PROTOCOLS) {
    const deviceNo = protocol.parseDeviceId(text)
    if (deviceNo !== undefined) return { protocol, deviceNo }
  }
  return undefined
}

/** @returns undefined: no protocol of ours (a row of another release) */
export const protocolNamed = (name: string) => PROTOCOLS.find((protocol) => protocol.name === name)

/** Every model profile, by protocol, the defaults first. */
export const MODEL_PROFILES: readonly ModelProfile[] = PROTOCOLS.flatMap(({ profiles }) => profiles)

/** Those a device of this id may have; empty when the id is no protocol's. */
export function profilesOfDevice(deviceId: string): readonly ModelProfile[] {
  return parseAnyDeviceId(deviceId)?.protocol.profiles ?? []
}

/**
 * What one raw count of energy is worth for a device, Wh. Model and firmware do not matter: only a profile that people
 * chose changes it (src/codec/profile.ts).
 *
 * @param profileName `devices.model_profile`
 * @returns undefined: no protocol of ours, what was converted before stands
 */
export function energyWhPerRaw(protocolName: string, profileName: string | null): number | undefined {
  const protocol = protocolNamed(protocolName)
  return protocol === undefined ? undefined : chooseProfile(protocol.profiles, profileName, {}).energyWhPerRaw
}
