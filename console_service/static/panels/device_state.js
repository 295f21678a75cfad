// @ts-check
/** One device: its clock, client, stream, backlog and losses. */

import { useReading, withQuery } from "../api.js";
import { bytes, count, duration, moment, rate, words } from "../format.js";
import { html } from "../html.js";
import { Link } from "../link.js";
import { Panel } from "../panel.js";
import { concern, isSilent, silence } from "../shapes.js";
import { device, href } from "../state.js";

export function DeviceState() {
  // Of its own: the list of all devices has an end.
  const reading = useReading(withQuery("/devices", { device_id: device.value }), 10);
  return html`
    <${Panel} name="device" title=${`Device ${device.value}`} reading=${reading}>
      ${(/** @type {any} */ data) => {
        const one = data.devices.find((/** @type {any} */ listed) => listed.device_id === device.value);
        return one
          ? html`<${State} one=${one} now=${data.server_time} />`
          : html`<p class="empty">The server knows no device of this name.</p>`;
      }}
    <//>
  `;
}

/** @param {{one: any, now: string}} props */
function State({ one, now }) {
  const { account } = one;
  const silent = isSilent(one, now);
  const rows = [
    ["state", silent ? "silent" : concern(one) || "alive"],
    ["last received", `${duration(silence(one, now))} ago (${moment(one.last_received_at)})`],
    ["rate", `${rate(one.predictions_per_second)}, before ${rate(one.predictions_per_second_before)}`],
    ["clock", one.clock_offset === undefined || one.clock_offset === null ? "not sent" : `server minus device ${duration(one.clock_offset)}`],
    ["client", one.client || "not sent"],
    ["stream opened", moment(one.stream_opened_at)],
    ["stored", `${count(one.predictions)} predictions, ${count(one.defects)} defects`],
    ["rejected", count(one.rejected)],
    ["declared lost", count(one.gap_sequences)],
    ...(account ? backlog(account) : [["backlog", "the device does not send it"]]),
  ];
  return html`
    <dl class="facts">
      ${rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
    <p class="links">
      <${Link} class="chip" to=${href({ view: "ledger" })}>its ledger and gaps<//>
    </p>
  `;
}

/** @param {any} account @returns {[string, string][]} */
function backlog(account) {
  const dropped = (account.dropped ?? []).map((/** @type {any} */ one) => `${words(one.reason)} ${count(one.count)}`);
  return [
    ["waiting on it", `${count(account.waiting_predictions ?? 0)} predictions, ${bytes(account.spool_bytes ?? 0)}`],
    ["oldest waiting", duration(account.oldest_waiting)],
    ["dropped by it", dropped.join(" · ") || "nothing"],
    ["logged", `${count(account.logged ?? 0)} in ${duration(account.uptime)}`],
  ];
}
