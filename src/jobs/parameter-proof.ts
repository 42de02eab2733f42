/**
 * Parameters are proven by reading them back: which command reads what another one wrote, and how the two compare.
 * AP3000 document, section 8 (83 to 86 by 90 to 93); BKV document, section 7 (1011 by 1012). Pure.
 */

interface ReadBack {
  readonly name: string
  /** What the read command needs of the parameters that were written. */
  readonly needs: readonly string[]
}

const READ_BACK: Readonly<Record<string, Readonly<Record<string, ReadBack>>>> = {
  ap3000: {
    setParameters1: { name: 'readParameters1', needs: [] },
    setParameters2: { name: 'readParameters2', needs: [] },
    setLimits: { name: 'readLimits', needs: [] },
    setCardKeys: { name: 'readCardKeys', needs: [] },
  },
  bkv: { setParameters: { name: 'queryParameters', needs: ['socket'] } },
}

export type Params = Readonly<Record<string, unknown>>

/** @returns undefined: nothing reads what this command writes */
export function readBackOf(
  protocol: string,
  name: string,
  params: Params,
): { name: string; params: Params } | undefined {
  const found = READ_BACK[protocol]?.[name]
  if (found === undefined) return undefined
  return { name: found.name, params: Object.fromEntries(found.needs.map((need) => [need, params[need]])) }
}

export interface Mismatch {
  readonly field: string
  readonly wanted: unknown
  /** null: the device did not name it. */
  readonly found: unknown
}

export interface Comparison {
  readonly mismatches: readonly Mismatch[]
  /** Keys of cards: kept out of results, so nobody can compare them. */
  readonly unproven: readonly string[]
}

/**
 * @param wanted as the caller gave it; fields he left out prove nothing
 * @param content what the read command's result says, under the same names
 */
export function compareParameters(wanted: Params, content: Params): Comparison {
  const mismatches: Mismatch[] = []
  const unproven: string[] = []
  for (const [field, value] of Object.entries(wanted)) {
    if (value === undefined) continue
    const found = content[field]
    if (isSecret(field)) unproven.push(field)
    else if (plain(found) !== plain(value)) mismatches.push({ field, wanted: value, found: found ?? null })
  }
  return { mismatches, unproven }
}

export const isSecret = (field: string) => field.includes('password')
/** Hex digits are the same in both cases. */
const plain = (value: unknown) => (typeof value === 'string' ? value.toLowerCase() : value)
