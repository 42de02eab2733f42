/** The thread that sends webhooks, seen from main. What it held when it died is given back by its successor. */
import type { RelayThreadOptions } from '../../workers/relay/messages.ts'
import type { Log } from './log.ts'
import { SideThread } from './side-thread.ts'

export class RelayThread extends SideThread {
  constructor(options: RelayThreadOptions, log: Log) {
    super({
      name: 'relay',
      entry: new URL('../../workers/relay/index.ts', import.meta.url),
      data: options,
      log,
      failed: { event: 'relay.failed', msg: 'relay thread failed' },
      replaced: { event: 'relay.replaced', msg: 'relay thread died, starting another' },
    })
  }
}
