/**
 * Who may connect, where ALLOWLIST is on: a device whose id is listed, and whoever comes from a listed network. An entry
 * only ever lets more in, so one tenant's list cannot shut out another's devices. Thread: session; once per session.
 */
import { BlockList, isIP } from 'node:net'

export const ALLOWLIST_KINDS = ['device', 'network'] as const

export interface AllowlistEntry {
  readonly kind: (typeof ALLOWLIST_KINDS)[number]
  /** A device id as the API writes it, or an address or CIDR range that `parseNetwork` takes. */
  readonly pattern: string
}

export interface Network {
  readonly address: string
  readonly prefixBits: number
  readonly family: 'ipv4' | 'ipv6'
}

/** @param text address or CIDR range. @returns undefined: neither */
export function parseNetwork(text: string): Network | undefined {
  const [address = '', bits, ...more] = text.split('/')
  const version = isIP(address)
  // with a zone the address means something on one machine only
  if (version === 0 || more.length > 0 || address.includes('%')) return undefined
  const bitsMax = version === 4 ? 32 : 128
  if (bits !== undefined && !/^(?:0|[1-9]\d{0,2})$/.test(bits)) return undefined
  const prefixBits = bits === undefined ? bitsMax : Number(bits)
  if (prefixBits > bitsMax) return undefined
  return { address, prefixBits, family: version === 4 ? 'ipv4' : 'ipv6' }
}

export class Allowlist {
  readonly #deviceIds = new Set<string>()
  readonly #networks = new BlockList()

  constructor(entries: readonly AllowlistEntry[]) {
    for (const { kind, pattern } of entries) {
      if (kind === 'device') this.#deviceIds.add(pattern)
      else {
        const network = parseNetwork(pattern)
        // written by hand into the table, past the API: it lets nobody in
        if (network !== undefined) this.#networks.addSubnet(network.address, network.prefixBits, network.family)
      }
    }
  }

  /** @param remoteAddress with its port, as drivers write it: `10.0.0.1:5`, `::1:5` or `[::1]:5` */
  admits(deviceId: string, remoteAddress: string): boolean {
    if (this.#deviceIds.has(deviceId)) return true
    const address = remoteAddress.slice(0, remoteAddress.lastIndexOf(':')).replace(/^\[|\]$/g, '')
    const plain = address.startsWith('::ffff:') && isIP(address.slice(7)) === 4 ? address.slice(7) : address
    const version = isIP(plain)
    return version !== 0 && this.#networks.check(plain, version === 4 ? 'ipv4' : 'ipv6')
  }
}
