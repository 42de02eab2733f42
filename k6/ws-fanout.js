// Fan-out of events: every VU is a WebSocket subscriber of all devices, and the fleet charges meanwhile. Each event must
// come once and in order, and each subscriber must have got what the API lists for the same stretch of the stream.
//   API=http://127.0.0.1:8080 KEY=$(cat .data/api-key) npm run k6 -- ws-fanout
// Events carry whole seconds: `event_delay_ms` is up to 1 s too long. native-bench/push.ts measures delays exactly.
import { check } from 'k6'
import exec from 'k6/execution'
import http from 'k6/http'
import { Counter, Rate, Trend } from 'k6/metrics'
import { WebSocket } from 'k6/websockets'

const SUBSCRIBERS = Number(__ENV.SUBSCRIBERS || 100)
const LISTEN_MS = 20_000
/** Subscribers that compare what they got with the API: each costs some pages of it. */
const AUDITORS = 5

export const options = {
  scenarios: {
    listen: { executor: 'per-vu-iterations', vus: SUBSCRIBERS, iterations: 1, maxDuration: '60s' },
  },
  thresholds: {
    events_received: ['count>0'],
    'event_delay_ms{type:charging.ended}': ['p(99)<2000'],
    // states of ports are written after STATE_FLUSH_MS, 1 s
    event_delay_ms: ['p(99)<4000'],
    ws_subscribe_ms: ['p(99)<3000'],
    complete: ['rate==1'],
    checks: ['rate==1'],
  },
}

const base = __ENV.API || 'http://127.0.0.1:8080'
const headers = { Authorization: `Bearer ${__ENV.KEY}` }
const received = new Counter('events_received')
const delayMs = new Trend('event_delay_ms', true)
const subscribeMs = new Trend('ws_subscribe_ms', true)
const complete = new Rate('complete')

/** Cursors of the stream behind `after` up to `to`, as the API lists them. */
function cursorsOf(after, to) {
  const cursors = []
  for (let from = after; ; ) {
    const page = http.get(`${base}/api/v1/events?limit=500&after=${from}`, { headers, tags: { name: 'events' } })
    if (page.status !== 200) return undefined
    for (const { cursor } of page.json('items')) if (Number(cursor) <= to) cursors.push(Number(cursor))
    from = page.json('next_cursor')
    if (from === null || Number(from) > to) return cursors
  }
}

export default function () {
  const dialledMs = Date.now()
  const socket = new WebSocket(`${base.replace(/^http/, 'ws')}/ws`, null, { headers })
  const cursors = []
  let subscribedAt = -1
  let isOrdered = true
  let isOurs = false
  let refused = ''
  socket.onopen = () => socket.send(JSON.stringify({ op: 'subscribe', topics: ['device/*', 'order/*', 'alarm/*'] }))
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data)
    if (message.op === 'subscribed') {
      subscribedAt = Number(message.cursor)
      subscribeMs.add(Date.now() - dialledMs)
      setTimeout(() => {
        isOurs = true
        socket.close()
      }, LISTEN_MS)
    } else if (message.op === 'event') {
      const cursor = Number(message.cursor)
      if (cursor <= (cursors.length > 0 ? cursors[cursors.length - 1] : subscribedAt)) isOrdered = false
      cursors.push(cursor)
      received.add(1)
      delayMs.add(Date.now() - message.event.timestamp * 1000, { type: message.event.event_type })
    } else refused = message.op
  }
  socket.onerror = (error) => {
    refused = error.error
  }
  socket.onclose = () => {
    check(null, {
      subscribed: () => subscribedAt >= 0,
      'every event once and in order': () => isOrdered,
      'nothing but events': () => refused === '',
      'closed by us': () => isOurs,
    })
    if (exec.vu.idInTest > AUDITORS || cursors.length === 0) return
    const listed = cursorsOf(subscribedAt, cursors[cursors.length - 1])
    complete.add(
      listed !== undefined && listed.length === cursors.length && listed.every((one, i) => one === cursors[i]),
    )
  }
}
