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

/**
 * On free ports, in a folder under the system's temporary one; settings of the environment hold, those of addresses, keys and
 * DATA_DIR excepted. @throws Error when it does not say that it started, with its last words
 */
export async function startGateway(): Promise<OwnGateway> {
  const env: Record<string, string> = {}
  for (const [name, value] of Object.entries(process.env))
    if (value !== undefined && !/^(DATA_DIR|TCP_PORT|TCP_HOST|HTTP_PORT|HTTP_HOST|API_KEYS)$/.test(name))
      env[name] = value
  const gateway = await GatewayProcess.start({ env, isApart: true })
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
