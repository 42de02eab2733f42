/**
 * Claim: the report of a run opens from disk without network and without errors, draws a chart for everything that was
 * measured and none for what was not, fits a narrow screen, and escapes what it is given. Tried in a real Chromium, where
 * there is one, with a run made up here.
 */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { chromium } from 'playwright-core'
import { machineFacts } from '../native-bench/machine.ts'
import { FLEET_DEFAULTS, type FleetResult } from './fleet-run.ts'
import { renderReport } from './report.ts'
import { FleetTally } from './tally.ts'
import type { PhaseSummary, Sample } from './timeline.ts'

const CHROMIUM = [
  process.env['CHROMIUM_PATH'],
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
].find((path) => path !== undefined && existsSync(path))

function made(hasGateway: boolean): FleetResult {
  const tally = new FleetTally()
  const samples = Array.from(
    { length: 30 },
    (_, index): Sample => ({
      atS: index + 1,
      phase: index < 10 ? 0 : 1,
      connected: Math.min(100, index * 10),
      offeredPerS: 100 + index,
      achievedPerS: 99 + index,
      // nothing was answered in one second
      replyMsP50: index === 5 ? null : 1 + index / 10,
      replyMsP99: index === 5 ? null : 10 + index,
      replyMsMax: index === 5 ? null : 100,
      settlementMsP99: null,
      latenessMsP99: 1,
      settlementsSent: index,
      settlementsAcked: index,
      errors: 0,
      gatewayCpuPercent: hasGateway ? 20 : null,
      gatewayRssMib: hasGateway ? 300 : null,
      rowsPending: hasGateway ? 0 : null,
      gatewayDelayMs: null,
    }),
  )
  const phase = (name: string, fromS: number, toS: number): PhaseSummary => ({
    name,
    fromS,
    toS,
    offeredPerS: 1,
    achievedPerS: 1,
    replyMsP50: 1,
    replyMsP99: null,
    settlementMsP99: null,
    settlementsAcked: 1,
    connectedMin: 0,
    errors: 0,
  })
  return {
    summary: tally.summary(100, 100, 30, 0, true),
    notes: tally.notes(30, 0),
    samples,
    phases: [phase('<i>first', 0, 10), phase('second', 10, 30)],
  }
}

const page = (result: FleetResult): string =>
  renderReport({
    title: '</script><b>bold',
    about: 'a & b',
    command: 'npm run fleet',
    options: FLEET_DEFAULTS,
    machine: machineFacts(),
    result,
  })

test('one file, nothing from elsewhere, everything escaped', () => {
  const html = page(made(true))
  assert.ok(!html.includes('<b>bold') && !html.includes('<i>first'))
  assert.ok(html.includes('a &amp; b'))
  assert.doesNotMatch(html, /(?:src|href)=["']?https?:|@import|url\(["']?http/)
})

test('in a browser: charts, no errors, no sideways scrolling', {
  skip: CHROMIUM ? false : 'no Chromium',
}, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pilegate-report-'))
  const browser = await chromium.launch({ executablePath: CHROMIUM as string, args: ['--no-sandbox'] })
  t.after(async () => {
    await browser.close()
    rmSync(folder, { recursive: true })
  })
  for (const [hasGateway, charts] of [
    [true, 8],
    [false, 5],
  ] as const) {
    const file = join(folder, 'report.html')
    writeFileSync(file, page(made(hasGateway)))
    for (const [width, colorScheme] of [
      [390, 'light'],
      [1_440, 'dark'],
    ] as const) {
      const tab = await browser.newPage({ viewport: { width, height: 900 }, colorScheme })
      const errors: string[] = []
      tab.on('pageerror', (error) => errors.push(error.message))
      tab.on('requestfailed', (request) => errors.push(request.url()))
      await tab.goto(`file://${file}`)
      await tab.waitForSelector('canvas')
      const seen = await tab.evaluate(
        `({ canvases: document.querySelectorAll('canvas').length, wide: document.documentElement.scrollWidth })`,
      )
      assert.deepEqual(seen, { canvases: charts, wide: width })
      assert.deepEqual(errors, [])
      await tab.close()
    }
  }
})
