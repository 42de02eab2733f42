/**
 * Waits for a promise, but not for ever. Thread: main.
 *
 * @param ms less than 0 counts as 0
 * @returns false: rejected, or too late; what it still does is not waited for
 */
export async function settledWithin(work: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), Math.max(0, ms))
  })
  const settled = work.then(
    () => true,
    () => false,
  )
  try {
    return await Promise.race([settled, late])
  } finally {
    clearTimeout(timer)
  }
}
