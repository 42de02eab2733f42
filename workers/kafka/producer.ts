/**
 * The brokers through `@platformatic/kafka`: the only file that loads it, and only this thread loads the file. Acks of
 * all in-sync replicas, idempotent, Java's partitioner, so that keys lie where other producers would put them.
 */
import { readFileSync } from 'node:fs'
import { compatibilityPartitioner, Producer } from '@platformatic/kafka'
import type { Envelope } from './envelope.ts'
import { faultOf, KafkaFault } from './fault.ts'
import type { EventProducer } from './sink.ts'

export interface ProducerOptions {
  readonly brokers: readonly { readonly host: string; readonly port: number }[]
  readonly topic: string
  readonly clientId: string
  /** Undefined: plain text. Paths are read for each connection, so that a renewed certificate needs no restart. */
  readonly ssl:
    | { readonly caPath: string | null; readonly certPath: string | null; readonly keyPath: string | null }
    | undefined
  readonly sasl:
    | {
        readonly mechanism: 'PLAIN' | 'SCRAM-SHA-256' | 'SCRAM-SHA-512'
        readonly username: string
        readonly password: string
      }
    | undefined
}

const CONNECT_MS_MAX = 5_000
/** Brokers may take this long to replicate. */
const ACK_MS_MAX = 10_000
/** The library retries by itself, at several levels; whatever it does, we begin anew after this long. */
const OPERATION_MS_MAX = 30_000
/** The library takes less than two for no limit at all, and gathers an error for each try. */
const RETRIES = 2
const RETRY_MS = 200

/** @throws KafkaFault certificates cannot be read */
export function createProducer({ brokers, topic, clientId, ssl, sasl }: ProducerOptions): EventProducer {
  const secrets = sasl === undefined ? [] : [sasl.password]
  let producer: Producer | undefined
  const open = (): Producer => {
    producer ??= new Producer({
      clientId,
      bootstrapBrokers: brokers.map(({ host, port }) => ({ host, port })),
      idempotent: true,
      partitioner: compatibilityPartitioner,
      // brokers decide whether they do it
      autocreateTopics: true,
      retries: RETRIES,
      retryDelay: RETRY_MS,
      connectTimeout: CONNECT_MS_MAX,
      timeout: ACK_MS_MAX,
      requestTimeout: ACK_MS_MAX + 5_000,
      ...(ssl === undefined ? {} : { tls: certificates(ssl) }),
      ...(sasl === undefined ? {} : { sasl }),
    })
    return producer
  }
  const within = async (work: (opened: Producer) => Promise<unknown>): Promise<void> => {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new KafkaFault('unreachable', `no answer within ${OPERATION_MS_MAX} ms`)),
        OPERATION_MS_MAX,
      )
    })
    try {
      await Promise.race([work(open()), late])
    } catch (error) {
      throw faultOf(error, secrets)
    } finally {
      clearTimeout(timer)
    }
  }
  return {
    connect: () => within((opened) => opened.metadata({ topics: [topic] })),
    send: (batch) => within((opened) => opened.send({ messages: batch.map((event) => messageOf(topic, event)) })),
    close() {
      producer?.close(true).catch(() => {})
    },
  }
}

const messageOf = (topic: string, { key, value, headers }: Envelope) => ({
  topic,
  key,
  value,
  headers: headers as Map<Buffer, Buffer>,
})

function certificates({ caPath, certPath, keyPath }: NonNullable<ProducerOptions['ssl']>) {
  const read = (path: string): Buffer => {
    try {
      return readFileSync(path)
    } catch (error) {
      throw new KafkaFault('access', `a certificate or key cannot be read: ${(error as Error).message}`)
    }
  }
  return {
    ...(caPath === null ? {} : { ca: read(caPath) }),
    ...(certPath === null ? {} : { cert: read(certPath) }),
    ...(keyPath === null ? {} : { key: read(keyPath) }),
  }
}
