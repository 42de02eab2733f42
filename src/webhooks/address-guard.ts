/**
 * Where a webhook may go. A tenant names the address, so it must not lead to the gateway's own machine, its network, or
 * a cloud's metadata service: only addresses of the public internet, unless the operator allows more. Pure; who
 * resolves a name asks `allowedAddresses` with everything the resolver said and connects to one of the answers.
 */
import { BlockList, isIP, isIPv4 } from 'node:net'

export interface GuardOptions {
  /** WEBHOOK_ALLOW_PRIVATE: every address is good. */
  readonly allowPrivate: boolean
  /** WEBHOOK_ALLOWED_HOSTS: names or addresses as they stand in a URL, lower case; good wherever they lead. */
  readonly allowedHosts: readonly string[]
}

/** Everything that is not the public internet, RFC 6890 and the clouds' metadata services. */
const CLOSED_IPV4 = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '168.63.129.16/32',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4',
  '240.0.0.0/4',
]
/** Of IPv6 only 2000::/3 is public, without what carries IPv4 or is no network. */
const CLOSED_IPV6 = ['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20']

function listOf(networks: readonly string[], family: 'ipv4' | 'ipv6'): BlockList {
  const list = new BlockList()
  for (const network of networks) {
    const [address, prefix] = network.split('/')
    list.addSubnet(address!, Number(prefix), family)
  }
  return list
}
const closedIpv4 = listOf(CLOSED_IPV4, 'ipv4')
const closedIpv6 = listOf(CLOSED_IPV6, 'ipv6')
const publicIpv6 = listOf(['2000::/3'], 'ipv6')
/** Addresses that carry an IPv4 address in their last four bytes: mapped, and translated (NAT64). */
const carriesIpv4 = listOf(['::ffff:0:0/96', '64:ff9b::/96'], 'ipv6')

/** @param address literal, without brackets or zone */
export function isPublicAddress(address: string): boolean {
  if (isIPv4(address)) return !closedIpv4.check(address, 'ipv4')
  if (isIP(address) !== 6) return false
  if (carriesIpv4.check(address, 'ipv6')) return !closedIpv4.check(lastFourBytes(address), 'ipv4')
  return publicIpv6.check(address, 'ipv6') && !closedIpv6.check(address, 'ipv6')
}

function lastFourBytes(address: string): string {
  const dotted = /(\d+\.\d+\.\d+\.\d+)$/.exec(address)?.[1]
  if (dotted !== undefined) return dotted
  // the URL parser writes ::ffff:127.0.0.1 as ::ffff:7f00:1
  const [high, low] = new URL(`http://[${address}]/`).hostname.slice(1, -1).split(':').slice(-2)
  const words = [Number.parseInt(high || '0', 16), Number.parseInt(low || '0', 16)]
  return words.flatMap((word) => [word >> 8, word & 255]).join('.')
}

/** Host of a URL as this file knows it: lower case, without brackets. */
export const hostOf = (url: URL) => url.hostname.toLowerCase().replace(/^\[|\]$/g, '')

/** `localhost.` is `localhost`: the dot ends a full name, and only the resolver cares. */
const nameOf = (host: string) => host.replace(/\.+$/, '')

const isOpen = (host: string, { allowPrivate, allowedHosts }: GuardOptions) =>
  allowPrivate || allowedHosts.some((allowed) => nameOf(allowed) === nameOf(host))

/** @returns those of the addresses a name resolved to that may be connected to */
export function allowedAddresses<T extends { readonly address: string }>(
  host: string,
  resolved: readonly T[],
  options: GuardOptions,
): readonly T[] {
  return isOpen(host, options) ? resolved : resolved.filter(({ address }) => isPublicAddress(address))
}

/**
 * What can be said of an address before anybody resolves it.
 *
 * @returns why it is refused; undefined: it is not
 */
export function refusalOf(text: string, options: GuardOptions): string | undefined {
  let url: URL
  try {
    url = new URL(text)
  } catch {
    return 'not a URL'
  }
  if (url.protocol !== 'https:' && url.protocol !== 'http:') return 'only http and https'
  if (url.username !== '' || url.password !== '') return 'no user or password in the address: requests are signed'
  if (url.hash !== '') return 'no fragment: it is never sent'
  const host = hostOf(url)
  if (isOpen(host, options)) return undefined
  if (isIP(host) !== 0 && !isPublicAddress(host)) return `${host} is not an address of the public internet`
  if (nameOf(host) === 'localhost' || nameOf(host).endsWith('.localhost')) return `${host} is this machine`
  return undefined
}
