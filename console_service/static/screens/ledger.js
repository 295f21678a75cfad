// @ts-check
/** Every spool, every gap with its reason, every rejection with its original. */

import { useState } from "preact/hooks";
import { request, useReading, withQuery } from "../api.js";
import { count, moment, words } from "../format.js";
import { html } from "../html.js";
import { Link } from "../link.js";
import { LedgerTable } from "../panels/ledger_table.js";
import { Panel } from "../panel.js";
import { device, href } from "../state.js";

const PAGE = 100;

export function Ledger() {
  const of = { device_id: device.value, limit: PAGE };
  const ledger = useReading(withQuery("/ledger", of), 30);
  const gaps = useReading(withQuery("/gaps", of), 30);
  const rejections = useReading(withQuery("/rejections", of), 30);
  return html`
    <div class="grid">
      <${Panel} name="spools" title="Ledger" tall reading=${ledger}
        note="accepted + rejected + declared = committed, for every spool">
        ${(/** @type {any} */ data) => html`
          <${Pages} key=${of.device_id} first=${data} path=${withQuery("/ledger", of)} list="entries"
            show=${(/** @type {any[]} */ entries) => html`<${LedgerTable} entries=${entries} total=${data.total} spools />`} />
        `}
      <//>
      <${Panel} name="gaps" title="Gaps" tall reading=${gaps} note="declared lost, newest first">
        ${(/** @type {any} */ data) => html`
          <${Pages} key=${of.device_id} first=${data} path=${withQuery("/gaps", of)} list="gaps" show=${Gaps} />
        `}
      <//>
      <${Panel} name="rejections" title="Rejections" tall reading=${rejections}
        note="kept as they came, newest first">
        ${(/** @type {any} */ data) => html`
          <${Pages} key=${of.device_id} first=${data} path=${withQuery("/rejections", of)} list="rejections"
            show=${Rejections} />
        `}
      <//>
    </div>
  `;
}

/** The first page, which is read again, and on request the pages after it.
 *
 * All stay as they are from then on: what is committed meanwhile moves rows from page to page.
 * @param {{first: any, path: string, list: string, show: (rows: any[]) => any}} props
 */
function Pages({ first, path, list, show }) {
  const [more, setMore] = useState(/** @type {{rows: any[], token: string | null, error: string}} */ ({ rows: [], token: null, error: "" }));
  const rows = more.token === null ? first[list] : more.rows;
  const token = more.token ?? first.next_page_token;
  async function next() {
    try {
      const page = await request(`${path}&page_token=${encodeURIComponent(token)}`);
      setMore({ rows: [...rows, ...page[list]], token: page.next_page_token ?? "", error: "" });
    } catch (error) {
      setMore({ ...more, error: /** @type {Error} */ (error).message });
    }
  }
  return html`
    ${show(rows)}
    ${more.error && html`<p class="failure" role="status">${more.error}</p>`}
    ${token && html`<button class="chip" onClick=${next}>more</button>`}
  `;
}

/** @param {any[]} rows */
function Gaps(rows) {
  if (!rows.length) return html`<p class="empty">No device has declared a loss.</p>`;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Table of gaps">
      <table>
        <thead>
          <tr>
            <th scope="col">received</th><th scope="col">device</th><th scope="col">reason</th>
            <th scope="col" class="number">sequences</th><th scope="col" class="number">how many</th>
          </tr>
        </thead>
        <tbody>
          ${rows.map((row) => html`
            <tr>
              <td>${moment(row.received_at)}</td>
              <th scope="row">${row.device_id}</th>
              <td>${words(row.gap.reason)}</td>
              <td class="number">${row.gap.first_sequence} to ${row.gap.last_sequence}</td>
              <td class="number">${count(BigInt(row.gap.last_sequence) - BigInt(row.gap.first_sequence) + 1n)}</td>
            </tr>
          `)}
        </tbody>
      </table>
    </div>
  `;
}

/** @param {any[]} rows */
function Rejections(rows) {
  if (!rows.length) return html`<p class="empty">Every prediction kept the rules.</p>`;
  return html`
    <ul class="rejections">
      ${rows.map((row) => html`
        <li>
          <details>
            <summary>
              <b>${row.rejection.reason}</b> <code>${row.rejection.field}</code>
              ${" "}${row.device_id} ${moment(row.received_at)}
            </summary>
            <pre tabindex="0">${pretty(row.original)}</pre>
            <${Link} class="chip" to=${href({
              view: "prediction",
              device: row.device_id,
              spool: row.spool_id,
              sequence: String(row.rejection.sequence),
            })}>sequence ${row.rejection.sequence}<//>
          </details>
        </li>
      `)}
    </ul>
  `;
}

/** @param {unknown} original JSON, as text or parsed. */
function pretty(original) {
  try {
    return JSON.stringify(typeof original === "string" ? JSON.parse(original) : original, null, 2);
  } catch {
    return String(original);
  }
}
