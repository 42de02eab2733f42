/**
 * The only file that knows how a socket changes threads: `net` has no release call, so the descriptor is duplicated
 * by FFI (koffi) and the acceptor's own socket destroyed, which closes its descriptor and leaves the connection alone
 * (never `end()`: that would send FIN on the shared connection; io-design 8.12).
 */
import type { Socket } from 'node:net'
import { closeDescriptor, duplicate } from '../libc.ts'

/**
 * Detaches a connected socket from this thread. Call it synchronously in the callback that delivered its bytes: then
 * nothing can be read in between.
 *
 * @returns a descriptor of the same connection, to be closed by whoever gets it; -1 when none can be had (EMFILE)
 */
export function detach(socket: Socket): number {
  const descriptor = (socket as unknown as { _handle: { fd: number } | null })._handle?.fd ?? -1
  const taken = descriptor < 0 ? -1 : duplicate(descriptor)
  socket.destroy()
  return taken
}

/** Closes a descriptor that `detach` made and nobody took. */
export function closeDetached(descriptor: number): void {
  closeDescriptor(descriptor)
}
