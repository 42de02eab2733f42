/**
 * What ratios are ratios to: the least work that handling a frame is made of, written by hand and never touched again.
 * Changing it makes every recorded ratio worthless.
 *
 * One operation sums 29 bytes in place, copies them, and makes one object of six numbers read from them: loop, memory and
 * allocation, in about the shares of a decoder, so that what slows those (another tenant, a busy collector) slows this too.
 */
import { keep } from './suite.ts'

export const YARDSTICK_OPERATIONS = 1_000
const BYTES = 29
const from = Uint8Array.from({ length: BYTES }, (_, index) => (index * 37) & 0xff)
const to = new Uint8Array(BYTES)

export function yardstick(): void {
  let total = 0
  for (let repeat = 0; repeat < YARDSTICK_OPERATIONS; repeat++) {
    from[0] = repeat
    let sum = 0
    for (let at = 0; at < BYTES; at++) sum += from[at] as number
    to.set(from)
    const fields = {
      a: (to[0] as number) | ((to[1] as number) << 8),
      b: (to[2] as number) | ((to[3] as number) << 8),
      c: to[4] as number,
      d: to[5] as number,
      e: sum & 0xffff,
      f: repeat,
    }
    total += fields.e
    keep(fields)
  }
  if (total === 0) throw new Error('nothing was summed')
}
