/** The portable driver passes the suite of all drivers. */
import { makeNetDriver } from './net-driver.ts'
import { testSocketDriver } from './socket-driver.suite.ts'

testSocketDriver('net', makeNetDriver)
