/**
 * The only file that knows how a socket changes threads: `net` has no release call, so the descriptor is duplicated
 * by FFI (koffi) and the acceptor's own socket destroyed, which closes its descriptor and leaves the connection alone
 * (never `end()`: that would send FIN on the shared connection; io-design 8.12).
 */
import type { Socket } from 'node:net'
import koffi from 'koffi'

const F_DUPFD_CLOEXEC = 1030

// glibc and musl differ in the name; the first that loads is this machine's
function loadLibc() {
  const names = ['libc.so.6', `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`, 'libc.so']
  for (const name of names) {
    try {
      return koffi.load(name)
    } catch {}
  }
  throw new Error(`no C library among ${names.join(', ')}: sockets cannot change threads on this system`)
}

const libc = loadLibc()
const fcntl = libc.func('int fcntl(int fd, int command, ...)') as (fd: number, command: number, ...rest: unknown[]) => number
const closeDescriptor = libc.func('int close(int fd)') as (fd: number) => number

/**
 * Detaches a connected socket from this thread. Call it synchronously in the callback that delivered its bytes: then
 * nothing can be read in between.
 *
 * @returns a descriptor of the same connection, to be closed by whoever gets it; -1 when none can be had (EMFILE)
 */
export function detach(socket: Socket): number {
  const descriptor = (socket as unknown as { _handle: { fd: number } | null })._handle?.fd ?? -1
  const duplicate = descriptor < 0 ? -1 : fcntl(descriptor, F_DUPFD_CLOEXEC, 'int', 3)
  socket.destroy()
  return duplicate
}

/** Closes a descriptor that `detach` made and nobody took. */
export function closeDetached(descriptor: number): void {
  closeDescriptor(descriptor)
}
