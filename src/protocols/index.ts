/** Every protocol this gateway speaks, one line each; nothing else names them. Order is the order of recognition. */
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
