// @ts-check
/** The state of the page, all of it in the address: what one sees can be sent as a link. */

import { computed, signal } from "@preact/signals";

/** @typedef {"overview" | "prediction" | "ledger" | "models"} View */
/** @typedef {"1h" | "24h" | "7d" | "14d"} Range */
/** @typedef {{hours: number, bucket: number, label: string}} RangeShape */

/** Ranges of time, with the length of a bucket in seconds.
 * @type {Record<Range, RangeShape>} */
export const RANGES = {
  "1h": { hours: 1, bucket: 60, label: "1 hour" },
  "24h": { hours: 24, bucket: 3600, label: "24 hours" },
  "7d": { hours: 168, bucket: 3600, label: "7 days" },
  "14d": { hours: 336, bucket: 3600, label: "14 days" },
};
/** @type {readonly View[]} */
const VIEWS = ["overview", "prediction", "ledger", "models"];

const address = signal(location.search);
const params = computed(() => new URLSearchParams(address.value));

/** The screen that is shown. */
export const view = computed(() => {
  const name = /** @type {View} */ (params.value.get("view") ?? "overview");
  return VIEWS.includes(name) ? name : "overview";
});
/** The device that every panel is restricted to; empty: the whole fleet. */
export const device = computed(() => params.value.get("device") ?? "");
/** The range of time of every panel. */
export const range = computed(() => {
  const name = /** @type {Range} */ (params.value.get("range") ?? "24h");
  return Object.hasOwn(RANGES, name) ? name : "24h";
});
/** The class that the map of the frame shows; null: all together. */
export const frameClass = computed(() => params.value.get("class"));
/** The prediction that its screen shows. */
export const prediction = computed(() => ({
  device: device.value,
  spool: params.value.get("spool") ?? "",
  sequence: params.value.get("sequence") ?? "",
}));
/** The theme that was chosen; empty: that of the system. */
export const theme = computed(() => {
  const name = params.value.get("theme");
  return name === "dark" || name === "light" ? name : "";
});
/** A number that grows whenever colours may have changed. */
export const colours = signal(0);

/** Return the address with some parameters changed; null removes one.
 * @param {Record<string, string | null>} changes
 * @param {boolean} [fresh] True: leave out everything but the theme and the range.
 */
export function href(changes, fresh = false) {
  const next = new URLSearchParams(address.value);
  if (fresh) {
    for (const name of [...next.keys()]) {
      if (name !== "theme" && name !== "range") next.delete(name);
    }
  }
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) next.delete(name);
    else next.set(name, value);
  }
  const text = next.toString();
  return text ? `/?${text}` : "/";
}

/** Show another address of this page.
 * @param {string} to
 */
export function go(to) {
  if (to === location.pathname + location.search) return;
  history.pushState(null, "", to);
  show();
}

function show() {
  address.value = location.search;
  const chosen = theme.value;
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  colours.value++;
}

addEventListener("popstate", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.value++);
