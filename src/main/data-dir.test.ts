/**
 * Claim: one gateway per DATA_DIR; the lock of a dead process is taken over, also while its parent has not asked how it
 * ended. Tried with a live, a dead and an undead process.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { takeDataDir } from './data-dir.ts'

test('a directory is taken once, given back, and taken again', () => {
  const dir = mkdtempSync(join(tmpdir(), 'pilegate-'))
  const other = spawn('sleep', ['30'])
  try {
    const stat = readFileSync(`/proc/${other.pid}/stat`, 'utf8')
    const started = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
    writeFileSync(join(dir, 'gateway.lock'), `${other.pid} ${started}\n`)
    assert.throws(() => takeDataDir(dir), { code: 'GW_DATA_DIR_UNUSABLE' })
    // the number alone is not the process: it may have been given to another program
    writeFileSync(join(dir, 'gateway.lock'), `${other.pid} 1\n`)
    takeDataDir(dir)()
    const dead = spawnSync('true').pid
    writeFileSync(join(dir, 'gateway.lock'), `${dead} 12345\n`)
    const giveBack = takeDataDir(dir)
    assert.match(readFileSync(join(dir, 'gateway.lock'), 'utf8'), new RegExp(`^${process.pid} `))
    giveBack()
    takeDataDir(dir)()
  } finally {
    other.kill()
    rmSync(dir, { recursive: true })
  }
})

test('a killed gateway whose parent has not noticed holds nothing', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'pilegate-'))
  // `sleep` takes the shell's place before the child ends, and never asks after what it did not make
  const parent = spawn('sh', ['-c', 'sleep 0.3 & echo $!; exec sleep 30'], { stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    const [said] = (await once(parent.stdout, 'data')) as [Buffer]
    const pid = Number(said.toString())
    const fields = () => {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    }
    for (let tries = 0; fields()[0] !== 'Z' && tries < 200; tries++) await sleep(10)
    assert.equal(fields()[0], 'Z')
    process.kill(pid, 0)
    writeFileSync(join(dir, 'gateway.lock'), `${pid} ${fields()[19]}\n`)
    takeDataDir(dir)()
  } finally {
    parent.kill()
    rmSync(dir, { recursive: true })
  }
})
