/**
 * Yardstick: the server one would write first. One thread, `net`, `Buffer.concat` per chunk, one write per reply, 20
 * and 21 answered with the 15-byte result; no sessions, no rows. What the gateway gains above this it gains by its
 * shape, what it costs above this it costs by what it does.
 *
 *   node native-bench/plain-net-server.ts [--port 0]     prints "listening PORT"
 */
import net from 'node:net'
import { fail, readOptions, wholeNumber } from '../src/config/command-line.ts'

const values = readOptions('node native-bench/plain-net-server.ts [--port 0]', {
  port: { type: 'string', default: '0' },
})
const port = wholeNumber('port', values.port, 0, 65_535)

const server = net.createServer({ noDelay: true }, (socket) => {
  let buffer = Buffer.alloc(0)
  socket.on('data', (chunk) => {
    buffer = Buffer.concat([buffer, chunk])
    for (;;) {
      const first = buffer[0]
      if (first === 0x38 && buffer.length >= 20) buffer = buffer.subarray(20)
      else if (first === 0x6c && buffer.length >= 4) buffer = buffer.subarray(4)
      else if (first === 0x44 && buffer.length >= 5) {
        const frameBytes = 5 + buffer.readUInt16LE(3)
        if (buffer.length < frameBytes) return
        const frame = buffer.subarray(0, frameBytes)
        buffer = buffer.subarray(frameBytes)
        let sum = 0
        for (const byte of frame.subarray(0, -2)) sum += byte
        if ((sum & 0xffff) === frame.readUInt16LE(frameBytes - 2)) answer(socket, frame)
      } else if (first === undefined || first === 0x38 || first === 0x6c || first === 0x44) return
      else buffer = buffer.subarray(1)
    }
  })
  socket.on('error', () => socket.destroy())
})

function answer(socket: net.Socket, frame: Buffer): void {
  if (frame[11] !== 0x20 && frame[11] !== 0x21) return
  const reply = Buffer.alloc(15)
  frame.copy(reply, 0, 0, 12)
  reply.writeUInt16LE(10, 3)
  let sum = 0
  for (const byte of reply.subarray(0, 13)) sum += byte
  reply.writeUInt16LE(sum & 0xffff, 13)
  socket.write(reply)
}

server.once('error', (error) => fail('plain-net-server', error))
server.listen(port, '127.0.0.1', () => {
  process.stdout.write(`listening ${(server.address() as net.AddressInfo).port}\n`)
})
