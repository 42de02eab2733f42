/**
 * Every series of `GET /metrics`, each declared once. Names lack the prefix `pilegate_` here. No device id is ever a
 * label: ten thousand of them would cost a scrape 80 ms on the main thread.
 *
 * `from: 'threads'`: counted in shared memory (src/shared/counters.ts), where every combination of label values must be
 * known at start. `from: 'main'`: asked of, or observed by, the main thread when somebody scrapes.
 */

/** Names that other layers own and the label values are made of; src/main/vocabulary.ts gathers them. */
export interface Vocabulary {
  readonly protocols: readonly {
    readonly name: string
    /** Command names by direction. */
    readonly uplinks: readonly string[]
    readonly downlinks: readonly string[]
  }[]
  readonly noiseReasons: readonly string[]
  readonly closeReasons: readonly string[]
  readonly fencedActions: readonly string[]
  readonly commandOutcomes: readonly string[]
  readonly jobOutcomes: readonly string[]
  readonly lanes: readonly string[]
  readonly tables: readonly string[]
}

/** Everything the label values of the `threads` series follow from. */
export interface LabelSource extends Vocabulary {
  readonly threads: readonly string[]
}

/** What became of one row: label values of rows_total{result}. */
export const ROW_RESULTS = ['stored', 'repeated', 'fenced', 'put_aside', 'dropped'] as const
/** What became of one settlement: repeated changes nothing; contradicting is put aside and answered. */
export const SETTLEMENT_RESULTS = ['stored', 'repeated', 'contradicting', 'opaque', 'put_aside'] as const
export const ORDER_OUTCOMES = [
  'started',
  'settled',
  'estimated',
  'corrected',
  'failed',
  'cancelled',
  'overdrawn',
  'refused_move',
] as const
const IDENTIFY_FAILURES = ['identify_timeout', 'unknown_protocol'] as const
/** What became of an attempt to deliver a webhook: failed is tried again; stopped: 410, and its endpoint with it. */
export const WEBHOOK_RESULTS = ['delivered', 'failed', 'dead', 'stopped'] as const
/** What became of an event on its way to Kafka; refused: too large for the brokers, left out. */
export const KAFKA_RESULTS = ['produced', 'refused'] as const
/** Why brokers did not take a batch; all but `record` are tried again. */
export const KAFKA_FAILURES = ['unreachable', 'access', 'topic', 'record', 'other'] as const
/** Tables that lose old rows (src/main/retention.ts), day partitions and webhook deliveries excepted. */
export const RETENTION_TABLES = [
  'outbound_queue',
  'jobs',
  'audit_logs',
  'sessions',
  'quarantine',
  'devices',
  'events',
] as const
export const CARD_RESULTS = ['answered', 'unavailable', 'refused'] as const
export type CardResult = (typeof CARD_RESULTS)[number]

const REPLY_BOUNDS_S = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5]
const COMMIT_BOUNDS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5]
const DELAY_BOUNDS_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 3_600, 86_400]
const REQUEST_BOUNDS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10]

const each = (values: readonly string[]) => values.map((value) => [value])
const protocolNames = ({ protocols }: LabelSource) => protocols.map(({ name }) => name)
const unique = (values: readonly string[]) => [...new Set(values)]

interface ThreadSeries {
  readonly from: 'threads'
  readonly type: 'counter' | 'gauge' | 'histogram'
  readonly help: string
  readonly labels: readonly string[]
  /** All combinations of label values, in the order of `labels`. */
  readonly combinations: (source: LabelSource) => readonly (readonly string[])[]
  /** Upper bounds of the buckets, seconds; histograms only. */
  readonly boundsS?: readonly number[]
  /** Combinations that never moved are left out of the text: there are hundreds. */
  readonly isSparse?: true
}

interface MainSeries {
  readonly from: 'main'
  readonly type: 'gauge' | 'histogram'
  readonly help: string
  readonly labels: readonly string[]
  readonly boundsS?: readonly number[]
}

export const METRICS = {
  connections: {
    from: 'threads',
    type: 'gauge',
    help: 'Connections that said which protocol they speak',
    labels: ['protocol'],
    combinations: (source) => each(protocolNames(source)),
  },
  devices_online: {
    from: 'threads',
    type: 'gauge',
    help: 'Devices somebody speaks for',
    labels: ['protocol'],
    combinations: (source) => each(protocolNames(source)),
  },
  accepted_total: {
    from: 'threads',
    type: 'counter',
    help: 'Connections accepted',
    labels: [],
    combinations: () => [[]],
  },
  closed_total: {
    from: 'threads',
    type: 'counter',
    help: 'Connections ended, by reason',
    labels: ['reason'],
    combinations: ({ closeReasons }) => each(closeReasons),
  },
  identify_failures_total: {
    from: 'threads',
    type: 'counter',
    help: 'Connections refused because they did not say who they are',
    labels: ['reason'],
    combinations: () => each(IDENTIFY_FAILURES),
  },
  takeovers_total: {
    from: 'threads',
    type: 'counter',
    help: 'Devices taken over from an older connection',
    labels: [],
    combinations: () => [[]],
  },
  fenced_total: {
    from: 'threads',
    type: 'counter',
    help: 'What an outdated session was kept from doing',
    labels: ['what'],
    combinations: ({ fencedActions }) => each(fencedActions),
  },
  frames_total: {
    from: 'threads',
    type: 'counter',
    help: 'Frames with a good checksum',
    labels: ['protocol', 'direction', 'command'],
    combinations: ({ protocols }) =>
      protocols.flatMap(({ name, uplinks, downlinks }) => [
        ...unique([...uplinks, 'unknown']).map((command) => [name, 'uplink', command]),
        ...unique(downlinks).map((command) => [name, 'downlink', command]),
      ]),
    isSparse: true,
  },
  frame_errors_total: {
    from: 'threads',
    type: 'counter',
    help: 'Bytes skipped, frames refused, and what is odd about frames taken all the same, by reason',
    labels: ['protocol', 'reason'],
    combinations: (source) =>
      protocolNames(source).flatMap((protocol) => source.noiseReasons.map((reason) => [protocol, reason])),
  },
  uplink_reply_seconds: {
    from: 'threads',
    type: 'histogram',
    help: 'From bytes read to reply written',
    labels: ['command'],
    combinations: ({ protocols }) => each(unique(protocols.flatMap(({ uplinks }) => uplinks))),
    boundsS: REPLY_BOUNDS_S,
    isSparse: true,
  },
  acks_withheld_total: {
    from: 'threads',
    type: 'counter',
    help: 'Acks not sent because their row was not stored; the device sends again',
    labels: [],
    combinations: () => [[]],
  },
  outbound_overflow_total: {
    from: 'threads',
    type: 'counter',
    help: 'Frames not sent because the device does not read',
    labels: [],
    combinations: () => [[]],
  },
  outbox_full_total: {
    from: 'threads',
    type: 'counter',
    help: 'Rows refused because the outbox was full',
    labels: ['lane'],
    combinations: ({ lanes }) => each(lanes),
  },
  card_lookups_total: {
    from: 'threads',
    type: 'counter',
    help: 'Questions to the cards table',
    labels: ['result'],
    combinations: () => each(CARD_RESULTS),
  },
  commands_total: {
    from: 'threads',
    type: 'counter',
    help: 'Commands to devices, by how they ended; late: a result nobody waited for any more',
    labels: ['command', 'outcome'],
    combinations: ({ protocols, commandOutcomes }) =>
      unique(protocols.flatMap(({ downlinks }) => downlinks)).flatMap((command) =>
        commandOutcomes.map((outcome) => [command, outcome]),
      ),
    isSparse: true,
  },
  command_resends_total: {
    from: 'threads',
    type: 'counter',
    help: 'Commands sent again because no result came in time',
    labels: ['command'],
    combinations: ({ protocols }) => each(unique(protocols.flatMap(({ downlinks }) => downlinks))),
    isSparse: true,
  },
  command_seconds: {
    from: 'threads',
    type: 'histogram',
    help: 'From the first send of a command to its fate',
    labels: ['command'],
    combinations: ({ protocols }) => each(unique(protocols.flatMap(({ downlinks }) => downlinks))),
    boundsS: REQUEST_BOUNDS_S,
    isSparse: true,
  },
  commands_pending: {
    from: 'threads',
    type: 'gauge',
    help: 'Commands without a fate: waiting for their device, or on their way',
    labels: [],
    combinations: () => [[]],
  },
  command_requests_pending: {
    from: 'main',
    type: 'gauge',
    help: 'Requests for commands that wait for their device’s turn or their transaction',
    labels: [],
  },
  rows_total: {
    from: 'threads',
    type: 'counter',
    help: 'Rows taken out of the outbox, by what became of them',
    labels: ['table', 'result'],
    combinations: ({ tables }) => unique(tables).flatMap((table) => ROW_RESULTS.map((result) => [table, result])),
  },
  row_commit_seconds: {
    from: 'threads',
    type: 'histogram',
    help: 'From a span of rows handed to a writer to its commit',
    labels: [],
    combinations: () => [[]],
    boundsS: COMMIT_BOUNDS_S,
  },
  rows_pending: { from: 'main', type: 'gauge', help: 'Rows in the outbox, not yet stored', labels: ['shard'] },
  spool_bytes: { from: 'main', type: 'gauge', help: 'History kept on disk while the database is away', labels: [] },
  retention_rows_total: {
    from: 'threads',
    type: 'counter',
    help: 'Rows dropped because they were older than RETENTION_DAYS_… says; day partitions and webhook deliveries excepted',
    labels: ['table'],
    combinations: () => each(RETENTION_TABLES),
  },
  job_devices_total: {
    from: 'threads',
    type: 'counter',
    help: 'Devices that a job is through with, by what became of them',
    labels: ['outcome'],
    combinations: ({ jobOutcomes }) => each(jobOutcomes),
  },
  orders_total: {
    from: 'threads',
    type: 'counter',
    help: 'Orders, by what happened to them; refused_move: the state machine refused a transition',
    labels: ['outcome'],
    combinations: () => each(ORDER_OUTCOMES),
  },
  settlements_total: {
    from: 'threads',
    type: 'counter',
    help: 'Settlements received, by what became of them',
    labels: ['result'],
    combinations: () => each(SETTLEMENT_RESULTS),
  },
  ws_subscribers: {
    from: 'threads',
    type: 'gauge',
    help: 'WebSocket subscribers',
    labels: [],
    combinations: () => [[]],
  },
  ws_dropped_total: {
    from: 'threads',
    type: 'counter',
    help: 'Events that WebSocket subscribers did not get because they could not keep up and were closed',
    labels: [],
    combinations: () => [[]],
  },
  webhook_deliveries_total: {
    from: 'threads',
    type: 'counter',
    help: 'Webhook attempts, by what became of the delivery; failed: tried again, stopped: its endpoint with it (410)',
    labels: ['result'],
    combinations: () => each(WEBHOOK_RESULTS),
  },
  webhook_seconds: {
    from: 'threads',
    type: 'histogram',
    help: 'Webhook attempts, from the start to the answer',
    labels: [],
    combinations: () => [[]],
    boundsS: REQUEST_BOUNDS_S,
  },
  webhook_delay_seconds: {
    from: 'threads',
    type: 'histogram',
    help: 'From the commit of an event to the 2xx of a webhook receiver, failed attempts and waiting included; no redeliveries',
    labels: [],
    combinations: () => [[]],
    boundsS: DELAY_BOUNDS_S,
  },
  webhook_pending: {
    from: 'threads',
    type: 'gauge',
    help: 'Webhook deliveries that have not ended, counted every 2 s',
    labels: [],
    combinations: () => [[]],
  },
  kafka_events_total: {
    from: 'threads',
    type: 'counter',
    help: 'Events acknowledged by Kafka, repetitions included; refused: too large for the brokers, left out',
    labels: ['result'],
    combinations: () => each(KAFKA_RESULTS),
  },
  kafka_failures_total: {
    from: 'threads',
    type: 'counter',
    help: 'Attempts that Kafka did not take, by reason; record: a batch was too large and was divided',
    labels: ['reason'],
    combinations: () => each(KAFKA_FAILURES),
  },
  kafka_gaps_total: {
    from: 'threads',
    type: 'counter',
    help: 'How often retention had dropped events before Kafka had them',
    labels: [],
    combinations: () => [[]],
  },
  kafka_lag_events: {
    from: 'threads',
    type: 'gauge',
    help: 'Events that Kafka does not have yet, counted every 2 s up to 100,000',
    labels: [],
    combinations: () => [[]],
  },
  kafka_lag_seconds: {
    from: 'threads',
    type: 'gauge',
    help: 'Age of the oldest event that Kafka does not have yet, since its commit; 0: none',
    labels: [],
    combinations: () => [[]],
  },
  http_request_seconds: {
    from: 'main',
    type: 'histogram',
    help: 'HTTP requests, by route pattern and status',
    labels: ['route', 'status'],
    boundsS: REQUEST_BOUNDS_S,
  },
  event_loop_delay_seconds: {
    from: 'threads',
    type: 'gauge',
    help: 'How late timers of a thread were in its last second (99th percentile)',
    labels: ['thread'],
    combinations: ({ threads }) => each(threads),
  },
  build_info: { from: 'main', type: 'gauge', help: 'Always 1', labels: ['version', 'node'] },
} as const satisfies Record<string, ThreadSeries | MainSeries>

export type MetricName = keyof typeof METRICS
type NameFrom<F extends 'threads' | 'main', T extends string = string> = {
  [N in MetricName]: (typeof METRICS)[N] extends { from: F; type: T } ? N : never
}[MetricName]
export type ThreadMetric = NameFrom<'threads'>
export type ThreadCounter = NameFrom<'threads', 'counter'>
export type ThreadGauge = NameFrom<'threads', 'gauge'>
export type ThreadHistogram = NameFrom<'threads', 'histogram'>
export type MainGauge = Exclude<NameFrom<'main', 'gauge'>, 'build_info'>

export const METRIC_PREFIX = 'pilegate_'

/** The series of the threads, in the order of the catalogue. */
export const THREAD_METRICS = Object.entries(METRICS).filter(([, series]) => series.from === 'threads') as [
  ThreadMetric,
  ThreadSeries,
][]

/** The table in the README; a test compares. */
export function metricsTable(): string {
  const rows = Object.entries(METRICS).map(([name, { type, labels, help }]: [string, ThreadSeries | MainSeries]) => {
    const braces = labels.length === 0 ? '' : `{${labels.join(',')}}`
    return `| \`${METRIC_PREFIX}${name}${braces}\` | ${type} | ${help} |`
  })
  return ['| series | type | meaning |', '| --- | --- | --- |', ...rows].join('\n')
}
