// @ts-check
/** What several panels read from the server's JSON. */

/** Time without a commit after which a device counts as silent, s. */
export const SILENT_SECONDS = 300;
const BEHIND_SECONDS = 60;
const CLOCK_SECONDS = 60;

/** Return the seconds since a device's last commit; Infinity: there was none.
 * @param {any} device @param {string} now The server's time.
 */
export function silence(device, now) {
  if (!device.last_received_at) return Infinity;
  return Math.max(0, (Date.parse(now) - Date.parse(device.last_received_at)) / 1000);
}

/** @param {any} device @param {string} now */
export const isSilent = (device, now) => silence(device, now) > SILENT_SECONDS;

/** Return what deserves a look at a device, in words; empty: nothing.
 * @param {any} device
 * @returns {string}
 */
export function concern(device) {
  const { account, clock_offset: offset } = device;
  if (account?.oldest_waiting > BEHIND_SECONDS) return "falls behind";
  if (account?.dropped?.length) return "drops predictions";
  if (offset !== undefined && offset !== null && Math.abs(offset) > CLOCK_SECONDS) return "its clock is off";
  const before = device.predictions_per_second_before;
  if (before > 0 && device.predictions_per_second < before / 2) return "half as fast as before";
  return "";
}

/** Return a stored prediction with the fields of its prediction beside those of its commit.
 * @param {any} stored
 */
export const flat = (stored) => ({ ...stored.prediction, ...stored });

/** Return the address of a prediction's screen.
 * @param {any} prediction One that `flat` returned.
 * @returns {Record<string, string>}
 */
export function addressOf(prediction) {
  return {
    view: "prediction",
    device: prediction.device_id,
    spool: prediction.spool_id,
    sequence: String(prediction.sequence),
  };
}
