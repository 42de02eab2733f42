/**
 * AP3000 document, section 6: commands the change log names without a layout. Kept byte for byte in both directions;
 * nothing is read from what a device answers, and nothing answers it.
 */
import { downlink, rawBody, uplink } from '../../../codec/command.ts'
import type { Downlink, Uplink } from '../../../codec/protocol.ts'
import { DATA_BYTES_MAX } from '../frame.ts'
import { hexCode } from './result.ts'

const NAMED: readonly (readonly [code: number, what: string])[] = [
  [0x19, 'leakage host: parameters or relays'],
  [0x1a, 'leakage host: parameters or relays'],
  [0xa1, 'parking lock or leakage host'],
  [0xa2, 'time-of-use start or stop (2025-02), also a parking lock: the two clash'],
  [0xa3, 'parking lock or leakage host'],
  [0xa4, 'parking lock or leakage host'],
  [0xa5, 'parking lock or leakage host'],
  [0xa6, 'parking lock or leakage host'],
]

export const unpublishedDownlinks: readonly Downlink[] = NAMED.map(([code, what]) =>
  downlink({
    code,
    name: `unpublished${hexCode(code)}`,
    section: `6, ${hexCode(code)}`,
    summary: what,
    layout: 'unpublished',
    body: rawBody(DATA_BYTES_MAX),
    result: 'none',
  }),
)

export const unpublishedUplinks: readonly Uplink[] = NAMED.map(([code]) =>
  uplink({
    code,
    name: `unpublished${hexCode(code)}Result`,
    section: `6, ${hexCode(code)}`,
    summary: `whatever a device says to ${hexCode(code)}`,
    layout: 'unpublished',
    body: rawBody(DATA_BYTES_MAX),
    reply: 'none',
  }),
)
