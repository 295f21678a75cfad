// @ts-check
/** Numbers and times as people read them. */

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** @param {number | bigint | string} value A text is a whole number that is too large for a number. */
export const count = (value) => whole.format(typeof value === "number" ? Math.round(value) : BigInt(value));

/** @param {number} value */
export const compact = (value) => (value < 10_000 ? count(value) : short.format(value));

/** Return "1 device", "2 devices".
 * @param {number} number @param {string} noun
 */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** @param {number} part @param {number} all */
export function percent(part, all) {
  if (!all) return "–";
  const value = (100 * part) / all;
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(value < 10 ? 2 : 1)} %`;
}

/** @param {number | null | undefined} perSecond */
export function rate(perSecond) {
  if (!perSecond) return "0/s";
  if (perSecond < 0.002) return `${(perSecond * 3600).toFixed(1)}/h`;
  if (perSecond < 0.1) return `${(perSecond * 60).toFixed(1)}/min`;
  return `${perSecond < 10 ? perSecond.toFixed(1) : count(perSecond)}/s`;
}

/** @param {number | null | undefined} seconds */
export function milliseconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const value = seconds * 1000;
  return value < 10_000 ? `${value.toFixed(value < 100 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const size = Math.abs(seconds);
  const sign = seconds < 0 ? "−" : "";
  if (size < 1) return `${sign}${Math.round(size * 1000)} ms`;
  if (size < 90) return `${sign}${size.toFixed(size < 10 ? 1 : 0)} s`;
  if (size < 5400) return `${sign}${Math.round(size / 60)} min`;
  if (size < 172_800) return `${sign}${(size / 3600).toFixed(1)} h`;
  return `${sign}${(size / 86_400).toFixed(1)} d`;
}

/** @param {number} bytes */
export function bytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  let size = bytes;
  while (size >= 1024 && power < units.length - 1) {
    size /= 1024;
    power++;
  }
  return `${power && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[power]}`;
}

/** @param {string | null | undefined} text RFC 3339. */
export function clock(text) {
  return text ? new Date(text).toLocaleTimeString("en-GB") : "–";
}

/** @param {string | null | undefined} text RFC 3339. */
export function moment(text) {
  if (!text) return "–";
  const time = new Date(text);
  const day = time.toLocaleDateString("en-CA");
  return `${day} ${time.toLocaleTimeString("en-GB")}`;
}

/** Return a reason of the contract as words: `DROPPED_OLDEST` is "dropped oldest".
 * @param {string} name
 */
export const words = (name) => name.toLowerCase().replaceAll("_", " ");
