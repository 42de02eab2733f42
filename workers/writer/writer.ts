/** What a writer thread does with a task; the thread around it is index.ts. */
import { createHash } from 'node:crypto'
import { connect, databaseErrorCode, type Sql } from '../../src/main/database/connect.ts'
import { insertSpan, WriteFailure } from './insert.ts'
import { appendRecord, readRecord } from './spool-file.ts'
import type { WriterAnswer, WriterData, WriterTask } from './task.ts'

const TASK_MS_MAX = 20_000
/** Of a corrupt record, into quarantine. */
const EVIDENCE_BYTES_MAX = 65_536

export interface Writer {
  /** Never rejects. One task at a time. */
  readonly run: (task: WriterTask) => Promise<WriterAnswer>
  readonly close: () => Promise<void>
}

/** One connection, opened with the first task that needs it and replaced when it is lost. */
export function createWriter({ databaseUrl, taskMsMax = TASK_MS_MAX }: WriterData): Writer {
  let sql: Sql | null = null

  function connection(): Sql {
    sql ??= connect(databaseUrl, {
      max: 1,
      applicationName: 'pilegate writer',
      // Sooner than our own deadline, so that the usual answer is the server's and the connection stays.
      statementTimeoutMs: Math.max(1, Math.floor(taskMsMax * 0.75)),
      connectTimeoutMs: Math.min(taskMsMax, 5_000),
    })
    return sql
  }

  async function work(task: WriterTask): Promise<WriterAnswer> {
    switch (task.kind) {
      case 'insert':
        return { ok: true, kind: 'inserted', result: await insertSpan(connection(), copyRange(task)) }
      case 'spool':
        return { ok: true, kind: 'spooled', ...appendRecord(task.path, copyRange(task)) }
      case 'drain':
        return await drain(task.path, task.from)
    }
  }

  async function drain(path: string, from: number): Promise<WriterAnswer> {
    const record = readRecord(path, from)
    if (record.state === 'end' || record.state === 'torn')
      return { ok: true, kind: 'drained', outcome: record.state, next: from, result: null }
    if (record.state === 'corrupt') {
      const digest = `spool:${createHash('sha256').update(record.bytes).digest('hex')}`
      await connection()`
        insert into quarantine (reason, bytes, note, digest)
        values ('spool_corrupt', ${Buffer.from(record.bytes.subarray(0, EVIDENCE_BYTES_MAX))},
          ${`${record.bytes.length} bytes at ${from} of ${path}`}, ${digest})
        on conflict (digest) do nothing`
      return { ok: true, kind: 'drained', outcome: 'corrupt', next: record.next, result: null }
    }
    const result = await insertSpan(connection(), record.bytes)
    return { ok: true, kind: 'drained', outcome: 'inserted', next: record.next, result }
  }

  // A server that is frozen, or a network that swallows, answers nothing: then only this clock ends the task. The
  // span may have been committed all the same; it is idempotent.
  async function run(task: WriterTask): Promise<WriterAnswer> {
    let deadline: NodeJS.Timeout | undefined
    const late = new Promise<WriterAnswer>((answer) => {
      deadline = setTimeout(() => {
        sql?.end({ timeout: 0 }).catch(() => {})
        sql = null
        answer({ ok: false, code: 'GW_WRITER_TIMEOUT', retryable: true, message: `no answer within ${taskMsMax} ms` })
      }, taskMsMax)
    })
    try {
      return await Promise.race([work(task).catch(failure), late])
    } finally {
      clearTimeout(deadline)
    }
  }

  return {
    run,
    async close() {
      await sql?.end({ timeout: 2 })
      sql = null
    },
  }
}

/** The session thread may overwrite the ring once the span is released, and decoders refuse shared memory. */
function copyRange(task: { memory: SharedArrayBuffer; byteOffset: number; fromIndex: number; toIndex: number }) {
  const from = task.byteOffset + task.fromIndex
  return new Uint8Array(task.memory, from, task.toIndex - task.fromIndex).slice()
}

function failure(error: unknown): WriterAnswer {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof WriteFailure) return { ok: false, code: error.code, retryable: true, message }
  const code = databaseErrorCode(error)
  // No code: not the world's fault but ours (a bad range, for example), and no better next time.
  return { ok: false, code: code ?? 'GW_WRITER_UNKNOWN', retryable: code !== undefined, message }
}
