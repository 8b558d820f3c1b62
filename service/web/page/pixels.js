/** Pixels on canvases, which only display them. */

import { html } from "./dom.js";

/** Surprise of 0 to this many nats has colours of its own, on every map; what is beyond looks like the end. */
export const MOST_NATS = 8;
/** From dark to light, even in lightness: 0 nats, …, MOST_NATS. */
const COLOURS = [
  [0, 0, 4],
  [40, 11, 84],
  [101, 21, 110],
  [159, 42, 99],
  [212, 72, 66],
  [245, 125, 21],
  [250, 193, 39],
  [252, 255, 164],
];

const PALETTE = Array.from({ length: 256 }, (_, level) => colour(level / 255));

/**
 * A canvas of a model's size, scaled by the style sheet.
 * @param {string} label
 * @param {number} height
 * @param {number} width
 * @returns {HTMLCanvasElement}
 */
export function canvas(label, height, width) {
  return html("canvas", { class: "pixels", role: "img", "aria-label": label, height, width });
}

/**
 * Show an image.
 * @param {HTMLCanvasElement} target
 * @param {number[][][]} image [C][H][W] in [0, 1]; of other than 3 channels the mean is shown
 */
export function show(target, image) {
  const [red, green, blue] = image.length === 3 ? image : Array(3).fill(meanOf(image));
  paint(target, image[0].length, image[0][0].length, (row, column) => [
    255 * red[row][column],
    255 * green[row][column],
    255 * blue[row][column],
  ]);
}

/**
 * Show an image of bytes.
 * @param {HTMLCanvasElement} target
 * @param {Uint8Array} pixels [C, H, W], C is 1 or 3
 * @param {{channels: number, height: number, width: number}} shape
 */
export function showBytes(target, pixels, { channels, height, width }) {
  const next = channels === 3 ? height * width : 0;
  paint(target, height, width, (row, column) => {
    const index = row * width + column;
    return [pixels[index], pixels[index + next], pixels[index + 2 * next]];
  });
}

/**
 * Show a map of nats.
 * @param {HTMLCanvasElement} target
 * @param {number[][]} nats [H][W]
 */
export function showMap(target, nats) {
  paint(target, nats.length, nats[0].length, (row, column) => colour(nats[row][column] / MOST_NATS));
}

/**
 * A map of nats in a byte a pixel, for keeping many.
 * @param {number[][][]} values [C][H][W]
 * @returns {Uint8Array} [H·W], 255 for MOST_NATS and more
 */
export function levelsOf(values) {
  return Uint8Array.from(summed(values).flat(), (nats) => Math.max(0, Math.min(255, (255 * nats) / MOST_NATS)));
}

/**
 * Show such a map.
 * @param {HTMLCanvasElement} target
 * @param {Uint8Array} levels
 * @param {{height: number, width: number}} shape
 */
export function showLevels(target, levels, { height, width }) {
  paint(target, height, width, (row, column) => PALETTE[levels[row * width + column]]);
}

/** Leave a canvas empty. */
export function blank(/** @type {HTMLCanvasElement} */ target) {
  target.getContext("2d")?.clearRect(0, 0, target.width, target.height);
}

/** The scale of every map, with its ends in nats. */
export function legend() {
  const strip = html("canvas", { class: "strip", "aria-hidden": "true", height: 1, width: 64 });
  paint(strip, 1, 64, (_, column) => colour(column / 63));
  return html("p", { class: "legend" }, "0 ", strip, ` ${MOST_NATS} nats and more`);
}

/**
 * The sum over channels.
 * @param {number[][][]} values [C][H][W]
 * @returns {number[][]}
 */
export function summed(values) {
  return values[0].map((line, row) =>
    line.map((_, column) => values.reduce((sum, channel) => sum + channel[row][column], 0)),
  );
}

function meanOf(/** @type {number[][][]} */ image) {
  return summed(image).map((line) => line.map((value) => value / image.length));
}

function colour(/** @type {number} */ share) {
  const place = Math.max(0, Math.min(1, share)) * (COLOURS.length - 1);
  const low = Math.min(COLOURS.length - 2, Math.floor(place));
  return COLOURS[low].map((value, index) => value + (place - low) * (COLOURS[low + 1][index] - value));
}

/**
 * @param {HTMLCanvasElement} target
 * @param {number} height
 * @param {number} width
 * @param {(row: number, column: number) => number[]} at
 */
function paint(target, height, width, at) {
  [target.height, target.width] = [height, width];
  const context = target.getContext("2d");
  if (!context) return;
  const image = context.createImageData(width, height);
  for (let row = 0; row < height; row++)
    for (let column = 0; column < width; column++) {
      const index = 4 * (row * width + column);
      image.data.set(at(row, column), index);
      image.data[index + 3] = 255;
    }
  context.putImageData(image, 0, 0);
}
