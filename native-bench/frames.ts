/** Frames that the suites, the yardsticks and the load client work on: real ones where the documents print them. */
import { dny } from '../loadtest/device-ap3000.ts'

const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'))

export const DEVICE_NO = 0x04ab373b
const ORDER = '20260101080001 1234abcd 11220795 30'

/** 29 bytes with ten ports would be the workload of io-design; a dual socket's 21 has 21 bytes. */
export const AP3000_HEARTBEAT = dny(DEVICE_NO, 7, 0x21, hex('2b09 0a 00000000000000000000 00 5d'))
export const AP3000_PROGRESS = dny(
  DEVICE_NO,
  8,
  0x06,
  hex(`01 01 2c01 0500 01 e803 1004 0000 e803 ${ORDER} 0000 1004 2b09 a901 5d 60 80a1556a`),
)
export const AP3000_SETTLEMENT = dny(DEVICE_NO, 9, 0x03, hex(`100e 1004 6400 01 01 00000000 01 ${ORDER} 1004 80a1556a`))
export const BKV_HEARTBEAT = hex(
  'fcfe002e000000000000018224121800038238393836303835353130323444313938383139363230302e312e31371152fcee',
)
export const BKV_END = hex('fcfe0025001500000000018224121800038200110201ffff1d1e00b00009019401590000000186fcee')

/** 1017 with two ports, as captured but for its meters. */
export const BKV_STATUS = bkvFrame(
  '1000',
  `04010110170a010200000000000000000901038224121800038265019403014a0104013effff0301071d0301961e` +
    `28015b030108000301099004010a000904019508f704010b000404010c002a04010d000004010e0000` +
    `28015b030108010301098004010a000004019508f704010b000004010c000004010d000004010e0000`,
)

function bkvFrame(outer: string, data: string): Uint8Array {
  const length = 17 + data.length / 2
  const body = hex(`${length.toString(16).padStart(4, '0')}${outer}000000000182241218000382${data}`)
  const sum = body.reduce((total, byte) => total + byte, 0) & 0xff
  return new Uint8Array(Buffer.concat([hex('fcfe'), body, Uint8Array.of(sum), hex('fcee')]))
}
