/** Jobs: one change for many devices, in waves, with an outcome per device. */
import { api, commandCatalogue, get, may, post, repeatablePost } from './api.js'
import { field, fill, h, select, table, throttled, toast } from './dom.js'
import { numberText, t, word } from './i18n.js'
import { paramsForm } from './params-form.js'
import {
  ask,
  badge,
  button,
  card,
  details,
  deviceLink,
  facts,
  head,
  json,
  LIST_REFRESH_MS,
  PAGE_ITEMS,
  pagedCard,
  pager,
  rememberFilters,
  section,
  timeNode,
} from './pieces.js'

/** As many as the server tells at once. */
const IMAGES_MAX = 500
const STATES = ['running', 'paused', 'finished', 'cancelled']
/** In the order they stand in the bar. */
const OUTCOMES = ['ok', 'sent', 'refused', 'mismatch', 'dead', 'expired', 'cancelled']
const FAILED = ['refused', 'mismatch', 'dead', 'expired']

const titleOf = ({ kind, set, firmware }) =>
  kind === 'parameters' ? (set?.name ?? word('job', kind)) : `${word('job', kind)} ${firmware?.target ?? ''}`

/** How far it is: one bar, green what went well, red what did not. */
function progressBar({ total, ok, sent, cancelled, ...counts }) {
  const failed = FAILED.reduce((sum, one) => sum + counts[one], 0)
  const done = ok + sent + failed + cancelled
  const part = (name, count) => {
    const element = h(`span.${name}`)
    element.style.flexGrow = String(count)
    return count === 0 ? null : element
  }
  const text = t('done_of', { done: numberText(done), total: numberText(total) })
  return h(
    'div.progress',
    {},
    h(
      'div.bar',
      { role: 'img', 'aria-label': `${text}, ${t('failed_n', { n: failed })}` },
      part('good', ok),
      part('info', sent),
      part('bad', failed),
      part('off', cancelled),
      part('rest', total - done),
    ),
    h('small', {}, failed === 0 ? text : `${text} · ${t('failed_n', { n: numberText(failed) })}`),
  )
}

export function jobsPage(filters) {
  const state = select(
    { name: 'state', onchange: () => changed() },
    [['', t('all')], ...STATES.map((one) => [one, word('jobstate', one)])],
    filters.state,
  )
  const list = pagedCard(null, async (cursor) => {
    const { items, next_cursor: next } = await get('/api/v1/jobs', { state: state.value, cursor, limit: PAGE_ITEMS })
    const heads = [t('job'), t('state'), t('progress'), t('wave'), t('by'), t('made')]
    const rows = items.map((job) => [
      h('a', { href: `#/jobs/${encodeURIComponent(job.job_id)}` }, titleOf(job)),
      badge('jobstate', job.state),
      progressBar(job.devices),
      `${job.waves.current}/${job.waves.total}`,
      job.created_by,
      timeNode(job.created_at),
    ])
    return [table(t('jobs'), heads, rows, t('no_jobs')), next]
  })
  const images = section(async () => {
    const { items } = await get('/api/v1/firmware', { limit: IMAGES_MAX })
    const heads = [t('name'), `#${t('bytes')}`, 'SHA-256', t('by'), t('made')]
    return table(
      t('firmware_images'),
      heads,
      items.map((one) => [
        one.name,
        numberText(one.bytes),
        h('span.mono', { title: one.sha256 }, one.sha256.slice(0, 16)),
        one.created_by,
        timeNode(one.created_at),
      ]),
      t('no_images'),
    )
  })
  const refresh = throttled(() => void list.refresh(), LIST_REFRESH_MS)
  const changed = () => {
    rememberFilters('/jobs', { state: state.value })
    list.restart()
  }
  return {
    title: t('jobs'),
    topics: ['metrics', 'device/*'],
    element: [
      head(
        t('jobs'),
        null,
        may('admin') && button(t('firmware_job'), () => void askFirmware()),
        may('operator') && button(t('parameters_job'), () => void askParameters(), { tone: 'primary' }),
      ),
      card(null, h('div.filters.narrow', {}, field(t('state'), state))),
      list.element,
      card(
        t('firmware_images'),
        images.element,
        may('admin')
          ? h(
              'div.actions.pagers',
              {},
              button(t('upload'), () => void askUpload(() => void images.refresh())),
            )
          : null,
      ),
    ],
    start() {
      void list.refresh()
      void images.refresh()
    },
    refresh,
    onEvent: (_, event) => isOfJobs(event) && refresh(),
    dispose: () => refresh.cancel(),
  }
}

/** What moves a job: fates of its commands, parameters read back, chunks of firmware. */
const isOfJobs = ({ event_type: type }) => /^(command\.finished|device\.param_result|ota\.)/.test(type)

export function jobPage(id) {
  const path = `/api/v1/jobs/${encodeURIComponent(id)}`
  const beside = h('span.row', {})
  const title = h('span', {}, t('job'))
  const buttons = h('div.actions', {})
  const outcome = select({ name: 'outcome', onchange: () => list.restart() }, [
    ['', t('all')],
    ...OUTCOMES.map((one) => [one, word('outcome', one)]),
  ])
  const summary = h('div.section', {})
  const pages = pager(() => void list.refresh())
  const devices = section(async () => {
    const {
      job,
      items,
      next_cursor: next,
    } = await get(path, {
      outcome: outcome.value,
      cursor: pages.cursor,
      limit: PAGE_ITEMS,
    })
    pages.arrived(next)
    fill(title, titleOf(job))
    fill(beside, badge('jobstate', job.state))
    fill(summary, summaryOf(job))
    if (may(job.kind === 'firmware' ? 'admin' : 'operator')) showButtons(job)
    const heads = [t('device'), t('outcome'), t('step'), t('reason'), t('started'), t('finished')]
    const rows = items.map((one) => [
      deviceLink(one.device_id),
      one.outcome === null ? badge('jobdevice', one.state) : badge('outcome', one.outcome),
      one.progress === null
        ? one.step === null
          ? '–'
          : word('step', one.step)
        : t('chunk_of', { chunk: one.progress.chunk, total: one.progress.chunks_total, percent: one.progress.percent }),
      Object.keys(one.detail).length === 0
        ? reasonOf(one)
        : details(one.device_id, one.reason === null ? t('details') : reasonOf(one), json(one.detail)),
      timeNode(one.started_at),
      timeNode(one.finished_at),
    ])
    return table(t('devices'), heads, rows, t('no_match'))
  })
  const list = {
    refresh: devices.refresh,
    restart() {
      pages.reset()
      void devices.refresh()
    },
  }
  const refresh = throttled(() => void devices.refresh(), LIST_REFRESH_MS)

  const act = (verb, isDangerous) =>
    button(
      t(`job_${verb}`),
      () =>
        void ask({
          title: t(`job_${verb}`),
          body: [h('p', {}, t(`job_${verb}_question`))],
          isDangerous,
          onConfirm: async () => {
            await post(`${path}/${verb}`)
            await devices.refresh()
          },
        }),
      isDangerous ? { tone: 'danger' } : {},
    )
  const showButtons = ({ state }) => {
    const wanted = { running: ['pause', 'cancel'], paused: ['resume', 'cancel'] }[state] ?? []
    if (buttons.dataset.state === state) return
    buttons.dataset.state = state
    fill(buttons, ...wanted.map((verb) => act(verb, verb === 'cancel')))
  }

  return {
    title: t('job'),
    topics: ['metrics', 'device/*'],
    element: [
      h('div.head', {}, h('h1', {}, title), beside, buttons),
      summary,
      card(t('devices'), h('div.filters.narrow', {}, field(t('outcome'), outcome)), devices.element, pages.element),
    ],
    start: () => void devices.refresh(),
    refresh,
    onEvent: (_, event) => isOfJobs(event) && refresh(),
    dispose: () => refresh.cancel(),
  }
}

const reasonOf = ({ reason }) => (reason === null ? '–' : word('reason', reason))

function summaryOf(job) {
  const { waves, devices } = job
  const counted = OUTCOMES.filter((one) => devices[one] > 0)
  return card(
    null,
    progressBar(devices),
    h(
      'div.row.counts',
      {},
      devices.waiting > 0
        ? h('span.badge', {}, `${word('jobdevice', 'waiting')} ${numberText(devices.waiting)}`)
        : null,
      devices.running > 0
        ? h('span.badge.info', {}, `${word('jobdevice', 'running')} ${numberText(devices.running)}`)
        : null,
      ...counted.map((one) => {
        const element = badge('outcome', one)
        element.append(` ${numberText(devices[one])}`)
        return element
      }),
    ),
    facts([
      [t('job'), h('span.mono', {}, job.job_id)],
      [t('pause_reason'), job.pause_reason === null ? undefined : word('reason', job.pause_reason)],
      [t('wave'), t('wave_of', { n: waves.current, total: waves.total, size: numberText(waves.size) })],
      [t('concurrency'), String(waves.concurrency)],
      [t('pause_above'), waves.pause_above_percent === null ? t('never') : `${waves.pause_above_percent} %`],
      [t('verify'), job.verify === null ? undefined : t(job.verify ? 'yes' : 'no')],
      [t('by'), job.created_by],
      [t('made'), timeNode(job.created_at)],
      [t('finished'), timeNode(job.finished_at)],
    ]),
    job.set === null ? null : details('set', t('params'), json(job.set.params)),
    job.firmware === null ? null : details('firmware', t('firmware'), json(job.firmware)),
  )
}

// ---- making one ----------------------------------------------------------------------------------------------------

/** Which devices, and how many at once. */
function targetFields(protocol) {
  const by = select({ name: 'by', onchange: () => show() }, [
    ['filter', t('by_filter')],
    ['ids', t('by_ids')],
  ])
  const ids = field(
    t('device_ids'),
    h('textarea', { name: 'device_ids', rows: '4', class: 'mono', spellcheck: 'false', required: true }),
    t('device_ids_hint'),
  )
  const filters = ['site', 'firmware', 'device_type', 'model_profile'].map((name) => [
    name,
    field(t('optional', { what: t(name === 'device_type' ? 'model' : name) }), h('input', { name, maxlength: '200' })),
  ])
  const box = h('div.form-grid', {}, ...filters.map(([, one]) => one))
  const size = field(
    t('optional', { what: t('wave_size') }),
    h('input', { type: 'number', name: 'size', min: '1', max: '100000' }),
    t('wave_size_hint'),
  )
  const concurrency = field(
    t('concurrency'),
    h('input', { type: 'number', name: 'concurrency', min: '1', max: '500', value: '20', required: true }),
  )
  const pause = field(
    t('pause_above'),
    h('input', { type: 'number', name: 'pause', min: '0', max: '100', value: '20' }),
    t('pause_hint'),
  )
  const show = () => {
    ids.hidden = by.value !== 'ids'
    ids.input.disabled = ids.hidden
    box.hidden = by.value !== 'filter'
  }
  show()
  return {
    elements: [field(t('which_devices'), by), ids, box, h('div.form-grid', {}, concurrency, size, pause)],
    value() {
      const given = Object.fromEntries(
        filters.map(([name, { input }]) => [name, input.value.trim()]).filter(([, text]) => text !== ''),
      )
      return {
        ...(by.value === 'ids'
          ? { device_ids: ids.input.value.split(/[\s,;]+/).filter((one) => one !== '') }
          : { filter: { protocol: protocol(), ...given } }),
        waves: {
          concurrency: Number(concurrency.input.value),
          pause_above_percent: pause.input.value === '' ? null : Number(pause.input.value),
          ...(size.input.value === '' ? {} : { size: Number(size.input.value) }),
        },
      }
    },
  }
}

const went = ({ job_id: id }) => {
  toast(t('job_made'))
  location.hash = `#/jobs/${encodeURIComponent(id)}`
}

/** `readLimits` reads what `setLimits` wrote, `queryParameters` what `setParameters` did. */
const isReadOf = (other, one) =>
  other.protocol === one.protocol && /^(read|query)/.test(other.name) && tailOf(other) === tailOf(one)
const tailOf = ({ name }) => name.replace(/^[a-z]+/, '')

async function askParameters() {
  const make = repeatablePost()
  let catalogue
  try {
    const all = await commandCatalogue()
    catalogue = all
      .filter(({ name }) => /^(set|write)/.test(name))
      .map((one) => ({ ...one, isProvable: all.some((other) => isReadOf(other, one)) }))
      // what can be read back first: it is what jobs are made for, and the rest may cost a device its way to us
      .toSorted((a, b) => Number(b.isProvable) - Number(a.isProvable))
  } catch (error) {
    toast(error.message, true)
    return
  }
  const hint = h('small', {})
  const fields = h('div', {})
  let form
  const chosen = () => catalogue[Number(name.value)]
  const name = select(
    { name: 'name', onchange: () => show() },
    catalogue.map((one, index) => [String(index), `${one.protocol.toUpperCase()} ${one.name}`]),
  )
  const verify = h('input', { type: 'checkbox', name: 'verify', id: 'job-verify', checked: true })
  const targets = targetFields(() => chosen().protocol)
  const show = () => {
    fill(hint, chosen()?.text ?? '')
    form = paramsForm(chosen()?.params)
    fill(fields, form.element)
    verify.checked = chosen()?.isProvable === true
    verify.disabled = !verify.checked
  }
  show()
  await ask({
    title: t('parameters_job'),
    isWide: true,
    body: [
      field(t('command'), name),
      hint,
      fields,
      h('div.check', {}, verify, h('label', { for: 'job-verify' }, t('verify_hint'))),
      ...targets.elements,
    ],
    confirm: t('start'),
    onConfirm: async () =>
      went(
        await make('/api/v1/jobs', {
          kind: 'parameters',
          set: { name: chosen().name, params: form.value() },
          verify: verify.checked,
          ...targets.value(),
        }),
      ),
  })
}

const TARGETS = ['slave', 'power_board', 'via_host', 'old_device', 'old_host', 'host']

async function askFirmware() {
  const make = repeatablePost()
  let images
  try {
    ;({ items: images } = await get('/api/v1/firmware', { limit: IMAGES_MAX }))
  } catch (error) {
    toast(error.message, true)
    return
  }
  if (images.length === 0) {
    toast(t('upload_first'), true)
    return
  }
  const image = select(
    { name: 'image' },
    images.map((one) => [one.image_id, `${one.name} · ${numberText(one.bytes)} B`]),
  )
  const target = select(
    { name: 'target' },
    TARGETS.map((one) => [one, one]),
  )
  const targets = targetFields(() => 'ap3000')
  await ask({
    title: t('firmware_job'),
    isWide: true,
    isDangerous: true,
    body: [
      h('p.soft', {}, t('firmware_question')),
      field(t('firmware_image'), image),
      field(t('firmware_target'), target),
      ...targets.elements,
    ],
    confirm: t('start'),
    onConfirm: async () =>
      went(
        await make('/api/v1/jobs', {
          kind: 'firmware',
          firmware: { target: target.value, image_id: image.value },
          ...targets.value(),
        }),
      ),
  })
}

function askUpload(done) {
  const file = h('input', { type: 'file', name: 'file', required: true })
  const name = h('input', { name: 'name', maxlength: '200' })
  return ask({
    title: t('upload'),
    body: [field(t('file'), file, t('file_hint')), field(t('optional', { what: t('name') }), name)],
    confirm: t('upload'),
    onConfirm: async () => {
      const [one] = file.files
      const label = name.value.trim() || one.name
      await api('POST', `/api/v1/firmware?name=${encodeURIComponent(label)}`, one)
      toast(t('saved'))
      done()
    },
  })
}
