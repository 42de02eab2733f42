/**
 * Claims: the console works for a person in a browser. Sign in with a key, see a device come online, start a charge on
 * it, see progress and settlement, all without reloading; every page does what it offers, and offers only what the key
 * may do; in English and Chinese, dark and light, at 390 and at 1440 pixels without a horizontal scroll bar, every
 * control with a name and every text with contrast (WCAG AA); it says when the database, the gateway or the key is gone
 * and comes back by itself; and nothing it does breaks its own Content-Security-Policy.
 *
 * Tried in a headless Chromium against a whole gateway, with a simulated pile (loadtest/device-ap3000.ts) on a real
 * socket. Without a Chromium on the machine the test is skipped by name. Screenshots of every page lie in a temporary
 * folder, which is printed; they are for eyes, not for comparison.
 */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { type Browser, chromium, type Page } from 'playwright-core'
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
const ADMIN = 'chief-secret'
const VIEWER = 'watch-secret'
/** Loaded machines are slow; what takes this long is broken. */
const WAIT_MS = 20_000

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

/** What a page owes everybody: nothing sticks out sideways, every control has a name, every text can be read. */
const AUDIT = `(() => {
  const found = []
  const root = document.documentElement
  if (root.scrollWidth > root.clientWidth) found.push((root.scrollWidth - root.clientWidth) + ' px too wide')
  for (const control of document.querySelectorAll('button, a[href], input, select, textarea, summary')) {
    const name = control.getAttribute('aria-label') || control.labels?.[0]?.textContent || control.textContent
    if (!name?.trim()) found.push('no name: ' + control.outerHTML.slice(0, 120))
  }
  const ids = [...document.querySelectorAll('[id]')].map(({ id }) => id)
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push('twice: #' + id)
  const channels = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number)
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    return 0.2126 * x + 0.7152 * y + 0.0722 * z
  }
  const groundOf = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = channels(getComputedStyle(at).backgroundColor)
      if (a === 1) return [r, g, b]
    }
    return [255, 255, 255]
  }
  const seen = new Set()
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement
    if (!node.data.trim() || seen.has(element) || !element.checkVisibility({ opacityProperty: true })) continue
    seen.add(element)
    // switched off may be faint
    if (element.closest(':disabled, .stale, noscript, .u-over')) continue
    const [one, two] = [luminance(channels(getComputedStyle(element).color)), luminance(groundOf(element))]
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05)
    if (ratio < 4.5) found.push('contrast ' + ratio.toFixed(2) + ': ' + node.data.trim().slice(0, 40))
  }
  return found
})()`

describe('console in Chromium', {
  skip: CHROMIUM === undefined ? 'no Chromium found (CHROMIUM_PATH names one)' : false,
}, () => {
  let gateway: GatewayProcess
  let env: Record<string, string>
  let browser: Browser
  let page: Page
  let pile: Pile
  let receiver: http.Server
  const received: string[] = []
  const problems: string[] = []
  let navigations = 0
  const screenshots = mkdtempSync(join(tmpdir(), 'pilegate-console-'))
  const ask = (method: string, path: string, body?: unknown) =>
    gateway.ask(method, path, { secret: ADMIN, ...(body === undefined ? {} : { body }) })

  async function openPage(): Promise<Page> {
    const context = await browser.newContext({
      viewport: { width: 1440, height: 900 },
      locale: 'en-GB',
      colorScheme: 'light',
    })
    const opened = await context.newPage()
    opened.setDefaultTimeout(WAIT_MS)
    return opened
  }

  before(async () => {
    // by number: a port the system chose cannot be taken again while its last connections linger
    env = {
      STATE_FLUSH_MS: '50',
      COMMAND_SPACING_MS: '50',
      IDENTIFY_TIMEOUT_MS: '1000',
      REQUEST_TIMEOUT_MS: '3000',
      WEBHOOK_ALLOW_PRIVATE: 'true',
      HTTP_PORT: String(await freePort()),
      API_KEYS: `chief:${ADMIN}:admin,watch:${VIEWER}:viewer`,
    }
    gateway = await GatewayProcess.start({ env })
    pile = new Pile(gateway.tcpPort)
    receiver = http.createServer((request, response) => {
      request.resume().on('end', () => {
        received.push(String(request.headers['webhook-id']))
        response.end('thank you')
      })
    })
    await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve))
    browser = await chromium.launch({ executablePath: CHROMIUM!, args: ['--no-sandbox'] })
    page = await openPage()
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
    receiver?.close()
    await browser?.close()
    await gateway?.remove()
    console.log(`# screenshots: ${screenshots}`)
  })

  /** A picture at both widths, and what a page owes everybody. */
  async function photograph(name: string): Promise<void> {
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: width === 390 ? 844 : 900 })
      await page.evaluate('new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))')
      await page.screenshot({ path: join(screenshots, `${name}-${width}.png`), fullPage: true })
      assert.deepEqual(await page.evaluate(AUDIT), [], `${name} at ${width}`)
    }
    await page.setViewportSize({ width: 1440, height: 900 })
  }
  const linkTo = (name: string) =>
    page.getByRole('navigation', { name: /^(?:Pages|页面)$/ }).getByRole('link', { name, exact: true })
  async function go(name: string): Promise<void> {
    await linkTo(name).click()
    // the page before it stays until the next one is drawn, and may hold the words that are looked for
    await page.locator('h1', { hasText: new RegExp(`^${name}$`) }).waitFor({ state: 'attached' })
  }
  const dialog = () => page.getByRole('dialog')
  async function confirm(name = 'Confirm'): Promise<void> {
    await dialog().getByRole('button', { name, exact: true }).click()
    await dialog().waitFor({ state: 'detached' })
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
    await page.getByLabel('API key').fill(ADMIN)
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.locator('#live-state.live').waitFor()
    assert.match((await page.locator('#who').textContent()) ?? '', /chief\s*Admin · default/)
    assert.equal(await page.evaluate('Object.keys(localStorage).some((name) => /key/.test(name))'), false)
  })

  test('a device comes online before the eyes of whoever watches', async () => {
    await go('Devices')
    await page.getByText('No device has connected yet.').waitFor()
    await photograph('devices-empty')
    pile.act((device) => device.powerOn(Date.now()))
    await page.getByRole('link', { name: DEVICE_ID }).waitFor()
    await page.locator('tbody .badge.good', { hasText: 'Online' }).waitFor()
    await photograph('devices')
    await page.getByLabel('Search').fill('no such thing')
    await page.getByText('Nothing fits the filter.').waitFor()
    assert.match(page.url(), /#\/devices\?q=no\+such\+thing$/)
    await go('Overview')
    await page.locator('#tile-online', { hasText: /^1$/ }).waitFor()
    await page.locator('.u-wrap canvas').waitFor()
  })

  test('a charge is started on its page, progresses, is stopped and settles, without reloading', async () => {
    await go('Devices')
    await page.getByRole('link', { name: DEVICE_ID }).click()
    const start = page.getByRole('button', { name: 'Start a charge, Port 1' })
    // by keyboard: opened, left again, and back where it was
    await start.focus()
    await page.keyboard.press('Enter')
    await dialog().waitFor()
    await page.keyboard.press('Escape')
    await dialog().waitFor({ state: 'detached' })
    await page.locator('[aria-label="Start a charge, Port 1"]:focus').waitFor()
    await page.keyboard.press('Enter')
    await dialog().getByLabel('Mode').selectOption('time')
    await dialog().getByLabel('Duration (minutes)').fill('90')
    await photograph('start-dialog')
    // it arrives, but its answer does not: saying it again must not start a second charge
    await page.route(
      '**/charge',
      async (route) => {
        await route.fetch()
        await route.abort()
      },
      { times: 1 },
    )
    await dialog().getByRole('button', { name: 'Confirm' }).click()
    await dialog().getByText('The gateway cannot be reached.').waitFor()
    assert.ok(
      problems.every((text) => text.includes('ERR_FAILED')),
      problems.join('\n'),
    )
    problems.length = 0
    await confirm()
    assert.equal((await ask('GET', `/api/v1/commands?device_id=${DEVICE_ID}`)).json.items.length, 1)
    const port = page.locator('[data-port="1"]')
    await port.getByText('Charging').waitFor()
    await port.getByRole('link').waitFor()
    // the double says what it feeds in each heartbeat or progress report
    await port.getByText(/[1-9][\d,]* Wh/).waitFor()
    await photograph('device-charging')
    await go('Overview')
    await page.locator('#tile-charging', { hasText: /^1$/ }).waitFor()
    await page.locator('#feed li', { hasText: 'Charging started' }).waitFor()
    await photograph('overview')
    await go('Orders')
    await page.locator('td .badge', { hasText: 'Charging' }).waitFor()
    await page.locator('td a.mono').first().click()
    await page.locator('dd .badge', { hasText: 'Charging' }).waitFor()
    const orderUrl = page.url()

    await page.locator('dd a.mono').click()
    await page.getByRole('button', { name: 'Stop the charge, Port 1' }).click()
    await confirm('Stop')
    await page.locator('td .badge', { hasText: 'Settled' }).waitFor()
    assert.equal(pile.settled.length, 1)
    await page.locator('td a.mono').first().click()
    await page.locator('dd .badge', { hasText: 'Settled' }).waitFor()
    assert.equal(page.url(), orderUrl)
    await page.locator('.feed li', { hasText: 'Charging ended' }).waitFor()
    assert.match((await page.locator('dd time').first().getAttribute('title')) ?? '', /^\d{4}-\d\d-\d\d .* UTC$/)
    await photograph('order')
    await go('Orders')
    await page.getByLabel('State').selectOption('charging')
    await page.getByText('Nothing fits the filter.').waitFor()
    await page.getByLabel('State').selectOption('settled')
    await page.locator('td .badge', { hasText: 'Settled' }).waitFor()
    await photograph('orders')
    assert.equal(navigations, 1, 'nothing was reloaded')
  })

  test('any other command goes out with confirmation, and its fate is seen; so are timeline and frames', async () => {
    await go('Devices')
    await page.getByRole('link', { name: DEVICE_ID }).click()
    await page.getByRole('button', { name: 'Send a command' }).click()
    await dialog().getByLabel('Command').selectOption('locate')
    await dialog().getByLabel('locate s').fill('300')
    await dialog().getByRole('button', { name: 'Send' }).click()
    // the schema's bound, kept by the browser
    assert.equal(await dialog().locator('input:invalid').count(), 1)
    await dialog().getByLabel('locate s').fill('3')
    await photograph('command-dialog')
    await confirm('Send')
    await page
      .locator('tr', { hasText: 'locate' })
      .locator('.badge', { hasText: /Done|Refused|No answer/ })
      .waitFor()
    const tabs = page.getByRole('navigation', { name: DEVICE_ID })
    await tabs.getByRole('link', { name: 'Commands' }).click()
    await page.locator('td summary', { hasText: 'locate' }).click()
    await page.getByText('"locate_s": 3').waitFor()
    await photograph('commands')
    await tabs.getByRole('link', { name: 'Timeline' }).click()
    await page.locator('.feed li', { hasText: 'Charging ended' }).waitFor()
    await page.getByLabel('Kind').selectOption('frame')
    await page.locator('.feed li', { hasText: 'register' }).first().waitFor()
    await photograph('timeline')
    await tabs.getByRole('link', { name: 'Frames' }).click()
    await page.getByText('Recording is off (RECORD=off)').waitFor()
    await page.locator('.frames li', { hasText: 'register' }).first().waitFor()
    await photograph('frames')
  })

  test('webhooks: made with a secret shown once, delivered, delivered again', async () => {
    const url = `http://127.0.0.1:${(receiver.address() as net.AddressInfo).port}/pilegate`
    await go('Webhooks')
    await page.getByText('No webhook is set up.').waitFor()
    await page.getByRole('button', { name: 'Add a webhook' }).click()
    await dialog().getByLabel('Address').fill(url)
    await dialog().getByLabel('Alarm').check()
    // one dialog follows the other
    await dialog().getByRole('button', { name: 'Save' }).click()
    assert.match(await dialog().getByLabel('Secret').inputValue(), /^whsec_/)
    await confirm('Done')
    await page.getByRole('button', { name: 'Test' }).click()
    await page.locator('td .badge', { hasText: 'Delivered' }).waitFor()
    await page.getByRole('button', { name: 'Deliver again' }).first().click()
    await confirm()
    await page.locator('td .badge', { hasText: 'Delivered' }).nth(1).waitFor()
    assert.equal(received.length, 2)
    assert.equal(new Set(received).size, 1, 'the same event')
    await page.locator('td summary').first().click()
    await page.getByText('thank you').first().waitFor()
    await photograph('webhook')
    await go('Webhooks')
    await page.getByRole('link', { name: url }).waitFor()
    await photograph('webhooks')
  })

  test('a job writes parameters and shows the outcome of each device', async () => {
    await go('Jobs')
    await page.getByText('No job yet.').waitFor()
    await page.getByRole('button', { name: 'Set parameters' }).click()
    await dialog().getByLabel('Command').selectOption({ label: 'AP3000 setLimits' })
    await dialog().getByLabel('overload power dw').first().fill('20000')
    await dialog().getByLabel('Which devices').selectOption('ids')
    await dialog().getByLabel('Device ids').fill(DEVICE_ID)
    await photograph('job-dialog')
    await confirm('Start')
    await page.locator('h1', { hasText: 'setLimits' }).waitFor()
    await page.locator('.head .badge', { hasText: 'Finished' }).waitFor()
    await page.locator('td .badge', { hasText: 'Done' }).waitFor()
    await photograph('job')
    await go('Jobs')
    await page.getByText('1 of 1', { exact: true }).waitFor()
    await photograph('jobs')
  })

  test('cards, allowlist, quarantine and audit', async () => {
    await go('Cards')
    await page.getByRole('button', { name: 'Add a card' }).click()
    await dialog().getByLabel('Card', { exact: true }).fill('1cfcbaad')
    await dialog().getByLabel('Balance (yuan)').fill('12.34')
    await confirm('Save')
    await page.locator('td', { hasText: '¥12.34' }).waitFor()
    assert.equal((await ask('GET', '/api/v1/cards')).json.items[0].balance_fen, 1_234)
    await photograph('cards')

    await go('Allowlist')
    await page.getByText('kept but not enforced').waitFor()
    await page.getByRole('button', { name: 'Let in' }).click()
    await dialog().getByLabel('Kind').selectOption('network')
    await dialog().getByLabel('Who').fill('10.1.0.0/33')
    await dialog().getByRole('button', { name: 'Save' }).click()
    await dialog().getByText('not an address or CIDR range').waitFor()
    problems.length = 0
    await dialog().getByLabel('Who').fill('10.1.0.0/16')
    await confirm('Save')
    await page.locator('td', { hasText: '10.1.0.0/16' }).waitFor()
    await photograph('allowlist')
    await page.getByRole('button', { name: 'Remove 10.1.0.0/16' }).click()
    await confirm('Remove')
    await page.getByText('The allowlist is empty.').waitFor()

    const stranger = net.connect(gateway.tcpPort, '127.0.0.1').on('error', () => {})
    stranger.write('who am I?')
    await new Promise((resolve) => stranger.on('close', resolve).resume())
    await go('Quarantine')
    // it is written a moment behind the refusal, and no event tells so
    for (let look = 0; look < 40 && (await page.locator('td code').count()) === 0; look++) {
      await page.getByRole('button', { name: 'Refresh' }).click()
      await page.waitForTimeout(100)
    }
    await page.locator('td', { hasText: 'Did not say who it is' }).waitFor()
    assert.equal(await page.locator('td code').first().textContent(), '77 68 6f 20 61 6d 20 49 3f')
    await photograph('quarantine')

    await go('Audit')
    await page.locator('td', { hasText: 'Card made' }).waitFor()
    await page.getByLabel('Target').fill(DEVICE_ID)
    await page.locator('td', { hasText: 'Card made' }).waitFor({ state: 'detached' })
    await page.locator('td', { hasText: 'Command given' }).first().waitFor()
    await photograph('audit')
  })

  test('who may only look is offered nothing else, and a page that cannot keep up begins anew', async () => {
    const other = await openPage()
    const sockets: { close(options: { code: number }): Promise<void> }[] = []
    await other.routeWebSocket(/\/ws\?/, (socket) => {
      sockets.push(socket)
      socket.connectToServer()
    })
    await other.goto(`http://127.0.0.1:${gateway.httpPort}/#/devices/${DEVICE_ID}`)
    await other.getByLabel('API key').fill(VIEWER)
    await other.getByRole('button', { name: 'Sign in' }).click()
    await other.locator('[data-port="1"]').waitFor()
    await other.locator('#live-state.live').waitFor()
    assert.deepEqual(await other.locator('main button').allInnerTexts(), [])
    assert.deepEqual(await other.getByRole('navigation', { name: 'Pages' }).getByRole('link').allInnerTexts(), [
      'Overview',
      'Devices',
      'Orders',
      'Jobs',
      'Cards',
    ])
    await other.goto(`http://127.0.0.1:${gateway.httpPort}/#/audit`)
    await other.getByText('This page needs a key with the role Admin; yours has the role Viewer.').waitFor()
    await sockets.at(-1)!.close({ code: 4008 })
    await other.getByText('This page could not keep up and begins anew.').waitFor()
    await other.locator('#live-state.live').waitFor()
    assert.equal(sockets.length, 2)
    await other.context().close()
  })

  test('Chinese and dark, remembered over a reload', async () => {
    await go('Overview')
    await page.locator('#language').click()
    await linkTo('设备').waitFor()
    // auto, light, dark
    await page.locator('#theme').click()
    await page.locator('#theme').click()
    assert.equal(await page.evaluate('document.documentElement.dataset.theme'), 'dark')
    await photograph('overview-zh-dark')
    await page.reload()
    await linkTo('设备').waitFor()
    assert.equal(
      await page.evaluate('document.documentElement.lang + document.documentElement.dataset.theme'),
      'zh-CNdark',
    )
    await go('设备')
    await page.getByRole('link', { name: DEVICE_ID }).click()
    await page.locator('#ports').waitFor()
    await photograph('device-zh-dark')
    await go('任务')
    await page.getByText('1 / 1', { exact: true }).waitFor()
    await photograph('jobs-zh-dark')
    // at 390 px the way to other pages is a menu
    await page.setViewportSize({ width: 390, height: 844 })
    await page.getByRole('button', { name: '菜单' }).click()
    await go('回调')
    await linkTo('审计').waitFor({ state: 'hidden' })
    await page.setViewportSize({ width: 1440, height: 900 })
    await photograph('webhooks-zh-dark')
    await page.locator('#language').click()
  })

  test('while the database is away the page says so, keeps what it showed, and comes back by itself', async () => {
    await go('Devices')
    await page.getByRole('link', { name: DEVICE_ID }).waitFor()
    const thaw = gateway.freezePostgres()
    try {
      // any request finds out
      await page.getByLabel('Protocol').selectOption('ap3000')
      await page.locator('#trouble', { hasText: 'The database is away' }).waitFor()
      await page.getByRole('link', { name: DEVICE_ID }).waitFor()
      await photograph('database-away')
    } finally {
      thaw()
    }
    await page.locator('#trouble').waitFor({ state: 'hidden' })
    await page.locator('.section:not(.stale)').first().waitFor()
    assert.ok(
      problems.every((text) => /50[34]/.test(text)),
      problems.join('\n'),
    )
    problems.length = 0
  })

  test('after a restart of the gateway the page is live again by itself, and what happened meanwhile is heard', async () => {
    await go('Overview')
    await page.locator('#live-state.live').waitFor()
    const { dataDir, tcpPort } = gateway
    assert.equal(await gateway.stop(), 0)
    await page.locator('#live-state.away').waitFor()
    await gateway.closeSql()
    gateway = await GatewayProcess.start({ dataDir, env: { ...env, TCP_PORT: String(tcpPort) } })
    await page.locator('#live-state.live').waitFor()
    await page.locator('#trouble').waitFor({ state: 'hidden' })
    await page.locator('#feed li', { hasText: 'Device offline' }).first().waitFor()
    await page.locator('#feed li', { hasText: 'Device online' }).first().waitFor()
    await page.locator('#tile-online', { hasText: /^1$/ }).waitFor()
  })

  test('a key that is good no longer is said to be, and signing out forgets it', async () => {
    const { dataDir, tcpPort } = gateway
    assert.equal(await gateway.stop(), 0)
    await gateway.closeSql()
    const changed = { ...env, TCP_PORT: String(tcpPort), API_KEYS: 'chief:another-secret:admin' }
    gateway = await GatewayProcess.start({ dataDir, env: changed })
    await page.getByText('The gateway does not accept this key any more.').waitFor()
    assert.equal(await page.evaluate('sessionStorage.length'), 0)
    await page.getByLabel('API key').fill('another-secret')
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.locator('#live-state.live').waitFor()
    await page.getByRole('button', { name: 'Sign out' }).click()
    await page.getByLabel('API key').waitFor()
    assert.equal(await page.evaluate('sessionStorage.length'), 0)
    // what the browser says about a gateway that is away, or a key that is, is no fault of the page
    assert.ok(
      problems.every((text) => /ERR_CONNECTION|WebSocket connection|503|401/.test(text)),
      problems.join('\n'),
    )
  })
})
