// @ts-check
/** One prediction: its boxes on the outline of the frame, timings, labels, and how to get the same. */

import { hasSignedIn, useReading } from "../api.js";
import { count, duration, milliseconds, moment, words } from "../format.js";
import { html } from "../html.js";
import { Outline } from "../panels/outline.js";
import { Panel } from "../panel.js";
import { flat } from "../shapes.js";
import { prediction } from "../state.js";

export function Prediction() {
  const { device, spool, sequence } = prediction.value;
  const path = `/predictions/${encodeURIComponent(device)}/${encodeURIComponent(spool)}/${encodeURIComponent(sequence)}`;
  const reading = useReading(path, 0);
  return html`
    <div class="grid">
      <${Panel} name="prediction" title=${`Prediction ${sequence} of ${device}`} tall reading=${reading}>
        ${(/** @type {any} */ data) => html`<${Found} data=${data} />`}
      <//>
      <${Panel} name="same" title="The same, elsewhere"><${Same} path=${path} /><//>
    </div>
  `;
}

/** @param {{data: any}} props */
function Found({ data }) {
  if (data.prediction) return html`<${Stored} one=${flat(data.prediction)} />`;
  if (data.rejection) {
    return html`
      <p>It broke a rule: <b>${data.rejection.rejection.reason}</b> <code>${data.rejection.rejection.field}</code></p>
      <pre tabindex="0">${JSON.stringify(data.rejection.original, null, 2)}</pre>
    `;
  }
  if (data.gap) {
    const { gap } = data.gap;
    return html`
      <p>It never came. The device declared sequences ${gap.first_sequence} to ${gap.last_sequence} lost:
        ${" "}<b>${words(gap.reason)}</b>, ${moment(data.gap.received_at)}.</p>
    `;
  }
  return null;
}

/** @param {{one: any}} props */
function Stored({ one }) {
  const rows = [
    ["image", one.image_id],
    ["size", one.image_width ? `${one.image_width} × ${one.image_height}` : "not known"],
    ["model", `${one.model_name} ${one.model_version}`],
    ["answered by", one.source === "cloud" ? `the cloud: ${words(one.cloud_reason ?? "")}` : "the device"],
    ["inference time", milliseconds(one.inference_time)],
    ["captured", `${moment(one.captured_at)} by the device's clock`],
    ["received", moment(one.received_at)],
    ["clock offset", duration(one.clock_offset)],
    ["verdict", one.defect_detected === true ? "defect" : one.defect_detected === false ? "no defect" : "none"],
    ["trace", one.trace_id || "not traced"],
    ["spool", one.spool_id],
    ["sequence", count(one.sequence)],
    ...Object.entries(one.labels ?? {}).map(([key, value]) => [`label ${key}`, value]),
  ];
  return html`
    <div class="halves">
      <div>
        <${Outline} one=${one} />
        <${Detections} found=${one.detections} />
      </div>
      <dl class="facts">
      ${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
    </div>
  `;
}

/** @param {{found: any[]}} props */
function Detections({ found }) {
  if (!found.length) return html`<p class="empty">No detection.</p>`;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Detections">
      <table>
        <thead>
          <tr><th scope="col">class</th><th scope="col" class="number">confidence</th>
            <th scope="col">box</th><th scope="col" class="number">track</th></tr>
        </thead>
        <tbody>
          ${found.map((one) => html`
            <tr>
              <th scope="row">${one.class_name || one.class_id}</th>
              <td class="number">${one.confidence.toFixed(3)}</td>
              <td>${one.box ? edges(one.box) : "–"}</td>
              <td class="number">${one.track_id ?? "–"}</td>
            </tr>
          `)}
        </tbody>
      </table>
    </div>
  `;
}

/** @param {any} box */
const edges = (box) =>
  [box.x_min, box.y_min, box.x_max, box.y_max].map((/** @type {number} */ edge) => (edge ?? 0).toFixed(0)).join(", ");

/** @param {{path: string}} props */
function Same({ path }) {
  const { device, spool, sequence } = prediction.value;
  const key = hasSignedIn() ? '-H "Authorization: Bearer $KEY" ' : "";
  const sql = (/** @type {string} */ text) => `'${text.replaceAll("'", "''")}'`;
  const where = `device_id = ${sql(device)} AND spool_id = ${sql(spool)} AND sequence = ${/^\d+$/.test(sequence) ? sequence : 0}`;
  const python = [
    "import sightline",
    "",
    'with sightline.connect("127.0.0.1:50051") as log:',
    `    print(log.sql(${JSON.stringify(`SELECT * FROM predictions WHERE ${where}`)}).to_pylist())`,
  ].join("\n");
  return html`
    <h3>curl</h3>
    <pre tabindex="0">curl ${key}${quoted(location.origin + path)}</pre>
    <h3>Terminal</h3>
    <pre tabindex="0">sightline show ${[device, spool, sequence].map(quoted).join(" ")}</pre>
    <h3>Python</h3>
    <pre tabindex="0">${python}</pre>
  `;
}

/** Return a word for a shell.
 * @param {string} text
 */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
