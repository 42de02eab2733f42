/**
 * Every value of the field `event` of a log line: `noun.pastParticiple`, added, never renamed. Whoever logs a new one
 * adds it here; log-events.test.ts reads the sources and compares.
 */
export const LOG_EVENTS = {
  'acceptor.failed': 'the acceptor thread ended by itself or cannot listen',
  'acceptor.replaced': 'a new acceptor thread listens',
  'card.unanswered': 'a card question got no answer from the database; the device decides by itself',
  'database.died': 'the embedded PostgreSQL ended by itself; it is started again',
  'database.lost': 'queries do not reach the database: nothing is acknowledged, history spools',
  'database.ready': 'connected and migrated',
  'database.restartFailed': 'the embedded PostgreSQL did not come up; tried again',
  'database.restarted': 'the embedded PostgreSQL runs again',
  'database.returned': 'queries reach the database again',
  'database.startRetried': 'the embedded PostgreSQL was not ready at once',
  'database.started': 'the embedded PostgreSQL runs',
  'database.stopped': 'the embedded PostgreSQL stopped in order',
  'evidence.dropped': 'bytes of refused connections were not kept: too many while the database was away',
  'gateway.started': 'everything serves; says where',
  'gateway.stopped': 'everything is closed',
  'gateway.stopping': 'a signal came; nothing new is accepted',
  'gateway.unflushed': 'something was not written at the stop, and what',
  'handoff.failed': 'a connection could not change threads and was closed',
  'history.dropped': 'history rows were dropped by rule',
  'maintenance.failed': 'partitions or retention could not be tended; tried again',
  'request.failed': 'a request met an error of ours, with its stack',
  'request.finished': 'a request was answered',
  'row.rejected': 'the database would not take a row; it is in quarantine',
  'sessions.unclosed': 'sessions of a dead thread could not be closed in the database',
  'shard.cleared': 'devices of a dead session thread are offline',
  'shard.failed': 'a session thread ended by itself',
  'shard.replaced': 'a new session thread serves the shard',
  'span.refused': 'a batch of rows was not written; tried again',
  'spool.dropped': 'history was dropped because the spool is full or unwritable',
  'spool.failed': 'a spool file cannot be written or read',
  'writer.lost': 'a writer thread ended under its task; the batch is written again',
} as const satisfies Record<string, string>
export type LogEvent = keyof typeof LOG_EVENTS
