/**
 * `npm run recompute -- --device ID | --profile NAME [--from TIME] [--to TIME] [--apply]`: energy, amount and card of settled
 * orders from the raw counts of their settlements, by the model profile that their device has now. Without `--apply` nothing
 * is changed. On the database of DATABASE_URL, else on the embedded one, also beside a running gateway.
 */
import { userInfo } from 'node:os'
import { readOptions } from '../config/command-line.ts'
import { MODEL_PROFILES, parseAnyDeviceId } from '../protocols/index.ts'
import { connect } from './database/connect.ts'
import { startEmbeddedPostgres } from './database/embedded-postgres.ts'
import { type Recomputation, type RecomputeOptions, recompute, sumsOf } from './recompute.ts'

const USAGE =
  'npm run recompute -- --device ID | --profile NAME [--from RFC3339] [--to RFC3339] [--apply]\n' +
  `profiles: ${MODEL_PROFILES.map(({ name }) => name).join(', ')}`
const say = (fields: object) => process.stderr.write(`${JSON.stringify(fields)}\n`)

async function run(): Promise<number> {
  const text = { type: 'string' } as const
  const values = readOptions(USAGE, {
    device: text,
    profile: text,
    from: text,
    to: text,
    apply: { type: 'boolean', default: false },
  })
  const { device, profile, apply: isApplied } = values
  const fromMs = values.from === undefined ? undefined : Date.parse(values.from)
  const toMs = values.to === undefined ? undefined : Date.parse(values.to)
  const isDevice = device !== undefined && profile === undefined && parseAnyDeviceId(device) !== undefined
  const isProfile = profile !== undefined && device === undefined && MODEL_PROFILES.some(({ name }) => name === profile)
  if ((!isDevice && !isProfile) || Number.isNaN(fromMs) || Number.isNaN(toMs)) {
    console.error(USAGE)
    return 2
  }
  const given = process.env['DATABASE_URL']
  const dataDir = process.env['DATA_DIR'] || '.data'
  const embedded = given
    ? undefined
    : await startEmbeddedPostgres({ dataDir, log: { info: () => {}, warn: say, error: say } })
  const sql = connect(given || embedded!.url, { max: 1, applicationName: 'pilegate-recompute' })
  try {
    const options: RecomputeOptions = {
      sql,
      which: isDevice ? { deviceId: device } : { profile: profile! },
      ...(fromMs !== undefined && { fromMs }),
      ...(toMs !== undefined && { toMs }),
      isApplied,
      actor: `recompute:${userInfo().username}`,
      now: Date.now,
    }
    process.stdout.write(report(await recompute(options), isApplied))
    return 0
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

process.exitCode = await run()
