/** What can be wrong between the sink and the brokers. Knows the client library's errors by their fields only. */
import type { KAFKA_FAILURES } from '../../src/metrics/catalogue.ts'

export type FaultReason = (typeof KAFKA_FAILURES)[number]

/** `record`: too large as it is, now and for ever; everything else may pass with time or by an operator's hand. */
export class KafkaFault extends Error {
  readonly reason: FaultReason

  constructor(reason: FaultReason, message: string) {
    super(message)
    this.name = 'KafkaFault'
    this.reason = reason
  }
}

/** Names of the Kafka protocol. */
const RECORD = new Set(['MESSAGE_TOO_LARGE', 'RECORD_LIST_TOO_LARGE'])
const TOPIC = new Set(['UNKNOWN_TOPIC_OR_PARTITION', 'INVALID_TOPIC_EXCEPTION'])
const ACCESS = new Set([
  'TOPIC_AUTHORIZATION_FAILED',
  'CLUSTER_AUTHORIZATION_FAILED',
  'UNSUPPORTED_SASL_MECHANISM',
  'ILLEGAL_SASL_STATE',
  'SASL_AUTHENTICATION_FAILED',
  'SECURITY_DISABLED',
])
const ACCESS_CODES = /CERT|TLS|SSL|SELF_SIGNED|UNABLE_TO_|PLT_KFK_AUTHENTICATION/
const SAID_MAX = 400

interface Told {
  readonly message: string
  readonly code: string
  readonly apiId: string
}

/** @param secrets replaced wherever a message repeats one */
export function faultOf(error: unknown, secrets: readonly string[]): KafkaFault {
  if (error instanceof KafkaFault) return error
  const told = [...chainOf(error)]
  let said = [...new Set(told.map(({ message }) => message))].join(': ')
  for (const secret of secrets) if (secret !== '') said = said.replaceAll(secret, '***')
  const message = said.length > SAID_MAX ? `${said.slice(0, SAID_MAX)}…` : said
  const has = (names: ReadonlySet<string>) => told.some(({ apiId }) => names.has(apiId))
  if (has(RECORD)) return new KafkaFault('record', message)
  if (has(ACCESS) || told.some(({ code, message }) => ACCESS_CODES.test(code) || /\bTLS\b/.test(message)))
    return new KafkaFault('access', message)
  if (has(TOPIC) || told.some(({ message }) => message.startsWith('Unknown topic'))) {
    return new KafkaFault('topic', `the topic is not there and the brokers do not create it: ${message}`)
  }
  if (told.some(({ code }) => /^(?:E[A-Z]+|PLT_KFK_NETWORK|PLT_KFK_TIMEOUT)$/.test(code)))
    return new KafkaFault('unreachable', message)
  return new KafkaFault('other', message)
}

/** The error, what it gathers, and what caused it. */
function* chainOf(error: unknown, depth = 0): Generator<Told> {
  if (typeof error !== 'object' || error === null || depth > 6) {
    if (depth === 0) yield { message: String(error), code: '', apiId: '' }
    return
  }
  const { message, code, apiId, errors, cause } = error as Readonly<Record<string, unknown>>
  yield { message: String(message ?? ''), code: String(code ?? ''), apiId: String(apiId ?? '') }
  if (Array.isArray(errors)) for (const one of errors) yield* chainOf(one, depth + 1)
  yield* chainOf(cause, depth + 1)
}
