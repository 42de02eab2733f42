/** Cards that piles ask about when one is swiped. */
import { get, may, put } from './api.js'
import { field, h, select, table, toast } from './dom.js'
import { moneyText, t, word } from './i18n.js'
import { ask, badge, button, head, PAGE_ITEMS, pagedCard, timeNode } from './pieces.js'

const STATUSES = ['active', 'blocked', 'lost']
const RATE_MODES = ['time', 'monthly', 'energy', 'per_use']

export function cardsPage() {
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/cards', { cursor, limit: PAGE_ITEMS })
    const heads = [
      t('card'),
      t('status'),
      `#${t('balance')}`,
      t('rate_mode'),
      t('holder'),
      t('expires'),
      t('changed'),
      ...(may('admin') ? [''] : []),
    ]
    const rows = items.map((one) => [
      h('span.mono', {}, one.card_id),
      badge('cardstate', one.status),
      h(one.balance_fen < 0 ? 'span.negative' : 'span', {}, moneyText(one.balance_fen)),
      word('rate', one.rate_mode),
      one.holder,
      timeNode(one.expires_at),
      timeNode(one.updated_at),
      ...(may('admin')
        ? [button(t('edit'), () => void askCard(one, list.refresh), { 'aria-label': `${t('edit')} ${one.card_id}` })]
        : []),
    ])
    return [table(t('cards'), heads, rows, t('no_cards')), next]
  })
  return {
    title: t('cards'),
    // a swipe that is charged moves a balance
    topics: ['metrics', 'order/*'],
    element: [
      head(
        t('cards'),
        null,
        may('admin') && button(t('add_card'), () => void askCard(undefined, list.refresh), { tone: 'primary' }),
      ),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh: () => void list.refresh(),
    onEvent: (_, event) => event.event_type === 'charging.ended' && event.data?.card_id && void list.refresh(),
  }
}

function askCard(one, done) {
  const id = h('input', {
    name: 'card_id',
    class: 'mono',
    required: true,
    readonly: one !== undefined,
    pattern: '(?:[0-9a-f]{2}){1,16}',
    value: one?.card_id ?? '',
  })
  const status = select(
    { name: 'status' },
    STATUSES.map((value) => [value, word('cardstate', value)]),
    one?.status ?? 'active',
  )
  const balance = h('input', {
    type: 'number',
    name: 'balance',
    step: '0.01',
    required: true,
    value: ((one?.balance_fen ?? 0) / 100).toFixed(2),
  })
  const rate = select(
    { name: 'rate_mode' },
    RATE_MODES.map((value) => [value, word('rate', value)]),
    one?.rate_mode ?? 'time',
  )
  const holder = h('input', { name: 'holder', maxlength: '200', value: one?.holder ?? '' })
  const expires = h('input', { type: 'date', name: 'expires', value: dateOf(one?.expires_at) })
  return ask({
    title: one === undefined ? t('add_card') : t('edit_card', { card: one.card_id }),
    body: [
      field(t('card'), id, t('card_hint')),
      h(
        'div.form-grid',
        {},
        field(t('status'), status),
        field(t('balance_yuan'), balance),
        field(t('rate_mode'), rate),
        field(t('expires'), expires, t('expires_hint')),
      ),
      field(t('holder'), holder),
    ],
    confirm: t('save'),
    onConfirm: async () => {
      const balanceFen = Math.round(Number(balance.value) * 100)
      await put(`/api/v1/cards/${encodeURIComponent(id.value.trim())}`, {
        status: status.value,
        rate_mode: rate.value,
        // a balance that was not touched is not written: a charge may have moved it meanwhile
        ...(balanceFen === one?.balance_fen ? {} : { balance_fen: balanceFen }),
        holder: holder.value.trim() === '' ? null : holder.value.trim(),
        ...(expires.value === dateOf(one?.expires_at)
          ? {}
          : { expires_at: expires.value === '' ? null : new Date(`${expires.value}T23:59:59`).toISOString() }),
      })
      toast(t('saved'))
      await done()
    },
  })
}

/** As an input of type date shows it, here. */
function dateOf(at) {
  if (at === null || at === undefined) return ''
  const date = new Date(at)
  const two = (part) => String(part).padStart(2, '0')
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`
}
