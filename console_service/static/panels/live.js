// @ts-check
/** What is committed now: server-sent events, resumed by the browser after a break. */

import { useEffect, useRef, useState } from "preact/hooks";
import { parsed, session, withQuery } from "../api.js";
import { clock, count, milliseconds } from "../format.js";
import { html } from "../html.js";
import { Link } from "../link.js";
import { Panel } from "../panel.js";
import { addressOf, flat } from "../shapes.js";
import { device, href } from "../state.js";

/** Lines that are kept: memory does not grow with the length of a visit. */
const LINES = 60;
const PER_SECOND = 50;
/** Time after which a refused stream is asked for again, ms: a browser does not. */
const AGAIN = 3000;

/** @typedef {{lines: any[], leftOut: number, state: string}} Feed
 *   `state` is empty while events come.
 */

export function Live() {
  const [paused, setPaused] = useState(false);
  const [feed, setFeed] = useState(/** @type {Feed} */ ({ lines: [], leftOut: 0, state: "connecting" }));
  const last = useRef(""); // id of the last event
  const one = device.value;
  useEffect(() => {
    last.current = "";
    setFeed({ lines: [], leftOut: 0, state: "connecting" });
  }, [one]);
  useEffect(() => {
    if (paused) return undefined;
    return follow({
      address: () => withQuery("/live", { device_id: one, max_per_second: PER_SECOND, resume_token: last.current }),
      forget: () => (last.current = ""),
      say: (state) => setFeed((old) => ({ ...old, state })),
      take: ({ data, lastEventId }) => {
        last.current = lastEventId;
        const { predictions, left_out: leftOut } = parsed(data);
        setFeed((old) => ({
          state: "",
          lines: [...predictions.map(flat).reverse(), ...old.lines].slice(0, LINES),
          leftOut: old.leftOut + (leftOut ?? 0),
        }));
      },
    });
  }, [one, paused, session.value]);
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

/** Follow the log while the tab is visible, each time from after the last event on.
 *
 * A browser has few connections to a host for all of its tabs, and a stream holds one of them.
 * @param {{
 *   address: () => string,
 *   forget: () => void,
 *   say: (state: string) => void,
 *   take: (event: MessageEvent) => void,
 * }} page `forget`: the address must not continue after the last event, for that was refused.
 * @returns {() => void} A function that ends it.
 */
function follow({ address, forget, say, take }) {
  let timer = 0;
  let refusals = 0;
  let close = () => {};
  function open() {
    const source = new EventSource(address());
    close = () => source.close();
    source.onopen = () => say("");
    source.onerror = () => {
      say("connecting again");
      if (source.readyState !== EventSource.CLOSED) return;
      if (++refusals > 1) forget();
      timer = setTimeout(open, AGAIN);
    };
    source.addEventListener("waiting", () => say("the log is away"));
    source.addEventListener("failed", (event) => {
      source.close(); // or the browser would ask for the same again and again
      say(problem(event.data));
    });
    source.addEventListener("predictions", (event) => {
      refusals = 0;
      take(event);
    });
  }
  function look() {
    clearTimeout(timer);
    close();
    if (!document.hidden) open();
  }
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    document.removeEventListener("visibilitychange", look);
    clearTimeout(timer);
    close();
  };
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
