/**
 * What our tools do alike: options, values, and how they end. 0: done (also for `--help`), 1: what was asked for did not
 * come about, 2: it was asked for wrongly. Neither is answered by a stack.
 */
import { closeSync, existsSync, openSync, rmSync } from 'node:fs'
import { type ParseArgsConfig, parseArgs } from 'node:util'
import type { Config } from './config.ts'

type Options = NonNullable<ParseArgsConfig['options']>

/**
 * Options of this process; words that are no options do not fit.
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

/** @returns min .. max, by default 0 .. 2^53 - 1; anything else ends the process with 2 */
export function wholeNumber(name: string, text: string, min = 0, max = Number.MAX_SAFE_INTEGER): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < 0)
    return refuse(`--${name} ${text}: not a whole number`)
  return within(name, text, value, min, max)
}

/** @returns min .. max, fractions too; anything else ends the process with 2 */
export function anyNumber(name: string, text: string, min: number, max = Number.MAX_VALUE): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) return refuse(`--${name} ${text}: not a number`)
  return within(name, text, value, min, max)
}

function within(name: string, text: string, value: number, min: number, max: number): number {
  if (value < min) return refuse(`--${name} ${text}: at least ${min}`)
  if (value > max) return refuse(`--${name} ${text}: at most ${max}`)
  return value
}

/** @returns one of `choices`; anything else ends the process with 2 */
export function oneOf<T extends string>(name: string, text: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === text)
  return found ?? refuse(`--${name} ${text}: one of ${choices.join(' ')}`)
}

/** @returns ms since the epoch; what is no time ends the process with 2 */
export function time(name: string, text: string): number {
  const ms = Date.parse(text)
  return Number.isNaN(ms) ? refuse(`--${name} ${text}: not a time (RFC 3339)`) : ms
}

/**
 * Tried before the work, not after it: what cannot be written ends the process with 2.
 * @returns `path`; a file that was not there is not there afterwards either
 */
export function writablePath(name: string, path: string): string {
  const isThere = existsSync(path)
  try {
    closeSync(openSync(path, 'a'))
  } catch (error) {
    return refuse(`--${name} ${path}: ${(error as Error).message}`)
  }
  if (!isThere) rmSync(path)
  return path
}

/** The configuration as the gateway reads it, `CONFIG_PATH` included; what is wrong with it ends the process with 2. */
export async function readConfig(): Promise<Config> {
  // most tools ask for none, and its schema takes as long to load as they do
  const { ConfigError, loadConfig } = await import('./config.ts')
  try {
    return loadConfig()
  } catch (error) {
    if (error instanceof ConfigError) return refuse(error.message)
    throw error
  }
}

/** Ends the process with 2: these lines say what was wrong with what it was asked for. */
export function refuse(...lines: readonly string[]): never {
  console.error(lines.join('\n'))
  process.exit(2)
}

/**
 * The world was wrong: one line, and 1 when the process ends.
 * @param error with a code: a typed error of ours, the system's or the database's
 * @throws `error` itself when it has none, or one of Node's own: that is a mistake of ours, and its stack is wanted
 */
export function fail(tool: string, error: unknown): void {
  const { code, message } = error as { code?: unknown; message?: string }
  if (typeof code !== 'string' || code.startsWith('ERR_')) throw error
  // several addresses of one host: the message is empty, the code is not
  const said = message?.split('\n')[0] || 'no answer'
  console.error(`${tool}: ${said.includes(code) ? '' : `${code}: `}${said}`)
  process.exitCode = 1
}

/** Exit handlers end what a tool has started (gateways, databases); without this a signal would leave it running. */
export function exitOnSignals(): void {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130))
}
