/**
 * Claims: the console works for a person in a browser. Sign in with a key, see a device come online, start a charge on
 * it, see progress and settlement, all without reloading; in English and Chinese, dark and light, at 390 and at 1440
 * pixels without a horizontal scroll bar; and nothing it does breaks its own Content-Security-Policy.
 *
 * Tried in a headless Chromium against a whole gateway, with a simulated pile (loadtest/device-ap3000.ts) on a real
 * socket. Without a Chromium on the machine the test is skipped by name. Screenshots of every page lie in a temporary
 * folder, which is printed; they are for eyes, not for comparison.
 */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core'
import type { DeviceObserver, DeviceWorld } from '../../../loadtest/device.ts'
import { AP3000_DEFAULTS, DeviceAp3000 } from '../../../loadtest/device-ap3000.ts'
import { GatewayProcess } from '../../testing/gateway-process.ts'

const CHROMIUM = [
  process.env['CHROMIUM_PATH'],
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
].find((path) => path !== undefined && existsSync(path))
const DEVICE_ID = '04ab373b'
const WIDTHS = [1440, 390] as const

async function freePort(): Promise<number> {
  const server = net.createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as net.AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}

/** One simulated pile on a real socket, awake whenever it wants to be. */
class Pile implements DeviceWorld {
  readonly device: DeviceAp3000
  readonly settled: string[] = []
  readonly #port: number
  #socket: net.Socket | undefined
  #timer: NodeJS.Timeout | undefined
  #isOver = false

  constructor(port: number) {
    this.#port = port
    const ignore = () => {}
    const observer: DeviceObserver = {
      uplinkSent: ignore,
      replyReceived: ignore,
      replyIgnored: ignore,
      replyMissed: ignore,
      commandReceived: ignore,
      orderStarted: ignore,
      settlementSent: ignore,
      settlementAcked: (_, __, order) => void this.settled.push(order),
      failed: ignore,
    }
    this.device = new DeviceAp3000(
      {
        ...AP3000_DEFAULTS,
        deviceNo: 0x04ab373b,
        iccid: '89860412345678901234',
        heartbeatMs: 1_000,
        chargeMs: 600_000,
        timeScale: 120,
        settleRepeatMs: 2_000,
        resultMs: 50,
      },
      this,
      observer,
    )
  }

  /** A call into the double, then the next appointment. */
  act(what: (device: DeviceAp3000) => void): void {
    if (this.#isOver) return
    what(this.device)
    clearTimeout(this.#timer)
    const inMs = this.device.nextWakeMs - Date.now()
    if (Number.isFinite(inMs))
      this.#timer = setTimeout(() => this.act((device) => device.wake(Date.now())), Math.max(1, inMs))
  }

  connect(): void {
    const socket = net.connect({ host: '127.0.0.1', port: this.#port, noDelay: true })
    this.#socket = socket
    socket.on('connect', () => this.act((device) => device.connected(Date.now())))
    socket.on('data', (chunk) => this.act((device) => device.received(chunk, Date.now())))
    socket.on('error', () => {})
    socket.on('close', () => {
      if (this.#socket === socket) this.act((device) => device.disconnected(Date.now(), 'closed'))
    })
  }

  send(bytes: Uint8Array): void {
    this.#socket?.write(bytes)
  }

  close(): void {
    this.#socket?.destroy()
  }

  end(): void {
    this.#isOver = true
    clearTimeout(this.#timer)
    this.#socket?.destroy()
  }
}

describe('console in Chromium', {
  skip: CHROMIUM === undefined ? 'no Chromium found (CHROMIUM_PATH names one)' : false,
}, () => {
  let gateway: GatewayProcess
  let browser: Browser
  let context: BrowserContext
  let page: Page
  let pile: Pile
  const problems: string[] = []
  let navigations = 0
  const screenshots = mkdtempSync(join(tmpdir(), 'pilegate-console-'))

  before(async () => {
    // by number: a port the system chose cannot be taken again while its last connections linger
    const env = { STATE_FLUSH_MS: '50', COMMAND_SPACING_MS: '50', HTTP_PORT: String(await freePort()) }
    gateway = await GatewayProcess.start({ env })
    pile = new Pile(gateway.tcpPort)
    browser = await chromium.launch({ executablePath: CHROMIUM!, args: ['--no-sandbox'] })
    context = await browser.newContext({
      viewport: { width: 1440, height: 900 },
      locale: 'en-GB',
      colorScheme: 'light',
    })
    page = await context.newPage()
    page.setDefaultTimeout(10_000)
    page.on('pageerror', (error) => problems.push(String(error)))
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) problems.push(message.text())
    })
    page.on('domcontentloaded', () => {
      navigations++
    })
  })
  after(async () => {
    pile?.end()
    await browser?.close()
    await gateway?.remove()
    console.log(`# screenshots: ${screenshots}`)
  })

  /** A picture at both widths; nothing may stick out sideways. */
  async function photograph(name: string): Promise<void> {
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: width === 390 ? 844 : 900 })
      await page.waitForTimeout(150)
      await page.screenshot({ path: join(screenshots, `${name}-${width}.png`), fullPage: true })
      const excess = await page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')
      assert.ok((excess as number) <= 0, `${name} at ${width}: ${excess} px too wide`)
    }
    await page.setViewportSize({ width: 1440, height: 900 })
  }

  test('a wrong key is refused, the right one lets in', async () => {
    const response = await page.goto(`http://127.0.0.1:${gateway.httpPort}/`)
    assert.match(
      response!.headers()['content-security-policy']!,
      /default-src 'none'; script-src 'self'; style-src 'self'/,
    )
    await photograph('sign-in')
    await page.getByLabel('API key').fill('wrong')
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.getByText('This key is not known here.').waitFor()
    // the browser itself reports the refusal
    assert.ok(
      problems.every((text) => text.includes('401')),
      problems.join('\n'),
    )
    problems.length = 0
    await page.getByLabel('API key').fill(gateway.secret)
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.locator('#live-state.live').waitFor()
    assert.equal(await page.evaluate('Object.keys(localStorage).some((name) => /key/.test(name))'), false)
  })

  test('a device comes online before the eyes of whoever watches', async () => {
    await page.getByRole('link', { name: 'Devices' }).click()
    await page.getByText('No device fits.').waitFor()
    await photograph('devices-empty')
    pile.act((device) => device.powerOn(Date.now()))
    await page.getByRole('link', { name: DEVICE_ID }).waitFor()
    await page.locator('tbody .badge.good', { hasText: 'Online' }).waitFor()
    await photograph('devices')
    await page.getByRole('link', { name: 'Overview' }).click()
    await page.locator('#tile-online', { hasText: /^1$/ }).waitFor()
    await page.locator('.u-wrap canvas').waitFor()
  })

  test('a charge is started on its page, progresses, is stopped and settles, without reloading', async () => {
    await page.getByRole('link', { name: 'Devices' }).click()
    await page.getByRole('link', { name: DEVICE_ID }).click()
    await page.getByRole('button', { name: 'Start a charge, Port 1' }).click()
    const dialog = page.getByRole('dialog')
    await dialog.getByLabel('Mode').selectOption('time')
    await dialog.getByLabel('Duration (minutes)').fill('90')
    await photograph('start-dialog')
    await dialog.getByRole('button', { name: 'Confirm' }).click()
    await dialog.waitFor({ state: 'detached' })
    const port = page.locator('[data-port="1"]')
    await port.getByText('Charging').waitFor({ timeout: 15_000 })
    await port.getByRole('link').waitFor()
    // the double says what it feeds in each heartbeat or progress report
    await port.getByText(/[1-9][\d,]* Wh/).waitFor({ timeout: 15_000 })
    await photograph('device-charging')
    await page.getByRole('link', { name: 'Overview' }).click()
    await page.locator('#tile-charging', { hasText: /^1$/ }).waitFor()
    await page.waitForTimeout(2_500)
    await photograph('overview')
    await page.goBack()

    await page.getByRole('button', { name: 'Stop the charge, Port 1' }).click()
    await dialog.getByRole('button', { name: 'Confirm' }).click()
    await dialog.waitFor({ state: 'detached' })
    await page.locator('td .badge', { hasText: 'Settled' }).waitFor({ timeout: 15_000 })
    assert.equal(pile.settled.length, 1)
    await photograph('device-settled')
    await page.locator('td a.mono').first().click()
    await page.locator('dd .badge', { hasText: 'Settled' }).waitFor()
    await photograph('order')
    await page.getByRole('link', { name: 'Orders' }).click()
    await page.locator('td .badge', { hasText: 'Settled' }).waitFor()
    await photograph('orders')
    assert.equal(navigations, 1, 'nothing was reloaded')
  })

  test('any other command goes out with confirmation, and its fate is seen', async () => {
    await page.getByRole('link', { name: 'Devices' }).click()
    await page.getByRole('link', { name: DEVICE_ID }).click()
    await page.getByRole('button', { name: 'Send a command' }).click()
    const dialog = page.getByRole('dialog')
    await dialog.getByLabel('Command').selectOption('locate')
    await photograph('command-dialog')
    await dialog.getByRole('button', { name: 'Confirm' }).click()
    await dialog.waitFor({ state: 'detached' })
    await page
      .locator('tr', { hasText: 'locate' })
      .locator('.badge', { hasText: /Done|Refused|No answer/ })
      .waitFor({ timeout: 15_000 })
  })

  test('webhooks and what became of their deliveries', async () => {
    const made = await gateway.ask('POST', '/api/v1/webhooks', { body: { url: 'https://receiver.example/pilegate' } })
    assert.equal(made.status, 201, made.text)
    await page.getByRole('link', { name: 'Webhooks' }).click()
    await page.getByRole('link', { name: 'https://receiver.example/pilegate' }).waitFor()
    await photograph('webhooks')
    await page.getByRole('link', { name: 'https://receiver.example/pilegate' }).click()
    await page.getByRole('button', { name: 'Test' }).click()
    await page.getByRole('button', { name: 'Deliver again' }).first().waitFor()
    await photograph('webhook')
  })

  test('Chinese and dark, remembered over a reload', async () => {
    await page.getByRole('link', { name: 'Overview' }).click()
    await page.locator('#language').click()
    await page.getByRole('link', { name: '设备' }).waitFor()
    // auto, light, dark
    await page.locator('#theme').click()
    await page.locator('#theme').click()
    assert.equal(await page.evaluate('document.documentElement.dataset.theme'), 'dark')
    await photograph('overview-zh-dark')
    await page.reload()
    await page.getByRole('link', { name: '设备' }).waitFor()
    assert.equal(
      await page.evaluate('document.documentElement.lang + document.documentElement.dataset.theme'),
      'zh-CNdark',
    )
    await page.getByRole('link', { name: '设备' }).click()
    await page.getByRole('link', { name: DEVICE_ID }).click()
    await page.locator('#ports').waitFor()
    await photograph('device-zh-dark')
  })

  test('after a restart of the gateway the page is live again by itself, and what happened meanwhile is heard', async () => {
    await page.locator('#language').click()
    await page.getByRole('link', { name: 'Overview' }).click()
    await page.locator('#live-state.live').waitFor()
    const { dataDir, tcpPort, httpPort } = gateway
    assert.equal(await gateway.stop(), 0)
    await page.locator('#live-state.away').waitFor()
    await gateway.closeSql()
    gateway = await GatewayProcess.start({ dataDir, env: { TCP_PORT: String(tcpPort), HTTP_PORT: String(httpPort) } })
    await page.locator('#live-state.live').waitFor({ timeout: 20_000 })
    await page.locator('#feed li', { hasText: 'Device offline' }).first().waitFor()
    await page.locator('#feed li', { hasText: 'Device online' }).first().waitFor({ timeout: 15_000 })
    await page.locator('#tile-online', { hasText: /^1$/ }).waitFor()
    // what the browser says about a gateway that is away is no fault of the page
    assert.ok(
      problems.every((text) => /ERR_CONNECTION|WebSocket connection|503/.test(text)),
      problems.join('\n'),
    )
    problems.length = 0
  })

  test('signing out forgets the key', async () => {
    await page.getByRole('button', { name: 'Sign out' }).click()
    await page.getByLabel('API key').waitFor()
    assert.equal(await page.evaluate('sessionStorage.length'), 0)
    assert.deepEqual(problems, [])
  })
})
