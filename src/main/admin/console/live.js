/**
 * One WebSocket for the page. It comes back by itself and goes on behind the last event it heard, so that nothing is
 * missed; only when that is impossible the page is told to look anew.
 */
import { post } from './api.js'

const RETRY_MS = [500, 1_000, 2_000, 3_000, 5_000]

export class Live {
  #socket
  #topics = []
  #cursor
  #tries = 0
  #timer
  #isWanted = false
  #onEvent
  #onState
  #onResync

  /** @param onState `connecting`, `live` or `away` */
  constructor({ onEvent, onState, onResync }) {
    this.#onEvent = onEvent
    this.#onState = onState
    this.#onResync = onResync
  }

  start() {
    this.#isWanted = true
    void this.#connect()
  }

  stop() {
    this.#isWanted = false
    clearTimeout(this.#timer)
    this.#socket?.close()
    this.#socket = undefined
    this.#cursor = undefined
  }

  /** What the present page wants to hear. */
  listen(topics) {
    const before = this.#topics
    this.#topics = topics
    if (this.#socket?.readyState !== WebSocket.OPEN) return
    const gone = before.filter((topic) => !topics.includes(topic))
    const more = topics.filter((topic) => !before.includes(topic))
    if (more.length > 0) this.#say({ op: 'subscribe', topics: more })
    if (gone.length > 0) this.#say({ op: 'unsubscribe', topics: gone })
  }

  #say(message) {
    this.#socket.send(JSON.stringify(message))
  }

  async #connect() {
    this.#onState(this.#tries === 0 ? 'connecting' : 'away')
    let socket
    try {
      const { ticket } = await post('/api/v1/ws-tickets')
      if (!this.#isWanted) return
      const address = new URL('/ws', location.href)
      address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:'
      address.searchParams.set('ticket', ticket)
      socket = new WebSocket(address)
    } catch {
      this.#again()
      return
    }
    this.#socket = socket
    const isBack = this.#tries > 0
    socket.addEventListener('open', () => {
      this.#tries = 0
      if (this.#topics.length > 0)
        this.#say({
          op: 'subscribe',
          topics: this.#topics,
          ...(this.#cursor === undefined ? {} : { after: this.#cursor }),
        })
      this.#onState('live')
      if (isBack && this.#cursor === undefined) this.#onResync()
    })
    socket.addEventListener('message', ({ data }) => this.#heard(JSON.parse(data)))
    socket.addEventListener('close', () => {
      if (this.#socket !== socket) return
      this.#socket = undefined
      this.#again()
    })
  }

  #heard(message) {
    if (message.op === 'event') {
      if (message.cursor !== null) this.#cursor = message.cursor
      this.#onEvent(message.topic, message.event)
    } else if (message.op === 'subscribed') this.#cursor ??= message.cursor
    else if (message.op === 'lagging') {
      // too far behind to hear it all: begin with what is now
      this.#cursor = undefined
    } else if (message.op === 'error' && this.#cursor !== undefined) {
      this.#cursor = undefined
      this.#say({ op: 'subscribe', topics: this.#topics })
      this.#onResync()
    }
  }

  #again() {
    if (!this.#isWanted) return
    this.#onState('away')
    // spread: every open page lost its connection in the same moment
    const waitMs = RETRY_MS[Math.min(this.#tries++, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2)
    this.#timer = setTimeout(() => void this.#connect(), waitMs)
  }
}
