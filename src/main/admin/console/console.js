/** The shell: sign-in, header, which page is shown, and one live connection for all of them. */
import { isSignedIn, offers, signIn, signOut, whenSignedOut } from './api.js'
import { field, fill, h, toast } from './dom.js'
import { t, toggleLanguage } from './i18n.js'
import { Live } from './live.js'
import { pageFor } from './pages.js'

const THEME = 'pilegate.theme'
const THEMES = ['auto', 'light', 'dark']
const app = document.getElementById('app')
const prefersDark = matchMedia('(prefers-color-scheme: dark)')
let theme = THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : 'auto'
let liveState = 'connecting'
let page
let hasWebhooks = false

function showTheme() {
  document.documentElement.dataset.theme = theme === 'auto' ? (prefersDark.matches ? 'dark' : 'light') : theme
}
prefersDark.addEventListener('change', () => {
  showTheme()
  page?.onTheme?.()
})
showTheme()

const live = new Live({
  onEvent: (topic, event) => page?.onEvent?.(topic, event),
  onState: (state) => {
    liveState = state
    showState()
  },
  onResync: () => page?.refresh?.(),
})

const languageButton = () =>
  h(
    'button',
    {
      type: 'button',
      id: 'language',
      onclick: () => {
        toggleLanguage()
        render()
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

function showState() {
  const element = document.getElementById('live-state')
  if (element === null) return
  element.className = `state ${liveState}`
  fill(element, h('span', {}, t(liveState)))
  element.title = t(liveState)
}

function renderSignIn() {
  const key = h('input', { type: 'password', name: 'key', autocomplete: 'current-password', required: true })
  const problem = h('p.problem', { role: 'alert' })
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
          fill(problem, error.status === 401 ? t('bad_key') : error.message)
          button.disabled = false
          key.focus()
        }
      },
    },
    h('h1', {}, t('console')),
    field(t('api_key'), key, t('key_hint')),
    problem,
    button,
  )
  fill(app, h('main.login', {}, h('div.card', {}, form, h('div.tools', {}, languageButton(), themeButton()))))
  document.title = t('console')
  key.focus()
}

function renderShell() {
  const links = [
    ['#/', 'overview'],
    ['#/devices', 'devices'],
    ['#/orders', 'orders'],
    ...(hasWebhooks ? [['#/webhooks', 'webhooks']] : []),
  ]
  const nav = h('nav.main', { 'aria-label': t('nav') }, ...links.map(([href, name]) => h('a', { href }, t(name))))
  fill(
    app,
    h(
      'header.bar',
      {},
      h('a.brand', { href: '#/' }, 'Pilegate'),
      nav,
      h(
        'div.tools',
        {},
        h('span.state', { id: 'live-state', role: 'status' }),
        languageButton(),
        themeButton(),
        h('button', { type: 'button', onclick: signOut }, t('sign_out')),
      ),
    ),
    h('main', { id: 'main', tabindex: '-1' }),
  )
  showState()
}

function showPage() {
  page?.dispose?.()
  const path = location.hash.replace(/^#/, '') || '/'
  page = pageFor(path)
  const section = `#/${path.split('/')[1] ?? ''}`
  for (const link of document.querySelectorAll('nav.main a'))
    if (link.getAttribute('href') === section) link.setAttribute('aria-current', 'page')
    else link.removeAttribute('aria-current')
  fill(document.getElementById('main'), page.element)
  document.title = `${page.title} · Pilegate`
  live.listen(page.topics)
  page.start?.()
}

/** Everything anew, in another language or after signing in or out. */
function render() {
  if (!isSignedIn()) {
    page?.dispose?.()
    page = undefined
    renderSignIn()
    return
  }
  renderShell()
  showPage()
}

async function enter() {
  hasWebhooks = await offers('GET', '/api/v1/webhooks').catch(() => false)
  render()
  live.start()
}

whenSignedOut(() => {
  live.stop()
  render()
})
addEventListener('hashchange', () => {
  if (!isSignedIn()) return
  showPage()
  scrollTo(0, 0)
  document.getElementById('main').focus({ preventScroll: true })
})
addEventListener('unhandledrejection', ({ reason }) => toast(String(reason?.message ?? reason), true))

if (isSignedIn()) void enter()
else render()
