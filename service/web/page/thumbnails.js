/** Small pictures of files, made when they are looked at, a few at a time. The last ones are kept. */

import { html } from "./dom.js";

const SIDE = 40;
const KEPT = 200;
const AT_ONCE = 2;

export class Thumbnails {
  /** @type {Map<File, HTMLCanvasElement>} in the order of use */
  #kept = new Map();
  /** @type {{file: File, picture: HTMLCanvasElement}[]} */
  #wanted = [];
  #running = 0;

  /**
   * A canvas that shows the file soon.
   * @param {File} file
   * @returns {HTMLCanvasElement}
   */
  of(file) {
    let picture = this.#kept.get(file);
    if (picture) this.#kept.delete(file);
    else {
      picture = /** @type {HTMLCanvasElement} */ (
        html("canvas", { class: "small", height: SIDE, width: SIDE, "aria-hidden": "true" })
      );
      this.#wanted.push({ file, picture });
      if (this.#running < AT_ONCE) this.#run();
    }
    this.#kept.set(file, picture);
    if (this.#kept.size > KEPT) this.#kept.delete(/** @type {File} */ (this.#kept.keys().next().value));
    return picture;
  }

  /** Forget all. */
  clear() {
    this.#kept.clear();
    this.#wanted = [];
  }

  /** The newest first, for they are looked at now. */
  async #run() {
    this.#running += 1;
    await new Promise(requestAnimationFrame); // until then the canvas is nowhere
    for (let next = this.#wanted.pop(); next; next = this.#wanted.pop()) {
      if (next.picture.isConnected) await paint(next.picture, next.file);
      else this.#kept.delete(next.file);
    }
    this.#running -= 1;
  }
}

/** The browser decodes and shrinks the file outside of the page's thread. One that is no picture stays empty. */
async function paint(/** @type {HTMLCanvasElement} */ picture, /** @type {File} */ file) {
  try {
    const bitmap = await createImageBitmap(file, { resizeWidth: SIDE, resizeQuality: "medium" });
    const scale = SIDE / Math.max(bitmap.width, bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    picture.getContext("2d")?.drawImage(bitmap, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
    bitmap.close();
  } catch {
    picture.classList.add("none");
  }
}
