/** The admin endpoint of a test that is about some of its routes: a free port, no log, everything well. */
import type { ApiKey } from '../config/api-keys.ts'
import type { AdminOptions } from '../main/admin/admin.ts'
import type { Sql } from '../main/database/connect.ts'
import { createLog } from '../main/log.ts'
import { temporaryDirectory } from './temporary-directory.ts'

export const quietAdmin = (sql: Sql, apiKeys: readonly ApiKey[]): AdminOptions => ({
  nonceDirectory: temporaryDirectory(),
  config: { httpHost: '127.0.0.1', httpPort: 0, requestTimeoutMs: 5_000 },
  log: createLog({ level: 'silent', serviceName: 'pilegate', env: 'test', thread: 'main' }),
  sql,
  apiKeys,
  readiness: () => [],
  presenceOf: () => undefined,
  protocolOf: () => undefined,
  renderMetrics: async () => '',
  observeRequest: () => {},
  now: Date.now,
})
