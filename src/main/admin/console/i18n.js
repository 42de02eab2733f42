/** Words, numbers, times and money in the chosen language. A word that is missing shows as its key, so that it is seen. */
import { EN } from './words-en.js'
import { ZH } from './words-zh.js'

const LANGUAGE = 'pilegate.language'
const WORDS = { en: EN, zh: ZH }
let language = localStorage.getItem(LANGUAGE) ?? (navigator.language.startsWith('zh') ? 'zh' : 'en')
if (WORDS[language] === undefined) language = 'en'
let formats = {}
const showLanguage = () => {
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en'
  formats = {}
}
showLanguage()

export function toggleLanguage() {
  language = language === 'en' ? 'zh' : 'en'
  localStorage.setItem(LANGUAGE, language)
  showLanguage()
}

/** @param values put in for `{name}` */
export function t(key, values = {}) {
  return (WORDS[language][key] ?? key).replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ''))
}

/** A word of the gateway's own vocabulary, or the word itself when it has no translation. */
export const word = (group, value) =>
  value === null || value === undefined
    ? '–'
    : (WORDS[language][`${group}.${value}`] ?? String(value).replaceAll('_', ' '))

/** The same in the first vocabulary that knows it. */
export const anyWord = (groups, value) =>
  word(groups.find((group) => WORDS[language][`${group}.${value}`] !== undefined) ?? groups[0], value)

/** What went wrong, in the reader's language as far as it is known, and in the gateway's own words. */
export function errorText(error) {
  const known = WORDS[language][`error.${error.code}`]
  if (known === undefined) return error.message
  if (['UNREACHABLE', 'UNAUTHENTICATED', 'FORBIDDEN', 'TIMEOUT'].includes(error.code)) return known
  return `${known}${t('colon')}${error.message}`
}

const locale = () => (language === 'zh' ? 'zh-CN' : 'en-GB')
/** Making a format takes longer than using it a hundred times. */
const dateFormat = (name, options) => {
  formats[name] ??= new Intl.DateTimeFormat(locale(), options)
  return formats[name]
}
const CLOCK = { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' }
const DAY = { day: '2-digit', month: '2-digit', ...CLOCK }

/** @param atS Unix s */
export const clockText = (atS) => dateFormat('clock', CLOCK).format(new Date(atS * 1_000))
/** Local; the day only when it is not today, the year only when it is not this one. */
export function timeText(at) {
  if (at === null || at === undefined) return '–'
  const [date, now] = [new Date(at), new Date()]
  if (date.toDateString() === now.toDateString()) return dateFormat('clock', CLOCK).format(date)
  return date.getFullYear() === now.getFullYear()
    ? dateFormat('day', DAY).format(date)
    : dateFormat('year', { year: 'numeric', ...DAY }).format(date)
}
export const utcText = (at) => new Date(at).toISOString().replace('T', ' ').replace('Z', ' UTC')

export function numberText(value, digits = 0) {
  if (value === null || value === undefined) return '–'
  const name = `number ${digits}`
  formats[name] ??= new Intl.NumberFormat(locale(), { maximumFractionDigits: digits })
  return formats[name].format(value)
}
export const unitText = (value, unit, digits = 0) =>
  value === null || value === undefined ? '–' : `${numberText(value, digits)} ${unit}`
export function durationText(seconds) {
  if (seconds === null || seconds === undefined) return '–'
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), seconds % 60]
  const pad = (part) => String(part).padStart(2, '0')
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`
}
/** @param fen integer; shown in yuan */
export function moneyText(fen) {
  if (fen === null || fen === undefined) return '–'
  const text = `¥${Math.trunc(Math.abs(fen) / 100).toLocaleString('en-GB')}.${String(Math.abs(fen) % 100).padStart(2, '0')}`
  return fen < 0 ? `−${text}` : text
}
