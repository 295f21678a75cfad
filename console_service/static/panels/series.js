// @ts-check
/** Charts over time, all from one request. */

import { Chart } from "../chart.js";
import { percent, rate } from "../format.js";
import { html } from "../html.js";
import { Panel } from "../panel.js";

/** @typedef {{reading: import("../api.js").Reading<any>}} Props */

/** @param {any} data */
const times = (data) => data.buckets.map((/** @type {any} */ one) => Date.parse(one.start_time) / 1000);

/** @param {any} data @param {(bucket: any) => number | null} value @returns {(number | null)[]} */
const each = (data, value) => data.buckets.map(value);

/** @param {any} data */
const step = (data) => (data.bucket === 3600 ? "each hour" : "each minute");

/** Return how much of a bucket has passed, s.
 * @param {any} data @param {any} bucket
 */
const passed = (data, bucket) =>
  Math.min(data.bucket, Math.max(1, (Date.now() - Date.parse(bucket.start_time)) / 1000));

/** @param {number} value */
const share = (value) => percent(value, 1);

/**
 * @param {{name: string, title: string, reading: import("../api.js").Reading<any>, note?: string,
 *   format: (value: number) => string, lines: (data: any) => import("../chart.js").Line[]}} props
 */
function Series({ name, title, reading, note, format, lines }) {
  return html`
    <${Panel} name=${name} title=${title} reading=${reading} tall
      note=${note ?? (reading.data ? step(reading.data) : "")}>
      ${(/** @type {any} */ data) => html`
        <${Chart} title=${title} times=${times(data)} lines=${lines(data)} format=${format} />
      `}
    <//>
  `;
}

/** @param {Props} props */
export function DefectRate({ reading }) {
  return html`
    <${Series} name="defect-rate" title="Defect rate" reading=${reading} format=${share}
      lines=${(/** @type {any} */ data) => [
        {
          label: "defect rate",
          colour: "bad",
          fill: true,
          values: each(data, (one) => (one.with_verdict ? one.defects / one.with_verdict : null)),
        },
      ]} />
  `;
}

/** @param {Props} props */
export function Rate({ reading }) {
  return html`
    <${Series} name="rate" title="Predictions and defects" reading=${reading} format=${rate}
      lines=${(/** @type {any} */ data) => [
        { label: "predictions", colour: "main", fill: true, values: each(data, (one) => one.predictions / passed(data, one)) },
        { label: "defects", colour: "bad", values: each(data, (one) => one.defects / passed(data, one)) },
      ]} />
  `;
}

/** @param {Props} props */
export function Speed({ reading }) {
  const quantile = (/** @type {"p50" | "p95" | "p99"} */ name) => (/** @type {any} */ one) =>
    one.inference_time ? one.inference_time[name] : null;
  return html`
    <${Series} name="speed" title="Speed of the model" reading=${reading} note="within 1 %"
      format=${(/** @type {number} */ value) => `${(value * 1000).toPrecision(3)} ms`}
      lines=${(/** @type {any} */ data) => [
        { label: "p50", colour: "good", values: each(data, quantile("p50")) },
        { label: "p95", colour: "warn", values: each(data, quantile("p95")) },
        { label: "p99", colour: "bad", values: each(data, quantile("p99")) },
      ]} />
  `;
}

/** @param {Props} props */
export function CloudShare({ reading }) {
  return html`
    <${Series} name="cloud-share" title="Answered by the cloud" reading=${reading} format=${share}
      note="share of predictions"
      lines=${(/** @type {any} */ data) => [
        {
          label: "cloud",
          colour: "cloud",
          fill: true,
          values: each(data, (one) => (one.predictions ? one.from_cloud / one.predictions : null)),
        },
      ]} />
  `;
}
