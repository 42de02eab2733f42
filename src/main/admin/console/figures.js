/** The gateway's figures of the last minutes. They gather on every page, so that the chart is whole when it is looked at. */

const SAMPLES_MAX = 900
/** Longer than the second between two: nobody listened, a gap and not a line. */
const GAP_S = 3

export const samples = { at: [], frames: [], online: [] }
/** The latest `data` of the topic `metrics`. */
export let latest

export function addFigures({ timestamp, data }) {
  latest = data
  const lastS = samples.at.at(-1)
  if (lastS !== undefined && timestamp <= lastS) return
  const isFirst = lastS === undefined || timestamp - lastS > GAP_S
  if (isFirst && lastS !== undefined) add(lastS + 1, null, null)
  // a rate needs a second before it: the first one is always 0
  add(timestamp, isFirst ? null : data.frames_per_s, data.devices_online)
}

function add(atS, frames, online) {
  samples.at.push(atS)
  samples.frames.push(frames)
  samples.online.push(online)
  if (samples.at.length > SAMPLES_MAX) for (const series of Object.values(samples)) series.shift()
}

export function forgetFigures() {
  latest = undefined
  for (const series of Object.values(samples)) series.length = 0
}
