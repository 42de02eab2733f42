/** Directories of tests that are gone when their process ends. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), 'pilegate-test-'))
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}
