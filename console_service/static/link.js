// @ts-check
/** Links within the page: a click changes the address without a request, a new tab works too. */

import { html } from "./html.js";
import { go } from "./state.js";

/**
 * @param {{to: string, class?: string, current?: boolean, title?: string, label?: string, children?: any}} props
 */
export function Link({ to, class: kind, current, title, label, children }) {
  /** @param {MouseEvent} event */
  function follow(event) {
    if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(to);
  }
  return html`
    <a href=${to} class=${kind} title=${title} aria-label=${label}
      aria-current=${current ? "true" : undefined} onClick=${follow}>${children}</a>
  `;
}
