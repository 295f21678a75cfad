// @ts-check
/** Where on the frame detections lie. */

import { useEffect, useRef } from "preact/hooks";
import { useReading, withQuery } from "../api.js";
import { colour } from "../chart.js";
import { count, percent } from "../format.js";
import { html } from "../html.js";
import { Link } from "../link.js";
import { Panel } from "../panel.js";
import { colours, device, frameClass, href } from "../state.js";

export function Frame() {
  const reading = useReading(withQuery("/frame", { device_id: device.value }), 60);
  return html`
    <${Panel} name="frame" title="Where on the frame" tall reading=${reading}
      note="box centres, 24 h">
      ${(/** @type {any} */ data) => html`<${Map} data=${data} />`}
    <//>
  `;
}

/** @param {{data: any}} props */
function Map({ data }) {
  if (!data.grids.length) return html`<p class="empty">No detection with a position in 24 h.</p>`;
  const chosen = frameClass.value;
  const grids = chosen === null ? data.grids : data.grids.filter((/** @type {any} */ grid) => grid.class_name === chosen);
  const cells = new Array(data.columns * data.rows).fill(0);
  for (const grid of grids) {
    grid.cells.forEach((/** @type {number} */ number, /** @type {number} */ index) => (cells[index] += number));
  }
  const sampled = data.sampled < 1 ? ` of a sample of ${percent(data.sampled, 1)}` : "";
  return html`
    <nav class="chips" aria-label="Classes">
      <${Link} class="chip" to=${href({ class: null })} current=${chosen === null}>all classes<//>
      ${data.grids.slice(0, 6).map((/** @type {any} */ grid) => html`
        <${Link} class="chip" to=${href({ class: grid.class_name })} current=${chosen === grid.class_name}>
          ${grid.class_name || "no name"}
        <//>
      `)}
    </nav>
    <${Heat} cells=${cells} columns=${data.columns} rows=${data.rows}
      ratio=${data.image_width ? data.image_height / data.image_width : data.rows / data.columns} />
    <p class="note">
      ${count(cells.reduce((sum, number) => sum + number, 0))} detections${sampled},
      ${" "}${count(data.without_position)} without a position
    </p>
  `;
}

/** @param {{cells: number[], columns: number, rows: number, ratio: number}} props */
function Heat({ cells, columns, rows, ratio }) {
  const target = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const most = Math.max(1, ...cells);
  const peak = cells.indexOf(Math.max(...cells));
  useEffect(() => {
    const canvas = target.current;
    const pen = canvas?.getContext("2d");
    if (!canvas || !pen) return;
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientWidth * Math.min(ratio, 1.2) * devicePixelRatio;
    const edge = (/** @type {number} */ place, /** @type {number} */ parts, /** @type {number} */ size) =>
      Math.round((place * size) / parts);
    pen.fillStyle = colour("heat-none");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = colour("heat");
    cells.forEach((number, index) => {
      // The root shows rare places beside frequent ones; its square is what the label says.
      pen.globalAlpha = Math.sqrt(number / most);
      const [column, row] = [index % columns, Math.floor(index / columns)];
      const [x, y] = [edge(column, columns, canvas.width), edge(row, rows, canvas.height)];
      pen.fillRect(x, y, edge(column + 1, columns, canvas.width) - x, edge(row + 1, rows, canvas.height) - y);
    });
  }, [cells.join(), ratio, colours.value]);
  const place = `column ${(peak % columns) + 1} of ${columns}, row ${Math.floor(peak / columns) + 1} of ${rows}`;
  return html`
    <canvas class="heat" role="img" ref=${target}
      aria-label=${`Detections by place. Most of them at ${place}: ${count(Math.max(...cells))}.`} />
  `;
}
