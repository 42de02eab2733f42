/**
 * The life of an order as one table: which event leads from which state to which, and why the others do not. Pure; the
 * order book moves orders by nothing else.
 *
 *     pending -> starting -> charging -> stopping -> settled          or failed, cancelled     (contract 3)
 *
 * Three rules decide what is not obvious:
 * - Money that was spent is settled, whatever we believed before: a settlement settles from every state.
 * - The device knows better than we do: its reports move an order that we gave up to `charging`, since a start without
 *   result is unknown, not failed (AP3000 8, 82; BKV 9).
 * - Reports overtake one another and are repeated: what says nothing new is legal and changes nothing.
 */

export const ORDER_STATES = ['pending', 'starting', 'charging', 'stopping', 'settled', 'failed', 'cancelled'] as const
export type OrderState = (typeof ORDER_STATES)[number]

/** What happens to an order, in the words of whoever notices it. */
export const ORDER_EVENTS = {
  start_sent: 'the start left for the device, the first time or again',
  start_acked: 'the device said that it started, also late',
  start_refused: 'the device said that it did not start',
  start_dead: 'no result of the start within its last try',
  start_expired: 'the start was never sent within its expiry',
  start_cancelled: 'the start was cancelled while it was queued',
  confirmed: 'the device says that the order runs (AP3000 04)',
  progress: 'a report shows the order charging (AP3000 06, BKV 1017)',
  stop_sent: 'the stop left for the device',
  stop_acked: 'the device said that it stopped',
  stop_refused: 'the device said that it did not stop',
  stop_moot: 'the device said that nothing is to be stopped: the order does not run there',
  stop_dead: 'the stop got no result, or was never sent',
  settled: 'the device’s settlement of an order that has none yet',
  settled_estimated: 'the reconciler settles with the last known figures',
  real_settlement_after_estimate: 'the device’s settlement of an order settled by estimate: it takes its place',
  timed_out: 'the start is overdue and its command has no fate',
} as const
export type OrderEvent = keyof typeof ORDER_EVENTS
export const ORDER_EVENT_NAMES = Object.keys(ORDER_EVENTS) as OrderEvent[]

export interface LegalTransition {
  readonly to: OrderState
  /** To be added to `orders.version`: 0 when the event says nothing new and nothing is to be written. */
  readonly versionStep: 0 | 1
  /** The figures of a settled order are replaced: the event that announces it has to say so. */
  readonly isCorrection: boolean
}
export interface IllegalTransition {
  readonly illegal: true
  /** A sentence for the log and the timeline; to be counted, never applied. */
  readonly why: string
}

type Cell = OrderState | { readonly why: string }
type Row = Readonly<Record<OrderState, Cell>>

const no = (why: string): Cell => ({ why })
const GIVEN_UP = no('the order was given up already')
const IS_SETTLED = no('the order is settled: a report that comes late changes nothing')
const STOP_SETTLED = no('the order is settled already: there is nothing to stop')
const STOP_CANCELLED = no('the order was cancelled before it was sent: there is nothing to stop')
const STOP_PENDING = no('the start was not sent yet: it has to be cancelled, not stopped')
const RUNS = no('the device has shown the order running: a start that seems to have failed does not undo that')

/** The device says that it charges. */
const RUNNING: Row = {
  pending: 'charging',
  starting: 'charging',
  charging: 'charging',
  // it goes on until the stop is carried out
  stopping: 'stopping',
  settled: IS_SETTLED,
  // after a timeout is unknown, not failed
  failed: 'charging',
  // only a device that was told the number can name it: the start did leave
  cancelled: 'charging',
}

const START_FAILED: Row = {
  pending: 'failed',
  starting: 'failed',
  charging: RUNS,
  stopping: RUNS,
  settled: IS_SETTLED,
  failed: GIVEN_UP,
  cancelled: GIVEN_UP,
}

const STOP_FAILED: Row = {
  pending: STOP_PENDING,
  starting: 'starting',
  charging: 'charging',
  // it charges on, and may be stopped again
  stopping: 'charging',
  settled: STOP_SETTLED,
  failed: 'failed',
  cancelled: STOP_CANCELLED,
}

const NOT_RUNNING = no('the start is undecided: it times out, and costs nothing')
const NO_ESTIMATE = no('an estimate never replaces a settlement')

const TABLE: Readonly<Record<OrderEvent, Row>> = {
  start_sent: {
    pending: 'starting',
    starting: 'starting',
    // sent again because the result was lost, while a report had shown it running
    charging: 'charging',
    stopping: 'stopping',
    settled: IS_SETTLED,
    failed: GIVEN_UP,
    cancelled: GIVEN_UP,
  },
  start_acked: RUNNING,
  start_refused: START_FAILED,
  start_dead: START_FAILED,
  start_expired: START_FAILED,
  start_cancelled: {
    pending: 'cancelled',
    starting: no('the start was sent: it can only be stopped'),
    charging: no('the order charges: it can only be stopped'),
    stopping: no('the order is being stopped'),
    settled: IS_SETTLED,
    failed: GIVEN_UP,
    cancelled: 'cancelled',
  },
  confirmed: RUNNING,
  progress: RUNNING,
  stop_sent: {
    pending: STOP_PENDING,
    // undecided whether there is anything to stop: a refused start must still be able to fail
    starting: 'starting',
    charging: 'stopping',
    stopping: 'stopping',
    settled: STOP_SETTLED,
    // to be safe: the start's outcome is unknown
    failed: 'failed',
    cancelled: STOP_CANCELLED,
  },
  stop_acked: {
    pending: STOP_PENDING,
    // what was stopped had started: its settlement follows
    starting: 'stopping',
    charging: 'stopping',
    stopping: 'stopping',
    settled: STOP_SETTLED,
    failed: 'stopping',
    cancelled: STOP_CANCELLED,
  },
  stop_refused: STOP_FAILED,
  stop_moot: {
    pending: STOP_PENDING,
    // it may never have run, and must not be estimated (simulation, seed 105)
    starting: 'starting',
    // it ran and has ended: its settlement follows
    charging: 'stopping',
    stopping: 'stopping',
    settled: STOP_SETTLED,
    failed: 'failed',
    cancelled: STOP_CANCELLED,
  },
  stop_dead: STOP_FAILED,
  settled: {
    pending: 'settled',
    starting: 'settled',
    charging: 'settled',
    stopping: 'settled',
    settled: no('the order is settled: a settlement repeated by the device is answered again and changes nothing'),
    failed: 'settled',
    cancelled: 'settled',
  },
  settled_estimated: {
    pending: NOT_RUNNING,
    starting: NOT_RUNNING,
    charging: 'settled',
    stopping: 'settled',
    settled: NO_ESTIMATE,
    failed: no('the order did not run as far as anybody knows: there is nothing to estimate'),
    cancelled: no('the order was never sent: there is nothing to estimate'),
  },
  real_settlement_after_estimate: {
    pending: no('the order has no settlement yet: this one is its first'),
    starting: no('the order has no settlement yet: this one is its first'),
    charging: no('the order has no settlement yet: this one is its first'),
    stopping: no('the order has no settlement yet: this one is its first'),
    settled: 'settled',
    failed: no('the order has no settlement yet: this one is its first'),
    cancelled: no('the order has no settlement yet: this one is its first'),
  },
  timed_out: {
    pending: 'failed',
    starting: 'failed',
    charging: no('the order may be spending money: it is settled by estimate, not failed'),
    stopping: no('the order may be spending money: it is settled by estimate, not failed'),
    settled: IS_SETTLED,
    failed: GIVEN_UP,
    cancelled: GIVEN_UP,
  },
}

/** @returns where the event leads, or why it leads nowhere. Never throws. */
export function transition(state: OrderState, event: OrderEvent): LegalTransition | IllegalTransition {
  const cell = TABLE[event][state]
  if (typeof cell !== 'string') return { illegal: true, why: `${event} in ${state}: ${cell.why}` }
  const isCorrection = event === 'real_settlement_after_estimate'
  return { to: cell, versionStep: cell !== state || isCorrection ? 1 : 0, isCorrection }
}

/** Which event a settlement from the device is. `isEstimated`: `orders.estimated`. */
export function settlementEvent(state: OrderState, isEstimated: boolean): OrderEvent {
  return state === 'settled' && isEstimated ? 'real_settlement_after_estimate' : 'settled'
}

/** The table as Markdown, for README.md of this folder. `·`: legal, changes nothing. Empty: illegal. */
export function stateTable(): string {
  const lines = ORDER_EVENT_NAMES.map((event) => {
    const cells = ORDER_STATES.map((state) => {
      const found = transition(state, event)
      if ('illegal' in found) return ''
      return found.versionStep === 0 ? '·' : found.isCorrection ? `${found.to} (correction)` : found.to
    })
    return `| ${[event, ...cells, ORDER_EVENTS[event]].join(' | ')} |`
  })
  const head = ['event', ...ORDER_STATES, 'when']
  return [`| ${head.join(' | ')} |`, `| ${head.map(() => '---').join(' | ')} |`, ...lines].join('\n')
}

/** Every illegal pair with its reason, as Markdown. */
export function illegalTable(): string {
  const whys = new Map<string, string[]>()
  for (const event of ORDER_EVENT_NAMES)
    for (const state of ORDER_STATES) {
      const cell = TABLE[event][state]
      if (typeof cell !== 'string') whys.set(cell.why, [...(whys.get(cell.why) ?? []), `${event} in ${state}`])
    }
  return [...whys].map(([why, pairs]) => `- ${why}: ${pairs.join(', ')}`).join('\n')
}
