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
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

export const fill = (element, ...children) => {
  element.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false),
  )
  return element
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

/** A table that becomes cards on narrow screens; `cells` may be text or nodes. */
export function table(caption, heads, rows, emptyText) {
  if (rows.length === 0) return h('p.empty', {}, emptyText)
  return h(
    'div.table-wrap',
    {},
    h(
      'table',
      {},
      h('caption.hidden', {}, caption),
      h('thead', {}, h('tr', {}, ...heads.map((head) => h('th', { scope: 'col' }, head)))),
      h(
        'tbody',
        {},
        ...rows.map((cells) =>
          h(
            'tr',
            {},
            ...cells.map((cell, index) => h('td', { 'data-head': heads[index] }, h('span', {}, cell ?? '–'))),
          ),
        ),
      ),
    ),
  )
}

/** Opens a dialog and resolves with true when it was confirmed. `onConfirm` may throw: the dialog stays and says why. */
export function ask({ title, body, confirm, cancel, onConfirm, isDangerous = false }) {
  const opener = document.activeElement
  return new Promise((resolve) => {
    const problem = h('p.problem', { role: 'alert' })
    const go = h(isDangerous ? 'button.danger' : 'button.primary', { type: 'submit' }, confirm)
    const form = h(
      'form',
      {
        method: 'dialog',
        onsubmit: async (event) => {
          event.preventDefault()
          go.disabled = true
          fill(problem)
          try {
            await onConfirm?.()
            done(true)
          } catch (error) {
            fill(problem, error.message)
            go.disabled = false
          }
        },
      },
      h('h2', { id: 'dialog-title' }, title),
      body,
      problem,
      h('div.actions', {}, h('button', { type: 'button', onclick: () => done(false) }, cancel), go),
    )
    const dialog = h('dialog', { 'aria-labelledby': 'dialog-title', oncancel: () => done(false) }, form)
    const done = (isConfirmed) => {
      if (!dialog.isConnected) return
      dialog.close()
      dialog.remove()
      opener?.focus?.()
      resolve(isConfirmed)
    }
    document.body.append(dialog)
    dialog.showModal()
  })
}

export function toast(text, isBad = false) {
  const element = h(isBad ? 'div.toast.bad' : 'div.toast', {}, text)
  document.getElementById('toasts').append(element)
  setTimeout(() => element.remove(), 4_000)
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
