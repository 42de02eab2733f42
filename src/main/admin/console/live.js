/**
 * One WebSocket for the page. It comes back by itself and goes on behind the last event it heard, so that nothing is
 * missed; only when that is impossible the page is told to look anew.
 */
import { post } from './api.js'

const RETRY_MS = [500, 1_000, 2_000, 3_000, 5_000]
/** Figures come every second: a socket that is silent for so long is dead, whatever the browser thinks. */
const SILENT_MS_MAX = 20_000
const CLOSE_LAGGING = 4008

export class Live {
  #socket
  #topics = []
  #cursor
  #tries = 0
  #timer
  #watch
  #heardMs = 0
  #isWanted = false
  #hooks

  /**
   * @param hooks.onState `connecting`, `live` or `away`
   * @param hooks.onResync look anew: something may have been missed
   * @param hooks.onLagging the gateway cut us off because we could not keep up
   */
  constructor(hooks) {
    this.#hooks = hooks
    addEventListener('online', () => this.hurry())
    document.addEventListener('visibilitychange', () => document.hidden || this.hurry())
  }

  start() {
    this.#isWanted = true
    clearInterval(this.#watch)
    this.#watch = setInterval(() => this.#look(), 5_000)
    void this.#connect()
  }

  stop() {
    this.#isWanted = false
    clearTimeout(this.#timer)
    clearInterval(this.#watch)
    const socket = this.#socket
    this.#socket = undefined
    this.#cursor = undefined
    this.#tries = 0
    socket?.close()
  }

  /** Waiting for the next try has no reason any more. */
  hurry() {
    if (!this.#isWanted || this.#timer === undefined) return
    clearTimeout(this.#timer)
    void this.#connect()
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
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message))
  }

  #look() {
    if (this.#socket?.readyState !== WebSocket.OPEN || Date.now() - this.#heardMs < SILENT_MS_MAX) return
    const dead = this.#socket
    this.#socket = undefined
    dead.close()
    this.#again()
  }

  async #connect() {
    this.#timer = undefined
    this.#hooks.onState(this.#tries === 0 ? 'connecting' : 'away')
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
      if (this.#socket !== socket) return
      this.#tries = 0
      this.#heardMs = Date.now()
      if (this.#topics.length > 0) this.#subscribe()
      this.#hooks.onState('live')
      if (isBack && this.#cursor === undefined) this.#hooks.onResync()
    })
    socket.addEventListener('message', ({ data }) => {
      if (this.#socket === socket) this.#heard(JSON.parse(data))
    })
    socket.addEventListener('close', ({ code }) => {
      if (this.#socket !== socket) return
      this.#socket = undefined
      if (code === CLOSE_LAGGING) this.#lagged()
      this.#again()
    })
  }

  #subscribe() {
    const after = this.#cursor
    this.#say({ op: 'subscribe', topics: this.#topics, ...(after === undefined ? {} : { after }) })
  }

  /** Too far behind to hear it all: begin with what is now. */
  #lagged() {
    this.#cursor = undefined
    this.#hooks.onLagging()
  }

  #heard(message) {
    this.#heardMs = Date.now()
    if (message.op === 'event') {
      if (message.cursor !== null) this.#cursor = message.cursor
      this.#hooks.onEvent(message.topic, message.event)
    } else if (message.op === 'subscribed') {
      // without `after` it is the present end: what lies before it concerns no page any more
      if (message.cursor !== null) this.#cursor = message.cursor
      this.#hooks.onSubscribed()
    } else if (message.op === 'error') {
      // away for a moment, or what we wanted to hear first is gone: then begin with what is now
      const isPassing = message.error.code === 'UNAVAILABLE'
      if (!isPassing && this.#cursor === undefined) return
      if (!isPassing) this.#cursor = undefined
      setTimeout(() => this.#subscribe(), isPassing ? 2_000 : 0)
      if (!isPassing) this.#hooks.onResync()
    }
  }

  #again() {
    if (!this.#isWanted) return
    this.#hooks.onState('away')
    // spread: every open page lost its connection in the same moment
    const waitMs = RETRY_MS[Math.min(this.#tries++, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2)
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#connect(), waitMs)
  }
}
