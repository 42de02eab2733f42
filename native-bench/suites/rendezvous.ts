/** Which shard owns a key: once per connection, on the acceptor. */
import { shardOf } from '../../src/shared/rendezvous.ts'
import { keep, type Suite } from '../suite.ts'

const KEYS = Array.from({ length: 1_000 }, (_, index) => `89860400000000${String(index).padStart(6, '0')}`)

const hash = (shards: number) => () => {
  let sum = 0
  for (const key of KEYS) sum += shardOf(key, shards)
  keep(sum)
}

export const suite: Suite = {
  name: 'rendezvous hash of an ICCID',
  baseline: '1 shard',
  cases: [1, 4, 16, 64].map((shards) => ({
    name: shards === 1 ? '1 shard' : `${shards} shards`,
    operations: KEYS.length,
    run: hash(shards),
  })),
}
