/**
 * The epoll driver passes the suite of all drivers. It runs here on the thread that also plays the devices, so it blocks
 * for 1 ms instead of 10; everything else is as in a session thread.
 */
import { netOnlyReason } from '../libc.ts'
import { makeEpollDriver } from './epoll-driver.ts'
import { testSocketDriver } from './socket-driver.suite.ts'

if (netOnlyReason() === undefined)
  testSocketDriver('epoll', (events, options) => makeEpollDriver(events, { ...options, waitMsMax: 1 }))
