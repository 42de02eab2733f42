import { GatewayProcess } from '/work/main/src/testing/gateway-process.ts'
let g = await GatewayProcess.start({})
const { dataDir, tcpPort, httpPort } = g
console.log(httpPort, await g.stop())
await g.closeSql()
const t = performance.now()
g = await GatewayProcess.start({ dataDir, env: { TCP_PORT: String(tcpPort), HTTP_PORT: String(httpPort) } })
console.log(g.httpPort, g.started, performance.now() - t)
console.log((await g.ask('GET', '/readyz')).text, g.hasEnded)
console.log((await g.ask('POST', '/api/v1/ws-tickets')).text, g.hasEnded)
await g.remove()
