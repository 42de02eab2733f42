/**
 * Claims: the newest live connection of a device speaks for it, whatever the interleaving of opens, frames and closes
 * over shards; epochs only grow, also over starts; giving back an outdated claim changes nothing. Tried against a
 * model over every interleaving of two connections and over random histories of many (fast-check prints the seed),
 * and by threads that really race for the same slots.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { allocateDirectory, type Claim, Directory } from './directory.ts'

const DEVICE = 0x04ab373b

/** All orders of the steps of several actors that keep each actor's own order. */
function* interleavings<T>(lists: readonly (readonly T[])[]): Generator<T[]> {
  if (lists.every((list) => list.length === 0)) {
    yield []
    return
  }
  for (const [index, list] of lists.entries()) {
    if (list.length === 0) continue
    const rest = lists.map((other, at) => (at === index ? other.slice(1) : other))
    for (const tail of interleavings(rest)) yield [list[0]!, ...tail]
  }
}

test('every interleaving of open, frame, frame, close of two connections: the newest open one speaks', () => {
  const steps = (name: 'a' | 'b') => ['open', 'frame', 'frame', 'close'].map((step) => ({ name, step }))
  let count = 0
  for (const order of interleavings([steps('a'), steps('b')])) {
    count++
    const directory = new Directory(allocateDirectory(16, 1))
    const births = new Map<string, number>()
    const claims = new Map<string, Claim>()
    const open = new Set<string>()
    let epoch = 0
    for (const { name, step } of order) {
      if (step === 'open') {
        births.set(name, directory.nextEpoch())
        open.add(name)
      } else if (step === 'frame') {
        const held = claims.get(name)
        if (held !== undefined && directory.isStanding(held)) continue
        const answer = directory.claim(DEVICE, births.get(name)!, name === 'a' ? 0 : 1)
        if (answer.kind === 'taken') {
          assert.ok(answer.claim.epoch > epoch, 'epoch went back')
          epoch = answer.claim.epoch
          claims.set(name, answer.claim)
        } else assert.equal(answer.kind, 'refused')
      } else {
        open.delete(name)
        const held = claims.get(name)
        if (held !== undefined) {
          const stood = directory.isStanding(held)
          assert.equal(directory.giveBack(held), stood, 'a stale close must change nothing')
        }
      }
      // whoever is the newest of those that are open and have spoken holds the word
      const look = directory.look(DEVICE)
      const speakers = [...open].filter((who) => claims.has(who))
      const newest = speakers.sort((x, y) => births.get(y)! - births.get(x)!)[0]
      if (newest !== undefined && look?.isOnline === true && speakers.length === 2)
        assert.equal(look.shard, newest === 'a' ? 0 : 1, JSON.stringify(order))
      if (open.size === 0 && look !== undefined) assert.equal(look.isOnline, false)
    }
  }
  assert.equal(count, 70)
})

test('random histories of many connections and devices agree with a model', () => {
  type Held = { birth: number; shard: number; claims: Map<number, Claim>; isOpen: boolean }
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          what: fc.constantFrom('open', 'speak', 'speak', 'close'),
          who: fc.nat(7),
          device: fc.nat(4),
          shard: fc.nat(3),
        }),
        { maxLength: 120 },
      ),
      (history) => {
        const directory = new Directory(allocateDirectory(16, 3))
        const held: (Held | undefined)[] = []
        const model = new Map<number, { epoch: number; by: Held; isOnline: boolean }>()
        for (const { what, who, device, shard } of history) {
          const connection = held[who]
          if (what === 'open') {
            if (connection?.isOpen === true) continue
            held[who] = { birth: directory.nextEpoch(), shard, claims: new Map(), isOpen: true }
          } else if (connection?.isOpen !== true) {
          } else if (what === 'close') {
            connection.isOpen = false
            for (const [key, claim] of connection.claims) {
              const standing = model.get(key)!
              const isMine: boolean = standing.by === connection && standing.epoch === claim.epoch && standing.isOnline
              assert.equal(directory.giveBack(claim), isMine)
              if (isMine) standing.isOnline = false
            }
          } else {
            const standing = model.get(device)
            if (standing?.by === connection && standing.isOnline) continue
            const answer = directory.claim(device, connection.birth, connection.shard)
            const mayTake = standing === undefined || !standing.isOnline || standing.by.birth < connection.birth
            assert.equal(answer.kind, mayTake ? 'taken' : 'refused')
            if (answer.kind !== 'taken') continue
            assert.ok(answer.claim.epoch > (standing?.epoch ?? 0))
            connection.claims.set(device, answer.claim)
            model.set(device, { epoch: answer.claim.epoch, by: connection, isOnline: true })
          }
          for (const [key, standing] of model) {
            const look = directory.look(key)!
            assert.deepEqual(
              { epoch: look.epoch, shard: look.shard, isOnline: look.isOnline },
              { epoch: standing.epoch, shard: standing.by.shard, isOnline: standing.isOnline },
            )
          }
        }
      },
    ),
    { numRuns: 500 },
  )
})

test('a connection born before an older one came back wins over it', () => {
  const directory = new Directory(allocateDirectory(16, 1))
  const [stale, gone, newest] = [directory.nextEpoch(), directory.nextEpoch(), directory.nextEpoch()]
  const first = directory.claim(5, gone, 0)
  assert.ok(first.kind === 'taken' && directory.giveBack(first.claim))
  // bytes of the oldest connection were held up and arrive now: it speaks again, with an epoch of its own
  const renewed = directory.claim(5, stale, 1)
  assert.ok(renewed.kind === 'taken' && renewed.claim.epoch > newest)
  const taken = directory.claim(5, newest, 2)
  assert.ok(taken.kind === 'taken' && taken.claim.epoch > renewed.claim.epoch)
  assert.equal(directory.giveBack(renewed.claim), false)
  assert.equal(directory.claim(5, stale, 1).kind, 'refused')
})

test('an epoch of a later start is greater than any of an earlier one', () => {
  const first = new Directory(allocateDirectory(16, 7))
  let last = 0
  for (let count = 0; count < 1000; count++) last = first.nextEpoch()
  assert.ok(new Directory(allocateDirectory(16, 8)).nextEpoch() > last)
})

test('a full table answers, and known devices still claim', () => {
  const directory = new Directory(allocateDirectory(512, 1))
  const births = directory.nextEpoch()
  for (let device = 0; device < 512; device++) assert.equal(directory.claim(device, births, 0).kind, 'taken')
  assert.equal(directory.claim(9_999, directory.nextEpoch(), 0).kind, 'full')
  assert.equal(directory.claim(5, directory.nextEpoch(), 1).kind, 'taken')
})

test('clearing a dead shard leaves the devices of others alone', () => {
  const directory = new Directory(allocateDirectory(64, 1))
  for (let device = 0; device < 20; device++) directory.claim(device, directory.nextEpoch(), device % 2)
  assert.equal(directory.clearShard(1), 10)
  for (let device = 0; device < 20; device++) assert.equal(directory.look(device)!.isOnline, device % 2 === 0)
})

test('threads racing for the same devices: exactly one claim stands, and its holder knows', async () => {
  const memory = allocateDirectory(64, 1)
  const source = `
    import { parentPort, workerData } from 'node:worker_threads'
    import { Directory } from ${JSON.stringify(new URL('./directory.ts', import.meta.url).href)}
    const directory = new Directory(workerData.memory)
    const mine = new Map()
    for (let round = 0; round < 20000; round++) {
      const device = round % 16
      const answer = directory.claim(device, directory.nextEpoch(), workerData.shard)
      if (answer.kind === 'taken') mine.set(device, answer.claim)
    }
    const standing = [...mine].filter(([, claim]) => directory.isStanding(claim)).map(([device]) => device)
    parentPort.postMessage(standing)
  `
  const run = (shard: number) =>
    new Promise<number[]>((resolve, reject) => {
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
        workerData: { memory, shard },
      })
      worker.on('message', resolve)
      worker.on('error', reject)
    })
  const standing = await Promise.all([run(0), run(1), run(2)])
  const directory = new Directory(memory)
  const final = new Map<number, number>()
  for (let device = 0; device < 16; device++) final.set(device, directory.look(device)!.shard)
  // a thread that finished early may have lost devices afterwards; nobody but the final holder may be the last to hold
  for (let device = 0; device < 16; device++) {
    const holder = final.get(device)!
    assert.ok(standing[holder]!.includes(device), `device ${device}: shard ${holder} does not know that it holds it`)
  }
})
