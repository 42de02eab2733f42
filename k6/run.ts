/**
 * `npm run k6 -- SCRIPT [k6 options]`: runs a script of this folder with the `k6` on PATH against a running gateway.
 * k6 is a tool beside the project, not a dependency of it.
 */
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const scripts = readdirSync(here).filter((name) => name.endsWith('.js'))
const [name, ...rest] = process.argv.slice(2)
const script = scripts.find((candidate) => candidate === name || candidate === `${name}.js`)
if (script === undefined) {
  console.error(`npm run k6 -- SCRIPT, one of: ${scripts.map((one) => one.replace(/\.js$/, '')).join(', ')}`)
  process.exit(2)
}
const run = spawnSync('k6', ['run', ...rest, `${here}${script}`], { stdio: 'inherit' })
if ((run.error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') {
  console.error(`There is no k6 on PATH. With Go 1.25 or newer:
  go install go.k6.io/k6@latest
and put the binary on PATH.`)
  process.exit(127)
}
process.exit(run.status ?? 1)
