/** What a double hears, cut into frames: the part of `received` that both protocols share. */

/** How frames of a protocol begin, and what is done with them. */
export interface FrameReader {
  /** Bytes that `frameBytesAt` needs to see. */
  readonly headBytes: number
  /** The whole frame that begins at `at`, from its head alone; 0: no frame begins like this. */
  frameBytesAt(view: Uint8Array, at: number): number
  /** All bytes of one frame, its checksum not looked at yet. @returns false: the connection is given up, stop reading */
  frame(view: Uint8Array, from: number, to: number, nowMs: number): boolean
  /** The server sent what is no frame; the rest of the chunk is not read. */
  noFrame(view: Uint8Array, from: number): void
}

/**
 * A server sends whole frames back to back and nothing else. So bytes that begin no frame are the server's mistake: a
 * double tells and drops the chunk, where a gateway would look for the next frame.
 */
export class FrameStream {
  readonly #reader: FrameReader
  /** The beginning of a frame whose end has not come. */
  #rest: Uint8Array | undefined

  constructor(reader: FrameReader) {
    this.#reader = reader
  }

  /** @param bytes not kept: a copy is, where a frame is cut */
  received(bytes: Uint8Array, nowMs: number): void {
    let view = bytes
    if (this.#rest !== undefined) {
      view = new Uint8Array(this.#rest.length + bytes.length)
      view.set(this.#rest)
      view.set(bytes, this.#rest.length)
      this.#rest = undefined
    }
    let at = 0
    while (view.length - at >= this.#reader.headBytes) {
      const frameBytes = this.#reader.frameBytesAt(view, at)
      if (frameBytes === 0) {
        this.#reader.noFrame(view, at)
        return
      }
      if (view.length - at < frameBytes) break
      if (!this.#reader.frame(view, at, at + frameBytes, nowMs)) return
      at += frameBytes
    }
    if (at < view.length) this.#rest = view.slice(at)
  }

  /** A new connection begins with a new frame. */
  forget(): void {
    this.#rest = undefined
  }
}
