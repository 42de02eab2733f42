/**
 * The directory: who speaks for a device, shared by all session threads and main. Slots lie together in the order in which
 * devices were first heard, so that a small fleet touches few pages; an open-addressed index of words finds them. A slot
 * is taken once per device and never given back, so that the epoch of a device never goes back while the process lives.
 *
 * Index, one i32 per place, behind the slots: slot + 1, 0 = empty; changed once, by compare-and-swap.
 *
 * Slot, 32 bytes:
 * - i64 key: device key, stored before the index names the slot; then constant
 * - i64 claim: epoch << 10 | isRenewed << 9 | shard << 1 | isOnline, changed only by compare-and-swap
 * - i32 lastSeenS: seconds since the epoch of the last frame, plain store by the owning session thread
 * - 4 bytes free
 * - i64 birth: of the connection that holds a renewed claim (stored by whoever is about to renew); any other claim's
 *   epoch is its birth
 *
 * Head, 64 bytes: i64 nextEpoch (add), i64 devices (slots taken, add), i32 slots, i32 places of the index.
 */
export const DIRECTORY = {
  headBytes: 64,
  slotBytes: 32,
  nextEpoch: { slot64: 0 },
  devices: { slot64: 1 },
  slots: { slot32: 4 },
  places: { slot32: 5 },
  key: { offset64: 0 },
  claim: { offset64: 1 },
  lastSeenS: { offset32: 4 },
  birth: { offset64: 3 },
} as const

export const SHARD_BITS = 8n
export const SHARDS_MAX = 256

/** Epochs of one start of the gateway: generation * 2^32 + 1 .. generation * 2^32 + 2^32 - 1. Safe to generation 2^21. */
export const EPOCHS_PER_GENERATION = 2 ** 32
