/** On what a figure was measured; goes beside every recorded figure. */
import { execFileSync } from 'node:child_process'
import { cpus, release, totalmem } from 'node:os'

export interface MachineFacts {
  readonly cpu: string
  readonly cores: number
  readonly memory_mib: number
  readonly kernel: string
  readonly node: string
  readonly platform: string
  readonly commit: string
  readonly at: string
}

export function machineFacts(): MachineFacts {
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memory_mib: Math.round(totalmem() / 2 ** 20),
    kernel: release(),
    node: process.versions.node,
    platform: `${process.platform} ${process.arch}`,
    commit: commitOf(),
    at: new Date().toISOString(),
  }
}

/** Machines whose figures may be compared, as part of a file name: `intel-xeon-processor-2.10ghz-2c`. */
export function machineClass({ cpu, cores }: { cpu: string; cores: number } = machineFacts()): string {
  const name = cpu
    .toLowerCase()
    .replaceAll(/\((?:r|tm|c)\)|\bcpu\b/g, '')
    .replaceAll(/[^a-z0-9.]+/g, '-')
    .replaceAll(/^-+|-+$/g, '')
  return `${name}-${cores}c`
}

/** Short hash, with `+` when the tree differs from it; `unknown` outside a clone. */
function commitOf(): string {
  const git = (...args: string[]) =>
    execFileSync('git', args, {
      cwd: import.meta.dirname,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim()
  try {
    return (
      git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain', '--untracked-files=no') === '' ? '' : '+')
    )
  } catch {
    return 'unknown'
  }
}

export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2
}
