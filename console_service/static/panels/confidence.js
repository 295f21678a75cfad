// @ts-check
/** The confidence of detections, now over before. */

import { useReading, withQuery } from "../api.js";
import { count } from "../format.js";
import { html } from "../html.js";
import { Panel } from "../panel.js";
import { device } from "../state.js";

const DRIFT = 0.1;

export function Confidence() {
  const reading = useReading(withQuery("/confidence", { device_id: device.value }), 60);
  return html`
    <${Panel} name="confidence" title="Confidence, 24 h against the week before" tall reading=${reading}>
      ${(/** @type {any} */ data) => html`
        <${Histogram} comparison=${data.all} />
        <${Judgement} comparison=${data.all} />
      `}
    <//>
  `;
}

/** @param {{comparison: any}} props Bins of 0.05. */
export function Histogram({ comparison }) {
  const { current, reference } = comparison;
  const [now, before] = [shares(current), shares(reference)];
  const most = Math.max(0.001, ...now, ...before);
  const bar = (/** @type {number[]} */ values, /** @type {string} */ kind) =>
    values.map((value, index) => html`
      <rect class=${kind} x=${index * 5 + 0.3} width="4.4" y=${40 - (40 * value) / most} height=${(40 * value) / most} />
    `);
  const spoken = `Confidence in ${now.length} bins. Now: ${peak(now)}. Before: ${peak(before)}.`;
  return html`
    <svg class="histogram" viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label=${spoken}>
      ${bar(before, "before")}${bar(now, "now")}
    </svg>
    <p class="axis" aria-hidden="true"><span>0</span><span>confidence</span><span>1</span></p>
    <p class="note legend"><span class="key now"></span>now, ${count(sum(current))}
      <span class="key before"></span>before, ${count(sum(reference))}</p>
  `;
}

/** @param {{comparison: any}} props */
function Judgement({ comparison }) {
  const { stability_index: index, chance_index: chance } = comparison;
  if (index === undefined || index === null) {
    return html`<p class="note">Nothing to compare: one of the two has no detection.</p>`;
  }
  const drifted = index > Math.max(DRIFT, chance);
  return html`
    <p>
      PSI <b class=${drifted ? "bad" : "good"}>${index.toFixed(3)}</b>
      <span class="note"> · chance alone stays below ${chance.toPrecision(2)} ·
        ${" "}${drifted ? "drifted" : "as the week before"}</span>
    </p>
  `;
}

/** @param {number[]} counts */
const sum = (counts) => counts.reduce((total, number) => total + number, 0);

/** @param {number[]} counts */
const shares = (counts) => counts.map((number) => number / (sum(counts) || 1));

/** @param {number[]} values */
function peak(values) {
  const most = Math.max(...values);
  if (!most) return "none";
  const index = values.indexOf(most);
  return `most from ${(index * 0.05).toFixed(2)} to ${((index + 1) * 0.05).toFixed(2)}`;
}
