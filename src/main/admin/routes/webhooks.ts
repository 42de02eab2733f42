/**
 * Webhook endpoints, the log of their deliveries, and redelivery. What sends them is the relay thread (workers/relay);
 * here rows change, and it is woken.
 */
import { randomUUID } from 'node:crypto'
import * as z from 'zod'
import {
  countWindow,
  endRest,
  queueAgain,
  queueDeliveryAgain,
  queueTest,
  removeEndpoint,
} from '../../../../workers/relay/store.ts'
import { HttpError } from '../../../errors/errors.ts'
import { EVENT_TYPES, eventObjectOf } from '../../../events/event-object.ts'
import { type GuardOptions, refusalOf } from '../../../webhooks/address-guard.ts'
import { makeSecret } from '../../../webhooks/sign.ts'
import { digestOf } from '../../commands/request-digest.ts'
import { databaseErrorCode, type Sql, type TransactionSql } from '../../database/connect.ts'
import { writeAudit } from '../audit.ts'
import { defineRoute, type Route } from '../route.ts'
import {
  assignments,
  decodeCursor,
  encodeCursor,
  inOrderOfTime,
  pageOf,
  timeOf,
  timeOrNull,
  zDeviceId,
  zPage,
  zPageQuery,
  zTime,
  zTimeInput,
} from '../shapes.ts'

export interface WebhookParts {
  readonly sql: Sql
  readonly guard: GuardOptions
  /** Rows changed that the relay should look at. */
  readonly wake: () => void
}

const STATUSES = ['active', 'paused', 'stopped'] as const
const DELIVERY_STATUSES = ['pending', 'delivered', 'dead', 'cancelled'] as const
const ENDPOINTS_MAX = 100
const UNIQUE_VIOLATION = '23505'
/** Deliveries of one redelivery by window. */
const WINDOW_EVENTS_MAX = 10_000
const OVERLAP_S_DEFAULT = 86_400
const OVERLAP_S_MAX = 2_592_000
const TEST_EVENT_TYPE = 'webhook.test'

export const zWebhook = z.object({
  id: z.string().describe('Sent as X-Api-Key with every delivery'),
  url: z.string(),
  description: z.string().nullable(),
  event_types: z.array(z.string()).describe('Empty: all'),
  device_ids: z.array(z.string()).describe('Empty: all of the tenant'),
  status: z
    .enum(STATUSES)
    .describe(
      'paused: deliveries wait; stopped: none are made (410, or failing for days; event webhook.disabled), redeliver afterwards',
    ),
  stop_reason: z.string().nullable(),
  retry_schedule_s: z
    .array(z.number())
    .nullable()
    .describe('Delays before the second, third .. attempt, each ± 20 %; null: WEBHOOK_RETRY_SCHEDULE_S of the gateway'),
  timeout_s: z
    .number()
    .nullable()
    .describe('Without a status line by then an attempt has failed; null: WEBHOOK_TIMEOUT_MS'),
  concurrency: z.int().nullable().describe('Requests under way; null: WEBHOOK_CONCURRENCY'),
  failing_since: zTime.nullable().describe('No attempt has succeeded since; null: the last one did'),
  last_error: z.string().nullable(),
  resting_until: zTime
    .nullable()
    .describe(
      'Until then nothing is sent, the receiver asked for it (Retry-After); redeliver, test, another url or status active end it',
    ),
  previous_secret_until: zTime.nullable().describe('Until then the secret before the rotation signs as well'),
  created_at: zTime,
  updated_at: zTime,
})
type Webhook = z.input<typeof zWebhook>
const zSecret = z
  .string()
  .describe('Shown this once. X-Signature: the whole text is the key; webhook-signature: the base64 behind whsec_ is')
const zWebhookWithSecret = zWebhook.extend({ secret: zSecret })

export const zWebhookDelivery = z.object({
  delivery_id: z.int(),
  event_id: z.string(),
  event_type: z.string(),
  replay: z.int().describe('0: the first delivery, n: the n-th redelivery'),
  status: z.enum(DELIVERY_STATUSES),
  attempts: z.int(),
  next_attempt_at: zTime.nullable().describe('null: ended, or waits for an earlier one of its order or device'),
  last_status: z.int().nullable(),
  last_error: z.string().nullable(),
  attempt_log: z.array(
    z.object({
      at: zTime,
      status: z.int().nullable(),
      error: z.string().nullable(),
      duration_ms: z.int(),
      answer: z.string().describe('First bytes of the body'),
    }),
  ),
  created_at: zTime,
  finished_at: zTime.nullable(),
})
type Delivery = z.input<typeof zWebhookDelivery>

const zUrl = z.string().min(1).max(2_048).describe('http or https; an address of the public internet unless configured')
const zEventTypes = z.array(z.enum(EVENT_TYPES)).max(EVENT_TYPES.length)
const zDeviceIds = z.array(zDeviceId).max(1_000)
const zDescription = z.string().max(500).nullable()

/** null: as the gateway is configured. The same bounds as there. */
const zRetrySchedule = z.array(z.number().min(0.1).max(604_800)).min(1).max(50).nullable()
const zTimeout = z.number().min(0.05).max(60).multipleOf(0.001).nullable()
const zConcurrency = z.int().min(1).max(256).nullable()

const zCreate = z.strictObject({
  url: zUrl,
  description: zDescription.optional(),
  event_types: zEventTypes.default([]),
  device_ids: zDeviceIds.default([]),
  retry_schedule_s: zRetrySchedule.default(null),
  timeout_s: zTimeout.default(null),
  concurrency: zConcurrency.default(null),
})
const zChange = z.strictObject({
  url: zUrl.optional(),
  description: zDescription.optional(),
  event_types: zEventTypes.optional(),
  device_ids: zDeviceIds.optional(),
  retry_schedule_s: zRetrySchedule.optional(),
  timeout_s: zTimeout.optional(),
  concurrency: zConcurrency.optional(),
  status: z.enum(['active', 'paused']).optional().describe('active also starts a stopped endpoint again'),
})
const zParams = z.strictObject({ id: z.string().min(1).max(64) })
const zRedeliver = inOrderOfTime(
  z.strictObject({
    delivery_id: z.int().min(1).optional(),
    event_id: z.string().min(1).max(64).optional(),
    from: zTimeInput.optional(),
    to: zTimeInput.optional(),
  }),
)
const zQueued = z.object({
  queued: z.int().describe('How many'),
  delivery_ids: z.array(z.int()).describe('The first 500 of them'),
})
const zRotate = z.strictObject({
  overlap_s: z
    .int()
    .min(0)
    .max(OVERLAP_S_MAX)
    .default(OVERLAP_S_DEFAULT)
    .describe(`How long the old secret signs as well; default ${OVERLAP_S_DEFAULT}`),
})
const zDeliveryQuery = z.strictObject({
  ...zPageQuery,
  status: z.enum(DELIVERY_STATUSES).optional(),
  event_id: z.string().max(64).optional(),
})

interface WebhookRow
  extends Omit<
    Webhook,
    'id' | 'failing_since' | 'resting_until' | 'previous_secret_until' | 'created_at' | 'updated_at'
  > {
  endpoint_id: string
  failing_since: Date | null
  resting_until: Date | null
  previous_secret_until: Date | null
  created_at: Date
  updated_at: Date
}
/** What a repeat of the request that made an endpoint needs of its row. */
interface Earlier {
  readonly endpoint_id: string
  readonly created_at: Date
  readonly secret: string
  readonly request_digest: string
  readonly is_rotated: boolean
}
interface DeliveryRow extends Omit<Delivery, 'next_attempt_at' | 'created_at' | 'finished_at'> {
  next_attempt_at: Date | null
  created_at: Date
  finished_at: Date | null
}

export function webhookRoutes({ sql, guard, wake }: WebhookParts): readonly Route[] {
  const columns = sql`endpoint_id, url, description, event_types, device_ids, status, stop_reason, retry_schedule_s,
    timeout_ms / 1000.0::float8 as timeout_s, concurrency, failing_since, last_error,
    case when rest_until > now() then rest_until end as resting_until,
    case when previous_secret_until > now() then previous_secret_until end as previous_secret_until, created_at, updated_at`

  /** @throws HttpError NOT_FOUND also what is another tenant's */
  async function find(from: Sql | TransactionSql, id: string, tenant: string, isLocked = false): Promise<WebhookRow> {
    const [row] = await from<WebhookRow[]>`
      select ${columns} from webhook_endpoints where endpoint_id = ${id} and tenant_id = ${tenant}
      ${isLocked ? from`for update` : from``}`
    if (row === undefined) throw new HttpError('NOT_FOUND', `no webhook ${id}`)
    return row
  }

  const checkUrl = (url: string): string => {
    const refusal = refusalOf(url, guard)
    if (refusal !== undefined) throw new HttpError('INVALID_ARGUMENT', `body.url: ${refusal}`)
    return new URL(url).href
  }
  const refuseStopped = ({ status }: WebhookRow) => {
    if (status === 'stopped')
      throw new HttpError('FAILED_PRECONDITION', 'the webhook is stopped; start it with PATCH {"status":"active"}', {
        reason: 'webhook_stopped',
      })
  }

  /** Before the endpoint's row is locked: the lanes come first, as in the relay. */
  const wakeUp = async (tx: TransactionSql, row: WebhookRow) => {
    if (row.resting_until !== null) await endRest(tx, row.endpoint_id)
  }

  return [
    defineRoute({
      method: 'GET',
      path: '/api/v1/webhooks',
      role: 'admin',
      summary: 'Webhook endpoints, by id',
      query: z.strictObject(zPageQuery),
      response: zPage(zWebhook),
      handle: async ({ key, query }) => {
        const { limit, cursor } = query
        const [after = ''] = decodeCursor('webhooks', ['text'], cursor)
        const rows = await sql<WebhookRow[]>`
          select ${columns} from webhook_endpoints where tenant_id = ${key.tenant} and endpoint_id > ${after}
          order by endpoint_id limit ${limit + 1}`
        return pageOf(rows, limit, webhookOf, (last) => encodeCursor('webhooks', [last.endpoint_id]))
      },
    }),
    defineRoute({
      method: 'POST',
      path: '/api/v1/webhooks',
      role: 'admin',
      summary: 'Make an endpoint; the answer shows its secret, once',
      description:
        'Gets every event from now on that its filter wants. Each request is signed twice: X-Signature as in this API, ' +
        'webhook-signature by Standard Webhooks. Deliver once by event_id: a request may come again. A repeat by ' +
        'Idempotency-Key gets the first answer, its secret included, until the secret is rotated (then CONFLICT with ' +
        'details.id) or the endpoint removed (then it is made anew).',
      body: zCreate,
      response: zWebhookWithSecret,
      status: 201,
      takesIdempotencyKey: true,
      errors: ['CONFLICT', 'FAILED_PRECONDITION'],
      handle: async ({ key, body, requestId, remoteAddress, idempotencyKey }) => {
        const digest = digestOf('webhook', '', body)
        const make = async (tx: TransactionSql) => {
          if (idempotencyKey !== undefined) {
            // a rotation leaves the secret before it in the row, also when its overlap is over
            const [earlier] = await tx<Earlier[]>`
              select endpoint_id, created_at, secret, request_digest, previous_secret is not null as is_rotated
              from webhook_endpoints where tenant_id = ${key.tenant} and idempotency_key = ${idempotencyKey}`
            if (earlier !== undefined) {
              const details = { id: earlier.endpoint_id }
              if (earlier.request_digest !== digest)
                throw new HttpError('CONFLICT', 'this Idempotency-Key belongs to another webhook', details)
              if (earlier.is_rotated)
                throw new HttpError(
                  'CONFLICT',
                  'the secret was rotated since; the first answer is no longer true',
                  details,
                )
              return firstAnswer(body, earlier)
            }
          }
          const url = checkUrl(body.url)
          const id = `wh_${randomUUID().replaceAll('-', '')}`
          const secret = makeSecret()
          await tx`insert into tenants (tenant_id, name) values (${key.tenant}, ${key.tenant}) on conflict do nothing`
          const [{ count } = { count: 0 }] = await tx<{ count: number }[]>`
            select count(*)::int as count from webhook_endpoints where tenant_id = ${key.tenant}`
          if (count >= ENDPOINTS_MAX)
            throw new HttpError('FAILED_PRECONDITION', `a tenant has at most ${ENDPOINTS_MAX} webhooks`)
          const [made] = await tx<WebhookRow[]>`
            insert into webhook_endpoints
              (endpoint_id, tenant_id, url, description, event_types, device_ids, retry_schedule_s, timeout_ms,
                concurrency, secret, created_by, idempotency_key, request_digest, from_cursor)
            values (${id}, ${key.tenant}, ${url}, ${body.description ?? null}, ${body.event_types}, ${body.device_ids},
              ${body.retry_schedule_s}, ${timeoutMsOf(body.timeout_s)}, ${body.concurrency}, ${secret}, ${key.id},
              ${idempotencyKey ?? null}, ${digest}, (select coalesce(max(cursor), 0) from events))
            returning ${columns}`
          await writeAudit(tx, {
            key,
            action: 'webhook.made',
            target: id,
            requestId,
            remoteAddress,
            details: { ...body, url },
          })
          return { ...webhookOf(made!), secret }
        }
        try {
          return await sql.begin(make)
        } catch (error) {
          // the same request was faster by a moment: its answer is there now
          if (databaseErrorCode(error) !== UNIQUE_VIOLATION) throw error
          return await sql.begin(make)
        }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/webhooks/{id}',
      role: 'admin',
      summary: 'One endpoint',
      params: zParams,
      response: zWebhook,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params }) => webhookOf(await find(sql, params.id, key.tenant)),
    }),
    defineRoute({
      method: 'PATCH',
      path: '/api/v1/webhooks/{id}',
      role: 'admin',
      summary: 'Change, pause or start an endpoint',
      description:
        'What is left out stays. While stopped nothing was queued: redeliver the window after starting. Another url and ' +
        'status active end a rest that the receiver asked for.',
      params: zParams,
      body: zChange,
      bodyIsOptional: true,
      response: zWebhook,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params, body, requestId, remoteAddress }) => {
        const { url: newUrl, timeout_s: timeoutS, ...rest } = body
        const url = newUrl === undefined ? undefined : checkUrl(newUrl)
        const row = await sql.begin(async (tx) => {
          if (url !== undefined || body.status === 'active') await wakeUp(tx, await find(tx, params.id, key.tenant))
          const { status } = await find(tx, params.id, key.tenant, true)
          const changes = {
            ...rest,
            ...(url === undefined ? {} : { url }),
            ...(timeoutS === undefined ? {} : { timeout_ms: timeoutMsOf(timeoutS) }),
          }
          const isStarted = body.status === 'active' && status !== 'active'
          const [changed] = await tx<WebhookRow[]>`
            update webhook_endpoints set updated_at = now() ${assignments(tx, changes)}
              ${isStarted ? tx`, stop_reason = null, failing_since = null, last_error = null` : tx``}
              ${status === 'stopped' && body.status !== undefined ? tx`, from_cursor = (select coalesce(max(cursor), 0) from events)` : tx``}
            where endpoint_id = ${params.id} returning ${columns}`
          await writeAudit(tx, {
            key,
            action: 'webhook.changed',
            target: params.id,
            requestId,
            remoteAddress,
            details: body,
          })
          return changed!
        })
        wake()
        return webhookOf(row)
      },
    }),
    defineRoute({
      method: 'DELETE',
      path: '/api/v1/webhooks/{id}',
      role: 'admin',
      summary: 'Remove an endpoint, its deliveries and their log',
      params: zParams,
      response: zWebhook,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params, requestId, remoteAddress }) =>
        await sql.begin(async (tx) => {
          const row = await find(tx, params.id, key.tenant)
          await removeEndpoint(tx, params.id)
          const details = { url: row.url }
          await writeAudit(tx, { key, action: 'webhook.removed', target: params.id, requestId, remoteAddress, details })
          return webhookOf(row)
        }),
    }),
    defineRoute({
      method: 'POST',
      path: '/api/v1/webhooks/{id}/rotate',
      role: 'admin',
      summary: 'A new secret; the answer shows it, once',
      description:
        'Until overlap_s is over the old secret signs as well: second signature in webhook-signature, X-Signature-Previous.',
      params: zParams,
      body: zRotate,
      bodyIsOptional: true,
      response: zWebhookWithSecret,
      errors: ['NOT_FOUND'],
      handle: async ({ key, params, body, requestId, remoteAddress }) => {
        const secret = makeSecret()
        const row = await sql.begin(async (tx) => {
          await find(tx, params.id, key.tenant, true)
          const [changed] = await tx<WebhookRow[]>`
            update webhook_endpoints set secret = ${secret}, previous_secret = secret, updated_at = now(),
              previous_secret_until = now() + ${body.overlap_s} * interval '1 s'
            where endpoint_id = ${params.id} returning ${columns}`
          await writeAudit(tx, {
            key,
            action: 'webhook.rotated',
            target: params.id,
            requestId,
            remoteAddress,
            details: body,
          })
          return changed!
        })
        return { ...webhookOf(row), secret }
      },
    }),
    defineRoute({
      method: 'POST',
      path: '/api/v1/webhooks/{id}/test',
      role: 'admin',
      summary: `Deliver an event of type ${TEST_EVENT_TYPE}`,
      description: 'It goes the way of every event; what became of it stands in the deliveries.',
      params: zParams,
      response: zQueued,
      status: 202,
      errors: ['NOT_FOUND', 'FAILED_PRECONDITION'],
      handle: async ({ key, params, requestId, remoteAddress }) => {
        const deliveryId = await sql.begin(async (tx) => {
          await wakeUp(tx, await find(tx, params.id, key.tenant))
          refuseStopped(await find(tx, params.id, key.tenant, true))
          const event = eventObjectOf({
            event_id: randomUUID().replaceAll('-', ''),
            event_type: TEST_EVENT_TYPE,
            device_id: '00000000',
            at: new Date(),
            data: { message: 'a test of this webhook, asked for by its owner' },
          })
          const id = await queueTest(tx, params.id, event.event_id, { ...event })
          const details = { delivery_id: id }
          await writeAudit(tx, { key, action: 'webhook.tested', target: params.id, requestId, remoteAddress, details })
          return id
        })
        wake()
        return { queued: 1, delivery_ids: [deliveryId] }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/api/v1/webhooks/{id}/deliveries',
      role: 'admin',
      summary: 'Deliveries of an endpoint with their attempts, the newest first',
      params: zParams,
      query: zDeliveryQuery,
      response: zPage(zWebhookDelivery),
      errors: ['NOT_FOUND'],
      handle: async ({ key, params, query }) => {
        await find(sql, params.id, key.tenant)
        const { limit, cursor, status, event_id: eventId } = query
        const [before] = decodeCursor('deliveries', ['number'], cursor)
        const rows = await sql<DeliveryRow[]>`
          select delivery_id, event_id, event_type, replay, status, attempts, next_attempt_at, last_status, last_error,
            attempt_log, created_at, finished_at
          from webhook_deliveries where endpoint_id = ${params.id}
            ${before === undefined ? sql`` : sql`and delivery_id < ${Number(before)}`}
            ${status === undefined ? sql`` : sql`and status = ${status}`}
            ${eventId === undefined ? sql`` : sql`and event_id = ${eventId}`}
          order by delivery_id desc limit ${limit + 1}`
        return pageOf(
          rows,
          limit,
          (row) => ({
            ...row,
            next_attempt_at: timeOrNull(row.next_attempt_at),
            created_at: timeOf(row.created_at),
            finished_at: timeOrNull(row.finished_at),
          }),
          (last) => encodeCursor('deliveries', [String(last.delivery_id)]),
        )
      },
    }),
    defineRoute({
      method: 'POST',
      path: '/api/v1/webhooks/{id}/redeliver',
      role: 'admin',
      summary: 'Deliver again: one delivery, one event, or a window',
      description:
        'delivery_id (dead or delivered: once more; waiting for its next attempt: at once), or event_id, or from and to ' +
        `(RFC 3339, by when it happened, what the filter wants, at most ${WINDOW_EVENTS_MAX} events). Behind what waits; an endpoint that rests (Retry-After) is asked again at once.`,
      params: zParams,
      body: zRedeliver,
      response: zQueued,
      status: 202,
      errors: ['NOT_FOUND', 'FAILED_PRECONDITION'],
      handle: async ({ key, params, body, requestId, remoteAddress }) => {
        const { delivery_id: deliveryId, event_id: eventId, from, to } = body
        const given = [deliveryId !== undefined, eventId !== undefined, from !== undefined || to !== undefined]
        if (given.filter(Boolean).length !== 1 || (from === undefined) !== (to === undefined))
          throw new HttpError('INVALID_ARGUMENT', 'body: exactly one of delivery_id, event_id, or from with to')
        const ids = await sql.begin(async (tx) => {
          const row = await find(tx, params.id, key.tenant)
          refuseStopped(row)
          await wakeUp(tx, row)
          let queued: readonly number[]
          if (deliveryId !== undefined) {
            const id = await queueDeliveryAgain(tx, params.id, deliveryId)
            queued = id === undefined ? [] : [id]
          } else if (eventId !== undefined) queued = await queueAgain(tx, params.id, { eventId })
          else {
            if ((await countWindow(tx, params.id, from!, to!, WINDOW_EVENTS_MAX)) > WINDOW_EVENTS_MAX)
              throw new HttpError(
                'INVALID_ARGUMENT',
                `the window holds more than ${WINDOW_EVENTS_MAX} events: narrow it`,
              )
            queued = await queueAgain(tx, params.id, { from: from!, to: to! })
          }
          if (queued.length === 0 && from === undefined)
            throw new HttpError('NOT_FOUND', `no such ${deliveryId === undefined ? 'event' : 'delivery'}`)
          const details = { ...body, queued: queued.length }
          await writeAudit(tx, {
            key,
            action: 'webhook.redelivered',
            target: params.id,
            requestId,
            remoteAddress,
            details,
          })
          return queued
        })
        wake()
        return { queued: ids.length, delivery_ids: ids.slice(0, 500) }
      },
    }),
  ]
}

const timeoutMsOf = (timeoutS: number | null) => (timeoutS === null ? null : Math.round(timeoutS * 1_000))

/** What the request that made the endpoint was answered, whatever became of the endpoint since. */
function firstAnswer(body: z.output<typeof zCreate>, { endpoint_id: id, created_at, secret }: Earlier) {
  const timeoutMs = timeoutMsOf(body.timeout_s)
  return {
    ...body,
    id,
    url: new URL(body.url).href,
    description: body.description ?? null,
    timeout_s: timeoutMs === null ? null : timeoutMs / 1_000,
    status: 'active' as const,
    stop_reason: null,
    failing_since: null,
    last_error: null,
    resting_until: null,
    previous_secret_until: null,
    created_at: timeOf(created_at),
    updated_at: timeOf(created_at),
    secret,
  }
}

function webhookOf({ endpoint_id, ...row }: WebhookRow): Webhook {
  return {
    id: endpoint_id,
    ...row,
    failing_since: timeOrNull(row.failing_since),
    resting_until: timeOrNull(row.resting_until),
    previous_secret_until: timeOrNull(row.previous_secret_until),
    created_at: timeOf(row.created_at),
    updated_at: timeOf(row.updated_at),
  }
}
