/**
 * Which shard owns a connection: rendezvous (highest random weight) hashing of its routing key. Every thread computes
 * the same answer without a table, and one shard more or less moves only about 1/n of the keys.
 */

/** FNV-1a over UTF-16 code units, then a finalizer: FNV alone is too regular in its high bits for short keys. */
function hashKey(key: string): number {
  let hash = 0x811c9dc5
  for (let index = 0; index < key.length; index++) hash = Math.imul(hash ^ key.charCodeAt(index), 0x01000193)
  return hash >>> 0
}

/** The 32-bit finalizer of MurmurHash3: every input bit changes about half of the output bits. */
function mix(value: number): number {
  let mixed = value
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b)
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35)
  return (mixed ^ (mixed >>> 16)) >>> 0
}

/**
 * @param routingKey what the first bytes said: ICCID, physId or gateway id
 * @param shards 1..256
 * @returns 0..shards-1
 */
export function shardOf(routingKey: string, shards: number): number {
  const hash = hashKey(routingKey)
  let best = 0
  let bestWeight = -1
  for (let shard = 0; shard < shards; shard++) {
    const weight = mix(hash ^ mix(shard + 0x9e3779b9))
    if (weight > bestWeight) {
      bestWeight = weight
      best = shard
    }
  }
  return best
}
