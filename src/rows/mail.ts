/**
 * What main puts into a shard's mailbox: commands on their way to a device. The mailbox is a ring like an outbox, the
 * other way round; rows never reach a table.
 */
import { defineRow, f64, f64OrNull, i32, type RowOf, text } from './row.ts'

export const commandMail = defineRow(200, 'mail', 'ledger', {
  commandId: text,
  deviceKey: f64,
  /** Of the session it is meant for: any other gives it back, so that the order of arrival is kept. */
  epoch: f64,
  name: text,
  /** JSON object: what the downlink's `encode` takes. */
  fields: text,
  priority: i32,
  expiresMs: f64,
  wireHex: text,
  socket: i32,
  port: i32,
  attempts: i32,
  messageId: f64OrNull,
  /** Latest message id the database knows for this device. */
  lastMessageId: f64OrNull,
})

export type CommandMail = RowOf<typeof commandMail.fields>
