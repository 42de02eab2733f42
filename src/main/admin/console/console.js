/** The shell: sign-in, navigation, which page is shown, and one live connection for all of them. */
import { allowlistPage, auditPage, quarantinePage } from './admin-pages.js'
import { isReady, isSignedIn, may, me, signIn, signOut, whenInTrouble, whenSignedOut, whoAmI } from './api.js'
import { cardsPage } from './cards-page.js'
import { devicePage } from './device-page.js'
import { devicesPage } from './devices-page.js'
import { field, fill, h, toast } from './dom.js'
import { addFigures, forgetFigures } from './figures.js'
import { errorText, t, toggleLanguage, word } from './i18n.js'
import { jobPage, jobsPage } from './jobs-page.js'
import { Live } from './live.js'
import { orderPage, ordersPage } from './orders-page.js'
import { overviewPage } from './overview-page.js'
import { webhookPage, webhooksPage } from './webhooks-page.js'

const THEME = 'pilegate.theme'
const THEMES = ['auto', 'light', 'dark']
/** While something is away; never otherwise. */
const PROBE_MS = 3_000
const app = document.getElementById('app')
const prefersDark = matchMedia('(prefers-color-scheme: dark)')
let theme = THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : 'auto'
let liveState = 'connecting'
let page
let trouble
let probe

/** By the first part of the path: role, and what makes the page. */
const SECTIONS = {
  '': ['viewer', () => overviewPage()],
  devices: ['viewer', ({ id, tab, filters }) => (id === undefined ? devicesPage(filters) : devicePage(id, tab))],
  orders: ['viewer', ({ id, filters, listen }) => (id === undefined ? ordersPage(filters) : orderPage(id, listen))],
  jobs: ['viewer', ({ id, filters }) => (id === undefined ? jobsPage(filters) : jobPage(id))],
  cards: ['viewer', () => cardsPage()],
  webhooks: ['admin', ({ id }) => (id === undefined ? webhooksPage() : webhookPage(id))],
  allowlist: ['admin', () => allowlistPage()],
  quarantine: ['admin', () => quarantinePage()],
  audit: ['admin', ({ filters }) => auditPage(filters)],
}
const nameOf = (section) => (section === '' ? 'overview' : section)

function pageAt(hash) {
  const [path, query = ''] = hash.replace(/^#/, '').split('?')
  let parts
  try {
    parts = path.split('/').map(decodeURIComponent)
  } catch {
    parts = ['', path]
  }
  const [, section = '', id, tab] = parts
  const [role, make] = Object.hasOwn(SECTIONS, section) ? SECTIONS[section] : []
  if (make === undefined) return sayOnly(t('not_found'))
  if (!may(role)) return sayOnly(t('needs_role', { role: word('role', role), mine: word('role', me.role) }))
  const filters = Object.fromEntries(new URLSearchParams(query))
  return make({ id: id === '' ? undefined : id, tab, filters, listen: (topics) => live.listen(topics) })
}
const sayOnly = (text) => ({ title: text, topics: ['metrics'], element: h('p.empty', { role: 'alert' }, text) })

// ---- theme, live state, trouble ------------------------------------------------------------------------------------

function showTheme() {
  document.documentElement.dataset.theme = theme === 'auto' ? (prefersDark.matches ? 'dark' : 'light') : theme
}
prefersDark.addEventListener('change', () => {
  showTheme()
  page?.onTheme?.()
})
showTheme()

const live = new Live({
  onEvent(topic, event) {
    if (topic !== 'metrics') page?.onEvent?.(topic, event)
    else {
      addFigures(event)
      page?.onFigures?.()
    }
  },
  onState(state) {
    liveState = state
    showState()
    if (state === 'live') wellAgain()
  },
  // between asking and hearing something may have happened
  onSubscribed: () => page?.refresh?.(),
  onResync: () => page?.refresh?.(),
  onLagging: () => toast(t('lagging'), true),
})

function showState() {
  const element = document.getElementById('live-state')
  if (element === null) return
  element.className = `state ${liveState}`
  fill(element, h('span', {}, t(liveState)))
  element.title = t(liveState)
}

/** @param what `database` or `gateway` */
function inTrouble(what) {
  if (trouble !== what) {
    trouble = what
    showTrouble()
  }
  probe ??= setInterval(async () => {
    if (await isReady()) wellAgain()
  }, PROBE_MS)
}

function wellAgain() {
  clearInterval(probe)
  probe = undefined
  if (trouble === undefined) return
  trouble = undefined
  showTrouble()
  live.hurry()
  if (page !== undefined) page.refresh?.()
  else if (isSignedIn()) void enter()
}

function showTrouble() {
  const banner = document.getElementById('trouble')
  banner.hidden = trouble === undefined
  fill(banner, trouble === undefined ? '' : t(`${trouble}_away`))
}

// ---- sign-in -------------------------------------------------------------------------------------------------------

const languageButton = () =>
  h(
    'button',
    {
      type: 'button',
      id: 'language',
      lang: t('language') === 'English' ? 'en' : 'zh-CN',
      onclick: () => {
        toggleLanguage()
        render()
        showTrouble()
        document.getElementById('language').focus()
      },
    },
    t('language'),
  )
const themeButton = () =>
  h(
    'button',
    {
      type: 'button',
      id: 'theme',
      'aria-label': `${t('theme')}: ${t(`theme_${theme}`)}`,
      onclick: (event) => {
        theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]
        localStorage.setItem(THEME, theme)
        showTheme()
        event.currentTarget.textContent = t(`theme_${theme}`)
        event.currentTarget.setAttribute('aria-label', `${t('theme')}: ${t(`theme_${theme}`)}`)
        page?.onTheme?.()
      },
    },
    t(`theme_${theme}`),
  )
const logo = () => h('span.logo', { 'aria-hidden': 'true' })

let signInNotice = ''
function renderSignIn() {
  const key = h('input', { type: 'password', name: 'key', autocomplete: 'current-password', required: true })
  const problem = h('p.problem', { role: 'alert' }, signInNotice === '' ? '' : t(signInNotice))
  signInNotice = ''
  const button = h('button.primary', { type: 'submit' }, t('sign_in'))
  const form = h(
    'form',
    {
      onsubmit: async (event) => {
        event.preventDefault()
        button.disabled = true
        fill(problem)
        try {
          await signIn(key.value.trim())
          await enter()
        } catch (error) {
          fill(problem, error.status === 401 ? t('bad_key') : errorText(error))
          button.disabled = false
          key.focus()
        }
      },
    },
    h('div.brand.large', {}, logo(), h('h1', {}, t('console'))),
    h('p.soft', {}, t('tagline')),
    field(t('api_key'), key, t('key_hint')),
    problem,
    button,
  )
  fill(app, h('main.login', {}, h('div.card', {}, form, h('div.tools', {}, languageButton(), themeButton()))))
  document.title = t('console')
  key.focus()
}

// ---- shell ---------------------------------------------------------------------------------------------------------

function renderShell() {
  const link = (section) =>
    h('a', { href: section === '' ? '#/' : `#/${section}`, 'data-icon': nameOf(section) }, t(nameOf(section)))
  const sections = Object.entries(SECTIONS)
    .filter(([, [role]]) => may(role))
    .map(([section]) => section)
  const isAdmins = (section) => SECTIONS[section][0] === 'admin'
  const nav = h(
    'nav.main',
    { 'aria-label': t('nav'), id: 'nav' },
    ...sections.filter((section) => !isAdmins(section)).map(link),
    sections.some(isAdmins) ? h('h2.group', {}, t('administration')) : null,
    ...sections.filter(isAdmins).map(link),
  )
  const menu = h(
    'button.menu',
    {
      type: 'button',
      'aria-expanded': 'false',
      'aria-controls': 'side',
      onclick: () => showMenu(menu.getAttribute('aria-expanded') !== 'true'),
    },
    t('menu'),
  )
  const showMenu = (isOpen) => {
    menu.setAttribute('aria-expanded', String(isOpen))
    app.classList.toggle('menu-open', isOpen)
  }
  closeMenu = () => showMenu(false)
  fill(
    app,
    h(
      'a.skip',
      {
        href: '#main',
        onclick: (event) => {
          event.preventDefault()
          document.getElementById('main').focus()
        },
      },
      t('skip'),
    ),
    h(
      'div.column',
      {},
      h(
        'header.bar',
        {},
        h('a.brand', { href: '#/' }, logo(), 'Pilegate'),
        h('span.state', { id: 'live-state', role: 'status' }),
        menu,
      ),
      h(
        'aside.side',
        { id: 'side' },
        nav,
        h(
          'div.tools',
          {},
          h(
            'p.who',
            { id: 'who' },
            h('strong', {}, me.key_id),
            h('small', {}, `${word('role', me.role)} · ${me.tenant}`),
          ),
          languageButton(),
          themeButton(),
          h('button', { type: 'button', onclick: () => signOut() }, t('sign_out')),
          h('small.version', {}, `Pilegate ${me.gateway.version}`),
        ),
      ),
    ),
    h('main', { id: 'main', tabindex: '-1' }),
  )
  app.className = 'shell'
  showState()
}
let closeMenu = () => {}

function showPage() {
  page?.dispose?.()
  closeMenu()
  page = pageAt(location.hash)
  const section = location.hash.replace(/^#\/?/, '').split(/[/?]/)[0]
  const href = `#/${section}`
  for (const link of document.querySelectorAll('nav.main a'))
    if (link.getAttribute('href') === href) link.setAttribute('aria-current', 'page')
    else link.removeAttribute('aria-current')
  fill(document.getElementById('main'), page.element)
  document.title = `${page.title} · Pilegate`
  live.listen(page.topics)
  page.start?.()
}

/** Everything anew, in another language or after signing in or out. */
function render() {
  app.className = ''
  if (!isSignedIn()) {
    page?.dispose?.()
    page = undefined
    renderSignIn()
    return
  }
  if (me === undefined) {
    // the gateway has not said yet who this is
    page?.dispose?.()
    page = undefined
    fill(app, h('main.login', {}, h('p.empty', { role: 'status' }, t('loading'))))
    return
  }
  renderShell()
  showPage()
}

async function enter() {
  render()
  try {
    await whoAmI()
  } catch (error) {
    // signed out by now when the key was refused; else the banner says what is away, and it is tried again
    if (isSignedIn() && !error.isPassing)
      fill(app, h('main.login', {}, h('p.problem', { role: 'alert' }, errorText(error))))
    return
  }
  render()
  live.start()
}

whenInTrouble(inTrouble)
whenSignedOut((why) => {
  live.stop()
  forgetFigures()
  for (const dialog of document.querySelectorAll('dialog')) dialog.remove()
  signInNotice = why === 'refused' ? 'key_refused' : ''
  render()
})
addEventListener('hashchange', () => {
  if (!isSignedIn() || me === undefined) return
  for (const dialog of document.querySelectorAll('dialog')) dialog.remove()
  showPage()
  scrollTo(0, 0)
  document.getElementById('main').focus({ preventScroll: true })
})
addEventListener('keydown', (event) => {
  if (event.key === 'Escape') closeMenu()
})
addEventListener('unhandledrejection', ({ reason }) => toast(String(reason?.message ?? reason), true))

if (isSignedIn()) void enter()
else render()
