// @ts-check
/** COCO's compressed run lengths of a mask, as a path of SVG.
 *
 * The text is that of `rleFrString` in pycocotools: numbers of 5 bits a character, each after the
 * second as the difference from the one before the last. Runs go down the columns and alternate
 * between outside and inside, beginning outside.
 */

/** Return the lengths of the runs.
 * @param {string} text
 * @returns {number[]}
 */
export function runLengths(text) {
  /** @type {number[]} */
  const runs = [];
  let place = 0;
  while (place < text.length) {
    let value = 0;
    let bits = 0;
    let more = true;
    while (more && place < text.length) {
      const character = text.charCodeAt(place++) - 48;
      value |= (character & 0x1f) << bits;
      more = (character & 0x20) !== 0;
      bits += 5;
      if (!more && character & 0x10) value |= -1 << bits;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** Return a path that covers the pixels of a mask.
 * @param {{rle?: string, height?: number}} mask
 */
export function maskPath({ rle = "", height = 0 }) {
  const parts = [];
  let place = 0;
  for (const [index, length] of runLengths(rle).entries()) {
    if (index % 2 && height) {
      for (let left = length, at = place; left > 0; ) {
        const [x, y] = [Math.floor(at / height), at % height];
        const size = Math.min(left, height - y);
        parts.push(`M${x} ${y}h1v${size}h-1z`);
        left -= size;
        at += size;
      }
    }
    place += length;
  }
  return parts.join("");
}
