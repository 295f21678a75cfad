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

/** Return the begin of a range of whole buckets up to now, as RFC 3339.
 * @param {number} hours
 * @param {number} bucket Length of a bucket, s.
 */
function since(hours, bucket) {
  const end = Math.ceil(Date.now() / 1000 / bucket) * bucket;
  return new Date((end - hours * 3600) * 1000).toISOString();
}

export function Overview() {
  const { hours, bucket } = RANGES[range.value];
  const one = device.value;
  const series = useReading(
    () => withQuery("/series", { device_id: one, start_time: since(hours, bucket), bucket }),
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
      ${one && html`<${DeviceState} />`}
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
