/** The options of our tools. What a tool does not know is answered by its usage, not by a stack. */
import { type ParseArgsConfig, parseArgs } from 'node:util'

type Options = NonNullable<ParseArgsConfig['options']>

/**
 * Options of this process.
 * @param usage lines for people; said for `--help`, which ends the process with 0, and for what does not fit, with 2
 */
export function readOptions<const T extends Options>(
  usage: string,
  options: T,
): ReturnType<typeof parseArgs<{ options: T }>>['values'] {
  if (process.argv.includes('--help')) {
    console.log(usage)
    process.exit(0)
  }
  try {
    return parseArgs({ options }).values
  } catch (error) {
    return refuse((error as Error).message, usage)
  }
}

/** @returns 0 .. 2^53 - 1; anything else ends the process with 2 */
export function wholeNumber(name: string, text: string): number {
  const value = Number(text)
  if (text.trim() !== '' && Number.isSafeInteger(value) && value >= 0) return value
  return refuse(`--${name} ${text}: not a whole number`)
}

function refuse(...lines: readonly string[]): never {
  console.error(lines.join('\n'))
  process.exit(2)
}
