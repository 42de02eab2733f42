/** What main and the Kafka thread say to one another. */
import type { ProducerOptions } from './producer.ts'
import type { SinkOptions } from './sink.ts'

export interface KafkaThreadOptions {
  readonly sink: SinkOptions
  readonly producer: ProducerOptions
  readonly databaseUrl: string
  readonly counters: SharedArrayBuffer
  readonly countersThread: number
  readonly log: { readonly level: string; readonly serviceName: string; readonly env: string }
}

export type ToKafka =
  /** Events were stored. */
  | { readonly kind: 'wake' }
  /** Nothing new; the batch under way has this long, then it is cut off and sent again after the next start. */
  | { readonly kind: 'stop'; readonly withinMs: number }

export type FromKafka = { readonly kind: 'ready' } | { readonly kind: 'stopped' }
