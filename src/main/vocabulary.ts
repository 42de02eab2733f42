/** Where the label values of the metrics come from: each list has its one home, this file only gathers them. */
import { NOISE_REASONS, type Protocol } from '../codec/protocol.ts'
import { OUTCOMES } from '../jobs/waves.ts'
import type { Vocabulary } from '../metrics/catalogue.ts'
import { ROW_TABLES } from '../rows/index.ts'
import { LANES } from '../rows/row.ts'
import { CLOSE_REASONS, COMMAND_OUTCOMES, FENCED_ACTIONS } from '../session/effects.ts'

/** Thread: main, once at start, before the counters are allocated. */
export function metricsVocabulary(protocols: readonly Protocol[]): Vocabulary {
  return {
    protocols: protocols.map(({ name, uplinks, downlinks }) => ({
      name,
      uplinks: [...uplinks.values()].map((command) => command.name),
      downlinks: [...downlinks.values()].map((command) => command.name),
    })),
    noiseReasons: NOISE_REASONS,
    closeReasons: CLOSE_REASONS,
    fencedActions: FENCED_ACTIONS,
    commandOutcomes: COMMAND_OUTCOMES,
    jobOutcomes: OUTCOMES,
    lanes: LANES,
    tables: ROW_TABLES,
  }
}
