// @ts-check
/** Six figures: alive, predictions, defects, cloud, speed, books. */

import { count, milliseconds, percent, plural, rate, words } from "../format.js";
import { html } from "../html.js";
import { RANGES, device, range } from "../state.js";
import { seconds } from "../panel.js";
import { isSilent } from "../shapes.js";

/**
 * @param {{
 *   series: import("../api.js").Reading<any>,
 *   devices: import("../api.js").Reading<any>,
 *   ledger: import("../api.js").Reading<any>,
 * }} props
 */
export function Summary({ series, devices, ledger }) {
  const of = RANGES[range.value].label;
  return html`
    <section class="cards" aria-label="Summary">
      <${Alive} reading=${devices} />
      <${Card} name="predictions" label=${`predictions, ${of}`} reading=${series} figures=${predictions} />
      <${Card} name="defects" label=${`defects, ${of}`} reading=${series} figures=${defects} />
      <${Card} name="cloud" label=${`answered by the cloud, ${of}`} reading=${series} figures=${cloud} />
      <${Card} name="p95" label=${range.value === "1h" ? "p95 of the model, last minute" : "p95 of the model, last hour"} reading=${series} figures=${speed} />
      <${Card} name="books" label="the books" reading=${ledger} figures=${books} />
    </section>
  `;
}

/**
 * @typedef {{value: string, note: string, kind?: "good" | "bad" | "warn" | ""}} Figures
 * @param {{name: string, label: string, reading: import("../api.js").Reading<any>, figures: (data: any) => Figures}} props
 */
function Card({ name, label, reading, figures }) {
  const { data, error } = reading;
  const shown = data === null ? null : figures(data);
  return html`
    <div class="card" data-card=${name} aria-busy=${reading.loading}>
      <p class="label">${label}</p>
      ${shown
        ? html`<p class=${`value ${shown.kind ?? ""}`}>${shown.value}</p><p class="note">${shown.note}</p>`
        : error
          ? html`<p class="value">–</p><p class="note bad">${error.reason}</p>`
          : html`<div class="skeleton short"></div>`}
    </div>
  `;
}

/** @param {{reading: import("../api.js").Reading<any>}} props */
function Alive({ reading }) {
  void seconds(); // a device falls silent without a message
  return html`<${Card} name="alive" label="devices alive" reading=${reading} figures=${alive} />`;
}

/** @param {any} data @returns {Figures} */
function alive(data) {
  const listed = data.devices.filter((/** @type {any} */ one) => !device.value || one.device_id === device.value);
  const silent = listed.filter((/** @type {any} */ one) => isSilent(one, data.server_time)).length;
  const more = data.next_page_token ? "+" : "";
  return {
    value: `${count(listed.length - silent)} / ${count(listed.length)}${more}`,
    note: silent ? `${count(silent)} silent` : listed.length ? "all have sent in the last 5 min" : "no device has logged yet",
    kind: silent ? "bad" : listed.length ? "good" : "",
  };
}

/** @param {any} data @param {string} name */
const total = (data, name) =>
  data.buckets.reduce((/** @type {number} */ sum, /** @type {any} */ bucket) => sum + bucket[name], 0);

/** @param {any} data @returns {Figures} */
function predictions(data) {
  const sum = total(data, "predictions");
  const length = data.buckets.length * data.bucket;
  return { value: count(sum), note: `${rate(length ? sum / length : 0)} on average` };
}

/** @param {any} data @returns {Figures} */
function defects(data) {
  const found = total(data, "defects");
  const judged = total(data, "with_verdict");
  if (!judged) return { value: "–", note: "no prediction has a verdict" };
  return { value: percent(found, judged), note: `${count(found)} of ${count(judged)} with a verdict` };
}

/** @param {any} data @returns {Figures} */
function cloud(data) {
  const sum = total(data, "predictions");
  const reasons = new Map();
  for (const bucket of data.buckets) {
    for (const { key, count: number } of bucket.by_cloud_reason) {
      reasons.set(key, (reasons.get(key) ?? 0) + number);
    }
  }
  const most = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 3);
  const note = most.map(([key, number]) => `${words(key)} ${count(number)}`).join(" · ");
  return { value: percent(total(data, "from_cloud"), sum), note: note || "the cloud was not asked" };
}

/** @param {any} data @returns {Figures} */
function speed(data) {
  const timed = data.buckets.filter((/** @type {any} */ bucket) => bucket.inference_time).at(-1);
  if (!timed) return { value: "–", note: "no inference time was logged" };
  const { p50, p95, p99 } = timed.inference_time;
  return { value: milliseconds(p95), note: `p50 ${milliseconds(p50)} · p99 ${milliseconds(p99)}` };
}

/** @param {any} data @returns {Figures} */
function books(data) {
  const { accepted, rejected, gap_sequences: gaps, committed_through: committed } = data.total;
  const off = accepted + rejected + gaps - committed;
  const parts = `${count(gaps)} declared lost · ${count(rejected)} rejected`;
  if (!data.total.balanced) {
    return { value: off ? `off by ${count(Math.abs(off))}` : "off", note: `${parts} · see the ledger`, kind: "bad" };
  }
  return { value: "balanced", note: committed ? parts : plural(0, "prediction"), kind: "good" };
}
