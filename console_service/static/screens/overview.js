// @ts-check
/** The whole fleet, or one device, at a glance. */

import { useReading, withQuery } from "../api.js";
import { html } from "../html.js";
import { RANGES, device, range } from "../state.js";
import { Confidence } from "../panels/confidence.js";
import { DeviceState } from "../panels/device_state.js";
import { Devices } from "../panels/devices.js";
import { Frame } from "../panels/frame.js";
import { LedgerPanel } from "../panels/ledger.js";
import { Live } from "../panels/live.js";
import { CloudShare, DefectRate, Rate, Speed } from "../panels/series.js";
import { Summary } from "../panels/summary.js";

const HOUR = 3600;

/** Return the whole hours of a range up to now, as RFC 3339.
 * @param {number} hours
 */
function since(hours) {
  const end = Math.ceil(Date.now() / 1000 / HOUR) * HOUR;
  return new Date((end - hours * HOUR) * 1000).toISOString();
}

export function Overview() {
  const { hours, bucket } = RANGES[range.value];
  const one = device.value;
  const series = useReading(
    () => withQuery("/series", { device_id: one, start_time: since(hours), bucket }),
    30,
    [one, hours],
  );
  const devices = useReading("/devices?limit=1000", 10);
  const ledger = useReading(withQuery("/ledger", { device_id: one, limit: 12 }), 30);
  return html`
    <div class="grid">
      <${Summary} series=${series} devices=${devices} ledger=${ledger} />
      <${Devices} reading=${devices} />
      <${Frame} />
      ${one && html`<${DeviceState} reading=${devices} />`}
      <${DefectRate} reading=${series} />
      <${Rate} reading=${series} />
      <${Speed} reading=${series} />
      <${CloudShare} reading=${series} />
      <${Confidence} />
      <${Live} />
      <${LedgerPanel} reading=${ledger} />
    </div>
  `;
}
