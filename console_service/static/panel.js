// @ts-check
/** The frame of every panel: its title, a skeleton while it loads, the age of its data, its error. */

import { signal } from "@preact/signals";
import { html } from "./html.js";
import { duration } from "./format.js";

const now = signal(Date.now());
setInterval(() => {
  if (!document.hidden) now.value = Date.now();
}, 1000);

/** Data older than this is said to be old, s. */
const STALE_SECONDS = 90;

/**
 * @param {{
 *   name: string,
 *   title: string,
 *   note?: string,
 *   reading?: import("./api.js").Reading<any>,
 *   tall?: boolean,
 *   actions?: any,
 *   children: any,
 * }} props `name` is for the layout; `children` is a function of the data where there is a reading.
 */
export function Panel({ name, title, note, reading, tall, actions, children }) {
  const id = `panel-${name}`;
  return html`
    <section class="panel" data-panel=${name} aria-labelledby=${id} aria-busy=${!!reading?.loading}>
      <header>
        <h2 id=${id}>${title}</h2>
        ${note && html`<p class="note">${note}</p>`}
        ${actions}
        ${reading && html`<${Age} reading=${reading} />`}
      </header>
      ${reading ? html`<${Body} reading=${reading} tall=${tall}>${children}<//>` : children}
    </section>
  `;
}

/** @param {{reading: import("./api.js").Reading<any>, tall?: boolean, children?: any}} props */
function Body({ reading, tall, children }) {
  const { data, error } = reading;
  if (data !== null) {
    return html`
      ${error && html`<${Failure} problem=${error} again=${reading.again} />`}
      ${children(data)}
    `;
  }
  if (error) return html`<${Failure} problem=${error} again=${reading.again} />`;
  return html`<div class=${tall ? "skeleton tall" : "skeleton"}><span class="hidden">loading</span></div>`;
}

/** @param {{problem: import("./api.js").Problem, again: () => void}} props */
function Failure({ problem, again }) {
  return html`
    <div class="failure" role="status">
      <strong>${problem.reason}</strong> ${problem.field && html`<code>${problem.field}</code>`}
      ${" "}${problem.message}
      <button onClick=${again}>try again</button>
    </div>
  `;
}

/** @param {{reading: import("./api.js").Reading<any>}} props */
function Age({ reading }) {
  if (!reading.readAt) return null;
  const seconds = Math.max(0, (now.value - reading.readAt) / 1000);
  const old = seconds > STALE_SECONDS;
  return html`
    <span class=${old ? "age old" : "age"} title="age of this panel's data">
      ${seconds < 5 ? "now" : `${duration(seconds)} ago`}
    </span>
  `;
}

/** Return the time of now, which makes its reader render each second. */
export const seconds = () => now.value / 1000;
