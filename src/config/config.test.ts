/**
 * Claim: defaults < YAML file < environment; whatever is unknown or wrong stops the start, all at once, naming key,
 * value and rule; a secret is in no message; the README's table says what the schema says. Tried with real files and
 * made-up environments.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { firstApiKey, parseApiKeys } from './api-keys.ts'
import { ConfigError, ConfigSchema, configTable, loadConfig } from './config.ts'

const folder = mkdtempSync(join(tmpdir(), 'pilegate-config-'))
after(() => rmSync(folder, { recursive: true, force: true }))

let files = 0
function yaml(text: string): Record<string, string> {
  const path = join(folder, `${++files}.yaml`)
  writeFileSync(path, text)
  return { CONFIG_PATH: path }
}
function problemsOf(environment: Record<string, string>) {
  try {
    loadConfig(environment)
  } catch (error) {
    assert.ok(error instanceof ConfigError)
    return error
  }
  throw new assert.AssertionError({ message: 'the configuration was accepted' })
}

describe('layers', () => {
  test('nothing set: the defaults of the contract', () => {
    const config = loadConfig({})
    assert.equal(config.tcpPort, 7000)
    assert.equal(config.httpHost, '127.0.0.1')
    assert.equal(config.requestTimeoutMs, 10_000)
    assert.equal(config.databaseUrl, null)
    assert.equal(config.apiKeys, null)
    assert.ok(config.shards >= 1)
    assert.equal(config.retentionDaysPortSamples, 90)
  })

  test('the file wins over defaults, the environment over the file', () => {
    const config = loadConfig({ ...yaml('tcpPort: 7100\nhttpPort: 8100\nenv: field\n'), TCP_PORT: '0' })
    assert.equal(config.tcpPort, 0)
    assert.equal(config.httpPort, 8100)
    assert.equal(config.env, 'field')
    assert.equal(config.idleTimeoutMs, 300_000)
  })

  test('the file takes the names of the environment as well, one of the two for each key', () => {
    const config = loadConfig(yaml('TCP_PORT: 7100\nhttpPort: 8100\nRETENTION_DAYS_CMD_LOG: 3\n'))
    assert.deepEqual([config.tcpPort, config.httpPort, config.retentionDaysCmdLog], [7100, 8100, 3])
    assert.equal(loadConfig({ ...yaml('TCP_PORT: 7100\n'), TCP_PORT: '7200' }).tcpPort, 7200)
    const { message } = problemsOf(yaml('tcpPort: 7100\nTCP_PORT: 7100\n'))
    assert.equal(message, 'configuration: TCP_PORT = 7100: given as tcpPort too: one of the two')
    assert.doesNotMatch(
      problemsOf(yaml('API_KEYS: "a:hunter2:admin"\napiKeys: "b:hunter2:admin"\n')).message,
      /hunter2/,
    )
  })

  test('an empty variable and an empty file set nothing', () => {
    const config = loadConfig({ ...yaml('# nothing yet\n'), SHARDS: '', DATABASE_URL: '' })
    assert.ok(config.shards >= 1)
    assert.equal(config.databaseUrl, null)
  })

  test('variables of other programs are ignored', () => {
    assert.equal(loadConfig({ PATH: '/bin', HOME: '/', NODE_OPTIONS: '-x', PORT: 'abc' }).tcpPort, 7000)
  })

  test('a number may be text where text is wanted', () => {
    assert.equal(loadConfig({ TCP_HOST: '0' }).tcpHost, '0')
  })
})

describe('what stops the start', () => {
  test('every problem is told, with key, value and rule', () => {
    const { problems, message } = problemsOf({ TCP_PORT: '70000', SHARDS: '1.5', LOG_LEVEL: 'loud' })
    assert.deepEqual(
      problems.map(({ key, value }) => `${key}=${value}`),
      ['LOG_LEVEL="loud"', 'TCP_PORT=70000', 'SHARDS="1.5"'],
    )
    assert.match(message, /TCP_PORT = 70000: whole number, 0 to 65535/)
  })

  test('an unknown key of the file, with the one that was meant', () => {
    const { problems } = problemsOf(yaml('tcpPrt: 7000\nnonsense: 1\n'))
    assert.deepEqual(
      problems.map(({ key, rule }) => `${key}: ${rule}`),
      ['tcpPrt: unknown key; did you mean tcpPort?', 'nonsense: unknown key'],
    )
  })

  test('an unknown variable that can only be ours', () => {
    const { message } = problemsOf({ RETENTION_DAYS_CMDLOG: '3', PILEGATE_TCP_PORT: '1' })
    assert.match(message, /RETENTION_DAYS_CMDLOG = "3": unknown name; did you mean RETENTION_DAYS_CMD_LOG\?/)
    assert.match(message, /PILEGATE_TCP_PORT = "1": unknown name; did you mean TCP_PORT\?/)
  })

  test('what is meant is said as names are written there', () => {
    assert.match(
      problemsOf(yaml('TCP_PROT: 7000\n')).message,
      /^configuration: TCP_PROT = 7000: .*did you mean TCP_PORT\?$/,
    )
    assert.match(problemsOf({ PILEGATE_tcpPort: '1' }).message, /did you mean TCP_PORT\?/)
  })

  test('an unknown key with its value, unless one of the two may be a secret', () => {
    const shown = (text: string) => problemsOf(yaml(text)).problems[0]?.value
    assert.equal(shown('nonsense: [1, two]\n'), '[1,"two"]')
    assert.equal(shown('idleTimeout: 5 minutes\n'), '"5 minutes"')
    assert.equal(shown(`nonsense: ${'x'.repeat(900)}\n`)?.length, 200)
    assert.equal(shown('nonsense: &self [*self]\n'), '***')
    for (const text of [
      'apiKey: hunter2\n',
      'API_KEZS: hunter2\n',
      'databaseUr: hunter2\n',
      'kafkaSasPasswort: hunter2\n',
      'dbPassword: hunter2\n',
      'CREDENTIALS: hunter2\n',
      'accessToken: hunter2\n',
      'database: postgres://user:hunter2@host/db\n',
      'kafka: {brokers: a, saslPassword: hunter2}\n',
      'access: "ops:hunter2:admin"\n',
      'tcpHost: http://user:hunter2@host\n',
    ]) {
      const { message } = problemsOf(yaml(text))
      assert.doesNotMatch(message, /hunter2/, text)
      assert.equal(shown(text), '***', text)
    }
    for (const [name, value] of [
      ['PILEGATE_API_KEYS', 'a:hunter2:admin'],
      ['PILEGATE_DATABASE', 'postgres://u:hunter2@h/d'],
    ] as const)
      assert.doesNotMatch(problemsOf({ [name]: value }).message, /hunter2/)
  })

  test('any other unknown variable is somebody else’s, also where it looks like ours', () => {
    assert.equal(loadConfig({ TCP_PROT: '1' }).tcpPort, 7000)
  })

  test('a value of the wrong kind in the file, named as in the file', () => {
    assert.equal(problemsOf(yaml('tcpPort: "7000"\n')).problems[0]?.key, 'tcpPort')
  })

  test('a bad value of the file, also where the environment overrides it; both, where both are bad', () => {
    const told = (environment: Record<string, string>) =>
      problemsOf(environment).problems.map(({ key, value }) => `${key}=${value}`)
    assert.deepEqual(told({ ...yaml('tcpPort: 70000\n'), TCP_PORT: '7000' }), ['tcpPort=70000'])
    assert.deepEqual(told({ ...yaml('TCP_PORT: many\n'), TCP_PORT: '70000' }), ['TCP_PORT="many"', 'TCP_PORT=70000'])
    assert.deepEqual(told({ ...yaml('databaseUrl: mysql://u:p@h\n'), DATABASE_URL: 'postgres://u:p@h/d' }), [
      'databaseUrl=***',
    ])
  })

  test('a ring that is no power of two', () => {
    assert.match(problemsOf({ OUTBOX_BYTES: '100000' }).message, /power of two/)
  })

  test('a file that is missing, no YAML, no mapping, or says a key twice', () => {
    assert.match(problemsOf({ CONFIG_PATH: join(folder, 'none.yaml') }).message, /readable file/)
    assert.match(problemsOf(yaml('a: [')).message, /YAML/)
    assert.match(problemsOf(yaml('- 1\n')).message, /mapping/)
    assert.match(problemsOf(yaml('tcpPort: 1\ntcpPort: 2\n')).message, /YAML/)
  })

  test('Kafka: keys that do not fit together, a list that is none, a file that is not there', () => {
    const rulesOf = (environment: Record<string, string>) =>
      problemsOf(environment).problems.map(({ key, rule }) => `${key}: ${rule}`)
    assert.deepEqual(rulesOf({ KAFKA_SASL_MECHANISM: 'PLAIN', KAFKA_SASL_USERNAME: 'u' }), [
      'KAFKA_SASL_PASSWORD: set with KAFKA_SASL_MECHANISM, and only then',
    ])
    assert.equal(rulesOf({ KAFKA_SASL_USERNAME: 'u', KAFKA_SASL_PASSWORD: 'p' }).length, 2)
    assert.deepEqual(rulesOf({ KAFKA_SSL_CA_PATH: import.meta.filename }), [
      'KAFKA_SSL_CA_PATH: set with KAFKA_SSL=true only',
    ])
    assert.deepEqual(rulesOf({ KAFKA_SSL: 'true', KAFKA_SSL_CERT_PATH: import.meta.filename }), [
      'KAFKA_SSL_KEY_PATH: set with KAFKA_SSL_CERT_PATH',
    ])
    assert.match(problemsOf({ KAFKA_SSL_CA_PATH: join(folder, 'none.pem') }).message, /a file that can be read/)
    for (const brokers of ['kafka:0', 'kafka:70000', 'a,,b', 'kafka://a:9092'])
      assert.match(problemsOf({ KAFKA_BROKERS: brokers }).message, /comma list of host:port/)
    assert.deepEqual(loadConfig({ KAFKA_BROKERS: 'a:9093,b' }).kafkaBrokers, [
      { host: 'a', port: 9093 },
      { host: 'b', port: 9092 },
    ])
    assert.deepEqual(loadConfig({}).kafkaBrokers, [])
  })

  test('secrets are in no message', () => {
    const { message, problems } = problemsOf({
      DATABASE_URL: 'mysql://user:hunter2@host/db',
      API_KEYS: 'ops:hunter2:king,a:hunter2:viewer:t:rsa',
      KAFKA_SASL_PASSWORD: 'hunter2\0',
    })
    assert.doesNotMatch(message + JSON.stringify(problems), /hunter2/)
    assert.match(message, /entry 1 \(ops\): role is one of viewer, operator, admin/)
    assert.match(message, /entry 2 \(a\): the fifth part/)
    const faulty = problemsOf(yaml('databaseUrl: "postgres://u:hunter2@h/d"\napiKeys: [\n'))
    assert.doesNotMatch(faulty.message, /hunter2/)
  })
})

test('the table has one row per key, with its name in the environment', () => {
  const table = configTable()
  for (const name of ['RETENTION_DAYS_CMD_LOG', 'DB_MAX_CONNS', 'CARD_LOOKUP_TIMEOUT_MS', 'SPOOL_BYTES_MAX', 'ENV'])
    assert.match(table, new RegExp(`^\\| \`${name}\` \\|`, 'm'))
  assert.equal(table.split('\n').length, 2 + Object.keys(ConfigSchema.shape).length)
})

describe('API keys', () => {
  test('all five parts, and what is left out', () => {
    const { keys, problems } = parseApiKeys('a:s3cret:viewer, b:t0psecret:operator:north ,c:x+/=:admin::hmac')
    assert.deepEqual(problems, [])
    assert.deepEqual(keys, [
      { id: 'a', secret: 's3cret', role: 'viewer', tenant: 'default', isHmacOnly: false },
      { id: 'b', secret: 't0psecret', role: 'operator', tenant: 'north', isHmacOnly: false },
      { id: 'c', secret: 'x+/=', role: 'admin', tenant: 'default', isHmacOnly: true },
    ])
  })

  test('an id or a secret twice', () => {
    assert.match(parseApiKeys('a:s:viewer,a:t:viewer').problems.join(), /this id is given twice/)
    assert.match(parseApiKeys('a:s:viewer,b:s:viewer').problems.join(), /same secret/)
  })

  test('the first key is made once, readable by its owner only, in a folder others may pass', () => {
    const dataDir = join(folder, 'deep', 'data')
    const first = firstApiKey(dataDir)
    assert.equal(first.isNew, true)
    assert.equal(first.key.role, 'admin')
    assert.equal(statSync(first.path).mode & 0o777, 0o600)
    assert.equal(statSync(dataDir).mode & 0o777, 0o755)
    assert.equal(readFileSync(first.path, 'utf8').trim(), first.key.secret)
    const again = firstApiKey(dataDir)
    assert.deepEqual(again, { ...first, isNew: false })
  })

  test('an empty key file stops the start instead of opening the API', () => {
    const dataDir = join(folder, 'empty-key')
    const { path } = firstApiKey(dataDir)
    writeFileSync(path, '\n')
    assert.throws(() => firstApiKey(dataDir), { code: 'GW_DATA_DIR_UNUSABLE' })
  })
})
