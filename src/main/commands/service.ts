/**
 * Commands from HTTP: each one is checked, encoded once for the proof that it can be, and stored with its order and its
 * line in the audit log in one transaction; only then the caller hears of it and the desk gets it. Thread: main.
 *
 * A repeated request is answered like the first: by Idempotency-Key, a charge also by its order_no. What arrives at the
 * same time for one device is taken one after the other, in this process by a chain of promises (waiting costs no
 * database connection), between processes by an advisory lock.
 */

import { randomBytes } from 'node:crypto'
import { COMMAND_STATES } from '../../../workers/writer/command-fates.ts'
import type { CardAnswer, Fields, Protocol } from '../../codec/protocol.ts'
import { HttpError } from '../../errors/errors.ts'
import {
  type ChargeMode,
  type ChargeRequest,
  chargePlan,
  isRefusal,
  type Refusal,
  stopPlan,
} from '../../orders/charge-plan.ts'
import { newOrderNo, ORDER_NO_RANDOM_BYTES } from '../../orders/order-number.ts'
import type { Tariff } from '../../orders/tariff.ts'
import { parseAnyDeviceId } from '../../protocols/index.ts'
import { COMMAND_STATUS, PRIORITY } from '../../session/command-lane.ts'
import { writeAudit } from '../admin/audit.ts'
import type { CommandDesk, StoredCommand } from '../command-desk.ts'
import { isServerError, type Sql, type TransactionSql } from '../database/connect.ts'
import type { Log } from '../log.ts'
import { leftOnCard } from './card-money.ts'
import { assertEncodes, commandNamed, encodeCommand } from './catalogue.ts'
import {
  type Caller,
  Intake,
  type IntakeRequest,
  type RunningOrder,
  runningOrder,
  START_CANCELLED,
  type Target,
} from './intake.ts'
import { RateLimit } from './rate-limit.ts'
import { readTariff } from './read-tariff.ts'
import { digestOf } from './request-digest.ts'

type CommandState = (typeof COMMAND_STATES)[number]

/** As in the contract: ports from 1, money in fen. */
export interface ChargeBody {
  readonly port: number
  readonly socket?: number | undefined
  readonly mode: ChargeMode
  readonly duration_s?: number | undefined
  readonly energy_wh?: number | undefined
  readonly amount_fen?: number | undefined
  readonly order_no?: string | undefined
  readonly max_power_w?: number | undefined
  readonly max_duration_s?: number | undefined
  readonly tariff?: Readonly<Record<string, unknown>> | undefined
  readonly expires_in_s?: number | undefined
}
/** A card that was found good. */
export interface SwipedCard {
  /** As the protocol writes card numbers. */
  readonly cardId: string
  /** Monthly: the month is paid, and there is no balance to watch. */
  readonly rateMode: CardAnswer['rateMode']
  /** Null: never. */
  readonly expiresMs: number | null
}
export interface StopBody {
  readonly port: number
  readonly socket?: number | undefined
  readonly order_no?: string | undefined
}
export interface CommandBody {
  readonly name: string
  readonly params: Readonly<Record<string, unknown>>
  readonly expires_in_s?: number | undefined
}

export { type Caller, START_CANCELLED }

export interface JobCommand {
  readonly deviceId: string
  readonly tenant: string
  readonly requestedBy: string
  readonly kind: 'other' | 'chunk'
  readonly name: string
  readonly fields: Fields
  /** What `GET /commands` shows. */
  readonly params: Readonly<Record<string, unknown>>
  readonly priority: number
  readonly expiresMs: number
  /** 0 when the command names none. */
  readonly socket: number
  readonly port: number
}

export interface Accepted {
  readonly command_id: string
  /** null: the command is about no order that is known. */
  readonly order_no: string | null
  readonly state: CommandState
}

export interface CommandServiceOptions {
  readonly sql: Sql
  readonly log: Log
  readonly desk: Pick<CommandDesk, 'admit' | 'accept' | 'cancel' | 'newCommandId' | 'dispatchingCount' | 'epochOf'>
  readonly commandExpiryMs: number
  /** Tokens per second; a bucket holds twice as many. */
  readonly limits: { readonly perKeyPerS: number; readonly perDevicePerS: number; readonly fleetPerS: number }
  /** ms since the epoch */
  readonly now: () => number
}

export class CommandService {
  readonly #options: CommandServiceOptions
  readonly #limits: Readonly<Record<'key' | 'device' | 'fleet', RateLimit>>
  /** The last request per device; the next one waits for it. */
  readonly #turns = new Map<string, Promise<unknown>>()
  readonly #intake: Intake
  #pendingRequests = 0

  constructor(options: CommandServiceOptions) {
    this.#options = options
    const limit = (perS: number) => new RateLimit({ perS, burst: 2 * perS, nowMonoMs: () => performance.now() })
    const { perKeyPerS, perDevicePerS, fleetPerS } = options.limits
    this.#limits = { key: limit(perKeyPerS), device: limit(perDevicePerS), fleet: limit(fleetPerS) }
    const { sql, desk, now } = options
    this.#intake = new Intake({
      sql,
      desk,
      takeDeviceToken: (deviceId) => this.#takeToken('device', deviceId),
      onDoubt: (command) => this.#doubt(command),
      now,
      nowMonoMs: () => performance.now(),
    })
  }

  /** Requests for commands that wait for their device's turn or their transaction. */
  get pendingRequests(): number {
    return this.#pendingRequests
  }

  /**
   * Starts a charge: a new order and the command that begins it.
   * @throws HttpError INVALID_ARGUMENT, NOT_FOUND, CONFLICT (port busy, order_no or Idempotency-Key taken),
   *   FAILED_PRECONDITION (device and gateway cannot do it), TOO_MANY_REQUESTS
   */
  charge(caller: Caller, deviceId: string, body: ChargeBody): Promise<Accepted> {
    return this.#charge(caller, deviceId, body, undefined)
  }

  /**
   * The same for a swipe: up to what is left on the card where a tariff can count it, else until full.
   * @throws HttpError as `charge`; FAILED_PRECONDITION `card_promised`: other charges may use all of it
   */
  chargeByCard(
    caller: Caller,
    deviceId: string,
    { port, socket }: Pick<ChargeBody, 'port' | 'socket'>,
    card: SwipedCard,
  ): Promise<Accepted> {
    return this.#charge(caller, deviceId, { port, socket, mode: 'full' }, card)
  }

  async #charge(caller: Caller, deviceId: string, asked: ChargeBody, card: SwipedCard | undefined): Promise<Accepted> {
    const target = targetOf(deviceId)
    const { protocol } = target
    const socket = socketOf(protocol, asked.socket)
    this.#takeRequestTokens(caller)
    const about = { tenantId: caller.key.tenant, deviceId, socket, port: asked.port }
    // from now on, however long it takes to be stored
    const expiresMs = this.#expiresMs(asked.expires_in_s)
    const common = { caller, target, route: 'charge', orderNo: asked.order_no, about, cardId: card?.cardId } as const
    const store = (plan: IntakeRequest['plan']) => this.#store({ ...common, plan }, asked)
    return this.#inTurn(deviceId, () =>
      store(async ({ running, ...device }, tx) => {
        const body = card === undefined ? asked : await withCard(tx, caller.key.tenant, asked, card, device.tariff)
        assertPort(protocol, body.port, device.portCount)
        if (running !== undefined && isInTheWay(running))
          throw new HttpError(
            'CONFLICT',
            `port ${body.port} has a running order`,
            running.is_own ? { order_no: running.order_no, state: running.state } : {},
          )
        const given = body.tariff ?? device.tariff ?? null
        const tariff = given === null ? undefined : readTariff(given, body.tariff !== undefined)
        const orderNo = body.order_no ?? newOrderNo(randomBytes(ORDER_NO_RANDOM_BYTES))
        const plan = planned(chargePlan(protocol.name, chargeRequest(body, socket, orderNo, tariff, card)))
        return {
          kind: 'start',
          name: plan.name,
          fields: plan.fields,
          params: body,
          priority: PRIORITY.start,
          expiresMs,
          wireHex: plan.wireHex,
          socket,
          port: body.port,
          orderNo,
          order: {
            mode: body.mode,
            cardId: card?.cardId ?? null,
            orderKey: plan.wireHex === '' ? null : plan.wireHex,
            request: {
              ...orderRequest(body),
              expires_at: new Date(expiresMs).toISOString(),
              // what the gateway watches, because the device cannot (src/orders/charge-plan.ts, limitReached)
              gateway_limits:
                plan.gatewayLimits === null
                  ? null
                  : {
                      duration_s: plan.gatewayLimits.durationS ?? null,
                      amount_fen: plan.gatewayLimits.amountFen ?? null,
                    },
            },
            tariff: given,
          },
        }
      }),
    )
  }

  /**
   * Stops what charges on a port. A start that was not sent yet is cancelled instead: sent behind the stop, it would
   * charge all the same. Then the stop is answered and stored as acked, with reason `start_cancelled`.
   * @param deviceTenant whose device it is; the order, and the command, are the caller's
   * @throws HttpError as `charge`; FAILED_PRECONDITION nothing runs there that we know of
   */
  async stop(caller: Caller, deviceId: string, body: StopBody, deviceTenant = caller.key.tenant): Promise<Accepted> {
    const target = targetOf(deviceId)
    const { protocol } = target
    const socket = socketOf(protocol, body.socket)
    this.#takeRequestTokens(caller)
    const about = { tenantId: caller.key.tenant, deviceId, socket, port: body.port, orderNo: body.order_no }
    const expiresMs = this.#expiresMs(undefined)
    return this.#inTurn(deviceId, async () => {
      const { sql } = this.#options
      // outside the transaction: a cancel needs a connection of its own
      const before = ownOrder(await runningOrder(sql, about))
      let isDone = false
      // an order that charges was sent, whatever its command's row says by now
      const isWaiting = before?.state === 'pending' && before.start_status === COMMAND_STATUS.queued
      if (isWaiting && before.command_id !== null && (await this.#isNews(caller, deviceId, deviceTenant))) {
        const answer = await this.#options.desk.cancel(before.command_id)
        if (answer === 'unknown') throw new HttpError('UNAVAILABLE', 'the start is being stored, try again')
        isDone = answer === 'cancelled'
      }
      const plan: IntakeRequest['plan'] = async ({ running }, tx) => {
        const order = isDone ? before : ownOrder(running)
        if (order === undefined && body.order_no !== undefined)
          throw await noSuchOrder(tx, caller.key.tenant, deviceId, body, socket)
        const wireHex = order === undefined ? await chargingWire(tx, deviceId, socket, body.port) : order.wire_hex
        if (order === undefined && wireHex === undefined)
          throw new HttpError('FAILED_PRECONDITION', `nothing charges on port ${body.port}`, { reason: 'not_charging' })
        const { name, fields } = planned(stopPlan(protocol.name, body.port, socket, wireHex ?? ''))
        return {
          kind: 'stop',
          name,
          fields,
          params: body,
          priority: PRIORITY.stop,
          expiresMs,
          wireHex: '',
          socket,
          port: body.port,
          orderNo: order?.order_no ?? null,
          isDone,
        }
      }
      return this.#store({ caller, target, deviceTenant, route: 'stop', orderNo: undefined, about, plan }, body)
    })
  }

  /**
   * Any other command of the protocol, by its table name (catalogue.ts).
   * @throws HttpError as `charge`
   */
  async send(caller: Caller, deviceId: string, body: CommandBody): Promise<Accepted> {
    const target = targetOf(deviceId)
    const { protocol, deviceNo } = target
    this.#takeRequestTokens(caller)
    const encoded = attempt(() => {
      const entry = commandNamed(protocol, body.name)
      return { ...encodeCommand(protocol, entry, deviceNo, body.params), priority: entry.priority }
    })
    // a command about the order of a port says so, and moves it with its fate
    const isStop = encoded.value?.priority === PRIORITY.stop
    const isAboutOrder = isStop || body.name === 'changeCharge'
    const tenantId = caller.key.tenant
    const about = isAboutOrder && encoded.value !== undefined ? { tenantId, deviceId, ...encoded.value } : undefined
    const expiresMs = this.#expiresMs(body.expires_in_s)
    return this.#inTurn(deviceId, () =>
      this.#store(
        {
          caller,
          target,
          route: 'command',
          orderNo: undefined,
          about,
          plan: async (facts) => {
            const running = ownOrder(facts.running)
            // said now, because a repeat is answered like the first, and of another tenant's device nothing is said
            if (encoded.value === undefined) throw encoded.error
            const { fields, socket, port, priority } = encoded.value
            assertPort(protocol, port, facts.portCount)
            const { orderHex } = fields as { orderHex?: string }
            const isKnown = running !== undefined && (orderHex === undefined || orderHex === running.wire_hex)
            return {
              kind: isKnown && isStop ? 'stop' : isKnown ? 'change' : 'other',
              name: body.name,
              fields,
              params: withoutSecrets(body.params),
              priority,
              expiresMs,
              wireHex: '',
              socket,
              port,
              orderNo: isKnown ? running.order_no : null,
            }
          },
        },
        body,
      ),
    )
  }

  /**
   * One command of a job: stored together with what the job remembers of it, then given to the desk. No rate limit: a
   * job has its own bound on how many devices are under way.
   * @param within in the transaction of the command, behind its row; false: nothing of it is stored
   * @returns id of the command; undefined: `within` said no
   * @throws HttpError TOO_MANY_REQUESTS no room for it now; INVALID_ARGUMENT the wire cannot carry it
   */
  async storeForJob(
    command: JobCommand,
    within: (tx: TransactionSql, commandId: string) => Promise<boolean>,
  ): Promise<string | undefined> {
    const { sql, desk } = this.#options
    const { deviceId, tenant, requestedBy, kind, name, fields, params, priority, expiresMs, socket, port } = command
    const { deviceNo, protocol } = targetOf(deviceId)
    const downlink = protocol.downlinkByName.get(name)
    if (downlink === undefined) throw new Error(`${protocol.name}: no downlink ${name}`)
    assertEncodes(protocol, downlink, deviceNo, fields)
    desk.admit(deviceId, priority)
    const commandId = desk.newCommandId()
    const stored: StoredCommand = { commandId, deviceId, name, fields, priority, expiresMs, wireHex: '', socket, port }
    try {
      await sql.begin(async (tx) => {
        const json = (value: unknown) => tx.json(value as never)
        await tx`
          insert into outbound_queue (command_id, tenant_id, device_id, name, params, kind, wire, priority,
            requested_by, expires_at)
          values (${commandId}, ${tenant}, ${deviceId}, ${name}, ${json(withoutSecrets(params))}, ${kind},
            ${json({ fields, wire_hex: '', socket, port })}, ${priority}, ${requestedBy}, ${new Date(expiresMs)})`
        if (!(await within(tx, commandId))) throw NOT_WANTED
      })
    } catch (error) {
      if (error === NOT_WANTED) return undefined
      // an error of the server says that nothing was stored; a lost connection says nothing
      if (!isServerError(error)) this.#doubt(stored)
      throw error
    }
    desk.accept(stored, undefined, true)
    return commandId
  }

  /**
   * Cancels a command while it is queued.
   * @throws HttpError NOT_FOUND of no or of another tenant; CONFLICT it was sent or has its fate
   */
  async cancel(caller: Caller, commandId: string): Promise<void> {
    const { sql, desk } = this.#options
    this.#takeRequestTokens(caller)
    const [row] = await sql<{ status: number; device_id: string; name: string; order_no: string | null }[]>`
      select status, device_id, name, order_no from outbound_queue
      where command_id = ${commandId} and tenant_id = ${caller.key.tenant}`
    if (row === undefined) throw new HttpError('NOT_FOUND', `no command ${commandId}`)
    const late = (state: string) => new HttpError('CONFLICT', `the command is ${state} already`, { state })
    if (row.status !== COMMAND_STATUS.queued) throw late(COMMAND_STATES[row.status] ?? 'final')
    const answer = await desk.cancel(commandId)
    if (answer !== 'cancelled') {
      const [now] = await sql<{ status: number }[]>`select status from outbound_queue where command_id = ${commandId}`
      const state = COMMAND_STATES[now?.status ?? 0] ?? 'final'
      // sent a moment ago, and its row is on its way to the database
      throw late(state === 'queued' ? 'sent' : state)
    }
    await sql.begin((tx) =>
      writeAudit(tx, {
        ...caller,
        action: 'command.cancelled',
        target: commandId,
        details: { device_id: row.device_id, name: row.name, order_no: row.order_no },
      }),
    )
  }

  #expiresMs(expiresInS: number | undefined): number {
    const { now, commandExpiryMs } = this.#options
    return now() + (expiresInS === undefined ? commandExpiryMs : expiresInS * 1_000)
  }

  /**
   * One request of a device after the other.
   * @throws HttpError TOO_MANY_REQUESTS too many wait, over all devices
   */
  async #inTurn<T>(deviceId: string, work: () => Promise<T>): Promise<T> {
    if (this.#pendingRequests >= PENDING_REQUESTS_MAX)
      throw new HttpError('TOO_MANY_REQUESTS', 'too many requests for commands wait', {
        limit: PENDING_REQUESTS_MAX,
        retry_after_s: 1,
      })
    this.#pendingRequests++
    const before = this.#turns.get(deviceId)
    const turn = before === undefined ? work() : before.then(work, work)
    this.#turns.set(deviceId, turn)
    try {
      return await turn
    } finally {
      this.#pendingRequests--
      if (this.#turns.get(deviceId) === turn) this.#turns.delete(deviceId)
    }
  }

  /** A repeat counts as a request, but not as a command to its device. */
  #takeRequestTokens({ key }: Caller): void {
    this.#takeToken('key', key.id)
    this.#takeToken('fleet', '')
  }

  #takeToken(limit: 'key' | 'device' | 'fleet', name: string): void {
    const waitMs = this.#limits[limit].take(name)
    if (waitMs > 0)
      throw new HttpError('TOO_MANY_REQUESTS', `more commands than this ${limit} may get`, {
        limit,
        retry_after_s: Math.ceil(waitMs / 1_000),
      })
  }

  async #store(request: Omit<IntakeRequest, 'digest'>, body: object): Promise<Accepted> {
    const digest = digestOf(request.route, request.target.deviceId, body)
    const stored = await this.#intake.store({ ...request, digest })
    return { command_id: stored.commandId, order_no: stored.orderNo, state: stored.isDone ? 'acked' : 'queued' }
  }

  /** Is this a request to a device of its caller's, and no repeat? */
  async #isNews({ key, idempotencyKey }: Caller, deviceId: string, deviceTenant: string): Promise<boolean> {
    const { sql } = this.#options
    const [row] = await sql<{ is_news: boolean }[]>`
      select not exists (select from outbound_queue
        where tenant_id = ${key.tenant} and idempotency_key = ${idempotencyKey ?? null}) as is_news
      from devices where device_id = ${deviceId} and tenant_id = ${deviceTenant}`
    return row?.is_news === true
  }

  /**
   * The connection broke while the command was being committed, so nobody knows whether it is in the table. If it is,
   * it must get its fate like any other, although its caller was told UNAVAILABLE and may repeat the request.
   */
  #doubt(command: StoredCommand, looksLeft = DOUBT_LOOKS): void {
    setTimeout(() => {
      this.#options.sql<{ status: number }[]>`
        select status from outbound_queue where command_id = ${command.commandId}`
        .then(([row]) => {
          if (row?.status === COMMAND_STATUS.queued) this.#options.desk.accept(command)
          // a server may still be committing what a broken connection left behind
          else if (row === undefined && looksLeft > 1) this.#doubt(command, looksLeft - 1)
        })
        .catch(() => {
          // still away: ask until somebody answers, or the command would have expired anyhow and a start picks it up
          if (this.#options.now() < command.expiresMs + DOUBT_AFTER_EXPIRY_MS) this.#doubt(command, looksLeft)
        })
    }, DOUBT_EVERY_MS).unref()
  }
}

/** Some 20 MB, and what two busy cores take in four seconds. */
const PENDING_REQUESTS_MAX = 8_192
/** Rolls a transaction back. */
const NOT_WANTED = new Error('not wanted any more')
const DOUBT_EVERY_MS = 500
const DOUBT_LOOKS = 5
const DOUBT_AFTER_EXPIRY_MS = 600_000

// ---- the request -------------------------------------------------------------------------------------------------

function targetOf(deviceId: string): Target {
  const found = parseAnyDeviceId(deviceId)
  if (found === undefined) throw new HttpError('NOT_FOUND', `no device ${deviceId}`)
  return { deviceId, ...found }
}

/** @param port from 1; 0: none */
function assertPort(protocol: Protocol, port: number, portCount: number | null): void {
  if (protocol.name !== 'ap3000' || portCount === null || port <= portCount) return
  throw new HttpError('INVALID_ARGUMENT', `port: the device has ${portCount}`, { field: 'port', port_count: portCount })
}

/** An order that was begun before the device came to its present tenant is none of that one's. */
const ownOrder = (order: RunningOrder | undefined) => (order?.is_own === true ? order : undefined)

/** @returns 0 where the protocol has no sockets */
function socketOf(protocol: Protocol, socket: number | undefined): number {
  const bad = (rule: string) => new HttpError('INVALID_ARGUMENT', `socket: ${rule}`, { field: 'socket' })
  if (protocol.name === 'bkv') {
    if (socket === undefined || socket === 0) throw bad('needs 1..250')
    return socket
  }
  if (socket !== undefined && socket !== 0) throw bad('this device has no sockets')
  return 0
}

function chargeRequest(
  body: ChargeBody,
  socket: number,
  orderNo: string,
  tariff: Tariff | undefined,
  card: SwipedCard | undefined,
): ChargeRequest {
  return {
    mode: body.mode,
    port: body.port,
    socket,
    orderNo,
    ...(body.duration_s === undefined ? {} : { durationS: body.duration_s }),
    ...(body.energy_wh === undefined ? {} : { energyWh: body.energy_wh }),
    ...(body.amount_fen === undefined ? {} : { amountFen: body.amount_fen }),
    ...(body.max_power_w === undefined ? {} : { maxPowerW: body.max_power_w }),
    ...(body.max_duration_s === undefined ? {} : { maxDurationS: body.max_duration_s }),
    ...(tariff === undefined ? {} : { tariff }),
    ...(card === undefined ? {} : { account: card }),
  }
}

/** What is kept with the order: everything asked for that is not a column of its own. */
function orderRequest(body: ChargeBody): object {
  const { mode, duration_s, energy_wh, amount_fen, max_power_w, max_duration_s } = body
  return { mode, duration_s, energy_wh, amount_fen, max_power_w, max_duration_s }
}

/** @throws HttpError the plan is a refusal */
function planned<P extends object>(plan: P | Refusal): P {
  if (!isRefusal(plan)) return plan
  throw new HttpError(plan.code, plan.message, { reason: plan.reason })
}

function attempt<T>(
  work: () => T,
): { readonly value: T; readonly error?: never } | { readonly value?: undefined; readonly error: unknown } {
  try {
    return { value: work() }
  } catch (error) {
    return { error }
  }
}

/** Keys of cards are for the device only; `wire` holds them until the command is gone. */
const withoutSecrets = (params: Readonly<Record<string, unknown>>) =>
  Object.fromEntries(Object.entries(params).map(([name, value]) => [name, name.includes('password') ? '***' : value]))

// ---- what the tables know -----------------------------------------------------------------------------------------

/** @throws HttpError FAILED_PRECONDITION nothing is left on the card */
async function withCard(
  tx: TransactionSql,
  tenant: string,
  asked: ChargeBody,
  { cardId, rateMode }: SwipedCard,
  tariff: unknown,
): Promise<ChargeBody> {
  if (rateMode === 'monthly' || tariff === null) return asked
  const leftFen = await leftOnCard(tx, tenant, cardId)
  if (leftFen > 0) return { ...asked, mode: 'budget', amount_fen: leftFen }
  throw new HttpError('FAILED_PRECONDITION', 'the card’s balance is promised to running orders', {
    reason: 'card_promised',
  })
}

/**
 * Does this order keep another from starting? What we started does until it ends. What the device started (a card) may
 * have ended without our hearing of it: then the port says so.
 */
export function isInTheWay({ origin, command_id: commandId, port_state }: RunningOrder): boolean {
  return origin === 'online' || commandId !== null || port_state === null || isCharging(port_state)
}

const isCharging = (state: string) => state === 'charging' || state === 'float'

/** An order nobody told us of: the port charges and names its number ('' where the protocol has none to name). */
async function chargingWire(
  tx: TransactionSql,
  deviceId: string,
  socket: number,
  port: number,
): Promise<string | undefined> {
  const [row] = await tx<{ state: string; wire_hex: string | null }[]>`
    select state, wire_hex from ports where device_id = ${deviceId} and socket = ${socket} and port = ${port}`
  return row !== undefined && isCharging(row.state) ? (row.wire_hex ?? '') : undefined
}

async function noSuchOrder(
  tx: TransactionSql,
  tenantId: string,
  deviceId: string,
  body: StopBody,
  socket: number,
): Promise<HttpError> {
  const [order] = await tx<{ state: string; socket: number; port: number }[]>`
    select state, socket, port from orders
    where order_no = ${body.order_no ?? ''} and device_id = ${deviceId} and tenant_id = ${tenantId}`
  if (order === undefined) return new HttpError('NOT_FOUND', `no order ${body.order_no} on this device`)
  const isElsewhere = order.port !== body.port || order.socket !== socket
  return isElsewhere
    ? new HttpError('FAILED_PRECONDITION', `order ${body.order_no} is on another port`, {
        reason: 'other_port',
        port: order.port,
        socket: order.socket,
      })
    : new HttpError('FAILED_PRECONDITION', `order ${body.order_no} is ${order.state}`, {
        reason: 'not_running',
        state: order.state,
      })
}
