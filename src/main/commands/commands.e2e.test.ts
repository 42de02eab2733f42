/**
 * Claim: what is posted reaches the device as the bytes of the document, at once when it is there and in order when it
 * comes back, also through a gateway that was killed; a stop after such a death names the running order. Tried with the
 * gateway as a child process and a device on a real socket.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { closeClients, DeviceClient, type Dny, dny, le } from '../../testing/device-client.ts'
import { dataDirectory, eventually, GatewayProcess } from '../../testing/gateway-process.ts'

const PILE = 0x04ceaa40
const OTHER_PILE = 0x04ceaa41
const idOf = (pile: number) => pile.toString(16).padStart(8, '0')
const ORDER_NO = 'CDZ2507010930A01'
const ORDER_HEX = Buffer.from(ORDER_NO, 'latin1').toString('hex')
/** A 06 of this order on the first port, as in the corpus (`06-syn-45-bytes`). */
const PROGRESS =
  '444e59360040aace0460000600012c010c00019805dc056e05a00543445a323530373031303933304130314e02e605b70882025d65231e5d68'

const env = { SHARDS: '1', STATE_FLUSH_MS: '50', COMMAND_SPACING_MS: '50' }
const dataDir = dataDirectory()
let gateway: GatewayProcess
before(async () => {
  gateway = await GatewayProcess.start({ dataDir, env })
})
after(async () => {
  closeClients()
  await gateway.remove()
})

let messageId = 0
async function arrive(pile: number): Promise<DeviceClient> {
  const client = await DeviceClient.connect(gateway.tcpPort)
  await client.exchange(dny(pile, ++messageId, 0x21, `${le(2_200, 2)}0200000000`))
  await eventually(
    'device',
    () => gateway.get(`/api/v1/devices/${idOf(pile)}`),
    (device) => device.presence.online,
  )
  return client
}
async function post(pile: number, path: string, body: unknown) {
  const reply = await gateway.ask('POST', `/api/v1/devices/${idOf(pile)}/${path}`, { body })
  assert.equal(reply.status, 202, reply.text)
  return reply.json as { command_id: string; order_no: string; state: string }
}
const resultOf = ({ messageId: id, dataHex }: Dny, result = '00') =>
  dny(PILE, id, 0x82, `${result}${dataHex.slice(18, 50)}${dataHex.slice(10, 12)}0000`)

test('D15: start on a real socket, death of the gateway, stop', async () => {
  let device = await arrive(PILE)
  const start = await post(PILE, 'charge', { port: 1, mode: 'energy', energy_wh: 1_500, order_no: ORDER_NO })
  const heard = await device.next()
  assert.equal(heard.command, 0x82)
  assert.equal(heard.dataHex, `020000000000019600${ORDER_HEX}000000000000000002000000`)
  device.send(resultOf(heard))
  await eventually(
    'start',
    () => gateway.get(`/api/v1/commands/${start.command_id}`),
    (command) => command.state === 'acked',
  )
  // the sum is computed here: the text above is the frame without it
  const sum = Buffer.from(PROGRESS, 'hex').reduce((total, byte) => total + byte, 0) & 0xffff
  device.send(PROGRESS + le(sum, 2))
  await eventually(
    'order',
    () => gateway.get(`/api/v1/orders/${ORDER_NO}`),
    (order) => order.state === 'charging',
  )
  await gateway.kill()
  gateway = await GatewayProcess.start({ dataDir, env })
  // nobody is there yet: it waits
  const stopped = await post(PILE, 'stop', { port: 1 })
  assert.equal(stopped.order_no, ORDER_NO)
  assert.notEqual(stopped.command_id, start.command_id)
  device = await arrive(PILE)
  const stop = await device.next()
  assert.equal(stop.command, 0x82)
  assert.equal(stop.dataHex.slice(0, 50), `000000000000000000${ORDER_HEX}`)
  device.send(resultOf(stop))
})

test('what waits for a device survives the gateway, and comes in order of urgency', async () => {
  await arrive(OTHER_PILE)
  closeClients()
  await eventually(
    'offline',
    () => gateway.get(`/api/v1/devices/${idOf(OTHER_PILE)}`),
    (device) => !device.presence.online,
  )
  await post(OTHER_PILE, 'commands', { name: 'setSilent', params: { silent: 1 } })
  await post(OTHER_PILE, 'commands', { name: 'setLimits', params: { max_charge_s: 36_000, overload_power_dw: 20_000 } })
  const { command_id: cancelled } = await post(OTHER_PILE, 'commands', { name: 'reboot' })
  assert.equal((await gateway.ask('DELETE', `/api/v1/commands/${cancelled}`)).status, 200)
  await gateway.kill()
  gateway = await GatewayProcess.start({ dataDir, env })
  const device = await arrive(OTHER_PILE)
  const heard = [await device.next(), await device.next()]
  for (const { command, messageId: id } of heard) device.send(dny(OTHER_PILE, id, command, '00'))
  assert.deepEqual(
    heard.map(({ command, dataHex }) => [command, dataHex]),
    [
      [0x97, '01'],
      [0x85, 'a08c204e'],
    ],
  )
  assert.deepEqual(await device.silence(300), [])
})
