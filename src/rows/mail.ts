/**
 * What main puts into a shard's mailbox: commands on their way to a device. The mailbox is a ring like an outbox, the
 * other way round; rows never reach a table.
 */
import { defineRow, f64, f64OrNull, i32, ROW_BYTES_MAX, type RowOf, text } from './row.ts'

/** Of `fields`, in UTF-8: the rest of a row is for the others. A node list of 250 sockets has 10,300. */
export const COMMAND_FIELDS_BYTES_MAX = ROW_BYTES_MAX - 1_024

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
