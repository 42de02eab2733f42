/**
 * The one schema of the configuration. Defaults < YAML file (`CONFIG_PATH`) < environment; main reads it once and
 * passes plain values on. Whatever is wrong stops the start, all problems at once, secrets masked.
 */
import { accessSync, constants, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { parseDocument } from 'yaml'
import * as z from 'zod'
import { GatewayError } from '../errors/errors.ts'
import { type ApiKey, parseApiKeys } from './api-keys.ts'

const MASK = '***'

interface Key<S extends z.ZodType> {
  /** Checks the value of all three layers. */
  readonly schema: S
  readonly initial: () => z.input<S>
  /** The default in words, where it is no constant. */
  readonly initialText?: string
  readonly unit: string
  /** The rule in words; said when a value breaks it. */
  readonly rule: string
  readonly meaning: string
  readonly isSecret?: true
}

const count = (initial: number, min: number, max: number, unit: string, meaning: string) => ({
  schema: z.int().min(min).max(max),
  initial: () => initial,
  unit,
  rule: `whole number, ${min} to ${max}`,
  meaning,
})
const ms = (initial: number, min: number, max: number, meaning: string) => count(initial, min, max, 'ms', meaning)
const days = (initial: number, what: string) => count(initial, 1, 3650, 'days', `${what} older than this are dropped`)
const text = (initial: string, pattern: RegExp, rule: string, meaning: string) => ({
  schema: z.string().regex(pattern),
  initial: () => initial,
  unit: 'text',
  rule,
  meaning,
})
const choice = <const T extends readonly [string, ...string[]]>(
  values: T,
  initial: T[number],
  meaning: string,
): Key<z.ZodType<T[number], T[number]>> => ({
  schema: z.enum(values) as unknown as z.ZodType<T[number], T[number]>,
  initial: () => initial,
  unit: 'text',
  rule: `one of ${values.join(', ')}`,
  meaning,
})
const path = (meaning: string) => ({
  schema: z
    .string()
    .regex(/^[^\0]{1,1024}$/)
    .refine(isReadable)
    .nullable(),
  initial: () => null,
  initialText: 'unset',
  unit: 'path',
  rule: 'a file that can be read',
  meaning,
})
const credential = (meaning: string) => ({
  schema: z
    .string()
    .regex(/^[^\0]{1,1024}$/)
    .nullable(),
  initial: () => null,
  initialText: 'unset',
  unit: 'text',
  rule: '1 to 1024 characters',
  meaning,
  isSecret: true as const,
})
const isPowerOfTwo = (value: number) => (value & (value - 1)) === 0

const KEYS = {
  env: text(
    'dev',
    /^[a-z][a-z0-9_-]{0,31}$/,
    '1 to 32 of a-z 0-9 _ -, a letter first',
    'name of the environment, in every log line',
  ),
  serviceName: text(
    'pilegate',
    /^[a-z][a-z0-9_-]{0,63}$/,
    '1 to 64 of a-z 0-9 _ -, a letter first',
    'name of the service, in every log line',
  ),
  logLevel: choice(
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    'info',
    'the least level that is logged',
  ),
  dataDir: text(
    '.data',
    /^[^\0]{1,1024}$/,
    '1 to 1024 characters',
    'folder of the embedded database, the spool and the first API key',
  ),
  tcpHost: text(
    '0.0.0.0',
    /^[0-9A-Za-z.:_-]{1,253}$/,
    'an address or a host name',
    'address on which devices are accepted',
  ),
  tcpPort: count(7000, 0, 65_535, 'port', 'port for devices; 0 takes a free one'),
  httpHost: text('127.0.0.1', /^[0-9A-Za-z.:_-]{1,253}$/, 'an address or a host name', 'address of HTTP'),
  httpPort: count(8080, 0, 65_535, 'port', 'port of HTTP; 0 takes a free one'),
  shards: {
    ...count(1, 1, 256, 'threads', 'session threads'),
    initial: () => Math.max(1, availableParallelism() - 1),
    initialText: 'cores − 1, at least 1',
  },
  writers: count(2, 1, 64, 'threads', 'writer threads, each with one database connection'),
  databaseUrl: {
    schema: z
      .string()
      .regex(/^postgres(?:ql)?:\/\/[^\s]+$/)
      .nullable(),
    initial: () => null,
    initialText: 'unset: embedded PostgreSQL',
    unit: 'URL',
    rule: 'postgres://user:password@host:port/database',
    meaning: 'the database to use instead of the embedded one',
    isSecret: true,
  },
  dbMaxConns: count(10, 2, 200, 'connections', 'database connections of the main thread; each writer has one more'),
  requestTimeoutMs: ms(
    10_000,
    100,
    120_000,
    'an HTTP request that takes longer is answered with TIMEOUT; so is one whose body takes longer, or more than 6000 ms',
  ),
  apiKeys: {
    schema: z
      .string()
      .nullable()
      .transform((value, context): readonly ApiKey[] | null => {
        if (value === null) return null
        const { keys, problems } = parseApiKeys(value)
        for (const problem of problems) context.issues.push({ code: 'custom', message: problem, input: MASK })
        return keys
      }),
    initial: () => null,
    initialText: 'unset: one admin key in DATA_DIR/api-key',
    unit: 'list',
    rule: 'comma list of id:secret:role[:tenant[:hmac]], role viewer, operator or admin',
    meaning: 'who may use the API',
    isSecret: true,
  },
  identifyTimeoutMs: ms(5_000, 100, 600_000, 'a connection that has not said who it is by then is closed'),
  idleTimeoutMs: ms(300_000, 1_000, 86_400_000, 'a device that is silent for this long is closed'),
  commandSpacingMs: ms(500, 0, 60_000, 'least time between two commands to one device'),
  ackTimeoutMs: ms(15_000, 100, 600_000, 'a command without an ack by then is sent again or given up'),
  ackRetries: count(1, 0, 10, 'times', 'how often a command without an ack is sent again'),
  commandsMax: count(
    100_000,
    1,
    10_000_000,
    'commands',
    'commands without a fate, over all devices; one more is refused; stops have as much room again',
  ),
  commandsPerDeviceMax: count(64, 1, 10_000, 'commands', 'the same for one device; stops are counted apart'),
  commandExpiryMs: ms(60_000, 1_000, 604_800_000, 'when a command expires that does not say it itself'),
  rateLimitPerKeyPerS: count(5_000, 1, 1_000_000, 'per s', 'command requests of one API key; twice as many at once'),
  rateLimitPerDevicePerS: count(
    5,
    1,
    1_000_000,
    'per s',
    'new commands to one device, stops apart; twice as many at once',
  ),
  rateLimitFleetPerS: count(10_000, 1, 1_000_000, 'per s', 'command requests over all devices; twice as many at once'),
  retentionDaysCmdLog: days(30, 'rows of cmd_log'),
  retentionDaysPortSamples: days(90, 'rows of port_samples'),
  retentionDaysDead: days(30, 'dead commands and deliveries, and what was put aside'),
  retentionDaysCommands: days(90, 'commands with any other fate'),
  retentionDaysJobs: days(365, 'ended jobs'),
  retentionDaysAudit: days(365, 'lines of the audit log'),
  retentionDaysStrangers: days(90, 'devices that nobody named, commanded or charged at, and that were last heard'),
  retentionDaysEvents: days(90, 'events'),
  retentionDaysSessions: days(90, 'ended sessions'),
  reconcileAfterMs: ms(
    1_800_000,
    60_000,
    86_400_000,
    'an order without a sign of life for this long is asked for, and after as long again settled by estimate',
  ),
  devicesMax: count(131_072, 16, 4_194_304, 'devices', 'devices the directory has room for, between two starts'),
  connectionsMax: count(19_000, 1, 1_000_000, 'connections', 'connections of devices; one more is closed at once'),
  outboxBytes: {
    ...count(8_388_608, 65_536, 1_073_741_824, 'bytes', 'rows that may wait for the database, per shard and lane'),
    schema: z.int().min(65_536).max(1_073_741_824).refine(isPowerOfTwo),
    rule: 'power of two, 65536 to 1073741824',
  },
  batchRowsMax: count(1_000, 1, 5_000, 'rows', 'rows of one transaction of a writer'),
  stateFlushMs: ms(1_000, 10, 60_000, 'a changed state of a device or port is written after this long'),
  seenFlushMs: ms(300_000, 1_000, 3_600_000, 'when a device was last heard is written this often'),
  spoolBytesMax: count(268_435_456, 0, 1_099_511_627_776, 'bytes', 'history kept on disk while the database is away'),
  evidenceBytesMax: count(256, 0, 65_536, 'bytes', 'bytes kept of a connection that is no device'),
  outboundBytesMax: count(
    65_536,
    4_096,
    16_777_216,
    'bytes',
    'a device that lets more than this wait unread is closed',
  ),
  cardLookupTimeoutMs: ms(
    2_000,
    50,
    60_000,
    'a card question without an answer by then is refused (BKV) or stays unanswered (AP3000)',
  ),
  record: choice(['all', 'errors', 'off'], 'off', 'which frames are kept as bytes under DATA_DIR/frames'),
  recordBytesMax: count(
    4_294_967_296,
    134_217_728,
    1_099_511_627_776,
    'bytes',
    'recorded bytes kept, over all shards; the oldest segments go first',
  ),
  wsSubscribersMax: count(2_000, 1, 100_000, 'connections', 'WebSocket subscribers; one more is refused'),
  wsBackpressureBytesMax: count(
    262_144,
    16_384,
    67_108_864,
    'bytes',
    'a WebSocket subscriber that lets more than this wait unread is told so and closed',
  ),
  webhookTimeoutMs: ms(5_000, 50, 60_000, 'a webhook receiver that has not answered by then has failed'),
  webhookConcurrency: count(8, 1, 256, 'requests', 'webhook requests under way to one endpoint'),
  webhookRetryScheduleS: {
    schema: z
      .string()
      .regex(/^\d{1,6}(?:\.\d{1,3})?(?:,\d{1,6}(?:\.\d{1,3})?){0,49}$/)
      .transform((list): readonly number[] => list.split(',').map(Number)),
    initial: () => '1,5,30,120,600,3600,10800,21600,43200',
    unit: 's',
    rule: 'comma list of 1 to 50 delays in seconds',
    meaning: 'when a failed webhook delivery is tried again, each ± 20 %; one more failure and it is dead',
  },
  webhookDisableAfterMs: ms(
    259_200_000,
    1_000,
    2_592_000_000,
    'a webhook endpoint without a success for this long is stopped',
  ),
  webhookAllowPrivate: {
    schema: z.union([z.boolean(), z.enum(['true', 'false']).transform((text) => text === 'true')]),
    initial: () => false,
    unit: 'true or false',
    rule: 'true or false',
    meaning: 'webhooks may go to private, loopback and link-local addresses',
  },
  webhookAllowedHosts: {
    schema: z
      .string()
      .regex(/^[0-9A-Za-z.:_,-]{0,4096}$/)
      .transform((text): readonly string[] =>
        text
          .toLowerCase()
          .split(',')
          .filter((host) => host !== ''),
      ),
    initial: () => '',
    initialText: 'none',
    unit: 'list',
    rule: 'comma list of host names and addresses, without brackets or ports',
    meaning: 'hosts webhooks may go to wherever they lead',
  },
  allowlist: choice(
    ['on', 'off'],
    'off',
    'on: only devices in the allowlist, by id or by the network they come from, get a session',
  ),
  kafkaBrokers: {
    schema: z
      .string()
      .regex(/^(?:[0-9A-Za-z.-]{1,253}(?::\d{1,5})?(?:,[0-9A-Za-z.-]{1,253}(?::\d{1,5})?){0,63})?$/)
      .transform((list): readonly { readonly host: string; readonly port: number }[] =>
        list
          .split(',')
          .filter((broker) => broker !== '')
          .map((broker) => {
            const [host = '', port = '9092'] = broker.split(':')
            return { host, port: Number(port) }
          }),
      )
      .refine((brokers) => brokers.every(({ port }) => port >= 1 && port <= 65_535)),
    initial: () => '',
    initialText: 'unset: no Kafka',
    unit: 'list',
    rule: 'comma list of host:port, port 9092 where none is given',
    meaning: 'brokers asked first; with it events also go to Kafka (workers/kafka/README.md)',
  },
  kafkaTopic: text(
    'pilegate.events',
    /^(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}$/,
    '1 to 249 letters, digits, ".", "_" or "-"',
    'topic of the events; another topic has a position of its own',
  ),
  kafkaClientId: text(
    'pilegate',
    /^[A-Za-z0-9._-]{1,64}$/,
    '1 to 64 letters, digits, ".", "_" or "-"',
    'how the gateway calls itself towards brokers',
  ),
  kafkaFrom: choice(
    ['oldest', 'new'],
    'oldest',
    'where a topic begins to which nothing was produced yet: at the oldest event kept, or at what happens from now on',
  ),
  kafkaSsl: {
    schema: z.union([z.boolean(), z.enum(['true', 'false']).transform((text) => text === 'true')]),
    initial: () => false,
    unit: 'true or false',
    rule: 'true or false',
    meaning: 'brokers are spoken to by TLS, and their certificates checked',
  },
  kafkaSslCaPath: path('PEM file of the authorities that brokers are checked by, instead of the known ones'),
  kafkaSslCertPath: path('PEM file of our certificate, for brokers that ask for one; needs KAFKA_SSL_KEY_PATH'),
  kafkaSslKeyPath: path('PEM file of its key, without a password'),
  kafkaSaslMechanism: choice(
    ['none', 'PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512'],
    'none',
    'how the gateway logs in at the brokers; PLAIN without KAFKA_SSL sends the password in the clear',
  ),
  kafkaSaslUsername: credential('user name; needs KAFKA_SASL_MECHANISM'),
  kafkaSaslPassword: credential('its password'),
  socketDriver: choice(['auto', 'epoll', 'net'], 'auto', 'how sockets are moved; auto: epoll where it loads, else net'),
} as const satisfies Record<string, Key<z.ZodType>>

export type ConfigKey = keyof typeof KEYS

type Shape = { [K in ConfigKey]: (typeof KEYS)[K]['schema'] }
export const ConfigSchema = z.strictObject(
  Object.fromEntries(Object.entries(KEYS).map(([name, key]) => [name, key.schema])) as unknown as Shape,
)
export type Config = Readonly<z.output<typeof ConfigSchema>>

/** `retentionDaysCmdLog` -> `RETENTION_DAYS_CMD_LOG`. */
export const environmentName = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()

/** What a reader of the README is told about a key. */
const CONFIG_KEYS: readonly {
  readonly key: ConfigKey
  readonly env: string
  readonly initial: string
  readonly unit: string
  readonly rule: string
  readonly meaning: string
}[] = (Object.entries(KEYS) as [ConfigKey, Key<z.ZodType>][]).map(([name, key]) => ({
  key: name,
  env: environmentName(name),
  initial: key.initialText ?? String(key.initial()),
  unit: key.unit,
  rule: key.rule,
  meaning: key.meaning,
}))

/** The table in the README; a test compares. */
export function configTable(): string {
  const rows = CONFIG_KEYS.map(
    ({ env, initial, unit, rule, meaning }) => `| \`${env}\` | ${initial} | ${unit} | ${rule} | ${meaning} |`,
  )
  return ['| name | default | unit | rule | meaning |', '| --- | --- | --- | --- | --- |', ...rows].join('\n')
}

/** One thing that is wrong with the configuration. */
export interface ConfigProblem {
  /** As written by the operator: `TCP_PORT` in the environment, this or `tcpPort` in the file. */
  readonly key: string
  /** Masked when key or value may be a secret. */
  readonly value: string
  readonly rule: string
}

/** The gateway does not start; `problems` has everything at once. */
export class ConfigError extends GatewayError {
  readonly problems: readonly ConfigProblem[]

  constructor(problems: readonly ConfigProblem[]) {
    super(
      'GW_CONFIG_INVALID',
      `configuration: ${problems.map(({ key, value, rule }) => `${key} = ${value}: ${rule}`).join('; ')}`,
      { details: { problems } },
    )
    this.name = 'ConfigError'
    this.problems = problems
  }
}

/** Unknown names with these beginnings are spelling mistakes; every other unknown variable belongs to somebody else. */
const OUR_PREFIXES = ['PILEGATE_', 'RETENTION_DAYS_']

/**
 * @param environment an empty variable counts as unset, so that `SHARDS=` in a compose file is no mistake
 * @throws ConfigError do not start
 */
export function loadConfig(environment: Readonly<Record<string, string | undefined>> = process.env): Config {
  const problems: ConfigProblem[] = []
  const merged: Record<string, unknown> = {}
  /** How the operator named the key. */
  const names = new Map<string, string>()
  for (const [name, key] of Object.entries(KEYS)) merged[name] = key.initial()
  // each layer by itself: a bad value that another layer hides today is there again when that one goes
  const take = (key: ConfigKey, name: string, value: unknown) => {
    problems.push(...problemsOf(key, name, value))
    merged[key] = value
    names.set(key, name)
  }

  const path = environment['CONFIG_PATH']
  if (path !== undefined && path !== '') {
    const given = new Map<ConfigKey, string>()
    for (const [name, value] of Object.entries(readYaml(path, problems))) {
      const key = CONFIG_KEYS.find((one) => one.key === name || one.env === name)?.key
      const earlier = key === undefined ? undefined : given.get(key)
      if (key === undefined)
        problems.push({ key: name, value: shown(name, value), rule: `unknown key${didYouMean(name, 'key')}` })
      else if (earlier !== undefined)
        problems.push({ key: name, value: shown(name, value), rule: `given as ${earlier} too: one of the two` })
      else {
        take(key, name, value)
        given.set(key, name)
      }
    }
  }

  for (const { key, env } of CONFIG_KEYS) {
    const value = environment[env]
    if (value === undefined || value === '') continue
    take(key, env, /^-?\d{1,15}$/.test(value) && typeof KEYS[key].initial() === 'number' ? Number(value) : value)
  }
  for (const [name, value] of Object.entries(environment))
    if (OUR_PREFIXES.some((prefix) => name.startsWith(prefix)) && !CONFIG_KEYS.some(({ env }) => env === name))
      problems.push({ key: name, value: shown(name, value), rule: `unknown name${didYouMean(name, 'env')}` })

  const parsed = ConfigSchema.safeParse(merged)
  if (parsed.success) problems.push(...kafkaProblems(parsed.data, names))
  if (problems.length > 0) throw new ConfigError(problems)
  return parsed.data!
}

/** Keys that make sense only together. */
function kafkaProblems(config: Config, names: ReadonlyMap<string, string>): ConfigProblem[] {
  const problems: ConfigProblem[] = []
  const must = (isGood: boolean, key: ConfigKey, rule: string) => {
    if (!isGood) problems.push({ key: names.get(key) ?? environmentName(key), value: MASK, rule })
  }
  const hasMechanism = config.kafkaSaslMechanism !== 'none'
  for (const key of ['kafkaSaslUsername', 'kafkaSaslPassword'] as const)
    must((config[key] !== null) === hasMechanism, key, 'set with KAFKA_SASL_MECHANISM, and only then')
  const hasCertificate = config.kafkaSslCertPath !== null
  must((config.kafkaSslKeyPath !== null) === hasCertificate, 'kafkaSslKeyPath', 'set with KAFKA_SSL_CERT_PATH')
  for (const key of ['kafkaSslCaPath', 'kafkaSslCertPath'] as const)
    must(config[key] === null || config.kafkaSsl, key, 'set with KAFKA_SSL=true only')
  return problems
}

function isReadable(file: string): boolean {
  try {
    accessSync(file, constants.R_OK)
    return true
  } catch {
    return false
  }
}

function readYaml(path: string, problems: ConfigProblem[]): Record<string, unknown> {
  let source: string
  try {
    source = readFileSync(path, 'utf8')
  } catch (error) {
    problems.push({ key: 'CONFIG_PATH', value: path, rule: `a readable file (${(error as Error).message})` })
    return {}
  }
  const document = parseDocument(source, { prettyErrors: true })
  const fault = document.errors[0]
  if (fault !== undefined) {
    // only the first line: the lines after it quote the file, which may hold secrets
    problems.push({ key: 'CONFIG_PATH', value: path, rule: `YAML (${fault.message.split('\n')[0]})` })
    return {}
  }
  const content: unknown = document.toJS()
  if (content === null) return {}
  if (typeof content !== 'object' || Array.isArray(content)) {
    problems.push({ key: 'CONFIG_PATH', value: path, rule: 'a YAML mapping of key to value' })
    return {}
  }
  return content as Record<string, unknown>
}

/** @param name as the operator wrote it */
function problemsOf(key: ConfigKey, name: string, value: unknown): ConfigProblem[] {
  const { schema, rule }: Key<z.ZodType> = KEYS[key]
  const parsed = schema.safeParse(value)
  if (parsed.success) return []
  return parsed.error.issues.map((issue) => ({
    key: name,
    value: shown(name, value),
    rule: issue.code === 'custom' && key === 'apiKeys' ? `${rule} (${issue.message})` : rule,
  }))
}

/** Names of what nobody may read, also when no key is called so. */
const SECRET_NAME = /key|secret|pass|token|url|credential|sasl/i
/** A URL with a user or password; an entry of API_KEYS. */
const SECRET_VALUE = /:\/\/\S*@|:(?:viewer|operator|admin)\b/
const SHOWN_CHARACTERS_MAX = 200

/** A value for the message that names its key; masked when either may be a secret. */
function shown(name: string, value: unknown): string {
  const known = CONFIG_KEYS.find(({ key, env }) => key === name || env === name)
  const nearest = known ?? nearestKey(name)
  let text: string
  try {
    text = JSON.stringify(value)
  } catch {
    // YAML can say a list that holds itself
    return MASK
  }
  const isSecret =
    (nearest !== undefined && 'isSecret' in KEYS[nearest.key]) ||
    (known === undefined && SECRET_NAME.test(name)) ||
    // a mapping or list: names within it count, too
    (typeof value === 'object' && SECRET_NAME.test(text)) ||
    SECRET_VALUE.test(text)
  return isSecret ? MASK : text.slice(0, SHOWN_CHARACTERS_MAX)
}

/**
 * The known name that differs least, if it is near enough to be meant.
 * @param form as names are written where this one stood: `key` in the file, `env` in the environment
 */
function didYouMean(unknown: string, form: 'key' | 'env'): string {
  const nearest = nearestKey(unknown)
  if (nearest === undefined) return ''
  return `; did you mean ${form === 'key' && /^[A-Z0-9_]+$/.test(unknown) ? nearest.env : nearest[form]}?`
}

function nearestKey(unknown: string): (typeof CONFIG_KEYS)[number] | undefined {
  const plain = (name: string) =>
    name
      .replace(/^PILEGATE_/, '')
      .replace(/_/g, '')
      .toLowerCase()
  let nearest: (typeof CONFIG_KEYS)[number] | undefined
  let least = 4
  for (const known of CONFIG_KEYS) {
    const distance = editDistance(plain(unknown), plain(known.key))
    if (distance >= least) continue
    nearest = known
    least = distance
  }
  return nearest
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    row = next
  }
  return row[b.length]!
}
