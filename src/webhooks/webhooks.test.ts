/**
 * Claims: what becomes of a delivery follows the table in outcome.ts for every answer there is; the guard lets pass
 * only the public internet, in whatever way an address is written. Tried by tables, and by random answers.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { allowedAddresses, isPublicAddress, refusalOf } from './address-guard.ts'
import { outcomeOf, RETRY_AFTER_MS_MAX, retryAfterMs } from './outcome.ts'

const SCHEDULE = [1_000, 5_000, 30_000]
const NOW = Date.UTC(2026, 0, 31, 12)
const answer = (status: number | undefined, retryAfter?: string) => ({ status, error: undefined, retryAfter })

test('2xx is delivered, 410 is the end of the endpoint, everything else comes again until the schedule is over', () => {
  for (let status = 200; status < 300; status++)
    assert.deepEqual(outcomeOf(answer(status), 1, SCHEDULE, 0.5, NOW), { kind: 'delivered' })
  assert.deepEqual(outcomeOf(answer(410), 1, SCHEDULE, 0.5, NOW), { kind: 'gone' })
  for (const status of [
    undefined,
    100,
    199,
    300,
    301,
    307,
    308,
    400,
    401,
    404,
    409,
    411,
    422,
    429,
    500,
    502,
    503,
    504,
    599,
  ]) {
    const delays = [1, 2, 3].map((attempts) => outcomeOf(answer(status), attempts, SCHEDULE, 0.5, NOW))
    assert.deepEqual(
      delays.map((outcome) => outcome.kind === 'retry' && outcome.delayMs),
      SCHEDULE,
      `status ${status}`,
    )
    assert.deepEqual(outcomeOf(answer(status), 4, SCHEDULE, 0.5, NOW), { kind: 'dead' })
  }
})

test('Retry-After: seconds and dates, 429 and 503 only, never sooner, at most an hour', () => {
  const delayOf = (status: number, header: string, random = 0) => {
    const outcome = outcomeOf(answer(status, header), 1, SCHEDULE, random, NOW)
    assert.ok(outcome.kind === 'retry')
    return outcome
  }
  assert.deepEqual(delayOf(429, '7'), { kind: 'retry', delayMs: 7_000, restMs: 7_000 })
  assert.equal(delayOf(503, 'Sat, 31 Jan 2026 12:00:09 GMT').delayMs, 9_000)
  assert.equal(delayOf(500, '7').delayMs, 800)
  assert.equal(delayOf(429, '0').delayMs, 800)
  // an hour is the most, however large the number and whatever the spread adds
  for (const far of ['7200', '99999999', '9999999999', '12345678901234567890', '9'.repeat(400)])
    for (const random of [0, 0.5, 0.999])
      assert.deepEqual(
        delayOf(429, far, random),
        { kind: 'retry', delayMs: RETRY_AFTER_MS_MAX, restMs: RETRY_AFTER_MS_MAX },
        `${far} ${random}`,
      )
  assert.equal(delayOf(429, '3300', 0.999).delayMs, RETRY_AFTER_MS_MAX)
  assert.equal(delayOf(503, 'Sat, 31 Jan 2026 11:00:00 GMT').restMs, 0)
  for (const odd of ['', ' ', 'soon', '-5', '1.5', '1e9', '0x10', 'Sun'])
    assert.equal(retryAfterMs(odd, NOW), undefined, odd)
})

test('any answer at any time: delays are spread by a fifth at most, and none is before what was asked', () => {
  const status = fc.option(fc.integer({ min: 100, max: 599 }), { nil: undefined })
  const header = fc.option(fc.oneof(fc.nat(100_000).map(String), fc.string()), { nil: undefined })
  fc.assert(
    fc.property(
      status,
      header,
      fc.integer({ min: 1, max: 3 }),
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      (code, retry, attempts, random) => {
        const outcome = outcomeOf(answer(code, retry), attempts, SCHEDULE, random, NOW)
        if (outcome.kind !== 'retry') return code === 410 || (code !== undefined && code >= 200 && code < 300)
        const own = SCHEDULE[attempts - 1]!
        const asked = code === 429 || code === 503 ? (retryAfterMs(retry, NOW) ?? 0) : 0
        return (
          outcome.delayMs >= Math.max(own * 0.8 - 1, asked) &&
          outcome.delayMs <= Math.max(own * 1.2 + 1, Math.min(asked * 1.2 + 1, RETRY_AFTER_MS_MAX))
        )
      },
    ),
  )
})

const CLOSED = `0.0.0.0 10.1.2.3 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255 168.63.129.16 169.254.169.254 172.16.0.1
  172.31.255.255 192.0.0.1 192.0.2.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1
  255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe 64:ff9b::a00:1 64:ff9b::7f00:1
  64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1:: 3fff::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 5f00::1`
const OPEN = `1.1.1.1 8.8.8.8 9.255.255.255 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 172.15.255.255 172.32.0.0
  192.0.1.1 192.167.255.255 198.17.255.255 223.255.255.255 2606:4700::1111 2a00:1450:4001:81b::200e ::ffff:8.8.8.8 64:ff9b::808:808`
const words = (text: string) => text.split(/\s+/)

test('addresses: what is public and what is not', () => {
  for (const address of words(CLOSED)) assert.equal(isPublicAddress(address), false, address)
  for (const address of words(OPEN)) assert.equal(isPublicAddress(address), true, address)
  for (const odd of ['', 'example.com', '1.2.3', '300.1.1.1']) assert.equal(isPublicAddress(odd), false, odd)
})

const CLOSED_GUARD = { allowPrivate: false, allowedHosts: [] }
test('a URL is refused before anybody resolves it, however its address is written', () => {
  for (const url of [
    'http://127.0.0.1/x',
    'http://2130706433/',
    'http://0x7f.1/',
    'http://0177.0.0.1/',
    'http://[::1]:80/',
    'http://[::ffff:127.0.0.1]/',
    'http://169.254.169.254/latest/meta-data',
    'http://localhost:3000/',
    'http://LOCALHOST/',
    'http://a.localhost/',
    'http://localhost./',
    'http://LocalHost..:3000/',
    'http://localhost%2e/',
    'http://a.localhost./',
    'http://127.0.0.1./',
    'https://user:pw@example.com/',
    'https://example.com/#x',
    'ftp://example.com/',
    'file:///etc/passwd',
    'gopher://example.com/',
    'javascript:alert(1)',
    'example.com',
    '',
  ])
    assert.notEqual(refusalOf(url, CLOSED_GUARD), undefined, url)
  for (const url of [
    'https://example.com/hook?x=1',
    'http://example.com:8080/',
    'https://8.8.8.8/',
    'https://[2606:4700::1111]/',
  ])
    assert.equal(refusalOf(url, CLOSED_GUARD), undefined, url)
})

test('what configuration opens', () => {
  assert.equal(refusalOf('http://127.0.0.1/', { allowPrivate: true, allowedHosts: [] }), undefined)
  const listed = { allowPrivate: false, allowedHosts: ['127.0.0.1', 'billing.internal', '::1'] }
  for (const url of ['http://127.0.0.1:9/', 'http://Billing.Internal/', 'http://[::1]/'])
    assert.equal(refusalOf(url, listed), undefined, url)
  assert.notEqual(refusalOf('http://127.0.0.2/', listed), undefined)
  // a host is the same with the dot that ends its full name
  assert.equal(refusalOf('http://localhost./', { allowPrivate: false, allowedHosts: ['localhost'] }), undefined)
  assert.deepEqual(allowedAddresses('billing.internal.', [{ address: '10.0.0.5' }], listed).length, 1)
  const resolved = [{ address: '10.0.0.5' }, { address: '8.8.8.8' }]
  assert.deepEqual(allowedAddresses('other.example', resolved, listed), [{ address: '8.8.8.8' }])
  assert.deepEqual(allowedAddresses('billing.internal', resolved, listed), resolved)
  assert.deepEqual(allowedAddresses('x.example', resolved.slice(0, 1), CLOSED_GUARD), [])
})
