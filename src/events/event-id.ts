/** Deterministic names of facts: the same fact told twice has the same id, so that telling it twice changes nothing. */
import { hash } from 'node:crypto'

/**
 * @param parts what makes the fact this one and no other: type, device, port, order, epoch …
 * @returns 32 lower-case hex digits
 */
export function eventIdOf(...parts: readonly (string | number)[]): string {
  return hash('sha256', parts.join('\u001f'), 'hex').slice(0, 32)
}
