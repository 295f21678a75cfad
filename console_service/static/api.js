// @ts-check
/** Reading from the server: with cancellation, repetition, and errors as the server words them. */

import { useEffect, useRef, useState } from "preact/hooks";
import { signal } from "@preact/signals";

/** True while the server asks for a key. */
export const signInNeeded = signal(false);
/** A number that grows after each sign-in, so that everything is read again. */
export const session = signal(0);

const SIGNED_IN = "sightline-signed-in";

/** Return True if this browser has signed in: the cookie itself cannot be seen. */
export const hasSignedIn = () => localStorage.getItem(SIGNED_IN) !== null;

/** Begin a session.
 * @param {string} credential An API key or a JWT.
 */
export async function signIn(credential) {
  await request("/session", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ credential }),
  });
  localStorage.setItem(SIGNED_IN, "");
  signInNeeded.value = false;
  session.value++;
}

/** End the session. */
export async function signOut() {
  await request("/session", { method: "DELETE" });
  localStorage.removeItem(SIGNED_IN);
  signInNeeded.value = true;
  session.value++;
}

/**
 * An error as the server words it.
 * @typedef {{status: number, reason: string, message: string, field: string, retryable: boolean}} Problem
 */

/** An error of a request. */
export class RequestError extends Error {
  /** @param {Problem} problem */
  constructor(problem) {
    super(problem.message);
    this.problem = problem;
  }
}

const HAS_LONG = /[:,[]-?\d{16}/;

/** Return the value of a JSON text. A sequence that a number would round stays the text that it is.
 * @param {string} text
 * @returns {any}
 */
export function parsed(text) {
  if (!HAS_LONG.test(text)) return JSON.parse(text);
  /** @param {string} key @param {unknown} value @param {{source?: string}} [context] */
  const exact = (key, value, context) =>
    key.endsWith("sequence") && !Number.isSafeInteger(value) ? (context?.source ?? value) : value;
  return JSON.parse(text, exact);
}

/** Return the JSON of a path.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new RequestError({
      status: 0,
      reason: "UNREACHABLE",
      message: "the console does not answer",
      field: "",
      retryable: true,
    });
  }
  if (response.status === 204) return null;
  const text = await response.text();
  if (response.ok) return parsed(text);
  if (response.status === 401) signInNeeded.value = true;
  throw new RequestError(problem(response.status, text));
}

/** @param {number} status @param {string} text @returns {Problem} */
function problem(status, text) {
  const known = { status, reason: `HTTP_${status}`, message: text.slice(0, 200), field: "" };
  try {
    const body = JSON.parse(text);
    return { retryable: false, ...known, ...(body.error ?? body) };
  } catch {
    return { retryable: status >= 500, ...known };
  }
}

/** Return a path with a query; empty and null values are left out.
 * @param {string} path
 * @param {Record<string, string | number | null | undefined>} values
 */
export function withQuery(path, values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/**
 * What a panel shows of its data.
 * @template T
 * @typedef {{data: T | null, error: Problem | null, loading: boolean, readAt: number, again: () => void}} Reading
 */

/** Read JSON, again and again while the page is visible.
 *
 * The request is cancelled when the panel goes, its address changes or the tab is hidden; the server
 * then cancels its query.
 * @template T
 * @param {string | (() => string)} address Path and query; a function is called for each request.
 * @param {number} seconds Time between two requests; 0: read once.
 * @param {readonly unknown[]} [inputs] What a function depends on.
 * @returns {Reading<T>}
 */
export function useReading(address, seconds, inputs = []) {
  const [state, setState] = useState(
    /** @type {{data: T | null, error: Problem | null, loading: boolean, readAt: number}} */
    ({ data: null, error: null, loading: true, readAt: 0 }),
  );
  const restart = useRef(() => {});
  const key = typeof address === "string" ? address : null;
  useEffect(() => {
    let timer = 0;
    let controller = new AbortController();
    setState({ data: null, error: null, loading: true, readAt: 0 });
    async function read() {
      clearTimeout(timer);
      controller.abort();
      controller = new AbortController();
      const { signal: stop } = controller;
      try {
        const path = typeof address === "string" ? address : address();
        const data = await request(path, { signal: stop });
        if (stop.aborted) return;
        setState({ data, error: null, loading: false, readAt: Date.now() });
      } catch (error) {
        if (stop.aborted) return;
        const { problem: found } = /** @type {RequestError} */ (error);
        if (!found) throw error;
        setState((old) => ({ ...old, error: found, loading: false }));
      }
      if (seconds && !document.hidden) timer = setTimeout(read, seconds * 1000);
    }
    function look() {
      if (!document.hidden) void read();
      else {
        clearTimeout(timer);
        controller.abort();
      }
    }
    restart.current = () => void read();
    document.addEventListener("visibilitychange", look);
    if (!document.hidden) void read();
    return () => {
      clearTimeout(timer);
      controller.abort();
      document.removeEventListener("visibilitychange", look);
    };
  }, [key, seconds, session.value, ...inputs]);
  return { ...state, again: () => restart.current() };
}
