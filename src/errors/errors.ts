// biome-ignore-all lint/suspicious/noThenProperty: what comes next, in words; nothing awaits a catalogue
/**
 * Every error code of the gateway, in two catalogues: what goes wrong inside (`ERRORS`) and what an HTTP caller is told
 * (`HTTP_ERRORS`). Codes are added, never renamed: logs, alerts and callers match on them. What devices do wrong has no
 * code: it is counted by reason (`NOISE_REASONS` of src/codec/protocol.ts). errors.test.ts compares with the sources.
 */

/** `blame`: who has to do something about it. `then`: what the one who catches it does next. */
export const ERRORS = {
  GW_CONFIG_INVALID: { blame: 'operator', then: 'do not start; name key, value and rule of every problem' },
  GW_LISTEN_FAILED: { blame: 'operator', then: 'do not start: address or port cannot be had' },
  GW_DATA_DIR_UNUSABLE: { blame: 'operator', then: 'do not start: nothing could be kept' },
  GW_POSTGRES_MISSING: { blame: 'operator', then: 'do not start: no binaries for this platform; set DATABASE_URL' },
  GW_POSTGRES_UNREACHABLE: { blame: 'operator', then: 'do not start: name the directory its user cannot enter' },
  GW_POSTGRES_PASSWORD_LOST: {
    blame: 'operator',
    then: 'do not start: the cluster is there, its password file is not',
  },
  GW_POSTGRES_FAILED: { blame: 'world', then: 'do not start; show the last lines of the server' },
  GW_POSTGRES_STUCK: { blame: 'world', then: 'end without it: the server was told to stop and ends when it can' },
  GW_DATABASE_UNREACHABLE: { blame: 'operator', then: 'do not start: name DATABASE_URL, its host and what was said' },
  GW_MIGRATION_NAME: { blame: 'gateway', then: 'do not start: a file has no number of its own' },
  GW_MIGRATION_EDITED: { blame: 'gateway', then: 'do not start: restore the file, put the change into a new one' },
  GW_MIGRATION_UNKNOWN: { blame: 'operator', then: 'do not start: the database belongs to a newer release' },
  GW_MIGRATION_FAILED: { blame: 'operator', then: 'do not start: the schema is not the one this code was written for' },
  GW_ROW_UNREADABLE: {
    blame: 'gateway',
    then: 'put the row aside with its reason, never ack it, go on with the others',
  },
  GW_WRITER_TIMEOUT: { blame: 'world', then: 'drop the connection, insert the span again later' },
  GW_WRITER_UNKNOWN: { blame: 'gateway', then: 'ours is the mistake: the log says what; the span stays' },
  GW_THREAD_LOST: { blame: 'gateway', then: 'insert the span again: another writer takes its place' },
} as const satisfies Record<string, { blame: 'operator' | 'world' | 'gateway'; then: string }>
export type ErrorCode = keyof typeof ERRORS

/** Something went wrong inside, and the code says whose turn it is. Any thread; the code survives only in its own. */
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
