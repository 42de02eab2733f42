/** Topics of the WebSocket (contract 5): which there are, and which one an event is told under. */

/** One event as the stream hands it on: made once, sent to many. */
export interface StreamEvent {
  /** Place in the stream, grows; with gaps. */
  readonly cursor: number
  readonly tenant: string
  readonly deviceId: string
  readonly eventType: string
  /** The frame for a subscriber of this topic; made at the first call, the same bytes for everybody. */
  frame(topic: string): Uint8Array
}

export const METRICS_TOPIC = 'metrics'
const ALL_DEVICES = 'device/*'
const ALL_ORDERS = 'order/*'
const ALL_ALARMS = 'alarm/*'
const WILDCARDS: readonly string[] = [ALL_DEVICES, ALL_ORDERS, ALL_ALARMS]
const DEVICE = /^device\/[0-9a-z]{1,32}$/

export const isTopic = (text: string) => text === METRICS_TOPIC || WILDCARDS.includes(text) || DEVICE.test(text)

const isOrderEvent = (type: string) => type.startsWith('charging.') || type.startsWith('order.')
const isAlarmEvent = (type: string) => type === 'device.alarm'

/** What one subscriber asked for. */
export class TopicSet {
  readonly #topics: Set<string>

  constructor(topics: Iterable<string> = []) {
    this.#topics = new Set(topics)
  }

  get size(): number {
    return this.#topics.size
  }

  /** True when any event may match, whatever its device. */
  get hasWildcard(): boolean {
    return WILDCARDS.some((topic) => this.#topics.has(topic))
  }

  get hasEvents(): boolean {
    return this.#topics.size > (this.has(METRICS_TOPIC) ? 1 : 0)
  }

  /** Ids of the devices that were asked for by name. */
  get deviceIds(): string[] {
    return this.list().flatMap((topic) => (DEVICE.test(topic) ? [topic.slice('device/'.length)] : []))
  }

  has(topic: string): boolean {
    return this.#topics.has(topic)
  }

  add(topic: string): void {
    this.#topics.add(topic)
  }

  delete(topic: string): void {
    this.#topics.delete(topic)
  }

  list(): string[] {
    return [...this.#topics]
  }

  /**
   * The topic under which this subscriber is told an event. Each event is told once, however many topics fit: under the
   * narrowest, in the order alarm, order, one device, all devices.
   */
  topicOf(event: StreamEvent): string | undefined {
    const topics = this.#topics
    if (topics.has(ALL_ALARMS) && isAlarmEvent(event.eventType)) return ALL_ALARMS
    if (topics.has(ALL_ORDERS) && isOrderEvent(event.eventType)) return ALL_ORDERS
    const own = `device/${event.deviceId}`
    if (topics.has(own)) return own
    return topics.has(ALL_DEVICES) ? ALL_DEVICES : undefined
  }
}
