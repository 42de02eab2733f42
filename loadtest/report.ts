/**
 * One run of the fleet as an HTML file that needs nothing else: figures, phases, charts (uPlot and the data inlined),
 * light and dark. Opened from disk or sent by mail, it asks nobody for anything.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { MachineFacts } from '../native-bench/machine.ts'
import type { FleetOptions, FleetResult } from './fleet-run.ts'

const PAGE = join(import.meta.dirname, 'report')
const require = createRequire(import.meta.url)

export interface ReportOf {
  readonly title: string
  readonly about: string
  /** As it was called, for whoever wants the same again. */
  readonly command: string
  readonly options: FleetOptions
  readonly machine: MachineFacts
  readonly result: FleetResult
}

/** @returns the whole file */
export function renderReport({ title, about, command, options, machine, result }: ReportOf): string {
  const { summary, notes, samples, phases } = result
  const isGood = summary.errors === 0
  const tiles: [string, string, boolean?][] = [
    ['offered', `${count(summary.offered_per_s)} /s`],
    ['achieved', `${count(summary.achieved_per_s)} /s`],
    ['reply p50', ms(summary.reply_ms_p50)],
    ['reply p99', ms(summary.reply_ms_p99)],
    ['settlement to ack p50', ms(notes.settlementMsP50)],
    ['settlement to ack p99', ms(notes.settlementMsP99)],
    ['settlements acked', `${count(summary.settlements_acked)} of ${count(summary.settlements_sent)}`],
    ['connected at the end', `${count(summary.connected)} of ${count(summary.devices)}`],
    ['orders started', count(notes.ordersStarted)],
    ['commands', count(summary.commands_received)],
    ['generator late p99', ms(notes.latenessMsP99)],
    ['errors', count(summary.errors), !isGood],
  ]
  const facts: [string, string][] = [
    ['Command', command],
    ['Gateway', `${options.host}:${options.port}`],
    [
      'Fleet',
      `${count(options.devices)} × ${options.protocol}, heartbeat ${options.heartbeatS} s, charge ${options.chargeS} s, cards ${options.cardShare}, chaos ${options.chaos}, seed ${options.seed}`,
    ],
    ['Machine', `${machine.cpu}, ${machine.cores} cores, ${count(machine.memory_mib)} MiB, Linux ${machine.kernel}`],
    ['Node and commit', `${machine.node}, ${machine.commit}`],
    ['Written', machine.at],
    ['Failures', Object.keys(notes.failures).length === 0 ? 'none' : JSON.stringify(notes.failures)],
    ...notes.firstFailures.map((failure): [string, string] => ['', failure]),
  ]
  const charts: [string, string][] = [
    ['rate', 'Frames, offered and achieved'],
    ['reply', 'Reply latency, from when a frame was due'],
    ['settlement', 'Settlements: from due to ack, after the commit'],
    ['connections', 'Connections'],
    ['settlements', 'Settlements and errors, in total'],
    ['cpu', 'Gateway: CPU with its database'],
    ['memory', 'Gateway: memory without its database'],
    ['gateway', 'Gateway: rows that wait for the database, lateness of its threads'],
  ]
  const data = JSON.stringify({ samples, phases }).replaceAll('<', '\\u003c')
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${text(title)}: fleet report</title>
<link rel="icon" href="data:,">
<style>
${readFileSync(require.resolve('uplot/dist/uPlot.min.css'), 'utf8')}
${readFileSync(join(PAGE, 'page.css'), 'utf8')}
</style>
</head>
<body>
<main>
<header>
<h1>${text(title)}</h1>
<p class="soft">${text(about)}</p>
<p class="verdict ${isGood ? 'good' : 'bad'}">${isGood ? 'No errors' : `${count(summary.errors)} errors`} in ${notes.durationS} s</p>
</header>
<dl class="tiles">
${tiles.map(([name, value, isAlert]) => `<div${isAlert ? ' class="alert"' : ''}><dt>${text(name)}</dt><dd>${text(value)}</dd></div>`).join('\n')}
</dl>
<section class="card">
<h2>Phases</h2>
<div class="scroll"><table>
<thead><tr><th>phase</th><th>from</th><th>to</th><th>offered /s</th><th>achieved /s</th><th>reply p50</th><th>reply p99</th><th>settlement p99</th><th>acked</th><th>connected, least</th><th>errors</th></tr></thead>
<tbody>
${phases
  .map(
    (phase) =>
      `<tr><td>${text(phase.name || 'run')}</td><td>${phase.fromS.toFixed(1)} s</td><td>${phase.toS.toFixed(1)} s</td><td>${count(phase.offeredPerS)}</td><td>${count(phase.achievedPerS)}</td><td>${ms(phase.replyMsP50)}</td><td>${ms(phase.replyMsP99)}</td><td>${ms(phase.settlementMsP99)}</td><td>${count(phase.settlementsAcked)}</td><td>${count(phase.connectedMin)}</td><td>${count(phase.errors)}</td></tr>`,
  )
  .join('\n')}
</tbody>
</table></div>
</section>
<div class="charts">
${charts.map(([id, name]) => `<section class="card"><h2>${text(name)}</h2><div id="chart-${id}"></div></section>`).join('\n')}
</div>
<section class="card">
<h2>How it was made</h2>
<dl class="facts">
${facts.map(([name, value]) => `<dt>${text(name)}</dt><dd>${text(value)}</dd>`).join('\n')}
</dl>
</section>
</main>
<script type="application/json" id="run">${data}</script>
<script>${readFileSync(require.resolve('uplot/dist/uPlot.iife.min.js'), 'utf8')}</script>
<script>${readFileSync(join(PAGE, 'page.js'), 'utf8')}</script>
</body>
</html>
`
}

const ESCAPED: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}
const text = (value: string): string => value.replaceAll(/[&<>"']/g, (one) => ESCAPED[one] as string)
const count = (value: number): string => (Number.isFinite(value) ? value.toLocaleString('en') : '–')
const ms = (value: number | null): string =>
  value === null ? '–' : `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en')} ms`
