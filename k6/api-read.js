// Read mix of an operator's dashboard: device pages, single devices, orders, metrics. Needs a running gateway and a key:
//   API=http://127.0.0.1:8080 KEY=$(cat .data/api-key) npm run k6 -- api-read
import { check } from 'k6'
import http from 'k6/http'

export const options = {
  scenarios: {
    read: { executor: 'constant-arrival-rate', rate: 200, timeUnit: '1s', duration: '30s', preAllocatedVUs: 50 },
  },
  thresholds: { http_req_failed: ['rate<0.01'], http_req_duration: ['p(99)<200'], checks: ['rate>0.99'] },
}

const base = __ENV.API || 'http://127.0.0.1:8080'
const headers = { Authorization: `Bearer ${__ENV.KEY}` }

export function setup() {
  const page = http.get(`${base}/api/v1/devices?limit=100`, { headers })
  check(page, { 'key is good': (answer) => answer.status === 200 })
  return { devices: page.json('items').map((device) => device.device_id) }
}

export default function ({ devices }) {
  const draw = Math.random()
  let answer
  if (draw < 0.5 && devices.length > 0) {
    const id = devices[Math.floor(Math.random() * devices.length)]
    answer = http.get(`${base}/api/v1/devices/${id}`, { headers, tags: { name: 'device' } })
  } else if (draw < 0.75) answer = http.get(`${base}/api/v1/devices?limit=50`, { headers, tags: { name: 'devices' } })
  else if (draw < 0.98) answer = http.get(`${base}/api/v1/orders?limit=50`, { headers, tags: { name: 'orders' } })
  else answer = http.get(`${base}/metrics`, { tags: { name: 'metrics' } })
  check(answer, { 'answered 200': ({ status }) => status === 200 })
}
