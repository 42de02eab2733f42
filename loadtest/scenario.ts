/**
 * A load as a file: options of the fleet, and phases in which orders per second rise, fall or stay, and connections are
 * cut. Files are in `scenarios/`, named without `.yaml`; any other path works too. What may stand in one: `zScenario`.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import * as z from 'zod'
import { CHAOS_LEVELS } from './device.ts'
import type { FleetOptions } from './fleet-run.ts'

const FOLDER = join(import.meta.dirname, 'scenarios')

const zRate = z.number().min(0).max(100_000)
const zShare = z.number().min(0).max(1)
const zPositive = z.number().positive().max(1e6)

const zPhase = z.strictObject({
  name: z.string().min(1).max(40),
  forS: zPositive.describe('How long it takes, s'),
  ordersPerS: z
    .union([zRate, z.strictObject({ from: zRate, to: zRate })])
    .describe('Over the whole fleet; from/to: in a straight line over the phase'),
  cutShare: zShare.default(0).describe('Of the connections: reset at the beginning, all at once, as a power cut does'),
})

export const zScenario = z.strictObject({
  title: z.string().min(1).max(80),
  about: z.string().max(2_000).default(''),
  /** As on the command line, in camelCase; what the command line says stands above them. */
  options: z
    .strictObject({
      protocol: z.enum(['ap3000', 'bkv', 'mix']),
      devices: z.int().min(1),
      rampPerS: zPositive,
      heartbeatS: zPositive,
      chargeS: zPositive,
      seed: z.int(),
      replyLoss: zShare,
      chaos: z.enum(CHAOS_LEVELS),
      cardShare: zShare,
      timeScale: zPositive,
      ports: z.int().min(1).max(16),
      hostEvery: z.int().min(0),
      slavesPerHost: z.int().min(0).max(50),
      settleRepeatS: zPositive,
      graceS: z.number().min(0),
    })
    .partial(),
  phases: z.array(zPhase).min(1).max(100),
})
export type Scenario = z.infer<typeof zScenario>

/** One stretch of a run. */
export interface Phase {
  readonly name: string
  readonly fromS: number
  readonly toS: number
  /** Orders per second at its beginning and its end, a straight line between. */
  readonly rateFrom: number
  readonly rateTo: number
  readonly cutShare: number
}

export const scenarioNames = (): string[] =>
  readdirSync(FOLDER)
    .filter((file) => file.endsWith('.yaml'))
    .map((file) => file.slice(0, -5))
    .sort()

/** @param name of a file of `scenarios/`, or a path that ends in .yaml @throws RangeError a sentence for the user */
export function readScenario(name: string): Scenario {
  const path = name.endsWith('.yaml') ? name : join(FOLDER, `${name}.yaml`)
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch {
    throw new RangeError(`--scenario ${name}: one of ${scenarioNames().join(', ')}, or a path to a .yaml file`)
  }
  let content: unknown
  try {
    content = parse(text)
  } catch (error) {
    throw new RangeError(`${path}: ${(error as Error).message}`)
  }
  const read = zScenario.safeParse(content)
  if (read.success) return read.data
  const issue = read.error.issues[0]
  throw new RangeError(`${path}: ${issue?.path.join('.') || 'the file'}: ${issue?.message}`)
}

/** @param durationS stretches or shortens all phases alike; undefined: as the file says */
export function phasesOf({ phases }: Scenario, durationS?: number): Phase[] {
  const factor = durationS === undefined ? 1 : durationS / phases.reduce((sum, { forS }) => sum + forS, 0)
  let atS = 0
  return phases.map(({ name, forS, ordersPerS, cutShare }) => {
    const fromS = atS
    atS += forS * factor
    const [rateFrom, rateTo] =
      typeof ordersPerS === 'number' ? [ordersPerS, ordersPerS] : [ordersPerS.from, ordersPerS.to]
    return { name, fromS, toS: atS, rateFrom, rateTo, cutShare }
  })
}

/** One phase that is the whole run: what the options say without a scenario. */
export function onePhase({ durationS, ordersPerS }: Pick<FleetOptions, 'durationS' | 'ordersPerS'>): Phase[] {
  return [{ name: '', fromS: 0, toS: durationS, rateFrom: ordersPerS, rateTo: ordersPerS, cutShare: 0 }]
}

/**
 * When one more order is due after `afterS`: when the area below the rate has grown by 1.
 *
 * @returns seconds from the start of the run; Infinity when the phases are over before
 */
export function nextOrderS(phases: readonly Phase[], afterS: number): number {
  let missing = 1
  for (const { fromS, toS, rateFrom, rateTo } of phases) {
    if (toS <= afterS) continue
    const startS = Math.max(fromS, afterS)
    const slope = (rateTo - rateFrom) / (toS - fromS)
    const rate = rateFrom + slope * (startS - fromS)
    const leftS = toS - startS
    const area = rate * leftS + (slope * leftS * leftS) / 2
    if (area < missing) {
      missing -= area
      continue
    }
    // rate·t + slope·t²/2 = missing, in the form that holds for a slope of 0 and does not cancel
    return startS + (2 * missing) / (rate + Math.sqrt(Math.max(0, rate * rate + 2 * slope * missing)))
  }
  return Number.POSITIVE_INFINITY
}
