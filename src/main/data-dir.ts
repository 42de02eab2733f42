/**
 * DATA_DIR belongs to one gateway at a time: a second one would adopt the first one's database server and stop it.
 * A lock file names the owner; the lock of a process that is gone, is dead though nobody has taken note of it (a zombie), or
 * whose number now belongs to another program, is taken over.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { GatewayError } from '../errors/errors.ts'

const LOCK_FILE = 'gateway.lock'

/**
 * Makes DATA_DIR and takes it.
 * @returns gives it back
 * @throws GatewayError GW_DATA_DIR_UNUSABLE another gateway works there, or it cannot be written
 */
export function takeDataDir(dataDir: string): () => void {
  const path = join(dataDir, LOCK_FILE)
  const mine = `${process.pid} ${startOf(process.pid)}\n`
  try {
    makeDirectory(dataDir)
    for (;;) {
      try {
        writeFileSync(path, mine, { flag: 'wx' })
        break
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      }
      const [pid = '', started = ''] = readFileSync(path, 'utf8').trim().split(' ')
      const owner = Number(pid)
      if (owner !== process.pid && isAlive(owner) && startOf(owner) === started)
        throw new GatewayError('GW_DATA_DIR_UNUSABLE', `${dataDir} is in use by the gateway with pid ${owner}`)
      rmSync(path, { force: true })
    }
  } catch (error) {
    if (error instanceof GatewayError) throw error
    throw new GatewayError('GW_DATA_DIR_UNUSABLE', `${dataDir}: ${(error as Error).message}`, { cause: error })
  }
  return () => rmSync(path, { force: true })
}

/** Start time of a process in clock ticks since boot: with the pid it names a process for good. Linux; else ''. */
const startOf = (pid: number) => statOf(pid)[19] ?? ''

/** State, parent and so on (proc(5), from the third field). Linux; else, and when it is gone, empty. */
function statOf(pid: number): readonly string[] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // the name in parentheses may hold spaces and parentheses
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  } catch {
    return []
  }
}

/** One level at a time: mkdir's own recursion never ends where nothing can be made (`/proc/x`). */
function makeDirectory(path: string): void {
  if (existsSync(path)) return
  makeDirectory(dirname(path))
  mkdirSync(path, { mode: 0o755 })
}

/** Killed, its files closed, and still in the table of processes until its parent asks how it ended. */
const DEAD_STATES: readonly (string | undefined)[] = ['Z', 'X', 'x']

function isAlive(pid: number): boolean {
  if (DEAD_STATES.includes(statOf(pid)[0])) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
