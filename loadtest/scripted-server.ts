/**
 * The other end for the tests of this folder: answers as the documents demand, keeps what it saw, forgets nothing. It
 * reads and writes with the gateway's own codec, which the doubles do not share: both must agree on every byte.
 */
import { FrameAssembler } from '../src/codec/frame-assembler.ts'
import {
  type CardAnswer,
  type Fields,
  type FrameHead,
  PayloadError,
  type Protocol,
  UNIT,
} from '../src/codec/protocol.ts'
import { PROTOCOLS } from '../src/protocols/index.ts'

export interface SeenUplink {
  readonly name: string
  readonly deviceNo: number
  readonly messageId: number
  readonly fields: Fields
  readonly atMs: number
}

export interface Script {
  readonly card: CardAnswer
  /** Uplinks by name that stay unanswered. */
  readonly isSilent?: (name: string, nowMs: number) => boolean
  readonly onUplink?: (uplink: SeenUplink, peer: ScriptedPeer) => void
}

export const NO_CARD: CardAnswer = { status: 'unregistered', rateMode: 'time', balanceFen: 0, expiresMs: null }
export const GOOD_CARD: CardAnswer = { status: 'ok', rateMode: 'time', balanceFen: 1_000, expiresMs: null }

const BKV_HEADER = Buffer.from('fcfe', 'hex')

/** One connection's other end; pure: bytes in, bytes out. */
export class ScriptedPeer {
  readonly seen: SeenUplink[] = []
  readonly identities: string[] = []
  /** Why bytes were skipped or frames not understood. */
  readonly complaints: string[] = []
  links = 0
  readonly #write: (bytes: Uint8Array) => void
  readonly #script: Script
  #protocol: Protocol | undefined
  #assembler: FrameAssembler | undefined
  #memory: Record<string, number> = {}
  #unknown = Buffer.alloc(0)
  #fresh = 0
  #nowMs = 0

  constructor(write: (bytes: Uint8Array) => void, script: Script) {
    this.#write = write
    this.#script = script
  }

  push(chunk: Uint8Array, nowMs: number): void {
    this.#nowMs = nowMs
    let bytes = chunk
    if (this.#protocol === undefined) {
      // a rough wire may begin with noise: whose first unit comes first decides
      this.#unknown = Buffer.concat([this.#unknown, chunk])
      const bkvAt = this.#unknown.indexOf(BKV_HEADER)
      const ap3000At = this.#unknown.indexOf('8986')
      if (bkvAt < 0 && ap3000At < 0) return
      const isBkv = bkvAt >= 0 && (ap3000At < 0 || bkvAt < ap3000At)
      this.#protocol = PROTOCOLS.find(({ name }) => name === (isBkv ? 'bkv' : 'ap3000')) as Protocol
      this.#assembler = new FrameAssembler(this.#protocol)
      this.#memory = this.#protocol.newMemory()
      bytes = this.#unknown
    }
    this.#assembler?.push(bytes, nowMs, {
      unit: (kind, unit, from, to, reason) => {
        if (kind === UNIT.noise) this.complaints.push(reason)
        else if (kind === UNIT.signOfLife) this.links++
        else if (kind === UNIT.identity) this.identities.push(Buffer.from(unit.slice(from, to)).toString('latin1'))
        else if (kind === UNIT.frame) this.#frame(unit, from, to)
      },
    })
  }

  /** A command of ours. @returns its message id */
  command(deviceNo: number, name: string, fields: Fields, messageId = ++this.#fresh): number {
    const protocol = this.#protocol as Protocol
    const command = protocol.downlinkByName.get(name)
    if (command === undefined) throw new Error(`${protocol.name} has no downlink ${name}`)
    this.#write(protocol.encodeFrame('downlink', command, deviceNo, messageId, command.encode(fields)))
    return messageId
  }

  of(name: string): SeenUplink[] {
    return this.seen.filter((uplink) => uplink.name === name)
  }

  #frame(bytes: Uint8Array, from: number, to: number): void {
    const protocol = this.#protocol as Protocol
    const head: FrameHead = { deviceNo: 0, messageId: 0, commandKey: 0, dataFrom: 0, dataTo: 0 }
    protocol.readHead(bytes, from, to, head)
    const command = protocol.uplinks.get(head.commandKey)
    if (command === undefined) return void this.complaints.push(`unknown ${head.commandKey}`)
    const fields = command.decode(bytes, head.dataFrom, head.dataTo)
    if (fields instanceof PayloadError)
      return void this.complaints.push(`${command.name} ${fields.payloadError} ${fields.at}`)
    const uplink = { name: command.name, deviceNo: head.deviceNo, messageId: head.messageId, fields, atMs: this.#nowMs }
    this.seen.push(uplink)
    const { reply } = command
    if (reply !== 'none' && this.#script.isSilent?.(command.name, this.#nowMs) !== true) {
      const context = { nowMs: this.#nowMs, memory: this.#memory, card: this.#script.card }
      const answer = reply.fields(fields, context)
      const messageId = reply.freshSequence ? ++this.#fresh : head.messageId
      if (answer !== undefined) this.command(head.deviceNo, reply.with, answer, messageId)
    }
    this.#script.onUplink?.(uplink, this)
  }
}
