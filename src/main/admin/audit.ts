/** Who did what: one row of `audit_logs` in the transaction of the deed itself. */
import type { ApiKey } from '../../config/api-keys.ts'
import type { TransactionSql } from '../database/connect.ts'

export interface Deed {
  readonly key: ApiKey
  /** `noun.pastParticiple` */
  readonly action: string
  readonly target: string
  readonly requestId: string
  readonly remoteAddress: string
  /** What was asked for; JSON, no secrets. */
  readonly details: unknown
}

/** Thread: main. @throws the driver's error: then the deed is rolled back too */
export async function writeAudit(tx: TransactionSql, deed: Deed): Promise<void> {
  const { key, action, target, requestId, remoteAddress, details } = deed
  await tx`
    insert into audit_logs (tenant_id, actor, role, action, target, request_id, remote_address, details)
    values (${key.tenant}, ${key.id}, ${key.role}, ${action}, ${target}, ${requestId}, ${remoteAddress},
      ${tx.json(details as never)})`
}
