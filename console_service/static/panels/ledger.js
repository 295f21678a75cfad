// @ts-check
/** The ledger in short: what was committed, and what became of it. */

import { html } from "../html.js";
import { Link } from "../link.js";
import { Panel } from "../panel.js";
import { href } from "../state.js";
import { LedgerTable } from "./ledger_table.js";

/** @param {{reading: import("../api.js").Reading<any>}} props */
export function LedgerPanel({ reading }) {
  return html`
    <${Panel} name="ledger" title="Ledger" reading=${reading} tall
      note="accepted + rejected + declared = committed">
      ${(/** @type {any} */ data) => html`
        <${LedgerTable} entries=${data.entries} total=${data.total} />
        <p class="links"><${Link} class="chip" to=${href({ view: "ledger" })}>every spool, gap and rejection<//></p>
      `}
    <//>
  `;
}
