// @ts-check
/** The versions of models, side by side. */

import { useReading, withQuery } from "../api.js";
import { count, milliseconds, moment, percent } from "../format.js";
import { html } from "../html.js";
import { Panel } from "../panel.js";
import { device } from "../state.js";

export function Models() {
  const reading = useReading(withQuery("/models", { device_id: device.value }), 60);
  return html`
    <div class="grid">
      <${Panel} name="models" title="Models" tall reading=${reading} note="newest first">
        ${(/** @type {any} */ data) => data.versions.length
          ? html`<${Table} versions=${data.versions} />`
          : html`<p class="empty">No prediction is stored yet.</p>`}
      <//>
    </div>
  `;
}

/** @type {[string, (one: any) => any][]} */
const COLUMNS = [
  ["predictions", (one) => count(one.predictions)],
  ["defect rate", (one) => percent(one.defects, one.with_verdict)],
  ["by the cloud", (one) => percent(one.from_cloud, one.predictions)],
  ["detections each", (one) => (one.predictions ? (one.detections / one.predictions).toFixed(2) : "–")],
  ["p50", (one) => milliseconds(one.inference_time?.p50)],
  ["p95", (one) => milliseconds(one.inference_time?.p95)],
  ["devices", (one) => count(one.devices)],
  ["first", (one) => moment(one.first_captured_at)],
  ["last", (one) => moment(one.last_captured_at)],
];

/** @param {{versions: any[]}} props */
function Table({ versions }) {
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Versions of models">
      <table>
        <thead>
          <tr>
            <th scope="col">model</th><th scope="col">version</th><th scope="col">confidence</th>
            ${COLUMNS.map(([name]) => html`<th scope="col" class="number">${name}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${versions.map((one) => html`
            <tr>
              <th scope="row">${one.model_name}</th>
              <td>${one.model_version || "–"}</td>
              <td><${Bars} counts=${one.confidences} /></td>
              ${COLUMNS.map(([, value]) => html`<td class="number">${value(one)}</td>`)}
            </tr>
          `)}
        </tbody>
      </table>
    </div>
  `;
}

/** @param {{counts: number[]}} props Detections in bins of 0.05. */
function Bars({ counts }) {
  const most = Math.max(1, ...counts);
  return html`
    <svg class="bars" viewBox="0 0 100 24" preserveAspectRatio="none" role="img"
      aria-label=${`${count(counts.reduce((sum, number) => sum + number, 0))} detections by confidence, from 0 to 1`}>
      ${counts.map((number, index) => html`
        <rect x=${index * 5} width="4.4" y=${24 - (24 * number) / most} height=${(24 * number) / most} />
      `)}
    </svg>
  `;
}
