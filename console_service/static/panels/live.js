// @ts-check
/** What is committed now: server-sent events, resumed by the browser after a break. */

import { useEffect, useState } from "preact/hooks";
import { session, withQuery } from "../api.js";
import { clock, count, milliseconds } from "../format.js";
import { html } from "../html.js";
import { Link } from "../link.js";
import { Panel } from "../panel.js";
import { addressOf, flat } from "../shapes.js";
import { device, href } from "../state.js";

/** Lines that are kept: memory does not grow with the length of a visit. */
const LINES = 60;
const PER_SECOND = 50;

/** @typedef {{lines: any[], leftOut: number, state: string}} Feed
 *   `state` is empty while events come.
 */

export function Live() {
  const [paused, setPaused] = useState(false);
  const [feed, setFeed] = useState(/** @type {Feed} */ ({ lines: [], leftOut: 0, state: "connecting" }));
  const address = withQuery("/live", { device_id: device.value, max_per_second: PER_SECOND });
  useEffect(() => {
    setFeed({ lines: [], leftOut: 0, state: "connecting" });
  }, [address]);
  useEffect(() => {
    if (paused) return undefined;
    const source = new EventSource(address);
    source.onopen = () => setFeed((old) => ({ ...old, state: "" }));
    source.onerror = () => setFeed((old) => ({ ...old, state: "connecting again" }));
    source.addEventListener("waiting", () => {
      setFeed((old) => ({ ...old, state: "the log is away" }));
    });
    source.addEventListener("failed", (event) => {
      source.close(); // or the browser would ask for the same again and again
      setFeed((old) => ({ ...old, state: problem(event.data) }));
    });
    source.addEventListener("predictions", (event) => {
      const { predictions, left_out: leftOut } = JSON.parse(event.data);
      setFeed((old) => ({
        state: "",
        lines: [...predictions.map(flat).reverse(), ...old.lines].slice(0, LINES),
        leftOut: old.leftOut + (leftOut ?? 0),
      }));
    });
    return () => source.close();
  }, [address, paused, session.value]);
  const pause = html`
    <button class="chip" aria-pressed=${paused} onClick=${() => setPaused(!paused)}>
      ${paused ? "go on" : "pause"}
    </button>
  `;
  return html`
    <${Panel} name="live" title="Live" note=${paused ? "paused" : feed.state} actions=${pause}>
      ${feed.leftOut > 0 && html`<p class="note">+${count(feed.leftOut)} more than ${PER_SECOND} a second</p>`}
      ${feed.lines.length
        ? html`<ol class="lines" tabindex="0" aria-label="Latest predictions">
            ${feed.lines.map((one) => html`<${Line} key=${`${one.spool_id} ${one.sequence}`} one=${one} />`)}
          </ol>`
        : html`<p class="empty">Nothing was committed since this page was opened.</p>`}
    <//>
  `;
}

/** Return an error as words.
 * @param {string} text JSON.
 */
function problem(text) {
  const body = JSON.parse(text);
  const { reason, message } = body.error ?? body;
  return `${reason}: ${message}`;
}

/** @param {{one: any}} props */
function Line({ one }) {
  const best = Math.max(0, ...one.detections.map((/** @type {any} */ found) => found.confidence));
  const verdict = one.defect_detected === true ? "defect" : one.defect_detected === false ? "ok" : "";
  return html`
    <li>
      <${Link} to=${href(addressOf(one))}>
        <span>${clock(one.received_at)}</span> <span class="name">${one.device_id}</span>
        ${" "}<span class=${one.source}>${one.source}</span>
        ${" "}<span>${milliseconds(one.inference_time)}</span>
        ${" "}<b class=${verdict === "defect" ? "bad" : ""}>${verdict}</b>
        ${one.detections.length > 0 && html`<span> ${one.detections.length} × ${best.toFixed(2)}</span>`}
      <//>
    </li>
  `;
}
