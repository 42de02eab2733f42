/**
 * `npm run recompute -- --device ID | --profile NAME [--from TIME] [--to TIME] [--apply]`: energy, amount and card of settled
 * orders from the raw counts of their settlements, by the model profile that their device has now. Without `--apply` nothing
 * is changed. On the database of the configuration, else on the embedded one, also beside a running gateway.
 */
import { userInfo } from 'node:os'
import { resolve } from 'node:path'
import { fail, readConfig, readOptions, refuse, time } from '../config/command-line.ts'
import { MODEL_PROFILES, parseAnyDeviceId } from '../protocols/index.ts'
import { connect } from './database/connect.ts'
import { type EmbeddedPostgres, hasCluster, startEmbeddedPostgres } from './database/embedded-postgres.ts'
import { type Recomputation, type RecomputeOptions, recompute, sumsOf } from './recompute.ts'

const PROFILES = MODEL_PROFILES.map(({ name }) => name)
const USAGE =
  'npm run recompute -- --device ID | --profile NAME [--from RFC3339] [--to RFC3339] [--apply]\n' +
  `profiles: ${PROFILES.join(', ')}`
const say = (fields: object) => process.stderr.write(`${JSON.stringify(fields)}\n`)

type Asked = Pick<RecomputeOptions, 'which' | 'fromMs' | 'toMs' | 'isApplied'>

function read(): Asked {
  const text = { type: 'string' } as const
  const {
    device,
    profile,
    from,
    to,
    apply: isApplied,
  } = readOptions(USAGE, {
    device: text,
    profile: text,
    from: text,
    to: text,
    apply: { type: 'boolean', default: false },
  })
  if ((device === undefined) === (profile === undefined)) return refuse('--device or --profile, one of them', USAGE)
  if (device !== undefined && parseAnyDeviceId(device) === undefined)
    return refuse(`--device ${device}: not a device id`)
  if (profile !== undefined && !PROFILES.includes(profile))
    return refuse(`--profile ${profile}: one of ${PROFILES.join(', ')}`)
  return {
    which: device !== undefined ? { deviceId: device } : { profile: profile! },
    ...(from !== undefined && { fromMs: time('from', from) }),
    ...(to !== undefined && { toMs: time('to', to) }),
    isApplied,
  }
}

async function run(): Promise<void> {
  const asked = read()
  const config = await readConfig()
  const dataDir = resolve(config.dataDir)
  let embedded: EmbeddedPostgres | undefined
  if (config.databaseUrl === null) {
    // a cluster made now would have no orders: somebody stands in the wrong folder
    if (!hasCluster(dataDir)) {
      console.error(`recompute: no database in ${dataDir}; set DATABASE_URL or DATA_DIR`)
      process.exitCode = 1
      return
    }
    embedded = await startEmbeddedPostgres({ dataDir, log: { info: () => {}, warn: say, error: say } })
  }
  const sql = connect(config.databaseUrl ?? embedded!.url, { max: 1, applicationName: 'pilegate-recompute' })
  try {
    const done = await recompute({ ...asked, sql, actor: `recompute:${userInfo().username}`, now: Date.now })
    process.stdout.write(report(done, asked.isApplied))
  } finally {
    await sql.end({ timeout: 2 })
    // one that was running belongs to a gateway: it stays
    if (embedded !== undefined && embedded.origin !== 'adopted') await embedded.stop()
  }
}

function report({ devices, orders, estimated }: Recomputation, isApplied: boolean): string {
  const lines = orders.map(({ orderNo, deviceId, profile, energyRaw, energyWh, amountFen, cardFen }) =>
    [
      orderNo,
      deviceId,
      profile ?? '-',
      String(energyRaw),
      `${energyWh.before} > ${energyWh.after}`,
      `${amountFen.before ?? '-'} > ${amountFen.after ?? '-'}`,
      cardFen === null ? '-' : String(-cardFen),
    ].join('\t'),
  )
  const sums = sumsOf(orders)
  return [
    ['order_no', 'device_id', 'model_profile', 'energy_raw', 'energy_wh', 'amount_fen', 'card_balance_fen'].join('\t'),
    ...lines,
    `${devices} devices, ${orders.length} orders differ: energy ${signed(sums.energy_wh)} Wh, amount ${signed(sums.amount_fen)} fen, card balances ${signed(-sums.card_fen)} fen`,
    ...(estimated > 0 ? [`${estimated} orders settled by estimate have no raw count and stay as they are`] : []),
    isApplied ? 'applied' : 'nothing was changed: --apply does it',
    '',
  ].join('\n')
}

const signed = (value: number) => (value > 0 ? `+${value}` : String(value === 0 ? 0 : value))

await run().catch((error: unknown) => fail('recompute', error))
