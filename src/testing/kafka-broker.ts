/**
 * A real Kafka for tests: one node, broker and controller in one process (KRaft), on loopback, from Maven Central. What
 * is fetched (46 MB, once) lies in ~/.cache/pilegate. Where Java or Maven are missing or nothing can be fetched, the
 * answer is why not, and tests skip by that name.
 *
 * Listeners: PLAINTEXT for the test's own eyes, SASL_SSL (SCRAM-SHA-512, self-signed certificate) for the gateway. Topics
 * are not created by themselves.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createConnection, createServer } from 'node:net'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)

const VERSION = '3.9.1'
const JAVA_MAJOR_MIN = 11
const INSTALL_MS_MAX = 120_000
const START_MS_MAX = 60_000
/** One compiler tier and one collector thread: a short life on few cores. */
const JVM = ['-Xmx256m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1']
const STORE_PASSWORD = 'only-for-tests'

export const KAFKA_USER = { username: 'gateway', password: 'hunter2-of-kafka' } as const

interface Installed {
  readonly classpath: string
  readonly keystore: string
  readonly caPath: string
}

/** @returns why there is none, as text */
async function install(): Promise<Installed | string> {
  const home = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'pilegate', `kafka-${VERSION}`)
  const installed = {
    classpath: join(home, 'libs', '*'),
    keystore: join(home, 'broker.p12'),
    caPath: join(home, 'ca.pem'),
  }
  const java = await javaMajor()
  if (java === undefined) return 'no Java'
  if (java < JAVA_MAJOR_MIN) return `Java ${java} is older than ${JAVA_MAJOR_MIN}`
  if (existsSync(home)) return installed
  if (!(await works('mvn', '-version'))) return 'no Maven'
  if (!(await works('keytool', '-help'))) return 'no keytool'
  // renamed when whole: another test process may be doing the same
  const draft = `${home}.${process.pid}`
  try {
    mkdirSync(draft, { recursive: true })
    await fetchLibraries(draft)
    await makeCertificate(draft)
    if (!existsSync(home)) renameSync(draft, home)
    return installed
  } catch (error) {
    return `Kafka could not be installed: ${(error as Error).message.split('\n')[0]}`
  } finally {
    rmSync(draft, { recursive: true, force: true })
  }
}

async function javaMajor(): Promise<number | undefined> {
  try {
    const { stderr, stdout } = await run('java', ['-version'])
    return Number(/version "(\d+)/.exec(stderr + stdout)?.[1] ?? 0)
  } catch {
    return undefined
  }
}

const works = (command: string, argument: string) =>
  run(command, [argument]).then(
    () => true,
    () => false,
  )

async function fetchLibraries(draft: string): Promise<void> {
  writeFileSync(
    join(draft, 'pom.xml'),
    `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>pilegate</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>${VERSION}</version></dependency></dependencies></project>`,
  )
  const goal = 'org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies'
  const options = ['-B', '-q', '-f', join(draft, 'pom.xml'), '-DincludeScope=runtime']
  await run('mvn', [...options, goal, `-DoutputDirectory=${join(draft, 'libs')}`], { timeout: INSTALL_MS_MAX })
}

async function makeCertificate(draft: string): Promise<void> {
  const store = ['-keystore', join(draft, 'broker.p12'), '-storepass', STORE_PASSWORD, '-alias', 'broker']
  const subject = ['-dname', 'CN=pilegate test broker', '-ext', 'san=ip:127.0.0.1', '-validity', '36500']
  const key = ['-keyalg', 'EC', '-groupname', 'secp256r1', '-storetype', 'PKCS12']
  await run('keytool', ['-genkeypair', ...store, ...key, ...subject])
  await run('keytool', ['-exportcert', '-rfc', ...store, '-file', join(draft, 'ca.pem')])
}

const running = new Set<KafkaBroker>()
process.once('exit', () => {
  for (const broker of running) broker.abandon()
})

export class KafkaBroker {
  /** PLAINTEXT, without a login. */
  readonly port: number
  /** SASL_SSL: KAFKA_USER by SCRAM-SHA-512. */
  readonly saslPort: number
  readonly caPath: string
  readonly #directory: string
  readonly #classpath: string
  #child: ChildProcess | undefined
  #said = ''

  private constructor(directory: string, installed: Installed, port: number, saslPort: number) {
    this.#directory = directory
    this.#classpath = installed.classpath
    this.caPath = installed.caPath
    this.port = port
    this.saslPort = saslPort
  }

  /** Runs when it resolves; 5-10 s. @returns why there is none, as text */
  static async open(): Promise<KafkaBroker | string> {
    const installed = await install()
    if (typeof installed === 'string') return installed
    const directory = mkdtempSync(join(tmpdir(), 'pilegate-kafka-'))
    const [port, saslPort, controllerPort] = (await freePorts(3)) as [number, number, number]
    const broker = new KafkaBroker(directory, installed, port, saslPort)
    running.add(broker)
    writeFileSync(broker.#properties, propertiesOf(directory, installed, port, saslPort, controllerPort))
    const { username, password } = KAFKA_USER
    const scram = `SCRAM-SHA-512=[name=${username},password=${password}]`
    // a "-" in front would be taken for an option
    const clusterId = `P${randomBytes(16).toString('base64url').slice(1)}`
    const format = ['format', '-t', clusterId, '-c', broker.#properties, '--add-scram', scram]
    await run('java', [...JVM, '-cp', installed.classpath, 'kafka.tools.StorageTool', ...format])
    await broker.start()
    return broker
  }

  get #properties(): string {
    return join(this.#directory, 'server.properties')
  }

  /** On the same ports and data as before. */
  async start(): Promise<void> {
    this.#said = ''
    const child = spawn('java', [...JVM, '-cp', this.#classpath, 'kafka.Kafka', this.#properties], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#child = child
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.#said = (this.#said + text).slice(-4_000)
      })
    const until = performance.now() + START_MS_MAX
    while (!((await accepts(this.port)) && (await accepts(this.saslPort)))) {
      if (child.exitCode !== null || performance.now() > until) {
        const said = this.#said
        await this.remove()
        throw new Error(`Kafka did not start: ${said}`)
      }
      await sleep(50)
    }
  }

  /** kill -9. */
  async kill(): Promise<void> {
    const child = this.#child
    this.#child = undefined
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGKILL')
    await ended
  }

  /** It stands still, its connections stay open; the returned function lets it go on. */
  freeze(): () => void {
    const child = this.#child
    child?.kill('SIGSTOP')
    return () => child?.kill('SIGCONT')
  }

  async remove(): Promise<void> {
    await this.kill()
    running.delete(this)
    rmSync(this.#directory, { recursive: true, force: true, maxRetries: 5 })
  }

  /** The test process ends: no time to wait. */
  abandon(): void {
    this.#child?.kill('SIGKILL')
    rmSync(this.#directory, { recursive: true, force: true, maxRetries: 5 })
  }
}

function propertiesOf(
  directory: string,
  { keystore }: Installed,
  port: number,
  saslPort: number,
  controllerPort: number,
): string {
  const listeners = `PLAINTEXT://127.0.0.1:${port},SASL_SSL://127.0.0.1:${saslPort}`
  const properties = {
    'process.roles': 'broker,controller',
    'node.id': 1,
    'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
    listeners: `${listeners},CONTROLLER://127.0.0.1:${controllerPort}`,
    'advertised.listeners': listeners,
    'controller.listener.names': 'CONTROLLER',
    'listener.security.protocol.map': 'PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT',
    'sasl.enabled.mechanisms': 'SCRAM-SHA-512',
    'listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config':
      'org.apache.kafka.common.security.scram.ScramLoginModule required;',
    'ssl.keystore.type': 'PKCS12',
    'ssl.keystore.location': keystore,
    'ssl.keystore.password': STORE_PASSWORD,
    'log.dirs': join(directory, 'data'),
    'auto.create.topics.enable': false,
    'offsets.topic.replication.factor': 1,
    'offsets.topic.num.partitions': 1,
    'transaction.state.log.replication.factor': 1,
    'transaction.state.log.min.isr': 1,
    'group.initial.rebalance.delay.ms': 0,
    'num.network.threads': 1,
    'num.io.threads': 2,
    'log.cleaner.enable': false,
    // a killed broker may register again only when its last session is over
    'broker.session.timeout.ms': 1_000,
    'broker.heartbeat.interval.ms': 300,
    'initial.broker.registration.timeout.ms': 60_000,
  }
  return Object.entries(properties)
    .map(([name, value]) => `${name}=${value}\n`)
    .join('')
}

/** Free at this moment; another process may take one before Kafka does, and then the start fails by name. */
async function freePorts(count: number): Promise<readonly number[]> {
  const servers = await Promise.all(
    Array.from(
      { length: count },
      () =>
        new Promise<ReturnType<typeof createServer>>((resolve, reject) => {
          const server = createServer()
          server.once('error', reject)
          server.listen(0, '127.0.0.1', () => resolve(server))
        }),
    ),
  )
  const ports = servers.map((server) => (server.address() as { port: number }).port)
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ host: '127.0.0.1', port })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
