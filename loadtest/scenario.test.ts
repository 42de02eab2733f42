/**
 * Claim: every scenario file is good and makes as many orders as its phases say; a wrong file is refused with the place
 * and the rule; phases happen in a run: rates change, connections are cut and come back, and samples and phases of the
 * report add up to what the summary says. Tried with arithmetic, and with one short run against a scripted server.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { machineFacts } from '../native-bench/machine.ts'
import { checkFleetOptions, FLEET_DEFAULTS, type FleetOptions, runFleet } from './fleet-run.ts'
import { renderReport } from './report.ts'
import { nextOrderS, onePhase, type Phase, phasesOf, readScenario, scenarioNames } from './scenario.ts'
import { GOOD_CARD, ScriptedPeer } from './scripted-server.ts'

const phase = (fromS: number, toS: number, rateFrom: number, rateTo: number, cutShare = 0): Phase => ({
  name: `${fromS}`,
  fromS,
  toS,
  rateFrom,
  rateTo,
  cutShare,
})

function ordersOf(phases: readonly Phase[]): number[] {
  const times: number[] = []
  for (let atS = nextOrderS(phases, 0); Number.isFinite(atS); atS = nextOrderS(phases, atS)) times.push(atS)
  return times
}

for (const name of scenarioNames())
  test(`scenarios/${name}.yaml: options hold, and there are as many orders as the area below the rate`, () => {
    const scenario = readScenario(name)
    const phases = phasesOf(scenario)
    checkFleetOptions({ ...FLEET_DEFAULTS, ...(scenario.options as Partial<FleetOptions>) })
    const area = phases.reduce((sum, one) => sum + ((one.rateFrom + one.rateTo) / 2) * (one.toS - one.fromS), 0)
    assert.ok(Math.abs(ordersOf(phases).length - area) <= 1, `${ordersOf(phases).length} orders, ${area} expected`)
    assert.ok(Math.abs((phasesOf(scenario, 10).at(-1)?.toS ?? 0) - 10) < 1e-9)
  })

test('the three that the README names are there', () => {
  assert.deepEqual(scenarioNames(), ['morning-peak', 'steady', 'storm'])
})

test('a steady rate is evenly spaced, a rising one grows denser, nothing comes in a phase without orders', () => {
  assert.deepEqual(ordersOf(onePhase({ durationS: 2, ordersPerS: 2 })), [0.5, 1, 1.5, 2])
  const rising = ordersOf([phase(0, 10, 0, 4)])
  // the last one is due with the last moment: rounding decides
  assert.ok(rising.length >= 19 && rising.length <= 20)
  // t²·0.2 = n
  for (const [index, atS] of rising.entries()) assert.ok(Math.abs(atS - Math.sqrt((index + 1) / 0.2)) < 1e-9)
  const falling = ordersOf([phase(0, 10, 4, 0)])
  assert.ok(falling.length >= 19 && falling.length <= 20)
  const gap = ordersOf([phase(0, 1, 1.5, 1.5), phase(1, 5, 0, 0), phase(5, 6, 1.5, 1.5)])
  assert.equal(gap.length, 3)
  assert.ok(gap.every((atS) => atS <= 1 || atS >= 5))
})

test('a wrong file: its place and the rule', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pilegate-scenario-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const file = (text: string) => {
    const path = join(folder, 'one.yaml')
    writeFileSync(path, text)
    return path
  }
  const good = 'title: T\noptions: {}\nphases: [{ name: a, forS: 1, ordersPerS: 1 }]\n'
  assert.equal(readScenario(file(good)).phases[0]?.cutShare, 0)
  for (const [text, expected] of [
    [good.replace('forS: 1', 'forS: 0'), /phases\.0\.forS/],
    [good.replace('ordersPerS: 1', 'ordersPerS: { from: 1 }'), /phases\.0\.ordersPerS/],
    [good.replace('forS', 'forMinutes'), /phases\.0/],
    [good.replace('options: {}', 'options: { piles: 3 }'), /options.*piles/],
    [good.replace('phases', 'stages'), /phases|stages/],
    ['title: [', /one\.yaml/],
  ] as const)
    assert.throws(() => readScenario(file(text)), expected)
  assert.throws(() => readScenario('nothing'), /morning-peak, steady, storm/)
})

test('a run: phases with their rates, half of the fleet cut and back, a report of it', async (t) => {
  const sockets = new Set<net.Socket>()
  const server = net.createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    const peer = new ScriptedPeer((bytes) => socket.write(bytes), { card: GOOD_CARD })
    socket.on('data', (chunk) => peer.push(chunk, Date.now()))
    socket.on('error', () => {})
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  const options: FleetOptions = {
    ...FLEET_DEFAULTS,
    port: (server.address() as net.AddressInfo).port,
    devices: 40,
    rampPerS: 200,
    heartbeatS: 0.5,
    chargeS: 0.4,
    cardShare: 0,
    timeScale: 10,
    settleRepeatS: 0.5,
    durationS: 8,
    phases: [phase(0, 1, 0, 0), phase(1, 2, 20, 20), phase(2, 8, 5, 5, 0.5)],
    watched: { pid: process.pid },
  }
  const result = await runFleet(options)
  const { summary, notes, samples, phases } = result
  assert.deepEqual(notes.firstFailures, [])
  assert.equal(summary.errors, 0)
  assert.equal(summary.connected, 40, 'who was cut is back')
  assert.ok(sockets.size > 40 + 8, `${sockets.size} connections: half of 40 dialled again`)
  const started = notes.ordersStarted + notes.ordersWithoutPort
  assert.ok(Math.abs(started - 50) <= 5, `${started} orders, 50 expected`)
  assert.ok(
    samples.some(({ connected, phase: place }) => place === 2 && connected < 40),
    'a sample saw the cut',
  )
  assert.equal(samples.at(-1)?.settlementsAcked, summary.settlements_acked)
  assert.ok(samples.every(({ gatewayRssMib }) => (gatewayRssMib ?? 0) > 1))
  assert.deepEqual(
    phases.map(({ name }) => name),
    ['0', '1', '2'],
  )
  const frames = phases.reduce((sum, { offeredPerS, fromS, toS }) => sum + offeredPerS * (toS - fromS), 0)
  assert.ok(
    Math.abs(frames - summary.uplinks_sent) < summary.uplinks_sent * 0.1,
    `${frames} of ${summary.uplinks_sent}`,
  )
  assert.equal(
    phases.reduce((sum, { settlementsAcked }) => sum + settlementsAcked, 0),
    summary.settlements_acked,
  )

  const page = renderReport({
    title: '</script><b>',
    about: 'a & b',
    command: 'npm run fleet',
    options,
    machine: machineFacts(),
    result,
  })
  assert.ok(!page.includes('<b>') && page.includes('a &amp; b'))
  assert.doesNotMatch(
    page.replaceAll('http://www.w3.org', ''),
    /(?:src|href)="?https?:|@import|url\(http/,
    'it needs nothing from elsewhere',
  )
  const data = /<script type="application\/json" id="run">(.*)<\/script>/.exec(page)?.[1] as string
  assert.equal(JSON.parse(data).samples.length, samples.length)
})
