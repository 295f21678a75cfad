// @ts-check
/** A table of spools and their accounts. */

import { count } from "../format.js";
import { html } from "../html.js";

/** @param {{entries: any[], total: any, spools?: boolean}} props `spools`: show their ids. */
export function LedgerTable({ entries, total, spools }) {
  if (!entries.length) return html`<p class="empty">Nothing is committed yet.</p>`;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Ledger by spool">
      <table>
        <thead>
          <tr>
            <th scope="col">device</th>
            ${spools && html`<th scope="col">spool</th>`}
            <th scope="col" class="number">accepted</th>
            <th scope="col" class="number">rejected</th>
            <th scope="col" class="number">declared lost</th>
            <th scope="col" class="number">committed</th>
            <th scope="col" class="number">again</th>
            <th scope="col">balanced</th>
          </tr>
        </thead>
        <tbody>
          ${entries.map((entry) => html`
            <tr key=${entry.spool_id}>
              <th scope="row">${entry.device_id}</th>
              ${spools && html`<td><code title=${entry.spool_id}>${entry.spool_id.slice(0, 8)}</code></td>`}
              <${Numbers} entry=${entry} />
            </tr>
          `)}
        </tbody>
        <tfoot>
          <tr><th scope="row">all</th>${spools && html`<td></td>`}<${Numbers} entry=${total} /></tr>
        </tfoot>
      </table>
    </div>
  `;
}

/** @param {{entry: any}} props */
function Numbers({ entry }) {
  return html`
    <td class="number">${count(entry.accepted)}</td>
    <td class=${`number ${entry.rejected ? "warn" : ""}`}>${count(entry.rejected)}</td>
    <td class=${`number ${entry.gap_sequences ? "warn" : ""}`}>${count(entry.gap_sequences)}</td>
    <td class="number">${count(entry.committed_through)}</td>
    <td class="number">${count(entry.duplicates)}</td>
    <td class=${entry.balanced ? "good" : "bad"}>${entry.balanced ? "yes" : "no"}</td>
  `;
}
