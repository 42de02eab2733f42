/** Webhook endpoints, and what became of each delivery. */
import { get, patch, post, remove } from './api.js'
import { field, h, refill, select, table, throttled, toast } from './dom.js'
import { errorText, numberText, t, word } from './i18n.js'
import {
  ask,
  badge,
  button,
  card,
  details,
  facts,
  head,
  LIST_REFRESH_MS,
  PAGE_ITEMS,
  pagedCard,
  section,
  showSecret,
  timeNode,
} from './pieces.js'

const EVENT_TYPES = [
  'device.registered',
  'device.online',
  'device.offline',
  'device.alarm',
  'port.state_changed',
  'charging.started',
  'charging.progress',
  'charging.ended',
  'order.corrected',
  'order.failed',
  'card.swiped',
  'command.finished',
  'device.param_result',
  'device.network_topology',
  'ota.progress_update',
  'webhook.disabled',
]
const STATUSES = ['pending', 'delivered', 'dead', 'cancelled']

const typesText = (types) => (types.length === 0 ? t('every') : types.map((one) => word('event', one)).join(', '))

export function webhooksPage() {
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/webhooks', { limit: PAGE_ITEMS, cursor })
    const heads = [t('url'), t('status'), t('events'), t('last_trouble')]
    const rows = items.map((one) => [
      h('a', { href: `#/webhooks/${encodeURIComponent(one.id)}` }, one.url),
      badge('hook', one.status),
      typesText(one.event_types),
      one.stop_reason ?? one.last_error,
    ])
    return [table(t('webhooks'), heads, rows, t('no_webhooks')), next]
  })
  const refresh = throttled(() => void list.refresh(), LIST_REFRESH_MS)
  return {
    title: t('webhooks'),
    topics: ['metrics'],
    element: [
      head(
        t('webhooks'),
        null,
        button(t('add_webhook'), () => void askWebhook(), { tone: 'primary' }),
      ),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh,
    dispose: () => refresh.cancel(),
  }
}

/** @param one undefined: a new one */
async function askWebhook(one, done) {
  const url = h('input', {
    type: 'url',
    name: 'url',
    required: true,
    maxlength: '2048',
    placeholder: 'https://',
    value: one?.url ?? '',
  })
  const description = h('input', { name: 'description', maxlength: '500', value: one?.description ?? '' })
  const boxes = EVENT_TYPES.map((type) => {
    const box = h('input', { type: 'checkbox', id: `type-${type}`, checked: one?.event_types.includes(type) })
    return [type, box, h('div.check', {}, box, h('label', { for: box.id, title: type }, word('event', type)))]
  })
  let made
  const isConfirmed = await ask({
    title: one === undefined ? t('add_webhook') : t('edit'),
    isWide: true,
    body: [
      field(t('url'), url, t('url_hint')),
      field(t('optional', { what: t('description') }), description),
      h(
        'fieldset',
        {},
        h('legend', {}, t('events_hint')),
        h('div.checks', {}, ...boxes.map(([, , element]) => element)),
      ),
    ],
    confirm: t('save'),
    onConfirm: async () => {
      const body = {
        url: url.value.trim(),
        description: description.value.trim() === '' ? null : description.value.trim(),
        event_types: boxes.filter(([, box]) => box.checked).map(([type]) => type),
      }
      made =
        one === undefined
          ? await post('/api/v1/webhooks', body)
          : await patch(`/api/v1/webhooks/${encodeURIComponent(one.id)}`, body)
    },
  })
  if (!isConfirmed) return
  if (one === undefined) {
    await showSecret(t('webhook_made'), t('secret_once'), made.secret)
    location.hash = `#/webhooks/${encodeURIComponent(made.id)}`
  } else done()
}

export function webhookPage(id) {
  const path = `/api/v1/webhooks/${encodeURIComponent(id)}`
  const beside = h('span.row', {})
  const buttons = h('div.actions', {})
  const endpoint = section(async () => {
    const one = await get(path)
    refill(beside, badge('hook', one.status))
    refill(buttons, ...actionsOf(one))
    return card(
      null,
      facts([
        [t('url'), one.url],
        [t('description'), one.description ?? undefined],
        [t('events'), typesText(one.event_types)],
        [t('devices'), one.device_ids.length === 0 ? t('every') : one.device_ids.join(', ')],
        [t('last_trouble'), one.stop_reason ?? one.last_error],
        [t('failing_since'), one.failing_since === null ? undefined : timeNode(one.failing_since)],
        [t('resting_until'), one.resting_until === null ? undefined : timeNode(one.resting_until)],
        [t('timeout'), one.timeout_s === null ? t('by_gateway') : `${numberText(one.timeout_s, 3)} s`],
        [t('concurrency'), one.concurrency === null ? t('by_gateway') : String(one.concurrency)],
        [
          t('retries'),
          one.retry_schedule_s === null
            ? t('by_gateway')
            : one.retry_schedule_s.map((delayS) => `${delayS} s`).join(', '),
        ],
        [t('old_secret'), one.previous_secret_until === null ? undefined : timeNode(one.previous_secret_until)],
        [t('key_id'), h('span.mono', {}, one.id)],
        [t('made'), timeNode(one.created_at)],
      ]),
    )
  })
  const status = select({ name: 'status', onchange: () => deliveries.restart() }, [
    ['', t('all')],
    ...STATUSES.map((one) => [one, word('delivery', one)]),
  ])
  const deliveries = pagedCard(
    t('deliveries'),
    async (cursor) => {
      const { items, next_cursor: next } = await get(`${path}/deliveries`, {
        limit: PAGE_ITEMS,
        cursor,
        status: status.value,
      })
      const heads = [t('at'), t('event'), t('status'), t('attempts'), t('last_answer'), t('next_attempt'), '']
      const rows = items.map((one) => [
        timeNode(one.created_at),
        h(
          'span',
          {},
          word('event', one.event_type),
          one.replay > 0 ? h('small', {}, ` ${t('replay_n', { n: one.replay })}`) : null,
        ),
        badge('delivery', one.status),
        one.attempt_log.length === 0
          ? String(one.attempts)
          : details(`${one.delivery_id}`, String(one.attempts), attemptList(one.attempt_log)),
        answerText(one),
        one.status === 'pending' ? timeNode(one.next_attempt_at) : '–',
        button(t('redeliver'), () => void again(one)),
      ])
      return [table(t('deliveries'), heads, rows, t('no_deliveries')), next]
    },
    h('div.filters.narrow', {}, field(t('status'), status)),
  )
  const refresh = throttled(() => {
    void endpoint.refresh()
    void deliveries.refresh()
  }, LIST_REFRESH_MS)
  /** An attempt ends some moments after it was asked for, and no event tells so. */
  const lookAgain = () => {
    for (const inMs of [300, 1_500, 4_000]) setTimeout(refresh, inMs)
  }

  const again = (one) =>
    ask({
      title: t('redeliver'),
      body: [h('p', {}, t('redeliver_question', { event: word('event', one.event_type) }))],
      onConfirm: async () => {
        await post(`${path}/redeliver`, { delivery_id: one.delivery_id })
        toast(t('sent_ok', { what: word('event', one.event_type) }))
        lookAgain()
      },
    })
  const test = async () => {
    try {
      await post(`${path}/test`)
      toast(t('sent_ok', { what: t('test') }))
      lookAgain()
    } catch (error) {
      toast(errorText(error), true)
    }
  }
  const setStatus = (wanted, question) =>
    ask({
      title: t(wanted === 'active' ? 'hook_start' : 'hook_pause'),
      body: [h('p', {}, t(question))],
      onConfirm: async () => {
        await patch(path, { status: wanted })
        refresh()
      },
    })
  const rotate = async () => {
    let rotated
    const isConfirmed = await ask({
      title: t('rotate'),
      body: [h('p', {}, t('rotate_question'))],
      onConfirm: async () => {
        rotated = await post(`${path}/rotate`, {})
      },
    })
    if (!isConfirmed) return
    await showSecret(t('rotate'), t('secret_once'), rotated.secret)
    refresh()
  }
  const askWindow = () => {
    const from = h('input', { type: 'datetime-local', name: 'from', step: '1', required: true })
    const to = h('input', { type: 'datetime-local', name: 'to', step: '1', required: true })
    return ask({
      title: t('redeliver_window'),
      body: [
        h('p.soft', {}, t('redeliver_window_hint')),
        h('div.form-grid', {}, field(t('from'), from), field(t('to'), to)),
      ],
      onConfirm: async () => {
        const { queued } = await post(`${path}/redeliver`, {
          from: new Date(from.value).toISOString(),
          to: new Date(to.value).toISOString(),
        })
        toast(t('queued_n', { n: numberText(queued) }))
        lookAgain()
      },
    })
  }
  const askRemove = () =>
    ask({
      title: t('remove'),
      body: [h('p', {}, t('remove_webhook_question'))],
      confirm: t('remove'),
      isDangerous: true,
      onConfirm: async () => {
        await remove(path)
        location.hash = '#/webhooks'
      },
    })
  const actionsOf = (one) => [
    button(t('test'), () => void test()),
    one.status === 'active'
      ? button(t('hook_pause'), () => void setStatus('paused', 'hook_pause_question'))
      : button(t('hook_start'), () => void setStatus('active', 'hook_start_question'), { tone: 'primary' }),
    button(t('edit'), () => void askWebhook(one, refresh)),
    button(t('redeliver_window'), () => void askWindow()),
    button(t('rotate'), () => void rotate()),
    button(t('remove'), () => void askRemove()),
  ]
  return {
    title: t('webhooks'),
    // deliveries follow events: look again when something happened
    topics: ['metrics', 'device/*'],
    element: [h('div.head', {}, h('h1', {}, t('webhook')), beside, buttons), endpoint.element, deliveries.element],
    start: refresh,
    refresh,
    onEvent: () => deliveries.isFirst && refresh(),
    dispose: () => refresh.cancel(),
  }
}

/** `status 404` says nothing beside 404. */
const answerText = ({ last_status: status, last_error: error }) =>
  [status, error === `status ${status}` ? null : error].filter((part) => part !== null).join(' · ') || '–'

function attemptList(log) {
  return h(
    'ul.attempts',
    {},
    ...log
      .toReversed()
      .map((one) =>
        h(
          'li',
          {},
          timeNode(one.at),
          ` · ${one.status ?? one.error ?? '–'} · ${numberText(one.duration_ms)} ms`,
          one.status !== null && one.error !== null && one.error !== `status ${one.status}` ? ` · ${one.error}` : '',
          one.answer === '' ? null : h('code', {}, one.answer),
        ),
      ),
  )
}
