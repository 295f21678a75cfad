// @ts-check
/** The page: header, the screen that the address names, keys, and signing in. */

import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { hasSignedIn, signInNeeded, signOut } from "./api.js";
import { html } from "./html.js";
import { Link } from "./link.js";
import { Ledger } from "./screens/ledger.js";
import { Models } from "./screens/models.js";
import { Overview } from "./screens/overview.js";
import { Prediction } from "./screens/prediction.js";
import { SignIn } from "./screens/sign_in.js";
import { RANGES, colours, device, go, href, range, theme, view } from "./state.js";

const SCREENS = { overview: Overview, prediction: Prediction, ledger: Ledger, models: Models };
/** Keys, with what they do and its words. @type {Record<string, [string, () => void]>} */
const KEYS = {
  o: ["overview", () => go(href({ view: null }, true))],
  l: ["ledger", () => go(href({ view: "ledger" }, true))],
  m: ["models", () => go(href({ view: "models" }, true))],
  1: ["1 hour", () => go(href({ range: "1h" }))],
  2: ["24 hours", () => go(href({ range: "24h" }))],
  3: ["7 days", () => go(href({ range: "7d" }))],
  4: ["14 days", () => go(href({ range: "14d" }))],
  t: ["dark or light", switchTheme],
  "/": ["find a device", () => document.getElementById("find")?.focus()],
  Escape: ["whole fleet", () => go(href({ device: null, view: null, spool: null, sequence: null }))],
};

function switchTheme() {
  const dark = theme.value
    ? theme.value === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  go(href({ theme: dark ? "light" : "dark" }));
}

function Header() {
  return html`
    <header class="top">
      <h1><${Link} to=${href({}, true)}>Sightline<//></h1>
      <nav aria-label="Screens">
        ${Object.keys(SCREENS)
          .filter((name) => name !== "prediction")
          .map((name) => html`
            <${Link} class="tab" to=${href(name === "overview" ? {} : { view: name }, true)}
              current=${view.value === name}>${name}<//>
          `)}
      </nav>
      ${device.value && html`
        <span class="scope">
          <b>${device.value}</b>
          <${Link} class="chip" to=${href({ device: null, view: null })}>all devices<//>
        </span>
      `}
      <nav class="ranges" aria-label="Range of time">
        ${Object.keys(RANGES).map((name) => html`
          <${Link} class="chip" to=${href({ range: name })} current=${range.value === name}
            title=${RANGES[/** @type {keyof typeof RANGES} */ (name)].label}>${name}<//>
        `)}
      </nav>
      <button class="chip" onClick=${switchTheme} title="dark or light (t)" aria-label="dark or light">◐</button>
    </header>
  `;
}

function Help({ close = () => {} }) {
  const button = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const before = /** @type {HTMLElement | null} */ (document.activeElement);
    button.current?.focus();
    return () => before?.focus();
  }, []);
  return html`
    <div class="help" role="dialog" aria-label="Keys">
      <h2>Keys</h2>
      <dl>
        ${Object.entries(KEYS).map(([key, [words]]) => html`<dt><kbd>${key}</kbd></dt><dd>${words}</dd>`)}
        <dt><kbd>?</kbd></dt><dd>these keys</dd>
      </dl>
      <button class="chip" ref=${button} onClick=${close}>close</button>
    </div>
  `;
}

function App() {
  const [help, setHelp] = useState(false);
  void colours.value;
  useEffect(() => {
    /** @param {KeyboardEvent} event */
    function pressed(event) {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.metaKey || event.ctrlKey || event.altKey || target.matches("input, select, textarea")) {
        if (event.key === "Escape") target.blur();
        return;
      }
      if (event.key === "?") setHelp((shown) => !shown);
      else if (event.key === "Escape" && help) setHelp(false);
      else if (event.key in KEYS) {
        event.preventDefault();
        KEYS[event.key][1]();
      }
    }
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [help]);
  useEffect(() => {
    const parts = [device.value, view.value === "overview" ? "" : view.value, "Sightline"];
    document.title = parts.filter(Boolean).join(" · ");
  });
  const Screen = SCREENS[view.value];
  return html`
    <${Header} />
    <main>${signInNeeded.value ? html`<${SignIn} />` : html`<${Screen} />`}</main>
    ${help && html`<${Help} close=${() => setHelp(false)} />`}
    <footer class="bottom">
      <a href="/docs">API</a>
      ${hasSignedIn() && html`<button class="chip" onClick=${signOut}>sign out</button>`}
      ${" "}<span>Press <kbd>?</kbd> for keys.</span>
    </footer>
  `;
}

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
