/** How devices answer downlinks. AP3000 document, sections 5 and 8: a result is never answered. */

import { uplink } from '../../../codec/command.ts'
import type { Fact } from '../../../codec/facts.ts'
import type { Field } from '../../../codec/fields.ts'
import type { Fields, Uplink } from '../../../codec/protocol.ts'
import { result } from '../fields.ts'

/** Section 5: at most one retransmission with the same msgId unless a command says otherwise. */
export const TRIES = 2

type ResultFact = Extract<Fact, { fact: 'result' }>

/** 0 is done; what else means nothing more than its number has the reason `result_N`. */
export function resultFact(
  downlink: string,
  fields: Fields,
  reasons: Readonly<Record<number, string>> = {},
): ResultFact {
  const raw = fields['result'] as number
  return { fact: 'result', downlink, raw, ok: raw === 0, reason: raw === 0 ? 'ok' : (reasons[raw] ?? `result_${raw}`) }
}

/** The result most commands have: one byte. */
export function byteResult(
  code: number,
  downlink: string,
  section: string,
  reasons: Readonly<Record<number, string>> = {},
): Uplink {
  return uplink({
    code,
    name: `${downlink}Result`,
    section,
    summary: `result of ${hexCode(code)}, 0 ok`,
    fields: { result },
    facts: (fields) => [resultFact(downlink, fields, reasons)],
    reply: 'none',
  })
}

/** A result that is the asked-for content and no code (90..93). */
export function contentResult(
  code: number,
  downlink: string,
  section: string,
  summary: string,
  fields: Readonly<Record<string, Field>>,
): Uplink {
  return uplink({
    code,
    name: `${downlink}Result`,
    section,
    summary,
    fields,
    facts: (content) => [
      { fact: 'result', downlink, raw: 0, ok: true, reason: 'ok', content: withoutPasswords(content) },
    ],
    reply: 'none',
  })
}

/** Results are kept and told to many; keys of cards are for nobody. */
const withoutPasswords = (content: Fields): Fields =>
  Object.fromEntries(Object.entries(content).filter(([name]) => !name.includes('Password')))

export function hexCode(code: number): string {
  return code.toString(16).toUpperCase().padStart(2, '0')
}
