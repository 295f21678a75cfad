// @ts-check
/** Signing in with an API key or a JWT, which becomes a cookie that scripts cannot read. */

import { useState } from "preact/hooks";
import { signIn } from "../api.js";
import { html } from "../html.js";

export function SignIn() {
  const [message, setMessage] = useState("");
  /** @param {SubmitEvent} event */
  async function submit(event) {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    const credential = String(new FormData(form).get("credential") ?? "").trim();
    try {
      await signIn(credential);
    } catch (error) {
      setMessage(/** @type {Error} */ (error).message);
    }
  }
  return html`
    <form class="panel sign-in" onSubmit=${submit}>
      <h2>Sign in</h2>
      <label for="credential">API key or token</label>
      <input id="credential" name="credential" type="password" autocomplete="current-password" required />
      <p class="note">It is kept in a cookie that scripts cannot read.</p>
      ${message && html`<p class="failure" role="alert">${message}</p>`}
      <button class="chip primary">sign in</button>
    </form>
  `;
}
