/**
 * Which model profile people chose for which device (`devices.model_profile`), kept in memory so that a session thread
 * knows it before a device says its first word: every thread starts with all of it and hears each change.
 *
 * Thread: main. What does not fit here, or was changed by somebody else, is right in money all the same: writers convert
 * energy by what the table says when the settlement is stored.
 */
import { deviceKey } from '../codec/protocol.ts'
import { parseAnyDeviceId, profilesOfDevice } from '../protocols/index.ts'
import type { Sql } from './database/connect.ts'

export class ModelProfiles {
  readonly #devicesMax: number
  readonly #tell: (deviceKey: number, name: string | null) => void
  readonly #names = new Map<number, string>()

  /** @param tell every session thread */
  constructor(devicesMax: number, tell: (deviceKey: number, name: string | null) => void) {
    this.#devicesMax = devicesMax
    this.#tell = tell
  }

  /** Before the first session thread starts. @returns how many were found, and how many of them there is no room for */
  async load(sql: Sql): Promise<{ readonly found: number; readonly left: number }> {
    const rows = await sql<{ device_id: string; model_profile: string }[]>`
      select device_id, model_profile from devices where model_profile is not null
      order by last_seen_at desc nulls last`
    for (const { device_id, model_profile } of rows) this.#keep(device_id, model_profile)
    return { found: rows.length, left: rows.length - this.#names.size }
  }

  /** For a session thread that starts now. */
  get entries(): readonly (readonly [deviceKey: number, name: string])[] {
    return [...this.#names]
  }

  /** A person has changed it; the row is committed. */
  changed(deviceId: string, name: string | null): void {
    const key = this.#keep(deviceId, name)
    if (key !== undefined) this.#tell(key, this.#names.get(key) ?? null)
  }

  #keep(deviceId: string, name: string | null): number | undefined {
    const found = parseAnyDeviceId(deviceId)
    if (found === undefined) return undefined
    const key = deviceKey(found.protocol, found.deviceNo)
    // a name that an older release took, or of another protocol: as if there were none
    const isKnown = name !== null && profilesOfDevice(deviceId).some((profile) => profile.name === name)
    if (!isKnown) this.#names.delete(key)
    else if (this.#names.has(key) || this.#names.size < this.#devicesMax) this.#names.set(key, name)
    return key
  }
}
