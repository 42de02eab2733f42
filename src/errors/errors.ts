// biome-ignore-all lint/suspicious/noThenProperty: what comes next, in words; nothing awaits a catalogue
/**
 * Every error code of the gateway, in two catalogues: what goes wrong inside (`ERRORS`) and what an HTTP caller is told
 * (`HTTP_ERRORS`). Codes are added, never renamed: logs, alerts and callers match on them.
 */

/** `blame`: who has to do something about it. `then`: what the one who catches it does next. */
export const ERRORS = {
  GW_CONFIG_INVALID: { blame: 'operator', then: 'do not start; name key, value and rule of every problem' },
  GW_LISTEN_FAILED: { blame: 'operator', then: 'do not start: address or port cannot be had' },
  GW_DATA_DIR_UNUSABLE: { blame: 'operator', then: 'do not start: nothing could be kept' },
  GW_DATABASE_START_FAILED: { blame: 'world', then: 'do not start; show the last lines of the database log' },
  GW_DATABASE_UNAVAILABLE: { blame: 'world', then: 'keep rows in the outbox and the spool, try again' },
  GW_MIGRATION_FAILED: { blame: 'operator', then: 'do not start: the schema is not the one this code was written for' },
  GW_FRAME_CHECKSUM: { blame: 'device', then: 'skip the frame, count it' },
  GW_SESSION_FENCED: { blame: 'nobody', then: 'close: a newer session speaks for the device' },
  GW_DIRECTORY_FULL: { blame: 'operator', then: 'refuse the device, raise DEVICES_MAX' },
  GW_OUTBOX_FULL: { blame: 'gateway', then: 'withhold the ack: the device keeps its copy' },
  GW_ROW_REJECTED: { blame: 'gateway', then: 'put the row aside with its reason, never ack it, go on with the others' },
  GW_SPOOL_FULL: { blame: 'world', then: 'history stays in the outbox, which may fill; the ledger is not affected' },
  GW_THREAD_LOST: { blame: 'gateway', then: 'start another thread; its devices reconnect' },
  GW_HANDOFF_FAILED: { blame: 'gateway', then: 'close the connection; the device reconnects' },
  GW_SHUTDOWN_INCOMPLETE: { blame: 'gateway', then: 'exit with another code than 0 and say what was not flushed' },
} as const satisfies Record<string, { blame: 'device' | 'operator' | 'world' | 'gateway' | 'nobody'; then: string }>
export type ErrorCode = keyof typeof ERRORS

/** Something went wrong inside, and the code says whose turn it is. */
export class GatewayError extends Error {
  readonly code: ErrorCode
  readonly details: Readonly<Record<string, unknown>>

  /** @param details for the log; no secrets */
  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; details?: Readonly<Record<string, unknown>> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'GatewayError'
    this.code = code
    this.details = options.details ?? {}
  }

  get blame(): (typeof ERRORS)[ErrorCode]['blame'] {
    return ERRORS[this.code].blame
  }
}

/** What an HTTP caller may be told: code and status. */
export const HTTP_ERRORS = {
  INVALID_ARGUMENT: 400,
  UNAUTHENTICATED: 401,
  FORBIDDEN: 403,
  NOT_FOUND: 404,
  CONFLICT: 409,
  FAILED_PRECONDITION: 412,
  PAYLOAD_TOO_LARGE: 413,
  TOO_MANY_REQUESTS: 429,
  INTERNAL_ERROR: 500,
  UNAVAILABLE: 503,
  TIMEOUT: 504,
} as const
export type HttpErrorCode = keyof typeof HTTP_ERRORS

/** Thrown by a route to answer with an error; everything else that is thrown there becomes INTERNAL_ERROR. */
export class HttpError extends Error {
  readonly code: HttpErrorCode
  /** Shown to the caller. */
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: HttpErrorCode, message: string, details: Readonly<Record<string, unknown>> = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'HttpError'
    this.code = code
    this.details = details
  }

  get status(): number {
    return HTTP_ERRORS[this.code]
  }
}
