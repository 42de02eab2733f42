/**
 * Claim: every alert rule that operators install (deploy/prometheus-alerts.yml) asks for series that the gateway exports,
 * with labels that they have: a rule on a name that nobody exports never fires. Tried by reading both.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { parse } from 'yaml'
import { METRIC_PREFIX, METRICS } from './catalogue.ts'

interface Rule {
  readonly alert: string
  readonly expr: string
  readonly labels: { readonly severity: string }
  readonly annotations: { readonly summary: string }
}
const file = new URL('../../deploy/prometheus-alerts.yml', import.meta.url)
const { groups } = parse(readFileSync(file, 'utf8')) as { groups: { rules: Rule[] }[] }
const rules = groups.flatMap((group) => group.rules)

test('rules name series and labels of the catalogue', () => {
  assert.equal(new Set(rules.map(({ alert }) => alert)).size, rules.length)
  for (const { alert, expr, labels, annotations } of rules) {
    assert.ok(['page', 'warn'].includes(labels.severity) && annotations.summary.length > 20, alert)
    const names = [...expr.matchAll(/pilegate_(\w+)(?:\{([^}]*)\})?/g)]
    assert.ok(names.length > 0, alert)
    for (const [text, name, selectors = ''] of names) {
      const plain = name! in METRICS ? name! : name!.replace(/_(?:bucket|count|sum)$/, '')
      const series = METRICS[plain as keyof typeof METRICS] as { type: string; labels: readonly string[] } | undefined
      assert.ok(series !== undefined, `${alert}: ${METRIC_PREFIX}${name}`)
      assert.equal(plain !== name, series.type === 'histogram', `${alert}: ${text}`)
      for (const [, label] of selectors.matchAll(/(\w+)\s*=/g))
        assert.ok(series.labels.includes(label!), `${alert}: ${text}`)
    }
  }
})

test('what grows or is lost on its way out has a rule', () => {
  const exprs = rules.map(({ expr }) => expr).join('\n')
  for (const name of ['webhook_pending', 'webhook_delay_seconds', 'ws_dropped_total', 'spool_bytes'])
    assert.ok(exprs.includes(METRIC_PREFIX + name), name)
})
