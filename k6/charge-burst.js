// A burst of charges: every pile of the fleet is started once as fast as the API takes it, each start is followed to
// its fate, and what was started is stopped again. With a gateway that runs already:
//   API=http://127.0.0.1:8080 KEY=$(cat .data/api-key) npm run k6 -- charge-burst
// It needs piles that answer and are free: npm run k6 brings 400 of its own when it starts the gateway.
import { check, sleep } from 'k6'
import exec from 'k6/execution'
import http from 'k6/http'
import { Rate, Trend } from 'k6/metrics'

const PILES = Number(__ENV.PILES || 400)
const FATE_S_MAX = 20

export const options = {
  scenarios: {
    burst: { executor: 'shared-iterations', vus: 50, iterations: PILES, maxDuration: '90s' },
  },
  thresholds: {
    http_req_failed: ['rate<0.01'],
    'http_req_duration{name:charge}': ['p(99)<1000'],
    // from the request to the moment in which a poll sees the fate: the pile itself takes 0.3 s (AP3000) or 1 s (BKV)
    fate_ms: ['p(99)<10000'],
    started: ['rate>0.99'],
    checks: ['rate>0.99'],
  },
}

const base = __ENV.API || 'http://127.0.0.1:8080'
const headers = { Authorization: `Bearer ${__ENV.KEY}`, 'Content-Type': 'application/json' }
const fateMs = new Trend('fate_ms', true)
const started = new Rate('started')

export function setup() {
  const devices = []
  let cursor = ''
  while (devices.length < PILES) {
    const page = http.get(
      `${base}/api/v1/devices?online=true&limit=500${cursor && `&cursor=${encodeURIComponent(cursor)}`}`,
      {
        headers,
      },
    )
    if (!check(page, { 'key is good': (answer) => answer.status === 200 })) break
    for (const { device_id, protocol } of page.json('items')) devices.push({ device_id, protocol })
    cursor = page.json('next_cursor')
    if (cursor === null) break
  }
  // a burst at nobody would cross no threshold
  if (devices.length === 0) throw new Error('no pile is online')
  return devices.slice(0, PILES)
}

/** @returns the command when it has its fate, or as it was after FATE_S_MAX */
function fateOf(commandId) {
  const untilMs = Date.now() + FATE_S_MAX * 1000
  for (;;) {
    const answer = http.get(`${base}/api/v1/commands/${commandId}`, { headers, tags: { name: 'command' } })
    const command = answer.json()
    if (command.finished_at || Date.now() > untilMs) return command
    sleep(0.25)
  }
}

export default function (devices) {
  const device = devices[exec.scenario.iterationInTest % devices.length]
  const place = device.protocol === 'bkv' ? { socket: 1, port: 1 } : { port: 1 }
  const url = `${base}/api/v1/devices/${device.device_id}`
  const sentMs = Date.now()
  const answer = http.post(`${url}/charge`, JSON.stringify({ ...place, mode: 'full' }), {
    headers,
    tags: { name: 'charge' },
  })
  if (!check(answer, { 'charge is accepted': ({ status }) => status === 202 })) return
  const fate = fateOf(answer.json('command_id'))
  fateMs.add(Date.now() - sentMs)
  started.add(fate.state === 'acked')
  if (fate.state !== 'acked') return
  const stop = http.post(`${url}/stop`, JSON.stringify(place), { headers, tags: { name: 'stop' } })
  check(stop, { 'stop is accepted': ({ status }) => status === 202 })
  check(fateOf(stop.json('command_id')), { 'stop is carried out': ({ state }) => state === 'acked' })
}
