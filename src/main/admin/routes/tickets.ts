/** The way to the WebSocket: tickets for browsers, and a word to whoever asks `/ws` without an upgrade. */
import * as z from 'zod'
import { HttpError } from '../../../errors/errors.ts'
import { TICKET_MS, type Tickets } from '../../push/tickets.ts'
import { defineRoute, type Route } from '../route.ts'
import { timeOf, zTime } from '../shapes.ts'

const zTicket = z.object({
  ticket: z.string().describe('For GET /ws?ticket=…; good for one connection'),
  expires_at: zTime,
  expires_in_s: z.int(),
})

export function ticketRoutes({ tickets }: { readonly tickets: Tickets }): readonly Route[] {
  return [
    defineRoute({
      method: 'POST',
      path: '/api/v1/ws-tickets',
      role: 'viewer',
      summary: 'A ticket for the WebSocket',
      description: 'Browsers cannot send a key with a WebSocket. It stands for the key that made it, once, for 30 s.',
      response: zTicket,
      status: 201,
      needsDatabase: false,
      handle: ({ key }) => {
        const { ticket, untilMs } = tickets.make(key)
        return { ticket, expires_at: timeOf(new Date(untilMs)), expires_in_s: TICKET_MS / 1_000 }
      },
    }),
    defineRoute({
      method: 'GET',
      path: '/ws',
      role: 'public',
      summary: 'Events as they happen, by WebSocket',
      description:
        'Upgrade with a key in the header or `?ticket=…`. Send {"op":"subscribe","topics":["device/04ab373b","device/*",' +
        '"order/*","alarm/*","metrics"],"after":CURSOR?}, {"op":"unsubscribe","topics":[…]} or {"op":"ping"}. You get ' +
        '{"op":"subscribed","topics","cursor"}, {"op":"event","topic","cursor","event"} with the object of contract ' +
        'section 4, unsubscribed, pong and {"op":"error","error":{"code","message"}}. Each event comes once, under the ' +
        'narrowest topic that fits (alarm, order, one device, all devices). With `after` everything behind that cursor comes first. A ' +
        'subscriber that lets too much wait unread is sent {"op":"lagging"} and closed with 4008: connect again with the ' +
        'last cursor as `after`. While it is told what it missed (`after`) it is not lagging: that is sent at the pace of the ' +
        'reader, and only one that reads next to nothing (32 KiB) for a minute is closed so. Messages have at most 65536 bytes, a connection at most 100 topics.',
      status: 101,
      errors: ['INVALID_ARGUMENT', 'UNAUTHENTICATED', 'UNAVAILABLE'],
      handle: () => {
        throw new HttpError('INVALID_ARGUMENT', 'this is a WebSocket: send Upgrade: websocket')
      },
    }),
  ]
}
