/** Claim: one gateway per DATA_DIR; the lock of a dead process is taken over. Tried with a live and a dead process. */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
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
