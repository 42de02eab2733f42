/** The counters of session logic as plain stores into shared memory; every slot is looked up once at start. */

import type { Downlink, NoiseReason, Protocol, Uplink } from '../../src/codec/protocol.ts'
import { NOISE_REASONS } from '../../src/codec/protocol.ts'
import { CARD_RESULTS } from '../../src/metrics/catalogue.ts'
import { LANES, type Lane } from '../../src/rows/row.ts'
import {
  CLOSE_REASONS,
  type CloseReason,
  COMMAND_OUTCOMES,
  type CommandOutcome,
  FENCED_ACTIONS,
  type FencedAction,
  type SessionCounts,
} from '../../src/session/effects.ts'
import type { ThreadCounters } from '../../src/shared/counters.ts'

const slotsOf = <T extends string>(names: readonly T[], slotOf: (name: T) => number) =>
  Object.fromEntries(names.map((name) => [name, slotOf(name)])) as Record<T, number>

export function makeCounts(counters: ThreadCounters, protocols: readonly Protocol[]): SessionCounts {
  const uplinks = new Map<Uplink, number>()
  const downlinks = new Map<Downlink, number>()
  const perProtocol = new Map<
    Protocol,
    { unknown: number; connections: number; devices: number; errors: Record<NoiseReason, number> }
  >()
  for (const protocol of protocols) {
    const { name } = protocol
    const frames = (direction: string, command: string) =>
      counters.counter('frames_total', { protocol: name, direction, command })
    for (const command of protocol.uplinks.values()) uplinks.set(command, frames('uplink', command.name))
    for (const command of protocol.downlinks.values()) downlinks.set(command, frames('downlink', command.name))
    perProtocol.set(protocol, {
      unknown: frames('uplink', 'unknown'),
      connections: counters.gauge('connections', { protocol: name }),
      devices: counters.gauge('devices_online', { protocol: name }),
      errors: slotsOf(NOISE_REASONS, (reason) => counters.counter('frame_errors_total', { protocol: name, reason })),
    })
  }
  const closed = slotsOf(CLOSE_REASONS, (reason) => counters.counter('closed_total', { reason }))
  const fenced = slotsOf(FENCED_ACTIONS, (what) => counters.counter('fenced_total', { what }))
  const full = slotsOf(LANES, (lane) => counters.counter('outbox_full_total', { lane }))
  const cards = slotsOf(CARD_RESULTS, (result) => counters.counter('card_lookups_total', { result }))
  const commandSlots = new Map<
    Downlink,
    { outcomes: Record<CommandOutcome, number>; seconds: number; resends: number }
  >()
  for (const protocol of protocols)
    for (const command of protocol.downlinks.values())
      commandSlots.set(command, {
        outcomes: slotsOf(COMMAND_OUTCOMES, (outcome) =>
          counters.counter('commands_total', { command: command.name, outcome }),
        ),
        seconds: counters.histogram('command_seconds', { command: command.name }),
        resends: counters.counter('command_resends_total', { command: command.name }),
      })
  const pending = counters.gauge('commands_pending')
  const takeovers = counters.counter('takeovers_total')
  const withheld = counters.counter('acks_withheld_total')
  const overflow = counters.counter('outbound_overflow_total')
  return {
    uplink: (protocol, command) =>
      counters.add(command === undefined ? perProtocol.get(protocol)!.unknown : uplinks.get(command)!),
    downlink: (_protocol, command) => counters.add(downlinks.get(command)!),
    frameError: (protocol, reason: NoiseReason) => counters.add(perProtocol.get(protocol)!.errors[reason]),
    connections: (protocol, change) => counters.add(perProtocol.get(protocol)!.connections, change),
    devices: (protocol, change) => counters.add(perProtocol.get(protocol)!.devices, change),
    closed: (reason: CloseReason) => {
      counters.add(closed[reason])
      if (reason === 'outbound_overflow') counters.add(overflow)
    },
    takeover: () => counters.add(takeovers),
    fenced: (what: FencedAction) => counters.add(fenced[what]),
    ackWithheld: () => counters.add(withheld),
    rowRefused: (lane: Lane) => counters.add(full[lane]),
    cardLookup: (result) => counters.add(cards[result]),
    command: (command, outcome) => counters.add(commandSlots.get(command)!.outcomes[outcome]),
    commandSeconds: (command, seconds) => counters.observe(commandSlots.get(command)!.seconds, seconds),
    commandResent: (command) => counters.add(commandSlots.get(command)!.resends),
    commandsPending: (change) => counters.add(pending, change),
  }
}
