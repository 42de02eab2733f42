/**
 * Commands into the tables, many in one transaction: what arrives while transactions are under way is written together
 * by the next one, each request with its order and its line in the audit log, and each with an outcome of its own. No
 * caller hears anything before the commit. Thread: main.
 *
 * One statement per table and transaction, however many requests there are. With a transaction for every request two
 * cores took 450 of them per second.
 */
import { type Columns, parameters, source } from '../../../workers/writer/columns.ts'
import { all, pick, run } from '../../../workers/writer/statements.ts'
import { deviceKey, type Fields, type Protocol } from '../../codec/protocol.ts'
import type { ApiKey } from '../../config/api-keys.ts'
import { HttpError } from '../../errors/errors.ts'
import type { ChargeMode } from '../../orders/charge-plan.ts'
import { COMMAND_STATUS, PRIORITY } from '../../session/command-lane.ts'
import type { CommandDesk, KnownMessageId, StoredCommand } from '../command-desk.ts'
import { lastMessageIdOf } from '../command-store.ts'
import { databaseErrorCode, isServerError, type Sql, type TransactionSql } from '../database/connect.ts'
import { assertEncodes } from './catalogue.ts'

/** Who asks. */
export interface Caller {
  readonly key: ApiKey
  readonly requestId: string
  readonly remoteAddress: string
  readonly idempotencyKey: string | undefined
}

export interface Target {
  readonly deviceId: string
  readonly deviceNo: number
  readonly protocol: Protocol
}

/** A port of a device. */
export interface PortOf {
  /** Who asks. */
  readonly tenantId: string
  readonly deviceId: string
  /** 0 where the protocol has no sockets. */
  readonly socket: number
  /** From 1. */
  readonly port: number
  /** Only this order; left out: any. */
  readonly orderNo?: string | undefined
}

/** An order that has no end yet. */
export interface RunningOrder {
  readonly order_no: string
  readonly state: string
  readonly origin: string
  readonly card_id: string | null
  readonly wire_hex: string | null
  readonly command_id: string | null
  readonly start_status: number | null
  readonly port_state: string | null
  /** It is of the tenant that asks. */
  readonly is_own: boolean
}

/** What a plan may look at, as it is under the lock of the device. */
export interface Facts {
  readonly tariff: unknown
  readonly portCount: number | null
  /** On the port that the request is about. */
  readonly running: RunningOrder | undefined
}

/** One request on its way into the tables. */
export interface Planned {
  readonly kind: 'start' | 'stop' | 'change' | 'other'
  readonly name: string
  readonly fields: Fields
  /** As the caller gave it. */
  readonly params: object
  readonly priority: number
  readonly expiresMs: number
  /** Of the order that a start begins; '' otherwise. */
  readonly wireHex: string
  readonly socket: number
  readonly port: number
  readonly orderNo: string | null
  readonly order?: OrderInsert
  /** The command needs not be sent: it is stored with its fate. */
  readonly isDone?: boolean
}

export interface OrderInsert {
  readonly mode: ChargeMode
  /** The card that pays; null: not started by a card. */
  readonly cardId: string | null
  /** null: the device makes the number (BKV). */
  readonly orderKey: string | null
  readonly request: object
  readonly tariff: unknown
}

/** At most one per device at a time: the caller sees to that. */
export interface IntakeRequest {
  readonly caller: Caller
  readonly target: Target
  /** Whose device it is. The caller's, but for what the gateway does for an order that is older than its device's move. */
  readonly deviceTenant?: string | undefined
  readonly route: 'charge' | 'stop' | 'command'
  readonly digest: string
  /** Chosen by the caller: names the request as an Idempotency-Key does. */
  readonly orderNo: string | undefined
  /** Whose running order the plan wants to know. */
  readonly about: PortOf | undefined
  /** Whose balance the plan counts on: requests for one card are planned one after the other, each with the order before. */
  readonly cardId?: string | undefined
  /** @throws HttpError: nothing of this request is stored, the others are */
  readonly plan: (facts: Facts, tx: TransactionSql) => Promise<Planned>
}

/** What became of a request that names an earlier one, too. */
export interface Stored {
  readonly commandId: string
  readonly orderNo: string | null
  readonly isDone: boolean
}

export interface IntakeOptions {
  readonly sql: Sql
  readonly desk: Pick<CommandDesk, 'admit' | 'accept' | 'newCommandId' | 'dispatchingCount' | 'epochOf'>
  /** Asked when everything else is well, so that a repeat or a mistake costs no token. @throws HttpError */
  readonly takeDeviceToken: (deviceId: string) => void
  /** The connection broke while this was being committed: nobody knows whether it is in the table. */
  readonly onDoubt: (command: StoredCommand) => void
  /** ms since the epoch */
  readonly now: () => number
  readonly nowMonoMs: () => number
}

/** Two: one is prepared while the other one waits for its sync. */
const TRANSACTIONS_MAX = 2
/** A transaction of so many takes some 50 ms on two busy cores. */
const REQUESTS_MAX = 256
/**
 * Requests in transactions, and commands on their way to devices that could take them at once. With more of them the rest
 * waits: what comes faster than it leaves waits before its 202 instead of behind it. Without this bound 5,000 starts in a
 * burst reached their devices 0.6 to 1.0 s after their 202 (p99). With it they need 0.13 to 0.28 s, and the burst is over 2 %
 * later.
 */
export const UNDER_WAY_MAX = 200
/** A transaction is not begun for fewer: its cost is spread over them. */
export const ROOM_MIN = 64
/** But nobody waits longer than this for a transaction to begin, whatever holds it up: then ROOM_MIN go. */
export const HOLD_MS_MAX = 500
const HOLD_LOOK_MS = 3
const UNIQUE_VIOLATION = '23505'
/** `outbound_queue.result.reason` of a stop that had nothing to stop: the start was still waiting and was cancelled. */
export const START_CANCELLED = 'start_cancelled'

interface Entry {
  readonly request: IntakeRequest
  readonly names: readonly string[]
  readonly sinceMonoMs: number
  readonly resolve: (stored: Stored) => void
  readonly reject: (error: unknown) => void
}

const deviceTenantOf = ({ caller, deviceTenant }: IntakeRequest) => deviceTenant ?? caller.key.tenant

/** What a request came to within a transaction. */
type Outcome =
  | {
      readonly kind: 'stored'
      readonly planned: Planned
      readonly commandId: string
      readonly lastMessageId: KnownMessageId | undefined
    }
  | { readonly kind: 'repeated'; readonly stored: Stored }
  | { readonly kind: 'refused'; readonly error: unknown }

export class Intake {
  readonly #options: IntakeOptions
  #waiting: Entry[] = []
  #transactions = 0
  #inTransactions = 0
  #isPumpPlanned = false
  /** Of requests in transactions under way: who has the same waits, and finds what the other one stored. */
  readonly #names = new Set<string>()
  readonly #paid = new WeakSet<IntakeRequest>()
  /** Commands in transactions under way: the desk does not know them yet. */
  #uncommitted = 0

  constructor(options: IntakeOptions) {
    this.#options = options
  }

  /**
   * Stores a request. Resolves when it is committed and the desk has its command; a repeat of an earlier request gets
   * what that one got.
   * @throws HttpError what the plan says, NOT_FOUND, CONFLICT, TOO_MANY_REQUESTS; or the driver's error
   */
  store(request: IntakeRequest): Promise<Stored> {
    return new Promise((resolve, reject) => {
      const sinceMonoMs = this.#options.nowMonoMs()
      this.#waiting.push({ request, names: namesOf(request), sinceMonoMs, resolve, reject })
      this.#plan()
    })
  }

  /** Behind everything that comes in the same turn of the loop. */
  #plan(): void {
    if (this.#isPumpPlanned) return
    this.#isPumpPlanned = true
    const pump = () => {
      this.#isPumpPlanned = false
      this.#pump()
    }
    if (this.#isHeld()) setTimeout(pump, HOLD_LOOK_MS)
    else setImmediate(pump)
  }

  #pump(): void {
    while (this.#transactions < TRANSACTIONS_MAX && this.#waiting.length > 0) {
      if (this.#isHeld()) {
        this.#plan()
        return
      }
      const countMax = Math.min(REQUESTS_MAX, Math.max(this.#room(), ROOM_MIN))
      const entries: Entry[] = []
      const left: Entry[] = []
      for (const entry of this.#waiting)
        if (entries.length < countMax && this.#claimNames(entry)) entries.push(entry)
        else left.push(entry)
      if (entries.length === 0) return
      this.#waiting = left
      this.#transactions++
      this.#inTransactions += entries.length
      void this.#together(entries).finally(() => {
        this.#transactions--
        this.#inTransactions -= entries.length
        for (const { names } of entries) for (const name of names) this.#names.delete(name)
        this.#plan()
      })
    }
  }

  #isHeld(): boolean {
    return this.#room() < ROOM_MIN && !this.#isOverdue()
  }

  #room(): number {
    return UNDER_WAY_MAX - this.#inTransactions - this.#options.desk.dispatchingCount
  }

  #isOverdue(): boolean {
    const oldest = this.#waiting[0]
    return oldest !== undefined && this.#options.nowMonoMs() - oldest.sinceMonoMs >= HOLD_MS_MAX
  }

  #claimNames({ names }: Entry): boolean {
    if (names.some((name) => this.#names.has(name))) return false
    for (const name of names) this.#names.add(name)
    return true
  }

  /** Never rejects. */
  async #together(entries: readonly Entry[]): Promise<void> {
    const tries = await this.#try(entries)
    if (tries === undefined) return
    // one of them is at fault, or another process was faster with a name: each finds out by itself
    await Promise.all(entries.map((entry) => this.#alone(entry, entries.length === 1 ? tries : undefined)))
  }

  async #alone(entry: Entry, earlierError: unknown): Promise<void> {
    let error = earlierError ?? (await this.#try([entry]))
    // what the other one stored decides
    if (databaseErrorCode(error) === UNIQUE_VIOLATION) error = await this.#try([entry])
    if (error === undefined) return
    entry.reject(
      databaseErrorCode(error) === UNIQUE_VIOLATION
        ? new HttpError('CONFLICT', 'order_no is taken', { field: 'order_no' }, error)
        : error,
    )
  }

  /**
   * One transaction for all of them.
   * @returns undefined: every one of them has its outcome; else why nothing is stored, and none of them has
   */
  async #try(entries: readonly Entry[]): Promise<unknown> {
    const outcomes: Outcome[] = []
    try {
      await this.#options.sql.begin((tx) => this.#within(tx, entries, outcomes))
    } catch (error) {
      // an error of the server says that nothing was stored; a lost connection says nothing
      if (isServerError(error)) return error
      for (const [index, { request, reject }] of entries.entries()) {
        const outcome = outcomes[index]
        if (outcome?.kind === 'stored' && outcome.planned.isDone !== true)
          this.#options.onDoubt(commandOf(request, outcome))
        reject(outcome?.kind === 'refused' ? outcome.error : error)
      }
      return undefined
    } finally {
      this.#uncommitted -= outcomes.filter(({ kind }) => kind === 'stored').length
    }
    for (const [index, { request, resolve, reject }] of entries.entries()) {
      const outcome = outcomes[index]!
      if (outcome.kind === 'refused') reject(outcome.error)
      else if (outcome.kind === 'repeated') resolve(outcome.stored)
      else {
        const { planned, commandId } = outcome
        const isDone = planned.isDone === true
        if (!isDone) this.#options.desk.accept(commandOf(request, outcome), outcome.lastMessageId)
        resolve({ commandId, orderNo: planned.orderNo, isDone })
      }
    }
    return undefined
  }

  /** @param outcomes one per entry, in order, as soon as what it says might be in the table */
  async #within(tx: TransactionSql, entries: readonly Entry[], outcomes: Outcome[]): Promise<void> {
    const requests = entries.map(({ request }) => request)
    const { desk } = this.#options
    const epochs = requests.map(({ target: { protocol, deviceNo } }) => desk.epochOf(deviceKey(protocol, deviceNo)))
    const known = await factsOf(tx, requests)
    for (const [index, request] of requests.entries()) {
      const outcome = await this.#outcomeOf(tx, request, known, index, epochs[index])
      outcomes.push(outcome)
      if (outcome.kind === 'stored') this.#uncommitted++
    }
    const rows = requests.flatMap((request, index): StoredRow[] => {
      const outcome = outcomes[index]!
      return outcome.kind === 'stored' ? [{ request, ...outcome }] : []
    })
    if (rows.length > 0) await insert(tx, rows, this.#options.now())
  }

  /** @param epoch of the session that spoke for the device before `known` was read */
  async #outcomeOf(
    tx: TransactionSql,
    request: IntakeRequest,
    known: Known,
    index: number,
    epoch: number | undefined,
  ): Promise<Outcome> {
    const { desk, takeDeviceToken } = this.#options
    const { target, digest, plan, orderNo } = request
    const { deviceId, deviceNo, protocol } = target
    try {
      const device = known.devices.get(`${deviceTenantOf(request)} ${deviceId}`)
      if (device === undefined) throw new HttpError('NOT_FOUND', `no device ${deviceId}`)
      const earlier = known.earlier[index]
      if (earlier !== undefined) return { kind: 'repeated', stored: answerOf(earlier, digest) }
      const { tariff, port_count: portCount, message_id: messageId } = device
      const planned = await plan({ tariff, portCount, running: known.running[index] }, tx)
      if (orderNo !== undefined && known.takenOrderNos.has(orderNo) && planned.order !== undefined)
        throw new HttpError('CONFLICT', 'order_no is taken', { field: 'order_no' })
      const downlink = protocol.downlinkByName.get(planned.name)
      if (downlink === undefined) throw new Error(`${protocol.name}: no downlink ${planned.name}`)
      assertEncodes(protocol, downlink, deviceNo, planned.fields)
      if (planned.isDone !== true) {
        // the database kept it waiting: what was asked for then must not be done now
        if (planned.expiresMs <= this.#options.now())
          throw new HttpError('TIMEOUT', 'it expired before it could be stored')
        desk.admit(deviceId, planned.priority, this.#uncommitted)
        // once, also when the transaction fails for another's sake and this is tried again alone
        if (!this.#paid.has(request) && planned.priority !== PRIORITY.stop) takeDeviceToken(deviceId)
        this.#paid.add(request)
      }
      const lastMessageId = epoch === undefined ? undefined : { epoch, messageId }
      return { kind: 'stored', planned, commandId: desk.newCommandId(), lastMessageId }
    } catch (error) {
      // an error of the database breaks the transaction, for all of them
      if (!(error instanceof HttpError) && databaseErrorCode(error) !== undefined) throw error
      return { kind: 'refused', error }
    }
  }
}

function namesOf({ caller, orderNo, cardId }: IntakeRequest): readonly string[] {
  const { key, idempotencyKey } = caller
  return [
    ...(idempotencyKey === undefined ? [] : [`key ${key.tenant} ${idempotencyKey}`]),
    ...(orderNo === undefined ? [] : [`order ${orderNo}`]),
    ...(cardId === undefined ? [] : [`card ${key.tenant} ${cardId}`]),
  ]
}

function commandOf({ target }: IntakeRequest, { planned, commandId }: Extract<Outcome, { kind: 'stored' }>) {
  const { name, fields, priority, expiresMs, wireHex, socket, port } = planned
  return { commandId, deviceId: target.deviceId, name, fields, priority, expiresMs, wireHex, socket, port }
}

function answerOf({ command_id, order_no, request_digest, is_start_cancelled }: Earlier, digest: string): Stored {
  if (request_digest !== digest)
    throw new HttpError('CONFLICT', 'this Idempotency-Key or order_no belongs to another request', {
      command_id,
      order_no,
    })
  return { commandId: command_id, orderNo: order_no, isDone: is_start_cancelled }
}

// ---- what the tables know -----------------------------------------------------------------------------------------

interface DeviceRow {
  readonly tenant_id: string
  readonly device_id: string
  readonly tariff: unknown
  readonly port_count: number | null
  /** Of the command that was sent last. */
  readonly message_id: number | null
}

interface Earlier {
  readonly command_id: string
  readonly order_no: string | null
  readonly request_digest: string | null
  readonly is_start_cancelled: boolean
}

/** Arrays have one place per request. */
interface Known {
  /** By tenant and id. */
  readonly devices: ReadonlyMap<string, DeviceRow>
  readonly earlier: readonly (Earlier | undefined)[]
  readonly running: readonly (RunningOrder | undefined)[]
  readonly takenOrderNos: ReadonlySet<string>
}

const DEVICE_IDS = { device_id: 'text' } as const satisfies Columns
/** In one order everywhere: two processes that lock many devices each must not wait for one another. */
const LOCK_DEVICES = `
  select pg_advisory_xact_lock(l.key)
  from (select distinct hashtextextended(i.device_id, 4) as key from ${source(DEVICE_IDS)} order by 1) l`
const TENANT_DEVICES = { tenant_id: 'text', device_id: 'text' } as const satisfies Columns
const LOAD_DEVICES = `
  select d.tenant_id, d.device_id, d.tariff, d.port_count, ${lastMessageIdOf('d.device_id')} as message_id
  from ${source(TENANT_DEVICES)} join devices d on d.device_id = i.device_id and d.tenant_id = i.tenant_id`
const EARLIER_COLUMNS = `i.ordinal, q.command_id, q.order_no, q.request_digest,
  q.kind = 'stop' and coalesce(q.result ->> 'reason', '') = '${START_CANCELLED}' as is_start_cancelled`
const NAMES = { tenant_id: 'text', name: 'text' } as const satisfies Columns
const EARLIER_BY_KEY = `
  select ${EARLIER_COLUMNS} from ${source(NAMES)}
  join outbound_queue q on q.tenant_id = i.tenant_id and q.idempotency_key = i.name`
const EARLIER_BY_ORDER_NO = `
  select ${EARLIER_COLUMNS} from ${source(NAMES)}
  join outbound_queue q on q.order_no = i.name and q.kind = 'start' and q.tenant_id = i.tenant_id`
const ORDER_NOS = { order_no: 'text' } as const satisfies Columns
const TAKEN_ORDER_NOS = `select o.order_no from ${source(ORDER_NOS)} join orders o on o.order_no = i.order_no`
const PORTS = {
  tenant_id: 'text',
  device_id: 'text',
  socket: 'int4',
  port: 'int4',
  order_no: 'text',
} as const satisfies Columns
/** Of several the one the device names, then the newest. */
const RUNNING_ORDERS = `
  select i.ordinal, r.* from ${source(PORTS)}
  cross join lateral (
    select o.order_no, o.state, o.origin, o.card_id, o.wire_hex, o.command_id, q.status as start_status, p.state as port_state,
      o.tenant_id = i.tenant_id as is_own
    from orders o
    left join ports p on p.device_id = o.device_id and p.socket = o.socket and p.port = o.port
    left join outbound_queue q on q.command_id = o.command_id
    where o.device_id = i.device_id and o.socket = i.socket and o.port = i.port
      and o.state in ('pending', 'starting', 'charging', 'stopping')
      and (i.order_no is null or o.order_no = i.order_no)
    order by (o.wire_hex is not null and o.wire_hex is not distinct from p.wire_hex) desc, o.created_at desc,
      o.order_no desc
    limit 1) r`

type Numbered<T> = T & { readonly ordinal: number }
interface Asked<T> {
  /** Place of the request. */
  readonly index: number
  readonly value: T
}

async function factsOf(tx: TransactionSql, requests: readonly IntakeRequest[]): Promise<Known> {
  const deviceIds = requests.map(({ target }) => target.deviceId)
  const keys = asked(requests, ({ caller: { key, idempotencyKey } }) =>
    idempotencyKey === undefined ? undefined : { tenantId: key.tenant, name: idempotencyKey },
  )
  const numbers = asked(requests, ({ caller: { key }, orderNo }) =>
    orderNo === undefined ? undefined : { tenantId: key.tenant, name: orderNo },
  )
  const abouts = asked(requests, ({ about }) => about)
  const names = (list: readonly Asked<{ tenantId: string; name: string }>[]) =>
    parameters(NAMES, pick(list, { tenant_id: ({ value }) => value.tenantId, name: ({ value }) => value.name }))
  // sent without waiting for one another; the lock first, whose snapshot the others must not share
  const [, devices, byKey, byNumber, taken, running] = await all([
    run(tx, LOCK_DEVICES, parameters(DEVICE_IDS, { device_id: deviceIds })),
    run<DeviceRow>(
      tx,
      LOAD_DEVICES,
      parameters(TENANT_DEVICES, {
        tenant_id: requests.map(deviceTenantOf),
        device_id: deviceIds,
      }),
    ),
    keys.length === 0 ? [] : run<Numbered<Earlier>>(tx, EARLIER_BY_KEY, names(keys)),
    numbers.length === 0 ? [] : run<Numbered<Earlier>>(tx, EARLIER_BY_ORDER_NO, names(numbers)),
    numbers.length === 0
      ? []
      : run<{ order_no: string }>(
          tx,
          TAKEN_ORDER_NOS,
          parameters(ORDER_NOS, { order_no: numbers.map(({ value }) => value.name) }),
        ),
    abouts.length === 0
      ? []
      : runningRows(
          tx,
          abouts.map(({ value }) => value),
        ),
  ])
  const earlier: (Earlier | undefined)[] = []
  // the key says more than the number
  for (const row of byNumber) earlier[numbers[row.ordinal - 1]!.index] = row
  for (const row of byKey) earlier[keys[row.ordinal - 1]!.index] = row
  const runningOf: (RunningOrder | undefined)[] = []
  for (const row of running) runningOf[abouts[row.ordinal - 1]!.index] = row
  return {
    devices: new Map(devices.map((row) => [`${row.tenant_id} ${row.device_id}`, row])),
    earlier,
    running: runningOf,
    takenOrderNos: new Set(taken.map(({ order_no }) => order_no)),
  }
}

/** Of those requests that ask, in order. */
function asked<T>(requests: readonly IntakeRequest[], what: (request: IntakeRequest) => T | undefined): Asked<T>[] {
  return requests.flatMap((request, index) => {
    const value = what(request)
    return value === undefined ? [] : [{ index, value }]
  })
}

const runningRows = (sql: Sql | TransactionSql, ports: readonly PortOf[]) =>
  run<Numbered<RunningOrder>>(
    sql as TransactionSql,
    RUNNING_ORDERS,
    parameters(
      PORTS,
      pick(ports, {
        tenant_id: ({ tenantId }) => tenantId,
        device_id: ({ deviceId }) => deviceId,
        socket: ({ socket }) => socket,
        port: ({ port }) => port,
        order_no: ({ orderNo }) => orderNo,
      }),
    ),
  )

/** The order on a port that has no end yet. */
export async function runningOrder(sql: Sql, port: PortOf): Promise<RunningOrder | undefined> {
  const [row] = await runningRows(sql, [port])
  return row
}

// ---- into the tables ----------------------------------------------------------------------------------------------

interface StoredRow {
  readonly request: IntakeRequest
  readonly planned: Planned
  readonly commandId: string
}

const ORDERS = {
  order_no: 'text',
  tenant_id: 'text',
  device_id: 'text',
  protocol: 'text',
  socket: 'int4',
  port: 'int4',
  order_key: 'text',
  mode: 'text',
  origin: 'text',
  card_id: 'text',
  request: 'json',
  tariff: 'json',
  command_id: 'text',
} as const satisfies Columns
const INSERT_ORDERS = `
  insert into orders (${Object.keys(ORDERS).join(', ')}, wire_hex, state)
  select ${Object.keys(ORDERS).join(', ')}, order_key, 'pending' from ${source(ORDERS)} order by ordinal`

const COMMANDS = {
  command_id: 'text',
  tenant_id: 'text',
  device_id: 'text',
  name: 'text',
  params: 'json',
  kind: 'text',
  wire: 'json',
  priority: 'int4',
  idempotency_key: 'text',
  request_digest: 'text',
  order_no: 'text',
  requested_by: 'text',
  expires_at: 'time',
  status: 'int4',
  finished_at: 'time',
  result: 'json',
} as const satisfies Columns
const INSERT_COMMANDS = `
  insert into outbound_queue (${Object.keys(COMMANDS).join(', ')})
  select ${Object.keys(COMMANDS).join(', ')} from ${source(COMMANDS)} order by ordinal`

const AUDIT_LINES = {
  tenant_id: 'text',
  actor: 'text',
  role: 'text',
  action: 'text',
  target: 'text',
  request_id: 'text',
  remote_address: 'text',
  details: 'json',
} as const satisfies Columns
const INSERT_AUDIT_LINES = `
  insert into audit_logs (${Object.keys(AUDIT_LINES).join(', ')})
  select ${Object.keys(AUDIT_LINES).join(', ')} from ${source(AUDIT_LINES)} order by ordinal`

async function insert(tx: TransactionSql, rows: readonly StoredRow[], nowMs: number): Promise<void> {
  const orders = rows.flatMap((row) => {
    const { order } = row.planned
    return order === undefined ? [] : [{ ...row, order }]
  })
  await all([
    orders.length > 0 &&
      run(
        tx,
        INSERT_ORDERS,
        parameters(
          ORDERS,
          pick(orders, {
            order_no: ({ planned }) => planned.orderNo,
            tenant_id: ({ request }) => request.caller.key.tenant,
            device_id: ({ request }) => request.target.deviceId,
            protocol: ({ request }) => request.target.protocol.name,
            socket: ({ planned }) => planned.socket,
            port: ({ planned }) => planned.port,
            order_key: ({ order }) => order.orderKey,
            mode: ({ order }) => order.mode,
            origin: ({ order }) => (order.cardId === null ? 'online' : 'card'),
            card_id: ({ order }) => order.cardId,
            request: ({ order }) => JSON.stringify(order.request),
            tariff: ({ order }) => (order.tariff === null ? null : JSON.stringify(order.tariff)),
            command_id: ({ commandId }) => commandId,
          }),
        ),
      ),
    run(
      tx,
      INSERT_COMMANDS,
      parameters(
        COMMANDS,
        pick(rows, {
          command_id: ({ commandId }) => commandId,
          tenant_id: ({ request }) => request.caller.key.tenant,
          device_id: ({ request }) => request.target.deviceId,
          name: ({ planned }) => planned.name,
          params: ({ planned }) => JSON.stringify(planned.params),
          kind: ({ planned }) => planned.kind,
          wire: ({ planned: { fields, wireHex, socket, port } }) =>
            JSON.stringify({ fields, wire_hex: wireHex, socket, port }),
          priority: ({ planned }) => planned.priority,
          idempotency_key: ({ request }) => request.caller.idempotencyKey,
          request_digest: ({ request }) => request.digest,
          order_no: ({ planned }) => planned.orderNo,
          requested_by: ({ request }) => request.caller.key.id,
          expires_at: ({ planned }) => planned.expiresMs,
          status: ({ planned }) => (planned.isDone === true ? COMMAND_STATUS.acked : COMMAND_STATUS.queued),
          finished_at: ({ planned }) => (planned.isDone === true ? nowMs : null),
          result: ({ planned }) => (planned.isDone === true ? JSON.stringify({ reason: START_CANCELLED }) : null),
        }),
      ),
    ),
    run(
      tx,
      INSERT_AUDIT_LINES,
      parameters(
        AUDIT_LINES,
        pick(rows, {
          tenant_id: ({ request }) => request.caller.key.tenant,
          actor: ({ request }) => request.caller.key.id,
          role: ({ request }) => request.caller.key.role,
          action: ({ request }) => `${request.route}.requested`,
          target: ({ request }) => request.target.deviceId,
          request_id: ({ request }) => request.caller.requestId,
          remote_address: ({ request }) => request.caller.remoteAddress,
          details: ({ planned: { name, params, orderNo }, commandId }) =>
            JSON.stringify({ name, params, command_id: commandId, order_no: orderNo }),
        }),
      ),
    ),
  ])
}
