import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const directories = new Set<string>()

/** A directory that also PostgreSQL's user may enter; gone when this process ends. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), 'pilegate-test-'))
  chmodSync(directory, 0o755)
  if (directories.size === 0) process.once('exit', removeAll)
  directories.add(directory)
  return directory
}

function removeAll(): void {
  for (const directory of directories) {
    try {
      rmSync(directory, { recursive: true, force: true })
    } catch {
      // somebody still writes into it
    }
  }
}
