/** A gateway beside a load tool: started for it alone and ended with it. */
import { GatewayProcess } from '../src/testing/gateway-process.ts'

export interface OwnGateway {
  readonly pid: number
  /** Of devices, on 127.0.0.1. */
  readonly port: number
  /** Base of the API: `http://127.0.0.1:8080`. */
  readonly api: string
  readonly metrics: string
  readonly key: string
  /** SIGTERM, and its folder goes too. */
  stop(): Promise<void>
}

/** A gateway that is told one of these works on what somebody else owns: no load tool passes them on. */
const OWNED_BY_OTHERS = /^(?:DATA_DIR|DATABASE_URL|CONFIG_PATH|KAFKA_.*)$/
/** Addresses may be taken, and keys unknown to the tool. */
export const ADDRESSES_AND_KEYS = /^(?:(?:TCP|HTTP)_(?:PORT|HOST)|API_KEYS)$/

/** The environment for a gateway of a tool's own: settings hold, but neither data, configuration file nor brokers. */
export function ownEnvironment(without: RegExp = ADDRESSES_AND_KEYS): Record<string, string> {
  const env: Record<string, string> = {}
  for (const [name, value] of Object.entries(process.env))
    if (value !== undefined && !OWNED_BY_OTHERS.test(name) && !without.test(name)) env[name] = value
  return env
}

/**
 * On free ports, in a folder under the system's temporary one, with `ownEnvironment`.
 * @throws Error of one line when it does not say that it started, with its last words
 */
export async function startGateway(): Promise<OwnGateway> {
  let gateway: GatewayProcess
  try {
    gateway = await GatewayProcess.start({ env: ownEnvironment(), isApart: true })
  } catch (error) {
    // a stack of the gateway's may follow
    throw new Error((error as Error).message.split('\n')[0], { cause: error })
  }
  const api = `http://127.0.0.1:${gateway.httpPort}`
  return {
    pid: gateway.child.pid as number,
    port: gateway.tcpPort,
    api,
    metrics: `${api}/metrics`,
    key: gateway.secret,
    async stop() {
      await gateway.stop().catch(() => {})
      await gateway.remove()
    },
  }
}
