/** What a process uses, from /proc. */
import { readdirSync, readFileSync } from 'node:fs'

/** CPU of a process and all that descends from it, ms of user and system time; 0 where there is no /proc. */
export function cpuMsOf(pid: number): number {
  const parents = new Map<number, number>()
  const ticks = new Map<number, number>()
  for (const name of folders('/proc')) {
    const one = Number(name)
    if (!Number.isInteger(one)) continue
    const stat = textOf(`/proc/${one}/stat`)
    // the name in brackets may hold anything
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (fields.length < 15) continue
    parents.set(one, Number(fields[1]))
    // with that of children that ended
    ticks.set(
      one,
      [11, 12, 13, 14].reduce((sum, index) => sum + Number(fields[index]), 0),
    )
  }
  const isOfTree = (one: number): boolean => one === pid || (one > 1 && isOfTree(parents.get(one) ?? 0))
  let sum = 0
  for (const [one, count] of ticks) if (isOfTree(one)) sum += count
  return sum * (1_000 / TICKS_PER_S)
}

/** Resident memory of one process without its children (the database's shared buffers would count many times), bytes. */
export function rssBytesOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(textOf(`/proc/${pid}/status`))?.[1] ?? 0) * 1_024
}

/** `getconf CLK_TCK` is 100 on every Linux that Node runs on. */
const TICKS_PER_S = 100

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    // it ended meanwhile, or there is no /proc
    return ''
  }
}

function folders(path: string): string[] {
  try {
    return readdirSync(path)
  } catch {
    return []
  }
}
