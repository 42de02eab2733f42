/** Devices of the tenant, with search. */
import { get, may, put } from './api.js'
import { field, h, select, table, throttled, toast } from './dom.js'
import { t, word } from './i18n.js'
import {
  ask,
  button,
  card,
  deviceLink,
  head,
  LIST_REFRESH_MS,
  PAGE_ITEMS,
  pagedCard,
  presenceBadge,
  rememberFilters,
  timeNode,
} from './pieces.js'

export function devicesPage(filters) {
  const query = h('input', {
    type: 'search',
    name: 'q',
    maxlength: '100',
    placeholder: t('search_hint'),
    value: filters.q ?? '',
    oninput: () => typed(),
  })
  const online = select(
    { name: 'online', onchange: () => changed() },
    [
      ['', t('all')],
      ['true', t('only_online')],
      ['false', t('only_offline')],
    ],
    filters.online,
  )
  const protocol = select(
    { name: 'protocol', onchange: () => changed() },
    [
      ['', t('all')],
      ['ap3000', 'AP3000'],
      ['bkv', 'BKV'],
    ],
    filters.protocol,
  )
  let shown = new Set()
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/devices', {
      q: query.value.trim(),
      online: online.value,
      protocol: protocol.value,
      cursor,
      limit: PAGE_ITEMS,
    })
    shown = new Set(items.map(({ device_id: id }) => id))
    const isFiltered = query.value.trim() !== '' || online.value !== '' || protocol.value !== ''
    const heads = [t('device'), t('presence'), t('name'), t('protocol'), t('ports'), t('firmware'), t('last_seen')]
    const rows = items.map((device) => [
      deviceLink(device.device_id),
      presenceBadge(device.presence),
      [device.name, device.site].filter((one) => one !== null).join(' · ') || '–',
      device.protocol?.toUpperCase() ?? '–',
      portsText(device.ports),
      device.firmware,
      timeNode(device.last_seen_at),
    ])
    return [table(t('devices'), heads, rows, t(isFiltered ? 'no_match' : 'no_devices')), next]
  })
  const refresh = throttled(() => void list.refresh(), LIST_REFRESH_MS)
  const changed = () => {
    rememberFilters('/devices', { q: query.value.trim(), online: online.value, protocol: protocol.value })
    list.restart()
  }
  const typed = throttled(changed, 250)

  return {
    title: t('devices'),
    topics: ['metrics', 'device/*'],
    element: [
      head(t('devices'), null, may('admin') && button(t('register_device'), () => askRegister())),
      card(
        null,
        h(
          'div.filters',
          { role: 'search' },
          field(t('search'), query),
          field(t('presence'), online),
          field(t('protocol'), protocol),
        ),
      ),
      list.element,
    ],
    start: () => void list.refresh(),
    refresh,
    onEvent(_, event) {
      // a new one may belong on the first page; what happens to others is not seen here
      const isSeen = shown.has(event.device_phy_id)
      if (isSeen || (list.isFirst && /^device\.(registered|online|offline)$/.test(event.event_type))) refresh()
    },
    dispose() {
      refresh.cancel()
      typed.cancel()
    },
  }
}

function portsText(ports) {
  if (ports.length === 0) return '–'
  const count = (state) => ports.filter((port) => port.state === state).length
  const parts = ['charging', 'fault']
    .filter((state) => count(state) > 0)
    .map((state) =>
      h(`span.badge${state === 'fault' ? '.bad' : '.good'}`, {}, `${count(state)} ${word('state', state)}`),
    )
  return h('span.row', {}, String(ports.length), ...parts)
}

function askRegister() {
  const id = h('input', { name: 'device_id', required: true, pattern: '[0-9a-f]{8}|[0-9]{14}', class: 'mono' })
  const name = h('input', { name: 'name', maxlength: '200' })
  const site = h('input', { name: 'site', maxlength: '200' })
  return ask({
    title: t('register_device'),
    body: [field(t('device'), id, t('device_id_hint')), field(t('name'), name), field(t('site'), site)],
    confirm: t('save'),
    onConfirm: async () => {
      await put(`/api/v1/devices/${encodeURIComponent(id.value.trim())}`, {
        ...(name.value.trim() === '' ? {} : { name: name.value.trim() }),
        ...(site.value.trim() === '' ? {} : { site: site.value.trim() }),
      })
      toast(t('saved'))
      location.hash = `#/devices/${encodeURIComponent(id.value.trim())}`
    },
  })
}
