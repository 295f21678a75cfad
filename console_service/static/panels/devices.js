// @ts-check
/** Tiles of the devices: alive or silent, how fast, and what deserves a look. */

import { useState } from "preact/hooks";
import { compact, count, duration, percent, rate } from "../format.js";
import { html } from "../html.js";
import { Link } from "../link.js";
import { Panel, seconds } from "../panel.js";
import { concern, isSilent, silence } from "../shapes.js";
import { device, href } from "../state.js";

const SHOWN = 60;

/** @param {{reading: import("../api.js").Reading<any>}} props */
export function Devices({ reading }) {
  const [sought, setSought] = useState("");
  const [all, setAll] = useState(false);
  const find = html`
    <input id="find" class="find" type="search" placeholder="find a device  /" aria-label="find a device"
      value=${sought} onInput=${(/** @type {any} */ event) => setSought(event.target.value)} />
  `;
  return html`
    <${Panel} name="devices" title="Is the fleet alive?" tall reading=${reading} actions=${find}
      note="last 24 h each; red: silent, amber: worth a look">
      ${(/** @type {any} */ data) => {
        void seconds();
        const found = sorted(data).filter((one) => one.device_id.toLowerCase().includes(sought.toLowerCase()));
        if (!found.length) {
          return html`<p class="empty">${sought ? "No device has this name." : "No device has logged yet. Start one with: sightline log pictures/"}</p>`;
        }
        const rest = data.next_page_token
          && html`<p class="note">These are the first ${count(data.devices.length)} devices.</p>`;
        const shown = all ? found : found.slice(0, SHOWN);
        return html`
          <ul class="tiles">
            ${shown.map((one) => html`<${Tile} key=${one.device_id} one=${one} now=${data.server_time} />`)}
          </ul>
          ${shown.length < found.length && html`
            <button class="chip" onClick=${() => setAll(true)}>show all ${count(found.length)}</button>
          `}
          ${rest}
        `;
      }}
    <//>
  `;
}

/** Return the devices, those that need somebody first.
 * @param {any} data
 * @returns {any[]}
 */
function sorted(data) {
  const rank = (/** @type {any} */ one) => (isSilent(one, data.server_time) ? 0 : concern(one) ? 1 : 2);
  return [...data.devices].sort((a, b) => rank(a) - rank(b) || (a.device_id < b.device_id ? -1 : 1));
}

/** @param {{one: any, now: string}} props */
function Tile({ one, now }) {
  const silent = isSilent(one, now);
  const worry = concern(one);
  const state = silent ? "bad" : worry ? "warn" : "good";
  const ago = silence(one, now);
  const said = silent
    ? Number.isFinite(ago) ? `silent ${duration(ago)}` : "nothing yet"
    : worry || rate(one.predictions_per_second);
  return html`
    <li>
      <${Link} class=${`tile ${state}`} to=${href({ device: one.device_id, view: null })}
        current=${device.value === one.device_id}>
        <span class="name"><span class="dot" aria-hidden="true"></span>${one.device_id}</span>
        <${Spark} values=${one.predictions_by_hour} />
        <span class="said">${said}</span>
        <span class="share" title=${`${count(one.predictions)} predictions, ${count(one.defects)} defects`}>
          ${one.defects ? percent(one.defects, one.predictions) : compact(one.predictions)}
        </span>
      <//>
    </li>
  `;
}

/** @param {{values: number[]}} props Oldest first. */
function Spark({ values }) {
  const most = Math.max(1, ...values);
  const width = 100 / values.length;
  return html`
    <svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">
      ${values.map((value, index) => html`
        <rect x=${index * width} y=${24 - (24 * value) / most} width=${width} height=${(24 * value) / most} />
      `)}
    </svg>
  `;
}
