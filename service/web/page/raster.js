/** Strokes as pixels, computed here: what is read back from a canvas is changed by some browsers. */

/** Pen width in pixels of a 28×28 model; a thinner one vanishes there. Larger models have a pen of the same share. */
const PEN = 2.25;
const PEN_SIDE = 28;
const FINE_SIDE = 256;
const MOST_FINE = 4;

/** An image of a model's size: a base, and strokes over it. */
export class Raster {
  /** @type {number[][][]} points [x, y] of each stroke, in pixels of the model */
  strokes = [];
  /** @type {Uint8Array|null} [C, H, W] */
  base = null;
  coverage = new Float32Array();

  /**
   * @param {number} channels 1 or 3
   * @param {number} height
   * @param {number} width
   */
  constructor(channels, height, width) {
    this.channels = channels;
    this.height = height;
    this.width = width;
    const side = Math.max(height, width);
    /** Each pixel is computed from fine × fine smaller ones. */
    this.fine = Math.max(1, Math.min(MOST_FINE, Math.floor(FINE_SIDE / side)));
    this.radius = (Math.max(PEN, (PEN * side) / PEN_SIDE) / 2) * this.fine;
    this.clear();
  }

  /** @returns {boolean} whether nothing was drawn or loaded */
  get empty() {
    return this.strokes.length === 0 && this.base === null;
  }

  /** Remove the base and all strokes. */
  clear() {
    this.strokes = [];
    this.base = null;
    this.coverage = new Float32Array(this.height * this.width * this.fine ** 2);
  }

  /**
   * Begin with an image.
   * @param {Uint8Array} base [C, H, W]
   */
  load(base) {
    this.clear();
    this.base = base;
  }

  /**
   * Begin a stroke with a dot.
   * @param {number} x
   * @param {number} y
   */
  begin(x, y) {
    this.strokes.push([[x, y]]);
    this.#cover([x, y], [x, y]);
  }

  /**
   * Go on with the stroke.
   * @param {number} x
   * @param {number} y
   */
  extend(x, y) {
    const stroke = this.strokes[this.strokes.length - 1];
    this.#cover(stroke[stroke.length - 1], [x, y]);
    stroke.push([x, y]);
  }

  /** Remove the last stroke; the base goes last. */
  undo() {
    const strokes = this.strokes.slice(0, -1);
    const base = this.strokes.length ? this.base : null;
    this.clear();
    this.base = base;
    for (const [first, ...others] of strokes) {
      this.begin(first[0], first[1]);
      for (const [x, y] of others) this.extend(x, y);
    }
  }

  /** @returns {Uint8Array} the image [C, H, W] */
  pixels() {
    const { height, width, fine, channels } = this;
    const size = height * width;
    const pixels = this.base ? this.base.slice() : new Uint8Array(channels * size);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        let sum = 0;
        for (let y = row * fine; y < (row + 1) * fine; y++)
          for (let x = column * fine; x < (column + 1) * fine; x++) sum += this.coverage[y * width * fine + x];
        const level = Math.round((255 * sum) / fine ** 2);
        const index = row * width + column;
        for (let channel = 0; channel < channels; channel++)
          pixels[channel * size + index] = Math.max(pixels[channel * size + index], level);
      }
    }
    return pixels;
  }

  /** @returns {{data: Float32Array, height: number, width: number}} the first channel at full resolution, in [0, 1] */
  finePixels() {
    const [height, width] = [this.height * this.fine, this.width * this.fine];
    const data = this.coverage.slice();
    if (this.base)
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          const level = this.base[Math.floor(y / this.fine) * this.width + Math.floor(x / this.fine)] / 255;
          data[y * width + x] = Math.max(data[y * width + x], level);
        }
    return { data, height, width };
  }

  /**
   * Cover all within the pen's radius of a segment; the edge is one fine pixel soft.
   * @param {number[]} from
   * @param {number[]} to
   */
  #cover(from, to) {
    const { fine, radius } = this;
    const [height, width] = [this.height * fine, this.width * fine];
    const [ax, ay, bx, by] = [from[0] * fine, from[1] * fine, to[0] * fine, to[1] * fine];
    const [dx, dy] = [bx - ax, by - ay];
    const length = dx * dx + dy * dy;
    const reach = radius + 1;
    const bottom = Math.min(height - 1, Math.ceil(Math.max(ay, by) + reach));
    const right = Math.min(width - 1, Math.ceil(Math.max(ax, bx) + reach));
    for (let y = Math.max(0, Math.floor(Math.min(ay, by) - reach)); y <= bottom; y++) {
      for (let x = Math.max(0, Math.floor(Math.min(ax, bx) - reach)); x <= right; x++) {
        const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
        const along = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0;
        const distance = Math.hypot(px - along * dx, py - along * dy);
        const covered = Math.max(0, Math.min(1, radius - distance + 0.5));
        const index = y * width + x;
        if (covered > this.coverage[index]) this.coverage[index] = covered;
      }
    }
  }
}
