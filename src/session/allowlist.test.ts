/**
 * Claim: a listed device may come from anywhere, a listed network may bring any device, everybody else is refused, and an
 * entry that is no address lets nobody in. Tried with addresses of both families, mapped ones too, as the drivers write
 * them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Allowlist, parseNetwork } from './allowlist.ts'

test('a device id or a network lets in, nothing else does', () => {
  const list = new Allowlist([
    { kind: 'device', pattern: '04ab373b' },
    { kind: 'network', pattern: '10.1.0.0/16' },
    { kind: 'network', pattern: '192.0.2.7' },
    { kind: 'network', pattern: '2001:db8::/32' },
    { kind: 'network', pattern: 'anywhere' },
  ])
  const cases: readonly (readonly [string, string, boolean])[] = [
    ['04ab373b', '203.0.113.1:7', true],
    ['04ab373c', '203.0.113.1:7', false],
    ['04ab373c', '10.1.255.3:65535', true],
    ['04ab373c', '10.2.0.1:1', false],
    ['04ab373c', '::ffff:10.1.2.3:9', true],
    ['04ab373c', '192.0.2.7:80', true],
    ['04ab373c', '192.0.2.8:80', false],
    ['04ab373c', '2001:db8::5:4000', true],
    ['04ab373c', '[2001:db8::5]:4000', true],
    ['04ab373c', '[2001:db9::5]:4000', false],
    ['04ab373c', '?:0', false],
  ]
  for (const [deviceId, remoteAddress, isAdmitted] of cases)
    assert.equal(list.admits(deviceId, remoteAddress), isAdmitted, `${deviceId} from ${remoteAddress}`)
})

test('an empty list admits nobody', () => {
  assert.equal(new Allowlist([]).admits('04ab373b', '127.0.0.1:1'), false)
})

test('what is a network', () => {
  for (const text of ['10.0.0.0/8', '0.0.0.0/0', '::/0', '::1', '127.0.0.1'])
    assert.notEqual(parseNetwork(text), undefined, text)
  for (const text of [
    '',
    '10.0.0.0/33',
    '10.0.0.0/',
    '10.0.0.0/08',
    '10.0.0/8',
    '::1/129',
    'fe80::1%eth0',
    '1.1.1.1/8/8',
    'host',
  ])
    assert.equal(parseNetwork(text), undefined, text)
})
