/**
 * Who is behind a new connection? Pure: the bytes so far come in, a decision goes out. Decided only when certain
 * (AP3000 1 and 4, BKV 2): the ICCID, else the device id of the first frame.
 */
import type { Protocol, Recognition } from '../../src/codec/protocol.ts'

export type Identity =
  | { readonly kind: 'needMore' }
  | { readonly kind: 'foreign' }
  | {
      readonly kind: 'known'
      readonly protocol: Protocol
      readonly routingKey: string
      readonly by: 'iccid' | 'deviceId'
    }

const NEED_MORE: Identity = { kind: 'needMore' }
const FOREIGN: Identity = { kind: 'foreign' }

/**
 * @param bytes everything the connection has sent
 * @param bytesMax with this many bytes and no decision the connection is foreign
 */
export function identify(protocols: readonly Protocol[], bytes: Uint8Array, bytesMax: number): Identity {
  let isOpen = false
  for (const protocol of protocols) {
    const answer: Recognition = protocol.recognise(bytes, 0, bytes.length)
    if (answer.kind === 'known') return { kind: 'known', protocol, routingKey: answer.routingKey, by: answer.by }
    if (answer.kind === 'needMore') isOpen = true
  }
  return isOpen && bytes.length < bytesMax ? NEED_MORE : FOREIGN
}
