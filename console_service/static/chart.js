// @ts-check
/** Lines over time, by uPlot, in the colours of the theme. */

import { useEffect, useRef } from "preact/hooks";
import { html } from "./html.js";
import { colours } from "./state.js";

/**
 * @typedef {{label: string, colour: string, fill?: boolean, values: (number | null)[]}} Line
 *   `colour` is the name of a CSS variable.
 * @typedef {new (options: any, data: any, target: HTMLElement) => {
 *   destroy(): void, setSize(size: {width: number, height: number}): void}} Plot
 */

const HEIGHT = 190;

/** Return the value of a CSS variable.
 * @param {string} name
 */
export const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * @param {{
 *   title: string,
 *   times: number[],
 *   lines: Line[],
 *   format: (value: number) => string,
 *   sync?: string,
 * }} props `times` are seconds since 1970, ascending; each line has a value for each of them.
 */
export function Chart({ title, times, lines, format, sync = "time" }) {
  const target = useRef(/** @type {HTMLElement | null} */ (null));
  const shape = JSON.stringify([times[0], times.at(-1), lines.map((line) => line.values)]);
  useEffect(() => {
    const element = target.current;
    if (!element) return undefined;
    const { uPlot } = /** @type {{uPlot: Plot}} */ (/** @type {unknown} */ (globalThis));
    const plot = new uPlot(
      options(element.clientWidth, lines, format, sync),
      [times, ...lines.map((line) => line.values)],
      element,
    );
    const watch = new ResizeObserver(() => {
      plot.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    watch.observe(element);
    return () => {
      watch.disconnect();
      plot.destroy();
    };
  }, [shape, colours.value]);
  return html`<div class="chart" role="img" aria-label=${spoken(title, lines, format)} ref=${target} />`;
}

/** Return the labels of the axis of time: days, or hours with the day where it changes.
 * @param {unknown} _plot
 * @param {number[]} ticks Seconds since 1970.
 * @param {number} _axis
 * @param {number} _space
 * @param {number} step Seconds between two ticks.
 */
function hours(_plot, ticks, _axis, _space, step) {
  let day = "";
  return ticks.map((tick) => {
    const time = new Date(tick * 1000);
    const date = time.toLocaleDateString("en-CA").slice(5);
    if (step >= 86_400) return date;
    const hour = time.toLocaleTimeString("en-GB").slice(0, 5);
    const text = date === day ? hour : `${hour}\n${date}`;
    day = date;
    return text;
  });
}

/** Return where values stand between two that are none: no line goes through them.
 * @param {(number | null)[]} values
 */
const alone = (values) =>
  [...values.keys()].filter((at) => values[at] !== null && (values[at - 1] ?? null) === null && (values[at + 1] ?? null) === null);

/** @param {string} title @param {Line[]} lines @param {(value: number) => string} format */
function spoken(title, lines, format) {
  const parts = lines.map(({ label, values }) => {
    const known = values.filter((value) => value !== null);
    if (!known.length) return `${label}: no data`;
    const last = /** @type {number} */ (known.at(-1));
    return `${label}: last ${format(last)}, from ${format(Math.min(...known))} to ${format(Math.max(...known))}`;
  });
  return `${title}. ${parts.join("; ")}.`;
}

/**
 * @param {number} width
 * @param {Line[]} lines
 * @param {(value: number) => string} format
 * @param {string} sync
 */
function options(width, lines, format, sync) {
  const axis = {
    stroke: colour("quiet"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { stroke: colour("line"), width: 1 },
    font: "12px system-ui, sans-serif",
  };
  return {
    width,
    height: HEIGHT,
    cursor: { sync: { key: sync }, points: { size: 7 } },
    scales: { y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => [Math.min(low ?? 0, 0), (high || 1) * 1.08] } },
    axes: [{ ...axis, values: hours }, { ...axis, size: 64, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map(format) }],
    legend: { live: true },
    series: [
      { value: (/** @type {any} */ _, /** @type {number | null} */ time) => (time === null ? "–" : new Date(time * 1000).toLocaleString("en-GB")) },
      ...lines.map((line) => ({
        label: line.label,
        stroke: colour(line.colour),
        fill: line.fill ? `${colour(line.colour)}26` : undefined,
        width: 1.6,
        points: { show: false, filter: () => alone(line.values) },
        spanGaps: false,
        value: (/** @type {any} */ _, /** @type {number | null} */ value) =>
          value === null || value === undefined ? "–" : format(value),
      })),
    ],
  };
}
