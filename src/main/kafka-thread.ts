/** The thread of the Kafka sink, seen from main; there is none without KAFKA_BROKERS. */
import type { KafkaThreadOptions } from '../../workers/kafka/messages.ts'
import type { ProducerOptions } from '../../workers/kafka/producer.ts'
import type { Config } from '../config/config.ts'
import type { Log } from './log.ts'
import { SideThread } from './side-thread.ts'

export class KafkaThread extends SideThread {
  constructor(options: KafkaThreadOptions, log: Log) {
    super({
      name: 'kafka',
      entry: new URL('../../workers/kafka/index.ts', import.meta.url),
      data: options,
      log,
      failed: { event: 'kafka.failed', msg: 'kafka thread failed' },
      replaced: { event: 'kafka.replaced', msg: 'kafka thread died, starting another' },
    })
  }
}

/** How the brokers are reached. */
export function kafkaProducerOptions(config: Config): ProducerOptions {
  const { kafkaSaslMechanism: mechanism, kafkaSaslUsername: username, kafkaSaslPassword: password } = config
  return {
    brokers: config.kafkaBrokers,
    topic: config.kafkaTopic,
    clientId: config.kafkaClientId,
    ssl: config.kafkaSsl
      ? { caPath: config.kafkaSslCaPath, certPath: config.kafkaSslCertPath, keyPath: config.kafkaSslKeyPath }
      : undefined,
    sasl: mechanism === 'none' ? undefined : { mechanism, username: username ?? '', password: password ?? '' },
  }
}
