/**
 * Nonces of signed requests (contract 3): each works once, also over a restart or a kill. What was taken is in a file
 * before the request is served; a power failure may lose the last of them (no fsync per request). Thread: main.
 */
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Of one generation; about 100 bytes each, in memory and on disk. */
const NONCES_MAX = 200_000

interface Generation {
  /** ms since the epoch */
  readonly startedMs: number
  readonly nonces: Set<string>
}

/** Two generations, a file each: a nonce is known for at least one whole period after it came. */
export class Nonces {
  readonly #periodMs: number
  readonly #currentPath: string
  readonly #previousPath: string
  #current: Generation
  #previous: ReadonlySet<string>
  #file: number

  /**
   * @param directory of its own; made where it is missing
   * @param periodMs how long a request stays acceptable, at most
   * @param nowMs ms since the epoch
   * @throws what the file system throws
   */
  constructor(directory: string, periodMs: number, nowMs: number) {
    this.#periodMs = periodMs
    this.#currentPath = join(directory, 'current')
    this.#previousPath = join(directory, 'previous')
    this.#previous = generationIn(this.#previousPath)?.nonces ?? new Set()
    const current = generationIn(this.#currentPath)
    if (current === undefined) {
      this.#current = { startedMs: nowMs, nonces: new Set() }
      this.#file = this.#begin(nowMs)
    } else {
      this.#current = current
      this.#file = openSync(this.#currentPath, 'a')
      // a line that a kill cut short must not swallow the next one
      this.#write('\n')
    }
  }

  /**
   * @param nonce one line of text
   * @returns 'taken': it may be served; 'seen': it was before; 'full': no room until the period is over
   * @throws what the file system throws: the nonce is not taken
   */
  take(nonce: string, nowMs: number): 'taken' | 'seen' | 'full' {
    const ageMs = nowMs - this.#current.startedMs
    if (ageMs >= this.#periodMs) this.#turn(nowMs, ageMs >= 2 * this.#periodMs)
    const { nonces } = this.#current
    if (nonces.has(nonce) || this.#previous.has(nonce)) return 'seen'
    if (nonces.size >= NONCES_MAX) return 'full'
    this.#write(`${nonce}\n`)
    nonces.add(nonce)
    return 'taken'
  }

  close(): void {
    closeSync(this.#file)
  }

  #turn(nowMs: number, isOver: boolean): void {
    if (isOver) rmSync(this.#previousPath, { force: true })
    // absent: the last attempt came this far
    else if (existsSync(this.#currentPath)) renameSync(this.#currentPath, this.#previousPath)
    const file = this.#begin(nowMs)
    closeSync(this.#file)
    this.#file = file
    this.#previous = isOver ? new Set() : this.#current.nonces
    this.#current = { startedMs: nowMs, nonces: new Set() }
  }

  #begin(startedMs: number): number {
    mkdirSync(dirname(this.#currentPath), { recursive: true, mode: 0o700 })
    const file = openSync(this.#currentPath, 'w', 0o600)
    writeSync(file, `${startedMs}\n`)
    return file
  }

  #write(text: string): void {
    if (writeSync(this.#file, text) !== Buffer.byteLength(text)) throw new Error(`${this.#currentPath}: disk full`)
  }
}

/** The first line says when it began; undefined: there is no such file, or nothing in it. */
function generationIn(path: string): Generation | undefined {
  if (!existsSync(path)) return undefined
  const [startedMs, ...nonces] = readFileSync(path, 'utf8').split('\n')
  if (!/^\d+$/.test(startedMs ?? '')) return undefined
  return { startedMs: Number(startedMs), nonces: new Set(nonces.filter((nonce) => nonce !== '')) }
}
