/**
 * Nonces of signed requests (contract 3): each works once, also over a restart or a kill. What was taken is in a file
 * before the request is served; a power failure may lose the last of them (no fsync per request). Thread: main.
 */
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Of one generation, in memory and on disk about 100 bytes each. */
const NONCES_MAX = 500_000
/** Of one key: the others must not wait for its period to be over. */
const NONCES_OF_KEY_MAX = 200_000

interface Generation {
  /** ms since the epoch */
  readonly startedMs: number
  readonly nonces: Set<string>
  /** How many, by key. */
  readonly counts: Map<string, number>
}

/** Two generations, a file each: a nonce is known for at least one whole period after it came. */
export class Nonces {
  readonly #periodMs: number
  readonly #currentPath: string
  readonly #previousPath: string
  #current: Generation
  #previous: ReadonlySet<string>
  #file: number | undefined
  /** The last line may be cut short: a kill, a full disk. */
  #isTorn = false

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
    this.#current = current ?? generation(nowMs)
    if (current === undefined) {
      this.#file = this.#next(nowMs)
      renameSync(this.#nextPath, this.#currentPath)
    } else {
      this.#file = openSync(this.#currentPath, 'a')
      this.#isTorn = true
    }
  }

  /**
   * @param keyId without blanks
   * @param nonce without blanks
   * @returns 'taken': it may be served; 'seen': it was before; 'full': no room until the period is over
   * @throws what the file system throws: the nonce is not taken
   */
  take(keyId: string, nonce: string, nowMs: number): 'taken' | 'seen' | 'full' {
    const ageMs = nowMs - this.#current.startedMs
    // below zero: it began under a clock that was ahead, and would never end
    if (ageMs >= this.#periodMs || ageMs < 0) this.#turn(nowMs, ageMs >= 2 * this.#periodMs)
    const { nonces, counts } = this.#current
    const line = `${keyId} ${nonce}`
    if (nonces.has(line) || this.#previous.has(line)) return 'seen'
    const count = counts.get(keyId) ?? 0
    if (nonces.size >= NONCES_MAX || count >= NONCES_OF_KEY_MAX) return 'full'
    this.#write(`${line}\n`)
    nonces.add(line)
    counts.set(keyId, count + 1)
    return 'taken'
  }

  /** Nothing is taken any more. */
  close(): void {
    if (this.#file !== undefined) closeSync(this.#file)
    this.#file = undefined
  }

  /** In steps that can fail, or be cut short by a kill, without a nonce being forgotten. */
  #turn(nowMs: number, isOver: boolean): void {
    if (this.#file === undefined) throw new Error(CLOSED)
    const file = this.#next(nowMs)
    try {
      if (isOver) rmSync(this.#previousPath, { force: true })
      // absent: the last attempt came this far
      else if (existsSync(this.#currentPath)) renameSync(this.#currentPath, this.#previousPath)
      renameSync(this.#nextPath, this.#currentPath)
    } catch (error) {
      closeSync(file)
      throw error
    }
    closeSync(this.#file)
    this.#file = file
    this.#isTorn = false
    this.#previous = isOver ? new Set() : this.#current.nonces
    this.#current = generation(nowMs)
  }

  get #nextPath(): string {
    return `${this.#currentPath}.next`
  }

  #next(startedMs: number): number {
    mkdirSync(dirname(this.#currentPath), { recursive: true, mode: 0o700 })
    const file = openSync(this.#nextPath, 'w', 0o600)
    try {
      writeWhole(file, `${startedMs}\n`)
    } catch (error) {
      closeSync(file)
      throw error
    }
    return file
  }

  #write(line: string): void {
    if (this.#file === undefined) throw new Error(CLOSED)
    // so that a line which was cut short does not swallow this one
    const text = this.#isTorn ? `\n${line}` : line
    this.#isTorn = true
    writeWhole(this.#file, text)
    this.#isTorn = false
  }
}

const CLOSED = 'the gateway stops: no more signed requests'

function writeWhole(file: number, text: string): void {
  if (writeSync(file, text) !== Buffer.byteLength(text)) throw new Error('nonces: disk full')
}

const generation = (startedMs: number): Generation => ({ startedMs, nonces: new Set(), counts: new Map() })

/** The first line says when it began; undefined: there is no such file, or nothing in it. */
function generationIn(path: string): Generation | undefined {
  if (!existsSync(path)) return undefined
  const [startedMs, ...lines] = readFileSync(path, 'utf8').split('\n')
  if (!/^\d+$/.test(startedMs ?? '')) return undefined
  const found = generation(Number(startedMs))
  for (const line of lines) {
    if (line === '') continue
    found.nonces.add(line)
    const keyId = line.slice(0, line.indexOf(' '))
    found.counts.set(keyId, (found.counts.get(keyId) ?? 0) + 1)
  }
  return found
}
