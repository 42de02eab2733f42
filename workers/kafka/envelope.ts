/** One event as consumers of the topic get it. Pure. */
import { eventObjectOf } from '../../src/events/event-object.ts'
import type { EventRow } from './store.ts'

/** Of the value; grows when a reader of the old one could misunderstand the new one. */
export const SCHEMA_VERSION = '1'

export interface Envelope {
  /** The device, so that its events stay in one partition and in order; `tenant:NAME` for events about no device. */
  readonly key: Buffer
  /** JSON of the event object (contract 4), byte for byte the body of a webhook. */
  readonly value: Buffer
  readonly headers: ReadonlyMap<Buffer, Buffer>
}

const [EVENT_ID, EVENT_TYPE, TENANT, VERSION] = ['event_id', 'event_type', 'tenant', 'schema_version'].map((name) =>
  Buffer.from(name),
) as [Buffer, Buffer, Buffer, Buffer]
const VERSION_BYTES = Buffer.from(SCHEMA_VERSION)

export function envelopeOf(row: EventRow): Envelope {
  return {
    key: Buffer.from(row.device_id === '' ? `tenant:${row.tenant_id}` : row.device_id),
    value: Buffer.from(JSON.stringify(eventObjectOf(row))),
    headers: new Map([
      [EVENT_ID, Buffer.from(row.event_id)],
      [EVENT_TYPE, Buffer.from(row.event_type)],
      [TENANT, Buffer.from(row.tenant_id)],
      [VERSION, VERSION_BYTES],
    ]),
  }
}
