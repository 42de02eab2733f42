/** WRITER THREAD, entry of the piscina pool: one task at a time, one connection, errors as values, no Atomics.wait. */
import { workerData } from 'node:worker_threads'
import { giveWay } from '../priority.ts'
import type { WriterAnswer, WriterData, WriterTask } from './task.ts'
import { createWriter } from './writer.ts'

giveWay()
const writer = createWriter(workerData as WriterData)

export default function (task: WriterTask): Promise<WriterAnswer> {
  return writer.run(task)
}
