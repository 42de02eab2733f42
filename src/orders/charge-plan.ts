/**
 * From a charge request to the one downlink that starts it, as the documents have it, and to what the gateway itself
 * has to enforce because the device cannot. A mode is never sent as something else: what neither device nor gateway
 * can do is refused with a reason. README.md has the table.
 *
 * Rounding: what was asked for is rounded up to the unit of the wire (a minute, 0.01 kWh), limits are rounded down, at
 * least to one unit.
 */
import type { CardAnswer, Fields, Protocol } from '../codec/protocol.ts'
import { expirySOf, RATE_MODES } from '../protocols/ap3000/rate-mode.ts'
import { wireOrderNumber } from './order-number.ts'
import { amountOf, clockOf, type Tariff, type Usage } from './tariff.ts'

export const CHARGE_MODES = ['full', 'time', 'energy', 'budget', 'power'] as const
export type ChargeMode = (typeof CHARGE_MODES)[number]

export interface ChargeRequest {
  readonly mode: ChargeMode
  /** From 1. */
  readonly port: number
  /** BKV: 0..250, 0 or absent for a unit without sockets. AP3000 has none. */
  readonly socket?: number
  readonly orderNo: string
  /** Mode time, and only there. */
  readonly durationS?: number
  /** Mode energy, and only there. */
  readonly energyWh?: number
  /** Modes budget and power, and only there: paid ahead. */
  readonly amountFen?: number
  readonly maxPowerW?: number
  readonly maxDurationS?: number
  /** The tariff the order will be settled by. */
  readonly tariff?: Tariff
  /** AP3000 speaks it; default: `amountFen`, else 0. */
  readonly balanceFen?: number
  /** Of the card that was shown: AP3000 says how it is charged, and of a month when it ends. */
  readonly account?: Pick<CardAnswer, 'rateMode' | 'expiresMs'>
}

/** What the gateway enforces from progress reports: it stops the order when {@link limitReached} says so. */
export interface GatewayLimits {
  readonly durationS?: number
  /** Paid ahead: reached when the tariff would ask for more. */
  readonly amountFen?: number
}

export interface ChargePlan {
  readonly name: string
  readonly fields: Fields
  /** AP3000: the order's 16 bytes; BKV: '', the device makes a number. */
  readonly wireHex: string
  readonly gatewayLimits: GatewayLimits | null
}
type StopPlan = Pick<ChargePlan, 'name' | 'fields'>
export interface Refusal {
  readonly code: 'INVALID_ARGUMENT' | 'FAILED_PRECONDITION'
  /** Stable word. */
  readonly reason: string
  readonly message: string
}
export type ProtocolName = Protocol['name']

export const isRefusal = (found: object): found is Refusal => 'code' in found

const U16_MAX = 0xffff
/** AP3000 82: larger balances are taken for a timestamp. */
const SPOKEN_FEN_MAX = 100_000_000
/** AP3000: wire port ff means that the device chooses. */
const AP3000_PORT_MAX = 0xff
const BKV_MINUTES_MAX = 900
const BKV_TIERS_MAX = 5
const BKV_SOCKET_MAX = 250

/** Plans a start. Pure; the fields are within the limits of the downlink, so that encoding them does not throw. */
export function chargePlan(protocol: ProtocolName, request: ChargeRequest): ChargePlan | Refusal {
  const problem = argumentProblem(request)
  if (problem !== undefined) return problem
  // no default, here and in stopPlan: a third name does not compile until somebody has said how it starts and stops
  switch (protocol) {
    case 'ap3000':
      return ap3000Plan(request)
    case 'bkv':
      return bkvPlan(request)
  }
}

/** Plans a stop. `wireHex`: of the running order; AP3000 refuses any other, BKV has no use for it. */
export function stopPlan(protocol: ProtocolName, port: number, socket: number, wireHex: string): StopPlan | Refusal {
  switch (protocol) {
    case 'ap3000':
      return ap3000Stop(port, socket, wireHex)
    case 'bkv':
      return bkvPlaceProblem(port, socket) ?? { name: 'control', fields: bkvControl(port, socket, 0, TIME, 0, 0) }
  }
}

/**
 * Has the order used up what the gateway has to watch? Asked at every progress report.
 * @param usage so far
 */
export function limitReached(
  limits: GatewayLimits,
  usage: Omit<Usage, 'prepaidFen'>,
  tariff: Tariff | undefined,
): 'duration' | 'amount' | null {
  if (limits.durationS !== undefined && usage.durationS >= limits.durationS) return 'duration'
  // more than, not as much as: a step that is paid may be used to its end
  if (limits.amountFen !== undefined && tariff !== undefined && amountOf(tariff, usage).amountFen > limits.amountFen)
    return 'amount'
  return null
}

// ---- the request ------------------------------------------------------------------------------------------------

const invalid = (reason: string, message: string): Refusal => ({ code: 'INVALID_ARGUMENT', reason, message })
const precondition = (reason: string, message: string): Refusal => ({ code: 'FAILED_PRECONDITION', reason, message })

/** Which quantity a mode is about; every other one would be ignored, so it is refused. */
const QUANTITIES = { durationS: 'duration_s', energyWh: 'energy_wh', amountFen: 'amount_fen' } as const
const TAKES: Readonly<Record<ChargeMode, keyof typeof QUANTITIES | null>> = {
  full: null,
  time: 'durationS',
  energy: 'energyWh',
  budget: 'amountFen',
  power: 'amountFen',
}

function argumentProblem(request: ChargeRequest): Refusal | undefined {
  const { mode, tariff, maxPowerW, maxDurationS, balanceFen } = request
  for (const [name, outside] of Object.entries(QUANTITIES) as [keyof typeof QUANTITIES, string][]) {
    const value = request[name]
    if (TAKES[mode] !== name) {
      if (value !== undefined) return invalid(`${outside}_unused`, `mode ${mode} does not take ${outside}`)
    } else if (value === undefined) {
      // power may be paid afterwards, where the device need not be told an amount
      if (mode !== 'power') return invalid(`${outside}_missing`, `mode ${mode} needs ${outside}`)
    } else if (!isPositive(value) || (name === 'amountFen' && !Number.isSafeInteger(value))) {
      return invalid(`${outside}_range`, `${outside} needs a number above 0, an amount a whole one`)
    }
  }
  if (maxPowerW !== undefined && !isPositive(maxPowerW))
    return invalid('max_power_w_range', 'max_power_w needs a number above 0')
  if (maxDurationS !== undefined && !isPositive(maxDurationS))
    return invalid('max_duration_s_range', 'max_duration_s needs a number above 0')
  if (balanceFen !== undefined && !(Number.isSafeInteger(balanceFen) && balanceFen >= 0))
    return invalid('balance_fen_range', 'the balance needs a whole number of fen')
  if (mode === 'budget' && tariff === undefined)
    return precondition('tariff_missing', 'mode budget needs a tariff: nothing else says when the amount is used up')
  if (mode === 'power' && (tariff === undefined || tariff.power === null))
    return precondition('power_tiers_missing', 'mode power needs a tariff with power tiers')
  return undefined
}

const isPositive = (value: number) => Number.isFinite(value) && value > 0
const downTo = (value: number, unit: number, max: number) => Math.min(max, Math.max(1, Math.floor(value / unit)))

// ---- AP3000, section 8, 82 --------------------------------------------------------------------------------------

/** The 37 bytes live servers send, with the check for short circuits that they ask for. */
const GROWN = {
  qrLampOff: 0,
  longCharge: 0,
  extraFloatS: 0,
  shortCircuitCheck: 2,
  ignoreUnplug: 0,
  forceFullStop: 0,
  fullPowerW: 0,
} as const

function ap3000PlaceProblem(port: number, socket: number): Refusal | undefined {
  if (!Number.isInteger(port) || port < 1 || port > AP3000_PORT_MAX)
    return invalid('port_range', `port needs 1..${AP3000_PORT_MAX}`)
  return socket === 0 ? undefined : invalid('socket_unused', 'this protocol has no sockets')
}

/** Until full is rate mode 0 with 0 seconds, as the guide's example has it, or that of the card, with 0 as well. */
function ap3000Plan(request: ChargeRequest): ChargePlan | Refusal {
  const { mode, port, socket = 0, durationS, energyWh, amountFen, maxPowerW, maxDurationS } = request
  const where = ap3000PlaceProblem(port, socket)
  if (where !== undefined) return where
  const number = wireOrderNumber(request.orderNo)
  if ('code' in number) return number
  const seconds = Math.ceil(durationS ?? 0)
  if (seconds > U16_MAX) return invalid('duration_s_range', `duration_s needs at most ${U16_MAX}`)
  // whole Wh first: a quotient may vanish, and 0 on the wire means until full
  const energy10Wh = Math.ceil(Math.ceil(energyWh ?? 0) / 10)
  if (energy10Wh > U16_MAX) return invalid('energy_wh_range', `energy_wh needs at most ${U16_MAX * 10}`)
  const overloadPowerDw = maxPowerW === undefined ? 0 : Math.max(1, Math.floor(maxPowerW * 10 + 1e-6))
  if (overloadPowerDw > U16_MAX) return invalid('max_power_w_range', `max_power_w needs at most ${U16_MAX / 10}`)
  const rateMode = mode === 'energy' ? RATE_MODES.energy : RATE_MODES[request.account?.rateMode ?? 'time']
  const isByEnergy = rateMode === RATE_MODES.energy
  return {
    name: 'startCharge',
    fields: {
      rateMode,
      ...(rateMode === RATE_MODES.monthly
        ? { expiryS: expirySOf(request.account?.expiresMs ?? null) }
        : { balanceFen: Math.min(SPOKEN_FEN_MAX, request.balanceFen ?? amountFen ?? 0) }),
      port: port - 1,
      command: 1,
      ...(isByEnergy ? { energy10Wh } : { durationS: seconds }),
      orderHex: number.wireHex,
      maxChargeS: maxDurationS === undefined ? 0 : downTo(maxDurationS, 1, U16_MAX),
      overloadPowerDw,
      ...GROWN,
    },
    wireHex: number.wireHex,
    gatewayLimits: amountFen === undefined ? null : { amountFen },
  }
}

function ap3000Stop(port: number, socket: number, wireHex: string): StopPlan | Refusal {
  const where = ap3000PlaceProblem(port, socket)
  if (where !== undefined) return where
  if (!/^[0-9a-f]{32}$/.test(wireHex))
    return precondition('order_unknown', 'the stop has to name the running order, and none is known')
  return {
    name: 'startCharge',
    fields: { ...GROWN, shortCircuitCheck: 0, port: port - 1, command: 0, orderHex: wireHex },
  }
}

// ---- BKV, sections 6 (07, 17) and 7 (1007) ----------------------------------------------------------------------

const TIME = 1
const ENERGY = 0

function bkvPlaceProblem(port: number, socket: number): Refusal | undefined {
  if (port !== 1 && port !== 2) return invalid('port_range', 'port needs 1 (A) or 2 (B)')
  if (!Number.isInteger(socket) || socket < 0 || socket > BKV_SOCKET_MAX)
    return invalid('socket_range', `socket needs 1..${BKV_SOCKET_MAX}, or 0 for a unit without sockets`)
  return undefined
}

function bkvControl(
  port: number,
  socket: number,
  on: 0 | 1,
  mode: 0 | 1,
  minutesMin: number,
  energyWh: number,
): Fields {
  return { socket, port: port - 1, on, mode, minutesMin, energyWh }
}

function bkvPlan(request: ChargeRequest): ChargePlan | Refusal {
  const { mode, port, socket = 0, maxPowerW, maxDurationS, amountFen, tariff } = request
  const where = bkvPlaceProblem(port, socket)
  if (where !== undefined) return where
  if (maxPowerW !== undefined)
    return precondition('max_power_unsupported', 'this protocol limits power per socket (setParameters), not per order')
  const maxMinutes = maxDurationS === undefined ? BKV_MINUTES_MAX : downTo(maxDurationS, 60, BKV_MINUTES_MAX)
  const control = (controlMode: 0 | 1, minutes: number, wh: number, limits: GatewayLimits | null): ChargePlan => ({
    name: 'control',
    fields: bkvControl(port, socket, 1, controlMode, minutes, wh),
    wireHex: '',
    gatewayLimits: limits,
  })
  /** The longest the device is documented to take: it ends by itself when full. */
  const untilFull = (limits: GatewayLimits | null) => control(TIME, maxMinutes, 0, limits)
  /** What the downlink has no field for. */
  const durationLimit = maxDurationS === undefined ? null : { durationS: Math.max(1, Math.floor(maxDurationS)) }

  switch (mode) {
    case 'full':
      return untilFull(null)
    case 'time': {
      const minutes = Math.ceil((request.durationS as number) / 60)
      if (minutes > BKV_MINUTES_MAX)
        return invalid('duration_s_range', `duration_s needs at most ${BKV_MINUTES_MAX * 60}`)
      return control(TIME, Math.min(minutes, maxMinutes), 0, null)
    }
    case 'energy': {
      const wh = Math.ceil(request.energyWh as number)
      if (wh > U16_MAX) return invalid('energy_wh_range', `energy_wh needs at most ${U16_MAX}`)
      return control(ENERGY, 0, wh, durationLimit)
    }
    case 'power':
      if (amountFen === undefined) return invalid('amount_fen_missing', 'mode power needs amount_fen on this protocol')
      break
    case 'budget':
      break
  }
  const native = bkvPaidAhead(port, socket, amountFen as number, tariff as Tariff)
  return native === undefined
    ? untilFull({ amountFen: amountFen as number })
    : { ...native, wireHex: '', gatewayLimits: durationLimit }
}

/**
 * The downlink that makes the device itself count the amount down, if its tariff can be told to the device without
 * leaving anything out; undefined: the gateway has to count.
 */
function bkvPaidAhead(
  port: number,
  socket: number,
  amountFen: number,
  tariff: Tariff,
): Pick<ChargePlan, 'name' | 'fields'> | undefined {
  const { time, energy, power, periods, freeMinutes, capFen } = tariff
  // the device knows of no free minutes, and would stop where the cap lets the charge go on
  if (amountFen > U16_MAX || time !== null || freeMinutes > 0 || (capFen !== null && capFen < amountFen))
    return undefined
  const head = { socket, port: port - 1, on: 1 }
  if (power !== null) {
    const canSay =
      energy === null &&
      periods === null &&
      power.length <= BKV_TIERS_MAX &&
      power.every(({ maxPowerW, priceFen }) => maxPowerW * 10 <= U16_MAX && priceFen <= U16_MAX)
    if (!canSay) return undefined
    const tiers = power.map(({ maxPowerW, priceFen, minutes }) => ({
      powerDw: maxPowerW * 10,
      priceFen,
      minutesMin: minutes,
    }))
    return { name: 'startByPower', fields: { ...head, amountFen, tiers } }
  }
  const flat = energy?.priceFenPerKwh ?? 0
  const windows = periods ?? [{ endMin: 24 * 60, electricityFenPerKwh: 0, serviceFenPerKwh: 0 }]
  const tiers = windows.map(({ endMin, electricityFenPerKwh, serviceFenPerKwh }) => ({
    // "the last must end 23:59"
    endHhMm: endMin === 24 * 60 ? '23:59' : clockOf(endMin),
    electricityPriceFenPerKwh: electricityFenPerKwh + flat,
    servicePriceFenPerKwh: serviceFenPerKwh,
  }))
  const fits = tiers.every((tier) => tier.electricityPriceFenPerKwh <= U16_MAX && tier.servicePriceFenPerKwh <= U16_MAX)
  if (!fits) return undefined
  // mode 4: electricity fee + service fee; F4 is unknown and sent as in the guide's sample; service fee by energy
  const bkv = {
    ...head,
    mode: 4,
    controlType: 1,
    keyF4: 2,
    amountFen,
    serviceFeeBasis: 1,
    tierCount: tiers.length,
    tiers,
  }
  return { name: 'feeControl', fields: { bkv } }
}
