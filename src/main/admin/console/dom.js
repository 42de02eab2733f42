/** Elements from words. Data becomes text nodes and attributes, never markup. */

/**
 * @param {string} tag `button.primary` sets classes
 * @param {Record<string, unknown>} attributes `on…` are listeners; null, undefined and false are left out
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split('.')
  const element = document.createElement(name)
  if (classes.length > 0) element.className = classes.join(' ')
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value)
    else if (key === 'value') element.value = value
    else element.setAttribute(key, value === true ? '' : String(value))
  }
  element.append(...shown(children))
  return element
}

const shown = (children) =>
  children.flat(Number.POSITIVE_INFINITY).filter((child) => child !== null && child !== undefined && child !== false)

export const fill = (element, ...children) => {
  element.replaceChildren(...shown(children))
  return element
}

/**
 * As `fill`, for what is shown again with newer data: nothing moves when nothing changed, and focus, opened details and
 * inner scrolling stay where they were.
 */
export function refill(element, ...children) {
  const next = h('div', {}, ...children)
  const opened = new Set([...element.querySelectorAll('details[open][data-key]')].map(({ dataset }) => dataset.key))
  for (const details of next.querySelectorAll('details[data-key]')) details.open = opened.has(details.dataset.key)
  if (isSame(element, next)) return element
  const focusPath = element.contains(document.activeElement) ? pathTo(element, document.activeElement) : undefined
  const label = focusPath === undefined ? undefined : labelOf(document.activeElement)
  const scrolls = [...element.querySelectorAll('.scrolls')].map(({ scrollTop, scrollLeft }) => [scrollTop, scrollLeft])
  element.replaceChildren(...next.childNodes)
  for (const [index, one] of element.querySelectorAll('.scrolls').entries()) {
    const [top = 0, left = 0] = scrolls[index] ?? []
    one.scrollTop = top
    one.scrollLeft = left
  }
  if (focusPath !== undefined) {
    const there = focusPath.reduce((parent, index) => parent?.children[index], element)
    if (there !== undefined && labelOf(there) === label) there.focus({ preventScroll: true })
    else
      [...element.querySelectorAll('a, button, summary')]
        .find((one) => labelOf(one) === label)
        ?.focus({ preventScroll: true })
  }
  return element
}

function isSame(element, next) {
  const [before, after] = [element.childNodes, next.childNodes]
  return before.length === after.length && [...before].every((node, index) => node.isEqualNode(after[index]))
}

const labelOf = (element) =>
  `${element.tagName} ${element.getAttribute('href') ?? ''} ${element.getAttribute('aria-label') ?? element.textContent}`

function pathTo(from, element) {
  const path = []
  for (let at = element; at !== from; at = at.parentElement) path.unshift([...at.parentElement.children].indexOf(at))
  return path
}

let nextId = 0
/** A labelled input; `field.input` is the control. */
export function field(label, input, hint) {
  input.id ||= `f${++nextId}`
  const element = h('div.field', {}, h('label', { for: input.id }, label), input)
  if (hint !== undefined) {
    const id = `${input.id}-hint`
    input.setAttribute('aria-describedby', id)
    element.append(h('small', { id }, hint))
  }
  element.input = input
  return element
}

/** @param options `[value, label]` each */
export const select = (attributes, options, chosen) => {
  const element = h('select', attributes, ...options.map(([value, label]) => h('option', { value }, label)))
  if (chosen !== undefined && chosen !== null) element.value = chosen
  return element
}

/** A table that becomes cards on narrow screens; `cells` may be text or nodes. A head `#…` is for numbers. */
export function table(caption, heads, rows, emptyText) {
  if (rows.length === 0) return h('p.empty', {}, emptyText)
  const names = heads.map((head) => head.replace(/^#/, ''))
  const isNumber = heads.map((head) => head.startsWith('#'))
  return h(
    'div.table-wrap.scrolls',
    {},
    h(
      'table',
      {},
      h('caption.hidden', {}, caption),
      h(
        'thead',
        {},
        h('tr', {}, ...names.map((name, index) => h(isNumber[index] ? 'th.number' : 'th', { scope: 'col' }, name))),
      ),
      h(
        'tbody',
        {},
        ...rows.map((cells) =>
          h(
            'tr',
            {},
            ...cells.map((cell, index) => {
              const isNothing = cell === null || cell === undefined || cell === '–'
              return h(
                `td${isNumber[index] ? '.number' : ''}${isNothing ? '.nothing' : ''}`,
                { 'data-head': names[index] },
                h('span', {}, isNothing ? '–' : cell),
              )
            }),
          ),
        ),
      ),
    ),
  )
}

export function toast(text, isBad = false) {
  const element = h(isBad ? 'div.toast.bad' : 'div.toast', {}, text)
  // one at a time: on a phone two hide what they are about
  fill(document.getElementById('toasts'), element)
  setTimeout(() => element.remove(), isBad ? 8_000 : 4_000)
}

/** At most one call per `ms`, the last one never lost. */
export function throttled(act, ms) {
  let timer
  let lastMs = 0
  const call = () => {
    if (timer !== undefined) return
    timer = setTimeout(
      () => {
        timer = undefined
        lastMs = Date.now()
        act()
      },
      Math.max(0, lastMs + ms - Date.now()),
    )
  }
  call.cancel = () => {
    clearTimeout(timer)
    timer = undefined
  }
  return call
}
