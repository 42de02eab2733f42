/** Whether there is a gateway to load: looked for before the work, so that nobody waits for one that is not there. */
import { once } from 'node:events'
import { connect } from 'node:net'
import { refuse } from '../src/config/command-line.ts'

/** @returns `address`, of plain HTTP; anything else ends the process with 2 */
export function apiAddress(address: string): string {
  const isOne = URL.canParse(address) && new URL(address).protocol === 'http:'
  return isOne ? address.replace(/\/+$/, '') : refuse(`--api ${address}: not an address like http://127.0.0.1:8080`)
}

/** Ends the process with 1 and a line when API or port for devices do not answer. */
export async function gatewayMustBeThere(tool: string, api: string, host: string, port: number): Promise<void> {
  try {
    const answer = await fetch(`${api}/metrics`)
    if (!(await answer.text()).includes('pilegate_')) throw new Error('something else answers')
  } catch (error) {
    missing(tool, api, (error as Error).cause ?? error)
  }
  const socket = connect({ host, port })
  try {
    await once(socket, 'connect')
  } catch (error) {
    missing(tool, `${host}:${port}`, error)
  }
  socket.destroy()
}

function missing(tool: string, where: string, error: unknown): never {
  const { code, message } = error as { code?: string; message: string }
  // several addresses of one host: the message is empty, the code is not
  console.error(`${tool}: no gateway at ${where}: ${message || code}`)
  process.exit(1)
}
