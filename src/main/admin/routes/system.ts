/** What nobody needs a key for: alive, ready, metrics, and the API's description. */
import * as z from 'zod'
import { HttpError } from '../../../errors/errors.ts'
import { defineRoute, type Route } from '../route.ts'

export const zHealth = z.object({ status: z.literal('alive') })
export const zReadiness = z.object({ status: z.literal('ready'), reasons: z.array(z.string()).max(0) })

export interface SystemParts {
  /** What keeps the gateway from serving; empty: nothing. */
  readonly readiness: () => readonly string[]
  readonly renderMetrics: () => Promise<string>
  /** The document as JSON text. */
  readonly openApi: () => string
}

export function systemRoutes({ readiness, renderMetrics, openApi }: SystemParts): readonly Route[] {
  return [
    defineRoute({
      method: 'GET',
      path: '/healthz',
      role: 'public',
      summary: 'Is the process alive?',
      response: zHealth,
      handle: () => ({ status: 'alive' as const }),
    }),
    defineRoute({
      method: 'GET',
      path: '/readyz',
      role: 'public',
      summary: 'Does the gateway serve?',
      description: 'Configuration, database, shards and listener; 503 with error.details.reasons when not.',
      response: zReadiness,
      errors: ['UNAVAILABLE'],
      handle: () => {
        const reasons = readiness()
        if (reasons.length > 0) throw new HttpError('UNAVAILABLE', `not ready: ${reasons.join(', ')}`, { reasons })
        return { status: 'ready' as const, reasons: [] }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/metrics',
      role: 'public',
      summary: 'Prometheus text',
      contentType: 'text/plain; version=0.0.4; charset=utf-8',
      handle: async () => ({ contentType: 'text/plain; version=0.0.4; charset=utf-8', body: await renderMetrics() }),
    }),
    defineRoute({
      method: 'GET',
      path: '/openapi.json',
      role: 'public',
      summary: 'This document',
      contentType: 'application/json',
      handle: () => ({ contentType: 'application/json', body: openApi() }),
    }),
  ]
}
