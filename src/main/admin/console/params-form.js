/** A form for the parameters of a command, made from their JSON schema. */
import { field, h, select } from './dom.js'
import { t } from './i18n.js'

const HEX = /^\^\(\?:\[0-9a-fA-F\]\{2\}\)\{(\d+)(?:,(\d+))?\}\$$/

/** `unplug_power_dw` as a person would write it. */
const labelOf = (name) => name.replaceAll('_', ' ')

/**
 * @param schema of an object; what it requires must be filled in, the rest may stay empty
 * @returns `element`, and `value()` which throws what is wrong with what was typed
 */
export function paramsForm(schema) {
  const properties = Object.entries(schema?.properties ?? {})
  const required = new Set(schema?.required ?? [])
  const inputs = properties.map(([name, one]) => {
    const isRequired = required.has(name)
    const input = inputOf(name, one, isRequired)
    return {
      name,
      one,
      input,
      element: field(isRequired ? labelOf(name) : t('optional', { what: labelOf(name) }), input, hintOf(one)),
    }
  })
  return {
    element: h(
      'div.params',
      {},
      properties.length === 0 ? h('p.soft', {}, t('no_params')) : null,
      ...inputs.map(({ element }) => element),
    ),
    value() {
      const given = {}
      for (const { name, one, input } of inputs) {
        const text = input.value.trim()
        if (text === '' && !required.has(name)) continue
        given[name] = typedValue(name, one, text)
      }
      return given
    },
  }
}

function inputOf(name, { type, description, minimum, maximum, maxLength, pattern, enum: choices }, isRequired) {
  const common = { name, required: isRequired, autocomplete: 'off' }
  if (choices !== undefined)
    return select(common, [...(isRequired ? [] : [['', '–']]), ...choices.map((one) => [String(one), String(one)])])
  if (type === 'boolean')
    return select(common, [...(isRequired ? [] : [['', '–']]), ['true', t('yes')], ['false', t('no')]])
  if (type === 'integer' || type === 'number')
    return h('input', {
      ...common,
      type: 'number',
      min: minimum,
      max: maximum,
      step: type === 'integer' ? '1' : 'any',
      // what the document calls the default; else nothing: a 0 that nobody typed would be sent to a device
      value: isRequired ? (/\bdefault (\d+)\b/.exec(description ?? '')?.[1] ?? '') : '',
    })
  if (type === 'array' || type === 'object')
    return h('textarea', {
      ...common,
      rows: '3',
      spellcheck: 'false',
      value: isRequired ? (type === 'array' ? '[]' : '{}') : '',
    })
  const bytes = HEX.exec(pattern ?? '')
  if (bytes !== null)
    return h('input', {
      ...common,
      type: 'text',
      class: 'mono',
      pattern: pattern.slice(1, -1),
      required: isRequired && bytes[1] !== '0',
      spellcheck: 'false',
    })
  return h('input', { ...common, type: 'text', maxlength: maxLength })
}

function hintOf({ description, type, minimum, maximum, pattern }) {
  const bytes = HEX.exec(pattern ?? '')
  const range =
    bytes !== null
      ? t('hex_bytes', { n: bytes[2] === undefined ? bytes[1] : `${bytes[1]}–${bytes[2]}` })
      : type === 'array'
        ? 'JSON'
        : minimum === undefined || maximum === undefined
          ? undefined
          : `${minimum}–${maximum}`
  return [description, range].filter((part) => part !== undefined).join(' · ') || undefined
}

function typedValue(name, { type }, text) {
  if (type === 'integer' || type === 'number') return Number(text)
  if (type === 'boolean') return text === 'true'
  if (type !== 'array' && type !== 'object') return text
  try {
    return JSON.parse(text)
  } catch {
    throw new Error(t('bad_json', { name }))
  }
}
