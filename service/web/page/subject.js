/** The image that the page asks about, and the very request that asks. */

import { base64, png } from "./png.js";

const NPY = "application/x-npy";

/**
 * @typedef {Object} Subject
 * @property {string[]} names what each image of the request is
 * @property {string} type content type
 * @property {BodyInit} body
 * @property {string|null} text the body, if it is JSON; null for a file
 * @property {string} file the file's name; empty for JSON
 * @property {boolean} resize whether images of other sizes are resampled
 * @property {Subject|null} first the first image alone, if there are several
 */

/**
 * Pixels as JSON with a PNG for each image.
 * @param {{name: string, pixels: Uint8Array}[]} images each [C, H, W], as the model sees them
 * @param {{channels: number, height: number, width: number}} shape
 * @param {{fit: string, invert: boolean}} preparation the model's: where it inverts images, inverted ones are sent
 * @returns {Promise<Subject>}
 */
export async function subjectOfPixels(images, { channels, height, width }, { fit, invert }) {
  const sent = (pixels) => (invert && fit !== "exact" ? pixels.map((level) => 255 - level) : pixels);
  const files = await Promise.all(images.map(({ pixels }) => png(sent(pixels), channels, height, width)));
  const texts = files.map(base64);
  const names = images.map(({ name }) => name);
  const first = texts.length > 1 ? ofTexts(names.slice(0, 1), texts.slice(0, 1), null) : null;
  return ofTexts(names, texts, first);
}

/**
 * A file, which is sent as it is.
 * @param {File} file
 * @returns {Subject}
 */
export function subjectOfFile(file) {
  const type = file.name.toLowerCase().endsWith(".npy") ? NPY : file.type || "application/octet-stream";
  return { names: [file.name], type, body: file, text: null, file: file.name, resize: true, first: null };
}

/** @returns {Subject} */
function ofTexts(/** @type {string[]} */ names, /** @type {string[]} */ texts, /** @type {Subject|null} */ first) {
  const text = JSON.stringify({ images: texts });
  return { names, type: "application/json", body: text, text, file: "", resize: false, first };
}

/**
 * What `Api.ask` takes to ask about an image.
 * @param {Subject|null} subject
 * @param {Object<string, string|number|boolean>} query
 * @param {AbortSignal} [signal]
 * @returns {{query: Object<string, string|number|boolean>, type: string, body: BodyInit, signal?: AbortSignal}}
 */
export function requestOf(subject, query, signal) {
  if (!subject) throw new TypeError("there is no image");
  const { type, body, resize } = subject;
  return { query: resize ? { ...query, resize } : query, type, body, signal };
}
