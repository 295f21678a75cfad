// @ts-check
/** Boxes, rotated boxes, keypoints and masks on the outline of the frame. */

import { html } from "../html.js";
import { maskPath } from "../run_lengths.js";

/** @param {{one: any}} props A stored prediction. */
export function Outline({ one }) {
  const [width, height] = size(one);
  if (!width) return html`<p class="empty">No position is known.</p>`;
  const found = one.detections.map((/** @type {any} */ each) => `${each.class_name || each.class_id} ${each.confidence.toFixed(2)}`);
  const unit = Math.max(width, height) / 100;
  return html`
    <svg class="outline" viewBox=${`0 0 ${width} ${height}`} role="img"
      aria-label=${`Frame with ${found.length} detections: ${found.join(", ")}`}>
      <rect class="frame" width=${width} height=${height} />
      ${one.detections.map((/** @type {any} */ each, /** @type {number} */ index) => html`
        <g class=${`mark mark-${index % 6}`} stroke-width=${unit * 0.4}>
          <${Shape} one=${each} unit=${unit} />
          <${Name} one=${each} unit=${unit} text=${found[index]} />
        </g>
      `)}
    </svg>
  `;
}

/** @param {{one: any, unit: number}} props */
function Shape({ one, unit }) {
  const { box, rotated_box: rotated, mask, keypoints = [] } = one;
  return html`
    ${mask?.polygons?.map((/** @type {any} */ polygon) => html`<polygon class="mask" points=${polygon.points.join(" ")} />`)}
    ${mask?.rle && html`<path class="mask" d=${maskPath(mask)} />`}
    ${rotated
      ? html`<polygon points=${corners(rotated)} />`
      : box && html`
          <rect x=${box.x_min ?? 0} y=${box.y_min ?? 0} width=${(box.x_max ?? 0) - (box.x_min ?? 0)}
            height=${(box.y_max ?? 0) - (box.y_min ?? 0)} />
        `}
    ${keypoints.map((/** @type {any} */ point) => html`<circle cx=${point.x ?? 0} cy=${point.y ?? 0} r=${unit * 0.6} />`)}
  `;
}

/** @param {{one: any, unit: number, text: string}} props */
function Name({ one, unit, text }) {
  const { box, rotated_box: rotated } = one;
  const [x, y] = box ? [box.x_min ?? 0, box.y_min ?? 0] : rotated ? [rotated.center_x, rotated.center_y] : [0, unit * 4];
  return html`<text x=${x + unit * 0.4} y=${Math.max(y - unit * 0.8, unit * 2.4)} font-size=${unit * 2.4}>${text}</text>`;
}

/** Return the corners of a rotated box, as SVG writes points.
 * @param {any} box
 */
function corners(box) {
  const { center_x: x = 0, center_y: y = 0, width = 0, height = 0, angle = 0 } = box;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    .map(([a, b]) => [(a * width) / 2, (b * height) / 2])
    .map(([a, b]) => `${x + a * cos - b * sin},${y + a * sin + b * cos}`)
    .join(" ");
}

/** Return the size of the image, or else of what holds all boxes.
 * @param {any} one
 * @returns {[number, number]}
 */
function size(one) {
  if (one.image_width && one.image_height) return [one.image_width, one.image_height];
  const boxes = one.detections.map((/** @type {any} */ each) => each.box).filter(Boolean);
  const most = (/** @type {string} */ edge) => Math.max(0, ...boxes.map((/** @type {any} */ box) => box[edge] ?? 0));
  return [most("x_max"), most("y_max")];
}
